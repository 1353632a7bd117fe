"""A recurrent glimpse model: hard attention that looks at a few patches of an image, one after another.

Source: Mnih, Heess, Graves and Kavukcuoglu, "Recurrent Models of Visual Attention", NeurIPS 2014 (RAM); the glimpse
network is convolutional, as in Ba, Mnih and Kavukcuoglu, "Multiple Object Recognition with Visual Attention", 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sact.flops import conv_flops

SIDE = 16
"""Of a patch, in its own pixels."""
SCALES = (1, 2, 4)
"""Pixels of the image per pixel of a patch: the finest sees 16 of 64, the coarsest all of an image from its centre."""
GLIMPSES = 6
HIDDEN = 256
STD = 0.15
"""Of the locations that training draws around the location network's mean; the image reaches from -1 to 1."""


class Outcome(NamedTuple):
    """A forward pass over T glimpses; the first is at the centre.

    Attributes:
        logits: [N, classes], after the last glimpse.
        locations: (x, y) of each glimpse in [-1, 1], [N, T, 2].
        log_probs: of the chosen locations but the first, [N, T - 1].
        baselines: the rewards expected before each choice, [N, T - 1].
    """

    logits: Tensor
    locations: Tensor
    log_probs: Tensor
    baselines: Tensor


def pyramid(images: Tensor, scales: Sequence[int] = SCALES, side: int = SIDE) -> list[Tensor]:
    """Images [N, C, H, W] averaged at each scale, with zeros around them for patches that leave the image."""
    return [F.pad(F.avg_pool2d(images, scale) if scale > 1 else images, (side // 2,) * 4) for scale in scales]


def glimpse(levels: Sequence[Tensor], locations: Tensor, side: int = SIDE) -> Tensor:
    """The glimpse sensor: patches of all scales around one place.

    Args:
        levels: of `pyramid`, each [N, C, h + side, w + side].
        locations: (x, y) [N, 2], from (-1, -1), the image's corner, to (1, 1).
        side: of the patches.

    Returns:
        [N, scales C, side, side].
    """
    steps = torch.arange(side, device=locations.device)
    patches = []
    for level in levels:
        extent = torch.tensor([level.shape[3] - side, level.shape[2] - side], device=locations.device)
        corner = ((locations.float() + 1) / 2 * extent).round().long().minimum(extent).clamp(min=0)
        rows, columns = corner[:, 1, None] + steps, corner[:, 0, None] + steps
        image = torch.arange(len(level), device=locations.device)[:, None, None]
        patches.append(level[image, :, rows[:, :, None], columns[:, None, :]])
    return torch.cat(patches, 3).permute(0, 3, 1, 2)


class RecurrentAttention(nn.Module):
    """Glimpse network, recurrent core, location network, baseline and classifier.

    Args:
        num_classes: outputs.
        width: channels of the glimpse network's first convolution.
        glimpses: T.
    """

    def __init__(self, num_classes: int, width: int = 32, glimpses: int = GLIMPSES) -> None:
        super().__init__()
        self.glimpses = glimpses
        self.what = nn.Sequential(
            *conv(3 * len(SCALES), width), nn.MaxPool2d(2),
            *conv(width, 2 * width), nn.MaxPool2d(2),
            *conv(2 * width, 2 * width), nn.Flatten(1),
            nn.Linear(2 * width * (SIDE // 4) ** 2, HIDDEN),
        )  # fmt: skip
        self.where = nn.Linear(2, HIDDEN)
        self.core = nn.LSTMCell(HIDDEN, HIDDEN)
        self.location = nn.Linear(HIDDEN, 2)
        self.baseline = nn.Linear(HIDDEN, 1)
        self.classifier = nn.Linear(HIDDEN, num_classes)

    def forward(self, images: Tensor, sample: bool = False) -> Outcome:
        """Look T times and classify.

        Args:
            images: [N, 3, S, S].
            sample: draw locations around the location network's means, as training must; else take the means.
        """
        levels = pyramid(images)
        location = images.new_zeros(len(images), 2)
        state = images.new_zeros(len(images), HIDDEN), images.new_zeros(len(images), HIDDEN)
        locations, log_probs, baselines = [location], [], []
        for step in range(self.glimpses):
            seen = F.relu(self.what(glimpse(levels, location)) + self.where(location))
            state = self.core(seen, state)
            if step == self.glimpses - 1:
                break
            # Where to look is learned by reward alone; what was seen, by the classifier's gradient alone.
            memory = state[0].detach()
            choice = torch.distributions.Normal(self.location(memory).tanh().float(), STD, validate_args=False)
            drawn = choice.sample() if sample else choice.mean.detach()
            locations.append(drawn)
            log_probs.append(choice.log_prob(drawn).sum(1))
            baselines.append(self.baseline(memory)[:, 0].float())
            location = drawn.clamp(-1, 1)
        return Outcome(
            self.classifier(state[0]),
            torch.stack(locations, 1),
            torch.stack(log_probs, 1),
            torch.stack(baselines, 1),
        )

    def flops(self) -> int:
        """2 x multiply-adds of every convolution and matrix per image, over all glimpses, without the baseline."""
        area, per_glimpse = SIDE**2, 0
        for layer in self.what:
            if isinstance(layer, nn.Conv2d):
                per_glimpse += conv_flops(layer) * area
            elif isinstance(layer, nn.MaxPool2d):
                area //= 4
            elif isinstance(layer, nn.Linear):
                per_glimpse += 2 * layer.weight.numel()
        per_glimpse += 2 * (self.where.weight.numel() + self.core.weight_ih.numel() + self.core.weight_hh.numel())
        choices = 2 * self.location.weight.numel() * (self.glimpses - 1)
        return per_glimpse * self.glimpses + choices + 2 * self.classifier.weight.numel()


def conv(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """A 3x3 convolution with its norm and activation."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def ram_loss(outcome: Outcome, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, REINFORCE with the baseline for the locations, and the baseline's squared error.

    The reward is 1 where the last glimpse's classification is right. The three train disjoint parts of the model.
    """
    logits = outcome.logits.float()
    reward = (logits.argmax(1) == labels).float()[:, None].expand_as(outcome.baselines)
    advantage = reward - outcome.baselines.detach()
    return (
        F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        - (outcome.log_probs * advantage).sum(1).mean()
        + F.mse_loss(outcome.baselines, reward)
    )

"""Score heads: the small branches that say how done an image (ACT) or a position (SACT) is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from .flops import conv_flops
from .layers import BatchNorm2d

Halting = Literal["none", "act", "sact"]

SCORE_BIAS = -3.0
"""Initial bias of a score: sigmoid(-3) = 0.047, so that a fresh head lets nearly every unit run."""

Norm = Callable[[int], BatchNorm2d]


class _GlobalTerm(nn.Module):
    """The part of the logit that both heads compute from globally averaged features."""

    global_norm: BatchNorm2d
    global_conv: nn.Conv2d
    activation: nn.Module

    def pooled(self, x: Tensor) -> Tensor:
        """The global term of the logit, [N], from globally averaged features [N, C, 1, 1]."""
        return self.global_conv(self.activation(self.global_norm(x))).flatten()


class ImageScore(_GlobalTerm):
    """ACT's halting score, one per image: sigma(W pool(x) + b).

    Source: section 3.1; the authors normalise the pooled features first.
    """

    def __init__(self, channels: int, norm: Norm, activation: nn.Module) -> None:
        super().__init__()
        self.global_norm = norm(channels)
        self.activation = activation
        self.global_conv = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor, shift: float = 0.0) -> Tensor:
        """Features [N, C, H, W] to scores [N] in (0, 1), float32 or wider; `shift` is added to the logits."""
        return to_score(self.pooled(x.mean((2, 3), keepdim=True)), shift)

    def flops(self) -> tuple[int, int]:
        """(FLOPs per position, FLOPs per image)."""
        return 0, conv_flops(self.global_conv)


class PositionScore(_GlobalTerm):
    """SACT's halting score, one per position: sigma(conv3x3(x) + W pool(x) + b).

    Pooling is over all positions, halted ones included.

    Source: section 3.2; the authors give the local and the global input norms of their own, and the global term no
    bias.
    """

    def __init__(self, channels: int, norm: Norm, activation: nn.Module) -> None:
        super().__init__()
        self.local_norm = norm(channels)
        self.local_conv = nn.Conv2d(channels, 1, 3, padding=1)
        self.global_norm = norm(channels)
        self.global_conv = nn.Conv2d(channels, 1, 1, bias=False)
        self.activation = activation

    def local(self) -> nn.Sequential:
        """The local branch, described as a chain of layers, as a unit's branch is."""
        return nn.Sequential(self.local_norm, self.activation, self.local_conv)

    def forward(self, x: Tensor, shift: float = 0.0) -> Tensor:
        """Features [N, C, H, W] to scores [N, H, W] in (0, 1), float32 or wider; `shift` is added to the logits."""
        local = self.local_conv(self.activation(self.local_norm(x)))[:, 0]
        return to_score(local + self.pooled(x.mean((2, 3), keepdim=True))[:, None, None], shift)

    def flops(self) -> tuple[int, int]:
        """(FLOPs per position, FLOPs per image)."""
        return conv_flops(self.local_conv), conv_flops(self.global_conv)


ScoreHead = ImageScore | PositionScore


def make_score(halting: Halting, channels: int, norm: Norm, activation: nn.Module) -> ScoreHead:
    """A fresh head for `halting` "act" or "sact"; its bias is not yet set (see `reset_score_bias`)."""
    kind = ImageScore if halting == "act" else PositionScore
    return kind(channels, norm, activation)


def reset_score_bias(head: ScoreHead) -> None:
    """Set the head's bias to -3, where the authors start."""
    conv = head.global_conv if isinstance(head, ImageScore) else head.local_conv
    assert conv.bias is not None
    nn.init.constant_(conv.bias, SCORE_BIAS)


def to_score(logit: Tensor, shift: float = 0.0) -> Tensor:
    """Sigmoid in float32 (float64 stays float64), so that half precision never decides who halts.

    Args:
        logit: any shape.
        shift: added to it, in that precision; where it is 0 nothing is added at all.
    """
    wide = logit if logit.dtype == torch.float64 else logit.float()
    return torch.sigmoid(wide + shift if shift else wide)

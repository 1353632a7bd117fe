"""A Gumbel-gated spatial network on this library's units: a mask head before each unit decides where it runs.

Source: Verelst and Tuytelaars, "Dynamic Convolutions: Exploiting Spatial Sparsity for Faster Inference", CVPR 2020.
Unlike SACT, a position that one unit leaves out may run in the next, and the output is the last state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sact.engines.gather import DENSE_SHARE
from sact.engines.perforated import Positions, perforated
from sact.errors import InputError
from sact.flops import UnitFlops, dilate
from sact.flops_report import shapes
from sact.folding import fold_norms
from sact.layers import init_weights
from sact.models import Network
from sact.models.resnet import norm
from sact.scores import PositionScore
from sact.units import Stage, Unit

NOISE_UNTIL = 0.8
"""Share of training with Gumbel noise; the rest trains what inference does."""
BOUNDS_UNTIL = 1 / 3
"""Share of training by the end of which single units are free to leave the target."""
LOSS_WEIGHT = 10.0

EvaluateUnit = Callable[[Unit, Tensor, Tensor], Tensor]
"""A unit, its state [N, C, H, W] and its mask [N, H, W] to the next state."""


class MaskHead(PositionScore):
    """The library's score head read as a gate: its logit decides whether a position runs in the unit behind it."""

    def logits(self, x: Tensor) -> Tensor:
        """States [N, C, H, W] to logits [N, H, W], float32."""
        local = self.local_conv(self.activation(self.local_norm(x)))[:, 0]
        return (local + self.pooled(x.mean((2, 3), keepdim=True))[:, None, None]).float()


class GumbelNetwork(nn.Module):
    """A plain network whose units, but the first of each block, run where their mask heads say.

    Args:
        network: plain, of the ImageNet family; its weights are used, not copied.

    Attributes:
        heads: for each block, one mask head per unit but the first.
    """

    heads: Sequence[Sequence[MaskHead]]

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        heads = nn.ModuleList(
            nn.ModuleList(MaskHead(channels, norm, nn.Identity()) for _ in block.units[1:])
            for block, channels in zip(network.blocks, network.feature_channels, strict=True)
        )
        init_weights(heads)
        self.heads = heads  # type: ignore[assignment]  # ModuleList does not say what it holds

    def forward(
        self, images: Tensor, noise: bool = False, evaluate_unit: EvaluateUnit | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Classify images.

        Args:
            images: [N, 3, S, S].
            noise: in training mode, add Gumbel noise to the masks' logits.
            evaluate_unit: another way to evaluate a masked unit than `masked_unit`.

        Returns:
            Logits [N, classes], and the masks of all units that have one, each [N, H, W]: bool in evaluation mode,
            else 0 or 1 with the gradient of the soft mask.
        """
        evaluate = evaluate_unit or masked_unit
        x = self.network.stem(images)
        masks = []
        for block, heads in zip(self.network.blocks, self.heads, strict=True):
            x = block.units[0](x)
            for unit, head in zip(block.units[1:], heads, strict=True):
                logits = head.logits(x)
                masks.append(straight_through(logits, noise) if self.training else logits >= 0)
                assert isinstance(unit, Unit)
                x = evaluate(unit, x, masks[-1])
        assert self.network.head is not None
        assert self.network.classifier is not None
        return self.network.classifier(self.network.head(x)).flatten(1), masks

    def masked(self) -> list[tuple[Unit, MaskHead]]:
        """The units that have a mask, in order, with their heads."""
        found = []
        for block, heads in zip(self.network.blocks, self.heads, strict=True):
            for unit, head in zip(block.units[1:], heads, strict=True):
                assert isinstance(unit, Unit)
                found.append((unit, head))
        return found

    def fixed_flops(self, size: tuple[int, int]) -> tuple[int, int]:
        """FLOPs per image of (H, W) that no mask saves, and those of the masked units, all active.

        The former are those of the stem, first units, classifier, and mask heads, which run at all positions.
        """
        ponder = shapes(self.network, size)
        heads = gated = 0
        for block, block_heads, spent in zip(self.network.blocks, self.heads, ponder.blocks, strict=True):
            area = math.prod(spent.description.out_size)
            gated += sum(unit.flops().dense * area for unit in block.units[1:])
            for head in block_heads:
                per_position, per_image = head.flops()
                heads += per_position * area + per_image
        return ponder.dense_flops - gated + heads, gated

    def flops(self, masks: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """The paper's count of a forward pass by its masks, bool [N, H, W] each: int64 [N]."""
        costs = [unit_cost(unit.flops(), mask) for (unit, _), mask in zip(self.masked(), masks, strict=True)]
        return torch.stack(costs).sum(0) + self.fixed_flops(size)[0]

    def target(self, share: float, size: tuple[int, int]) -> float:
        """The share of the masked units' FLOPs with which all costs `share` of the plain network's.

        Raises:
            InputError: masks cannot save so much, or need not save anything.
        """
        fixed, gated = self.fixed_flops(size)
        plain = shapes(self.network, size).dense_flops
        if not fixed < share * plain < fixed + gated:
            raise InputError(
                f"the share of FLOPs is {share:g}, but masks reach from {fixed / plain:.3f} to "
                f"{(fixed + gated) / plain:.3f}; name one in between"
            )
        return (share * plain - fixed) / gated

    def sparsity_loss(self, masks: Sequence[Tensor], target: float, done: float) -> Tensor:
        """How far the masked units' FLOPs are from a share, and single units' from bounds that soon widen to [0, 1].

        Args:
            masks: of a forward pass.
            target: share of the masked units' FLOPs.
            done: share of training that lies behind.

        Returns:
            [].

        Source: the authors' loss, section 3.2 of their paper.
        """
        units = [unit.flops() for unit, _ in self.masked()]
        costs = torch.stack([unit_cost(unit, mask).mean() for unit, mask in zip(units, masks, strict=True)])
        totals = costs.new_tensor([unit.dense * mask[0].numel() for unit, mask in zip(units, masks, strict=True)])
        tight = math.cos(min(done / BOUNDS_UNTIL, 1.0) * math.pi / 2) ** 2
        shares = costs / totals
        above, below = F.relu(shares - (1 - tight * (1 - target))), F.relu(tight * target - shares)
        network: Tensor = (costs.sum() / totals.sum() - target) ** 2
        return network + (above**2 + below**2).mean()


def straight_through(logits: Tensor, noise: bool) -> Tensor:
    """Hard masks, 0 or 1, with the gradient of their sigmoid; with noise they are samples (temperature 1)."""
    if noise:
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        logits = logits + uniform.logit()  # the difference of two Gumbel variables is logistic
    soft = logits.sigmoid()
    return (logits >= 0).to(soft.dtype) + soft - soft.detach()


def unit_cost(unit: UnitFlops, mask: Tensor) -> Tensor:
    """FLOPs per image [N] of a unit that runs where its mask [N, H, W] says, dilated where a convolution reads more."""
    return torch.stack([flops * spread(mask, reach).sum((1, 2)) for reach, flops in unit.by_reach]).sum(0)


def spread(mask: Tensor, reach: int) -> Tensor:
    """`sact.flops.dilate`, and the same of masks that carry gradients."""
    if mask.dtype == torch.bool or reach == 0:
        return dilate(mask, reach)
    return F.max_pool2d(mask, 2 * reach + 1, stride=1, padding=reach)


def masked_unit(unit: Unit, x: Tensor, mask: Tensor) -> Tensor:
    """A unit computed everywhere, its residual kept where the mask is 1: what users of the authors' code get."""
    if mask.dtype == torch.bool:
        return unit(x, mask)
    return unit.shortcut(x) + mask[:, None].to(x.dtype) * unit.branch(unit.preact(x))


def perforate(model: GumbelNetwork) -> Callable[[Tensor], tuple[Tensor, list[Tensor]]]:
    """A model, in evaluation mode, that computes units at their active positions alone, by this library's operators.

    As in the library's gather engine, norms are folded, and a unit runs everywhere where most positions are active.
    """
    chains: dict[Unit, tuple[Stage, ...]] = {unit: fold_norms(unit.stages()) for unit, _ in model.masked()}

    def listed_unit(unit: Unit, x: Tensor, mask: Tensor) -> Tensor:
        positions = Positions(mask)
        listed = positions.at(0)
        if len(listed) > DENSE_SHARE * mask.numel():
            return unit(x, mask)
        if not len(listed):
            return x
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        rows = rows.index_add(0, listed, perforated(chains[unit], rows, None, positions))
        return rows.view(*mask.shape, -1).permute(0, 3, 1, 2)

    @torch.no_grad()
    def run(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return model(images, evaluate_unit=listed_unit)

    return run

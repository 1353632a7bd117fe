"""The paper's FLOP count: 2 x multiply-adds of convolutions, per image; no norms, biases, activations or pooling.

A unit is described once by the cost of its convolutions per position; what an image costs then follows from its map of
unit counts alone, so a forward pass spends nothing on counting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


def conv_flops(conv: nn.Conv2d) -> int:
    """FLOPs of a convolution per output position: 2 kh kw (Cin / groups) Cout."""
    kh, kw = conv.kernel_size
    return 2 * kh * kw * (conv.in_channels // conv.groups) * conv.out_channels


@dataclass(frozen=True)
class UnitFlops:
    """FLOPs of one unit and of the score head behind it.

    Attributes:
        by_reach: FLOPs per position of the convolutions that are needed at distance `r` around an active position, as
            (r, flops) pairs: the 3x3 and the last 1x1 of a bottleneck have reach 0, its first 1x1 reach 1.
        at_input: FLOPs per position of the block's input, for the convolutions that stand before the stride (the first
            unit only; it is always dense, and its `by_reach` counts positions of the block's output).
        score_local: FLOPs per active position of the score head's 3x3 convolution.
        score_global: FLOPs per image of its global term.
        everywhere: FLOPs per position of what is evaluated at every position of an image that has an active one.
    """

    by_reach: tuple[tuple[int, int], ...]
    at_input: int = 0
    score_local: int = 0
    score_global: int = 0
    everywhere: int = 0

    @property
    def dense(self) -> int:
        """FLOPs per position when every position is evaluated, without the score head."""
        return sum(flops for _, flops in self.by_reach) + self.everywhere


@dataclass(frozen=True)
class BlockFlops:
    """A block's units and the sizes at which they ran.

    Attributes:
        units: one entry per unit.
        in_size: (H, W) of the block's input.
        out_size: (H, W) of its output, the size of its maps.
    """

    units: tuple[UnitFlops, ...]
    in_size: tuple[int, int]
    out_size: tuple[int, int]

    @property
    def dense_flops(self) -> int:
        """FLOPs of the plain block per image: every unit everywhere, no score heads."""
        area_in, area_out = (h * w for h, w in (self.in_size, self.out_size))
        return self.units[0].at_input * area_in + sum(unit.dense for unit in self.units) * area_out


def dilate(active: Tensor, reach: int) -> Tensor:
    """Positions within `reach` (a square) of an active one. [N, H, W] bool to [N, H, W] bool."""
    if reach == 0:
        return active
    return F.max_pool2d(active.float(), 2 * reach + 1, stride=1, padding=reach) > 0


def block_flops(block: BlockFlops, units: Tensor) -> Tensor:
    """FLOPs per image of a block.

    Args:
        block: its description.
        units: units evaluated, int [N, H, W] per position or [N] per image.

    Returns:
        int64 [N]. The first unit is dense; a later one is counted on the active positions, dilated where a convolution
        is needed further out; the global score term counts once per image and unit even where nothing is active (SACT);
        ACT counts whole units while they are evaluated.

    Source: section 3.2 and the authors' counting (the score convolutions included).
    """
    area_in, area_out = (h * w for h, w in (block.in_size, block.out_size))
    first = block.units[0]
    total = first.at_input * area_in + (first.dense + first.score_local) * area_out + first.score_global
    flops = units.new_full((units.shape[0],), 0).long() + total
    for index, unit in enumerate(block.units[1:], start=2):
        active = units >= index
        if units.dim() == 1:
            flops += active * ((unit.dense + unit.score_local) * area_out + unit.score_global)
            continue
        for reach, per_position in unit.by_reach:
            flops += per_position * dilate(active, reach).sum((1, 2))
        flops += unit.everywhere * area_out * active.flatten(1).any(1)
        flops += unit.score_local * active.sum((1, 2)) + unit.score_global
    return flops

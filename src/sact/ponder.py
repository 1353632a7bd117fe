"""Ponder: what a forward pass spent. Cost and unit count per block, totals, maps, FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError
from .flops import BlockFlops, block_flops


@dataclass
class BlockPonder:
    """What one block spent.

    Attributes:
        units: units evaluated, int32: [N, H, W] (SACT), [N] (ACT and plain networks).
        cost: ponder cost rho = N + R, of the same shape, differentiable; None in a plain network.
        description: the block's FLOPs per unit and its sizes.
        halting_distribution: p^l, [N, L, H, W] or [N, L], if it was asked for. It sums to 1 over L.
    """

    units: Tensor
    cost: Tensor | None
    description: BlockFlops
    halting_distribution: Tensor | None = None

    @property
    def flops(self) -> Tensor:
        """The paper's count for this block, int64 [N]."""
        return block_flops(self.description, self.units)

    @property
    def max_units(self) -> int:
        """L, the units the block has."""
        return len(self.description.units)

    def map(self) -> Tensor:
        """The ponder cost at the block's own resolution, [N, H, W]; constant per image under ACT.

        Raises:
            InputError: the network is plain (halting="none").
        """
        if self.cost is None:
            raise InputError('a plain network (halting="none") has no ponder cost map; create it with halting="sact"')
        if self.cost.dim() == 3:
            return self.cost
        return self.cost[:, None, None].expand(-1, *self.description.out_size)


@dataclass
class Ponder:
    """What a forward pass spent.

    Attributes:
        blocks: one entry per block.
        fixed_flops: FLOPs per image of what always runs: the stem and the classifier.
    """

    blocks: list[BlockPonder]
    fixed_flops: int

    @property
    def cost(self) -> Tensor | None:
        """Sum over blocks of the mean ponder cost over positions, [N], differentiable; None in a plain network."""
        costs = [block.cost for block in self.blocks if block.cost is not None]
        if not costs:
            return None
        return torch.stack([cost.flatten(1).mean(1) if cost.dim() == 3 else cost for cost in costs]).sum(0)

    @property
    def flops(self) -> Tensor:
        """The paper's count for the whole network, int64 [N]."""
        return torch.stack([block.flops for block in self.blocks]).sum(0) + self.fixed_flops

    @property
    def dense_flops(self) -> int:
        """FLOPs per image of the plain network of the same units: no score heads, nothing skipped."""
        return self.fixed_flops + sum(block.description.dense_flops for block in self.blocks)

    def map(self, size: int | tuple[int, int]) -> Tensor:
        """The ponder cost map of the network: each block's map resized to the image, summed over blocks.

        Args:
            size: (H, W) of the image, or one number for a square.

        Returns:
            [N, H, W], nearest neighbour without aligned corners.

        Raises:
            InputError: the network is plain, or the size is not positive.

        Source: section 3.2.
        """
        try:
            height, width = map(index, size if isinstance(size, Sequence) else (size, size))
        except (TypeError, ValueError):
            raise InputError(f"map size is {size!r}, but it must be (height, width) or one whole number") from None
        if height < 1 or width < 1:
            raise InputError(f"map size is {size}, but both sides must be at least 1 pixel")
        maps = [F.interpolate(block.map()[:, None], size=(height, width), mode="nearest") for block in self.blocks]
        return torch.stack(maps).sum(0)[:, 0]

"""Ponder of images of different sizes, padded to one for the network: maps and costs of the images alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .ponder import BlockPonder, Ponder


@dataclass
class PaddedPonder(Ponder):
    """What a forward pass over padded images spent.

    `flops` are what was spent, padding included; `cost` and `maps` leave the padding out.

    Attributes:
        padded_size: (H, W) of the batch that the network saw.
        sizes: (h, w) of each image in it, at its top left.
        original_sizes: (h, w) of each image before it was resized.
    """

    padded_size: tuple[int, int]
    sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]

    @property
    def cost(self) -> Tensor | None:
        """Sum over blocks of the mean ponder cost over positions that see the image, [N]; None in a plain network."""
        costs = [self._mean(block) for block in self.blocks]
        known = [cost for cost in costs if cost is not None]
        return torch.stack(known).sum(0) if known else None

    def maps(self) -> list[Tensor]:
        """The ponder cost map of each image, [H, W] at the size that it had before it was resized.

        Raises:
            InputError: the network is plain.

        Source: section 3.2.
        """
        whole = self.map(self.padded_size)
        return [
            F.interpolate(one[None, None, :height, :width], size=size, mode="nearest")[0, 0]
            for one, (height, width), size in zip(whole, self.sizes, self.original_sizes, strict=True)
        ]

    def inside(self, block: BlockPonder) -> Tensor:
        """Which positions of a block see the image, if only a part of it, and not padding alone; bool [N, H_k, W_k]."""
        height, width = block.description.out_size
        rows = torch.arange(height, device=block.units.device) * self.padded_size[0]
        columns = torch.arange(width, device=block.units.device) * self.padded_size[1]
        sizes = torch.tensor(self.sizes, device=block.units.device)
        in_rows = rows < sizes[:, :1] * height  # position r begins at pixel r * padded / height
        in_columns = columns < sizes[:, 1:] * width
        return in_rows[:, :, None] & in_columns[:, None, :]

    def _mean(self, block: BlockPonder) -> Tensor | None:
        if block.cost is None or block.cost.dim() == 1:
            return block.cost
        inside = self.inside(block).to(block.cost.dtype)
        return (block.cost * inside).sum((1, 2)) / inside.sum((1, 2))

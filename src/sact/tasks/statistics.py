"""Ponder statistics over a data set, gathered over processes like any torchmetrics metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ..ponder import Ponder

NO_FLOAT64 = ("mps",)
"""Kinds of devices that lack float64; sums are kept on the CPU there."""


class PonderStatistics(Metric):
    """FLOPs per image and per block, and per block the ponder cost and unit counts over all positions.

    `update` takes a `Ponder`; `compute` returns a JSON-able dict with

    - `flops`: mean and std per image, `dense_flops` of the plain network, `share` = mean / dense;
    - `blocks`: for each, `flops` mean and std, `units` mean, std, max, `unit_count` (L), `dead_units` (never
      evaluated), and `cost` mean and std (None in a plain network).
    """

    full_state_update = False

    images: Tensor
    dense: Tensor
    flops: Tensor
    positions: Tensor
    units: Tensor
    cost: Tensor
    most: Tensor
    length: Tensor

    def __init__(self, blocks: int) -> None:
        super().__init__()
        wide = torch.float64
        self.add_state("images", torch.zeros((), dtype=wide), dist_reduce_fx="sum")
        self.add_state("flops", torch.zeros(blocks + 1, 2, dtype=wide), dist_reduce_fx="sum")
        self.add_state("positions", torch.zeros(blocks, dtype=wide), dist_reduce_fx="sum")
        self.add_state("units", torch.zeros(blocks, 2, dtype=wide), dist_reduce_fx="sum")
        self.add_state("cost", torch.zeros(blocks, 2, dtype=wide), dist_reduce_fx="sum")
        self.add_state("most", torch.zeros(blocks, dtype=wide), dist_reduce_fx="max")
        self.add_state("length", torch.zeros(blocks, dtype=wide), dist_reduce_fx="max")
        self.add_state("dense", torch.zeros((), dtype=wide), dist_reduce_fx="sum")

    def set_dtype(self, dst_type: Any) -> PonderStatistics:
        """Keep float64 whatever the network's precision: sums of squared FLOPs need it."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> PonderStatistics:
        """Follow the network to its device, unless that lacks float64."""
        if fn(torch.zeros(())).device.type in NO_FLOAT64:
            return self
        super()._apply(fn, exclude_state)
        return self

    @torch.no_grad()
    def update(self, ponder: Ponder) -> None:
        """Add a batch."""
        count = len(ponder.flops)
        self.images += count
        self.dense += float(ponder.dense_flops) * count
        self.flops[-1] += self._sums(ponder.flops)
        for index, block in enumerate(ponder.blocks):
            self.flops[index] += self._sums(block.flops)
            self.positions[index] += block.units.numel()
            self.units[index] += self._sums(block.units)
            self.most[index] = torch.maximum(self.most[index], block.units.max().to(self.most.device))
            self.length[index] = block.max_units
            if block.cost is not None:
                self.cost[index] += self._sums(block.cost)

    def _sums(self, values: Tensor) -> Tensor:
        """The sum of values and of their squares, [2], where the states are."""
        values = values.to(self.images.device).double()
        return torch.stack([values.sum(), values.square().sum()])

    def compute(self) -> dict[str, Any]:
        """The statistics so far, as plain numbers."""
        adaptive = bool((self.cost > 0).any())  # a ponder cost is more than 1
        blocks = []
        for index in range(len(self.positions)):
            units = mean_std(self.units[index], self.positions[index])
            units |= {"max": int(self.most[index]), "unit_count": int(self.length[index])}
            blocks.append(
                {
                    "flops": mean_std(self.flops[index], self.images),
                    "units": units | {"dead_units": int(self.length[index] - self.most[index])},
                    "cost": mean_std(self.cost[index], self.positions[index]) if adaptive else None,
                }
            )
        flops = mean_std(self.flops[-1], self.images)
        dense = float(self.dense / self.images)
        cost = sum(block["cost"]["mean"] for block in blocks if block["cost"]) if adaptive else None
        return {"flops": flops, "dense_flops": dense, "share": flops["mean"] / dense, "cost": cost, "blocks": blocks}


def mean_std(sums: Tensor, count: Tensor) -> dict[str, float]:
    """Mean and standard deviation of `count` values from their sum and the sum of their squares, [2]."""
    mean = float(sums[0] / count)
    variance = float(sums[1] / count) - mean * mean
    # Less than this is the rounding of the sums, not variance.
    return {"mean": mean, "std": variance**0.5 if variance > 1e-12 * mean * mean else 0.0}

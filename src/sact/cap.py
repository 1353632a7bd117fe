"""A cap on what an image may cost. Once it is reached, the least undecided positions stop first.

What always runs (the stem, the first units, the global terms of the scores, the classifier) is set aside first; the
rest is the image's allowance, which blocks spend in the order they run. Before each unit the image keeps as many of its
active positions, those with the lowest cumulative scores, as its allowance pays for; the others halt, and what remains
of their weight goes to the state that they have, as behind a last unit. An image that stays below the cap is not
touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import InputError
from .flops import BlockFlops, UnitFlops, block_flops
from .ponder import BlockPonder

if TYPE_CHECKING:
    from .block import Block, RunBlock
    from .models.adaptive import AdaptiveNetwork

TIE = 2.0**-8
"""Logarithms (to base 2) of cumulative scores are compared in steps of this, and equal ones by position: rounding must
not decide who goes on, and scores near 0 differ as well."""


class Allowance:
    """FLOPs that the images of a batch may still spend beyond what always runs.

    Args:
        left: int64 [N].
    """

    def __init__(self, left: Tensor) -> None:
        self.left = left

    def admit(self, unit: UnitFlops, size: Sequence[int], goes_on: Tensor, cumulative: Tensor) -> Tensor:
        """Who goes on to a unit, which is paid for.

        Args:
            unit: the unit.
            size: (H, W) of the block's states.
            goes_on: who would, by their scores; bool [N, H, W] (SACT) or [N] (ACT).
            cumulative: float32, their cumulative scores.

        Returns:
            `goes_on` where it is affordable. Of an image's positions as many as are, the lowest scores first; under ACT
            an image goes on as a whole or not at all.
        """
        costs = cost(unit, size, goes_on)
        beyond = (costs > self.left).nonzero()[:, 0]
        if len(beyond):
            kept = most_undecided(unit, size, goes_on[beyond], cumulative[beyond], self.left[beyond])
            goes_on = goes_on.index_put((beyond,), kept)
            costs = cost(unit, size, goes_on)
        self.left = self.left - costs
        return goes_on


def cost(unit: UnitFlops, size: Sequence[int], active: Tensor) -> Tensor:
    """FLOPs per image, int64 [N], of a unit behind the first; without what is set aside, the global term under SACT."""
    height, width = size
    pair = BlockFlops((UnitFlops(()), unit), (height, width), (height, width))
    return block_flops(pair, 1 + active.int()) - (unit.score_global if active.dim() > 1 else 0)


def most_undecided(unit: UnitFlops, size: Sequence[int], goes_on: Tensor, cumulative: Tensor, left: Tensor) -> Tensor:
    """As many active positions of every image, the lowest cumulative scores first, as `left` [N] pays the unit for."""
    if goes_on.dim() == 1:
        return torch.zeros_like(goes_on)
    order = torch.where(goes_on, (cumulative.log2() / TIE).round(), math.inf).flatten(1)
    rank = order.argsort(dim=1, stable=True).argsort(dim=1).view_as(goes_on)
    fits = torch.zeros_like(left)
    too_many = goes_on.flatten(1).sum(1)
    while bool((too_many - fits > 1).any()):
        middle = (fits + too_many) // 2
        affordable = cost(unit, size, rank < middle[:, None, None]) <= left
        fits, too_many = torch.where(affordable, middle, fits), torch.where(affordable, too_many, middle)
    return rank < fits[:, None, None]


def within_cap(model: AdaptiveNetwork, run_block: RunBlock, images: Tensor) -> RunBlock:
    """A way to evaluate the blocks of a network for these images, which keeps them within the network's cap.

    Raises:
        InputError: what always runs costs more than the cap.
    """
    if model.cap is None or isinstance(run_block, _FirstUnits) or images.is_meta:
        return run_block
    allowance = allowance_of(model, images)

    def run_within(
        block: Block, x: Tensor, keep_distribution: bool = False, allowance: Allowance | None = allowance
    ) -> tuple[Tensor, BlockPonder]:
        return run_block(block, x, keep_distribution, allowance)

    return run_within


def allowance_of(model: AdaptiveNetwork, images: Tensor) -> Allowance:
    """What these images may spend beyond what always runs, in a network with a cap.

    Raises:
        InputError: what always runs costs more than the cap.
    """
    assert model.cap is not None
    least, dense = bounds(model, images)
    limit = math.floor(model.cap * dense)
    if limit < least:
        height, width = images.shape[-2:]
        raise InputError(
            f"the cap is {model.cap:g} of the dense FLOPs, but at {height}x{width} pixels what always runs takes "
            f"{math.ceil(1e4 * least / dense) / 1e4:g}; set model.cap to that or more, or to None for no cap"
        )
    return Allowance(torch.full((len(images),), limit - least, dtype=torch.int64, device=images.device))


def check_cap(model: AdaptiveNetwork, cap: object) -> float | None:
    """A value for `model.cap`.

    Raises:
        InputError: it is no positive number, or the network is plain.
    """
    if cap is None:
        return None
    share = as_number(cap)
    if share is None or not 0 < share < math.inf:
        raise InputError(
            f"cap is {cap!r}, but it must be a share of the dense FLOPs, a number above 0 such as 0.8, or None for none"
        )
    check_adaptive(model, "cap")
    return share


def as_number(value: object) -> float | None:
    """A real number as a float; None for anything else, truth values among it."""
    return None if isinstance(value, bool) or not isinstance(value, Real) else float(value)


def check_adaptive(model: AdaptiveNetwork, what: str) -> None:
    """Raise InputError if nothing in a network can be skipped."""
    if model.config.halting == "none":
        raise InputError(
            f'a plain network (halting="none") runs every unit, so that it takes no {what}; '
            'create or load it with halting="sact" or "act"'
        )


def bounds(model: AdaptiveNetwork, images: Tensor) -> tuple[int, int]:
    """FLOPs per image of what always runs, and of the dense network, at the size of these images."""
    check_adaptive(model, "cap")
    key = *images.shape[-2:], model.config.halting
    if key not in model.flops_bounds:
        training = [module for module in model.modules() if module.training]
        try:
            model.eval()  # norms in training mode would take note of the image
            with torch.no_grad():
                _, ponder = model.run(torch.zeros_like(images[:1]), _FirstUnits())
        finally:
            for module in training:
                module.training = True
        model.flops_bounds[key] = int(ponder.flops[0]), ponder.dense_flops
    return model.flops_bounds[key]


class _FirstUnits:
    """Evaluates the first unit of a block alone."""

    def __call__(
        self, block: Block, x: Tensor, keep_distribution: bool = False, allowance: Allowance | None = None
    ) -> tuple[Tensor, BlockPonder]:
        in_size = x.shape[-2:]
        x = block.units[0](x)
        size = x.shape[-2:]
        units = torch.ones((1, *size) if block.halting == "sact" else (1,), dtype=torch.int32, device=x.device)
        return x, BlockPonder(units, None, block.describe(in_size, size))

"""Unit counts for networks that are not trained: a wanted share of the FLOPs, spent where objects are.

A position's order says how early it stops: the distance to the object (negative inside), or a random number. Positions
ordered below a threshold run all units, others one; the threshold that gives the wanted share is found by bisection on
the FLOP count alone, so that no network runs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..flops import block_flops
from ..flops_report import shapes
from ..models import AdaptiveNetwork
from ..ponder import Ponder

MASKS = ("scenes", "random")
"""Where units are spent: on the objects of held-out scenes, or at random positions, the hard case."""

RAMP = 0.125
"""Width of the ramp from all units to one around an object, as a fraction of the image's side."""

_MASK_SIZE = 128
_STEPS = 40
_PRECISION = 1e-4


class Forcing(NamedTuple):
    """A wanted share of the plain network's FLOPs.

    Attributes:
        share: in (0, 1]; 1 runs every unit everywhere, which costs a little more than the plain network, because the
            score heads count.
        masks: one of `MASKS`. ACT decides per image, so that there it has no meaning.
    """

    share: float
    masks: str = "scenes"


def force_units(model: AdaptiveNetwork, shape: tuple[int, int, int], forcing: Forcing, seed: int = 0) -> list[Tensor]:
    """Unit counts with which a network does a wanted share of the work, for `Block.forced_units`.

    Args:
        model: with halting "act" or "sact"; its shapes alone are used.
        shape: (N, H, W) of the batch of images.
        forcing: share and kind of masks. The share is that of the whole batch: images have different objects, and so
            different shares.
        seed: of the scenes, or of the random positions.

    Returns:
        Per block int32 [N, H_k, W_k] (SACT) or [N] (ACT), from 1 to the block's number of units. What they cost is as
        near to the share as whole positions allow.

    Raises:
        InputError: the network is plain, the share cannot be reached, the masks are unknown, or the data that scenes
            are made of is missing.
    """
    share, masks = forcing
    if model.config.halting == "none":
        raise InputError('a plain network always runs every unit; create it with halting="sact", or give no share')
    if masks not in MASKS:
        raise InputError(f'masks is "{masks}", but it must be one of {", ".join(MASKS)}')
    if not 0.0 < share <= 1.0:
        raise InputError(f"share is {share:g}, but it must lie in (0, 1], as a share of the plain network's FLOPs")
    count, height, width = shape
    ponder = shapes(model, (height, width))
    least, most = (_share(ponder, _fill(ponder, count, all_units, model)) for all_units in (False, True))
    if share < least:
        raise InputError(
            f"share is {share:g}, but the stem, the head and the first unit of every block always run, and they are "
            f"{least:.3f} of this network at {height}x{width}; ask for at least {np.ceil(least * 100) / 100:.2f}"
        )
    if share >= min(1.0, most):
        return _fill(ponder, count, True, model)
    orders, ramp = _orders(model, ponder, count, masks, seed)
    low = min(float(order.min()) for order in orders) - ramp
    high = max(float(order.max()) for order in orders) + ramp
    best, found = _fill(ponder, count, False, model), least
    for _ in range(_STEPS):
        if abs(found - share) < _PRECISION:
            break
        middle = (low + high) / 2
        pairs = zip(ponder.blocks, orders, strict=True)
        units = [_units(block.max_units, order, middle, ramp) for block, order in pairs]
        reached = _share(ponder, units)
        if abs(reached - share) < abs(found - share):
            best, found = units, reached
        low, high = (middle, high) if reached < share else (low, middle)
    return best


def distance_to_object(mask: Tensor) -> Tensor:
    """Signed distance to an object's edge: negative inside, positive outside.

    Args:
        mask: bool [S, S]; at least one position inside and one outside.

    Returns:
        float32 [S, S] in units of the side S, exact between the centres of positions.
    """
    inside = mask.numpy()
    distance = _distance(inside) - _distance(~inside)
    return torch.from_numpy(distance / len(inside)).float()


def _distance(target: np.ndarray) -> np.ndarray:
    """Distance in positions to the nearest true one: along rows first, then the least over rows."""
    steps = np.arange(len(target), dtype=np.float32)
    between = (steps[:, None] - steps[None]) ** 2
    in_row = np.where(target[:, None, :], between[None], np.inf).min(2)
    nearest: np.ndarray = np.sqrt((between[:, :, None] + in_row[None]).min(1))
    return nearest


def _orders(model: AdaptiveNetwork, ponder: Ponder, count: int, masks: str, seed: int) -> tuple[list[Tensor], float]:
    """Per block, how early each position stops, and the width of the ramp in the same measure."""
    generator = torch.Generator().manual_seed(seed)
    if model.config.halting == "act":
        order = torch.rand(count, generator=generator)
        return [order] * len(ponder.blocks), 1.0
    sizes = [block.description.out_size for block in ponder.blocks]
    if masks == "random":
        return [torch.rand(count, *size, generator=generator) for size in sizes], 0.0
    from ..data import Scenes

    scenes = Scenes("test", size=_MASK_SIZE, seed=seed)
    distances = torch.stack([distance_to_object(scenes[index % len(scenes)][2]) for index in range(count)])[:, None]
    return [F.interpolate(distances, size, mode="bilinear", antialias=True)[:, 0] for size in sizes], RAMP


def _units(most: int, order: Tensor, threshold: float, ramp: float) -> Tensor:
    if ramp == 0.0:
        return torch.where(order < threshold, most, 1).int()
    return (1 + (most - 1) * ((threshold - order) / ramp + 0.5).clamp(0, 1)).round().int()


def _fill(ponder: Ponder, count: int, all_units: bool, model: AdaptiveNetwork) -> list[Tensor]:
    size = (lambda block: block.description.out_size) if model.config.halting == "sact" else (lambda block: ())
    return [
        torch.full((count, *size(block)), block.max_units if all_units else 1, dtype=torch.int32)
        for block in ponder.blocks
    ]


def _share(ponder: Ponder, units: list[Tensor]) -> float:
    """Of the plain network's FLOPs, over a batch."""
    flops = sum(block_flops(block.description, count) for block, count in zip(ponder.blocks, units, strict=True))
    assert isinstance(flops, Tensor)
    return float((flops + ponder.fixed_flops).double().mean()) / ponder.dense_flops

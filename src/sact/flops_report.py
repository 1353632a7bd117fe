"""FLOPs of a network at an image size, without running it."""

from __future__ import annotations

import copy
from typing import Any

import torch

from .flops import block_flops
from .models import AdaptiveNetwork
from .ponder import Ponder


def shapes(network: AdaptiveNetwork, size: tuple[int, int]) -> Ponder:
    """What one image would cost, without numbers: the blocks' descriptions hold, their unit counts are on "meta".

    Args:
        network: any; its shapes alone are used.
        size: (H, W) of the image, at least 32 each.

    Raises:
        InputError: the size is too small.
    """
    twin = copy.deepcopy(network).eval().to("meta")
    for block in twin.blocks:
        block.forced_units = None
    images = torch.empty(1, network.config.in_channels, *size, device="meta", dtype=next(network.parameters()).dtype)
    with torch.no_grad():
        ponder: Ponder = twin(images, return_ponder=True)[1]
    return ponder


def count(network: AdaptiveNetwork, size: tuple[int, int]) -> dict[str, Any]:
    """The paper's count with every unit run, and with every position halting after the first unit.

    Args:
        network: any; its shapes alone are used.
        size: (H, W) of the image, at least 32 each.

    Returns:
        `fixed` (stem and head), `plain` (without score heads), `most`, `fewest`, and `blocks` with the same three each.

    Raises:
        InputError: the size is too small.
    """
    ponder = shapes(network, size)
    blocks = []
    for block in ponder.blocks:
        description = block.description
        spans = {}
        for name, units in (("most", len(description.units)), ("fewest", 1)):
            adaptive = block.cost is not None
            counts = torch.full(block.units.shape, units if adaptive else len(description.units), dtype=torch.int32)
            spans[name] = int(block_flops(description, counts)[0])
        blocks.append({"plain": description.dense_flops} | spans)
    fixed = ponder.fixed_flops
    totals = {name: fixed + sum(block[name] for block in blocks) for name in ("plain", "most", "fewest")}
    return {"fixed": fixed} | totals | {"blocks": blocks}

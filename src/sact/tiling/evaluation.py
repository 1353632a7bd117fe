"""`sact.tiled`: an image of any size through a network, in bounded memory."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cap import Allowance, allowance_of
from ..compiled import CompiledNetwork
from ..errors import InputError
from ..models.adaptive import AdaptiveNetwork
from ..ponder import BlockPonder, Ponder
from .pixels import Normalise, TiledImage, open_pixels
from .plan import BlockSteps, Plan, make_plan
from .run import TiledRun
from .store import MEMORY, open_store
from .windows import Size

LEAST_TILE = 32


@dataclass(frozen=True)
class TiledResult:
    """What a network says about a large image, and what that cost.

    Attributes:
        logits: [1, classes], of the network's dtype; None where the network gives features.
        ponder: what it spent; units and costs of a SACT block are [1, H_k, W_k].
        map_bytes: what the feature maps took, in memory or in the scratch file.
    """

    logits: Tensor | None
    ponder: Ponder
    map_bytes: int


@torch.no_grad()
def tiled(
    network: AdaptiveNetwork | CompiledNetwork,
    image: TiledImage,
    tile: int = 512,
    scratch: str | os.PathLike[str] | None = None,
    memory: int | None = None,
    normalise: Normalise | None = None,
) -> TiledResult:
    """Evaluate a network on an image of any size, unit by unit in tiles, with the result of the whole image at once.

    Seams are exact: every convolution reads its true neighbours, and scores the average over the whole image. The two
    maps that are needed at a time lie in a scratch file; tiles in which every position has halted are skipped.

    Args:
        network: in evaluation mode; this library's own, or an adapted one that is a chain of layers and units.
        image: a picture of any size: uint8 array [H, W, 3] (`numpy.memmap` for one that does not fit into memory), PIL
            image or path; or a tensor [1, C, H, W] (or [C, H, W]) that is prepared for the network.
        tile: side of a tile in pixels, at least 32. More means more memory and less overlap.
        scratch: folder for the scratch file; the system's by default, which should be on a disk.
        memory: bytes of feature maps up to which they stay in memory, without a file; 1 GiB by default.
        normalise: how pixels are scaled for the network: a function of [C, h, w] in [0, 1], position by position, or a
            specification as in `sact.preprocess` (of which only the scaling is used); `network.preprocessing` by
            default. Not for tensors.

    Raises:
        InputError: the image or an argument cannot be used, the network has a layer that needs the whole map (it is
            named), or there is too little scratch space; all of it before anything is computed, but for values in a
            tensor that are not finite.
    """
    network = network.model if isinstance(network, CompiledNetwork) else network
    _check(network, tile, memory)
    pixels = open_pixels(network, image, normalise)
    like = next(network.parameters())
    plan = make_plan(network, pixels.size, like.dtype)
    allowance = _allowance(network, plan, pixels.size)
    store = open_store(plan.need, scratch, MEMORY if memory is None else memory)
    logits, spent = TiledRun(plan, store, tile, like).run(pixels, allowance)
    return TiledResult(logits, Ponder(spent, network.fixed_flops(pixels.size)), plan.need)


def _check(network: AdaptiveNetwork, tile: int, memory: int | None) -> None:
    if not isinstance(network, AdaptiveNetwork):
        raise InputError(
            f"tiled takes a network, got {type(network).__name__}; of a detector or segmenter pass its .network"
        )
    if any(module.training for module in network.modules()):
        raise InputError("this network is in training mode, in which norms depend on the batch; call model.eval()")
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < LEAST_TILE:
        raise InputError(f"tile is {tile!r}, but it must be a whole number of pixels, at least {LEAST_TILE}")
    if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int) or memory < 0):
        raise InputError(f"memory is {memory!r}, but it must be a number of bytes, 0 to use a file in any case")


def _allowance(network: AdaptiveNetwork, plan: Plan, size: Size) -> Allowance | None:
    """What an image may spend beyond what always runs, if the network has a cap."""
    if network.cap is None:
        return None
    once = []
    for stage in plan.stages:
        if isinstance(stage, BlockSteps):
            first = stage.units[0]
            units = torch.ones((1, *first.out_size) if stage.block.halting == "sact" else (1,), dtype=torch.int32)
            once.append(BlockPonder(units, None, stage.block.describe(first.in_size, first.out_size)))
    least = Ponder(once, network.fixed_flops(size))
    key = *size, network.config.halting  # under which `bounds` would note it, had the whole image been run
    network.flops_bounds[key] = int(least.flops[0]), least.dense_flops
    return allowance_of(network, torch.zeros(1).expand(1, 1, *size))

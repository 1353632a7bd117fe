"""What a machine allows at most: bytes and FLOPs per block, and the time that the larger of the two demands takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import sact
from sact.block import Block
from sact.flops import block_flops, dilate

BYTES = 4
_TRIALS = 20


class Limits(NamedTuple):
    """The best that this machine does: GFLOP/s of a large matrix product, GB/s of reading from memory."""

    gflops: float
    gigabytes: float


class BlockLimit(NamedTuple):
    """One block's demands.

    Attributes:
        name: of the block, or "stem and head".
        flops: of the batch, the paper's count.
        weight_bytes: weights of all units that run somewhere.
        activation_bytes: what the convolutions read and write at the positions they run.
        seconds: the longer of the FLOPs and of the weights.
        bound: which of both that is.
    """

    name: str
    flops: int
    weight_bytes: int
    activation_bytes: int
    seconds: float
    bound: str


def measure_limits() -> Limits:
    """With PyTorch's current number of threads; the best of several trials."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    long = torch.randn(1 << 26)
    product = best(lambda: torch.mm(a, b))
    reading = best(lambda: long.sum())
    return Limits(2 * 2048**3 / product / 1e9, long.numel() * BYTES / reading / 1e9)


def best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs."""
    seconds = []
    for _ in range(_TRIALS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def roofline(model: sact.Network, shape: tuple[int, int, int], units: list[Tensor], limits: Limits) -> list[BlockLimit]:
    """The demands of a SACT network, block by block, where `units` (per block int [N, H_k, W_k]) are run."""
    from sact.flops_report import shapes

    ponder = shapes(model, shape[1:])
    count = shape[0]
    assert model.classifier is not None
    stem_weights = sum(parameter.numel() for part in (model.stem, model.classifier) for parameter in part.parameters())
    stem_pixels = shape[1] * shape[2] * (model.config.in_channels + model.config.base_channels // 4)
    found = [limit("stem and head", count * ponder.fixed_flops, stem_weights, count * stem_pixels, limits)]
    for number, (block, spent, run) in enumerate(zip(model.blocks, ponder.blocks, units, strict=True), start=1):
        weights, numbers = demands(block, spent.description.in_size, run)
        flops = int(block_flops(spent.description, run).sum())
        found.append(limit(f"block {number}", flops, weights, numbers, limits))
    return found


def demands(block: Block, in_size: tuple[int, int], units: Tensor) -> tuple[int, int]:
    """Weights of the units that run somewhere, and numbers that their convolutions read and write."""
    weights = numbers = 0
    inputs_at_start = len(units) * in_size[0] * in_size[1]
    for index, unit in enumerate(block.units, start=1):
        active = units >= index
        if not bool(active.any()):
            break
        stages = unit.stages()
        convs = [stage.conv for stage in stages] + [
            m for m in unit.shortcut.modules() if isinstance(m, torch.nn.Conv2d)
        ]
        weights += sum(conv.weight.numel() for conv in convs)
        positions = inputs_at_start if index == 1 else int(dilate(active, stages[0].in_reach).sum())
        for stage in stages:
            numbers += positions * stage.conv.in_channels
            if index > 1 or stage.conv.stride[0] > 1 or stage.reach == 0:
                positions = int(dilate(active, stage.reach).sum())
            numbers += positions * stage.conv.out_channels
        numbers += positions * stages[-1].conv.out_channels  # the state that the residual is added to
    return weights, numbers


def limit(name: str, flops: int, weights: int, numbers: int, limits: Limits) -> BlockLimit:
    """The time that the larger demand takes."""
    arithmetic, reading = flops / (limits.gflops * 1e9), weights * BYTES / (limits.gigabytes * 1e9)
    bound = "FLOPs" if arithmetic >= reading else "weights"
    return BlockLimit(name, flops, weights * BYTES, numbers * BYTES, max(arithmetic, reading), bound)

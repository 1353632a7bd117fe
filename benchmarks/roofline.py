"""What a machine allows at most: bytes and FLOPs per block, and the time that the larger of the two demands takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import sact
from sact.block import Block
from sact.flops import block_flops, conv_flops, dilate
from sact.units import Unit

BYTES = 4
_TRIALS = 20


class Limits(NamedTuple):
    """The best that this machine does: GFLOP/s of a large matrix product, GB/s of reading from memory."""

    gflops: float
    gigabytes: float


class Part(NamedTuple):
    """What a block, with the stem or the head beside it, demands.

    Attributes:
        name: "stem, block 1" ... "block 4, head".
        flops: of the batch, the paper's count.
        weight_bytes: weights of all units that run somewhere.
        activation_bytes: what the convolutions read and write at the positions they run.
    """

    name: str
    flops: int
    weight_bytes: int
    activation_bytes: int

    def limit(self, limits: Limits) -> tuple[float, str]:
        """Seconds that the larger demand takes, of FLOPs and of weights, and which of both that is."""
        arithmetic = self.flops / (limits.gflops * 1e9)
        reading = self.weight_bytes / (limits.gigabytes * 1e9)
        return (arithmetic, "FLOPs") if arithmetic >= reading else (reading, "weights")


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


def parts(model: sact.Network, shape: tuple[int, int, int], units: list[Tensor]) -> list[Part]:
    """The demands of a SACT network, block by block, where `units` (per block int [N, H_k, W_k]) are run."""
    from sact.flops_report import shapes

    ponder = shapes(model, shape[1:])
    count, last = shape[0], len(units)
    assert model.classifier is not None
    head = conv_flops(model.classifier)
    found = []
    for number, (block, spent, run) in enumerate(zip(model.blocks, ponder.blocks, units, strict=True), start=1):
        weights, numbers = demands(block, spent.description.in_size, run)
        flops = int(block_flops(spent.description, run).sum())
        name = f"block {number}"
        if number == 1:
            name = f"stem, {name}"
            flops += count * (ponder.fixed_flops - head)
            weights += sum(parameter.numel() for parameter in model.stem.parameters())
            numbers += count * shape[1] * shape[2] * (model.config.in_channels + model.config.base_channels // 4)
        if number == last:
            name = f"{name}, head"
            flops += count * head
            weights += sum(parameter.numel() for parameter in model.classifier.parameters())
        found.append(Part(name, flops, weights * BYTES, numbers * BYTES))
    return found


def measure_parts(model: sact.Network, images: Tensor, units: list[Tensor], seconds: float) -> list[float]:
    """Median seconds of each of `parts` in the CPU engine: differences of networks of the first blocks, in turns."""
    config = model.config
    networks = []
    for length in range(1, len(units) + 1):
        whole = length == len(units)
        short = sact.create_model(
            config.family,
            config.halting,
            units=config.units[:length],
            base_channels=config.base_channels,
            num_classes=config.num_classes,
            in_channels=config.in_channels,
            features_only=not whole,
        ).eval()
        for block, counts in zip(short.blocks, units, strict=False):
            block.forced_units = counts
        networks.append(sact.compile(short, "native", freeze=True))
    times: list[list[float]] = [[] for _ in networks]
    stop = time.perf_counter() + seconds
    with torch.inference_mode():
        while min(map(len, times)) < _TRIALS or time.perf_counter() < stop:
            for network, taken in zip(networks, times, strict=True):
                network(images)
                start = time.perf_counter()
                network(images)
                taken.append(time.perf_counter() - start)
    medians = [statistics.median(taken) for taken in times]
    return [after - before for before, after in zip([0.0, *medians], medians, strict=False)]


def demands(block: Block, in_size: tuple[int, int], units: Tensor) -> tuple[int, int]:
    """Weights of the units that run somewhere, and numbers that their convolutions read and write."""
    weights = numbers = 0
    inputs_at_start = len(units) * in_size[0] * in_size[1]
    for index, unit in enumerate(block.units, start=1):
        active = units >= index
        if not bool(active.any()):
            break
        stages = unit.stages()
        assert isinstance(unit, Unit)
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

"""Time against the dense network, measured while the visitor waits."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from PIL import Image

from ..models import Detector, Segmenter
from ..preprocessing import preprocess, to_unit_tensor
from ..segmenting import segmenter_batch
from .dense import Images, Run, clock
from .networks import Served, at_budget, segmented_side

LEAST_ROUNDS, MOST_ROUNDS = 5, 31
SECONDS = 0.4
"""After the least number of rounds no new one begins when this is over."""


@dataclass(frozen=True)
class Times:
    """Medians of runs that took turns, on one image.

    Attributes:
        ours: seconds of the network.
        dense: seconds of the same network with halting off.
        quartiles: the first and the third of dense / ours within a round.
        rounds: runs of each.
        engine: in which the network ran.
        dense_way: how the dense network ran: the fastest way here.
        threads: of PyTorch.
    """

    ours: float
    dense: float
    quartiles: tuple[float, float]
    rounds: int
    engine: str
    dense_way: str
    threads: int


@torch.inference_mode()
def compare_times(served: Served, picture: Image.Image, budget: float | None = None) -> Times:
    """Time the network at a budget against itself with halting off, on one image, in turns, alone."""
    images = as_batch(served, picture)
    with at_budget(served.network, budget):
        dense_way, dense_run = served.dense(images)
        runs: list[Run] = [served.compiled, dense_run]
        for run in runs:
            run(images)
        taken: list[list[float]] = [[], []]
        stop = time.perf_counter() + SECONDS
        rounds = 0
        while rounds < LEAST_ROUNDS or (rounds < MOST_ROUNDS and time.perf_counter() < stop):
            for which in (0, 1) if rounds % 2 else (1, 0):
                taken[which].append(clock(runs[which], images))
            rounds += 1
    lower, _, upper = quantiles((dense / ours for ours, dense in zip(*taken, strict=True)), n=4, method="inclusive")
    return Times(
        ours=median(taken[0]),
        dense=median(taken[1]),
        quartiles=(lower, upper),
        rounds=rounds,
        engine=served.engine,
        dense_way=dense_way,
        threads=torch.get_num_threads(),
    )


@torch.inference_mode()
def time_alone(served: Served, picture: Image.Image, budget: float | None = None, runs: int = 3) -> float:
    """Median seconds of a few runs of the network on one image; it has run before."""
    images = as_batch(served, picture)
    with at_budget(served.network, budget):
        return median(clock(served.compiled, images) for _ in range(runs))


def as_batch(served: Served, picture: Image.Image) -> Images:
    """[1, 3, H, W], as the network takes it; of a detector a list of [3, H, W]."""
    parameter = next(served.network.parameters())
    if isinstance(served.model, Detector):
        return [to_unit_tensor(picture).to(parameter.device, parameter.dtype)]
    if isinstance(served.model, Segmenter):
        batch, _ = segmenter_batch(picture, segmented_side(picture))
    else:
        assert served.network.preprocessing is not None
        batch = preprocess(picture, served.network.preprocessing)[None]
    return batch.to(parameter.device, parameter.dtype)

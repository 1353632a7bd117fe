"""The clock of the demo: interleaved runs of the same pictures, and no time for an engine that does other work."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sact

LIMIT = 1e-3
"""Largest difference in a logit with which an engine still counts as giving the same answer."""
SECONDS = 8.0
"""How long the rounds of one batch size go on."""
LEAST_ROUNDS = 12
"""Where a round takes long, at least this many."""
_TRIAL_ROUNDS = 5
_LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


@dataclass(frozen=True)
class Contender:
    """A way to run a network: what is timed.

    Attributes:
        name: "plain", "masked", "gather" or "native".
        layout: memory layout of weights and images, the faster one for this contender.
        run: images to logits.
        difference: largest difference in a logit from the definition, over the batches that are timed.
    """

    name: str
    layout: str
    run: Callable[[Tensor], Tensor]
    difference: float


@torch.inference_mode()
def time_batches(adaptive: sact.AdaptiveNetwork, plain: sact.AdaptiveNetwork, batches: list[Tensor]) -> dict[str, Any]:
    """Medians of interleaved runs, and per round the ratio to the plain network on the same batch.

    No time is taken of an engine whose logits differ from the definition by more than `LIMIT` on these batches.
    """
    defined = [adaptive(images, return_ponder=True) for images in batches]
    shares = [float(ponder.flops.double().mean()) / ponder.dense_flops for _, ponder in defined]
    truth = [logits for logits, _ in defined]
    contenders = [
        prepare("plain", lambda model: model, plain, batches, [plain(images) for images in batches]),
        prepare("masked", lambda model: sact.compile(model, "masked"), adaptive, batches, truth),
        prepare("gather", lambda model: sact.compile(model, "gather"), adaptive, batches, truth),
    ]
    if sact.compile(adaptive).engine == "native":  # it was compiled when sact was installed
        contenders.append(prepare("native", lambda model: sact.compile(model, "native"), adaptive, batches, truth))
    same = [contender for contender in contenders if contender.difference <= LIMIT]
    seconds: dict[str, list[float]] = {contender.name: [] for contender in same}
    rounds, stop = 0, time.perf_counter() + SECONDS
    while rounds < LEAST_ROUNDS or time.perf_counter() < stop:
        first = rounds % len(same)
        for contender in same[first:] + same[:first]:
            seconds[contender.name].append(clock(contender.run, batches[rounds % len(batches)]))
        rounds += 1
    rows = []
    for contender in contenders:
        taken = seconds.get(contender.name)
        row = {"name": contender.name, "layout": contender.layout, "difference": contender.difference}
        ratios = [own / base for own, base in zip(taken, seconds["plain"], strict=True)] if taken else None
        times = spread([1e3 * value for value in taken]) if taken else None
        rows.append(row | {"milliseconds": times, "ratio": spread(ratios) if ratios else None})
    return {"batch": len(batches[0]), "rounds": rounds, "flops_share": float(np.mean(shares)), "engines": rows}


def prepare(
    name: str,
    wrap: Callable[[sact.AdaptiveNetwork], Callable[[Tensor], Tensor]],
    network: sact.AdaptiveNetwork,
    batches: list[Tensor],
    truth: list[Tensor],
) -> Contender:
    """A network in the memory layout in which it is faster here, among those in which it gives the true logits."""
    candidates = []
    for layout, memory_format in _LAYOUTS.items():
        model = wrap(copy.deepcopy(network).to(memory_format=memory_format))

        def run(images: Tensor, model: Any = model, memory_format: Any = memory_format) -> Tensor:
            return model(images.contiguous(memory_format=memory_format))

        difference = max(float((run(images) - true).abs().max()) for images, true in zip(batches, truth, strict=True))
        trial = float(np.median([clock(run, batches[number % len(batches)]) for number in range(_TRIAL_ROUNDS)]))
        candidates.append((difference > LIMIT, trial, Contender(name, layout, run, difference)))
    return min(candidates, key=lambda candidate: candidate[:2])[2]


def clock(run: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run(images)
    return time.perf_counter() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation, extremes and quartiles."""
    array = np.asarray(values, dtype=np.float64)
    lower, median, upper = np.percentile(array, [25, 50, 75])
    numbers = {"mean": array.mean(), "std": array.std(), "min": array.min(), "max": array.max()}
    numbers |= {"lower_quartile": lower, "median": median, "upper_quartile": upper}
    return {name: float(value) for name, value in numbers.items()}

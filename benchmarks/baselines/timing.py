"""The clock of the comparison: every evaluation is compared with its definition, then all take turns.

Time is the processor's, on one thread: what one waits on a core that has nothing else to do. By the clock on the wall,
a machine with other work lets short runs through and interrupts long ones, which favours whatever is fast already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sact
from sact.bench.measure import REST, TOLERANCE, UNIT_TOLERANCE
from sact.bench.peers import plain_network
from sact.engines import Engine

from .gumbel import GumbelNetwork, perforate
from .ram import RecurrentAttention

LEAST_ROUNDS = 5

Answer = Callable[[Tensor], tuple[Tensor, list[Tensor]]]
"""Images to logits [N, classes] and what was decided, each [N, ...]: unit counts or masks."""


@dataclass
class Contestant:
    """One way to run one network.

    Attributes:
        network: its row in the results.
        way: "dense" (the definition: everything is computed), "engine" (`sact.compile`), "gather" (the same with that
            engine), or "perforated".
        runs_in: "PyTorch" or the library's engine.
        run: what is timed.
        answer: the same, with what was decided.
        definition: what the answer is compared with.
    """

    network: str
    way: str
    runs_in: str
    run: Callable[[Tensor], Any]
    answer: Answer
    definition: Answer
    seconds: list[float] = field(default_factory=list)


def contestants(
    networks: Mapping[str, sact.Network], gumbel: GumbelNetwork, ram: RecurrentAttention
) -> list[Contestant]:
    """All ways to run all networks. A dense plain network is its bare layers, without the library's checks."""
    found = []
    for name, network in networks.items():
        network = network.eval().to(memory_format=torch.channels_last)
        definition = answer_of(network)
        if network.config.halting == "none":
            layers = plain_network(network)
            found.append(Contestant(name, "dense", "PyTorch", layers, undecided(layers), definition))
        else:
            found.append(Contestant(name, "dense", "PyTorch", network, definition, definition))
        ways: dict[str, Engine] = {"engine": "auto", "gather": "gather"}
        for way, engine in ways.items():
            if way == "gather" and network.config.halting == "none":
                continue  # it would be the dense network
            fast = sact.compile(network, engine, freeze=True)
            runs_in = "PyTorch" if fast.engine == "gather" else f"the {fast.engine} engine"
            found.append(Contestant(name, way, runs_in, fast, answer_of(fast), definition))
    skipping = perforate(gumbel)
    found.append(Contestant("gumbel", "dense", "PyTorch", gumbel, gumbel, gumbel))
    found.append(Contestant("gumbel", "perforated", "PyTorch", skipping, skipping, gumbel))
    look: Answer = lambda images: (ram(images).logits, [])  # noqa: E731
    found.append(Contestant("ram", "dense", "PyTorch", ram, look, look))
    return found


def answer_of(network: Any) -> Answer:
    """A library network's logits and unit counts."""

    def answer(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, ponder = network(images, return_ponder=True)
        return logits, [block.units for block in ponder.blocks]

    return answer


def undecided(layers: Callable[[Tensor], Tensor]) -> Answer:
    """A plain network's logits; every unit runs."""
    return lambda images: (layers(images), [])


@torch.inference_mode()
def compare_and_time(entrants: Sequence[Contestant], images: Tensor, size: int, seconds: float) -> dict[str, Any]:
    """Compare every contestant on all images, then time those that agree, in turns; PyTorch is to have one thread.

    Args:
        entrants: their times are forgotten first.
        images: float32 [N, 3, S, S], used in batches of `size`.
        size: images per batch; those left over are not used.
        seconds: how long turns go on, by the clock on the wall.

    Returns:
        JSON-able: batch size, rounds, and one row per contestant with milliseconds of processor time per batch.
    """
    batches = [
        batch.contiguous(memory_format=torch.channels_last) for batch in images.split(size) if len(batch) == size
    ]
    problems = [problem_of(one, batches) for one in entrants]
    timed = [one for one, problem in zip(entrants, problems, strict=True) if not problem]
    for one in entrants:
        one.seconds.clear()
    rounds, stop = 0, time.perf_counter() + seconds
    while timed and (rounds < LEAST_ROUNDS or time.perf_counter() < stop):
        batch = batches[rounds % len(batches)]
        first = rounds % len(timed)
        for one in [*timed[first:], *timed[:first]]:
            time.sleep(REST)
            one.run(batch)  # the one before has emptied its caches
            start = time.process_time()
            one.run(batch)
            one.seconds.append(time.process_time() - start)
        rounds += 1
    rows = [
        {
            "network": one.network,
            "way": one.way,
            "runs_in": one.runs_in,
            "problem": problem,
            "milliseconds": spread(one.seconds) if one.seconds else None,
        }
        for one, problem in zip(entrants, problems, strict=True)
    ]
    return {"batch": size, "rounds": rounds, "rows": rows}


def problem_of(one: Contestant, batches: Sequence[Tensor]) -> str:
    """Why a contestant is not timed: what it decides or, where it decides alike, its logits are not the definition's.

    A hard decision within rounding of its threshold may fall either way; its image then has other logits.
    """
    different = decisions = 0
    off = 0.0
    for batch in batches:
        (ours, our_choices), (theirs, their_choices) = one.answer(batch), one.definition(batch)
        same = torch.ones(len(batch), dtype=torch.bool)
        for our, their in zip(our_choices, their_choices, strict=False):
            changed = (our != their).flatten(1) if our.dim() > 1 else (our != their)[:, None]
            different, decisions = different + int(changed.sum()), decisions + changed.numel()
            same &= ~changed.any(1)
        if same.any():
            off = max(off, float((ours - theirs)[same].abs().max() / theirs.abs().max()))
    if not off <= TOLERANCE:
        return f"its logits differ from the definition's by {off:.2g} of the largest"
    if different > UNIT_TOLERANCE * decisions:
        return f"{different} of {decisions} decisions differ from the definition's"
    return ""


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, in milliseconds."""
    values = np.percentile(1e3 * np.asarray(seconds), [25, 50, 75])
    return dict(zip(("lower_quartile", "median", "upper_quartile"), map(float, values), strict=True))

"""The clock: contestants take turns, and only those whose output was just compared are timed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..compiled import compile
from ..engines import ENGINES, Engine
from ..errors import InputError, MissingExtraError
from ..models import AdaptiveNetwork
from ..ponder import Ponder
from . import memory
from .masks import Forcing, force_units
from .peers import PEERS, load, plain_network, prepare
from .report import conditions

TOLERANCE = 1e-4
"""Largest difference from the reference, as a share of its largest logit, with which a contestant is timed."""
UNIT_TOLERANCE = 1e-3
"""Largest share of positions at which an engine may run another number of units than the definition."""
LEAST_ROUNDS = 5
"""Turns of every contestant, however long they take."""
REST = 0.01
"""Seconds of sleep before each turn: threads wait in busy loops for a while after a run, and would take the cores from
whoever is timed next."""
WARM_BELOW = 0.05
"""Seconds; a contestant faster than this first runs untimed in each turn, as the one before has emptied its caches."""
WARM_SECONDS = 0.02
"""How long it does that."""


@dataclass
class Contestant:
    """Something to time, and what was found.

    Attributes:
        name: of the peer or engine.
        kind: "peer" (it runs the plain network) or "engine".
        run: images to logits.
        forcing: the wanted share; None where the network halts by itself, or is plain.
        before: what is done ahead of each run, outside the clock.
        problem: why it is not timed; empty if it is.
        failed: whether that is a wrong answer, and not a runtime that is missing.
        difference: largest one from the reference, as a share of the reference's largest logit.
        unit_difference: share of positions that run another number of units; None for peers.
        flops: of each batch.
        memory: bytes that it adds to the process at the peak of a run, its own copies of the weights included.
        seconds: of each turn.
    """

    name: str
    kind: str
    run: Callable[[Tensor], Any] | None = None
    forcing: Forcing | None = None
    before: Callable[[], None] = lambda: None
    problem: str = ""
    failed: bool = False
    difference: float | None = None
    unit_difference: float | None = None
    flops: list[int] = field(default_factory=list)
    memory: int | None = None
    seconds: list[float] = field(default_factory=list)


def bench(
    model: AdaptiveNetwork,
    batches: Sequence[Tensor],
    forcings: Sequence[Forcing] = (),
    *,
    engines: Sequence[str] = ("native", "masked"),
    peers: Sequence[str] = PEERS,
    threads: int | None = None,
    seconds: float = 10.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Time a network in our engines beside its plain network in other runtimes.

    Every contestant is first compared on every batch: peers with the plain network in eager PyTorch, engines with the
    definition (the masked engine) of the same network and unit counts. One that differs gets no time. Then all take
    turns, so that a disturbance meets all alike.

    Args:
        model: any with a classifier, float32 on the CPU, in evaluation mode. Left as it is.
        batches: images float32 [N, C, H, W], all of one shape; turns go through them.
        forcings: wanted shares for an adaptive network, each measured in every engine but "masked", which does the
            same work whatever the share, and is measured at the first. Empty: the network halts by itself.
        engines: of `sact.engines.ENGINES`. "masked" is the adaptive network computed densely.
        peers: of `PEERS`; one whose package is missing is reported and left out.
        threads: of PyTorch and the peers; None for PyTorch's own choice.
        seconds: how long turns go on; every contestant has at least `LEAST_ROUNDS`.
        seed: of the masks that shares are spent on.

    Returns:
        JSON-able: the network, its input, the conditions, and `rows`, one per contestant. In a row, `milliseconds` has
        median, quartiles and extremes; `speed_up` is the median time of the fastest peer over this one's, and
        `realised_share` is that divided by (plain FLOPs / its FLOPs): 1 where all FLOPs saved are time saved.

    Raises:
        InputError: an option is out of range, or a share cannot be reached.
    """
    _check(model, batches, engines, peers, threads, seconds)
    with _threads(threads) as count:
        shape = (len(batches[0]), *batches[0].shape[-2:])
        maps = [(forcing, force_units(model, shape, forcing, seed)) for forcing in forcings]
        plain = plain_network(model)
        with torch.no_grad():
            contestants = [_prepare_peer(name, plain, batches, count) for name in peers]
            for engine in engines:
                contestants += _prepare_engine(engine, model, batches, maps)
            rounds = _take_turns([one for one in contestants if not one.problem], batches, seconds)
            ponder = model(batches[0][:1], return_ponder=True)[1]
        plain_flops = ponder.dense_flops * len(batches[0])
        result = {
            "family": model.config.family,
            "units": [len(block.units) for block in model.blocks],
            "halting": model.config.halting,
            "input": list(batches[0].shape),
            "batches": len(batches),
            "plain_flops": plain_flops,
            "rounds": rounds,
            "conditions": conditions(count),
        }
    return result | _summary(contestants, plain_flops)


def _check(
    model: AdaptiveNetwork,
    batches: Sequence[Tensor],
    engines: Sequence[str],
    peers: Sequence[str],
    threads: int | None,
    seconds: float,
) -> None:
    model.check_classifies()
    if model.training:
        raise InputError("this network is in training mode, in which nothing can be skipped; call model.eval()")
    if not batches:
        raise InputError("there are no images to time; pass at least one batch")
    for images in batches:
        model.check_images(images)
        if images.shape != batches[0].shape or images.dtype != torch.float32 or images.device.type != "cpu":
            raise InputError(
                f"a batch is {images.dtype} {tuple(images.shape)} on {images.device}, but all must be float32 "
                f"{tuple(batches[0].shape)} on the CPU"
            )
    for given, known, what in ((engines, ENGINES, "engine"), (peers, PEERS, "peer")):
        for name in given:
            if name not in known:
                raise InputError(f'{what} is "{name}", but it must be one of {", ".join(known)}')
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}, but it must be at least 1")
    if not 0 < seconds < 1e6:
        raise InputError(f"seconds is {seconds:g}, but it must be positive")


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield count or before
    finally:
        torch.set_num_threads(before)


def _prepare_peer(name: str, plain: torch.nn.Module, batches: Sequence[Tensor], threads: int) -> Contestant:
    one = Contestant(name, "peer")
    try:
        load(name)
        before = memory.resident()
        one.run = prepare(name, plain, batches[0], threads)
        one.run(batches[0])
    except MissingExtraError as error:
        one.problem = f"left out: {error}"
        return one
    except Exception as error:  # whatever another runtime may raise; the others are still worth timing
        one.problem = f"left out: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        return one
    one.memory = _memory_of_runs([one], batches[0], before)
    one.difference = max(_difference(one.run(images), plain(images)) for images in batches)
    _judge(one)
    return one


def _prepare_engine(
    engine: str, model: AdaptiveNetwork, batches: Sequence[Tensor], maps: Sequence[tuple[Forcing, list[Tensor]]]
) -> list[Contestant]:
    wanted: Sequence[tuple[Forcing | None, list[Tensor] | None]] = maps[: 1 if engine == "masked" else None]
    before = memory.resident()
    # A copy, for its units will be forced, that shares the weights: those do not count as an engine's memory.
    network = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    for block in network.blocks:
        block.forced_units = None
    # As the peers, none of which looks whether weights have changed.
    fast = compile(network, cast(Engine, engine), freeze=True)  # `_check` has seen to it
    found = []
    for forcing, units in wanted or [(None, None)]:

        def set_units(units: list[Tensor] | None = units) -> None:
            for index, block in enumerate(network.blocks):
                block.forced_units = None if units is None else units[index]

        found.append(Contestant(engine, "engine", fast, forcing, set_units))
    used = _memory_of_runs(found, batches[0], before)
    for one in found:
        one.memory = used
        one.before()
        one.difference, one.unit_difference = 0.0, 0.0
        for images in batches:
            expected, definition = network(images, return_ponder=True)
            logits, ponder = fast(images, return_ponder=True)
            one.flops.append(int(ponder.flops.sum()))
            one.difference = max(one.difference, _difference(logits, expected))
            one.unit_difference = max(one.unit_difference, _unit_difference(ponder, definition))
        _judge(one)
    return found


def _memory_of_runs(contestants: Sequence[Contestant], images: Tensor, before: int | None) -> int | None:
    """Bytes above `before` at the highest point of one run each, after a first run that may need more once."""
    for one in contestants:
        assert one.run is not None
        one.before()
        one.run(images)
    memory.resident()
    known = memory.restart_peak()
    for one in contestants:
        assert one.run is not None
        one.before()
        one.run(images)
    highest = memory.peak()
    return max(0, highest - before) if known and highest is not None and before is not None else None


def _difference(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
    return difference if difference == difference else float("inf")


def _unit_difference(ours: Ponder, theirs: Ponder) -> float:
    differing = [(our.units != their.units) for our, their in zip(ours.blocks, theirs.blocks, strict=True)]
    return float(torch.cat([block.flatten() for block in differing]).float().mean())


def _judge(one: Contestant) -> None:
    if one.difference is not None and not one.difference <= TOLERANCE:
        one.failed = True
        one.problem = (
            f"its output differs from the reference by {one.difference:.2g} of the largest logit, more than "
            f"{TOLERANCE:g}; it is not timed"
        )
    elif one.unit_difference is not None and one.unit_difference > UNIT_TOLERANCE:
        one.failed = True
        one.problem = (
            f"its unit counts differ from the definition at {one.unit_difference:.2%} of positions, more than "
            f"{UNIT_TOLERANCE:.1%}; it is not timed"
        )


def _take_turns(contestants: Sequence[Contestant], batches: Sequence[Tensor], seconds: float) -> int:
    """Time everyone once per round, each round from another start; returns the rounds."""
    if not contestants:
        return 0
    quick = {id(one): True for one in contestants}
    rounds, stop = 0, time.perf_counter() + seconds
    while rounds < LEAST_ROUNDS or time.perf_counter() < stop:
        images = batches[rounds % len(batches)]
        first = rounds % len(contestants)
        for one in [*contestants[first:], *contestants[:first]]:
            assert one.run is not None
            one.before()
            time.sleep(REST)
            if quick[id(one)]:
                _warm(one.run, images)
            start = time.perf_counter()
            one.run(images)
            one.seconds.append(time.perf_counter() - start)
            quick[id(one)] = one.seconds[-1] < WARM_BELOW
        rounds += 1
    return rounds


def _warm(run: Callable[[Tensor], Any], images: Tensor) -> None:
    """Run at least once, and until some time has gone by."""
    stop = time.perf_counter() + WARM_SECONDS
    run(images)
    while time.perf_counter() < stop:
        run(images)


def _summary(contestants: Sequence[Contestant], plain_flops: int) -> dict[str, Any]:
    medians = {one.name: float(np.median(one.seconds)) for one in contestants if one.kind == "peer" and one.seconds}
    fastest = min(medians, key=lambda name: medians[name]) if medians else None
    rows = []
    for one in contestants:
        # Over the very batches that were timed, so that median FLOPs belong to the median time.
        flops = plain_flops
        if one.flops:
            timed = [one.flops[index % len(one.flops)] for index in range(len(one.seconds) or len(one.flops))]
            flops = round(float(np.median(timed)))
        speed_up = medians[fastest] / float(np.median(one.seconds)) if fastest and one.seconds else None
        rows.append(
            {
                "name": one.name,
                "kind": one.kind,
                "masks": one.forcing.masks if one.forcing else None,
                "wanted_share": one.forcing.share if one.forcing else None,
                "flops": flops,
                "share": flops / plain_flops,
                "milliseconds": _spread(one.seconds) if one.seconds else None,
                "speed_up": speed_up,
                "realised_share": speed_up * flops / plain_flops if speed_up and one.kind == "engine" else None,
                "memory": one.memory,
                "difference": one.difference,
                "unit_difference": one.unit_difference,
                "problem": one.problem,
                "failed": one.failed,
            }
        )
    return {"fastest_peer": fastest, "rows": rows}


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    names = ("minimum", "lower_quartile", "median", "upper_quartile", "maximum")
    values = np.percentile(1e3 * np.asarray(seconds), [0, 25, 50, 75, 100])
    return {name: float(value) for name, value in zip(names, values, strict=True)}

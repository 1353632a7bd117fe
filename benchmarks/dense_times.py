"""The clock for detectors and segmenters: the whole model, its extractor in our engine or in another runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sact
from sact.bench.measure import REST, TOLERANCE, UNIT_TOLERANCE
from sact.bench.peers import plain_features, prepare
from sact.models.dense import with_network
from sact.ponder import Ponder

PEERS = ("eager", "compile", "onnxruntime", "openvino")


class InRuntime(nn.Module):
    """A plain extractor in another runtime, called as a network is.

    Args:
        name: of the runtime.
        network: the extractor, plain.
        images: float32 [N, C, H, W]; the runtime is set up for this shape.
        threads: of the runtime.
    """

    def __init__(self, name: str, network: sact.Network, images: Tensor, threads: int) -> None:
        super().__init__()
        self.run = prepare(name, plain_features(network), images, threads)
        self.ponder = network(images, return_ponder=True)[1]

    def forward(self, images: Tensor, return_ponder: bool = False) -> Any:
        """Feature maps, and what they cost."""
        return (self.run(images), self.ponder) if return_ponder else self.run(images)


@dataclass
class Contestant:
    """A model to time.

    Attributes:
        name: of the network.
        way: where its extractor runs.
        model: the whole of it.
        seconds: of each turn of the whole model.
        extractor_seconds: of each turn of its extractor alone.
        share: FLOPs of the extractor as a share of the plain one of full depth, in each turn.
    """

    name: str
    way: str
    model: Any
    seconds: list[float] = field(default_factory=list)
    extractor_seconds: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)


def contestants(models: dict[str, Any], full: str, shape: Sequence[int]) -> list[Contestant]:
    """The plain model of full depth in every runtime, and every model in our engine.

    Args:
        models: trained ones by name, in evaluation mode.
        full: name of the plain one of full depth.
        shape: of what the extractor gets, [N, C, H, W].

    Raises:
        RuntimeError: one gives other numbers than its definition.
    """
    images = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    found = []
    plain = models[full]
    for name in PEERS:
        runtime: Any = InRuntime(name, plain.network, images, threads)
        found.append(Contestant(full, name, with_network(plain, runtime)))
    for name, model in models.items():
        fast = sact.compile(model.network, freeze=True)
        found.append(Contestant(name, fast.engine, with_network(model, fast)))
    for one in found:
        check(one, models[one.name].network, images)
    return found


def check(one: Contestant, definition: nn.Module, images: Tensor) -> None:
    """Compare an extractor with its definition; what differs is not timed."""
    expected, wanted = definition(images, return_ponder=True)
    maps, ponder = one.model.network(images, return_ponder=True)
    for ours, theirs in zip(maps, expected, strict=True):
        difference = float((ours - theirs).abs().max() / theirs.abs().max())
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{one.name} in {one.way} differs from its definition by {difference:.2g}")
    if units_differ(ponder, wanted) > UNIT_TOLERANCE:
        raise RuntimeError(f"{one.name} in {one.way} runs other units than its definition")


def units_differ(ours: Ponder, theirs: Ponder) -> float:
    """Share of positions that run another number of units."""
    pairs = zip(ours.blocks, theirs.blocks, strict=True)
    return float(torch.cat([(a.units != b.units).flatten() for a, b in pairs]).float().mean())


def take_turns(
    found: Sequence[Contestant],
    inputs: Sequence[Any],
    extractor_inputs: Sequence[Tensor],
    full_flops: int,
    rounds: int,
) -> None:
    """Time everyone once per round, whole and extractor alone, each round from another start and with another image.

    Args:
        found: to time.
        inputs: what the whole models take.
        extractor_inputs: the same images as their extractors get them.
        full_flops: of the plain extractor of full depth, per image.
        rounds: how many.
    """
    for number in range(rounds):
        first = number % len(found)
        whole, inside = inputs[number % len(inputs)], extractor_inputs[number % len(inputs)]
        for one in [*found[first:], *found[:first]]:
            network = one.model.network
            one.seconds.append(clock(one.model, whole))
            one.extractor_seconds.append(clock(network, inside))
            ponder = network(inside, return_ponder=True)[1]
            one.share.append(int(ponder.flops[0]) / full_flops)


def clock(run: Callable[[Any], Any], given: Any) -> float:
    """Seconds of one run, after a rest and a run that is not timed: the one before has emptied the caches."""
    time.sleep(REST)
    run(given)
    start = time.perf_counter()
    run(given)
    return time.perf_counter() - start


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, in milliseconds."""
    lower, median, upper = np.percentile(1e3 * np.asarray(seconds), [25, 50, 75])
    return {"lower_quartile": float(lower), "median": float(median), "upper_quartile": float(upper)}

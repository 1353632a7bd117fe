"""What was exported against the definition, on random images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..block import Block
from ..errors import InputError
from ..models.adaptive import AdaptiveNetwork
from .forms import named

Run = Callable[[Tensor], dict[str, Tensor]]
"""Images [N, C, H, W] to the named outputs of a file."""

TOLERANCE = 1e-4
"""Largest difference of an output, relative to its largest value where that is above 1."""

TRIES = 3
"""Batches per shape: where a score lies within float tolerance of the threshold, unit counts differ, and others are
drawn."""


@dataclass(frozen=True)
class Agreement:
    """How far a file is from the definition.

    Attributes:
        shapes: (N, H, W) of the batches that were compared.
        difference: largest difference of an output from the definition's, relative as for `TOLERANCE`; the unit counts
            were equal.
    """

    shapes: tuple[tuple[int, int, int], ...]
    difference: float


def samples(network: AdaptiveNetwork, count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Random images, float32 [N, C, H, W], smooth enough to look different in different places."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    coarse = torch.randn(count, network.config.in_channels, height // 8 + 1, width // 8 + 1, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return smooth + 0.2 * torch.randn(smooth.shape, generator=generator)


@torch.no_grad()
def expected(network: AdaptiveNetwork, images: Tensor) -> dict[str, Tensor]:
    """What the definition gives, by the names of a file's outputs."""
    output, ponder = network.run(images, Block.__call__)
    results = named(output, network.config.features_only)
    for number, block in enumerate(ponder.blocks, start=1):
        if block.cost is not None:
            results[f"units_{number}"], results[f"cost_{number}"] = block.units, block.cost
    return results


def compare(network: AdaptiveNetwork, run: Run, shapes: Sequence[tuple[int, int, int]]) -> Agreement:
    """Run a file and the definition on random images.

    Raises:
        InputError: they differ.
    """
    worst = 0.0
    for shape in shapes:
        for attempt in range(TRIES):
            images = samples(network, shape[0], shape[1:], seed=1 + attempt)
            problem, difference = _difference(expected(network, images), run(images))
            if problem is None:
                break
        if problem is not None:
            raise InputError(
                f"what was exported differs from the network on images {list(images.shape)}: {problem}; nothing was "
                "written. Report it with the network's name, or fix the images' size with size="
            )
        worst = max(worst, difference)
    return Agreement(tuple(shapes), worst)


def _difference(wanted: dict[str, Tensor], got: dict[str, Tensor]) -> tuple[str | None, float]:
    """What differs too much, in words, and the largest relative difference."""
    if set(wanted) != set(got):
        return f"it gives {', '.join(got)} instead of {', '.join(wanted)}", 0.0
    worst = 0.0
    for name, here in wanted.items():
        there = got[name]
        if here.shape != there.shape:
            return f"{name} is {list(there.shape)} instead of {list(here.shape)}", worst
        if not here.is_floating_point():
            count = int((here != there).sum())
            if count:
                return f"{name} differs at {count} of {here.numel()} positions", worst
            continue
        scale = max(1.0, float(here.abs().max()))
        off = float((here - there).abs().max()) / scale
        if not off <= TOLERANCE:
            return f"{name} is off by {off:.2g} of its largest value", worst
        worst = max(worst, off)
    return None, worst

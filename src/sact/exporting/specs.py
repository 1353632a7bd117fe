"""What the operators of the graph with lists are told by their keys."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from ..scores import PositionScore
from ..units import Description


@dataclass(frozen=True)
class UnitSpec:
    """A unit.

    Attributes:
        description: with norms folded; what it does `everywhere` has been done.
        keeps_output: whether the block gives the weighted sum of the states.
        needs_mean: whether a score head follows.
        kernels: sides of the convolutions that there are tables of neighbours for.
    """

    description: Description
    keeps_output: bool
    needs_mean: bool
    kernels: tuple[int, ...]


@dataclass(frozen=True)
class HaltSpec:
    """A score head.

    Attributes:
        head: the score head.
        eps: the threshold is 1 - eps.
        shift: added to the logit.
    """

    head: PositionScore
    eps: float
    shift: float


SPECS: list[UnitSpec | HaltSpec] = []
"""By key; those of the export that is under way."""


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Around one export."""
    SPECS.clear()
    try:
        yield
    finally:
        SPECS.clear()

"""Engines: ways to evaluate a network only where it is active. All give the same numbers."""

from __future__ import annotations

import os
import warnings
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from ..errors import InputError
from ..ponder import Ponder

if TYPE_CHECKING:
    from ..models.adaptive import AdaptiveNetwork

Engine = Literal["auto", "masked", "gather", "native", "triton"]
ENGINES = ("masked", "gather", "native", "triton")
PROCESS = os.getpid()
"""The process that imported sact; one forked from it lacks PyTorch's threads."""

NormStatistics = Literal["all", "active"]
"""Over which positions norms in training mode take their statistics: the authors' choice, or those that are read."""
NORM_STATISTICS = ("all", "active")


class Run(Protocol):
    """What an engine makes of a network: images in; logits (or features) and what they cost out.

    An engine is a module of this package with one function, `prepare(model: AdaptiveNetwork, freeze: bool,
    norm_statistics: NormStatistics) -> Run`. It may replace the evaluation of single blocks (pass a `RunBlock` to
    `Network.run`) or of the whole network.
    """

    def __call__(self, images: Tensor, *, keep_distribution: bool = False) -> tuple[Tensor | list[Tensor], Ponder]: ...


def choose(engine: Engine, device: torch.device) -> str:
    """The name of an engine; "auto" stands for the fastest that works here for a network on that device.

    Raises:
        InputError: there is no such engine, or its compiled part is missing.
    """
    if engine == "auto":
        if device.type == "cuda":
            return "triton" if find_spec("triton") else "gather"
        return "native" if _has_native() else "gather"
    if engine not in ENGINES:
        raise InputError(f'engine is "{engine}", but it must be one of auto, {", ".join(ENGINES)}')
    return engine


@lru_cache(maxsize=1)
def _has_native() -> bool:
    """Whether the CPU engine was compiled; warns, once, where it was not."""
    from . import native

    try:
        native.library()
    except InputError as error:
        warnings.warn(f"{error}; the slower gather engine serves meanwhile", stacklevel=5)
        return False
    return True


def prepare(model: AdaptiveNetwork, engine: str, freeze: bool = False, norm_statistics: NormStatistics = "all") -> Run:
    """What the named engine makes of a network; with `freeze`, of one that stays as it is at the first call.

    Raises:
        InputError: there are no such statistics, or the engine lacks them.
    """
    if norm_statistics not in NORM_STATISTICS:
        raise InputError(f'norm_statistics is "{norm_statistics}", but it must be one of {", ".join(NORM_STATISTICS)}')
    run: Run = import_module(f".{engine}", __name__).prepare(model, freeze, norm_statistics)
    return run

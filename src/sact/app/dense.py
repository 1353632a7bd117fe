"""The same model with halting off: ways to run it, for its time."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..adapt import restore
from ..compiled import CompiledNetwork, compile
from ..errors import InputError
from ..models import AdaptiveNetwork
from ..models.adapted import AdaptedNetwork
from ..models.dense import DenseModel, extractor, with_network
from ..models.network import Network
from ..models.registry import build

Images: TypeAlias = Tensor | list[Tensor]
"""A batch, or what a detector takes."""
Run: TypeAlias = Callable[[Any], Any]


def clock(run: Run, images: Images) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run(images)
    if images[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def dense_ways(model: AdaptiveNetwork | DenseModel) -> dict[str, Run]:
    """Ways to run the same model with halting off, by name. Weights are copied: the model itself stays as it is."""
    plain = plain_copy(extractor(model))
    if isinstance(model, DenseModel):
        whole = with_network(model, plain)
        last_whole = copy.deepcopy(whole).to(memory_format=torch.channels_last)  # convolutions follow their weights
        fast = compile(whole)
        assert isinstance(fast.network, CompiledNetwork)
        return {
            "PyTorch": whole,
            "PyTorch, channels last": last_whole,
            f"the {fast.network.engine} engine": fast,
        }
    eager: nn.Module = restore(plain) if isinstance(plain, AdaptedNetwork) else plain
    last = copy.deepcopy(eager).to(memory_format=torch.channels_last)
    ways: dict[str, Run] = {
        "PyTorch": eager,
        "PyTorch, channels last": lambda images: last(images.contiguous(memory_format=torch.channels_last)),
    }
    engine = compile(plain)
    return ways | {f"the {engine.engine} engine": engine}


def plain_copy(network: AdaptiveNetwork) -> AdaptiveNetwork:
    """A copy of a network with halting off, in evaluation mode.

    Raises:
        InputError: a kind of network whose plain form is not known here.
    """
    if isinstance(network, AdaptedNetwork):
        adapted = copy.deepcopy(network)
        adapted.halting = "none"
        return adapted.eval()
    if not isinstance(network, Network):
        raise InputError(f"{type(network).__name__} has no plain form that is known here; serve a sact.Network")
    plain = build(replace(network.config, halting="none"))
    weights = network.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    return plain.to(next(network.parameters()).device).eval()

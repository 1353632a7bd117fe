"""Networks whose halting varies, on which most tests run, and the recipe of a run that takes a second."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from composed import composed_set  # noqa: F401  (a fixture)
from torch import nn

if not torch.cuda.is_available():  # before anything imports Triton
    os.environ["TRITON_INTERPRET"] = "1"

import sact
from sact.engines import gather, native
from sact.scores import ImageScore

MakeModel = Callable[..., sact.Network]


def has_native(isa: str | None = None) -> bool:
    """Whether the CPU engine was compiled, for this instruction set if one is named, and this processor runs it."""
    try:
        native.library(isa)
    except sact.InputError:
        return False
    return True


HAS_TRITON = find_spec("triton") is not None
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where Triton's kernels run: without a GPU in its interpreter, on the CPU."""
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed here")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
TRITON = pytest.param("triton", marks=needs_triton)
needs_native = pytest.mark.skipif(not has_native(), reason="the CPU engine is not compiled here")
NATIVE = pytest.param("native", marks=needs_native)

TINY_RECIPE: dict[str, Any] = {
    "model": "resnet",
    "units": [2, 2],
    "base_channels": 4,
    "halting": "sact",
    "tau": 0.01,
    "data": "fashion_mnist",
    "image_size": 32,
    "train_length": 32,
    "val_length": 16,
    "batch_size": 16,
    "max_epochs": 1,
    "log_every": 1,
    "accelerator": "cpu",
    "devices": 1,
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _small_is_not_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test networks are small; without this the gather engine would run them dense."""
    monkeypatch.setattr(gather, "SMALL_INPUT", 0)
    monkeypatch.setattr(gather, "FEW_CHANNELS", 0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch, and so the CPU engine, in one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_model() -> MakeModel:
    """`sact.create_model` with seeded weights, norms as after training, and heads that halt early, late and between."""

    def make(name: str = "resnet", seed: int = 0, **options: Any) -> sact.Network:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = sact.create_model(name, **options)
            with torch.no_grad():
                _vary(model)
        return model.eval()

    return make


def _vary(model: sact.Network) -> None:
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.2)
    for block in model.blocks:
        for head in block.scores:
            decisive = head.global_conv if isinstance(head, ImageScore) else head.local_conv
            head.global_conv.weight.normal_(0, 0.3 * head.global_conv.in_channels**-0.5)
            decisive.weight.normal_(0, 1.5 * decisive.weight[0].numel() ** -0.5)
            # A mean score with which about half of the units run.
            decisive.bias.copy_(torch.empty(1).uniform_(0.5, 3).div(len(block.units)).clamp(max=0.9).logit())
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(torch.randn(4, model.config.in_channels, 48, 40))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum

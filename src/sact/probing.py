"""Trying a network on one image: in which order its modules run, on what, and what it gives."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .trials import evaluating

PROBE_SIDES = (64, 224)
"""Sides of the image that shows in which order modules run; the second where the first is too small."""


@dataclass
class Visit:
    """How a module ran on the probing image.

    Attributes:
        x: its input.
        y: its output.
        times: how often it ran.
    """

    x: Tensor
    y: Tensor
    times: int = 1


@dataclass
class Probe:
    """What a network did with an image.

    Attributes:
        image: [1, C, side, side].
        result: what it gave.
        visits: of the modules by name that took one tensor and gave one.
    """

    image: Tensor
    result: Any
    visits: dict[str, Visit]


@torch.no_grad()
def observe(model: nn.Module, names: Collection[str] | None, channels: int, image_size: int | None) -> Probe:
    """Run a network, in evaluation mode, on a random image.

    Args:
        model: takes images [N, C, H, W].
        names: the modules to look at; None: all that have parts.
        channels: C.
        image_size: side in pixels; 64 or 224 by default.

    Raises:
        InputError: it does not run.
    """
    if image_size is not None and (not isinstance(image_size, int) or image_size < 1):
        raise InputError(f"image_size is {image_size!r}, but it must be a whole number of pixels, like 224")
    modules = {
        name: module
        for name, module in model.named_modules()
        if name and (names is None or name in names) and (names is not None or any(module.children()))
    }
    parameter = next(model.parameters())
    failed: Exception | None = None
    with evaluating(model):
        for side in PROBE_SIDES if image_size is None else (image_size,):
            visits: dict[str, Visit] = {}
            image = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0)).to(parameter)
            try:
                with _hooked(modules, visits):
                    return Probe(image, model(image), visits)
            except Exception as error:
                failed = error
    raise InputError(
        f"{type(model).__name__} does not run on an image [1, {channels}, {side}, {side}] ({failed}); "
        "name the side that it takes with image_size"
    ) from failed


def image_channels(model: nn.Module) -> int:
    """Channels of the images that a network takes: what its first convolution reads.

    Raises:
        InputError: it has no convolution.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise InputError(f"{type(model).__name__} has no 2-D convolution; sact.adapt takes residual networks of such")


@contextlib.contextmanager
def _hooked(modules: dict[str, nn.Module], visits: dict[str, Visit]) -> Iterator[None]:
    """Note how each of these modules runs, meanwhile."""

    def note(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            return
        if name in visits:
            visits[name].times += 1
        else:
            visits[name] = Visit(args[0], output)

    handles = [module.register_forward_hook(partial(note, name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

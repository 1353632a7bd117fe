"""Layers as the CPU engine knows them, and what somebody's layers are: those of unknown classes are tried out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..folding import activation_slope, norm_affine
from ..reading import Reading, Undescribable, read_unit
from ..units import LinearConv, Scale
from .native_structs import Activation

_SLOPE, _SILU, _HARD_SWISH, _GELU = range(4)


class Unsupported(Exception):
    """A layer that the kernel does not have; the message names it."""


def label(layer: object) -> str:
    name = type(layer).__name__
    return f"{layer}" if len(f"{layer}") < 80 and "\n" not in f"{layer}" else name


def is_nothing(activation: Activation) -> bool:
    return bool(activation.kind == _SLOPE and activation.slope == 1.0 and activation.cap == math.inf)


def is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.BatchNorm2d, nn.LayerNorm, Scale))


def affine_of(layer: nn.Module, channels: int) -> tuple[Tensor, Tensor, float]:
    """Scale and shift, each [C], and eps where it is a layer norm."""
    if isinstance(layer, nn.BatchNorm2d):
        return (*norm_affine(layer), 0.0)
    if isinstance(layer, Scale):
        return layer.factors, torch.zeros(channels), 0.0
    assert isinstance(layer, nn.LayerNorm)
    if tuple(layer.normalized_shape) != (channels,) or layer.eps <= 0:
        raise Unsupported(label(layer))
    scale = torch.ones(channels) if layer.weight is None else layer.weight
    shift = torch.zeros(channels) if getattr(layer, "bias", None) is None else layer.bias
    return scale, shift, layer.eps


_CANDIDATES = (
    (Activation(_SLOPE, 1.0, math.inf), lambda x: x),
    (Activation(_SLOPE, 0.0, math.inf), F.relu),
    (Activation(_SLOPE, 0.0, 6.0), F.relu6),
    (Activation(_SILU, 0.0, 0.0), F.silu),
    (Activation(_HARD_SWISH, 0.0, 0.0), F.hardswish),
    (Activation(_GELU, 0.0, 0.0), F.gelu),
)


@torch.no_grad()
def activation_of(layer: object) -> Activation | None:
    """An activation, also of a class that nobody knows: it is tried out. None: it is something else."""
    if not isinstance(layer, nn.Module) or any(True for _ in layer.parameters()) or any(True for _ in layer.buffers()):
        return None
    slope = activation_slope(layer)
    if slope is not None:
        return Activation(_SLOPE, slope, math.inf)
    if isinstance(layer, (Scale, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.Linear, nn.Flatten, nn.LayerNorm)):
        return None
    x = torch.linspace(-9.0, 9.0, 512).view(1, 8, 8, 8)
    try:
        y = layer(x.clone())
    except Exception:  # whatever a layer that is no activation may raise
        return None
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return None
    found = [activation for activation, meant in _CANDIDATES if torch.allclose(y, meant(x), rtol=1e-6, atol=1e-6)]
    return found[0] if found else None


def take_pointwise(layers: list[Any]) -> list[nn.Module]:
    """Take norms and activations from the front."""
    taken: list[nn.Module] = []
    while layers and isinstance(layers[0], nn.Module) and (is_norm(layers[0]) or activation_of(layers[0]) is not None):
        if isinstance(layers[0], nn.LayerNorm):  # for the first plain unit
            break
        taken.append(layers.pop(0))
    return taken


def check_pool(pool: nn.MaxPool2d) -> None:
    def pair(value: Any) -> tuple[Any, Any]:
        return value if isinstance(value, tuple) else (value, value)

    if (pair(pool.kernel_size), pair(pool.stride), pair(pool.padding), pair(pool.dilation), pool.ceil_mode) != (
        (3, 3), (2, 2), (1, 1), (1, 1), False
    ):  # fmt: skip
        raise Unsupported(f"{pool}")


def is_basic(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm)) or activation_of(layer) is not None


def keeps_map(layer: nn.Module, is_last: bool) -> bool:
    """Whether a layer gives a map: it is no pooling over everything, and no classifier."""
    parts = list(layer.modules())
    has_convolution = any(isinstance(part, nn.Conv2d) for part in parts)
    return is_basic(layer) or (
        not is_last and has_convolution and not any(isinstance(part, nn.Linear) for part in parts)
    )


def reading_of(layer: nn.Module, channels: int) -> Reading:
    try:
        reading = read_unit(layer, torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(0)))
    except Undescribable as error:
        raise Unsupported(f"{type(layer).__name__} ({error})") from error
    if not reading.description.stages:
        raise Unsupported(f"{type(layer).__name__}")
    return reading


def split_shortcut(layers: Sequence[nn.Module]) -> tuple[Sequence[nn.Module], nn.Conv2d, Sequence[nn.Module]]:
    """A shortcut's layers before its one convolution, that, and those behind it."""
    at = [index for index, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    if len(at) != 1:
        raise Unsupported(f"{label(layers[0])} in a shortcut")
    conv = layers[at[0]]
    assert isinstance(conv, nn.Conv2d)
    return layers[: at[0]], conv, layers[at[0] + 1 :]


@torch.no_grad()
def classifier_of(layers: Sequence[nn.Module], channels: int) -> tuple[nn.Conv2d, list[nn.Module]]:
    """What makes logits of the last map, as a 1x1 convolution of the mean, and a layer norm before it, if there is one.

    Heads are written in many ways, hence this one is tried out.
    """
    names = ", ".join(type(layer).__name__ for layer in layers)
    parts = [part for layer in layers for part in layer.modules()]
    norms: list[nn.Module] = [part for part in parts if isinstance(part, nn.LayerNorm)]
    linear = [LinearConv(part) if isinstance(part, nn.Linear) else part for part in parts]
    convs = [part for part in linear if isinstance(part, nn.Conv2d)]
    if len(convs) != 1 or convs[0].in_channels != channels or convs[0].kernel_size != (1, 1) or len(norms) > 1:
        raise Unsupported(f"the head ({names})")
    x = torch.randn(2, channels, 3, 4, generator=torch.Generator().manual_seed(0))
    mean = x.mean((2, 3))
    if norms:
        scale, shift, eps = affine_of(norms[0], channels)
        mean = F.layer_norm(mean, (channels,), scale, shift, eps)
    expected = F.linear(mean, convs[0].weight.flatten(1), convs[0].bias)
    try:
        for layer in layers:
            x = layer(x)
    except Exception as error:  # whatever a head may raise on a map of this size
        raise Unsupported(f"the head ({names})") from error
    if not isinstance(x, Tensor) or x.shape != expected.shape or not torch.allclose(x, expected, rtol=1e-4, atol=1e-4):
        raise Unsupported(f"the head ({names})")
    return convs[0], norms

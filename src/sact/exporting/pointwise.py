"""ONNX nodes of norms and activations over rows, and of constants."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from onnxscript import ir, opset18
from torch import Tensor, nn

from ..folding import norm_affine
from ..units import Description, Scale

Value = Any
"""A value of the graph that is being written."""

op: Any = opset18
"""Writes nodes."""

_WRITERS: dict[type[nn.Module], Callable[[Any, Value], Value]] = {
    nn.Identity: lambda layer, x: x,
    nn.ReLU: lambda layer, x: op.Relu(x),
    nn.ReLU6: lambda layer, x: op.Clip(x, number(0.0), number(6.0)),
    nn.LeakyReLU: lambda layer, x: op.LeakyRelu(x, alpha=float(layer.negative_slope)),
    nn.SiLU: lambda layer, x: op.Mul(x, op.Sigmoid(x)),
    nn.GELU: lambda layer, x: _gelu(x),
    nn.Hardswish: lambda layer, x: op.HardSwish(x),
    nn.Hardsigmoid: lambda layer, x: op.HardSigmoid(x, alpha=1 / 6, beta=0.5),
    nn.Sigmoid: lambda layer, x: op.Sigmoid(x),
    nn.Tanh: lambda layer, x: op.Tanh(x),
    nn.ELU: lambda layer, x: op.Elu(x, alpha=float(layer.alpha)),
}


def can_write(description: Description) -> bool:
    """Whether there are nodes for all that a unit does at listed positions."""
    layers = [layer for stage in description.stages for layer in stage.pointwise]
    return all(_is_known(layer) for layer in (*layers, *description.tail, *description.post))


def write_pointwise(layer: nn.Module, values: Value) -> Value:
    """A norm or an activation, of rows [B, C]."""
    if isinstance(layer, nn.BatchNorm2d):
        scale, shift = norm_affine(layer)
        return op.Add(op.Mul(values, tensor(scale)), tensor(shift))
    if isinstance(layer, nn.LayerNorm):
        weight = torch.ones(layer.normalized_shape) if layer.weight is None else layer.weight
        bias = torch.zeros(layer.normalized_shape) if layer.bias is None else layer.bias
        return op.LayerNormalization(values, tensor(weight), tensor(bias), axis=-1, epsilon=layer.eps)[0]
    if isinstance(layer, Scale):
        return op.Mul(values, tensor(layer.factors))
    known = recognise(layer)
    assert known is not None
    return _WRITERS[type(known)](known, values)


def _is_known(layer: nn.Module) -> bool:
    if isinstance(layer, nn.LayerNorm):
        return len(layer.normalized_shape) == 1
    return isinstance(layer, (nn.BatchNorm2d, Scale)) or recognise(layer) is not None


@lru_cache(maxsize=4096)
def recognise(layer: nn.Module) -> nn.Module | None:
    """The activation of PyTorch that a layer is, also where somebody wrote it again, or calls it as a function."""
    if type(layer) in _WRITERS and not (isinstance(layer, nn.GELU) and layer.approximate != "none"):
        return layer
    if any(True for _ in layer.parameters()) or any(True for _ in layer.buffers()):
        return None
    x = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 4
    try:
        with torch.no_grad():
            y = layer(x.clone())
    except Exception:  # whatever somebody's layer raises
        return None
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return None
    for kind in _WRITERS:
        known = kind()
        with torch.no_grad():
            if torch.allclose(known(x), y, rtol=1e-6, atol=1e-6):
                return known
    return None


def _gelu(x: Value) -> Value:
    """In the form that ONNX Runtime recognises."""
    erf = op.Erf(op.Div(x, number(2.0**0.5)))
    return op.Mul(op.Mul(x, op.Add(erf, number(1.0))), number(0.5))


def tensor(values: Tensor) -> Value:
    """Weights, float32."""
    return op.Constant(value=ir.tensor(values.detach().float().contiguous().numpy().copy()))


def number(value: float) -> Value:
    """A float32 scalar."""
    return op.Constant(value=ir.tensor(np.array(value, np.float32)))


def integer(value: int) -> Value:
    """An int64 scalar."""
    return op.Constant(value=ir.tensor(np.array(value, np.int64)))


def ints(*values: int) -> Value:
    """An int64 vector."""
    return op.Constant(value=ir.tensor(np.array(values, np.int64)))

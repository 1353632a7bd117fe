"""Perforated convolution as PyTorch operators: differentiable, and whole to torch.compile.

States are rows [B, C], one per position. A table `rows` [A, K] says which of them the K = k x k taps of each output
read, -1 standing for zero padding; a whole row of -1 stands for no output. Lists of positions have as many entries as
there are positions when torch.compile fixes their length, and such rows at their end, which cost nothing.

`sact::perforated_conv` normalises, activates, gathers and multiplies, and keeps no more for the backward pass than its
input: that pass normalises and gathers again. On CUDA it runs the Triton kernels of `kernels.py`; the plain PyTorch
here serves every other device, and is what the kernels are tested against.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

Shape = Sequence[int]

CHUNK = 1 << 21
"""Numbers that a 1x1 convolution gathers at a time."""


@torch.library.custom_op("sact::perforated_conv", mutates_args=())
def perforated_conv(
    values: Tensor,
    rows: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    slope: float,
) -> Tensor:
    """A convolution, at listed positions, of normalised and activated values.

    Args:
        values: [B, C], floating point.
        rows: int64 [A, K], which of the values each tap reads, -1 for padding; no tap reads a value twice. None: each
            output reads the value of its own row (K = 1, A = B).
        weight: [C', C / groups, k, k], k k = K; its dtype is that of the product and the result.
        bias: [C'], or None.
        scale: [C] float32 (or float64), with `shift` the norm before the convolution; None without one.
        shift: [C].
        slope: of the activation behind the norm where its input is negative: 0 for ReLU, 1 for none.

    Returns:
        [A, C'].

    Source: section 3.2, the perforated convolutional layer.
    """
    groups = _groups(values, weight)
    if runs_in_triton(values) and groups == 1:
        from . import launch

        with torch.cuda.device_of(values):  # which Triton launches on
            return launch.conv(values, rows, weight, bias, scale, shift, slope)
    taps = _taps(weight)
    count = used(rows, len(values))
    result = weight.new_empty(len(values) if rows is None else len(rows), len(weight))
    result[count:] = 0
    if rows is None or rows.shape[1] == 1:
        for part in _parts(count, values.shape[1]):
            read = activate(_read(values, rows, part), scale, shift, slope, weight.dtype)
            _multiply(read, taps[0], bias, result[part], groups)
    else:
        activated = activate(values, scale, shift, slope, weight.dtype)
        for tap, read in enumerate(_each_tap(activated, rows[:count])):
            if tap == 0:
                _multiply(read, taps[0], bias, result[:count], groups)
            else:
                _multiply_add(read, taps[tap], result[:count], groups)
    return result


@perforated_conv.register_fake
def _(values: Tensor, rows: Tensor | None, weight: Tensor, *_: Any) -> Tensor:
    return weight.new_empty(values.shape[0] if rows is None else rows.shape[0], weight.shape[0])


@torch.library.custom_op("sact::perforated_conv_backward", mutates_args=())
def perforated_conv_backward(
    grad: Tensor,
    values: Tensor,
    rows: Tensor | None,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    slope: float,
    wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `perforated_conv`.

    Args:
        grad: of the result, [A, C'].
        values: and the others: as it was called.
        wants: which gradients are needed: of values, weight, bias, and norm.

    Returns:
        Gradients of values [B, C], weight [C', C, k, k], bias [C'], and (scale, shift) [2, C]; empty where not wanted.
    """
    groups = _groups(values, weight)
    if runs_in_triton(values) and groups == 1:
        from . import launch

        with torch.cuda.device_of(values):
            return launch.conv_backward(grad, values, rows, weight, scale, shift, slope, wants)
    grad = grad.contiguous()
    taps = _taps(weight)
    count = used(rows, len(values))
    by_values, by_weight, by_bias, by_norm = empty_gradients(values, weight, scale, wants)
    if wants[2]:
        by_bias = grad[:count].sum(0)
    if rows is None or rows.shape[1] == 1:
        if rows is not None and wants[0]:
            by_values.zero_()
        by_tap: Tensor | None = None
        for part in _parts(count, values.shape[1]):
            raw = _read(values, rows, part)
            read = activate(raw, scale, shift, slope, weight.dtype)
            if wants[1]:
                by_tap = _add(by_tap, _by_weight(grad[part], read, groups))
            if wants[0] or wants[3]:
                below = through_norm(_by_values(grad[part], taps[0], groups), raw, read, scale, slope, by_norm)
                if wants[0] and rows is None:
                    by_values[part] = below
                elif wants[0] and rows is not None:
                    by_values.index_add_(0, rows[part, 0], below.to(values.dtype))
        if wants[1]:
            by_weight = torch.zeros_like(by_weight) if by_tap is None else by_tap.to(weight.dtype).view(weight.shape)
        return by_values, by_weight, by_bias, by_norm
    activated = activate(values, scale, shift, slope, weight.dtype)
    if wants[1]:
        read_by_tap = _each_tap(activated, rows[:count])
        by_taps = torch.stack([_by_weight(grad[:count], read, groups) for read in read_by_tap], 2)
        by_weight = by_taps.view(weight.shape)
    if wants[0] or wants[3]:
        below_or_none: Tensor | None = None
        for tap, read in enumerate(_each_tap(grad, reverse(rows[:count], len(values)))):
            below_or_none = _add(below_or_none, _by_values(read, taps[tap], groups))
        assert below_or_none is not None
        below = through_norm(below_or_none.to(weight.dtype), values, activated, scale, slope, by_norm)
        by_values = below.to(values.dtype) if wants[0] else by_values
    return by_values, by_weight, by_bias, by_norm


@perforated_conv_backward.register_fake
def _(
    grad: Tensor,
    values: Tensor,
    rows: Tensor | None,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    slope: float,
    wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return empty_gradients(values, weight, scale, wants)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, rows, weight, _, scale, shift, slope = inputs
    ctx.save_for_backward(values, rows, weight, scale, shift)
    ctx.slope = slope


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, rows, weight, scale, shift = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wants = [needs[0], needs[2], needs[3], needs[4] or needs[5]]
    by_values, by_weight, by_bias, by_norm = perforated_conv_backward(
        grad, values, rows, weight, scale, shift, ctx.slope, wants
    )
    return (
        by_values if needs[0] else None,
        None,
        by_weight if needs[2] else None,
        by_bias if needs[3] else None,
        by_norm[0] if needs[4] else None,
        by_norm[1] if needs[5] else None,
        None,
    )


perforated_conv.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.sact.perforated_conv)
def _conv_flops(values: Shape, rows: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    return 2 * out_shape[0] * math.prod(weight)


@register_flop_formula(torch.ops.sact.perforated_conv_backward)
def _conv_backward_flops(grad: Shape, values: Shape, rows: Shape, weight: Shape, *rest: Any, **_: Any) -> int:
    wants = rest[3]
    return 2 * grad[0] * math.prod(weight) * (int(wants[0] or wants[3]) + int(wants[1]))


def runs_in_triton(values: Tensor) -> bool:
    """Whether the kernels take these values; of float64 they know nothing."""
    return values.is_cuda and values.dtype != torch.float64 and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def used(rows: Tensor | None, length: int) -> int:
    """How many of the outputs there are: the rows of a table up to the last that is not all -1."""
    if rows is None:
        return length
    if not len(rows) or bool((rows[-1] >= 0).any()):
        return len(rows)
    found = (rows >= 0).any(1).nonzero()
    return int(found[-1]) + 1 if len(found) else 0


def reverse(rows: Tensor, length: int) -> Tensor:
    """The table of the backward pass: which output each value went to by each tap, -1 for none. [length, K]."""
    taps = rows.shape[1]
    # Whatever was padding lands in one row more, which is cut off.
    table = rows.new_full((length + 1, taps), -1)
    at = torch.where(rows < 0, length, rows) * taps + torch.arange(taps, device=rows.device)
    table.view(-1)[at] = torch.arange(len(rows), device=rows.device)[:, None].expand_as(at)
    return table[:length]


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """What sums over many positions are held in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty_gradients(
    values: Tensor, weight: Tensor, scale: Tensor | None, wants: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `perforated_conv_backward` returns, to be filled; the norm's, which is added to, is zero."""
    return (
        values.new_empty(values.shape if wants[0] else 0),
        weight.new_empty(weight.shape if wants[1] else 0),
        weight.new_empty(len(weight) if wants[2] else 0),
        values.new_empty(0) if scale is None or not wants[3] else scale.new_zeros(2, len(scale)),
    )


def _taps(weight: Tensor) -> Tensor:
    """[C', C, k, k] to [k k, C, C']: what the rows read by each tap are multiplied by."""
    return weight.permute(2, 3, 1, 0).flatten(0, 1)


def _parts(count: int, width: int) -> Iterator[slice]:
    step = max(64, CHUNK // width)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _read(values: Tensor, rows: Tensor | None, part: slice) -> Tensor:
    return values[part] if rows is None else values.index_select(0, rows[part, 0])


def _each_tap(values: Tensor, rows: Tensor) -> Iterator[Tensor]:
    """What each tap reads, [A, C], always in the same memory."""
    padded = torch.cat([values.new_zeros(1, values.shape[1]), values])
    read = values.new_empty(len(rows), values.shape[1])
    for at in (rows.T + 1).contiguous():
        yield torch.index_select(padded, 0, at, out=read)


def activate(values: Tensor, scale: Tensor | None, shift: Tensor | None, slope: float, dtype: torch.dtype) -> Tensor:
    """Norm and activation of values [B, C], as `perforated_conv` describes them, in that dtype."""
    if scale is not None:
        assert shift is not None
        values = torch.addcmul(shift, values.to(scale.dtype), scale)
        values = F.leaky_relu_(values, slope) if slope != 1 else values
    elif slope != 1:
        values = F.leaky_relu(values, slope)
    return values.to(dtype)


def _groups(values: Tensor, weight: Tensor) -> int:
    return values.shape[1] // weight.shape[1]


def _of_groups(values: Tensor, groups: int) -> Tensor:
    """[A, g C] to [g, A, C]."""
    return values.unflatten(1, (groups, -1)).transpose(0, 1)


def _multiply(picked: Tensor, matrix: Tensor, bias: Tensor | None, out: Tensor, groups: int) -> None:
    """out = picked @ matrix + bias, group by group; [A, C], [C / groups, C'], [C'], [A, C']."""
    if groups > 1:
        out.copy_(torch.zeros((), dtype=out.dtype, device=out.device) if bias is None else bias)
        _multiply_add(picked, matrix, out, groups)
    elif bias is None:
        torch.mm(picked, matrix, out=out)
    else:
        torch.addmm(bias.to(matrix.dtype), picked, matrix, out=out)


def _multiply_add(picked: Tensor, matrix: Tensor, out: Tensor, groups: int) -> None:
    """Add picked @ matrix, group by group."""
    if groups == 1:
        out.addmm_(picked, matrix)
    elif matrix.shape == (1, picked.shape[1]):  # depthwise
        out.addcmul_(picked, matrix)
    else:
        products = torch.bmm(_of_groups(picked, groups), _of_groups(matrix, groups))
        out.add_(products.transpose(0, 1).flatten(1))


def _by_weight(grad: Tensor, read: Tensor, groups: int) -> Tensor:
    """The weight's gradient by one tap, [C', C / groups]."""
    if groups == 1:
        return grad.T @ read
    if grad.shape[1] == read.shape[1] == groups:
        return (grad * read).sum(0)[:, None]
    return torch.bmm(_of_groups(grad, groups).transpose(1, 2), _of_groups(read, groups)).flatten(0, 1)


def _by_values(grad: Tensor, matrix: Tensor, groups: int) -> Tensor:
    """The gradient of what one tap read, [A, C]."""
    if groups == 1:
        return grad @ matrix.T
    if matrix.shape == (1, groups):
        return grad * matrix
    products = torch.bmm(_of_groups(grad, groups), _of_groups(matrix, groups).transpose(1, 2))
    return products.transpose(0, 1).flatten(1)


def _add(total: Tensor | None, term: Tensor) -> Tensor:
    """total + term, in float32 or wider; no total yet is zero."""
    return term.to(wide_type(term.dtype)) if total is None else total.add_(term)


def through_norm(
    grad: Tensor, raw: Tensor, activated: Tensor, scale: Tensor | None, slope: float, by_norm: Tensor
) -> Tensor:
    """The gradient of activated values as that of raw ones; adds to the norm's own if it is not empty."""
    if slope != 1:
        grad = torch.ops.aten.leaky_relu_backward(grad, activated, slope, True)
    if scale is None:
        return grad
    grad = grad.to(scale.dtype)
    if by_norm.numel():
        by_norm[0] += (grad * raw).sum(0)
        by_norm[1] += grad.sum(0)
    return grad.mul_(scale)

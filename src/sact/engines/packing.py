"""A block in the layout of the GPU kernels: weights packed, norms folded where algebra allows."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..block import Block
from ..folding import activation_slope, fold_norms, norm_affine
from ..scores import PositionScore
from ..units import BaseUnit, Unit, is_plain


class Conv(NamedTuple):
    """A stage, its norm folded into the convolution before it.

    Attributes:
        weight: [k, k, C, C'].
        bias: float32 [C'], or None.
        wide: whether its outputs are wanted around active positions as well.
        slope: of the activation before the convolution where its input is negative; 1 for none.
        layer: the same for PyTorch.
    """

    weight: Tensor
    bias: Tensor | None
    wide: bool
    slope: float
    layer: nn.Conv2d


class Head(NamedTuple):
    """A score head.

    Attributes:
        taps: [1, 1, C, PRODUCTS], the local convolution's 9 taps as products of single rows, zeros behind them; a norm
            without activation is part of them,
        bias: float32 [PRODUCTS], and gives them this bias.
        norm: the local norm (scale, shift), float32 [C]; Nones where it is part of the taps.
        slope: of the activation behind it.
        logit_bias: float32 [1].
        pooled_norm: the global norm, float32 [C] each.
        pooled_slope: of the activation behind it.
        factors: float32 [C], the global convolution.
    """

    taps: Tensor
    bias: Tensor | None
    norm: tuple[Tensor, Tensor] | tuple[None, None]
    slope: float
    logit_bias: Tensor
    pooled_norm: tuple[Tensor, Tensor]
    pooled_slope: float
    factors: Tensor


class UnitWeights(NamedTuple):
    """A unit as the kernels read it.

    Attributes:
        convs: of its branch.
        norm: (scale, shift) at its start, float32 [C]; Nones without one.
        shortcut: what the residual is added to.
        shortcut_preactivated: whether that reads the states behind the first norm and activation.
    """

    convs: tuple[Conv, ...]
    norm: tuple[Tensor, Tensor] | tuple[None, None]
    shortcut: nn.Module
    shortcut_preactivated: bool


class BlockWeights(NamedTuple):
    """What the kernels read of a block: its units, the first one None where PyTorch has to run it, and the heads."""

    units: list[UnitWeights | None]
    heads: list[Head]


class Unsupported(Exception):
    """What the kernels lack."""


@torch.no_grad()
def pack(block: Block, dtype: torch.dtype) -> BlockWeights | None:
    """A SACT block in the kernels' layout; None, with a warning, where it has what they lack."""
    try:
        units: list[UnitWeights | None] = [_pack_unit(unit, dtype, True) for unit in block.units[1:]]
        heads = [_pack_head(head, dtype) for head in block.scores if isinstance(head, PositionScore)]
    except Unsupported as error:
        warnings.warn(f"the GPU engine lacks {error}; the slower gather engine runs this block", stacklevel=2)
        return None
    try:
        return BlockWeights([_pack_unit(block.units[0], dtype, False), *units], heads)
    except Unsupported:  # of no weight: PyTorch runs it densely all the same
        return BlockWeights([None, *units], heads)


def _pack_unit(unit: BaseUnit, dtype: torch.dtype, listed: bool) -> UnitWeights:
    """A unit that is to be evaluated at listed positions, or everywhere."""
    if not isinstance(unit, Unit):
        raise Unsupported("units of adapted networks")
    if listed and not unit.keeps_state:
        raise Unsupported("units behind a block's first whose shortcut is not the identity")
    if listed and len(unit.stages()) < 2:
        raise Unsupported("units of a single convolution, which would read what it writes")
    exact = copy.deepcopy(unit).float()  # folded in float32, and rounded once
    folded = fold_norms(exact.stages())
    convs = []
    norm: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)
    for index, stage in enumerate(folded):
        conv = stage.conv
        if listed and (not is_plain(conv) or conv.kernel_size[0] > 3 or stage.reach > 1):
            raise Unsupported(f"the convolution {conv}, or its place in a unit")
        first, slope = _read_pointwise(stage.pointwise)
        if first is not None and index > 0:
            raise Unsupported(f"{first} behind an activation")
        norm = norm if first is None else _affine(first)
        bias = None if conv.bias is None else conv.bias.float()
        weight = conv.weight.permute(2, 3, 1, 0).to(dtype).contiguous()
        layer = copy.deepcopy(conv).to(dtype).to(memory_format=torch.channels_last)
        convs.append(Conv(weight, bias, stage.reach == 1, slope, layer))
    return UnitWeights(tuple(convs), norm, exact.shortcut.to(dtype), unit.shortcut_preactivated)


def _pack_head(head: PositionScore, dtype: torch.dtype) -> Head:
    from . import launch

    head = copy.deepcopy(head).float()
    conv = head.local_conv
    if conv.kernel_size != (3, 3):
        raise Unsupported(f"the score convolution {conv}")
    local, slope = _read_pointwise((head.local_norm, head.activation))
    pooled, pooled_slope = _read_pointwise((head.global_norm, head.activation))
    assert local is not None
    assert pooled is not None
    taps = F.pad(conv.weight[0].flatten(1).float(), (0, launch.PRODUCTS - 9))
    scale, shift = _affine(local)
    bias = None
    norm: tuple[Tensor, Tensor] | tuple[None, None] = (scale, shift)
    if slope == 1:
        norm, bias, taps = (None, None), shift @ taps, taps * scale[:, None]
    logit_bias = taps.new_zeros(1) if conv.bias is None else conv.bias.float()
    factors = head.global_conv.weight.flatten().float()
    return Head(
        taps[None, None].to(dtype).contiguous(), bias, norm, slope, logit_bias, _affine(pooled), pooled_slope, factors
    )


def _read_pointwise(layers: Sequence[nn.Module]) -> tuple[nn.BatchNorm2d | None, float]:
    """(The norm, the slope of the activation behind it) of layers that are no more than that."""
    norm, slope, activations = None, 1.0, 0
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d) and norm is None and activations == 0:
            norm = layer
            continue
        found = activation_slope(layer)
        if found is None or (activations and found != 1):
            raise Unsupported(f"the layer {layer}, or its place")
        activations += found != 1
        slope *= found
    return norm, slope


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    scale, shift = norm_affine(norm)
    return scale.float().contiguous(), shift.float().contiguous()

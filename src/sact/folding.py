"""Weight folding: a norm that directly follows a convolution becomes part of it. For inference only."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .units import Description, LinearConv, Scale, Stage


def fold_norms(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Stages that compute the same in evaluation mode with fewer norms.

    A norm at the start of a stage follows the previous stage's convolution directly, so its scale and shift move into
    that convolution's weight and bias. The first stage's norm (pre-activation) has no convolution before it and stays.
    """
    folded = list(stages)
    for index in range(len(folded) - 1):
        following = folded[index + 1]
        if following.pointwise and isinstance(following.pointwise[0], nn.BatchNorm2d):
            norm = following.pointwise[0]
            here = folded[index]
            folded[index] = Stage(here.pointwise, fold_norm(here.conv, norm), here.reach)
            folded[index + 1] = Stage(following.pointwise[1:], following.conv, following.reach)
    return tuple(folded)


def fold(description: Description) -> Description:
    """What computes the same in evaluation mode with fewer norms, those behind the last convolution among them."""
    stages, tail = fold_norms(description.stages), list(description.tail)
    while stages and tail and isinstance(norm := tail[0], (nn.BatchNorm2d, Scale)):
        last, tail = stages[-1], tail[1:]
        stages = (*stages[:-1], Stage(last.pointwise, fold_norm(last.conv, norm), last.reach))
    return Description(description.everywhere, stages, tuple(tail), description.post)


@torch.no_grad()
def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d | Scale) -> nn.Conv2d:
    """A convolution equal to `norm(conv(x))` with the norm in evaluation mode."""
    scale, shift = (norm.factors, None) if isinstance(norm, Scale) else norm_affine(norm)
    if isinstance(conv, LinearConv):
        merged = nn.Conv2d(conv.in_channels, conv.out_channels, 1, device=conv.weight.device, dtype=conv.weight.dtype)
    else:
        merged = copy.deepcopy(conv)
    merged.weight.copy_(conv.weight * scale[:, None, None, None])
    bias = shift if conv.bias is None else conv.bias * scale + (0 if shift is None else shift)
    merged.bias = None if bias is None else nn.Parameter(bias.clone())
    return merged.requires_grad_(False)


def activation_slope(layer: nn.Module) -> float | None:
    """The slope in [0, 1] of an activation where its input is negative: x for x > 0, else slope x. None: no such.

    ReLU has 0, no activation at all 1.
    """
    if isinstance(layer, nn.Identity):
        return 1.0
    if isinstance(layer, nn.ReLU):
        return 0.0
    if isinstance(layer, nn.LeakyReLU) and 0 <= layer.negative_slope <= 1:
        return float(layer.negative_slope)
    return None


def norm_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(scale, shift), each [C], such that the norm in evaluation mode is x * scale + shift."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift + norm.bias if norm.affine else shift

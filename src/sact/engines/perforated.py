"""A chain of stages at active positions only, and at those around them that a later convolution reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..flops import dilate
from ..folding import activation_slope, norm_affine
from ..layers import BatchNorm2d
from ..units import Scale, Stage
from ..units import on_map as on_map
from .ops import perforated_conv

ELEMENTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.Tanh,
    nn.ELU,
)
"""Layers that take a tensor of any shape."""


class Positions:
    """The active positions and those around them, as ascending lists of their numbers in the batch.

    Under torch.compile, which wants lengths that do not depend on values, lists are as long as there are positions, and
    end with -1.

    Args:
        active: bool [N, H, W].
    """

    def __init__(self, active: Tensor) -> None:
        self.active = active
        self._at: dict[int, Tensor] = {}

    def at(self, reach: int) -> Tensor:
        """Positions within `reach` of an active one, int64."""
        if reach not in self._at:
            wanted = dilate(self.active, reach).flatten()
            if torch.compiler.is_compiling():
                self._at[reach] = torch.nonzero_static(wanted, size=wanted.numel())[:, 0]
            else:
                self._at[reach] = wanted.nonzero()[:, 0]
        return self._at[reach]

    def table(self, held: Tensor | None, wanted: Tensor, kernel: int) -> Tensor:
        """Which rows a convolution reads, for `sact::perforated_conv`.

        Args:
            held: the positions that the rows of values stand for; None where they stand for all.
            wanted: the positions of the outputs.
            kernel: side of the convolution.

        Returns:
            int64 [len(wanted), kernel kernel], -1 outside the image and where no value is held.
        """
        count, height, width = self.active.shape
        row_of = wanted.new_full((self.active.numel() + 1,), -1)
        if held is None:
            torch.arange(self.active.numel(), out=row_of[:-1])
        else:
            row_of[held] = torch.arange(len(held), device=held.device)
            row_of[-1] = -1  # where the -1 of a list of fixed length point
        if kernel == 1:
            return row_of[wanted][:, None]
        margin = kernel // 2
        padded = F.pad(row_of[:-1].view(count, height, width), (margin,) * 4, value=-1)
        pitch = width + 2 * margin
        image, y, x = wanted // (height * width), wanted // width % height, wanted % width
        corner = (image * (height + 2 * margin) + y) * pitch + x
        steps = torch.arange(kernel, device=wanted.device)
        taps = (steps[:, None] * pitch + steps).flatten()
        if not torch.compiler.is_compiling():
            return padded.flatten()[corner[:, None] + taps]
        inside = wanted[:, None] >= 0
        return torch.where(inside, padded.flatten()[torch.where(inside, corner[:, None] + taps, 0)], -1)


def perforated(stages: Sequence[Stage], rows: Tensor, held: Tensor | None, positions: Positions) -> Tensor:
    """Evaluate a chain of stages at the active positions, and at their neighbours where a later stage reads those.

    Norms in training mode take their statistics over the positions that are read.

    Args:
        stages: stride-1 convolutions with zero padding and the position-wise layers before them.
        rows: states [P, C].
        held: their positions, int64 [P]; None where they are all there are.
        positions: the active positions.

    Returns:
        [A, C'], exactly the dense chain's values at the active positions (with norms in evaluation mode).

    Source: section 3.2, the perforated convolutional layer.
    """
    values = rows
    for stage in stages:
        wanted = positions.at(stage.reach)
        kernel = stage.conv.kernel_size[0]
        in_place = kernel == 1 and held is wanted and not torch.compiler.is_compiling()
        table = None if in_place else positions.table(held, wanted, kernel)
        if has_training_norm(stage):
            read = positions.at(stage.in_reach)
            if held is not read:  # only what is read may count
                values = values.index_select(0, positions.table(held, read, 1)[:, 0].clamp(min=0))
                table = positions.table(read, wanted, kernel)
            values = convolve(stage, values, table, listed=read)
        else:
            values = convolve(stage, values, table)
        held = wanted
    return values


def convolve(
    stage: Stage, values: Tensor, table: Tensor | None, listed: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """One stage at listed positions.

    Args:
        stage: what to compute.
        values: [B, C].
        table: which of them are read, see `sact::perforated_conv`.
        listed: the positions of the values, for norms in training mode.
        weight: [C', C, k, k] instead of the stage's own, without bias.

    Returns:
        [A, C'].
    """
    layers = [layer for layer in stage.pointwise if not isinstance(layer, nn.Identity)]
    norm = scale = shift = None
    slope = 1.0
    if layers and (found := activation_slope(layers[-1])) is not None:
        slope = found
        layers.pop()
    if layers and isinstance(layers[-1], nn.BatchNorm2d):
        norm = layers.pop()
    for layer in layers:
        values = pointwise(layer, values, listed)
    if isinstance(norm, nn.BatchNorm2d):
        scale, shift = affine(norm, values, listed)
    bias = stage.conv.bias if weight is None else None
    weight = stage.conv.weight if weight is None else weight
    if scale is not None and shift is not None and slope == 1 and weight.shape[1:] == (len(scale), 1, 1):
        # A norm right before a 1x1 convolution is a part of it: no pass over the values.
        moved = weight.to(scale.dtype)
        added = (moved[:, :, 0, 0] * shift).sum(1)
        weight = (moved * scale[:, None, None]).to(weight.dtype)
        bias = (added if bias is None else added + bias).to(weight.dtype)
        scale = shift = None
    if torch.is_autocast_enabled(values.device.type):
        dtype = torch.get_autocast_dtype(values.device.type)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    return perforated_conv(values, table, weight, bias, scale, shift, slope)


def pointwise(layer: nn.Module, values: Tensor, listed: Tensor | None) -> Tensor:
    """A norm or an activation, of rows [B, C]."""
    if isinstance(layer, nn.BatchNorm2d):
        scale, shift = affine(layer, values, listed)
        return torch.addcmul(shift, values.to(scale.dtype), scale).to(values.dtype)
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(values, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
    if isinstance(layer, Scale):
        return values * layer.factors
    if isinstance(layer, ELEMENTWISE):
        elementwise: Tensor = layer(values)
        return elementwise
    pixels: Tensor = layer(values[:, :, None, None])  # somebody's own layer, made for maps
    return pixels[:, :, 0, 0]


def affine(norm: nn.BatchNorm2d, values: Tensor, listed: Tensor | None) -> tuple[Tensor, Tensor]:
    """(scale, shift), each [C], float32 or wider, such that the norm of values is values * scale + shift.

    In training mode, of the statistics of these values [B, C] (without those that `listed` has as -1), by which the
    running ones are moved.
    """
    if not norm.training or len(values) == 0:  # of nothing there are no statistics
        scale, shift = norm_affine(norm)
        return (scale, shift) if scale.dtype == torch.float64 else (scale.float(), shift.float())
    values = values if values.dtype == torch.float64 else values.float()
    if torch.compiler.is_compiling() and listed is not None:
        real = (listed >= 0)[:, None].to(values.dtype)
        count = real.sum()
        divisor = count.clamp(min=1)
        mean = (values * real).sum(0) / divisor
        variance = ((values - mean).square() * real).sum(0) / divisor
    else:
        count = torch.tensor(float(len(values)), device=values.device)
        variance, mean = torch.var_mean(values, 0, correction=0)
    move_statistics(norm, mean, variance, count)
    scale = torch.rsqrt(variance + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
    shift = -mean * scale
    return scale, shift + norm.bias if norm.affine else shift


@torch.no_grad()
def move_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Move a norm's running statistics by those of a batch, as its own forward pass does."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    seen = count > 0
    norm.num_batches_tracked.add_(seen)
    share = seen * (1.0 / norm.num_batches_tracked.clamp(min=1) if norm.momentum is None else norm.momentum)
    if not isinstance(norm, BatchNorm2d):  # PyTorch's own keeps the unbiased variance
        variance = variance * count / (count - 1).clamp(min=1)
    for running, new in ((norm.running_mean, mean), (norm.running_var, variance)):
        running.copy_(running + share * (new - running).to(running.dtype))


def has_training_norm(stage: Stage) -> bool:
    """Whether the stage's norm takes its statistics from what it is given."""
    return any(isinstance(layer, nn.BatchNorm2d) and layer.training for layer in stage.pointwise)

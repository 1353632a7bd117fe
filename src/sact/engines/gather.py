"""Perforated evaluation in plain PyTorch: gather active positions, multiply, scatter. Any device, differentiable.

States live as rows [P, C], one row per position of the batch (P = N H W): a channels-last picture read as a matrix. A
convolution at listed positions gathers k x k rows for each and is one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import halting
from ..block import Block
from ..flops import dilate
from ..folding import fold_norms
from ..ponder import BlockPonder, Ponder
from ..scores import PositionScore, to_score
from ..units import Stage, describe
from . import Run
from .watch import Watch

if TYPE_CHECKING:
    from ..models.network import Network

DENSE_SHARE = 0.5
"""Share of active positions above which a unit runs dense: there gathering costs more than it saves."""

SMALL_INPUT = 1 << 17
"""Numbers in a block's input below which it runs by the definition: gathering so little costs more than it saves."""


class Chains(NamedTuple):
    """One unit of a SACT block as this engine reads it.

    Attributes:
        branch: the unit's stages, or None where the unit cannot be evaluated perforated.
        score: the stages of the score head's local branch, or None behind the last unit.
    """

    branch: tuple[Stage, ...] | None
    score: tuple[Stage, ...] | None


def prepare(model: Network, freeze: bool = False) -> Run:
    """Evaluate the blocks of a network at active positions (SACT) or images (ACT) only.

    At inference norms are folded into convolutions, again whenever the weights have changed, unless they are frozen.
    """
    folded: dict[Block, tuple[Watch | None, list[Chains]]] = {}

    def chains_of(block: Block) -> list[Chains]:
        if torch.is_grad_enabled():
            return read_chains(block)
        watch, chains = folded.get(block, (None, None))
        if chains is None or (watch is not None and not watch.unchanged()):
            chains = read_chains(block, fold=True)
            folded[block] = None if freeze else Watch(block), chains
        return chains

    def run_block(block: Block, x: Tensor, keep_distribution: bool = False) -> tuple[Tensor, BlockPonder]:
        # Before looking through the block's norms, which takes longer than a small block's units.
        if block.halting == "none" or (block.halting == "sact" and x.numel() < SMALL_INPUT):
            return block(x, keep_distribution)
        if any(module.training for module in block.modules() if isinstance(module, nn.BatchNorm2d)):
            return block(x, keep_distribution)  # statistics are over all positions
        if block.halting == "act":
            return run_images(block, x, keep_distribution)
        return run_positions(block, chains_of(block), x, keep_distribution)

    def run(images: Tensor, *, keep_distribution: bool = False) -> tuple[Tensor | list[Tensor], Ponder]:
        return model.run(images, run_block, keep_distribution)

    return run


def read_chains(block: Block, fold: bool = False) -> list[Chains]:
    """The described chains of a SACT block, one entry per unit; with norms folded if asked for."""
    chains = []
    for unit, head in zip(block.units, [*block.scores, None], strict=True):
        stages = unit.stages()
        branch = stages if unit.keeps_state and all(_is_plain(stage.conv) for stage in stages) else None
        if branch is not None and fold:
            branch = fold_norms(branch)
        chains.append(Chains(branch, describe(head.local()) if isinstance(head, PositionScore) else None))
    return chains


def run_images(block: Block, x: Tensor, keep_distribution: bool) -> tuple[Tensor, BlockPonder]:
    """ACT: halted images leave the batch; the loop ends when none is left."""
    in_size = x.shape[-2:]
    state = halting.start(x[:, 0, 0, 0])
    going = torch.arange(len(x), device=x.device)
    output: Tensor | None = None
    weights: list[Tensor] = []
    for index, (unit, head) in enumerate(zip(block.units, [*block.scores, None], strict=True)):
        x = unit(x)
        score = None if head is None else block.decide(_place(head(x), going, state.remainder), index)
        state, weight = halting.step(state, score, block.eps)
        if output is None:
            output = torch.zeros_like(x, dtype=state.remainder.dtype)
        output = output.index_add(0, going, weight[going][:, None, None, None] * x)
        if keep_distribution:
            weights.append(weight)
        still = state.active[going].nonzero()[:, 0]
        if not len(still):
            break
        x, going = x[still], going[still]
    assert output is not None
    distribution = _stack(weights, len(block.units)) if keep_distribution else None
    return output.to(x.dtype), block.ponder(state, in_size, output.shape[-2:], distribution)


def run_positions(
    block: Block, chains: Sequence[Chains], x: Tensor, keep_distribution: bool
) -> tuple[Tensor, BlockPonder]:
    """SACT: each unit, score and weighted sum is evaluated at the active positions only."""
    in_size = x.shape[-2:]
    x = block.units[0](x)
    count, channels, height, width = x.shape
    area = height * width
    state = halting.start(x[:, 0])
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
    wide = state.remainder.dtype
    mean = x.mean((2, 3), dtype=wide)  # for the global score; later units update it with what they change
    output = torch.zeros_like(rows, dtype=wide)
    weights: list[Tensor] = []
    for index, (unit, head, chain) in enumerate(zip(block.units, [*block.scores, None], chains, strict=True)):
        listed = state.active.flatten().nonzero()[:, 0]
        if not len(listed):
            break
        if unit is not block.units[0]:
            if chain.branch is None or len(listed) > DENSE_SHARE * len(rows):
                picture = unit(_as_picture(rows, count, height, width), state.active)
                rows, mean = picture.permute(0, 2, 3, 1).reshape(-1, channels), picture.mean((2, 3), dtype=wide)
            else:
                residual = perforated(chain.branch, rows, state.active, listed)
                rows = _add_rows(rows, listed, residual)
                mean = mean.index_add(0, listed // area, residual.to(wide) / area)
        score = None
        if head is not None and chain.score is not None:
            local = perforated(chain.score, rows, state.active, listed)[:, 0]
            logit = local + head.pooled(mean.to(x.dtype)[:, :, None, None])[listed // area]
            score = block.decide(_place(to_score(logit), listed, state.remainder), index)
        state, weight = halting.step(state, score, block.eps)
        output = _add_rows(output, listed, weight.flatten()[listed][:, None] * rows[listed])
        if keep_distribution:
            weights.append(weight)
    distribution = _stack(weights, len(block.units)) if keep_distribution else None
    picture = _as_picture(output.to(x.dtype), count, height, width)
    return picture, block.ponder(state, in_size, (height, width), distribution)


def perforated(stages: Sequence[Stage], rows: Tensor, active: Tensor, listed: Tensor) -> Tensor:
    """Evaluate a chain of stages at the active positions, and at their neighbours where a later stage reads those.

    Args:
        stages: stride-1 convolutions with zero padding and the position-wise layers before them.
        rows: states [P, C] of all positions.
        active: bool [N, H, W], P = N H W.
        listed: indices of the active positions, int64 [A], ascending.

    Returns:
        [A, C'], exactly the dense chain's values there.

    Source: section 3.2, the perforated convolutional layer.
    """
    listed_at = {0: listed}

    def listing(reach: int) -> Tensor:
        if reach not in listed_at:
            listed_at[reach] = dilate(active, reach).flatten().nonzero()[:, 0]
        return listed_at[reach]

    values = rows[listing(stages[0].in_reach)]
    for stage in stages:
        for layer in stage.pointwise:
            values = _pointwise(layer, values)
        if stage.in_reach == stage.reach:
            values = F.linear(values, stage.conv.weight.flatten(1), stage.conv.bias)
        else:
            neighbours = _neighbours(listing(stage.in_reach), listing(stage.reach), active.shape, stage.conv)
            values = _convolve(values, neighbours, stage.conv)
    return values


def _convolve(values: Tensor, neighbours: Tensor, conv: nn.Conv2d) -> Tensor:
    """A k x k convolution of rows [B, C] at the positions whose neighbours are listed, [A, k k] -> [A, C']."""
    values = torch.cat([values, values.new_zeros(1, values.shape[1])])
    taps = conv.weight.permute(2, 3, 0, 1).flatten(0, 1)  # [k k, C', C]
    if conv.out_channels * len(taps) > conv.in_channels:
        return F.linear(values[neighbours].flatten(1), taps.transpose(0, 1).flatten(1), conv.bias)
    # Few outputs (a score has one): multiplying before gathering moves k k C' numbers per position instead of k k C.
    products = F.linear(values, taps.flatten(0, 1)).view(-1, conv.out_channels)
    rows = neighbours * len(taps) + torch.arange(len(taps), device=neighbours.device)
    result = products[rows].sum(1)
    return result if conv.bias is None else result + conv.bias


def _neighbours(at: Tensor, wanted: Tensor, shape: Sequence[int], conv: nn.Conv2d) -> Tensor:
    """For each wanted position its k x k neighbours as row numbers of a list of values at `at`, [len(wanted), k k].

    Outside the image, and where there is no value, the number is len(at): a row of zeros is to stand there.
    """
    count, height, width = shape
    kernel = conv.kernel_size[0]
    margin = kernel // 2
    row_of = at.new_full((count, height, width), len(at))
    row_of.view(-1)[at] = torch.arange(len(at), device=at.device)
    row_of = F.pad(row_of, (margin,) * 4, value=len(at))
    pitch = width + 2 * margin
    image, y, x = wanted // (height * width), wanted // width % height, wanted % width
    corner = (image * (height + 2 * margin) + y) * pitch + x
    steps = torch.arange(kernel, device=at.device)
    return row_of.flatten()[corner[:, None] + (steps[:, None] * pitch + steps).flatten()]


def _pointwise(layer: nn.Module, values: Tensor) -> Tensor:
    if isinstance(layer, nn.BatchNorm2d):
        return F.batch_norm(values, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)
    return layer(values)


def _add_rows(rows: Tensor, listed: Tensor, values: Tensor) -> Tensor:
    """rows[listed] += values; in place at inference, where no one else holds the rows."""
    values = values.to(rows.dtype)
    return rows.index_add(0, listed, values) if torch.is_grad_enabled() else rows.index_add_(0, listed, values)


def _place(values: Tensor, listed: Tensor, like: Tensor) -> Tensor:
    """Values at the listed elements of a tensor shaped like `like`, zero elsewhere."""
    return torch.zeros_like(like).flatten().index_put((listed,), values.to(like.dtype)).view_as(like)


def _as_picture(rows: Tensor, count: int, height: int, width: int) -> Tensor:
    return rows.view(count, height, width, -1).permute(0, 3, 1, 2)


def _stack(weights: list[Tensor], length: int) -> Tensor:
    """Weights of the units that ran as a halting distribution of all L units."""
    return torch.stack([*weights, *[torch.zeros_like(weights[0])] * (length - len(weights))], 1)


def _is_plain(conv: nn.Conv2d) -> bool:
    kernel = conv.kernel_size[0]
    return (
        conv.kernel_size == (kernel, kernel)
        and kernel % 2 == 1
        and conv.stride == (1, 1)
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding == (kernel // 2, kernel // 2)
    )

"""Perforated evaluation in PyTorch: only active positions are normalised, gathered and multiplied. It trains.

States live as rows [P, C], one row per position of the batch (P = N H W): a channels-last picture read as a matrix. A
convolution at listed positions reads k x k rows for each and is one matrix product, see `ops.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import halting
from ..block import Block, RunBlock
from ..cap import Allowance
from ..folding import fold as fold_description
from ..halting import HaltingState
from ..ponder import BlockPonder, Ponder
from ..scores import PositionScore, to_score
from ..units import BaseUnit, Description, Stage, describe, on_map
from . import NormStatistics, Run
from .ops import wide_type
from .perforated import Positions, convolve, has_training_norm, perforated, pointwise
from .watch import Watch

if TYPE_CHECKING:
    from ..models.adaptive import AdaptiveNetwork

DENSE_SHARE = 0.5
"""Share of active positions above which a unit runs dense at inference: there gathering costs more than it saves."""

SMALL_INPUT = 1 << 17
"""Numbers in a block's input below which it runs by the definition: gathering so little costs more than it saves."""

FEW_CHANNELS = 64
"""Channels of a block's states below which it trains by the definition, for the same reason."""


_RANDOM = ("Dropout", "Dropout2d", "DropPath", "StochasticDepth", "DropBlock2d")
"""Layers of PyTorch, torchvision and timm that do something in training mode alone."""


class Chains(NamedTuple):
    """One unit of a SACT block as this engine reads it.

    Attributes:
        branch: the unit's description, or None where the unit cannot be evaluated perforated.
        score: the stages of the score head's local branch, or None behind the last unit.
    """

    branch: Description | None
    score: tuple[Stage, ...] | None


def prepare(model: AdaptiveNetwork, freeze: bool = False, norm_statistics: NormStatistics = "all") -> Run:
    """Evaluate the blocks of a network at active positions (SACT) or images (ACT) only.

    At inference norms are folded into convolutions, again whenever the weights have changed, unless they are frozen.
    Norms in training mode take their statistics over all positions, hence a block with such runs by the definition;
    with "active" a SACT block is perforated all the same, and they are over the positions that are read.
    """
    run_block = block_runner(freeze, norm_statistics)

    def run(images: Tensor, *, keep_distribution: bool = False) -> tuple[Tensor | list[Tensor], Ponder]:
        return model.run(images, run_block, keep_distribution)

    return run


def block_runner(freeze: bool = False, norm_statistics: NormStatistics = "all") -> RunBlock:
    """What `prepare` does, block by block, of any network."""
    folded: dict[Block, tuple[Watch | None, list[Chains]]] = {}

    def chains_of(block: Block) -> list[Chains]:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or _trains(block):
            return read_chains(block)
        watch, chains = folded.get(block, (None, None))
        if chains is None or (watch is not None and not watch.unchanged()):
            chains = read_chains(block, fold=True)
            folded[block] = None if freeze else Watch(block), chains
        return chains

    def run_block(
        block: Block, x: Tensor, keep_distribution: bool = False, allowance: Allowance | None = None
    ) -> tuple[Tensor, BlockPonder]:
        compiling = torch.compiler.is_compiling()
        if block.halting == "none":
            return block(x, keep_distribution)
        if norm_statistics == "active" and block.halting == "sact" and _trains(block):
            return run_positions(block, chains_of(block), x, keep_distribution, allowance)
        # Before looking through the block's norms, which takes longer than a small block's units.
        if (block.halting == "sact" and _is_small(block, x)) or _trains(block):
            return block(x, keep_distribution, allowance)
        if block.halting == "act":  # whose batches shrink: torch.compile would have to look at values
            return (block if compiling else partial(run_images, block))(x, keep_distribution, allowance)
        return run_positions(block, chains_of(block), x, keep_distribution, allowance)

    return run_block


def _is_small(block: Block, x: Tensor) -> bool:
    return x.numel() < SMALL_INPUT or (torch.is_grad_enabled() and block.units[0].out_channels < FEW_CHANNELS)


def _trains(block: Block) -> bool:
    """Whether norms take statistics of what they are given, or layers drop at random what they are given."""
    if any(layer.training for unit in block.units for layer in unit.random):
        return True
    return any(module.training for module in block.modules() if isinstance(module, nn.BatchNorm2d) or _drops(module))


def _drops(module: nn.Module) -> bool:
    return type(module).__name__ in _RANDOM


def read_chains(block: Block, fold: bool = False) -> list[Chains]:
    """The described chains of a SACT block, one entry per unit; with norms folded if asked for."""
    chains = []
    for unit, head in zip(block.units, [*block.scores, None], strict=True):
        branch = unit.description() if unit.keeps_state else None
        if branch is not None and not branch.is_perforable:
            branch = None
        if branch is not None and fold:
            branch = fold_description(branch)
        chains.append(Chains(branch, describe(head.local()).stages if isinstance(head, PositionScore) else None))
    return chains


def run_images(
    block: Block, x: Tensor, keep_distribution: bool, allowance: Allowance | None = None
) -> tuple[Tensor, BlockPonder]:
    """ACT: halted images leave the batch; the loop ends when none is left, or to record gradients goes on."""
    in_size = x.shape[-2:]
    state = halting.start(x[:, 0, 0, 0])
    going = torch.arange(len(x), device=x.device)
    output: Tensor | None = None
    weights: list[Tensor] = []
    for index, (unit, head) in enumerate(zip(block.units, [*block.scores, None], strict=True)):
        x = unit(x)
        score = None
        if head is not None:
            score = block.decide(_place(head(x, block.score_shift), going, state.remainder), index)
        state, weight = halting.step(state, score, block.eps, block.limit(allowance, index, x))
        if output is None:
            output = torch.zeros_like(x, dtype=state.remainder.dtype)
        output = output.index_add(0, going, weight[going][:, None, None, None] * x)
        if keep_distribution:
            weights.append(weight)
        still = state.active[going].nonzero()[:, 0]
        if not len(still) and not torch.is_grad_enabled():
            break
        x, going = x[still], going[still]
    assert output is not None
    distribution = _stack(weights, len(block.units)) if keep_distribution else None
    return output.to(x.dtype), block.ponder(state, in_size, output.shape[-2:], distribution)


@dataclass
class States:
    """What a SACT block holds while it runs.

    Attributes:
        size: (N, H, W).
        rows: states [P, C].
        held: their positions, int64 [P] ascending; None where they are all there are.
        output: the block's output so far, [N H W, C], float32 or wider.
        mean: the mean state of each image, for the global score, [N, C], float32 or wider.
    """

    size: tuple[int, int, int]
    rows: Tensor
    held: Tensor | None
    output: Tensor
    mean: Tensor

    @classmethod
    def of(cls, x: Tensor) -> States:
        """Those behind the first unit, whose states [N, C, H, W] are also the output so far."""
        rows, wide = _as_rows(x), wide_type(x.dtype)
        size = x.shape[0], x.shape[2], x.shape[3]
        return cls(size, rows, None, rows.to(wide, copy=True), x.mean((2, 3), dtype=wide))

    def picture(self, rows: Tensor) -> Tensor:
        """Rows of all positions as [N, C, H, W], channels last."""
        return rows.view(*self.size, -1).permute(0, 3, 1, 2)


def run_positions(
    block: Block, chains: Sequence[Chains], x: Tensor, keep_distribution: bool, allowance: Allowance | None = None
) -> tuple[Tensor, BlockPonder]:
    """SACT: each unit and score is evaluated at the active positions only.

    The output, the sum of p^l x^l, is accumulated as x^1 + sum of R^l (x^l - x^{l-1}), R^l being the remainder before
    unit l: the same, since the p^l from l on sum to R^l, and it reads nothing but what a unit has just added.
    """
    in_size = x.shape[-2:]
    x = block.units[0](x)
    states = States.of(x)
    state = halting.start(x[:, 0])
    weights: list[Tensor] = []
    # Otherwise every unit is listed, and takes its turn even where nothing is active: gradients and statistics want it.
    is_inference = not (torch.is_grad_enabled() or torch.compiler.is_compiling() or _trains(block))
    lets_go = torch.is_grad_enabled() and block.output == "mean" and all(map(_reads_listed, chains[1:]))
    for index, (unit, head, chain) in enumerate(zip(block.units, [*block.scores, None], chains, strict=True)):
        positions = Positions(state.active)
        if is_inference and not len(positions.at(0)):
            break
        if index > 0 and (chain.branch is None or (is_inference and _is_dense(states, positions))):
            add_everywhere(states, unit, state)
        elif index > 0:
            reach = _reach_from(chains[index:]) if lets_go else None
            add_listed(states, chain, positions, state.remainder, reach)
        score = None
        if head is not None and chain.score is not None:
            local = _local_logits(chain.score[0], states.rows, states.held, positions)
            pooled = head.pooled(states.mean.to(x.dtype)[:, :, None, None])
            score = block.decide(to_score(local + pooled[:, None, None], block.score_shift), index)
        state, weight = halting.step(state, score, block.eps, block.limit(allowance, index, x))
        if keep_distribution:
            weights.append(weight)
    distribution = _stack(weights, len(block.units)) if keep_distribution else None
    mean = states.picture(states.output.to(x.dtype))
    output = mean if block.output == "mean" else block.give(mean, states.picture(states.rows))
    return output, block.ponder(state, in_size, x.shape[-2:], distribution)


def add_everywhere(states: States, unit: BaseUnit, state: HaltingState) -> None:
    """A unit computed at all positions, and kept where they are active."""
    picture = unit(states.picture(states.rows), state.active)
    rows = _as_rows(picture)
    states.output = states.output + (state.remainder * state.active).flatten()[:, None] * (rows - states.rows)
    states.rows, states.mean = rows, picture.mean((2, 3), dtype=states.mean.dtype)


def add_listed(
    states: States, chain: Chains, positions: Positions, remainder: Tensor, reach: int | None = None
) -> None:
    """A unit at the active positions.

    While gradients are recorded, states further than `reach` from an active position are let go, as nothing will read
    them again; so what is kept for the backward pass falls with the share, too. None lets nothing go.
    """
    assert chain.branch is not None
    branch, listed = chain.branch, positions.at(0)
    values, held = states.rows, states.held
    if branch.everywhere:
        x = states.picture(values)
        for layer in branch.everywhere:
            x = on_map(layer, x)
        values = _as_rows(x)
    residual = perforated(branch.stages, values, held, positions)
    for layer in branch.tail:
        residual = pointwise(layer, residual, listed)
    if branch.post:
        before = states.rows.index_select(0, positions.table(states.held, listed, 1)[:, 0].clamp(min=0))
        after = before + residual
        for layer in branch.post:
            after = pointwise(layer, after, listed)
        residual = after - before
    at = listed.clamp(min=0) if torch.compiler.is_compiling() else listed
    states.output.index_add_(0, at, remainder.flatten().index_select(0, at)[:, None] * residual)
    count, height, width = states.size
    added = _image_sums(residual.to(states.mean.dtype), at, count, height * width)
    states.mean = states.mean + added / (height * width)
    if torch.is_grad_enabled():  # the states before the unit are part of the record
        if reach is not None and not torch.compiler.is_compiling():
            wanted = positions.at(reach)
            states.rows = states.rows.index_select(0, positions.table(states.held, wanted, 1)[:, 0])
            states.held = wanted
        else:
            states.rows = states.rows.clone()
    place = at if states.held is None else positions.table(states.held, listed, 1)[:, 0]
    states.rows.index_add_(0, place, residual.to(states.rows.dtype))


def _reads_listed(chain: Chains) -> bool:
    """Whether a unit reads no more than the positions around the active ones."""
    return chain.branch is not None and not chain.branch.everywhere


def _reach_from(chains: Sequence[Chains]) -> int:
    """How far around an active position these units and scores read."""
    branches = [chain.branch.stages for chain in chains if chain.branch is not None]
    scores = [chain.score for chain in chains if chain.score is not None]
    return max(stages[0].in_reach for stages in [*branches, *scores])


def _is_dense(states: States, positions: Positions) -> bool:
    return len(positions.at(0)) > DENSE_SHARE * len(states.rows)


def _as_rows(picture: Tensor) -> Tensor:
    return picture.permute(0, 2, 3, 1).flatten(0, 2)


def _local_logits(stage: Stage, rows: Tensor, held: Tensor | None, positions: Positions) -> Tensor:
    """The score head's 3x3 convolution, [N, H, W]; right at active positions, arbitrary elsewhere.

    There is one output, hence each row is first multiplied by the weights of all taps, and the products are gathered:
    that moves k k numbers per position instead of k k C.
    """
    conv = stage.conv
    kernel, margin = conv.kernel_size[0], conv.kernel_size[0] // 2
    count, height, width = positions.active.shape
    read = positions.at(stage.in_reach)
    table = None if held is read else positions.table(held, read, 1)
    if table is not None and has_training_norm(stage):  # only what is read may count
        rows, table = rows.index_select(0, table[:, 0].clamp(min=0)), None
    taps = conv.weight[0].permute(1, 2, 0).reshape(-1, conv.in_channels, 1, 1)
    products = convolve(stage, rows, table, listed=read, weight=taps)
    spread = products.new_zeros(count * height * width, kernel * kernel)
    spread = spread.index_add(0, read.clamp(min=0), products)
    spread = F.pad(spread.view(count, height, width, -1), (0, 0, *(margin,) * 4))
    logits = sum(spread[:, tap // kernel :, tap % kernel :, tap][:, :height, :width] for tap in range(kernel * kernel))
    assert isinstance(logits, Tensor)
    return logits if conv.bias is None else logits + conv.bias


def _image_sums(values: Tensor, at: Tensor, count: int, area: int) -> Tensor:
    """Sums [count, C] over images of rows [A, C] at these positions, int64 [A], of `area` positions each."""
    if not values.is_cuda:
        return values.new_zeros(count, values.shape[1]).index_add(0, at // area, values)
    # There index_add would add the rows of an image in an order of its own, and slowly.
    return values.new_zeros(count * area, values.shape[1]).index_add(0, at, values).view(count, area, -1).sum(1)


def _place(values: Tensor, listed: Tensor, like: Tensor) -> Tensor:
    """Values at the listed elements of a tensor shaped like `like`, zero elsewhere."""
    return torch.zeros_like(like).flatten().index_put((listed,), values.to(like.dtype)).view_as(like)


def _stack(weights: list[Tensor], length: int) -> Tensor:
    """Weights of the units that ran as a halting distribution of all L units."""
    return torch.stack([*weights, *[torch.zeros_like(weights[0])] * (length - len(weights))], 1)

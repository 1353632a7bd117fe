"""A block: units of one resolution, run with halting. `Block.forward` is the method's page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from . import halting
from .cap import Allowance
from .flops import BlockFlops
from .ponder import BlockPonder
from .scores import Halting, ScoreHead
from .units import BaseUnit

OutputRule = Literal["mean", "halted"]
"""What a block gives: the paper's weighted sum of the states, or the state in which each position stopped."""
OUTPUT_RULES = ("mean", "halted")


class RunBlock(Protocol):
    """A way to evaluate a block. Every engine that works block by block is one of these."""

    def __call__(
        self, block: Block, x: Tensor, keep_distribution: bool = False, allowance: Allowance | None = None
    ) -> tuple[Tensor, BlockPonder]: ...


class Block(nn.Module):
    """Units that share one resolution after the first, and a score head behind each but the last.

    Args:
        units: at least one.
        scores: one head fewer than units; empty in a plain network.
        halting: "none", "act" or "sact".
        eps: a position halts once its cumulative score reaches 1 - eps.
        output: "mean" is the method; "halted", for networks whose later layers were trained on last states and stay as
            they are, gives the state in which each position stopped, with the gradient of the mean (straight-through).

    Attributes:
        forced_units: units to run instead of what the scores say, int [N, H, W] (SACT) or [N] (ACT), or of any shape
            that expands to it; every engine obeys. For measuring untrained networks; None in use.
        score_shift: added to the logit of every score, so that positions halt earlier (> 0) or later (< 0) than they
            were trained to; every engine obeys. See `sact.budget`.
    """

    units: Sequence[BaseUnit]
    scores: Sequence[ScoreHead]
    forced_units: Tensor | None
    score_shift: float = 0.0

    def __init__(
        self,
        units: Sequence[BaseUnit],
        scores: Sequence[ScoreHead],
        halting: Halting,
        eps: float,
        output: OutputRule = "mean",
    ) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)  # type: ignore[assignment]  # ModuleList does not say what it holds
        self.scores = nn.ModuleList(scores)  # type: ignore[assignment]
        self.halting = halting
        self.eps = eps
        self.output = output
        self.forced_units = None
        heads = [head.flops() for head in scores] or [(0, 0)] * (len(units) - 1)
        self._unit_flops = tuple(unit.flops(head) for unit, head in zip(units, [*heads, (0, 0)], strict=True))

    def forward(
        self, x: Tensor, keep_distribution: bool = False, allowance: Allowance | None = None
    ) -> tuple[Tensor, BlockPonder]:
        """Evaluate everything, keep what is active: the definition that every engine is tested against.

        Args:
            x: [N, C, H, W].
            keep_distribution: also return the halting distribution.
            allowance: what the images may still spend, under a cap.

        Returns:
            The weighted sum of the units' states [N, C', H', W'] (the last state in a plain network), and what it cost.

        Source: Algorithm 1 (section 3.1), at every position (section 3.2). The states are not stored.
        """
        in_size = x.shape[-2:]
        if self.halting == "none":
            for unit in self.units:
                x = unit(x)
            return x, self.plain_ponder(x, in_size)

        x = self.units[0](x)
        state = halting.start(x[:, 0] if self.halting == "sact" else x[:, 0, 0, 0])
        output, last = torch.zeros_like(x), x
        weights = []
        for index, (unit, head) in enumerate(zip(self.units, [*self.scores, None], strict=True)):
            if unit is not self.units[0]:
                x = unit(x, state.active if self.halting == "sact" else None)
                last = x if self.halting == "sact" else torch.where(state.active[:, None, None, None], x, last)
            score = None if head is None else self.decide(head(x, self.score_shift), index)
            state, weight = halting.step(state, score, self.eps, self.limit(allowance, index, x))
            output = output + weight.reshape(x.shape[0], 1, *(weight.shape[1:] or (1, 1))) * x
            if keep_distribution:
                weights.append(weight)
        distribution = torch.stack(weights, 1) if keep_distribution else None
        return self.give(output.to(x.dtype), last), self.ponder(state, in_size, x.shape[-2:], distribution)

    def give(self, mean: Tensor, halted: Tensor) -> Tensor:
        """The block's output, of the weighted sum of the states and the states at halting, both of one shape."""
        if self.output == "mean":
            return mean
        return mean + (halted - mean).detach() if torch.is_grad_enabled() and mean.requires_grad else halted

    def decide(self, score: Tensor, index: int) -> Tensor:
        """The score behind unit `index`: the head's, or the one that makes `forced_units` true."""
        if self.forced_units is None:
            return score
        return (self.forced_units.to(score.device) == index + 1).to(score.dtype).expand_as(score)

    def limit(self, allowance: Allowance | None, index: int, x: Tensor) -> halting.Limit | None:
        """What an allowance makes of those that would go on behind unit `index`, whose states are `x`."""
        if allowance is None or index + 1 == len(self.units):
            return None
        return partial(allowance.admit, self._unit_flops[index + 1], x.shape[-2:])

    def describe(self, in_size: Sequence[int], out_size: Sequence[int]) -> BlockFlops:
        """The block's FLOPs at these sizes of its input and output, each (H, W)."""
        return BlockFlops(self._unit_flops, (in_size[0], in_size[1]), (out_size[0], out_size[1]))

    def ponder(
        self,
        state: halting.HaltingState,
        in_size: Sequence[int],
        out_size: Sequence[int],
        distribution: Tensor | None = None,
    ) -> BlockPonder:
        """What an adaptive run cost, from its last halting state."""
        return BlockPonder(state.units, halting.ponder_cost(state), self.describe(in_size, out_size), distribution)

    def plain_ponder(self, x: Tensor, in_size: Sequence[int]) -> BlockPonder:
        """What a plain run cost: every unit, for every image."""
        units = torch.full((len(x),), len(self.units), dtype=torch.int32, device=x.device)
        flops = tuple(replace(unit, score_local=0, score_global=0) for unit in self._unit_flops)  # no head runs
        return BlockPonder(units, None, replace(self.describe(in_size, x.shape[-2:]), units=flops))

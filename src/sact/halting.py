"""Halting: the mathematics of ACT and SACT. Scores in; weights, remainders, ponder costs and active masks out.

One code serves whole images (ACT, shape [N]) and positions (SACT, shape [N, H, W]): nothing here mixes elements, so
"element" below means an image or a position. The symbols are the paper's (sections 3.1 and 3.2, Algorithm 1):

    h^l   halting score of unit l, in [0, 1]; h^L = 1, the last unit always halts
    N     = min { n : h^1 + ... + h^n >= 1 - eps }, the units evaluated
    R     = 1 - (h^1 + ... + h^{N-1}), the remainder
    p^l   = h^l for l < N, R for l = N, 0 after: the halting distribution, which weighs the states
    rho   = N + R, the ponder cost; only R carries a gradient
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

EPS = 0.01

Limit = Callable[[Tensor, Tensor], Tensor]
"""Who may go on, of those that would and their cumulative scores: bool, of the elements' shape."""


class HaltingState(NamedTuple):
    """What Algorithm 1 remembers between units; every field has one entry per element.

    Attributes:
        cumulative: float32, sum of the scores so far. Every halting decision is made on it.
        remainder: float32 (float64 in a float64 network), 1 - sum of the scores before the halting unit;
            differentiable.
        units: int32, units evaluated so far.
        active: bool, whether the next unit is to be evaluated.
    """

    cumulative: Tensor
    remainder: Tensor
    units: Tensor
    active: Tensor


def start(like: Tensor) -> HaltingState:
    """The state before the first unit: everything is active and nothing has been spent.

    Args:
        like: any tensor of the elements' shape and device, [N] or [N, H, W]; its dtype sets the remainder's.
    """
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    return HaltingState(
        cumulative=torch.zeros_like(like, dtype=torch.float32),
        remainder=torch.ones_like(like, dtype=wide),
        units=torch.zeros_like(like, dtype=torch.int32),
        active=torch.ones_like(like, dtype=torch.bool),
    )


def step(
    state: HaltingState, score: Tensor | None, eps: float = EPS, limit: Limit | None = None
) -> tuple[HaltingState, Tensor]:
    """One turn of Algorithm 1: account for the unit that was just evaluated where `state.active`.

    Scores of elements that are no longer active are ignored, gradients included.

    Args:
        state: the state before this unit.
        score: h^l in [0, 1], of the elements' shape; None for the last unit, whose score is 1 by definition.
        eps: in (0, 1).
        limit: stops elements that would go on, as if this were their last unit.

    Returns:
        The new state, and p^l: the weight of this unit's output, zero where it was not active.

    Source: Algorithm 1 (ACT); section 3.2 applies it at every position (SACT).
    """
    cumulative, remainder, units, active = state
    units = units + active
    if score is None:
        return HaltingState(cumulative, remainder, units, torch.zeros_like(active)), _where(active, remainder)

    score = score.to(remainder.dtype)
    cumulative = torch.where(active, cumulative + score.detach().float(), cumulative)
    goes_on = active & (cumulative < 1.0 - eps)
    if limit is not None:
        goes_on = limit(goes_on, cumulative)
    weight = _where(active, torch.where(goes_on, score, remainder))
    remainder = torch.where(goes_on, remainder - score, remainder)
    return HaltingState(cumulative, remainder, units, goes_on), weight


def ponder_cost(state: HaltingState) -> Tensor:
    """rho = N + R once everything has halted; d rho / d h^l = -1 for l < N, and 0 otherwise. In (1, L + 1]."""
    return state.units + state.remainder


def closed_form(scores: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor, Tensor]:
    """The definition of ACT (equations 4 to 8 of the paper's section 3.1), all units at once, to check `step` by.

    Args:
        scores: h^1 ... h^L along the last axis, [..., L], in [0, 1]; the last one is taken as 1 whatever it is.
        eps: in (0, 1).

    Returns:
        p [..., L], the halting distribution; N [...], int64; rho [...], the ponder cost.
    """
    last = torch.ones_like(scores[..., -1:])
    halts = torch.cat([scores[..., :-1].detach().float().cumsum(-1) >= 1.0 - eps, last.bool()], -1)
    n = halts.int().argmax(-1, keepdim=True)
    index = torch.arange(scores.shape[-1], device=scores.device)
    before = torch.where(index < n, scores, torch.zeros_like(scores))
    remainder = 1.0 - before.sum(-1, keepdim=True)
    distribution = torch.where(index == n, remainder, before)
    return distribution, n.squeeze(-1) + 1, (n + 1 + remainder).squeeze(-1)


def _where(mask: Tensor, values: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros_like(values))

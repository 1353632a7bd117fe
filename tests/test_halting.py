"""`sact.halting` against the definition: properties that hold for any scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sact import create_model, halting
from sact.errors import InputError

score = st.floats(0, 1, width=32)
rows = st.lists(score, min_size=1, max_size=9)
epsilons = st.sampled_from([1e-4, 0.01, 0.3, 0.9])

settings.register_profile("sact", deadline=None, max_examples=100)
settings.load_profile("sact")


def run(scores: Tensor, eps: float = halting.EPS) -> tuple[Tensor, Tensor, Tensor]:
    """`step` along the last axis of [..., L]: (p [..., L], N, rho), as `closed_form` returns them. h^L is not read."""
    state, weights = halting.start(scores[..., 0]), []
    for h in [*scores.unbind(-1)[:-1], None]:
        state, weight = halting.step(state, h, eps)
        weights.append(weight)
    assert not state.active.any()
    return torch.stack(weights, -1), state.units, halting.ponder_cost(state)


def far_from_threshold(scores: Tensor, eps: float, margin: float = 1e-5) -> bool:
    """Whether rounding cannot decide who halts."""
    return bool(((scores[..., :-1].double().cumsum(-1) - (1 - eps)).abs() > margin).all())


@given(rows, epsilons)
def test_the_distribution_sums_to_one_and_the_cost_is_in_range(row: list[float], eps: float) -> None:
    distribution, units, cost = run(torch.tensor([row]), eps)
    assert distribution.sum().item() == pytest.approx(1, abs=1e-6)
    assert (distribution >= 0).all()
    assert 1 <= units.item() <= len(row)
    assert 1 < cost.item() <= len(row) + 1
    assert units.item() < cost.item() <= units.item() + 1  # R in (0, 1]
    assert (distribution[0, units.item() :] == 0).all()


@given(rows, epsilons, st.data())
def test_units_never_rise_with_a_score(row: list[float], eps: float, data: st.DataObject) -> None:
    raised = row.copy()
    index = data.draw(st.integers(0, len(row) - 1))
    raised[index] = data.draw(st.floats(row[index], 1, width=32))
    assert run(torch.tensor([raised]), eps)[1].item() <= run(torch.tensor([row]), eps)[1].item()


@given(rows, epsilons)
def test_steps_equal_the_closed_form(row: list[float], eps: float) -> None:
    scores = torch.tensor(row)
    assume(far_from_threshold(scores, eps))
    for ours, definition in zip(run(scores, eps), halting.closed_form(scores, eps), strict=True):
        torch.testing.assert_close(ours, definition, check_dtype=False, rtol=0, atol=1e-6)


@given(rows, epsilons)
def test_the_definition_literally(row: list[float], eps: float) -> None:
    """N, R, p and rho by a loop over numbers, as on the page of the paper."""
    scores = torch.tensor(row)
    assume(far_from_threshold(scores, eps))
    h = [*scores.double().tolist()[:-1], 1.0]
    n = next(count for count in range(1, len(h) + 1) if count == len(h) or sum(h[:count]) >= 1 - eps)
    remainder = 1 - sum(h[: n - 1])
    distribution, units, cost = run(scores, eps)
    assert units.item() == n
    assert cost.item() == pytest.approx(n + remainder, abs=1e-5)
    assert distribution.tolist() == pytest.approx([*h[: n - 1], remainder, *[0] * (len(h) - n)], abs=1e-6)


@given(st.lists(rows, min_size=1, max_size=4), epsilons)
def test_an_image_is_a_map_of_one_position(batch: list[list[float]], eps: float) -> None:
    length = min(map(len, batch))
    scores = torch.tensor([row[:length] for row in batch])  # [N, L]
    act = run(scores, eps)
    sact = run(scores[:, None, None, :], eps)  # [N, 1, 1, L]
    for image, position in zip(act, sact, strict=True):
        assert torch.equal(image, position[:, 0, 0])


@given(rows, epsilons)
def test_the_cost_falls_by_one_per_score_before_the_last_unit(row: list[float], eps: float) -> None:
    scores = torch.tensor(row, requires_grad=True)
    _, units, cost = run(scores, eps)
    expected = torch.where(torch.arange(len(row)) < units - 1, -1.0, 0.0)
    if len(row) > 1:
        assert torch.equal(torch.autograd.grad(cost, scores)[0], expected)


@pytest.mark.parametrize("function", [run, halting.closed_form], ids=["step", "closed_form"])
def test_gradients_in_float64(function) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(40, 6, generator=generator, dtype=torch.float64) * 0.6
    scores = scores[[far_from_threshold(row, halting.EPS, 1e-3) for row in scores]]
    assert len(scores) > 20
    assert len(set(function(scores)[1].tolist())) >= 4
    torch.autograd.gradcheck(lambda h: function(h)[::2], scores.requires_grad_())


def test_both_forms_have_the_same_gradients() -> None:
    scores = torch.rand(50, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(50, 5, dtype=torch.float64)
    gradients = []
    for function in (run, halting.closed_form):
        distribution, _, cost = function(scores)
        gradients.append(torch.autograd.grad((distribution * weights).sum() + 0.3 * cost.sum(), scores)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("ignored", [0.7, float("nan"), float("inf")])
def test_scores_of_halted_elements_are_ignored(ignored: float) -> None:
    scores = torch.tensor(
        [[0.5, 0.6, ignored, ignored, 0.0], [1.0, ignored, ignored, ignored, 0.0]], requires_grad=True
    )
    distribution, units, cost = run(scores)
    assert units.tolist() == [2, 1]
    torch.testing.assert_close(distribution.detach(), torch.tensor([[0.5, 0.5, 0, 0, 0], [1.0, 0, 0, 0, 0]]))
    torch.testing.assert_close(cost.detach(), torch.tensor([2.5, 2.0]))
    ((distribution**2).sum() + cost.sum()).backward()
    assert (scores.grad[0, 2:] == 0).all()
    assert (scores.grad[1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_decide_in_float32(dtype: torch.dtype) -> None:
    small = torch.full((1, 300), 2**-8, dtype=dtype)  # in bfloat16 the running sum would stick at 0.5 or 1
    state = halting.start(small[:, 0])
    assert state.cumulative.dtype == state.remainder.dtype == torch.float32
    distribution, units, cost = run(small)
    assert units.item() == 254  # 254 / 256 is the first multiple over 0.99
    assert distribution.dtype == cost.dtype == torch.float32
    assert cost.item() == 254 + (1 - 253 / 256)


def test_all_ones_halt_at_once_and_all_zeros_never_do() -> None:
    assert run(torch.ones(2, 3, 4))[1].unique().tolist() == [1]
    assert run(torch.zeros(2, 3, 4))[2].unique().tolist() == [5]


@pytest.mark.parametrize("eps", [0, 1, -0.1, 1.5, float("nan"), float("inf"), "much", None])
def test_eps_out_of_range(eps) -> None:
    with pytest.raises(InputError, match=str(eps)):
        create_model("cifar_resnet20", halting="sact", eps=eps)

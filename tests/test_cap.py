"""`model.cap`: no image exceeds it, and the least undecided positions stop first."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import NATIVE, TRITON, MakeModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_engines import check_same, run
from torch import Tensor

import sact
from sact import cap, halting
from sact.flops import UnitFlops, dilate

KINDS = ["sact", "act"]


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small(make_model: MakeModel):
    """A network of two blocks in which halting varies."""

    def make(kind: str = "sact", seed: int = 0, name: str = "resnet", **options: Any) -> sact.Network:
        defaults = {"halting": kind, "units": [5, 4], "base_channels": 4, "num_classes": 5}
        return make_model(name, seed=seed, **(defaults | options))

    return make


def shares(ponder: sact.Ponder) -> Tensor:
    return ponder.flops.double() / ponder.dense_flops


def least(model: sact.Network, batch: Tensor) -> float:
    flops, dense = cap.bounds(model, batch)
    return flops / dense


@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    name=st.sampled_from(["resnet", "cifar_resnet"]),
    part=st.floats(0, 1),
    size=st.sampled_from([(32, 32), (33, 47)]),
    shift=st.sampled_from([0.0, -3.0]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@torch.no_grad()
def test_no_image_exceeds_the_cap(small, seed: int, kind: str, name: str, part: float, size, shift: float) -> None:
    """Whatever the network and the images; those that stay below it are not touched; gather equals the definition."""
    model, batch = small(kind, seed, name), images(3, 3, *size, seed=seed)
    for block in model.blocks:
        block.score_shift = shift
    free, free_ponder = run(model, batch)
    lowest = least(model, batch)
    model.cap = math.nextafter(lowest + part * (1.02 - lowest), 2)
    output, ponder = run(model, batch)
    assert (ponder.flops <= model.cap * ponder.dense_flops).all()
    below = free_ponder.flops <= model.cap * free_ponder.dense_flops
    assert torch.equal(output[below], free[below]) and torch.equal(ponder.flops[below], free_ponder.flops[below])
    assert (ponder.flops[~below] < free_ponder.flops[~below]).all()
    for block in ponder.blocks:
        assert block.halting_distribution is not None
        torch.testing.assert_close(block.halting_distribution.sum(1), torch.ones_like(block.cost))
    check_same(run(sact.compile(model, "gather"), batch), (output, ponder))


@pytest.mark.parametrize("engine", ["masked", "gather", NATIVE, TRITON])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_all_engines_obey(small, kind: str, engine: str) -> None:
    """Compiled ones by way of gather, also where they had promised to look at nothing again."""
    model, batch = small(kind, units=[3, 3]), images(2, 3, 32, 32)
    fast = sact.compile(model, engine, freeze=True)
    free = run(fast, batch)
    fast.cap = 0.5 * (least(model, batch) + float(shares(free[1]).mean()))
    assert model.cap == fast.cap
    capped = run(fast, batch)
    check_same(capped, run(model, batch))
    assert (shares(capped[1]) <= model.cap).all() and (shares(free[1]) > model.cap).any()
    fast.cap = None
    check_same(run(fast, batch), free)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_wide_cap_changes_nothing(small, kind: str) -> None:
    model, batch = small(kind), images(2, 3, 32, 32)
    free, free_ponder = run(model, batch)
    model.cap = 1.05
    output, ponder = run(model, batch)
    assert torch.equal(output, free) and torch.equal(ponder.flops, free_ponder.flops)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_tightest_cap_leaves_first_units_alone(small, kind: str) -> None:
    model, batch = small(kind), images(2, 3, 40, 32)
    model.cap = math.nextafter(least(model, batch), 2)
    output, ponder = run(model, batch)
    assert all((block.units == 1).all() for block in ponder.blocks)
    assert ponder.flops.tolist() == [cap.bounds(model, batch)[0]] * 2
    model.cap = None
    for block in model.blocks:
        block.forced_units = torch.ones(1, dtype=torch.int32)
    torch.testing.assert_close(output, model(batch))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_each_image_of_a_batch_is_as_alone(small, kind: str) -> None:
    model, batch = small(kind), images(4, 3, 32, 36)
    model.cap = float(shares(run(model, batch)[1]).median()) - 0.02
    output, ponder = run(model, batch)
    for index in range(4):
        alone, alone_ponder = run(model, batch[index : index + 1])
        torch.testing.assert_close(alone[0], output[index], rtol=1e-4, atol=1e-4)
        assert alone_ponder.flops == ponder.flops[index]


def test_the_least_undecided_positions_stop_first() -> None:
    """As many of the lowest cumulative scores go on as can be paid for, by position where they are equal."""
    torch.manual_seed(0)
    unit, size = UnitFlops(by_reach=((0, 70), (1, 11)), score_local=5, score_global=3), (7, 6)
    goes_on = torch.rand(5, *size) < 0.6
    cumulative = torch.rand(5, *size) ** 8
    cumulative[4] = 0.25
    everyone = cap.cost(unit, size, goes_on)
    left = torch.tensor([0.0, 0.3, 0.8, 1.0, 0.5]).mul(everyone).long()
    allowance = cap.Allowance(left)
    kept = allowance.admit(unit, size, goes_on, cumulative)
    for image in range(5):
        listed = sorted((cumulative[image][y, x].item(), y, x) for y, x in goes_on[image].nonzero().tolist())
        expected, spent = torch.zeros(size, dtype=torch.bool), 0
        for _, y, x in listed:
            more = expected.clone()
            more[y, x] = True
            price = int(70 * more.sum() + 5 * more.sum() + 11 * dilate(more[None], 1).sum())
            if price > left[image]:
                break
            expected, spent = more, price
        assert torch.equal(kept[image], expected)
        assert allowance.left[image] == left[image] - spent
    assert kept[0].sum() == 0 and torch.equal(kept[3], goes_on[3]) and 0 < kept[1].sum() < kept[2].sum()


def test_rounding_does_not_decide_who_goes_on() -> None:
    unit, size = UnitFlops(by_reach=((0, 1),)), (1, 40)
    cumulative = torch.full((1, *size), 0.3) * (1 + 1e-6 * torch.randn(1, *size))
    cumulative[..., 30:] = 1e-9  # less decided than all others, though as near to 0
    kept = cap.most_undecided(unit, size, torch.ones(1, *size, dtype=torch.bool), cumulative, torch.tensor([15]))
    assert kept.flatten().nonzero().flatten().tolist() == [*range(5), *range(30, 40)]


def test_images_go_on_as_a_whole_under_act() -> None:
    unit = UnitFlops(by_reach=((0, 10), (1, 1)), score_global=4)
    allowance = cap.Allowance(torch.tensor([48, 47, 100, 100]))
    goes_on = torch.tensor([True, True, False, True])
    kept = allowance.admit(unit, (2, 2), goes_on, torch.zeros(4))
    assert kept.tolist() == [True, False, False, True] and allowance.left.tolist() == [0, 47, 100, 52]


def test_who_is_stopped_gives_the_remainder_to_its_state() -> None:
    state = halting.start(torch.zeros(3))
    first = torch.tensor([True, False, True])
    state, weight = halting.step(state, torch.tensor([0.2, 0.2, 0.995]), 0.01, lambda goes_on, _: goes_on & first)
    assert state.active.tolist() == [True, False, False]
    torch.testing.assert_close(weight, torch.tensor([0.2, 1.0, 1.0]))
    state, weight = halting.step(state, None)
    torch.testing.assert_close(weight, torch.tensor([0.8, 0.0, 0.0]))
    torch.testing.assert_close(halting.ponder_cost(state), torch.tensor([2.8, 2.0, 2.0]))


def test_a_capped_network_trains_and_keeps_its_norms(small) -> None:
    """The least cost is found out in evaluation mode; gradients flow as under any halting."""
    model, batch = small().train(), images(2, 3, 32, 32)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    lowest = least(model, batch)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert all(module.training for module in model.modules())
    model.cap = lowest + 0.1
    logits, ponder = model(batch, return_ponder=True)
    (logits.square().sum() + ponder.cost.sum()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)
    assert (shares(ponder) <= model.cap).all()


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "0.5"])
def test_impossible_caps_are_refused(small, value: object) -> None:
    with pytest.raises(sact.InputError, match=r"cap is .*, but it must be a share of the dense FLOPs"):
        small().cap = value


@torch.no_grad()
def test_caps_below_what_always_runs_are_refused_at_the_call(small) -> None:
    model = small()
    model.cap = 0.01
    messages = []
    for size in (32, 64):
        with pytest.raises(sact.InputError, match=rf"cap is 0\.01 .* at {size}x{size} pixels what always runs takes"):
            run(model, images(1, 3, size, size))
        lowest = least(model, images(1, 3, size, size))
        messages.append(lowest)
        model.cap = math.ceil(1e4 * lowest) / 1e4  # what the message names
        run(model, images(1, 3, size, size))
        model.cap = 0.01
    plain = sact.create_model("resnet", units=[2], base_channels=4, num_classes=2)
    with pytest.raises(sact.InputError, match="a plain network .* takes no cap"):
        plain.cap = 0.8

"""`sact.block`: Algorithm 1 over units, its memory, and its precision."""

from __future__ import annotations

import pytest
import torch
from conftest import NATIVE
from torch import Tensor

import sact
from sact import halting


@pytest.mark.parametrize("name", ["resnet", "cifar_resnet"])
@pytest.mark.parametrize("kind", ["act", "sact"])
def test_the_output_is_the_weighted_sum_of_the_states(make_model, name: str, kind: str) -> None:
    """Against the closed form over all states, which the block itself never stores."""
    model = make_model(name, halting=kind, units=[5], base_channels=4, eps=0.3)
    block = model.blocks[0]
    states: list[Tensor] = []
    scores: list[Tensor] = []
    for unit in block.units:
        unit.register_forward_hook(lambda module, inputs, output: states.append(output))
    for head in block.scores:
        head.register_forward_hook(lambda module, inputs, output: scores.append(output))
    with torch.no_grad():
        output, ponder = block(model.stem(torch.randn(6, 3, 32, 37)), keep_distribution=True)
    scores.append(torch.ones_like(scores[0]))
    distribution, units, cost = halting.closed_form(torch.stack(scores, -1), block.eps)
    assert len(units.unique()) >= 2, "halting should vary"
    assert torch.equal(ponder.units, units.int())
    torch.testing.assert_close(ponder.cost, cost)
    torch.testing.assert_close(ponder.halting_distribution, distribution.movedim(-1, 1))
    weights = distribution.reshape(6, 1, *(distribution.shape[1:-1] or (1, 1)), 5)
    torch.testing.assert_close(output, (weights * torch.stack(states, -1)).sum(-1))
    assert ponder.max_units == 5


def test_a_plain_block_returns_its_last_state(make_model) -> None:
    block = make_model("cifar_resnet", units=[3], base_channels=4).blocks[0]
    x = torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        output, ponder = block(x, keep_distribution=True)
        for unit in block.units:
            x = unit(x)
    assert torch.equal(output, x)
    assert ponder.units.tolist() == [3, 3]
    assert ponder.cost is None
    assert ponder.halting_distribution is None


@pytest.mark.parametrize("kind", ["act", "sact"])
def test_one_unit_always_runs_alone(make_model, kind: str) -> None:
    model = make_model("resnet", halting=kind, units=[1], base_channels=4)
    x = torch.randn(2, 64, 6, 6)
    with torch.no_grad():
        output, ponder = model.blocks[0](x)
        assert torch.equal(output, model.blocks[0].units[0](x))
    assert (ponder.units == 1).all()
    assert (ponder.cost == 2).all()


@pytest.mark.parametrize("kind", ["act", "sact"])
def test_bfloat16_networks_decide_in_float32(make_model, kind: str) -> None:
    model = make_model("cifar_resnet", halting=kind, units=[4, 4], base_channels=4).bfloat16()
    decisions = follow_decisions(model)
    with torch.no_grad():
        logits, ponder = model(torch.randn(4, 3, 32, 32).bfloat16(), return_ponder=True)
    assert logits.dtype == torch.bfloat16
    check_decisions(decisions, ponder)


@pytest.mark.parametrize("kind", ["act", "sact"])
def test_autocast_decides_in_float32(make_model, kind: str) -> None:
    model = make_model("resnet", halting=kind, units=[4, 4], base_channels=4)
    decisions = follow_decisions(model)
    images = torch.randn(4, 3, 48, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits, ponder = model(images, return_ponder=True)
    assert logits.dtype == torch.bfloat16
    check_decisions(decisions, ponder)
    (logits.float().square().mean() + ponder.cost.mean()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def follow_decisions(model: sact.Network) -> list[list[Tensor]]:
    """Per block, the scores of its heads, in a list that fills as the network runs."""
    found: list[list[Tensor]] = []
    for block in model.blocks:
        scores: list[Tensor] = []
        for head in block.scores:
            head.register_forward_hook(lambda module, inputs, output, scores=scores: scores.append(output.detach()))
        found.append(scores)
    return found


def check_decisions(decisions: list[list[Tensor]], ponder: sact.Ponder) -> None:
    """Scores and costs are float32, and unit counts are those of a float32 running sum."""
    for scores, block in zip(decisions, ponder.blocks, strict=True):
        assert all(score.dtype == torch.float32 for score in scores)
        assert block.cost.dtype == torch.float32
        total, units = torch.zeros_like(scores[0]), torch.ones_like(scores[0])
        for score in scores:
            total = total + score
            units += total < 0.99
        assert torch.equal(block.units, units.int())
    assert len(torch.cat([block.units.flatten() for block in ponder.blocks]).unique()) >= 2


FORCED = {
    "all units everywhere": torch.tensor(4),
    "more units than there are": torch.tensor(9),
    "a map for all images": torch.arange(33 * 34).reshape(33, 34) % 4 + 1,
    "a map each, int8": (torch.arange(3 * 33 * 34).reshape(3, 33, 34) % 4 + 1).to(torch.int8),
    "a number each": torch.tensor([[[3]], [[1]], [[4]]]),
}


@pytest.mark.parametrize("forced", FORCED)
@pytest.mark.parametrize("engine", ["masked", "gather", NATIVE])
def test_forced_units_run_and_no_others(make_model, engine: str, forced: str) -> None:
    """The output at every position is the state after the unit that was forced there."""
    model = make_model("cifar_resnet", halting="sact", units=[4], base_channels=4, features_only=True)
    block, images = model.blocks[0], torch.randn(3, 3, 33, 34)
    block.forced_units = FORCED[forced]
    states: list[Tensor] = []
    handles = [unit.register_forward_hook(lambda module, inputs, output: states.append(output)) for unit in block.units]
    with torch.no_grad():
        model(images)
        for handle in handles:
            handle.remove()
        (output,), ponder = sact.compile(model, engine)(images, return_ponder=True)
    units = block.forced_units.clamp(max=4).expand(3, 33, 34)
    assert torch.equal(ponder.blocks[0].units, units.int())
    assert (ponder.blocks[0].cost == units + 1).all()
    expected = torch.stack(states).gather(0, units[None, :, None].expand(1, -1, 4, -1, -1).long() - 1)[0]
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4 * expected.abs().max().item())

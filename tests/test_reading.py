"""`sact.reading` and `sact.trials`: any residual unit as stages, and what cannot be read is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from toy_units import PARTLY, REFUSED, SKIPPING, WHOLE, C, MakeUnit, Unit, conv, refused, vary_norms

from sact.block import Block
from sact.engines import gather
from sact.folding import fold
from sact.layers import BatchNorm2d
from sact.models.adapted import AdaptedUnit
from sact.reading import Reading, read_unit
from sact.scores import make_score
from sact.trials import Undescribable, evaluating, is_global
from sact.units import Description, LinearConv, on_map

DESCRIBED = {
    **SKIPPING,
    **{name: make for name, (make, _) in PARTLY.items()},
    **{name: make for name, (make, _) in WHOLE.items()},
}


def state(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, C, 7, 6)))


def made(make: MakeUnit) -> nn.Module:
    unit = make().eval()
    vary_norms(unit)
    return unit


def by_description(description: Description, x: Tensor) -> Tensor:
    result = x
    for layer in description.everywhere:
        result = on_map(layer, result)
    for stage in description.stages:
        for layer in (*stage.pointwise, stage.conv):
            result = on_map(layer, result)
    for layer in description.tail:
        result = on_map(layer, result)
    result = x + result
    for layer in description.post:
        result = on_map(layer, result)
    return result


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x


# What is described


@torch.no_grad()
@pytest.mark.parametrize("name", DESCRIBED)
def test_units_are_what_is_read_of_them(name: str) -> None:
    unit, x = made(DESCRIBED[name]), state()
    reading = read_unit(unit, x)
    assert reading.keeps_state
    expected = unit(x.clone())
    torch.testing.assert_close(by_description(reading.description, x), expected)
    torch.testing.assert_close(by_description(fold(reading.description), x), expected)
    assert (expected - x).abs().mean() > 0.01


@pytest.mark.parametrize("name", SKIPPING)
def test_these_units_skip(name: str) -> None:
    description = read_unit(made(SKIPPING[name]), state()).description
    assert description.is_perforable and not description.everywhere


@pytest.mark.parametrize("name", PARTLY)
def test_these_units_skip_behind_what_needs_the_whole_map(name: str) -> None:
    make, culprit = PARTLY[name]
    description = read_unit(made(make), state()).description
    assert description.is_perforable
    assert type(description.everywhere[-1]).__name__ == culprit
    assert len(description.stages) == 1


@pytest.mark.parametrize("name", WHOLE)
def test_these_units_do_not_skip(name: str) -> None:
    assert not read_unit(made(WHOLE[name][0]), state()).description.is_perforable


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_described_says_why(name: str) -> None:
    with pytest.raises(Undescribable, match=REFUSED[name][1]):
        read_unit(refused(name), state())


def test_of_two_inputs() -> None:
    class Two(Unit):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
            return x + self.branch(y)

    with pytest.raises(Undescribable, match="something other than one tensor"):
        read_unit(Two(conv()), state())


def test_of_no_map() -> None:
    with pytest.raises(Undescribable, match="a tensor of 2 dimensions"):
        read_unit(Unit(conv()), torch.randn(2, C))


def test_a_projection_is_a_shortcut_that_does_not_keep_the_state() -> None:
    class Projected(Unit):
        def __init__(self) -> None:
            super().__init__(conv(stride=2), nn.BatchNorm2d(C), nn.ReLU(), conv())
            self.short = nn.Sequential(conv(1, stride=2), nn.BatchNorm2d(C))

        def forward(self, x: Tensor) -> Tensor:
            return self.branch(x) + self.short(x)

    unit = Projected().eval()
    reading = read_unit(unit, state())
    assert not reading.keeps_state
    assert reading.shortcut == tuple(unit.short)
    assert AdaptedUnit(unit, reading, "unit", C).flops().dense == 2 * C * C * (9 + 9 + 1)


@pytest.mark.parametrize("first", [nn.ReLU(), Doubling()])
def test_a_chain_without_a_sum_has_no_shortcut(first: nn.Module) -> None:
    reading = read_unit(nn.Sequential(first, conv(), nn.ReLU(), conv(1)), state())
    assert reading.shortcut is None and not reading.keeps_state
    assert len(reading.description.stages) == 2


def test_a_block_of_layers_is_looked_into_and_squeeze_excite_is_not() -> None:
    inner = nn.Sequential(conv(), nn.BatchNorm2d(C))

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).relu()

    description = read_unit(Unit(Inner(), conv(1)), state()).description
    assert description.stages[0].conv is inner[0]
    assert [type(layer) for layer in description.stages[1].pointwise] == [nn.BatchNorm2d, nn.ReLU]


# How engines need it


def test_functions_become_the_layers_that_engines_know() -> None:
    description = read_unit(made(SKIPPING["functional"]), state()).description
    kinds = [type(layer).__name__ for stage in description.stages for layer in stage.pointwise]
    assert kinds == ["ReLU", "BatchNorm2d", "_Function"]
    assert [type(layer) for layer in description.tail] == [nn.ReLU, nn.BatchNorm2d]
    assert type(description.post[-1]) is nn.ReLU


def test_nothing_is_done_in_place() -> None:
    for name in ("bottleneck", "functional", "into its input"):
        unit, x = made(SKIPPING[name]), state()
        reading, kept = read_unit(unit, x), x.clone()
        by_description(reading.description, x)
        assert torch.equal(x, kept)


@pytest.mark.parametrize("name", ["into its input", "bottleneck", "functional", "ConvNeXt"])
def test_units_that_overwrite_their_input_are_known(name: str) -> None:
    assert read_unit(made(SKIPPING[name]), state()).overwrites == (name == "into its input")


def test_halted_positions_keep_their_state_in_a_unit_that_overwrites_its_input() -> None:
    unit, x = made(SKIPPING["into its input"]), state()
    adapted = AdaptedUnit(unit, read_unit(unit, x), "unit", C)
    active, kept = torch.rand(2, 7, 6) < 0.5, x.clone()
    with torch.no_grad():
        after = adapted(x, active)
        expected = torch.where(active[:, None], unit(x.clone()), kept)
    assert torch.equal(x, kept)
    assert torch.equal(after, expected)


def test_what_drops_in_training_mode_is_told_apart() -> None:
    identities, drops = made(SKIPPING["identities"]), made(SKIPPING["drops"])
    assert read_unit(identities, state()).random == (identities.branch[3],)
    assert read_unit(drops, state()).random == (drops,)
    assert read_unit(made(SKIPPING["bottleneck"]), state()).random == ()


@pytest.mark.parametrize("name", ["identities", "drops", "bottleneck"])
def test_reading_does_not_depend_on_the_mode_and_leaves_it(name: str) -> None:
    unit = made(SKIPPING[name]).train()
    unit.branch[1].eval()
    modes = [part.training for part in unit.modules()]
    before = copy.deepcopy(unit.state_dict())
    reading = read_unit(unit, state())
    assert [part.training for part in unit.modules()] == modes
    torch.testing.assert_close(unit.state_dict(), before, rtol=0, atol=0)
    assert len(reading.description.stages) == 2 and not reading.description.everywhere


def test_modes_come_back_when_something_fails() -> None:
    unit = Unit(conv(), nn.BatchNorm2d(C)).train()
    unit.branch[1].eval()
    with pytest.raises(RuntimeError, match="on purpose"), evaluating(unit):
        assert not any(part.training for part in unit.modules())
        raise RuntimeError("on purpose")
    assert unit.training and unit.branch[0].training and not unit.branch[1].training


def test_weights_are_shared_and_those_computed_are_computed_again() -> None:
    unit = made(SKIPPING["ConvNeXt"])
    reading = read_unit(unit, state())
    up = reading.description.stages[1].conv
    assert isinstance(up, LinearConv)
    with torch.no_grad():
        unit.up.weight.fill_(0.25)
        assert torch.equal(up.weight, torch.full((12, C, 1, 1), 0.25))
    parametrised = made(SKIPPING["parametrised"])
    first = read_unit(parametrised, state()).description.stages[0].conv
    with torch.no_grad():
        first.parametrizations.weight.original.normal_()
    torch.testing.assert_close(first.weight.norm(), torch.tensor(1.0))


@torch.no_grad()
@pytest.mark.parametrize("how", ["copied", "pickled"])
@pytest.mark.parametrize("name", DESCRIBED)
def test_readings_can_be_copied_and_pickled_with_their_units(name: str, how: str) -> None:
    unit, x = made(DESCRIBED[name]), state()
    pair = (unit, read_unit(unit, x))
    twin, reading = (
        copy.deepcopy(pair) if how == "copied" or "parametrised" in name else pickle.loads(pickle.dumps(pair))
    )
    for parameter in twin.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    if name != "pruned":  # whose weights are computed before each call
        assert not torch.allclose(twin(x.clone()), unit(x.clone()))
    torch.testing.assert_close(by_description(reading.description, x), twin(x.clone()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    for name in ("bottleneck", "ConvNeXt", "functional"):
        unit = made(SKIPPING[name]).to(dtype)
        assert read_unit(unit, state().to(dtype)).description.is_perforable


# Trials


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.ReLU(), False),
        (nn.PReLU(C), False),
        (nn.Softmax(1), False),
        (nn.Softmax2d(), False),
        (nn.BatchNorm2d(C), False),
        (nn.ChannelShuffle(2), False),
        (nn.BatchNorm2d(C, track_running_stats=False), True),
        (nn.GroupNorm(2, C), True),
        (nn.InstanceNorm2d(C), True),
        (nn.Softmax(3), True),
        (nn.AvgPool2d(3, 1, 1), True),
        (nn.LocalResponseNorm(3), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_that_need_the_whole_map(layer: nn.Module, expected: bool) -> None:
    assert is_global(layer, C) == expected


def test_a_layer_that_looks_at_the_batch_is_global() -> None:
    class OfBatch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0, keepdim=True)

    assert is_global(OfBatch(), C)


def test_layers_of_other_channels_are_refused() -> None:
    with pytest.raises(Undescribable, match="PReLU does not take a map of 8 channels"):
        is_global(nn.PReLU(3), C)


# Through the engine


def blocks_of(make: MakeUnit) -> Block:
    units: list[AdaptedUnit] = []
    for index in range(3):
        unit = made(make)
        reading: Reading | None = read_unit(unit, state()) if index else None
        units.append(AdaptedUnit(unit, reading, f"unit {index}", C))
    heads = [make_score("sact", C, BatchNorm2d, nn.Identity()) for _ in range(2)]
    return Block(units, heads, "sact", 0.01).eval()


@pytest.mark.parametrize("output", ["mean", "halted"])
@pytest.mark.parametrize("name", DESCRIBED)
def test_listed_positions_get_what_the_definition_gives(
    monkeypatch: pytest.MonkeyPatch, name: str, output: str
) -> None:
    """States and gradients, of weights and of the input; nothing but rounding may differ, in float64."""
    monkeypatch.setattr(gather, "DENSE_SHARE", 2.0)
    block = blocks_of(DESCRIBED[name]).double()
    block.output = output
    x = torch.randn(2, C, 7, 6, dtype=torch.float64, requires_grad=True)
    block.forced_units = torch.randint(1, 4, (2, 7, 6))
    incoming = torch.randn(2, C, 7, 6, dtype=torch.float64)
    wanted = [x, *block.units.parameters()]
    found = []
    for run in (block, lambda x: gather.run_positions(block, gather.read_chains(block), x, False)):
        result, ponder = run(x * 1)
        assert torch.equal(ponder.units, block.forced_units.int())
        found.append((result, torch.autograd.grad(result, wanted, incoming, materialize_grads=True)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-10)
    with torch.no_grad():
        chains = gather.read_chains(block, fold=True)
        result, _ = gather.run_positions(block, chains, x * 1, False)
        torch.testing.assert_close(result, block(x * 1)[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("name", "falls_back"), [("identities", True), ("drops", True), ("bottleneck", False)])
def test_units_that_drop_train_by_the_definition(name: str, falls_back: bool) -> None:
    block = blocks_of(SKIPPING[name]).train()
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    assert gather._trains(block) == falls_back
    assert not gather._trains(block.eval())

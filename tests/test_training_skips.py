"""Training steps that skip what has halted: the weights of the definition, for less work and less memory."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_RECIPE, MakeModel
from test_engines import force_halting, run
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import sact
from sact import engines, halting
from sact.bench import Forcing, force_units
from sact.block import Block
from sact.engines import gather
from sact.errors import RecipeError
from sact.flops import dilate
from sact.layers import BatchNorm2d
from sact.ponder import BlockPonder
from sact.recipe import Recipe, make_recipe
from sact.scores import PositionScore, to_score
from sact.tasks import classification, training

FAMILIES = ["resnet", "cifar_resnet"]
KINDS = ["act", "sact"]

Call = Callable[..., tuple[Tensor, sact.Ponder]]


@pytest.fixture
def small(make_model: MakeModel) -> MakeModel:
    """A network of two blocks in which halting varies."""

    def make(name: str = "cifar_resnet", kind: str = "sact", **options: Any) -> sact.Network:
        defaults = {"halting": kind, "units": [4, 3], "base_channels": 4, "num_classes": 5, "eps": 0.3}
        return make_model(name, **(defaults | options))

    return make


def loss_of(result: tuple[Tensor, sact.Ponder]) -> Tensor:
    """Of logits, and of the ponder cost where there is one."""
    logits, ponder = result
    loss = logits.float().square().mean() if logits.dtype == torch.bfloat16 else logits.square().mean()
    return loss if ponder.cost is None else loss + 0.3 * ponder.cost.mean()


def gradients_of(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def follow_shares(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Receives the share of active positions whenever a unit runs perforated."""
    shares: list[float] = []
    perforated = gather.perforated

    def follow(stages: Any, rows: Tensor, held: Tensor | None, positions: Any) -> Tensor:
        shares.append(positions.active.float().mean().item())
        return perforated(stages, rows, held, positions)

    monkeypatch.setattr(gather, "perforated", follow)
    return shares


def check_same(ours: tuple[Tensor, sact.Ponder], theirs: tuple[Tensor, sact.Ponder]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-9, atol=1e-9)
    for our_block, their_block in zip(ours[1].blocks, theirs[1].blocks, strict=True):
        assert torch.equal(our_block.units, their_block.units)
        for name in ("cost", "halting_distribution"):
            our_values, their_values = getattr(our_block, name), getattr(their_block, name)
            torch.testing.assert_close(our_values, their_values, rtol=1e-9, atol=1e-9)


def check_same_statistics(ours: sact.Network, theirs: sact.Network) -> None:
    """Of norms, which are moved by a share that is a float32."""
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()), rtol=1e-6, atol=1e-8)


# The weights of the definition


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_steps_with_frozen_norms_give_the_weights_of_the_definition(
    small: MakeModel, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    """Weight decay and momentum also move the weights of units that ran nowhere."""
    shares = follow_shares(monkeypatch)
    model = small(name, kind).double()
    models = [copy.deepcopy(model) for _ in range(2)]
    trained = []
    for each, call in zip(models, (models[0], sact.compile(models[1], "gather")), strict=True):
        optimizer = torch.optim.SGD(each.parameters(), lr=1e-3, momentum=0.9, weight_decay=1.0)
        torch.manual_seed(1)
        units = set()
        for _ in range(4):
            optimizer.zero_grad()
            logits, ponder = call(torch.randn(3, 3, 40, 34, dtype=torch.float64), return_ponder=True)
            loss_of((logits, ponder)).backward()
            optimizer.step()
            units |= set(torch.cat([block.units.flatten() for block in ponder.blocks]).tolist())
        assert len(units) >= 3
        trained.append(each.state_dict())
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-9, atol=1e-11)
    moved = [not torch.equal(value, trained[0][key]) for key, value in model.named_parameters()]
    assert sum(moved) > 0.9 * len(moved)
    assert kind == "act" or (len(shares) == 4 * 5 and 0 < sum(shares) / len(shares) < 0.9)


@pytest.mark.parametrize("index", [1, 3])
def test_a_unit_that_must_run_everywhere_trains_among_others(small: MakeModel, index: int) -> None:
    """Its neighbours skip, and keep the states that it reads."""
    model = small().double()
    model.blocks[0].units[index].branch.conv2.padding_mode = "circular"
    results, gradients = [], []
    images = torch.randn(3, 3, 40, 34, dtype=torch.float64)
    for call in (model, sact.compile(model, "gather")):
        model.zero_grad()
        results.append(run(call, images))
        loss_of(results[-1]).backward()
        gradients.append(gradients_of(model))
    assert len(results[0][1].blocks[0].units.unique()) == 4
    check_same(results[1], results[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("kind", "mode"), [("act", "frozen"), ("sact", "frozen"), ("sact", "active")])
def test_gradients_of_units_that_nothing_reaches_are_zeros(small: MakeModel, kind: str, mode: str) -> None:
    """Not None: optimizers would leave such weights out of their decay, and processes would wait for each other."""
    model = small("resnet", kind)
    force_halting(model, 50.0)
    model.train(mode == "active")
    statistics = "active" if mode == "active" else "all"
    result = run(sact.compile(model, "gather", norm_statistics=statistics), torch.randn(2, 3, 32, 32))
    loss_of(result).backward()
    assert all((block.units == 1).all() for block in result[1].blocks)
    for block in model.blocks:
        for module in (*block.units[1:], *block.scores[1:]):
            for parameter in module.parameters():
                assert parameter.grad is not None
                assert (parameter.grad == 0).all()
        assert all(parameter.grad.any() for parameter in block.units[0].branch.conv1.parameters())


# Statistics over active positions


def norm_within(norm: nn.Module, x: Tensor, within: Tensor) -> Tensor:
    """A norm of pictures, in training mode by the statistics of the positions within a mask [N, H, W], if any."""
    assert isinstance(norm, nn.BatchNorm2d)
    if not norm.training or not within.any():
        return nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    values = x.permute(0, 2, 3, 1)[within]
    mean, variance = values.mean(0), values.var(0, unbiased=False)
    with torch.no_grad():
        norm.num_batches_tracked += 1
        share = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
        kept = variance if isinstance(norm, BatchNorm2d) else values.var(0, unbiased=True)
        norm.running_mean.mul_(1 - share).add_(share * mean)
        norm.running_var.mul_(1 - share).add_(share * kept)
    mean, variance, weight, bias = (each[:, None, None] for each in (mean, variance, norm.weight, norm.bias))
    return (x - mean) / (variance + norm.eps).sqrt() * weight + bias


def run_dense(block: Block, x: Tensor, keep_distribution: bool = False) -> tuple[Tensor, BlockPonder]:
    """`Block.forward` of a SACT block whose norms take their statistics over the positions that are read."""
    in_size = x.shape[-2:]
    x = block.units[0](x)
    state = halting.start(x[:, 0])
    output = torch.zeros_like(x)
    weights = []
    for index, unit in enumerate(block.units):
        if index > 0:
            residual = x
            for stage in unit.stages():
                within = dilate(state.active, stage.in_reach)
                for layer in stage.pointwise:
                    is_norm = isinstance(layer, nn.BatchNorm2d)
                    residual = norm_within(layer, residual, within) if is_norm else layer(residual)
                residual = stage.conv(residual)
            x = x + torch.where(state.active[:, None], residual, 0.0)
        score = None
        if index < len(block.scores):
            head = block.scores[index]
            assert isinstance(head, PositionScore)
            local = head.local_conv(head.activation(norm_within(head.local_norm, x, dilate(state.active, 1))))
            logit = local[:, 0] + head.pooled(x.mean((2, 3), keepdim=True))[:, None, None]
            score = block.decide(to_score(logit), index)
        state, weight = halting.step(state, score, block.eps)
        output = output + weight[:, None] * x
        weights.append(weight)
    return output.to(x.dtype), block.ponder(state, in_size, x.shape[-2:], torch.stack(weights, 1))


def define(model: sact.Network) -> Call:
    """A network evaluated everywhere, with statistics over active positions."""

    def call(images: Tensor, **_: bool) -> tuple[Tensor, sact.Ponder]:
        output, ponder = model.run(images, run_dense)
        assert isinstance(output, Tensor)
        return output, ponder

    return call


def with_torch_norms(model: sact.Network, momentum: float | None = 0.2) -> sact.Network:
    """The network with PyTorch's own norms, whose running variance is unbiased."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, BatchNorm2d):
                twin = nn.BatchNorm2d(child.num_features, child.eps, momentum).to(child.weight)
                twin.load_state_dict(child.state_dict())
                setattr(module, name, twin)
    return model


def freeze_every_other(model: sact.Network) -> None:
    for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)][::2]:
        norm.eval()


def freeze_first_block(model: sact.Network) -> None:
    model.blocks[0].eval()


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        pytest.param(lambda model: None, 3, id="ours"),
        pytest.param(with_torch_norms, 3, id="PyTorch's norms"),
        pytest.param(partial(with_torch_norms, momentum=None), 3, id="cumulative averages"),
        pytest.param(lambda model: force_halting(model, 50.0), 1, id="all halt at once"),
        pytest.param(lambda model: force_halting(model, -50.0), 2, id="none halts"),
        pytest.param(freeze_every_other, 3, id="every other frozen"),
        pytest.param(freeze_first_block, 3, id="a block frozen"),
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_active_statistics_equal_a_dense_definition(
    small: MakeModel, name: str, change: Callable[[sact.Network], Any], counts: int
) -> None:
    """Of results, gradients and running statistics, in two steps; unit counts differ between positions and blocks."""
    model = small(name).double().train()
    change(model)
    before = copy.deepcopy(model.state_dict())
    theirs, ours = copy.deepcopy(model), copy.deepcopy(model)
    for step in range(2):
        found = []
        for each, call in ((theirs, define(theirs)), (ours, sact.compile(ours, "gather", norm_statistics="active"))):
            torch.manual_seed(step)
            images = torch.randn(3, 3, 45, 34, dtype=torch.float64, requires_grad=True)
            result = run(call, images)
            loss_of(result).backward()
            found.append((result, gradients_of(each) | {"images": images.grad}))
        (their_result, expected), (our_result, gradients) = found
        check_same(our_result, their_result)
        for parameter, gradient in expected.items():
            gradient = torch.zeros_like(gradients[parameter]) if gradient is None else gradient
            torch.testing.assert_close(gradients[parameter], gradient, rtol=1e-7, atol=1e-9, msg=parameter)
        check_same_statistics(ours, theirs)
    units = torch.cat([block.units.flatten() for block in our_result[1].blocks]).unique()
    assert len(units) >= counts
    for key in ("blocks.1.units.0.preact.norm.running_mean", "blocks.1.scores.0.local_norm.running_var"):
        frozen = not model.get_submodule(key.rpartition(".")[0]).training
        assert torch.equal(ours.state_dict()[key], before[key]) == frozen


@pytest.mark.parametrize("bias", [None, 50.0, -50.0], ids=["halting varies", "all halt at once", "none halts"])
@torch.no_grad()
def test_active_statistics_are_the_same_without_gradients(small: MakeModel, bias: float | None) -> None:
    model = small().double().train()
    if bias is not None:
        force_halting(model, bias)
    theirs, ours = copy.deepcopy(model), copy.deepcopy(model)
    images = torch.randn(3, 3, 45, 34, dtype=torch.float64)
    check_same(run(sact.compile(ours, "gather", norm_statistics="active"), images), run(define(theirs), images))
    check_same_statistics(ours, theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_active_statistics_are_another_method(small: MakeModel, name: str) -> None:
    model = small(name).double().train()
    images = torch.randn(3, 3, 45, 34, dtype=torch.float64)
    logits = [
        sact.compile(copy.deepcopy(model), "gather", norm_statistics=statistics)(images)
        for statistics in ("all", "active")
    ]
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    assert torch.equal(logits[0], copy.deepcopy(model)(images))


@pytest.mark.parametrize("kind", KINDS)
def test_norms_in_evaluation_mode_have_no_statistics_to_choose(small: MakeModel, kind: str) -> None:
    model, images = small(kind=kind), torch.randn(2, 3, 32, 32)
    results, gradients = [], []
    for statistics in ("all", "active"):
        model.zero_grad()
        result = run(sact.compile(model, "gather", norm_statistics=statistics), images)
        loss_of(result).backward()
        results.append(result)
        gradients.append(gradients_of(model))
        with torch.no_grad():
            torch.testing.assert_close(run(sact.compile(model, "gather", norm_statistics=statistics), images), result)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1].cost, results[1][1].cost)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["act", "none"])
def test_networks_without_positions_have_statistics_over_all(small: MakeModel, kind: str) -> None:
    model = small(kind=kind).train()
    theirs, ours = copy.deepcopy(model), copy.deepcopy(model)
    images = torch.randn(3, 3, 40, 32)
    logits = []
    for call in (theirs, sact.compile(ours, "gather", norm_statistics="active")):
        result = run(call, images)
        loss_of(result).backward()
        logits.append(result[0])
    assert torch.equal(logits[0], logits[1])
    torch.testing.assert_close(gradients_of(ours), gradients_of(theirs), rtol=0, atol=0)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("engine", ["auto", "gather"])
def test_active_statistics_skip(small: MakeModel, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    model = small("resnet").train()
    shares = follow_shares(monkeypatch)
    call = sact.compile(model, engine, norm_statistics="active")
    call(torch.randn(2, 3, 64, 64))
    assert len(shares) == 5
    assert any(0 < share < 0.9 for share in shares)
    twin = copy.deepcopy(call)
    shares.clear()
    twin(torch.randn(2, 3, 64, 64))
    assert shares


@pytest.mark.parametrize(
    ("engine", "statistics", "message"),
    [
        ("masked", "active", 'norm_statistics is "active", but the masked engine'),
        ("masked", "some", 'norm_statistics is "some", but it must be one of all, active'),
        ("gather", "some", 'norm_statistics is "some", but it must be one of all, active'),
        ("auto", None, 'norm_statistics is "None", but it must be one of all, active'),
    ],
)
def test_statistics_that_there_are_not(small: MakeModel, engine: Any, statistics: Any, message: str) -> None:
    with pytest.raises(sact.InputError, match=message):
        sact.compile(small(), engine, norm_statistics=statistics)


# Memory


def bytes_kept(model: sact.Network, call: nn.Module, images: Tensor) -> int:
    """Of the distinct storages that a forward pass keeps for the backward pass, weights and statistics aside."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run(call, images)  # alive until the end, so that no storage takes another's place
        assert result[0].requires_grad
    return sum(kept.values())


@pytest.mark.parametrize(
    ("name", "units", "side", "statistics", "at_40_percent"),
    [
        ("resnet", [8, 16], 96, "all", 0.42),
        ("resnet", [8, 16], 96, "active", 0.45),
        ("cifar_resnet", [8, 8], 48, "all", 0.53),
        ("cifar_resnet", [8, 8], 48, "active", 0.6),
    ],
)
def test_memory_falls_with_the_share(
    small: MakeModel, name: str, units: list[int], side: int, statistics: str, at_40_percent: float
) -> None:
    """In training mode with statistics over active positions, in evaluation mode with those over all."""
    images = torch.randn(2, 3, side, side)
    options = {"units": units, "base_channels": 16}
    plain = small(name, "none", **options).train(statistics == "active")
    model = small(name, "sact", **options).train(statistics == "active")
    full = bytes_kept(plain, plain, images)
    call = sact.compile(model, "gather", norm_statistics=statistics)
    kept = {}
    for share in (0.4, 0.5, 0.6, 0.8):
        for block, forced in zip(model.blocks, force_units(model, (2, side, side), Forcing(share)), strict=True):
            block.forced_units = forced
        kept[share] = bytes_kept(model, call, images) / full
    assert sorted(kept.values()) == list(kept.values())
    assert kept[0.5] <= 0.7
    assert kept[0.4] <= at_40_percent
    if statistics == "all":
        assert bytes_kept(model, model, images) > full, "the definition keeps everything, and the measurement sees it"


# torch.compile


def step_of(call: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda images: loss_of(run(call, images))


def check_compiled_step(model: sact.Network, engine: Any, statistics: Any, backend: str) -> set[int]:
    """Loss, gradients and running statistics of a compiled step are those of the same step without the compiler.

    Returns:
        How many units ran at one position or another.
    """
    torch._dynamo.reset()
    theirs, ours = copy.deepcopy(model), copy.deepcopy(model)
    eager, compiled = (sact.compile(each, engine, norm_statistics=statistics) for each in (theirs, ours))
    images = torch.randn(2, 3, 40, 34, dtype=torch.float64)
    result = run(eager, images)
    expected = loss_of(result)
    loss = torch.compile(lambda batch: loss_of(run(compiled, batch)), fullgraph=True, backend=backend)(images)
    expected.backward()
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradients_of(ours), gradients_of(theirs), rtol=1e-7, atol=1e-10)
    check_same_statistics(ours, theirs)
    return set(result[1].blocks[0].units.unique().tolist())


@pytest.mark.parametrize(
    ("name", "kind", "engine", "units", "seed"),
    [
        pytest.param("resnet", "sact", "gather", 2, 1, marks=pytest.mark.slow),
        ("cifar_resnet", "sact", "gather", 3, 1),
        ("cifar_resnet", "act", "gather", 2, 0),
        ("cifar_resnet", "sact", "auto", 2, 1),
        ("cifar_resnet", "sact", "masked", 2, 1),
    ],
)
def test_compiled_steps(small: MakeModel, name: str, kind: str, engine: str, units: int, seed: int) -> None:
    """Of networks in which as many units run at one position or another."""
    model = small(name, kind, units=[units], seed=seed).double()
    assert len(check_compiled_step(model, engine, "all", "aot_eager")) == units


def test_compiled_steps_with_active_statistics(small: MakeModel) -> None:
    model = small("cifar_resnet", units=[2], seed=1).double().train()
    assert check_compiled_step(model, "gather", "active", "aot_eager") == {1, 2}


def test_compiled_steps_with_active_statistics_where_all_halt_at_once(small: MakeModel) -> None:
    """Of nothing there are no statistics in a compiled step, either."""
    model = small("cifar_resnet", units=[2]).double().train()
    force_halting(model, 50.0)
    assert check_compiled_step(model, "gather", "active", "aot_eager") == {1}


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["all", "active"])
@pytest.mark.parametrize(("name", "seed"), [("resnet", 3), ("cifar_resnet", 1)])
def test_steps_compiled_by_inductor(small: MakeModel, name: str, seed: int, statistics: str) -> None:
    model = small(name, units=[3], seed=seed).double().train(statistics == "active")
    assert len(check_compiled_step(model, "gather", statistics, "inductor")) == 3


# Autocast


@pytest.mark.parametrize("forced", [True, False], ids=["forced units", "scores decide"])
@pytest.mark.parametrize("statistics", ["all", "active"])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_under_autocast_stay_near_those_of_float32(
    small: MakeModel, name: str, statistics: str, forced: bool
) -> None:
    """At most three times the error of the definition under the same autocast, plus one rounding.

    With forced units no position halts elsewhere for a rounding, and errors are small.
    """
    model = small(name, units=[4], base_channels=8).train(statistics == "active")
    if forced:
        model.blocks[0].forced_units = torch.randint(1, 5, (4, *((16, 16) if name == "resnet" else (64, 64))))
    definition = define if statistics == "active" else (lambda each: each)
    images = torch.randn(4, 3, 64, 64)

    def gradients(make: Callable[[sact.Network], Any], autocast: bool) -> dict[str, Tensor]:
        """By layer: of all units, or of all score heads, together."""
        each = copy.deepcopy(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = run(make(each), images)
        loss_of(result).backward()
        layers: dict[str, list[Tensor]] = {}
        for name, gradient in gradients_of(each).items():
            if gradient is not None and gradient.any():
                assert gradient.dtype == torch.float32
                layers.setdefault(re.sub(r"\.\d+|\.\w+$", "", name), []).append(gradient.flatten())
        return {layer: torch.cat(found) for layer, found in layers.items()}

    exact, theirs = (gradients(definition, autocast) for autocast in (False, True))
    ours = gradients(partial(sact.compile, engine="gather", norm_statistics=statistics), True)
    assert ("blocks.scores.local_conv" in exact) == (not forced)
    assert ours.keys() == exact.keys()
    for layer, expected in exact.items():
        our_error, their_error = ((found[layer] - expected).norm() for found in (ours, theirs))
        assert our_error <= 3 * their_error + 2**-8 * expected.norm(), layer


# Recipes


def recipe_of(**changes: Any) -> Recipe:
    return make_recipe(TINY_RECIPE | {"lr": 0.05} | changes)


def train(folder: Path, **changes: Any) -> dict[str, Tensor]:
    """Train a recipe in float64; the weights at its end."""
    training.train(recipe_of(units=[3, 3], eps=0.95, precision="64-true", **changes), folder, quiet=True)
    return sact.from_pretrained(folder / "model").state_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"halting": "act"}, 'norm_statistics is "active", but halting is "act" and freeze_norms False'),
        ({"halting": "none", "tau": 0.0}, 'norm_statistics is "active", but halting is "none" and freeze_norms False'),
        ({"freeze_norms": True}, 'norm_statistics is "active", but halting is "sact" and freeze_norms True'),
        ({"norm_statistics": "some"}, "norm_statistics is 'some'"),
    ],
)
def test_recipes_whose_norms_have_no_active_statistics(changes: dict[str, Any], message: str) -> None:
    assert recipe_of().norm_statistics == "all"
    assert recipe_of(norm_statistics="active").norm_statistics == "active"
    with pytest.raises(RecipeError, match=message):
        recipe_of(**({"norm_statistics": "active"} | changes))


def test_a_run_with_active_statistics_skips_and_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = train(tmp_path / "all")
    shares = follow_shares(monkeypatch)
    active = train(tmp_path / "active", norm_statistics="active")
    assert any(0 < share < 0.9 for share in shares)
    assert all(value.isfinite().all() for value in active.values())
    key = "blocks.1.units.1.preact.norm.running_mean"
    assert not torch.allclose(active[key], dense[key], rtol=1e-3)


def test_a_run_with_frozen_norms_skips_and_gives_the_weights_of_the_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = follow_shares(monkeypatch)
    ours = train(tmp_path / "gather", freeze_norms=True)
    assert any(0 < share < 0.9 for share in shares)
    shares.clear()
    prepare = engines.prepare
    monkeypatch.setattr(classification, "prepare", lambda model, engine, **options: prepare(model, "masked"))
    theirs = train(tmp_path / "masked", freeze_norms=True)
    assert not shares
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)

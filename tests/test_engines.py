"""`sact.engines`: the same numbers as the definition, for less work."""

from __future__ import annotations

import copy
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import NATIVE, has_native
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import sact
from sact.engines import gather
from sact.engines.watch import Watch
from sact.flops import dilate

FAMILIES = ["resnet", "cifar_resnet"]
KINDS = ["act", "sact"]


@pytest.fixture
def always_perforated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gather engine never falls back to dense units."""
    monkeypatch.setattr(gather, "DENSE_SHARE", 1.0)


@pytest.fixture
def small(make_model):
    """A network of two blocks in which halting varies."""

    def make(name: str = "cifar_resnet", kind: str = "sact", **options: Any) -> sact.Network:
        return make_model(name, **({"halting": kind, "units": [4, 3], "base_channels": 4, "num_classes": 5} | options))

    return make


def check_same(ours: tuple[Tensor, sact.Ponder], theirs: tuple[Tensor, sact.Ponder], share: float = 1e-4) -> None:
    """Logits and costs within `share` of the largest logit and of 1, unit counts and distributions equal."""
    atol = share * theirs[0].abs().max().item()
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=atol)
    for our_block, their_block in zip(ours[1].blocks, theirs[1].blocks, strict=True):
        assert torch.equal(our_block.units, their_block.units)
        torch.testing.assert_close(our_block.cost, their_block.cost, rtol=0, atol=share)
        torch.testing.assert_close(our_block.halting_distribution, their_block.halting_distribution, rtol=0, atol=share)


def run(model: nn.Module, images: Tensor) -> tuple[Tensor, sact.Ponder]:
    return model(images, return_ponder=True, return_halting_distribution=True)


def force_halting(model: sact.Network, bias: float) -> None:
    for block in model.blocks:
        for head in block.scores:
            conv = head.global_conv if block.halting == "act" else head.local_conv
            nn.init.constant_(conv.bias, bias)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dense_share", [0.0, 0.7, 1.0])
def test_gather_equals_masked_with_every_gradient(
    small, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, dense_share: float
) -> None:
    monkeypatch.setattr(gather, "DENSE_SHARE", dense_share)
    model = small(name, kind, eps=0.3).double()
    results = []
    for engine in ("masked", "gather"):
        torch.manual_seed(1)
        images = torch.randn(3, 3, 45, 34, dtype=torch.float64, requires_grad=True)
        logits, ponder = run(sact.compile(model, engine), images)
        (logits.square().mean() + 0.3 * ponder.cost.mean()).backward()
        results.append((logits, ponder, {"images": images.grad} | {n: p.grad for n, p in model.named_parameters()}))
        model.zero_grad(set_to_none=True)
    (*theirs, expected), (*ours, gradients) = results
    check_same(ours, theirs, share=1e-10)
    for parameter, gradient in expected.items():
        if gradients[parameter] is None:  # gather stops where nothing is left; the definition then has zeros
            assert (gradient == 0).all(), parameter
        else:
            torch.testing.assert_close(gradients[parameter], gradient, rtol=1e-8, atol=1e-10, msg=parameter)


@pytest.mark.parametrize("engine", ["masked", "gather", NATIVE])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("bias", "units"), [(50.0, 1), (-50.0, 4)], ids=["all halt at once", "none halts"])
def test_extremes(small, engine: str, kind: str, name: str, bias: float, units: int) -> None:
    model = small(name, kind)
    force_halting(model, bias)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        result = run(sact.compile(model, engine), images)
        check_same(result, run(model, images))
    assert result[1].blocks[0].units.unique().tolist() == [units]
    assert result[1].blocks[0].halting_distribution.shape[1] == 4


@pytest.mark.parametrize("engine", ["gather", NATIVE])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_single_images_equal_their_batch(small, name: str, kind: str, engine: str) -> None:
    model = sact.compile(small(name, kind), engine)
    images = torch.randn(3, 3, 33, 40)
    with torch.no_grad():
        logits, ponder = run(model, images)
        for index, image in enumerate(images):
            alone, spent = run(model, image[None])
            torch.testing.assert_close(alone[0], logits[index], rtol=1e-4, atol=1e-4)
            assert spent.flops[0] == ponder.flops[index]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "prepare",
    [
        lambda model, images: (model, images.to(memory_format=torch.channels_last)),
        lambda model, images: (
            model.to(memory_format=torch.channels_last),
            images.to(memory_format=torch.channels_last),
        ),
        lambda model, images: (model, images[:, :, ::2, 3:35]),
        lambda model, images: (model.double(), images.double()),
    ],
    ids=["channels_last images", "channels_last network", "strided images", "float64"],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_layouts_types_and_modes(small, kind: str, prepare, mode) -> None:
    model, images = prepare(small(kind=kind), torch.randn(2, 3, 64, 40))
    with torch.no_grad():
        theirs = run(model, images.contiguous())
    before = images.clone()
    with mode():
        ours = run(sact.compile(model, "gather"), images)
    check_same((ours[0].detach(), ours[1]), theirs)
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("low", ["bfloat16 network", "autocast"])
def test_low_precision_stays_near_the_float32_network(small, kind: str, low: str) -> None:
    """At most twice the error of the definition at the same precision, plus one rounding."""
    model = small("resnet", kind, units=[6], base_channels=8)
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        exact, exact_ponder = run(model, images)
        if low == "bfloat16 network":
            model, images = model.bfloat16(), images.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=low == "autocast"):
            masked, masked_ponder = run(model, images)
            ours, our_ponder = run(sact.compile(model, "gather"), images)
    assert ours.dtype == torch.bfloat16
    assert our_ponder.cost.dtype == torch.float32
    one_rounding = 2**-8 * exact.abs().max()
    assert (ours - exact).abs().mean() <= 2 * (masked - exact).abs().mean() + one_rounding
    disagree = [(p.blocks[0].units != exact_ponder.blocks[0].units).float().mean() for p in (our_ponder, masked_ponder)]
    assert disagree[0] <= 2 * disagree[1] + 0.02


def test_threads_share_a_compiled_network(small) -> None:
    model = sact.compile(small("resnet", units=[6, 6]), "gather")
    batches = [torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]

    def logits(images: Tensor) -> Tensor:
        with torch.no_grad():
            return model(images)

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(logits, batches))
    assert all(torch.equal(ours, logits(images)) for ours, images in zip(together, batches, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_sact_executes_the_flops_it_counts(small, always_perforated, name: str) -> None:
    """PyTorch's own counter of executed convolutions and matrix products against the paper's count."""
    model = small(name, units=[5, 4])
    fast, images = sact.compile(model, "gather"), torch.randn(3, 3, 64, 48)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _, ponder = fast(images, return_ponder=True)
    assert all(block.units.max() == block.max_units for block in ponder.blocks), "every unit is reached somewhere"
    # Scores are multiplied before they are gathered, at the dilated positions: a little more than is counted.
    dilated = sum(
        int((dilate(block.units >= index, 1).sum() - (block.units >= index).sum()) * unit.score_local)
        for block in ponder.blocks
        for index, unit in enumerate(block.description.units, start=1)
    )
    assert counter.get_total_flops() == ponder.flops.sum() + dilated
    with torch.no_grad(), FlopCounterMode(display=False) as dense:
        model(images)
    always = 3 * ponder.fixed_flops
    assert counter.get_total_flops() - dilated - always < 0.9 * (dense.get_total_flops() - always)


@pytest.mark.parametrize("name", FAMILIES)
def test_act_executes_the_flops_it_counts(small, name: str) -> None:
    fast = sact.compile(small(name, "act", units=[5, 4]), "gather")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _, ponder = fast(torch.randn(6, 3, 32, 32), return_ponder=True)
    assert len(ponder.blocks[0].units.unique()) > 1
    assert counter.get_total_flops() == ponder.flops.sum()


def test_small_inputs_run_dense(small, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = small(), torch.randn(1, 3, 32, 32)
    expected = run(model, images)
    calls: list[int] = []
    perforated = gather.perforated
    monkeypatch.setattr(gather, "perforated", lambda *args: calls.append(1) or perforated(*args))
    with torch.no_grad():
        check_same(run(sact.compile(model, "gather"), images), expected)
        assert calls
        calls.clear()
        monkeypatch.setattr(gather, "SMALL_INPUT", 1 << 17)
        check_same(run(sact.compile(model, "gather"), images), expected)
    assert not calls


def test_act_drops_images_and_stops(small) -> None:
    model = small("cifar_resnet", "act", units=[5])
    seen: list[int] = []
    for unit in model.blocks[0].units:
        unit.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    with torch.no_grad():
        _, ponder = sact.compile(model, "gather")(torch.randn(8, 3, 32, 32), return_ponder=True)
        units = ponder.blocks[0].units
        assert seen == [int((units >= unit).sum()) for unit in range(1, units.max() + 1)]
        assert len(set(seen)) > 1
        seen.clear()
        force_halting(model, 50.0)
        sact.compile(model, "gather")(torch.randn(8, 3, 32, 32))
    assert seen == [8]


def test_sact_stops_where_all_have_halted(small, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("resnet", units=[5])
    force_halting(model, 50.0)
    listed: list[int] = []
    convolve = gather.convolve
    monkeypatch.setattr(gather, "convolve", lambda *args, **kw: listed.append(len(args[1])) or convolve(*args, **kw))
    monkeypatch.setattr(gather, "perforated", None)
    with torch.no_grad():
        sact.compile(model, "gather")(torch.randn(2, 3, 32, 32))
    assert listed == [2 * 8 * 8]  # the first unit's score, nothing after it


class PeakMemory(TorchDispatchMode):
    """Bytes of tensors alive at once among those made inside, as seen after each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.known = weakref.WeakSet()
        self.alive = 0
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        old = {leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            storage = leaf.untyped_storage() if isinstance(leaf, Tensor) else None
            if storage is not None and storage not in self.known and storage not in old:
                self.known.add(storage)
                self.alive += storage.nbytes()
                weakref.finalize(storage, self.release, storage.nbytes())
        self.peak = max(self.peak, self.alive)
        return result

    def release(self, size: int) -> None:
        self.alive -= size


def test_narrow_blocks_train_by_the_definition(small, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = small("resnet", units=[3, 3], base_channels=8), torch.randn(2, 3, 32, 32)  # 32 and 64 channels
    monkeypatch.setattr(gather, "FEW_CHANNELS", 64)
    ran: list[int] = []
    run_positions = gather.run_positions
    monkeypatch.setattr(
        gather,
        "run_positions",
        lambda block, *rest: ran.append(block.units[0].out_channels) or run_positions(block, *rest),
    )
    fast = sact.compile(model, "gather")
    fast(images)
    assert ran == [64]
    with torch.no_grad():
        fast(images)
    assert ran == [64, 32, 64]


@pytest.mark.parametrize("engine", ["masked", "gather"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_inference_memory_does_not_grow_with_the_units(
    small, always_perforated, name: str, kind: str, engine: str
) -> None:
    images = torch.randn(2, 3, 64, 64)
    state = 4 * 2 * 8 * 64 * 64  # bytes, in both families

    def peak(units: int) -> int:
        model = small(name, kind, units=[units], base_channels=32 if name == "resnet" else 8)
        force_halting(model, -50.0)
        fast = sact.compile(model, engine)
        fast(images)  # the gather engine folds norms here, into what counts as parameters
        with PeakMemory() as memory:
            _, ponder = fast(images, return_ponder=True)
        assert ponder.blocks[0].units.max() == units
        return memory.peak

    with torch.no_grad():
        shallow, deep = peak(4), peak(24)
    assert deep <= shallow + state
    if engine == "masked":
        assert peak(24) >= peak(4) + 20 * state, "training keeps the states, and the measurement sees them"


def test_norms_in_training_mode_run_by_the_definition(small) -> None:
    model, images = small(), torch.randn(2, 3, 32, 32)
    model.blocks[1].units[2].branch.norm1.train()
    fast = sact.compile(copy.deepcopy(model), "gather")
    with torch.no_grad():
        check_same(run(fast, images), run(model, images))
    ours, theirs = (m.state_dict()["blocks.1.units.2.branch.norm1.running_mean"] for m in (fast.model, model))
    torch.testing.assert_close(ours, theirs)
    assert sact.compile(model).training is model.training


def test_a_fresh_network_compiles_and_runs() -> None:
    fast = sact.compile(sact.create_model("cifar_resnet20", halting="sact"))
    assert fast(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_training_through_masked_equals_the_network(small) -> None:
    models = [small().train() for _ in range(2)]
    images = torch.randn(4, 3, 32, 32)
    for call in (models[0], sact.compile(models[1], "masked")):
        logits, ponder = call(images, return_ponder=True)
        (logits.square().mean() + ponder.cost.mean()).backward()
    pairs = zip(models[0].named_parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(ours.grad, theirs.grad) for (_, ours), theirs in pairs)


def step(model: sact.Network) -> None:
    """One step of an optimizer."""
    parameters = list(model.blocks.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    torch.optim.SGD(parameters, lr=0.1).step()


def replace_parameter(model: sact.Network) -> None:
    conv = model.blocks[0].units[1].branch.conv1
    conv.weight = nn.Parameter(2 * conv.weight.detach())


def give_a_bias(model: sact.Network) -> None:
    model.blocks[0].units[1].branch.conv1.bias = nn.Parameter(torch.ones(4))


def replace_module(model: sact.Network) -> None:
    model.blocks[0].units[1].branch.conv1 = nn.Conv2d(4, 4, 3, padding=1)


@torch.no_grad()
def double_in_place(model: sact.Network) -> None:
    model.blocks[0].units[1].branch.conv1.weight.mul_(2)


@torch.no_grad()
def move_statistics(model: sact.Network) -> None:
    model.blocks[0].units[1].branch.norm1.running_mean.add_(0.5)


def halt_earlier(model: sact.Network) -> None:
    for block in model.blocks:
        block.eps = 0.7


def widen_norms(model: sact.Network) -> None:
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 0.5


def load_other(model: sact.Network, assign: bool = False) -> None:
    torch.manual_seed(5)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.blocks.parameters():
            parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
    model.load_state_dict(other.state_dict(), assign=assign)


@pytest.mark.parametrize(
    "change",
    [
        double_in_place,
        move_statistics,
        step,
        replace_parameter,
        replace_module,
        give_a_bias,
        load_other,
        lambda model: load_other(model, assign=True),
        sact.Network.double,
        halt_earlier,
        widen_norms,
    ],
    ids=[
        "in place",
        "running statistics",
        "optimizer",
        "other parameter",
        "other module",
        "new bias",
        "load_state_dict",
        "assigned",
        "dtype",
        "eps of halting",
        "eps of norms",
    ],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("engine", ["gather", NATIVE])
def test_changed_weights_are_seen(small, always_perforated, change, mode, engine: str) -> None:
    model = small()
    fast, images = sact.compile(model, engine), torch.randn(2, 3, 32, 32)
    with mode():
        before = fast(images)
    change(model)
    images = images.to(model.stem.conv.weight.dtype)
    with mode():
        after, expected = run(fast, images), run(model, images)
    check_same(after, expected)
    assert model.stem.conv.weight.dtype == torch.float64 or not torch.allclose(before, after[0], atol=1e-3)


@pytest.mark.parametrize("engine", ["gather", NATIVE])
@torch.no_grad()
def test_frozen_networks_are_not_looked_through(small, always_perforated, monkeypatch, engine: str) -> None:
    model, images = small(), torch.randn(2, 3, 32, 32)
    fast, expected = sact.compile(model, engine, freeze=True), run(model, images)

    def forbidden(watch: Watch) -> bool:
        raise AssertionError("looked for changes")

    monkeypatch.setattr(Watch, "unchanged", forbidden)
    for frozen in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        for _ in range(2):
            check_same(run(frozen, images), expected)
    watched = sact.compile(model, engine)
    run(watched, images)
    with pytest.raises(AssertionError, match="looked for changes"):
        run(watched, images)


@pytest.mark.parametrize("engine", ["masked", "gather", NATIVE])
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda fast: pickle.loads(pickle.dumps(fast))], ids=["copy", "pickle"]
)
def test_copies_are_independent(small, engine: str, copied) -> None:
    fast, images = sact.compile(small(), engine), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = fast(images)
        twin = copied(fast)
        assert torch.equal(twin(images), before)
        for parameter in fast.model.parameters():
            parameter.zero_()
        assert torch.equal(twin(images), before)
        assert (fast(images) == 0).all()
    assert twin.engine == engine


def test_compile_again_and_by_name(small) -> None:
    model = small()
    fast = sact.compile(model)
    assert fast.engine == ("native" if has_native() else "gather")
    again = sact.compile(fast, "masked")
    assert again.model is model
    assert again.engine == "masked"


def test_compiled_features_and_plain_networks(make_model) -> None:
    model = make_model("resnet", units=[2, 2], base_channels=4, features_only=True)
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        for ours, theirs in zip(sact.compile(model, "gather")(images), model(images), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("target", "engine", "message"),
    [("network", "fast", '"fast"'), ("network", None, '"None"'), ("linear", "auto", "Linear")],
)
def test_compile_refuses(small, target: str, engine: Any, message: str) -> None:
    with pytest.raises(sact.InputError, match=message):
        sact.compile(small() if target == "network" else nn.Linear(1, 1), engine)

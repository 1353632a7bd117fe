"""`sact.engines.triton` and its kernels; without a GPU in Triton's interpreter, on the CPU."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DEVICE, HAS_TRITON, MakeModel, needs_cuda, needs_triton
from test_engines import check_same, force_halting, run
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import sact
from sact import halting
from sact.engines import gather, ops, triton
from sact.flops import dilate

if HAS_TRITON:
    from sact.engines import launch

pytestmark = needs_triton
KINDS = ["act", "sact"]
FAMILIES = ["resnet", "cifar_resnet"]


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 products without TF32, so that results can be compared closely."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def small(make_model: MakeModel):
    """A network of two blocks in which halting varies."""

    def make(name: str = "resnet", kind: str = "sact", **options: Any) -> sact.Network:
        defaults = {"halting": kind, "units": [4, 3], "base_channels": 4, "num_classes": 5}
        return make_model(name, **(defaults | options)).to(DEVICE)

    return make


@pytest.fixture
def many_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are made by several programs, the last of which has few positions."""
    monkeypatch.setattr(launch, "SEGMENT", 64)


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def table_for(active: Tensor, kernel: int) -> Tensor:
    """The neighbours of the active positions among all, by brute force."""
    _, height, width = active.shape
    rows = []
    for n, y, x in active.nonzero().tolist():
        reach = range(-(kernel // 2), kernel // 2 + 1)
        for down, right in itertools.product(reach, reach):
            inside = 0 <= y + down < height and 0 <= x + right < width
            rows.append((n * height + y + down) * width + x + right if inside else -1)
    return torch.tensor(rows, device=active.device).view(-1, kernel * kernel)


def conv_case(kernel: int, dtype: torch.dtype = torch.float32, outputs: int = 21) -> dict[str, Any]:
    """Arguments of `ops.perforated_conv` at some positions of two pictures."""
    torch.manual_seed(kernel)
    active = torch.rand(2, 7, 6) < 0.4
    return {
        "values": torch.randn(84, 18, device=DEVICE, dtype=dtype),
        "rows": table_for(active.to(DEVICE), kernel),
        "weight": torch.randn(outputs, 18, kernel, kernel, device=DEVICE, dtype=dtype) / 8,
        "bias": torch.randn(outputs, device=DEVICE, dtype=dtype),
        "scale": torch.rand(18, device=DEVICE) + 0.5,
        "shift": torch.randn(18, device=DEVICE),
        "slope": 0.0,
    }


VARIANTS: list[dict[str, Any]] = [
    {},
    {"bias": None},
    {"scale": None, "shift": None},
    {"scale": None, "shift": None, "slope": 1.0},
    {"slope": 0.1},
    {"slope": 1.0},
]


def on_cpu(case: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in case.items()}


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    "change", VARIANTS, ids=lambda change: " ".join(f"{k}={v}" for k, v in change.items()) or "all"
)
def test_conv_equals_its_definition_with_every_gradient(kernel: int, change: dict[str, Any]) -> None:
    case = conv_case(kernel) | change
    padded = torch.cat([case["rows"], torch.full((5, kernel * kernel), -1, device=DEVICE)])
    for rows in (case["rows"], padded, None) if kernel == 1 else (case["rows"], padded):
        args = case | {"rows": rows}
        ours, theirs = launch.conv(**args), ops.perforated_conv(**on_cpu(args))
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-4)
        grad = torch.randn_like(ours)
        del args["bias"]
        names = ("values", "rows", "weight", "scale", "shift", "slope")
        wants = [True, True, True, args["scale"] is not None]
        our_gradients = launch.conv_backward(grad, *[args[name] for name in names], wants)
        their_gradients = ops.perforated_conv_backward(grad.cpu(), *[on_cpu(args)[name] for name in names], wants)
        for ours, theirs in zip(our_gradients, their_gradients, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conv_in_low_precision_is_as_near_as_pytorchs(dtype: torch.dtype) -> None:
    """At most twice the error of PyTorch's own in the same precision (gradients three times), plus one rounding."""
    case = conv_case(3, outputs=16)
    case["rows"] = table_for(torch.ones(2, 7, 6, dtype=torch.bool, device=DEVICE), 3)
    low = {n: v.to(dtype) if n in ("values", "weight", "bias") else v for n, v in case.items()}

    def results(args: dict[str, Any], convolve: Callable[..., Tensor]) -> list[Tensor]:
        values, weight = (args[name].detach().clone().requires_grad_() for name in ("values", "weight"))
        out = convolve(values, weight, args)
        (out.float() ** 2).mean().backward()
        return [tensor.float() for tensor in (out.detach(), values.grad, weight.grad)]

    def pytorch(values: Tensor, weight: Tensor, args: dict[str, Any]) -> Tensor:
        normed = (values.float() * args["scale"] + args["shift"]).relu().to(values.dtype)
        normed = normed.view(2, 7, 6, 18).permute(0, 3, 1, 2)
        return torch.nn.functional.conv2d(normed, weight, args["bias"], padding=1).permute(0, 2, 3, 1).reshape(84, -1)

    def kernels(values: Tensor, weight: Tensor, args: dict[str, Any]) -> Tensor:
        return Convolve.apply(values, weight, args)

    exact, theirs, ours = results(case, pytorch), results(low, pytorch), results(low, kernels)
    rounding = torch.finfo(dtype).eps
    for factor, truth, mine, other in zip((2, 3, 3), exact, ours, theirs, strict=True):
        allowed = factor * (other - truth).abs().mean() + rounding * truth.abs().mean()
        assert (mine - truth).abs().mean() <= allowed


class Convolve(torch.autograd.Function):
    """The kernels behind autograd, also where the operator would not choose them."""

    @staticmethod
    def forward(ctx, values: Tensor, weight: Tensor, args: dict[str, Any]) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.args = args
        return launch.conv(**(args | {"values": values, "weight": weight}))

    @staticmethod
    def backward(ctx, grad: Tensor):
        values, weight = ctx.saved_tensors
        args = [ctx.args[name] for name in ("scale", "shift", "slope")]
        by_values, by_weight, _, _ = launch.conv_backward(
            grad, values, ctx.args["rows"], weight, *args, [True, True, False, False]
        )
        return by_values, by_weight, None


@pytest.mark.parametrize("segment", [16, 1024], ids=["many segments", "one segment"])
@pytest.mark.parametrize("forced", [False, True])
def test_halting_step_equals_its_definition(monkeypatch: pytest.MonkeyPatch, segment: int, forced: bool) -> None:
    monkeypatch.setattr(launch, "SEGMENT", segment)
    torch.manual_seed(0)
    shape, length, eps = (2, 5, 7), 4, 0.05
    ours = launch.Halting(2, (5, 7), length, torch.device(DEVICE), keep=True)
    theirs, weights = halting.start(torch.zeros(shape)), []
    wanted = torch.randint(1, length + 1, shape, dtype=torch.int32)
    bias = torch.tensor([-0.8])
    for index in range(length - 1):
        products, partials = torch.randn(70, launch.PRODUCTS), torch.randn(2, 3) / 3
        padded = torch.nn.functional.pad(products.view(2, 5, 7, -1), (0, 0, 1, 1, 1, 1))
        logit = partials.sum(1)[:, None, None] + bias
        for tap in range(9):
            logit = logit + padded[:, tap // 3 : tap // 3 + 5, tap % 3 : tap % 3 + 7, tap]
        score = (wanted == index + 1).float() if forced else logit.sigmoid()
        # What is not active has no products.
        wide = dilate(theirs.active, 1)
        products[~wide.flatten()] = float("nan")
        on_device = [tensor.to(DEVICE) for tensor in (products, partials, bias)]
        ours.step(*on_device, eps, index, wanted.flatten().to(DEVICE) if forced else None)
        theirs, weight = halting.step(theirs, score, eps)
        weights.append(weight)
        torch.testing.assert_close(ours.cumulative.cpu().view(shape), theirs.cumulative)
        torch.testing.assert_close(ours.remainder.cpu().view(shape), theirs.remainder)
        assert torch.equal(ours.units.cpu().view(shape), theirs.units)
        assert torch.equal(ours.active.cpu().view(shape) != 0, theirs.active)
        for listed, total, expected in (
            (ours.listed, ours.total, theirs.active),
            (ours.wide_listed, ours.wide_total, dilate(theirs.active, 1)),
        ):
            positions = expected.flatten().nonzero()[:, 0]
            assert total[0] == len(positions)
            assert listed[: len(positions)].tolist() == positions.tolist()
        assert ours.totals[index, 0] == theirs.active.sum()
    ours.end()
    theirs, weight = halting.step(theirs, None, eps)
    assert torch.equal(ours.units.cpu().view(shape), theirs.units)
    assert ours.distribution is not None
    torch.testing.assert_close(ours.distribution.cpu(), torch.stack([*weights, weight], 1))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dense_share", [0.0, 2.0], ids=["dense units", "listed units"])
@torch.no_grad()
def test_engine_equals_masked(small, many_segments, monkeypatch, name: str, dense_share: float) -> None:
    monkeypatch.setattr(triton, "DENSE_SHARE", dense_share)
    monkeypatch.setattr(triton, "OBSERVED_CALLS", 1)
    model, batch = small(name, units=[3, 3]), images(1 if name == "cifar_resnet" else 3, 3, 33, 36)
    fast = sact.compile(model, "triton")
    expected = run(model, batch)
    for _ in range(2):  # the plan is made in between
        check_same(run(fast, batch), expected)
    assert all(len(block.units.unique()) > 1 for block in expected[1].blocks), "halting varies"


@torch.no_grad()
def test_busy_units_are_convolved_by_pytorch(small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units whose share was high, once the shares of the first calls are known, and then for good."""
    monkeypatch.setattr(triton, "DENSE_SHARE", 0.5)
    model, batch = small(units=[5]), images(2, 3, 32, 32)
    forced = torch.full((2, 8, 8), 3, device=DEVICE)
    forced[0, :2] = 5  # the units behind the first have shares of 1, 1, 1/8, 1/8
    model.blocks[0].forced_units = forced
    fast, calls = sact.compile(model, "triton"), []
    run_unit = triton._run_unit
    monkeypatch.setattr(triton, "_run_unit", lambda *args: calls.append(args[-1]) or run_unit(*args))
    seen = []
    for _ in range(triton.OBSERVED_CALLS + 3):
        check_same(run(fast, batch), run(model, batch))
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seen.append(calls.copy())
        calls.clear()
        if len(seen) > triton.OBSERVED_CALLS:
            forced[:] = 2  # later calls decide nothing
    assert seen[0] == [False] * 4
    assert seen[-3:] == [[True, True, False, False]] * 3


@pytest.mark.parametrize(("bias", "units"), [(50.0, 1), (-50.0, 4)], ids=["all halt at once", "none halts"])
@torch.no_grad()
def test_extremes(small, bias: float, units: int) -> None:
    model, batch = small(), images(2, 3, 32, 32)
    force_halting(model, bias)
    result = run(sact.compile(model, "triton"), batch)
    check_same(result, run(model, batch))
    assert result[1].blocks[0].units.unique().tolist() == [units]


@torch.no_grad()
def test_single_images_equal_their_batch(small) -> None:
    fast, batch = sact.compile(small(), "triton"), images(3, 3, 33, 40)
    logits, ponder = run(fast, batch)
    for index, image in enumerate(batch):
        alone, spent = run(fast, image[None])
        torch.testing.assert_close(alone[0], logits[index], rtol=1e-4, atol=1e-4)
        assert spent.flops[0] == ponder.flops[index]


@torch.no_grad()
def test_forced_units_are_obeyed(small) -> None:
    model, batch = small(), images(2, 3, 48, 32)
    for block, size in zip(model.blocks, ((12, 8), (6, 4)), strict=True):
        block.forced_units = torch.randint(1, len(block.units) + 1, (2, *size), device=DEVICE)
    ours = run(sact.compile(model, "triton"), batch)
    check_same(ours, run(model, batch))
    assert torch.equal(ours[1].blocks[0].units, model.blocks[0].forced_units.int())


@pytest.mark.parametrize("dense_share", [0.0, 2.0], ids=["dense units", "listed units"])
@torch.no_grad()
def test_unwritten_memory_is_never_read(
    small, many_segments, monkeypatch: pytest.MonkeyPatch, dense_share: float
) -> None:
    monkeypatch.setattr(triton, "DENSE_SHARE", dense_share)
    monkeypatch.setattr(triton, "OBSERVED_CALLS", 1)
    model, batch = small(), images(2, 3, 32, 32)
    expected = run(model, batch)
    fast = sact.compile(model, "triton")
    empty, new_empty = torch.empty, Tensor.new_empty

    def poison(tensor: Tensor) -> Tensor:
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 3)

    monkeypatch.setattr(torch, "empty", lambda *args, **options: poison(empty(*args, **options)))
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *args, **options: poison(new_empty(self, *args, **options)))
    for _ in range(2):
        check_same(run(fast, batch), expected)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16, "autocast"], ids=str)
@torch.no_grad()
def test_low_precision_stays_near_the_float32_network(small, low: Any) -> None:
    """At most twice the error of the definition at the same precision, plus one rounding."""
    model, batch = small(units=[6], base_channels=8), images(4, 3, 64, 64)
    exact, exact_ponder = run(model, batch)
    if low != "autocast":
        model, batch = model.to(low), batch.to(low)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=low == "autocast"):
        masked, masked_ponder = run(model, batch)
        ours, our_ponder = run(sact.compile(model, "triton"), batch)
    assert ours.dtype == masked.dtype
    assert our_ponder.cost.dtype == torch.float32
    one_rounding = torch.finfo(ours.dtype).eps * exact.abs().max()
    assert (ours - exact).abs().mean() <= 2 * (masked - exact).abs().mean() + one_rounding
    disagree = [(p.blocks[0].units != exact_ponder.blocks[0].units).float().mean() for p in (our_ponder, masked_ponder)]
    assert disagree[0] <= 2 * disagree[1] + 0.02


@torch.no_grad()
def test_results_are_the_same_bits_each_time_and_channels_last(small) -> None:
    fast, batch = sact.compile(small(), "triton"), images(2, 3, 40, 32)
    first = run(fast, batch)
    again = run(fast, batch)
    assert torch.equal(again[0], first[0])
    assert torch.equal(again[1].cost, first[1].cost)
    check_same(run(fast, batch.contiguous(memory_format=torch.channels_last)), first)


class NoWaiting(TorchDispatchMode):
    """Raises where the host would wait for the device."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        assert name not in self.WAITS, f"{name} makes the host wait"
        result = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_") and isinstance(args[0], Tensor):
            assert result.device == args[0].device, "a copy to the host makes it wait"
        return result


@torch.no_grad()
def test_the_host_never_waits(small, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = small(), images(2, 3, 32, 32)
    monkeypatch.setattr(
        sact.Network, "check_images", lambda *args, **options: None
    )  # looks at values, on the CPU alone
    fast = sact.compile(model, "triton")
    with NoWaiting():
        run(fast, batch)
    with pytest.raises(AssertionError, match="makes the host wait"), NoWaiting():
        run(sact.compile(model, "gather"), batch)


def double(model: sact.Network) -> None:
    with torch.no_grad():
        model.blocks[0].units[1].branch.conv1.weight.mul_(2)


def move_statistics(model: sact.Network) -> None:
    with torch.no_grad():
        model.blocks[0].scores[0].local_norm.running_mean.add_(0.5)


@pytest.mark.parametrize("change", [double, move_statistics])
@torch.no_grad()
def test_changed_weights_are_seen_unless_frozen(small, change: Callable[[sact.Network], None]) -> None:
    model, batch = small(), images(2, 3, 32, 32)
    fast, frozen = sact.compile(model, "triton"), sact.compile(model, "triton", freeze=True)
    before = run(fast, batch)
    check_same(run(frozen, batch), before)
    change(model)
    after = run(model, batch)
    check_same(run(fast, batch), after)
    assert not torch.allclose(before[1].cost, after[1].cost, atol=1e-3)
    # Blocks are packed; what runs outside of them is the network's own.
    assert torch.equal(run(frozen, batch)[1].blocks[0].cost, before[1].blocks[0].cost)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda fast: pickle.loads(pickle.dumps(fast))], ids=["copy", "pickle"]
)
@torch.no_grad()
def test_copies_are_independent(small, copied) -> None:
    fast, batch = sact.compile(small(), "triton"), images(2, 3, 32, 32)
    before = fast(batch)
    twin = copied(fast)
    for parameter in fast.model.parameters():
        parameter.zero_()
    assert torch.equal(twin(batch), before)
    assert twin.engine == "triton"


@pytest.mark.parametrize("kind", ["act", "none"])
@torch.no_grad()
def test_other_networks_run(small, kind: str) -> None:
    model, batch = small(kind=kind), images(2, 3, 32, 32)
    logits, ponder = sact.compile(model, "triton")(batch, return_ponder=True)
    expected, spent = model(batch, return_ponder=True)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(ponder.flops, spent.flops)


@torch.no_grad()
def test_features(make_model: MakeModel) -> None:
    model = make_model("resnet", halting="sact", units=[3, 2], base_channels=4, features_only=True).to(DEVICE)
    batch = images(2, 3, 40, 40)
    for ours, theirs in zip(sact.compile(model, "triton")(batch), model(batch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_gradients_and_training_come_from_gather(small, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = small(), images(2, 3, 32, 32)
    fast = sact.compile(model, "triton")
    monkeypatch.setattr(triton, "run_positions", None)
    gradients = []
    for network in (fast, model):
        logits, ponder = network(batch, return_ponder=True)
        loss = logits.square().mean() + ponder.cost.mean()
        gradients.append(torch.autograd.grad(loss, list(model.stem.parameters())))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    model.train()
    with torch.no_grad():
        fast(batch)
    model.eval()
    with torch.no_grad(), pytest.raises(TypeError):
        fast(batch)


@torch.no_grad()
def test_what_the_kernels_lack_runs_in_gather(small) -> None:
    model, batch = small(), images(2, 3, 32, 32)
    model.blocks[0].units[1].branch.act1 = nn.SiLU()
    fast = sact.compile(model, "triton")
    with pytest.warns(UserWarning, match="SiLU"):
        logits = fast(batch)
    torch.testing.assert_close(logits, model(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["float64", "images on the CPU"])
@torch.no_grad()
def test_what_is_not_for_the_kernels_runs_in_gather(small, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model, batch = small(), images(2, 3, 32, 32)
    if name == "float64":
        model, batch = model.double(), batch.double()
    else:
        model, batch = model.cpu(), batch.cpu()
        monkeypatch.setattr(launch, "INTERPRETED", False)
    called: list[str] = []
    run_positions = gather.run_positions
    monkeypatch.setattr(triton, "check_device", lambda: None)
    monkeypatch.setattr(gather, "run_positions", lambda *args: called.append("gather") or run_positions(*args))
    fast = sact.compile(model, "triton")
    torch.testing.assert_close(fast(batch), model(batch), rtol=1e-4, atol=1e-4)
    assert called == ["gather"] * 2


class StandIn:
    """For a graph: remembers the images that it was made for."""

    made: list[tuple[int, ...]]

    def __init__(self, images: Tensor, call: Callable[..., Any]) -> None:
        self.made.append(tuple(images.shape))
        self.call = call

    def replay(self, images: Tensor) -> Any:
        self.made.append(("replayed", *images.shape))
        return self.call(images)


@pytest.mark.parametrize("fails", [False, True])
@torch.no_grad()
def test_frozen_networks_are_captured_per_image_size(small, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Once the plans of that size are made, whatever other sizes were seen; not a second time where it fails."""
    monkeypatch.setattr(StandIn, "made", [], raising=False)
    monkeypatch.setattr(triton, "Graph", StandIn)
    monkeypatch.setattr(triton, "on_gpu", lambda images: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    if fails:
        monkeypatch.setattr(StandIn, "__init__", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    fast = sact.compile(small(units=[3]), "triton", freeze=True)
    watched = sact.compile(fast.model, "triton")
    seldom, often = images(1, 3, 32, 40), images(1, 3, 32, 32)
    fast(seldom)
    expected = run(fast.model, often)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(triton.OBSERVED_CALLS + 3):
            check_same(run(fast, often), expected)
            watched(often)
    assert len([one for one in caught if "out of memory" in str(one.message)]) == int(fails)
    shape = tuple(often.shape)
    assert StandIn.made == ([] if fails else [shape, ("replayed", *shape), ("replayed", *shape)])


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU every operator runs in Triton anyhow")
def test_operators_run_in_triton(small, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training step whose convolutions are the kernels'."""
    monkeypatch.setattr(gather, "SMALL_INPUT", 0)
    monkeypatch.setattr(gather, "FEW_CHANNELS", 0)
    model, batch = small(), images(2, 3, 32, 32)
    gradients = []
    for routed in (False, True):
        monkeypatch.setattr(ops, "runs_in_triton", lambda values, routed=routed: routed)
        logits, ponder = sact.compile(model, "gather")(batch, return_ponder=True)
        loss = logits.square().mean() + 0.1 * ponder.cost.mean()
        gradients.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())


@pytest.mark.parametrize("kernel", [1, 3])
def test_operators_pass_opcheck_in_triton(monkeypatch: pytest.MonkeyPatch, kernel: int) -> None:
    monkeypatch.setattr(ops, "runs_in_triton", lambda values: True)
    case = conv_case(kernel)
    leaves = {n: v.requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in case.items()}
    torch.library.opcheck(ops.perforated_conv, tuple(leaves.values()), rtol=1e-3, atol=1e-3)


def in_a_fresh_process(code: str) -> str:
    """What it prints, in a process in which kernels are not interpreted and no GPU is to be seen."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_gpu_there_is_a_clear_error_and_another_choice() -> None:
    printed = in_a_fresh_process(
        "import sact\n"
        "model = sact.create_model('cifar_resnet20', halting='sact')\n"
        "print(sact.compile(model).engine)\n"
        "try:\n    sact.compile(model, 'triton')\n"
        "except sact.InputError as error:\n    print(error)\n"
    )
    chosen, error = printed.splitlines()
    assert chosen in ("native", "gather")
    assert "no CUDA device" in error
    assert 'engine="auto"' in error


@pytest.mark.parametrize(("device", "engine"), [("cuda", "triton"), ("mps", "gather")])
def test_auto_chooses_by_device(monkeypatch: pytest.MonkeyPatch, device: str, engine: str) -> None:
    from sact import engines

    monkeypatch.setattr(engines, "_has_native", lambda: False)
    assert engines.choose("auto", torch.device(device)) == engine


def test_an_engine_that_was_chosen_here_follows_the_device(small, monkeypatch: pytest.MonkeyPatch) -> None:
    from sact import compiled

    monkeypatch.setattr(compiled, "_device", lambda model: torch.device("cpu"))
    model = small().cpu()
    auto, named = sact.compile(model), sact.compile(model, "gather")
    before = auto.engine
    monkeypatch.setattr(compiled, "_device", lambda model: torch.device("cuda"))
    assert (auto.to(torch.float32).engine, named.to(torch.float32).engine) == ("triton", "gather")
    monkeypatch.setattr(compiled, "_device", lambda model: torch.device("cpu"))
    assert auto.float().engine == before


def test_kernels_compile_for_hopper_with_tensor_cores_and_asynchronous_copies() -> None:
    """Every launch of a network and of its training, compiled without a GPU: see `compile_kernels.py`."""
    code = (Path(__file__).parent / "compile_kernels.py").read_text()
    compiled: dict[str, list[tuple[str, int, bool, int]]] = {}
    for line in in_a_fresh_process(code).splitlines():
        name, dtype, products, loop, copies = line.split()
        compiled.setdefault(name, []).append((dtype, int(products), loop == "loop", int(copies)))
    assert set(compiled) == {
        f"{name}_kernel" for name in ("conv", "conv_weight", "pool", "halt", "widen", "list", "activate")
    }
    for name in ("conv", "conv_weight"):
        assert {dtype for dtype, *_ in compiled[name + "_kernel"]} == {"bfloat16", "float32"}
        assert all(
            products > 0 and (copies > 0 or not loops) for _, products, loops, copies in compiled[name + "_kernel"]
        )


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("freeze", [False, True], ids=["captured by the user", "captured by itself"])
@torch.no_grad()
def test_one_graph_replays_different_images(small, freeze: bool) -> None:
    model = small(units=[6, 4], base_channels=32)
    eager = sact.compile(model, "triton")
    fast = sact.compile(model, "triton", freeze=freeze)
    static = images(4, 3, 64, 64)
    for _ in range(triton.OBSERVED_CALLS + 2):
        run(eager, static), run(fast, static)
        torch.cuda.synchronize()
    if not freeze:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run(fast, static)
    for seed in range(100):
        batch = images(4, 3, 64, 64, seed=seed)
        if freeze:
            result = run(fast, batch)
        else:
            static.copy_(batch)
            graph.replay()
            result = captured
        expected = run(eager, batch)
        assert torch.equal(result[0], expected[0])
        assert torch.equal(result[1].blocks[0].units, expected[1].blocks[0].units)


@pytest.mark.gpu
@needs_cuda
@torch.no_grad()
def test_memory_does_not_grow_over_a_thousand_calls(small) -> None:
    fast, batch = sact.compile(small(), "triton", freeze=True), images(2, 3, 64, 64)
    for _ in range(10):
        fast(batch)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(1000):
        fast(batch)
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


@pytest.mark.gpu
@needs_cuda
def test_training_on_the_gpu_equals_the_definition(small) -> None:
    model, batch = small(units=[5, 4], base_channels=16), images(4, 3, 64, 64)
    gradients = []
    for network in (sact.compile(model, "triton"), model):
        logits, ponder = network(batch, return_ponder=True)
        loss = logits.square().mean() + 0.1 * ponder.cost.mean()
        gradients.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())

"""`sact.engines.native`: the numbers of the definition, whatever the shape, the mask, the layout, the thread."""

from __future__ import annotations

import copy
import gc
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeModel, has_native, needs_native
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sact
from sact import engines
from sact.engines import native
from sact.ponder import BlockPonder

Result = tuple[Tensor | list[Tensor], sact.Ponder]

ROOT = Path(__file__).parents[1]
FAMILIES = ["resnet", "cifar_resnet"]
KINDS = ["none", "act", "sact"]
VECTOR_WIDTHS = {"avx512": 16, "avx2": 8, "neon": 4, "portable": 4}

compiled = needs_native
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def isa(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Chooses the engine's instruction set for one test."""

    def choose(name: str) -> None:
        monkeypatch.setenv("SACT_NATIVE_ISA", name)
        native.library.cache_clear()

    yield choose
    native.library.cache_clear()


@pytest.fixture
def small(make_model: MakeModel) -> MakeModel:
    """A network of two blocks in which halting varies."""

    def make(name: str = "cifar_resnet", kind: str = "sact", **options: Any) -> sact.Network:
        defaults = {"halting": kind, "units": [4, 3], "base_channels": 4, "num_classes": 5}
        return make_model(name, **(defaults | options))

    return make


@torch.no_grad()
def run(model: nn.Module, images: Tensor) -> Result:
    return model(images, return_ponder=True, return_halting_distribution=True)


def check(model: sact.Network, images: Tensor, threads: int = 1) -> Result:
    """Run in the kernel and by the definition, compare, and return what the kernel gave."""
    torch.set_num_threads(threads)
    ours = run(sact.compile(model, "native"), images)
    torch.set_num_threads(1)  # where cores are shared, the definition's threads wait for each other most of the time
    check_same(ours, run(model, images), eps=model.config.eps)
    return ours


def check_same(ours: Result, theirs: Result, share: float = 1e-4, eps: float = 0.01) -> None:
    """Outputs within `share` of their maximum; costs and distributions within `share`; unit counts equal.

    An image is compared up to the first block where a unit count differs because a score lies at the threshold.
    """
    same = torch.ones(len(theirs[1].flops), dtype=torch.bool)
    outputs = [(pair if isinstance(pair, list) else [pair]) for pair in (ours[0], theirs[0])]
    features = isinstance(theirs[0], list)
    for index, (block, expected) in enumerate(zip(ours[1].blocks, theirs[1].blocks, strict=True)):
        if expected.cost is not None:
            same &= check_units(block, expected, same, 1 - eps)
            torch.testing.assert_close(block.cost[same], expected.cost[same], rtol=0, atol=share)
            torch.testing.assert_close(
                block.halting_distribution[same], expected.halting_distribution[same], rtol=0, atol=share
            )
        if features:
            close(outputs[0][index][same], outputs[1][index][same], share)
    assert torch.equal(ours[1].flops[same], theirs[1].flops[same])
    close(outputs[0][-1][same], outputs[1][-1][same], share)


def check_units(ours: BlockPonder, theirs: BlockPonder, compared: Tensor, threshold: float) -> Tensor:
    """Which images have equal unit counts; elsewhere the first to differ must be within 1e-5 of the threshold."""
    differ = ours.units != theirs.units
    first = torch.minimum(ours.units, theirs.units)
    longer = torch.where((ours.units > theirs.units)[:, None], ours.halting_distribution, theirs.halting_distribution)
    distance = (longer.cumsum(1).gather(1, first[:, None].long() - 1)[:, 0] - threshold).abs()
    for image in compared.nonzero()[:, 0]:
        if differ[image].any():
            earliest = differ[image] & (first[image] == first[image][differ[image]].min())
            assert (distance[image][earliest] < 1e-5).all(), "a unit count differs far from the threshold"
    return ~differ.reshape(len(differ), -1).any(1)


def close(ours: Tensor, theirs: Tensor, share: float) -> None:
    if len(theirs):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=share * theirs.abs().max().item())


def same_bits(ours: Result, theirs: Result) -> bool:
    pairs = [(ours[0], theirs[0])]
    for a, b in zip(ours[1].blocks, theirs[1].blocks, strict=True):
        pairs += [(a.units, b.units), (a.cost, b.cost), (a.halting_distribution, b.halting_distribution)]
    return all(a is b or torch.equal(a, b) for a, b in pairs)


def sizes(model: sact.Network, images: Tensor) -> list[tuple[int, int]]:
    """(H, W) of every block's output."""
    with torch.no_grad():
        _, ponder = model(images, return_ponder=True)
    return [tuple(block.description.out_size) for block in ponder.blocks]


def force(model: sact.Network, images: Tensor, pattern: Callable[[int, int, int], Tensor]) -> None:
    """Set every block's forced units to pattern(units, height, width), [H, W], turned by a quarter per image."""
    for block, (height, width) in zip(model.blocks, sizes(model, images), strict=True):
        maps = [pattern(len(block.units), height, width) for _ in range(len(images))]
        maps = [m.flip([(0,), (1,), (0, 1), ()][n % 4]) for n, m in enumerate(maps)]
        block.forced_units = torch.stack(maps) if block.halting == "sact" else torch.stack([m[0, 0] for m in maps])


def ones_but(index: Any, units: int, height: int, width: int) -> Tensor:
    """One unit everywhere, all units at an index."""
    result = torch.ones(height, width, dtype=torch.int64)
    result[index] = units
    return result


def checkerboard(units: int, height: int, width: int) -> Tensor:
    return torch.where((torch.arange(height)[:, None] + torch.arange(width)) % 2 == 0, units, 1)


def borders(units: int, height: int, width: int) -> Tensor:
    inner = ones_but(slice(None), units, height, width)
    inner[1:-1, 1:-1] = 1
    return inner


PATTERNS: dict[str, Callable[[int, int, int], Tensor]] = {
    "all active": partial(ones_but, slice(None)),
    "none after the first unit": lambda units, height, width: torch.ones(height, width, dtype=torch.int64),
    "one position": lambda units, height, width: ones_but((height // 2, width // 3), units, height, width),
    "a corner": partial(ones_but, (0, 0)),
    "the first row": partial(ones_but, 0),
    "the last column": partial(ones_but, (slice(None), -1)),
    "borders": borders,
    "all but a corner": lambda units, height, width: 1 + units - ones_but((-1, -1), units, height, width),
    "checkerboard": checkerboard,
    "half": lambda units, height, width: ones_but(slice(height // 2), units, height, width),
    "random": lambda units, height, width: torch.randint(1, units + 1, (height, width)),
}


def test_it_is_compiled_where_a_compiler_is() -> None:
    if not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        pytest.skip("no C++ compiler")
    assert native.library().sact_abi() == native.ABI


@compiled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet", {}),
        ("resnet", {"base_channels": 16, "in_channels": 1, "num_classes": 1}),
        ("resnet", {"units": [2, 3, 2, 2], "base_channels": 8, "eps": 0.3}),
        ("resnet", {"features_only": True, "base_channels": 5}),
        ("cifar_resnet", {}),
        ("cifar_resnet", {"base_channels": 7, "in_channels": 5, "num_classes": 33}),
        ("cifar_resnet", {"units": [1, 2, 5], "base_channels": 17, "eps": 0.3}),
        ("cifar_resnet", {"features_only": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "default",
)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (50, 35)], ids=str)
def test_equals_masked(small: MakeModel, name: str, options: dict[str, Any], kind: str, size: tuple[int, int]) -> None:
    check(small(name, kind, **options), torch.randn(2, options.get("in_channels", 3), *size))


@compiled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_batches_of_1_to_9(small: MakeModel, name: str, kind: str) -> None:
    model = small(name, kind)
    for count in (9, *range(1, 9)):
        check(model, torch.randn(count, 3, 33, 38))


@compiled
@pytest.mark.parametrize("kind", ["act", "sact"])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_masks(small: MakeModel, name: str, kind: str, pattern: str) -> None:
    model, images = small(name, kind), torch.randn(4, 3, 45, 34)
    force(model, images, PATTERNS[pattern])
    _, ponder = check(model, images)
    for block, spent in zip(model.blocks, ponder.blocks, strict=True):
        assert torch.equal(spent.units, block.forced_units.int())


@compiled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("pattern", ["all active", "none after the first unit", "random"])
def test_one_by_one_feature_maps(small: MakeModel, name: str, kind: str, pattern: str) -> None:
    model = small(name, kind, units=[2] * (4 if name == "resnet" else 6), base_channels=2)
    images = torch.randn(3, 3, 32, 32)
    assert sizes(model, images)[-1] == (1, 1)
    check(model, images)
    if kind != "none":
        force(model, images, PATTERNS[pattern])
        check(model, images)


@compiled
@pytest.mark.parametrize("pool_first", [True, False])
def test_large_maps_are_averaged_precisely(small: MakeModel, pool_first: bool) -> None:
    """A mean of many numbers far from zero is as good as the definition's, which adds up in pairs."""
    model = small("cifar_resnet" if pool_first else "resnet", units=[3], eps=0.3)
    size = 384 if pool_first else 1024
    for block in model.blocks:
        for unit in block.units:
            unit.stages()[-1].conv.bias.data += 3
    images = torch.randn(1, 3, size, size)
    force(model, images, PATTERNS["random"])
    exact = run(copy.deepcopy(model).double(), images.double())[0]
    ours, theirs = (run(fast, images)[0] for fast in (sact.compile(model, "native"), model))
    assert (ours - exact).abs().max() <= 4 * (theirs - exact).abs().max() + 1e-6 * exact.abs().max()


@compiled
@pytest.mark.parametrize("name", FAMILIES)
@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_and_mask(small: MakeModel, name: str, data: st.DataObject) -> None:
    count, height, width = (data.draw(st.integers(*limits)) for limits in ((1, 3), (32, 71), (32, 71)))
    units = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    channels = data.draw(st.integers(1, 9))
    share, seed = data.draw(st.sampled_from([0.02, 0.2, 0.5, 0.9, 1.0])), data.draw(st.integers(0, 1000))
    torch.manual_seed(seed)
    threads = data.draw(st.integers(1, 2))
    model = small(name, units=units, base_channels=channels, seed=seed, features_only=True)
    images = torch.randn(count, 3, height, width)
    force(model, images, lambda units, h, w: torch.where(torch.rand(h, w) < share, torch.randint(1, units + 1, ()), 1))
    check(model, images, threads)


def layouts() -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
        "every second pixel": lambda x: x[:, :, ::2, 1::2],
        "a window": lambda x: x[:, :, 5:51, 3:40],
        "turned": lambda x: x.transpose(2, 3),
        "one image many times": lambda x: x[:1].expand(4, -1, -1, -1),
        "one channel many times": lambda x: x[:, :1].expand(-1, 3, -1, -1),
        "one pixel everywhere": lambda x: x[:, :, :1, :1].expand(-1, -1, 40, 41),
        "some of the batch, backwards in channels": lambda x: x.flip(1)[1::2],
        "a negative view": lambda x: torch.complex(x, x).conj().imag,
    }


@compiled
@pytest.mark.parametrize("layout", layouts())
def test_images_of_any_layout(small: MakeModel, layout: str) -> None:
    images = layouts()[layout](torch.randn(3, 3, 64, 70))
    before = images.clone()
    model = small()
    ours = check(model, images)
    assert same_bits(ours, run(sact.compile(model, "native"), images.contiguous().clone()))
    assert torch.equal(images, before)


@compiled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("resnet", {"units": [2, 2, 2], "base_channels": 32}, (65, 90)),
        ("resnet", {"units": [2, 2], "base_channels": 128}, (33, 33)),
        ("cifar_resnet", {"units": [3, 2], "base_channels": 40}, (47, 40)),
    ],
    ids=["many positions", "many channels", "3x3"],
)
def test_results_do_not_depend_on_the_thread_count(
    small: MakeModel, name: str, kind: str, options: dict[str, Any], size: tuple[int, int]
) -> None:
    """Bit for bit, also where a thread comes and goes."""
    model = small(name, kind, **options)
    fast, images = sact.compile(model, "native"), torch.randn(2, 3, *size)
    alone = check(model, images)
    for threads in (2, 3, 5, 2, 1):
        torch.set_num_threads(threads)
        assert same_bits(run(fast, images), alone), threads


@compiled
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_threads_are_those_of_pytorch(small: MakeModel) -> None:
    """As many, and the same ones: two sets that wait in busy loops would take the cores from each other."""
    fast, images = sact.compile(small(), "native"), torch.randn(1, 3, 32, 32)
    for threads in (4, 2, 1):
        torch.set_num_threads(threads)
        torch.randn(1 << 22).sin_()  # large enough for all threads
        before = len(os.listdir("/proc/self/task"))
        run(fast, images)
        assert len(os.listdir("/proc/self/task")) == before


@compiled
def test_python_threads_share_networks(small: MakeModel) -> None:
    torch.set_num_threads(2)
    networks = [sact.compile(small(name, kind), "native") for name in FAMILIES for kind in ("act", "sact")]
    work = [(networks[i % 4], torch.randn(1 + i % 5, 3, 32 + i, 40)) for i in range(40)]
    alone = [run(*item) for item in work]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda item: run(*item), work))
    assert all(same_bits(ours, theirs) for ours, theirs in zip(together, alone, strict=True))


@compiled
def test_python_runs_meanwhile(small: MakeModel) -> None:
    """The kernel does not hold the interpreter's lock."""
    fast, images = sact.compile(small("resnet", "none", base_channels=64), "native"), torch.randn(8, 3, 224, 224)
    run(fast, images[:1])
    worker = threading.Thread(target=run, args=(fast, images))
    turns = 0
    worker.start()
    while worker.is_alive():
        time.sleep(1e-3)
        turns += 1
    assert turns > 20


@compiled
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("then", ["runs", "runs and forgets", "forgets"])
def test_a_forked_process(small: MakeModel, threads: int, then: str) -> None:
    """The parent's threads are not in the child, which must neither wait for them nor end them."""
    torch.set_num_threads(threads)
    fast, images = sact.compile(small(), "native"), torch.randn(2, 3, 40, 40)
    before = run(fast, images)
    child = os.fork()
    if child == 0:
        right = then == "forgets" or same_bits(run(fast, images), before)
        if then != "runs":
            del fast
            gc.collect()
        os._exit(0 if right else 1)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert status == 0
    assert same_bits(run(fast, images), before)


FORKED = """
import os, torch, sact
torch.set_num_threads(2)
torch.randn(1 << 22).sin_()
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    fast = sact.compile(sact.create_model("resnet", units=[1], base_channels=4).eval(), "native")
    with torch.no_grad():
        before = fast(torch.ones(1, 3, 64, 64))
        torch.set_num_threads(2)
        os._exit(0 if fast(torch.ones(1, 3, 64, 64)).equal(before) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@compiled
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_the_kernel_is_loaded_in_a_forked_process() -> None:
    """PyTorch's threads are not there either, and it would wait for them forever."""
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=120)


@pytest.fixture
def forbid_kernel(monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    """Makes every use of the kernel raise this."""

    class Used(Exception):
        pass

    def refuse(*args: Any) -> None:
        raise Used

    monkeypatch.setattr(native.Packed, "run", refuse)
    return Used


@compiled
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_come_from_gather(small: MakeModel, forbid_kernel: type[Exception], kind: str) -> None:
    torch.manual_seed(1)  # in float32 no position lies within rounding of its threshold
    model, images = small(kind=kind), torch.randn(2, 3, 33, 32)
    fast = sact.compile(model, "native")
    gradients = []
    for network in (fast, model):
        logits = network(images)
        gradients.append(torch.autograd.grad(logits.square().sum(), model.stem.parameters()))
    for ours, theirs in zip(*gradients, strict=True):
        close(ours, theirs, 1e-4)
    with torch.no_grad(), pytest.raises(forbid_kernel):
        fast(images)


@compiled
@pytest.mark.parametrize("kind", KINDS)
def test_training_mode_is_served_by_gather(small: MakeModel, forbid_kernel: type[Exception], kind: str) -> None:
    model, images = small(kind=kind), torch.randn(4, 3, 32, 32)
    fast = sact.compile(model, "native")
    with pytest.raises(forbid_kernel):
        run(fast, images)
    model.train()
    check_same(run(fast, images), run(model, images))
    model.eval()
    model.blocks[1].units[0].preact.norm.train()  # one norm is enough
    check_same(run(fast, images), run(model, images))
    model.eval()
    with pytest.raises(forbid_kernel):
        run(fast, images)


@compiled
@pytest.mark.parametrize("kind", ["act", "sact"])
@pytest.mark.parametrize("precision", ["autocast", "float64", "bfloat16"])
def test_other_precisions_are_served_by_gather(
    small: MakeModel, forbid_kernel: type[Exception], kind: str, precision: str
) -> None:
    model, images = small(kind=kind), torch.randn(2, 3, 40, 33)
    if precision != "autocast":
        model, images = model.to(getattr(torch, precision)), images.to(getattr(torch, precision))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        ours = run(sact.compile(model, "native"), images)
        assert same_bits(ours, run(sact.compile(model, "gather"), images))
        if precision == "float64":
            check_same(ours, run(model, images), 1e-9)


@compiled
def test_layers_that_the_kernel_lacks_are_served_by_gather(small: MakeModel) -> None:
    model, images = small(), torch.randn(2, 3, 32, 32)
    model.blocks[0].units[2].branch.conv2 = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
    with pytest.warns(UserWarning, match=r"dilation=\(2, 2\).*gather"):
        check(model, images)
    model.blocks[0].units[2].branch.conv2 = nn.Conv2d(4, 4, 3, padding=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(model, images)


@compiled
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("index", [(0, 0, 0, 0), (1, 2, 32, 40), (1, 1, 16, 0)])
def test_values_that_are_not_finite_are_refused(small: MakeModel, value: float, index: tuple[int, ...]) -> None:
    model, images = small(), torch.randn(2, 3, 33, 41)
    fast = sact.compile(model, "native")
    before = run(fast, images)
    spoilt = images.clone()
    spoilt[index] = value
    with pytest.raises(sact.InputError) as ours:
        run(fast, spoilt)
    with pytest.raises(sact.InputError) as theirs:
        run(model, spoilt)
    assert str(ours.value) == str(theirs.value)
    assert same_bits(run(fast, images), before), "nothing of it is left behind"


@compiled
@pytest.mark.parametrize("kind", ["act", "sact"])
def test_scores_that_are_no_numbers_halt_as_by_the_definition(small: MakeModel, kind: str) -> None:
    model = small(kind=kind)
    for block in model.blocks:
        for head in block.scores:
            nn.init.constant_(head.global_conv.weight, float("nan"))
    images = torch.randn(2, 3, 32, 32)
    pairs = zip(run(sact.compile(model, "native"), images)[1].blocks, run(model, images)[1].blocks, strict=True)
    for ours, theirs in pairs:
        assert torch.equal(ours.units, theirs.units)


@compiled
def test_batches_cut_into_groups(small: MakeModel) -> None:
    """Small networks run groups of images, here of two and an odd one; features and maps end up where they belong."""
    torch.manual_seed(0)
    check(small(), torch.randn(33, 3, 33, 32), threads=2)
    check(small(features_only=True), torch.randn(33, 3, 33, 32), threads=2)


@compiled
def test_pixels_outside_a_window_are_not_read(small: MakeModel) -> None:
    images = torch.full((2, 3, 60, 61), float("nan"))
    images[:, :, 9:50, 4:45] = torch.randn(2, 3, 41, 41)
    check(small(), images[:, :, 9:50, 4:45])


@compiled
@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(3, 32, 32),
        torch.zeros(0, 3, 32, 32),
        torch.zeros(1, 4, 32, 32),
        torch.zeros(1, 3, 31, 32),
        torch.zeros(1, 3, 32, 32, dtype=torch.float64),
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        [[1.0]],
    ],
    ids=["rank", "empty", "channels", "size", "float64", "uint8", "list"],
)
def test_refuses_what_the_network_refuses(small: MakeModel, images: Any) -> None:
    model = small()
    with pytest.raises(sact.InputError) as theirs:
        run(model, images)
    with pytest.raises(sact.InputError) as ours:
        run(sact.compile(model, "native"), images)
    assert str(ours.value) == str(theirs.value)


@compiled
def test_inside_torch_compile(small: MakeModel) -> None:
    fast = sact.compile(small(), "native")

    def around(images: Tensor) -> Tensor:
        logits, ponder = fast(2 * images, return_ponder=True)
        return logits.softmax(1) * ponder.cost[:, None]

    for size in (32, 39):
        images = torch.randn(2, 3, size, 33)
        with torch.no_grad():
            torch.testing.assert_close(torch.compile(around, backend="eager")(images), around(images))


@compiled
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["act", "sact"])
def test_working_memory_does_not_grow_with_the_units(small: MakeModel, name: str, kind: str) -> None:
    images = torch.randn(2, 3, 64, 64)

    def working(units: int) -> int:
        model = small(name, kind, units=[units], base_channels=32 if name == "resnet" else 8)
        model.blocks[0].forced_units = torch.full((), units)
        packed = native.Packed(model)
        _, ponder = packed.run(images, False)
        assert (ponder.blocks[0].units == units).all()
        return packed.workspace_bytes()

    state = images.numel() // 3 * 4 * 8
    assert state < working(4) < 20 * state
    assert working(24) == working(4)


@compiled
def test_working_memory_settles(small: MakeModel) -> None:
    """It holds the largest group of images once per thread, and not one more for each change of the batch."""
    model = small()
    packed = native.Packed(model)

    def working(count: int, threads: int) -> int:
        torch.set_num_threads(threads)
        packed.run(torch.randn(count, 3, 40, 40), False)
        return packed.workspace_bytes()

    largest = working(6, 1)
    assert working(1, 1) <= largest
    assert working(3, 1) <= largest
    assert working(6, 1) <= 1.01 * largest
    for threads in (2, 1, 2, 1):
        assert working(6, threads) <= 2.1 * largest


@compiled
@pytest.mark.parametrize("name", VECTOR_WIDTHS)
def test_every_instruction_set(small: MakeModel, isa: Callable[[str], None], name: str) -> None:
    if not has_native(name):
        pytest.skip(f"{name} is not built for this machine, or this processor lacks it")
    isa(name)
    assert native.library().sact_vector_width() == VECTOR_WIDTHS[name]
    images = torch.randn(3, 3, 45, 34)
    for family in FAMILIES:
        for channels in (5, 24):
            for kind in KINDS:
                model = small(family, kind, base_channels=channels)
                ours = check(model, images, threads=2)
                assert same_bits(run(sact.compile(model, "native"), images), ours)
            force(model, images, PATTERNS["random"])
            check(model, images)


def test_an_instruction_set_that_is_not_one(small: MakeModel, isa: Callable[[str], None]) -> None:
    isa("sse9")
    with pytest.raises(sact.InputError, match='SACT_NATIVE_ISA is "sse9".*portable'):
        sact.compile(small(), "native")


@pytest.fixture
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As after an installation without a compiler."""
    monkeypatch.setattr(native, "_path", lambda isa: None)
    for cached in (native.library, engines._has_native):
        cached.cache_clear()
    yield
    for cached in (native.library, engines._has_native):
        cached.cache_clear()


def test_gather_serves_where_it_is_not_compiled_with_one_warning(small: MakeModel, not_compiled: None) -> None:
    model = small()
    with pytest.warns(UserWarning, match=r"C\+\+17 compiler.*gather") as warned:
        assert sact.compile(model).engine == "gather"
    assert [warning.filename for warning in warned] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sact.compile(model).engine == "gather"
    with pytest.raises(sact.InputError, match=r"C\+\+17 compiler"):
        sact.compile(model, "native")


def test_a_library_that_cannot_be_loaded_counts_as_missing(
    tmp_path: Path, not_compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"\x7fELF")
    monkeypatch.setattr(native, "_path", lambda isa: broken)
    with pytest.raises(sact.InputError, match=r"C\+\+17 compiler"):
        native.library()


def test_sact_builds_without_a_compiler(tmp_path: Path) -> None:
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("setuptools is older than pyproject.toml asks for")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path]
    missing = {name: str(tmp_path / "no-compiler") for name in ("CC", "CXX", "LDSHARED", "LDCXXSHARED")}
    built = subprocess.run(command, cwd=ROOT, env=os.environ | missing, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert not list(tmp_path.rglob("*.so"))


@compiled
def test_more_positions_than_can_be_numbered_are_refused(small: MakeModel) -> None:
    fast = sact.compile(small(), "native")
    images = torch.zeros(1, 3, 1, 1).expand(1 << 10, 3, 2048, 2048)
    with torch.no_grad(), pytest.raises(sact.InputError, match="split the batch"):
        fast(images)

"""The CPU engine on somebody's networks: the numbers of the definition, as a whole or block by block."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import timm
import torch
import torchvision
from conftest import has_native, needs_native
from test_native import VECTOR_WIDTHS, check_same, run
from torch import Tensor, nn

import sact
from sact.engines import native
from sact.models.adapted import AdaptedNetwork

pytestmark = [needs_native, pytest.mark.usefixtures("one_thread")]

WHOLE = [
    "torchvision/mobilenet_v2",
    "torchvision/resnet18",
    "torchvision/resnet50",
    "torchvision/resnext50",
    "timm/tf_efficientnet_lite0",
    "timm/efficientnet_lite0",
    "timm/regnetx_002",
    "timm/convnext_atto",
]


@torch.no_grad()
def randomise(model: nn.Module) -> nn.Module:
    """Norms whose statistics are not those of a new network, so that folding them matters."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
            norm.weight.uniform_(0.5, 1.0)
            norm.bias.normal_(0, 0.1)
    return model


@torch.no_grad()
def awaken(model: AdaptedNetwork, images: Tensor) -> AdaptedNetwork:
    """Score heads that differ between positions: their norms fit the states, their weights are random."""
    heads = [head for block in model.blocks for head in block.scores]
    norms = [norm for head in heads for norm in head.modules() if isinstance(norm, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    model(images)
    for norm in norms:
        norm.eval()
    for head in heads:
        scale = head.global_conv.in_channels**-0.5
        nn.init.normal_(head.global_conv.weight, std=0.5 * scale)
        if hasattr(head, "local_conv"):
            nn.init.normal_(head.local_conv.weight, std=0.6 * scale)
            nn.init.constant_(head.local_conv.bias, 1.0)
        else:
            nn.init.constant_(head.global_conv.bias, 1.0)
    return model


def adapt(network: nn.Module, **options: Any) -> AdaptedNetwork:
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # squeeze-excite is told
        model = sact.adapt(randomise(network.eval()), **{"eps": 0.1, **options})
    return awaken(model, torch.randn(2, 3, 64, 64))


@cache
def original(name: str) -> nn.Module:
    torch.manual_seed(1)
    library, _, name = name.partition("/")
    if library == "timm":
        return timm.create_model(name, num_classes=11)
    if name == "mobilenet_v2":
        return torchvision.models.mobilenet_v2(num_classes=11, width_mult=0.5)
    groups = {"groups": 8, "width_per_group": 8} if name == "resnext50" else {"width_per_group": 16}
    kind = torchvision.models.resnet.BasicBlock if name == "resnet18" else torchvision.models.resnet.Bottleneck
    lengths = [2, 2, 2, 2] if name == "resnet18" else [3, 4, 6, 3]
    return torchvision.models.ResNet(kind, lengths, num_classes=11, **({} if name == "resnet18" else groups))


class Residual(nn.Module):
    """An inverted residual."""

    def __init__(self, channels: int, kernel: int, groups: int, activation: nn.Module, after: nn.Module) -> None:
        super().__init__()
        width = 2 * channels
        self.branch = nn.Sequential(
            nn.Conv2d(channels, width, 1),
            nn.BatchNorm2d(width),
            activation,
            nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(width),
            activation,
            nn.Conv2d(width, channels, 1),
        )
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x + self.branch(x))


def tiny(kernel: int = 3, groups: int = 0, activation: nn.Module | None = None, channels: int = 12) -> nn.Module:
    """Stem, block, a strided depthwise convolution, block, head."""
    torch.manual_seed(2)
    act = nn.ReLU6() if activation is None else activation

    def block() -> list[nn.Module]:
        return [Residual(channels, kernel, groups or 2 * channels, act, nn.ReLU()) for _ in range(3)]

    between = nn.Conv2d(channels, channels, kernel, 2, kernel // 2, groups=channels)
    head = [nn.Conv2d(channels, 20, 1), act, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5)]
    stem = [nn.Conv2d(3, channels, 3, 2, 1), nn.BatchNorm2d(channels), act]
    return nn.Sequential(*stem, nn.Sequential(*block()), between, act, nn.Sequential(*block()), *head)


def check(model: AdaptedNetwork, images: Tensor, threads: int = 1, whole: bool = True) -> tuple[Any, sact.Ponder]:
    """Run in the kernel and by the definition, compare, and return what the kernel gave."""
    fast = sact.compile(model, "native")
    torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if whole else "ignore")
        ours = run(fast, images)
    torch.set_num_threads(1)
    check_same(ours, run(model, images), eps=model.config.eps)
    return ours


def force(model: AdaptedNetwork, images: Tensor, how: str) -> None:
    """Set every block's forced units."""
    _, ponder = run(model, images)
    for block, spent in zip(model.blocks, ponder.blocks, strict=True):
        length = len(block.units)
        block.forced_units = {
            "none": torch.ones_like(spent.units),
            "all": torch.full_like(spent.units, length),
            "random": torch.randint_like(spent.units, 1, length + 1),
        }[how]


@pytest.mark.parametrize("name", WHOLE)
def test_whole_networks(name: str) -> None:
    model = adapt(original(name))
    assert isinstance(native.pack(model), native.Packed)
    images = torch.randn(3, 3, 97, 65)
    _, ponder = check(model, images, threads=2)
    assert any(len(block.units.unique()) > 1 for block in ponder.blocks)
    force(model, images, "random")
    for block in model.blocks:
        block.forced_units = block.forced_units[:1]
    check(model, images[:1].contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("kind", ["act", "sact"])
@pytest.mark.parametrize("output", ["mean", "halted"])
def test_kinds_of_halting_and_output_rules(kind: str, output: str) -> None:
    model = adapt(tiny(), halting=kind, output=output)
    for images in (torch.randn(1, 3, 64, 47), torch.randn(3, 3, 35, 64)):
        check(model, images)
        for how in ("none", "all", "random"):
            force(model, images, how)
            _, ponder = check(model, images)
            for block, spent in zip(model.blocks, ponder.blocks, strict=True):
                assert torch.equal(spent.units, block.forced_units)
        for block in model.blocks:
            block.forced_units = None


def test_the_rules_differ_and_changing_them_is_noticed() -> None:
    model, images = adapt(tiny()), torch.randn(2, 3, 40, 40)
    fast = sact.compile(model, "native")
    mean, _ = run(fast, images)
    for block in model.blocks:
        block.output = "halted"
    halted, _ = run(fast, images)
    assert not torch.allclose(mean, halted, atol=1e-3)
    check_same(run(fast, images), run(model, images), eps=0.1)


def test_without_halting_it_is_the_original() -> None:
    network = tiny()
    model, images = adapt(network), torch.randn(2, 3, 40, 40)
    fast = sact.compile(model, "native")
    adaptive, _ = run(fast, images)
    model.halting = "none"
    plain, ponder = run(fast, images)
    with torch.no_grad():
        torch.testing.assert_close(plain, network(images), rtol=1e-5, atol=1e-5)
    assert all(block.cost is None for block in ponder.blocks)
    model.halting = "sact"
    assert torch.equal(run(fast, images)[0], adaptive)


@pytest.mark.parametrize("shift", [-2.0, 0.7, 100.0])
def test_a_shift_of_the_scores(shift: float) -> None:
    model, images = adapt(tiny()), torch.randn(2, 3, 40, 40)
    before = check(model, images)[1].flops.sum()
    for block in model.blocks:
        block.score_shift = shift
    after = check(model, images)[1].flops.sum()
    assert (after < before) == (shift > 0)
    if shift == 100.0:
        assert all((spent.units == 1).all() for spent in run(sact.compile(model, "native"), images)[1].blocks)


def test_changes_are_noticed() -> None:
    model, images = adapt(tiny()), torch.randn(2, 3, 40, 40)
    fast = sact.compile(model, "native")
    last = run(fast, images)

    def changes() -> Iterator[None]:
        units, head = model.blocks[0].units, model.network
        yield units[1].module.branch[3].weight.mul_(2)
        yield units[0].module.branch[4].running_var.mul_(2)
        yield head[0].weight.mul_(1.5)
        yield head[4].weight.mul_(1.5)
        yield head[-1].bias.add_(1)
        yield setattr(head, str(len(head) - 1), nn.Linear(20, 5))
        for block in model.blocks:
            block.eps = 0.4
        yield None

    with torch.no_grad():
        for _ in changes():
            now = run(fast, images)
            assert not torch.allclose(now[0], last[0], rtol=1e-4, atol=1e-5)
            check_same(now, run(model, images), eps=model.blocks[0].eps)
            last = now


@pytest.mark.parametrize("whole", [True, False])
def test_values_that_are_not_finite_are_refused(whole: bool) -> None:
    network = tiny()
    if not whole:
        network.append(nn.Softmax(1))
    fast, images = sact.compile(adapt(network), "native"), torch.randn(2, 3, 40, 40)
    images[1, 2, 3, 4] = float("nan")
    with pytest.raises(sact.InputError, match="NaN"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(fast, images)


@pytest.mark.parametrize(
    ("kernel", "groups", "channels"),
    [(3, 0, 45), (5, 0, 12), (7, 0, 20), (1, 0, 12), (3, 2, 12), (5, 6, 30), (3, 5, 45)],
)
def test_depthwise_and_grouped_convolutions(kernel: int, groups: int, channels: int) -> None:
    """Depthwise with 0 groups."""
    check(adapt(tiny(kernel, groups, channels=channels)), torch.randn(2, 3, 41, 34))


@pytest.mark.parametrize("isa", VECTOR_WIDTHS)
def test_every_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_native(isa):
        pytest.skip(f"{isa} is not built for this machine, or this processor lacks it")
    monkeypatch.setenv("SACT_NATIVE_ISA", isa)
    native.library.cache_clear()
    try:
        for kernel, groups in ((3, 0), (5, 0), (3, 6)):
            check(adapt(tiny(kernel, groups, channels=30)), torch.randn(1, 3, 41, 34))
    finally:
        native.library.cache_clear()


@pytest.mark.parametrize(
    "activation", [nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.LeakyReLU(0.2), nn.ReLU(), nn.Hardtanh(0, 6)], ids=repr
)
def test_activations(activation: nn.Module) -> None:
    check(adapt(tiny(activation=activation)), torch.randn(2, 3, 33, 40))


@pytest.mark.parametrize(("kind", "is_classifier"), [("act", True), ("sact", True), ("sact", False)])
def test_networks_that_are_no_chain_run_block_by_block(kind: str, is_classifier: bool) -> None:
    network = tiny().append(nn.Softmax(1)) if is_classifier else tiny()[:-3]
    model, images = adapt(network, halting=kind), torch.randn(3, 3, 67, 64)
    with pytest.warns(UserWarning, match=r"the CPU engine lacks .*between the blocks is run by PyTorch") as warned:
        fast = sact.compile(model, "native")
        run(fast, images)
        run(fast, images)
    assert len(warned) == 1
    for how in ("none", "all", "random", None):
        if how:
            force(model, images, how)
        for block in model.blocks if how is None else []:
            block.forced_units = None
        torch.set_num_threads(1 if how else 2)
        ours, expected = run(fast, images), run(model, images)
        if not is_classifier:  # one map, and not one of every block
            ours, expected = (ours[0].mean((2, 3)), ours[1]), (expected[0].mean((2, 3)), expected[1])
        check_same(ours, expected, eps=0.1)


def test_blocks_that_the_kernel_lacks_are_left_to_gather() -> None:
    model, images = adapt(original("timm/mobilenetv3_small_050")), torch.randn(2, 3, 64, 64)
    with pytest.warns(UserWarning, match=r"blocks with SqueezeExcite.*gather"):
        run(sact.compile(model, "native"), images)
    check(model, images, whole=False)


def test_training_goes_to_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = adapt(tiny()), torch.randn(2, 3, 40, 40)
    fast = sact.compile(model, "native")
    run(fast, images)
    monkeypatch.setattr(native.Packed, "run", lambda *args: pytest.fail("the kernel ran"))
    fast.train()
    fast(images)
    with torch.no_grad():
        fast(images)

"""`sact.models`: every registered network, and what `create_model` and a network refuse."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import sact
from sact.models import build, config_from_dict

KINDS = ["none", "act", "sact"]


def close(ours: Tensor, theirs: Tensor, share: float = 1e-4) -> None:
    """Within a share of the largest value."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=share * theirs.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*sact.list_models(), "cifar_resnet26"])
def test_every_model(make_model, name: str, kind: str) -> None:
    """Forward, backward, shapes, and the engines against each other; at reduced width."""
    model = make_model(name, halting=kind, base_channels=4, num_classes=7)
    images = torch.randn(2, 3, 32, 32)
    logits, ponder = model(images, return_ponder=True)
    assert logits.shape == (2, 7)
    assert [block.max_units for block in ponder.blocks] == list(model.config.units)
    assert ponder.flops.shape == (2,)
    assert ponder.flops.dtype == torch.int64
    sides = [32 // stride for stride in model.feature_strides]
    if kind != "none":
        shapes = [(2, side, side) if kind == "sact" else (2,) for side in sides]
        assert [block.units.shape for block in ponder.blocks] == [block.cost.shape for block in ponder.blocks] == shapes
        assert any(len(block.units.unique()) > 1 for block in ponder.blocks), "halting should vary"
        assert ponder.cost.shape == (2,)
        assert ponder.map(32).shape == (2, 32, 32)

    loss = logits.square().mean() + (ponder.cost.mean() if kind != "none" else 0)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.stem.conv.weight.grad.abs().max() > 0

    with torch.no_grad():
        for engine in ("masked", "gather"):
            fast_logits, fast = sact.compile(model, engine)(images, return_ponder=True)
            close(fast_logits, logits.detach())
            for ours, theirs in zip(fast.blocks, ponder.blocks, strict=True):
                assert torch.equal(ours.units, theirs.units)
                if kind != "none":
                    torch.testing.assert_close(ours.cost, theirs.cost.detach(), rtol=0, atol=1e-4)
            assert torch.equal(fast.flops, ponder.flops)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["resnet", "cifar_resnet"])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 37)])
def test_features_of_any_size(make_model, name: str, kind: str, size: tuple[int, int]) -> None:
    options = {"halting": kind, "units": [2, 3, 1], "base_channels": 4, "in_channels": 1}
    model = make_model(name, features_only=True, **options)
    images = torch.randn(2, 1, *size)
    with torch.no_grad():
        features, ponder = model(images, return_ponder=True)
        gathered = sact.compile(model, "gather")(images)
    shapes = [
        (2, channels, *(-(-side // stride) for side in size))
        for channels, stride in zip(model.feature_channels, model.feature_strides, strict=True)
    ]
    assert [feature.shape for feature in features] == shapes
    assert model.feature_channels == ((16, 32, 64) if name == "resnet" else (4, 8, 16))
    assert model.feature_strides == ((4, 8, 16) if name == "resnet" else (1, 2, 4))
    for ours, theirs in zip(gathered, features, strict=True):
        close(ours, theirs)
    classifier = 2 * model.feature_channels[-1] * (1000 if name == "resnet" else 10)
    assert make_model(name, **options).fixed_flops(size) - ponder.fixed_flops == classifier


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_and_classes(channels: int) -> None:
    model = sact.create_model(
        "cifar_resnet", "sact", num_classes=3, in_channels=channels, units=[1, 1], base_channels=4
    )
    assert model(torch.randn(2, channels, 40, 33)).shape == (2, 3)


@pytest.mark.parametrize("name", ["resnet", "cifar_resnet"])
def test_more_blocks_than_the_picture_can_be_halved(make_model, name: str) -> None:
    model = make_model(name, halting="sact", units=[2] * 7, base_channels=2)
    with torch.no_grad():
        logits, ponder = model(torch.randn(2, 3, 32, 33), return_ponder=True)
    assert logits.isfinite().all()
    assert ponder.blocks[-1].units.shape == (2, 1, 1)


def test_the_whole_call(make_model) -> None:
    model = make_model("cifar_resnet", halting="sact", units=[3, 3], base_channels=4)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = model(images)
        again, ponder = model(images, return_ponder=True)
        _, kept = model(images, return_halting_distribution=True)
    assert isinstance(logits, Tensor)
    assert torch.equal(logits, again), "deterministic on repeat"
    assert ponder.blocks[0].halting_distribution is None
    assert kept.blocks[0].halting_distribution.shape == (2, 3, 32, 32)
    torch.testing.assert_close(kept.blocks[1].halting_distribution.sum(1), torch.ones(2, 16, 16))


def test_training_repeats_exactly(make_model) -> None:
    model = make_model("cifar_resnet", halting="sact", units=[3, 3], base_channels=4).train()
    images, runs = torch.randn(4, 3, 32, 32), []
    for run in (model, copy.deepcopy(model)):
        logits, ponder = run(images, return_ponder=True)
        (logits.square().mean() + ponder.cost.mean()).backward()
        runs.append([logits, *(p.grad for p in run.parameters()), *run.buffers()])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_names() -> None:
    assert sact.list_models() == [
        *(f"resnet{depth}" for depth in (50, 101, 152, 200)),
        *(f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110)),
    ]
    assert sact.create_model("cifar_resnet8", base_channels=2).config.units == (1, 1, 1)
    assert sact.create_model("resnet50", units=[1, 2], base_channels=2).config.units == (1, 2)
    config = sact.create_model("cifar_resnet", "sact", units=[1, 2], base_channels=2, eps=0.2).config
    assert config_from_dict(config.to_dict()) == config
    assert build(config).config == config


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet102", {}, r'"resnet102"; did you mean resnet10\d|"resnet102"; did you mean resnet152'),
        ("cifar_resnet33", {}, '"cifar_resnet33"; did you mean cifar_resnet'),
        ("cifar_resnet2", {}, '"cifar_resnet2"'),
        ("vgg", {}, '"vgg"; choose one of .*resnet50.*cifar_resnet'),
        ("resnet", {}, '"resnet" needs units'),
        ("resnet50", {"units": []}, r"units is \[\]"),
        ("resnet50", {"units": [2, 0, 1]}, r"units is \[2, 0, 1\]"),
        ("resnet50", {"units": [2, 1.5]}, r"units is \[2, 1.5\]"),
        ("resnet50", {"units": 3}, "units is 3"),
        ("resnet50", {"base_channels": 0}, "base_channels is 0"),
        ("resnet50", {"base_channels": 2.5}, "base_channels is 2.5"),
        ("resnet50", {"num_classes": -1}, "num_classes is -1"),
        ("resnet50", {"in_channels": 0}, "in_channels is 0"),
        ("resnet50", {"halting": "spatial"}, 'halting is "spatial"'),
        ("resnet50", {"eps": 1.0}, "eps is 1.0"),
        ("resnet50", {"eps": "small"}, "eps is small"),
    ],
)
def test_create_model_refuses(name: str, options: dict, message: str) -> None:
    with pytest.raises(sact.InputError, match=message):
        sact.create_model(name, **options)


def with_value(value: float) -> Tensor:
    images = torch.zeros(2, 3, 32, 32)
    images[1, 2, 3, 4] = value
    return images


BAD_IMAGES = {
    "rank 3": (torch.zeros(3, 32, 32), "(3, 32, 32)"),
    "rank 5": (torch.zeros(1, 1, 3, 32, 32), "(1, 1, 3, 32, 32)"),
    "not a tensor": ([[1.0]], "list"),
    "channels": (torch.zeros(1, 1, 32, 32), "images have 1 channels"),
    "channels last": (torch.zeros(1, 32, 32, 3), "images have 32 channels"),
    "uint8": (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "torch.uint8"),
    "int64": (torch.zeros(1, 3, 32, 32, dtype=torch.int64), "torch.int64"),
    "complex": (torch.zeros(1, 3, 32, 32, dtype=torch.complex64), "torch.complex64"),
    "float64": (torch.zeros(1, 3, 32, 32, dtype=torch.float64), "torch.float64"),
    "float16": (torch.zeros(1, 3, 32, 32, dtype=torch.float16), "torch.float16"),
    "empty batch": (torch.zeros(0, 3, 32, 32), "(0, 3, 32, 32)"),
    "NaN": (with_value(float("nan")), "nan at (1, 2, 3, 4)"),
    "infinite": (with_value(float("-inf")), "-inf at (1, 2, 3, 4)"),
    "too low": (torch.zeros(1, 3, 31, 64), "31x64"),
    "too narrow": (torch.zeros(1, 3, 64, 16), "64x16"),
    "no pixels": (torch.zeros(1, 3, 0, 32), "0x32"),
}


@pytest.mark.parametrize("engine", [None, "masked", "gather"])
@pytest.mark.parametrize("case", BAD_IMAGES)
def test_networks_refuse(case: str, engine: str | None) -> None:
    model = sact.create_model("cifar_resnet", "sact", units=[1], base_channels=2).eval()
    images, message = BAD_IMAGES[case]
    with pytest.raises(sact.InputError, match=re.escape(message)) as caught:
        (sact.compile(model, engine) if engine else model)(images)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_training_batch_too_small_for_its_norms() -> None:
    model = sact.create_model("cifar_resnet", "sact", units=[2] * 6, base_channels=2).train()
    with pytest.raises(sact.InputError, match=r"1 value per channel"):
        model(torch.zeros(1, 3, 32, 32))


def losses_and_gradients(run, model: nn.Module, images: Tensor) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    logits, ponder = run(images, return_ponder=True)
    (logits.square().mean() + 0.1 * ponder.cost.mean()).backward()
    return [logits.detach(), ponder.cost.detach(), ponder.flops, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize(
    ("backend", "name", "kind"),
    [
        ("aot_eager", "resnet", "sact"),
        ("aot_eager", "cifar_resnet", "act"),
        pytest.param("inductor", "cifar_resnet", "sact", marks=pytest.mark.slow),
    ],
)
def test_under_torch_compile(make_model, backend: str, name: str, kind: str) -> None:
    torch.compiler.reset()
    model = make_model(name, halting=kind, units=[2, 2], base_channels=4, num_classes=5)
    images = torch.randn(4, 3, 32, 32)
    expected = losses_and_gradients(model, model, images)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for ours, theirs in zip(losses_and_gradients(compiled, model, images), expected, strict=True):
        close(ours.double(), theirs.double(), 1e-3)
    with torch.no_grad():
        _, ponder = compiled(images, return_ponder=True, return_halting_distribution=True)
        assert torch.equal(ponder.flops, expected[2])
        torch.testing.assert_close(ponder.blocks[0].halting_distribution.sum(1), torch.ones_like(ponder.blocks[0].cost))


def train_in_parallel(rank: int, world: int, model: nn.Module, images: Tensor, store: str, results: str) -> None:
    """One process's share of the batch through DistributedDataParallel; rank 0 saves the averaged gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        gradients = losses_and_gradients(parallel, model, images.chunk(world)[rank])[3:]
        if rank == 0:
            torch.save(gradients, results)
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this PyTorch has no torch.distributed")
@pytest.mark.parametrize("world", [1, 2])
def test_under_distributed_data_parallel(make_model, tmp_path, world: int) -> None:
    model = make_model("cifar_resnet", halting="sact", units=[3, 2], base_channels=4, num_classes=5)
    images = torch.randn(4, 3, 32, 32)
    expected = [gradient.clone() for gradient in losses_and_gradients(model, model, images)[3:]]
    store, results = str(tmp_path / "store"), tmp_path / "gradients.pt"
    arguments = (world, copy.deepcopy(model), images, store, str(results))
    if world == 1:
        train_in_parallel(0, *arguments)
    else:
        torch.multiprocessing.spawn(train_in_parallel, arguments, nprocs=world)
    for ours, theirs in zip(torch.load(results), expected, strict=True):
        close(ours, theirs)


def test_images_on_another_device_are_refused(make_model) -> None:
    model = make_model(units=[2], base_channels=4).to("meta")
    with pytest.raises(sact.InputError, match="images are on cpu, but the network is on meta"):
        model(torch.zeros(1, 3, 32, 32))

"""Tile by tile: the result of the whole image, whatever the sizes; scratch space; what is refused."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import sact
from sact.bench import memory
from sact.scores import PositionScore
from sact.tiling.plan import Step

FAMILIES: dict[str, dict[str, Any]] = {
    "resnet": {"units": [3, 4, 2], "base_channels": 4},
    "cifar_resnet": {"units": [3, 4, 2], "base_channels": 4},
}
SIZES = [(32, 32), (65, 97), (64, 130), (47, 33)]


def check(
    model: sact.AdaptiveNetwork, image: Tensor, expected_of: Any = None, tolerance: float = 1e-9, **options: Any
) -> sact.TiledResult:
    """Hold an evaluation in tiles against that of the whole image."""
    with torch.no_grad():
        output, ponder = (expected_of or model)(image, return_ponder=True)
    found = sact.tiled(model, image, **options)
    if model.config.features_only:
        assert found.logits is None
    else:
        torch.testing.assert_close(found.logits, output, rtol=tolerance, atol=tolerance)
    assert torch.equal(found.ponder.flops, ponder.flops) and found.ponder.dense_flops == ponder.dense_flops
    for one, other in zip(found.ponder.blocks, ponder.blocks, strict=True):
        assert torch.equal(one.units, other.units)
        assert (one.cost is None) == (other.cost is None)
        if one.cost is not None:
            torch.testing.assert_close(one.cost, other.cost, rtol=tolerance, atol=tolerance)
    return found


def varies(ponder: sact.Ponder) -> bool:
    """Whether positions halt at different units."""
    return any(len(block.units.unique()) > 1 for block in ponder.blocks)


@pytest.mark.parametrize("halting", ["none", "act", "sact"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_whole_image(make_model: MakeModel, family: str, halting: str) -> None:
    model = make_model(family, halting=halting, **FAMILIES[family]).double()
    varied = []
    for size in SIZES:
        image = torch.randn(1, 3, *size, dtype=torch.float64)
        for tile in (32, 41, 512):
            varied.append(varies(check(model, image, tile=tile).ponder))
    assert all(varied) if halting == "sact" else not any(varied)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_whole_image_in_float32(make_model: MakeModel, family: str) -> None:
    model = make_model(family, halting="sact", **FAMILIES[family])
    found = check(model, torch.randn(1, 3, 97, 130), tile=40, tolerance=1e-4)
    assert varies(found.ponder)
    assert found.logits is not None and found.logits.dtype == torch.float32


def test_deep_blocks_with_tiles_below_a_position(make_model: MakeModel) -> None:
    """Six blocks: a position stands for 128 pixels in the last, and a unit reads one beyond its tile."""
    model = make_model("resnet", halting="sact", units=[1, 1, 1, 2, 2, 3], base_channels=1).double()
    check(model, torch.randn(1, 3, 450, 300, dtype=torch.float64), tile=32)


def test_blocks_that_keep_the_resolution(make_model: MakeModel) -> None:
    model = make_model("resnet", halting="sact", units=[2, 3, 3], base_channels=4, output_stride=8).double()
    assert varies(check(model, torch.randn(1, 3, 70, 99, dtype=torch.float64), tile=32).ponder)


def test_features_give_ponder_alone(make_model: MakeModel) -> None:
    model = make_model("resnet", halting="sact", units=[2, 3], base_channels=4, features_only=True).double()
    check(model, torch.randn(1, 3, 70, 99, dtype=torch.float64), tile=32)


@pytest.mark.parametrize("halting", ["act", "sact"])
def test_states_at_halting(make_model: MakeModel, halting: str) -> None:
    model = make_model("resnet", halting=halting, units=[3, 4, 2], base_channels=4).double()
    for block in model.blocks:
        block.output = "halted"
    check(model, torch.randn(1, 3, 70, 99, dtype=torch.float64), tile=32)


def test_obeys_what_is_set(make_model: MakeModel) -> None:
    """Forced units, shifted scores, and a cap, whose least is found without running the whole image."""
    model = make_model("resnet", halting="sact", units=[3, 4, 2], base_channels=4).double()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    free = check(model, image, tile=32).ponder.flops
    model.blocks[1].score_shift = 0.5
    shifted = check(model, image, tile=32).ponder.flops
    assert shifted < free
    model.blocks[0].forced_units = torch.randint(1, 4, (1, 16, 24))
    check(model, image, tile=32)
    model.blocks[0].forced_units, model.blocks[1].score_shift = None, 0.0
    least = sact.cap.bounds(model, image)[0]
    model.flops_bounds.clear()
    model.cap = 0.5 * (least + int(free)) / check(model, image, tile=32).ponder.dense_flops
    capped = sact.tiled(model, image, tile=32).ponder.flops
    assert least < capped < free
    noted = dict(model.flops_bounds)
    model.flops_bounds.clear()
    check(model, image, tile=32)
    assert noted == model.flops_bounds == {(64, 96, "sact"): sact.cap.bounds(model, image)}
    model.cap = 0.1
    with pytest.raises(sact.InputError, match=r"the cap is 0\.1"):
        sact.tiled(model, image, tile=32)


def test_adapted_networks() -> None:
    torchvision = pytest.importorskip("torchvision")
    image = torch.randn(1, 3, 75, 98, dtype=torch.float64)
    model = sact.adapt(torchvision.models.resnet18(num_classes=5).eval()).eval()
    with torch.no_grad():
        for head in (head for block in model.blocks for head in block.scores):
            assert isinstance(head, PositionScore) and head.local_conv.bias is not None
            head.local_conv.weight.normal_(0, 3 * head.local_conv.weight[0].numel() ** -0.5)
            head.local_conv.bias.fill_(4.0)
    assert varies(check(model.double(), image, tile=32).ponder)


def test_a_layer_that_needs_the_whole_map_is_named() -> None:
    torchvision = pytest.importorskip("torchvision")
    with pytest.warns(UserWarning, match="whole map"):
        model = sact.adapt(torchvision.models.efficientnet_b0(num_classes=5).eval()).eval()
    with pytest.raises(sact.InputError, match="cannot be evaluated in tiles because of SqueezeExcitation"):
        sact.tiled(model, torch.randn(1, 3, 64, 64))


def test_compiled_networks_are_taken(make_model: MakeModel) -> None:
    model = make_model("resnet", halting="sact", units=[2, 3], base_channels=4)
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(sact.tiled(sact.compile(model), image).ponder.flops, sact.tiled(model, image).ponder.flops)


def test_tiles_without_an_active_position_are_skipped(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("resnet", halting="sact", units=[4], base_channels=4).double()
    units = torch.ones(1, 32, 32, dtype=torch.int32)
    units[:, 3:7, 20:23] = 3  # in the first row of four tiles, in the third one
    model.blocks[0].forced_units = units
    ran: Counter[tuple[int, int]] = Counter()
    run = Step.run

    def count(step: Step, x: Tensor, at: Any, box: Any) -> Tensor:
        result = run(step, x, at, box)
        ran[result.shape[2], result.shape[3]] += 1
        return result

    monkeypatch.setattr(Step, "run", count)
    sact.tiled(model, torch.randn(1, 3, 128, 128, dtype=torch.float64), tile=32)
    assert ran == {(8, 8): 2 * 16, (4, 3): 2}  # stem and first unit everywhere; two more units, there alone


def picture(height: int = 70, width: int = 99) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_pictures_in_every_form(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model("resnet", halting="sact", units=[2, 3], base_channels=4).double()
    model.preprocessing = {"name": "scenes", "size": 32}
    pixels = picture()
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].double().div(255) * 2 - 1
    expected = check(model, image, tile=32).logits
    pixels.tofile(tmp_path / "pixels")
    Image.fromarray(pixels).save(tmp_path / "pixels.png")
    transparent = Image.fromarray(pixels).convert("RGBA")
    transparent.putpixel((0, 0), (*(int(value) for value in pixels[0, 0]), 255))
    forms: list[Any] = [
        image[0],
        pixels,
        np.memmap(tmp_path / "pixels", np.uint8, "r", shape=pixels.shape),
        Image.fromarray(pixels),
        transparent,
        tmp_path / "pixels.png",
    ]
    for form in forms:
        torch.testing.assert_close(sact.tiled(model, form, tile=32).logits, expected, rtol=1e-5, atol=1e-6)
    for normalise in ({"name": "scenes"}, lambda part: part * 2 - 1):
        model.preprocessing = {"name": "imagenet"}
        torch.testing.assert_close(
            sact.tiled(model, pixels, tile=32, normalise=normalise).logits, expected, rtol=1e-5, atol=1e-6
        )


def test_scratch_space(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same from a file, of which no name is left, during the work or after it."""
    model = make_model("resnet", halting="sact", units=[3, 4], base_channels=4).double()
    image = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    found = check(model, image, tile=32, memory=0, scratch=tmp_path)
    assert found.map_bytes == 2 * 24 * 16 * 16 * 8 + 24 * 16 * (64 - 16) * 8  # stem's 64 channels, and the states' 16
    assert not list(tmp_path.iterdir())

    seen: list[int] = []

    def fail(step: Step, *arguments: Any) -> Tensor:
        seen.append(len(list(tmp_path.iterdir())))
        raise KeyboardInterrupt

    monkeypatch.setattr(Step, "run", fail)
    with pytest.raises(KeyboardInterrupt):
        sact.tiled(model, image, tile=32, memory=0, scratch=tmp_path)
    assert seen == [0] and not list(tmp_path.iterdir())


def test_too_little_scratch_space(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("resnet", halting="sact", units=[3, 4], base_channels=4)
    image = torch.randn(1, 3, 96, 64)
    monkeypatch.setattr(Step, "run", lambda *arguments: pytest.fail("work has begun"))
    with pytest.raises(sact.InputError, match="there is no folder"):
        sact.tiled(model, image, scratch=tmp_path / "none")
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        patch.setattr(shutil, "disk_usage", lambda folder: usage)
        with pytest.raises(sact.InputError, match=r"take 0\.00 GB, but .* has only 0\.00 GB left"):
            sact.tiled(model, image, scratch=tmp_path, memory=0)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(sact.InputError, match=r"cannot be had in .* \(No space left on device\)"):
        sact.tiled(model, image, scratch=tmp_path, memory=0)
    assert not list(tmp_path.iterdir())


def test_memory_stays_below_the_maps(make_model: MakeModel, tmp_path: Path, one_thread: None) -> None:
    """Beside the maps, which are on disk, and the image, which is mapped: tiles, and a few numbers per position."""
    model = make_model("resnet", halting="sact", units=[3], base_channels=16)
    height, width = 1024, 2048
    np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=(height, width, 3))[:] = 7
    image = np.memmap(tmp_path / "pixels", np.uint8, "r", shape=(height, width, 3))
    sact.tiled(model, image[:128, :128], tile=128, memory=0, normalise={"name": "imagenet"})  # libraries' own memory
    before = memory.resident()
    if before is None or not memory.restart_peak():
        pytest.skip("this system does not tell how much memory is in use")
    found = sact.tiled(model, image, tile=128, memory=0, scratch=tmp_path, normalise={"name": "imagenet"})
    peak = memory.peak()
    assert peak is not None
    assert found.map_bytes == 2 * (height // 4) * (width // 4) * 64 * 4
    assert peak - before < found.map_bytes / 2


def test_what_is_refused(make_model: MakeModel) -> None:
    model = make_model("resnet", halting="sact", units=[2, 3], base_channels=4)
    image = torch.randn(1, 3, 64, 64)
    refused: list[tuple[str, Any, dict[str, Any]]] = [
        ("tile is 31", image, {"tile": 31}),
        ("memory is -1", image, {"memory": -1}),
        ("without normalise", image, {"normalise": {"name": "scenes"}}),
        ("2 images", torch.randn(2, 3, 64, 64), {}),
        ("4 channels", torch.randn(1, 4, 64, 64), {}),
        ("20x64 pixels", torch.randn(1, 3, 20, 64), {}),
        ("float64", image.double(), {}),
        ("NaN or infinite values in rows 0", image / 0, {}),
        ("not float64 of shape", np.zeros((64, 64, 3)), {}),
        ("4 channels", np.zeros((64, 64, 4), np.uint8), {}),
        ("not list", [image], {}),
        ("does not say how pixels are scaled", picture(), {}),
        ("by the mean of all its pixels", picture(), {"normalise": {"name": "cifar_sact"}}),
        ("unknown preprocessing", picture(), {"normalise": {"name": "other"}}),
        ("normalise is 3", picture(), {"normalise": 3}),
        ("something else than a tensor", picture(), {"normalise": lambda part: part[0]}),
        ("there is no image file", "nowhere.png", {}),
    ]
    for message, given, options in refused:
        with pytest.raises(sact.InputError, match=message):
            sact.tiled(model, given, **options)
    with pytest.raises(sact.InputError, match="training mode"):
        sact.tiled(model.train(), image)
    with pytest.raises(sact.InputError, match="takes a network, got Conv2d"):
        sact.tiled(torch.nn.Conv2d(3, 3, 1), image)  # type: ignore[arg-type]

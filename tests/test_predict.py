"""`sact.predict`: numbers and maps of one image, and the files that show them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sact
from sact.predict import check_outputs, find_images, predict, unique_names, write_arrays, write_pictures, write_sheet

NETWORK = {"units": [3, 2], "base_channels": 4, "num_classes": 5}


@pytest.fixture
def picture() -> Image.Image:
    """80 x 60 pixels: noise to the left, grey to the right."""
    pixels = np.full((60, 80, 3), 128, np.uint8)
    pixels[:, :40] = np.random.default_rng(0).integers(0, 256, (60, 40, 3))
    return Image.fromarray(pixels)


@pytest.fixture
def network(make_model):
    def make(halting: str = "sact", **options) -> sact.Network:
        model = make_model("resnet", halting=halting, **NETWORK | options)
        model.preprocessing = {"name": "scenes", "size": 48}
        model.class_names = list("abcde")
        return model

    return make


@pytest.mark.parametrize("engine", [None, "masked", "gather"])
@pytest.mark.parametrize("kind", ["act", "sact"])
def test_what_the_network_says(network, picture: Image.Image, kind: str, engine: str | None) -> None:
    model = network(kind)
    prediction = predict(model if engine is None else sact.compile(model, engine), picture)
    with torch.no_grad():
        batch = sact.preprocess(picture, model.preprocessing)[None]
        logits, ponder = model(batch, return_ponder=True)
    assert prediction.index == int(logits.argmax())
    assert prediction.name == "abcde"[prediction.index]
    assert prediction.score == pytest.approx(float(logits.softmax(1).max()), abs=1e-5)
    assert prediction.flops == int(ponder.flops[0])
    assert prediction.share == prediction.flops / ponder.dense_flops
    assert prediction.image.size == (48, 48)
    assert prediction.map.shape == (48, 48)
    assert prediction.map.dtype == np.float32
    np.testing.assert_allclose(prediction.map, ponder.map(48)[0].numpy(), atol=1e-4)
    # Strides 4 and 8; what ACT spends it spends everywhere.
    assert [block.shape for block in prediction.block_maps] == [(12, 12), (6, 6)]
    assert (np.ptp(prediction.map) > 0) == (kind == "sact")
    assert prediction.ponder.blocks[0].halting_distribution is None


def test_summary(network, picture: Image.Image) -> None:
    prediction = predict(network(), picture)
    summary = json.loads(json.dumps(prediction.summary()))
    assert (summary["class"], summary["class_index"]) == (prediction.name, prediction.index)
    assert (summary["flops"], summary["flops_share"]) == (prediction.flops, prediction.share)
    assert [block["unit_count"] for block in summary["blocks"]] == [3, 2]
    for block, spent, cost_map in zip(summary["blocks"], prediction.ponder.blocks, prediction.block_maps, strict=True):
        assert block["units_mean"] == pytest.approx(spent.units.float().mean().item())
        assert block["ponder_cost"] == pytest.approx(cost_map.mean(), rel=1e-5)
    fixed = prediction.ponder.fixed_flops
    assert summary["flops"] == fixed + sum(block["flops"] for block in summary["blocks"])


def test_plain_networks_have_no_map(network, picture: Image.Image, tmp_path: Path) -> None:
    prediction = predict(network("none"), picture, keep_distribution=True)
    assert prediction.map is None
    assert prediction.block_maps == []
    assert prediction.share == 1.0
    assert [block["ponder_cost"] for block in prediction.summary()["blocks"]] == [None, None]
    write_pictures(prediction, "plain", tmp_path)
    write_sheet([prediction], tmp_path / "contact_sheet.png")
    write_arrays(prediction, tmp_path / "plain.npz")
    assert (tmp_path / "plain.png").is_file()
    assert not (tmp_path / "contact_sheet.png").exists()
    with np.load(tmp_path / "plain.npz") as arrays:
        assert set(arrays) == {"image", "block1_units", "block2_units"}


def test_without_class_names_the_index_is_the_name(network, picture: Image.Image) -> None:
    model = network()
    model.class_names = None
    prediction = predict(model, picture)
    assert prediction.name == str(prediction.index)


def test_other_precisions(network, picture: Image.Image, tmp_path: Path) -> None:
    single, double = predict(network(), picture), predict(network().double(), picture)
    half = predict(network().bfloat16(), picture, keep_distribution=True)
    assert double.index == single.index
    assert double.map.dtype == half.map.dtype == np.float32
    write_arrays(half, tmp_path / "half.npz")
    with np.load(tmp_path / "half.npz") as arrays:
        assert arrays["block1_halting_distribution"].dtype == np.float32


def test_networks_that_cannot_predict(network, picture: Image.Image) -> None:
    model = network()
    with pytest.raises(sact.InputError, match="training mode"):
        predict(model.train(), picture)
    model.eval().preprocessing = None
    with pytest.raises(sact.InputError, match=r"model\.preprocessing"):
        predict(model, picture)
    with pytest.raises(sact.InputError, match="features"):
        predict(network(features_only=True), picture)
    model.preprocessing = {"name": "scenes", "size": 31}
    with pytest.raises(sact.InputError, match="31x31 pixels"):
        predict(model, picture)


def test_pictures(network, picture: Image.Image, tmp_path: Path) -> None:
    model = network()
    predictions = {"one": predict(model, picture), "two": predict(model, picture.rotate(180))}
    for name, prediction in predictions.items():
        write_pictures(prediction, name, tmp_path / "new")
    write_sheet(list(predictions.values()), tmp_path / "new" / "contact_sheet.png")
    written = list((tmp_path / "new").iterdir())
    names = {"one.png", "one_blocks.png", "two.png", "two_blocks.png", "contact_sheet.png"}
    assert {path.name for path in written} == names
    for path in written:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 48
            assert image.convert("L").getextrema()[0] < 100


def test_arrays(network, picture: Image.Image, tmp_path: Path) -> None:
    prediction = predict(network(), picture, keep_distribution=True)
    write_arrays(prediction, tmp_path / "new" / "one.npz")
    with np.load(tmp_path / "new" / "one.npz", allow_pickle=False) as file:
        arrays = dict(file)
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes == {
        "image": (48, 48, 3),
        "map": (48, 48),
        "block1_units": (12, 12),
        "block1_cost": (12, 12),
        "block1_halting_distribution": (3, 12, 12),
        "block2_units": (6, 6),
        "block2_cost": (6, 6),
        "block2_halting_distribution": (2, 6, 6),
    }
    for block in ("block1", "block2"):
        distribution, units = arrays[f"{block}_halting_distribution"], arrays[f"{block}_units"]
        np.testing.assert_allclose(distribution.sum(0), 1, atol=1e-6)
        last = np.take_along_axis(distribution, units[None].astype(int) - 1, 0)[0]
        np.testing.assert_allclose(arrays[f"{block}_cost"], units + last, atol=1e-5)


def test_find_images(picture: Image.Image, tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "c.webp"):
        picture.save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    found = find_images([tmp_path, tmp_path / "notes.txt"])
    assert [path.name for path in found] == ["a.png", "b.JPG", "c.webp", "notes.txt"]
    for paths, message in (
        ([tmp_path / "empty"], "holds no image"),
        (["nothing.jpg"], "no image nothing.jpg"),
        ([], "no image"),
    ):
        with pytest.raises(sact.InputError, match=message):
            find_images(paths)


def test_names_never_share_a_picture() -> None:
    paths = ["x/a.jpg", "y/a.png", "a_2.jpg", "a.webp", "a_blocks.png", "contact_sheet.png", "b_blocks.jpg", "b.jpg"]
    names = unique_names([Path(path) for path in paths])
    assert names[:2] == ["a", "a_2"]
    written = [f"{name}{end}" for name in names for end in ("", "_blocks")] + ["contact_sheet"]
    assert len(set(written)) == len(written)


def test_images_are_not_replaced_by_their_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_outputs([tmp_path / "a.png"], ["a"], tmp_path / "out")
    check_outputs([tmp_path / "a.jpg"], ["a"], Path("."))
    for path in ("a.png", "a_blocks.png", "contact_sheet.png"):
        with pytest.raises(sact.InputError, match="would be replaced"):
            check_outputs([Path("a.png"), Path(path)], ["a", "b"], tmp_path)

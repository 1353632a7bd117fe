"""`sact.segment` against the segmenter itself, and pictures of every kind."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_dense import NAMES, photo, tiny_segmenter

import sact
from sact import segmenting
from sact.preprocessing import to_unit_tensor


@pytest.fixture(scope="module")
def segmenter() -> sact.Segmenter:
    return tiny_segmenter()


def test_what_the_segmenter_says(segmenter: sact.Segmenter) -> None:
    """80 x 90 pixels stand at the top left of black 96 x 96."""
    picture = photo(90, 80)
    batch = torch.zeros(1, 3, 96, 96)
    batch[0, :, :80, :90] = to_unit_tensor(picture)
    with torch.no_grad():
        logits, ponder = segmenter(batch, return_ponder=True)
    found = sact.segment(segmenter, picture)
    assert found.classes.dtype == np.uint8
    np.testing.assert_array_equal(found.classes, logits[0].argmax(0)[:80, :90].numpy())
    assert len(np.unique(found.classes)) > 1
    assert found.names == ["background", *NAMES]
    assert found.flops == int(ponder.flops[0])
    assert found.share == found.flops / ponder.dense_flops
    np.testing.assert_array_equal(found.map, ponder.map(96)[0, :80, :90].numpy())
    assert np.ptp(found.map) > 0
    assert found.shares.tolist() == pytest.approx([(found.classes == label).mean() for label in range(4)])


@pytest.mark.parametrize("engine", ["masked", "gather"])
def test_compiled(segmenter: sact.Segmenter, engine: str) -> None:
    found, expected = (sact.segment(model, photo()) for model in (sact.compile(segmenter, engine), segmenter))
    assert (found.classes == expected.classes).mean() > 0.999
    np.testing.assert_allclose(found.map, expected.map, atol=1e-4)
    assert found.flops == expected.flops


def test_size(segmenter: sact.Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    small = photo().resize((48, 40), Image.Resampling.BILINEAR)
    expected = sact.segment(segmenter, small)
    found = sact.segment(segmenter, photo(), size=40)
    assert found.image.size == (96, 80)
    np.testing.assert_array_equal(found.classes, expected.classes.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(found.map, expected.map.repeat(2, 0).repeat(2, 1))
    assert found.flops == expected.flops
    monkeypatch.setattr(segmenting, "LONGEST", 48)
    np.testing.assert_array_equal(sact.segment(segmenter, photo()).classes, found.classes)
    with pytest.raises(sact.InputError, match="size is 49, but it must be a whole number of pixels from 32 to 48"):
        sact.segment(segmenter, photo(), size=49)


def test_summary(segmenter: sact.Segmenter) -> None:
    found = sact.segment(segmenter, photo())
    summary = json.loads(json.dumps(found.summary()))
    assert sum(entry["share"] for entry in summary["classes"]) == pytest.approx(1)
    assert [(entry["label"], entry["class"]) for entry in summary["classes"]] == [row[:2] for row in found.found()]
    objects = [entry["share"] for entry in summary["classes"] if entry["label"]]
    assert objects == sorted(objects, reverse=True)
    assert summary["flops"] == found.ponder.fixed_flops + sum(block["flops"] for block in summary["blocks"])


def test_background_alone(segmenter: sact.Segmenter) -> None:
    model = tiny_segmenter("none")
    model.class_names = None
    with torch.no_grad():
        model.classifier[-1].weight.zero_()
        model.classifier[-1].bias.copy_(torch.tensor([1.0, 0, 0, 0]))
    found = sact.segment(model, photo())
    assert found.headline() == "background alone"
    assert found.found() == [(0, "background", 1.0)]
    assert found.map is None
    assert found.share == 1.0


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 2), (400, 300), (3000, 1)])
def test_sizes_of_pictures(segmenter: sact.Segmenter, width: int, height: int) -> None:
    found = sact.segment(segmenter, photo(width, height))
    assert found.classes.shape == found.map.shape == (height, width)


def test_kinds_of_pictures(segmenter: sact.Segmenter, tmp_path) -> None:
    grey = photo().convert("L")
    expected = sact.segment(segmenter, grey.convert("RGB"))
    clear = Image.new("RGBA", grey.size, (255, 0, 0, 0))  # nothing of its red is seen
    white = sact.segment(segmenter, Image.new("RGB", grey.size, "white"))
    exif = Image.Exif()
    exif[0x0112] = 3
    grey.rotate(180).save(tmp_path / "turned.png", exif=exif)
    for picture, same in ((grey, expected), (tmp_path / "turned.png", expected), (clear, white)):
        np.testing.assert_array_equal(sact.segment(segmenter, picture).classes, same.classes)


def test_what_cannot_be_used(segmenter: sact.Segmenter) -> None:
    with pytest.raises(sact.InputError, match="NaN or infinite"):
        sact.segment(segmenter, Image.fromarray(np.full((40, 40), np.inf, np.float32)))
    with pytest.raises(sact.InputError, match="a segmenter is needed, got Network"):
        sact.segment(segmenter.network, photo())
    many = sact.create_segmenter("resnet", 256, units=[1, 1], base_channels=4).eval()
    with pytest.raises(sact.InputError, match="256 classes"):
        sact.segment(many, photo())

"""`sact.detect` against the detector itself, and pictures of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_dense import NAMES, photo, tiny_detector

import sact
from sact.preprocessing import to_unit_tensor


@pytest.fixture(scope="module")
def detector() -> sact.Detector:
    return tiny_detector()


def test_what_the_detector_says(detector: sact.Detector) -> None:
    picture = photo()
    with torch.no_grad():
        [expected], ponder = detector([to_unit_tensor(picture)], return_ponder=True)
    found = sact.detect(detector, picture, threshold=0.0)
    assert len(found) == len(expected["scores"]) == 8
    np.testing.assert_array_equal(found.boxes, expected["boxes"].numpy())
    np.testing.assert_array_equal(found.labels, expected["labels"].numpy())
    np.testing.assert_array_equal(found.scores, expected["scores"].numpy())
    assert found.names == [NAMES[label - 1] for label in expected["labels"].tolist()]
    assert len(set(found.names)) > 1
    assert found.flops == int(ponder.flops[0])
    assert found.share == found.flops / ponder.dense_flops
    assert found.image.size == picture.size
    assert found.map.shape == (80, 96)
    assert found.map.dtype == np.float32
    # 80 x 96 pixels become 64 x 76, in a batch of 64 x 96.
    whole = ponder.map((64, 96))[0, :, :76]
    columns = (np.arange(96) * 76 // 96).tolist()
    rows = (np.arange(80) * 64 // 80).tolist()
    np.testing.assert_array_equal(found.map, whole[rows][:, columns].numpy())
    assert np.ptp(found.map) > 0


def test_threshold(detector: sact.Detector) -> None:
    everything = sact.detect(detector, photo(), threshold=0.0)
    third = float(everything.scores[2])
    found = sact.detect(detector, photo(), threshold=third)
    assert len(found) == 3
    np.testing.assert_array_equal(found.boxes, everything.boxes[:3])
    assert everything.above(third).summary()["objects"] == found.summary()["objects"]
    assert len(sact.detect(detector, photo(), threshold=1.0)) == 0


@pytest.mark.parametrize("engine", ["masked", "gather"])
def test_compiled(detector: sact.Detector, engine: str) -> None:
    found, expected = (
        sact.detect(model, photo(), threshold=0.0) for model in (sact.compile(detector, engine), detector)
    )
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(found.map, expected.map, atol=1e-4)
    assert found.flops == expected.flops


def test_size(detector: sact.Detector) -> None:
    """As a detector of the same weights that was made for that size; the one given stays as it is."""
    other = tiny_detector(min_size=96, max_size=192)
    other.load_state_dict(detector.state_dict())
    found, expected = sact.detect(detector, photo(), 0.0, size=96), sact.detect(other, photo(), 0.0)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    assert found.flops == expected.flops > sact.detect(detector, photo(), 0.0).flops
    for size in (31, 96.0, True, 20000):
        with pytest.raises(sact.InputError, match=f"size is {size!r}"):
            sact.detect(detector, photo(), size=size)


def test_summary(detector: sact.Detector) -> None:
    found = sact.detect(detector, photo(), threshold=0.0)
    summary = json.loads(json.dumps(found.summary()))
    assert (summary["width"], summary["height"]) == (96, 80)
    assert (summary["flops"], summary["flops_share"]) == (found.flops, found.share)
    assert [entry["class"] for entry in summary["objects"]] == found.names
    assert summary["objects"][0]["score"] == pytest.approx(float(found.scores[0]))
    assert summary["objects"][-1]["box"] == pytest.approx(found.boxes[-1].tolist())
    assert [block["unit_count"] for block in summary["blocks"]] == [5, 5]
    assert summary["flops"] == found.ponder.fixed_flops + sum(block["flops"] for block in summary["blocks"])
    counts = {name: found.names.count(name) for name in found.names}
    assert set(found.headline().split(", ")) == {
        f"{name} ({count})" if count > 1 else name for name, count in counts.items()
    }


def test_plain_extractors_and_unnamed_classes() -> None:
    model = tiny_detector("none")
    model.class_names = None
    found = sact.detect(model, photo(), threshold=0.0)
    assert found.map is None
    assert found.share == 1.0
    assert found.names == [str(label) for label in found.labels]
    assert [block["ponder_cost"] for block in found.summary()["blocks"]] == [None, None]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 2), (500, 400), (127, 1)])
def test_sizes_of_pictures(detector: sact.Detector, width: int, height: int) -> None:
    found = sact.detect(detector, photo(width, height), threshold=0.0)
    assert found.map.shape == (height, width)
    assert (found.boxes[:, :2] >= 0).all()
    assert (found.boxes[:, 2:] <= (width, height)).all()


def test_kinds_of_pictures(detector: sact.Detector, tmp_path: Path) -> None:
    """Grey, transparent and turned ones say what the same RGB picture says."""
    grey = photo().convert("L")
    expected = sact.detect(detector, grey.convert("RGB"), threshold=0.0)
    clear = grey.convert("RGBA")
    clear.putalpha(255)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: to be turned by 90 degrees clockwise
    grey.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    for picture in (grey, clear, grey.convert("P"), tmp_path / "turned.png", str(tmp_path / "turned.png")):
        found = sact.detect(detector, picture, threshold=0.0)
        assert found.image.size == (96, 80)
        np.testing.assert_array_equal(found.boxes, expected.boxes)


def test_what_cannot_be_used(detector: sact.Detector, tmp_path: Path) -> None:
    values = np.zeros((40, 40), np.float32)
    values[3, 4] = np.nan
    with pytest.raises(sact.InputError, match="NaN or infinite"):
        sact.detect(detector, Image.fromarray(values))
    with pytest.raises(sact.InputError, match="there is no image file"):
        sact.detect(detector, tmp_path / "nothing.png")
    with pytest.raises(sact.InputError, match=r"2000x1 pixels.* at most 128 times the short one.*crop it"):
        sact.detect(detector, photo(2000, 1))
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(sact.InputError, match=f"threshold is {threshold}"):
            sact.detect(detector, photo(), threshold)
    with pytest.raises(sact.InputError, match="a detector is needed, got Network; see sact.create_detector"):
        sact.detect(detector.network, photo())
    training = tiny_detector().train()
    with pytest.raises(sact.InputError, match="training mode"):
        sact.detect(training, photo())

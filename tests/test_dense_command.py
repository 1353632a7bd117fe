"""`sact detect` and `sact segment`, end to end on tiny random models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_dense import NAMES, photo, tiny_detector, tiny_segmenter

import sact
from sact.cli import main


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a detector, which knows COCO's ids of its classes, and a segmenter."""
    folder = tmp_path_factory.mktemp("models")
    tiny_detector().save_pretrained(folder / "detector", category_ids=[17, 18, 16])
    tiny_segmenter().save_pretrained(folder / "segmenter")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    photo().save(tmp_path / "images" / "a.png")
    photo(64, 90).save(tmp_path / "images" / "b.jpg")
    return tmp_path / "images"


def run(verb: str, models: Path, *arguments: object) -> int:
    model = models / {"detect": "detector", "segment": "segmenter"}[verb]
    return main([verb, "--engine", "masked", "--model", str(model), *map(str, arguments)])


def test_detect(models: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("detect", models, images, "--out", out, "--threshold", 0) == 0
    expected = sact.detect(sact.from_pretrained(models / "detector"), images / "a.png", 0.0)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{images / 'a.png'}: {expected.headline()}; {expected.share:.0%} of the plain")
    assert {path.name for path in out.iterdir()} == {
        *("a.png", "b.png", "contact_sheet.png", "detections.json", "predictions.json")
    }
    results = json.loads((out / "detections.json").read_text())
    assert [entry["image_id"] for entry in results] == ["a"] * 8 + ["b"] * 8
    left, top, right, bottom = expected.boxes[0].tolist()
    assert results[0]["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=0.01)
    assert results[0]["score"] == pytest.approx(float(expected.scores[0]), abs=1e-5)
    assert [entry["category_id"] for entry in results[:8]] == [[17, 18, 16][label - 1] for label in expected.labels]
    content = json.loads((out / "predictions.json").read_text())
    assert content["model"] == str(models / "detector")
    assert [entry["image"] for entry in content["predictions"]] == [str(images / name) for name in ("a.png", "b.jpg")]
    first = content["predictions"][0]
    assert {**first, "image": 0, "milliseconds": 0} == {**expected.summary(), "image": 0, "milliseconds": 0}


def test_detect_with_annotations(models: Path, images: Path, tmp_path: Path) -> None:
    """Ids of images by file names; of categories by class names, where all are listed."""
    listed = [{"id": 30 + at, "file_name": name} for at, name in enumerate(("b.jpg", "a.png"))]
    categories = [{"id": 5 + at, "name": name} for at, name in enumerate(NAMES)]
    file = tmp_path / "instances.json"
    for known, ids in ((categories, [5, 6, 7]), (categories[:2], [17, 18, 16])):
        file.write_text(json.dumps({"images": listed, "annotations": [], "categories": known}))
        arguments = (images, "--annotations", file, "--out", tmp_path / "out", "--threshold", 0)
        assert run("detect", models, *arguments) == 0
        results = json.loads((tmp_path / "out" / "detections.json").read_text())
        assert [entry["image_id"] for entry in results] == [31] * 8 + [30] * 8
        assert {entry["category_id"] for entry in results} <= set(ids)


def test_nothing_found(models: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("detect", models, images / "a.png", "--out", tmp_path, "--threshold", 1, "--size", 96) == 0
    assert "a.png: no objects; " in capsys.readouterr().out
    assert json.loads((tmp_path / "detections.json").read_text()) == []
    assert json.loads((tmp_path / "predictions.json").read_text())["predictions"][0]["objects"] == []
    assert (tmp_path / "a.png").is_file()


def test_segment(models: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    photo(40, 50).save(images / "a_classes.png")
    assert run("segment", models, images, "--out", out, "--size", 48) == 0
    assert {path.name for path in out.iterdir()} == {
        *(f"{name}{end}.png" for name in ("a", "a_classes_2", "b") for end in ("", "_classes")),
        *("contact_sheet.png", "segments.json"),
    }
    expected = sact.segment(sact.from_pretrained(models / "segmenter"), images / "b.jpg", 48)
    assert f"b.jpg: {expected.headline()}; " in capsys.readouterr().out
    with Image.open(out / "b_classes.png") as read:
        assert read.mode == "P"
        np.testing.assert_array_equal(np.asarray(read), expected.classes)
    last = json.loads((out / "segments.json").read_text())["predictions"][-1]
    assert {**last, "image": 0, "milliseconds": 0} == {**expected.summary(), "image": 0, "milliseconds": 0}


@pytest.mark.parametrize("verb", ["detect", "segment"])
def test_what_is_done_is_kept(
    verb: str, models: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "aa.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert run(verb, models, images, "--out", out) == 1
    assert "left out:" in (told := capsys.readouterr().err) and "aa.png' is not a readable" in told
    name = {"detect": "predictions.json", "segment": "segments.json"}[verb]
    content = json.loads((out / name).read_text())
    assert [Path(entry["image"]).name for entry in content["predictions"]] == ["a.png", "b.jpg"]
    assert {"a.png", "b.png", "contact_sheet.png"} <= {path.name for path in out.iterdir()}
    assert "aa.png" not in {path.name for path in out.iterdir()}
    before = (out / name).read_bytes()
    assert run(verb, models, images / "aa.png", "--out", out) == 2  # with nothing done, all stays as it was
    assert (out / name).read_bytes() == before
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_bad_arguments(
    models: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none.json").write_text('{"images": [], "categories": []}')
    detector, segmenter = str(models / "detector"), str(models / "segmenter")
    image = str(images / "a.png")
    for arguments, message in (
        (["detect", "nothing.png", "--model", detector], "there is no image nothing.png"),
        (["detect", image, "--model", segmenter], "is no detector, but a segmenter (sact segment)"),
        (["segment", image, "--model", detector], "is no segmenter, but a detector (sact detect)"),
        (["segment", image, "--model", "scenes"], "scenes is no segmenter, but a network that classifies images"),
        (["detect", image, "--model", detector, "--threshold", "2"], "--threshold is 2.0"),
        (["detect", image, "--model", detector, "--size", "5"], "size is 5"),
        (["segment", "nothing.png", "--model", segmenter, "--size", "5"], "size is 5"),
        (["segment", image, "--model", segmenter, "--size", "5"], "size is 5"),
        (["segment", image, "--model", segmenter, "--budget", "0.5"], "calibrat"),
        (["segment", image, "--model", segmenter, "--cap", "-1"], "ap is -1"),
        (["detect", image, "--model", detector, "--engine", "fast"], "fast"),
        (["detect", image, "--model", detector, "--out", str(images)], "would be replaced"),
        (["detect", image, "--model", detector, "--annotations", "none.json"], "a.png is not among the images of"),
    ):
        assert main(arguments) == 2, arguments
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["detect", image])
    assert "--model" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*predictions.json"))

"""Ids of images and categories in annotation files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sact
from sact.coco_names import CocoNames


def write(folder: Path, **content: Any) -> Path:
    file = folder / "instances.json"
    usual = {
        "images": [{"id": 7, "file_name": "a.png", "width": 9, "height": 5}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}],
    }
    file.write_text(json.dumps(usual | content))
    return file


def test_ids(tmp_path: Path) -> None:
    images = [
        {"id": 7, "file_name": "a.png", "width": 9, "height": 5},
        {"id": 8, "file_name": "x/b.png", "width": 9, "height": 5},
        {"id": 9, "file_name": "y/b.png", "width": 9, "height": 5},
    ]
    paths = [tmp_path / name for name in ("elsewhere/a.png", "y/b.png", "x/b.png")]
    names = CocoNames.read(write(tmp_path, images=images), paths)
    assert [names.image_ids[path] for path in paths] == [7, 9, 8]
    assert names.category_ids(["dog", "cat"], [3, 4]) == [5, 1]
    assert names.category_ids(["dog", "bird"], [3, 4]) == [3, 4]
    assert names.category_ids(["dog", "bird"], None) is None
    assert names.category_ids(None, [3, 4]) == [3, 4]


def test_categories_of_one_name(tmp_path: Path) -> None:
    """Which of two is meant is not known; other names are not concerned."""
    categories = [{"id": number, "name": name} for number, name in ((1, "x"), (2, "x"), (3, "y"))]
    names = CocoNames.read(write(tmp_path, categories=categories), [])
    assert names.category_ids(["x", "x"], [1, 2]) == [1, 2]
    assert names.category_ids(["x", "y"], None) is None
    assert names.category_ids(["y"], [7]) == [3]


def test_two_images_of_one_entry(tmp_path: Path) -> None:
    with pytest.raises(sact.InputError, match=r"x/a\.png and y/a\.png are both 'a\.png' in .*instances\.json"):
        CocoNames.read(write(tmp_path), [Path("x/a.png"), Path("y/a.png")])


def test_images_as_they_were_annotated(tmp_path: Path) -> None:
    """Stored lying with 9 x 5 pixels, upright 5 x 9."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.new("RGB", (9, 5)).save(path, exif=exif)
    for size in ((9, 5), (5, 9)):
        images = [{"id": 7, "file_name": "a.png", "width": size[0], "height": size[1]}]
        assert CocoNames.read(write(tmp_path, images=images), [path]).open(path).size == size
    unsized = [{"id": 7, "file_name": "a.png"}]
    assert CocoNames.read(write(tmp_path, images=unsized), [path]).open(path).size == (5, 9)
    images = [{"id": 7, "file_name": "a.png", "width": 4, "height": 4}]
    with pytest.raises(sact.InputError, match=r"a\.png has 9 x 5 pixels, but .*instances\.json says 4 x 4"):
        CocoNames.read(write(tmp_path, images=images), [path]).open(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, r"b\.png is not among the images of"),
        ({"images": [{"id": 1, "file_name": "b.png"}, {"id": 2, "file_name": "b.png"}]}, "more than once"),
        ({"images": {}}, "no list of images"),
        ({"categories": None}, "no list of categories"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(sact.InputError, match=message):
        CocoNames.read(write(tmp_path, **content), [Path("b.png")])


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(sact.InputError, match="cannot be read"):
        CocoNames.read(tmp_path / "nothing.json", [])
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(sact.InputError, match="no list of images"):
        CocoNames.read(tmp_path / "list.json", [])
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(sact.InputError, match="are not JSON"):
        CocoNames.read(tmp_path / "cut.json", [])

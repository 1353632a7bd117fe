"""A COCO of a few drawn images, in the layout and with every field of the published one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

NAMES = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
CATEGORIES = [
    {"supercategory": "thing", "id": number, "name": name}
    for number, name in enumerate(NAMES)
    if name not in ("__background__", "N/A")
]
"""COCO's 80 categories, whose ids leave gaps between 1 and 90."""
USED = (1, 18, 44, 90)
"""Ids of the categories that are drawn: person, dog, bottle, toothbrush."""
COLOURS = {1: (220, 60, 50), 18: (60, 200, 80), 44: (60, 90, 230), 90: (230, 200, 40)}


def write_fake_coco(folder: Path, train: int = 8, val: int = 4, size: tuple[int, int] = (96, 80)) -> Path:
    """Write `annotations/instances_{train,val}2017.json`, `train2017` and `val2017`.

    The first image of each split has no objects; the second has a crowd region beside its objects; every third is
    upright instead of lying.

    Args:
        folder: made if missing.
        train: training images, at least 2.
        val: validation images, at least 2.
        size: width and height of images.

    Returns:
        The folder.
    """
    for split, count, seed in (("train2017", train, 0), ("val2017", val, 1)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(count):
            width, height = size if number % 3 else size[::-1]
            image_id = 1000 * (seed + 1) + 7 * number
            picture, objects = _draw(rng, width, height, empty=number == 0, crowd=number == 1)
            name = f"{image_id:012d}.jpg"
            picture.convert("L" if number == 3 else "RGB").save(folder / split / name, quality=95)
            images.append(_image(image_id, name, width, height, split))
            for each in objects:
                annotations.append(each | {"image_id": image_id, "id": 900100000000 + len(annotations)})
        write_annotations(folder, split, images, annotations)
    return folder


def write_annotations(folder: Path, split: str, images: list[Any], annotations: list[Any], **sections: Any) -> Path:
    """Write one annotation file, with the published one's other sections."""
    content = {
        "info": {"description": "a drawn stand-in", "version": "1.0", "year": 2017},
        "licenses": [{"url": "", "id": 1, "name": "none"}],
        "images": images,
        "annotations": annotations,
        "categories": CATEGORIES,
    }
    file = folder / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content | sections))
    return file


def _image(image_id: int, name: str, width: int, height: int, split: str) -> dict[str, Any]:
    urls = {"coco_url": f"http://localhost/{split}/{name}", "flickr_url": ""}
    size = {"width": width, "height": height}
    return {"license": 1, "file_name": name, "date_captured": "2013-11-14 16:28:13", "id": image_id} | urls | size


def _draw(
    rng: np.random.Generator, width: int, height: int, empty: bool, crowd: bool
) -> tuple[Image.Image, list[dict[str, Any]]]:
    picture = Image.fromarray(rng.integers(70, 130, (height, width, 3), dtype=np.uint8))
    pen = ImageDraw.Draw(picture)
    objects: list[dict[str, Any]] = []
    for kind in [] if empty else rng.choice(USED, 2):
        side = int(rng.integers(min(width, height) // 5, min(width, height) // 2))
        left, top = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        pen.rectangle((left, top, left + side - 1, top + side - 1), COLOURS[int(kind)])
        objects.append(_square(int(kind), left, top, side))
    if crowd:
        pen.rectangle((0, height - 10, 19, height - 1), COLOURS[1])
        objects.append(_crowd(width, height))
    return picture, objects


def _square(category: int, left: int, top: int, side: int) -> dict[str, Any]:
    right, bottom = left + side, top + side
    polygon = [left, top, right, top, right, bottom, left, bottom]
    return {
        "segmentation": [[float(value) for value in polygon]],
        "area": float(side * side),
        "iscrowd": 0,
        "bbox": [float(left), float(top), float(side), float(side)],
        "category_id": category,
    }


def _crowd(width: int, height: int) -> dict[str, Any]:
    """A crowd of persons, 20 x 10 pixels in the lower left corner, as uncompressed runs down the columns."""
    counts = [height - 10, 10] * 20 + [height * (width - 20)]
    return {
        "segmentation": {"counts": counts, "size": [height, width]},
        "area": 200.0,
        "iscrowd": 1,
        "bbox": [0.0, float(height - 10), 20.0, 10.0],
        "category_id": 1,
    }

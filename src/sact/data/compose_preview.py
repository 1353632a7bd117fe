"""A contact sheet of a composed set: some pictures of each split with boxes, masks and categories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..dense_pictures import class_color, draw_boxes
from ..drawing import draw_text, on_page, padded, side_by_side, stacked
from .coco_writing import decode_runs
from .splits import SPLITS

_PER_SPLIT = 4
_PANEL = 320
_GAP = 8


def write_preview(folder: Path, path: Path) -> None:
    """Draw the first pictures of each split of the set in a folder, a row for each, into a PNG file."""
    rows = []
    for split in SPLITS:
        content = json.loads((folder / "annotations" / f"instances_{split}.json").read_text(encoding="utf-8"))
        panels = [_panel(folder / split, image, content) for image in content["images"][:_PER_SPLIT]]
        rows += [draw_text(split, 16, _PANEL), side_by_side(panels, _GAP)]
    on_page(stacked(rows, _GAP), "", "", 16).save(path)


def _panel(folder: Path, image: dict[str, Any], content: dict[str, Any]) -> Image.Image:
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects = [one for one in content["annotations"] if one["image_id"] == image["id"]]
    with Image.open(folder / image["file_name"]) as file:
        pixels = np.asarray(file.convert("RGB")).astype(np.float32)
    for one in objects:
        mask = decode_runs(one["segmentation"])
        pixels[mask] = 0.65 * pixels[mask] + 0.35 * np.array(class_color(one["category_id"]))
    scale = _PANEL / max(pixels.shape[:2])
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    picture = Image.fromarray(pixels.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    boxes = [
        (x * scale, y * scale, (x + width) * scale, (y + height) * scale)
        for x, y, width, height in (one["bbox"] for one in objects)
    ]
    labels = [one["category_id"] for one in objects]
    picture = draw_boxes(picture, boxes, labels, [names[label] for label in labels])
    return padded(picture, _PANEL, picture.height)

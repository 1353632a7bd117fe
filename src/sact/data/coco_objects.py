"""The objects of a COCO-format file, checked, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .coco_fields import is_box, is_flag, is_id, value_of, wrong_field
from .coco_masks import Segmentation, read_segmentation
from .coco_report import Report

_FIELDS = {"image_id": is_id, "category_id": is_id, "iscrowd": is_flag}
_ROUNDING = 1.0
"""Pixels by which published boxes stick out by rounding; clipped without a word."""
_THINNEST = 1e-2
"""Pixels of a side below which a box has no area: in float32, reflected or scaled, it may vanish."""


@dataclass(frozen=True)
class Objects:
    """The objects of M images, sorted by image.

    Attributes:
        first: int64 [M + 1]; those of image m are first[m] : first[m + 1].
        boxes: float32 [K, 4], x1, y1, x2, y2 in pixels, inside the image and of positive area.
        labels: int64 [K], from 1.
        areas: float32 [K] in square pixels, positive; of the segmentation where the file says it.
        crowds: bool [K], whether it is a crowd region rather than one object.
        segmentations: of K objects, None where unusable; None if they were not asked for.
    """

    first: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    areas: NDArray[np.float32]
    crowds: NDArray[np.bool_]
    segmentations: list[Segmentation | None] | None


def read_objects(
    entries: list[Any],
    images: Mapping[int, int],
    labels: Mapping[int, int],
    sizes: NDArray[np.int64],
    report: Report,
    segmentations: bool = False,
) -> Objects:
    """Check annotations and bring them into the order of the images.

    Args:
        entries: the file's annotations.
        images: image id -> place among the M images that are used, -1 for images that had to be left out.
        labels: category id -> label.
        sizes: int64 [M, 2], width and height.
        report: receives what is wrong.
        segmentations: read them, too.
    """
    used, rows, classes = _linked(entries, images, labels, report)
    boxes = np.array([entries[index]["bbox"] for index in used], dtype=np.float64).reshape(-1, 4)
    boxes, keep = _inside(boxes, sizes[rows].reshape(-1, 2), used, entries, report)
    order = np.flatnonzero(keep)[np.argsort(rows[keep], kind="stable")]
    used, rows, classes, boxes = used[order], rows[order], classes[order], boxes[order]
    kept = [entries[index] for index in used]
    return Objects(
        first=np.searchsorted(rows, np.arange(len(sizes) + 1)),
        boxes=boxes.astype(np.float32),
        labels=classes,
        areas=_areas(kept, used, boxes, report),
        crowds=np.array([bool(entry.get("iscrowd")) for entry in kept], dtype=np.bool_),
        segmentations=_segmentations(kept, used, sizes[rows], report) if segmentations else None,
    )


def _linked(
    entries: list[Any], images: Mapping[int, int], labels: Mapping[int, int], report: Report
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Index of each annotation of a used image, the image's row, and the label."""
    found: list[tuple[int, int, int]] = []
    index_of: dict[int, int] = {}
    for index, entry in enumerate(entries):
        if wrong := wrong_field(entry, _FIELDS):
            report.add("bad_annotation", f"annotations[{index}]{wrong[0]}", _id(entry), wrong[1])
            continue
        number = entry.get("id")
        if not is_id(number):
            report.add("no_annotation_id", f"annotations[{index}].id", None, value_of(entry, "id"))
        elif number in index_of:
            report.add(
                "duplicate_annotation", f"annotations[{index}].id", number, f"as annotations[{index_of[number]}]"
            )
        else:
            index_of[number] = index
        row, label = images.get(entry["image_id"]), labels.get(entry["category_id"])
        if row is None:
            report.add("unknown_image", f"annotations[{index}].image_id", number, value_of(entry, "image_id"))
        elif label is None:
            report.add("unknown_category", f"annotations[{index}].category_id", number, value_of(entry, "category_id"))
        elif not is_box(entry.get("bbox")):
            report.add("bad_box", f"annotations[{index}].bbox", number, value_of(entry, "bbox"))
        elif row >= 0:
            found.append((index, row, label))
    table = np.array(found, dtype=np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


def _id(entry: object) -> object:
    return entry.get("id") if isinstance(entry, dict) else None


def _inside(
    boxes: NDArray[np.float64], sizes: NDArray[np.int64], used: NDArray[np.int64], entries: list[Any], report: Report
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Boxes x, y, width, height as corners, clipped to their images, and which of them are usable."""
    limits = np.concatenate([sizes, sizes], axis=1)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    clipped = np.clip(corners, 0, limits)
    sides = (clipped[:, 2:] - clipped[:, :2]).min(axis=1, initial=np.inf)
    zero = boxes[:, 2:].min(axis=1, initial=np.inf) < _THINNEST
    outside = ~zero & (sides < _THINNEST)
    beyond = ~zero & ~outside & (np.abs(corners - clipped).max(axis=1, initial=0) > _ROUNDING)
    for kind, which in (("zero_area", zero), ("outside", outside), ("sticks_out", beyond)):
        for row in np.flatnonzero(which):
            entry, size = entries[used[row]], f"{sizes[row, 0]} x {sizes[row, 1]}"
            value = value_of(entry, "bbox") + ("" if kind == "zero_area" else f" in an image of {size}")
            report.add(kind, f"annotations[{used[row]}].bbox", _id(entry), value)
    return clipped, ~zero & ~outside


def _areas(
    entries: list[Any], used: NDArray[np.int64], boxes: NDArray[np.float64], report: Report
) -> NDArray[np.float32]:
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).astype(np.float32)
    for row, entry in enumerate(entries):
        area = entry.get("area")
        if type(area) in (int, float) and 0 < area < 1e18:
            areas[row] = area
        else:
            report.add("no_area", f"annotations[{used[row]}].area", _id(entry), value_of(entry, "area"))
    return areas


def _segmentations(
    entries: list[Any], used: NDArray[np.int64], sizes: NDArray[np.int64], report: Report
) -> list[Segmentation | None]:
    read: list[Segmentation | None] = []
    for row, entry in enumerate(entries):
        read.append(read_segmentation(entry.get("segmentation"), int(sizes[row, 0]), int(sizes[row, 1])))
        if read[-1] is None:
            where = f"annotations[{used[row]}].segmentation"
            report.add("bad_segmentation", where, _id(entry), value_of(entry, "segmentation"))
    return read

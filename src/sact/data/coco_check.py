"""Reading of COCO-format annotation files of any origin: what is usable, and a report on what is not."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .coco_fields import is_id, is_name, value_of, wrong_field
from .coco_images import Entry, read_images, with_files
from .coco_layout import find_annotations, find_images, find_semantic
from .coco_objects import Objects, read_objects
from .coco_report import Report

Masks = Literal["none", "objects", "semantic"]
MAX_LEFT_OUT = 0.05
"""Share of images, and of annotations, that may be left out by default."""


@dataclass(frozen=True)
class CocoFile:
    """The usable content of an annotation file.

    Attributes:
        report: what was found wrong.
        folder: of the images.
        semantic: folder of the semantic masks; None if there is none or it was not asked for.
        class_names: in the order of the categories' ids, see `told_apart`; a label is the position here + 1.
        category_ids: of the classes.
        positions: of the classes in the file's own list of categories, from 0.
        images: the M images that are used.
        sizes: int64 [M, 2], width and height.
        objects: of these images.
    """

    report: Report
    folder: Path
    semantic: Path | None
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    positions: tuple[int, ...]
    images: list[Entry]
    sizes: NDArray[np.int64]
    objects: Objects


def check_coco(
    data_dir: str | os.PathLike[str],
    split: str = "train",
    annotations: str | None = None,
    images: str | None = None,
    max_left_out: float = MAX_LEFT_OUT,
    masks: Masks = "none",
) -> Report:
    """Check a data set in COCO's format; `print` the report to read it.

    Args:
        data_dir: folder of the data set.
        split: "train", "val" or "test".
        annotations: the annotation file, relative to `data_dir`, where it is not in a usual place.
        images: folder of the images, likewise.
        max_left_out: share of the images, and of the annotations, that may be left out, in [0, 1].
        masks: "none" for boxes alone; "objects": the segmentations as well, which needs the extra "detection";
            "semantic": the folder of semantic masks if there is one, and the segmentations if not.

    Returns:
        The report. Its `fatal` problems are those for which the data sets refuse the file.

    Raises:
        InputError: unknown split, no annotation file, or none of its images.
    """
    return _examine(data_dir, split, annotations, images, max_left_out, masks)[1]


def read_coco(
    data_dir: str | os.PathLike[str],
    split: str,
    annotations: str | None = None,
    images: str | None = None,
    max_left_out: float = MAX_LEFT_OUT,
    masks: Masks = "none",
) -> CocoFile:
    """Read an annotation file; the arguments are those of `check_coco`.

    Raises:
        InputError: as for `check_coco`, or there is a fatal problem.
    """
    content, report = _examine(data_dir, split, annotations, images, max_left_out, masks)
    report.check()
    assert content is not None
    return content


def _examine(
    data_dir: str | os.PathLike[str],
    split: str,
    annotations: str | None,
    images: str | None,
    max_left_out: float,
    masks: Masks,
) -> tuple[CocoFile | None, Report]:
    if isinstance(max_left_out, bool) or not isinstance(max_left_out, (int, float)) or not 0 <= max_left_out <= 1:
        raise InputError(f"max_left_out is {max_left_out!r}, but it is a share; give a number from 0 to 1")
    folder = Path(data_dir).expanduser()
    file, name = find_annotations(folder, split, annotations)
    report = Report(file)
    with _no_garbage_collection():
        lists = _load(file, report)
        if report.fatal:
            return None, report
        categories, listed = _read_categories(lists["categories"], report), read_images(lists["images"], report)
        if report.fatal:
            return None, report
        place = find_images(folder, file, name, [image.name for image in listed], images)
        semantic = find_semantic(folder, name) if masks == "semantic" else None
        used = with_files(listed, place, semantic, report)
        report.limit("too_few_images", len(lists["images"]), max_left_out)
        rows = dict.fromkeys(_ids(lists["images"]), -1) | {image.id: row for row, image in enumerate(used)}
        sizes = np.array([image.size for image in used], dtype=np.int64).reshape(-1, 2)
        labels = {number: label for label, (number, _, _) in enumerate(categories, start=1)}
        drawn = masks == "objects" or (masks == "semantic" and semantic is None)
        objects = read_objects(lists["annotations"], rows, labels, sizes, report, drawn)
        report.limit("too_few_annotations", len(lists["annotations"]), max_left_out)
    if not report.fatal and not len(objects.labels):
        report.add("nothing_left", "annotations", None, f"{len(lists['annotations'])} entries, none usable")
    if report.fatal:
        return None, report
    report.totals = {"images": len(used), "annotations": len(objects.labels), "categories": len(categories)}
    report.totals |= {"crowd regions": int(objects.crowds.sum())}
    report.totals |= {"images without objects": int((np.diff(objects.first) == 0).sum())}
    numbers, names, positions = zip(*categories, strict=True)
    return CocoFile(report, place, semantic, names, numbers, positions, used, sizes, objects), report


def _ids(entries: list[Any]) -> Iterator[int]:
    """Ids of the entries that have one, also of those that are of no use otherwise."""
    return (entry["id"] for entry in entries if isinstance(entry, dict) and is_id(entry.get("id")))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of new objects, all of which stay, would be walked through again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _load(file: Path, report: Report) -> dict[str, list[Any]]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        report.add("not_json", "", None, str(error) or type(error).__name__)
        return {}
    if not isinstance(content, dict):
        report.add("no_section", "", None, f"the file holds a {type(content).__name__} rather than an object")
        return {}
    for section in ("images", "annotations", "categories"):
        if not isinstance(content.get(section), list):
            report.add("no_section", section, None, value_of(content, section))
    return content


def _read_categories(entries: list[Any], report: Report) -> list[tuple[int, str, int]]:
    """Id, name and place in the list of each category, in the order of ids."""
    found: dict[int, tuple[str, int]] = {}
    for index, entry in enumerate(entries):
        where = f"categories[{index}]"
        if wrong := wrong_field(entry, {"id": is_id, "name": is_name}):
            report.add("bad_category", f"{where}{wrong[0]}", None, wrong[1])
        elif entry["id"] in found:
            report.add("duplicate_category", f"{where}.id", entry["id"], f"as categories[{found[entry['id']][1]}]")
        else:
            if any(entry["name"] == name for name, _ in found.values()):
                report.add("same_name", f"{where}.name", entry["id"], entry["name"])
            found[entry["id"]] = entry["name"], index
    if not entries:
        report.add("bad_category", "categories", None, "none are listed")
    numbers = sorted(found)
    names = told_apart([found[number][0] for number in numbers])
    return [(number, name, found[number][1]) for number, name in zip(numbers, names, strict=True)]


def told_apart(names: Sequence[str]) -> list[str]:
    """The names; of equal ones all but the first with a number behind: "cat", "cat (2)"."""
    apart: list[str] = []
    for name in names:
        number, unique = 1, name
        while unique in apart or (number > 1 and unique in names):
            number += 1
            unique = f"{name} ({number})"
        apart.append(unique)
    return apart

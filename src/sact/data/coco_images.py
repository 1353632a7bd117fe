"""The images of a COCO-format file: what their entries say, and what their files are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ..preprocessing import image_size
from .coco_fields import is_id, is_name, wrong_field
from .coco_report import Report

_CHUNK = 500
_THREADS = 8  # waiting for a disk far away more than computing


class Entry(NamedTuple):
    """An image: its position in the file's list, id, file name, and width and height, (0, 0) where not known."""

    position: int
    id: int
    name: str
    size: tuple[int, int]


def read_images(entries: list[Any], report: Report) -> list[Entry]:
    """The images that have an id and a file name of their own."""
    images: dict[int, Entry] = {}
    first_with: dict[str, int] = {}
    for index, entry in enumerate(entries):
        where = f"images[{index}]"
        if wrong := wrong_field(entry, {"id": is_id, "file_name": is_name}):
            report.add("bad_image", f"{where}{wrong[0]}", None, wrong[1])
            continue
        number, name = entry["id"], entry["file_name"]
        if number in images:
            report.add("duplicate_image", f"{where}.id", number, f"as images[{images[number].position}]")
            continue
        if name in first_with:
            report.add("same_file", f"{where}.file_name", number, f"{name}, as images[{first_with[name]}]")
        first_with.setdefault(name, index)
        size = entry.get("width"), entry.get("height")
        if not all(is_id(side) and side > 0 for side in size):
            report.add("no_size", f"{where}.width, .height", number, f"{size[0]!r}, {size[1]!r}")
            size = 0, 0
        images[number] = Entry(index, number, name, size)
    return list(images.values())


def with_files(images: Sequence[Entry], folder: Path, semantic: Path | None, report: Report) -> list[Entry]:
    """The images whose files are there and have the size that they should; unknown sizes are filled in.

    Args:
        images: as `read_images` gives them.
        folder: to which file names are relative.
        semantic: folder of semantic masks, one for each image; None for none.
        report: receives what is wrong.
    """
    there = _Listing(folder)
    found = [image for image in images if there.has(image.name)]
    for image in (image for image in images if not there.has(image.name)):
        report.add("missing_file", f"images[{image.position}].file_name", image.id, str(folder / image.name))
    if semantic is not None:
        masks = _Listing(semantic)
        for image in (image for image in found if not masks.has(mask_name(image.name))):
            report.add(
                "missing_mask", f"images[{image.position}].file_name", image.id, str(semantic / mask_name(image.name))
            )
        found = [image for image in found if masks.has(mask_name(image.name))]
    with ThreadPoolExecutor(_THREADS) as pool:
        chunks = [found[start : start + _CHUNK] for start in range(0, len(found), _CHUNK)]
        sizes = [size for chunk in pool.map(lambda chunk: _sizes(chunk, folder), chunks) for size in chunk]
    return [
        checked for image, size in zip(found, sizes, strict=True) if (checked := _checked(image, size, folder, report))
    ]


def mask_name(image_name: str) -> str:
    """The semantic mask's file name of an image's."""
    return f"{os.path.splitext(image_name)[0]}.png"


class _Listing:
    """What is in a folder and its subfolders, each listed once: far quicker than asking for each file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listed: dict[str, frozenset[str]] = {}

    def has(self, name: str) -> bool:
        subfolder, last = os.path.split(name)
        if subfolder not in self.listed:
            try:
                self.listed[subfolder] = frozenset(os.listdir(self.folder / subfolder))
            except (OSError, ValueError):
                self.listed[subfolder] = frozenset()
        return last in self.listed[subfolder]


def _sizes(images: Sequence[Entry], folder: Path) -> list[tuple[int, int, bool] | None]:
    return [image_size(folder / image.name) for image in images]


def _checked(image: Entry, size: tuple[int, int, bool] | None, folder: Path, report: Report) -> Entry | None:
    where = f"images[{image.position}]"
    if size is None:
        report.add("unreadable_file", f"{where}.file_name", image.id, str(folder / image.name))
        return None
    width, height, turned = size
    upright = (height, width) if turned else (width, height)
    if image.size == (0, 0):
        return image._replace(size=upright)
    if image.size in (upright, (width, height)):
        return image
    told, real = f"{image.size[0]} x {image.size[1]}", f"{upright[0]} x {upright[1]}"
    report.add("other_size", f"{where}.width, .height", image.id, f"{told}, but {image.name} has {real}")
    return None

"""What an annotation file in COCO's format calls images and categories."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from .data.coco_fields import is_id, is_name, wrong_field
from .data.coco_images import Entry, read_images
from .data.coco_report import Report
from .errors import InputError
from .preprocessing import open_image


@dataclass(frozen=True)
class CocoNames:
    """The ids of images and categories in an annotation file.

    Attributes:
        file: the annotation file.
        entries: what it says of each image.
        categories: ids by name, of names that are there once.
    """

    file: Path
    entries: dict[Path, Entry]
    categories: dict[str, int]

    @classmethod
    def read(cls, file: str | Path, paths: Sequence[Path]) -> CocoNames:
        """Find images in an annotation file by their file names.

        Raises:
            InputError: the file cannot be read, is in another format, or does not list one of the images just once,
                or two images are the same one of the file.
        """
        file = Path(file)
        try:
            content = json.loads(file.read_bytes())
        except OSError as error:
            raise InputError(f"the annotations {file} cannot be read ({error.strerror}); check the path") from error
        except ValueError as error:
            raise InputError(f"the annotations {file} are not JSON ({error}); give a file in COCO's format") from error
        images, categories = _lists(content, file)
        listed: dict[str, list[Entry]] = {}
        for entry in read_images(images, Report(file)):
            listed.setdefault(PurePosixPath(entry.name).name, []).append(entry)
        good = [entry for entry in categories if not wrong_field(entry, {"id": is_id, "name": is_name})]
        often = Counter(entry["name"] for entry in good)
        entries = {path: _entry(path, listed.get(path.name, []), file) for path in paths}
        _check_each_once(entries, file)
        return cls(
            file,
            entries,
            {entry["name"]: entry["id"] for entry in good if often[entry["name"]] == 1},
        )

    @property
    def image_ids(self) -> dict[Path, int]:
        """The id of each image."""
        return {path: entry.id for path, entry in self.entries.items()}

    def category_ids(self, class_names: Sequence[str] | None, recorded: Sequence[int] | None) -> Sequence[int] | None:
        """The ids of a model's classes: by name where the file has each of them once, else the recorded ones."""
        if class_names and all(name in self.categories for name in class_names):
            return [self.categories[name] for name in class_names]
        return recorded

    def open(self, path: Path) -> Image.Image:
        """The picture as it was annotated: upright, or as stored where only that has the size that the file says.

        Raises:
            InputError: it cannot be read, or neither has that size.
        """
        size = self.entries[path].size
        for upright in (True, False):
            picture = open_image(path, upright=upright)
            if picture.size == size or 0 in size:
                return picture
        raise InputError(
            f"the image {path} has {picture.width} x {picture.height} pixels, but {self.file} says {size[0]} x "
            f"{size[1]}; give the image that was annotated"
        )


def _lists(content: Any, file: Path) -> tuple[list[Any], list[Any]]:
    found = []
    for section in ("images", "categories"):
        entries = content.get(section) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise InputError(f"the annotations {file} have no list of {section}; give a file in COCO's format")
        found.append(entries)
    return found[0], found[1]


def _check_each_once(entries: dict[Path, Entry], file: Path) -> None:
    first: dict[int, Path] = {}
    for path, entry in entries.items():
        other = first.setdefault(entry.position, path)
        if other is not path:
            raise InputError(
                f"the images {other} and {path} are both {entry.name!r} in {file}; leave one out or name folders there"
            )


def _entry(path: Path, listed: Sequence[Entry], file: Path) -> Entry:
    """The entry of this name; of several that whose folders are the path's, too."""
    if len(listed) > 1:
        parts = path.absolute().parts
        listed = [
            entry
            for entry in listed
            if parts[-len(PurePosixPath(entry.name).parts) :] == PurePosixPath(entry.name).parts
        ]
    if len(listed) != 1:
        often = "more than once" if listed else "not"
        raise InputError(f"the image {path} is {often} among the images of {file}; leave it out or correct the file")
    return listed[0]

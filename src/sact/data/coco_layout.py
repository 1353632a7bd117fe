"""Where a COCO-format data set keeps its annotation file, its images and its semantic masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from .splits import check_split

SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_YEAR = "[0-9][0-9][0-9][0-9]"
_PROBED = 20


def find_annotations(folder: Path, split: str, given: str | None = None) -> tuple[Path, str]:
    """The annotation file of a split.

    Looked for, in this order: `annotations/instances_SPLIT.json`, the same with a year (`instances_train2017.json`, the
    latest where there are several), `annotations/SPLIT.json`, `SPLIT/_annotations.coco.json`. COCO's labels of the test
    images are not published: where a folder has none, "test" is read from the files of "val".

    Args:
        folder: of the data set.
        split: "train", "val" or "test".
        given: name of the file, relative to `folder`; "{split}" in it stands for the split.

    Returns:
        The file, and the split's name as the folder has it, e.g. "train2017".

    Raises:
        InputError: unknown split, or there is no such file.
    """
    check_split(split)
    if not folder.is_dir():
        raise InputError(f"there is no folder {str(folder)!r}; give the one that has the annotations and the images")
    if given is not None:
        file = folder / given.replace("{split}", split)
        if not file.is_file():
            raise InputError(f"there is no annotation file {str(file)!r}; {_what_is_there(folder)}")
        return file, split
    for known in (split, "val") if split == "test" else (split,):
        for name in SPLIT_NAMES[known]:
            if found := _find(folder, name):
                return found
    raise InputError(
        f"{str(folder)!r} has no annotations/instances_{split}.json, nor one with a year; {_what_is_there(folder)}"
    )


def _find(folder: Path, name: str) -> tuple[Path, str] | None:
    annotations = folder / "annotations"
    exact = annotations / f"instances_{name}.json"
    if exact.is_file():
        return exact, name
    if dated := sorted(annotations.glob(f"instances_{name}{_YEAR}.json")):
        return dated[-1], dated[-1].stem.removeprefix("instances_")
    for file in (annotations / f"{name}.json", folder / name / "_annotations.coco.json"):
        if file.is_file():
            return file, name
    return None


def _what_is_there(folder: Path) -> str:
    files = sorted(path for pattern in ("*.json", "*/*.json") for path in folder.glob(pattern))
    if not files:
        return "it has no JSON file at all; give the folder of a data set in COCO's format"
    names = ", ".join(str(path.relative_to(folder)) for path in files[:5])
    more = ", ..." if len(files) > 5 else ""
    return f"it has {names}{more}; name one with the option annotations (a recipe's data_options)"


def find_images(folder: Path, file: Path, name: str, image_names: Sequence[str], given: str | None = None) -> Path:
    """The folder from which the image names of an annotation file lead to files.

    Args:
        folder: of the data set.
        file: the annotation file.
        name: the split's name, see `find_annotations`.
        image_names: `file_name` of the images.
        given: the folder, relative to `folder`; "{split}" in it stands for `name`.

    Returns:
        Of `name`, `images/name`, `images`, the annotation file's folder and the data set's own, the one that has most
        of the images.

    Raises:
        InputError: none of them has any of the images.
    """
    if given is not None:
        places = [folder / given.replace("{split}", name)]
    else:
        places = [folder / name, folder / "images" / name, folder / "images", file.parent, folder]
    step = max(1, len(image_names) // _PROBED)
    probed = image_names[::step][:_PROBED]
    found = [sum(os.path.isfile(place / each) for each in probed) for place in places]
    if probed and not any(found):
        tried = ", ".join(str(place) for place in places)
        raise InputError(
            f"the images of {str(file)!r}, such as {probed[0]!r}, are not in {tried}; name their folder with the "
            "option images"
        )
    return places[found.index(max(found))]


def find_semantic(folder: Path, name: str) -> Path | None:
    """The folder `semantic/name` of semantic masks, one PNG for each image; None if there is none."""
    masks = folder / "semantic" / name
    return masks if masks.is_dir() else None

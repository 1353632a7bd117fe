"""Fixations drawn inside objects: a set in cat2000's layout made of annotated images, to check the evaluation on."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.coco import CocoDetection
from ..errors import InputError, require
from ..files import make_folder, write_json
from .baselines import human_map
from .datasets import DEGREE_SHARE
from .fixations import Points


def make_fixation_set(
    composed: str | Path,
    out: str | Path,
    split: str = "test",
    length: int | None = None,
    observers: int = 10,
    fixations: int = 8,
    seed: int = 0,
) -> Path:
    """Write images with instance masks as if people had looked at their objects, in cat2000's layout.

    Every observer looks at a random visible position of a random object, again and again. The categories are
    `objects_1`, `objects_2` and so on, by the number of objects; images without any are left out.

    Args:
        composed: folder of a data set in COCO's format with segmentations, such as `sact compose` writes.
        out: folder to make; it must not hold a `trainSet` yet.
        split: of the data set: "train", "val" or "test".
        length: use this many of its images.
        observers: per image.
        fixations: of each observer.
        seed: of the positions.

    Returns:
        The folder.

    Raises:
        InputError: the data set cannot be used, no image has an object, or the folder holds a set.
    """
    folder = Path(out)
    if (folder / "trainSet").exists():
        raise InputError(f"{folder} holds a fixation set already; name another folder")
    if observers < 1 or fixations < 1:
        raise InputError(f"{observers} observers of {fixations} fixations leave none; give at least 1 of each")
    images = CocoDetection(composed, split, length=length, masks=True)
    make_folder(folder)
    table: dict[str, list[Points]] = {}
    numbers: Counter[str] = Counter()
    for index in range(len(images)):
        masks = images[index][1]["masks"].numpy().astype(bool)
        masks = masks[masks.any(axis=(1, 2))]
        if not len(masks):
            continue
        category = f"objects_{len(masks)}"
        numbers[category] += 1
        name = f"{category}/{numbers[category]:03d}"
        random = np.random.default_rng([seed, index])
        seen = [_look(masks, fixations, random) for _ in range(observers)]
        source = images.content.folder / images.content.images[images.rows[index]].name
        _write_image(folder / "trainSet", name, source, masks.shape[1:], np.concatenate(seen))
        table[f"{name}.jpg"] = seen
    if not table:
        raise InputError(f"no image of {composed}, split {split}, has an object with a mask; nothing to look at")
    _write_observers(folder / "trainSet" / "allFixData.mat", table)
    made = {"made_of": str(composed), "split": split, "images": len(table), "seed": seed}
    write_json(folder / "fixations.json", made | {"observers": observers, "fixations": fixations})
    return folder


def _look(masks: NDArray[np.bool_], count: int, random: np.random.Generator) -> Points:
    places = [np.argwhere(mask)[:, ::-1] for mask in masks]
    chosen = [places[object] for object in random.integers(len(places), size=count)]
    return np.stack([inside[random.integers(len(inside))] for inside in chosen]).astype(np.int32)


def _write_image(root: Path, name: str, source: Path, size: tuple[int, ...], points: Points) -> None:
    locations = np.zeros(size, dtype=np.uint8)
    locations[points[:, 1], points[:, 0]] = 1
    seen = human_map(points, (size[0], size[1]), DEGREE_SHARE * size[1])
    paths = {part: root / part / name for part in ("Stimuli", "FIXATIONLOCS", "FIXATIONMAPS")}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix.lower() in (".jpg", ".jpeg"):
        shutil.copyfile(source, paths["Stimuli"].with_suffix(".jpg"))
    else:
        with Image.open(source) as picture:
            picture.convert("RGB").save(paths["Stimuli"].with_suffix(".jpg"), quality=95)
    variables = {"fixLocs": locations}
    require("scipy.io", "saliency").savemat(paths["FIXATIONLOCS"].with_suffix(".mat"), variables, do_compression=True)
    shown = Image.fromarray(np.rint(255 * seen / seen.max()).astype(np.uint8))
    shown.save(paths["FIXATIONMAPS"].with_suffix(".jpg"))


def _write_observers(path: Path, table: dict[str, list[Points]]) -> None:
    """allFixData.mat: a containers.Map from images to cells of structs, positions counted from 1."""
    cells: dict[str, Any] = {}
    for key, seen in table.items():
        cell = np.empty((len(seen), 1), dtype=object)
        for index, points in enumerate(seen):
            record = np.empty((1, 1), dtype=[("name", object), ("data", object)])
            record[0, 0] = (f"1-1-o{index}.eye", points.astype(np.float64) + 1)
            cell[index, 0] = record
        cells[key] = cell
    container = require("matio.utils", "saliency").MatlabContainerMap(cells)
    require("matio", "saliency").save_to_mat(str(path), {"allData": container}, version="v7")

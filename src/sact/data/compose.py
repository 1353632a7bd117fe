"""A data set of cut-outs on photographs in COCO's format, and its semantic masks."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from ..errors import InputError
from ..files import give_permissions, make_folder, write_json, write_text
from ..models.network import MIN_SIZE
from .backgrounds import load_backgrounds
from .coco_writing import annotation
from .compose_preview import write_preview
from .compositing import Composition, Style, compose_picture
from .cutouts import NO_TRANSPARENCY, Cutouts, find_cutouts, read_cutouts, split_cutouts
from .photographs import Photograph
from .splits import SPLITS

FORMAT = "sact compose 1"
RECORD = "compose.json"
PREVIEW = "preview.png"
_JPEG_QUALITY = (75, 95)
# Backgrounds are kept at this multiple of the pictures' longer side, so that a part of one is still sharp.
_BACKGROUND_DETAIL = 2.0
# Ids and file names have six digits, and semantic masks 8 bits with 0 and 255 taken.
_MOST_PICTURES, _MOST_CATEGORIES = 999_999, 254


@dataclass(frozen=True)
class Materials:
    """What pictures are made of, by split, and the files and categories left out with the reasons."""

    photographs: dict[str, list[Photograph]]
    cutouts: dict[str, Cutouts]
    left_out: dict[str, str]

    @property
    def categories(self) -> list[str]:
        """The names in the order of their ids, which start at 1."""
        return sorted(self.cutouts["train"])

    def files(self) -> dict[str, Any]:
        """The names of all files by split."""
        return {
            split: {
                "backgrounds": [photograph.name for photograph in self.photographs[split]],
                "cutouts": {
                    category: [cutout.name for cutout in members] for category, members in self.cutouts[split].items()
                },
            }
            for split in SPLITS
        }


def compose(
    out: str | os.PathLike[str],
    cutouts: str | os.PathLike[str],
    backgrounds: Sequence[str | os.PathLike[str]] | None = None,
    counts: Mapping[str, int] | None = None,
    style: Style | None = None,
    seed: int = 0,
    categories: Sequence[str] | None = None,
    category_level: int = 1,
    min_cutouts: int = 3,
    min_side: int = 64,
    drawings: bool = True,
    workers: int = 1,
) -> dict[str, Any]:
    """Write a data set of cut-outs on photographs, whole or not at all.

    The same arguments and files give the same bytes, whatever the number of workers; other versions of Pillow or numpy
    may not.

    Args:
        out: folder to make. Where it holds the set of these very arguments already, nothing is done.
        cutouts: folder of PNG or WebP files with transparency, in folders by category.
        backgrounds: folders of photographs; None for those of this machine.
        counts: "train", "val" and "test" -> number of pictures, each at least 1; default 1000, 200, 200.
        style: sizes, objects and overlap of the pictures; default `Style()`.
        seed: non-negative.
        categories: names of those to use; None for all that have enough cut-outs.
        category_level: levels of folders that name a category, see `find_cutouts`.
        min_cutouts: least number of cut-outs of a category.
        min_side: least longer side of a cut-out in pixels.
        drawings: whether cut-outs and backgrounds that look like drawings are wanted.
        workers: threads.

    Returns:
        What OUT/compose.json holds.

    Raises:
        InputError: an argument is out of range, the files do not suffice, or `out` holds something else.
    """
    style = style or Style()
    counts = dict(counts) if counts is not None else {"train": 1000, "val": 200, "test": 200}
    _check(style, counts, seed, category_level, workers)
    arguments = {
        "cutouts": os.fspath(cutouts),
        "backgrounds": None if backgrounds is None else [os.fspath(folder) for folder in backgrounds],
        "counts": counts,
        "style": json.loads(json.dumps(asdict(style))),
        "seed": seed,
        "categories": None if categories is None else sorted(set(categories)),
        "category_level": category_level,
        "min_cutouts": min_cutouts,
        "min_side": min_side,
        "drawings": drawings,
    }
    target = Path(out).expanduser()
    there = _already_there(target, arguments)
    if there is not None:
        return there
    make_folder(target.parent)
    materials = _load(arguments, style, workers)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-", suffix=".partial"))
    try:
        record = _write(temporary, materials, arguments, style, workers)
        give_permissions(temporary)
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return record


def _check(style: Style, counts: Mapping[str, int], seed: int, level: int, workers: int) -> None:
    checks = [
        (set(counts) == set(SPLITS), f"counts must name train, val and test, not {', '.join(counts) or 'nothing'}"),
        (seed >= 0, f"the seed is {seed}; give one of at least 0"),
        (level >= 0, f"the category level is {level}; give one of at least 0"),
        (workers >= 1, f"the number of workers is {workers}; give at least 1"),
        (
            1 <= style.objects[0] <= style.objects[1] <= 100,
            f"objects are {style.objects}; give 1 <= N <= M <= 100",
        ),
        (0.02 <= style.scale[0] <= style.scale[1] <= 1, f"the scale is {style.scale}; give 0.02 <= least <= most <= 1"),
        (0 <= style.empty < 1, f"the share of empty pictures is {style.empty}; give one from 0 to below 1"),
        (0 < style.min_visible <= 1, f"the least visible share is {style.min_visible}; give one above 0, at most 1"),
        (bool(style.sizes), "there is no size; give at least one"),
    ]
    checks += [
        (
            min(size) >= MIN_SIZE and max(size) <= 4096,
            f"the size is {size[0]}x{size[1]}; give sides of {MIN_SIZE} to 4096",
        )
        for size in style.sizes
    ]
    checks += [
        (1 <= count <= _MOST_PICTURES, f"{split} is to have {count} pictures; give 1 to {_MOST_PICTURES}")
        for split, count in counts.items()
    ]
    for holds, message in checks:
        if not holds:
            raise InputError(message)


def _already_there(target: Path, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """The record of the set in a folder where it is of these arguments; None where the folder is free."""
    if not target.exists():
        return None
    if not target.is_dir():
        raise InputError(f"{str(target)!r} is a file; give --out a folder that is not there yet")
    if not any(target.iterdir()):
        return None
    try:
        record: dict[str, Any] = json.loads((target / RECORD).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise KeyError("format")
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"the folder {str(target)!r} is not empty; give --out one that is not there yet") from None
    for name, value in arguments.items():
        there = record.get("arguments", {}).get(name)
        if there != value:
            raise InputError(
                f"the folder {str(target)!r} holds another set: its {name} is {there!r}, not {value!r}; give another "
                f"--out or remove it"
            )
    return record


def _load(arguments: dict[str, Any], style: Style, workers: int) -> Materials:
    longest = max(max(size) for size in style.sizes)
    found = find_cutouts(arguments["cutouts"], arguments["category_level"])
    wanted = arguments["categories"]
    for name in wanted or ():
        if name not in found.values():
            raise InputError(f"there is no category {name!r}; choose from {', '.join(sorted(set(found.values())))}")
    files = {name: category for name, category in found.items() if wanted is None or category in wanted}
    side = math.ceil(1.2 * style.scale[1] * longest)
    usable, left_out = read_cutouts(
        arguments["cutouts"], files, side, arguments["min_side"], arguments["drawings"], workers
    )
    if not usable and all(reason == NO_TRANSPARENCY for reason in left_out.values()):
        raise InputError(
            f"none of the {len(files)} files in {arguments['cutouts']!r} has transparency; give PNG or WebP files of "
            f"objects on a transparent ground"
        )
    cutouts, too_few = split_cutouts(usable, wanted, arguments["min_cutouts"])
    if len(cutouts["train"]) > _MOST_CATEGORIES:
        raise InputError(
            f"there are {len(cutouts['train'])} categories, but masks of 8 bits have room for {_MOST_CATEGORIES}; "
            f"choose some with --categories or a lower --category-level"
        )
    detail = round(_BACKGROUND_DETAIL * longest)
    photographs, unused = load_backgrounds(arguments["backgrounds"], detail, arguments["drawings"], workers)
    return Materials(photographs, cutouts, left_out | too_few | unused)


def _write(folder: Path, materials: Materials, arguments: dict[str, Any], style: Style, workers: int) -> dict[str, Any]:
    categories = materials.categories
    (folder / "annotations").mkdir()
    summary: dict[str, Any] = {}
    for split in SPLITS:
        content = _write_split(folder, split, materials, arguments["counts"][split], arguments["seed"], style, workers)
        # One line: COCO's tools read it, people read compose.json.
        write_text(folder / "annotations" / f"instances_{split}.json", json.dumps(content) + "\n")
        of_category = Counter(one["category_id"] for one in content["annotations"])
        summary[split] = {
            "pictures": len(content["images"]),
            "objects": len(content["annotations"]),
            "objects_of": {name: of_category[number] for number, name in enumerate(categories, start=1)},
        }
    record = {
        "format": FORMAT,
        "arguments": arguments,
        "categories": categories,
        "summary": summary,
        "files": materials.files(),
        "left_out": materials.left_out,
        "versions": {"numpy": np.__version__, "pillow": PIL.__version__},
    }
    write_preview(folder, folder / PREVIEW)
    write_json(folder / RECORD, record)
    return record


def _write_split(
    folder: Path, split: str, materials: Materials, count: int, seed: int, style: Style, workers: int
) -> dict[str, Any]:
    """Write the pictures and semantic masks of a split; what its annotation file holds."""
    (folder / split).mkdir()
    (folder / "semantic" / split).mkdir(parents=True)
    write_one = partial(_write_picture, folder, split, materials, seed, style)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with ThreadPoolExecutor(workers) as pool:
        for image, objects in pool.map(write_one, range(1, count + 1)):
            images.append(image)
            for one in objects:
                annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **one})
    return {
        "info": {"description": "cut-outs on photographs, composed by sact", "split": split, "seed": seed},
        "licenses": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(materials.categories, start=1)],
        "images": images,
        "annotations": annotations,
    }


def _write_picture(
    folder: Path, split: str, materials: Materials, seed: int, style: Style, number: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    # A generator for each picture: it depends on no other one, and neither on which thread makes it.
    generator = np.random.Generator(np.random.PCG64((seed, SPLITS.index(split), number)))
    picture = compose_picture(materials.photographs[split], materials.cutouts[split], style, generator)
    name = f"{number:06}"
    quality = int(generator.integers(*_JPEG_QUALITY, endpoint=True))
    Image.fromarray(picture.pixels).save(folder / split / f"{name}.jpg", quality=quality)
    semantic, objects = _annotate(picture, materials.categories)
    Image.fromarray(semantic).save(folder / "semantic" / split / f"{name}.png")
    height, width = semantic.shape
    image = {"id": number, "file_name": f"{name}.jpg", "width": width, "height": height}
    return {**image, "background": picture.background}, objects


def _annotate(picture: Composition, categories: list[str]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The semantic mask, uint8 [H, W], and the annotations of a picture."""
    semantic = np.zeros(picture.pixels.shape[:2], np.uint8)
    objects = []
    for instance in picture.instances:
        label = categories.index(instance.cutout.category) + 1
        semantic[instance.visible] = label
        share = round(float(instance.visible.sum()) / instance.whole, 3)
        objects.append(annotation(instance.visible, label, cutout=instance.cutout.name, visible=share))
    return semantic, objects

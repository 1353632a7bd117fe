"""Cut-outs with transparency: found in folders by category, checked, reduced, and divided among splits by file."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from ..preprocessing import is_image, open_image
from .photographs import grey_thumbnail, name_fraction
from .splits import SPLITS, split_by_rank

ONE_CATEGORY = "object"
"""Name of the only category where folders do not matter."""
NO_TRANSPARENCY = "has no transparency"
"""Why a file without an alpha channel, or with one that is opaque throughout, is left out."""
LOOKS_DRAWN = "looks like a drawing"
"""Why a drawing is left out where none are wanted."""
# Opacity, of 255, from which a pixel belongs to the object.
SOLID = 128
# Opacity, of 255, below which a pixel is as good as invisible.
_FAINT = 16
# A cut-out of fewer solid pixels than this is a speck; one of a lesser share of them than that is glass or smoke.
_MIN_SOLID, _MIN_SOLID_SHARE = 200, 0.3
# In a drawing most neighbouring pixels are equal; a photograph's noise and texture keep this share lower.
_MOST_EQUAL = 0.35
# Correlation of two grey thumbnails from which two cut-outs count as variants of one: recoloured, rescaled, mirrored.
_SAME_CUTOUT = 0.98


@dataclass(frozen=True)
class Cutout:
    """One object: its file's name below the folder, its category, and its RGBA pixels, uint8 [H, W, 4], trimmed."""

    name: str
    category: str
    pixels: np.ndarray


Cutouts = dict[str, list[Cutout]]
"""Category -> cut-outs, in the order of their names."""


def find_cutouts(folder: str | os.PathLike[str], level: int = 1) -> dict[str, str]:
    """Files below a folder and their categories.

    Args:
        folder: searched for PNG, WebP and JPEG files.
        level: how many levels of folders name the category: with 1 `animals/birds/owl.png` is of category "animals",
            with 2 of "animals/birds", with 0 everything is of category "object". Files that lie less deep take the
            folders there are; with none there is no category, and they are left out.

    Returns:
        Path below the folder -> category, in the order of paths.

    Raises:
        InputError: the folder is not there or holds no such files.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"there is no folder {str(root)!r} of cut-outs; check --cutouts")
    names = sorted(path.relative_to(root).as_posix() for path in _walk(root))
    if not names:
        raise InputError(f"there are no PNG or WebP files in {str(root)!r}; give --cutouts a folder of cut-outs")
    if level == 0:
        return dict.fromkeys(names, ONE_CATEGORY)
    found = {name: "/".join(name.split("/")[:-1][:level]) for name in names}
    found = {name: category for name, category in found.items() if category}
    if not found:
        raise InputError(
            f"the files in {str(root)!r} lie in no folders, which would name their categories; sort them into folders, "
            f"or give --category-level 0 for one category"
        )
    return found


def _walk(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder) / name for name in names if is_image(name))


def read_cutout(file: Path, side: int, min_side: int = 1, drawings: bool = True) -> np.ndarray:
    """The pixels of a cut-out, trimmed to what is visible.

    Args:
        file: PNG or WebP.
        side: the longer side to which a larger one is reduced.
        min_side: least longer side of what is visible, before that.
        drawings: whether drawings are wanted.

    Returns:
        uint8 [H, W, 4].

    Raises:
        InputError: it cannot be read, or the message says why it is of no use.
    """
    image = open_image(file, keep_transparency=True)
    opacity = np.asarray(image)[..., -1]
    if image.mode != "RGBA" or opacity.min() >= SOLID:
        raise InputError(NO_TRANSPARENCY)
    solid = int((opacity >= SOLID).sum())
    if solid < _MIN_SOLID:
        raise InputError(f"fewer than {_MIN_SOLID} of its pixels are opaque")
    if solid < _MIN_SOLID_SHARE * (opacity >= _FAINT).sum():
        raise InputError("most of it is translucent")
    image = image.crop(Image.fromarray(opacity >= _FAINT).getbbox())
    if max(image.size) < min_side:
        raise InputError(f"its longer side is under {min_side} pixels")
    pixels = np.asarray(image)
    if not drawings and _is_drawing(pixels):
        raise InputError(LOOKS_DRAWN)
    scale = side / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.array(image)


def _is_drawing(pixels: np.ndarray) -> bool:
    solid = pixels[..., 3] > 200
    both = solid[:, 1:] & solid[:, :-1]
    return not both.any() or float((pixels[:, 1:, 1] == pixels[:, :-1, 1])[both].mean()) >= _MOST_EQUAL


def read_cutouts(
    folder: str | os.PathLike[str], files: dict[str, str], side: int, min_side: int, drawings: bool, workers: int = 1
) -> tuple[list[Cutout], dict[str, str]]:
    """All cut-outs that are of use, and the others with the reasons.

    Args:
        folder: that of `find_cutouts`.
        files: what `find_cutouts` returned, or some of it.
        side: as in `read_cutout`, and so are `min_side` and `drawings`.
        workers: threads.

    Returns:
        The cut-outs in the order of `files`, and name -> reason of those left out.
    """

    def read(name: str) -> np.ndarray | str:
        try:
            return read_cutout(Path(folder).expanduser() / name, side, min_side, drawings)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(workers) as pool:
        results = dict(zip(files, pool.map(read, files), strict=True))
    left_out = {name: result for name, result in results.items() if isinstance(result, str)}
    kept = [Cutout(name, files[name], result) for name, result in results.items() if not isinstance(result, str)]
    return kept, left_out


def group_variants(cutouts: Sequence[Cutout]) -> list[list[Cutout]]:
    """Cut-outs in groups of which all are one picture: recoloured, rescaled or mirrored."""
    groups: list[list[Cutout]] = []
    seen = np.empty((0, 256))
    for cutout in cutouts:
        thumbnail = grey_thumbnail(_on_grey(cutout.pixels))
        mirrored = thumbnail.reshape(16, 16)[:, ::-1].ravel()
        alike = np.maximum(seen @ thumbnail, seen @ mirrored)
        if alike.size and alike.max() >= _SAME_CUTOUT:
            groups[int(alike.argmax())].append(cutout)
        else:
            groups.append([cutout])
            seen = np.vstack([seen, thumbnail])
    return groups


def _on_grey(pixels: np.ndarray) -> np.ndarray:
    alpha = pixels[..., 3:] / 255.0
    return np.rint(pixels[..., :3] * alpha + 128 * (1 - alpha)).astype(np.uint8)


def split_cutouts(
    cutouts: Sequence[Cutout], categories: Sequence[str] | None, at_least: int
) -> tuple[dict[str, Cutouts], dict[str, str]]:
    """Divide cut-outs among train, val and test by a hash of their names, each category by itself.

    Variants of one picture (see `group_variants`) go to the same split; where they are of several categories, those of
    the first alone are used.

    Args:
        cutouts: all there are.
        categories: the ones to use, each of which must do; None for all that do.
        at_least: different cut-outs that a category must have, variants not counted; never fewer than 3 do.

    Returns:
        "train", "val" and "test" -> category -> cut-outs; every category is in each, about 60, 15 and 25 %. And
        category or cut-out -> reason of those left out.

    Raises:
        InputError: a category that is asked for, or every one, has too few cut-outs.
    """
    needed = max(at_least, len(SPLITS))
    groups = _groups_by_category(cutouts)
    used = list(categories or (name for name in groups if len(groups[name]) >= needed))
    while True:
        once, twins = _in_one_category([cutout for cutout in cutouts if cutout.category in used])
        groups |= {name: [] for name in used} | _groups_by_category(once)
        enough = [name for name in groups if len(groups[name]) >= needed]
        small = [name for name in used if name not in enough]
        if categories or not small:
            break
        used.remove(small[0])  # what is left out keeps no twin from the categories behind it
    _check_enough(categories, enough, {name: len(members) for name, members in groups.items()}, needed)
    divided: dict[str, Cutouts] = {split: {} for split in SPLITS}
    for name in sorted(categories or enough):
        leaders = {group[0].name: group for group in groups[name]}
        # Files of the same name in two folders fall into the same place.
        fractions = {leader: 1 - name_fraction(leader.rsplit("/", 1)[-1]) for leader in leaders}
        for split, names in split_by_rank(fractions).items():
            members = [cutout for leader in names for cutout in leaders[leader]]
            divided[split][name] = sorted(members, key=lambda cutout: cutout.name)
    reason = f"a category of fewer than {needed} different usable cut-outs"
    return divided, {name: reason for name in groups if name not in divided["train"]} | twins


def _groups_by_category(cutouts: Sequence[Cutout]) -> dict[str, list[list[Cutout]]]:
    by_category: dict[str, list[Cutout]] = defaultdict(list)
    for cutout in cutouts:
        by_category[cutout.category].append(cutout)
    return {name: group_variants(by_category[name]) for name in sorted(by_category)}


def _in_one_category(cutouts: Sequence[Cutout]) -> tuple[list[Cutout], dict[str, str]]:
    """Those that are no variants of a cut-out of an earlier category, and name -> reason of the others."""
    twins: dict[str, str] = {}
    for first, *others in group_variants(cutouts):
        reason = f"a variant of {first.name!r}, which is of another category"
        twins |= {other.name: reason for other in others if other.category != first.category}
    return [cutout for cutout in cutouts if cutout.name not in twins], twins


def _check_enough(categories: Sequence[str] | None, enough: list[str], counts: dict[str, int], needed: int) -> None:
    listed = ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
    for name in categories or ():
        if name not in enough:
            raise InputError(
                f"category {name!r} has {counts.get(name, 0)} different usable cut-outs, but {needed} are needed to "
                f"divide them among train, val and test; add some or leave it out of --categories (usable: {listed})"
            )
    if not enough:
        raise InputError(
            f"no category has the {needed} different usable cut-outs that are needed (usable: {listed}); give more "
            f"files, or a lower --min-cutouts or --min-side"
        )

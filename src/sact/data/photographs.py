"""Photographs of this machine as backgrounds: found, told from drawings, reduced, cached, and split by file."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import replacing
from ..preprocessing import IMAGE_FORMATS, is_image, open_image
from .cache import cache_dir
from .splits import SPLITS, check_split

logger = logging.getLogger(__name__)

DESKTOP_FOLDERS = (Path("/usr/share/backgrounds"), Path("/usr/share/wallpapers"))
SIDE = 512
MIN_DESKTOP_SIDE = 640
MIN_FOLDER_SIDE = 64
MAX_PER_SPLIT = 256
# Shares of train and train + val; the rest is test.
_TRAIN, _TRAIN_VAL = 0.60, 0.75
# Colour photographs and natural textures that scikit-image has in its wheel. The microscope and test pictures are left
# out.
_SKIMAGE = (
    "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png", "brick.png",
    "hubble_deep_field.jpg", "motorcycle_left.png", "rocket.jpg",
)  # fmt: skip
# In a drawing or a computed gradient most neighbouring pixels are equal; in photographs noise and texture keep this
# share lower.
_MAX_EQUAL_NEIGHBOURS = 0.54
# Correlation of two 16x16 grey thumbnails above which the pictures count as one (recoloured or rescaled) picture.
_SAME_PICTURE = 0.98
# Part of the name of a cached picture: raise it when what is stored changes.
_CACHE_VERSION = "2"


@dataclass(frozen=True)
class Photograph:
    """One picture: the name that decides its split, and its RGB pixels, uint8 [H, W, 3]."""

    name: str
    pixels: np.ndarray


def _files(root: Path) -> Iterator[Path]:
    # Sorted walk: what is found must not depend on the order of the file system.
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            if is_image(name):
                yield Path(folder) / name


def _group(file: Path, root: Path) -> str:
    """The name of a picture whatever its size and variant: `Autumn` for `Autumn/contents/images/2560x1600.jpg`."""
    parts = [part for part in file.relative_to(root).parent.parts if part not in ("contents", "images", "images_dark")]
    stem = re.sub(r"[-_ ]?\d{3,5}x\d{3,5}$", "", file.stem)
    return "/".join([*parts, stem] if stem else parts) or file.stem


def _header(file: Path) -> tuple[int, int, bool] | None:
    """Width, height and whether there is transparency; None where the file is not a readable picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=IMAGE_FORMATS) as image:
                return image.width, image.height, image.has_transparency_data
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _largest_of_each(root: Path, desktop: bool) -> dict[str, Path]:
    best: dict[str, tuple[int, Path]] = {}
    for file in _files(root):
        header = _header(file)
        if header is None:
            warnings.warn(f"{str(file)!r} is not a readable picture and is left out of the backgrounds", stacklevel=2)
            continue
        width, height, transparent = header
        name = _group(file, root)
        if min(width, height) < (MIN_DESKTOP_SIDE if desktop else MIN_FOLDER_SIDE):
            continue
        if desktop:
            # Desktop packages: square pictures are patterns to tile, PNG and transparent ones are drawings, -l / -d
            # are light and dark.
            drawing = transparent or file.suffix.lower() == ".png"
            if width == height or drawing or file.stem.startswith("screenshot"):
                continue
            name = re.sub(r"-[ld]$", "", name)
        if name not in best or width * height > best[name][0]:
            best[name] = (width * height, file)
    return {name: file for name, (_, file) in best.items()}


def _skimage_files() -> dict[str, Path]:
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        return {}
    folder = Path(spec.submodule_search_locations[0]) / "data"
    return {f"skimage/{Path(name).stem}": folder / name for name in _SKIMAGE if (folder / name).is_file()}


def is_desktop(folder: Path) -> bool:
    """Whether a folder is one of desktop backgrounds, where sizes, light and dark variants, and drawings are known."""
    return any(folder.resolve().is_relative_to(root) for root in DESKTOP_FOLDERS)


def find_photographs(folder: str | os.PathLike[str] | None = None, desktop: bool = False) -> dict[str, Path]:
    """Candidate pictures by name, one file for each picture that is there in several sizes.

    Args:
        folder: searched with its subfolders for JPEG, PNG and WebP files of at least 64 pixels on the short side. None
            for the desktop backgrounds of this machine (GNOME, MATE, Plasma; at least 640 pixels) and scikit-image's
            photographs.
        desktop: the folder holds desktop backgrounds, of which drawings and small or square pictures are left out, see
            `is_desktop`.

    Returns:
        Name -> file, in the order of names.

    Raises:
        InputError: the folder is not there.
    """
    if folder is not None:
        root = Path(folder).expanduser()
        if not root.is_dir():
            raise InputError(f"there is no folder {str(root)!r} of background pictures; check the path")
        found = _largest_of_each(root, desktop)
    else:
        found = _skimage_files()
        for root in DESKTOP_FOLDERS:
            found.update(_largest_of_each(root, desktop=True))
    return dict(sorted(found.items()))


def _is_drawing(pixels: np.ndarray) -> bool:
    luma = pixels[..., 1].astype(np.int16)
    return bool((luma[:, 1:] == luma[:, :-1]).mean() > _MAX_EQUAL_NEIGHBOURS)


def read_photograph(file: Path, side: int, drawings: bool = True) -> np.ndarray:
    """A picture reduced to `side` on its short side, uint8 [H, W, 3]; empty where it is an unwanted drawing.

    Raises:
        InputError: the file is damaged.
    """
    image = _reduce(open_image(file, min_side=side), side)
    if not drawings:
        # Asked at one size: the answer, and so what is in which split, must not depend on `side`.
        asked = image if side == SIDE else _reduce(open_image(file, min_side=SIDE), SIDE)
        if _is_drawing(np.asarray(asked)):
            return np.empty((0, 0, 3), np.uint8)
    return np.array(image)


def _reduce(image: Image.Image, side: int) -> Image.Image:
    scale = side / min(image.size)
    if scale >= 1:
        return image
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BILINEAR)


def _decode(file: Path, side: int, drawings: bool) -> np.ndarray:
    """`read_photograph`, cached on disk; empty for a damaged file too."""
    status = file.stat()
    key = f"{_CACHE_VERSION}|{file.resolve()}|{status.st_size}|{status.st_mtime_ns}|{side}|{drawings}"
    cached = cache_dir() / "photographs" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    try:
        pixels: np.ndarray = np.load(cached, allow_pickle=False)
        if pixels.dtype == np.uint8 and pixels.ndim == 3:
            return pixels
    except (OSError, ValueError, EOFError):
        pass
    try:
        pixels = read_photograph(file, side, drawings)
    except InputError as error:
        warnings.warn(f"left out of the backgrounds: {error}", stacklevel=2)
        return np.empty((0, 0, 3), np.uint8)
    try:
        with replacing(cached) as temporary:
            np.save(temporary, pixels, allow_pickle=False)
    except OSError as error:
        logger.info("the prepared background %s is not cached: %s", file, error)
    return pixels


def grey_thumbnail(pixels: np.ndarray) -> np.ndarray:
    """A picture, uint8 [H, W, 3], as 256 numbers of mean about 0 and norm 1; their products are correlations."""
    grey = Image.fromarray(pixels).convert("L").resize((16, 16), Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.float64)
    values -= values.mean()
    return values.ravel() / max(float(np.sqrt((values**2).sum())), 1e-9)


def without_repeats(photographs: list[Photograph]) -> list[Photograph]:
    """The photographs less those of which a recoloured or rescaled version came before."""
    kept: list[Photograph] = []
    seen = np.empty((0, 256))
    for photograph in photographs:
        thumbnail = grey_thumbnail(photograph.pixels)
        if not seen.size or float((seen @ thumbnail).max()) < _SAME_PICTURE:
            kept.append(photograph)
            seen = np.vstack([seen, thumbnail])
    return kept


def name_fraction(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def split_names(names: list[str]) -> dict[str, list[str]]:
    """Divide pictures among train, val and test by a hash of their names.

    A name falls into the same split on every machine, whatever else is there; only where that leaves a split empty are
    the names dealt out in the order of their hashes.

    Args:
        names: at least 3, all different.

    Returns:
        "train", "val" and "test" -> names; about 60, 15 and 25 %; disjoint, none empty.

    Raises:
        InputError: fewer than 3 names.
    """
    if len(names) < len(SPLITS):
        raise InputError(
            f"{len(names)} background pictures cannot be divided into train, val and test; give at least 3"
        )
    ordered = sorted(names, key=lambda name: (name_fraction(name), name))
    by_hash = {
        "train": [name for name in ordered if name_fraction(name) < _TRAIN],
        "val": [name for name in ordered if _TRAIN <= name_fraction(name) < _TRAIN_VAL],
        "test": [name for name in ordered if name_fraction(name) >= _TRAIN_VAL],
    }
    if all(by_hash.values()):
        return by_hash
    held_out = max(1, round(len(ordered) * (1 - _TRAIN_VAL)))
    return {"val": ordered[:1], "test": ordered[1 : 1 + held_out], "train": ordered[1 + held_out :]}


@lru_cache(maxsize=2)
def _load_all(folder: str | None, side: int) -> dict[str, list[Photograph]]:
    files = find_photographs(folder)
    remedy = (
        "install some with: apt install gnome-backgrounds mate-backgrounds plasma-workspace-wallpapers, and pip "
        "install scikit-image, or give a folder of photographs (backgrounds=FOLDER)"
        if folder is None
        else "give a folder with at least 3 JPEG, PNG or WebP photographs"
    )
    where = "on this machine" if folder is None else f"in {folder!r}"
    if len(files) > MAX_PER_SPLIT * 3:
        # A sample by hash, so that a folder of a million pictures neither fills the memory nor takes an hour.
        chosen = sorted(files, key=lambda name: (name_fraction("sample|" + name), name))[: MAX_PER_SPLIT * 3]
        files = {name: files[name] for name in sorted(chosen)}
    with ThreadPoolExecutor(max_workers=2) as pool:
        arrays = list(pool.map(lambda file: _decode(file, side, drawings=folder is not None), files.values()))
    found = [Photograph(name, pixels) for name, pixels in zip(files, arrays, strict=True) if pixels.size]
    found = without_repeats(found)
    if len(found) < len(SPLITS):
        raise InputError(f"only {len(found)} photographs for backgrounds were found {where}, 3 are needed; {remedy}")
    by_name = {photograph.name: photograph for photograph in found}
    return {
        split: [by_name[name] for name in names[:MAX_PER_SPLIT]] for split, names in split_names(list(by_name)).items()
    }


def load_photographs(split: str, folder: str | os.PathLike[str] | None = None, side: int = SIDE) -> list[Photograph]:
    """The photographs of one split, reduced, from the cache where they have been prepared before.

    Pictures of which a recoloured or rescaled version was already taken are left out, so that no split sees another's
    pictures.

    Args:
        split: "train", "val" or "test".
        folder: as in `find_photographs`.
        side: the short side in pixels to which larger pictures are reduced.

    Returns:
        At most 256 photographs, in a fixed order.

    Raises:
        InputError: unknown split, no such folder, or fewer than 3 photographs.
    """
    check_split(split)
    return _load_all(None if folder is None else str(Path(folder).expanduser()), side)[split]

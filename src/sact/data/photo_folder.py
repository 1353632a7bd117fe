"""Photographs of a folder, for teaching a network without labels: read once, split by file, seen in random views."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError, require
from ..preprocessing import IMAGE_SUFFIXES, is_image, normalise, open_image

LIMIT = 2000
"""Photographs that are kept in memory; of more a sample is taken."""
BROKEN_IN_A_ROW = 20
HELD_OUT = 0.2
_MARGIN = 1.75
"""How much larger than the network's images photographs are kept, so that views can zoom in."""


@dataclass(frozen=True)
class Photo:
    """One photograph: where it came from, and its RGB pixels, reduced."""

    path: Path
    picture: Image.Image


@dataclass(frozen=True)
class Photos:
    """What was read.

    Attributes:
        train: to learn from.
        held_out: for the comparison before and after; no file is in both.
        broken: files that could not be read, with the reason.
    """

    train: list[Photo]
    held_out: list[Photo]
    broken: list[tuple[Path, str]]


def read_photos(folders: Sequence[str | os.PathLike[str]], size: int, limit: int = LIMIT) -> Photos:
    """Read the photographs of folders and their subfolders; broken files are left out, and named in the result.

    Which photographs are held out depends on their content alone, about a fifth of them.

    Args:
        folders: of JPEG, PNG and WebP files.
        size: side in pixels of the network's images; larger photographs are reduced to a little more.
        limit: read no more than this many, an even sample.

    Raises:
        InputError: a folder is not there or holds no image, twenty files in a row are broken, or fewer than two
            photographs could be read.
    """
    paths: list[Path] = []
    for folder in folders:
        found = _walk(Path(folder))
        if not found:
            raise InputError(f"the folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)}); name another one")
        paths += found
    if len(paths) > limit:
        paths = [paths[index * len(paths) // limit] for index in range(limit)]
    side = round(size * _MARGIN)
    photos: list[Photo] = []
    broken: list[tuple[Path, str]] = []
    in_a_row = 0
    with ThreadPoolExecutor(max_workers=2) as pool:
        for path, result in zip(paths, pool.map(lambda path: _read(path, side), paths), strict=True):
            if isinstance(result, Image.Image):
                photos.append(Photo(path, result))
                in_a_row = 0
                continue
            broken.append((path, result))
            in_a_row += 1
            if in_a_row == BROKEN_IN_A_ROW:
                pool.shutdown(cancel_futures=True)
                raise InputError(
                    f"{in_a_row} image files in a row are broken, the last is {path} ({result}); check the folder"
                )
    if len(photos) < 2:
        raise InputError(f"{len(photos)} photographs could be read, but two are needed at least; add some")
    ordered = sorted(photos, key=_fraction)
    count = max(1, round(HELD_OUT * len(ordered)))
    return Photos(ordered[count:], ordered[:count], broken)


def _walk(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; check the path")
    return sorted(Path(root) / name for root, _, names in os.walk(folder) for name in names if is_image(name))


def _read(path: Path, side: int) -> Image.Image | str:
    """The picture, reduced to that short side; or why there is none."""
    try:
        picture = open_image(path, min_side=side)
    except InputError as error:
        return str(error)
    scale = side / min(picture.size)
    if scale < 1:
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BILINEAR
        )
    return picture


def _fraction(photo: Photo) -> bytes:
    return hashlib.sha256(photo.picture.tobytes()).digest()


class Views(Dataset[Tensor]):
    """Random views of photographs: crops of 20 to 100 % of the area, flipped or not, in slightly other colours.

    Args:
        photos: at least one.
        preprocessing: the network's, for the size and the scale of values.
        length: views in an epoch; each photograph is seen about equally often.
        seed: the same seed gives the same views.
    """

    def __init__(self, photos: Sequence[Photo], preprocessing: Mapping[str, Any], length: int, seed: int = 0) -> None:
        v2 = require("torchvision.transforms.v2", "tasks")
        self.photos = photos
        self.preprocessing = dict(preprocessing)
        self.length = length
        self.seed = seed
        self.view = v2.Compose(
            [
                v2.RandomResizedCrop(int(preprocessing["size"]), scale=(0.2, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.ToPureTensor(),
            ]
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        """float32 [3, S, S], as the network expects it."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1_000_003 + index)
            order = index // len(self.photos)
            turn = (index + order * 7919) % len(self.photos)  # another neighbour in the batch each time round
            return normalise(self.view(self.photos[turn].picture), self.preprocessing)

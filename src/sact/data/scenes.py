"""Scenes: clothes from Fashion-MNIST at a random size and place on crops of real photographs.

Most of a scene is background, which is what spatially adaptive computation is for; and where the object is, is known
exactly.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from ..models.network import MIN_SIZE
from .fashion_mnist import FASHION_CLASSES, SIZE, load_items
from .photographs import load_photographs
from .splits import SPLITS, check_split

DEFAULT_SCALE = (0.25, 0.6)
# An item is cut out where it is brighter than this, of 255.
_SUPPORT = 12
# Empty pixels around an item before it is enlarged, so that its edge fades out.
_PAD = 2
# The least opacity of an edge pixel.
_MIN_EDGE = 0.35
# The smallest crop of a photograph, as a fraction of its short side.
_MIN_ZOOM = 0.25
# The least difference in mean grey, of 255, between an item and what it covers.
_CONTRAST = 45.0


def cut_out(images: np.ndarray) -> np.ndarray:
    """Which pixels belong to the items: brighter than the empty background, with holes filled.

    Args:
        images: uint8 [n, h, w], w at most 62.

    Returns:
        bool [n, h, w].
    """
    width = images.shape[2]
    # One row is one integer, so that all items are flooded at once, a row per machine word.
    weights = np.left_shift(np.uint64(1), np.arange(1, width + 1, dtype=np.uint64))
    empty = ((images <= _SUPPORT) * weights).sum(-1, dtype=np.uint64)
    border = np.uint64(1 | 1 << (width + 1))
    row = np.full((len(images), 1), (1 << (width + 2)) - 1, np.uint64)
    empty = np.concatenate([row, empty | border, row], axis=1)
    outside = np.zeros_like(empty)
    outside[:, [0, -1]] = row
    one = np.uint64(1)
    active = np.arange(len(images))
    while len(active):
        old = outside[active]
        free = empty[active]
        new = old | ((old << one | old >> one) & free)
        new[:, 1:] |= new[:, :-1] & free[:, 1:]
        new[:, :-1] |= new[:, 1:] & free[:, :-1]
        outside[active] = new
        active = active[(new != old).any(1)]
    inside = ~outside[:, 1:-1]
    return (inside[..., None] & weights) != 0


@lru_cache(maxsize=4)
def _load_cut_items(split: str, folder: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items with an empty margin [n, 32, 32], their packed cut-outs [n, 32, 4], labels [n]; of a split."""
    images, labels = load_items(split, folder)
    margin = ((0, 0), (_PAD, _PAD), (_PAD, _PAD))
    inside = np.concatenate([cut_out(images[start : start + 4096]) for start in range(0, len(images), 4096)])
    return np.pad(images, margin), np.packbits(np.pad(inside, margin), axis=-1), labels


@lru_cache(maxsize=6)
def _load_pyramids(split: str, folder: str | None) -> tuple[tuple[str, ...], list[list[Image.Image]]]:
    """Photographs of a split, each at its size and at halves of it: a crop is read at about its target resolution."""
    names, pyramids = [], []
    for photograph in load_photographs(split, folder):
        levels = [Image.fromarray(photograph.pixels)]
        while min(levels[-1].size) >= 64:
            levels.append(levels[-1].reduce(2))
        names.append(photograph.name)
        pyramids.append(levels)
    return tuple(names), pyramids


def _crop(levels: list[Image.Image], box: tuple[float, float, float, float], size: tuple[int, int]) -> Image.Image:
    """A part of a photograph, `box` (left, top, right, bottom) in its own pixels, resized from the coarsest level."""
    full = levels[0]
    needed = max(size[0] / (box[2] - box[0]), size[1] / (box[3] - box[1]))
    level = levels[min(len(levels) - 1, max(0, math.floor(-math.log2(needed))))]
    fx, fy = level.width / full.width, level.height / full.height
    scaled = (box[0] * fx, box[1] * fy, min(box[2] * fx, level.width), min(box[3] * fy, level.height))
    return level.resize(size, Image.Resampling.BILINEAR, box=scaled)


class Scenes(Dataset[tuple[Tensor, int, Tensor]]):
    """Fashion-MNIST items pasted into photographs.

    A scene depends on (seed, split, index) and the options alone, not on the order of reading, the worker, or `size`:
    the same index at another size is the same composition at another resolution. Held-out splits use photographs and
    items that training never sees. Each item of a split is used once before any is used again.

    Args:
        split: "train", "val" or "test".
        size: side S of a scene in pixels, at least 32.
        length: number of scenes, any; None for as many as the split has items (55 000, 5000, 10 000).
        seed: non-negative.
        backgrounds: folder of photographs (at least 3), or None for those of this machine, see `find_photographs`.
        items: folder of the Fashion-MNIST files, or None, see `find_fashion_mnist`.
        scale: least and greatest longer side of the object's 28-pixel frame as a fraction of S.

    Each element is (image float32 [3, S, S] in [-1, 1], label int, object mask bool [S, S]).

    Attributes:
        class_names: of the 10 labels.
        num_classes: 10.
        preprocessing: the specification that prepares a picture like these.
        photographs: names of the background photographs of this split.

    Raises:
        InputError: an option is out of range, or there are no photographs or items.
    """

    class_names = FASHION_CLASSES
    num_classes = len(FASHION_CLASSES)

    def __init__(
        self,
        split: str = "train",
        size: int = 96,
        length: int | None = None,
        seed: int = 0,
        backgrounds: str | os.PathLike[str] | None = None,
        items: str | os.PathLike[str] | None = None,
        scale: tuple[float, float] = DEFAULT_SCALE,
    ) -> None:
        check_split(split)
        if isinstance(size, bool) or not isinstance(size, int) or not MIN_SIZE <= size <= 4096:
            raise InputError(f"the size of scenes must be an integer from {MIN_SIZE} to 4096, not {size!r}")
        if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
            raise InputError(f"length must be a positive integer or None, not {length!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InputError(f"seed must be a non-negative integer, not {seed!r}")
        try:
            low, high = map(float, scale)
        except (TypeError, ValueError):
            raise InputError(f"scale must be two fractions, least and greatest, not {scale!r}") from None
        if not 0.05 <= low <= high <= 1.0:
            raise InputError(f"scale must be two fractions with 0.05 <= least <= greatest <= 1, not {scale!r}")
        self.split, self.size, self.seed, self.scale = split, size, seed, (low, high)
        self._items, self._cuts, self._labels = _load_cut_items(split, None if items is None else os.fspath(items))
        self.photographs, self._pyramids = _load_pyramids(
            split, None if backgrounds is None else os.fspath(backgrounds)
        )
        self.length = len(self._items) if length is None else length
        self.preprocessing = {"name": "scenes", "size": size}
        self._order = self._generator(-1).permutation(len(self._items))

    def _generator(self, index: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64((self.seed, SPLITS.index(self.split), index + 1)))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        if not -self.length <= index < self.length:
            # Plain iteration over a data set ends with this exception.
            raise IndexError(f"scene {index} of {self.length}")
        index = index % self.length
        item = int(self._order[index % len(self._order)])
        # All random numbers are drawn here, as fractions, whatever the size.
        draw = self._generator(index).random(16)

        levels = self._pyramids[int(draw[0] * len(self._pyramids))]
        width, height = levels[0].size
        side = min(width, height) * _MIN_ZOOM ** (1.0 - draw[1])
        left, top = draw[2] * (width - side), draw[3] * (height - side)
        canvas = _crop(levels, (left, top, left + side, top + side), (self.size, self.size))
        if draw[4] < 0.5:
            canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        gain = 0.75 + 0.4 * draw[5]
        scene = np.asarray(canvas, dtype=np.float32) * np.float32(gain)

        least, greatest = self.scale
        extent = least * (greatest / least) ** draw[6]
        x, y = draw[7] * (1.0 - extent), draw[8] * (1.0 - extent)
        # The item's frame without its margin is [x, x + extent]; what it covers sets its brightness, measured on the
        # coarse photograph so that every size of the scene decides alike.
        u, v = left + (1.0 - x - extent if draw[4] < 0.5 else x) * side, top + y * side
        covered = _crop(levels, (u, v, u + extent * side, v + extent * side), (1, 1))
        mask = self._paste(scene, item, (x, y, extent), draw[9:], float(np.mean(np.asarray(covered))) * gain)

        image = torch.from_numpy(scene).clamp_(0.0, 255.0).mul_(2.0 / 255.0).sub_(1.0)
        return image.permute(2, 0, 1).contiguous(), int(self._labels[item]), mask

    def _paste(
        self, scene: np.ndarray, item: int, frame: tuple[float, float, float], draw: np.ndarray, covered: float
    ) -> Tensor:
        """Blend an item into the scene, float32 [S, S, 3] in 0..255, in place. Returns its mask."""
        size = self.size
        x, y, extent = frame
        margin = extent * _PAD / SIZE
        x0, y0 = round((x - margin) * size), round((y - margin) * size)
        side = max(8, round((extent + 2 * margin) * size))
        flip = draw[0] < 0.5
        grey, cut = self._items[item], np.unpackbits(self._cuts[item], axis=-1) * np.uint8(255)
        # An item's edge pixels were blended with black. Take their shade from inside, else every object wears a dark
        # outline, and their darkness as transparency, so that outlines are smooth.
        core = np.asarray(Image.fromarray(cut).filter(ImageFilter.MinFilter(3)))
        bright = np.asarray(Image.fromarray(grey).filter(ImageFilter.MaxFilter(3)))
        opaque = (grey * np.float32(255.0) / np.maximum(bright, 1)).clip(_MIN_EDGE * 255.0)
        cut = np.where(core > 0, cut, np.minimum(cut, opaque)).astype(np.uint8)
        layers = (Image.fromarray(np.where(core > 0, grey, bright)), Image.fromarray(cut))
        shade, alpha = (
            np.asarray(layer.resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32) for layer in layers
        )
        if flip:
            shade, alpha = shade[:, ::-1], alpha[:, ::-1]

        # The part of the frame with its margin that lies inside the picture.
        left, top = max(0, -x0), max(0, -y0)
        right, bottom = min(side, size - x0), min(side, size - y0)
        part = np.s_[top:bottom, left:right]
        alpha = alpha[part] * np.float32(1 / 255)
        tint = _tint(draw[1], draw[2])
        body = shade[part] * alpha
        inside = max(float(alpha.sum()), 1e-3)
        mean = float(body.sum()) / inside
        # Stretch the item's own shading around its mean, then place that mean far enough from what it covers.
        spread = 0.45 + 0.4 * draw[3]
        level = 60.0 + 150.0 * draw[4]
        if abs(level - covered) < _CONTRAST:
            level = covered + _CONTRAST * (1.0 + draw[5]) * (1.0 if covered < 128.0 else -1.0)
        colour = (level + spread * (shade[part] - mean))[..., None] * tint
        target = scene[y0 + top : y0 + bottom, x0 + left : x0 + right]
        target += alpha[..., None] * (colour.clip(0.0, 255.0) - target)
        mask = torch.zeros(size, size, dtype=torch.bool)
        mask[y0 + top : y0 + bottom, x0 + left : x0 + right] = torch.from_numpy(np.ascontiguousarray(alpha > 0.5))
        return mask


def _tint(hue: float, saturation: float) -> np.ndarray:
    """Colour of unit mean: a hue in 0..1, with a saturation from none to moderate."""
    angles = 2.0 * math.pi * (hue + np.array([0.0, 1.0 / 3.0, 2.0 / 3.0]))
    return (1.0 + 0.45 * saturation * np.cos(angles)).astype(np.float32)

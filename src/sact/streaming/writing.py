"""What is written of a picture: arrays, heat maps and overlays, each file whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..drawing import Span
from ..files import replacing
from ..maps import colorize, overlay, save_png
from .measuring import Spent

Format = Literal["npz", "png", "overlay"]
FORMATS: tuple[Format, ...] = ("npz", "png", "overlay")

MOST_DRAWN = 2048
"""Longer side in pixels of what is drawn; larger pictures are reduced for it."""
_ENDS: dict[Format, str] = {"npz": ".npz", "png": ".map.png", "overlay": ".overlay.png"}


def picture_files(folder: Path, name: str, formats: Sequence[Format]) -> dict[Format, Path]:
    """The files of a picture's results."""
    return {kind: folder / f"{name}{_ENDS[kind]}" for kind in formats}


def write_picture(files: dict[Format, Path], picture: Image.Image, spent: Spent, scale: Span) -> None:
    """Write what was asked for of one picture.

    Args:
        files: see `picture_files`.
        picture: as the network saw it, or smaller.
        spent: on it.
        scale: ponder costs of the darkest and of the brightest colour.
    """
    for kind, path in files.items():
        if kind == "npz":
            facts = {"size": np.array(spent.size, np.int32), "flops": np.int64(spent.flops)}
            save_arrays(path, facts | {"dense_flops": np.int64(spent.dense_flops)} | arrays([spent], first_only=True))
        else:
            save_png(draw(kind, picture, spent, scale), path)


def arrays(spents: Sequence[Spent], first_only: bool = False) -> dict[str, NDArray[Any]]:
    """`map`, and per block k from 1 `block{k}_units`, of one picture, or of several of the same size stacked."""

    def joined(values: list[NDArray[Any]]) -> NDArray[Any]:
        return values[0] if first_only else np.stack(values)

    blocks = range(len(spents[0].units))
    units = {f"block{block + 1}_units": joined([spent.units[block] for spent in spents]) for block in blocks}
    return {"map": joined([spent.map for spent in spents])} | units


def save_arrays(path: Path, values: dict[str, Any]) -> None:
    """Write a compressed .npz file."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **values)


def draw(kind: Format, picture: Image.Image, spent: Spent, scale: Span) -> Image.Image:
    """A heat map ("png") or an overlay of a picture, as large as the picture, up to `MOST_DRAWN`."""
    picture = reduced_to(picture, MOST_DRAWN)
    values = spent.map.astype(np.float32)
    if values.shape[0] > picture.height or values.shape[1] > picture.width:
        values = np.asarray(Image.fromarray(values).resize(picture.size, Image.Resampling.BOX))
    if kind == "overlay":
        return overlay(picture, values, low=scale[0], high=scale[1])
    return Image.fromarray(colorize(values, *scale)).resize(picture.size, Image.Resampling.NEAREST)


def reduced_to(picture: Image.Image, longest: int) -> Image.Image:
    """A picture whose longer side is at most so many pixels."""
    if max(picture.size) <= longest:
        return picture
    factor = longest / max(picture.size)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    return picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)

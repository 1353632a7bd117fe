"""Ponder maps as pictures: where in an image the network spent its units.

A ponder map is a real array [H, W], the ponder cost at each position. It is as large as the image or smaller; a smaller
one is resized with nearest neighbour, as `ponder.map(size)` does, so that a position of a block stays a visible square.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from .drawing import (
    FAINT_INK,
    LARGEST_BLOCK_PANEL,
    LARGEST_PANEL,
    PAPER,
    FloatMap,
    Span,
    draw_text,
    horizontal_bar,
    on_page,
    padded,
    panel_side,
    resize_to_panel,
    side_by_side,
    stacked,
    text_size,
    to_colors,
    to_relative,
    value_range,
    vertical_bar,
)
from .errors import InputError
from .files import replacing

ImageLike: TypeAlias = "Image.Image | NDArray[np.uint8]"

_ALPHA = 0.7


def colorize(map: ArrayLike, low: float | None = None, high: float | None = None) -> NDArray[np.uint8]:
    """Colour a ponder map with a perceptually uniform scale, dark for little and bright for much.

    Args:
        map: real [H, W], finite.
        low: value of the darkest colour; the map's minimum if None. Values outside [low, high] get the end colours.
        high: value of the brightest colour; the map's maximum if None. Where low equals high, as for a constant
            map, the range is widened by 0.5 on both sides.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        InputError: the map is not a finite, non-empty array of rank 2, or low is above high.
    """
    values = _as_map(map)
    return to_colors(to_relative(values, value_range([values], low, high)))


def overlay(
    image: ImageLike, map: ArrayLike, alpha: float = _ALPHA, low: float | None = None, high: float | None = None
) -> Image.Image:
    """Show an image dark and grey where little was spent, and in the map's colours where much was.

    Args:
        image: PIL image, or uint8 [H, W, 3] (or [H, W] for grey).
        map: real [h, w] with h <= H and w <= W, finite.
        alpha: strength of the colour in [0, 1]: at 0 the image is only darkened and greyed where little was spent; at 1
            a position of value `high` has the map's colour, as bright as the image is there.
        low: as in `colorize`.
        high: as in `colorize`.

    Returns:
        RGB image of the size of `image`.

    Raises:
        InputError: an unusable image or map, a map larger than the image, alpha outside [0, 1], or low above high.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha}; give a number from 0 to 1")
    picture, values = _as_pair(image, map)
    return _overlay(picture, values, value_range([values], low, high), alpha)


def color_bar(
    low: float, high: float, *, width: int | None = None, height: int | None = None, label: str = "ponder cost"
) -> Image.Image:
    """Draw the colour scale from `low` to `high` with tick values, its two ends always among them.

    Args:
        low: value of the darkest colour.
        high: value of the brightest colour; where it equals `low`, the range is widened by 0.5 on both sides.
        width: makes a horizontal bar, in an image of this width in pixels, at least 96. 256 if height is None too.
        height: makes a vertical bar, in an image of this height in pixels, at least 96.
        label: what the values are; "" for none.

    Returns:
        RGB image on white.

    Raises:
        InputError: low is above high or not finite, both width and height are given, or the one given is below 96.
    """
    if width is not None and height is not None:
        raise InputError(
            f"width is {width} and height is {height}; give one: width for a horizontal bar, height for a vertical one"
        )
    length = height if height is not None else 256 if width is None else width
    if length < 96:
        raise InputError(f"a colour bar of {length} pixels has no room for its tick values; give at least 96")
    span = value_range([], low, high)
    return horizontal_bar(span, length, label) if height is None else vertical_bar(span, length, label)


def figure(
    image: ImageLike,
    map: ArrayLike,
    title: str = "",
    caption: str = "",
    low: float | None = None,
    high: float | None = None,
) -> Image.Image:
    """Set image, ponder map and overlay side by side, with a colour bar that gives the value range.

    Args:
        image: PIL image, or uint8 [H, W, 3] (or [H, W] for grey). It is enlarged when its longer side is below 224
            pixels and reduced when that is above 640.
        map: real [h, w] with h <= H and w <= W, finite.
        title: text above, "" for none.
        caption: text below, "" for none.
        low: as in `colorize`.
        high: as in `colorize`.

    Returns:
        RGB image on white.

    Raises:
        InputError: as for `overlay`.
    """
    picture, values = _as_pair(image, map)
    span = value_range([values], low, high)
    picture = resize_to_panel(picture, panel_side(picture, LARGEST_PANEL))
    size = text_size(picture.width)
    panels = {
        "image": picture,
        "ponder map": _map_panel(values, picture.size, span),
        "overlay": _overlay(picture, values, span),
    }
    columns = [
        stacked([draw_text(name, size, picture.width, FAINT_INK), panel], size // 2) for name, panel in panels.items()
    ]
    bar = stacked([draw_text(" ", size, 0), vertical_bar(span, picture.height, "ponder cost", size)], size // 2)
    return on_page(side_by_side([*columns, bar], size), title, caption, size)


def block_figure(
    image: ImageLike,
    maps: Sequence[ArrayLike],
    names: Sequence[str] | None = None,
    title: str = "",
    caption: str = "Ponder cost; each block has its own scale.",
) -> Image.Image:
    """Set an image and the ponder map of each block side by side, each map over a colour bar of its own range.

    Args:
        image: PIL image, or uint8 [H, W, 3] (or [H, W] for grey).
        maps: one real [h, w] per block, with h <= H and w <= W, finite.
        names: one per block; "block 1", "block 2", ... if None.
        title: text above, "" for none.
        caption: text below, "" for none.

    Returns:
        RGB image on white.

    Raises:
        InputError: as for `overlay`, or no maps, or another number of names than of maps.
    """
    names = [f"block {k + 1}" for k in range(len(maps))] if names is None else list(names)
    if not len(maps) or len(names) != len(maps):
        raise InputError(f"{len(maps)} maps and {len(names)} names; give at least one map and one name for each")
    blocks = [_as_pair(image, map)[1] for map in maps]
    picture = resize_to_panel(_as_image(image), panel_side(_as_image(image), LARGEST_BLOCK_PANEL))
    size = text_size(picture.width)
    gap = size // 2
    columns = [stacked([draw_text("image", size, picture.width, FAINT_INK), picture], gap)]
    for name, values in zip(names, blocks, strict=True):
        span = value_range([values], None, None)
        panel = _map_panel(values, picture.size, span)
        bar = horizontal_bar(span, picture.width, "", size)
        columns.append(stacked([draw_text(name, size, picture.width, FAINT_INK), panel, bar], gap))
    return on_page(side_by_side(columns, size), title, caption, size)


def contact_sheet(
    items: Sequence[tuple[ImageLike, ArrayLike, str]],
    columns: int | None = None,
    title: str = "",
    low: float | None = None,
    high: float | None = None,
    panels: Sequence[str] = ("image", "overlay"),
    panel_size: int = 192,
) -> Image.Image:
    """Lay out many images with their ponder maps and captions in a grid, over one colour bar for all.

    Args:
        items: (image, map, caption) each; image and map as in `overlay`, sizes may differ between items.
        columns: items per row; 4 if None, or fewer when there are fewer items.
        title: text above, "" for none.
        low: value of the darkest colour; the minimum over all maps if None.
        high: value of the brightest colour; the maximum over all maps if None.
        panels: what each item shows, any of "image", "map" and "overlay", in this order.
        panel_size: longer side of a panel in pixels, at least 64.

    Returns:
        RGB image on white.

    Raises:
        InputError: as for `overlay`, or no items, columns below 1, panel_size below 64, or an unknown panel.
    """
    if not len(items):
        raise InputError("no items for the contact sheet; give at least one (image, map, caption)")
    columns = min(len(items), 4) if columns is None else columns
    if columns < 1 or panel_size < 64:
        raise InputError(f"columns is {columns} and panel_size is {panel_size}; give at least 1 and 64")
    if not panels or set(panels) - {"image", "map", "overlay"}:
        raise InputError(f'panels is {tuple(panels)}; give one or more of "image", "map" and "overlay"')
    pairs = [_as_pair(image, map) for image, map, _ in items]
    span = value_range([values for _, values in pairs], low, high)
    size = text_size(panel_size)
    cells = [
        _cell(picture, values, caption, span, panels, panel_size, size)
        for (picture, values), (_, _, caption) in zip(pairs, items, strict=True)
    ]
    rows = [side_by_side(cells[at : at + columns], size + 4) for at in range(0, len(cells), columns)]
    grid = stacked(rows, size)
    bar = horizontal_bar(span, min(grid.width, 360), "ponder cost", size)
    return on_page(stacked([grid, bar], size), title, "", size)


def softmax_map(map: ArrayLike, temperature: float = 0.2, rescale: bool = False) -> FloatMap:
    """Turn a map into a distribution over positions, the form in which the paper shows its saliency maps.

    The result is softmax(map / temperature) over all positions. Raw ponder costs differ by many units, so at
    temperature 1/5 almost all of the sum falls on the maximum; `rescale` maps them to [0, 1] first, which
    keeps the rest visible.

    Args:
        map: real [H, W], finite.
        temperature: above 0; smaller is more peaked.
        rescale: whether to map [minimum, maximum] to [0, 1] before the softmax; a constant map then stays constant.

    Returns:
        float64 [H, W], positive where it does not underflow, with sum 1.

    Raises:
        InputError: the map is not a finite, non-empty array of rank 2, or temperature is not above 0.

    Source: arXiv 1612.02297, the saliency figure (temperature 1/5).
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise InputError(f"temperature is {temperature}; give a number above 0")
    values = _as_map(map)
    values = values - values.max()
    if rescale and values.min() < 0:
        values = values / -values.min()
    weights = np.exp(values / temperature)
    distribution: FloatMap = weights / weights.sum()
    return distribution


def auc(map: ArrayLike, mask: ArrayLike) -> float:
    """Compute the area under the ROC curve of a map used as a score for an object mask.

    This is the share of pairs (position on the object, position off it) in which the map is higher on the object, a tie
    counting one half. It is counted in integers, hence exact.

    Args:
        map: real [h, w] with h <= H and w <= W, finite.
        mask: bool [H, W], True on the object.

    Returns:
        A number from 0 to 1; 0.5 for a map that tells nothing.

    Raises:
        InputError: an unusable map, a mask that is not boolean of rank 2, all True, all False or smaller than the map.
    """
    on_object = np.asarray(mask)
    if on_object.dtype != np.bool_ or on_object.ndim != 2:
        raise InputError(
            f"the mask is {on_object.dtype} {list(on_object.shape)}; give bool [H, W], for example `mask > 0`"
        )
    positives = int(on_object.sum())
    if positives in (0, on_object.size):
        raise InputError(
            f"the mask is {bool(positives)} everywhere, so the ROC curve is undefined; leave this image out"
        )
    values = _as_map(map)
    _check_fits(values, on_object.shape[1], on_object.shape[0], "mask")
    distinct, group = np.unique(_resize(values, on_object.shape[0], on_object.shape[1]), return_inverse=True)
    on = np.bincount(group.ravel()[on_object.ravel()], minlength=len(distinct))
    off = np.bincount(group.ravel()[~on_object.ravel()], minlength=len(distinct))
    below = np.cumsum(off) - off
    twice_wins = int(np.sum(on * (2 * below + off)))
    return twice_wins / (2 * positives * (on_object.size - positives))


def save_png(image: ImageLike, path: str | os.PathLike[str]) -> Path:
    """Write an image as PNG so that a reader sees the whole file or none; missing folders are made.

    Args:
        image: PIL image, or uint8 [H, W, 3] (or [H, W] for grey).
        path: file to write or replace, ending in .png.

    Returns:
        The path.

    Raises:
        InputError: an unusable image, a path that does not end in .png or cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise InputError(f"{str(target)!r} does not end in .png; give a file name that does")
    picture = image if isinstance(image, Image.Image) else _as_image(image)
    try:
        with replacing(target) as temporary:
            picture.save(temporary, format="PNG")
    except OSError as error:
        raise InputError(f"{str(target)!r} cannot be written ({error}); give a writable path") from error
    return target


def _as_map(map: ArrayLike) -> FloatMap:
    try:
        values = np.asarray(map)
        if values.dtype.kind not in "fiub":
            raise TypeError(f"dtype {values.dtype}")
        values = values.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the map is no real array ({error}); give a float array [H, W], of a tensor its .detach().float().cpu()"
        ) from error
    if values.ndim != 2 or values.size == 0:
        raise InputError(f"the map has shape {list(values.shape)}; give one map [H, W] with at least one position")
    if not np.isfinite(values).all():
        wrong = int((~np.isfinite(values)).sum())
        raise InputError(f"the map has {wrong} NaN or infinite values out of {values.size}; give finite values")
    return values


def _as_image(image: ImageLike) -> Image.Image:
    if isinstance(image, Image.Image):
        return _as_rgb(image)
    pixels = np.asarray(image)
    grey_or_rgb = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not grey_or_rgb or pixels.size == 0:
        raise InputError(f"the image is {pixels.dtype} {list(pixels.shape)}; give a PIL image or uint8 [H, W, 3]")
    return Image.fromarray(pixels).convert("RGB")


def _as_rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise InputError(f"the image is {image.width} x {image.height} pixels; give one with at least one pixel")
    try:
        if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
            return image.convert("RGB")
        paper = Image.new("RGBA", image.size, (*PAPER, 255))
        return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")
    except OSError as error:
        raise InputError(f"the image cannot be decoded ({error}); give a complete file") from error


def _as_pair(image: ImageLike, map: ArrayLike) -> tuple[Image.Image, FloatMap]:
    picture, values = _as_image(image), _as_map(map)
    _check_fits(values, picture.width, picture.height, "image")
    return picture, values


def _check_fits(values: FloatMap, width: int, height: int, what: str) -> None:
    if values.shape[0] > height or values.shape[1] > width:
        raise InputError(
            f"the map {list(values.shape)} is larger than the {what} [{height}, {width}]; "
            "give a map of that size or smaller"
        )


def _resize(values: FloatMap, height: int, width: int) -> FloatMap:
    rows = np.arange(height) * values.shape[0] // height
    columns = np.arange(width) * values.shape[1] // width
    resized: FloatMap = values[rows[:, None], columns]
    return resized


def _overlay(picture: Image.Image, values: FloatMap, span: Span, alpha: float = _ALPHA) -> Image.Image:
    relative = _resize(to_relative(values, span), picture.height, picture.width)
    spent = relative[..., None]
    # The square root lifts the middle of the range, where the picture would be too dark and the tint too weak to see.
    lifted = np.sqrt(spent)
    pixels = np.asarray(picture, dtype=np.float64)
    grey = np.asarray(picture.convert("L"), dtype=np.float64)[..., None]
    toned = (0.35 + 0.65 * lifted) * (grey + spent * (pixels - grey))
    # Shading the colour by the picture's brightness keeps its detail under a strong tint.
    shaded = to_colors(relative) * (0.4 + 0.6 * grey / 255)
    return Image.fromarray(np.rint(toned + alpha * lifted * (shaded - toned)).astype(np.uint8))


def _map_panel(values: FloatMap, size: tuple[int, int], span: Span) -> Image.Image:
    return Image.fromarray(to_colors(to_relative(_resize(values, size[1], size[0]), span)))


def _cell(
    picture: Image.Image,
    values: FloatMap,
    caption: str,
    span: Span,
    panels: Sequence[str],
    panel_size: int,
    letters: int,
) -> Image.Image:
    picture = resize_to_panel(picture, panel_size)
    make: dict[str, Callable[[], Image.Image]] = {
        "image": lambda: picture,
        "map": lambda: _map_panel(values, picture.size, span),
        "overlay": lambda: _overlay(picture, values, span),
    }
    row = side_by_side([make[panel]() for panel in panels], 3)
    cell = padded(row, panel_size * len(panels) + 3 * (len(panels) - 1), row.height)
    return stacked([cell, draw_text(caption, letters, cell.width)], letters // 2) if caption else cell

"""Pictures of what was found in an image and of where the work went: boxes, classes of pixels, and the ponder map."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from .data.coco_masks import IGNORED
from .drawing import (
    FAINT_INK,
    LARGEST_PANEL,
    PAPER,
    draw_text,
    on_page,
    padded,
    panel_side,
    resize_to_panel,
    side_by_side,
    stacked,
    text_size,
    value_range,
    vertical_bar,
)
from .maps import colorize, contact_sheet

Color: TypeAlias = tuple[int, int, int]
Box: TypeAlias = tuple[int, int, int, int]

BACKGROUND = 0
"""The class that is no object."""
THUMBNAIL = 256
"""Longer side of a picture on a contact sheet."""
_DARK: Color = (24, 24, 27)
_TINT = 0.6
_LEGEND_ROWS = 14


def class_color(label: int) -> Color:
    """A colour for a class from 1; neighbouring labels lie far apart, and the first 200 all differ."""
    hue = 0.7548776662 * label % 1  # steps of the inverse plastic number spread any number of hues evenly
    saturation, value = ((0.85, 1.0), (0.45, 1.0), (0.75, 0.85))[label // 4 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(picture: Image.Image, boxes: ArrayLike, labels: Sequence[int], texts: Sequence[str]) -> Image.Image:
    """Draw boxes in the colours of their classes, each with its text.

    Args:
        picture: RGB.
        boxes: real [K, 4]: left, top, right, bottom in pixels of the picture. The first lies on top.
        labels: K classes.
        texts: K texts, "" for none.

    Returns:
        A new picture of the same size.
    """
    drawn = picture.copy()
    draw = ImageDraw.Draw(drawn)
    width = max(2, round(max(picture.size) / 260))
    corners = [_corners(box) for box in np.asarray(boxes, dtype=np.float64).reshape(-1, 4)]
    for (left, top, right, bottom), label in reversed(list(zip(corners, labels, strict=True))):
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_DARK, width=width + 2)
        draw.rectangle((left, top, right, bottom), outline=class_color(label), width=width)
    taken: list[Box] = []
    for corner, label, text in zip(corners, labels, texts, strict=True):
        if text:
            strip = _strip(text, class_color(label), picture.width)
            taken.append(_place(corner, strip.size, picture.size, taken))
            drawn.paste(strip, taken[-1][:2])
    return drawn


def draw_classes(picture: Image.Image, classes: NDArray[np.uint8]) -> Image.Image:
    """Tint pixels with the colours of their classes, with a line where two meet; background stays as it is.

    Args:
        picture: RGB, of W x H pixels.
        classes: [H, W], 0 is background and 255 nothing.

    Returns:
        A new picture of the same size.
    """
    pixels = np.asarray(picture, dtype=np.float32)
    colors = np.frombuffer(palette(), np.uint8).reshape(256, 3)[classes]
    strength = np.where((classes == BACKGROUND) | (classes == IGNORED), 0, np.float32(_TINT))
    mixed = pixels + strength[..., None] * (colors - pixels)
    mixed[_borders(classes)] = PAPER
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def class_image(classes: NDArray[np.uint8]) -> Image.Image:
    """Class indices [H, W] as an 8-bit palette image: viewers show colours, and programs read the indices."""
    image = Image.fromarray(classes)
    image.putpalette(palette())
    return image


@lru_cache(maxsize=1)
def palette() -> bytes:
    """Colours of the indices 0 to 255, three bytes each: black for background and white for ignored pixels."""
    return bytes([0, 0, 0, *(part for label in range(1, IGNORED) for part in class_color(label)), 255, 255, 255])


def detection_panel(
    image: Image.Image, boxes: ArrayLike, labels: Sequence[int], texts: Sequence[str], side: int | None = None
) -> Image.Image:
    """An image brought to the size of a panel, or to `side`, and its boxes (in pixels of the image) drawn there."""
    panel = resize_to_panel(image, side or panel_side(image, LARGEST_PANEL))
    scale = np.array([panel.width / image.width, panel.height / image.height] * 2)
    return draw_boxes(panel, np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * scale, labels, texts)


def segmentation_panel(image: Image.Image, classes: NDArray[np.uint8], side: int | None = None) -> Image.Image:
    """An image brought to the size of a panel, or to `side`, and tinted with the classes of its pixels."""
    panel = resize_to_panel(image, side or panel_side(image, LARGEST_PANEL))
    resized = Image.fromarray(classes).resize(panel.size, Image.Resampling.NEAREST)
    return draw_classes(panel, np.asarray(resized))


def legend(rows: Sequence[tuple[int, str]], size: int = 14, width: int = 220) -> Image.Image:
    """Colours of classes (label, text) with their texts, one below the other; the last row counts what is left out."""
    lines = []
    for label, text in rows[:_LEGEND_ROWS]:
        swatch = Image.new("RGB", (size, size), class_color(label) if label else _DARK)
        lines.append(side_by_side([swatch, draw_text(text, size, width)], size // 2))
    if len(rows) > _LEGEND_ROWS:
        lines.append(draw_text(f"and {len(rows) - _LEGEND_ROWS} more", size, width, FAINT_INK))
    return stacked(lines, size // 3) if lines else draw_text("nothing", size, width, FAINT_INK)


def beside_map(
    panel: Image.Image,
    name: str,
    map: NDArray[np.float32] | None,
    title: str,
    caption: str,
    key: Image.Image | None = None,
) -> Image.Image:
    """Set what was found beside the ponder map with its colour bar.

    Args:
        panel: the image, with what was found drawn on it.
        name: says what the panel shows.
        map: finite, [H, W]; None from a plain network, of which the panel stands alone.
        title: text above.
        caption: text below.
        key: legend of the panel's colours.

    Returns:
        RGB image on white.
    """
    size = text_size(panel.width)
    columns = [_named(panel, name, size)]
    if key is not None:
        columns.append(_named(key, " ", size))
    if map is not None:
        span = value_range([np.asarray(map, dtype=np.float64)], None, None)
        values = Image.fromarray(map).resize(panel.size, Image.Resampling.NEAREST)
        columns.append(_named(Image.fromarray(colorize(np.asarray(values), *span)), "ponder map", size))
        columns.append(_named(vertical_bar(span, max(panel.height, 3 * size), "ponder cost", size), " ", size))
    return on_page(side_by_side(columns, size), title, caption, size)


class Sheet:
    """A contact sheet that is filled image by image and keeps thumbnails alone.

    Args:
        most: images on it; further ones are left out.
    """

    def __init__(self, most: int = 48) -> None:
        self.most = most
        self.cells: list[tuple[Image.Image, NDArray[np.float32] | None, str]] = []

    def add(self, panel: Image.Image, map: NDArray[np.float32] | None, caption: str) -> None:
        """Add a picture, its ponder map if it has one, and a text below."""
        if len(self.cells) == self.most:
            return
        panel = resize_to_panel(panel, THUMBNAIL)
        if map is not None:
            map = np.asarray(Image.fromarray(map).resize(panel.size, Image.Resampling.NEAREST))
        self.cells.append((panel, map, caption))

    def draw(self) -> Image.Image:
        """The sheet; there must be a picture on it."""
        columns = min(3, len(self.cells))
        mapped = [(panel, map, caption) for panel, map, caption in self.cells if map is not None]
        if len(mapped) == len(self.cells):
            return contact_sheet(mapped, columns, panels=("image", "map"), panel_size=THUMBNAIL)
        size = text_size(THUMBNAIL)
        cells = [
            stacked([padded(panel, THUMBNAIL, panel.height), draw_text(caption, size, THUMBNAIL)], size // 2)
            for panel, _, caption in self.cells
        ]
        rows = [side_by_side(cells[at : at + columns], size) for at in range(0, len(cells), columns)]
        return on_page(stacked(rows, size), "", "", size)


def _corners(box: NDArray[np.float64]) -> Box:
    left, top, right, bottom = (round(float(value)) for value in box)
    return left, top, max(left, right), max(top, bottom)


def _strip(text: str, color: Color, width: int) -> Image.Image:
    """Text on a strip of colour, in black or white, whichever is read better."""
    letters = draw_text(text, 14, max(16, width - 6), ink=(0, 0, 0)).convert("L").point(lambda level: 255 - level)
    red, green, blue = color
    ink = _DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else PAPER
    strip = Image.new("RGB", (letters.width + 6, letters.height), color)
    strip.paste(ink, (3, 0), letters)
    return strip


def _place(corner: Box, size: tuple[int, int], room: tuple[int, int], taken: Sequence[Box]) -> Box:
    """Where the strip of a box goes: above, below or inside it, where it hides no other strip if that can be."""
    left, top, right, bottom = corner
    width, height = size
    spots = []
    for x in (left, right - width):
        for y in (top - height, bottom, top, bottom - height):
            x, y = max(0, min(x, room[0] - width)), max(0, min(y, room[1] - height))
            spots.append((x, y, x + width, y + height))
    return next((spot for spot in spots if not any(_meet(spot, other) for other in taken)), spots[0])


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _borders(classes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where the pixel to the right or below is of another class, [H, W]."""
    borders = np.zeros(classes.shape, dtype=bool)
    borders[:, :-1] = classes[:, :-1] != classes[:, 1:]
    borders[:-1] |= classes[:-1] != classes[1:]
    return borders


def _named(image: Image.Image, name: str, size: int) -> Image.Image:
    return stacked([draw_text(name, size, max(image.width, 4 * size), FAINT_INK), image], size // 2)

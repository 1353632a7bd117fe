"""What ponder-map pictures are drawn with: the colour scale and its bar, text, panels, and their layout on a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .errors import InputError

FloatMap: TypeAlias = NDArray[np.float64]
Span: TypeAlias = tuple[float, float]
"""The values of the darkest and of the brightest colour."""

# Inferno, by Nathaniel Smith and Stefan van der Walt (CC0), at every sixteenth: perceptually uniform, dark for little.
_ANCHORS = (
    "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 "
    "d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4"
)
PAPER = (255, 255, 255)
_INK = (32, 33, 36)
FAINT_INK = (95, 99, 104)
# Longer side of a panel in pixels: below the first number it is enlarged to the second, above the third reduced to it.
_ENLARGE_BELOW, _ENLARGED, LARGEST_PANEL = 224, 288, 640
LARGEST_BLOCK_PANEL = 384
# Up to this side an image is enlarged without smoothing, which would only blur its few pixels.
_PIXEL_ART = 48
# Text is drawn three times as large and reduced: at its own size the hinting of small letters spoils their spacing.
_OVERSAMPLE = 3


def _color_table() -> NDArray[np.uint8]:
    anchors = np.array([list(bytes.fromhex(code)) for code in _ANCHORS.split()], dtype=np.float64)
    at = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(at, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


_TABLE = _color_table()


def value_range(maps: Sequence[FloatMap], low: float | None, high: float | None) -> Span:
    """The span of a scale: `low` and `high`, or the least and greatest value of maps; widened where that is nothing.

    Raises:
        InputError: low is above high, or not finite.
    """
    given = [bound for bound in (low, high) if bound is not None]
    if not all(math.isfinite(bound) for bound in given) or (len(given) == 2 and given[0] > given[1]):
        raise InputError(f"the range is from low={low} to high={high}; give finite numbers with low <= high")
    least = low if low is not None else min(float(values.min()) for values in maps)
    most = high if high is not None else max(float(values.max()) for values in maps)
    if low is None:
        least = min(least, most)
    most = max(least, most)
    # A range of float32 rounding errors counts as constant too: stretched over the whole scale it would show noise.
    magnitude = max(abs(least), abs(most))
    if most - least > 1e-6 * magnitude:
        return least, most
    margin = max(0.5, 1e-6 * magnitude)
    return least - margin, most + margin


def to_relative(values: FloatMap, span: Span) -> FloatMap:
    """Where values lie in a span, 0 to 1; of the same shape."""
    low, high = span
    relative: FloatMap = np.clip((values - low) / (high - low), 0, 1)
    return relative


def to_colors(relative: FloatMap) -> NDArray[np.uint8]:
    """Colours uint8 [..., 3] of numbers in [0, 1]."""
    return _TABLE[np.rint(relative * 255).astype(np.intp)]


def horizontal_bar(span: Span, width: int, label: str, size: int = 14) -> Image.Image:
    """The colour scale from left to right with values below and a label above ("" for none)."""
    thickness, line = max(10, size * 3 // 4), _line_height(size)
    top = line + size // 4 if label else 0
    bar = Image.new("RGB", (width, top + thickness + size // 3 + line), PAPER)
    draw = ImageDraw.Draw(bar)
    if label:
        bar.paste(draw_text(label, size, width, FAINT_INK), (0, 0))
    colors = _TABLE[np.rint(np.linspace(0, 255, width)).astype(np.intp)]
    bar.paste(Image.fromarray(np.repeat(colors[None], thickness, axis=0)), (0, top))
    for value, text in tick_texts(span, width, lambda text: _width(text, size) + size):
        x = (value - span[0]) / (span[1] - span[0]) * (width - 1)
        written = draw_text(text, size, width)
        if value not in span:
            draw.line((x, top + thickness, x, top + thickness + size // 4), FAINT_INK)
        bar.paste(
            written, (round(min(max(x - written.width / 2, 0), width - written.width)), top + thickness + size // 3)
        )
    return bar


def vertical_bar(span: Span, height: int, label: str, size: int = 14) -> Image.Image:
    """The colour scale from bottom to top with values and an upright label ("" for none) to its right."""
    thickness, line = max(10, size * 3 // 4), _line_height(size)
    texts = tick_texts(span, height, lambda _: 1.6 * line)
    ticks_end = thickness + size // 3
    text_end = ticks_end + size // 4 + max(_width(text, size) for _, text in texts)
    upright = draw_text(label, size, height, FAINT_INK).rotate(90, expand=True)
    bar = Image.new("RGB", (text_end + (size // 3 + upright.width if label else 0), height), PAPER)
    draw = ImageDraw.Draw(bar)
    colors = _TABLE[np.rint(np.linspace(255, 0, height)).astype(np.intp)]
    bar.paste(Image.fromarray(np.repeat(colors[:, None], thickness, axis=1)), (0, 0))
    for value, text in texts:
        y = (span[1] - value) / (span[1] - span[0]) * (height - 1)
        if value not in span:
            draw.line((thickness, y, ticks_end, y), FAINT_INK)
        # The ends are moved inwards by less than half a line, so that capitals touch the ends of the bar.
        at = min(max(y - line / 2, -0.15 * size), height - line + 0.15 * size)
        bar.paste(draw_text(text, size, text_end), (ticks_end + size // 4, round(at)))
    if label:
        bar.paste(upright, (text_end + size // 3, (height - upright.height) // 2))
    return bar


def tick_texts(span: Span, length: int, room: Callable[[str], float]) -> list[tuple[float, str]]:
    """Both ends, and between them the round values that leave `room` pixels around each text."""
    low, high = span
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 5)
    magnitude = math.floor(math.log10(high - low))
    decimals = max(int(magnitude < 2), 1 - magnitude)
    written = [(value, f"{value:.{decimals}f}") for value in (low, high)]
    per_value = (length - 1) / (high - low)
    inner = []
    for count in range(math.ceil(low / step), math.floor(high / step) + 1):
        value, text = count * step, f"{count * step:.{max(0, -math.floor(math.log10(step)))}f}"
        if all(abs(value - end) * per_value >= room(text) + 0.5 * room(end_text) for end, end_text in written):
            inner.append((value, text))
    return [written[0], *inner, written[1]]


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=_OVERSAMPLE * size)


def text_size(panel_width: int) -> int:
    """Size of letters in pixels that suits a panel."""
    return min(max(round(panel_width / 22), 14), 20)


def _line_height(size: int) -> int:
    return math.ceil(1.25 * size)


def _width(text: str, size: int) -> int:
    return math.ceil(_font(size).getlength(text) / _OVERSAMPLE)


def draw_text(text: str, size: int, width: int, ink: tuple[int, int, int] = _INK) -> Image.Image:
    """Text on white, broken into lines of at most `width` pixels; a word that is too long ends in dots."""
    lines = [line for paragraph in text.splitlines() or [""] for line in _wrap(paragraph, size, width)]
    shape = (max(1, *(_width(line, size) for line in lines), 1), len(lines) * _line_height(size))
    letters = Image.new("L", (shape[0] * _OVERSAMPLE, shape[1] * _OVERSAMPLE))
    draw = ImageDraw.Draw(letters)
    for number, line in enumerate(lines):
        draw.text((0, number * _line_height(size) * _OVERSAMPLE), line, 255, _font(size))
    canvas = Image.new("RGB", shape, PAPER)
    canvas.paste(ink, (0, 0), letters.resize(shape, Image.Resampling.LANCZOS))
    return canvas


def _wrap(paragraph: str, size: int, width: int) -> list[str]:
    lines = [""]
    for word in paragraph.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_shorten(line, size, width) for line in lines]


def _shorten(line: str, size: int, width: int) -> str:
    if _width(line, size) <= width:
        return line
    while line and _width(line + "...", size) > width:
        line = line[:-1]
    return line + "..."


def panel_side(picture: Image.Image, largest: int) -> int:
    """The longer side in pixels at which a picture is shown."""
    longer = max(picture.size)
    return _ENLARGED if longer < _ENLARGE_BELOW else min(longer, largest)


def resize_to_panel(picture: Image.Image, side: int) -> Image.Image:
    """Bring the longer side to `side`; tiny images keep their pixels as squares."""
    longer = max(picture.size)
    if longer == side:
        return picture
    size = (max(1, round(picture.width * side / longer)), max(1, round(picture.height * side / longer)))
    resample = Image.Resampling.NEAREST if longer <= _PIXEL_ART else Image.Resampling.LANCZOS
    return picture.resize(size, resample)


def side_by_side(images: Sequence[Image.Image], gap: int) -> Image.Image:
    """Images in a row on white, aligned at their tops."""
    size = (sum(image.width for image in images) + gap * (len(images) - 1), max(image.height for image in images))
    canvas, x = Image.new("RGB", size, PAPER), 0
    for image in images:
        canvas.paste(image, (x, 0))
        x += image.width + gap
    return canvas


def stacked(images: Sequence[Image.Image], gap: int) -> Image.Image:
    """Images in a column on white, aligned at their left sides."""
    size = (max(image.width for image in images), sum(image.height for image in images) + gap * (len(images) - 1))
    canvas, y = Image.new("RGB", size, PAPER), 0
    for image in images:
        canvas.paste(image, (0, y))
        y += image.height + gap
    return canvas


def on_page(body: Image.Image, title: str, caption: str, size: int) -> Image.Image:
    """A body with a title above, a caption below ("" for none) and a margin; `size` is that of the letters."""
    parts = [draw_text(title, round(1.3 * size), body.width)] if title else []
    parts.append(body)
    if caption:
        parts.append(draw_text(caption, size, body.width, FAINT_INK))
    content = stacked(parts, size)
    margin = round(1.6 * size)
    page = Image.new("RGB", (content.width + 2 * margin, content.height + 2 * margin), PAPER)
    page.paste(content, (margin, margin))
    return page


def padded(image: Image.Image, width: int, height: int) -> Image.Image:
    """An image at the top left of white paper of this size."""
    canvas = Image.new("RGB", (width, height), PAPER)
    canvas.paste(image, (0, 0))
    return canvas

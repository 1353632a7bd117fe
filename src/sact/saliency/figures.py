"""Images beside human and predicted maps, in the form of the paper's figure 11."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..drawing import FAINT_INK, FloatMap, draw_text, on_page, resize_to_panel, side_by_side, stacked
from ..maps import colorize, softmax_map

TEMPERATURE = 1 / 5
"""Of the softmax in which the paper shows its maps."""
PANEL = 240
"""Longer side of a picture in pixels."""
_TEXT = 14


@dataclass(frozen=True)
class Row:
    """One image as small pictures.

    Attributes:
        name: of the image.
        panels: by title.
    """

    name: str
    panels: dict[str, Image.Image]

    @classmethod
    def of(cls, name: str, picture: Image.Image, human: FloatMap, ponder: FloatMap, saliency: FloatMap) -> Row:
        """Make the small pictures.

        Args:
            name: of the image.
            picture: RGB of H x W pixels.
            human: map of where people looked, real [H, W].
            ponder: the network's ponder map, real [h, w].
            saliency: what was made of it, real [H, W], in [0, 1].
        """
        small = resize_to_panel(picture, PANEL)
        maps = {
            "where people looked": human,
            "ponder map": ponder,
            "saliency map, softmax": softmax_map(saliency, TEMPERATURE),
        }
        panels = {title: _panel(values, small.size) for title, values in maps.items()}
        return cls(name, {"image": small} | panels)


def figure(rows: Sequence[Row], caption: str = "") -> Image.Image:
    """Set images, human maps, ponder maps and saliency maps side by side, a row each.

    Every map has its own scale, from dark for its least to bright for its greatest value. Saliency maps are shown as in
    the paper, as softmax(map / temperature) with temperature 1/5.

    Args:
        rows: at least one.
        caption: text below.

    Source: figure 11.
    """
    titles = [draw_text(title, _TEXT, panel.width, FAINT_INK) for title, panel in rows[0].panels.items()]
    widths = [max(row.panels[title].width for row in rows) for title in rows[0].panels]
    header = side_by_side([_wide(text, width) for text, width in zip(titles, widths, strict=True)], _TEXT // 2)
    body = [
        side_by_side(
            [_wide(panel, width) for panel, width in zip(row.panels.values(), widths, strict=True)], _TEXT // 2
        )
        for row in rows
    ]
    return on_page(stacked([header, *body], _TEXT // 2), "", caption, _TEXT)


def _panel(values: FloatMap, size: tuple[int, int]) -> Image.Image:
    shrunk = Image.fromarray(np.asarray(values, dtype=np.float32)).resize(size, Image.Resampling.BILINEAR)
    return Image.fromarray(colorize(np.asarray(shrunk)))


def _wide(image: Image.Image, width: int) -> Image.Image:
    if image.width == width:
        return image
    canvas = Image.new("RGB", (width, image.height), (255, 255, 255))
    canvas.paste(image, (0, 0))
    return canvas

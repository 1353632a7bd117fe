"""What a detector or segmenter found in a photograph, as HTML."""

from __future__ import annotations

from html import escape

import numpy as np
from PIL import Image

from ..dense_pictures import class_color, segmentation_panel
from ..detecting import Detections
from ..drawing import resize_to_panel
from ..maps import colorize
from ..segmenting import Segmentation
from .networks import Served
from .pieces import bar, data_uri, legend, note, stack

_SHOWN = 1024
"""Pixels of the long side of a photograph on the page, at most."""
_MAP = 512
_ROWS = 15


def view(served: Served, result: Detections | Segmentation) -> str:
    """The photograph with what was found, and the ponder map."""
    photograph = f'<img class="photograph" alt="photograph" src="{data_uri(_reduced(result.image))}">'
    layer, scale = _ponder(served, result)
    if isinstance(result, Detections):
        return stack(f"{photograph}{layer}{_boxes(result)}") + scale
    tinted = segmentation_panel(result.image, result.classes, min(_SHOWN, max(result.image.size)))
    classes = stack(f'<img class="photograph" alt="classes" src="{data_uri(tinted)}">')
    return f"{classes}<h3>Where the work went</h3>{stack(photograph + layer)}{scale}" if layer else classes + scale


def listing(result: Detections | Segmentation) -> str:
    """Objects with their scores, which the slider hides below the threshold; or classes with their shares."""
    if isinstance(result, Segmentation):
        rows = [_row(label, name, share) for label, name, share in result.found()[:_ROWS]]
        return f'<h3>Classes</h3><div class="rows-found">{"".join(rows)}</div>'
    if not len(result):
        return f"<h3>Objects</h3>{note('No objects.')}"
    found = list(zip(result.labels.tolist(), result.names, result.scores.tolist(), strict=True))
    rows = [_row(label, name, score, _score(score)) for label, name, score in found[:_ROWS]]
    none = f'<p class="hint nothing" style="{_score(found[0][2])}">No object reaches this score.</p>'
    return f'<h3>Objects</h3>{none}<div class="rows-found found">{"".join(rows)}</div>'


def _boxes(result: Detections) -> str:
    """The boxes as a drawing that lies on the photograph, the surest on top."""
    width, height = result.image.size
    letters = max(width, height) / 34
    parts = []
    found = zip(result.boxes.tolist(), result.labels.tolist(), result.names, result.scores.tolist(), strict=True)
    for (left, top, right, bottom), label, name, score in reversed(list(found)):
        shape = f'x="{left:.1f}" y="{top:.1f}" width="{max(0, right - left):.1f}" height="{max(0, bottom - top):.1f}"'
        y = top - 0.3 * letters if top > 1.2 * letters else top + letters
        parts.append(
            f'<g style="{_score(score)}; --color: {_css(label)}"><rect class="edge" {shape}/><rect {shape}/>'
            f'<text x="{left + 0.2 * letters:.1f}" y="{y:.1f}" font-size="{letters:.1f}">'
            f"{escape(name)} {score:.0%}</text></g>"
        )
    return f'<svg class="boxes found" viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def _ponder(served: Served, result: Detections | Segmentation) -> tuple[str, str]:
    """The map as a layer and its scale; of a plain extractor no layer, and a remark."""
    if result.map is None:
        return "", note("A plain extractor: every unit runs at every position.")
    small = Image.fromarray(result.map)
    if max(small.size) > _MAP:
        small = small.resize(_scaled(small.size, _MAP), Image.Resampling.NEAREST)
    low, high = served.span(result.ponder)
    colours = Image.fromarray(colorize(np.asarray(small), low, high))
    return f'<img class="ponder" alt="ponder map" src="{data_uri(colours)}">', legend(low, high)


def _row(label: int, name: str, part: float, style: str = "") -> str:
    swatch = f'<i style="background: {_css(label) if label else "black"}"></i>'
    return (
        f'<div style="{style}">{swatch}<span title="{escape(name)}">{escape(name)}</span>'
        f"{bar(part, 'div')}<b>{part:.1%}</b></div>"
    )


def _score(score: float) -> str:
    """For style.css, which compares it with the slider's."""
    return f"--score: {100 * score:.2f}"


def _css(label: int) -> str:
    red, green, blue = class_color(label)
    return f"rgb({red} {green} {blue})"


def _reduced(image: Image.Image) -> Image.Image:
    return resize_to_panel(image, _SHOWN) if max(image.size) > _SHOWN else image


def _scaled(size: tuple[int, int], longest: int) -> tuple[int, int]:
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

"""What the page shows, as HTML. Names of classes and files are escaped; colours come from style.css."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..detecting import Detections
from ..drawing import to_colors
from ..errors import InputError
from ..maps import colorize
from ..ponder import Ponder
from ..predict import Prediction, as_array
from ..preprocessing import display_image
from ..segmenting import Segmentation
from .batch import Row, cells, header
from .networks import Served
from .times import Times

Result: TypeAlias = Prediction | Detections | Segmentation

_SHOWN = 512
"""Pixels to which the part of a photograph that the network saw is enlarged, or in which it is read again."""


def view(served: Served, picture: Image.Image, prediction: Prediction) -> str:
    """The part of the photograph that the network saw, its ponder map above it, and the scale of the colours."""
    photograph = f'<img class="photograph" alt="photograph" src="{data_uri(_shown(served, picture, prediction))}">'
    if prediction.map is None:
        return f"{stack(photograph)}{note('A plain network: every unit runs at every position.')}"
    low, high = served.span(prediction.ponder)
    colours = Image.fromarray(colorize(prediction.map, low, high))
    layer = f'<img class="ponder" alt="ponder map" src="{data_uri(colours)}">'
    return f"{stack(photograph + layer)}{legend(low, high)}"


def stack(layers: str) -> str:
    """Pictures of one size, one on top of the other."""
    return f'<div class="stack">{layers}</div>'


def legend(low: float, high: float) -> str:
    """The colour scale with its ends named."""
    stops = ", ".join(_css_colour(color) for color in to_colors(np.linspace(0, 1, 9)))
    return (
        f'<div class="legend"><div class="bar" style="background: linear-gradient(to right, {stops})"></div>'
        f"<div><span>{low:g} &middot; fewest units</span><span>ponder cost</span>"
        f"<span>every unit &middot; {high:g}</span></div></div>"
    )


def listing(served: Served, prediction: Prediction) -> str:
    """The classes of the highest scores."""
    rows = "".join(
        f'<tr><th scope="row" title="{escape(name)}">{escape(name)}</th>{bar(score)}<td>{score:.1%}</td></tr>'
        for name, score in served.top(prediction)
    )
    return f'<h3>Class</h3><table class="classes">{rows}</table>'


def spent(result: Result, times: Times | None) -> str:
    """FLOPs, units, and the time, or that it is being measured."""
    return f"{_tiles(result.share, times)}{_blocks(result.ponder)}{_how(times)}"


def _tiles(part: float, times: Times | None) -> str:
    share = _tile("flops", f"{part:.1%}", "of the dense network's FLOPs")
    if times is None:
        return f'<div class="tiles">{share}{_tile("time", "&hellip;", "time is being measured")}</div>'
    versus = f"{_versus(times)}, {_milliseconds(times.dense)}"
    return f'<div class="tiles">{share}{_tile("time", _milliseconds(times.ours), versus)}</div>'


def _versus(times: Times) -> str:
    """How the time compares; where the rounds do not agree on which was faster, none is called faster."""
    lower, upper = times.quartiles
    ratio = times.dense / times.ours
    if min(lower, ratio) > 1:
        return f"{ratio:.2f}&times; faster than dense"
    if max(upper, ratio) < 1:
        return f"{1 / ratio:.2f}&times; slower than dense"
    return "no clear difference from dense"


def _tile(kind: str, figure: str, caption: str) -> str:
    return f'<div class="tile {kind}"><b>{figure}</b><span>{caption}</span></div>'


def _blocks(ponder: Ponder) -> str:
    rows = []
    for number, block in enumerate(ponder.blocks):
        mean = float(block.units.float().mean())
        picture = ""
        if block.cost is not None:
            colours = colorize(as_array(block.map()[0]), 2.0, block.max_units + 1.0)
            picture = f'<img alt="ponder map of block {number + 1}" src="{data_uri(Image.fromarray(colours))}">'
        rows.append(
            f'<tr><th scope="row">{number + 1}</th><td class="thumb">{picture}</td>{bar(mean / block.max_units)}'
            f"<td>{mean:.2f} of {block.max_units}</td></tr>"
        )
    return (
        '<h3>Units per block</h3><p class="hint">Mean over positions. Each map has its block\'s own scale.</p>'
        f'<table class="blocks">{"".join(rows)}</table>'
    )


def _how(times: Times | None) -> str:
    if times is None:
        return '<p class="hint how">&nbsp;</p>'
    lower, upper = times.quartiles
    threads = f"{times.threads} thread{'s' if times.threads != 1 else ''}"
    return (
        f'<p class="hint how">Time: median of {times.rounds} runs each, taking turns, of this image alone, {threads}, '
        f"without reading it; half of the rounds gave {lower:.2f}&times; to {upper:.2f}&times;. Ours in the "
        f"{times.engine} engine; dense: the same with halting off in {times.dense_way}, the fastest way here.</p>"
    )


def table(rows: Sequence[Row]) -> str:
    """The rows of many files."""
    names = header(rows)
    blocks = len(names) - 6
    head = "".join(f"<th>{escape(name)}</th>" for name in names[:-1])
    body = []
    for row in rows:
        texts = cells(row, blocks)
        if row.message:
            body.append(
                f'<tr class="broken"><td>{escape(row.file)}</td><td colspan="{len(names) - 2}">'
                f"{escape(row.message)}</td></tr>"
            )
        else:
            body.append(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in texts[:-1])}</tr>")
    return f'<div class="rows"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def message(text: str) -> str:
    """Something that the visitor can mend."""
    return f'<div class="message" role="alert">{escape(text[:1].upper() + text[1:])}.</div>'


def note(text: str) -> str:
    """A remark."""
    return f'<p class="hint">{escape(text)}</p>'


def data_uri(image: Image.Image) -> str:
    """An image within the page: nothing is left behind on the server, and nothing else can fetch it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG") if max(image.size) < _SHOWN else image.save(buffer, "JPEG", quality=90)
    kind = "png" if max(image.size) < _SHOWN else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _shown(served: Served, picture: Image.Image, prediction: Prediction) -> Image.Image:
    """What the network saw, in more pixels than it saw it where the photograph has them."""
    spec = served.network.preprocessing
    assert spec is not None
    size = prediction.image.width
    times = max(1, -(-_SHOWN // size))
    try:
        return display_image(picture, {**spec, "size": size * times})
    except InputError:
        return prediction.image


def bar(part: float, tag: str = "td") -> str:
    """A meter that is filled to a part, as a cell of a table or another element."""
    return f'<{tag} class="meter"><div style="width: {100 * min(max(part, 0.0), 1.0):.1f}%"></div></{tag}>'


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def _css_colour(color: NDArray[np.uint8]) -> str:
    red, green, blue = color.tolist()
    return f"rgb({red} {green} {blue})"

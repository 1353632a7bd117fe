"""The demo's page: numbers and pictures to one self-contained HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sact.errors import require
from sact.maps import colorize, overlay

TEMPLATE = "demo.html.j2"
# Side of a panel in pixels; about what a screen of double density shows in a card.
_PANEL = 192
# The histogram: its drawing in SVG units, its axis in shares of the plain network's FLOPs (score heads add a little).
_WIDTH, _HEIGHT, _AXIS_END, _BIN = 960, 190, 1.05, 0.01


@dataclass(frozen=True)
class Example:
    """One scene as the page shows it.

    Attributes:
        picture: uint8 [S, S, 3].
        map: ponder cost, float32 [S, S].
        truth: name of the true class.
        name: name of the predicted class.
        score: softmax probability of the predicted class.
        share: FLOPs relative to the plain network.
        units: mean units of each block.
        auc: of the map against the object's mask, None where the mask is empty.
    """

    picture: NDArray[np.uint8]
    map: NDArray[np.float32]
    truth: str
    name: str
    score: float
    share: float
    units: list[float]
    auc: float | None

    def summary(self) -> dict[str, Any]:
        """The numbers, JSON-able."""
        names = {"true_class": self.truth, "predicted_class": self.name, "score": self.score}
        return names | {"flops_share": self.share, "units": self.units, "map_auc": self.auc}


def render(
    results: dict[str, Any], examples: Sequence[Example], limit: float, photographs: dict[str, Any] | None = None
) -> str:
    """The page.

    Args:
        results: what `examples/demo.py` writes to results.json.
        examples: scenes to show, at least one.
        limit: largest difference in a logit with which an engine was timed.
        photographs: what `photos.classify_photographs` gives, or None to leave them out.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", "tasks")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value, digits=1: f"{value:.{digits}%}"
    environment.filters["fixed"] = lambda value, digits=2: f"{value:.{digits}f}"
    low, high = span(examples)
    ramp = colorize(np.linspace(0, 1, 256)[None])
    html: str = environment.get_template(TEMPLATE).render(
        results=results,
        limit=f"{limit:g}",
        date=f"{datetime.fromisoformat(results['date']):%d %B %Y, %H:%M}",
        cards=[card(example, low, high) for example in examples],
        ramp=data_uri(Image.fromarray(ramp)),
        ticks=np.linspace(low, high, 5).tolist(),
        photographs=None if photographs is None else photographs | as_cards(photographs["examples"]),
        histogram=histogram(results["flops_share"]["values"]),
        timings=[timing | {"verdict": verdict(timing), "longest": longest(timing)} for timing in results["timings"]],
    )
    return html


def span(examples: Sequence[Example]) -> tuple[float, float]:
    """One scale for all maps, so that the cards can be compared."""
    return min(float(example.map.min()) for example in examples), max(float(example.map.max()) for example in examples)


def as_cards(examples: Sequence[Example]) -> dict[str, Any]:
    """Cards on a scale of their own, and its ticks."""
    low, high = span(examples)
    return {
        "cards": [card(example, low, high) for example in examples],
        "ticks": np.linspace(low, high, 5).tolist(),
    }


def card(example: Example, low: float, high: float) -> dict[str, Any]:
    """What the template needs for one example."""
    side = max(_PANEL, len(example.picture))  # a map is never larger than its picture
    picture = Image.fromarray(example.picture).resize((side, side), Image.Resampling.LANCZOS)
    return {
        "image": data_uri(picture),
        "map": data_uri(Image.fromarray(colorize(example.map, low, high))),
        "overlay": data_uri(overlay(picture, example.map, low=low, high=high)),
        "example": example,
    }


def data_uri(image: Image.Image) -> str:
    """A picture inside the page instead of beside it."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def histogram(shares: Sequence[float]) -> dict[str, Any]:
    """Bars of the distribution of FLOPs over scenes, in SVG units; heights go up from the axis."""
    edges = np.arange(0, _AXIS_END + _BIN / 2, _BIN)
    counts, _ = np.histogram(np.clip(shares, 0, _AXIS_END), edges)
    scale = _WIDTH / _AXIS_END
    bars = [
        {"x": edge * scale, "width": _BIN * scale - 1, "height": count / counts.max() * _HEIGHT, "count": int(count)}
        for edge, count in zip(edges, counts, strict=False)
        if count
    ]
    return {"bars": bars, "width": _WIDTH, "height": _HEIGHT, "scale": scale}


def verdict(timing: dict[str, Any]) -> str:
    """Which is faster, as one sentence that follows from the quartiles of the ratio to the plain network's time."""
    engine = timing["engines"][-1]
    name = engine["name"].capitalize()
    if engine["ratio"] is None:
        return (
            f"No time is given for {engine['name']}: its output differs from the definition by "
            f"{engine['difference']:.2g}, so it did not do the same work."
        )
    lower, median, upper = (engine["ratio"][quartile] for quartile in ("lower_quartile", "median", "upper_quartile"))
    numbers = f"{median:.2f} times the plain network’s time (quartiles {lower:.2f} to {upper:.2f})"
    spent = f"{timing['flops_share']:.0%} of its FLOPs"
    if upper < 1:
        return f"{name} is faster than the plain network: {numbers}, with {spent}."
    if lower > 1:
        return f"The plain network is faster: {engine['name']} takes {numbers}, although it needs only {spent}."
    return f"{name} and the plain network are equally fast within the spread: {numbers}, with {spent}."


def longest(timing: dict[str, Any]) -> float:
    """The largest median in milliseconds, to which the page's bars are relative."""
    return max(float(row["milliseconds"]["median"]) for row in timing["engines"] if row["milliseconds"])

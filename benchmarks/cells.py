"""Numbers as cells of a report's tables."""

from __future__ import annotations

from typing import Any


def times(one: dict[str, Any]) -> str:
    """Median and quartiles."""
    spread = one["milliseconds"]
    if not spread:
        return "not timed"
    median, lower, upper = (short(spread[name]) for name in ("median", "lower_quartile", "upper_quartile"))
    return f"{median} ({lower}-{upper})"


def short(value: float) -> str:
    """Three digits, or whole numbers."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"

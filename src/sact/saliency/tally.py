"""Sums over images, from which means and standard errors come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ALL = "all"
"""The row over all categories: the mean over images."""


@dataclass
class _Sums:
    images: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        self.images += 1
        for name, value in values.items():
            known = not math.isnan(value)
            value = value if known else 0.0
            self.counts[name] = self.counts.get(name, 0) + known
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.squares[name] = self.squares.get(name, 0.0) + value**2

    def row(self) -> dict[str, float | None]:
        """Means, then standard errors; None where there is nothing to take them of."""
        means: dict[str, float | None] = {}
        errors: dict[str, float | None] = {}
        for name, count in self.counts.items():
            mean = self.sums[name] / count if count else None
            means[name], errors[f"{name} se"] = mean, None
            if mean is not None and count > 1:
                variance = max(self.squares[name] / count - mean**2, 0) * count / (count - 1)
                errors[f"{name} se"] = math.sqrt(variance / count)
        return means | errors


class Tally:
    """Measures by category and method."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], _Sums] = {}

    def add(self, category: str, method: str, values: Mapping[str, float]) -> None:
        """Take in the measures of one image."""
        for group in (ALL, category):
            self._sums.setdefault((group, method), _Sums()).add(values)

    def __bool__(self) -> bool:
        return bool(self._sums)

    def count(self, category: str, method: str) -> int:
        """How many images there were."""
        sums = self._sums.get((category, method))
        return sums.images if sums else 0

    def rows(self, methods: Sequence[str]) -> list[dict[str, Any]]:
        """A dict per category, "all" first, and method, in this order: means and standard errors over images."""
        categories = [ALL, *sorted({category for category, _ in self._sums} - {ALL})]
        return [
            {"category": category, "method": method, "images": sums.images} | sums.row()
            for category in categories
            for method in methods
            if (sums := self._sums.get((category, method)))
        ]

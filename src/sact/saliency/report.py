"""Results as text and files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import replacing
from .measures import CONVENTIONS
from .tally import ALL

_SHOWN_PROBLEMS = 10


def table(rows: Sequence[dict[str, Any]]) -> str:
    """All measures over all categories, a line per method."""
    lines = [f"{'':18}" + "".join(f"{name:>10}" for name in CONVENTIONS) + f"{'images':>8}"]
    for row in rows:
        if row["category"] == ALL:
            cells = "".join(f"{_shown(row[name]):>10}" for name in CONVENTIONS)
            lines.append(f"{row['method']:18}{cells}{row['images']:>8}")
    return "\n".join(lines)


def category_table(rows: Sequence[dict[str, Any]], measure: str = "AUC-Judd") -> str:
    """One measure, a line per category and a column per method."""
    header, *lines = _by_category(rows, measure)
    widths = [18, *(len(method) + 2 for method in header[1:])]
    return "\n".join(
        f"{line[0][: widths[0] - 1]:{widths[0]}}"
        + "".join(f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in [header, *lines]
    )


def markdown_categories(rows: Sequence[dict[str, Any]], measure: str = "AUC-Judd") -> str:
    """`category_table` for a page."""
    header, *lines = _by_category(rows, measure)
    cells = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _by_category(rows: Sequence[dict[str, Any]], measure: str) -> list[list[str]]:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    categories = list(dict.fromkeys(row["category"] for row in rows if row["category"] != ALL))
    values = {(row["category"], row["method"]): row[measure] for row in rows}
    lines = [[category, *(_shown(values.get((category, method))) for method in methods)] for category in categories]
    return [[measure, *methods], *lines]


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """All measures with standard errors over all categories, for a page."""
    lines = [f"| | {' | '.join(CONVENTIONS)} |", "|---" * (len(CONVENTIONS) + 1) + "|"]
    for row in rows:
        if row["category"] == ALL:
            cells = (f"{_shown(row[name])} ± {_shown(row[f'{name} se'])}" for name in CONVENTIONS)
            lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report_problems(results: Mapping[str, Any]) -> list[str]:
    """What was wrong with the data, a line each; of many problems the first ones."""
    problems, dropped = results["problems"], results["dropped_fixations"]
    lines = list(problems[:_SHOWN_PROBLEMS])
    if len(problems) > _SHOWN_PROBLEMS:
        lines.append(f"and {len(problems) - _SHOWN_PROBLEMS} more, all of them in results.json")
    if dropped:
        first = next(iter(dropped))
        lines.append(
            f"{sum(dropped.values())} fixations outside their images are left out ({dropped[first]} of {first}, ...); "
            "by file in results.json"
        )
    return lines


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A line per category and method, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

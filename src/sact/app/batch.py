"""Many files: one row each, as a table and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, SactError
from ..files import replacing
from .networks import Served, classify, read_picture
from .times import time_alone

MOST_FILES = 500


@dataclass(frozen=True)
class Row:
    """What a network says about one file.

    Attributes:
        file: name without folder.
        name: of the class; "" for a file that cannot be used.
        score: in [0, 1].
        share: of the dense FLOPs.
        units: mean units run, per block.
        milliseconds: of the network, median of a few runs on this image.
        message: why the file cannot be used, else "".
    """

    file: str
    name: str = ""
    score: float | None = None
    share: float | None = None
    units: tuple[float, ...] = ()
    milliseconds: float | None = None
    message: str = ""


def classify_files(
    served: Served,
    files: Sequence[str | Path],
    budget: float | None = None,
    progress: Callable[[float, str], object] | None = None,
) -> list[Row]:
    """A row per file, in their order; a file that cannot be used says why in its row.

    Raises:
        InputError: no files, or more than `MOST_FILES`.
    """
    if not files:
        raise InputError("no file is chosen; drop some photographs first")
    if len(files) > MOST_FILES:
        raise InputError(f"{len(files)} files are chosen, but the page takes {MOST_FILES}; use sact predict for more")
    rows = []
    for number, file in enumerate(files):
        if progress is not None:
            progress(number / len(files), Path(file).name)
        rows.append(_classify_file(served, Path(file), budget))
    return rows


def _classify_file(served: Served, file: Path, budget: float | None) -> Row:
    try:
        picture = read_picture(file)
        prediction = classify(served, picture, budget)
        seconds = time_alone(served, picture, budget)
    except SactError as error:
        return Row(file.name, message=str(error))
    units = tuple(float(block.units.float().mean()) for block in prediction.ponder.blocks)
    return Row(file.name, prediction.name, prediction.score, prediction.share, units, 1e3 * seconds)


def header(rows: Sequence[Row]) -> list[str]:
    """Names of the table's columns."""
    blocks = max((len(row.units) for row in rows), default=0)
    units = [f"block {number} units" for number in range(1, blocks + 1)]
    return ["file", "class", "score", "FLOPs share", *units, "milliseconds", "message"]


def cells(row: Row, blocks: int) -> list[str]:
    """A row as text, with empty cells where there is nothing to say."""
    units = [f"{value:.3f}" for value in row.units] or [""] * blocks
    score, share = (("" if value is None else f"{value:.4f}") for value in (row.score, row.share))
    milliseconds = "" if row.milliseconds is None else f"{row.milliseconds:.3f}"
    return [row.file, row.name, score, share, *units, milliseconds, row.message]


def write_csv(rows: Sequence[Row], path: Path) -> Path:
    """Write rows under a header, whole or not at all; returns the path."""
    names = header(rows)
    blocks = len(names) - 6
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(cells(row, blocks) for row in rows)
    return path

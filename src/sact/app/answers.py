"""What the page answers: functions from what a visitor chose to HTML. Bad input becomes a message in the page."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from ..errors import SactError
from . import found, pieces
from .batch import classify_files, write_csv
from .networks import Served, classify, find, read_picture
from .times import compare_times

EMPTY = "Drop a photograph on the left, or choose an example."


def answer(served: Served, path: str | None, budget: float | None) -> Iterator[tuple[str, str]]:
    """View and numbers of one photograph: at once without the time, then with it.

    Args:
        served: the network, detector or segmenter.
        path: of the photograph; None where none is chosen.
        budget: None for the one that the network came with.
    """
    if path is None:
        yield pieces.note(EMPTY), ""
        return
    try:
        picture = read_picture(path)
        shown, listed, result = _look(served, picture, budget)
        yield shown, listed + pieces.spent(result, None)
        yield shown, listed + pieces.spent(result, compare_times(served, picture, budget))
    except SactError as error:
        yield pieces.message(str(error)), ""


def _look(served: Served, picture: Image.Image, budget: float | None) -> tuple[str, str, pieces.Result]:
    """What is seen, what is listed beside it, and the result itself."""
    if served.verb == "classify":
        prediction = classify(served, picture, budget)
        return pieces.view(served, picture, prediction), pieces.listing(served, prediction), prediction
    result = find(served, picture, budget)
    return found.view(served, result), found.listing(result), result


def answer_both(
    sides: Sequence[tuple[Served, float | None]], path: str | None
) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """`answer` of two networks or budgets, for the same photograph: both at once without times, then with them."""
    left, right = (answer(served, path, budget) for served, budget in sides)
    first = next(left), next(right)
    yield first
    first = next(left, first[0]), first[1]
    yield first
    yield first[0], next(right, first[1])


def answer_files(
    served: Served,
    files: Sequence[str] | None,
    budget: float | None,
    folder: Path,
    progress: Callable[[float, str], object] | None = None,
) -> tuple[str, str | None]:
    """Table of many files, and the path of the CSV; or a message and None.

    Args:
        served: the network.
        files: paths; None where none is chosen.
        budget: None for the one that the network came with.
        folder: the CSV is written to a new folder in it.
        progress: called with the part that is done and what comes next.
    """
    try:
        rows = classify_files(served, files or [], budget, progress)
        path = write_csv(rows, Path(tempfile.mkdtemp(dir=folder)) / "sact.csv")
    except SactError as error:
        return pieces.message(str(error)), None
    return pieces.table(rows), str(path)

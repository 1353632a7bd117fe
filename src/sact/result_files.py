"""JSON lists that grow image by image, so that memory stays flat over any number of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from .files import replacing

Add: TypeAlias = Callable[..., None]


@contextlib.contextmanager
def json_list(path: Path, before: str = "", after: str = "") -> Iterator[Add]:
    """A function that adds an image's records, any number of them, to a JSON list in a file.

    The file is there when the block ends, whole. When it ends in an error after the function was called, what was added
    is kept; otherwise the file stays as it was.

    Args:
        path: of the file.
        before: JSON in front of the list.
        after: JSON behind it.
    """
    problem: BaseException | None = None
    called = False
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        separator = f"{before}["

        def add(*records: dict[str, Any]) -> None:
            nonlocal called, separator
            called = True
            for record in records:
                file.write(f"{separator}\n{json.dumps(record)}")
                separator = ","

        try:
            yield add
        except BaseException as error:
            if not called:
                raise
            problem = error
        file.write(f"{'' if separator == ',' else separator}\n]{after}\n")
    if problem is not None:
        raise problem


@contextlib.contextmanager
def predictions_file(path: Path, model: str) -> Iterator[Add]:
    """`json_list` of a file that says which model made it: {"model": ..., "predictions": [...]}."""
    with json_list(path, f'{{"model": {json.dumps(model)}, "predictions": ', "}") as add:
        yield add

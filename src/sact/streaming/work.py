"""What images and videos have in common while they are worked on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InputError
from .journal import Journal
from .measuring import Meter
from .progress import Progress
from .sources import Source
from .writing import FORMATS, Format

Item = TypeVar("Item")


@dataclass(frozen=True)
class Wishes:
    """What is wanted of each picture, and of which.

    Attributes:
        formats: any of "npz", "png" and "overlay".
        every: of a video, keep every so manieth frame.
        fps: of a video, keep so many frames per second instead.
        frames_per_file: frames of a video that share an .npz file.
        batch: pictures of the same size that run together.

    Raises:
        InputError: a number is out of range, or a format is unknown.
    """

    formats: tuple[Format, ...] = ("npz",)
    every: int = 1
    fps: float | None = None
    frames_per_file: int = 100
    batch: int = 1

    def __post_init__(self) -> None:
        if not self.formats or set(self.formats) - set(FORMATS):
            raise InputError(f"the formats are {list(self.formats)}; give one or more of {', '.join(FORMATS)}")
        for name in ("every", "frames_per_file", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, but it must be at least 1")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise InputError(f"fps is {self.fps}, but it must be a number above 0")
        if self.fps is not None and self.every != 1:
            raise InputError(f"both every ({self.every}) and fps ({self.fps}) are given; choose one of them")


@dataclass
class Work:
    """What is worked with.

    Attributes:
        meter: measures pictures.
        wishes: what is wanted.
        out: folder of the results.
        journal: what is done.
        progress: how far that is.
        problems: (file, reason) of what could not be read.
    """

    meter: Meter
    wishes: Wishes
    out: Path
    journal: Journal
    progress: Progress
    problems: list[tuple[Source, str]] = field(default_factory=list)


def sizes(size: tuple[int, int], seen: tuple[int, int]) -> dict[str, Any]:
    """(H, W) of a picture, and at which it was seen, as a record has them."""
    return {"width": size[1], "height": size[0], "seen_width": seen[1], "seen_height": seen[0]}


def batches(items: Iterable[Item], alike: Callable[[Item], Hashable], most: int) -> Iterator[list[Item]]:
    """Neighbours that are alike, at most so many at a time."""
    for _, run in groupby(items, alike):
        while group := list(islice(run, most)):
            yield group

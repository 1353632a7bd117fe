"""Images with where people looked, whatever layout they came in."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ..errors import InputError
from ..preprocessing import open_image

Points: TypeAlias = NDArray[np.int32]
"""Fixations in pixels: x and y, [K, 2]."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Stimulus:
    """One image with where people looked.

    Attributes:
        name: category and file, like "Action/001".
        category: what kind of image it is, as the data set says.
        path: of the image.
        size: (height, width) in pixels.
        points: the fixations of all observers together.
        observers: those of each observer alone; empty where they are not known.
        degree: about one degree of visual angle in pixels, the deviation of human maps.
    """

    name: str
    category: str
    path: Path
    size: tuple[int, int]
    points: Points
    observers: tuple[Points, ...]
    degree: float


@dataclass
class FixationSet:
    """A data set of fixations, and what was wrong with it.

    Attributes:
        stimuli: the usable images.
        problems: what was left out and why, a sentence each, with file and field.
        dropped: by file and field, how many fixations were left out since they lie outside their image.
        no_observers: why the observers are not known one by one; "" where they are.
    """

    stimuli: list[Stimulus] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    no_observers: str = ""

    def inside(self, points: ArrayLike, size: tuple[int, int], source: str) -> Points:
        """The points within an image, at whole pixels; the others, NaN among them, are counted.

        Args:
            points: real [K, 2], x and y from 0.
            size: (height, width).
            source: file and field, for the report.
        """
        given = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        height, width = size
        keep = ((given >= 0) & (given < (width, height))).all(axis=1)  # a comparison with NaN is false
        lost = int((~keep).sum())
        if lost:
            self.dropped[source] = self.dropped.get(source, 0) + lost
        return np.floor(given[keep]).astype(np.int32)


def open_stimulus(stimulus: Stimulus) -> Image.Image:
    """The picture as it is stored, since fixations were recorded so.

    Raises:
        InputError: it cannot be read.
    """
    return open_image(stimulus.path, upright=False)


def spread(groups: Mapping[str, Sequence[Item]], limit: int | None) -> list[Item]:
    """At most `limit` items, as evenly from all groups as can be; in the order of the groups."""
    if limit is None:
        return [item for items in groups.values() for item in items]
    turns = zip_longest(*([(name, item) for item in items] for name, items in groups.items()))
    chosen = list(islice((turn for one in turns for turn in one if turn is not None), limit))
    return [item for name in groups for of, item in chosen if of == name]


def by_category(stimuli: Sequence[Stimulus]) -> dict[str, list[Stimulus]]:
    """The stimuli of each category, sorted by its name."""
    names = sorted({stimulus.category for stimulus in stimuli})
    return {name: [stimulus for stimulus in stimuli if stimulus.category == name] for name in names}


def split(stimuli: Sequence[Stimulus], train_share: float, seed: int) -> tuple[list[Stimulus], list[Stimulus]]:
    """Divide stimuli by image inside each category.

    Args:
        stimuli: all of them.
        train_share: of a category's images that parameters are found on, above 0 and below 1; at least one of them, and
            at least one is left. The only image of a category is left.
        seed: which ones.

    Returns:
        The training part and the rest.

    Raises:
        InputError: the share is out of range, or no category has two images.
    """
    if not 0 < train_share < 1:
        raise InputError(f"the training share is {train_share}, but it must lie between 0 and 1")
    train: list[Stimulus] = []
    rest: list[Stimulus] = []
    for category, members in by_category(stimuli).items():
        order = np.random.default_rng([seed, zlib.crc32(category.encode())]).permutation(len(members))
        count = min(max(round(train_share * len(members)), 1), len(members) - 1)
        chosen = set(order[:count].tolist())
        for index, member in enumerate(members):
            (train if index in chosen else rest).append(member)
    if not train:
        raise InputError(
            f"{len(stimuli)} images, none of which shares its category with another, leave nothing to find parameters "
            "on; use more of the data set"
        )
    return train, rest

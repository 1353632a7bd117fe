"""The parts of a data set that are kept apart, and how many of their items are used."""

from __future__ import annotations

from ..errors import InputError

SPLITS = ("train", "val", "test")


def check_split(split: str) -> None:
    """Raise InputError unless there is a split of this name."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")


def used_length(length: int | None, count: int) -> int:
    """How many of `count` items are used: `length`, or all where that is None.

    Raises:
        InputError: there are not so many, or `length` is no positive integer.
    """
    if length is None:
        return count
    if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= count:
        raise InputError(f"length must be from 1 to {count}, the number of images, not {length!r}")
    return length

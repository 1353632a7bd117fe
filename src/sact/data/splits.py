"""The parts of a data set that are kept apart, and how many of their items are used."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import InputError

SPLITS = ("train", "val", "test")


def check_split(split: str) -> None:
    """Raise InputError unless there is a split of this name."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")


def split_by_rank(fractions: Mapping[str, float]) -> dict[str, list[str]]:
    """Divide names among train, val and test in the order of their numbers, so that a handful is divided fairly too.

    Args:
        fractions: name -> a number that depends on it alone; at least 3 names.

    Returns:
        "train", "val" and "test" -> names in order; about 60, 15 and 25 %, none empty.
    """
    ordered = sorted(fractions, key=lambda name: (fractions[name], name))
    test = max(1, round(0.25 * len(ordered)))
    val = max(1, round(0.15 * len(ordered)))
    train = len(ordered) - val - test
    return {"train": ordered[:train], "val": ordered[train : train + val], "test": ordered[train + val :]}


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

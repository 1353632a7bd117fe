"""Fields of JSON entries: whether they are what the COCO format says."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .coco_report import shown

LARGEST = 1e9
"""Numbers of this size and more are no coordinates."""


def is_id(value: object) -> bool:
    """Whether this is a whole number that fits 64 bits."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_name(value: object) -> bool:
    """Whether this is a text that is not empty."""
    return type(value) is str and bool(value.strip())


def is_flag(value: object) -> bool:
    """Whether this is 0 or 1; a missing flag is 0."""
    return value is None or (type(value) in (int, bool) and value in (0, 1))


def is_number(value: object) -> bool:
    """Whether this is a number that can be a coordinate: neither NaN, infinite nor huge."""
    return (type(value) is int or type(value) is float) and -LARGEST < value < LARGEST


def is_box(value: object) -> bool:
    """Whether these are four such numbers."""
    return type(value) is list and len(value) == 4 and all(is_number(each) for each in value)


def wrong_field(entry: object, checks: Mapping[str, Callable[[object], bool]]) -> tuple[str, str] | None:
    """The first field that fails its check, as `.name`, and what stands there; None if all pass.

    Of an entry that is no object the field is empty.
    """
    if type(entry) is not dict:
        return "", shown(entry)
    for name, passes in checks.items():
        if not passes(entry.get(name)):
            return f".{name}", value_of(entry, name)
    return None


def value_of(entry: Mapping[str, object], name: str) -> str:
    """What stands in a field, for a message."""
    return shown(entry[name]) if name in entry else "missing"

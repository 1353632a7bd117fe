"""The fields of a recipe as text, for `sact train --help`."""

from __future__ import annotations

import argparse
import json
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from .recipe import SECTIONS, Recipe

_KINDS = {int: "INT", float: "NUMBER", str: "TEXT", bool: "true|false"}


def describe_fields() -> str:
    """Every field under its section: name, type, description and default, as wide as the terminal."""
    fields = argparse.ArgumentParser(
        add_help=False,
        usage=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34),
    )
    group: Any = fields
    for name, field in Recipe.model_fields.items():
        if name in SECTIONS:
            group = fields.add_argument_group(SECTIONS[name])
        text = field.description or ""
        if field.is_required():
            text += " (required)"
        elif field.default is not None:
            text += f" (default: {field.default if isinstance(field.default, str) else json.dumps(field.default)})"
        group.add_argument(f"--{name}", metavar=_kind(field.annotation), help=text.replace("%", "%%"))
    return fields.format_help()


def _kind(annotation: Any) -> str:
    """What a field holds, None aside, as a reader of YAML would say it."""
    origin, arguments = get_origin(annotation), [part for part in get_args(annotation) if part is not NoneType]
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin is list:
        return f"[{_kind(arguments[0])},...]"
    if origin is dict:
        return "{NAME: VALUE,...}"
    return "|".join(map(_kind, arguments)) if arguments else _KINDS[annotation]

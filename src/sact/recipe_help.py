"""The fields of a recipe as text, for `sact train --help`."""

from __future__ import annotations

import argparse
import json
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from .recipe_fields import RECIPES, SECTIONS, Recipe, own_fields

_KINDS = {int: "INT", float: "NUMBER", str: "TEXT", bool: "true|false"}


def describe_fields() -> str:
    """Every field under its section: name, type, description and default, as wide as the terminal."""
    sections: dict[str, dict[str, FieldInfo]] = {}
    title = ""
    for name, field in Recipe.model_fields.items():
        title = SECTIONS.get(name, title)
        sections.setdefault(title, {})[name] = field
    for task, recipe in RECIPES.items():
        sections[f"task: {task}"] = {name: recipe.model_fields[name] for name in own_fields(recipe)}
    formatter = argparse.HelpFormatter("", max_help_position=34)
    for title, fields in sections.items():
        formatter.start_section(title)
        formatter.add_arguments(_options(fields))
        formatter.end_section()
    return formatter.format_help()


def _options(fields: dict[str, FieldInfo]) -> list[argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    options = []
    for name, field in fields.items():
        text = field.description or ""
        if field.is_required():
            text += " (required)"
        elif field.default is not None:
            text += f" (default: {field.default if isinstance(field.default, str) else json.dumps(field.default)})"
        options.append(parser.add_argument(f"--{name}", metavar=_kind(field.annotation), help=text.replace("%", "%%")))
    return options


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

"""A recipe: one experiment as one flat YAML file. A misspelt field or an impossible value is an error."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from .errors import InputError, RecipeError
from .recipe_fields import (
    RECIPES,
    ClassificationRecipe,
    DetectionRecipe,
    Precision,
    Recipe,
    SegmentationRecipe,
    own_fields,
)

__all__ = [
    "ClassificationRecipe",
    "DetectionRecipe",
    "Precision",
    "Recipe",
    "SegmentationRecipe",
    "dump_recipe",
    "load_recipe",
    "make_recipe",
    "parse_overrides",
]


def load_recipe(path: str | Path, **overrides: Any) -> Recipe:
    """Read a recipe.

    Args:
        path: a YAML file of the fields of a `ClassificationRecipe`, or with `task` of another one.
        **overrides: fields that replace those of the file.

    Raises:
        RecipeError: the file cannot be read, a field is misspelt, missing or out of range.
    """
    path = Path(path)
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error.strerror}; see the folder recipes/") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        raise RecipeError(
            f"the recipe {path} must hold fields like 'model: resnet101', but holds {type(fields).__name__}"
        )
    return make_recipe(fields | overrides, str(path))


def make_recipe(fields: dict[str, Any], source: str = "recipe") -> Recipe:
    """Validate fields; `source` is named in errors.

    Raises:
        RecipeError: a field is misspelt, missing or out of range, or the network they describe cannot exist.
    """
    task = fields.get("task", "classification")
    kind = RECIPES.get(task) if isinstance(task, str) else None
    if kind is None:
        raise RecipeError(f"{source}: task is {task!r}, but it must be one of {', '.join(RECIPES)}")
    try:
        recipe = kind.model_validate(fields)
    except ValidationError as error:
        raise RecipeError(f"{source}: {_explain(error, kind)}") from error
    try:
        with torch.device("meta"):  # shapes without weights, which take no time
            recipe.create(recipe.num_classes or 2)
    except InputError as error:
        raise RecipeError(f"{source}: {error}") from error
    return recipe


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """`--tau 0.01 --units [3,4]` or `--tau=0.01` as recipe fields; values are read as YAML.

    Raises:
        RecipeError: an argument is not of this form, or names no field.
    """
    overrides: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise RecipeError(f'unexpected argument "{flag}"; recipe fields are overridden like --tau 0.01')
        name, equals, value = flag[2:].partition("=")
        name = name.replace("-", "_")
        known = next((kind.model_fields[name] for kind in RECIPES.values() if name in kind.model_fields), None)
        if known is None:
            raise RecipeError(_unknown(name))
        if not equals:
            if not rest:
                raise RecipeError(f"--{name} needs a value, for instance --{name}={known.default}")
            value = rest.pop(0)
        try:
            overrides[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f'--{name} has the value "{value}", which is not valid YAML') from error
    return overrides


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every field included."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False)


def _explain(error: ValidationError, kind: type[Recipe]) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown(name, kind)
    if first["type"] == "missing":
        return f"the field {name} is missing; add '{name}: ...'" + (
            f" (one of {', '.join(kind.data_names)})" if name == "data" else ""
        )
    message = first["msg"].removeprefix("Value error, ")
    return f"{name} is {first['input']!r}: {message[0].lower()}{message[1:]}" if name else message


def _unknown(name: str, kind: type[Recipe] | None = None) -> str:
    """What to say of a name that a kind of recipe, or any recipe, lacks."""
    owners = [task for task, other in RECIPES.items() if name in own_fields(other)]
    if kind is not None and owners:
        task = kind.model_fields["task"].default
        return f"{name} is a field of {' and '.join(owners)}, but the task is {task}; leave it out, or set task"
    kinds = RECIPES.values() if kind is None else [kind]
    fields = list(dict.fromkeys(name for each in kinds for name in each.model_fields))
    near = difflib.get_close_matches(name, fields, n=1)
    return f'there is no field "{name}"; ' + (
        f"did you mean {near[0]}?" if near else f"the fields are {', '.join(fields)}"
    )

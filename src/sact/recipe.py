"""A recipe: one experiment as one flat YAML file. A misspelt field or an impossible value is an error."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .data import create_dataset, list_datasets
from .engines import NormStatistics
from .errors import InputError, RecipeError
from .models import create_model
from .models.network import MIN_SIZE
from .scores import Halting

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]


SECTIONS = {
    "model": "the network, arguments of sact.create_model",
    "data": "the data, arguments of sact.data.create_dataset",
    "optimizer": "the optimisation",
    "precision": "the machine",
}
"""The groups of fields, by the first field of each."""


class Recipe(BaseModel):
    """Everything that defines a training run. Steps are optimiser steps, epochs are passes over the training set."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str = Field(description='a name of sact.list_models(), or "resnet" or "cifar_resnet" with units')
    units: list[int] | None = Field(None, description="units per block; by default those of the named model")
    base_channels: int | None = Field(None, description="width of the first block; by default the paper's")
    num_classes: int | None = Field(None, ge=2, description="by default the data set's number of classes")
    halting: Halting = Field("none", description="act: per image; sact: per position; none: every unit runs")
    eps: float = Field(0.01, gt=0, lt=1, description="a position halts once its cumulative score reaches 1 - eps")
    tau: float = Field(
        0.0, ge=0, le=1, description="weight of the ponder cost in the loss; larger means less computation"
    )
    init: str | None = Field(
        None, description="checkpoint to start from, by default none; a plain one gives an adaptive network fresh heads"
    )

    data: str = Field(description=f"a data set: {', '.join(list_datasets())}")
    data_dir: str | None = Field(
        None, description="folder of the data, for scenes of the photographs; by default where they lie on this machine"
    )
    data_options: dict[str, Any] = Field({}, description="further arguments of the data set, like scale of scenes")
    image_size: int | None = Field(
        None, ge=MIN_SIZE, description="side of the images in pixels; by default the data set's"
    )
    train_length: int | None = Field(None, ge=1, description="images per epoch; by default all")
    val_length: int | None = Field(None, ge=1, description="validation images; by default all")
    cache: bool = Field(False, description="draw the training images once and keep them as uint8 on disk")

    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="adamw takes momentum as its first beta")
    lr: float = Field(0.1, gt=0, description="learning rate, with one_cycle its peak")
    score_lr_scale: float = Field(1.0, gt=0, description="learning rate of the score heads relative to the rest")
    momentum: float = Field(0.9, ge=0, lt=1, description="of the optimiser")
    weight_decay: float = Field(2e-4, ge=0, description="on convolution weights only, as in the paper")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of each label spread over all classes")
    batch_size: int = Field(128, ge=1, description="images per step and process")
    max_epochs: int | None = Field(None, ge=1, description="length of the run; give either this or max_steps")
    max_steps: int | None = Field(None, ge=1, description="length of the run; give either this or max_epochs")
    schedule: Literal["step", "one_cycle", "constant"] = Field(
        "step", description="how lr changes: drops at milestones, rises and falls once, not at all"
    )
    milestones: list[int] = Field([], description="where lr drops, in steps if max_steps is given, else in epochs")
    gamma: float = Field(0.1, gt=0, le=1, description="factor of lr at each milestone")
    norm_momentum: float | None = Field(
        None, gt=0, le=1, description="momentum of the norms' running statistics; by default the model family's"
    )
    freeze_norms: bool = Field(
        False, description="keep norms in evaluation mode, as when fine-tuning a detector; steps then skip what halted"
    )
    norm_statistics: NormStatistics = Field(
        "all",
        description="positions whose statistics norms take in training: all, as the authors; active: those that are "
        "read, so that steps skip what has halted, which changes the method",
    )

    precision: Precision = Field("32-true", description="of the arithmetic, as in Lightning")
    accelerator: str = Field("auto", description="cpu, cuda, mps, ..., as in Lightning")
    devices: int | Literal["auto"] = Field("auto", description="how many devices train together")
    channels_last: bool = Field(True, description="memory format in which convolutions are fastest")
    workers: int = Field(0, ge=0, description="processes that load data; 0: the training process itself")
    seed: int = Field(0, ge=0, description="of the weights, the order of images, augmentation, and scenes")
    log_every: int = Field(50, ge=1, description="steps between two rows of the log")

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.data not in list_datasets():
            raise ValueError(f'data is "{self.data}", but it must name a data set: {", ".join(list_datasets())}')
        taken = sorted(set(inspect.signature(create_dataset).parameters) & set(self.data_options))
        if taken:
            raise ValueError(
                f"data_options may not hold {taken[0]}; there are the fields data, data_dir, image_size, train_length, "
                "val_length and seed"
            )
        if self.cache and self.data != "scenes":
            raise ValueError(f'cache is true, but data is "{self.data}"; only scenes are drawn, leave cache out')
        if (self.max_epochs is None) == (self.max_steps is None):
            raise ValueError("give either max_epochs or max_steps (and not both)")
        if self.tau > 0 and self.halting == "none":
            raise ValueError(f'tau is {self.tau}, but halting is "none"; set halting to "act" or "sact"')
        if self.norm_statistics == "active" and (self.halting != "sact" or self.freeze_norms):
            raise ValueError(
                f'norm_statistics is "active", but halting is "{self.halting}" and freeze_norms {self.freeze_norms}; '
                'it is for halting "sact" with norms that are not frozen'
            )
        return self


def load_recipe(path: str | Path, **overrides: Any) -> Recipe:
    """Read a recipe.

    Args:
        path: a YAML file of `Recipe` fields.
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
    try:
        recipe = Recipe.model_validate(fields)
    except ValidationError as error:
        raise RecipeError(f"{source}: {_explain(error)}") from error
    try:
        with torch.device("meta"):  # shapes without weights: instant
            create_model(recipe.model, recipe.halting, units=recipe.units, base_channels=recipe.base_channels)
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
        if name not in Recipe.model_fields:
            raise RecipeError(_unknown(name))
        if not equals:
            if not rest:
                raise RecipeError(f"--{name} needs a value, for instance --{name}={Recipe.model_fields[name].default}")
            value = rest.pop(0)
        try:
            overrides[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f'--{name} has the value "{value}", which is not valid YAML') from error
    return overrides


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every field included."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False)


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown(name)
    if first["type"] == "missing":
        return f"the field {name} is missing; add '{name}: ...'" + (
            f" (one of {', '.join(list_datasets())})" if name == "data" else ""
        )
    message = first["msg"].removeprefix("Value error, ")
    return f"{name} is {first['input']!r}: {message[0].lower()}{message[1:]}" if name else message


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, Recipe.model_fields, n=1)
    return f'there is no field "{name}"; ' + (
        f"did you mean {near[0]}?" if near else f"the fields are {', '.join(Recipe.model_fields)}"
    )

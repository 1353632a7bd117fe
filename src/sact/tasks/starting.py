"""What detectors and segmenters begin with: the classes of the data, and the weights of `init`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

from torch import Tensor

from ..checkpoints import from_pretrained
from ..errors import CheckpointError, InputError, RecipeError
from ..models.dense import DenseModel
from ..recipe import Recipe

Model = TypeVar("Model", bound=DenseModel)


def name_classes(recipe: Recipe, dataset: Any) -> list[str]:
    """Names of the model's classes: those of the data, and numbers for what `num_classes` has beyond them.

    Raises:
        RecipeError: `num_classes` is less than in the data.
    """
    known, wanted = dataset.num_classes, recipe.num_classes or dataset.num_classes
    if wanted < known:
        raise RecipeError(f"num_classes is {wanted}, but {recipe.data} has {known}; leave it out")
    return [*dataset.class_names, *map(str, range(known, wanted))]


def make_dense_model(recipe: Recipe, dataset: Any, shaping: Sequence[str]) -> Any:
    """The recipe's detector or segmenter for the classes of its data, started from `init` if given; see `start`."""
    names = name_classes(recipe, dataset)
    return start(cast(DenseModel, recipe.create(len(names), names)), recipe, shaping)


def start(model: Model, recipe: Recipe, shaping: Sequence[str]) -> Model:
    """A fresh model with the weights of the recipe's `init`, if there is one.

    A classifier gives its extractor, and so does a model of another kind. One of the same kind gives all but what its
    number of classes shapes, if that differs.

    Args:
        model: as the recipe describes it.
        recipe: `init` is read from it.
        shaping: fields of the model's configuration that shape what is behind the extractor.

    Raises:
        RecipeError: `init` is a model of the same kind, but of another shape.
        CheckpointError: nothing usable is there, or the extractor is another one.
    """
    if recipe.init is None:
        return model
    try:
        source = from_pretrained(recipe.init)
        model.start_from(source)
    except (InputError, CheckpointError) as error:
        raise CheckpointError(f"init is {recipe.init}: {error}") from error
    if isinstance(source, type(model)):
        for name in shaping:
            theirs, ours = getattr(source.config, name), getattr(model.config, name)
            if theirs != ours:
                raise RecipeError(f"init is {recipe.init}, whose {name} is {theirs}, but the recipe's is {ours}")
        model.load_state_dict(_fitting(source.state_dict(), model.state_dict()), strict=False)
    return model


def check_classes(model: DenseModel, dataset: Any) -> None:
    """Raise InputError if a data set has other classes than a model knows."""
    theirs, ours = list(dataset.class_names), model.class_names
    if ours is None or theirs == ours[: len(theirs)]:
        return
    known = f"{len(ours)} classes, {', '.join(ours[:3])}, ..."
    raise InputError(
        f"the data set has {len(theirs)} classes, {', '.join(theirs[:3])}, ..., but the model knows {known}; "
        "evaluate it on the data it was trained for"
    )


def _fitting(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that have a place of their shape; score heads of another kind of halting have other names or shapes."""
    return {name: tensor for name, tensor in theirs.items() if name in ours and tensor.shape == ours[name].shape}

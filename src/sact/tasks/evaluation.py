"""Evaluate a model of any task: its results and cost over a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import lightning as L
from torch import nn
from torch.utils.data import Dataset

from ..data import create_dataset
from ..errors import InputError, RecipeError
from ..recipe_fields import RECIPES, Precision
from .loops import calm, interruptible, make_loader, make_trainer
from .task import Measures, Task, task_name, task_of


class Evaluation(L.LightningModule):
    """Runs a model over batches and measures it.

    Args:
        model: of the task, compiled or not.
        task: what it is for.
        measures: of that model.
    """

    def __init__(self, model: nn.Module, task: Task, measures: Measures) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.measures = measures

    def test_step(self, batch: Any, batch_index: int) -> None:
        """Measure a batch."""
        self.task.measure(self.model, batch, self.measures)


def evaluate(
    model: nn.Module,
    dataset: Dataset[Any],
    batch_size: int | None = None,
    precision: str = "32-true",
    accelerator: str = "auto",
    workers: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Results and cost of a model over a data set.

    Args:
        model: a network, detector or segmenter, or what `sact.compile` made of one; it is put into evaluation mode.
        dataset: of its task. For a classifier, elements start with (image, label).
        batch_size: images at a time; by default 100 for a classifier, else 1, so that no image is padded to another.
        precision: "32-true", "bf16-mixed", "16-mixed" or "64-true".
        accelerator: as in Lightning.
        workers: processes that load data.
        quiet: no progress bar.

    Returns:
        What the task measures (see `Accuracy`, `DetectionMeasures`, `SegmentationMeasures`), and the fields of
        `PonderStatistics.compute`.

    Raises:
        InputError: the model is not for this data set, or that is empty.
        RecipeError: `batch_size`, `precision`, `accelerator` or `workers` is impossible.
    """
    task = task_of(model)
    if batch_size is None:
        batch_size = task.EVAL_BATCH or 100
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if not isinstance(value, int) or value < least:
            raise RecipeError(f"{name} is {value!r}, but it must be a whole number of at least {least}")
    if precision not in get_args(Precision):
        raise RecipeError(f"precision is {precision!r}, but it must be one of {', '.join(get_args(Precision))}")
    task.check_data(model, dataset)
    if not len(dataset):  # type: ignore[arg-type]  # map-style data sets have a length
        raise InputError("the data set is empty; there is nothing to evaluate")
    measures = task.make_measures(model, dataset)
    evaluation = Evaluation(model, task, measures).eval()
    with calm(), interruptible():
        trainer = make_trainer(
            accelerator,
            devices=1,
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=not quiet,
        )
        trainer.test(evaluation, make_loader(dataset, batch_size, workers, task.collate), verbose=False)
    return measures.compute()


def held_out_data(
    model: nn.Module,
    recipe: Mapping[str, Any],
    data: str | None = None,
    data_dir: str | None = None,
    split: str = "val",
    size: int | None = None,
    length: int | None = None,
) -> Any:
    """The data that a model is evaluated on: that of its recipe, unless told otherwise.

    Args:
        model: of any task.
        recipe: the model's own, as a dict; empty if it has none.
        data: name of another data set, of which the recipe knows nothing.
        data_dir: another folder of the data.
        split: "train", "val" or "test".
        size: another side of a classifier's images.
        length: number of images; None for all.

    Raises:
        InputError: there is no name, the data set is for another task, or it cannot be had.
    """
    name = data or recipe.get("data")
    if name is None:
        raise InputError("this network does not remember its data; name a data set with --data")
    task = task_name(model)
    known = RECIPES[task].data_names
    if name not in known:
        raise InputError(f"{name!r} is no data set for {task}; choose one of {', '.join(known)}")
    if name != recipe.get("data"):
        recipe = {}
    return create_dataset(
        name,
        split,
        size=recipe.get("image_size") if size is None else size,
        data_dir=recipe.get("data_dir") if data_dir is None else data_dir,
        seed=recipe.get("seed", 0),
        length=length,
        **recipe.get("data_options", {}),
    )

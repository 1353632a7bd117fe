"""What differs between the tasks, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

from PIL import Image
from torch import Tensor, nn

from ..models import AdaptiveNetwork
from ..models.dense import DenseModel
from ..ponder import Ponder


class Step(NamedTuple):
    """What a training step is made of.

    Attributes:
        loss: of the task, [], without the ponder cost.
        ponder: what the network spent.
        values: scalars for the log, by name.
    """

    loss: Tensor
    ponder: Ponder
    values: dict[str, Tensor]


class Measures(Protocol):
    """Results over a data set, gathered over batches and processes; a module of metrics."""

    def compute(self) -> dict[str, Any]: ...
    def reset(self) -> None: ...


class Task(Protocol):
    """A task is a module of this package with these functions; `recipe` is one of that task.

    Attributes:
        EVAL_BATCH: images at a time in evaluation; None: as many as in training.
    """

    EVAL_BATCH: int | None

    def make_model(self, recipe: Any, dataset: Any) -> AdaptiveNetwork | DenseModel:
        """The recipe's model, started from `init` if that is given, for the classes of a data set."""

    def pretrained(self, model: Any) -> nn.Module:
        """The part of a model whose norms a trained network has set, and which may therefore stay frozen."""

    def make_train_run(self, model: Any, recipe: Any) -> Callable[..., Any]:
        """What training steps call: the model, its weights shared, in an engine that skips what has halted."""

    def train_step(self, run: Callable[..., Any], batch: Any, recipe: Any) -> Step:
        """The loss of a batch."""

    def make_measures(self, model: Any, dataset: Any) -> Measures:
        """What a model is measured by on a data set."""

    def measure(self, run: Callable[..., Any], batch: Any, measures: Any) -> None:
        """Run a model in evaluation mode and add a batch."""

    def headlines(self, results: dict[str, Any]) -> dict[str, float]:
        """What of the results is logged after every validation, by name."""

    def collate(self, items: list[Any]) -> Any:
        """A batch of elements of the data set."""

    def check_data(self, model: Any, dataset: Any) -> None:
        """Raise InputError if the model cannot be measured on a data set."""

    def draw_sheet(self, model: Any, dataset: Any, count: int) -> Image.Image:
        """A contact sheet of the first images of a data set with their ponder maps, by an adaptive model."""


def find_task(name: str) -> Task:
    """The task of that name."""
    return cast(Task, import_module(f".{name}", __package__))


def task_of(model: nn.Module) -> Task:
    """The task that a model is for."""
    return find_task(task_name(model))


def task_name(model: nn.Module) -> str:
    """The name, in recipes, of the task that a model is for."""
    if not isinstance(model, DenseModel):
        return "classification"
    return "detection" if model.config.family == "faster_rcnn" else "segmentation"

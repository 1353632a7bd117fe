"""Evaluate a network: accuracy and cost over a data set."""

from __future__ import annotations

from typing import Any, get_args

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics.classification import MulticlassAccuracy

from ..compiled import CompiledNetwork
from ..errors import InputError, RecipeError
from ..models import AdaptiveNetwork
from ..ponder import Ponder
from ..recipe import Precision
from .loops import calm, interruptible, make_loader, make_trainer
from .statistics import PonderStatistics


class Measures(nn.Module):
    """Accuracy and ponder statistics of a classifier, gathered over batches and processes.

    Args:
        network: whose classes and blocks they are of.
    """

    def __init__(self, network: AdaptiveNetwork) -> None:
        super().__init__()
        classes = network.config.num_classes
        self.top1 = MulticlassAccuracy(classes, average="micro")
        self.top5 = MulticlassAccuracy(classes, average="micro", top_k=min(5, classes))
        self.statistics = PonderStatistics(len(network.blocks))

    def update(self, logits: Tensor, labels: Tensor, ponder: Ponder) -> None:
        """Add a batch: logits [N, num_classes], labels int64 [N], and what it spent."""
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)
        self.statistics.update(ponder)

    def compute(self) -> dict[str, Any]:
        """`top1`, `top5`, and the fields of `PonderStatistics.compute`, as plain numbers; reduced over processes."""
        accuracy = {"top1": float(self.top1.compute()), "top5": float(self.top5.compute())}
        return accuracy | self.statistics.compute()

    def reset(self) -> None:
        """Forget everything counted so far."""
        for metric in (self.top1, self.top5, self.statistics):
            metric.reset()


class Evaluation(L.LightningModule):
    """Runs a network over batches and measures it.

    Args:
        model: a network, compiled or not.
        measures: of that network.
    """

    def __init__(self, model: AdaptiveNetwork | CompiledNetwork, measures: Measures) -> None:
        super().__init__()
        self.model = model
        self.measures = measures

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Measure a batch."""
        images, labels = batch
        logits, ponder = self.model(images.contiguous(memory_format=torch.channels_last), return_ponder=True)
        self.measures.update(logits, labels, ponder)


def evaluate(
    model: AdaptiveNetwork | CompiledNetwork,
    dataset: Dataset[Any],
    batch_size: int = 100,
    precision: str = "32-true",
    accelerator: str = "auto",
    workers: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Accuracy and cost of a network over a data set.

    Args:
        model: a `Network`, or what `sact.compile` made of one; it is put into evaluation mode.
        dataset: elements start with (image, label).
        batch_size: images at a time.
        precision: "32-true", "bf16-mixed", "16-mixed" or "64-true".
        accelerator: as in Lightning.
        workers: processes that load data.
        quiet: no progress bar.

    Returns:
        `top1`, `top5`, and the fields of `PonderStatistics.compute`.

    Raises:
        InputError: the network has no classifier, or the data set has more classes than it or is empty.
        RecipeError: `batch_size`, `precision`, `accelerator` or `workers` is impossible.
    """
    network = model.model if isinstance(model, CompiledNetwork) else model
    network.check_classifies()
    if not len(dataset):  # type: ignore[arg-type]  # map-style data sets have a length
        raise InputError("the data set is empty; there is nothing to evaluate")
    classes = getattr(dataset, "num_classes", None)
    if classes is not None and classes > network.config.num_classes:
        raise InputError(
            f"the data set has {classes} classes, but the network knows {network.config.num_classes}; "
            "evaluate it on the data it was trained for"
        )
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if not isinstance(value, int) or value < least:
            raise RecipeError(f"{name} is {value!r}, but it must be a whole number of at least {least}")
    if precision not in get_args(Precision):
        raise RecipeError(f"precision is {precision!r}, but it must be one of {', '.join(get_args(Precision))}")
    measures = Measures(network)
    evaluation = Evaluation(model, measures).eval()
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
        trainer.test(evaluation, make_loader(dataset, batch_size, workers), verbose=False)
    return measures.compute()

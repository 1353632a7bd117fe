"""Classification: one class per image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchmetrics.classification import MulticlassAccuracy

from ..checkpoints import from_pretrained
from ..compiled import CompiledNetwork
from ..engines import Run, prepare
from ..errors import InputError, RecipeError
from ..maps import contact_sheet
from ..models import AdaptiveNetwork, Network
from ..models.dense import extractor
from ..ponder import Ponder
from ..preprocessing import to_bytes
from ..recipe import ClassificationRecipe
from .statistics import PonderStatistics
from .task import Step

Batch = tuple[Tensor, Tensor]
Classifier = AdaptiveNetwork | CompiledNetwork

EVAL_BATCH = None


class Accuracy(nn.Module):
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


def make_model(recipe: ClassificationRecipe, dataset: Any) -> Network:
    """The recipe's network, started from `init` if given, ready for its data.

    Raises:
        RecipeError: `init` is a network of other units, width or classes, or there are fewer classes than in the data.
    """
    classes = recipe.num_classes or dataset.num_classes
    if classes < dataset.num_classes:
        raise RecipeError(f"num_classes is {classes}, but {recipe.data} has {dataset.num_classes}; leave it out")
    model = recipe.create(classes)
    if recipe.init is not None:
        started = from_pretrained(recipe.init, halting=recipe.halting, eps=recipe.eps)
        if not isinstance(started, Network):
            raise RecipeError(f"init is {recipe.init}, {_kind(started)}")
        theirs, ours = started.config.to_dict(), model.config.to_dict()
        for name in theirs:
            if theirs[name] != ours[name]:
                raise RecipeError(
                    f"init is {recipe.init}, whose {name} is {theirs[name]}, but the recipe's is {ours[name]}"
                )
        model = started
    model.preprocessing = dict(dataset.preprocessing)
    model.class_names = [*dataset.class_names, *map(str, range(dataset.num_classes, classes))]
    return model


def pretrained(model: Network) -> nn.Module:
    """All of it."""
    return model


def make_train_run(model: Network, recipe: ClassificationRecipe) -> Run:
    """The network in the engine that trains."""
    return prepare(model, "gather", norm_statistics=recipe.norm_statistics)


def train_step(run: Run, batch: Batch, recipe: ClassificationRecipe) -> Step:
    """Cross-entropy."""
    images, labels = batch
    logits, ponder = run(images.contiguous(memory_format=torch.channels_last) if recipe.channels_last else images)
    assert isinstance(logits, Tensor)
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
    return Step(loss, ponder, {"acc": (logits.argmax(1) == labels).float().mean()})


def make_measures(model: Classifier, dataset: Any) -> Accuracy:
    """Accuracy."""
    return Accuracy(extractor(model))


def measure(run: Classifier, batch: Batch, measures: Accuracy) -> None:
    """Add a batch."""
    images, labels = batch
    logits, ponder = run(images.contiguous(memory_format=torch.channels_last), return_ponder=True)
    assert isinstance(logits, Tensor)
    measures.update(logits, labels, ponder)


def headlines(results: dict[str, Any]) -> dict[str, float]:
    """Top-1 and top-5 accuracy."""
    return {"acc": results["top1"], "top5": results["top5"]}


def collate(items: list[tuple[Any, ...]]) -> Any:
    """Batches hold images and labels alone; scenes also carry a mask, which training does not read."""
    return default_collate([item[:2] for item in items])


def check_data(model: Classifier, dataset: Any) -> None:
    """Raise InputError if there is no classifier, or the data set has more classes than it knows."""
    network = extractor(model)
    network.check_classifies()
    classes = getattr(dataset, "num_classes", None)
    if classes is not None and classes > network.config.num_classes:
        raise InputError(
            f"the data set has {classes} classes, but the network knows {network.config.num_classes}; "
            "evaluate it on the data it was trained for"
        )


def draw_sheet(model: Network, dataset: Any, count: int) -> Image.Image:
    """Images and their ponder maps."""
    images = torch.stack([dataset[index][0] for index in range(min(count, len(dataset)))])
    parameter = next(model.parameters())
    _, ponder = model(images.to(parameter.device, parameter.dtype), return_ponder=True)
    maps = ponder.map(tuple(images.shape[-2:])).float().cpu().numpy()
    pictures = [_to_picture(image) for image in images]
    captions = [f"ponder cost {cost.mean():.1f}" for cost in maps]
    return contact_sheet(list(zip(pictures, maps, captions, strict=True)), columns=3)


def _to_picture(image: Tensor) -> NDArray[np.uint8]:
    """Any float image [3, H, W] as uint8 [H, W, 3], stretched to its own range: normalisations differ."""
    low, high = float(image.min()), float(image.max())
    picture: NDArray[np.uint8] = to_bytes((image - low) / max(high - low, 1e-6)).permute(1, 2, 0).numpy()
    return picture


def _kind(model: nn.Module) -> str:
    if isinstance(model, AdaptiveNetwork):
        return "an adapted network; sact adapt teaches those"
    return "a detector or segmenter; a classifier starts from a classifier"

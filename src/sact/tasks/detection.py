"""Detection: boxes of objects."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..compiled import compile
from ..data import CocoDetection
from ..dense_pictures import Sheet, detection_panel
from ..models import Detector
from ..models.dense import extractor
from ..preprocessing import to_bytes
from ..recipe import DetectionRecipe
from .detection_measures import DetectionMeasures
from .starting import check_classes, make_dense_model
from .task import Step

Target = dict[str, Any]
Batch = tuple[list[Tensor], list[Target]]
TrainRun = Callable[[list[Tensor], list[Target]], Any]

EVAL_BATCH = 1
SHOWN_SCORE = 0.5
"""Boxes of a lower score are left out of pictures."""

SHAPING = ("form", "fpn_channels", "representation_size", "anchors")


def make_model(recipe: DetectionRecipe, dataset: Any) -> Detector:
    """The recipe's detector, started from `init` if given, for the classes of its data.

    Raises:
        RecipeError: `init` is a detector of another shape, or there are fewer classes than in the data.
        CheckpointError: nothing usable is at `init`.
        InputError: an option is out of range.
    """
    detector: Detector = make_dense_model(recipe, dataset, SHAPING)
    return detector


def pretrained(model: Detector) -> Detector:
    """All of it: what is fresh has no batch norms."""
    return model


def make_train_run(model: Detector, recipe: DetectionRecipe) -> TrainRun:
    """The detector in the engine that trains, with the images of a step at one of the recipe's sizes for training."""
    detector = compile(model, "gather", norm_statistics=recipe.norm_statistics)
    detector.transform = copy.copy(model.transform)
    detector.training = True

    def run(images: list[Tensor], targets: list[Target]) -> Any:
        drawn = int(torch.randint(len(recipe.min_sizes), ()))
        detector.transform.min_size = (recipe.min_sizes[drawn],)
        return detector(images, targets, return_ponder=True)

    return run


def train_step(run: TrainRun, batch: Batch, recipe: DetectionRecipe) -> Step:
    """The four losses of Faster R-CNN."""
    losses, ponder = run(*batch)
    return Step(sum(losses.values()), ponder, losses)


def make_measures(model: Detector, dataset: Any) -> DetectionMeasures:
    """Mean average precision."""
    return DetectionMeasures(model.class_names, len(extractor(model).blocks))


def measure(run: Detector, batch: Batch, measures: DetectionMeasures) -> None:
    """Add a batch."""
    images, targets = batch
    found, ponder = run(images, return_ponder=True)
    measures.update(found, targets, ponder)


def headlines(results: dict[str, Any]) -> dict[str, float]:
    """Mean average precision; NaN without objects."""
    return {name: float("nan") if results[name] is None else results[name] for name in ("map", "map50")}


collate = CocoDetection.collate
check_data = check_classes


def draw_sheet(model: Detector, dataset: Any, count: int) -> Image.Image:
    """Images with the boxes found, and their ponder maps."""
    parameter = next(model.parameters())
    sheet = Sheet()
    for index in range(min(count, len(dataset))):
        image = dataset[index][0]
        (found,), ponder = model([image.to(parameter.device, parameter.dtype)], return_ponder=True)
        sure = found["scores"] >= SHOWN_SCORE
        boxes, labels = found["boxes"][sure].cpu(), found["labels"][sure].tolist()
        picture = Image.fromarray(to_bytes(image).permute(1, 2, 0).numpy())
        panel = detection_panel(picture, boxes.float().numpy(), labels, _texts(model.class_names, labels))
        costs = ponder.maps()[0].float().cpu().numpy()
        sheet.add(panel, costs, f"ponder cost {costs.mean():.1f}")
    return sheet.draw()


def _texts(names: Sequence[str] | None, labels: list[int]) -> list[str]:
    return [str(label) if names is None else names[label - 1] for label in labels]

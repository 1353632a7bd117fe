"""Segmentation: one class per pixel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..compiled import compile
from ..data import CocoSegmentation
from ..data.coco_masks import IGNORED
from ..dense_pictures import Sheet, segmentation_panel
from ..models import Segmenter
from ..models.dense import extractor
from ..preprocessing import to_bytes
from ..recipe import SegmentationRecipe
from .segmentation_measures import SegmentationMeasures
from .starting import check_classes, make_dense_model
from .task import Step

Batch = tuple[Tensor, Tensor]
TrainRun = Callable[[Tensor], Any]

EVAL_BATCH = 1
SHAPING = ("head",)


def make_model(recipe: SegmentationRecipe, dataset: Any) -> Segmenter:
    """The recipe's segmenter, started from `init` if given, for the classes of its data.

    Raises:
        RecipeError: `init` is a segmenter with another head, or there are fewer classes than in the data.
        CheckpointError: nothing usable is at `init`.
        InputError: an option is out of range.
    """
    segmenter: Segmenter = make_dense_model(recipe, dataset, SHAPING)
    return segmenter


def pretrained(model: Segmenter) -> nn.Module:
    """The extractor and its last norm; those of the head are fresh."""
    return nn.ModuleList([extractor(model), model.post])


def make_train_run(model: Segmenter, recipe: SegmentationRecipe) -> TrainRun:
    """The segmenter in the engine that trains."""
    run = compile(model, "gather", norm_statistics=recipe.norm_statistics)
    return partial(run, return_ponder=True)


def train_step(run: TrainRun, batch: Batch, recipe: SegmentationRecipe) -> Step:
    """Cross-entropy over the pixels whose class is known."""
    images, masks = batch
    logits, ponder = run(images)
    known = masks != IGNORED
    total = F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="sum")
    right = (logits.detach().argmax(1) == masks) & known
    count = known.sum().clamp(min=1)  # a crop may hold nothing that is known
    return Step(total / count, ponder, {"acc": right.sum() / count})


def make_measures(model: Segmenter, dataset: Any) -> SegmentationMeasures:
    """Mean intersection over union."""
    names = model.class_names or list(map(str, range(model.config.num_classes)))
    return SegmentationMeasures(names, len(extractor(model).blocks))


def measure(run: Segmenter, batch: Batch, measures: SegmentationMeasures) -> None:
    """Add a batch."""
    images, masks = batch
    logits, ponder = run(images, return_ponder=True)
    measures.update(logits, masks, ponder)


def headlines(results: dict[str, Any]) -> dict[str, float]:
    """Mean intersection over union, and the share of right pixels."""
    names = {"miou": "miou", "acc": "accuracy"}
    return {short: float("nan") if results[name] is None else results[name] for short, name in names.items()}


collate = CocoSegmentation.collate
check_data = check_classes


def draw_sheet(model: Segmenter, dataset: Any, count: int) -> Image.Image:
    """Images with the classes found, and their ponder maps."""
    parameter = next(model.parameters())
    sheet = Sheet()
    for index in range(min(count, len(dataset))):
        image = dataset[index][0]
        logits, ponder = model(image[None].to(parameter.device, parameter.dtype), return_ponder=True)
        picture = Image.fromarray(to_bytes(image).permute(1, 2, 0).numpy())
        panel = segmentation_panel(picture, logits.argmax(1)[0].cpu().numpy().astype(np.uint8))
        costs = ponder.map(tuple(image.shape[-2:]))[0].float().cpu().numpy()
        sheet.add(panel, costs, f"ponder cost {costs.mean():.1f}")
    return sheet.draw()

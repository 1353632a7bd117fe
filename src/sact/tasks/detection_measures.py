"""Measures of a detector: mean average precision, FLOPs of its extractor, ponder cost inside and outside the boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

from ..errors import require
from ..padded import PaddedPonder
from ..ponder import Ponder
from .statistics import PonderStatistics, mean_std

_NUMBERS = {
    "map": "map", "map50": "map_50", "map75": "map_75",
    "map_small": "map_small", "map_medium": "map_medium", "map_large": "map_large",
    "mar_1": "mar_1", "mar_10": "mar_10", "mar_100": "mar_100",
    "mar_small": "mar_small", "mar_medium": "mar_medium", "mar_large": "mar_large",
}  # fmt: skip
"""COCO's twelve numbers: names in results, and torchmetrics'."""


class DetectionMeasures(nn.Module):
    """Mean average precision and ponder statistics of a detector, gathered over batches and processes.

    Args:
        class_names: name of each class, that of label 1 first; None to name classes by their labels.
        blocks: number of blocks of the extractor.

    Raises:
        MissingExtraError: faster-coco-eval is not installed.
    """

    def __init__(self, class_names: Sequence[str] | None, blocks: int) -> None:
        super().__init__()
        require("faster_coco_eval", "detection")
        self.class_names = class_names
        # Everything per category can be read from the extended summary; asking for it would evaluate once per category.
        self.precision = MeanAveragePrecision(backend="faster_coco_eval", extended_summary=True)
        self.precision.warn_on_many_detections = False
        self.statistics = ExtractorStatistics(blocks)

    @torch.no_grad()
    def update(
        self, detections: Sequence[dict[str, Tensor]], targets: Sequence[dict[str, Any]], ponder: Ponder | None = None
    ) -> None:
        """Add a batch of N images.

        Args:
            detections: for each image "boxes" float [K, 4] as x1, y1, x2, y2, "labels" int64 [K], "scores" float [K];
                of more than 100 per image those of highest score count.
            targets: for each image "boxes" and "labels" likewise, and "iscrowd" [K] and "area" [K] (by default zeros,
                and the boxes' areas). Detections inside a crowd region of their class are neither right nor wrong.
            ponder: what the extractor spent, [N]; None to measure boxes alone.
        """
        found = [_chosen(each, ("boxes", "labels", "scores")) for each in detections]
        known = [_chosen(each, ("boxes", "labels", "iscrowd", "area")) for each in targets]
        self.precision.update(found, known)
        if ponder is not None:
            self.statistics.update(ponder)
            self.statistics.add_boxes(ponder, [each["boxes"] for each in targets])

    def compute(self) -> dict[str, Any]:
        """The results so far, as plain numbers; reduced over processes.

        Returns:
            - `map` (mean over IoU thresholds 0.5 to 0.95), `map50`, `map75`, `map_small`, `map_medium`, `map_large`
              (objects of less than 32 x 32, less than 96 x 96, and more pixels), and the mean recalls `mar_1`,
              `mar_10`, `mar_100` (of so many detections per image), `mar_small`, `mar_medium`, `mar_large`: in [0, 1];
              None where there is no such object;
            - `per_category`: name -> `map` and `map50`, of the categories that occur;
            - with ponder, the fields of `ExtractorStatistics.compute`.
        """
        results = self.precision.compute()
        numbers: dict[str, Any] = {name: _or_none(float(results[key])) for name, key in _NUMBERS.items()}
        numbers["per_category"] = self._per_category(results)
        return numbers | (self.statistics.compute() if self.statistics.images > 0 else {})

    def _per_category(self, results: dict[str, Any]) -> dict[str, dict[str, float]]:
        if "precision" not in results:
            return {}
        # [IoU thresholds, recalls, categories, areas (all first), detections per image (100 last)]; -1 without objects.
        precision = results["precision"][:, :, :, 0, -1]
        found = {}
        for position, label in enumerate(results["classes"].flatten().tolist()):
            values = precision[:, :, position]
            if (values > -1).any():
                found[self._name(label)] = {"map": float(values.mean()), "map50": float(values[0].mean())}
        return found

    def _name(self, label: int) -> str:
        known = self.class_names is not None and 1 <= label <= len(self.class_names)
        return self.class_names[label - 1] if self.class_names is not None and known else str(label)

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.precision.reset()
        self.statistics.reset()


class ExtractorStatistics(PonderStatistics):
    """Ponder statistics over images of different sizes, with boxes of their objects.

    `compute` gives the fields of `PonderStatistics`, and

    - `share` and `share_std`: mean and standard deviation over images of FLOPs relative to the plain extractor's on
      that image;
    - `cost`: of the network, mean over images, without the padding where that is known (`PaddedPonder`);
    - `ponder_inside`, `ponder_outside`: mean of the ponder cost map over the pixels inside any box, and outside all;
      means over the images that have both. None in a plain network.
    """

    ratios: Tensor
    image_cost: Tensor
    sides: Tensor
    with_boxes: Tensor

    def __init__(self, blocks: int) -> None:
        super().__init__(blocks)
        for name, shape in (("ratios", (2,)), ("image_cost", ()), ("sides", (2,)), ("with_boxes", ())):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, ponder: Ponder) -> None:
        """Add what a batch spent."""
        super().update(ponder)
        self.ratios += self._sums(ponder.flops / ponder.dense_flops)
        if ponder.cost is not None:
            self.image_cost += ponder.cost.sum().to(self.image_cost)

    @torch.no_grad()
    def add_boxes(self, ponder: Ponder, boxes: Sequence[Tensor]) -> None:
        """Add the sides of a batch's images by their boxes, each float [K, 4] as x1, y1, x2, y2 in its pixels."""
        if ponder.cost is None or not isinstance(ponder, PaddedPonder):
            return
        for costs, of_image in zip(ponder.maps(), boxes, strict=True):
            inside = pixels_inside(of_image, costs.shape[0], costs.shape[1]).to(costs.device)
            self.add_sides(costs[inside], costs[~inside])

    def add_sides(self, inside: Tensor, outside: Tensor) -> None:
        """Add the ponder cost at an image's pixels inside of objects and outside, [P] and [Q]."""
        if len(inside) and len(outside):
            self.sides += torch.stack([inside.mean(), outside.mean()]).to(self.sides)
            self.with_boxes += 1

    def compute(self) -> dict[str, Any]:
        """The statistics so far, as plain numbers."""
        share = mean_std(self.ratios, self.images)
        numbers = super().compute() | {"share": share["mean"], "share_std": share["std"]}
        sides: list[float | None] = [None, None]
        if numbers["cost"] is not None:
            numbers["cost"] = float(self.image_cost / self.images)
            if self.with_boxes > 0:
                sides = (self.sides / self.with_boxes).tolist()
        return numbers | {"ponder_inside": sides[0], "ponder_outside": sides[1]}


def pixels_inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels have their centre inside any of the boxes.

    Args:
        boxes: float [K, 4], x1, y1, x2, y2 in pixels.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        bool [height, width].
    """
    inside = torch.zeros(height, width, dtype=torch.bool)
    for left, top, right, bottom in (boxes.cpu() - 0.5).ceil().clamp(min=0).long().tolist():
        inside[top:bottom, left:right] = True
    return inside


def _chosen(values: dict[str, Any], names: Sequence[str]) -> dict[str, Tensor]:
    """These entries, where they are there; half precision as float32, which the evaluator needs."""
    chosen = {name: values[name] for name in names if name in values}
    return {name: value.float() if value.is_floating_point() else value for name, value in chosen.items()}


def _or_none(value: float) -> float | None:
    """COCO's -1 stands for no object of this kind."""
    return None if value < 0 or math.isnan(value) else value

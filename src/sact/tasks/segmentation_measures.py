"""Measures of a segmenter: mean IoU, FLOPs of its extractor, ponder cost inside and outside of objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from ..data.coco_masks import IGNORED
from ..ponder import Ponder
from .detection_measures import ExtractorStatistics


class SegmentationMeasures(nn.Module):
    """Intersection over union and ponder statistics of a segmenter, gathered over batches and processes.

    Args:
        class_names: of all classes, the background first.
        blocks: number of blocks of the extractor.
    """

    def __init__(self, class_names: Sequence[str], blocks: int) -> None:
        super().__init__()
        self.class_names = class_names
        self.confusion = MulticlassConfusionMatrix(len(class_names), ignore_index=IGNORED)
        self.statistics = ExtractorStatistics(blocks)

    def update(self, logits: Tensor, masks: Tensor, ponder: Ponder) -> None:
        """Add a batch: logits [N, num_classes, H, W], masks int64 [N, H, W], 255 where not known, and what it spent."""
        self.confusion.update(logits.argmax(1), masks)
        self.statistics.update(ponder)
        if ponder.cost is not None:
            size = masks.shape[-2], masks.shape[-1]
            for costs, classes in zip(ponder.map(size), masks, strict=True):
                self.statistics.add_sides(costs[(classes > 0) & (classes != IGNORED)], costs[classes == 0])

    def compute(self) -> dict[str, Any]:
        """The results so far, as plain numbers; reduced over processes.

        Returns:
            - `miou`: mean of intersection over union, both counted over the whole data set, over the classes that occur
              or were found, the latter with 0; None where no pixel's class is known;
            - `accuracy`: share of pixels of the right class; None likewise;
            - `per_class`: name -> intersection over union, of the same classes;
            - the fields of `ExtractorStatistics.compute`, inside and outside being objects and background; `cost` is
              the network's, the padding of images to multiples of 32 included.
        """
        counts = self.confusion.compute().double()
        right, union = counts.diag(), counts.sum(0) + counts.sum(1) - counts.diag()
        iou = right / union
        occurs = union > 0
        return {
            "miou": float(iou[occurs].mean()) if occurs.any() else None,
            "accuracy": float(right.sum() / counts.sum()) if occurs.any() else None,
            "per_class": {self.class_names[index]: float(iou[index]) for index in occurs.nonzero().flatten().tolist()},
        } | self.statistics.compute()

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.confusion.reset()
        self.statistics.reset()

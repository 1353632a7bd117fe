"""Detections in COCO's result format, which its evaluation server and tools read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def results_to_coco(
    image_id: int | str, detections: Mapping[str, Tensor], category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """The detections of one image as entries of a result file.

    Args:
        image_id: of the image; a name where it has no number.
        detections: "boxes" float [K, 4] as x1, y1, x2, y2 in pixels, "labels" int64 [K] from 1, "scores" float [K].
        category_ids: COCO's id of each class, that of label 1 first; None where they are the labels.

    Returns:
        For each detection `image_id`, `category_id`, `bbox` as x, y, width, height, in hundredths of a pixel like
        COCO's own, and `score` to five decimals.
    """
    boxes = detections["boxes"].detach().cpu().double()
    corners_and_sizes = boxes.clone()
    corners_and_sizes[:, 2:] -= boxes[:, :2]
    rows = zip(corners_and_sizes.tolist(), detections["labels"].tolist(), detections["scores"].tolist(), strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": label if category_ids is None else category_ids[label - 1],
            "bbox": [round(value, 2) for value in box],
            "score": round(score, 5),
        }
        for box, label, score in rows
    ]

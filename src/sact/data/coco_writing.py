"""Annotations in COCO's format from masks."""

from __future__ import annotations

from typing import Any

import numpy as np


def encode_runs(mask: np.ndarray) -> dict[str, Any]:
    """A mask as COCO's uncompressed run lengths: of zeros and ones in turn, zeros first, down the columns.

    Args:
        mask: bool [H, W].

    Returns:
        {"size": [H, W], "counts": [...]}.
    """
    flat = np.concatenate([[False], mask.ravel(order="F")])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], ends, [mask.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def decode_runs(runs: dict[str, Any]) -> np.ndarray:
    """The mask, bool [H, W], of COCO's uncompressed run lengths."""
    height, width = runs["size"]
    values = np.arange(len(runs["counts"])) % 2 == 1
    return np.repeat(values, runs["counts"]).reshape((height, width), order="F")


def bounding_box(mask: np.ndarray) -> list[int]:
    """Left, top, width and height in pixels of a mask, bool [H, W], that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def annotation(mask: np.ndarray, category_id: int, **fields: Any) -> dict[str, Any]:
    """What COCO says about an instance: category, box, area in pixels and mask; with further fields after these."""
    return {
        "category_id": category_id,
        "bbox": bounding_box(mask),
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": encode_runs(mask),
        **fields,
    }

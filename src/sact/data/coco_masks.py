"""Segmentations of COCO-format files as masks: one object's, or the classes of all positions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError, require

IGNORED = 255
"""Class index of positions without a known class; losses and measures leave them out."""
_FARTHEST = 10
"""So many times the image's longer side corners may lie away: the time of drawing grows with the edges."""
_UNUSABLE = (ValueError, TypeError, OverflowError, RuntimeError)

Segmentation = list[NDArray[np.float32]] | dict[str, Any]
"""Polygons, each x, y, x, y, ... in pixels; or compressed runs, `{"size": [H, W], "counts": bytes}`."""


def _utilities() -> Any:
    return require("faster_coco_eval.core.mask", "detection")


def read_segmentation(value: object, width: int, height: int) -> Segmentation | None:
    """The `segmentation` of an annotation, checked and in compact form.

    Args:
        value: what the file has: a list of polygons, or runs, compressed or not.
        width: of the image in pixels.
        height: of the image in pixels.

    Returns:
        None where it is missing, has no polygon of three corners, has numbers that are not finite, corners ten times
        the image's longer side away from it, or runs that do not fill the image.
    """
    try:
        if isinstance(value, dict):
            return _read_runs(value, width, height)
        return _read_polygons(value, width, height)
    except _UNUSABLE:
        return None


def _read_polygons(value: object, width: int, height: int) -> Segmentation | None:
    if not isinstance(value, list) or not value:
        return None
    polygons = []
    farthest = _FARTHEST * max(width, height)
    for each in value:
        corners = np.asarray(each, dtype=np.float64)
        if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not (np.abs(corners) < farthest).all():
            return None
        polygons.append(corners.astype(np.float32))
    return polygons


def _read_runs(value: dict[str, Any], width: int, height: int) -> Segmentation | None:
    if list(value["size"] if isinstance(value.get("size"), list) else []) != [height, width]:
        return None
    counts = value.get("counts")
    if isinstance(counts, list):
        if sum(counts) != width * height or min(counts) < 0:
            return None
        runs: dict[str, Any] = _utilities().frPyObjects(value, height, width)
    else:
        runs = {"size": [height, width], "counts": counts}
    _utilities().decode(runs)  # raises where the runs do not fill the image
    return runs


def draw_mask(segmentation: Segmentation | None, width: int, height: int) -> NDArray[np.uint8]:
    """The mask of one object.

    Args:
        segmentation: as `read_segmentation` gives it; None for an empty mask.
        width: of the image in pixels.
        height: of the image in pixels.

    Returns:
        [height, width], 1 on the object.
    """
    if segmentation is None:
        return np.zeros((height, width), np.uint8)
    masks = _utilities()
    if isinstance(segmentation, list):
        segmentation = masks.merge(masks.frPyObjects([each.tolist() for each in segmentation], height, width))
    mask: NDArray[np.uint8] = masks.decode(segmentation)
    return mask


def draw_semantic(
    segmentations: Sequence[Segmentation | None],
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    areas: NDArray[np.float32],
    crowds: NDArray[np.bool_],
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """The class of every position of an image, from its objects.

    Of overlapping objects the one of smaller area is on top. Crowd regions, and the boxes of objects without a
    segmentation, are ignored except where another object lies.

    Args:
        segmentations: of K objects, as `read_segmentation` gives them.
        boxes: [K, 4], x1, y1, x2, y2 in pixels.
        labels: [K], from 1.
        areas: [K] in pixels.
        crowds: [K], whether it is a crowd region.
        size: width and height of the image.

    Returns:
        [height, width]: 0 for background, a label, or 255 where the class is not known.
    """
    width, height = size
    classes = np.zeros((height, width), np.uint8)
    vague = [crowd or segmentation is None for crowd, segmentation in zip(crowds, segmentations, strict=True)]
    for index in sorted(range(len(labels)), key=lambda index: (not vague[index], -areas[index])):
        if segmentations[index] is None:
            left, top = np.floor(boxes[index, :2]).astype(int)
            right, bottom = np.ceil(boxes[index, 2:]).astype(int)
            classes[top:bottom, left:right] = IGNORED
        else:
            inside = draw_mask(segmentations[index], width, height) > 0
            classes[inside] = IGNORED if vague[index] else labels[index]
    return classes


def read_semantic(path: Path, classes: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read a mask of class indices.

    Args:
        path: an 8-bit PNG, grey or with a palette.
        classes: [n], the label of each index that the file may have beside 255.
        size: width and height of the image.

    Returns:
        [height, width] of labels, 255 where the class is not known.

    Raises:
        InputError: the file cannot be read, is of another kind or size, or has an index that is no class.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.mode not in ("L", "P") or image.size != size:
                raise InputError(
                    f"the semantic mask {str(path)!r} is {image.mode} of {image.width} x {image.height} pixels, but "
                    f"the image has {size[0]} x {size[1]}; give an 8-bit grey PNG of class indices of that size"
                )
            indices = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the semantic mask {str(path)!r} cannot be read ({error}); write it again") from error
    wrong = indices[(indices >= len(classes)) & (indices != IGNORED)]
    if wrong.size:
        raise InputError(
            f"the semantic mask {str(path)!r} has the index {int(wrong[0])}, but there are {len(classes)} classes; "
            "use 0 for background, the position in categories + 1, and 255 where the class is not known"
        )
    table = np.full(256, IGNORED, np.uint8)
    table[: len(classes)] = classes
    labels: NDArray[np.uint8] = table[indices]
    return labels

"""Data sets whose categories are one class."""

from __future__ import annotations

from pathlib import Path

import torch

from sact.data.coco import CocoDetection, CocoSegmentation


def test_boxes_of_one_class(composed_set: Path) -> None:
    told, merged = (CocoDetection(composed_set, "train", class_agnostic=value) for value in (False, True))
    assert merged.class_names == ("object",)
    assert merged.category_ids == (1,)
    labels = torch.cat([told[index][1]["labels"] for index in range(len(told))])
    assert len(labels.unique()) > 1
    for index in range(len(told)):
        ours, theirs = merged[index][1], told[index][1]
        assert torch.equal(ours["boxes"], theirs["boxes"])
        assert torch.equal(ours["labels"], torch.ones_like(theirs["labels"]))


def test_masks_of_one_class(composed_set: Path) -> None:
    told, merged = (CocoSegmentation(composed_set, "val", class_agnostic=value) for value in (False, True))
    assert merged.class_names == ("background", "object")
    for index in range(len(told)):
        ours, theirs = merged[index][1], told[index][1]
        assert torch.equal(ours, torch.where((theirs > 0) & (theirs < 255), 1, theirs))

"""Measures of a segmenter where pixels or classes are missing; tests/test_dense_tasks.py has the usual case."""

from __future__ import annotations

import json
import math

import torch
import torch.nn.functional as F
from torch import Tensor

import sact
from sact.flops import BlockFlops, UnitFlops
from sact.results_text import describe_results
from sact.tasks import segmentation
from sact.tasks.segmentation_measures import SegmentationMeasures


def measured(found: Tensor, masks: Tensor) -> SegmentationMeasures:
    """After a batch whose network has one block of two units, one of which is computed."""
    cost = torch.full(masks.shape, 2.0)
    size = masks.shape[-2], masks.shape[-1]
    block = BlockFlops((UnitFlops(((0, 6),)),) * 2, size, size)
    measures = SegmentationMeasures(["a", "b", "c"], 1)
    ponder = sact.Ponder([sact.BlockPonder(torch.ones(masks.shape, dtype=torch.int32), cost, block)], 12)
    measures.update(F.one_hot(found, 3).permute(0, 3, 1, 2).float(), masks, ponder)
    return measures


def test_nothing_is_known() -> None:
    results = measured(torch.zeros(1, 2, 4).long(), torch.full((1, 2, 4), 255)).compute()
    assert results["miou"] is None and results["accuracy"] is None and results["per_class"] == {}
    json.dumps(results, allow_nan=False)
    assert describe_results(results).startswith("mean IoU -   pixels -\n")
    headlines = segmentation.headlines(results)
    assert list(headlines) == ["miou", "acc"] and all(math.isnan(value) for value in headlines.values())


def test_a_class_that_is_only_found_counts() -> None:
    """Of eight pixels of class a one is taken for c: 7/8 and 0; b plays no part."""
    found = torch.zeros(1, 2, 4).long()
    found[0, 0, 0] = 2
    results = measured(found, torch.zeros(1, 2, 4).long()).compute()
    assert results["per_class"] == {"a": 7 / 8, "c": 0} and results["miou"] == 7 / 16
    assert segmentation.headlines(results) == {"miou": 7 / 16, "acc": 7 / 8}

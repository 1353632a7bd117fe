"""Mean average precision against cases computed by hand, and the ponder statistics that stand beside it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from sact.data.coco_results import results_to_coco
from sact.flops import BlockFlops, UnitFlops
from sact.padded import PaddedPonder
from sact.ponder import BlockPonder
from sact.tasks.detection_measures import DetectionMeasures, pixels_inside

ONE, OTHER = (0, 0, 40, 40), (50, 50, 90, 90)


def detected(*boxes: tuple[float, ...], scores: list[float], labels: list[int] | None = None) -> dict[str, Tensor]:
    return known(*boxes, labels=labels) | {"scores": torch.tensor(scores)}


def known(*boxes: tuple[float, ...], labels: list[int] | None = None, **fields: list[float]) -> dict[str, Tensor]:
    target = {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)}
    target["labels"] = torch.tensor(labels or [1] * len(boxes), dtype=torch.int64)
    return target | {name: torch.tensor(values) for name, values in fields.items()}


def measure(detections: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> dict[str, Any]:
    measures = DetectionMeasures(["cat", "dog"], blocks=1)
    for detection, target in zip(detections, targets, strict=True):
        measures.update([detection], [target])
    return measures.compute()


def test_perfect_detections() -> None:
    detections = [detected(ONE, OTHER, scores=[0.9, 0.8], labels=[1, 2]), detected(OTHER, scores=[0.7], labels=[2])]
    results = measure(detections, [known(ONE, OTHER, labels=[1, 2]), known(OTHER, labels=[2])])
    assert results["map"] == results["map50"] == results["map75"] == results["mar_100"] == 1.0
    assert results["per_category"] == {"cat": {"map": 1.0, "map50": 1.0}, "dog": {"map": 1.0, "map50": 1.0}}
    assert json.loads(json.dumps(results)) == results


def test_a_missed_object() -> None:
    """Precision is 1 up to recall 1/2, which are 51 of the 101 recalls 0, 0.01, ... 1."""
    results = measure([detected(ONE, scores=[0.9])], [known(ONE, OTHER)])
    assert results["map"] == pytest.approx(51 / 101) and results["mar_100"] == pytest.approx(0.5)


@pytest.mark.parametrize(("score", "expected"), [(0.9, 0.5), (0.7, 1.0)])
def test_a_false_detection(score: float, expected: float) -> None:
    """Before the right one it halves the precision at every recall; after it, it costs nothing."""
    results = measure([detected(ONE, OTHER, scores=[0.8, score])], [known(ONE)])
    assert results["map"] == pytest.approx(expected)


def test_thresholds_of_overlap() -> None:
    """A box of 31 of 50 columns has an overlap of 0.62: right at the thresholds 0.5, 0.55 and 0.6 of ten."""
    results = measure([detected((0, 0, 31, 40), scores=[0.9])], [known((0, 0, 50, 40))])
    assert results["map"] == pytest.approx(0.3)
    assert results["map50"] == pytest.approx(1.0) and results["map75"] == pytest.approx(0.0)
    assert results["per_category"]["cat"] == pytest.approx({"map": 0.3, "map50": 1.0})


@pytest.mark.parametrize(("crowd", "expected"), [(1, 1.0), (0, 51 / 101 / 3)])
def test_detections_in_a_crowd_do_not_count(crowd: int, expected: float) -> None:
    """Two of three detections lie in a region of 100 x 100.

    Without the flag the region is a missed object and they are false: the right one comes third, with precision 1/3 at
    recalls up to 1/2.
    """
    detection = detected((110, 0, 150, 40), (120, 50, 160, 90), ONE, scores=[0.9, 0.8, 0.7])
    target = known(ONE, (100, 0, 200, 100), iscrowd=[0, crowd], area=[1600, 10000])
    assert measure([detection], [target])["map"] == pytest.approx(expected)


def test_sizes_are_those_of_the_annotation() -> None:
    """An object of 900 square pixels in a box of 1600 is small (below 32 x 32); without an area its box decides."""
    by_area = measure([detected(ONE, scores=[0.9])], [known(ONE, area=[900.0])])
    assert by_area["map_small"] == 1.0 and by_area["map_medium"] is None
    by_box = measure([detected(ONE, scores=[0.9])], [known(ONE)])
    assert by_box["map_small"] is None and by_box["map_medium"] == 1.0


def test_images_without_objects() -> None:
    nothing = known()
    results = measure([detected(scores=[]), detected(ONE, scores=[0.9])], [nothing, known(ONE)])
    assert results["map"] == 1.0 and list(results["per_category"]) == ["cat"]
    assert measure([detected(scores=[])], [nothing])["map"] is None
    # A detection where nothing is counts as false.
    results = measure([detected(ONE, scores=[0.95]), detected(ONE, scores=[0.9])], [nothing, known(ONE)])
    assert results["map"] == pytest.approx(0.5)


def ponder(costs: list[list[float]], units: list[list[int]], size: tuple[int, int]) -> PaddedPonder:
    """One image of `size`, padded to 8 x 8, in a block of two units of 10 FLOPs per position at 2 x 2 positions."""
    block = BlockFlops((UnitFlops(((0, 10),)), UnitFlops(((0, 10),))), (2, 2), (2, 2))
    spent = BlockPonder(torch.tensor(units, dtype=torch.int32)[None], torch.tensor(costs)[None], block)
    return PaddedPonder([spent], 20, (8, 8), [size], [size])


def test_ponder_inside_and_outside() -> None:
    measures = DetectionMeasures(None, blocks=1)
    # The box covers the first of four quadrants: 3 inside, (1 + 2 + 1) / 3 outside.
    whole = ponder([[3.0, 1.0], [2.0, 1.0]], [[2, 1], [2, 1]], (8, 8))
    measures.update([detected(scores=[])], [known((0, 0, 4, 4))], whole)
    # The right half is padding: columns 4 to 7 do not exist. 2 inside, 1 outside.
    narrow = ponder([[2.0, 9.0], [1.0, 9.0]], [[1, 1], [1, 1]], (8, 4))
    measures.update([detected(scores=[])], [known((0, 0, 4, 4))], narrow)
    # Neither has an image without objects, nor one that is full.
    measures.update([detected(scores=[])], [known()], whole)
    measures.update([detected(scores=[])], [known((0, 0, 8, 8))], whole)
    results = measures.compute()
    assert results["ponder_inside"] == pytest.approx((3 + 2) / 2)
    assert results["ponder_outside"] == pytest.approx((4 / 3 + 1) / 2)
    # Costs: the mean 7/4 over positions, three times; the two positions that see the narrow image cost 3/2.
    assert results["cost"] == pytest.approx((3 * 7 / 4 + 3 / 2) / 4)


def test_flops_are_relative_to_each_image() -> None:
    """The plain extractor spends 20 + 2 x 4 x 10 = 100 on each; six of eight units 80, four of eight 60."""
    measures = DetectionMeasures(None, blocks=1)
    for units in ([[2, 1], [2, 1]], [[1, 1], [1, 1]]):
        measures.update([detected(scores=[])], [known()], ponder([[1.5, 1.5], [1.5, 1.5]], units, (8, 8)))
    results = measures.compute()
    assert results["share"] == pytest.approx(0.7) and results["share_std"] == pytest.approx(0.1)
    assert results["flops"] == pytest.approx({"mean": 70, "std": 10}) and results["dense_flops"] == 100
    assert results["ponder_inside"] is None and results["ponder_outside"] is None
    assert results["blocks"][0]["units"]["mean"] == pytest.approx(1.25)


def test_plain_networks_have_no_ponder_cost() -> None:
    measures = DetectionMeasures(None, blocks=1)
    plain = ponder([[1.0, 1.0], [1.0, 1.0]], [[2, 2], [2, 2]], (8, 8))
    plain.blocks[0].cost = None
    measures.update([detected(ONE, scores=[0.5])], [known(ONE)], plain)
    results = measures.compute()
    assert results["share"] == 1.0 and results["cost"] is None and results["ponder_inside"] is None
    measures.reset()
    measures.update([detected(scores=[])], [known(ONE)])
    assert measures.compute()["map"] == 0.0 and "share" not in measures.compute()


def test_pixels_inside_are_those_whose_centre_is() -> None:
    inside = pixels_inside(torch.tensor([[0.6, 1.5, 3.4, 2.5], [-5.0, 3.0, 1.0, 99.0]]), 4, 5)
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[1, 1:3] = True  # centres 0.5 ... 3.5: 1.5 and 2.5 across, 1.5 down
    expected[3, 0] = True
    assert torch.equal(inside, expected)
    assert not pixels_inside(torch.zeros(0, 4), 4, 5).any()


def test_results_in_coco_format() -> None:
    detection = detected((1.004, 2.0, 11.5, 22.256), scores=[0.1234567], labels=[3])
    expected = {"image_id": 9, "category_id": 7, "bbox": [1.0, 2.0, 10.5, 20.26], "score": 0.12346}
    assert results_to_coco(9, detection, [1, 2, 7]) == [expected]
    assert results_to_coco("cat.jpg", detection)[0]["category_id"] == 3
    assert results_to_coco(9, detected(scores=[]), [1]) == []

"""Fixations drawn inside objects: a set in cat2000's layout from composed images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matio", reason="mat-io, which writes cat2000's observers, needs Python 3.11")

from sact import InputError
from sact.data.coco import CocoDetection
from sact.saliency.datasets import read_fixations
from sact.saliency.fixations import open_stimulus
from sact.saliency.object_fixations import make_fixation_set


def test_fixations_lie_on_objects(composed_set: Path, tmp_path: Path) -> None:
    folder = make_fixation_set(composed_set, tmp_path / "set", observers=3, fixations=5)
    found = read_fixations("cat2000", folder)
    assert not found.problems and not found.dropped and not found.no_observers
    images = CocoDetection(composed_set, "test", masks=True)
    masks = [target["masks"].numpy().astype(bool) for _, target in (images[index] for index in range(len(images)))]
    assert len(found.stimuli) == sum(bool(one.any()) for one in masks)
    pictures = [(image.permute(1, 2, 0).numpy() * 255).round() for image, _ in (images[i] for i in range(len(images)))]
    for stimulus in found.stimuli:
        shown = np.asarray(open_stimulus(stimulus))
        (index,) = [number for number, picture in enumerate(pictures) if np.array_equal(picture, shown)]
        assert stimulus.category == f"objects_{len(masks[index])}"
        on_object = masks[index].any(axis=0)
        assert on_object[stimulus.points[:, 1], stimulus.points[:, 0]].all()
        assert [len(one) for one in stimulus.observers] == [5, 5, 5]
        assert {tuple(one) for one in stimulus.points} == {tuple(one) for one in np.concatenate(stimulus.observers)}


def test_the_seed_decides(composed_set: Path, tmp_path: Path) -> None:
    sets = [
        make_fixation_set(composed_set, tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    points = [[one.points.tolist() for one in read_fixations("cat2000", folder).stimuli] for folder in sets]
    assert points[0] == points[1] != points[2]


def test_a_set_is_not_written_over(composed_set: Path, tmp_path: Path) -> None:
    (tmp_path / "trainSet").mkdir()
    with pytest.raises(InputError, match="holds a fixation set already"):
        make_fixation_set(composed_set, tmp_path)
    with pytest.raises(InputError, match="0 observers"):
        make_fixation_set(composed_set, tmp_path / "other", observers=0)

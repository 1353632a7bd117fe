"""What a prediction of fixations is held against: people."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..drawing import FloatMap
from ..errors import require
from .fixations import Points, Stimulus


class OneHuman(NamedTuple):
    """One observer as a prediction for the others."""

    prediction: FloatMap
    others: Points


def human_map(points: Points, size: tuple[int, int], sigma: float) -> FloatMap:
    """Fixations as a map: their counts, blurred by a Gaussian (reflected at the border).

    Args:
        points: [K, 2].
        size: (height, width).
        sigma: its deviation in pixels.
    """
    ndimage = require("scipy.ndimage", "saliency")
    counts = np.zeros(size)
    np.add.at(counts, (points[:, 1], points[:, 0]), 1.0)
    result: FloatMap = ndimage.gaussian_filter(counts, sigma, mode="reflect")
    return result


def one_human(stimulus: Stimulus, random: np.random.Generator) -> OneHuman | None:
    """An observer drawn at random, and the fixations of all others; None if fewer than two looked at the image."""
    looked = [points for points in stimulus.observers if len(points)]
    if len(looked) < 2:
        return None
    chosen = int(random.integers(len(looked)))
    others = np.concatenate([points for index, points in enumerate(looked) if index != chosen])
    return OneHuman(human_map(looked[chosen], stimulus.size, stimulus.degree), others)

"""From a ponder map to a saliency map: a Gaussian blur and a linear mix with a centre prior, found on training images.

The paper leaves open how exactly; both parameters are explicit here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..drawing import FloatMap
from ..errors import InputError, require
from .fixations import Points, Stimulus
from .measures import auc_judd

PonderMap = Callable[[Image.Image], FloatMap]
"""From a picture to the ponder map of the network for it, at the size that the network saw."""


@dataclass(frozen=True)
class Parameters:
    """What makes a saliency map of a ponder map.

    Attributes:
        blur: deviation of the Gaussian in pixels of the ponder map.
        centre_weight: of the centre prior, 0 to 1; the map has the rest.
        centre: the centre prior's deviations in x and y, as shares of the image's sides.
    """

    blur: float
    centre_weight: float
    centre: tuple[float, float]

    def __post_init__(self) -> None:
        if not 0 <= self.blur < float("inf"):
            raise InputError(f"the blur is {self.blur}, but it must be a number of pixels from 0 on")
        if not 0 <= self.centre_weight <= 1:
            raise InputError(f"the weight of the centre prior is {self.centre_weight}, but it must lie in [0, 1]")


def blurred(ponder: FloatMap, sigma: float) -> FloatMap:
    """A map after a Gaussian blur (the border continued), scaled to [0, 1]; a constant one becomes 0."""
    ndimage = require("scipy.ndimage", "saliency")
    smooth = ndimage.gaussian_filter(ponder, sigma, mode="nearest") if sigma else ponder
    low, high = float(smooth.min()), float(smooth.max())
    # What blurring a constant map leaves of rounding is no structure.
    flat = high - low <= 1e-9 * max(abs(low), abs(high))
    result: FloatMap = np.zeros(smooth.shape) if flat else (smooth - low) / (high - low)
    return result


def centre_prior(size: tuple[int, int], deviation: tuple[float, float]) -> FloatMap:
    """A Gaussian around the centre of an image of (height, width), 1 there."""
    height, width = size
    x = ((np.arange(width) + 0.5) / width - 0.5) / deviation[0]
    y = ((np.arange(height) + 0.5) / height - 0.5) / deviation[1]
    prior: FloatMap = np.exp(-0.5 * (x[None] ** 2 + y[:, None] ** 2))
    return prior


def mix(smooth: FloatMap, prior: FloatMap, weight: float) -> FloatMap:
    """`weight` parts of a centre prior, and the rest of a map."""
    return (1 - weight) * smooth + weight * prior


def resized(values: FloatMap, size: tuple[int, int]) -> FloatMap:
    """A map at (height, width), bilinear."""
    if values.shape == size:
        return values
    picture = Image.fromarray(values.astype(np.float32)).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(picture, dtype=np.float64)


def saliency_map(ponder: FloatMap, size: tuple[int, int], parameters: Parameters) -> FloatMap:
    """The prediction of where people look, in [0, 1].

    Args:
        ponder: the ponder map, real [h, w].
        size: (height, width) of the image.
        parameters: of this function.

    Source: section 4 (saliency); the form of its post-processing is ours.
    """
    smooth = resized(blurred(ponder, parameters.blur), size)
    return mix(smooth, centre_prior(size, parameters.centre), parameters.centre_weight)


def fit_centre(stimuli: Sequence[Stimulus]) -> tuple[float, float]:
    """Deviations in x and y of all fixations from the centre, as shares of the images' sides.

    Every image counts as much as another.
    """
    squares = [
        (((stimulus.points + 0.5) / stimulus.size[::-1] - 0.5) ** 2).mean(axis=0)
        for stimulus in stimuli
        if len(stimulus.points)
    ]
    x, y = np.sqrt(np.mean(squares, axis=0)).clip(1e-3)
    return float(x), float(y)


def search(
    train: Iterator[tuple[Stimulus, FloatMap]],
    blurs: Sequence[float],
    weights: Sequence[float],
    centre: tuple[float, float],
) -> tuple[NDArray[np.float64], int]:
    """Try all pairs of parameters.

    Args:
        train: images with their ponder maps; read once, one at a time.
        blurs: deviations of the Gaussian to try.
        weights: of the centre prior to try.
        centre: the centre prior's deviations.

    Returns:
        AUC-Judd at the ponder maps' size, mean over images, float64 [blurs, weights], and how many images there were.
    """
    total, count = np.zeros((len(blurs), len(weights))), 0
    for stimulus, ponder in train:
        size = (ponder.shape[0], ponder.shape[1])
        points = scaled_points(stimulus.points, stimulus.size, size)
        prior = centre_prior(size, centre)
        smooth = [blurred(ponder, blur) for blur in blurs]
        values = np.array([[auc_judd(mix(one, prior, weight), points) for weight in weights] for one in smooth])
        if not np.isnan(values).any():  # as where every pixel is fixated
            total += values
            count += 1
    return total / max(count, 1), count


def best(table: NDArray[np.float64], blurs: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """The pair of the greatest value; of equal ones the first."""
    row, column = np.unravel_index(int(np.argmax(table)), table.shape)
    return blurs[int(row)], weights[int(column)]


def scaled_points(points: Points, size: tuple[int, int], to: tuple[int, int]) -> Points:
    """Fixations in an image of (height, width) at their pixels after resizing it to `to`."""
    scale = np.array([to[1] / size[1], to[0] / size[0]])
    result: Any = ((points + 0.5) * scale).astype(np.int32)
    return np.minimum(result, np.array([to[1] - 1, to[0] - 1], dtype=np.int32))

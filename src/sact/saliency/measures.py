"""Six measures of fixation prediction, computed by pysaliency."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from ..drawing import FloatMap
from ..errors import require
from .fixations import Points

CONVENTIONS = {
    "AUC-Judd": "area under the ROC curve of fixated against all other pixels; thresholds at the fixated values alone, "
    "straight lines between them, no jitter: pixels of equal value count one half",
    "sAUC": "area under the ROC curve of fixated pixels against the fixations of all other evaluated images, brought "
    "to this image's size; thresholds at all values, ties count one half",
    "NSS": "mean at the fixations of the map, standardised by its mean and deviation; 0 of a constant map",
    "CC": "correlation with the human map; 0 of a constant map",
    "KL": "divergence of the map from the human map, both divided by their sums, in nats, with the MIT benchmark's "
    "regularisation 2.2204e-16; less is better",
    "SIM": "sum of the pixelwise minimum of the map and the human map, both divided by their sums",
}
"""The measures' names and what they are; but for KL more is better."""


def measure(saliency: FloatMap, points: Points, human: FloatMap, elsewhere: Points) -> dict[str, float]:
    """All measures of one map.

    Args:
        saliency: the prediction, real [H, W].
        points: fixations, [K, 2] with K > 0.
        human: their blurred map, real [H, W].
        elsewhere: fixations of other images, scaled to this one, [M, 2].

    Returns:
        By the names in `CONVENTIONS`; NaN where a measure is undefined (sAUC without other images, AUC-Judd where every
        pixel is fixated).
    """
    metrics = _pysaliency("metrics")
    with np.errstate(divide="ignore"):  # it takes the logarithm of 0, and means it
        divergence = float(metrics.MIT_KLDiv(saliency, human))
    return {
        "AUC-Judd": auc_judd(saliency, points),
        "sAUC": shuffled_auc(saliency, points, elsewhere),
        "NSS": float(metrics.NSS(saliency, points[:, 0], points[:, 1]).mean()),
        "CC": float(metrics.CC(saliency, human)),
        "KL": divergence,
        "SIM": float(metrics.SIM(saliency, human)),
    }


def auc_judd(saliency: FloatMap, points: Points) -> float:
    """AUC-Judd of a map [H, W] for fixations [K, 2]; NaN where every pixel is fixated."""
    free = np.ones(saliency.shape, dtype=bool)
    free[points[:, 1], points[:, 0]] = False
    if not free.any():
        return float("nan")
    with _trapz():
        area, _, _ = _pysaliency("roc").general_roc(_at(saliency, points), saliency[free], judd=1)
    return float(area)


def shuffled_auc(saliency: FloatMap, points: Points, elsewhere: Points) -> float:
    """Shuffled AUC of a map [H, W] for fixations [K, 2] against those of other images [M, 2]; NaN if M is 0."""
    if not len(elsewhere):
        return float("nan")
    rates = _pysaliency("roc").general_rocs_per_positive(_at(saliency, points), _at(saliency, elsewhere))
    return float(rates.mean())


def _at(saliency: FloatMap, points: Points) -> FloatMap:
    values: FloatMap = saliency[points[:, 1], points[:, 0]].astype(np.float64)
    return values


@cache
def _pysaliency(module: str) -> ModuleType:
    with warnings.catch_warnings():  # of its dependencies, on import
        warnings.simplefilter("ignore")
        return require(f"pysaliency.{module}", "saliency")


@contextlib.contextmanager
def _trapz() -> Iterator[None]:
    """`numpy.trapz`, which NumPy has renamed to `trapezoid` and pysaliency still calls."""
    numpy: Any = np
    if hasattr(numpy, "trapz"):
        yield
        return
    numpy.trapz = numpy.trapezoid
    try:
        yield
    finally:
        del numpy.trapz

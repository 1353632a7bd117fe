"""Fixations of recorded gaze: what MIT1003 publishes of each observer."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

RATE = 240
"""Samples per second."""
PIXELS_PER_DEGREE = 34
"""Of MIT1003's screen: 1024 x 768 pixels are 40.5 x 30 cm, seen from 75 cm."""

_CRITERION = 6.0 * PIXELS_PER_DEGREE
"""Change of speed between two windows, in pixels per second, beyond which the eye is in a saccade."""
_WINDOW = 4
_LONGEST_LANDING = 25
_SHORTEST_FIXATION = round(0.050 * RATE)


def find_fixations(gaze: ArrayLike) -> NDArray[np.float64]:
    """Find the fixations in a recording: the medians between saccades.

    A saccade begins where the smoothed speed grows faster than a criterion for three samples or more, and ends with the
    slowing down that follows. Saccades with 50 ms or less between them are one; as short a rest at the end is left out.

    Args:
        gaze: real [samples, 2], x and y in pixels, 240 per second.

    Returns:
        float64 [K, 2], in the order of time.

    Source: `checkFixations.m` of Judd et al., "Learning to predict where humans look" (2009).
    """
    samples = np.asarray(gaze, dtype=np.float64)
    saccades = _find_saccades(_acceleration(samples), len(samples))
    starts = [0, *(end + 1 for _, end in saccades)]
    ends = [*(start for start, _ in saccades), len(samples)]
    rests = [samples[start:end] for start, end in zip(starts, ends, strict=True) if start < end]
    return np.array([_median(rest) for rest in rests], dtype=np.float64).reshape(-1, 2)


def _acceleration(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much the speed of one window differs from that of the next, in pixels per second."""
    steps = np.concatenate([[0.0], np.hypot(*np.diff(samples, axis=0).T)])
    smooth = np.convolve(steps, np.full(_WINDOW, 1 / _WINDOW))[: len(samples)]
    result = np.zeros(len(samples))
    # Windows of five samples, one apart, differ in the sample that enters and the one that leaves.
    inner = slice(1, max(len(samples) - _WINDOW - 1, 1))
    result[inner] = (smooth[_WINDOW + 2 :] - smooth[inner]) * RATE / _WINDOW
    return result


def _find_saccades(acceleration: NDArray[np.float64], count: int) -> list[tuple[int, int]]:
    """First and last sample of each."""
    found: list[tuple[int, int]] = []
    for start, peak in _runs(acceleration > _CRITERION):
        end = _landing(acceleration, peak) if peak - start >= 2 else None
        if end is None:
            continue
        if found and start - found[-1][1] <= _SHORTEST_FIXATION:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    if found and count - 1 - found[-1][1] <= _SHORTEST_FIXATION:
        found[-1] = (found[-1][0], count - 1)
    return found


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last index of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return [(int(first), int(after) - 1) for first, after in edges.reshape(-1, 2)]


def _landing(acceleration: NDArray[np.float64], peak: int) -> int | None:
    """The last sample of the slowing down after a saccade's speeding up; None if there is none soon."""
    slowing = acceleration < -_CRITERION
    for at in range(peak + 1, min(peak + _LONGEST_LANDING + 1, len(slowing) - 2)):
        if slowing[at] and not slowing[at + 1]:
            return at
    return None


def _median(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    known = samples[~np.isnan(samples).any(axis=1)]
    return np.median(known, axis=0) if len(known) else np.full(2, np.nan)

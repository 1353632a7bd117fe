"""The networks, detectors and segmenters that the page serves: shared by all visitors, used by one at a time."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import RLock

import numpy as np
import torch
from PIL import Image

from ..checkpoints import from_pretrained, list_pretrained
from ..compiled import CompiledNetwork, compile
from ..detecting import Detections, detect
from ..errors import InputError, MissingExtraError, SactError
from ..models import AdaptiveNetwork, Detector, Segmenter
from ..models.dense import DenseModel, extractor
from ..ponder import Ponder
from ..predict import Prediction, predict
from ..preprocessing import open_image
from ..segmenting import Segmentation, segment
from .dense import Images, Run, clock, dense_ways

MAX_PIXELS = 50_000_000
"""Larger pictures are refused: a page is no place for them."""
SEGMENTED_SIDE = 480
"""Short side in pixels that a segmenter sees at most: a visitor waits for it."""

_LOCK = RLock()
"""Held while a network runs: the budget is set on the network itself, and a run that is timed must be alone."""


@dataclass
class Served:
    """A network, detector or segmenter of the page.

    Attributes:
        name: shown, and unique.
        model: as it was loaded.
        compiled: the same in the fastest engine.
        reach: least and greatest budget that can be set, or None where the network has no calibration.
        usual: mean share of the dense FLOPs at the budget that the network came with; None where it is not known.
    """

    name: str
    model: AdaptiveNetwork | DenseModel
    compiled: CompiledNetwork | DenseModel
    reach: tuple[float, float] | None = None
    usual: float | None = None
    _dense: tuple[str, Run] | None = field(default=None, repr=False)

    @property
    def network(self) -> AdaptiveNetwork:
        """The network itself, or the extractor of a detector or segmenter."""
        return extractor(self.model)

    @property
    def verb(self) -> str:
        """What it is for: "classify", "detect" or "segment"."""
        if isinstance(self.model, DenseModel):
            return "detect" if isinstance(self.model, Detector) else "segment"
        return "classify"

    @property
    def engine(self) -> str:
        """The name of the fastest engine."""
        compiled = self.compiled.network if isinstance(self.compiled, DenseModel) else self.compiled
        assert isinstance(compiled, CompiledNetwork)
        return compiled.engine

    def top(self, prediction: Prediction, count: int = 5) -> list[tuple[str, float]]:
        """The classes of the highest scores, highest first, with them."""
        names = self.network.class_names
        order = np.argsort(-prediction.scores, kind="stable")[:count]
        return [(names[at] if names else str(at), float(prediction.scores[at])) for at in order.tolist()]

    def span(self, ponder: Ponder) -> tuple[float, float]:
        """The least and the greatest ponder cost that a position can have, summed over blocks.

        It is the scale of every map of this network, so that maps of different images and budgets can be compared.
        """
        most = sum(block.max_units + 1 for block in ponder.blocks)
        return 2.0 * len(ponder.blocks), float(most)

    def dense(self, images: Images) -> tuple[str, Run]:
        """The same model with halting off, in whichever way of running it is the fastest here, and that way's name.

        Args:
            images: as the model takes them, on which the ways are tried when this is asked for the first time.
        """
        if self._dense is None:
            with _LOCK, torch.inference_mode():
                ways = dense_ways(self.model)
                trials = {name: min(clock(run, images) for _ in range(4)) for name, run in ways.items()}
                best = min(trials, key=trials.__getitem__)
                self._dense = best, ways[best]
        return self._dense


def load(names: Sequence[str]) -> list[Served]:
    """Load networks, detectors and segmenters: folders, hub ids, or packaged names; all packaged ones where none is
    named.

    Packaged ones that were not asked for are left out, with a warning, where an extra that they need is not installed.

    Raises:
        InputError: no network, or one that is no use for photographs.
        CheckpointError: one cannot be loaded.
        MissingExtraError: one needs an extra that is not installed.
    """
    served: list[Served] = []
    for name in dict.fromkeys(names or list_pretrained()):
        try:
            model = from_pretrained(name)
        except MissingExtraError as error:
            if names:
                raise
            warnings.warn(f"{name} is left out: {error}", stacklevel=2)
            continue
        if not isinstance(model, DenseModel):
            _check_classifier(model, name)
        short = Path(name).name
        taken = {one.name for one in served}
        served.append(make_served(str(name) if short in taken else short, model))
    if not served:
        raise InputError("there is no packaged network to serve; name one with --model")
    return served


def make_served(name: str, model: AdaptiveNetwork | DenseModel) -> Served:
    """A model, in evaluation mode, with the range of its budget."""
    network = extractor(model)
    return Served(name, model, compile(model), budget_range(network), usual_share(network))


def _check_classifier(network: AdaptiveNetwork, name: str) -> None:
    try:
        network.check_classifies()
        if network.preprocessing is None:
            raise InputError("it does not say how images are prepared for it; set model.preprocessing and save it")
    except SactError as error:
        raise InputError(f"{name} cannot be served: {error}") from error


def budget_range(network: AdaptiveNetwork) -> tuple[float, float] | None:
    """The least and the greatest budget that can be set, whole hundredths where these leave a range."""
    calibration = network.calibration
    if calibration is None:
        return None
    least, most = calibration.least, min(calibration.most, 1.0)
    for digits in (2, 3):
        factor = 10**digits
        low, high = math.ceil(least * factor) / factor, math.floor(most * factor) / factor
        if low < high:
            return low, high
    return None


def usual_share(network: AdaptiveNetwork) -> float | None:
    """The share on average at the budget that a network comes with; None where it is not known."""
    if network.budget is not None or network.calibration is None:
        return network.budget
    return float(np.interp(0.0, network.calibration.shifts, network.calibration.shares))


@contextlib.contextmanager
def at_budget(network: AdaptiveNetwork, budget: float | None) -> Iterator[None]:
    """Alone with the network, at a budget (None: the one it came with); that one is put back.

    Raises:
        InputError: the budget cannot be set.
    """
    with _LOCK:
        before = network.budget
        if budget is not None:
            network.budget = budget
        try:
            yield
        finally:
            network.budget = before


def classify(served: Served, picture: Image.Image, budget: float | None = None) -> Prediction:
    """`sact.predict` at a budget.

    Raises:
        InputError: the budget is out of reach, or the picture cannot be used.
    """
    assert isinstance(served.compiled, CompiledNetwork)
    with at_budget(served.network, budget):
        return predict(served.compiled, picture)


def find(served: Served, picture: Image.Image, budget: float | None = None) -> Detections | Segmentation:
    """`sact.detect`, of all scores, or `sact.segment` at a budget.

    Raises:
        InputError: the budget is out of reach, or the picture cannot be used.
    """
    with at_budget(served.network, budget):
        if isinstance(served.compiled, Detector):
            return detect(served.compiled, picture, threshold=0.0)
        assert isinstance(served.compiled, Segmenter)
        return segment(served.compiled, picture, segmented_side(picture))


def segmented_side(picture: Image.Image) -> int | None:
    """The short side at which a picture is segmented; None for its own."""
    return SEGMENTED_SIDE if min(picture.size) > SEGMENTED_SIDE else None


def read_picture(path: str | Path) -> Image.Image:
    """A picture from a file that a visitor gave; messages name the file without its folder. The last few are kept.

    Raises:
        InputError: it cannot be read or is too large.
    """
    path = Path(path)
    try:
        return _open(path, path.stat().st_mtime_ns)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from error
    except OSError as error:
        raise InputError(f"{path.name!r} cannot be read ({error.strerror}); choose it again") from error


@lru_cache(maxsize=4)
def _open(path: Path, _changed: int) -> Image.Image:
    return open_image(path, max_pixels=MAX_PIXELS, too_large="scale it down")

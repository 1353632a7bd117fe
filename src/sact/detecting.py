"""An image in, boxes out: what a detector finds, with the map of where the work went."""

from __future__ import annotations

import copy
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from .errors import InputError
from .models.dense import extractor, with_network
from .models.detector import Detector
from .ponder import Ponder
from .predict import as_array, block_numbers
from .preprocessing import as_picture, to_unit_tensor


@dataclass(frozen=True)
class Detections:
    """The objects that a detector finds in one image, and what that cost.

    Attributes:
        image: the whole picture, uint8 RGB, W x H.
        boxes: x1, y1, x2, y2 in pixels of the image, float32 [K, 4]; the surest first.
        labels: classes from 1 on, int64 [K].
        names: their names, or the labels as text.
        scores: in (0, 1), float32 [K], descending.
        flops: the paper's count for the extractor.
        share: these relative to the plain extractor of the same units.
        map: ponder cost map at the image's size, float32 [H, W]; None from a plain extractor.
        ponder: everything the extractor spent.
        seconds: what the detector took on the clock, without reading the image.
    """

    image: Image.Image
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: list[str]
    scores: NDArray[np.float32]
    flops: int
    share: float
    map: NDArray[np.float32] | None
    ponder: Ponder
    seconds: float

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, threshold: float) -> Detections:
        """Those with a score of at least `threshold`."""
        count = int((self.scores >= threshold).sum())
        return replace(
            self,
            boxes=self.boxes[:count],
            labels=self.labels[:count],
            names=self.names[:count],
            scores=self.scores[:count],
        )

    def headline(self) -> str:
        """Which classes there are and how often, in words."""
        counted = Counter(self.names).most_common()
        return ", ".join(f"{name} ({count})" if count > 1 else name for name, count in counted) or "no objects"

    def summary(self) -> dict[str, Any]:
        """The numbers, JSON-able."""
        found = zip(self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        return {
            "width": self.image.width,
            "height": self.image.height,
            "objects": [
                {"class": name, "label": label, "score": score, "box": box} for name, label, score, box in found
            ],
            "flops": self.flops,
            "flops_share": self.share,
            "milliseconds": 1e3 * self.seconds,
            "blocks": block_numbers(self.ponder),
        }


@torch.inference_mode()
def detect(
    model: Detector, image: Image.Image | str | Path, threshold: float = 0.5, size: int | None = None
) -> Detections:
    """Find the objects in one image.

    Args:
        model: a detector, compiled or not.
        image: a picture, or the path of a JPEG, PNG or WebP file, which is turned upright as its EXIF entry says.
        threshold: least score of an object, in [0, 1]; none is below the detector's own `box_score_thresh`.
        size: short side in pixels that the detector sees; by default its own, the last of `min_size`. The long side is
            at most so many times longer as the detector's `max_size` allows.

    Raises:
        InputError: the image cannot be read or is too elongated, an argument is out of range, or the model is not a
            detector in evaluation mode.
    """
    check_model(model, Detector)
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold}, but scores lie in [0, 1]")
    model = model if size is None else _at_size(model, size)
    picture = as_picture(image)
    short, long = sorted(picture.size)
    if int(short * min(model.transform.min_size[-1] / short, model.transform.max_size / long)) < 1:
        raise InputError(
            f"the picture has {picture.width}x{picture.height} pixels, but its long side may be at most "
            f"{model.transform.max_size} times the short one, the detector's max_size; crop it"
        )
    parameter = next(model.parameters())
    tensor = to_unit_tensor(picture).to(parameter.device, parameter.dtype)
    start = time.perf_counter()
    [found], ponder = model([tensor], return_ponder=True)
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    seconds = time.perf_counter() - start
    labels = found["labels"].cpu().numpy()
    flops = int(ponder.flops[0])
    detections = Detections(
        image=picture,
        boxes=as_array(found["boxes"]),
        labels=labels,
        names=[model.class_names[label - 1] if model.class_names else str(label) for label in labels.tolist()],
        scores=as_array(found["scores"]),
        flops=flops,
        share=flops / ponder.dense_flops,
        map=as_array(ponder.maps()[0]) if ponder.cost is not None else None,
        ponder=ponder,
        seconds=seconds,
    )
    return detections.above(threshold)


def check_model(model: Any, kind: type[nn.Module]) -> None:
    """Raise InputError unless this is a model of that kind in evaluation mode."""
    if not isinstance(model, kind):
        name = kind.__name__.lower()
        raise InputError(f"a {name} is needed, got {type(model).__name__}; see sact.create_{name}")
    if extractor(model).training:  # what a compiled model shares with the one that it was made of
        raise InputError("this model is in training mode; call model.eval()")


def check_size(size: int, most: int = 16384) -> None:
    """Raise InputError if a short side in pixels is out of range."""
    if isinstance(size, bool) or not isinstance(size, int) or not 32 <= size <= most:
        raise InputError(f"size is {size!r}, but it must be a whole number of pixels from 32 to {most}")


def _at_size(model: Detector, size: int) -> Detector:
    """The same detector, weights shared, that brings images to another size, with the same greatest elongation."""
    check_size(size)
    resized = with_network(model, model.network)
    resized.transform = copy.copy(model.transform)
    resized.transform.min_size = (size,)
    resized.transform.max_size = round(size * model.transform.max_size / model.transform.min_size[-1])
    return resized

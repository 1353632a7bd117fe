"""An image in, a class per pixel out: what a segmenter says, with the map of where the work went."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from .data.coco import MULTIPLE
from .detecting import check_model, check_size
from .errors import InputError
from .models.segmenter import Segmenter
from .padded import PaddedPonder
from .ponder import Ponder
from .predict import as_array, block_numbers
from .preprocessing import as_picture, to_unit_tensor

LONGEST = 2048
"""Pixels of the long side that a segmenter sees at most, which bounds its memory."""


@dataclass(frozen=True)
class Segmentation:
    """The class of every pixel of one image, and what that cost.

    Attributes:
        image: the whole picture, uint8 RGB, W x H.
        classes: uint8 [H, W]; 0 is the background.
        names: of all classes, the background first.
        shares: part of the image that each class has, float32 [classes], with sum 1.
        flops: the paper's count for the extractor.
        share: these relative to the plain extractor of the same units.
        map: ponder cost map at the image's size, float32 [H, W]; None from a plain extractor.
        ponder: everything the extractor spent.
        seconds: what the segmenter took on the clock, without reading and resizing the image.
    """

    image: Image.Image
    classes: NDArray[np.uint8]
    names: list[str]
    shares: NDArray[np.float32]
    flops: int
    share: float
    map: NDArray[np.float32] | None
    ponder: Ponder
    seconds: float

    def found(self) -> list[tuple[int, str, float]]:
        """Classes that are there, as label, name and share; the largest first, the background last."""
        there = [
            (label, self.names[label], float(self.shares[label])) for label in np.flatnonzero(self.shares).tolist()
        ]
        return sorted(there, key=lambda row: (row[0] == 0, -row[2]))

    def headline(self) -> str:
        """What is there, in words."""
        return ", ".join(f"{name} {share:.1%}" for label, name, share in self.found() if label) or "background alone"

    def summary(self) -> dict[str, Any]:
        """The numbers, JSON-able."""
        return {
            "width": self.image.width,
            "height": self.image.height,
            "classes": [{"class": name, "label": label, "share": share} for label, name, share in self.found()],
            "flops": self.flops,
            "flops_share": self.share,
            "milliseconds": 1e3 * self.seconds,
            "blocks": block_numbers(self.ponder),
        }


@torch.inference_mode()
def segment(model: Segmenter, image: Image.Image | str | Path, size: int | None = None) -> Segmentation:
    """Find the class of every pixel of one image.

    Args:
        model: a segmenter, compiled or not.
        image: a picture, or the path of a JPEG, PNG or WebP file, which is turned upright as its EXIF entry says.
        size: short side in pixels that the segmenter sees; by default the picture's own. A picture is reduced further
            where its long side would be above `LONGEST`. Classes and map are brought back to the picture's size with
            nearest neighbour.

    Raises:
        InputError: the image cannot be read, the size is out of range, or the model is not a segmenter in evaluation
            mode or has more than 255 classes.
    """
    check_model(model, Segmenter)
    count = model.config.num_classes
    if count > 255:
        raise InputError(f"this segmenter has {count} classes, but a picture of classes holds 255 at most")
    picture = as_picture(image)
    batch, (height, width) = segmenter_batch(picture, size)
    parameter = next(model.parameters())
    batch = batch.to(parameter.device, parameter.dtype)
    start = time.perf_counter()
    logits, spent = model(batch, return_ponder=True)
    if batch.is_cuda:
        torch.cuda.synchronize(batch.device)
    seconds = time.perf_counter() - start
    ponder = PaddedPonder(
        spent.blocks, spent.fixed_flops, _size(batch), [(height, width)], [(picture.height, picture.width)]
    )
    labels = logits[0, :, :height, :width].argmax(0).to(torch.uint8).cpu().numpy()
    classes = np.asarray(Image.fromarray(labels).resize(picture.size, Image.Resampling.NEAREST))
    flops = int(ponder.flops[0])
    return Segmentation(
        image=picture,
        classes=classes,
        names=list(model.class_names or ["background", *map(str, range(1, count))]),
        shares=(np.bincount(classes.ravel(), minlength=count) / classes.size).astype(np.float32),
        flops=flops,
        share=flops / ponder.dense_flops,
        map=as_array(ponder.maps()[0]) if ponder.cost is not None else None,
        ponder=ponder,
        seconds=seconds,
    )


def segmenter_batch(picture: Image.Image, size: int | None = None) -> tuple[torch.Tensor, tuple[int, int]]:
    """A picture as a segmenter takes it, float32 [1, 3, H, W] in [0, 1], and (h, w) of what is not padding in it.

    Raises:
        InputError: the size, as of `segment`, is out of range.
    """
    tensor = to_unit_tensor(_resized(picture, size))
    height, width = tensor.shape[-2:]
    return F.pad(tensor, (0, -width % MULTIPLE, 0, -height % MULTIPLE))[None], (height, width)


def _resized(picture: Image.Image, size: int | None) -> Image.Image:
    """The picture as the segmenter sees it."""
    if size is not None:
        check_size(size, LONGEST)
    short, long = sorted(picture.size)
    scale = min((size or short) / short, LONGEST / long)
    shape = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture if shape == picture.size else picture.resize(shape, Image.Resampling.BILINEAR)


def _size(images: torch.Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]

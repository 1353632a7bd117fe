"""Images drawn once and kept on disk as uint8: for data sets that are dear to draw and are read many times."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..files import replacing
from .cache import cache_dir


class Materialised(Dataset[tuple[Tensor, int]]):
    """A data set of images in [-1, 1] and labels, read back from disk and mirrored at random.

    Args:
        source: the data set to draw; elements start with (image float32 [3, S, S] in [-1, 1], label int).
        key: JSON-able facts that identify the drawing; another key is another file.

    Each element is (image float32 [3, S, S] in [-1, 1], label int). An image is drawn to 8 bits, as a photograph is.
    """

    def __init__(self, source: Any, key: dict[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
        images, labels = (cache_dir() / f"drawn-{digest}-{part}.npy" for part in ("images", "labels"))
        if not (images.is_file() and labels.is_file()):
            _draw(source, images, labels)
        self.images = np.load(images, mmap_mode="r")
        self.labels = np.load(labels)
        self.class_names = source.class_names
        self.num_classes = source.num_classes
        self.preprocessing = source.preprocessing

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(np.array(self.images[index])).float().div_(127.5).sub_(1.0)
        return (image.flip(2) if torch.rand(()) < 0.5 else image), int(self.labels[index])


def _draw(source: Any, images_path: Path, labels_path: Path) -> None:
    labels = np.empty(len(source), np.int64)
    with replacing(images_path) as temporary:
        shape = (len(source), *source[0][0].shape)
        images = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        for index in range(len(source)):
            image, label = source[index][:2]
            images[index] = ((image + 1.0) * 127.5).round().numpy()
            labels[index] = label
        images.flush()
    with replacing(labels_path) as temporary:
        np.save(temporary, labels)

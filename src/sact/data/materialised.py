"""Images drawn once and kept on disk as uint8: for data sets that are dear to draw and are read many times."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from ..files import replacing
from ..preprocessing import to_bytes
from .cache import cache_dir

# Images of a file that are drawn again before it is trusted.
_PROBES = 8


class Drawn(NamedTuple):
    """What lies on disk: images uint8 [n, 3, S, S] and labels int64 [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class Materialised(Dataset[tuple[Tensor, int]]):
    """A data set of images in [-1, 1] and labels, read back from disk and mirrored at random.

    Args:
        source: the data set to draw; elements start with (image float32 [3, S, S] in [-1, 1], label int) and depend on
            their index alone.
        key: JSON-able facts that identify the drawing; another key is another file.

    Each element is (image float32 [3, S, S] in [-1, 1], label int). An image is drawn to 8 bits, as a photograph is. A
    file that is damaged, or that does not agree with the source in a few elements, is drawn anew.

    Raises:
        InputError: the file cannot be written, or the images of `source` leave [-1, 1].
    """

    def __init__(self, source: Any, key: dict[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
        images, labels = (cache_dir() / f"drawn-{digest}-{part}.npy" for part in ("images", "labels"))
        drawn = _read(images, labels)
        if drawn is None or not _agrees(drawn, source):
            try:
                _draw(source, images, labels)
            except OSError as error:
                raise InputError(
                    f"the drawn images cannot be kept in {images.parent} ({error.strerror}); "
                    "set SACT_CACHE to a folder with room, or cache: false in the recipe"
                ) from error
            drawn = Drawn(np.load(images, mmap_mode="r"), np.load(labels))
        self.images, self.labels = drawn
        self.class_names = source.class_names
        self.num_classes = source.num_classes
        self.preprocessing = source.preprocessing

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(np.array(self.images[index])).float().div_(127.5).sub_(1.0)
        return (image.flip(2) if torch.rand(()) < 0.5 else image), int(self.labels[index])


def _read(images_path: Path, labels_path: Path) -> Drawn | None:
    try:
        return Drawn(np.load(images_path, mmap_mode="r"), np.load(labels_path))
    except (OSError, ValueError, EOFError):
        return None


def _agrees(drawn: Drawn, source: Any) -> bool:
    """Whether a file holds what the source draws today: other photographs or a newer library may draw otherwise."""
    shape = (len(source), *source[0][0].shape)
    if drawn.images.shape != shape or drawn.images.dtype != np.uint8 or drawn.labels.shape != shape[:1]:
        return False
    for index in {len(source) * probe // _PROBES for probe in range(_PROBES)}:
        image, label = source[index][:2]
        off = np.abs(_as_bytes(image).astype(int) - drawn.images[index])
        if int(drawn.labels[index]) != int(label) or off.max() > 1:  # another machine may round to the other side
            return False
    return True


def _draw(source: Any, images_path: Path, labels_path: Path) -> None:
    labels = np.empty(len(source), np.int64)
    with replacing(images_path) as temporary:
        shape = (len(source), *source[0][0].shape)
        images = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        for index in range(len(source)):
            image, label = source[index][:2]
            images[index] = _as_bytes(image)
            labels[index] = label
        images.flush()
    with replacing(labels_path) as temporary:
        np.save(temporary, labels)


def _as_bytes(image: Tensor) -> NDArray[np.uint8]:
    low, high = float(image.min()), float(image.max())
    if not -1.0 <= low <= high <= 1.0:
        raise InputError(
            f"an image has values from {low:.3g} to {high:.3g}; only images in [-1, 1] can be drawn to disk"
        )
    pixels: NDArray[np.uint8] = to_bytes((image + 1.0) / 2.0).numpy()
    return pixels

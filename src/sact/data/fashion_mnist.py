"""Fashion-MNIST: 70 000 grey pictures of 28 x 28 pixels of clothes, in ten classes."""

from __future__ import annotations

import gzip
import os
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError, SactError, require
from ..preprocessing import scale_to_symmetric, to_unit_tensor
from .cache import cache_dir
from .splits import check_split, used_length

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
VAL_ITEMS = 5000
SIZE = 28


def _file(folder: Path, part: str, kind: str) -> Path | None:
    stem = f"{part}-{'images-idx3' if kind == 'images' else 'labels-idx1'}-ubyte"
    for name in (f"{stem}.gz", stem):
        if (folder / name).is_file():
            return folder / name
    return None


def _complete(folder: Path) -> bool:
    return all(_file(folder, part, kind) for part in ("train", "t10k") for kind in ("images", "labels"))


def find_fashion_mnist(folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder that has the four idx files of Fashion-MNIST, plain or .gz; downloads them where they are nowhere.

    Args:
        folder: where to look. None for Debian's folder, then the cache, then a download into the cache by torchvision.

    Returns:
        The folder.

    Raises:
        InputError: the files are not in `folder`, or cannot be downloaded.
    """
    if folder is not None:
        given = Path(folder).expanduser()
        if not _complete(given):
            raise InputError(
                f"{str(given)!r} does not have the four Fashion-MNIST files (train-images-idx3-ubyte.gz and so on); "
                "give the folder that has them, or none to use Debian's dataset-fashion-mnist or download it"
            )
        return given
    cached = cache_dir() / "fashion-mnist"
    downloaded = cached / "FashionMNIST" / "raw"
    for candidate in (DEBIAN_FOLDER, cached, downloaded):
        if _complete(candidate):
            return candidate
    try:
        datasets = require("torchvision.datasets", "tasks")
        datasets.FashionMNIST(str(cached), train=True, download=True)
    except (SactError, RuntimeError, OSError) as error:
        raise InputError(
            f"Fashion-MNIST is not on this machine and cannot be downloaded ({error}); install it with: apt install "
            "dataset-fashion-mnist, or give the folder of its four files"
        ) from error
    return downloaded


def read_idx(path: Path) -> np.ndarray:
    """Read an idx file of unsigned bytes, plain or .gz.

    Returns:
        uint8 array of the shape that the file states.

    Raises:
        InputError: the file is damaged.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); download it again") from error
    dims = data[3] if len(data) >= 4 and data[:3] == b"\0\0\x08" else 0
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", dims, 4)) if len(data) >= 4 + 4 * dims else ()
    if not shape or len(data) != 4 + 4 * dims + int(np.prod(shape)):
        raise InputError(f"{str(path)!r} is not a complete idx file of bytes; download it again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


@lru_cache(maxsize=4)
def _read(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (read_idx(_file(folder, part, kind) or folder) for kind in ("images", "labels"))
    if images.ndim != 3 or images.shape[1:] != (SIZE, SIZE) or labels.shape != images.shape[:1] or labels.max() > 9:
        raise InputError(
            f"the files {part}-* in {str(folder)!r} are not Fashion-MNIST: images {images.shape}, labels {labels.shape}"
        )
    return images, labels


def load_items(split: str, folder: str | os.PathLike[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The items of one split.

    Args:
        split: "train" (the training items but the last 5000), "val" (the last 5000 training items) or "test".
        folder: as in `find_fashion_mnist`.

    Returns:
        uint8 images [n, 28, 28], 0 where there is nothing, and uint8 labels [n].

    Raises:
        InputError: unknown split, or the files cannot be had.
    """
    check_split(split)
    images, labels = _read(find_fashion_mnist(folder), "t10k" if split == "test" else "train")
    if split == "test":
        return images, labels
    # Small stand-ins for the data set, as in tests, still leave something on both sides.
    held_out = min(VAL_ITEMS, len(images) // 2)
    chosen = slice(-held_out, None) if split == "val" else slice(None, -held_out)
    return images[chosen], labels[chosen]


class FashionMNIST(Dataset[tuple[Tensor, int]]):
    """Fashion-MNIST items as colour pictures.

    Args:
        split: "train", "val" or "test".
        size: side in pixels; items are resized from 28.
        length: how many items; None for all.
        folder: as in `find_fashion_mnist`.
        train: flip and shift at random (torch's random numbers).

    Each element is (image float32 [3, size, size] in [-1, 1], label int).

    Raises:
        InputError: unknown split, impossible size or length, or the files cannot be had.
    """

    class_names = FASHION_CLASSES
    num_classes = len(FASHION_CLASSES)

    def __init__(
        self,
        split: str = "train",
        size: int = 32,
        length: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        train: bool = False,
    ) -> None:
        if size < SIZE:
            raise InputError(f"the size of Fashion-MNIST pictures must be at least {SIZE}, not {size!r}")
        images, labels = load_items(split, folder)
        count = used_length(length, len(images))
        self.images, self.labels = images[:count], labels[:count]
        self.size = size
        self.train = train
        self.preprocessing = {"name": "scenes", "size": size}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.images[index]).convert("RGB")
        picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR)
        image = scale_to_symmetric(to_unit_tensor(picture))
        if self.train:
            reach = self.size // 16
            dy, dx, flip = (int(torch.randint(n, ())) for n in (2 * reach + 1, 2 * reach + 1, 2))
            padded = torch.nn.functional.pad(image, (reach, reach, reach, reach), value=-1.0)
            image = padded[:, dy : dy + self.size, dx : dx + self.size]
            image = image.flip(-1) if flip else image.contiguous()
        return image, int(self.labels[index])

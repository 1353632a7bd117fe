"""CIFAR-10 and ImageNet, read by torchvision (extra "tasks")."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError, require
from ..preprocessing import is_image, list_preprocessing, open_image, preprocess
from .cache import cache_dir
from .fashion_mnist import VAL_ITEMS
from .splits import check_split, used_length
from .transforms import cifar_training, imagenet_training

IMAGENET_FOLDERS = {"train": ("train",), "val": ("val", "validation"), "test": ("val", "validation", "test")}


class _Pictures(Dataset[tuple[Tensor, int]]):
    """What CIFAR-10 and ImageNet share: pictures read one at a time, labels, and how a picture becomes a tensor."""

    class_names: tuple[str, ...]
    preprocessing: dict[str, Any]
    _labels: list[int]
    _augment: Callable[[Image.Image], Tensor] | None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def _picture(self, index: int) -> Image.Image:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = self._picture(index)
        image = preprocess(picture, self.preprocessing) if self._augment is None else self._augment(picture)
        return image, self._labels[index]


class CIFAR10(_Pictures):
    """CIFAR-10.

    Args:
        split: "train" (all 50 000 training images but the last 5000), "val" (those) or "test" (10 000).
        size: side of the images; 32 is theirs.
        length: the first so many; None for all.
        folder: where torchvision keeps or puts cifar-10-batches-py; None for the cache. Downloaded when it is not
            there.
        train: apply the training augmentation.
        whole: "train" has all 50 000 images, as in the published recipe.

    Each element is (image float32 [3, size, size], label int).

    Raises:
        InputError: unknown split, impossible length, or the files cannot be had.
        MissingExtraError: torchvision is not installed.
    """

    def __init__(
        self,
        split: str = "train",
        size: int = 32,
        length: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        train: bool = False,
        whole: bool = False,
    ) -> None:
        check_split(split)
        datasets = require("torchvision.datasets", "tasks")
        root = cache_dir() / "cifar10" if folder is None else Path(folder).expanduser()
        try:
            stored = datasets.CIFAR10(str(root), train=split != "test", download=True)
        except (RuntimeError, OSError) as error:
            raise InputError(
                f"CIFAR-10 is not in {str(root)!r} and cannot be downloaded ({error}); give the folder that has "
                "cifar-10-batches-py"
            ) from error
        chosen = slice(None)
        if split == "val":
            chosen = slice(-VAL_ITEMS, None)
        elif split == "train" and not whole:
            chosen = slice(None, -VAL_ITEMS)
        self._images = stored.data[chosen]
        labels = stored.targets[chosen]
        self._labels = labels[: used_length(length, len(labels))]
        self.class_names = tuple(stored.classes)
        self.preprocessing = {"name": "cifar_sact", "size": size}
        self._augment = cifar_training(size) if train else None

    def _picture(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[range(len(self._labels))[index]])


class ImageNet(_Pictures):
    """ImageNet, or any pictures with one folder per class.

    Args:
        split: "train", "val" or "test"; ImageNet's labelled test images are its validation images, so that "test" is
            read from `val` as well.
        size: side of the images.
        length: the first so many after a fixed spread over all classes; None for all.
        folder: has `train` and `val`, each with one folder of JPEG, PNG or WebP files per class.
        train: apply the training augmentation.
        label_offset: 1 for networks of 1001 classes, whose class 0 is background.
        preprocessing: name of the evaluation preprocessing, "imagenet_sact" or "imagenet_torchvision".
        min_area: the least share of a picture that a training crop shows.

    Each element is (image float32 [3, size, size], label int).

    Raises:
        InputError: unknown split, no such folder, or an option out of range.
        MissingExtraError: torchvision is not installed.
    """

    def __init__(
        self,
        split: str = "train",
        size: int = 224,
        length: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        train: bool = False,
        label_offset: int = 0,
        preprocessing: str = "imagenet_sact",
        min_area: float = 0.05,
    ) -> None:
        check_split(split)
        if label_offset not in (0, 1):
            raise InputError(f"label_offset must be 0, or 1 where class 0 is background, not {label_offset!r}")
        if preprocessing not in list_preprocessing():
            raise InputError(
                f"unknown preprocessing {preprocessing!r}; choose one of {', '.join(list_preprocessing())}"
            )
        if folder is None:
            raise InputError(
                "ImageNet cannot be downloaded; give the folder that has train and val, one folder per class in each "
                "(data_dir in a recipe, --data-dir on the command line)"
            )
        root = Path(folder).expanduser()
        found = [root / name for name in IMAGENET_FOLDERS[split] if (root / name).is_dir()]
        if not found:
            raise InputError(
                f"{str(root)!r} has no folder {IMAGENET_FOLDERS[split][0]!r}; give the folder that has train and val"
            )
        datasets = require("torchvision.datasets", "tasks")
        try:
            stored = datasets.ImageFolder(str(found[0]), is_valid_file=is_image)
        except (FileNotFoundError, OSError) as error:
            raise InputError(f"{str(found[0])!r} does not have one folder of pictures per class ({error})") from error
        count = used_length(length, len(stored.samples))
        # Files are sorted by class: an even spread keeps all classes in a shortened set.
        chosen = [stored.samples[index * len(stored.samples) // count] for index in range(count)]
        self._files = [path for path, _ in chosen]
        self._labels = [label + label_offset for _, label in chosen]
        self.class_names = (("background",) if label_offset else ()) + tuple(stored.classes)
        self.preprocessing = {"name": preprocessing, "size": size}
        self._augment = imagenet_training(size, preprocessing == "imagenet_torchvision", min_area) if train else None

    def _picture(self, index: int) -> Image.Image:
        return open_image(self._files[index])

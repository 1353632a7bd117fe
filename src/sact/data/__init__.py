"""Data sets by name. Each is a `torch.utils.data.Dataset` with `class_names`, `num_classes` and `preprocessing`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset

from ..errors import InputError
from .coco import CocoDetection, CocoSegmentation
from .coco_check import check_coco
from .fashion_mnist import FashionMNIST
from .folders import CIFAR10, ImageNet
from .photographs import find_photographs
from .scenes import Scenes

__all__ = [
    "CIFAR10",
    "CocoDetection",
    "CocoSegmentation",
    "FashionMNIST",
    "ImageNet",
    "Scenes",
    "check_coco",
    "create_dataset",
    "find_photographs",
    "list_datasets",
]

_BY_NAME: dict[str, Callable[..., Dataset[Any]]] = {
    "cifar10": CIFAR10,
    "coco": CocoDetection,
    "coco_segmentation": CocoSegmentation,
    "fashion_mnist": FashionMNIST,
    "imagenet": ImageNet,
    "scenes": Scenes,
}


def list_datasets() -> list[str]:
    """The names that `create_dataset` knows, sorted."""
    return sorted(_BY_NAME)


def create_dataset(
    name: str,
    split: str = "train",
    size: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    length: int | None = None,
    train: bool = False,
    **options: Any,
) -> Dataset[Any]:
    """Make a data set by name.

    Args:
        name: one of `list_datasets()`.
        split: "train", "val" or "test".
        size: side S of the images; None for the customary one (scenes 96, fashion_mnist 32, cifar10 32, imagenet 224,
            training crops of coco_segmentation 480) and for coco, whose images keep their sizes.
        data_dir: folder of the data; for scenes the folder of background photographs. None for the places of this
            machine.
        seed: of scenes; the others have nothing to draw in advance.
        length: number of images; None for all.
        train: apply the training augmentation. Scenes are random already and ignore it.
        **options: further arguments of that data set, e.g. `scale` of scenes, `label_offset` of imagenet.

    Returns:
        A data set with attributes `class_names`, `num_classes` and `preprocessing`. Its elements are (image float32
        [3, S, S], label int), and for scenes (image, label, object mask bool [S, S]). Those of coco and
        coco_segmentation are described at `CocoDetection` and `CocoSegmentation`.

    Raises:
        InputError: unknown name, split or option, a value out of range, or the data cannot be had.
        MissingExtraError: the data set needs torchvision, which is not installed.
    """
    if name not in _BY_NAME:
        raise InputError(f"unknown data set {name!r}; choose one of {', '.join(list_datasets())}")
    make = _BY_NAME[name]
    known = set(inspect.signature(make).parameters) - {"split", "size", "length", "seed", "train", "folder", "data_dir"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise InputError(
            f"the data set {name!r} has no option {', '.join(unknown)}; it has {', '.join(sorted(known)) or 'none'}"
        )
    if size is not None:
        options["size"] = size
    if name == "scenes":
        if data_dir is not None:
            options.setdefault("backgrounds", data_dir)
        return Scenes(split, length=length, seed=seed, **options)
    if name in ("coco", "coco_segmentation"):
        return make(data_dir, split, train=train, length=length, **options)
    return make(split, length=length, folder=data_dir, train=train, **options)

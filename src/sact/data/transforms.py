"""Training augmentations, built on torchvision's (extra "tasks")."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import InputError, require
from ..preprocessing import scale_to_symmetric, standardise_image, standardise_imagenet


def _checked_size(size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 8:
        raise InputError(f"the training image size must be an integer of at least 8, not {size!r}")
    return size


def cifar_training(size: int = 32) -> Any:
    """CIFAR's augmentation: pad by 4, crop at random, flip at random, standardise each image.

    Args:
        size: side of the result; other pictures are resized first.

    Returns:
        A callable from an RGB PIL picture to float32 [3, size, size] of mean 0 and deviation 1.

    Raises:
        MissingExtraError: torchvision is not installed.
        InputError: impossible size.
    """
    v2 = require("torchvision.transforms.v2", "tasks")
    _checked_size(size)
    return v2.Compose(
        [
            v2.Resize((size, size), antialias=True),
            v2.RandomCrop(size, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.ToPureTensor(),
            v2.Lambda(standardise_image),
        ]
    )


def imagenet_training(size: int = 224, imagenet_statistics: bool = False, min_area: float = 0.05) -> Any:
    """Inception's augmentation for ImageNet: a crop of 5 to 100 % of the area, flip, colour jitter.

    Args:
        size: side of the result.
        imagenet_statistics: normalise by ImageNet's mean and deviation, as torchvision's networks expect, rather than
            to [-1, 1].
        min_area: the least share of the area, in (0, 1]; more suits pictures that are filled by their object.

    Returns:
        A callable from an RGB PIL picture to float32 [3, size, size].

    Raises:
        MissingExtraError: torchvision is not installed.
        InputError: impossible size or area.
    """
    v2 = require("torchvision.transforms.v2", "tasks")
    _checked_size(size)
    if not 0 < min_area <= 1:
        raise InputError(f"min_area is {min_area}, but it must be above 0 and at most 1; Inception's is 0.05")
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(min_area, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            # The strengths of Inception's preprocessing: brightness 32 / 255, saturation and contrast 0.5, hue 0.2.
            v2.ColorJitter(brightness=32 / 255, contrast=0.5, saturation=0.5, hue=0.2),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.ToPureTensor(),
            v2.Lambda(standardise_imagenet if imagenet_statistics else scale_to_symmetric),
        ]
    )


def detection_training() -> Any:
    """The augmentation of detectors: a reflection, and slightly other brightness, contrast and saturation.

    Returns:
        A callable of (image uint8 [3, H, W], target) with torchvision's tv_tensors, which moves boxes and masks along.

    Raises:
        MissingExtraError: torchvision is not installed.
    """
    v2 = require("torchvision.transforms.v2", "tasks")
    return v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)])


def segmentation_training(size: int, ignored: int) -> Any:
    """The augmentation of segmentation: another scale, a reflection, slightly other colours, and a crop.

    The shorter side becomes 0.5 to 2 times the crop's, as in torchvision's reference training.

    Args:
        size: side of the crop.
        ignored: class index of what is added where the image is smaller than the crop.

    Returns:
        A callable of (image uint8 [3, H, W], mask) with torchvision's tv_tensors.

    Raises:
        MissingExtraError: torchvision is not installed.
        InputError: impossible size.
    """
    v2 = require("torchvision.transforms.v2", "tasks")
    mask = require("torchvision.tv_tensors", "tasks").Mask
    fill = {mask: ignored, "others": 0}
    return v2.Compose(
        [
            v2.RandomResize(_checked_size(size) // 2, 2 * size + 1, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
            v2.RandomCrop(size, pad_if_needed=True, fill=fill),
        ]
    )

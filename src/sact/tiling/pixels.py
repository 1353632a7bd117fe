"""An image that is read, scaled and checked in parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Union

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import preprocessing
from ..errors import InputError
from ..models.adaptive import AdaptiveNetwork
from .windows import Box, Size

TiledImage = Union[Tensor, np.ndarray, Image.Image, str, "os.PathLike[str]"]
Normalise = Callable[[Tensor], Tensor] | Mapping[str, Any]

_OF_WHOLE_IMAGES = ("cifar_sact",)
"""Specifications whose scaling depends on all pixels."""


class Pixels:
    """An image in parts.

    Args:
        size: (H, W).
        part: gives a part as [C, h, w], floating point, scaled for the network.
        like: on whose device and in whose dtype parts are read.
    """

    def __init__(self, size: Size, part: Callable[[Box], Tensor], like: Tensor) -> None:
        self.size = size
        self._part = part
        self._like = like

    def read(self, box: Box) -> Tensor:
        """A part, [1, C, h, w].

        Raises:
            InputError: it holds NaN or infinite values.
        """
        x = self._part(box)[None].to(self._like)
        if not bool(torch.isfinite(x).all()):
            (top, bottom), (left, right) = box
            raise InputError(
                f"the image holds NaN or infinite values in rows {top} to {bottom - 1}, columns {left} to {right - 1}; "
                "check how it was loaded and scaled"
            )
        return x


def open_pixels(network: AdaptiveNetwork, image: TiledImage, normalise: Normalise | None) -> Pixels:
    """An image for a network, in parts.

    Args:
        network: takes it.
        image: see `sact.tiled`.
        normalise: see `sact.tiled`.

    Raises:
        InputError: the image cannot be read or does not fit the network, or it is not said how to scale it.
    """
    like = next(network.parameters())
    if isinstance(image, Tensor):
        return _prepared(network, image, normalise, like)
    if isinstance(image, (str, os.PathLike)):
        image = preprocessing.open_image(image)
    pixels, (height, width, channels) = _pixels_of(image)
    _check(network, like.dtype, (1, channels, height, width), like)
    scale = _scaling(network, normalise, channels)

    def part(box: Box) -> Tensor:
        return scale(torch.from_numpy(pixels(box)).permute(2, 0, 1).float().div_(255.0))

    return Pixels((height, width), part, like)


def _prepared(network: AdaptiveNetwork, image: Tensor, normalise: Normalise | None, like: Tensor) -> Pixels:
    if normalise is not None:
        raise InputError("a tensor is taken as it is, without normalise; prepare it, or pass a uint8 array [H, W, 3]")
    if image.dim() == 4 and len(image) != 1:
        raise InputError(f"the batch has {len(image)} images, but one is evaluated at a time; pass images[0]")
    image = image[0] if image.dim() == 4 else image
    _check(network, image.dtype, (1, *image.shape), like)

    def part(box: Box) -> Tensor:
        (top, bottom), (left, right) = box
        return image[:, top:bottom, left:right]

    return Pixels((image.shape[1], image.shape[2]), part, like)


def _check(network: AdaptiveNetwork, dtype: torch.dtype, shape: tuple[int, ...], like: Tensor) -> None:
    """What networks check in images, without one."""
    network.check_images(torch.zeros(1, dtype=dtype, device=like.device).expand(shape), finite=False)


def _pixels_of(image: object) -> tuple[Callable[[Box], np.ndarray], tuple[int, int, int]]:
    """What reads a part as uint8 [h, w, 3], and the whole's shape."""
    if isinstance(image, Image.Image):
        plain = image.mode == "RGB" and not image.has_transparency_data
        picture = image if plain else preprocessing.to_rgb(image)

        def cut(box: Box) -> np.ndarray:
            (top, bottom), (left, right) = box
            return np.array(picture.crop((left, top, right, bottom)))

        return cut, (picture.height, picture.width, 3)
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"an image must be a tensor [1, C, H, W], a uint8 array [H, W, 3], a PIL image or a path, not "
            f"{type(image).__name__}"
        )
    if image.ndim != 3 or image.dtype != np.uint8:
        raise InputError(
            f"an image array must be uint8 of shape [H, W, 3], not {image.dtype} of shape {list(image.shape)}; "
            "pass values that are scaled for the network as a tensor [1, C, H, W]"
        )
    array = image
    height, width, channels = array.shape
    return lambda box: np.array(array[slice(*box[0]), slice(*box[1])]), (height, width, channels)


def _scaling(network: AdaptiveNetwork, normalise: Normalise | None, channels: int) -> Callable[[Tensor], Tensor]:
    """From [0, 1] to what the network expects, at [C, h, w]."""
    spec = network.preprocessing if normalise is None else normalise
    if spec is None:
        raise InputError(
            "this network does not say how pixels are scaled for it; pass normalise, a function of [C, h, w] in [0, 1] "
            'or a specification such as {"name": "imagenet"} (see sact.list_preprocessing())'
        )
    if isinstance(spec, Mapping):
        if spec.get("name") in _OF_WHOLE_IMAGES:
            raise InputError(
                f'"{spec["name"]}" scales an image by the mean of all its pixels; pass normalise=lambda pixels: '
                "(pixels - mean) / std with the image's own"
            )
        named = spec
        spec = lambda pixels: preprocessing.normalise(pixels, named)  # noqa: E731
    if not callable(spec):
        raise InputError(f"normalise is {normalise!r}, but it must be a function or a preprocessing specification")
    trial = spec(torch.zeros(channels, 2, 3))
    if not isinstance(trial, Tensor) or trial.shape != (channels, 2, 3):
        raise InputError(f"normalise makes of pixels [{channels}, 2, 3] something else than a tensor of that shape")
    return spec

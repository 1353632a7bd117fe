"""The ponder map of a picture, by any model: a network, a detector or a segmenter."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..compiled import compile
from ..drawing import FloatMap
from ..engines import Engine
from ..errors import InputError
from ..models.dense import DenseModel, extractor
from ..models.dense import scaled as for_extractor
from ..preprocessing import normalise, to_unit_tensor
from .postprocess import PonderMap

LONG_SIDE, DENSE_LONG_SIDE = 320, 640
"""What the paper brings cat2000's 1920 pixels to, for a classification and for a detection network."""


def long_side(model: nn.Module) -> int:
    """The longer side in pixels that images are brought to for a model."""
    return DENSE_LONG_SIDE if isinstance(model, DenseModel) else LONG_SIDE


def ponder_mapper(model: nn.Module, engine: Engine = "auto", size: int | tuple[int, int] | None = None) -> PonderMap:
    """A function that gives the ponder map of a picture.

    Args:
        model: a network whose weights know their preprocessing, a detector or a segmenter; SACT.
        engine: as in `sact.compile`; of the extractor.
        size: (height, width) that pictures are brought to, or what their longer side becomes; by default 320 pixels, or
            640 for a detector or segmenter (cat2000 becomes 320x180 or 640x360, as in the paper).

    Raises:
        InputError: the model's ponder map would be constant (ACT) or there is none (a plain network), its preprocessing
            is unknown, or the size is too small for it.
    """
    network = extractor(model)
    if network.config.halting != "sact":
        raise InputError(
            f'this network has halting "{network.config.halting}", so its ponder cost is the same all over an image; '
            'use one with halting "sact"'
        )
    config = model.config if isinstance(model, DenseModel) else None
    if config is None and network.preprocessing is None:
        raise InputError(
            "this network does not say how images are prepared for it; set model.preprocessing, for instance to "
            '{"name": "imagenet_sact", "size": 224} (see sact.list_preprocessing())'
        )
    size = long_side(model) if size is None else size
    least = min(size if isinstance(size, tuple) else (size,))
    if least <= 0:
        raise InputError(f"the size is {size}, but sides in pixels must be positive")
    if least < network.min_size:
        shown = f"{size[1]}x{size[0]}" if isinstance(size, tuple) else f"a longer side of {size}"
        raise InputError(f"images of {shown} are too small: both sides must be at least {network.min_size}")
    compiled = compile(network.eval(), engine)
    parameter = next(network.parameters())

    def scaled(pixels: Tensor) -> Tensor:
        return normalise(pixels, network.preprocessing or {}) if config is None else for_extractor(pixels, config)

    @torch.inference_mode()
    def ponder_map(picture: Image.Image) -> FloatMap:
        height, width = size if isinstance(size, tuple) else _scaled_size(picture, size, network.min_size)
        small = picture.resize((width, height), Image.Resampling.BILINEAR)
        batch = scaled(to_unit_tensor(small))[None].to(parameter.device, parameter.dtype)
        _, ponder = compiled(batch, return_ponder=True)
        return np.asarray(ponder.map((height, width))[0].double().cpu().numpy())

    return ponder_map


def _scaled_size(picture: Image.Image, side: int, least: int) -> tuple[int, int]:
    scale = side / max(picture.size)
    return max(round(picture.height * scale), least), max(round(picture.width * scale), least)

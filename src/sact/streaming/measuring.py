"""What a model spends on a picture, whatever the model is made for."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from ..compiled import compile
from ..engines import Engine
from ..errors import InputError
from ..models.adaptive import AdaptiveNetwork
from ..models.dense import DenseModel, extractor
from ..ponder import Ponder
from ..preprocessing import display_image, normalise, to_unit_tensor
from ..tiling import tiled

OWN = "own"
"""Stands for pictures at the size that they have."""
Size = int | str | None

TILE, LEAST_TILE = 1024, 32
TILE_ABOVE = 8.0
_BYTE = 255


@dataclass(frozen=True)
class Spent:
    """What a model spent on one picture.

    Attributes:
        map: ponder cost summed over blocks, at the resolution of the finest, float16 [h, w].
        units: per block the units evaluated, uint8 (uint16 where a block has more than 255) [h_k, w_k], under ACT [].
        size: (H, W) in which the network saw the picture.
        flops: the paper's count.
        dense_flops: of the plain network of the same units.
        cost: sum over blocks of the mean ponder cost.
        seconds: of the network.
    """

    map: NDArray[np.float16]
    units: tuple[NDArray[Any], ...]
    size: tuple[int, int]
    flops: int
    dense_flops: int
    cost: float
    seconds: float


class Meter:
    """Measures pictures; of a detector or segmenter the extractor alone runs.

    Args:
        model: a network, compiled or not, a detector or a segmenter, in evaluation mode.
        size: shorter side in pixels that pictures are brought to, or "own". None: as the model is used to, for a
            classifier the size of its preprocessing, for a detector its own two limits, for a segmenter "own".
        engine: see `sact.compile`.
        tile: side of a tile, in pixels.
        tile_above: megapixels from which on a picture is computed in tiles.
        scratch: folder for the feature maps of those that memory cannot hold; None: the system's.

    Attributes:
        network: that runs.
        size: what `size` comes to: the shorter side, the shorter and the longest, or "own".
        scale: least and greatest ponder cost that a position can have.

    Raises:
        InputError: the network is plain, in training mode, or does not say how pictures are prepared for it, or a size
            is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        size: Size = None,
        engine: Engine = "auto",
        tile: int = TILE,
        tile_above: float = TILE_ABOVE,
        scratch: Path | None = None,
    ) -> None:
        self.network = extractor(model)
        self._spec = _preprocessing(model, self.network)
        short_side, longest = self._sides = _sides(model, self._spec, size)
        self.size: Any = OWN if short_side is None else short_side if longest is None else [short_side, longest]
        _check(self.network, short_side, tile, tile_above)
        self._run = compile(self.network, engine)
        self._tile, self._tile_above, self._scratch = tile, tile_above, scratch
        counts = [len(block.units) for block in self.network.blocks]
        self.scale = (2.0 * len(counts), float(sum(counts) + len(counts)))

    def seen_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) at which a picture of this (H, W) is shown to the network; the long side is rounded down."""
        short_side, longest = self._sides
        if short_side is None:
            return size
        factor = short_side / min(size)
        if longest is not None:
            factor = min(factor, longest / max(size))
        height, width = (max(1, int(side * factor + 1e-6)) for side in size)
        return height, width

    def is_large(self, size: tuple[int, int]) -> bool:
        """Whether a picture of this (H, W) is computed in tiles."""
        height, width = self.seen_size(size)
        return height * width > 1e6 * self._tile_above

    def fit(self, picture: Image.Image, size: tuple[int, int] | None = None) -> Image.Image:
        """A picture at the size at which the network sees one of this (H, W); without it, of its own."""
        height, width = self.seen_size(size or (picture.height, picture.width))
        if picture.size == (width, height):
            return picture
        return picture.resize((width, height), Image.Resampling.BILINEAR)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image | NDArray[np.uint8]]) -> list[Spent]:
        """What is spent on each of some pictures of the same size, at that size.

        Args:
            pictures: RGB, see `fit`, or uint8 [H, W, 3], also of a mapped file. Large ones are computed in tiles: the
                same numbers in less memory.

        Raises:
            InputError: they are too small for the network, or so large that there is no room for its feature maps.
        """
        size = _size(pictures[0])
        if self.is_large(size):
            return [self._in_tiles(picture) for picture in pictures]
        parameter = next(self.network.parameters())
        images = torch.stack([normalise(to_unit_tensor(_as_image(picture)), self._spec) for picture in pictures])
        images = images.to(parameter.device, parameter.dtype)
        start = time.perf_counter()
        _, ponder = self._run(images, return_ponder=True)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        seconds = (time.perf_counter() - start) / len(pictures)
        return [_spent(ponder, index, size, seconds) for index in range(len(pictures))]

    def _in_tiles(self, picture: Image.Image | NDArray[np.uint8]) -> Spent:
        start = time.perf_counter()
        result = tiled(self.network, picture, tile=self._tile, scratch=self._scratch, normalise=self._spec)
        return _spent(result.ponder, 0, _size(picture), time.perf_counter() - start)

    def fingerprint(self) -> str:
        """A number that tells weights, structure, threshold and preprocessing of the network from others."""
        found = hashlib.blake2b(digest_size=16)
        facts = [self.network.config.to_dict(), {key: self._spec[key] for key in self._spec if key != "size"}]
        found.update(json.dumps(facts, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()


def _size(picture: Image.Image | NDArray[np.uint8]) -> tuple[int, int]:
    """(H, W)."""
    return (picture.height, picture.width) if isinstance(picture, Image.Image) else (picture.shape[0], picture.shape[1])


def _as_image(picture: Image.Image | NDArray[np.uint8]) -> Image.Image:
    return picture if isinstance(picture, Image.Image) else Image.fromarray(np.ascontiguousarray(picture))


def _spent(ponder: Ponder, index: int, size: tuple[int, int], seconds: float) -> Spent:
    finest = max((block.description.out_size for block in ponder.blocks), key=lambda shape: shape[0] * shape[1])
    assert ponder.cost is not None
    return Spent(
        ponder.map(finest)[index].float().cpu().numpy().astype(np.float16),
        tuple(
            block.units[index].cpu().numpy().astype(np.uint8 if block.max_units <= _BYTE else np.uint16)
            for block in ponder.blocks
        ),
        size,
        int(ponder.flops[index]),
        ponder.dense_flops,
        float(ponder.cost[index]),
        seconds,
    )


def _preprocessing(model: nn.Module, network: AdaptiveNetwork) -> dict[str, Any]:
    if isinstance(model, DenseModel):
        return {"name": "imagenet", "mean": list(model.config.image_mean), "std": list(model.config.image_std)}
    if network.preprocessing is None:
        raise InputError(
            "this network does not say how pictures are prepared for it; set model.preprocessing, for instance to "
            '{"name": "imagenet_sact", "size": 224} (see sact.list_preprocessing()), and save it'
        )
    return dict(network.preprocessing)


def _sides(model: nn.Module, spec: dict[str, Any], size: Size) -> tuple[int | None, int | None]:
    """The shorter side that pictures are brought to, and the longer one at most; None: as they are."""
    if size == OWN:
        return None, None
    if size is not None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f'the size is {size!r}, but it must be a whole number of pixels, or "{OWN}"')
        return size, None
    if not isinstance(model, DenseModel):
        return display_image(Image.new("RGB", (1, 1)), spec).width, None  # whether the spec says it or not
    config: Any = model.config
    return (config.min_size[-1], config.max_size) if config.family == "faster_rcnn" else (None, None)


def _check(network: AdaptiveNetwork, short_side: int | None, tile: int, tile_above: float) -> None:
    if network.config.halting == "none":
        raise InputError("this network is plain (halting none), so it has no ponder maps; name one that halts")
    if network.training:
        raise InputError("this network is in training mode, in which norms depend on the batch; call model.eval()")
    if short_side is not None and short_side < network.min_size:
        raise InputError(f"the size is {short_side}, but this network takes at least {network.min_size} pixels")
    if tile < LEAST_TILE or not tile_above > 0:
        raise InputError(
            f"tile is {tile} pixels and tile_above {tile_above} megapixels, but they must be at least {LEAST_TILE} and "
            "above 0"
        )

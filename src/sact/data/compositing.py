"""One composed picture: cut-outs laid on a part of a photograph, with what is visible of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from .cutouts import SOLID, Cutout, Cutouts
from .photographs import Photograph

T = TypeVar("T")

# The smallest part of a photograph, as a fraction of the largest that fits.
_MIN_ZOOM = 0.35
# How much of an object's width or height may lie outside the picture.
_OVERHANG = 0.3
_MAX_TILT = 20.0
# Places that are tried for an object before it is left out.
_TRIES = 12
# Fewer visible pixels than this are no object.
_MIN_PIXELS = 24
# Shares of objects and pictures that are blurred, and of objects that cast a shadow.
_BLURRED_OBJECTS, _BLURRED_PICTURES, _SHADOWS = 0.35, 0.15, 0.5
# Standard deviations of blur as fractions of the picture's longer side.
_OBJECT_BLUR, _PICTURE_BLUR = (0.001, 0.006), (0.001, 0.004)


@dataclass(frozen=True)
class Style:
    """How pictures are composed.

    Attributes:
        sizes: (width, height) in pixels, one of which is drawn for each picture.
        objects: least and greatest number of objects in a picture that is not empty.
        scale: least and greatest longer side of an object as a fraction of the picture's longer side.
        empty: share of pictures without objects.
        min_visible: least share of an object's pixels that others and the picture's border leave visible.
    """

    sizes: tuple[tuple[int, int], ...] = ((256, 192),)
    objects: tuple[int, int] = (1, 6)
    scale: tuple[float, float] = (0.15, 0.5)
    empty: float = 0.05
    min_visible: float = 0.3


@dataclass
class Instance:
    """An object in a picture: its cut-out, and what is visible of it, bool [H, W], of so many pixels as a whole."""

    cutout: Cutout
    visible: np.ndarray
    whole: int


@dataclass
class Composition:
    """A composed picture, uint8 [H, W, 3], its objects from back to front, and its photograph's name."""

    pixels: np.ndarray
    instances: list[Instance] = field(default_factory=list)
    background: str = ""


def compose_picture(
    photographs: Sequence[Photograph], cutouts: Cutouts, style: Style, generator: np.random.Generator
) -> Composition:
    """Compose one picture.

    Args:
        photographs: at least 1.
        cutouts: category -> at least 1; categories are drawn equally often.
        style: of the picture.
        generator: everything random is drawn from it.
    """
    width, height = _one_of(style.sizes, generator)
    photograph = _one_of(photographs, generator)
    scene = _background(photograph, (width, height), generator)
    instances: list[Instance] = []
    if generator.random() >= style.empty:
        for _ in range(generator.integers(style.objects[0], style.objects[1] + 1)):
            category = _one_of(sorted(cutouts), generator)
            _add(scene, instances, _one_of(cutouts[category], generator), style, generator)
    pixels = np.rint(scene.clip(0, 255)).astype(np.uint8)
    if generator.random() < _BLURRED_PICTURES:
        blur = ImageFilter.GaussianBlur(generator.uniform(*_PICTURE_BLUR) * max(width, height))
        pixels = np.array(Image.fromarray(pixels).filter(blur))
    return Composition(pixels, instances, photograph.name)


def _one_of(values: Sequence[T], generator: np.random.Generator) -> T:
    return values[int(generator.integers(len(values)))]


def _background(photograph: Photograph, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """A random part of a photograph at a size (width, height), lit anew; float32 [height, width, 3]."""
    full = Image.fromarray(photograph.pixels)
    shrink = min(full.width / size[0], full.height / size[1]) * generator.uniform(_MIN_ZOOM, 1)
    width, height = size[0] * shrink, size[1] * shrink
    left, top = generator.random() * (full.width - width), generator.random() * (full.height - height)
    box = (left, top, min(left + width, full.width), min(top + height, full.height))
    part = full.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    if generator.random() < 0.5:
        part = ImageOps.mirror(part)
    scene = np.asarray(part, dtype=np.float32)
    gain = generator.uniform(0.75, 1.15) * generator.uniform(0.93, 1.07, 3)
    return scene * gain.astype(np.float32) + np.float32(generator.uniform(-12, 12))


def _add(
    scene: np.ndarray, instances: list[Instance], cutout: Cutout, style: Style, generator: np.random.Generator
) -> None:
    """Lay an object over the scene and its instances, where there is room for it; changes both."""
    height, width = scene.shape[:2]
    longest = max(width, height)
    least, greatest = style.scale
    side = longest * least * (greatest / least) ** generator.random()
    layer = _layer(cutout, max(1, round(side)), longest, generator)
    solid = layer[..., 3] >= SOLID / 255
    for _ in range(_TRIES):
        at = _place((width, height), (layer.shape[1], layer.shape[0]), generator)
        visible = _on_canvas(solid, (height, width), at)
        if put_in_front(instances, Instance(cutout, visible, int(solid.sum())), style.min_visible):
            blend(scene, layer, at, generator)
            return


def _place(size: tuple[int, int], extent: tuple[int, int], generator: np.random.Generator) -> tuple[int, int]:
    """Left and top of an object of an extent in a picture of a size, both (width, height)."""
    ranges = [
        sorted((-_OVERHANG * part, full - (1 - _OVERHANG) * part)) for full, part in zip(size, extent, strict=True)
    ]
    left, top = (round(generator.uniform(low, high)) for low, high in ranges)
    return left, top


def put_in_front(instances: list[Instance], new: Instance, min_visible: float) -> bool:
    """Append an instance and take from the others what it covers, unless too little of one would remain.

    Args:
        instances: from back to front; changed where the answer is yes.
        new: the one for the front.
        min_visible: the share of each one's pixels that must stay visible.

    Returns:
        Whether it was done.
    """
    remaining = [old.visible & ~new.visible for old in instances]
    for instance, visible in zip([*instances, new], [*remaining, new.visible], strict=True):
        if visible.sum() < max(_MIN_PIXELS, min_visible * instance.whole):
            return False
    for old, visible in zip(instances, remaining, strict=True):
        old.visible = visible
    instances.append(new)
    return True


def _on_canvas(mask: np.ndarray, size: tuple[int, int], at: tuple[int, int]) -> np.ndarray:
    """A mask [h, w] in a picture of a size (height, width), its top left corner at (left, top), cut at the border."""
    canvas = np.zeros(size, dtype=mask.dtype)
    window, part = _overlap(size, mask.shape, at)
    canvas[window] = mask[part]
    return canvas


def _overlap(
    size: tuple[int, ...], extent: tuple[int, ...], at: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a layer lies in a picture, and the part of the layer that lies there."""
    (height, width), (h, w), (left, top) = size[:2], extent[:2], at
    rows = slice(max(0, top), max(0, min(height, top + h)))
    columns = slice(max(0, left), max(0, min(width, left + w)))
    part = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    return (rows, columns), part


def _layer(cutout: Cutout, side: int, longest: int, generator: np.random.Generator) -> np.ndarray:
    """A cut-out mirrored, tilted, scaled to a longer side and blurred: float32 [h, w, 4], opacity in [0, 1].

    Colours are premultiplied by the opacity, so that edges take nothing from behind them.
    """
    image = Image.fromarray(cutout.pixels)
    if generator.random() < 0.5:
        image = ImageOps.mirror(image)
    tilt = generator.uniform(-_MAX_TILT, _MAX_TILT)
    if generator.random() < 0.5:
        image = image.rotate(tilt, Image.Resampling.BICUBIC, expand=True)
        image = image.crop(image.getchannel("A").getbbox())
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS).convert("RGBa")
    if generator.random() < _BLURRED_OBJECTS:
        sigma = generator.uniform(*_OBJECT_BLUR) * longest
        image = ImageOps.expand(image, math.ceil(2 * sigma)).filter(ImageFilter.GaussianBlur(sigma))
    layer = np.array(image, dtype=np.float32)
    layer[..., 3] /= 255
    return layer


def blend(scene: np.ndarray, layer: np.ndarray, at: tuple[int, int], generator: np.random.Generator) -> None:
    """Lay a layer over a scene, lit in part like what it covers; half of them cast a soft shadow.

    Args:
        scene: float32 [H, W, 3], 0 to 255, changed.
        layer: float32 [h, w, 4], colours premultiplied by the opacity in [0, 1].
        at: left and top of the layer in the scene.
        generator: of contrast, brightness, tint and shadow.
    """
    window, part = _overlap(scene.shape, layer.shape, at)
    opacity = layer[..., 3:]
    mean = layer[..., :3].sum((0, 1)) / max(float(opacity.sum()), 1e-6)
    towards = (scene[window].mean((0, 1)) - mean) * generator.uniform(0, 0.4)
    contrast, brightness = generator.uniform(0.75, 1.2), generator.uniform(0.8, 1.2)
    tint = generator.uniform(0.94, 1.06, 3)
    # c -> (mean + contrast (c - mean) + towards) brightness tint, on premultiplied colours
    shift = ((1 - contrast) * mean + towards) * brightness * tint
    colours = layer[..., :3] * (contrast * brightness * tint).astype(np.float32) + shift.astype(np.float32) * opacity
    colours = np.minimum(colours.clip(0), 255 * opacity)
    if generator.random() < _SHADOWS:
        _cast_shadow(scene, layer, at, generator)
    scene[window] = scene[window] * (1 - opacity[part]) + colours[part]


def _cast_shadow(scene: np.ndarray, layer: np.ndarray, at: tuple[int, int], generator: np.random.Generator) -> None:
    side = max(layer.shape[:2])
    left, top = (
        round(where + side * generator.uniform(low, 0.06)) for where, low in zip(at, (-0.06, 0.0), strict=True)
    )
    opacity = np.rint(_on_canvas(layer[..., 3], scene.shape[:2], (left, top)) * 255).astype(np.uint8)
    soft = Image.fromarray(opacity).filter(ImageFilter.GaussianBlur(max(0.5, side * generator.uniform(0.02, 0.06))))
    strength = np.float32(generator.uniform(0.2, 0.6) / 255)
    scene *= 1 - strength * np.asarray(soft, dtype=np.float32)[..., None]

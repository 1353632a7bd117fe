"""Evaluation preprocessing by name: from a picture to the tensor that a network expects.

A specification is a plain dict such as `{"name": "imagenet_sact", "size": 224}`. It is stored beside a network's
weights, so that whoever loads them prepares pictures as they were prepared in training.
"""

from __future__ import annotations

import math
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from .errors import InputError

ImageLike = Union[Image.Image, str, "os.PathLike[str]", np.ndarray]

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_PIXELS = 150_000_000
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What Pillow raises on damaged files, beside OSError.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    MemoryError,
)


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name ends like that of an image that `open_image` reads."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def open_image(
    path: str | os.PathLike[str],
    max_pixels: int = MAX_PIXELS,
    min_side: int | None = None,
    keep_transparency: bool = False,
    upright: bool = True,
    too_large: str = "scale it down or raise max_pixels",
) -> Image.Image:
    """Read a JPEG, PNG or WebP file as an 8-bit RGB picture, upright.

    The EXIF orientation is applied, transparency is composited on white, 16-bit grey is scaled to 8 bits, palettes,
    grey and CMYK are converted; of an animation the first frame is read.

    Args:
        path: the file.
        max_pixels: refuse pictures of more pixels (width x height, read from the header before decoding). Pillow's own
            protection stays on, so that values above 178 million have no further effect.
        min_side: when given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, its sides not below this; faster.
        keep_transparency: a picture with transparency comes back as RGBA instead of composited.
        upright: apply the EXIF orientation; some data sets were labelled on the pixels as they are stored.
        too_large: what the message about a picture of more than `max_pixels` advises.

    Returns:
        RGB picture; RGBA where transparency is there and kept.

    Raises:
        InputError: the file is missing, empty, not a picture of these formats, damaged, truncated, or too large.
    """
    file = Path(path)
    if not file.exists():
        raise InputError(f"there is no image file {str(file)!r}; check the path")
    if not file.is_file():
        raise InputError(f"{str(file)!r} is not a file; give the path of one JPEG, PNG or WebP image")
    try:
        if file.stat().st_size == 0:
            raise InputError(f"the image file {str(file)!r} is empty (0 bytes); write or download it again")
        with warnings.catch_warnings():
            # Pillow warns above its own limit; ours is checked right below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise InputError(f"the image {str(file)!r} is too large to decode safely ({error}); scale it down") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"{str(file)!r} is not a readable JPEG, PNG or WebP image; convert it to one of these"
        ) from error
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(
            f"the image file {str(file)!r} cannot be opened ({error}); check that it is readable"
        ) from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise InputError(
                f"the image {str(file)!r} has {width}x{height} = {width * height} pixels, more than the limit of "
                f"{max_pixels}; {too_large}"
            )
        try:
            if min_side is not None:
                image.draft("RGB", (min_side, min_side))
            image.load()
            picture = _upright(image) if upright else image
            if keep_transparency and picture.has_transparency_data:
                return picture.convert("RGBA")
            return to_rgb(picture)
        except _DAMAGE as error:
            raise InputError(
                f"the image file {str(file)!r} is damaged or truncated ({error}); write or download it again"
            ) from error


def image_size(path: str | os.PathLike[str]) -> tuple[int, int, bool] | None:
    """Read an image's size from its header, without decoding the pixels.

    Returns:
        Width and height as stored, and whether the EXIF orientation turns the image by a quarter, so that they change
        places; None if this is no JPEG, PNG or WebP image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                turned = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                return image.width, image.height, turned
    except (*_DAMAGE, Image.DecompressionBombError):
        return None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGE:
        # The pixels have been decoded; unreadable metadata is no reason to refuse them.
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy in 8-bit RGB, of a picture of any mode; see `open_image`."""
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion to RGB clips at 255 instead of scaling.
        values = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all():
            raise InputError("the image holds NaN or infinite values; check how it was computed")
        grey = np.round(values / 257.0 if values.max() > 255 or image.mode.startswith("I;16") else values)
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        foreground = image.convert("RGBA")
        white = Image.new("RGBA", foreground.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, foreground).convert("RGB")
    if image.mode == "RGB":
        return image.copy()
    return image.convert("RGB")


def resize_legacy_bilinear(image: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize with the sampling of TensorFlow 1: `source = target * in / out`.

    There are no half-pixel centres and there is no antialiasing: the top left pixels coincide, and on shrinking only
    two pixels per axis are read.

    Args:
        image: [..., H, W], floating point.
        height: of the result.
        width: of the result.

    Returns:
        [..., height, width], the same dtype.
    """

    def taps(count_in: int, count_out: int) -> tuple[Tensor, Tensor, Tensor]:
        # float32 throughout, as TensorFlow computes it.
        source = torch.arange(count_out, dtype=torch.float32) * torch.tensor(count_in / count_out, dtype=torch.float32)
        low = source.floor().long().clamp(max=count_in - 1)
        return low, (low + 1).clamp(max=count_in - 1), (source - low).to(image.dtype)

    top, bottom, weight_y = taps(image.shape[-2], height)
    left, right, weight_x = taps(image.shape[-1], width)
    rows_top, rows_bottom = image.index_select(-2, top), image.index_select(-2, bottom)
    upper = torch.lerp(rows_top.index_select(-1, left), rows_top.index_select(-1, right), weight_x)
    lower = torch.lerp(rows_bottom.index_select(-1, left), rows_bottom.index_select(-1, right), weight_x)
    return torch.lerp(upper, lower, weight_y[:, None])


def to_unit_tensor(image: Image.Image) -> Tensor:
    """[3, H, W] float32 in [0, 1] of an RGB picture."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div_(255.0)


def to_bytes(pixels: Tensor) -> Tensor:
    """[0, 1] to 0..255 in uint8, rounded; of the same shape."""
    return pixels.mul(255.0).round_().clamp_(0, 255).to(torch.uint8)


def _resize_short_side(
    image: Image.Image, side: int, resample: Image.Resampling = Image.Resampling.BILINEAR
) -> Image.Image:
    width, height = image.size
    # The long side is rounded down, as torchvision does.
    if width <= height:
        target = (side, max(side, int(side * height / width)))
    else:
        target = (max(side, int(side * width / height)), side)
    return image.resize(target, resample)


def _centre_crop(image: Image.Image, size: int) -> Image.Image:
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _view_imagenet_sact(image: Image.Image, size: int) -> Tensor:
    left, top = image.width // 16, image.height // 16
    cropped = image.crop((left, top, image.width - left, image.height - top))
    return resize_legacy_bilinear(to_unit_tensor(cropped), size, size)


def _view_imagenet_torchvision(image: Image.Image, size: int) -> Tensor:
    return to_unit_tensor(_centre_crop(_resize_short_side(image, round(size * 256 / 224)), size))


def _view_scenes(image: Image.Image, size: int) -> Tensor:
    return to_unit_tensor(_centre_crop(_resize_short_side(image, size), size))


def _view_cifar(image: Image.Image, size: int) -> Tensor:
    return to_unit_tensor(
        image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)
    )


def scale_to_symmetric(pixels: Tensor) -> Tensor:
    """From [0, 1] to [-1, 1]."""
    return pixels * 2.0 - 1.0


def standardise_imagenet(pixels: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its deviation, per channel. [3, H, W] in [0, 1] -> [3, H, W]."""
    return (pixels - pixels.new_tensor(IMAGENET_MEAN)[:, None, None]) / pixels.new_tensor(IMAGENET_STD)[:, None, None]


def standardise_image(pixels: Tensor) -> Tensor:
    """Standardise one image by its own mean and deviation over all pixels and channels.

    `(x - mean) / max(std, 1 / sqrt(number of values))` on the scale 0..255, so that a constant image becomes zeros.

    Args:
        pixels: [3, H, W] in [0, 1].

    Returns:
        [3, H, W] with mean 0 and, unless almost constant, standard deviation 1.
    """
    values = pixels * 255.0
    centred = values - values.mean()
    return centred / centred.square().mean().sqrt().clamp(min=1.0 / math.sqrt(values.numel()))


class _Preprocessing(NamedTuple):
    view: Callable[[Image.Image, int], Tensor]
    normalise: Callable[[Tensor], Tensor]
    size: int


_BY_NAME: dict[str, _Preprocessing] = {
    "imagenet_sact": _Preprocessing(_view_imagenet_sact, scale_to_symmetric, 224),
    "imagenet_torchvision": _Preprocessing(_view_imagenet_torchvision, standardise_imagenet, 224),
    "cifar_sact": _Preprocessing(_view_cifar, standardise_image, 32),
    "scenes": _Preprocessing(_view_scenes, scale_to_symmetric, 96),
}


INTERPOLATIONS = ("bilinear", "bicubic")


def _imagenet(
    crop: float = 0.875,
    interpolation: str = "bicubic",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> _Preprocessing:
    """The way of most networks trained on ImageNet: resize, crop the centre, standardise."""
    if not isinstance(crop, (int, float)) or not 0 < crop <= 1:
        raise InputError(f'the preprocessing\'s "crop" is {crop!r}, but it must lie in (0, 1]; usual is 0.875')
    if interpolation not in INTERPOLATIONS:
        raise InputError(
            f'the preprocessing\'s "interpolation" is {interpolation!r}; choose {" or ".join(INTERPOLATIONS)}'
        )
    for name, values in (("mean", mean), ("std", std)):
        numbers = isinstance(values, (list, tuple)) and all(isinstance(value, (int, float)) for value in values)
        if not numbers or len(values) != 3 or (name == "std" and min(values) <= 0):
            raise InputError(
                f'the preprocessing\'s "{name}" is {values!r}, but it must be three numbers, one per channel'
            )
    resample = Image.Resampling[interpolation.upper()]

    def view(image: Image.Image, size: int) -> Tensor:
        return to_unit_tensor(_centre_crop(_resize_short_side(image, math.floor(size / crop), resample), size))

    def normalise(pixels: Tensor) -> Tensor:
        return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]

    return _Preprocessing(view, normalise, 224)


def list_preprocessing() -> list[str]:
    """The names that a specification may have, sorted."""
    return sorted([*_BY_NAME, "imagenet"])


def _resolve(spec: Mapping[str, Any]) -> tuple[_Preprocessing, int]:
    if not isinstance(spec, Mapping):
        raise InputError(
            f'a preprocessing specification is a dict such as {{"name": "scenes", "size": 96}}, not {spec!r}'
        )
    name = spec.get("name")
    own = ("crop", "interpolation", "mean", "std") if name == "imagenet" else ()
    unknown = sorted(str(key) for key in spec if key not in ("name", "size", *own))
    if unknown:
        known = ", ".join(repr(key) for key in ("name", "size", *own))
        raise InputError(f"the preprocessing specification has unknown keys {unknown}; it may have {known}")
    if not isinstance(name, str) or name not in list_preprocessing():
        raise InputError(f"unknown preprocessing {name!r}; choose one of {', '.join(list_preprocessing())}")
    chosen = _imagenet(**{key: spec[key] for key in own if key in spec}) if own else _BY_NAME[name]
    size = spec.get("size", chosen.size)
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 16384:
        raise InputError(f"the preprocessing size must be an integer from 1 to 16384, not {size!r}")
    return chosen, size


def as_picture(image: ImageLike) -> Image.Image:
    """An image as an 8-bit RGB picture; a file upright, anything else as its pixels lie.

    Args:
        image: PIL picture of any mode, path of a file (see `open_image`), or uint8 array [H, W, 3].

    Raises:
        InputError: it is none of these, cannot be read, or holds NaN or infinite values.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise InputError(
                f"an image array must be uint8 of shape [H, W, 3] with H, W > 0, not {image.dtype} of shape "
                f"{list(image.shape)}; convert it first"
            )
        return Image.fromarray(np.ascontiguousarray(image))
    if isinstance(image, (str, os.PathLike)):
        return open_image(image)
    raise InputError(f"an image must be a PIL image, a path or a uint8 array [H, W, 3], not {type(image).__name__}")


def preprocess(image: ImageLike, spec: Mapping[str, Any]) -> Tensor:
    """Prepare one picture for a network.

    Args:
        image: PIL picture of any mode, path of a file (see `open_image`), or uint8 array [H, W, 3].
        spec: `{"name": ..., "size": S}`; without "size" the customary one of that name. Names:

            - "imagenet_sact": the authors' ImageNet evaluation. Central 87.5 % of each side, resized to S x S with
              `resize_legacy_bilinear` (the aspect is not kept), scaled to [-1, 1].
            - "imagenet_torchvision": short side to S * 256 / 224 with antialiasing, central S x S, ImageNet's mean and
              deviation.
            - "imagenet": short side to S / "crop" with antialiasing ("interpolation": "bilinear" or "bicubic"), central
              S x S, minus "mean", divided by "std" (three numbers each, on the scale 0 to 1), as timm says for each of
              its networks.
            - "cifar_sact": resized to S x S where it differs, then `standardise_image`.
            - "scenes": short side to S with antialiasing, central S x S, scaled to [-1, 1].

    Returns:
        float32 [3, S, S].

    Raises:
        InputError: the picture cannot be read, or the specification is unknown.

    Source:
        The authors' `preprocessing/inception_preprocessing.py` and `cifar_data_provider.py`.
    """
    chosen, size = _resolve(spec)
    return chosen.normalise(chosen.view(as_picture(image), size))


def normalise(pixels: Tensor, spec: Mapping[str, Any]) -> Tensor:
    """Scale pixels as a specification does, for views of pictures that were made otherwise.

    Args:
        pixels: [3, H, W] in [0, 1].
        spec: as in `preprocess`.

    Raises:
        InputError: the specification is unknown.
    """
    return _resolve(spec)[0].normalise(pixels)


def display_image(image: ImageLike, spec: Mapping[str, Any]) -> Image.Image:
    """The part of a picture that the network sees, at the size it sees it, for overlays.

    Args:
        image: as in `preprocess`.
        spec: as in `preprocess`.

    Returns:
        RGB picture of S x S pixels, without the normalisation of values.

    Raises:
        InputError: as in `preprocess`.
    """
    chosen, size = _resolve(spec)
    pixels = to_bytes(chosen.view(as_picture(image), size))
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

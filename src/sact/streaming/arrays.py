"""Pictures that may be larger than memory: uint8 arrays in .npy files and TIFFs, read piece by piece."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError, SactError, require

Pixels = NDArray[np.uint8]

_JPEG = (6, 7, 33007, 34892)
"""TIFF's compressions whose YCbCr is unpacked to RGB."""


def array_size(path: Path) -> tuple[int, int]:
    """(height, width) of the picture in a file, without reading its pixels.

    Raises:
        InputError: the file is damaged, or holds something else than a grey (0 is black) or RGB picture of 8 bits.
    """
    with _reading(path):
        if path.suffix.lower() == ".npy":
            facts = np.load(path, mmap_mode="r", allow_pickle=False)
            return _check(path, facts.shape, facts.dtype)
        with require("tifffile", "tasks").TiffFile(path) as file:
            page = file.pages[0]
            kind = getattr(page.photometric, "name", str(page.photometric))
            if kind not in ("MINISBLACK", "RGB") and not (kind == "YCBCR" and page.compression in _JPEG):
                raise InputError(f"the pixels of {path} are of the kind {kind}, not grey or RGB; convert it to RGB")
            return _check(path, page.shape, page.dtype)


@contextlib.contextmanager
def open_array(path: Path, scratch: Path) -> Iterator[Pixels]:
    """The pixels of a file, in memory only where they are looked at.

    An uncompressed file is mapped; a compressed TIFF is unpacked, piece by piece, to a file that is mapped.

    Args:
        path: a .npy file, or a TIFF, of which the first page is read.
        scratch: folder for the unpacked pixels, as large as the picture; they are removed in the end.

    Yields:
        uint8 [H, W, 3], read only.

    Raises:
        InputError: as for `array_size`.
    """
    array_size(path)
    with tempfile.TemporaryFile(dir=scratch) as unpacked:  # has no name, hence is gone however this process ends
        with _reading(path):
            mapped = _mapped(path, unpacked)
        pixels = mapped if mapped.ndim == 3 else mapped[..., None]
        yield np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def reduced(pixels: Pixels, short_side: int) -> Image.Image:
    """A picture reduced by a whole factor, its shorter side still at least twice as long as `short_side` if it was.

    Rows are read a few at a time, and averaged over squares; what is left at the right and below is cut off.
    """
    height, width = pixels.shape[:2]
    factor = max(1, min(height, width) // (2 * short_side))
    if factor == 1:
        return Image.fromarray(np.ascontiguousarray(pixels))
    rows, columns = height // factor, width // factor
    result = np.empty((rows, columns, 3), np.uint8)
    for row in range(rows):
        strip = pixels[row * factor : (row + 1) * factor, : columns * factor].astype(np.float32)
        result[row] = np.rint(strip.reshape(factor, columns, factor, 3).mean((0, 2)))
    return Image.fromarray(result)


def _mapped(path: Path, unpacked: IO[bytes]) -> Pixels:
    if path.suffix.lower() == ".npy":
        pixels: Pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        return pixels
    tifffile = require("tifffile", "tasks")
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        if page.is_memmappable:
            pixels = tifffile.memmap(path, page=0, mode="r")
        else:
            pixels = page.asarray(out=np.memmap(unpacked, np.uint8, "w+", shape=page.shape))
    return pixels


def _check(path: Path, shape: tuple[int, ...], dtype: Any) -> tuple[int, int]:
    if dtype != np.uint8 or len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,)) or 0 in shape:
        raise InputError(
            f"{path} holds {dtype} {list(shape)}, but a picture that is read piece by piece must be uint8 [H, W, 3] or "
            "[H, W]; convert it"
        )
    return shape[0], shape[1]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What readers raise on damaged files, as InputError."""
    try:
        yield
    except SactError:
        raise
    except Exception as error:  # whatever a TIFF's codec raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "install it" if "imagecodecs" in reason else "write or download it again"  # tifffile's optional part
        raise InputError(f"{path} cannot be read ({reason}); {remedy}") from error

"""Where feature maps lie that are too large for memory: one file of scratch space, or memory where they do fit."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from .windows import Box, Size

MEMORY = 2**30
"""Bytes of feature maps that are held in memory unless another number is given."""
_ALIGNED = 64


def room(values: int, dtype: torch.dtype) -> int:
    """Bytes that a map of so many values takes in a store."""
    return -(-values * dtype.itemsize // _ALIGNED) * _ALIGNED


class FeatureMap:
    """A map in a store, position by position: a tile's row is one stretch of a file.

    Args:
        values: [H, W, C].
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @property
    def size(self) -> Size:
        """(H, W)."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def picture(self) -> Tensor:
        """[1, C, H, W], a view."""
        return as_picture(self.values)

    def part(self, box: Box) -> Tensor:
        """[h, w, C], a view."""
        (top, bottom), (left, right) = box
        return self.values[top:bottom, left:right]

    def read(self, box: Box) -> Tensor:
        """A copy of a part, [1, C, h, w]."""
        return as_picture(self.part(box).clone())

    def write(self, box: Box, x: Tensor) -> None:
        """Replace a part by [1, C, h, w]."""
        self.part(box).copy_(x[0].permute(1, 2, 0))


def as_picture(values: Tensor) -> Tensor:
    """[H, W, C] as [1, C, H, W], a view."""
    return values.permute(2, 0, 1)[None]


class Store:
    """Space for two maps, one at each end.

    The file has no name, so that it is gone as soon as this process is, however that ends. What was read or written is
    not counted as this process's memory once it is let go (`let_go`); the system keeps what it has memory for.

    Args:
        size: bytes, of both ends together.
        folder: for the file; None: the maps are in memory.

    Raises:
        InputError: the folder is missing, cannot be written, or has no room for `size` bytes.
    """

    def __init__(self, size: int, folder: Path | None) -> None:
        self.size = size
        self._mapped: mmap.mmap | None = None
        if folder is None:
            self._bytes = torch.empty(size, dtype=torch.uint8)
            return
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                _reserve(file.fileno(), size)
                self._mapped = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise InputError(
                f"{size / 1e9:.2f} GB of scratch space cannot be had in {folder} ({error.strerror}); name another"
            ) from error
        self._bytes = torch.frombuffer(self._mapped, dtype=torch.uint8)

    def place(self, end: int, size: Size, channels: int, dtype: torch.dtype) -> FeatureMap:
        """Space for a map at an end, 0 or 1; what was there is overwritten."""
        shape = *size, channels
        start = 0 if end == 0 else self.size - room(prod(shape), dtype)
        taken = self._bytes[start : start + prod(shape) * dtype.itemsize]
        return FeatureMap(taken.view(dtype).view(shape))

    def let_go(self) -> None:
        """Let the system have the memory of what was read or written."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)


def open_store(need: int, scratch: str | os.PathLike[str] | None, memory: int) -> Store:
    """Space for `need` bytes of maps, in memory if that is no more than `memory`, else in a file in `scratch`.

    Raises:
        InputError: the folder is missing, or has too little room; also where memory would do, so that it is noticed.
    """
    folder = Path(tempfile.gettempdir() if scratch is None else scratch)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} for scratch files; make it, or name another one as scratch")
    if need <= memory:
        return Store(need, None)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise InputError(
            f"the feature maps of this image take {need / 1e9:.2f} GB, but {folder} has only {free / 1e9:.2f} GB left; "
            "name a folder on a larger disk as scratch"
        )
    return Store(need, folder)


def _reserve(file: int, size: int) -> None:
    """Take room for a file now: a disk that is full later would end the process at a write to mapped memory."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)

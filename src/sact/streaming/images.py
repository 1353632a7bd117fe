"""Maps of images and arrays, each with results of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from ..preprocessing import image_size, open_image
from .arrays import array_size, open_array, reduced
from .measuring import Meter, Spent
from .prefetch import reading_ahead
from .sources import Source
from .work import Work, batches, sizes
from .writing import MOST_DRAWN, picture_files, write_picture

Picture = Image.Image | NDArray[np.uint8]
_TOO_LARGE = "scale it down or convert it to TIFF or .npy, which are read piece by piece"


@dataclass(frozen=True)
class Reading:
    """A file that was read, or looked at.

    Attributes:
        source: the file.
        size: (H, W) of its picture.
        picture: as the network sees it; None where it is so large that no two should be held in memory.
        problem: why it cannot be read; "" if it can.
    """

    source: Source
    size: tuple[int, int] = (0, 0)
    picture: Image.Image | None = None
    problem: str = ""


def map_images(sources: Sequence[Source], work: Work) -> None:
    """Write the results of images and arrays. What cannot be read is noted, and the others go on."""
    depth = work.wishes.batch + 1
    with reading_ahead(_readings(sources, work.meter), depth) as readings:
        for group in batches(readings, _alike, work.wishes.batch):
            try:
                _map_group(group, work)
            except InputError as error:
                work.problems += [(reading.source, str(error)) for reading in group]
                work.progress.expect(-len(group))


def is_written(source: Source, work: Work) -> bool:
    """Whether the results of an image or array are there."""
    files = picture_files(work.out, source.name, work.wishes.formats)
    return work.journal.done(source) is not None and all(path.is_file() for path in files.values())


def _readings(sources: Sequence[Source], meter: Meter) -> Generator[Reading, None, None]:
    for source in sources:
        try:
            yield _read(source, meter)
        except InputError as error:
            yield Reading(source, problem=str(error))
        except OSError as error:
            yield Reading(source, problem=f"{source.path} cannot be read ({error.strerror})")


def _read(source: Source, meter: Meter) -> Reading:
    if source.kind == "array":
        return Reading(source, array_size(source.path))
    header = image_size(source.path)
    if header is None:
        open_image(source.path, too_large=_TOO_LARGE)  # says what is wrong with it
        raise InputError(f"{source.path} has no size that can be read; convert it")
    width, height, turned = header
    size = (width, height) if turned else (height, width)
    return Reading(source, size, None if meter.is_large(size) else _open(source.path, size, meter))


def _open(path: Path, size: tuple[int, int], meter: Meter) -> Image.Image:
    # A JPEG that is to be much smaller is decoded at a fraction of its size.
    return meter.fit(open_image(path, min_side=2 * min(meter.seen_size(size)), too_large=_TOO_LARGE))


def _alike(reading: Reading) -> tuple[int, int] | str:
    return reading.source.name if reading.picture is None else reading.picture.size


def _map_group(group: list[Reading], work: Work) -> None:
    if group[0].problem:
        raise InputError(group[0].problem)
    if group[0].picture is None:
        with _large(group[0], work) as picture:
            _measure(group, [picture], work)
    else:
        _measure(group, [reading.picture for reading in group if reading.picture is not None], work)


@contextlib.contextmanager
def _large(reading: Reading, work: Work) -> Iterator[Picture]:
    """The picture of a large file, as the network sees it."""
    source, meter = reading.source, work.meter
    if source.kind == "image":
        yield _open(source.path, reading.size, meter)
        return
    with open_array(source.path, work.out) as pixels:
        seen = meter.seen_size(reading.size)
        yield pixels if seen == reading.size else meter.fit(reduced(pixels, min(seen)), reading.size)


def _measure(group: Sequence[Reading], pictures: Sequence[Picture], work: Work) -> None:
    spents = work.meter(pictures)
    for reading, picture, spent in zip(group, pictures, spents, strict=True):
        files = picture_files(work.out, reading.source.name, work.wishes.formats)
        write_picture(files, _shown(picture), spent, work.meter.scale)
        work.journal.add(reading.source, _record(reading, spent))
    work.progress.add(spents)


def _shown(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    height, width = picture.shape[:2]
    return reduced(picture, max(1, MOST_DRAWN * min(height, width) // (2 * max(height, width))))


def _record(reading: Reading, spent: Spent) -> dict[str, object]:
    share = spent.flops / spent.dense_flops
    numbers = {"frames": 1, "flops": spent.flops, "share": share, "cost": spent.cost, "seconds": spent.seconds}
    return sizes(reading.size, spent.size) | numbers | {"problem": ""}

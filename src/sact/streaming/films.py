"""Maps of videos: arrays for some frames at a time, so that a long video can go on where a run ended."""

from __future__ import annotations

import csv
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import replacing
from .encoding import encoder, encoding, join
from .journal import Record
from .measuring import Meter, Spent
from .prefetch import reading_ahead
from .sources import Source
from .video import Mark, Video, open_video
from .work import Work, batches, sizes
from .writing import Format, arrays, draw, save_arrays

COLUMNS = ("frame", "time", "flops", "share", "cost", "seconds")
"""Of `frames.csv`."""
_DRAWN: dict[Format, str] = {"png": "map", "overlay": "overlay"}
_SUMMED = ("frames", "flops", "dense_flops", "cost", "seconds")


@dataclass(frozen=True)
class Frame:
    """A frame that is kept.

    Attributes:
        mark: its place.
        size: (H, W), upright.
        picture: as the network sees it.
    """

    mark: Mark
    size: tuple[int, int]
    picture: Image.Image


def map_video(source: Source, work: Work) -> None:
    """Write the results of a video, or go on with them. What cannot be read of it is noted."""
    wishes = work.wishes
    parts = _parts(source, work)
    with open_video(source.path, wishes.every, wishes.fps) as video:
        after = Mark(**parts[-1]["last"]) if parts else None
        before = sum(part["frames"] for part in parts)
        expected = max(0, video.count - before)
        work.progress.expect(expected)
        with reading_ahead(_fitted(video, after, work.meter), wishes.batch + 2) as frames:
            for number in count(len(parts)):
                some = islice(frames, wishes.frames_per_file)
                first = next(some, None)
                if first is None:
                    break
                record = _map_part(source, number, chain([first], some), video.rate, work)
                work.journal.add(source, record)
                parts.append(record)
        work.progress.expect(sum(part["frames"] for part in parts) - before - expected)  # what the container said
        problem = video.problem
        if not parts:
            raise InputError(f"{source.path}: no frame could be decoded ({problem or 'it holds none'})")
        _join(source, len(parts), video.rate, work)
    work.journal.add(source, _whole(parts, problem))
    remove_segments(source, work)
    if problem:
        work.problems.append((source, problem))


def is_written(source: Source, work: Work) -> bool:
    """Whether the results of a video are there."""
    record = work.journal.done(source)
    if record is None:
        return False
    folder = work.out / source.name
    wanted = [_arrays_file(folder, part) for part in range(record["parts"]) if "npz" in work.wishes.formats]
    wanted += [folder / "frames.csv", *(folder / f"{name}.mp4" for name in _drawn(work).values())]
    return all(path.is_file() for path in wanted)


def _parts(source: Source, work: Work) -> list[Record]:
    """The records of the parts that are there; what else lies in the folder is of no use any more and removed."""
    folder = work.out / source.name
    parts: list[Record] = []
    for record in work.journal.parts(source):
        if not all(path.is_file() for path in _part_files(folder, len(parts), work)):
            break
        parts.append(record)
    kept = {path for part in range(len(parts)) for path in _part_files(folder, part, work)}
    for path in _segments(folder):
        if path not in kept:
            path.unlink()
    return parts


def _fitted(video: Video, after: Mark | None, meter: Meter) -> Generator[Frame, None, None]:
    for mark, picture in video.frames(after):
        yield Frame(mark, (picture.height, picture.width), meter.fit(picture))


def _map_part(source: Source, part: int, frames: Iterator[Frame], rate: Fraction, work: Work) -> Record:
    """Write the results of some frames; the arrays last, and a record is made when all are there."""
    folder, meter = work.out / source.name, work.meter
    marks: list[Mark] = []
    spents: list[Spent] = []
    size = (0, 0)
    with ExitStack() as files:
        add: dict[Format, Callable[[Image.Image], None]] = {
            kind: files.enter_context(encoding(_segment(folder, name, part, ".mp4"), rate))
            for kind, name in _drawn(work).items()
        }
        for group in batches(frames, lambda frame: frame.size, work.wishes.batch):
            measured = meter([frame.picture for frame in group])
            for frame, spent in zip(group, measured, strict=True):
                for kind, write in add.items():
                    write(draw(kind, frame.picture, spent, meter.scale))
            marks += [frame.mark for frame in group]
            spents += measured
            size = group[0].size
            work.progress.add(measured)
    _write_table(_segment(folder, "frames", part, ".csv"), marks, spents)
    if "npz" in work.wishes.formats:
        save_arrays(_arrays_file(folder, part), _facts(marks, spents) | arrays(spents))
    sums = {name: sum(getattr(spent, name) for spent in spents) for name in _SUMMED[1:]}
    return {"part": part, "frames": len(marks)} | sizes(size, spents[0].size) | sums | {"last": marks[-1].to_dict()}


def _facts(marks: list[Mark], spents: list[Spent]) -> dict[str, Any]:
    return {
        "frame": np.array([mark.number for mark in marks], np.int64),
        "time": np.array([mark.time for mark in marks], np.float64),
        "size": np.array(spents[0].size, np.int32),
        "flops": np.array([spent.flops for spent in spents], np.int64),
        "dense_flops": np.int64(spents[0].dense_flops),
    }


def _write_table(path: Path, marks: list[Mark], spents: list[Spent]) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        for mark, spent in zip(marks, spents, strict=True):
            share = f"{spent.flops / spent.dense_flops:.5f}"
            cost = (share, f"{spent.cost:.4f}", f"{spent.seconds:.5f}")
            table.writerow([mark.number, f"{mark.time:.4f}", spent.flops, *cost])


def _join(source: Source, parts: int, rate: Fraction, work: Work) -> None:
    """Make one file each of the parts' tables and videos."""
    folder = work.out / source.name
    with replacing(folder / "frames.csv") as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(",".join(COLUMNS) + "\n")
        for part in range(parts):
            file.write(_segment(folder, "frames", part, ".csv").read_text(encoding="utf-8"))
    for name in _drawn(work).values():
        join([_segment(folder, name, part, ".mp4") for part in range(parts)], folder / f"{name}.mp4", rate)


def remove_segments(source: Source, work: Work) -> None:
    """Remove what was joined of a video that is done."""
    for path in _segments(work.out / source.name):
        if path.suffix != ".npz":
            path.unlink()


def _whole(parts: list[Record], problem: str) -> Record:
    sums = {name: sum(part[name] for part in parts) for name in _SUMMED}
    frames = sums["frames"]
    numbers = {"flops": round(sums["flops"] / frames), "share": sums["flops"] / sums["dense_flops"]}
    numbers |= {"cost": sums["cost"] / frames, "seconds": sums["seconds"]}
    seen = {name: parts[0][name] for name in sizes((0, 0), (0, 0))}
    return seen | {"frames": frames} | numbers | {"problem": problem, "parts": len(parts)}


def _drawn(work: Work) -> dict[Format, str]:
    """The formats that are videos, with their names."""
    return {kind: _DRAWN[kind] for kind in work.wishes.formats if kind in _DRAWN and encoder() is not None}


def _part_files(folder: Path, part: int, work: Work) -> list[Path]:
    videos = [_segment(folder, name, part, ".mp4") for name in _drawn(work).values()]
    wanted = [_arrays_file(folder, part)] if "npz" in work.wishes.formats else []
    return [_segment(folder, "frames", part, ".csv"), *videos, *wanted]


def _arrays_file(folder: Path, part: int) -> Path:
    return _segment(folder, "frames", part, ".npz")


def _segments(folder: Path) -> list[Path]:
    """The files in a folder that belong to a part of a video."""
    digits = 6 * "[0-9]"
    return [path for name in ("frames", *_DRAWN.values()) for path in folder.glob(f"{name}_{digits}.*")]


def _segment(folder: Path, name: str, part: int, suffix: str) -> Path:
    return folder / f"{name}_{part:06}{suffix}"

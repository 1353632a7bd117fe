"""From many pictures to their ponder maps, in memory that does not grow with them."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import InputError, require
from ..files import replacing
from . import films, images
from .encoding import encoder
from .journal import open_journal
from .measuring import Meter
from .progress import Progress
from .sources import Source, find_sources
from .work import Wishes, Work

PROBLEMS = "problems.csv"


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        pictures: measured now, frames of videos among them.
        before: files that were finished before.
        share: FLOPs of the pictures measured now, of the plain network's; None where there are none.
        problems: (file, reason) of what could not be read, or not to its end.
    """

    pictures: int
    before: int
    share: float | None
    problems: list[tuple[str, str]]


def write_maps(
    model: nn.Module,
    inputs: Iterable[str | Path],
    out: str | Path,
    wishes: Wishes | None = None,
    *,
    recursive: bool = False,
    name: str = "",
    quiet: bool = False,
    **options: Any,
) -> Report:
    """Write the ponder maps of images, videos and large pictures; what is there already is left alone.

    Args:
        model: a network, compiled or not, a detector or a segmenter, in evaluation mode.
        inputs: files and folders.
        out: folder of the results; made if it does not exist.
        wishes: what is written of each picture.
        recursive: look into folders of folders, too.
        name: of the model, for messages.
        quiet: show no progress.
        **options: how pictures are shown to the model, see `Meter`.

    Raises:
        InputError: an argument cannot be used, or `out` holds results made otherwise.
        MissingExtraError: there are videos, and PyAV is not installed.
    """
    wishes, folder = wishes or Wishes(), Path(out)
    sources = find_sources(inputs, folder, recursive)
    if any(source.kind == "video" for source in sources):
        _check_video(wishes)
    meter = Meter(model, **{"scratch": folder} | options)
    with open_journal(folder, _settings(meter, wishes, name)) as journal:
        progress = Progress(0, quiet)
        work = Work(meter, wishes, folder, journal, progress)
        try:
            before = _map(sources, work)
        finally:
            progress.close()
        problems = [(source.name, reason) for source, reason in work.problems]
        _write_problems(folder / PROBLEMS, problems)
    return Report(progress.count, before, progress.share, problems)


def _map(sources: Sequence[Source], work: Work) -> int:
    """Do what is to be done; gives the number of files that were finished before."""
    videos = [source for source in sources if source.kind == "video"]
    to_do = [source for source in sources if source.kind != "video" and not images.is_written(source, work)]
    before = len(sources) - len(videos) - len(to_do)
    work.progress.expect(len(to_do))
    images.map_images(to_do, work)
    for video in videos:
        if films.is_written(video, work):
            before += 1
            films.remove_segments(video, work)
            problem = (work.journal.done(video) or {}).get("problem")
            work.problems += [(video, problem)] if problem else []
            continue
        try:
            films.map_video(video, work)
        except InputError as error:
            work.problems.append((video, str(error)))
    return before


def _check_video(wishes: Wishes) -> None:
    require("av", "video")
    drawn = [kind for kind in wishes.formats if kind != "npz"]
    if drawn and encoder() is None:
        if len(drawn) == len(wishes.formats):
            raise InputError("PyAV has no encoder for videos here (libx264 or mpeg4); ask for npz instead")
        warnings.warn(
            f"PyAV has no encoder for videos here; {' and '.join(drawn)} of videos are left out", stacklevel=3
        )


def _settings(meter: Meter, wishes: Wishes, name: str) -> dict[str, Any]:
    network = meter.network
    return {
        "model": name or type(network).__name__,
        "weights": meter.fingerprint(),
        "budget": network.budget,
        "cap": network.cap,
        "size": meter.size,
        "format": sorted(wishes.formats),
        "every": wishes.every,
        "fps": wishes.fps,
        "frames_per_file": wishes.frames_per_file,
    }


def _write_problems(path: Path, problems: Sequence[tuple[str, str]]) -> None:
    if not problems:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerows([("file", "problem"), *problems])

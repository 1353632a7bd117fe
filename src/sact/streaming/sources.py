"""What is read: images, arrays and videos, by name or by folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import InputError
from ..preprocessing import IMAGE_SUFFIXES

Kind = Literal["image", "array", "video"]

SETTINGS, INDEX = "settings.json", "index.jsonl"
"""Files by which a folder of results is known."""
ARRAY_SUFFIXES = (".npy", ".tif", ".tiff")
"""Pictures that are read without being held in memory."""
VIDEO_SUFFIXES = (
    ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".webm", ".wmv",
)  # fmt: skip
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(IMAGE_SUFFIXES, "image"),
    **dict.fromkeys(ARRAY_SUFFIXES, "array"),
    **dict.fromkeys(VIDEO_SUFFIXES, "video"),
}


@dataclass(frozen=True)
class Source:
    """A file whose maps are wanted.

    Attributes:
        path: of the file.
        name: its path within the folder that was given, with "/" between folders; results are named after it.
        kind: how it is read.
        stamp: bytes and time of the last change in nanoseconds, by which another file of the same name is told.
    """

    path: Path
    name: str
    kind: Kind
    stamp: tuple[int, int]


def find_sources(inputs: Iterable[str | Path], out: Path, recursive: bool = False) -> list[Source]:
    """The files that inputs name; a folder stands for the images, arrays and videos in it.

    Args:
        inputs: files and folders.
        out: folder of the results; what lies in it, or in one like it, is no source.
        recursive: look into folders of folders, too. Links to folders are not followed.

    Raises:
        InputError: an input does not exist or is of no known kind, a folder holds nothing to read or is `out` itself,
            two files would have results of the same name, or no input is given.
    """
    sources: dict[str, Source] = {}
    for path in map(Path, inputs):
        found = list(_in_folder(path, out, recursive) if path.is_dir() else [_single(path)])
        if not found:
            below = "" if recursive else "; --recursive looks into its folders, too"
            raise InputError(f"the folder {path} holds no image, array or video{below}")
        for source in found:
            other = sources.setdefault(source.name, source)
            if other.path.resolve() != source.path.resolve():
                raise InputError(
                    f"{other.path} and {source.path} would both have results named {source.name}; "
                    "name the folder above them with --recursive, or give each its own --out"
                )
    if not sources:
        raise InputError("nothing to read is given; name images, videos or folders")
    return list(sources.values())


def _single(path: Path) -> Source:
    if not path.exists():
        raise InputError(f"there is no file or folder {path}; check the path")
    if path.suffix.lower() not in _KINDS:
        raise InputError(
            f"{path} is of no kind that is read here: images ({', '.join(IMAGE_SUFFIXES)}), arrays "
            f"({', '.join(ARRAY_SUFFIXES)}) or videos ({', '.join(VIDEO_SUFFIXES)}); convert it to one of these"
        )
    return _source(path, path.name)


def _in_folder(folder: Path, out: Path, recursive: bool) -> Iterator[Source]:
    results = out.resolve()
    if folder.resolve() == results:
        raise InputError(f"--out is {out}, which is the folder of the pictures; name another one, for instance in it")
    for parent, folders, names in os.walk(folder):  # sorted: the order must not depend on the file system
        kept = sorted(name for name in folders if recursive and not name.startswith("."))
        folders[:] = [name for name in kept if not _holds_results(Path(parent, name), results)]
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and path.suffix.lower() in _KINDS and path.is_file():
                yield _source(path, path.relative_to(folder).as_posix())


def _holds_results(folder: Path, out: Path) -> bool:
    return folder.resolve() == out or all((folder / name).is_file() for name in (SETTINGS, INDEX))


def _source(path: Path, name: str) -> Source:
    facts = path.stat()
    return Source(path, name, _KINDS[path.suffix.lower()], (facts.st_size, facts.st_mtime_ns))

"""What is done already, so that a run that ended in the middle goes on there."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import InputError
from ..files import make_folder, replacing, write_json
from .sources import INDEX, SETTINGS, Source

Record: TypeAlias = dict[str, Any]

COLUMNS = (
    *("file", "kind", "width", "height", "seen_width", "seen_height", "frames"),
    *("flops", "share", "cost", "seconds", "problem"),
)
"""Of `index.csv`; `index.jsonl` has these and by what a file is told from another of its name."""
_TEMPORARY = re.compile(r"\..*-[a-z0-9_]{8}\.tmp(\.\w+)?")


class Journal:
    """Records of what is done, one JSON object a line, added as work goes on; see `open_journal`.

    A line that a sudden end tore is no record, hence its work is done again.

    Args:
        folder: of the results.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / INDEX
        self._records: dict[str, str] = {}  # as text, which takes less memory
        self._parts: dict[str, list[Record]] = {}
        whole = self._read()
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        if not whole:
            self._file.write("\n")

    def done(self, source: Source) -> Record | None:
        """The record of a file that is finished."""
        record: Record = json.loads(self._records.get(source.name, "{}"))
        return record if _is_of(record, source) else None

    def parts(self, source: Source) -> list[Record]:
        """The records of the parts that are done of a video that is not finished, in order."""
        found = [record for record in self._parts.get(source.name, []) if _is_of(record, source)]
        return [record for index, record in enumerate(found) if record["part"] == index]

    def add(self, source: Source, record: Record) -> None:
        """Note that the results of a file, or with a number "part" one part of them, are written."""
        line = json.dumps({"file": source.name, "kind": source.kind} | record | {"stamp": list(source.stamp)})
        self._file.write(f"{line}\n")
        self._file.flush()
        self._keep(line)

    def close(self, finished: bool) -> None:
        """Close the file; after a run that came to its end, sort it and write `index.csv`."""
        self._file.close()
        if not finished:
            return
        lines = [self._records[name] for name in sorted(self._records)]
        with replacing(self._path) as path, open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.writelines(f"{json.dumps(part)}\n" for name in sorted(self._parts) for part in self._parts[name])
        with replacing(self.folder / "index.csv") as path, open(path, "w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
            table.writeheader()
            table.writerows(map(json.loads, lines))

    def _read(self) -> bool:
        """Read the records; says whether the last line is whole."""
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else ""
        for line in text.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self._keep(line)
        return not text or text.endswith("\n")

    def _keep(self, line: str) -> None:
        record = json.loads(line)
        name, part = record["file"], record.get("part")
        if part is None:
            self._records[name] = line
            self._parts.pop(name, None)
        else:
            self._parts[name] = [*self._parts.get(name, [])[:part], record]


@contextlib.contextmanager
def open_journal(folder: Path, settings: dict[str, Any]) -> Iterator[Journal]:
    """The journal of a folder of results, which is made if it does not exist, and is this process's alone meanwhile.

    Args:
        folder: of the results.
        settings: what they are made with, JSON-able.

    Raises:
        InputError: the folder cannot be written, holds results made with other settings, or another process is at it.
    """
    make_folder(folder)
    with _alone(folder):
        _check_settings(folder / SETTINGS, settings)
        _remove_temporary(folder)
        journal = Journal(folder)
        finished = False
        try:
            yield journal
            finished = True
        finally:
            journal.close(finished)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows, which has no such locks
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is writing to {folder}; wait for it, or name another --out") from None
        yield
    finally:
        os.close(handle)


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    if not path.exists():
        write_json(path, settings)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it if the folder holds nothing of worth") from error
    if not isinstance(before, dict):
        raise InputError(f"{path} holds no settings of sact maps; name another --out")
    if before.get("weights") == settings["weights"]:
        before["model"] = settings["model"]  # the same by another name
    for name in sorted(before.keys() | settings.keys()):
        if before.get(name) != settings.get(name):
            raise InputError(
                f"{path.parent} holds results made with {name} {json.dumps(before.get(name))}, but now it is "
                f"{json.dumps(settings.get(name))}; name another --out, or give the same"
            )


def _remove_temporary(folder: Path) -> None:
    """Remove what a process that was killed left half written."""
    for parent, _, names in os.walk(folder):
        for name in filter(_TEMPORARY.fullmatch, names):
            Path(parent, name).unlink(missing_ok=True)


def _is_of(record: Record, source: Source) -> bool:
    return record.get("stamp") == list(source.stamp)

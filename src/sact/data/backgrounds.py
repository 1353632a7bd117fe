"""Photographs of several folders as backgrounds, divided among splits by file."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import InputError
from .cutouts import LOOKS_DRAWN
from .photographs import (
    MAX_PER_SPLIT,
    Photograph,
    find_photographs,
    is_desktop,
    name_fraction,
    read_photograph,
    without_repeats,
)
from .splits import SPLITS, split_by_rank

# Ends of names by which variants of one picture differ.
_VARIANT = re.compile(r"[-_ ](l|d|light|dark|day|night)$", re.IGNORECASE)


def load_backgrounds(
    folders: Sequence[str | os.PathLike[str]] | None, side: int, drawings: bool = True, workers: int = 1
) -> tuple[dict[str, list[Photograph]], dict[str, str]]:
    """Photographs by split, reduced; what is one picture in several sizes or variants is in one split.

    Args:
        folders: searched with their subfolders for JPEG, PNG and WebP files; None for the photographs of this machine,
            see `find_photographs`. Of desktop backgrounds drawings are left out in any case.
        side: the short side in pixels to which larger pictures are reduced.
        drawings: whether drawings are wanted.
        workers: threads.

    Returns:
        "train", "val" and "test" -> photographs, about 60, 15 and 25 %, none empty; and name -> reason of those left
        out.

    Raises:
        InputError: a folder is not there or holds no picture, or there are not 3 photographs.
    """
    files = _find(folders)
    if len(files) > MAX_PER_SPLIT * len(SPLITS):  # a sample by hash, so that it fits into memory
        kept = sorted(files, key=lambda name: (name_fraction("sample|" + name), name))[: MAX_PER_SPLIT * len(SPLITS)]
        files = {name: files[name] for name in sorted(kept)}

    def read(name: str) -> Photograph | str:
        file, desktop = files[name]
        try:
            pixels = read_photograph(file, side, drawings and not desktop)
        except InputError as error:
            return str(error)
        return Photograph(name, pixels) if pixels.size else LOOKS_DRAWN

    with ThreadPoolExecutor(workers) as pool:
        results = dict(zip(files, pool.map(read, files), strict=True))
    left_out = {name: result for name, result in results.items() if isinstance(result, str)}
    found = [result for result in results.values() if not isinstance(result, str)]
    variants: dict[str, list[Photograph]] = defaultdict(list)
    for photograph in without_repeats(found):
        variants[_VARIANT.sub("", photograph.name)].append(photograph)
    if len(variants) < len(SPLITS):
        raise InputError(
            f"{len(variants)} photographs for backgrounds were found, but 3 are needed, one for each of train, val and "
            f"test; give --backgrounds folders with more JPEG, PNG or WebP photographs"
        )
    divided = split_by_rank({name: name_fraction(name) for name in variants})
    return {split: [one for name in sorted(divided[split]) for one in variants[name]] for split in SPLITS}, left_out


def _find(folders: Sequence[str | os.PathLike[str]] | None) -> dict[str, tuple[Path, bool]]:
    """Name -> file and whether it is a desktop background."""
    if folders is None:
        return {name: (file, True) for name, file in find_photographs().items()}
    found: dict[str, tuple[Path, bool]] = {}
    for folder in folders:
        root = Path(folder).expanduser()
        desktop = is_desktop(root)
        files = find_photographs(root, desktop)
        if not files:
            raise InputError(f"there are no photographs in {str(root)!r}; give --backgrounds another folder")
        for name, file in files.items():
            # A name that another folder has too gets the folder's before it; the same file twice is one.
            if name in found and not file.samefile(found[name][0]):
                name = f"{root.resolve().as_posix()}/{name}"
            found[name] = (file, desktop)
    return dict(sorted(found.items()))

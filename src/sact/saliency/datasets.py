"""Readers of fixation data sets in the layouts that they are published in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, require
from ..preprocessing import image_size, open_image
from . import gaze
from .fixations import FixationSet, Points, Stimulus, spread

DEGREE_SHARE = 38 / 1920
"""One degree of visual angle in cat2000, as a share of the width: 38 of 1920 pixels."""
_WHITE = 128

Fixations = NDArray[np.float64]


def read_fixations(dataset: str, folder: str | Path, limit: int | None = None) -> FixationSet:
    """Read where people looked: all fixations, and the sizes of the images, not yet their pixels.

    Args:
        dataset: "cat2000" or "mit1003".
        folder: of the unpacked archives. cat2000: `trainSet/Stimuli/CATEGORY/001.jpg`, `trainSet/FIXATIONLOCS/CATEGORY/
            001.mat`, and `trainSet/allFixData.mat` for the observers one by one. MIT1003: `ALLSTIMULI/NAME.jpeg`,
            `ALLFIXATIONMAPS/NAME_fixPts.jpg`, and `DATA/OBSERVER/NAME.mat`.
        limit: use this many images, spread evenly over the categories.

    Returns:
        The usable images; what is unusable is in its report.

    Raises:
        InputError: an unknown data set, a folder in another layout, or one without a usable image.
    """
    if dataset not in READERS:
        raise InputError(f'the data set is "{dataset}", but it must be one of {", ".join(READERS)}')
    if limit is not None and limit < 1:
        raise InputError(f"the number of images is {limit}, but it must be at least 1")
    found = READERS[dataset](Path(folder), limit)
    if not found.stimuli:
        first = f"; the first problem: {found.problems[0]}" if found.problems else ""
        raise InputError(f"{folder} holds no image with fixations{first}")
    return found


def read_cat2000(folder: Path, limit: int | None = None) -> FixationSet:
    """`read_fixations` of cat2000 (Borji and Itti 2015): its training set, as the test set has no fixations."""
    root = folder / "trainSet" if (folder / "trainSet").is_dir() else folder
    for part in ("Stimuli", "FIXATIONLOCS"):
        if not (root / part).is_dir():
            raise InputError(
                f"{root} has no folder {part}; cat2000 lies in trainSet/Stimuli/CATEGORY/001.jpg and "
                "trainSet/FIXATIONLOCS/CATEGORY/001.mat (its test set has no fixations)"
            )
    categories = sorted(path for path in (root / "Stimuli").iterdir() if path.is_dir())
    paths = spread({path.name: sorted(path.glob("*.jpg")) for path in categories}, limit)
    found = FixationSet()
    observers = _cat2000_observers(root / "allFixData.mat", found)
    for path in paths:
        name = f"{path.parent.name}/{path.stem}"
        source = root / "FIXATIONLOCS" / f"{name}.mat"
        try:
            size = _image_size(path)
            points = _points(_matrix(source, "fixLocs"), size, f"{source}: field fixLocs")
        except InputError as error:
            found.problems.append(f"{error}; image left out")
            continue
        # MATLAB counts from 1.
        each = [found.inside(one - 1, size, f"{root / 'allFixData.mat'}: {name}") for one in observers.get(name, [])]
        degree = DEGREE_SHARE * size[1]
        found.stimuli.append(Stimulus(name, path.parent.name, path, size, points, tuple(each), degree))
    if observers and not any(stimulus.observers for stimulus in found.stimuli):
        found.no_observers = f"no key of allData in {root / 'allFixData.mat'} names an image, such as Action/001.jpg"
    return found


def read_mit1003(folder: Path, limit: int | None = None) -> FixationSet:
    """`read_fixations` of MIT1003 (Judd et al. 2009); all images are of one category.

    An observer's first fixation, in the centre since every image appeared there, is left out, as its authors do.
    """
    for part in ("ALLSTIMULI", "ALLFIXATIONMAPS"):
        if not (folder / part).is_dir():
            raise InputError(
                f"{folder} has no folder {part}; MIT1003 lies in ALLSTIMULI/NAME.jpeg, ALLFIXATIONMAPS/NAME_fixPts.jpg "
                "and DATA/OBSERVER/NAME.mat"
            )
    paths = sorted((folder / "ALLSTIMULI").glob("*.jpeg"))[:limit]
    subjects = sorted(path for path in (folder / "DATA").glob("*") if path.is_dir())
    found = FixationSet(no_observers="" if subjects else f"{folder / 'DATA'} with its folder per observer is missing")
    for path in paths:
        source = folder / "ALLFIXATIONMAPS" / f"{path.stem}_fixPts.jpg"
        try:
            size = _image_size(path)
            dots = np.asarray(open_image(source, upright=False).convert("L")) >= _WHITE
            points = _points(dots, size, str(source))
        except InputError as error:
            found.problems.append(f"{error}; image left out")
            continue
        observers = []
        for subject in subjects:
            recording = subject / f"{path.stem}.mat"
            try:
                fixations = gaze.find_fixations(_recording(recording))[1:]
            except InputError as error:
                found.problems.append(f"{error}; this observer is left out for this image")
                continue
            observers.append(found.inside(fixations - 1, size, str(recording)))
        degree = float(gaze.PIXELS_PER_DEGREE)
        found.stimuli.append(Stimulus(path.stem, "MIT1003", path, size, points, tuple(observers), degree))
    return found


READERS: dict[str, Callable[[Path, int | None], FixationSet]] = {"cat2000": read_cat2000, "mit1003": read_mit1003}


def _image_size(path: Path) -> tuple[int, int]:
    """(height, width), of the header alone."""
    size = image_size(path)
    if size is None:
        raise InputError(f"{path} is not a readable image; write or download it again")
    return size[1], size[0]


def _points(matrix: NDArray[Any], size: tuple[int, int], source: str) -> Points:
    """Where a matrix of the image's size is not zero."""
    if matrix.ndim != 2 or matrix.dtype.kind not in "buif":
        raise InputError(f"{source} is {matrix.dtype} of shape {list(matrix.shape)}, not a matrix of numbers")
    if matrix.shape != size:
        raise InputError(
            f"{source} is {matrix.shape[1]}x{matrix.shape[0]}, but its image is {size[1]}x{size[0]} pixels"
        )
    rows, columns = np.nonzero(matrix)
    if not len(rows):
        raise InputError(f"{source} has no fixation")
    return np.stack([columns, rows], axis=1).astype(np.int32)


def _load(path: Path) -> dict[str, Any]:
    """The variables of a .mat file."""
    scipy_io = require("scipy.io", "saliency")
    if not path.is_file():
        raise InputError(f"{path} is missing")
    try:
        variables = scipy_io.loadmat(path)
    except Exception as error:  # a damaged file can raise nearly anything
        raise InputError(f"{path} is not a readable MATLAB file ({error or type(error).__name__})") from error
    return {name: value for name, value in variables.items() if not name.startswith("__")}


def _matrix(path: Path, name: str) -> NDArray[Any]:
    variables = _load(path)
    if name not in variables:
        raise InputError(f"{path} has no field {name} (it has {', '.join(variables) or 'none'})")
    value = variables[name]
    return np.asarray(value.toarray() if hasattr(value, "toarray") else value)


def _recording(path: Path) -> Fixations:
    """The samples of one observer's gaze, [N, 2], from the only variable, named after the image."""
    variables = _load(path)
    try:
        (recording,) = variables.values()
        samples = np.asarray(recording["DATA"][0, 0]["eyeData"][0, 0], dtype=np.float64)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise InputError(f"{path} has no field NAME.DATA(1).eyeData (it has {', '.join(variables)})") from error
    if samples.ndim != 2 or samples.shape[1] < 2 or not len(samples):
        raise InputError(f"{path}: field eyeData has shape {list(samples.shape)}, but it must be [samples, 2]")
    return samples[:, :2]


def _cat2000_observers(path: Path, found: FixationSet) -> dict[str, list[Fixations]]:
    """By image, the fixations of each observer, [K, 2]; says in the set why there are none."""
    if not path.is_file():
        found.no_observers = f"{path} is missing"
        return {}
    try:
        matio = require("matio", "saliency")
        table = matio.load_from_mat(str(path), variable_names=["allData"]).get("allData")
    except ImportError as error:  # mat-io needs Python 3.11
        found.no_observers = f"{path} holds a containers.Map of MATLAB: {error}"
        return {}
    except Exception as error:  # a damaged file can raise nearly anything
        found.no_observers = f"{path} is not a readable MATLAB file ({error or type(error).__name__})"
        return {}
    if not isinstance(table, Mapping):
        found.no_observers = f"{path} has no field allData that is a containers.Map"
        return {}
    observers = {}
    for key, records in table.items():
        image = PurePosixPath(str(key).replace("\\", "/"))
        name = f"{image.parent.name}/{image.stem}"
        try:
            observers[name] = [_fixations(record) for record in _records(records)]
        except (ValueError, TypeError) as error:
            found.problems.append(f"{path}: field allData('{key}') {error}; its observers are left out")
    return observers


def _records(values: Any) -> list[Any]:
    """The structs with the fields name and data in nested cells."""
    array = np.asarray(values)
    if array.dtype.names:
        return list(array.ravel())
    if array.dtype != object:
        raise ValueError(f"is {array.dtype} of shape {list(array.shape)}, not a cell of structs")
    return [record for item in array.ravel() for record in _records(item)]


def _fixations(record: Any) -> Fixations:
    if "data" not in record.dtype.names:
        raise ValueError(f"has no field data (it has {', '.join(record.dtype.names)})")
    data = np.asarray(record["data"], dtype=np.float64)
    if data.size == 0:
        return np.empty((0, 2))
    if data.ndim != 2 or data.shape[1] < 2:
        raise ValueError(f"has data of shape {list(data.shape)}, but it must be [fixations, 2]")
    return data[:, :2]

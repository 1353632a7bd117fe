"""cat2000 and MIT1003 of a few drawn images, as the published archives lie: people look at the bright square."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("matio", reason="mat-io, which writes cat2000's observers, needs Python 3.11")

from matio import save_to_mat
from matio.utils import MatlabContainerMap
from scipy.io import savemat
from scipy.ndimage import gaussian_filter

SIZE = (54, 96)
"""Height and width of the images."""
SQUARE = 16
"""Side of the square in pixels."""


def write_cat2000(
    folder: Path, categories: tuple[str, ...] = ("Action", "Art"), images: int = 4, seed: int = 0
) -> Path:
    """Write `trainSet` with Stimuli, FIXATIONLOCS, FIXATIONMAPS and allFixData.mat; three observers per image."""
    rng = np.random.default_rng(seed)
    table: dict[str, Any] = {}
    for category in categories:
        for number in range(1, images + 1):
            name = f"{category}/{number:03d}"
            picture, corner = draw(rng)
            observers = [look_at(rng, corner, 6) for _ in range(3)]
            write_image(folder, name, picture, np.concatenate(observers))
            table[f"{name}.jpg"] = [
                (f"24-53-{letters}.eye", points) for letters, points in zip(("ak", "bj", "cs"), observers, strict=True)
            ]
        output = folder / "trainSet" / "Stimuli" / category / "Output"
        output.mkdir()
        Image.new("L", SIZE[::-1]).save(output / "001_SaliencyMap.jpg")  # the archive has these among the stimuli
    write_observers(folder / "trainSet" / "allFixData.mat", table)
    return folder


def write_image(folder: Path, name: str, picture: Image.Image, points: NDArray[np.int64]) -> None:
    """One image of cat2000 with its fixations, [K, 2] from 0."""
    root = folder / "trainSet"
    locations = np.zeros(SIZE, dtype=np.uint8)
    locations[points[:, 1], points[:, 0]] = 1
    blurred = gaussian_filter(locations.astype(float), 2)
    for part in ("Stimuli", "FIXATIONLOCS", "FIXATIONMAPS"):
        (root / part / name).parent.mkdir(parents=True, exist_ok=True)
    picture.save(root / "Stimuli" / f"{name}.jpg", quality=95)
    savemat(root / "FIXATIONLOCS" / f"{name}.mat", {"fixLocs": locations}, do_compression=True)
    Image.fromarray((255 * blurred / blurred.max()).astype(np.uint8)).save(root / "FIXATIONMAPS" / f"{name}.jpg")


def write_observers(path: Path, table: dict[str, list[tuple[str, NDArray[np.int64]]]]) -> None:
    """allFixData.mat: a containers.Map from image to a cell of structs (name, data), positions from 1."""
    cells = {}
    for key, records in table.items():
        cell = np.empty((len(records), 1), dtype=object)
        for index, (observer, points) in enumerate(records):
            record = np.empty((1, 1), dtype=[("name", object), ("data", object)])
            record[0, 0] = (observer, points.astype(float) + 1)
            cell[index, 0] = record
        cells[key] = cell
    save_to_mat(str(path), {"allData": MatlabContainerMap(cells)}, version="v7")


def write_mit1003(folder: Path, images: int = 3, seed: int = 0) -> Path:
    """Write ALLSTIMULI, ALLFIXATIONMAPS and the recordings of two observers in DATA; see `recording`."""
    rng = np.random.default_rng(seed)
    for part in ("ALLSTIMULI", "ALLFIXATIONMAPS", "DATA/CNG", "DATA/ajs"):
        (folder / part).mkdir(parents=True)
    for number in range(images):
        name = f"i{number:02d}june05_static_street_p10107{number:02d}"
        picture, corner = draw(rng)
        picture.save(folder / "ALLSTIMULI" / f"{name}.jpeg", quality=95)
        dots = np.zeros(SIZE, dtype=np.uint8)
        for subject in ("CNG", "ajs"):
            points = look_at(rng, corner, 4)
            dots[points[:, 1], points[:, 0]] = 255
            variable = {name: {"DATA": {"eyeData": recording(points + 1)}, "timing": 3.0}}
            savemat(folder / "DATA" / subject / f"{name}.mat", variable)
        Image.fromarray(dots).save(folder / "ALLFIXATIONMAPS" / f"{name}_fixPts.jpg")
        blurred = gaussian_filter(dots.astype(float), 3)
        Image.fromarray((255 * blurred / blurred.max()).astype(np.uint8)).save(
            folder / "ALLFIXATIONMAPS" / f"{name}_fixMap.jpg"
        )
    return folder


def recording(points: NDArray[np.int64]) -> NDArray[np.float64]:
    """Gaze that rests in the centre and then at each point for 60 samples, 800 pixels away between them.

    Between two points of an image of this size the eye moves too little for a saccade, so it is led through a place far
    outside.
    """
    rests = [np.array([SIZE[1] / 2, SIZE[0] / 2]), *points.astype(float)]
    samples = [np.repeat(rests[0][None], 60, axis=0)]
    for rest in rests[1:]:
        away = np.array([800.0, 800.0])
        samples += [np.linspace(samples[-1][-1], away, 8), np.repeat(away[None], 40, axis=0)]
        samples += [np.linspace(away, rest, 8), np.repeat(rest[None], 60, axis=0)]
    return np.concatenate(samples)


def draw(rng: np.random.Generator) -> tuple[Image.Image, NDArray[np.int64]]:
    """A dark image with a bright square, and its top left corner (x, y)."""
    height, width = SIZE
    pixels = rng.integers(30, 60, (height, width, 3)).astype(np.uint8)
    x, y = (int(rng.integers(0, side - SQUARE)) for side in (width, height))
    pixels[y : y + SQUARE, x : x + SQUARE] = rng.integers(180, 255, 3)
    return Image.fromarray(pixels), np.array([x, y])


def look_at(rng: np.random.Generator, corner: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Different positions on the square, [count, 2]."""
    chosen = rng.choice(SQUARE**2, count, replace=False)
    result: NDArray[np.int64] = corner + np.stack([chosen % SQUARE, chosen // SQUARE], axis=1)
    return result

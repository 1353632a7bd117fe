"""Drawn cut-outs and backgrounds, and the small composed set that tests of dense tasks read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sact.data.compose import compose
from sact.data.compositing import Style

CATEGORIES = ("balls", "boxes", "stars")
"""Of the drawn cut-outs, in the order of their ids, which start at 1."""
COUNTS = {"train": 8, "val": 4, "test": 4}
"""Pictures of the composed set, whose size is 96x80."""


def write_cutouts(folder: Path, per_category: int = 5, side: int = 72) -> Path:
    """Folders of balls, boxes and stars in different colours on transparent ground; returns the folder."""
    generator = np.random.default_rng(0)
    for category in CATEGORIES:
        (folder / category).mkdir(parents=True, exist_ok=True)
        for number in range(per_category):
            outline = Image.new("L", (side, side))
            _draw(ImageDraw.Draw(outline), category, side, inset=3 * number)
            pixels = np.empty((side, side, 4), np.uint8)
            pixels[..., :3] = np.clip(generator.integers(40, 216, 3) + generator.normal(0, 25, (side, side, 3)), 0, 255)
            pixels[..., 3] = np.asarray(outline)
            Image.fromarray(pixels).save(folder / category / f"{category}_{number}.png")
    return folder


def _draw(draw: ImageDraw.ImageDraw, category: str, side: int, inset: int) -> None:
    end = side - 1
    if category == "balls":
        draw.ellipse((0, inset, end, end - inset), fill=255)
    elif category == "boxes":
        draw.rectangle((inset, 4, end - inset, end - 4), fill=255)
    else:
        middle, waist = side / 2, side / 8 + inset
        draw.polygon([(0, middle), (middle, middle - waist), (end, middle), (middle, middle + waist)], fill=255)
        draw.polygon([(middle, 0), (middle - waist, middle), (middle, end), (middle + waist, middle)], fill=255)


def write_backgrounds(folder: Path, count: int = 6, size: tuple[int, int] = (160, 120)) -> Path:
    """Clouds of noise, each in colours of its own; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        clouds = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.float64)
        noisy = np.clip(0.6 * clouds + 50 + generator.normal(0, 10, clouds.shape), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(folder / f"clouds_{number}.png")
    return folder


def write_composed_set(folder: Path) -> Path:
    """A composed set of `COUNTS` pictures with `CATEGORIES` in a folder that is not there yet; returns it."""
    sources = folder.parent / f"{folder.name}-sources"
    style = Style(sizes=((96, 80),), objects=(2, 4), scale=(0.3, 0.5))
    cutouts, backgrounds = write_cutouts(sources / "cutouts"), write_backgrounds(sources / "backgrounds")
    compose(folder, cutouts, [backgrounds], COUNTS, style)
    return folder


@pytest.fixture(scope="session")
def composed_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a composed set, made once for all tests: to be read, and copied before it is changed."""
    return write_composed_set(tmp_path_factory.mktemp("composed") / "set")

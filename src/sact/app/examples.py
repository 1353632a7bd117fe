"""Photographs to begin with: what lies on this machine already. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from ..errors import InputError
from ..maps import save_png
from ..predict import find_images
from ..preprocessing import to_bytes
from .networks import Served

PHOTOGRAPHS = ("chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "astronaut.png")
"""Public domain or CC0, in scikit-image's wheel."""
SCENES = 5
MOST = 24
_SCENE_SIZE = 256


def find_examples(served: Sequence[Served], folder: str | Path | None, made: Path) -> list[Path]:
    """Images for the page's visitors.

    Args:
        served: scenes are made where one of these networks was trained on scenes, and come first where the first was.
        folder: of a user's own images, which are the only ones then.
        made: folder for scenes.

    Returns:
        At most `MOST` files, possibly none.

    Raises:
        InputError: the user's folder holds no image.
    """
    if folder is not None:
        if not Path(folder).is_dir():
            raise InputError(f"there is no folder {folder} of examples; check --examples")
        return find_images([folder])[:MOST]
    kinds = [(one.network.preprocessing or {}).get("name") for one in served]
    scenes = make_scenes(made) if "scenes" in kinds else []
    return scenes + photographs() if kinds[:1] == ["scenes"] else photographs() + scenes


def photographs() -> list[Path]:
    """Photographs of scikit-image, where it is installed."""
    package = find_spec("skimage")
    root = Path(package.origin).parent / "data" if package is not None and package.origin else Path()
    return [root / name for name in PHOTOGRAPHS if package is not None and (root / name).is_file()]


def make_scenes(folder: Path, count: int = SCENES, backgrounds: Path | None = None) -> list[Path]:
    """Scenes that no network was trained on, as files; none where what they are made of is not on this machine.

    Args:
        folder: where they are written.
        count: how many.
        backgrounds: folder of photographs instead of those of this machine.
    """
    from ..data.cache import cache_dir
    from ..data.fashion_mnist import DEBIAN_FOLDER
    from ..data.scenes import Scenes

    cached = cache_dir() / "fashion-mnist"
    for items in (DEBIAN_FOLDER, cached, cached / "FashionMNIST" / "raw"):
        try:
            scenes = Scenes("test", _SCENE_SIZE, count, backgrounds=backgrounds, items=items, scale=(0.35, 0.75))
        except InputError:  # not here; a folder that is named is never downloaded to
            continue
        files = []
        for number in range(count):
            pixels = to_bytes((scenes[number][0] + 1) / 2).permute(1, 2, 0).numpy()
            files.append(save_png(Image.fromarray(pixels), folder / f"scene {number + 1}.png"))
        return files
    return []

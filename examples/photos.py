"""The demo's second half: photographs through the packaged ImageNet network, beside the network as it was."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from page import Example

import sact
from sact.checkpoints import read_metadata
from sact.preprocessing import open_image

FILES = ("chelsea.png", "coffee.png", "rocket.jpg", "camera.png")
"""Photographs that scikit-image has in its wheel."""


def classify_photographs(name: str) -> dict[str, Any] | None:
    """What an adapted network says about scikit-image's photographs, and what its original says.

    Args:
        name: of an adapted network with ImageNet's classes.

    Returns:
        `name`, `units`, `results` (what was measured when it learned, on held-out photographs) and `examples`, each an
        `Example` whose `truth` is the original's class; None where scikit-image's photographs are missing.

    Raises:
        InputError: the network is not adapted, or has no classes' names.
        MissingExtraError: what builds it, or has its weights, is not installed.
    """
    files = find_photographs()
    if not files:
        return None
    model = sact.from_pretrained(name)
    if not isinstance(model, sact.AdaptedNetwork):
        raise sact.InputError(f'"{name}" is no adapted network; name one that sact adapt wrote, or "none"')
    return {
        "name": name,
        "architecture": model.config.architecture,
        "units": [len(block.units) for block in model.blocks],
        "results": read_metadata(name).get("results", {}),
        "examples": [compare(model, file) for file in files],
    }


@torch.inference_mode()
def compare(model: sact.AdaptedNetwork, file: Path) -> Example:
    """One photograph: adaptive, and as it was before."""
    picture = open_image(file)
    halting = model.halting
    model.halting = "none"
    original = sact.predict(model, picture)
    model.halting = halting
    prediction = sact.predict(sact.compile(model), picture)
    assert prediction.map is not None
    return Example(
        picture=np.asarray(prediction.image),
        map=prediction.map,
        truth=original.name,
        name=prediction.name,
        score=prediction.score,
        share=prediction.share,
        units=[float(block.units.float().mean()) for block in prediction.ponder.blocks],
        auc=None,
    )


def find_photographs() -> list[Path]:
    """Those of `FILES` that are installed."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0]) / "data"
    return [folder / name for name in FILES if (folder / name).is_file()]

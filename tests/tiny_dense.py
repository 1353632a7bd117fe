"""A detector and a segmenter with random weights, small enough for tests, whose halting varies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from conftest import _vary
from PIL import Image

import sact
from sact.models.dense import extractor

NAMES = ["cat", "<b>dog</b>", "bird"]
DETECTOR: dict[str, Any] = {
    "units": [5, 5],
    "base_channels": 4,
    "fpn_channels": 8,
    "representation_size": 16,
    "min_size": 64,
    "max_size": 128,
    "rpn_post_nms_top_n_test": 20,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 8,
}


def tiny_detector(halting: str = "sact", **options: Any) -> sact.Detector:
    """It finds eight objects, at scores around a quarter, in any picture."""
    torch.manual_seed(2)
    model = sact.create_detector("resnet", len(NAMES), halting, class_names=NAMES, **DETECTOR | options)
    _prepare(model)
    return model.eval()


def tiny_segmenter(halting: str = "sact", **options: Any) -> sact.Segmenter:
    """It sees several of its four classes in a picture of noise."""
    torch.manual_seed(2)
    names = ["background", *NAMES]
    model = sact.create_segmenter(
        "resnet", len(names), halting, class_names=names, units=[5, 5], base_channels=4, **options
    )
    _prepare(model)
    return model.eval()


def _prepare(model: sact.Detector | sact.Segmenter) -> None:
    with torch.no_grad():
        network = extractor(model)
        assert isinstance(network, sact.Network)
        _vary(network)


def photo(width: int = 96, height: int = 80) -> Image.Image:
    """Noise to the left, grey to the right."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[:, : width // 2] = np.random.default_rng(0).integers(0, 256, (height, width // 2, 3))
    return Image.fromarray(pixels)

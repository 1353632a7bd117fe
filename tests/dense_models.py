"""Tiny detectors and segmenters whose halting varies."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import sact
from sact.models.dense import extractor
from sact.scores import ImageScore

TINY: dict[str, Any] = {"units": [2, 3, 3, 2], "base_channels": 8}
SMALL_BOXES: dict[str, Any] = {
    "min_size": 96,
    "max_size": 128,
    "fpn_channels": 16,
    "representation_size": 32,
    "rpn_pre_nms_top_n_train": 100,
    "rpn_post_nms_top_n_train": 20,
    "rpn_pre_nms_top_n_test": 100,
    "rpn_post_nms_top_n_test": 20,
    "box_batch_size_per_image": 8,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 10,
}
SIZES = ((70, 90), (100, 60))


def tiny_detector(halting: Any = "sact", form: Any = "fpn", **options: Any) -> sact.Detector:
    """For three classes, in evaluation mode; seeded."""
    return deepcopy(_detector(halting, form, _hashable(SMALL_BOXES | options)))


def tiny_segmenter(halting: Any = "sact", head: Any = "fcn", **options: Any) -> sact.Segmenter:
    """For four classes, in evaluation mode; seeded."""
    return deepcopy(_segmenter(halting, head, _hashable(options)))


@cache
def _detector(halting: Any, form: Any, options: tuple[tuple[str, Any], ...]) -> sact.Detector:
    torch.manual_seed(0)
    return varied(sact.create_detector("resnet", 3, halting, form, **(TINY | dict(options)))).eval()


@cache
def _segmenter(halting: Any, head: Any, options: tuple[tuple[str, Any], ...]) -> sact.Segmenter:
    torch.manual_seed(0)
    return varied(sact.create_segmenter("resnet", 4, halting, head, **(TINY | dict(options)))).eval()


def _hashable(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in options.items())


def two_images() -> list[Tensor]:
    """Of different sizes, in [0, 1]."""
    return [torch.rand(3, *size, generator=torch.Generator().manual_seed(index)) for index, size in enumerate(SIZES)]


def two_targets() -> list[dict[str, Tensor]]:
    """Two objects in the first image, none in the second."""
    return [
        {"boxes": torch.tensor([[5.0, 8, 60, 50], [40, 20, 80, 66]]), "labels": torch.tensor([1, 3])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]


@torch.no_grad()
def varied(model: Any) -> Any:
    """With norms as after training, and score heads that halt early, late and between."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.2)
    for block in extractor(model).blocks:
        for head in block.scores:
            decisive = head.global_conv if isinstance(head, ImageScore) else head.local_conv
            decisive.weight.normal_(0, 4 * decisive.weight[0].numel() ** -0.5)
            decisive.bias.fill_(1.5)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    if isinstance(model, sact.Detector):
        model.train()(two_images(), two_targets())
    else:
        model.train()(torch.rand(4, 3, 64, 64))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model

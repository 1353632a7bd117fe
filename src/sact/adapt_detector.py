"""`sact.adapt_detector`: a Faster, Mask or Keypoint R-CNN of torchvision gets an adaptive extractor."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .adapt import adapt
from .block import OutputRule
from .errors import InputError, require
from .halting import EPS
from .models.detector import Detector
from .models.detector_config import AdaptedDetectorConfig
from .scores import Halting


class AdaptedNeck(nn.Module):
    """What stands between the extractor and the proposals in a detector of torchvision.

    Args:
        fpn: its feature pyramid; None where it has none.
    """

    def __init__(self, fpn: nn.Module | None) -> None:
        super().__init__()
        self.fpn = fpn

    def forward(self, features: dict[str, Tensor] | Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the extractor gives, to the maps for proposals and those for boxes, which are the same."""
        maps = OrderedDict([("0", features)]) if isinstance(features, Tensor) else features
        if self.fpn is not None:
            maps = self.fpn(maps)
        return maps, maps


def adapt_detector(
    model: nn.Module,
    halting: Halting = "sact",
    *,
    eps: float = EPS,
    output: OutputRule = "mean",
    blocks: Sequence[Sequence[str]] | None = None,
) -> Detector:
    """Make the extractor of a detector of torchvision adaptive, as `sact.adapt` does with a network.

    The layers are the original's, so that what changes weights, or moves them to a device, does so in both. With
    `output="halted"` fresh score heads leave its detections as they were, as long as no block has more than 21 units.

    Args:
        model: a `GeneralizedRCNN`: Faster, Mask or Keypoint R-CNN, with or without a feature pyramid.
        halting: as in `sact.adapt`.
        eps: as in `sact.adapt`.
        output: as in `sact.adapt`.
        blocks: as in `sact.adapt`, by the names in the extractor, `model.backbone.body` where there is a pyramid.

    Returns:
        A detector in the original's mode, with its call; its `network` is the extractor. It is not for
        `save_pretrained`: save its `state_dict()`.

    Raises:
        InputError: it is another kind of model, or its extractor cannot be adapted.
        MissingExtraError: torchvision is not installed.
    """
    detection = require("torchvision.models.detection.generalized_rcnn", "detection")
    if not isinstance(model, detection.GeneralizedRCNN):
        raise InputError(
            f"sact.adapt_detector takes a Faster R-CNN, Mask R-CNN or Keypoint R-CNN of torchvision, got "
            f"{type(model).__name__}; sact.adapt takes networks, and models for segmentation too"
        )
    # What holds weights is shared; the rest is its own, for it has a mode that the original keeps.
    shared = {id(part): part for part in model.modules() if part._parameters or part._buffers}
    own: Any = copy.deepcopy(model, shared)
    body, fpn = (getattr(own.backbone, name, None) for name in ("body", "fpn"))
    network = adapt(own.backbone if body is None else body, halting, eps=eps, output=output, blocks=blocks)
    config = AdaptedDetectorConfig(
        backbone=network.config,
        num_classes=own.roi_heads.box_predictor.cls_score.out_features - 1,
        image_mean=tuple(own.transform.image_mean),
        image_std=tuple(own.transform.image_std),
    )
    neck = AdaptedNeck(None if body is None else fpn)
    detector = Detector(config, network, own.transform, neck, own.rpn, own.roi_heads)
    for part in (detector, neck):
        part.training = own.training
    return detector

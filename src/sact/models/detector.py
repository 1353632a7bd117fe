"""Faster R-CNN on torchvision's parts, with an adaptive extractor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import InputError, require
from ..halting import EPS
from ..padded import PaddedPonder
from ..ponder import Ponder
from ..scores import Halting
from .adaptive import AdaptiveNetwork
from .dense import DenseModel
from .detector_config import AdaptedDetectorConfig, DetectorConfig, Form, check_names, make_detector_config
from .registry import build, make_config

if TYPE_CHECKING:
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.roi_heads import RoIHeads
    from torchvision.models.detection.rpn import RegionProposalNetwork
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

Target = dict[str, Tensor]
"""Of an image. "boxes": float [K, 4], x1 y1 x2 y2 in pixels; "labels": int64 [K], from 1 on. Others are left alone."""

ROI_SIZE = 14
"""Positions per side that block 4 sees of a box; it halves them."""


class Detector(DenseModel):
    """Faster R-CNN whose extractor may halt; made by `sact.create_detector` or `sact.adapt_detector`.

    Args:
        config: what this is.
        network: the extractor.
        transform: images of any size to a batch, and boxes back.
        neck: the extractor's features to those that proposals and boxes are found on.
        rpn: finds proposals.
        roi_heads: classifies and refines them.

    Attributes:
        class_names: names of the classes; label l is `class_names[l - 1]`.
    """

    config: DetectorConfig | AdaptedDetectorConfig
    roi_heads: RoIHeads
    rpn: RegionProposalNetwork
    transform: GeneralizedRCNNTransform

    def __init__(
        self,
        config: DetectorConfig | AdaptedDetectorConfig,
        network: AdaptiveNetwork,
        transform: GeneralizedRCNNTransform,
        neck: nn.Module,
        rpn: RegionProposalNetwork,
        roi_heads: RoIHeads,
    ) -> None:
        super().__init__()
        self.config = config
        self.network = network
        self.transform = transform
        self.neck = neck
        self.rpn = rpn
        self.roi_heads = roi_heads

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None, return_ponder: bool = False
    ) -> Any:
        """Detect objects, or in training mode compute the losses.

        Args:
            images: each [3, H, W], floating point in [0, 1], of any sizes; a batch [N, 3, H, W] will do.
            targets: of each image, see `Target`; an image without objects has boxes [0, 4]. Only looked at in training.
            return_ponder: also return what the extractor spent.

        Returns:
            In evaluation mode per image a dict of "boxes" float [D, 4] in pixels of the image given, "labels" int64
            [D] from 1 to num_classes, and "scores" [D] in (0, 1), descending. In training mode a dict of scalar losses:
            "loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg". With `return_ponder` a pair of
            that and a `PaddedPonder`.

        Raises:
            InputError: images or targets are not usable; the index, the field and the value are named.

        Source: section 4.3.
        """
        self._check_images(images)
        training = self.rpn.training  # the parts' mode: a compiled detector has the same ones
        if training:
            _check_targets(images, targets, self.config.num_classes)
        original = [_size(image) for image in images]
        batch, resized = self.transform(list(images), list(targets) if targets and training else None)
        features, ponder = self.network(batch.tensors, return_ponder=True)
        seen, looked_at = self.neck(features)
        proposals, losses = self.rpn(batch, seen, resized)
        found, box_losses = self.roi_heads(looked_at, proposals, batch.image_sizes, resized)
        result: Any = losses | box_losses
        if not training:
            result = self.transform.postprocess(found, batch.image_sizes, original)
        return (result, _padded(ponder, batch, original)) if return_ponder else result

    def classifier_weights(self) -> dict[str, Tensor]:
        """As `DenseModel.classifier_weights`; the box head of "c4" is the network's last block and head."""
        weights = super().classifier_weights()
        if isinstance(self.config, DetectorConfig) and self.config.form == "c4":
            head = self.roi_heads.box_head.state_dict(keep_vars=True)
            last = len(self.config.backbone.units) - 1
            weights |= {name.replace("block.", f"blocks.{last}.", 1): tensor for name, tensor in head.items()}
        return weights

    def _check_images(self, images: Sequence[Tensor]) -> None:
        if not isinstance(images, (list, tuple, Tensor)) or len(images) == 0:
            raise InputError("images must be a list of tensors [3, H, W], at least one")
        for index, image in enumerate(images):
            if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] != 3 or not image.numel():
                got = f"shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
                raise InputError(f"image {index} must be a tensor [3, H, W], but got {got}")
            if not image.is_floating_point():
                raise InputError(f"image {index} is {image.dtype}, but must be floating point in [0, 1]; divide by 255")
        self.check_range(images)


def create_detector(
    name: str,
    num_classes: int,
    halting: Halting = "none",
    form: Form = "fpn",
    *,
    eps: float = EPS,
    units: Sequence[int] | None = None,
    base_channels: int | None = None,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> Detector:
    """Create a Faster R-CNN with fresh weights; `Detector.start_from` takes those of a trained network.

    Args:
        name: the extractor, as `sact.create_model` knows it.
        num_classes: classes of objects, without the background: labels are 1 to num_classes.
        halting: of the extractor: "none", "act" or "sact".
        form: "fpn" (a feature pyramid over all blocks) or "c4" (the paper's: the last block looks at boxes).
        eps: in (0, 1); a position halts once its cumulative score reaches 1 - eps.
        units: as in `create_model`; with "c4" the last number is of the box head.
        base_channels: as in `create_model`.
        class_names: of the labels from 1 on.
        **options: any other field of `DetectorConfig`, such as min_size, max_size, fpn_channels or
            box_detections_per_img.

    Raises:
        InputError: a name is unknown or a value out of range.
        MissingExtraError: torchvision is not installed.

    Source: section 4.3 for "c4".
    """
    backbone = make_config(name, halting=halting, eps=eps, units=units, base_channels=base_channels, features_only=True)
    detector = build_detector(make_detector_config(backbone, options | {"num_classes": num_classes, "form": form}))
    detector.class_names = check_names(class_names, num_classes)
    return detector


def build_detector(config: DetectorConfig) -> Detector:
    """Create the detector that a configuration describes.

    Raises:
        MissingExtraError: torchvision is not installed.
    """
    require("torchvision", "detection")
    from . import detector_parts as parts

    units = config.backbone.units
    network = build(replace(config.backbone, units=units[:-1] if config.form == "c4" else units))
    transform = parts.make_transform(config)
    if config.form == "c4":
        neck: nn.Module = parts.SingleNeck(network.feature_channels[-1])
        ones = (1,) * (len(units) - 1)
        whole = build(replace(config.backbone, units=(*ones, units[-1]), halting="none", features_only=False))
        head: nn.Module = parts.BlockHead(whole)
        pool = parts.make_pool(("0",), network.feature_strides[-1:], ROI_SIZE)
        rpn_channels, box_channels = network.feature_channels[-1], whole.feature_channels[-1]
    else:
        neck = parts.PyramidNeck(network.feature_channels, config.fpn_channels)
        names = tuple(str(level) for level in range(len(units)))
        pool = parts.make_pool(names, network.feature_strides, ROI_SIZE // 2)
        head = parts.make_box_head(config)
        rpn_channels, box_channels = config.fpn_channels, config.representation_size
    rpn = parts.make_rpn(config, rpn_channels)
    return Detector(config, network, transform, neck, rpn, parts.make_roi_heads(config, pool, head, box_channels))


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _padded(ponder: Ponder, batch: ImageList, original: list[tuple[int, int]]) -> PaddedPonder:
    return PaddedPonder(ponder.blocks, ponder.fixed_flops, _size(batch.tensors), batch.image_sizes, original)


def _check_targets(images: Sequence[Tensor], targets: Sequence[Target] | None, num_classes: int) -> None:
    if targets is None or len(targets) != len(images):
        count = "none" if targets is None else len(targets)
        raise InputError(
            f"in training mode every image needs a target; there are {len(images)} images, {count} targets"
        )
    for index, target in enumerate(targets):
        boxes, labels = target.get("boxes"), target.get("labels")
        if not isinstance(boxes, Tensor) or boxes.dim() != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
            got = f"{boxes.dtype} {list(boxes.shape)}" if isinstance(boxes, Tensor) else type(boxes).__name__
            raise InputError(f'"boxes" of target {index} must be floating point [K, 4], but got {got}')
        if not isinstance(labels, Tensor) or labels.shape != boxes.shape[:1] or labels.dtype != torch.int64:
            got = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise InputError(f'"labels" of target {index} must be int64 [{len(boxes)}], one per box, but got {got}')
        flat = ~(boxes[:, 2:] > boxes[:, :2]).all(1)
        if bool(flat.any()):
            first = int(flat.nonzero()[0])
            raise InputError(
                f"box {first} of target {index} is {boxes[first].tolist()}, but boxes are x1, y1, x2, y2 with x1 < x2 "
                "and y1 < y2; leave it out"
            )
        if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) <= num_classes:
            raise InputError(
                f"labels of target {index} are {sorted(set(labels.tolist()))}, but they must be 1 to {num_classes}; "
                "0 is the background"
            )

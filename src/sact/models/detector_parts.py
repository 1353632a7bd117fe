"""Faster R-CNN's parts as torchvision has them, told where ours differ. Imported where torchvision is there."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from .dense import wide
from .detector_config import DetectorConfig
from .network import Network

SIZE_DIVISIBLE = 32
Maps = dict[str, Tensor]


class PyramidNeck(nn.Module):
    """A feature pyramid over all blocks. What blocks give are sums that no norm has seen, hence its group norms.

    Args:
        in_channels: of each block's output.
        out_channels: of the pyramid.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(in_channels), out_channels, LastLevelMaxPool(), group_norm)

    def forward(self, features: list[Tensor]) -> tuple[Maps, Maps]:
        """Features of the blocks to those for proposals and for boxes."""
        maps = self.fpn(OrderedDict((str(level), feature) for level, feature in enumerate(features)))
        maps = {name: wide(feature) for name, feature in maps.items()}
        return maps, maps


class SingleNeck(nn.Module):
    """The last feature map: through a group norm for proposals, as it is for boxes, whose head begins with a norm.

    Args:
        channels: of the last block's output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.act = nn.ReLU()

    def forward(self, features: list[Tensor]) -> tuple[Maps, Maps]:
        """As `PyramidNeck.forward`."""
        return {"0": wide(self.act(self.norm(features[-1])))}, {"0": wide(features[-1])}


class BlockHead(nn.Module):
    """What a plain classification network does behind its last but one block, for every box.

    Args:
        network: whose last block and head it takes.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        assert network.head is not None
        self.block = network.blocks[-1]
        self.head = network.head

    def forward(self, x: Tensor) -> Tensor:
        """Features of boxes [R, C, 14, 14] to pooled features [R, C', 1, 1]."""
        features, _ = self.block(_as_weights(x, self))
        result: Tensor = self.head(features)
        return result


class BoxHead(TwoMLPHead):
    """torchvision's, in the precision of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Features of boxes [R, C, 7, 7] to [R, C']."""
        result: Tensor = super().forward(_as_weights(x, self))
        return result


class WideRPNHead(RPNHead):
    """torchvision's, whose numbers are of at least float32: coordinates have no place in half precision."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """As `RPNHead.forward`."""
        logits, deltas = super().forward([_as_weights(one, self) for one in x])
        return [wide(one) for one in logits], [wide(one) for one in deltas]


class WidePredictor(FastRCNNPredictor):
    """torchvision's, whose numbers are of at least float32."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `FastRCNNPredictor.forward`."""
        scores, deltas = super().forward(x)
        return wide(scores), wide(deltas)


def group_norm(channels: int) -> nn.GroupNorm:
    """A norm that is the same in training and evaluation, for detectors train with one or two images at a time."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def make_transform(config: DetectorConfig) -> GeneralizedRCNNTransform:
    """Images of any size in [0, 1] to a batch, and boxes back."""
    return GeneralizedRCNNTransform(
        config.min_size, config.max_size, list(config.image_mean), list(config.image_std), SIZE_DIVISIBLE
    )


def make_pool(names: Sequence[str], strides: Sequence[int], size: int) -> MultiScaleRoIAlign:
    """Features of boxes; at known strides, where torchvision would guess them from the first images that it sees."""
    pool = MultiScaleRoIAlign(list(names), size, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])))
    return pool


def make_rpn(config: DetectorConfig, channels: int) -> RegionProposalNetwork:
    """Finds proposals on maps of so many channels."""
    anchors = AnchorGenerator(config.anchors, (config.aspect_ratios,) * len(config.anchors))
    counts = anchors.num_anchors_per_location()
    return RegionProposalNetwork(
        anchors,
        WideRPNHead(channels, counts[0]),
        config.rpn_fg_iou_thresh,
        config.rpn_bg_iou_thresh,
        config.rpn_batch_size_per_image,
        config.rpn_positive_fraction,
        {"training": config.rpn_pre_nms_top_n_train, "testing": config.rpn_pre_nms_top_n_test},
        {"training": config.rpn_post_nms_top_n_train, "testing": config.rpn_post_nms_top_n_test},
        config.rpn_nms_thresh,
        config.rpn_score_thresh,
    )


def make_box_head(config: DetectorConfig) -> BoxHead:
    """Two layers on a box's 7x7 features of the pyramid."""
    return BoxHead(config.fpn_channels * 7**2, config.representation_size)


def make_roi_heads(config: DetectorConfig, pool: MultiScaleRoIAlign, head: nn.Module, channels: int) -> RoIHeads:
    """Classifies and refines boxes by a head that gives so many numbers; class 0 is the background."""
    return RoIHeads(
        pool,
        head,
        WidePredictor(channels, config.num_classes + 1),
        config.box_fg_iou_thresh,
        config.box_bg_iou_thresh,
        config.box_batch_size_per_image,
        config.box_positive_fraction,
        None,
        config.box_score_thresh,
        config.box_nms_thresh,
        config.box_detections_per_img,
    )


def _as_weights(x: Tensor, module: nn.Module) -> Tensor:
    """In a module's precision; maps come to heads in float32, in which anchors and boxes are computed."""
    return x.to(next(module.parameters()).dtype)

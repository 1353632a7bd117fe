"""What a detector is: options under torchvision's names, checked."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from ..errors import InputError
from .adapted import AdaptedConfig
from .dense_config import DenseConfig
from .network import NetworkConfig
from .registry import config_from_dict, is_count

SYMMETRIC = (0.5, 0.5, 0.5)
"""Mean and deviation that scale pixels from [0, 1] to [-1, 1], as the networks of this library are trained."""

Form = Literal["fpn", "c4"]

FPN_ANCHORS = 32
C4_ANCHORS = (32, 64, 128, 256, 512)

_COUNTS = (
    *("num_classes", "fpn_channels", "representation_size", "max_size", "rpn_batch_size_per_image"),
    *("rpn_pre_nms_top_n_train", "rpn_pre_nms_top_n_test", "rpn_post_nms_top_n_train", "rpn_post_nms_top_n_test"),
    *("box_detections_per_img", "box_batch_size_per_image"),
)
_SHARES = (
    *("rpn_nms_thresh", "rpn_fg_iou_thresh", "rpn_bg_iou_thresh", "rpn_positive_fraction", "rpn_score_thresh"),
    *("box_score_thresh", "box_nms_thresh", "box_fg_iou_thresh", "box_bg_iou_thresh", "box_positive_fraction"),
)


@dataclass(frozen=True)
class DetectorConfig(DenseConfig):
    """Everything that builds a detector anew; options bear torchvision's names.

    Attributes:
        backbone: the classification network whose units these are.
        num_classes: classes of objects, without the background.
        form: "fpn": a feature pyramid over all blocks, the extractor. "c4": the extractor is all blocks but the last,
            which, plain, looks at every box (the paper's).
        fpn_channels: of the pyramid.
        representation_size: of the box head of "fpn".
        min_size: the image's short side in pixels, after resizing; of several one is drawn in training, and the last
            serves else.
        max_size: the long side at most.
        image_mean: subtracted from pixels in [0, 1].
        image_std: they are divided by these.
        anchor_sizes: per feature map, sides of anchors in pixels; by default 32 and doubled from map to map ("fpn",
            with a last map beyond the blocks), or 32 to 512 ("c4").
        aspect_ratios: height / width of anchors.
        rpn_pre_nms_top_n_train: boxes per feature map before suppression, in training.
        rpn_pre_nms_top_n_test: the same else.
        rpn_post_nms_top_n_train: proposals per image, in training.
        rpn_post_nms_top_n_test: the same else.
        rpn_nms_thresh: overlap from which on the less sure proposal is suppressed.
        rpn_fg_iou_thresh: overlap from which on an anchor counts as an object.
        rpn_bg_iou_thresh: overlap below which it counts as background.
        rpn_batch_size_per_image: anchors per image in the loss.
        rpn_positive_fraction: of them, objects at most.
        rpn_score_thresh: least objectness of a proposal.
        box_score_thresh: least score of a detection.
        box_nms_thresh: overlap from which on the less sure detection is suppressed.
        box_detections_per_img: at most.
        box_fg_iou_thresh: overlap from which on a proposal counts as an object.
        box_bg_iou_thresh: overlap below which it counts as background.
        box_batch_size_per_image: proposals per image in the loss.
        box_positive_fraction: of them, objects at most.
    """

    backbone: NetworkConfig
    num_classes: int
    form: Form = "fpn"
    fpn_channels: int = 256
    representation_size: int = 1024
    min_size: tuple[int, ...] = (800,)
    max_size: int = 1333
    image_mean: tuple[float, ...] = SYMMETRIC
    image_std: tuple[float, ...] = SYMMETRIC
    anchor_sizes: tuple[tuple[int, ...], ...] | None = None
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_pre_nms_top_n_train: int = 2000
    rpn_pre_nms_top_n_test: int = 1000
    rpn_post_nms_top_n_train: int = 2000
    rpn_post_nms_top_n_test: int = 1000
    rpn_nms_thresh: float = 0.7
    rpn_fg_iou_thresh: float = 0.7
    rpn_bg_iou_thresh: float = 0.3
    rpn_batch_size_per_image: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_score_thresh: float = 0.0
    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.5
    box_detections_per_img: int = 100
    box_fg_iou_thresh: float = 0.5
    box_bg_iou_thresh: float = 0.5
    box_batch_size_per_image: int = 512
    box_positive_fraction: float = 0.25
    family: str = "faster_rcnn"

    @property
    def anchors(self) -> tuple[tuple[int, ...], ...]:
        """Sides of anchors per feature map."""
        if self.anchor_sizes is not None:
            return self.anchor_sizes
        maps = len(self.backbone.units) + 1
        return (C4_ANCHORS,) if self.form == "c4" else tuple((FPN_ANCHORS * 2**level,) for level in range(maps))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DetectorConfig:
        """The inverse of `to_dict`.

        Raises:
            InputError: a field is missing, unknown or out of range.
        """
        given = dict(values)
        backbone = given.pop("backbone", None)
        if not isinstance(backbone, dict) or given.pop("family", None) != "faster_rcnn":
            raise InputError("the configuration does not describe a detector of this version")
        return make_detector_config(config_from_dict(backbone), given)


@dataclass(frozen=True)
class AdaptedDetectorConfig(DenseConfig):
    """What a detector of torchvision is whose extractor was adapted; its options are in its parts."""

    backbone: AdaptedConfig
    family: str = "faster_rcnn"


def make_detector_config(backbone: NetworkConfig, options: Mapping[str, Any]) -> DetectorConfig:
    """A configuration of checked values; lists and single numbers become the tuples that they stand for.

    Raises:
        InputError: an option is unknown, missing or out of range; it is named.
    """
    given = dict(options)
    check_known(given, [field.name for field in fields(DetectorConfig) if field.name not in ("backbone", "family")])
    if given.get("form", "fpn") not in get_args(Form):
        raise InputError(f'form is {given["form"]!r}, but it must be "fpn" or "c4"')
    if "min_size" in given:
        given["min_size"] = _numbers("min_size", given["min_size"])
    if "aspect_ratios" in given:
        given["aspect_ratios"] = _numbers("aspect_ratios", given["aspect_ratios"])
    for name in ("image_mean", "image_std"):
        if name in given:
            given[name] = image_statistics(name, given[name])
    maps = 1 if given.get("form") == "c4" else len(backbone.units) + 1
    if given.get("anchor_sizes") is not None:
        given["anchor_sizes"] = _anchor_sizes(given["anchor_sizes"], maps)
    try:
        config = DetectorConfig(backbone, **given)
    except TypeError as error:
        raise InputError(f"the detector's configuration is incomplete: {error}") from error
    _check(config)
    return config


def check_known(given: Mapping[str, Any], known: list[str]) -> None:
    """Raise InputError, with the nearest name there is, if an option is unknown."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise InputError(
                f'there is no option "{name}"; '
                + (f"did you mean {near[0]}?" if near else f"choose among {', '.join(known)}")
            )


def check_names(class_names: Any, count: int) -> list[str] | None:
    """Names of classes as a list.

    Raises:
        InputError: they are no list of texts, or there are more or fewer than classes.
    """
    if class_names is None:
        return None
    if not isinstance(class_names, (list, tuple)) or not all(isinstance(name, str) for name in class_names):
        raise InputError(f"class_names is {class_names!r}, but it must be a list of texts")
    if len(class_names) != count:
        raise InputError(f"class_names has {len(class_names)} names, but num_classes is {count}")
    return list(class_names)


def image_statistics(name: str, values: Any) -> tuple[float, ...]:
    """Three numbers, one per colour, as a tuple.

    Raises:
        InputError: they are something else, or a deviation is not positive.
    """
    numbers = _numbers(name, values)
    if len(numbers) != 3 or (name.endswith("std") and min(numbers) <= 0):
        raise InputError(f"{name} is {values!r}, but it must be three numbers on the scale 0 to 1, one per colour")
    return numbers


def _check(config: DetectorConfig) -> None:
    for name in _COUNTS:
        if not is_count(getattr(config, name)):
            raise InputError(f"{name} is {getattr(config, name)!r}, but it must be a whole number of at least 1")
    for name in _SHARES:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise InputError(f"{name} is {value!r}, but it must lie in [0, 1]")
    sizes = config.min_size
    if not sizes or not all(is_count(size) and size <= config.max_size for size in sizes):
        raise InputError(
            f"min_size is {list(sizes)} and max_size {config.max_size}, but sizes must be whole numbers of pixels, "
            "none above max_size"
        )
    if not config.aspect_ratios or min(config.aspect_ratios) <= 0:
        raise InputError(f"aspect_ratios is {list(config.aspect_ratios)}, but it must hold positive numbers")
    if len(config.backbone.units) < 2 and config.form == "c4":
        raise InputError('form "c4" gives the last block to the boxes and needs one more at least; add units')
    if config.backbone.output_stride is not None:
        raise InputError("a detector's feature maps halve from block to block; leave output_stride out")


def _anchor_sizes(sizes: Any, maps: int) -> tuple[tuple[int, ...], ...]:
    """Per feature map; plain numbers are one per map, or all those of an only map."""
    nested = list(sizes) if isinstance(sizes, (list, tuple)) else [sizes]
    if all(is_count(size) for size in nested):
        nested = [nested] if maps == 1 else [[size] for size in nested]
    good = all(isinstance(own, (list, tuple)) and own and all(map(is_count, own)) for own in nested)
    if not good or len(nested) != maps:
        raise InputError(
            f"anchor_sizes is {sizes!r}, but it must hold whole numbers of pixels for each of {maps} feature maps"
        )
    return tuple(tuple(own) for own in nested)


def _numbers(name: str, values: Any) -> tuple[Any, ...]:
    numbers = tuple(values) if isinstance(values, (list, tuple)) else (values,)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise InputError(f"{name} is {values!r}, but it must be numbers")
    return numbers

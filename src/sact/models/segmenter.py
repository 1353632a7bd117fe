"""Semantic segmentation: an adaptive extractor under torchvision's FCN and DeepLabV3 heads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, require
from ..halting import EPS
from ..ponder import Ponder
from ..scores import Halting
from .adaptive import AdaptiveNetwork
from .dense import DenseModel, wide
from .dense_config import DenseConfig
from .detector_config import SYMMETRIC, check_known, check_names, image_statistics
from .network import NetworkConfig
from .registry import build, config_from_dict, is_count, make_config

Head = Literal["fcn", "deeplabv3"]


@dataclass(frozen=True)
class SegmenterConfig(DenseConfig):
    """Everything that builds a segmenter anew.

    Attributes:
        backbone: the extractor, its output stride included.
        num_classes: classes, the background among them.
        head: torchvision's "fcn" or "deeplabv3".
        atrous_rates: of "deeplabv3", in positions; torchvision's are for an output stride of 8.
        image_mean: subtracted from pixels in [0, 1].
        image_std: they are divided by these.
    """

    backbone: NetworkConfig
    num_classes: int
    head: Head = "fcn"
    atrous_rates: tuple[int, ...] = (12, 24, 36)
    image_mean: tuple[float, ...] = SYMMETRIC
    image_std: tuple[float, ...] = SYMMETRIC
    family: str = "segmenter"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SegmenterConfig:
        """The inverse of `to_dict`.

        Raises:
            InputError: a field is missing, unknown or out of range.
        """
        given = dict(values)
        backbone = given.pop("backbone", None)
        if not isinstance(backbone, dict) or given.pop("family", None) != "segmenter":
            raise InputError("the configuration does not describe a segmenter of this version")
        return make_segmenter_config(config_from_dict(backbone), given)


def make_segmenter_config(backbone: NetworkConfig, options: Mapping[str, Any]) -> SegmenterConfig:
    """A configuration of checked values; lists become tuples.

    Raises:
        InputError: an option is unknown, missing or out of range; it is named.
    """
    given = dict(options)
    check_known(given, [field.name for field in fields(SegmenterConfig) if field.name not in ("backbone", "family")])
    for name in ("image_mean", "image_std"):
        if name in given:
            given[name] = image_statistics(name, given[name])
    rates = given.get("atrous_rates", SegmenterConfig.atrous_rates)
    if not isinstance(rates, (list, tuple)) or not rates or not all(map(is_count, rates)):
        raise InputError(f"atrous_rates is {rates!r}, but it must hold whole numbers of at least 1")
    given["atrous_rates"] = tuple(rates)
    try:
        config = SegmenterConfig(backbone, **given)
    except TypeError as error:
        raise InputError(f"the segmenter's configuration is incomplete: {error}") from error
    if config.head not in get_args(Head):
        raise InputError(f'head is {config.head!r}, but it must be "fcn" or "deeplabv3"')
    if not is_count(config.num_classes) or config.num_classes < 2:
        raise InputError(
            f"num_classes is {config.num_classes!r}, but it must be a whole number of at least 2, one the background"
        )
    return config


class Segmenter(DenseModel):
    """A class for every pixel, by an extractor that may halt; made by `sact.create_segmenter`.

    Args:
        config: what this is.
        network: the extractor.
        post: the classification network's final norm and activation.
        classifier: the last block's output, through `post`, to logits at its resolution.

    Attributes:
        class_names: names of the classes; label l is `class_names[l]`, the first is the background.
    """

    config: SegmenterConfig
    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self, config: SegmenterConfig, network: AdaptiveNetwork, post: nn.Sequential, classifier: nn.Sequential
    ) -> None:
        super().__init__()
        self.config = config
        self.network = network
        self.post = post
        self.classifier = classifier
        for name in ("image_mean", "image_std"):
            values = next(network.parameters()).new_tensor(getattr(config, name))
            self.register_buffer(name, values[:, None, None], persistent=False)

    def forward(self, images: Tensor, return_ponder: bool = False) -> Tensor | tuple[Tensor, Ponder]:
        """Classify every pixel.

        Args:
            images: [N, 3, H, W], floating point in [0, 1], both sides at least 32.
            return_ponder: also return what the extractor spent.

        Returns:
            Logits [N, num_classes, H, W], at least float32, upsampled from the output stride; with `return_ponder` a
            pair of that and a `Ponder`.

        Raises:
            InputError: the images are not usable, as in `AdaptiveNetwork.forward`.
        """
        if isinstance(images, Tensor) and images.dim() == 4 and images.is_floating_point() and images.shape[1] == 3:
            self.check_range(images)
            images = (images - self.image_mean) / self.image_std
        features, ponder = self.network(images, return_ponder=True)  # which says what else is wrong with images
        logits = self.classifier(self.post(features[-1]))
        logits = F.interpolate(wide(logits), size=images.shape[-2:], mode="bilinear", align_corners=False)
        return (logits, ponder) if return_ponder else logits

    def classifier_weights(self) -> dict[str, Tensor]:
        """As `DenseModel.classifier_weights`."""
        norm = {f"head.{name}": tensor for name, tensor in self.post.state_dict(keep_vars=True).items()}
        return super().classifier_weights() | norm


def create_segmenter(
    name: str,
    num_classes: int,
    halting: Halting = "none",
    head: Head = "fcn",
    *,
    output_stride: int | None = 8,
    eps: float = EPS,
    units: Sequence[int] | None = None,
    base_channels: int | None = None,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> Segmenter:
    """Create a segmenter with fresh weights; `Segmenter.start_from` takes those of a trained network.

    torchvision's auxiliary head is left out.

    Args:
        name: the extractor, as `sact.create_model` knows it.
        num_classes: classes, the background, class 0, among them.
        halting: of the extractor: "none", "act" or "sact".
        head: "fcn" or "deeplabv3".
        output_stride: pixels of the image per position of the last block, at most; see `sact.create_model`.
        eps: in (0, 1); a position halts once its cumulative score reaches 1 - eps.
        units: as in `create_model`.
        base_channels: as in `create_model`.
        class_names: of all classes, the background first.
        **options: any other field of `SegmenterConfig`: atrous_rates, image_mean, image_std.

    Raises:
        InputError: a name is unknown or a value out of range.
        MissingExtraError: torchvision is not installed.
    """
    backbone = make_config(
        name,
        halting=halting,
        eps=eps,
        units=units,
        base_channels=base_channels,
        features_only=True,
        output_stride=output_stride,
    )
    config = make_segmenter_config(backbone, options | {"num_classes": num_classes, "head": head})
    segmenter = build_segmenter(config)
    segmenter.class_names = check_names(class_names, num_classes)
    return segmenter


def build_segmenter(config: SegmenterConfig) -> Segmenter:
    """Create the segmenter that a configuration describes.

    Raises:
        MissingExtraError: torchvision is not installed.
    """
    segmentation = require("torchvision.models.segmentation", "detection")
    network = build(config.backbone)
    channels = network.feature_channels[-1]
    alike = build(replace(config.backbone, units=(1,) * len(network.blocks), features_only=False))
    assert alike.head is not None
    layers = [(name, layer) for name, layer in alike.head.named_children() if name != "pool"]
    post = nn.Sequential(OrderedDict(layers))
    if config.head == "fcn":
        classifier: nn.Sequential = segmentation.fcn.FCNHead(channels, config.num_classes)
    else:
        classifier = segmentation.deeplabv3.DeepLabHead(channels, config.num_classes, config.atrous_rates)
    return Segmenter(config, network, post, classifier)

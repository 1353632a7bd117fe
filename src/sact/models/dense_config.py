"""What the configurations of detectors and segmenters have in common."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..scores import Halting
from .adapted import AdaptedConfig
from .network import NetworkConfig


@dataclass(frozen=True)
class DenseConfig:
    """What a detector or segmenter is.

    Attributes:
        backbone: the extractor.
        num_classes: classes of objects; a segmenter's with the background.
        image_mean: subtracted from pixels in [0, 1].
        image_std: they are divided by these.
        family: "faster_rcnn" or "segmenter".
    """

    backbone: NetworkConfig | AdaptedConfig
    num_classes: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    family: str

    @property
    def halting(self) -> Halting:
        """The extractor's."""
        return self.backbone.halting

    @property
    def eps(self) -> float:
        """The extractor's."""
        return self.backbone.eps

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self) | {"backbone": self.backbone.to_dict()}

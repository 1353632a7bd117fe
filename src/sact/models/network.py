"""A network: stem, blocks, head. Both families are this class with different parts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from ..block import Block, RunBlock
from ..cap import within_cap
from ..flops import conv_flops
from ..ponder import Ponder
from ..scores import Halting
from .adaptive import AdaptiveNetwork, Output

MIN_SIZE = AdaptiveNetwork.min_size


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that builds a network anew; saved beside its weights.

    Attributes:
        family: "resnet" (ImageNet, bottleneck units) or "cifar_resnet" (two-convolution units).
        units: units per block.
        base_channels: width of the first block (64 / 16 in the paper).
        num_classes: outputs of the classifier.
        in_channels: channels of the image.
        halting: "none", "act" or "sact".
        eps: a position halts once its cumulative score reaches 1 - eps.
        features_only: return the blocks' outputs instead of logits; the network has no head then.
        output_stride: pixels of the image per position that no block goes beyond; None: every block but the first
            halves the resolution.
    """

    family: str
    units: tuple[int, ...]
    base_channels: int
    num_classes: int
    in_channels: int = 3
    halting: Halting = "none"
    eps: float = 0.01
    features_only: bool = False
    output_stride: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self) | {"units": list(self.units)}


class Network(AdaptiveNetwork):
    """A residual network whose blocks may halt.

    Args:
        config: what this network is.
        stem: image to the first block's input; its convolutions count as always run.
        blocks: the stacks of units.
        head: last features [N, C, H, W] to pooled features [N, C, 1, 1].
        classifier: 1x1 convolution from the pooled features to the classes.

    Attributes:
        feature_channels: channels of each block's output.
        feature_strides: pixels of the image per position of each block's output.
    """

    config: NetworkConfig
    is_sequence = True
    head: nn.Module | None
    classifier: nn.Conv2d | None

    def __init__(
        self,
        config: NetworkConfig,
        stem: nn.Sequential,
        blocks: list[Block],
        head: nn.Sequential,
        classifier: nn.Conv2d,
        feature_channels: tuple[int, ...],
        feature_strides: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.config = config
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]  # ModuleList does not say what it holds
        self.head = head if not config.features_only else None
        self.classifier = classifier if not config.features_only else None
        self.feature_channels = feature_channels
        self.feature_strides = feature_strides

    def run(self, images: Tensor, run_block: RunBlock, keep_distribution: bool = False) -> tuple[Output, Ponder]:
        """`forward` with another way of evaluating the blocks; engines enter here."""
        self.check_images(images)
        run_block = within_cap(self, run_block, images)
        x = self.stem(images)
        features: list[Tensor] = []
        spent = []
        for block in self.blocks:
            assert isinstance(block, Block)
            x, block_ponder = run_block(block, x, keep_distribution)
            features.append(x)
            spent.append(block_ponder)
        ponder = Ponder(spent, self.fixed_flops(images.shape[-2:]))
        if self.head is None or self.classifier is None:
            return features, ponder
        return self.classifier(self.head(x)).flatten(1), ponder

    def fixed_flops(self, size: tuple[int, ...]) -> int:
        """FLOPs per image of the stem and the classifier at image size (H, W)."""
        stem_conv = self.stem[0]
        assert isinstance(stem_conv, nn.Conv2d)
        stride = stem_conv.stride[0]
        flops = conv_flops(stem_conv) * -(-size[0] // stride) * -(-size[1] // stride)
        return flops + (conv_flops(self.classifier) if self.classifier is not None else 0)

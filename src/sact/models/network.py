"""A network: stem, blocks, head. Both families are this class with different parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..block import Block, RunBlock
from ..errors import InputError
from ..flops import conv_flops
from ..ponder import Ponder
from ..scores import Halting, reset_score_bias

MIN_SIZE = 32


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
    """

    family: str
    units: tuple[int, ...]
    base_channels: int
    num_classes: int
    in_channels: int = 3
    halting: Halting = "none"
    eps: float = 0.01
    features_only: bool = False

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self) | {"units": list(self.units)}


class Network(nn.Module):
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
        preprocessing: the evaluation preprocessing that the weights expect, a spec for `sact.preprocess`, or None.
        class_names: names of the classes, or None.
    """

    blocks: Sequence[Block]
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
        self.preprocessing: dict[str, Any] | None = None
        self.class_names: list[str] | None = None

    def forward(
        self, images: Tensor, return_ponder: bool = False, return_halting_distribution: bool = False
    ) -> Tensor | list[Tensor] | tuple[Tensor | list[Tensor], Ponder]:
        """Classify images, or extract features.

        Args:
            images: [N, in_channels, H, W], floating point, both sides at least 32.
            return_ponder: also return what it spent.
            return_halting_distribution: keep p^l of every block in the ponder (implies `return_ponder`).

        Returns:
            Logits [N, num_classes], or with `features_only` the list of block outputs [N, C_k, H_k, W_k];
            with `return_ponder` a pair of that and a `Ponder`.

        Raises:
            InputError: wrong rank, channels, dtype or size, an empty batch, or (on CPU, outside torch.compile) values
                that are not finite.
        """
        output, ponder = self.run(images, Block.__call__, return_halting_distribution)
        return (output, ponder) if return_ponder or return_halting_distribution else output

    def run(
        self, images: Tensor, run_block: RunBlock, keep_distribution: bool = False
    ) -> tuple[Tensor | list[Tensor], Ponder]:
        """`forward` with another way of evaluating the blocks; engines enter here."""
        self.check_images(images)
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

    def check_images(self, images: Tensor, finite: bool = True) -> None:
        """Raise InputError, naming the value and the remedy, if `images` cannot be used.

        Args:
            images: as `forward` takes them.
            finite: also look for NaN and infinite values; an engine may look for them on its own way.
        """
        if not isinstance(images, Tensor) or images.dim() != 4:
            got = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise InputError(
                f"images must be a tensor [N, C, H, W], got {got}; one image is a batch of one, image[None]"
            )
        if images.shape[0] == 0:
            raise InputError(f"the batch is empty (shape {tuple(images.shape)}); pass at least one image")
        if images.shape[1] != self.config.in_channels:
            raise InputError(
                f"images have {images.shape[1]} channels, but this network takes {self.config.in_channels}; "
                "pass [N, C, H, W], or create the network with in_channels="
                f"{images.shape[1]}"
            )
        if min(images.shape[-2:]) < MIN_SIZE:
            raise InputError(
                f"images are {images.shape[-2]}x{images.shape[-1]} pixels, but both sides must be at least {MIN_SIZE}; "
                "resize them"
            )
        if not images.is_floating_point():
            raise InputError(
                f"images are {images.dtype}, but the network takes floating point; "
                "use sact.preprocess, or images.float() scaled as in training"
            )
        parameter = self.stem[0].weight
        if images.device != parameter.device:
            raise InputError(
                f"images are on {images.device}, but the network is on {parameter.device}; "
                f"move one of them, for instance images.to({str(parameter.device)!r})"
            )
        if images.dtype != parameter.dtype and not torch.is_autocast_enabled(images.device.type):
            raise InputError(
                f"images are {images.dtype}, but the network's weights are {parameter.dtype}; "
                f"convert one of them, for instance images.to({parameter.dtype})"
            )
        on_cpu = images.device.type == "cpu"  # elsewhere the check would make the host wait for the device
        if finite and on_cpu and not torch.compiler.is_compiling() and not bool(torch.isfinite(images).all()):
            index = tuple((~torch.isfinite(images)).nonzero()[0].tolist())
            raise InputError(
                f"images hold NaN or infinite values, the first is {images[index].item()} at {index}; "
                "check how they were loaded and scaled"
            )

    def check_classifies(self) -> None:
        """Raise InputError if this network has no classifier."""
        if self.classifier is None:
            raise InputError("this network returns features, not classes; create it with features_only=False")

    def score_parameters(self) -> list[nn.Parameter]:
        """The parameters of the score heads."""
        return [parameter for name, parameter in self.named_parameters() if "score" in name]

    def reset_scores(self) -> None:
        """Set every score head's bias to its initial value, -3."""
        for block in self.blocks:
            for head in block.scores:
                reset_score_bias(head)

    def save_pretrained(self, folder: str, **metadata: Any) -> None:
        """Write `config.json` and `model.safetensors` to a folder; see `sact.from_pretrained`."""
        from ..checkpoints import save_pretrained

        save_pretrained(self, folder, **metadata)

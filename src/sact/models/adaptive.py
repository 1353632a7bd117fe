"""What every network of this library has in common: blocks that may halt, and the call that users know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..block import Block, RunBlock
from ..budget import Calibration, set_budget
from ..cap import check_cap
from ..errors import InputError
from ..ponder import Ponder
from ..scores import Halting, reset_score_bias

if TYPE_CHECKING:
    from pathlib import Path

Output = Tensor | list[Tensor]
"""Logits [N, classes], or feature maps [N, C_k, H_k, W_k]."""


class Config(Protocol):
    """What is asked of every network's configuration."""

    @property
    def family(self) -> str: ...
    @property
    def halting(self) -> Halting: ...
    @property
    def eps(self) -> float: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def features_only(self) -> bool: ...
    def to_dict(self) -> dict[str, Any]: ...


class AdaptiveNetwork(nn.Module):
    """A network whose blocks may halt: this library's own (`Network`) or somebody's (`AdaptedNetwork`).

    Attributes:
        config: what this network is.
        blocks: the stacks of units.
        min_size: the smallest side of an image, in pixels.
        is_sequence: whether it is `stem`, `blocks`, `head` and `classifier`, one after the other, so that an engine can
            run it as a whole.
        preprocessing: the evaluation preprocessing that the weights expect, a spec for `sact.preprocess`, or None.
        class_names: names of the classes, or None.
        calibration: what budgets buy, see `sact.calibrate`, or None.
        flops_bounds: FLOPs of what always runs and of the dense network, by image size; filled where a cap needs them.
    """

    config: Config
    blocks: Sequence[Block]
    min_size: int = 32
    is_sequence: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.preprocessing: dict[str, Any] | None = None
        self.class_names: list[str] | None = None
        self.calibration: Calibration | None = None
        self.flops_bounds: dict[tuple[Any, ...], tuple[int, int]] = {}
        self._budget: float | None = None
        self._cap: float | None = None

    @property
    def budget(self) -> float | None:
        """Share of the dense FLOPs to spend on average, in (0, 1], read and written; None: as it was trained.

        Setting it shifts the scores by what `sact.calibrate` found. An image may spend more or less: see `cap`.
        """
        return self._budget

    @budget.setter
    def budget(self, budget: float | None) -> None:
        self._budget = set_budget(self, budget)

    @property
    def cap(self) -> float | None:
        """Share of the dense FLOPs that no image may exceed, above 0, read and written; None: no cap.

        Once an image has reached it, its least undecided positions stop first, see `sact.cap`. The least cap is what
        always runs, which depends on the image size: a call with a lower one raises InputError.
        """
        return self._cap

    @cap.setter
    def cap(self, cap: float | None) -> None:
        self._cap = check_cap(self, cap)

    def forward(
        self, images: Tensor, return_ponder: bool = False, return_halting_distribution: bool = False
    ) -> Output | tuple[Output, Ponder]:
        """Classify images, or extract features.

        Args:
            images: [N, in_channels, H, W], floating point, both sides at least `min_size`.
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

    def run(self, images: Tensor, run_block: RunBlock, keep_distribution: bool = False) -> tuple[Output, Ponder]:
        """`forward` with another way of evaluating the blocks; engines enter here."""
        raise NotImplementedError

    def fixed_flops(self, size: tuple[int, ...]) -> int:
        """FLOPs per image, at image size (H, W), of what always runs outside the blocks."""
        raise NotImplementedError

    def check_classifies(self) -> None:
        """Raise InputError if this network has no classifier."""
        if self.config.features_only:
            raise InputError("this network returns features, not classes; create it with features_only=False")

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
        if min(images.shape[-2:]) < self.min_size:
            raise InputError(
                f"images are {images.shape[-2]}x{images.shape[-1]} pixels, but both sides must be at least "
                f"{self.min_size}; resize them"
            )
        if not images.is_floating_point():
            raise InputError(
                f"images are {images.dtype}, but the network takes floating point; "
                "use sact.preprocess, or images.float() scaled as in training"
            )
        parameter = next(self.parameters())
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

    def score_parameters(self) -> list[nn.Parameter]:
        """The parameters of the score heads."""
        return [parameter for name, parameter in self.named_parameters() if "score" in name]

    def reset_scores(self) -> None:
        """Set every score head's bias to its initial value, -3."""
        for block in self.blocks:
            for head in block.scores:
                reset_score_bias(head)

    def save_pretrained(self, folder: str | Path, **metadata: Any) -> None:
        """Write `config.json` and `model.safetensors` to a folder; see `sact.from_pretrained`."""
        from ..checkpoints import save_pretrained

        save_pretrained(self, folder, **metadata)

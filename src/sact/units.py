"""Residual units: a shortcut plus a branch, where the branch is a described chain of stages.

A stage is some position-wise layers (norm, activation) and then one convolution. The dense forward pass, perforated
evaluation, FLOP counting and weight folding all read the same chain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError
from .flops import UnitFlops, conv_flops
from .layers import BatchNorm2d


class LinearConv(nn.Conv2d):
    """A linear layer of channels, as the 1x1 convolution that it is; its weights are the layer's own.

    Args:
        linear: from C to C' features.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, 1, bias=linear.bias is not None, device="meta")
        del self.weight, self.bias
        self.linear = linear

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias") and "linear" in self._modules:
            return self.linear.weight[:, :, None, None] if name == "weight" else self.linear.bias
        return super().__getattr__(name)


class FrozenNorm(nn.BatchNorm2d):
    """A norm of torchvision's detectors that never trains, as the batch norm that it is; its numbers are its own.

    Args:
        norm: with `weight`, `bias`, `running_mean` and `running_var`, each [C], as buffers, and `eps`.
    """

    _THEIRS = ("weight", "bias", "running_mean", "running_var", "eps")

    def __init__(self, norm: Any) -> None:
        super().__init__(len(norm.weight), device="meta")
        for name in self._THEIRS:
            delattr(self, name)
        self.norm = norm
        self.training = False

    def __getattr__(self, name: str) -> Any:
        if name in self._THEIRS and "norm" in self._modules:
            return getattr(self.norm, name)
        return super().__getattr__(name)

    def train(self, mode: bool = True) -> FrozenNorm:
        """It stays in evaluation mode."""
        return self


class Scale(nn.Module):
    """A factor per channel that another module holds (layer scale).

    Args:
        owner: holds the factors.
        name: of its parameter, with C numbers in any shape.
    """

    def __init__(self, owner: nn.Module, name: str) -> None:
        super().__init__()
        self.owner = (owner,)  # in a tuple, lest it becomes a part of this
        self.name = name

    @property
    def factors(self) -> Tensor:
        """[C]."""
        factors: Tensor = getattr(self.owner[0], self.name)
        return factors.flatten()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same."""
        return x * self.factors[:, None, None]


class ChannelsLast(nn.Module):
    """A layer that takes [N, H, W, C], for pictures [N, C, H, W]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same."""
        result: Tensor = self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return result


def on_map(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer of a description at all positions, [N, C, H, W]."""
    if isinstance(layer, nn.BatchNorm2d) and not isinstance(layer, BatchNorm2d):
        return nn.BatchNorm2d.forward(layer, x)  # without the activation that a norm of timm's holds
    if isinstance(layer, nn.LayerNorm):
        last = F.layer_norm(x.permute(0, 2, 3, 1), layer.normalized_shape, layer.weight, layer.bias, layer.eps)
        return last.permute(0, 3, 1, 2)
    result: Tensor = layer(x)
    return result


@dataclass(frozen=True)
class Stage:
    """One convolution of a branch with the position-wise layers before it.

    Attributes:
        pointwise: norms and activations, applied in order before the convolution (and before its zero padding).
        conv: the convolution.
        reach: how far around an active position this stage's output is needed; 0 for the last stage.
    """

    pointwise: tuple[nn.Module, ...]
    conv: nn.Conv2d
    reach: int

    @property
    def in_reach(self) -> int:
        """How far around an active position this stage's input is needed."""
        return self.reach + self.conv.kernel_size[0] // 2


@dataclass(frozen=True)
class Description:
    """What a unit computes besides its shortcut: post(shortcut + tail(stages(everywhere(x)))).

    Attributes:
        everywhere: layers, convolutions among them, that need all positions, as one of them averages over the image
            (squeeze-excite) or cannot be read; empty in most units.
        stages: the rest of the branch.
        tail: position-wise layers behind the last convolution.
        post: position-wise layers behind the sum.
    """

    everywhere: tuple[nn.Module, ...] = ()
    stages: tuple[Stage, ...] = ()
    tail: tuple[nn.Module, ...] = ()
    post: tuple[nn.Module, ...] = ()

    @property
    def is_perforable(self) -> bool:
        """Whether some of it can be evaluated at active positions only."""
        return bool(self.stages) and all(is_plain(stage.conv) for stage in self.stages)

    def flops(self, projection: nn.Conv2d | None = None, score: tuple[int, int] = (0, 0)) -> UnitFlops:
        """A unit's FLOPs per position.

        Args:
            projection: the shortcut's convolution.
            score: FLOPs of the score head behind the unit, (per position, per image).
        """
        strided = [index for index, stage in enumerate(self.stages) if stage.conv.stride[0] > 1]
        before_stride = self.stages[: strided[0]] if strided else ()
        by_reach = [(stage.reach, conv_flops(stage.conv)) for stage in self.stages[len(before_stride) :]]
        if projection is not None:
            by_reach.append((0, conv_flops(projection)))
        everywhere = sum(conv_flops(layer) for layer in self.everywhere if isinstance(layer, nn.Conv2d))
        if not self.is_perforable and not strided:
            everywhere, by_reach = everywhere + sum(flops for _, flops in by_reach), []
        at_input = sum(conv_flops(stage.conv) for stage in before_stride)
        return UnitFlops(tuple(by_reach), at_input, *score, everywhere=everywhere)


def describe(chain: Iterable[nn.Module]) -> Description:
    """Read layers, in the order they run, as stages and what follows the last convolution."""
    grouped: list[tuple[tuple[nn.Module, ...], nn.Conv2d]] = []
    pointwise: list[nn.Module] = []
    for layer in chain:
        if isinstance(layer, nn.Conv2d):
            grouped.append((tuple(pointwise), layer))
            pointwise = []
        else:
            pointwise.append(layer)
    stages: list[Stage] = []
    reach = 0
    for layers, conv in reversed(grouped):
        stages.insert(0, Stage(layers, conv, reach))
        reach += conv.kernel_size[0] // 2
    return Description(stages=tuple(stages), tail=tuple(pointwise))


def is_plain(conv: nn.Conv2d) -> bool:
    """Whether a convolution can be evaluated at listed positions: square, odd, stride 1, not dilated, zero padding."""
    kernel = conv.kernel_size[0]
    return (
        conv.kernel_size == (kernel, kernel)
        and kernel % 2 == 1
        and conv.stride == (1, 1)
        and conv.dilation == (1, 1)
        and conv.padding in ((kernel // 2, kernel // 2), "same")
        and conv.padding_mode == "zeros"
    )


class BaseUnit(nn.Module):
    """One residual unit, as blocks and engines know it.

    Attributes:
        out_channels: channels of the next state.
        random: modules that in training mode make this unit something else than its description says.
    """

    random: tuple[nn.Module, ...] = ()

    @property
    def out_channels(self) -> int:
        """Channels of the next state."""
        raise NotImplementedError

    @property
    def keeps_state(self) -> bool:
        """Whether the shortcut is the raw input, so that an inactive position can simply be left alone."""
        raise NotImplementedError

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """The next state, computed everywhere and kept where active.

        Args:
            x: state [N, C, H, W].
            active: bool [N, H, W]; elsewhere the residual is zero and the state stays. None: everywhere.

        Returns:
            [N, C', H', W'].
        """
        raise NotImplementedError

    def description(self) -> Description:
        """The residual branch from the raw state on, and what follows the sum."""
        raise NotImplementedError

    def flops(self, score: tuple[int, int] = (0, 0)) -> UnitFlops:
        """This unit's FLOPs per position, and those of the score head behind it as (per position, per image)."""
        raise NotImplementedError

    def stages(self) -> tuple[Stage, ...]:
        """The stages of the branch."""
        return self.description().stages


class Unit(BaseUnit):
    """One residual unit, x + f(x), with pre-activation.

    Args:
        preact: norm and activation at the unit's start.
        branch: the chain after `preact`; it ends with a convolution.
        shortcut: what the residual is added to; the identity keeps the state.
        shortcut_preactivated: whether the shortcut reads the pre-activated input instead of the raw one.
    """

    def __init__(
        self, preact: nn.Sequential, branch: nn.Sequential, shortcut: nn.Module, shortcut_preactivated: bool = False
    ) -> None:
        super().__init__()
        self.preact = preact
        self.branch = branch
        self.shortcut = shortcut
        self.shortcut_preactivated = shortcut_preactivated

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """As `BaseUnit.forward`."""
        preactivated = self.preact(x)
        residual = self.branch(preactivated)
        if active is not None:
            residual = torch.where(active[:, None], residual, torch.zeros_like(residual))
        return self.shortcut(preactivated if self.shortcut_preactivated else x) + residual

    def description(self) -> Description:
        """The residual branch from the raw state on.

        Raises:
            InputError: the branch does not end with a convolution.
        """
        description = describe([*self.preact, *self.branch])
        if description.tail or not description.stages:
            raise InputError(f"a branch must end with a convolution, but this one ends with {self.branch[-1:]}")
        return description

    @property
    def out_channels(self) -> int:
        """Channels of the next state."""
        return self.stages()[-1].conv.out_channels

    @property
    def keeps_state(self) -> bool:
        """Whether the shortcut is the raw input."""
        return isinstance(self.shortcut, nn.Identity) and not self.shortcut_preactivated

    def flops(self, score: tuple[int, int] = (0, 0)) -> UnitFlops:
        """As `BaseUnit.flops`."""
        return self.description().flops(self.shortcut if isinstance(self.shortcut, nn.Conv2d) else None, score)

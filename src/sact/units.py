"""Residual units: a shortcut plus a branch, where the branch is a described chain of stages.

A stage is some position-wise layers (norm, activation) and then one convolution. The dense forward pass, perforated
evaluation, FLOP counting and weight folding all read the same chain.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import InputError
from .flops import UnitFlops, conv_flops


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


def describe(chain: nn.Sequential) -> tuple[Stage, ...]:
    """Read a chain of layers as stages.

    Args:
        chain: norms, activations and convolutions in the order they run; it ends with a convolution.

    Raises:
        InputError: the chain does not end with a convolution.
    """
    grouped: list[tuple[tuple[nn.Module, ...], nn.Conv2d]] = []
    pointwise: list[nn.Module] = []
    for layer in chain:
        if isinstance(layer, nn.Conv2d):
            grouped.append((tuple(pointwise), layer))
            pointwise = []
        else:
            pointwise.append(layer)
    if pointwise or not grouped:
        raise InputError(f"a branch must end with a convolution, but this one ends with {chain[-1:]}")
    stages: list[Stage] = []
    reach = 0
    for layers, conv in reversed(grouped):
        stages.insert(0, Stage(layers, conv, reach))
        reach += conv.kernel_size[0] // 2
    return tuple(stages)


class Unit(nn.Module):
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
        """The next state, computed everywhere and kept where active.

        Args:
            x: state [N, C, H, W].
            active: bool [N, H, W]; elsewhere the residual is zero and the state stays. None: everywhere.

        Returns:
            [N, C', H', W'].
        """
        preactivated = self.preact(x)
        residual = self.branch(preactivated)
        if active is not None:
            residual = torch.where(active[:, None], residual, torch.zeros_like(residual))
        return self.shortcut(preactivated if self.shortcut_preactivated else x) + residual

    def stages(self) -> tuple[Stage, ...]:
        """The residual branch from the raw state on, as stages."""
        return describe(nn.Sequential(*self.preact, *self.branch))

    @property
    def out_channels(self) -> int:
        """Channels of the next state."""
        return self.stages()[-1].conv.out_channels

    @property
    def keeps_state(self) -> bool:
        """Whether the shortcut is the raw input, so that an inactive position can simply be left alone."""
        return isinstance(self.shortcut, nn.Identity) and not self.shortcut_preactivated

    def flops(self, score: tuple[int, int] = (0, 0)) -> UnitFlops:
        """This unit's FLOPs per position, and those of the score head behind it as (per position, per image)."""
        stages = self.stages()
        strided = [index for index, stage in enumerate(stages) if stage.conv.stride[0] > 1]
        before_stride = stages[: strided[0]] if strided else ()
        by_reach = [(stage.reach, conv_flops(stage.conv)) for stage in stages[len(before_stride) :]]
        if isinstance(self.shortcut, nn.Conv2d):
            by_reach.append((0, conv_flops(self.shortcut)))
        return UnitFlops(tuple(by_reach), sum(conv_flops(stage.conv) for stage in before_stride), *score)

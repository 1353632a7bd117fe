"""Residual units as people write them, of 8 channels, and a small network of such."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

C = 8

MakeUnit = Callable[[], nn.Module]


def conv(kernel: int | tuple[int, int] = 3, **options: Any) -> nn.Conv2d:
    if isinstance(kernel, int):
        options.setdefault("padding", kernel // 2)
    return nn.Conv2d(C, C, kernel, **options)


class Unit(nn.Module):
    """x + branch(x), and then perhaps an activation."""

    def __init__(self, *branch: nn.Module, post: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)
        self.post = nn.Identity() if post is None else post

    def forward(self, x: Tensor) -> Tensor:
        return self.post(x + self.branch(x))


class Functional(Unit):
    """With functions instead of layers, one of them in place."""

    def __init__(self) -> None:
        super().__init__(conv(), nn.BatchNorm2d(C), conv(), nn.BatchNorm2d(C))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.branch[0](x))
        out = F.gelu(self.branch[1](out), approximate="tanh")
        out = self.branch[3](self.branch[2](out).relu_())
        out += x
        return F.relu(0.7 * out, inplace=True)


class IntoInput(Unit):
    """Adds to its input in place."""

    def forward(self, x: Tensor) -> Tensor:
        x += self.branch(F.relu(x))
        return x


class ConvNeXt(nn.Module):
    """Channels stand last in between; a factor per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = conv(5, groups=C)
        self.norm = nn.LayerNorm(C)
        self.up, self.down = nn.Linear(C, 12), nn.Linear(12, C, bias=False)
        self.gamma = nn.Parameter(torch.full((C,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        out = self.depthwise(x).permute(0, 2, 3, 1)
        out = self.gamma * self.down(F.gelu(self.up(self.norm(out))))
        return x + out.permute(0, 3, 1, 2)


class Twice(Unit):
    """One convolution that runs twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(F.relu(self.branch(x))) + x


class FactorOfAll(Unit):
    """One factor for all channels."""

    def __init__(self) -> None:
        super().__init__(conv(), nn.BatchNorm2d(C), nn.ReLU(), conv(1))
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.branch(x) * self.factor, x)


class Ramp(nn.Module):
    """Adds what depends on where a position is."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.linspace(-1, 1, x.shape[-1]).to(x)


class Gate(nn.Module):
    """Squeeze-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(C, 2, 1), nn.Conv2d(2, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Dropping(Unit):
    """Drops by a function, which is told the mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(self.branch(x), 0.5, self.training)


class Normed(nn.Module):
    """A factor that parametrisation computes."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / weight.norm()


def _parametrised() -> nn.Module:
    unit = Unit(conv(), nn.ReLU(), conv())
    parametrize.register_parametrization(unit.branch[0], "weight", Normed())
    return unit


def _pruned() -> nn.Module:
    unit = Unit(conv(), nn.ReLU(), conv())
    prune.random_unstructured(unit.branch[0], "weight", 0.5)
    unit(torch.zeros(1, C, 3, 3))  # leaves weights that are computed of others
    return unit


SKIPPING: dict[str, MakeUnit] = {
    "bottleneck": lambda: Unit(
        conv(1), nn.BatchNorm2d(C), nn.ReLU(inplace=True), conv(), nn.BatchNorm2d(C), post=nn.ReLU(inplace=True)
    ),
    "preactivated": lambda: Unit(nn.BatchNorm2d(C), nn.LeakyReLU(0.1), conv(), nn.BatchNorm2d(C), nn.PReLU(C), conv(1)),
    "functional": Functional,
    "into its input": lambda: IntoInput(conv(), nn.ReLU(), conv()),
    "ConvNeXt": ConvNeXt,
    "twice": lambda: Twice(conv()),
    "factor of all": FactorOfAll,
    "identities": lambda: Unit(
        nn.Identity(), conv(), nn.Identity(), nn.Dropout(0.5), nn.ReLU(), conv(1), nn.Identity()
    ),
    "grouped": lambda: Unit(conv(3, groups=4), nn.Hardswish(), conv(1, groups=2)),
    "padded by name": lambda: Unit(conv(3, padding="same"), nn.SiLU(), conv(5, padding="same")),
    "reading beyond 3x3": lambda: Unit(conv(5), nn.ReLU(), conv(3), nn.ReLU(), conv(3)),
    "drops": lambda: Dropping(conv(), nn.ReLU(), conv()),
    "parametrised": _parametrised,
    "norm twice": lambda: Unit(
        nn.BatchNorm2d(C), nn.BatchNorm2d(C), nn.Sigmoid(), conv(), nn.BatchNorm2d(C), nn.Tanh()
    ),
}
"""Units whose every convolution is evaluated at listed positions."""

PARTLY: dict[str, tuple[MakeUnit, str]] = {
    "squeeze-excite": (lambda: Unit(conv(), nn.ReLU(), Gate(), conv(1), nn.BatchNorm2d(C)), "Gate"),
    "group norm": (lambda: Unit(conv(), nn.GroupNorm(2, C), nn.ReLU(), conv()), "GroupNorm"),
    "instance norm": (lambda: Unit(conv(), nn.InstanceNorm2d(C, affine=True), nn.ReLU(), conv()), "InstanceNorm2d"),
    "norm of the batch": (
        lambda: Unit(conv(), nn.BatchNorm2d(C, track_running_stats=False), nn.ReLU(), conv()),
        "BatchNorm2d",
    ),
    "positions": (lambda: Unit(conv(), nn.ReLU(), Ramp(), conv()), "Ramp"),
    "pruned": (_pruned, "Conv2d"),
}
"""Units of which a part needs the whole map, and its name."""

WHOLE: dict[str, tuple[MakeUnit, str]] = {
    "dilated": (lambda: Unit(conv(3, dilation=2, padding=2), nn.ReLU(), conv()), "Conv2d"),
    "even": (lambda: Unit(conv(2, padding="same"), nn.ReLU(), conv()), "Conv2d"),
    "reflecting": (lambda: Unit(conv(3, padding_mode="reflect"), nn.ReLU(), conv()), "Conv2d"),
    "oblong": (lambda: Unit(conv((1, 3), padding=(0, 1)), nn.ReLU(), conv()), "Conv2d"),
    "gate at the end": (lambda: Unit(conv(), nn.ReLU(), conv(), Gate()), "Gate"),
}
"""Units that are computed everywhere, and the last thing that wants it."""


class _Forward(nn.Module):
    """Two branches, joined as a function says."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.wide = conv(), conv(), nn.Conv2d(2 * C, C, 1)
        self.offset = nn.Parameter(torch.ones(C, 1, 1))
        self.norm, self.relu, self.pool = nn.BatchNorm2d(C), nn.ReLU(inplace=True), nn.MaxPool2d(3, 1, 1)
        self.rule = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.rule(self, x)


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "concat": (lambda m, x: x + m.wide(torch.cat([m.a(x), m.b(x)], 1)), "joins 2 branches"),
    "gate between branches": (lambda m, x: x + m.a(x) * m.b(x).sigmoid(), "joins 2 branches"),
    "three branches": (lambda m, x: x + m.a(x) + m.b(x), "joins 2 branches"),
    "difference": (lambda m, x: x - m.a(x), "joins 2 branches"),
    "weighted sum": (lambda m, x: torch.add(x, m.a(x), alpha=0.5), "a sum of something other than two branches"),
    "convolution behind the sum": (lambda m, x: m.b(x + m.a(x)), "behind the sum"),
    "parameter that is added": (lambda m, x: x + m.a(x + m.offset), "reads a parameter"),
    "what is computed": (lambda m, x: x + m.a(x) if x.mean() > 0 else x, "cannot be traced"),
    "activation that reaches the shortcut": (lambda m, x: x + m.a(m.relu(x)) * 0.5, "something else than it does"),
    "pool in the branch": (lambda m, x: x + m.a(m.pool(x)), "MaxPool2d in the branch"),
    "permutation": (lambda m, x: x + m.a(x.permute(0, 1, 3, 2)).permute(0, 1, 3, 2), "a permutation"),
    "channels last": (lambda m, x: x + m.a(x).permute(0, 2, 3, 1), "channels last"),
}
"""Units that cannot be described, and why."""


def refused(name: str) -> nn.Module:
    return _Forward(REFUSED[name][0])


class ToyNetwork(nn.Module):
    """A stem, units one after the other, and a classifier."""

    def __init__(self, *units: nn.Module, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, C, 3, stride=2, padding=1), nn.BatchNorm2d(C), nn.ReLU())
        self.layers = nn.Sequential(*units)
        self.fc = nn.Linear(C, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.stem(x))
        return self.fc(x.mean((2, 3)))


def vary_norms(network: nn.Module) -> None:
    """Statistics, factors and shifts as after training."""
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.2)
                if norm.running_mean is not None and norm.running_var is not None:
                    norm.running_mean.normal_(0, 0.2)
                    norm.running_var.uniform_(0.5, 2)

"""The CIFAR family: two-convolution units, depth 6n + 2. Section 4.2 of the paper."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import nn

from ..layers import BatchNorm2d, PoolPadShortcut, SameConv2d
from ..scores import make_score
from ..units import Unit
from .assemble import assemble
from .network import Network, NetworkConfig

SLOPE = 0.1

norm = partial(BatchNorm2d, eps=1e-3, momentum=0.1)


def basic(in_channels: int, channels: int, stride: int) -> Unit:
    """A unit of two 3x3 convolutions."""
    conv1: nn.Conv2d
    if stride > 1:
        conv1 = SameConv2d(in_channels, channels, 3, stride, bias=False)
    else:
        conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    branch = nn.Sequential(
        OrderedDict(
            conv1=conv1,
            norm1=norm(channels),
            act1=nn.LeakyReLU(SLOPE * SLOPE),  # the authors apply the activation twice here
            conv2=nn.Conv2d(channels, channels, 3, padding=1),
        )
    )
    preact = nn.Sequential(OrderedDict(norm=norm(in_channels), act=nn.LeakyReLU(SLOPE)))
    keeps_shape = stride == 1 and in_channels == channels
    shortcut = nn.Identity() if keeps_shape else PoolPadShortcut(in_channels, channels, stride)
    return Unit(preact, branch, shortcut)


def build(config: NetworkConfig) -> Network:
    """A network of the CIFAR family."""
    network = assemble(
        config,
        stem=nn.Sequential(OrderedDict(conv=nn.Conv2d(config.in_channels, config.base_channels, 3, padding=1))),
        stem_channels=config.base_channels,
        stem_stride=1,
        make_unit=basic,
        make_score=lambda channels: make_score(config.halting, channels, norm, nn.LeakyReLU(SLOPE)),
        make_head=lambda channels: nn.Sequential(
            OrderedDict(pool=nn.AdaptiveAvgPool2d(1), norm=norm(channels), act=nn.LeakyReLU(SLOPE))
        ),
    )
    # The stem is a bare convolution: the first unit activates its output for the shortcut too.
    first = network.blocks[0].units[0]
    assert isinstance(first, Unit)
    first.shortcut_preactivated = True
    return network

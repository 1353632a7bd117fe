"""The ImageNet family: pre-activation ("v2") bottleneck networks. Section 4.1 of the paper, slim's resnet_v2."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import nn

from ..layers import BatchNorm2d, SameMaxPool2d
from ..scores import make_score
from ..units import Unit
from .assemble import assemble
from .network import Network, NetworkConfig

STEM_CHANNELS = 64
EXPANSION = 4

norm = partial(BatchNorm2d, eps=1e-5, momentum=0.003)


def bottleneck(in_channels: int, width: int, stride: int) -> Unit:
    """A unit of 1x1, 3x3, 1x1 convolutions, `width` channels inside and 4 x `width` outside."""
    out_channels = EXPANSION * width
    preact = nn.Sequential(OrderedDict(norm=norm(in_channels), act=nn.ReLU()))
    branch = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, width, 1, bias=False),
            norm1=norm(width),
            act1=nn.ReLU(),
            conv2=nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
            norm2=norm(width),
            act2=nn.ReLU(),
            conv3=nn.Conv2d(width, out_channels, 1),
        )
    )
    if in_channels != out_channels:
        return Unit(preact, branch, nn.Conv2d(in_channels, out_channels, 1, stride), shortcut_preactivated=True)
    return Unit(preact, branch, nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity())


def build(config: NetworkConfig) -> Network:
    """A network of the ImageNet family."""
    return assemble(
        config,
        stem=nn.Sequential(
            OrderedDict(conv=nn.Conv2d(config.in_channels, STEM_CHANNELS, 7, 2, padding=3), pool=SameMaxPool2d())
        ),
        stem_channels=STEM_CHANNELS,
        stem_stride=4,
        make_unit=bottleneck,
        make_score=lambda channels: make_score(config.halting, channels, norm, nn.Identity()),
        make_head=lambda channels: nn.Sequential(
            OrderedDict(norm=norm(channels), act=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1))
        ),
    )

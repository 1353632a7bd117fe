"""The CIFAR family: two-convolution units, depth 6n + 2. Section 4.2 of the paper."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import nn

from ..block import Block
from ..layers import BatchNorm2d, PoolPadShortcut, SameConv2d, init_weights
from ..scores import make_score
from ..units import Unit
from .network import Network, NetworkConfig

SLOPE = 0.1

norm = partial(BatchNorm2d, eps=1e-3, momentum=0.1)


def basic(in_channels: int, channels: int, stride: int, is_first: bool) -> Unit:
    """A unit of two 3x3 convolutions. `is_first`: the network's first unit, whose shortcut is pre-activated."""
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
    return Unit(preact, branch, shortcut, shortcut_preactivated=is_first)


def build(config: NetworkConfig) -> Network:
    """A network of the CIFAR family; blocks after the first halve the resolution in their first unit."""
    channels = config.base_channels
    stem = nn.Sequential(OrderedDict(conv=nn.Conv2d(config.in_channels, channels, 3, padding=1)))
    blocks, feature_channels = [], []
    for index, count in enumerate(config.units):
        width = config.base_channels * 2**index
        units = []
        for position in range(count):
            stride = 2 if index and position == 0 else 1
            units.append(basic(channels, width, stride, is_first=index == 0 and position == 0))
            channels = width
        heads = count - 1 if config.halting != "none" else 0
        scores = [make_score(config.halting, channels, norm, nn.LeakyReLU(SLOPE)) for _ in range(heads)]
        blocks.append(Block(units, scores, config.halting, config.eps))
        feature_channels.append(channels)
    head = nn.Sequential(OrderedDict(pool=nn.AdaptiveAvgPool2d(1), norm=norm(channels), act=nn.LeakyReLU(SLOPE)))
    strides = tuple(2**index for index in range(len(blocks)))
    classifier = nn.Conv2d(channels, config.num_classes, 1)
    network = Network(config, stem, blocks, head, classifier, tuple(feature_channels), strides)
    init_weights(network)
    network.reset_scores()
    return network

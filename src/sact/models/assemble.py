"""What both families share: blocks of doubling width on a stem, a head and a classifier behind them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..block import Block
from ..layers import init_weights
from ..scores import ScoreHead
from ..units import Unit
from .network import Network, NetworkConfig


def assemble(
    config: NetworkConfig,
    stem: nn.Sequential,
    stem_channels: int,
    stem_stride: int,
    make_unit: Callable[[int, int, int], Unit],
    make_score: Callable[[int], ScoreHead],
    make_head: Callable[[int], nn.Sequential],
) -> Network:
    """A network with fresh weights; blocks after the first halve the resolution in their first unit.

    Args:
        config: units per block, base width, classes and halting are read from it.
        stem: image to the first block's input.
        stem_channels: channels of the stem's output.
        stem_stride: pixels of the image per position of the stem's output.
        make_unit: a unit from its input channels, its block's width and its stride.
        make_score: a score head from the channels that it reads.
        make_head: the head from the channels of the last block.
    """
    channels = stem_channels
    blocks, feature_channels = [], []
    for index, count in enumerate(config.units):
        units = []
        for position in range(count):
            stride = 2 if index and position == 0 else 1
            units.append(make_unit(channels, config.base_channels * 2**index, stride))
            channels = units[-1].out_channels
        scores = [make_score(channels) for _ in range(count - 1)] if config.halting != "none" else []
        blocks.append(Block(units, scores, config.halting, config.eps))
        feature_channels.append(channels)
    head = make_head(channels)
    strides = tuple(stem_stride * 2**index for index in range(len(blocks)))
    classifier = nn.Conv2d(channels, config.num_classes, 1)
    network = Network(config, stem, blocks, head, classifier, tuple(feature_channels), strides)
    init_weights(network)
    network.reset_scores()
    return network

"""What both families share: blocks of doubling width on a stem, a head and a classifier behind them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..block import Block
from ..errors import InputError
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

    They do so while the stride is below `config.output_stride`, if there is one. Later blocks then keep the resolution,
    without the atrous convolutions that others put there: every convolution stays one that engines can evaluate at
    listed positions, and score heads see the same neighbourhood as before.

    Args:
        config: units per block, base width, classes, halting and output stride are read from it.
        stem: image to the first block's input.
        stem_channels: channels of the stem's output.
        stem_stride: pixels of the image per position of the stem's output.
        make_unit: a unit from its input channels, its block's width and its stride.
        make_score: a score head from the channels that it reads.
        make_head: the head from the channels of the last block.

    Raises:
        InputError: the stem's stride is beyond the output stride already.
    """
    channels, total = stem_channels, stem_stride
    if config.output_stride is not None and config.output_stride < stem_stride:
        raise InputError(
            f"output_stride is {config.output_stride}, but the stem of this family has a stride of {stem_stride} "
            "already; that is the least"
        )
    blocks, feature_channels, strides = [], [], []
    for index, count in enumerate(config.units):
        first = 2 if index and (config.output_stride is None or total < config.output_stride) else 1
        total *= first
        units = []
        for position in range(count):
            units.append(make_unit(channels, config.base_channels * 2**index, first if position == 0 else 1))
            channels = units[-1].out_channels
        scores = [make_score(channels) for _ in range(count - 1)] if config.halting != "none" else []
        blocks.append(Block(units, scores, config.halting, config.eps))
        feature_channels.append(channels)
        strides.append(total)
    head = make_head(channels)
    classifier = nn.Conv2d(channels, config.num_classes, 1)
    network = Network(config, stem, blocks, head, classifier, tuple(feature_channels), tuple(strides))
    init_weights(network)
    network.reset_scores()
    return network

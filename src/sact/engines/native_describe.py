"""A network in the C structures of the CPU engine: norms folded, layers named that the kernel lacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..block import Block
from ..folding import fold
from ..layers import PoolPadShortcut, SameMaxPool2d
from ..reading import Reading, Undescribable, is_same_padded
from ..scores import ImageScore, PositionScore
from ..units import BaseUnit, Stage, Unit, describe
from .native_layers import (
    Unsupported,
    activation_of,
    affine_of,
    check_pool,
    classifier_of,
    is_basic,
    is_norm,
    is_nothing,
    keeps_map,
    label,
    reading_of,
    split_shortcut,
    take_pointwise,
)
from .native_structs import (
    Activation,
    BlockStruct,
    Conv,
    NetworkStruct,
    Pointwise,
    ScoreStruct,
    StageStruct,
    UnitStruct,
)

if TYPE_CHECKING:
    from ..models.adapted import AdaptedNetwork
    from ..models.network import Network

HALTING = {"none": 0, "act": 1, "sact": 2}
_IDENTITY, _CONVOLUTION, _POOL_PAD, _NO_SHORTCUT = range(4)
_NO_POOL, _POOL_SAME, _POOL_PADDED = range(3)
# The kernel's own limits: kMaxTaps and kMaxReach.
_MAX_KERNEL, _MAX_REACH = 7, 15


class Describer:
    """Turns networks into structures, and holds what these point to until it is packed.

    Attributes:
        slots: for each block of the network its place among the described ones, of which the others are plain.
    """

    def __init__(self) -> None:
        self.slots: list[int] = []
        self._keep: list[Any] = []
        self._stem: Conv | None = None
        self._pool = _NO_POOL
        self._convs: list[list[Conv]] = []  # of every described block's first unit, its branch

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(H, W) of the first described block's input, and of every one's output, at an image size."""
        assert self._stem is not None
        size = self._stem.result(height), self._stem.result(width)
        if self._pool:
            size = (size[0] + 1) // 2, (size[1] + 1) // 2
        sizes = [size]
        for convs in self._convs:
            for conv in convs:
                size = conv.result(size[0]), conv.result(size[1])
            sizes.append(size)
        return sizes

    def network(self, model: Network) -> NetworkStruct:
        """A network of this library."""
        stem, *rest = model.stem
        if not isinstance(stem, nn.Conv2d) or len(rest) > 1 or (rest and not isinstance(rest[0], SameMaxPool2d)):
            raise Unsupported(f"the stem {model.stem}")
        self.slots = list(range(len(model.blocks)))
        result = self._network(
            stem, [], _POOL_SAME if rest else _NO_POOL, [self.block(block) for block in model.blocks]
        )
        if isinstance(model.head, nn.Sequential) and model.classifier is not None:
            layers = [layer for layer in model.head if not isinstance(layer, nn.AdaptiveAvgPool2d)]
            result.pool_first = isinstance(model.head[0], nn.AdaptiveAvgPool2d)
            result.before_classifier = self._pointwise(layers, model.classifier.in_channels)
            result.classes = model.config.num_classes
            result.classifier = self._conv(model.classifier)
        return result

    def adapted(self, model: AdaptedNetwork) -> NetworkStruct:
        """Somebody's network with its blocks, where it is a chain of layers: stem, blocks among others, classifier."""
        if model.config.features_only:
            raise Unsupported("feature maps of somebody's network")
        try:
            layers = model.layers()
        except Undescribable as error:
            raise Unsupported(f"a network that is no chain of layers ({error})") from error
        stem, *rest = layers
        if not isinstance(stem, nn.Conv2d) or stem.groups != 1:
            raise Unsupported(f"the stem {label(stem)}")
        after_stem, pool = take_pointwise(rest), _NO_POOL
        if rest and isinstance(rest[0], nn.MaxPool2d):
            check_pool(rest[0])
            rest, pool = rest[1:], _POOL_PADDED
        channels = stem.out_channels
        blocks: list[BlockStruct] = []
        between: list[nn.Module] = []
        while rest:
            layer = rest[0]
            if isinstance(layer, nn.Module) and not keeps_map(layer, is_last=len(rest) == 1):
                break
            rest = rest[1:]
            if isinstance(layer, nn.Module) and is_basic(layer):
                between.append(layer)
                channels = layer.out_channels if isinstance(layer, nn.Conv2d) else channels
                continue
            blocks += self._plain_units(between, channels)
            between = []
            if isinstance(layer, int):
                self.slots.append(len(blocks))
                blocks.append(self.block(model.blocks[layer]))
                channels = model.blocks[layer].units[-1].out_channels
            else:
                reading = reading_of(layer, channels)
                channels = reading.description.stages[-1].conv.out_channels
                blocks.append(self._plain(self._read_unit(reading, type(layer).__name__, channels)))
        blocks += self._plain_units(between, channels)
        result = self._network(stem, after_stem, pool, blocks)
        classifier, norms = classifier_of([layer for layer in rest if isinstance(layer, nn.Module)], channels)
        result.pool_first = True
        result.before_classifier = self._pointwise(norms, channels)
        result.classes = classifier.out_channels
        result.classifier = self._conv(classifier)
        return result

    def alone(self, block: Block) -> NetworkStruct:
        """One block whose first unit runs elsewhere: what is run are the others, on its state."""
        blocks = [self.block(block, given=True)]
        return NetworkStruct(n_blocks=1, blocks=self._array(BlockStruct, blocks))

    def block(self, block: Block, given: bool = False) -> BlockStruct:
        """A block; with `given` its input is its first unit's state."""
        heads = [*block.scores, *[None] * (len(block.units) - len(block.scores))]
        units = []
        for index, (unit, head) in enumerate(zip(block.units, heads, strict=True)):
            if index == 0 and given:
                described = self._unit_struct(unit.out_channels, _NO_SHORTCUT, [])
            else:
                described = self._unit(unit, index == 0)
            if head is not None and block.halting != "none":
                described.score = self._array(ScoreStruct, [self._score(head)])
            units.append(described)
        return self._block(units, HALTING[block.halting], block.output == "halted", 1.0 - block.eps)

    def _network(
        self, stem: nn.Conv2d, after: Sequence[nn.Module], pool: int, blocks: Sequence[BlockStruct]
    ) -> NetworkStruct:
        folded = fold(describe([stem, *after]))
        before = self._pointwise(folded.tail, stem.out_channels)
        if before.scale:
            raise Unsupported("a norm that cannot be folded into the stem")
        self._stem, self._pool = self._conv(folded.stages[0].conv), pool
        return NetworkStruct(
            len(blocks), pool, 0, 0, self._stem, before.activation, self._array(BlockStruct, blocks)
        )  # fmt: skip

    def _block(self, units: Sequence[UnitStruct], halting: int, halted: bool, threshold: float) -> BlockStruct:
        self._convs.append([units[0].stages[index].conv for index in range(units[0].n_stages)])
        return BlockStruct(len(units), halting, halted, threshold, self._array(UnitStruct, units))

    def _plain(self, unit: UnitStruct) -> BlockStruct:
        return self._block([unit], HALTING["none"], False, 0.0)

    def _plain_units(self, layers: Sequence[nn.Module], channels: int) -> list[BlockStruct]:
        """Layers between blocks, `channels` behind them, as units without a shortcut."""
        if not layers:
            return []
        described = fold(describe(layers))
        units: list[list[Stage]] = [[]]
        for stage in described.stages:  # a norm before k x k is applied to whole states
            if units[-1] and stage.conv.kernel_size != (1, 1) and any(map(is_norm, stage.pointwise)):
                units.append([])
            units[-1].append(stage)
        result = []
        for index, stages in enumerate(units):
            after = described.tail if index + 1 == len(units) else ()
            width = stages[-1].conv.out_channels if stages else channels
            result.append(self._plain(self._unit_struct(width, _NO_SHORTCUT, stages, after)))
        return result

    def _unit(self, unit: BaseUnit, first: bool) -> UnitStruct:
        if not isinstance(unit, Unit):
            reading: Reading | None = getattr(unit, "reading", None)
            if reading is None:
                raise Unsupported(f"the unit {getattr(unit, 'name', label(unit))}, which could not be described")
            return self._read_unit(reading, getattr(unit, "name", ""), unit.out_channels, first)
        if not first and not unit.keeps_state:
            raise Unsupported(f"the shortcut {unit.shortcut} behind a block's first unit")
        result = self._unit_struct(unit.out_channels, _IDENTITY, fold(unit.description()).stages)
        result.preactivated = unit.shortcut_preactivated
        shortcut = unit.shortcut
        if isinstance(shortcut, nn.Conv2d):
            self._project(result, shortcut)
        elif isinstance(shortcut, PoolPadShortcut):
            result.shortcut, result.stride, result.before = _POOL_PAD, shortcut.stride, shortcut.before
        elif isinstance(shortcut, nn.MaxPool2d) and shortcut.kernel_size == 1 and isinstance(shortcut.stride, int):
            result.stride = shortcut.stride
        elif not isinstance(shortcut, nn.Identity):
            raise Unsupported(f"{shortcut}")
        return result

    def _read_unit(self, reading: Reading, name: str, channels: int, first: bool = True) -> UnitStruct:
        """A unit of somebody's network."""
        description, shortcut = fold(reading.description), reading.shortcut
        if description.everywhere:
            raise Unsupported(f"{type(description.everywhere[-1]).__name__} (in {name})")
        if not description.stages or (not first and not description.is_perforable):
            raise Unsupported(f"the convolutions of {name}")
        after = (*description.tail, *description.post)
        if description.tail and shortcut is not None:
            raise Unsupported(f"{label(description.tail[0])} before the sum (in {name})")
        kind = _NO_SHORTCUT if shortcut is None else _IDENTITY
        result = self._unit_struct(channels, kind, description.stages, after)
        if not first and result.after.scale:
            raise Unsupported(f"a norm behind the sum (in {name})")
        if shortcut:
            before, conv, behind = split_shortcut(shortcut)
            if before:
                norms = [layer for layer in description.stages[0].pointwise if is_norm(layer)]
                if [layer for layer in before if is_norm(layer)] != norms or len(before) != len(
                    description.stages[0].pointwise
                ):
                    raise Unsupported(f"{label(before[0])} in the shortcut (of {name})")
                result.preactivated = True
            folded = fold(describe([conv, *behind]))
            if folded.tail:
                raise Unsupported(f"{label(folded.tail[0])} in the shortcut (of {name})")
            self._project(result, folded.stages[0].conv)
        return result

    def _project(self, unit: UnitStruct, conv: nn.Conv2d) -> None:
        if conv.kernel_size != (1, 1) or conv.padding != (0, 0):
            raise Unsupported(f"{conv} in a shortcut")
        unit.shortcut, unit.projection = _CONVOLUTION, self._array(Conv, [self._conv(conv)])

    def _unit_struct(
        self, channels: int, shortcut: int, stages: Sequence[Stage], after: Sequence[nn.Module] = ()
    ) -> UnitStruct:
        return UnitStruct(
            channels, len(stages), shortcut, 0, 1, 0, self._stages(stages), None, self._pointwise(after, channels)
        )  # fmt: skip

    def _stages(self, stages: Sequence[Stage]) -> Any:
        if stages and stages[0].in_reach > _MAX_REACH:
            raise Unsupported(f"a branch that reads {stages[0].in_reach} positions around an active one")
        items = []
        for index, stage in enumerate(stages):
            before = self._pointwise(stage.pointwise, stage.conv.in_channels)
            if index and before.scale and stage.conv.kernel_size != (1, 1):
                raise Unsupported("a norm that cannot be folded into the convolution before it")
            items.append(StageStruct(before, self._conv(stage.conv)))
        return self._array(StageStruct, items)

    def _score(self, head: ImageScore | PositionScore) -> ScoreStruct:
        channels = head.global_conv.in_channels
        bias = head.local_conv.bias if isinstance(head, PositionScore) else head.global_conv.bias
        return ScoreStruct(
            self._pointwise([head.local_norm, head.activation] if isinstance(head, PositionScore) else [], channels),
            self._pointwise([head.global_norm, head.activation], channels),
            self._floats(head.local_conv.weight) if isinstance(head, PositionScore) else None,
            self._floats(head.global_conv.weight),
            float(bias.detach()) if bias is not None else 0.0,
        )

    def _conv(self, conv: nn.Conv2d) -> Conv:
        kernel, same = conv.kernel_size[0], is_same_padded(conv)
        if (
            conv.kernel_size != (kernel, kernel)
            or kernel > _MAX_KERNEL
            or conv.dilation != (1, 1)
            or conv.stride[0] != conv.stride[1]
            or conv.padding_mode != "zeros"
            or (not same and (isinstance(conv.padding, str) or conv.padding[0] != conv.padding[1]))
            or (not same and int(conv.padding[0]) > kernel // 2)
            or (type(conv).forward is not nn.Conv2d.forward and not same)
            or conv._forward_hooks
            or conv._forward_pre_hooks
        ):
            raise Unsupported(f"{conv}")
        return Conv(
            conv.in_channels, conv.out_channels, kernel, conv.stride[0], 0 if same else int(conv.padding[0]), same,
            conv.groups, self._floats(conv.weight), self._floats(conv.bias),
        )  # fmt: skip

    def _pointwise(self, layers: Sequence[nn.Module], channels: int) -> Pointwise:
        """A norm, then an activation; either may be missing."""
        result = Pointwise(None, None, 0.0, Activation(0, 1.0, math.inf))
        is_open = True  # while nothing but the norm was seen
        for layer in layers:
            activation = activation_of(layer)
            if activation is not None:
                if not is_nothing(activation):
                    if not is_nothing(result.activation):
                        raise Unsupported(f"{label(layer)} behind another activation")
                    result.activation, is_open = activation, False
                continue
            if result.scale or not is_open or not is_norm(layer):
                raise Unsupported(label(layer))
            scale, shift, result.eps = affine_of(layer, channels)
            result.scale, result.shift = self._floats(scale), self._floats(shift)
        return result

    def _floats(self, values: Tensor | None) -> int | None:
        if values is None:
            return None
        held = values.detach().to(torch.float32).contiguous()
        self._keep.append(held)
        return held.data_ptr()

    def _array(self, kind: Any, items: Sequence[Any]) -> Any:
        held = (kind * len(items))(*items)
        self._keep.append(held)
        return held

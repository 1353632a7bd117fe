"""Regions of maps: what layers read to give a part of their result, such that it equals that part of the whole.

Inside of the map a part is computed from its true neighbours; padding stands only where the map itself ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import PoolPadShortcut, SameMaxPool2d, same_padding
from ..reading import is_same_padded
from ..trials import Undescribable, is_global
from ..units import Scale, on_map

Span = tuple[int, int]
"""Positions along one axis, the first and the one behind the last."""
Box = tuple[Span, Span]
"""Rows and columns of a map."""
Size = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """How a layer reads one axis of its input.

    Attributes:
        extent: positions that it reads for one of its result.
        stride: positions from one of these to the next.
        before: positions of padding before the first.
        count: positions of its result.
    """

    extent: int
    stride: int
    before: int
    count: int

    @property
    def reach(self) -> int:
        """How far beyond a position, before or behind it, is read for it."""
        return max(self.before, self.extent - 1 - self.before)

    def reads(self, span: Span) -> Span:
        """What is read for a span of the result; may go beyond the map, into the padding."""
        start = span[0] * self.stride - self.before
        return start, (span[1] - 1) * self.stride - self.before + self.extent


def window(layer: nn.Module, axis: int, size: int) -> Window | None:
    """How a layer reads an axis of `size` positions; None: position by position.

    Raises:
        Undescribable: it reads its input otherwise.
    """
    if isinstance(layer, nn.Conv2d):
        _check_conv(layer)
        extent, stride = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1, layer.stride[axis]
        if is_same_padded(layer):
            return Window(extent, stride, same_padding(size, extent, stride)[0], -(-size // stride))
        if layer.padding == "same":
            return Window(extent, stride, (extent - 1) // 2, size)
        before = 0 if isinstance(layer.padding, str) else layer.padding[axis]
        return Window(extent, stride, before, (size + 2 * before - extent) // stride + 1)
    if isinstance(layer, SameMaxPool2d):
        return Window(3, 2, same_padding(size, 3, 2)[0], -(-size // 2))
    if isinstance(layer, PoolPadShortcut):
        return Window(layer.stride, layer.stride, 0, -(-size // layer.stride))
    if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
        return _pool_window(layer, axis, size)
    return None


def _check_conv(conv: nn.Conv2d) -> None:
    known = type(conv).forward is nn.Conv2d.forward or is_same_padded(conv)
    if not known or conv.padding_mode != "zeros" or conv._forward_hooks or conv._forward_pre_hooks:
        raise Undescribable(f"{conv}, which is more than its weights and zero padding")


def _pool_window(pool: nn.MaxPool2d | nn.AvgPool2d, axis: int, size: int) -> Window:
    extent, stride, before = (_along(value, axis) for value in (pool.kernel_size, pool.stride, pool.padding))
    if isinstance(pool, nn.MaxPool2d):
        extent = _along(pool.dilation, axis) * (extent - 1) + 1
    elif before or pool.divisor_override is not None:
        raise Undescribable(f"{pool}, which averages over padding")
    count = (size + 2 * before - extent) // stride + 1
    if pool.ceil_mode:
        if before or extent != stride:
            raise Undescribable(f"{pool}, whose windows overlap and go beyond the map")
        count = -(-size // stride)
    return Window(extent, stride, before, count)


def _along(value: Any, axis: int) -> int:
    return int(value[axis] if isinstance(value, Sequence) else value)


def is_local(layer: nn.Module, channels: int) -> bool:
    """Whether a layer can be evaluated in parts: it reads its input in windows, or position by position.

    Layers of unknown classes are tried out.
    """
    if isinstance(layer, (nn.Conv2d, SameMaxPool2d, PoolPadShortcut, nn.MaxPool2d, nn.AvgPool2d)):
        return True
    if isinstance(layer, (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.LayerNorm, Scale)):
        return True
    try:
        return not is_global(layer, channels)
    except Undescribable:
        return False


class Chain:
    """Layers, one after the other, on parts of a map.

    Args:
        layers: each reads its input in windows, or position by position.
        size: (H, W) of the map.
        channels: of the map.

    Attributes:
        out_size: (H, W) of the result.
        channels: of the result.
        stride: positions of the map per position of the result.
        reach: how far around a position the map is read for it; counted for chains without a stride.

    Raises:
        Undescribable: a layer reads its input otherwise.
    """

    def __init__(self, layers: Sequence[nn.Module], size: Size, channels: int) -> None:
        self.layers = [layer for layer in layers if not isinstance(layer, nn.Identity)]
        self.sizes = [size]
        self.windows: list[tuple[Window, Window] | None] = []
        self.channels, self.stride, self.reach = channels, 1, 0
        for layer in self.layers:
            rows, columns = (window(layer, axis, self.sizes[-1][axis]) for axis in (0, 1))
            if rows is None or columns is None:
                self.windows.append(None)
                self.sizes.append(self.sizes[-1])
                continue
            self.windows.append((rows, columns))
            self.sizes.append((rows.count, columns.count))
            self.stride *= rows.stride
            self.reach += max(rows.reach, columns.reach)
            self.channels = layer.out_channels if isinstance(layer, nn.Conv2d) else self.channels
        self.out_size = self.sizes[-1]

    def boxes(self, box: Box) -> list[Box]:
        """The part of every layer's input, and `box` of the result, which needs them."""
        found = [box]
        for windows, size in zip(reversed(self.windows), reversed(self.sizes[:-1]), strict=True):
            found.append(found[-1] if windows is None else _inside(_reads(windows, found[-1]), size))
        return found[::-1]

    def needs(self, box: Box) -> Box:
        """The part of the map that a part of the result is computed from."""
        return self.boxes(box)[0]

    def run(self, x: Tensor, at: Box, box: Box) -> Tensor:
        """A part of the result.

        Args:
            x: [1, C, h, w], a part of the map.
            at: which; what `box` needs lies in it.
            box: the part of the result.

        Returns:
            [1, C', h', w'].
        """
        boxes = self.boxes(box)
        x = crop(x, at, boxes[0])
        for layer, windows, have, want in zip(self.layers, self.windows, boxes, boxes[1:], strict=False):
            x = _apply(layer, x, (0, 0, 0, 0) if windows is None else _padding(_reads(windows, want), have))
        return x


def crop(x: Tensor, at: Box, box: Box) -> Tensor:
    """A part [1, C, h, w] of a part `at` of a map."""
    (top, bottom), (left, right) = box
    return x[:, :, top - at[0][0] : bottom - at[0][0], left - at[1][0] : right - at[1][0]]


def hull(first: Box, second: Box) -> Box:
    """The least box that holds both."""
    (top, bottom), (left, right) = (
        (min(one[0], other[0]), max(one[1], other[1])) for one, other in zip(first, second, strict=True)
    )
    return (top, bottom), (left, right)


def _reads(windows: tuple[Window, Window], box: Box) -> Box:
    return windows[0].reads(box[0]), windows[1].reads(box[1])


def _inside(box: Box, size: Size) -> Box:
    (top, bottom), (left, right) = box
    return (max(top, 0), min(bottom, size[0])), (max(left, 0), min(right, size[1]))


def _padding(reads: Box, have: Box) -> tuple[int, int, int, int]:
    """What of a region lies beyond the map, in the order of F.pad: left, right, top, bottom."""
    (top, bottom), (left, right) = reads
    return have[1][0] - left, right - have[1][1], have[0][0] - top, bottom - have[0][1]


def _apply(layer: nn.Module, x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        x = F.pad(x, padding) if any(padding) else x
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)
    if isinstance(layer, (nn.MaxPool2d, SameMaxPool2d)):
        x = F.pad(x, padding, value=float("-inf")) if any(padding) else x
        if isinstance(layer, SameMaxPool2d):
            return F.max_pool2d(x, 3, 2)
        return F.max_pool2d(x, layer.kernel_size, layer.stride, 0, layer.dilation)
    return on_map(layer, x)

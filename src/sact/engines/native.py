"""The CPU engine: compiled indirect convolution over active positions, see `native/native.cpp`.

This file describes a network to it, norms folded where algebra allows, and calls it once per batch.
"""

from __future__ import annotations

import ctypes
import os
import warnings
import weakref
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..block import Block
from ..errors import InputError
from ..flops import BlockFlops
from ..folding import activation_slope, fold_norms, norm_affine
from ..layers import PoolPadShortcut, SameConv2d, SameMaxPool2d
from ..ponder import BlockPonder, Ponder
from ..scores import ImageScore, PositionScore
from ..units import BaseUnit, Stage, Unit
from . import NormStatistics, Run, gather
from .watch import Watch

if TYPE_CHECKING:
    from ..models.network import Network


ISAS = ("avx512", "avx2", "neon", "portable")
"""Builds of the kernel, the best first; `SACT_NATIVE_ISA` chooses one."""

ABI = 3
_HALTING = {"none": 0, "act": 1, "sact": 2}
_IDENTITY, _CONVOLUTION, _POOL_PAD = 0, 1, 2
_NOT_FINITE, _TOO_LARGE = 2, 3
# The kernel's own limits: kMaxTaps and kMaxReach.
_MAX_KERNEL, _MAX_REACH = 7, 15
# Image sizes whose plans are kept.
_MAX_PLANS = 16


class _Conv(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("inputs", "outputs", "kernel", "stride", "pad", "same")),
        ("weight", c_void_p),
        ("bias", c_void_p),
    ]


class _Pointwise(Structure):
    _fields_ = [("scale", c_void_p), ("shift", c_void_p), ("slope", c_float)]


class _Stage(Structure):
    _fields_ = [("before", _Pointwise), ("conv", _Conv)]


class _Score(Structure):
    _fields_ = [
        ("local_before", _Pointwise),
        ("global_before", _Pointwise),
        ("local_weight", c_void_p),
        ("global_weight", c_void_p),
        ("bias", c_float),
    ]


class _Unit(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("n_stages", "shortcut", "preactivated", "stride", "before")),
        ("stages", POINTER(_Stage)),
        ("projection", POINTER(_Conv)),
        ("score", POINTER(_Score)),
    ]


class _Block(Structure):
    _fields_ = [("n_units", c_int32), ("threshold", c_float), ("units", POINTER(_Unit))]


class _Network(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("halting", "n_blocks", "stem_pool", "pool_first", "classes")),
        ("stem", _Conv),
        ("blocks", POINTER(_Block)),
        ("before_classifier", _Pointwise),
        ("classifier", _Conv),
    ]


class _BlockResult(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("units", "cost", "distribution", "features", "forced")),
        ("shift", c_float),
    ]


@cache
def library(isa: str | None = None) -> ctypes.CDLL:
    """The compiled kernel for an instruction set, or the best that this processor runs.

    Raises:
        InputError: it was not built, or this processor lacks it.
    """
    chosen = isa or os.environ.get("SACT_NATIVE_ISA")
    if chosen and chosen not in ISAS:
        raise InputError(f'SACT_NATIVE_ISA is "{chosen}", but it must be one of {", ".join(ISAS)}')
    for name in (chosen,) if chosen else ISAS:
        path = _path(name)
        if path is None:
            continue
        try:
            loaded = ctypes.CDLL(str(path))
        except OSError:  # for another system, or truncated
            continue
        if loaded.sact_abi() == ABI and loaded.sact_supports(name.encode()):
            return _declare(loaded)
    raise InputError(
        f"there is no CPU kernel {chosen + ' ' if chosen else ''}for this machine: it is compiled when sact is "
        "installed and needs a C++17 compiler (g++ or clang); install one, then install sact again"
    )


def _path(isa: str) -> Path | None:
    here = Path(__file__).parent
    for suffix in EXTENSION_SUFFIXES:
        path = here / f"_native_{isa}{suffix}"
        if path.is_file():
            return path
    return None


def _declare(loaded: ctypes.CDLL) -> ctypes.CDLL:
    loaded.sact_pack.argtypes = [POINTER(_Network)]
    loaded.sact_pack.restype = c_void_p
    loaded.sact_free.argtypes = [c_void_p]
    loaded.sact_free.restype = None
    loaded.sact_workspace_bytes.argtypes = [c_void_p]
    loaded.sact_workspace_bytes.restype = c_int64
    loaded.sact_run.argtypes = [
        c_void_p, c_void_p, POINTER(c_int64), c_int32, c_int32, c_int32, c_int32, c_void_p, POINTER(_BlockResult)
    ]  # fmt: skip
    return loaded


class Unsupported(Exception):
    """A layer that the kernel does not have; the message names it."""


class _Plan(NamedTuple):
    """A block at one image size."""

    block: Block
    size: tuple[int, int]
    channels: int
    description: BlockFlops


class Packed:
    """A network's weights in the kernel's layout.

    Raises:
        Unsupported: the network has a layer that the kernel lacks.
    """

    def __init__(self, model: Network) -> None:
        self.library = library()
        self.model = model
        self.features_only = model.config.features_only
        self.classes = model.config.num_classes
        self._plans: dict[tuple[int, int], tuple[list[_Plan], int]] = {}
        self._keep: list[Any] = []  # what the description points to, until it is packed
        description = self._network(model)
        self.handle = c_void_p(self.library.sact_pack(ctypes.byref(description)))
        self._keep.clear()
        if not self.handle:
            raise MemoryError("the CPU engine could not allocate its weights")
        weakref.finalize(self, self.library.sact_free, self.handle)

    def run(self, images: Tensor, keep_distribution: bool) -> tuple[Tensor | list[Tensor], Ponder]:
        """Run a batch; images float32 [N, C, H, W] of any strides, checked but for values that are not finite."""
        count, _, height, width = images.shape
        plans, fixed_flops = self._plan(height, width)
        results = (_BlockResult * len(plans))()
        ponders, features, held = [], [], []
        for plan, result in zip(plans, results, strict=True):
            length = len(plan.description.units)
            if plan.block.halting == "none":
                units, cost, distribution = torch.full((count,), length, dtype=torch.int32), None, None
            else:
                shape = (count, *plan.size) if plan.block.halting == "sact" else (count,)
                units, cost = torch.empty(shape, dtype=torch.int32), torch.empty(shape)
                distribution = torch.zeros(count, length, *shape[1:]) if keep_distribution else None
                result.units, result.cost = units.data_ptr(), cost.data_ptr()
                result.shift = plan.block.score_shift
                if distribution is not None:
                    result.distribution = distribution.data_ptr()
                if plan.block.forced_units is not None:
                    held.append(plan.block.forced_units.to("cpu", torch.int32).expand(shape).contiguous())
                    result.forced = held[-1].data_ptr()
            ponders.append(BlockPonder(units, cost, plan.description, distribution))
            if self.features_only:
                picture = torch.empty(count, *plan.size, plan.channels)
                result.features = picture.data_ptr()
                features.append(picture.permute(0, 3, 1, 2))
        logits = None if self.features_only else torch.empty(count, self.classes)
        failed = self.library.sact_run(
            self.handle,
            images.data_ptr(),
            (c_int64 * 4)(*images.stride()),
            count,
            height,
            width,
            torch.get_num_threads(),
            None if logits is None else logits.data_ptr(),
            results,
        )
        if failed == _TOO_LARGE:
            raise InputError(
                f"images {tuple(images.shape)} have more positions than the CPU engine can number; split the batch, or "
                'use sact.compile(model, engine="gather")'
            )
        if failed == _NOT_FINITE:
            self.model.check_images(images)
            raise InputError("images held NaN or infinite values when the run began; do not change them meanwhile")
        if failed:
            raise MemoryError(f"the CPU engine could not allocate memory for images {tuple(images.shape)}")
        return (features if logits is None else logits), Ponder(ponders, fixed_flops)

    def _plan(self, height: int, width: int) -> tuple[list[_Plan], int]:
        """What a run at this image size makes of each block; kept, for working it out takes as long as a small run."""
        if (height, width) not in self._plans:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            sizes = _sizes(self.model, (height, width))
            plans = [
                _Plan(block, size, channels, block.describe(in_size, size))
                for block, in_size, size, channels in zip(
                    self.model.blocks, sizes, sizes[1:], self.model.feature_channels, strict=False
                )
            ]
            self._plans[height, width] = plans, self.model.fixed_flops((height, width))
        return self._plans[height, width]

    def workspace_bytes(self) -> int:
        """Bytes of working memory kept for the next runs."""
        return int(self.library.sact_workspace_bytes(self.handle))

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

    def _conv(self, conv: nn.Conv2d) -> _Conv:
        kernel = conv.kernel_size[0]
        same = isinstance(conv, SameConv2d)
        if (
            conv.kernel_size != (kernel, kernel)
            or kernel > _MAX_KERNEL
            or conv.groups != 1
            or conv.dilation != (1, 1)
            or conv.stride[0] != conv.stride[1]
            or (not same and (isinstance(conv.padding, str) or conv.padding[0] != conv.padding[1]))
        ):
            raise Unsupported(f"{conv}")
        pad = 0 if same else int(conv.padding[0])
        return _Conv(
            conv.in_channels, conv.out_channels, kernel, conv.stride[0], pad, same,
            self._floats(conv.weight), self._floats(conv.bias),
        )  # fmt: skip

    def _pointwise(self, layers: Sequence[nn.Module]) -> _Pointwise:
        result = _Pointwise(None, None, 1.0)
        for index, layer in enumerate(layers):
            slope = activation_slope(layer)
            if slope is not None and result.slope == 1.0:
                result.slope = slope
            elif isinstance(layer, nn.BatchNorm2d) and index == 0:
                scale, shift = norm_affine(layer)
                result.scale, result.shift = self._floats(scale), self._floats(shift)
            else:
                raise Unsupported(f"{layer}")
        return result

    def _stages(self, stages: Sequence[Stage]) -> Any:
        if stages[0].in_reach > _MAX_REACH:
            raise Unsupported(f"a branch that reads {stages[0].in_reach} positions around an active one")
        items = []
        for index, stage in enumerate(fold_norms(stages)):
            before = self._pointwise(stage.pointwise)
            if index and before.scale:
                raise Unsupported("a norm that cannot be folded into the convolution before it")
            items.append(_Stage(before, self._conv(stage.conv)))
        return self._array(_Stage, items)

    def _score(self, head: ImageScore | PositionScore) -> _Score:
        bias = head.local_conv.bias if isinstance(head, PositionScore) else head.global_conv.bias
        return _Score(
            self._pointwise([head.local_norm, head.activation] if isinstance(head, PositionScore) else []),
            self._pointwise([head.global_norm, head.activation]),
            self._floats(head.local_conv.weight) if isinstance(head, PositionScore) else None,
            self._floats(head.global_conv.weight),
            float(bias.detach()) if bias is not None else 0.0,
        )

    def _unit(self, unit: BaseUnit, head: ImageScore | PositionScore | None, first: bool) -> _Unit:
        stages = unit.stages()
        if not first and not unit.keeps_state:
            raise Unsupported(f"the shortcut {unit.shortcut} behind a block's first unit")
        assert isinstance(unit, Unit)
        result = _Unit(len(stages), _IDENTITY, unit.shortcut_preactivated, 1, 0, self._stages(stages))
        shortcut = unit.shortcut
        if isinstance(shortcut, nn.Conv2d):
            if shortcut.kernel_size != (1, 1) or shortcut.padding != (0, 0):
                raise Unsupported(f"{shortcut}")
            result.shortcut = _CONVOLUTION
            result.projection = self._array(_Conv, [self._conv(shortcut)])
        elif isinstance(shortcut, PoolPadShortcut):
            result.shortcut, result.stride, result.before = _POOL_PAD, shortcut.stride, shortcut.before
        elif isinstance(shortcut, nn.MaxPool2d) and shortcut.kernel_size == 1 and isinstance(shortcut.stride, int):
            result.stride = shortcut.stride
        elif not isinstance(shortcut, nn.Identity):
            raise Unsupported(f"{shortcut}")
        if head is not None:
            result.score = self._array(_Score, [self._score(head)])
        return result

    def _network(self, model: Network) -> _Network:
        blocks = []
        for block in model.blocks:
            units = [
                self._unit(unit, head, index == 0)
                for index, (unit, head) in enumerate(
                    zip(block.units, [*block.scores, *[None] * (len(block.units) - len(block.scores))], strict=True)
                )
            ]
            blocks.append(_Block(len(units), 1.0 - block.eps, self._array(_Unit, units)))
        stem_conv, *rest = model.stem
        if not isinstance(stem_conv, nn.Conv2d) or len(rest) > 1 or (rest and not isinstance(rest[0], SameMaxPool2d)):
            raise Unsupported(f"the stem {model.stem}")
        description = _Network(
            _HALTING[model.config.halting], len(blocks), len(rest), 0, 0,
            self._conv(stem_conv), self._array(_Block, blocks),
        )  # fmt: skip
        if isinstance(model.head, nn.Sequential) and model.classifier is not None:
            layers = [layer for layer in model.head if not isinstance(layer, nn.AdaptiveAvgPool2d)]
            description.pool_first = isinstance(model.head[0], nn.AdaptiveAvgPool2d)
            description.before_classifier = self._pointwise(layers)
            description.classes = model.config.num_classes
            description.classifier = self._conv(model.classifier)
        return description


def prepare(model: Network, freeze: bool = False, norm_statistics: NormStatistics = "all") -> Run:
    """Run a whole network in the compiled kernel at inference; in training, with gradients or a cap, `gather` runs.

    Weights are packed at the first run, and again whenever they have changed, unless they are frozen.
    """
    library()
    otherwise = gather.prepare(model, freeze, norm_statistics)
    if not model.is_sequence:
        return otherwise
    packed: tuple[Watch | None, list[nn.BatchNorm2d], Packed | None] | None = None

    @torch.compiler.disable
    def run(images: Tensor, keep_distribution: bool) -> tuple[Tensor | list[Tensor], Ponder]:
        nonlocal packed
        current = packed
        if current is None or (current[0] is not None and not current[0].unchanged()):
            norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
            if any(norm.training for norm in norms):  # do not pack what the next step changes again
                return otherwise(images, keep_distribution=keep_distribution)
            current = None if freeze else Watch(model), norms, pack(model)
            packed = current
        _, norms, kernel = current
        # A norm in training mode has statistics over all positions.
        if kernel is None or (not freeze and any(map(attrgetter("training"), norms))):
            return otherwise(images, keep_distribution=keep_distribution)
        model.check_images(images, finite=False)
        return kernel.run(images.resolve_neg(), keep_distribution)

    def run_or_pass(images: Tensor, *, keep_distribution: bool = False) -> tuple[Tensor | list[Tensor], Ponder]:
        if torch.compiler.is_compiling() or model.cap is not None or not fits(images):
            return otherwise(images, keep_distribution=keep_distribution)
        return run(images, keep_distribution)

    return run_or_pass


def pack(model: Network) -> Packed | None:
    """The network in the kernel's layout; None, with a warning that names it, where it has what the kernel lacks."""
    weights = (*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point()))
    if any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 for tensor in weights):
        return None
    try:
        return Packed(model)
    except Unsupported as error:
        warnings.warn(f"the CPU engine lacks {error}; the slower gather engine runs this network", stacklevel=2)
        return None


def fits(images: Tensor) -> bool:
    """Whether the kernel serves this call: float32 on the CPU, without gradients."""
    return not (
        torch.is_grad_enabled()
        or not isinstance(images, Tensor)
        or images.device.type != "cpu"
        or images.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
    )


def _sizes(model: Network, size: tuple[int, int]) -> list[tuple[int, int]]:
    """(H, W) of the first block's input and of every block's output."""
    height, width = size
    for layer in model.stem:
        height, width = _result(layer, height), _result(layer, width)
    sizes = [(height, width)]
    for block in model.blocks:
        for stage in block.units[0].stages():
            height, width = _result(stage.conv, height), _result(stage.conv, width)
        sizes.append((height, width))
    return sizes


def _result(layer: nn.Module, size: int) -> int:
    if isinstance(layer, nn.Conv2d) and not isinstance(layer, SameConv2d):
        return (size + 2 * int(layer.padding[0]) - layer.kernel_size[0]) // layer.stride[0] + 1
    stride = layer.stride[0] if isinstance(layer, nn.Conv2d) else 2
    return -(-size // stride)

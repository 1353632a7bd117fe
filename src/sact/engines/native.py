"""The CPU engine: compiled indirect convolution over active positions, see `native/native.cpp`.

`native_describe.py` describes networks to it, norms folded where algebra allows; this file calls it. A network that is
a chain of layers runs in it as a whole, once per batch. Of others it runs the blocks that it can.
"""

from __future__ import annotations

import ctypes
import os
import warnings
import weakref
from collections.abc import Sequence
from ctypes import POINTER, c_int32, c_int64, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..block import Block
from ..cap import Allowance
from ..errors import InputError
from ..flops import BlockFlops
from ..ponder import BlockPonder, Ponder
from . import PROCESS, NormStatistics, Run, gather
from .native_describe import Describer
from .native_layers import Unsupported
from .native_structs import BlockResult, NetworkStruct
from .watch import Watch

if TYPE_CHECKING:
    from ..models.adaptive import AdaptiveNetwork


ISAS = ("avx512", "avx2", "neon", "portable")
"""Builds of the kernel, the best first; `SACT_NATIVE_ISA` chooses one."""

ABI = 5
_NOT_FINITE, _TOO_LARGE = 2, 3
# Image sizes whose plans are kept.
_MAX_PLANS = 16


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
            loaded.sact_began_in(c_int64(PROCESS))
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
    loaded.sact_pack.argtypes = [POINTER(NetworkStruct)]
    loaded.sact_pack.restype = c_void_p
    loaded.sact_free.argtypes = [c_void_p]
    loaded.sact_free.restype = None
    loaded.sact_workspace_bytes.argtypes = [c_void_p]
    loaded.sact_workspace_bytes.restype = c_int64
    loaded.sact_run.argtypes = [
        c_void_p, c_void_p, POINTER(c_int64), c_int32, c_int32, c_int32, c_int32, c_void_p, POINTER(BlockResult)
    ]  # fmt: skip
    loaded.sact_run_block.argtypes = [
        c_void_p, c_int32, c_void_p, c_int32, c_int32, c_int32, c_int32, c_void_p, POINTER(BlockResult)
    ]  # fmt: skip
    return loaded


class _Spent:
    """Where the kernel writes what a block spends, and what it is told anew at each run."""

    def __init__(
        self, block: Block, count: int, size: tuple[int, int], description: BlockFlops, keep_distribution: bool
    ) -> None:
        length = len(block.units)
        self.description = description
        self.cost: Tensor | None = None
        self.distribution: Tensor | None = None
        self.forced: Tensor | None = None
        if block.halting == "none":
            self.units = torch.full((count,), length, dtype=torch.int32)
            return
        shape = (count, *size) if block.halting == "sact" else (count,)
        self.units, self.cost = torch.empty(shape, dtype=torch.int32), torch.empty(shape)
        if keep_distribution:
            self.distribution = torch.zeros(count, length, *shape[1:])
        if block.forced_units is not None:
            self.forced = block.forced_units.to("cpu", torch.int32).expand(shape).contiguous()
        self.shift = block.score_shift

    def fill(self, result: BlockResult) -> None:
        """Tell the kernel."""
        if self.cost is None:
            return
        result.units, result.cost, result.shift = self.units.data_ptr(), self.cost.data_ptr(), self.shift
        if self.distribution is not None:
            result.distribution = self.distribution.data_ptr()
        if self.forced is not None:
            result.forced = self.forced.data_ptr()

    def ponder(self) -> BlockPonder:
        """What was spent, once the kernel has run."""
        return BlockPonder(self.units, self.cost, self.description, self.distribution)


class _Plan(NamedTuple):
    """A block at one image size."""

    block: Block
    place: int
    size: tuple[int, int]
    channels: int
    description: BlockFlops


class _Weights:
    """Weights in the kernel's layout."""

    def __init__(self, description: NetworkStruct) -> None:
        self.library = library()
        self.handle = c_void_p(self.library.sact_pack(ctypes.byref(description)))
        if not self.handle:
            raise MemoryError("the CPU engine could not allocate its weights")
        weakref.finalize(self, self.library.sact_free, self.handle)

    def check(self, failed: int, shape: Sequence[int]) -> None:
        """Raise what the kernel's answer means."""
        if failed == _TOO_LARGE:
            raise InputError(
                f"images {tuple(shape)} have more positions than the CPU engine can number; split the batch, or "
                'use sact.compile(model, engine="gather")'
            )
        if failed:
            raise MemoryError(f"the CPU engine could not allocate memory for images {tuple(shape)}")

    def workspace_bytes(self) -> int:
        """Bytes of working memory kept for the next runs."""
        return int(self.library.sact_workspace_bytes(self.handle))


class Packed(_Weights):
    """A network's weights in the kernel's layout.

    Raises:
        Unsupported: the network has a layer that the kernel lacks.
    """

    def __init__(self, model: AdaptiveNetwork) -> None:
        self.model = model
        self.features_only = model.config.features_only
        self.classes = model.config.num_classes
        self._plans: dict[tuple[int, int], tuple[list[_Plan], int]] = {}
        describer = Describer()
        description: NetworkStruct = getattr(describer, "network" if model.is_sequence else "adapted")(model)
        self._slots, self._sizes = describer.slots, describer.sizes
        self._length = int(description.n_blocks)
        super().__init__(description)

    def run(self, images: Tensor, keep_distribution: bool) -> tuple[Tensor | list[Tensor], Ponder]:
        """Run a batch; images float32 [N, C, H, W] of any strides, checked but for values that are not finite."""
        count, _, height, width = images.shape
        plans, fixed_flops = self._plan(height, width)
        results = (BlockResult * self._length)()
        spent, features = [], []
        for plan in plans:
            spent.append(_Spent(plan.block, count, plan.size, plan.description, keep_distribution))
            spent[-1].fill(results[plan.place])
            if self.features_only:
                picture = torch.empty(count, *plan.size, plan.channels)
                results[plan.place].features = picture.data_ptr()
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
        if failed == _NOT_FINITE:
            self.model.check_images(images)
            raise InputError("images held NaN or infinite values when the run began; do not change them meanwhile")
        self.check(failed, images.shape)
        return (features if logits is None else logits), Ponder([one.ponder() for one in spent], fixed_flops)

    def _plan(self, height: int, width: int) -> tuple[list[_Plan], int]:
        """What a run at this image size makes of each block; kept, for working it out takes as long as a small run."""
        if (height, width) not in self._plans:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            sizes = self._sizes(height, width)
            plans = []
            for block, place in zip(self.model.blocks, self._slots, strict=True):
                in_size, size = sizes[place], sizes[place + 1]
                channels = block.units[-1].out_channels
                plans.append(_Plan(block, place, size, channels, block.describe(in_size, size)))
            self._plans[height, width] = plans, self.model.fixed_flops((height, width))
        return self._plans[height, width]


class PackedBlock(_Weights):
    """One block's weights in the kernel's layout; its first unit stays PyTorch's.

    Raises:
        Unsupported: the block has a layer that the kernel lacks.
    """

    def __init__(self, block: Block) -> None:
        describer = Describer()
        super().__init__(describer.alone(block))
        self.block = block

    def run(self, x: Tensor, keep_distribution: bool) -> tuple[Tensor, BlockPonder]:
        """Run the block on its input, float32 [N, C, H, W]."""
        in_size = x.shape[2], x.shape[3]
        state = self.block.units[0](x).permute(0, 2, 3, 1).contiguous()
        count, height, width, _ = state.shape
        described = self.block.describe(in_size, (height, width))
        spent = _Spent(self.block, count, (height, width), described, keep_distribution)
        result, output = BlockResult(), torch.empty_like(state)
        spent.fill(result)
        failed = self.library.sact_run_block(
            self.handle, 0, state.data_ptr(), count, height, width, torch.get_num_threads(), output.data_ptr(),
            ctypes.byref(result),
        )  # fmt: skip
        self.check(failed, x.shape)
        return output.permute(0, 3, 1, 2), spent.ponder()


class _Blocks:
    """A network of which the kernel runs the blocks that it can, gather the others, and PyTorch what is between them.

    Raises:
        Unsupported: the kernel can run no block.
    """

    def __init__(self, model: AdaptiveNetwork, freeze: bool) -> None:
        self.model = model
        self.lacking: list[str] = []
        self._otherwise = gather.block_runner(freeze)
        self._packed: dict[Block, PackedBlock] = {}
        for block in model.blocks:
            try:
                self._packed[block] = PackedBlock(block)
            except Unsupported as error:
                if f"{error}" not in self.lacking:
                    self.lacking.append(f"{error}")
        if not self._packed:
            raise Unsupported(", ".join(self.lacking))

    def run(self, images: Tensor, keep_distribution: bool) -> tuple[Tensor | list[Tensor], Ponder]:
        """As `Packed.run`."""
        return self.model.run(images, self._run_block, keep_distribution)

    def _run_block(
        self, block: Block, x: Tensor, keep_distribution: bool = False, allowance: Allowance | None = None
    ) -> tuple[Tensor, BlockPonder]:
        if block.halting == "none" or block not in self._packed or allowance is not None:
            return self._otherwise(block, x, keep_distribution, allowance)
        return self._packed[block].run(x, keep_distribution)


class _Current(NamedTuple):
    """What was made of a network as it is now."""

    watch: Watch | None
    rules: Sequence[tuple[str, str]]
    modal: list[nn.Module]
    kernel: Packed | _Blocks | None


def prepare(model: AdaptiveNetwork, freeze: bool = False, norm_statistics: NormStatistics = "all") -> Run:
    """Run a whole network in the compiled kernel at inference; in training, with gradients or a cap, `gather` runs.

    Weights are packed at the first run, and again whenever they have changed, unless they are frozen.
    """
    library()
    otherwise = gather.prepare(model, freeze, norm_statistics)
    packed: _Current | None = None

    @torch.compiler.disable
    def run(images: Tensor, keep_distribution: bool) -> tuple[Tensor | list[Tensor], Ponder]:
        nonlocal packed
        current, rules = packed, [(block.halting, block.output) for block in model.blocks]
        if current is None or current.rules != rules or (current.watch is not None and not current.watch.unchanged()):
            modal = _modal(model)
            if any(module.training for module in modal):  # do not pack what the next step changes again
                return otherwise(images, keep_distribution=keep_distribution)
            current = _Current(None if freeze else Watch(model), rules, modal, pack(model, freeze))
            packed = current
        # A norm in training mode has statistics over all positions.
        if current.kernel is None or (not freeze and any(map(attrgetter("training"), current.modal))):
            return otherwise(images, keep_distribution=keep_distribution)
        model.check_images(images, finite=False)
        return current.kernel.run(images.resolve_neg(), keep_distribution)

    def run_or_pass(images: Tensor, *, keep_distribution: bool = False) -> tuple[Tensor | list[Tensor], Ponder]:
        if torch.compiler.is_compiling() or model.cap is not None or not fits(images):
            return otherwise(images, keep_distribution=keep_distribution)
        return run(images, keep_distribution)

    return run_or_pass


def _modal(model: AdaptiveNetwork) -> list[nn.Module]:
    """The modules that do something else in training mode; of somebody's network, of which little is known, all."""
    if not model.is_sequence:
        return [module for module in model.modules() if not any(True for _ in module.children())]
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def pack(model: AdaptiveNetwork, freeze: bool = False) -> Packed | _Blocks | None:
    """The network in the kernel's layout; None, with a warning that names it, where it has what the kernel lacks."""
    weights = (*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point()))
    if any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 for tensor in weights):
        return None
    try:
        return Packed(model)
    except Unsupported as error:
        whole = error
    if not model.is_sequence:
        try:
            blocks = _Blocks(model, freeze)
        except Unsupported as error:
            whole = error
        else:
            lacking = f", and blocks with {', '.join(blocks.lacking)} by the gather engine" if blocks.lacking else ""
            warnings.warn(
                f"the CPU engine lacks {whole}; what stands between the blocks is run by PyTorch{lacking}", stacklevel=2
            )
            return blocks
    warnings.warn(f"the CPU engine lacks {whole}; the slower gather engine runs this network", stacklevel=2)
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

"""The GPU engine: SACT blocks in Triton, with lists of active positions that never leave the device.

Between two units the host learns nothing: lists, their lengths and the halting state stay on the device, see
`kernels.py`. So a whole network can be captured in a CUDA graph, and a frozen one is, once it has run a few times.
Everything has a row per position; a unit's convolutions compute the rows that are listed and leave the others alone.
"""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..block import Block
from ..errors import InputError
from ..halting import HaltingState
from ..ponder import BlockPonder, Ponder
from ..units import is_plain
from . import NormStatistics, Run, gather
from .packing import BlockWeights, Conv, UnitWeights, pack
from .watch import Watch

if TYPE_CHECKING:
    from ..models.network import Network
    from .launch import Halting

DENSE_SHARE = 0.9
"""Share of active positions from which a unit is computed everywhere, its 3x3 convolutions by PyTorch."""

OBSERVED_CALLS = 3
"""Calls whose shares decide, per image size, which units those are; after them results do not change any more."""

MAX_GRAPHS = 8
"""Graphs that are kept, one for each image size and shift of the scores."""

MAX_PLANS = 256
"""Sizes of blocks whose shares are kept."""


def check_device() -> None:
    """Raise InputError where Triton has no device to run on."""
    try:
        from . import launch
    except ImportError as error:
        raise InputError(
            f'engine is "triton", but Triton cannot be imported here ({error}); install triton, or use engine="auto"'
        ) from error
    if not torch.cuda.is_available() and not launch.INTERPRETED:
        raise InputError(
            'engine is "triton", but there is no CUDA device here; use engine="auto", or set TRITON_INTERPRET=1 to run '
            "the kernels on the CPU, slowly"
        )


def prepare(model: Network, freeze: bool = False, norm_statistics: NormStatistics = "all") -> Run:
    """Run SACT blocks in Triton at inference; in training, with gradients, for ACT and under a cap, `gather` runs.

    Weights are packed at the first run, and again whenever they have changed, unless they are frozen. A frozen network
    on a CUDA device is captured in a graph per image size, once it is decided which units run dense.
    """
    check_device()
    otherwise = gather.prepare(model, freeze, norm_statistics)
    if not model.is_sequence:  # its convolutions run in these kernels all the same, see `ops.runs_in_triton`
        return otherwise
    packed: dict[tuple[Block, torch.dtype], tuple[Watch | None, BlockWeights | None]] = {}
    plans: dict[tuple[Block, torch.Size, torch.dtype, float], Plan] = {}
    graphs: dict[tuple[object, ...], Graph | None] = {}
    capturing = threading.Lock()

    def weights_of(block: Block, dtype: torch.dtype) -> BlockWeights | None:
        watch, weights = packed.get((block, dtype), (None, None))
        known = (block, dtype) in packed
        if not known or (watch is not None and not watch.unchanged()):
            weights = pack(block, dtype)
            packed[block, dtype] = None if freeze else Watch(block), weights
            if known:
                plans.clear()  # other weights halt elsewhere
        return weights

    def run_block(
        used: list[Plan], block: Block, x: Tensor, keep_distribution: bool = False
    ) -> tuple[Tensor, BlockPonder]:
        if block.halting == "none":
            return block(x, keep_distribution)
        if block.halting == "act":
            return gather.run_images(block, x, keep_distribution)
        in_size = x.shape[-2:]
        autocast = torch.is_autocast_enabled(x.device.type)
        weights = weights_of(block, torch.get_autocast_dtype(x.device.type) if autocast else x.dtype)
        if weights is None:
            return gather.run_positions(block, gather.read_chains(block), x, keep_distribution)
        first = weights.units[0]
        states = block.units[0](x) if first is None else run_first(first, x)
        key = block, states.shape, states.dtype, block.score_shift
        if key not in plans and len(plans) >= MAX_PLANS:
            plans.clear()
        used.append(plans.setdefault(key, Plan(len(block.units))))
        return run_positions(block, weights, states, in_size, used[-1], keep_distribution)

    def run_blocks(images: Tensor, keep_distribution: bool, used: list[Plan]) -> tuple[Tensor | list[Tensor], Ponder]:
        return model.run(images, partial(run_block, used), keep_distribution)

    def run(images: Tensor, *, keep_distribution: bool = False) -> tuple[Tensor | list[Tensor], Ponder]:
        if torch.compiler.is_compiling() or not fits(model, images, freeze):
            return otherwise(images, keep_distribution=keep_distribution)
        if not on_gpu(images):
            return run_blocks(images, keep_distribution, [])
        with torch.cuda.device_of(images):  # on which Triton launches
            return run_on_gpu(images, keep_distribution)

    def run_on_gpu(images: Tensor, keep_distribution: bool) -> tuple[Tensor | list[Tensor], Ponder]:
        from . import launch

        if not freeze or torch.cuda.is_current_stream_capturing():
            return run_blocks(images, keep_distribution, [])
        arithmetic = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), launch.allows_tf32()
        shifts = tuple(block.score_shift for block in model.blocks)
        key = images.shape, images.dtype, images.device, arithmetic, keep_distribution, shifts
        graph = graphs.get(key)
        if graph is not None:
            model.check_images(images)
            return graph.replay(images)
        used: list[Plan] = []
        result = run_blocks(images, keep_distribution, used)
        with capturing:
            if key not in graphs and _can_capture(model, packed, used) and _has_room(graphs, shifts):
                try:
                    graphs[key] = Graph(images, lambda x: run_blocks(x, keep_distribution, []))
                except RuntimeError as error:
                    graphs[key] = None
                    warnings.warn(
                        f"the network cannot be captured in a CUDA graph, and runs without: {error}", stacklevel=4
                    )
        return result

    return run


def on_gpu(images: Tensor) -> bool:
    """Whether calls can be captured."""
    return images.is_cuda


def fits(model: Network, images: Tensor, frozen: bool) -> bool:
    """Whether the kernels serve this call: without gradients, norms in evaluation mode, no float64, no cap."""
    from . import launch

    return (
        not torch.is_grad_enabled()
        and isinstance(images, Tensor)
        and (images.is_cuda or (launch.INTERPRETED and images.device.type == "cpu"))
        and images.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and model.cap is None
        and (frozen or not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d)))
    )


def run_positions(
    block: Block, weights: BlockWeights, x: Tensor, in_size: Sequence[int], plan: Plan, keep_distribution: bool
) -> tuple[Tensor, BlockPonder]:
    """A SACT block behind its first unit.

    As in `gather.run_positions` the output is x^1 + sum of R^l (x^l - x^{l-1}), R^l the remainder before unit l, so
    that the kernel that adds a residual to the state adds it to the output, too.

    Args:
        block: for its eps, its shift, its forced units and its description.
        weights: packed.
        x: states behind the first unit, [N, C, H, W]; changed in place.
        in_size: (H, W) of the block's input.
        plan: which units run dense.
        keep_distribution: also return the halting distribution.
    """
    from . import launch

    x = x.contiguous(memory_format=torch.channels_last)
    images, _, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).flatten(0, 2)
    mean = x.mean((2, 3), dtype=torch.float32)
    output = rows.clone()
    state = launch.Halting(images, (height, width), len(block.units), x.device, keep_distribution)
    forced = None
    if block.forced_units is not None:
        shape = images, height, width
        forced = block.forced_units.to(x.device, torch.int32).expand(shape).contiguous().view(-1)
    products = rows.new_empty(len(rows), launch.PRODUCTS, dtype=torch.float32)
    inner: Tensor | None = None
    last: Conv | None = None
    dense = plan.dense()
    for index in range(len(block.units)):
        if index > 0:
            unit = weights.units[index]
            assert unit is not None
            last = unit.convs[-1]
            inner = _run_unit(unit, rows, output, state, dense[index])
        if index == len(block.units) - 1:
            break
        head = weights.heads[index]
        launch.run_conv(
            rows,
            head.taps,
            products,
            at_most=len(rows),
            listed=state.wide_listed if index > 0 else None,
            total=state.wide_total if index > 0 else None,
            bias=head.bias,
            scale=head.norm[0],
            shift=head.norm[1],
            slope_before=head.slope,
        )
        partials = launch.pool(
            inner,
            state.active,
            None if last is None else last.weight,
            None if last is None else last.bias,
            mean,
            head.pooled_norm,
            head.pooled_slope,
            head.factors,
            (height, width),
        )
        state.step(products, partials, head.logit_bias, block.eps, index, forced, block.score_shift)
    plan.observe(state.totals[:, 0].contiguous(), len(rows))
    state.end()
    shape = images, height, width
    spent = HaltingState(
        state.cumulative.view(shape), state.remainder.view(shape), state.units.view(shape), state.active.view(shape)
    )
    picture = output.view(*shape, -1).permute(0, 3, 1, 2)
    return picture, block.ponder(spent, in_size, (height, width), state.distribution)


def _run_unit(unit: UnitWeights, rows: Tensor, output: Tensor, state: Halting, dense: bool) -> Tensor:
    """A unit at the active positions: changes states and output there.

    With `dense` and a 3x3 convolution in the middle, all but the last one are computed everywhere, and that by PyTorch.
    (Everywhere, since its
    algorithms may mix what neighbouring outputs read, and memory that nothing has written may hold NaN.)

    Returns:
        What the last convolution read, [positions, C].
    """
    from . import launch

    dense = dense and any(conv.weight.shape[0] > 1 for conv in unit.convs[1:-1])
    values = rows
    for index, conv in enumerate(unit.convs):
        is_last = index == len(unit.convs) - 1
        slope = 1.0 if is_last else unit.convs[index + 1].slope
        inner = values
        if dense and not is_last and index > 0 and conv.weight.shape[0] > 1:
            values = _convolve_everywhere(conv, values, state.size, slope)
            continue
        out = rows if is_last else values.new_empty(len(rows), conv.weight.shape[-1])
        everywhere = dense and not is_last
        listed, total = (state.wide_listed, state.wide_total) if conv.wide else (state.listed, state.total)
        launch.run_conv(
            values,
            conv.weight,
            out,
            at_most=len(rows),
            listed=None if everywhere else listed,
            total=None if everywhere else total,
            size=state.size,
            bias=conv.bias,
            scale=unit.norm[0] if index == 0 else None,
            shift=unit.norm[1] if index == 0 else None,
            slope_before=conv.slope if index == 0 else 1.0,
            slope_after=slope,
            summed=output if is_last else None,
            remainder=state.remainder if is_last else None,
        )
        values = out
    return inner


def _convolve_everywhere(conv: Conv, rows: Tensor, size: tuple[int, int], slope: float) -> Tensor:
    """A convolution of whole pictures by PyTorch, and the activation behind it; rows in and out."""
    picture = conv.layer(rows.view(-1, *size, rows.shape[1]).permute(0, 3, 1, 2))
    if slope != 1:
        F.leaky_relu_(picture, slope)
    return picture.permute(0, 2, 3, 1).flatten(0, 2)


def run_first(unit: UnitWeights, x: Tensor) -> Tensor:
    """A block's first unit, which runs everywhere: norms folded, activations part of convolutions where they can be.

    Args:
        unit: packed.
        x: [N, C, H, W].

    Returns:
        [N, C', H', W'], channels last, in memory of its own.
    """
    from . import launch

    x = x.contiguous(memory_format=torch.channels_last)
    values = x.permute(0, 2, 3, 1)
    if unit.norm[0] is not None or unit.convs[0].slope != 1:
        values = launch.activate(values.flatten(0, 2), unit.norm[0], unit.norm[1], unit.convs[0].slope).view(
            values.shape
        )
    start = values
    for index, conv in enumerate(unit.convs):
        slope = unit.convs[index + 1].slope if index + 1 < len(unit.convs) else 1.0
        if is_plain(conv.layer) and conv.layer.kernel_size == (1, 1):
            out = values.new_empty(*values.shape[:3], conv.weight.shape[-1])
            rows = values.flatten(0, 2)
            launch.run_conv(rows, conv.weight, out.flatten(0, 2), at_most=len(rows), bias=conv.bias, slope_after=slope)
            values = out
        else:
            picture = conv.layer(values.permute(0, 3, 1, 2))
            values = (picture if slope == 1 else F.leaky_relu_(picture, slope)).permute(0, 2, 3, 1).contiguous()
    shortcut = unit.shortcut(start.permute(0, 3, 1, 2) if unit.shortcut_preactivated else x)
    return values.permute(0, 3, 1, 2).add_(shortcut)


class Plan:
    """Which units of a block run dense at one image size: those whose share was high in the first calls.

    Shares are copied to the host while it goes on and looked at in a later call; nothing waits for them.
    """

    def __init__(self, units: int) -> None:
        self.units = units
        self.decided = False
        self._dense = [False] * units
        self._seen: list[tuple[Tensor, int, torch.cuda.Event | None]] = []

    def observe(self, totals: Tensor, positions: int) -> None:
        """Take note of the positions that were active behind each unit, int32 [L] on the device."""
        if self.decided or len(self._seen) == OBSERVED_CALLS:
            return
        if not totals.is_cuda:
            self._seen.append((totals.clone(), positions, None))
        elif not torch.cuda.is_current_stream_capturing():
            kept = torch.empty(totals.shape, dtype=totals.dtype, pin_memory=True)
            kept.copy_(totals, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._seen.append((kept, positions, event))

    def dense(self) -> list[bool]:
        """By unit; the first, which is dense anyway, has no meaning."""
        if not self.decided and len(self._seen) == OBSERVED_CALLS and all(map(self._has_arrived, self._seen)):
            shares = torch.stack([totals / positions for totals, positions, _ in self._seen]).mean(0).tolist()
            self._dense = [False, *(share >= DENSE_SHARE for share in shares[: self.units - 1])]
            self.decided = True
            self._seen.clear()
        return self._dense

    @staticmethod
    def _has_arrived(seen: tuple[Tensor, int, torch.cuda.Event | None]) -> bool:
        event = seen[2]
        if event is None:
            return True
        return not torch.cuda.is_current_stream_capturing() and event.query()


class Graph:
    """A call of a network, captured as one CUDA graph."""

    def __init__(self, images: Tensor, call: Callable[[Tensor], tuple[Tensor | list[Tensor], Ponder]]) -> None:
        with torch.inference_mode(False):
            self.images = images.clone()
        side = torch.cuda.Stream(images.device)
        side.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(side):
            call(self.images)  # so that nothing is compiled or tuned while capturing
        torch.cuda.current_stream(images.device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile; the default stream of captures is of whichever device was first.
        with torch.cuda.graph(self.graph, stream=side, capture_error_mode="thread_local"):
            self.output, self.ponder = call(self.images)
        self.lock = threading.Lock()
        self.done = torch.cuda.Event()

    def replay(self, images: Tensor) -> tuple[Tensor | list[Tensor], Ponder]:
        """The result for other images, in memory of its own."""
        with self.lock:
            # Threads may call from streams of their own.
            torch.cuda.current_stream().wait_event(self.done)
            self.images.copy_(images)
            self.graph.replay()
            output = [one.clone() for one in self.output] if isinstance(self.output, list) else self.output.clone()
            ponder = dataclasses.replace(self.ponder, blocks=[_own(block) for block in self.ponder.blocks])
            self.done.record()
        return output, ponder

    def wait(self) -> None:
        """Until no replay is under way."""
        with self.lock:
            self.done.synchronize()


def _own(ponder: BlockPonder) -> BlockPonder:
    cost, distribution = ponder.cost, ponder.halting_distribution
    return dataclasses.replace(
        ponder,
        units=ponder.units.clone(),
        cost=None if cost is None else cost.clone(),
        halting_distribution=None if distribution is None else distribution.clone(),
    )


def _has_room(graphs: dict[tuple[object, ...], Graph | None], shifts: tuple[float, ...]) -> bool:
    """Whether another graph may be kept; the oldest of other shifts, which may never come again, makes room."""
    if len(graphs) < MAX_GRAPHS:
        return True
    for key, graph in graphs.items():
        if key[-1] != shifts:
            if graph is not None:
                graph.wait()  # since its memory is given back
            del graphs[key]
            return True
    return False


def _can_capture(
    model: Network,
    packed: dict[tuple[Block, torch.dtype], tuple[Watch | None, BlockWeights | None]],
    used: list[Plan],
) -> bool:
    """Whether plans are made, and no block makes the host wait: all run in Triton, what is forced is on the device."""
    return (
        all(plan.decided for plan in used)
        and all(block.halting != "act" for block in model.blocks)
        and all(weights is not None for _, weights in packed.values())
        and all(block.forced_units is None or block.forced_units.is_cuda for block in model.blocks)
    )

"""Running the kernels: block sizes, grids and the tensors they work on. See `kernels.py` for what they do."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from . import kernels, ops

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on tensors of the CPU."""

SEGMENT = 1024
"""Positions of one program of the halting step."""

PRODUCTS = 16
"""Row length of a score head's products: its 9 taps, rounded up to what a matrix product takes."""

TILES = ((128, 128, 8), (128, 64, 4), (64, 64, 4), (64, 32, 4), (32, 32, 4), (16, 32, 2))
"""Outputs and channels of a program of a convolution, and its warps: the largest first."""


def conv(
    values: Tensor,
    rows: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    slope: float,
) -> Tensor:
    """`ops.perforated_conv`, all outputs wanted."""
    count = len(values) if rows is None else len(rows)
    out = weight.new_empty(count, len(weight))
    taps = weight.permute(2, 3, 1, 0).contiguous()
    run_conv(
        values.contiguous(),
        taps,
        out,
        at_most=count,
        table=rows,
        bias=bias,
        scale=scale,
        shift=shift,
        slope_before=slope,
    )
    return out


def conv_backward(
    grad: Tensor,
    values: Tensor,
    rows: Tensor | None,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    slope: float,
    wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`ops.perforated_conv_backward`."""
    grad, values = grad.contiguous(), values.contiguous()
    by_values, by_weight, by_bias, by_norm = ops.empty_gradients(values, weight, scale, wants)
    used = None if rows is None else rows[:, rows.shape[1] // 2] >= 0
    if wants[2]:
        given = grad if used is None else torch.where(used[:, None], grad, 0)
        by_bias = given.sum(0, dtype=ops.wide_type(grad.dtype))
        by_bias = by_bias.to(weight.dtype)
    if wants[1]:
        by_weight = conv_weight(grad, values, rows, weight, scale, shift, slope)
    if wants[0] or wants[3]:
        # Weights with inputs and outputs exchanged: [k, k, C', C].
        across = weight.permute(2, 3, 0, 1).contiguous()
        listed = rows is not None and rows.shape[1] == 1
        at = None if rows is None or listed else ops.reverse(rows, len(values))
        below = weight.new_empty(len(grad) if at is None else len(values), weight.shape[1])
        run_conv(grad, across, below, at_most=len(below), table=at)
        raw = values
        if rows is not None and listed:
            first = rows[:, 0].clamp(min=0)
            raw = values.index_select(0, first)
            below = torch.where(rows >= 0, below, 0)
        activated = ops.activate(raw, scale, shift, slope, weight.dtype)
        below = ops.through_norm(below, raw, activated, scale, slope, by_norm).to(values.dtype)
        if wants[0] and rows is not None and listed:
            by_values = by_values.zero_().index_add_(0, first, below)
        elif wants[0]:
            by_values = below
    return by_values, by_weight, by_bias, by_norm


def conv_weight(
    grad: Tensor,
    values: Tensor,
    rows: Tensor | None,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    slope: float,
) -> Tensor:
    """The gradient of the weight, [C', C, k, k]."""
    outputs, inputs, kernel, _ = weight.shape
    taps = kernel * kernel
    block_c, block_n = (min(64, _block(size)) for size in (inputs, outputs))
    block_m = 64 if not INTERPRETED else 256
    tiles = taps * triton.cdiv(inputs, block_c) * triton.cdiv(outputs, block_n)
    parts = max(1, min(triton.cdiv(2 * _processors(grad), tiles), triton.cdiv(len(grad), 4 * block_m)))
    per_part = triton.cdiv(triton.cdiv(len(grad), parts), block_m) * block_m
    out = grad.new_zeros(parts, kernel, kernel, inputs, outputs, dtype=torch.float32)
    grid = (taps * triton.cdiv(inputs, block_c), triton.cdiv(outputs, block_n), parts)
    if len(grad):
        kernels.conv_weight_kernel[grid](
            values,
            rows,
            grad.to(weight.dtype),
            scale,
            shift,
            out,
            len(grad),
            per_part,
            C=inputs,
            OUT=outputs,
            TAPS=taps,
            TABLE=rows is not None,
            AFFINE=scale is not None,
            SLOPE_BEFORE=slope,
            BLOCK_M=block_m,
            BLOCK_C=block_c,
            BLOCK_N=block_n,
            **_arithmetic(weight.dtype),
            num_warps=4,
        )
    return out.sum(0).permute(3, 2, 0, 1).to(weight.dtype).contiguous()


def run_conv(
    values: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    at_most: int,
    table: Tensor | None = None,
    listed: Tensor | None = None,
    total: Tensor | None = None,
    size: tuple[int, int] = (1, 1),
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    slope_before: float = 1.0,
    slope_after: float = 1.0,
    summed: Tensor | None = None,
    remainder: Tensor | None = None,
) -> None:
    """A convolution of rows, into rows.

    Args:
        values: [*, C].
        weight: [k, k, C, C'] contiguous; its dtype is that of the product.
        out: [*, at least C']; with `summed` the states, to which the outputs are added.
        at_most: how many outputs there can be.
        table: int64 [at_most, k k], which rows are read, -1 for zeros; without it those around the output's position.
        listed: int32 [at_most], positions of the outputs; None where they are all those from 0 on.
        total: int32 [1], how many outputs there are; None for `at_most`.
        size: (H, W) of the pictures that positions are in.
        bias: [C'].
        scale: float32 [C], the norm before the convolution, with `shift`.
        shift: float32 [C].
        slope_before: of the activation behind that norm where its input is negative, 1 for none.
        slope_after: of that behind the convolution.
        summed: the block's output, like `out`: the outputs are added to it, weighted by `remainder`.
        remainder: float32 [positions].
    """
    if at_most == 0:
        return
    kernel, _, inputs, outputs = weight.shape
    blocks = _tiles(at_most, outputs, inputs, values)
    grid = (triton.cdiv(at_most, blocks["BLOCK_M"]) * triton.cdiv(outputs, blocks["BLOCK_N"]),)
    kernels.conv_kernel[grid](
        values,
        table,
        listed,
        total,
        weight,
        bias,
        scale,
        shift,
        out,
        summed,
        remainder,
        at_most,
        *size,
        C=inputs,
        OUT=outputs,
        KERNEL=kernel,
        OUT_PITCH=out.shape[1],
        COUNTED=total is not None,
        TABLE=table is not None,
        LISTED=listed is not None,
        AFFINE=scale is not None,
        SLOPE_BEFORE=slope_before,
        BIAS=bias is not None,
        ZERO_UNUSED=table is not None and bias is not None,
        SLOPE_AFTER=slope_after,
        ADD=summed is not None,
        **_arithmetic(weight.dtype),
        **blocks,
    )


def pool(
    inner: Tensor | None,
    active: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    norm: tuple[Tensor, Tensor],
    slope: float,
    factors: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """Bring the mean states up to date with a unit, and weigh them for the global term of the logit.

    Args:
        inner: [positions, C], what the unit's last convolution reads; None behind the first unit, whose mean is known.
        active: uint8 [positions], where it ran.
        weight: [k, k, C, C'], that convolution.
        bias: [C'] or None.
        mean: float32 [N, C'], changed in place.
        norm: (scale, shift) of the head's global norm, float32 [C'].
        slope: of the activation behind it where its input is negative, 1 for none.
        factors: float32 [C'], the global convolution.
        size: (H, W).

    Returns:
        float32 [N, parts], whose sum over the parts is the global term.
    """
    images, outputs = mean.shape
    block_n = min(128, _block(outputs))
    partials = mean.new_empty(images, triton.cdiv(outputs, block_n))
    kernel, _, inputs, _ = weight.shape if weight is not None else (1, 1, 16, 16)
    kernels.pool_kernel[partials.shape](
        inner,
        active,
        weight,
        bias,
        mean,
        *norm,
        factors,
        partials,
        size[0] * size[1],
        *size,
        C=inputs,
        OUT=outputs,
        KERNEL=kernel,
        FIRST=inner is None,
        BIAS=bias is not None,
        SLOPE=slope,
        BLOCK_P=min(4096 if INTERPRETED else 256, _block(size[0] * size[1])),
        BLOCK_C=min(64, _block(inputs)),
        BLOCK_N=block_n,
        num_warps=8,
    )
    return partials


def activate(values: Tensor, scale: Tensor | None, shift: Tensor | None, slope: float) -> Tensor:
    """The norm (scale, shift) of rows [B, C], if there is one, and an activation of that slope."""
    rows, channels = values.shape
    out = torch.empty_like(values)
    block_p, block_c = (1024 if INTERPRETED else 32), min(128, _block(channels))
    grid = (triton.cdiv(rows, block_p), triton.cdiv(channels, block_c))
    kernels.activate_kernel[grid](
        values,
        scale,
        shift,
        out,
        rows,
        C=channels,
        AFFINE=scale is not None,
        SLOPE=slope,
        BLOCK_P=block_p,
        BLOCK_C=block_c,
        num_warps=4,
    )
    return out


class Halting:
    """The state of Algorithm 1 at every position of a batch, on the device, and the lists of what goes on.

    Attributes:
        cumulative: float32 [positions], sum of the scores; as in `halting.HaltingState`, and so are
        remainder: float32,
        units: int32 and
        active: uint8.
        listed: int32 [positions], the active positions, ascending.
        total: int32, its first entry is how many they are;
        totals: int32 [L, 4], in the first column how many they were after each unit.
        wide: uint8 [positions], the active positions and those that touch one;
        wide_listed: their list, and
        wide_total: its length.
        distribution: float32 [N, L, H, W], the halting distribution, if it is kept.
    """

    def __init__(self, images: int, size: tuple[int, int], length: int, device: torch.device, keep: bool) -> None:
        self.size, self.length = size, length
        self.positions = images * size[0] * size[1]
        self.segments = triton.cdiv(self.positions, SEGMENT)

        def numbers(count: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.empty(count, dtype=dtype, device=device)

        self.cumulative = torch.zeros(self.positions, device=device)
        self.remainder = torch.ones(self.positions, device=device)
        self.units = torch.zeros(self.positions, dtype=torch.int32, device=device)
        self.active = torch.ones(self.positions, dtype=torch.uint8, device=device)
        self.wide = numbers(self.positions, torch.uint8)
        self.counts, self.wide_counts = numbers(self.segments), numbers(self.segments)
        self.listed, self.wide_listed = numbers(self.positions), numbers(self.positions)
        # Four numbers for each, so that all are aligned alike: Triton compiles anew for another alignment.
        self.totals = torch.zeros(length, 4, dtype=torch.int32, device=device)
        self.total, self.wide_total = self.totals[0], numbers(1)
        self.distribution = torch.zeros(images, length, *size, device=device) if keep else None

    def step(
        self,
        products: Tensor,
        partials: Tensor,
        bias: Tensor,
        eps: float,
        index: int,
        forced: Tensor | None,
        shift: float = 0.0,
    ) -> None:
        """Account for unit `index`, and list what goes on.

        Args:
            products: float32 [positions, >= 9], each row by the weights of the head's 9 taps.
            partials: float32 [N, parts], the global term of the logit.
            bias: [1], of the logit.
            eps: a position halts once its cumulative score reaches 1 - eps.
            index: from 0.
            forced: int32 [positions], units to run instead, or None.
            shift: added to the logit.
        """
        self.total = self.totals[index]
        blocks: dict[str, Any] = {"SEGMENT": SEGMENT, "S": triton.next_power_of_2(self.segments), "num_warps": 8}
        lists = (self.active, self.counts, self.listed, self.total, self.wide, self.wide_counts)
        kernels.halt_kernel[(self.segments,)](
            products,
            partials,
            bias,
            forced,
            self.cumulative,
            self.remainder,
            self.units,
            self.active,
            self.distribution,
            *lists[1:],
            self.wide_listed,
            self.wide_total,
            self.positions,
            *self.size,
            1.0 - eps,
            float(shift),
            index,
            self.length,
            PARTS=partials.shape[1],
            PITCH=products.shape[1],
            FORCED=forced is not None,
            KEEP=self.distribution is not None,
            **blocks,
        )
        if self.segments > 1:
            kernels.widen_kernel[(self.segments,)](*lists, self.positions, *self.size, **blocks)
            kernels.list_kernel[(self.segments,)](
                self.wide, self.wide_counts, self.wide_listed, self.wide_total, self.positions, **blocks
            )

    def end(self) -> None:
        """Account for the last unit, behind which everything halts."""
        if self.distribution is not None:
            last = self.remainder * self.active
            self.distribution[:, self.length - 1] = last.view(-1, *self.size)
        self.units += self.active
        self.active.zero_()


def _tiles(rows: int, outputs: int, inputs: int, like: Tensor) -> dict[str, int]:
    """Block sizes: the largest that still give every multiprocessor a program."""
    if INTERPRETED:
        # Its time is that of the number of operations, not of their size.
        return {"BLOCK_M": 1024, "BLOCK_N": _block(outputs), "BLOCK_K": _block(inputs)}
    half = like.element_size() == 2
    block_m, block_n, warps = next(
        (
            tile
            for tile in TILES
            if (half or tile[1] < 128)
            and triton.cdiv(rows, tile[0]) * triton.cdiv(outputs, tile[1]) >= _processors(like)
        ),
        TILES[-1],
    )
    block_n, block_k = min(block_n, _block(outputs)), min(64 if half else 32, _block(inputs))
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": warps, "num_stages": 3}


def _block(size: int) -> int:
    """A power of two that holds `size`, and no fewer than a matrix product takes."""
    return max(16, int(triton.next_power_of_2(size)))


def _processors(like: Tensor) -> int:
    if not like.is_cuda:
        return 1
    return int(torch.cuda.get_device_properties(like.device).multi_processor_count)


def allows_tf32() -> bool:
    """Whether PyTorch's own float32 convolutions may use TF32 on CUDA, where the kernels then do."""
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]


def _arithmetic(dtype: torch.dtype) -> dict[str, Any]:
    """How products are formed: TF32 where PyTorch's own convolutions may; the interpreter lacks bfloat16 products."""
    tf32 = dtype == torch.float32 and allows_tf32()
    return {"PRECISION": "tf32" if tf32 else "ieee", "UPCAST": INTERPRETED}

"""Triton kernels: convolution over listed rows, forward and backward, and halting on the device. `launch.py` runs them.

A convolution is an implicit GEMM: a program makes one tile of outputs and reads, tap by tap, the rows that they want;
nothing is gathered in memory. Which rows those are, a table says (in training, `ops.py`) or the output's own position
(at inference, `triton.py`, where buffers have a row per position and a list says which are computed). How many outputs
there are, only the device needs to know: programs are launched for as many as there can be, and surplus ones end at
once. No program adds to what another one writes, so nothing depends on their order.

The plain PyTorch that a kernel is tested against is `ops.perforated_conv` and its gradients, and `halting.step`. With
TRITON_INTERPRET=1 in the environment everything here runs on the CPU, slowly, for tests.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def conv_kernel(
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
    height,
    width,
    C: tl.constexpr,
    OUT: tl.constexpr,
    KERNEL: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    COUNTED: tl.constexpr,
    TABLE: tl.constexpr,
    LISTED: tl.constexpr,
    AFFINE: tl.constexpr,
    SLOPE_BEFORE: tl.constexpr,
    BIAS: tl.constexpr,
    ZERO_UNUSED: tl.constexpr,
    SLOPE_AFTER: tl.constexpr,
    ADD: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of a convolution; rows are read by `table`, or around the output's position."""
    TAPS: tl.constexpr = KERNEL * KERNEL
    K_STEPS: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    N_TILES: tl.constexpr = (OUT + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0) // N_TILES
    count = at_most
    if COUNTED:
        count = tl.load(total)
    if tile * BLOCK_M >= count:
        return
    number = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    real = number < count
    position = number.to(tl.int64)
    if LISTED:
        position = tl.load(listed + number, mask=real, other=0).to(tl.int64)
    x = position % width
    y = position // width % height
    column = tl.program_id(0) % N_TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    # One loop over taps and channels, as only an innermost loop is pipelined.
    for step in range(TAPS * K_STEPS):
        tap = step // K_STEPS
        channel = step % K_STEPS * BLOCK_K + tl.arange(0, BLOCK_K)
        if TABLE:
            row = tl.load(table + position * TAPS + tap, mask=real, other=-1)
            found = row >= 0
        else:
            down = tap // KERNEL - KERNEL // 2
            right = tap % KERNEL - KERNEL // 2
            found = real & (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
            row = position + down * width + right
        inside = found[:, None] & (channel < C)[None, :]
        read = tl.load(values + row[:, None] * C + channel[None, :], mask=inside, other=0.0)
        if AFFINE:
            by = tl.load(scale + channel, mask=channel < C, other=0.0)
            plus = tl.load(shift + channel, mask=channel < C, other=0.0)
            read = tl.where(inside, read.to(tl.float32) * by[None, :] + plus[None, :], 0.0)
        if SLOPE_BEFORE != 1:
            read = tl.where(read > 0, read, read * SLOPE_BEFORE)
        by_column = weight + tap * C * OUT + channel[:, None] * OUT + column[None, :]
        factors = tl.load(by_column, mask=(channel < C)[:, None] & (column < OUT)[None, :], other=0.0)
        read = read.to(factors.dtype)
        if UPCAST:
            read = read.to(tl.float32)
            factors = factors.to(tl.float32)
        sums = tl.dot(read, factors, sums, input_precision=PRECISION)
    if BIAS:
        sums += tl.load(bias + column, mask=column < OUT, other=0.0).to(tl.float32)[None, :]
    if ZERO_UNUSED:
        center = tl.load(table + position * TAPS + TAPS // 2, mask=real, other=-1)
        sums = tl.where((center >= 0)[:, None], sums, 0.0)
    if SLOPE_AFTER != 1:
        sums = tl.where(sums > 0, sums, sums * SLOPE_AFTER)
    there = position[:, None] * OUT_PITCH + column[None, :]
    written = real[:, None] & (column < OUT)[None, :]
    if ADD:
        # The residual: to the state, and by the remainder to the block's output.
        state = tl.load(out + there, mask=written, other=0.0).to(tl.float32)
        tl.store(out + there, (state + sums).to(out.dtype.element_ty), mask=written)
        share = tl.load(remainder + position, mask=real, other=0.0)
        output = tl.load(summed + there, mask=written, other=0.0).to(tl.float32)
        tl.store(summed + there, (output + share[:, None] * sums).to(summed.dtype.element_ty), mask=written)
    else:
        tl.store(out + there, sums.to(out.dtype.element_ty), mask=written)


@triton.jit
def conv_weight_kernel(
    values,
    table,
    grad,
    scale,
    shift,
    out,
    rows,
    per_split,
    C: tl.constexpr,
    OUT: tl.constexpr,
    TAPS: tl.constexpr,
    TABLE: tl.constexpr,
    AFFINE: tl.constexpr,
    SLOPE_BEFORE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A tile of the weight's gradient, summed over a part of the outputs: out [parts, taps, C, OUT]."""
    C_TILES: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    tap = tl.program_id(0) // C_TILES
    channel = tl.program_id(0) % C_TILES * BLOCK_C + tl.arange(0, BLOCK_C)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(2) * per_split
    last = tl.minimum(first + per_split, rows)
    if AFFINE:
        by = tl.load(scale + channel, mask=channel < C, other=0.0)
        plus = tl.load(shift + channel, mask=channel < C, other=0.0)
    sums = tl.zeros((BLOCK_C, BLOCK_N), dtype=tl.float32)
    for start in range(first, last, BLOCK_M):
        number = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        row = tl.where(number < last, number, -1)
        used = row >= 0
        if TABLE:
            row = tl.load(table + number * TAPS + tap, mask=number < last, other=-1)
            used = tl.load(table + number * TAPS + TAPS // 2, mask=number < last, other=-1) >= 0
        inside = (row >= 0)[:, None] & (channel < C)[None, :]
        read = tl.load(values + row[:, None] * C + channel[None, :], mask=inside, other=0.0)
        if AFFINE:
            read = tl.where(inside, read.to(tl.float32) * by[None, :] + plus[None, :], 0.0)
        if SLOPE_BEFORE != 1:
            read = tl.where(read > 0, read, read * SLOPE_BEFORE)
        above = tl.load(
            grad + number[:, None] * OUT + column[None, :],
            mask=used[:, None] & (column < OUT)[None, :],
            other=0.0,
        )
        read = read.to(above.dtype)
        if UPCAST:
            read = read.to(tl.float32)
            above = above.to(tl.float32)
        sums = tl.dot(tl.trans(read), above, sums, input_precision=PRECISION)
    into = out + ((tl.program_id(2) * TAPS + tap) * C + channel[:, None]).to(tl.int64) * OUT + column[None, :]
    tl.store(into, sums, mask=(channel < C)[:, None] & (column < OUT)[None, :])


@triton.jit
def pool_kernel(
    inner,
    active,
    weight,
    bias,
    mean,
    scale,
    shift,
    factors,
    partials,
    area,
    height,
    width,
    C: tl.constexpr,
    OUT: tl.constexpr,
    KERNEL: tl.constexpr,
    FIRST: tl.constexpr,
    BIAS: tl.constexpr,
    SLOPE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The mean of an image's states after a unit, and its part of the global term of the logit.

    What the unit adds to the mean is its last convolution of the sum of what that reads: pooled before the
    multiplication, not after.
    """
    image = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    means = tl.load(mean + image * OUT + column, mask=column < OUT, other=0.0)
    if not FIRST:
        sums = tl.zeros((BLOCK_N,), dtype=tl.float32)
        count = 0
        for tap in range(KERNEL * KERNEL):
            down = tap // KERNEL - KERNEL // 2
            right = tap % KERNEL - KERNEL // 2
            for start in range(0, C, BLOCK_C):
                channel = start + tl.arange(0, BLOCK_C)
                pooled = tl.zeros((BLOCK_C,), dtype=tl.float32)
                count = 0
                for begin in range(0, area, BLOCK_P):
                    place = begin + tl.arange(0, BLOCK_P)
                    alive = tl.load(active + image * area + place, mask=place < area, other=0) != 0
                    count += tl.sum(alive.to(tl.int32), 0)
                    x = place % width + right
                    y = place // width + down
                    found = alive & (x >= 0) & (x < width) & (y >= 0) & (y < height)
                    row = image * area + place + down * width + right
                    read = tl.load(
                        inner + row[:, None] * C + channel[None, :],
                        mask=found[:, None] & (channel < C)[None, :],
                        other=0.0,
                    )
                    pooled += tl.sum(read.to(tl.float32), 0)
                by = tl.load(
                    weight + tap * C * OUT + channel[:, None] * OUT + column[None, :],
                    mask=(channel < C)[:, None] & (column < OUT)[None, :],
                    other=0.0,
                )
                sums += tl.sum(pooled[:, None] * by.to(tl.float32), 0)
        if BIAS:
            sums += count * tl.load(bias + column, mask=column < OUT, other=0.0).to(tl.float32)
        means += sums / area
        tl.store(mean + image * OUT + column, means, mask=column < OUT)
    normed = means * tl.load(scale + column, mask=column < OUT, other=0.0)
    normed += tl.load(shift + column, mask=column < OUT, other=0.0)
    if SLOPE != 1:
        normed = tl.where(normed > 0, normed, normed * SLOPE)
    term = tl.sum(normed * tl.load(factors + column, mask=column < OUT, other=0.0), 0)
    tl.store(partials + image * tl.num_programs(1) + tl.program_id(1), term)


@triton.jit
def activate_kernel(
    values,
    scale,
    shift,
    out,
    size,
    C: tl.constexpr,
    AFFINE: tl.constexpr,
    SLOPE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Norm and activation of rows."""
    row = (tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (row < size)[:, None] & (channel < C)[None, :]
    at = row[:, None] * C + channel[None, :]
    read = tl.load(values + at, mask=inside, other=0.0).to(tl.float32)
    if AFFINE:
        read *= tl.load(scale + channel, mask=channel < C, other=0.0)[None, :]
        read += tl.load(shift + channel, mask=channel < C, other=0.0)[None, :]
    read = tl.where(read > 0, read, read * SLOPE)
    tl.store(out + at, read.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _before(counts, segment, S: tl.constexpr, segments):
    """(Entries of a list that lie in earlier segments, entries in all.)"""
    other = tl.arange(0, S)
    held = tl.load(counts + other, mask=other < segments, other=0)
    return tl.sum(tl.where(other < segment, held, 0), 0), tl.sum(held, 0)


@triton.jit
def _widen(
    active, counts, listed, total, wide, wide_counts, positions, height, width, SEGMENT: tl.constexpr, S: tl.constexpr
):
    """List a segment's active positions in order, and mark those that touch one."""
    segment = tl.program_id(0)
    position = segment * SEGMENT + tl.arange(0, SEGMENT)
    inside = position < positions
    alive = (tl.load(active + position, mask=inside, other=0) != 0).to(tl.int32)
    earlier, entries = _before(counts, segment, S, tl.num_programs(0))
    tl.store(listed + earlier + tl.cumsum(alive, 0) - 1, position, mask=alive != 0)
    if segment == 0:
        tl.store(total, entries)
    x = position % width
    y = position // width % height
    near = alive
    for tap in tl.static_range(9):
        down = tap // 3 - 1
        right = tap % 3 - 1
        found = inside & (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
        beside = tl.load(active + position + down * width + right, mask=found, other=0)
        near = near | (beside != 0).to(tl.int32)
    tl.store(wide + position, near.to(tl.uint8), mask=inside)
    tl.store(wide_counts + segment, tl.sum(near, 0))


@triton.jit
def _list(wide, wide_counts, listed, total, positions, SEGMENT: tl.constexpr, S: tl.constexpr):
    """List a segment's marked positions in order."""
    segment = tl.program_id(0)
    position = segment * SEGMENT + tl.arange(0, SEGMENT)
    near = (tl.load(wide + position, mask=position < positions, other=0) != 0).to(tl.int32)
    earlier, entries = _before(wide_counts, segment, S, tl.num_programs(0))
    tl.store(listed + earlier + tl.cumsum(near, 0) - 1, position, mask=near != 0)
    if segment == 0:
        tl.store(total, entries)


@triton.jit(do_not_specialize=["index"])
def halt_kernel(
    products,
    partials,
    bias,
    forced,
    cumulative,
    remainder,
    units,
    active,
    distribution,
    counts,
    listed,
    total,
    wide,
    wide_counts,
    wide_listed,
    wide_total,
    positions,
    height,
    width,
    threshold,
    shift,
    index,
    length,
    PARTS: tl.constexpr,
    PITCH: tl.constexpr,
    FORCED: tl.constexpr,
    KEEP: tl.constexpr,
    SEGMENT: tl.constexpr,
    S: tl.constexpr,
):
    """One turn of Algorithm 1 at a segment's positions; if there is but one segment, also the lists of what goes on."""
    segment = tl.program_id(0)
    position = segment * SEGMENT + tl.arange(0, SEGMENT)
    inside = position < positions
    alive = tl.load(active + position, mask=inside, other=0) != 0
    area = height * width
    image = position // area
    if FORCED:
        score = (tl.load(forced + position, mask=alive, other=0) == index + 1).to(tl.float32)
    else:
        x = position % width
        y = position // width % height
        logit = tl.zeros((SEGMENT,), dtype=tl.float32) + tl.load(bias).to(tl.float32)
        for tap in tl.static_range(9):
            down = tap // 3 - 1
            right = tap % 3 - 1
            found = alive & (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
            row = (position + down * width + right).to(tl.int64)
            logit += tl.load(products + row * PITCH + tap, mask=found, other=0.0)
        for part in range(PARTS):
            logit += tl.load(partials + image * PARTS + part, mask=alive, other=0.0)
        score = 1.0 / (1.0 + tl.exp(-(logit + shift)))
    reached = tl.load(cumulative + position, mask=inside, other=0.0) + tl.where(alive, score, 0.0)
    left = tl.load(remainder + position, mask=inside, other=0.0)
    goes_on = alive & (reached < threshold)
    if KEEP:
        weight = tl.where(alive, tl.where(goes_on, score, left), 0.0)
        tl.store(distribution + (image * length + index) * area + position % area, weight, mask=inside)
    tl.store(cumulative + position, reached, mask=inside)
    tl.store(remainder + position, tl.where(goes_on, left - score, left), mask=inside)
    ran = tl.load(units + position, mask=inside, other=0)
    tl.store(units + position, ran + alive.to(tl.int32), mask=inside)
    tl.store(active + position, goes_on.to(tl.uint8), mask=inside)
    tl.store(counts + segment, tl.sum(goes_on.to(tl.int32), 0))
    if S == 1:
        tl.debug_barrier()
        _widen(active, counts, listed, total, wide, wide_counts, positions, height, width, SEGMENT, S)
        tl.debug_barrier()
        _list(wide, wide_counts, wide_listed, wide_total, positions, SEGMENT, S)


@triton.jit
def widen_kernel(
    active, counts, listed, total, wide, wide_counts, positions, height, width, SEGMENT: tl.constexpr, S: tl.constexpr
):
    _widen(active, counts, listed, total, wide, wide_counts, positions, height, width, SEGMENT, S)


@triton.jit
def list_kernel(wide, wide_counts, listed, total, positions, SEGMENT: tl.constexpr, S: tl.constexpr):
    _list(wide, wide_counts, listed, total, positions, SEGMENT, S)

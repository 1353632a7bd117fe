"""ONNX nodes of the operators that `listed` calls: lists of positions, convolutions over listed rows, halting.

Every function here writes nodes and returns values of the graph. Lists are ascending numbers of positions in the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from onnx import TensorProto
from onnxscript import ir
from torch import Tensor, nn

from ..folding import norm_affine
from ..scores import PositionScore
from ..units import Description, Stage
from .pointwise import Value, integer, ints, number, op, tensor, write_pointwise
from .specs import SPECS, HaltSpec, UnitSpec


class Lists:
    """The active positions and those around them.

    Args:
        active: float [N, 1, H, W], 0 or 1.
        shape: int64 [4].
    """

    def __init__(self, active: Value, shape: Value) -> None:
        self.active = active
        self.shape = shape
        self._masks: dict[int, Value] = {}
        self._lists: dict[int, Value] = {}

    def mask(self, reach: int) -> Value:
        """Positions within `reach` of an active one, float [P], 0 or 1."""
        if reach not in self._masks:
            near = self.active
            if reach:
                side = 2 * reach + 1
                near = op.MaxPool(near, kernel_shape=[side, side], pads=[reach] * 4, strides=[1, 1])[0]
            self._masks[reach] = op.Reshape(near, ints(-1))
        return self._masks[reach]

    def at(self, reach: int) -> Value:
        """Their list, int64 [B]."""
        if reach not in self._lists:
            self._lists[reach] = op.Squeeze(op.NonZero(self.mask(reach)), ints(0))
        return self._lists[reach]

    def rows_of(self, reach: int) -> Value:
        """The row of every position among those at `reach`, which stand behind a row of zeros, [P + 1].

        The last entry is for what lies outside of the image: the row of zeros.
        """
        numbers = op.CumSum(op.Cast(self.mask(reach), to=TensorProto.INT32), integer(0))
        return op.Concat(numbers, op.Constant(value=ir.tensor(np.zeros(1, np.int32))), axis=0)


def write_places(active: Value) -> tuple[Value, Value, Value]:
    """What a block needs once, of its maps [N, 1, H, W].

    Returns:
        Their shape, int64 [4]; zeros [P]; and where a position belongs to an image 1 / (H W), else 0, float [N, P].
    """
    shape = op.Shape(active)
    area = op.Cast(op.ReduceProd(op.Shape(active, start=1), keepdims=0), to=TensorProto.FLOAT)
    count = op.Shape(active, start=0, end=1)
    belongs = op.EyeLike(op.ConstantOfShape(op.Concat(count, count, axis=0)))
    share = op.Reshape(op.Div(active, area), op.Concat(ints(1), count, ints(-1), axis=0))
    images = op.Reshape(op.Mul(op.Unsqueeze(belongs, ints(2)), share), op.Concat(count, ints(-1), axis=0))
    return shape, op.ConstantOfShape(op.Reshape(op.Size(active), ints(1))), images


def write_neighbours(active: Value, kernel: int) -> Value:
    """The k k positions that a convolution reads for each, int32 [P, k k]; outside of the image P."""
    margin = kernel // 2
    count = op.Cast(op.Size(active), to=TensorProto.INT32)
    start, step = (op.Constant(value=ir.tensor(np.array(value, np.int32))) for value in (0, 1))
    numbers = op.Reshape(op.Range(start, count, step), op.Shape(active))
    padded = op.Pad(numbers, ints(0, 0, margin, margin, 0, 0, margin, margin), count)
    height, width = op.Shape(active, start=2, end=3), op.Shape(active, start=3, end=4)
    taps = []
    for y in range(kernel):
        for x in range(kernel):
            ends = op.Concat(op.Add(height, ints(y)), op.Add(width, ints(x)), axis=0)
            taps.append(op.Reshape(op.Slice(padded, ints(y, x), ends, ints(2, 3)), ints(-1, 1)))
    return op.Concat(*taps, axis=1)


def write_unit(
    rows: Value,
    values: Value,
    output: Value,
    mean: Value,
    remainder: Value,
    active: Value,
    shape: Value,
    images: Value,
    neighbours: list[Value],
    key: int,
) -> tuple[Value, Value, Value]:
    """A unit at the active positions: the states, the output so far and the mean states after it."""
    spec = SPECS[key]
    assert isinstance(spec, UnitSpec)
    lists = Lists(active, shape)
    tables = dict(zip(spec.kernels, neighbours, strict=True))
    listed = lists.at(0)
    residual = write_stages(spec.description, values, lists, tables)
    place = op.Unsqueeze(listed, ints(1))
    if spec.description.post:
        before = op.Gather(rows, listed)
        after = op.Add(before, residual)
        for layer in spec.description.post:
            after = write_pointwise(layer, after)
        rows = op.ScatterND(rows, place, after)
        residual = op.Sub(after, before) if spec.keeps_output or spec.needs_mean else None
    else:
        rows = op.ScatterND(rows, place, residual, reduction="add")
    if spec.keeps_output:
        weight = op.Gather(op.Reshape(remainder, ints(-1, 1)), listed)
        output = op.ScatterND(output, place, op.Mul(weight, residual), reduction="add")
    if spec.needs_mean:
        mean = op.Add(mean, op.MatMul(op.Gather(images, listed, axis=1), residual))
    return rows, output if spec.keeps_output else op.Identity(output), mean if spec.needs_mean else op.Identity(mean)


def write_stages(description: Description, rows: Value, lists: Lists, tables: dict[int, Value]) -> Value:
    """The branch at the active positions, [A, C'], of states at all of them, [P, C]."""
    stages = description.stages
    held = stages[0].in_reach
    values = op.Gather(rows, lists.at(held))
    for stage in stages:
        values, conv, bias = write_before(stage, values)
        kernel, groups = stage.conv.kernel_size[0], stage.conv.groups
        if kernel > 1 and groups == stage.conv.in_channels == stage.conv.out_channels:
            values = write_depthwise(values, conv, bias, lists, held, stage.reach)
            held = stage.reach
            continue
        if kernel > 1:
            zeros = op.Constant(value=ir.tensor(np.zeros((1, stage.conv.in_channels), np.float32)))
            read = op.Gather(lists.rows_of(held), op.Gather(tables[kernel], lists.at(stage.reach)))
            values = op.Gather(op.Concat(zeros, values, axis=0), read)
        values = write_product(values, conv, bias, kernel, groups)
        held = stage.reach
    for layer in description.tail:
        values = write_pointwise(layer, values)
    return values


def write_product(values: Value, weight: Tensor, bias: Tensor | None, kernel: int, groups: int) -> Value:
    """A convolution over gathered rows: [A, C] for a 1x1, else [A, k k, C]."""
    outputs, inside = weight.shape[:2]
    taps = kernel * kernel
    if groups == 1:
        matrix = weight.permute(2, 3, 1, 0).reshape(taps * inside, outputs)
        if kernel > 1:
            values = op.Reshape(values, ints(-1, taps * inside))
        shift = torch.zeros(outputs) if bias is None else bias
        return op.Gemm(values, tensor(matrix), tensor(shift))
    matrices = weight.reshape(groups, outputs // groups, inside, taps).permute(0, 3, 2, 1)
    matrices = matrices.reshape(groups, taps * inside, outputs // groups)
    split = op.Transpose(op.Reshape(values, ints(-1, taps, groups, inside)), perm=[2, 0, 1, 3])
    split = op.Reshape(split, ints(groups, -1, taps * inside))
    result = op.Reshape(op.Transpose(op.MatMul(split, tensor(matrices)), perm=[1, 0, 2]), ints(-1, outputs))
    return result if bias is None else op.Add(result, tensor(bias))


def write_depthwise(values: Value, weight: Tensor, bias: Tensor | None, lists: Lists, held: int, reach: int) -> Value:
    """A depthwise convolution of the rows at `held`, at `reach`: as a picture, with zeros where there is no row.

    It has few FLOPs and would read k k rows for each, which takes longer than computing it everywhere.
    """
    channels, _, kernel, _ = weight.shape
    zeros = op.ConstantOfShape(op.Concat(op.Reshape(op.Size(lists.active), ints(1)), ints(channels), axis=0))
    spread = op.ScatterND(zeros, op.Unsqueeze(lists.at(held), ints(1)), values)
    size = op.Concat(op.Gather(lists.shape, ints(0, 2, 3)), ints(channels), axis=0)
    picture = op.Transpose(op.Reshape(spread, size), perm=[0, 3, 1, 2])
    given = [picture, tensor(weight)] + ([] if bias is None else [tensor(bias)])
    picture = op.Conv(*given, pads=[kernel // 2] * 4, group=channels)
    rows = op.Reshape(op.Transpose(picture, perm=[0, 2, 3, 1]), ints(-1, channels))
    return op.Gather(rows, lists.at(reach))


def write_before(stage: Stage, values: Value) -> tuple[Value, Tensor, Tensor | None]:
    """The layers before a convolution; what remains of it, as weight and bias, when a norm's scale has moved there.

    relu(s x + t) = s (max(x, -t / s) + t / s) for s > 0, so that of a norm and a ReLU one maximum is left.
    """
    weight, bias = stage.conv.weight.detach(), stage.conv.bias
    layers = [layer for layer in stage.pointwise if not isinstance(layer, nn.Identity)]
    if [type(layer) for layer in layers[1:]] == [nn.ReLU] and isinstance(layers[0], nn.BatchNorm2d):
        scale, shift = norm_affine(layers[0])
        if bool((scale > 1e-6).all()) and stage.conv.kernel_size == (1, 1) and stage.conv.groups == 1:
            added = weight[:, :, 0, 0] @ shift
            bias = added if bias is None else bias.detach() + added
            return op.Max(values, tensor(-shift / scale)), weight * scale[:, None, None], bias
    for layer in layers:
        values = write_pointwise(layer, values)
    return values, weight, None if bias is None else bias.detach()


def write_halt(
    rows: Value,
    mean: Value,
    cumulative: Value,
    remainder: Value,
    units: Value,
    active: Value,
    shape: Value,
    zeros: Value,
    neighbours: Value,
    forced: Value | None,
    key: int,
) -> tuple[Value, Value, Value, Value]:
    """The score behind a unit and one turn of Algorithm 1; see `sact.halting.step`. All maps are float [N, 1, H, W]."""
    spec = SPECS[key]
    assert isinstance(spec, HaltSpec)
    logit = write_logit(spec.head, rows, mean, Lists(active, shape), neighbours, zeros, spec.shift)
    if forced is not None:
        logit = op.Add(logit, forced)
    score = op.Mul(op.Sigmoid(logit), active)
    cumulative = op.Add(cumulative, score)
    below = op.Cast(op.Less(cumulative, number(1.0 - spec.eps)), to=TensorProto.FLOAT)
    goes_on = op.Mul(active, below)
    remainder = op.Sub(remainder, op.Mul(goes_on, score))
    return cumulative, remainder, op.Add(units, goes_on), goes_on


def write_logit(
    head: PositionScore, rows: Value, mean: Value, lists: Lists, neighbours: Value, zeros: Value, shift: float
) -> Value:
    """The score's logit, float [N, 1, H, W]; right at active positions, arbitrary elsewhere.

    There is one output, hence each row is multiplied by the weights of all taps, and the products are gathered.
    """
    values = op.Gather(rows, lists.at(1))
    conv = head.local_conv
    weight = conv.weight.detach()[0].permute(1, 2, 0).reshape(9, -1)
    scale, offset = norm_affine(head.local_norm)
    added = torch.zeros(9)
    if isinstance(head.activation, nn.Identity):
        weight, added = weight * scale, weight @ offset
    else:
        values = write_pointwise(head.activation, op.Add(op.Mul(values, tensor(scale)), tensor(offset)))
    products = op.Gemm(values, tensor(weight.T), tensor(added))
    products = op.Concat(tensor(torch.zeros(1, 9)), products, axis=0)
    read = op.Gather(lists.rows_of(1), op.Gather(neighbours, lists.at(0)))
    local = op.ReduceSum(op.GatherElements(products, read, axis=0), ints(1), keepdims=0)
    local = op.Reshape(op.ScatterElements(zeros, lists.at(0), local), lists.shape)
    scale, offset = norm_affine(head.global_norm)
    if isinstance(head.activation, nn.Identity):
        weight = head.global_conv.weight.detach()[0, :, 0, 0]
        pooled, column, constant = mean, weight * scale, weight @ offset
    else:
        pooled = write_pointwise(head.activation, op.Add(op.Mul(mean, tensor(scale)), tensor(offset)))
        column, constant = head.global_conv.weight.detach()[0, :, 0, 0], torch.zeros(())
    assert conv.bias is not None
    term = op.Gemm(pooled, tensor(column[:, None]), tensor(conv.bias.detach() + constant + shift))
    return op.Add(local, op.Reshape(term, ints(-1, 1, 1, 1)))

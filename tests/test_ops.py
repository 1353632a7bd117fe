"""`sact.engines.ops`: perforated convolution and its gradients are those of a convolution of pictures."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sact.engines import ops
from sact.engines.ops import perforated_conv, perforated_conv_backward
from sact.engines.perforated import Positions

SLOPES = {"linear": 1.0, "relu": 0.0, "leaky": 0.1}
LISTS = ["some", "all", "none", "corner"]
DIFFERENTIABLE = ("values", "weight", "bias", "scale", "shift")


class Case(NamedTuple):
    """Arguments of `sact::perforated_conv`, and what they stand for.

    Attributes:
        values: and the next six: of the operator.
        size: (N, H, W) of the pictures.
        held: positions of the values.
        wanted: positions of the outputs.
    """

    values: Tensor
    rows: Tensor | None
    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    slope: float
    size: tuple[int, int, int]
    held: Tensor
    wanted: Tensor

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self[:7]

    def differentiable(self) -> list[Tensor]:
        return [tensor for name in DIFFERENTIABLE if (tensor := getattr(self, name)) is not None]


def make_case(
    kernel: int = 3,
    listed: str = "some",
    *,
    norm: bool = True,
    bias: bool = True,
    slope: float = 0.0,
    table: bool = True,
    hold_all: bool = False,
    size: tuple[int, int, int] = (2, 4, 5),
    channels: tuple[int, int] = (3, 2),
    dtype: torch.dtype = torch.float64,
    weight_dtype: torch.dtype | None = None,
    norm_dtype: torch.dtype | None = None,
    groups: int = 1,
) -> Case:
    """Outputs at listed positions, of values held there and, unless at all, at some others; both are in random order.

    Without a table the outputs are those of the values that are held.
    """
    area = size[0] * size[1] * size[2]
    order = torch.randperm(area)
    wanted = {"some": order[: area // 2], "all": order, "none": order[:0], "corner": torch.tensor([0])}[listed]
    others = order[~torch.isin(order, wanted)]
    held = torch.cat([wanted, others[: len(others) // 2]])
    held = held[torch.randperm(len(held))] if table else wanted
    if hold_all:
        held = torch.arange(area)
    inputs, outputs = channels
    weight_dtype, norm_dtype = weight_dtype or dtype, norm_dtype or dtype
    return Case(
        values=torch.randn(len(held), inputs, dtype=dtype),
        rows=Positions(torch.zeros(size, dtype=torch.bool)).table(None if hold_all else held, wanted, kernel)
        if table
        else None,
        weight=torch.randn(outputs, inputs // groups, kernel, kernel, dtype=weight_dtype),
        bias=torch.randn(outputs, dtype=weight_dtype) if bias else None,
        scale=torch.randn(inputs, dtype=norm_dtype) if norm else None,
        shift=torch.randn(inputs, dtype=norm_dtype) if norm else None,
        slope=slope,
        size=size,
        held=held,
        wanted=wanted,
    )


def of_pictures(case: Case) -> Tensor:
    """The definition: norm and activation, zero wherever no value is held, a convolution; the outputs wanted of it."""
    activated = case.values
    if case.scale is not None and case.shift is not None:
        activated = activated.to(case.scale.dtype) * case.scale + case.shift
    activated = torch.where(activated > 0, activated, case.slope * activated).to(case.weight.dtype)
    count, height, width = case.size
    everywhere = activated.new_zeros(count * height * width, activated.shape[1]).index_put((case.held,), activated)
    picture = everywhere.view(count, height, width, -1).permute(0, 3, 1, 2)
    groups = picture.shape[1] // case.weight.shape[1]
    result = F.conv2d(picture, case.weight, case.bias, padding=case.weight.shape[-1] // 2, groups=groups)
    return result.permute(0, 2, 3, 1).reshape(count * height * width, -1)[case.wanted]


def gradients(case: Case, results: Tensor, incoming: Tensor) -> dict[str, Tensor]:
    named = {name: tensor for name in DIFFERENTIABLE if (tensor := getattr(case, name)) is not None}
    found = torch.autograd.grad(results, list(named.values()), incoming)
    return dict(zip(named, found, strict=True))


def differentiable(case: Case) -> Case:
    for tensor in case.differentiable():
        tensor.requires_grad_()
    return case


def with_tail(case: Case, length: int = 3) -> Case:
    """The case with rows at the end of its table that stand for no output."""
    assert case.rows is not None
    return case._replace(rows=torch.cat([case.rows, case.rows.new_full((length, case.rows.shape[1]), -1)]))


VARIANTS = [
    pytest.param({"kernel": kernel, "norm": norm, "bias": bias, "slope": slope, "table": table}, id=name)
    for kernel, norm, bias, (slope_name, slope), table in itertools.product(
        (1, 3), (True, False), (True, False), SLOPES.items(), (True, False)
    )
    if table or kernel == 1
    for name in [
        "-".join(
            [
                f"{kernel}x{kernel}",
                *(["norm"] if norm else []),
                *(["bias"] if bias else []),
                slope_name,
                *([] if table else ["no table"]),
            ]
        )
    ]
]
FEW_VARIANTS = [
    pytest.param({"kernel": 3, "slope": 0.1}, id="3x3-norm-bias-leaky"),
    pytest.param({"kernel": 3, "norm": False, "bias": False, "slope": 0.0}, id="3x3-relu"),
    pytest.param({"kernel": 3, "listed": "none"}, id="3x3-nothing listed"),
    pytest.param({"kernel": 1, "slope": 0.0}, id="1x1-norm-bias-relu"),
    pytest.param({"kernel": 1, "norm": False, "bias": False, "slope": 1.0}, id="1x1-linear"),
    pytest.param({"kernel": 1, "table": False, "slope": 0.1}, id="1x1-norm-bias-leaky-no table"),
    pytest.param({"kernel": 1, "table": False, "norm": False, "bias": False, "slope": 0.0}, id="1x1-relu-no table"),
]
TYPES = [
    pytest.param({"dtype": torch.float32}, id="float32"),
    pytest.param({"dtype": torch.bfloat16, "norm_dtype": torch.float32}, id="bfloat16"),
    pytest.param({"dtype": torch.float32, "weight_dtype": torch.bfloat16, "norm_dtype": torch.float32}, id="autocast"),
]
GROUPED = [
    pytest.param({"kernel": 3, "channels": (4, 4), "groups": 4}, id="depthwise"),
    pytest.param({"kernel": 7, "channels": (3, 3), "groups": 3}, id="7x7 depthwise"),
    pytest.param({"kernel": 3, "channels": (2, 4), "groups": 2}, id="depthwise, twice as many"),
    pytest.param({"kernel": 3, "channels": (4, 6), "groups": 2}, id="grouped"),
    pytest.param({"kernel": 1, "channels": (4, 6), "groups": 2}, id="1x1 grouped"),
    pytest.param({"kernel": 1, "channels": (3, 3), "groups": 3, "table": False}, id="1x1 depthwise, no table"),
]


# Values and gradients


@pytest.mark.parametrize("listed", LISTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_a_convolution_of_pictures(variant: dict[str, Any], listed: str) -> None:
    case = differentiable(make_case(listed=listed, **variant))
    ours, theirs = perforated_conv(*case.arguments), of_pictures(case)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    incoming = torch.randn_like(ours)
    our_gradients, their_gradients = gradients(case, ours, incoming), gradients(case, theirs, incoming)
    torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_values_of_all_positions_need_no_list(kernel: int) -> None:
    case = make_case(kernel, hold_all=True, slope=0.1)
    torch.testing.assert_close(perforated_conv(*case.arguments), of_pictures(case), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("table", [True, False], ids=["table", "no table"])
def test_1x1_convolutions_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch, table: bool) -> None:
    case = differentiable(make_case(1, "all", table=table, size=(2, 9, 11)))
    incoming = torch.randn(198, 2, dtype=torch.float64)
    whole = perforated_conv(*case.arguments)
    whole_gradients = gradients(case, whole, incoming)
    products: list[int] = []
    multiply = ops._multiply
    monkeypatch.setattr(ops, "_multiply", lambda read, *rest: products.append(len(read)) or multiply(read, *rest))
    monkeypatch.setattr(ops, "CHUNK", 1)
    parts = perforated_conv(*case.arguments)
    assert products == [64, 64, 64, 6]
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(case, parts, incoming), whole_gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck(variant: dict[str, Any]) -> None:
    case = differentiable(make_case(size=(1, 3, 4), channels=(2, 2), **variant))
    names = [name for name in DIFFERENTIABLE if getattr(case, name) is not None]

    def call(*tensors: Tensor) -> Tensor:
        return perforated_conv(*case._replace(**dict(zip(names, tensors, strict=True))).arguments)

    assert torch.autograd.gradcheck(call, tuple(case.differentiable()))


@pytest.mark.parametrize("wanted", DIFFERENTIABLE)
@pytest.mark.parametrize("kernel", [1, 3])
def test_each_gradient_alone_is_the_same(kernel: int, wanted: str) -> None:
    case = differentiable(make_case(kernel, slope=0.1))
    result = perforated_conv(*case.arguments)
    incoming = torch.randn_like(result)
    expected = gradients(case, result, incoming)[wanted]
    alone = case._replace(**{name: getattr(case, name).detach() for name in DIFFERENTIABLE})
    getattr(alone, wanted).requires_grad_()
    (found,) = torch.autograd.grad(perforated_conv(*alone.arguments), [getattr(alone, wanted)], incoming)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 3])
def test_arguments_stay_as_they_are(kernel: int) -> None:
    case = differentiable(make_case(kernel, slope=0.1, norm=False))
    before = [tensor.detach().clone() for tensor in case.differentiable()]
    incoming = torch.randn(20, 2, dtype=torch.float64)
    kept = incoming.clone()
    perforated_conv(*case.arguments).backward(incoming)
    assert torch.equal(incoming, kept)
    assert all(map(torch.equal, case.differentiable(), before))


@pytest.mark.parametrize("incoming", ["expanded", "transposed"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_incoming_gradients_of_any_layout(kernel: int, incoming: str) -> None:
    case = differentiable(make_case(kernel))
    result = perforated_conv(*case.arguments)
    shape = result.shape
    given = torch.randn(shape[1], dtype=torch.float64).expand(shape)
    given = given if incoming == "expanded" else torch.randn(*shape[::-1], dtype=torch.float64).T
    found = gradients(case, result, given)
    torch.testing.assert_close(found, gradients(case, of_pictures(case), given), rtol=1e-12, atol=1e-12)


# Groups


@pytest.mark.parametrize("listed", LISTS)
@pytest.mark.parametrize("variant", GROUPED)
def test_groups_equal_a_convolution_of_pictures(variant: dict[str, Any], listed: str) -> None:
    case = differentiable(make_case(listed=listed, slope=0.1, **variant))
    ours, theirs = perforated_conv(*case.arguments), of_pictures(case)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    incoming = torch.randn_like(ours)
    our_gradients, their_gradients = gradients(case, ours, incoming), gradients(case, theirs, incoming)
    torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"bias": False}, {"norm": False}, {"slope": 1.0}, {"hold_all": True}], ids=str)
@pytest.mark.parametrize("variant", GROUPED)
def test_groups_with_less_around_them(variant: dict[str, Any], options: dict[str, Any]) -> None:
    case = make_case(**(variant | {"table": True} | options))
    torch.testing.assert_close(perforated_conv(*case.arguments), of_pictures(case), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", GROUPED)
def test_gradcheck_of_groups(variant: dict[str, Any]) -> None:
    case = differentiable(make_case(size=(1, 2, 3), slope=0.1, **variant))

    def call(*tensors: Tensor) -> Tensor:
        return perforated_conv(*case._replace(**dict(zip(DIFFERENTIABLE, tensors, strict=True))).arguments)

    assert torch.autograd.gradcheck(call, tuple(case.differentiable()))


@pytest.mark.parametrize("variant", GROUPED)
def test_opcheck_of_groups(variant: dict[str, Any]) -> None:
    torch.library.opcheck(perforated_conv, differentiable(make_case(**variant, dtype=torch.float32)).arguments)


@pytest.mark.parametrize("table", [True, False], ids=["table", "no table"])
def test_groups_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch, table: bool) -> None:
    case = differentiable(make_case(1, "all", table=table, size=(2, 9, 11), channels=(4, 4), groups=2))
    incoming = torch.randn(198, 4, dtype=torch.float64)
    monkeypatch.setattr(ops, "CHUNK", 1)
    result, expected = perforated_conv(*case.arguments), of_pictures(case)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    found = gradients(case, result, incoming)
    torch.testing.assert_close(found, gradients(case, expected, incoming), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", GROUPED)
def test_flops_of_groups_are_those_of_the_listed_part_of_the_convolution(variant: dict[str, Any]) -> None:
    """Backward: twice that, for values and weights; PyTorch itself counts too much there."""
    dense, part = (differentiable(make_case(listed=listed, **variant)) for listed in ("all", "some"))
    result, products = perforated_conv(*part.arguments), 2 * dense.weight.numel()
    assert count_flops(lambda: of_pictures(dense)) == 40 * products
    assert count_flops(lambda: perforated_conv(*part.arguments)) == 20 * products
    assert count_flops(result.sum().backward) == 40 * products


@pytest.mark.parametrize("variant", GROUPED)
def test_groups_at_the_end_of_a_list_of_fixed_length(variant: dict[str, Any]) -> None:
    case = differentiable(make_case(**variant))
    if case.rows is None:
        case = differentiable(make_case(**(variant | {"table": True})))
    longer, expected = with_tail(case), perforated_conv(*case.arguments)
    result = perforated_conv(*longer.arguments)
    assert torch.equal(result[:-3], expected) and not result[-3:].any()
    given = torch.randn_like(result)
    found = gradients(longer, result, given)
    torch.testing.assert_close(found, gradients(case, expected, given[:-3]), rtol=1e-12, atol=1e-12)


# PyTorch's own checks


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("variant", FEW_VARIANTS)
def test_opcheck(variant: dict[str, Any], types: dict[str, Any]) -> None:
    case = make_case(**variant, **types)
    torch.library.opcheck(perforated_conv, differentiable(case).arguments)


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("variant", FEW_VARIANTS)
@pytest.mark.parametrize("wants", [[True] * 4, [True, False, False, False], [False, True, True, False]], ids=str)
def test_opcheck_of_the_backward_pass(variant: dict[str, Any], types: dict[str, Any], wants: list[bool]) -> None:
    values, rows, weight, _, scale, shift, slope = make_case(**variant, **types).arguments
    wants = [*wants[:3], wants[3] and scale is not None]
    grad = torch.randn(len(values) if rows is None else len(rows), len(weight), dtype=weight.dtype)
    torch.library.opcheck(perforated_conv_backward, (grad, values, rows, weight, scale, shift, slope, wants))


@pytest.mark.parametrize("kernel", [1, 3])
def test_opcheck_of_channels_last_weights(kernel: int) -> None:
    case = make_case(kernel, channels=(4, 6))
    case = case._replace(weight=case.weight.to(memory_format=torch.channels_last))
    assert kernel == 1 or not case.weight.is_contiguous()
    torch.library.opcheck(perforated_conv, differentiable(case).arguments)


# Rows that stand for no output


@pytest.mark.parametrize("incoming", [1e3, float("nan")])
@pytest.mark.parametrize("listed", ["some", "none"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_rows_at_the_end_that_read_nothing_are_zero_and_have_no_gradient(
    kernel: int, listed: str, incoming: float
) -> None:
    case = differentiable(make_case(kernel, listed))
    longer = with_tail(case)
    expected, result = perforated_conv(*case.arguments), perforated_conv(*longer.arguments)
    assert torch.equal(result, torch.cat([expected, torch.zeros(3, 2, dtype=torch.float64)]))
    given = torch.randn_like(expected)
    found = gradients(longer, result, torch.cat([given, torch.full((3, 2), incoming, dtype=torch.float64)]))
    torch.testing.assert_close(found, gradients(case, expected, given), rtol=1e-12, atol=1e-12)
    assert all(gradient.isfinite().all() for gradient in found.values())


# Precision


@pytest.mark.parametrize("types", TYPES[1:])
@pytest.mark.parametrize("kernel", [1, 3])
def test_low_precision_gradients_stay_near_those_of_float32(kernel: int, types: dict[str, Any]) -> None:
    """At most three times the error of PyTorch's own convolution at the same precision, plus one rounding."""
    case = differentiable(make_case(kernel, size=(2, 16, 16), channels=(32, 32), slope=0.1, **types))
    wide = {name: getattr(case, name).detach().float().requires_grad_() for name in DIFFERENTIABLE}
    exact_case = case._replace(**wide)
    incoming = torch.randn(len(case.wanted), 32).bfloat16()
    exact = gradients(exact_case, of_pictures(exact_case), incoming.float())
    ours = gradients(case, perforated_conv(*case.arguments), incoming)
    theirs = gradients(case, of_pictures(case), incoming)
    for name, expected in exact.items():
        assert ours[name].dtype == getattr(case, name).dtype
        our_error, their_error = ((found[name] - expected).abs().mean() for found in (ours, theirs))
        assert our_error <= 3 * their_error + 2**-8 * expected.abs().mean(), name


def test_low_precision_gradients_of_many_parts_are_summed_wider(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum of 64 parts that is rounded after each would err several times as much."""
    monkeypatch.setattr(ops, "CHUNK", 1)
    case = differentiable(make_case(1, "all", size=(1, 64, 64), channels=(8, 8), dtype=torch.bfloat16, norm=False))
    wide = {name: getattr(case, name).detach().float().requires_grad_() for name in ("values", "weight", "bias")}
    exact_case = case._replace(**wide)
    incoming = torch.randn(64 * 64, 8).bfloat16()
    exact = gradients(exact_case, of_pictures(exact_case), incoming.float())
    ours = gradients(case, perforated_conv(*case.arguments), incoming)
    for name, expected in exact.items():
        assert (ours[name] - expected).abs().mean() <= 2**-8 * expected.abs().mean(), name


# Counted work


def count_flops(function: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize(("kernel", "table"), [(1, True), (1, False), (3, True)])
def test_flops_are_those_of_the_listed_part_of_the_convolution(kernel: int, table: bool) -> None:
    dense = differentiable(make_case(kernel, "all", table=table))
    part = differentiable(make_case(kernel, "some", table=table))
    result, picture = perforated_conv(*dense.arguments), of_pictures(dense)
    forward = count_flops(lambda: of_pictures(dense))
    backward = count_flops(picture.sum().backward)
    assert (forward, backward) == (2 * 40 * 6 * kernel**2, 4 * 40 * 6 * kernel**2)
    assert count_flops(lambda: perforated_conv(*dense.arguments)) == forward
    assert count_flops(result.sum().backward) == backward
    result = perforated_conv(*part.arguments)
    assert count_flops(lambda: perforated_conv(*part.arguments)) == forward / 2
    assert count_flops(result.sum().backward) == backward / 2


@pytest.mark.parametrize(
    ("wanted", "products"), [("values", 1), ("weight", 1), ("bias", 0), ("scale", 1)], ids=lambda value: str(value)
)
def test_flops_of_gradients_that_nobody_wants_are_not_counted(wanted: str, products: int) -> None:
    case = make_case()
    getattr(case, wanted).requires_grad_()
    result = perforated_conv(*case.arguments)
    assert count_flops(result.sum().backward) == products * count_flops(lambda: perforated_conv(*case.arguments))


# Tables


def masks(max_side: int = 5) -> st.SearchStrategy[Tensor]:
    """Boolean pictures [N, H, W]."""

    def of_size(size: tuple[int, int, int]) -> st.SearchStrategy[Tensor]:
        area = size[0] * size[1] * size[2]
        return st.lists(st.booleans(), min_size=area, max_size=area).map(lambda bits: torch.tensor(bits).view(size))

    sides = st.integers(1, max_side)
    return st.tuples(st.integers(1, 2), sides, sides).flatmap(of_size)


def brute_force_table(
    size: tuple[int, ...], held: list[int] | None, wanted: list[int], kernel: int
) -> tuple[list[list[int]], int]:
    """The table, and the number of its columns."""
    count, height, width = size
    margin = kernel // 2
    steps = range(-margin, margin + 1)
    known = list(range(count * height * width)) if held is None else held
    row_of = {position: row for row, position in enumerate(known) if position >= 0}
    table = []
    for position in wanted:
        image, y, x = position // (height * width), position // width % height, position % width
        at = [(y + dy, x + dx) for dy in steps for dx in steps]
        inside = [0 <= down < height and 0 <= right < width and position >= 0 for down, right in at]
        numbers = [(image * height + down) * width + right for down, right in at]
        table.append([row_of.get(n, -1) if ok else -1 for n, ok in zip(numbers, inside, strict=True)])
    return table, kernel * kernel


@pytest.mark.parametrize("compiling", [False, True], ids=["exact lengths", "fixed lengths"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_tables_against_brute_force(monkeypatch: pytest.MonkeyPatch, kernel: int, compiling: bool) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)

    @settings(max_examples=30, deadline=None)
    @given(masks(), st.integers(0, 2), st.booleans())
    def check(active: Tensor, reach: int, hold_all: bool) -> None:
        positions = Positions(active)
        wanted = positions.at(0)
        held = None if hold_all else positions.at(reach)
        table = positions.table(held, wanted, kernel)
        expected, columns = brute_force_table(
            active.shape, None if held is None else held.tolist(), wanted.tolist(), kernel
        )
        assert table.shape == (len(wanted), columns)
        assert table.tolist() == expected

    check()


@pytest.mark.parametrize("compiling", [False, True], ids=["exact lengths", "fixed lengths"])
def test_lists_against_brute_force(monkeypatch: pytest.MonkeyPatch, compiling: bool) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)

    @settings(max_examples=30, deadline=None)
    @given(masks(), st.integers(0, 2))
    def check(active: Tensor, reach: int) -> None:
        _, height, width = active.shape
        near = [
            (image * height + y) * width + x
            for image, picture in enumerate(active.tolist())
            for y in range(height)
            for x in range(width)
            if any(any(row[max(x - reach, 0) : x + reach + 1]) for row in picture[max(y - reach, 0) : y + reach + 1])
        ]
        listed = Positions(active).at(reach).tolist()
        assert listed == near + [-1] * (active.numel() - len(near) if compiling else 0)

    check()


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_reverse_against_brute_force(data: st.DataObject) -> None:
    """No tap reads a value twice: each column has distinct numbers, and -1."""
    outputs, taps, length = (data.draw(st.integers(low, 6)) for low in (0, 1, 0))
    columns = [
        [number if number < length else -1 for number in data.draw(st.permutations(range(length + outputs)))[:outputs]]
        for _ in range(taps)
    ]
    rows = torch.tensor(columns).view(taps, outputs).T.long()
    expected = [
        [columns[tap].index(value) if value in columns[tap] else -1 for tap in range(taps)] for value in range(length)
    ]
    reversed_rows = ops.reverse(rows, length)
    assert reversed_rows.shape == (length, taps)
    assert reversed_rows.tolist() == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 1), min_size=2, max_size=2), max_size=6), st.integers(0, 4))
def test_used_against_brute_force(rows: list[list[int]], tail: int) -> None:
    table = torch.tensor(rows + [[-1, -1]] * tail).view(-1, 2).long()
    expected = max((index + 1 for index, row in enumerate(rows) if max(row) >= 0), default=0)
    assert ops.used(table, 17) == expected


def test_used_without_a_table_is_the_number_of_values() -> None:
    assert ops.used(None, 17) == 17

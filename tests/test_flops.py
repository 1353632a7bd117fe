"""`sact.flops`: the count against published totals, loops over positions, and what PyTorch really executes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import sact
from sact.flops import UnitFlops, block_flops, dilate


@pytest.mark.parametrize(
    ("name", "classes", "size", "flops"),
    [("resnet101", 1001, 224, 15_602_814_976), ("cifar_resnet110", 10, 32, 505_775_360)],
)
def test_published_totals(name: str, classes: int, size: int, flops: int) -> None:
    with torch.device("meta"):
        model = sact.create_model(name, num_classes=classes).eval()
        _, ponder = model(torch.empty(2, 3, size, size), return_ponder=True)
    every_unit = [block_flops(b.description, torch.full((2,), b.max_units)) for b in ponder.blocks]
    assert (torch.stack(every_unit).sum(0) + ponder.fixed_flops).tolist() == [flops, flops]
    assert ponder.dense_flops == flops


@pytest.mark.parametrize("name", ["resnet", "cifar_resnet"])
@pytest.mark.parametrize("size", [(32, 32), (51, 38)])
def test_plain_networks_execute_what_is_counted(make_model, name: str, size: tuple[int, int]) -> None:
    model = make_model(name, units=[2, 1, 3], base_channels=4, num_classes=7)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _, ponder = model(torch.randn(3, 3, *size), return_ponder=True)
    assert ponder.flops.dtype == torch.int64
    assert ponder.flops.tolist() == [counter.get_total_flops() // 3] * 3
    assert [block.cost for block in ponder.blocks] == [None] * 3
    assert ponder.dense_flops == ponder.flops[0]


def near_active(active: list[list[bool]], y: int, x: int) -> bool:
    height, width = len(active), len(active[0])
    around = product(range(max(y - 1, 0), min(y + 2, height)), range(max(x - 1, 0), min(x + 2, width)))
    return any(active[b][a] for b, a in around)


def test_perforated_bottlenecks_against_loops() -> None:
    """Block 2 of an ImageNet network, width 6 inside and 24 outside, from 12 channels at 9x13 to 5x7 positions."""
    model = sact.create_model("resnet", "sact", units=[1, 4], base_channels=3)
    height, width = 5, 7
    description = model.blocks[1].describe((9, 13), (height, width))
    torch.manual_seed(0)
    units = (torch.rand(3, height, width) ** 2 * 4).int() + 1
    units[2] = units[2].clamp(max=2)  # nothing is active in the last two units of this image
    expected = []
    for image in units.tolist():
        flops = 2 * 12 * 6 * 9 * 13  # conv1 stands before the stride
        flops += (2 * 9 * 6 * 6 + 2 * 6 * 24 + 2 * 12 * 24) * height * width  # conv2, conv3, shortcut
        flops += 2 * 9 * 24 * height * width + 2 * 24  # score head
        for unit in (2, 3, 4):
            active = [[count >= unit for count in row] for row in image]
            for y, x in product(range(height), range(width)):
                flops += 2 * 24 * 6 * near_active(active, y, x)
                flops += (2 * 9 * 6 * 6 + 2 * 6 * 24) * active[y][x]
                flops += 2 * 9 * 24 * active[y][x] * (unit < 4)
            flops += 2 * 24 * (unit < 4)  # the global score, even where nothing is active
        expected.append(flops)
    assert units.unique().tolist() == [1, 2, 3, 4]
    assert len(set(expected)) == 3
    assert block_flops(description, units).tolist() == expected
    assert block_flops(description, units[2:]).tolist() == expected[2:]


def test_perforated_two_convolution_units_against_loops() -> None:
    model = sact.create_model("cifar_resnet", "sact", units=[3], base_channels=5)
    torch.manual_seed(1)
    units = torch.randint(1, 4, (2, 6, 4), dtype=torch.int32)
    expected = []
    for image in units.tolist():
        flops = (2 * 2 * 9 * 5 * 5 + 2 * 9 * 5) * 24 + 2 * 5
        for unit in (2, 3):
            active = [[count >= unit for count in row] for row in image]
            for y, x in product(range(6), range(4)):
                flops += 2 * 9 * 5 * 5 * (near_active(active, y, x) + active[y][x])
                flops += 2 * 9 * 5 * active[y][x] * (unit < 3)
            flops += 2 * 5 * (unit < 3)
        expected.append(flops)
    assert block_flops(model.blocks[0].describe((6, 4), (6, 4)), units).tolist() == expected


def test_act_counts_whole_units_and_their_heads() -> None:
    model = sact.create_model("cifar_resnet", "act", units=[3], base_channels=5)
    unit, head = 2 * 2 * 9 * 5 * 5 * 24, 2 * 5
    counted = block_flops(model.blocks[0].describe((6, 4), (6, 4)), torch.tensor([1, 2, 3]))
    assert counted.tolist() == [unit + head, 2 * (unit + head), 3 * unit + 2 * head]


def test_everything_active_costs_the_plain_network_and_its_heads() -> None:
    """Score convolutions are counted, so an adaptive network that never halts costs a little more than a plain one."""
    plain, adaptive = (sact.create_model("cifar_resnet32", halting).blocks[1] for halting in ("none", "sact"))
    full = torch.full((1, 16, 16), 5)
    costs = [block_flops(block.describe((32, 32), (16, 16)), full).item() for block in (plain, adaptive)]
    assert costs[1] - costs[0] == 4 * (2 * 9 * 32 * 16 * 16 + 2 * 32)


def test_counts_do_not_overflow_32_bits() -> None:
    model = sact.create_model("cifar_resnet", "sact", units=[2], base_channels=4)
    units = torch.full((1, 2000, 2000), 2, dtype=torch.int32)
    assert block_flops(model.blocks[0].describe((2000, 2000), (2000, 2000)), units).item() > 2**31


def test_dilate_grows_a_square() -> None:
    active = torch.zeros(2, 5, 6, dtype=torch.bool)
    active[0, 2, 3] = active[1, 0, 0] = True
    assert torch.equal(dilate(active, 0), active)
    assert dilate(active, 1).sum((1, 2)).tolist() == [9, 4]
    assert dilate(active, 2)[0].nonzero().amin(0).tolist() == [0, 1]


def test_dense_flops_of_a_unit_leave_the_head_out() -> None:
    assert UnitFlops(((0, 10), (1, 5)), at_input=7, score_local=100, score_global=1000).dense == 15

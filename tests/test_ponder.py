"""`sact.ponder`: totals and maps of what was spent."""

from __future__ import annotations

import pytest
import torch

from sact import BlockPonder, InputError, Ponder
from sact.flops import BlockFlops, UnitFlops


def spent(*costs: torch.Tensor | None, sizes: list[tuple[int, int]]) -> Ponder:
    units = (UnitFlops(((0, 2),)),)
    blocks = [
        BlockPonder(torch.ones(2, dtype=torch.int32), cost, BlockFlops(units, size, size))
        for cost, size in zip(costs, sizes, strict=True)
    ]
    return Ponder(blocks, fixed_flops=1000)


def test_the_map_is_the_nearest_neighbour_sum_over_blocks() -> None:
    fine = torch.arange(32.0).reshape(2, 4, 4)
    coarse = torch.tensor([[[100.0, 200], [300, 400]], [[0, 0], [0, 0]]])
    ponder = spent(fine, coarse, sizes=[(4, 4), (2, 2)])
    expected = fine + coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(ponder.map(4), expected)
    odd = ponder.map((3, 5))
    rows, columns = [y * 4 // 3 for y in range(3)], [x * 4 // 5 for x in range(5)]  # no aligned corners
    coarse_rows, coarse_columns = [y * 2 // 3 for y in range(3)], [x * 2 // 5 for x in range(5)]
    assert torch.equal(odd, fine[:, rows][:, :, columns] + coarse[:, coarse_rows][:, :, coarse_columns])


def test_the_cost_is_the_sum_of_means_and_carries_gradients() -> None:
    positions = torch.rand(2, 4, 4, requires_grad=True)
    images = torch.rand(2, requires_grad=True)
    ponder = spent(positions, images, sizes=[(4, 4), (2, 2)])
    torch.testing.assert_close(ponder.cost, positions.mean((1, 2)) + images)
    ponder.cost.sum().backward()
    assert (positions.grad == 1 / 16).all()
    assert (images.grad == 1).all()


def test_an_image_score_makes_a_constant_map() -> None:
    ponder = spent(torch.tensor([2.0, 3.5]), sizes=[(3, 2)])
    assert ponder.blocks[0].map().shape == (2, 3, 2)
    assert torch.equal(ponder.map((6, 8)), torch.tensor([2.0, 3.5])[:, None, None].expand(2, 6, 8))


def test_flops_add_up() -> None:
    ponder = spent(None, None, sizes=[(4, 4), (2, 3)])
    assert ponder.flops.tolist() == [1000 + 32 + 12] * 2
    assert ponder.dense_flops == 1044


def test_a_plain_network_has_no_cost_and_no_map() -> None:
    ponder = spent(None, sizes=[(4, 4)])
    assert ponder.cost is None
    with pytest.raises(InputError, match='halting="none"'):
        ponder.map(8)


@pytest.mark.parametrize("size", [0, (4, -1)])
def test_a_map_has_at_least_one_pixel(size) -> None:
    with pytest.raises(InputError, match=str(size).strip("()")):
        spent(torch.ones(2), sizes=[(4, 4)]).map(size)

"""Ponder of padded images, against sums by hand."""

from __future__ import annotations

import pytest
import torch
from dense_models import tiny_detector

import sact
from sact.flops import BlockFlops, UnitFlops
from sact.ponder import BlockPonder, Ponder

UNIT = UnitFlops(((0, 10),))


def block(cost: torch.Tensor, size: tuple[int, int]) -> BlockPonder:
    units = cost.detach().floor().int()
    return BlockPonder(units, cost, BlockFlops((UNIT, UNIT), size, size))


def example() -> sact.PaddedPonder:
    """Images of 4x4 and 3x2 pixels, in a batch of 4x4: at stride 1 and 2. The second was 6x4 before."""
    fine = torch.arange(32.0).reshape(2, 4, 4).div(16).add(1).requires_grad_()
    coarse = torch.tensor([[[1.0, 2], [3, 4]], [[5, 6], [7, 8]]])
    blocks = [block(fine, (4, 4)), block(coarse, (2, 2))]
    return sact.PaddedPonder(blocks, 100, (4, 4), [(4, 4), (3, 2)], [(4, 4), (6, 4)])


def test_cost() -> None:
    ponder = example()
    fine = [[1 + value / 16 for value in range(16)], [1 + value / 16 for value in (16, 17, 20, 21, 24, 25)]]
    coarse = [[1, 2, 3, 4], [5, 7]]  # of the second image's column, the lower position is half in the padding
    expected = [sum(a) / len(a) + sum(b) / len(b) for a, b in zip(fine, coarse, strict=True)]
    torch.testing.assert_close(ponder.cost, torch.tensor(expected))
    assert ponder.inside(ponder.blocks[0])[1].sum() == 6
    assert ponder.inside(ponder.blocks[1])[1].tolist() == [[True, False], [True, False]]
    ponder.cost[1].backward()
    gradient = torch.zeros(4, 4)
    gradient[:3, :2] = 1 / 6
    torch.testing.assert_close(ponder.blocks[0].cost.grad[1], gradient)


def test_maps() -> None:
    first, second = example().maps()
    fine = 1 + torch.arange(32.0).reshape(2, 4, 4) / 16
    coarse = torch.tensor([[[1.0, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]])
    torch.testing.assert_close(first, fine[0] + coarse[0])
    small = fine[1, :3, :2] + torch.tensor([[5.0, 5], [5, 5], [7, 7]])
    torch.testing.assert_close(second, small.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_flops_are_spent_in_the_padding_too() -> None:
    ponder = example()
    whole = Ponder(ponder.blocks, ponder.fixed_flops)
    assert ponder.flops.equal(whole.flops) and ponder.dense_flops == whole.dense_flops


def test_without_padding_it_is_a_ponder() -> None:
    detector = tiny_detector(min_size=64, max_size=128)
    with torch.no_grad():
        _, ponder = detector([torch.rand(3, 64, 96)], return_ponder=True)
    whole = Ponder(ponder.blocks, ponder.fixed_flops)
    torch.testing.assert_close(ponder.cost, whole.cost)
    assert ponder.maps()[0].equal(whole.map((64, 96))[0])


def test_act_costs_are_of_images() -> None:
    with torch.no_grad():
        _, ponder = tiny_detector("act")([torch.rand(3, 40, 90), torch.rand(3, 90, 90)], return_ponder=True)
    torch.testing.assert_close(ponder.cost, Ponder(ponder.blocks, 0).cost)
    assert [tuple(one.shape) for one in ponder.maps()] == [(40, 90), (90, 90)]
    assert ponder.maps()[0].unique().numel() == 1


def test_plain() -> None:
    with torch.no_grad():
        _, ponder = tiny_detector("none")([torch.rand(3, 40, 90)], return_ponder=True)
    assert ponder.cost is None
    with pytest.raises(sact.InputError, match="plain"):
        ponder.maps()

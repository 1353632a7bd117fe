"""`sact.units` and `sact.folding`: one description of a branch, read in several ways."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sact import InputError
from sact.folding import fold_norms
from sact.layers import BatchNorm2d
from sact.units import Unit, describe


def run_stages(stages, x: torch.Tensor) -> torch.Tensor:
    for stage in stages:
        for layer in stage.pointwise:
            x = layer(x)
        x = stage.conv(x)
    return x


@pytest.mark.parametrize(
    ("name", "reaches"), [("resnet", [(1, 1), (0, 1), (0, 0)]), ("cifar_resnet", [(1, 2), (0, 1)])]
)
def test_stages_are_the_branch(make_model, name: str, reaches: list[tuple[int, int]]) -> None:
    unit = make_model(name, units=[2], base_channels=4).blocks[0].units[1]
    stages = unit.stages()
    assert [(stage.reach, stage.in_reach) for stage in stages] == reaches
    x = torch.randn(2, stages[0].conv.in_channels, 6, 7)
    with torch.no_grad():
        torch.testing.assert_close(unit(x), x + run_stages(stages, x))
    assert unit.keeps_state


@pytest.mark.parametrize("name", ["resnet", "cifar_resnet"])
def test_first_units_do_not_keep_the_state(make_model, name: str) -> None:
    model = make_model(name, units=[2, 2], base_channels=4)
    assert [[unit.keeps_state for unit in block.units] for block in model.blocks] == [[False, True]] * 2


def test_reach_grows_through_a_longer_chain() -> None:
    chain = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 5), nn.Conv2d(2, 2, 3))
    assert [stage.reach for stage in describe(chain).stages] == [3, 3, 1, 0]
    assert describe(chain).stages[0].in_reach == 4


@pytest.mark.parametrize("chain", [nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()), nn.Sequential()])
def test_a_branch_ends_with_a_convolution(chain: nn.Sequential) -> None:
    unit = Unit(nn.Sequential(), chain, nn.Identity())
    with pytest.raises(InputError, match="must end with a convolution"):
        unit.description()


@pytest.mark.parametrize("name", ["resnet", "cifar_resnet"])
def test_inactive_positions_keep_their_state_and_stay_readable(make_model, name: str) -> None:
    unit = make_model(name, units=[2], base_channels=4).blocks[0].units[1]
    torch.manual_seed(0)
    x = torch.randn(2, unit.stages()[0].conv.in_channels, 7, 6)
    active = torch.rand(2, 7, 6) < 0.4
    with torch.no_grad():
        dense, kept = unit(x), unit(x, active)
    mask = active[:, None].expand_as(x)
    assert torch.equal(kept[mask], dense[mask])
    assert torch.equal(kept[~mask], x[~mask])
    assert (dense[~mask] != x[~mask]).float().mean() > 0.5


@pytest.mark.parametrize("name", ["resnet", "cifar_resnet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folding_keeps_the_numbers_and_leaves_the_original(make_model, name: str, dtype: torch.dtype) -> None:
    unit = make_model(name, units=[2], base_channels=4).to(dtype).blocks[0].units[1]
    before = {key: value.clone() for key, value in unit.state_dict().items()}
    stages, folded = unit.stages(), fold_norms(unit.stages())
    x = torch.randn(2, stages[0].conv.in_channels, 5, 8, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(run_stages(folded, x), run_stages(stages, x))
    norms = [
        sum(isinstance(layer, nn.BatchNorm2d) for s in chain for layer in s.pointwise) for chain in (stages, folded)
    ]
    assert norms == [len(stages), 1]  # only the pre-activation has no convolution before it
    assert [stage.reach for stage in folded] == [stage.reach for stage in stages]
    assert not any(p.requires_grad for stage in folded[:-1] for p in stage.conv.parameters())
    assert all(torch.equal(value, before[key]) for key, value in unit.state_dict().items())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_folding_with_and_without_bias_and_scale(bias: bool, affine: bool) -> None:
    norm = BatchNorm2d(3, affine=affine)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    chain = nn.Sequential(nn.Conv2d(2, 3, 1, bias=bias), norm, nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()
    x = torch.randn(2, 2, 3, 3)
    torch.testing.assert_close(run_stages(fold_norms(describe(chain).stages), x), chain(x))

"""`sact.scores`: H^l, written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sact
from sact.layers import BatchNorm2d
from sact.scores import ImageScore, PositionScore, make_score, reset_score_bias


def head(kind: str, channels: int = 5) -> ImageScore | PositionScore:
    torch.manual_seed(0)
    made = make_score(kind, channels, BatchNorm2d, nn.LeakyReLU(0.1)).eval()
    for norm in (module for module in made.modules() if isinstance(module, BatchNorm2d)):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
    return made


def test_a_position_score_adds_a_local_and_a_global_term() -> None:
    score = head("sact")
    x = torch.randn(2, 5, 4, 6)
    mean = x.mean((2, 3))
    leaky = nn.functional.leaky_relu
    local = score.local_conv(leaky(score.local_norm(x), 0.1))[:, 0]
    pooled = leaky(score.global_norm(mean[:, :, None, None]), 0.1)[:, :, 0, 0] @ score.global_conv.weight[0, :, 0, 0]
    torch.testing.assert_close(score(x), torch.sigmoid(local + pooled[:, None, None]))
    assert score.global_conv.bias is None
    assert score.local_conv.bias is not None


def test_an_image_score_reads_the_mean_alone() -> None:
    score = head("act")
    x = torch.randn(3, 5, 4, 6)
    shuffled = x.flatten(2)[:, :, torch.randperm(24)].view_as(x)
    assert score(x).shape == (3,)
    torch.testing.assert_close(score(x), score(shuffled))
    torch.testing.assert_close(score(x), torch.sigmoid(score.pooled(x.mean((2, 3), keepdim=True))))


@pytest.mark.parametrize("kind", ["act", "sact"])
def test_the_described_local_branch_and_flops(kind: str) -> None:
    score = head(kind)
    assert score.flops() == ((2 * 9 * 5, 2 * 5) if kind == "sact" else (0, 2 * 5))
    if isinstance(score, PositionScore):
        x = torch.randn(1, 5, 3, 3)
        torch.testing.assert_close(score.local()(x), score.local_conv(score.activation(score.local_norm(x))))


@pytest.mark.parametrize("kind", ["act", "sact"])
@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_scores_are_wide_whatever_the_network(kind: str, dtype: torch.dtype, wide: torch.dtype) -> None:
    assert head(kind).to(dtype)(torch.randn(2, 5, 3, 3, dtype=dtype)).dtype == wide


@pytest.mark.parametrize("kind", ["act", "sact"])
@pytest.mark.parametrize("name", ["resnet", "cifar_resnet"])
def test_fresh_heads_start_at_minus_three_and_are_named_score(name: str, kind: str) -> None:
    model = sact.create_model(name, kind, units=[3, 2], base_channels=4)
    biases = {key: value for key, value in model.named_parameters() if "score" in key and key.endswith("conv.bias")}
    assert len(biases) == 3
    assert all(value.tolist() == [-3.0] for value in biases.values())
    assert {id(p) for p in model.score_parameters()} == {id(p) for b in model.blocks for p in b.scores.parameters()}
    for value in biases.values():
        nn.init.ones_(value)
    reset_score_bias(model.blocks[0].scores[0])
    assert [value.item() for value in biases.values()] == [-3, 1, 1]
    model.reset_scores()
    assert [value.item() for value in biases.values()] == [-3, -3, -3]

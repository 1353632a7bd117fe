"""`sact.layers`: TensorFlow's padding and running variance."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sact import layers
from sact.errors import InputError


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (6, 3, 1, (1, 1)),
        (6, 3, 2, (0, 1)),  # even: nothing before, one after
        (7, 3, 2, (1, 1)),
        (1, 3, 2, (1, 1)),
        (2, 3, 2, (0, 1)),
        (5, 1, 2, (0, 0)),
        (224, 7, 2, (2, 3)),
        (4, 2, 2, (0, 0)),
    ],
)
def test_same_padding_by_hand(size: int, kernel: int, stride: int, expected: tuple[int, int]) -> None:
    assert layers.same_padding(size, kernel, stride) == expected


def test_same_convolution_starts_at_the_first_pixel_of_an_even_picture() -> None:
    conv = layers.SameConv2d(1, 1, 3, 2, bias=False)
    nn.init.ones_(conv.weight)
    picture = torch.arange(24.0).reshape(1, 1, 4, 6)
    windows = [[picture[0, 0, y : y + 3, x : x + 3].sum().item() for x in (0, 2, 4)] for y in (0, 2)]
    assert conv(picture)[0, 0].tolist() == windows
    assert conv(torch.zeros(1, 1, 5, 7)).shape == (1, 1, 3, 4)


def test_same_max_pool_never_sees_padding() -> None:
    picture = -torch.arange(1.0, 17).reshape(1, 1, 4, 4)
    assert layers.SameMaxPool2d()(picture)[0, 0].tolist() == [[-1, -3], [-9, -11]]
    assert layers.SameMaxPool2d()(torch.zeros(1, 2, 5, 33)).shape == (1, 2, 3, 17)


def test_pool_pad_shortcut_averages_and_centres_the_channels() -> None:
    picture = torch.arange(1.0, 10).reshape(1, 1, 3, 3)
    output = layers.PoolPadShortcut(1, 4, 2)(picture)
    assert output.shape == (1, 4, 2, 2)
    assert output[0, 1].tolist() == [[3, 4.5], [7.5, 9]]  # the odd edge averages what is there
    assert (output[0, [0, 2, 3]] == 0).all()


def test_batch_norm_keeps_the_biased_variance_and_torch_output() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5) * torch.tensor([1.0, 3.0, 0.2])[None, :, None, None] + 1
    ours, theirs = layers.BatchNorm2d(3, eps=1e-3, momentum=0.3), nn.BatchNorm2d(3, eps=1e-3, momentum=0.3)
    for norm in (ours, theirs):
        nn.init.constant_(norm.weight, 0.7)
        nn.init.constant_(norm.bias, -0.2)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for norm, picture in zip((ours, theirs), inputs, strict=True):
        (norm(picture) ** 3).sum().backward()
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    assert torch.equal(ours.running_mean, theirs.running_mean)
    biased = x.var((0, 2, 3), correction=0)
    kept = 1 - 0.7**2  # two batches
    torch.testing.assert_close(ours.running_var, 0.7**2 + kept * biased)
    assert ours.num_batches_tracked.item() == 2

    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_batch_norm_needs_two_values_to_train_but_not_to_run() -> None:
    norm = layers.BatchNorm2d(4)
    with pytest.raises(InputError, match=r"1 value per channel .*\(1, 4, 1, 1\)"):
        norm(torch.zeros(1, 4, 1, 1))
    assert norm.num_batches_tracked.item() == 0
    norm.eval()(torch.zeros(1, 4, 1, 1))


def test_initial_weights_have_he_variance_after_truncation() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 128, 3)
    layers.init_weights(conv)
    fan_in = 64 * 9
    assert conv.weight.var().item() == pytest.approx(2 / fan_in, rel=0.05)
    assert conv.weight.abs().max().item() <= 2 * (1.3 * 2 / fan_in) ** 0.5 + 1e-6
    assert (conv.bias == 0).all()

"""Parts of layers' results: those of the whole map, wherever they lie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sact.layers import PoolPadShortcut, SameConv2d, SameMaxPool2d
from sact.tiling.windows import Box, Chain, is_local, window
from sact.trials import Undescribable

LAYERS: dict[str, nn.Module] = {
    "1x1": nn.Conv2d(3, 3, 1),
    "3x3": nn.Conv2d(3, 3, 3, padding=1),
    "7x7/2": nn.Conv2d(3, 3, 7, 2, padding=3),
    "3x3/2 without padding": nn.Conv2d(3, 3, 3, 2),
    "1x5 in groups, dilated": nn.Conv2d(3, 3, (1, 5), padding=(0, 2), dilation=(1, 1), groups=3),
    "dilated": nn.Conv2d(3, 3, 3, padding=2, dilation=2),
    "even kernel, same": nn.Conv2d(3, 3, 4, padding="same"),
    "valid": nn.Conv2d(3, 3, 3, padding="valid"),
    "TensorFlow's 3x3/2": SameConv2d(3, 3, 3, 2),
    "TensorFlow's 5x5/3": SameConv2d(3, 3, 5, 3),
    "TensorFlow's pool": SameMaxPool2d(),
    "pool": nn.MaxPool2d(3, 2, 1),
    "pool of 1": nn.MaxPool2d(1, 2),
    "average, ceil": nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
    "average": nn.AvgPool2d(3, 2),
    "shortcut": PoolPadShortcut(3, 3, 2),
    "norm": nn.BatchNorm2d(3).eval(),
    "activation": nn.LeakyReLU(0.1),
}


@st.composite
def parts(draw: st.DrawFn) -> tuple[list[str], tuple[int, int], tuple[float, ...]]:
    names = draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=4))
    size = draw(st.tuples(st.integers(50, 61), st.integers(50, 61)))
    return names, size, draw(st.tuples(*[st.floats(0, 0.999)] * 4))


@settings(max_examples=150, deadline=None)
@given(parts())
def test_a_part_is_that_of_the_whole(part: tuple[list[str], tuple[int, int], tuple[float, ...]]) -> None:
    names, size, corners = part
    layers = nn.Sequential(*(LAYERS[name] for name in names)).double()
    x = torch.randn(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = layers(x)
    chain = Chain(list(layers), size, 3)
    assert chain.out_size == tuple(whole.shape[2:])
    height, width = chain.out_size
    box = _span(corners[:2], height), _span(corners[2:], width)
    (top, bottom), (left, right) = needed = chain.needs(box)
    with torch.no_grad():
        found = chain.run(x[:, :, top:bottom, left:right], needed, box)
    expected = whole[:, :, slice(*box[0]), slice(*box[1])]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def _span(corners: tuple[float, ...], size: int) -> tuple[int, int]:
    low, high = sorted(int(corner * size) for corner in corners)
    return low, high + 1


def test_no_more_is_read_than_is_needed() -> None:
    chain = Chain([nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 5, padding=2)], (20, 30), 3)
    box: Box = ((6, 10), (0, 30))
    assert chain.needs(box) == ((3, 13), (0, 30))
    assert (chain.reach, chain.channels, chain.stride) == (3, 4, 1)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        nn.AvgPool2d(3, 2, 1),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    ],
)
def test_what_reads_otherwise_is_refused(layer: nn.Module) -> None:
    with pytest.raises(Undescribable):
        window(layer, 0, 20)


def test_layers_of_unknown_classes_are_tried_out() -> None:
    class Local(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.tanh()

    class Centred(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean((2, 3), keepdim=True)

    assert is_local(Local(), 3)
    assert not is_local(Centred(), 3)
    assert not is_local(nn.AdaptiveAvgPool2d(1), 3)

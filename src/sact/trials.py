"""Trials on random numbers: what a layer that this library does not know does, and whether a unit was read rightly."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .units import Scale, on_map

TO_LAST = (0, 2, 3, 1)


class Undescribable(Exception):
    """A module that is no residual unit, or one with something that cannot be described; the message says what."""


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, meanwhile; then each of its parts in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def without_record(module: nn.Module) -> dict[int, Tensor]:
    """For `deepcopy`, which fails at tensors with a record: those that are attributes, as hooks for pruning leave."""
    values = [value for part in module.modules() for value in vars(part).values()]
    return {id(value): value.detach().clone() for value in values if isinstance(value, Tensor)}


def does_nothing(layer: nn.Module, channels: int, last: bool) -> bool:
    """Whether a layer is the identity in evaluation mode (dropout, stochastic depth).

    Args:
        layer: takes [N, C, H, W].
        channels: C.
        last: whether it takes [N, H, W, C] instead.

    Raises:
        Undescribable: it does not take that, or changes its shape.
    """
    if isinstance(layer, nn.Identity):
        return True
    if isinstance(layer, nn.LayerNorm) or any(True for _ in layer.parameters()):
        return False
    x = _sample(layer, channels)
    given = x.permute(TO_LAST) if last else x
    return bool(torch.equal(_try(layer, given), given))


def is_global(layer: nn.Module, channels: int) -> bool:
    """Whether what a layer gives at one position depends on others, or on where the position is.

    Raises:
        Undescribable: it does not take a map, or changes its shape.
    """
    if isinstance(layer, nn.BatchNorm2d):
        return layer.running_mean is None
    if isinstance(layer, (nn.LayerNorm, Scale, nn.Conv2d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU)):
        return False
    x = _sample(layer, channels)
    expected = _as_pixels(_try(layer, x))
    try:
        return not torch.allclose(_try(layer, _as_pixels(x)), expected, rtol=1e-4, atol=1e-5)
    except Undescribable:  # of single pixels nothing can be normalised
        return True


@torch.no_grad()
def check_unit(
    module: nn.Module,
    x: Tensor,
    branch: Sequence[nn.Module],
    shortcut: Sequence[nn.Module] | None,
    post: Sequence[nn.Module],
) -> bool:
    """Try out what was read of a unit, on random numbers and with random weights, which hide nothing as zeros would.

    Args:
        module: the unit.
        x: a state [N, C, H, W]; what is tried is of its shape.
        branch: its layers.
        shortcut: of the shortcut; None: there is none.
        post: behind the sum.

    Returns:
        Whether the unit writes into its input.

    Raises:
        Undescribable: the layers give something else than the unit.
    """
    overwrites = False
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    try:
        for is_random in (True, False):  # its own weights where random ones, of a root for instance, make no sense
            twin, layers = copy.deepcopy((module, (branch, shortcut, post)), without_record(module))
            twin.eval()
            if is_random:
                _randomise(twin)
            given = x.clone()
            version = given._version
            expected = twin(given)
            overwrites = given._version != version
            if bool(expected.isfinite().all()):
                _compare(_evaluate(x, *layers), expected)
                break
    except Undescribable:
        raise
    except Exception as error:
        raise Undescribable(f"it cannot be tried out ({type(error).__name__}: {error})") from error
    return overwrites


def _evaluate(
    x: Tensor, branch: Sequence[nn.Module], shortcut: Sequence[nn.Module] | None, post: Sequence[nn.Module]
) -> Tensor:
    result, short = x, x
    for layer in branch:
        result = on_map(layer, result)
    for layer in shortcut or ():
        short = on_map(layer, short)
    result = result if shortcut is None else short + result
    for layer in post:
        result = on_map(layer, result)
    return result


def _compare(found: Tensor, expected: Tensor) -> None:
    is_wide = expected.dtype in (torch.float32, torch.float64)
    error = (found - expected).abs().max() if found.shape == expected.shape else torch.tensor(torch.inf)
    if not bool(error <= (1e-4 if is_wide else 5e-2) * expected.abs().max()):
        raise Undescribable("its layers, one after the other, give something else than it does")


def _as_pixels(x: Tensor) -> Tensor:
    """[N, C, H, W] to [N H W, C, 1, 1]."""
    return x.permute(TO_LAST).flatten(0, 2)[:, :, None, None]


def _sample(layer: nn.Module, channels: int) -> Tensor:
    like = next(layer.parameters(), torch.zeros(()))
    return torch.randn(2, channels, 5, 5, generator=torch.Generator().manual_seed(0)).to(like)


@torch.no_grad()
def _try(layer: nn.Module, x: Tensor) -> Tensor:
    twin = copy.deepcopy(layer, without_record(layer)).eval()
    _randomise(twin)
    try:
        result = twin(x.clone())
    except Exception as error:
        raise Undescribable(f"{type(layer).__name__} does not take a map of {x.shape[1]} channels: {error}") from error
    if not isinstance(result, Tensor) or result.shape != x.shape:
        raise Undescribable(f"{type(layer).__name__}, which changes the shape of its input")
    return result


def _randomise(module: nn.Module) -> None:
    """Random parameters, the same every time; zeros would hide what a layer does."""
    for number, parameter in enumerate(module.parameters()):
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.copy_(values / max(1, parameter[:1].numel()) ** 0.5 if parameter.dim() > 1 else values)

"""`sact.calibrate`: what a shift of the scores makes a network spend."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from .budget import Calibration
from .cap import check_adaptive
from .compiled import CompiledNetwork
from .compiled import compile as compile_network
from .errors import InputError
from .models import AdaptiveNetwork
from .models.dense import check_network
from .predict import find_images
from .preprocessing import open_image, preprocess

Images = Tensor | Iterable[Tensor | Sequence[Tensor]] | str | Path | Sequence[str | Path]

MAX_SHIFT = 1024.0
"""Scores that do not follow a shift of this will not follow a larger one."""

NEAR = 0.005
"""The ladder's ends are this near to the least and the largest share, as a part of the range between them."""

FINEST = 1e-3
"""Shifts that are nearer to each other than this are not divided further."""

Shares = dict[float, tuple[float, float]]


@torch.inference_mode()
def calibrate(
    model: AdaptiveNetwork | CompiledNetwork, images: Images, *, steps: int = 32, batch_size: int = 32
) -> Calibration:
    """Find out which shift of the scores makes a network spend which share of the dense FLOPs; the network keeps it.

    After this `model.budget` can be set. The weights, the mode, the budget and the cap stay as they are. The network
    should not change any more: after further training calibrate again.

    Args:
        model: an adaptive network, compiled or not; it runs in its fastest engine.
        images: some hundred that are like those to come: [N, C, H, W], or an iterable of such batches (or of pairs of
            images and labels), prepared as the network expects; or a folder, or paths, of images, which are then
            prepared by the network's preprocessing. The last batch may be smaller, and sizes may differ.
        steps: shifts are tried until neighbouring ones differ by at most 1/steps of the range of shares; at least 2.
        batch_size: images that run together, for a single tensor and for paths.

    Returns:
        The calibration, which is also `model.calibration`, and is saved with the network.

    Raises:
        InputError: the network is plain or has nothing to skip, there are no images, or they cannot be used.
    """
    check_network(model)
    network = model.model if isinstance(model, CompiledNetwork) else model
    if not isinstance(network, AdaptiveNetwork):
        raise InputError(f"calibrate takes a network, got {type(model).__name__}; load one with sact.from_pretrained")
    check_adaptive(network, "calibration")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise InputError(f"steps is {steps!r}, but it must be a whole number from 2 on")
    batches = list(_batches(network, images, batch_size))
    if not batches:
        raise InputError("there are no images to calibrate with; pass some hundred that are like those to come")
    run = model if isinstance(model, CompiledNetwork) else compile_network(network)
    with _as_trained(network):
        tried = _ladder(run, network, batches, steps)
    sizes = {tuple(batch.shape[-2:]) for batch in batches}
    image_size = cast("tuple[int, int]", sizes.pop()) if len(sizes) == 1 else None
    calibration = _monotone(tried, sum(map(len, batches)), image_size)
    _keep(network, calibration)
    return calibration


def _keep(network: AdaptiveNetwork, calibration: Calibration) -> None:
    """A budget that was set stays, with a shift of now."""
    budget, network.calibration = network.budget, calibration
    try:
        network.budget = budget
    except InputError as error:
        network.budget = None
        warnings.warn(f"{error}; it is None now", stacklevel=4)


def _batches(network: AdaptiveNetwork, images: Images, size: int) -> Iterator[Tensor]:
    """Batches where the network is."""
    parameter = next(network.parameters())
    for batch in _read(network, images, size):
        if isinstance(batch, Tensor) and batch.is_floating_point():
            batch = batch.to(parameter.device, parameter.dtype)
        network.check_images(batch)
        yield batch


def _read(network: AdaptiveNetwork, images: Images, size: int) -> Iterator[Tensor]:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"batch_size is {size!r}, but it must be a whole number from 1 on")
    if isinstance(images, Tensor):
        yield from images.split(size) if images.dim() == 4 else [images]
        return
    if isinstance(images, (str, Path)):
        images = [images]
    if not isinstance(images, Iterable):
        raise InputError(
            f"images is {type(images).__name__}, but it must be a tensor [N, C, H, W], batches of them, or paths"
        )
    items = list(images)
    if items and all(isinstance(item, (str, Path)) for item in items):
        yield from _read_files(network, cast("list[str | Path]", items), size)
        return
    for item in items:
        yield cast(Tensor, item[0] if isinstance(item, (list, tuple)) and item else item)


def _read_files(network: AdaptiveNetwork, paths: list[str | Path], size: int) -> Iterator[Tensor]:
    files = find_images(paths)
    if network.preprocessing is None:
        raise InputError(
            "this network does not say how images are prepared for it; set model.preprocessing (see "
            "sact.list_preprocessing()), or pass tensors"
        )
    tensors = [preprocess(open_image(path), network.preprocessing) for path in files]
    for start in range(0, len(tensors), size):
        group = tensors[start : start + size]
        same = len({tensor.shape for tensor in group}) == 1
        yield from [torch.stack(group)] if same else [tensor[None] for tensor in group]


@contextmanager
def _as_trained(network: AdaptiveNetwork) -> Iterator[None]:
    """In evaluation mode, without budget and cap; afterwards as it was."""
    training = [module for module in network.modules() if module.training]
    shifts, cap = [block.score_shift for block in network.blocks], network.cap
    try:
        network.eval()
        network.cap = None
        yield
    finally:
        network.cap = cap
        for block, shift in zip(network.blocks, shifts, strict=True):
            block.score_shift = shift
        for module in training:
            module.training = True


def _ladder(run: CompiledNetwork, network: AdaptiveNetwork, batches: Sequence[Tensor], steps: int) -> Shares:
    """Mean share and standard deviation by shift: from nearly the largest share to nearly the least, 0 included."""
    tried: Shares = {}

    def share(shift: float) -> float:
        if shift not in tried:
            tried[shift] = _measure(run, network, batches, shift)
        return tried[shift][0]

    least, most = (_measure(run, network, batches, shift)[0] for shift in (math.inf, -math.inf))
    if not least < most:
        raise InputError(
            f"this network spends {most:.3f} of the dense FLOPs whatever its scores say, so that there is nothing to "
            "calibrate; its blocks need more units"
        )
    near, widest = NEAR * (most - least), (most - least) / steps
    low, high = -1.0, 1.0
    while share(low) < most - near and low > -MAX_SHIFT:
        low *= 4
    while share(high) > least + near and high < MAX_SHIFT:
        high *= 4
    share(0.0)
    while True:
        gaps = [
            (share(left) - share(right), left, right)
            for left, right in pairwise(sorted(tried))
            if right - left > FINEST
        ]
        gap, left, right = max(gaps)
        if gap <= widest:
            return tried
        share((left + right) / 2)


def _measure(
    run: CompiledNetwork, network: AdaptiveNetwork, batches: Sequence[Tensor], shift: float
) -> tuple[float, float]:
    """Mean and standard deviation of the images' shares at a shift."""
    for block in network.blocks:
        block.score_shift = shift
    shares = []
    for batch in batches:
        _, ponder = run(batch, return_ponder=True)
        shares.append(ponder.flops.double().cpu() / ponder.dense_flops)
    every = torch.cat(shares)
    return float(every.mean()), float(every.std(correction=0))


def _monotone(tried: Shares, images: int, image_size: tuple[int, int] | None) -> Calibration:
    """The calibration; where a mean share rises with the shift, as it may by a little, the lower one counts."""
    shifts = sorted(tried)
    shares, deviations = zip(*(tried[shift] for shift in shifts), strict=True)
    falling = [min(shares[: index + 1]) for index in range(len(shares))]
    return Calibration(tuple(shifts), tuple(falling), tuple(deviations), images, image_size)

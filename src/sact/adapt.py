"""`sact.adapt`: somebody's residual network becomes adaptive; `sact.restore` gives it back.

A block is a run of units that follow each other, keep their input's shape and add to it; what stands right before them
(the unit that changes the resolution or the channels) is its first unit, which always runs everywhere.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from .block import OUTPUT_RULES, Block, OutputRule
from .compiled import CompiledNetwork
from .errors import InputError
from .halting import EPS
from .layers import BatchNorm2d, init_weights
from .models.adapted import AdaptedConfig, AdaptedNetwork, AdaptedUnit
from .models.adaptive import AdaptiveNetwork
from .models.architectures import find_architecture, find_preprocessing
from .models.registry import check_eps
from .reading import Reading, Undescribable, read_unit
from .scores import Halting, make_score

_score_norm = partial(BatchNorm2d, eps=1e-5, momentum=0.1)

PROBE_SIDES = (64, 224)
"""Sides of the image that shows in which order modules run; the second where the first is too small."""


@dataclass
class Visit:
    """How a module ran on the probing image.

    Attributes:
        x: its input.
        y: its output.
        times: how often it ran.
    """

    x: Tensor
    y: Tensor
    times: int = 1


def adapt(
    model: nn.Module,
    halting: Halting = "sact",
    *,
    eps: float = EPS,
    output: OutputRule = "mean",
    blocks: Sequence[Sequence[str]] | None = None,
    image_size: int | None = None,
    architecture: str | None = None,
) -> AdaptedNetwork:
    """Make somebody's residual network adaptive.

    Runs of same-shape residual units are found in torchvision's ResNet, ResNeXt, Wide ResNet, RegNet, MobileNetV2,
    EfficientNet and ConvNeXt, timm's of these names and ResNetV2, and in whatever is built alike. The network itself is
    not changed, and its weights are shared, not copied. What is added are score heads, which know nothing yet: teach
    them with labels (the paper's loss) or without (`sact adapt --images DIR`).

    Args:
        model: images [N, C, H, W] to logits or features.
        halting: "sact" (per position), "act" (per image), or "none" (the output is the original's; `model.halting` can
            be set later).
        eps: in (0, 1); a position halts once its cumulative score reaches 1 - eps.
        output: of a block. "mean": the paper's weighted sum of the states. "halted": the state in which each position
            stopped, trained straight-through; for a network whose own weights stay as they are.
        blocks: for each block the names of its units in the order they run, as in `model.named_modules()`, instead of
            looking for them; the first of a block always runs everywhere.
        image_size: side in pixels of an image on which the network is tried; 64 or 224 by default.
        architecture: who builds this network, "timm/NAME" or "torchvision/NAME", for saving; by default what is found.

    Returns:
        A network with the same call, which also takes `return_ponder=True`; in the original's mode.

    Raises:
        InputError: there are no runs of residual units, named units do not exist, do not follow each other, differ in
            shape or cannot be described, or a value is out of range.

    Source: section 3.2 for the blocks, section 4 for starting from a trained network.
    """
    if isinstance(model, (AdaptiveNetwork, CompiledNetwork)) or not isinstance(model, nn.Module):
        raise InputError(
            f"sact.adapt takes somebody's network, a torch.nn.Module, but got {type(model).__name__}"
            + ("; it is adaptive already" if isinstance(model, nn.Module) else "")
        )
    if halting not in get_args(Halting):
        raise InputError(f'halting is "{halting}", but it must be one of "none", "act", "sact"')
    if output not in OUTPUT_RULES:
        raise InputError(f'output is "{output}", but it must be one of {", ".join(OUTPUT_RULES)}')
    check_eps(eps)
    channels = _image_channels(model)
    named = None if blocks is None else _check_names(model, blocks)
    visits, result = _observe(model, named, channels, image_size)
    runs = _find_runs(model, visits) if named is None else named
    if named is not None:
        _check_named(named, visits)
    made = [
        _make_block(model, names, visits, "act" if halting == "act" else "sact", eps, output, named is not None)
        for names in runs
    ]
    _tell_dense(made)
    is_logits = isinstance(result, Tensor) and result.dim() == 2
    architecture, options = find_architecture(model, architecture)
    config = AdaptedConfig(
        blocks=tuple(runs),
        num_classes=result.shape[1] if isinstance(result, Tensor) and is_logits else 0,
        in_channels=channels,
        halting="act" if halting == "act" else "sact",
        eps=eps,
        output=output,
        architecture=architecture,
        options=options,
    )
    adapted = AdaptedNetwork(model, made, config)
    adapted.preprocessing = find_preprocessing(model)
    if halting == "none":
        adapted.halting = "none"
    return adapted


def restore(model: AdaptedNetwork | CompiledNetwork) -> nn.Module:
    """The network that was adapted, with the weights that it has now.

    Raises:
        InputError: it is no adapted network.
    """
    network = model.model if isinstance(model, CompiledNetwork) else model
    if not isinstance(network, AdaptedNetwork):
        raise InputError(f"sact.restore takes what sact.adapt returned, got {type(network).__name__}")
    return network.original()


@contextlib.contextmanager
def _hooked(modules: dict[str, nn.Module], visits: dict[str, Visit]) -> Iterator[None]:
    """Note how each of these modules runs, meanwhile."""

    def note(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            return
        if name in visits:
            visits[name].times += 1
        else:
            visits[name] = Visit(args[0], output)

    handles = [module.register_forward_hook(partial(note, name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _observe(
    model: nn.Module, named: list[tuple[str, ...]] | None, channels: int, image_size: int | None
) -> tuple[dict[str, Visit], Any]:
    """How modules run on a random image, and what the network gives for it."""
    names = None if named is None else {name for names in named for name in names}
    modules = {
        name: module
        for name, module in model.named_modules()
        if name and (names is None or name in names) and (names is not None or any(module.children()))
    }
    parameter = next(model.parameters())
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    failed: Exception | None = None
    try:
        for side in PROBE_SIDES if image_size is None else (image_size,):
            visits: dict[str, Visit] = {}
            image = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0)).to(parameter)
            try:
                with _hooked(modules, visits):
                    return visits, model(image)
            except Exception as error:
                failed = error
    finally:
        for part, mode in modes:
            part.training = mode
    raise InputError(
        f"{type(model).__name__} does not run on an image [1, {channels}, {side}, {side}] ({failed}); "
        "name the side that it takes with image_size"
    ) from failed


def _image_channels(model: nn.Module) -> int:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise InputError(f"{type(model).__name__} has no convolution; sact.adapt takes convolutional residual networks")


def _find_runs(model: nn.Module, visits: dict[str, Visit]) -> list[tuple[str, ...]]:
    """Names of each block's units: children of one container that run one after the other."""
    runs: list[tuple[str, ...]] = []
    for path, container in model.named_modules():
        if any(f"{path}.".startswith(f"{name}.") for run in runs for name in run):  # a unit, or a part of one
            continue
        run: list[str] = []
        names = [f"{path}.{name}" if path else name for name, _ in container.named_children()]
        for name in names:
            follows = bool(run) and name in visits and visits[name].x is visits[run[-1]].y
            if follows and _is_unit(model, name, visits[name]):
                run.append(name)
                continue
            runs += [tuple(run)] if len(run) > 1 else []
            run = [name] if name in visits and visits[name].times == 1 else []
        runs += [tuple(run)] if len(run) > 1 else []
    if not runs:
        raise InputError(
            f"{type(model).__name__} has no run of residual units of one shape; name them, for instance "
            'blocks=[["layer3.0", "layer3.1", "layer3.2"]]'
        )
    return runs


def _is_unit(model: nn.Module, name: str, visit: Visit) -> bool:
    """Whether a module is a residual unit that keeps its input's shape."""
    module = model.get_submodule(name)
    if visit.times != 1 or visit.x.dim() != 4 or visit.y.shape != visit.x.shape:
        return False
    try:
        return read_unit(module, visit.x.shape[1]).keeps_state
    except Undescribable:
        return False


def _check_names(model: nn.Module, blocks: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    modules = dict(model.named_modules())
    if isinstance(blocks, str) or not all(isinstance(names, (list, tuple)) for names in blocks) or not blocks:
        raise InputError(
            f'blocks is {blocks!r}, but it must be a list of lists of names, like [["layer3.0", "layer3.1"]]'
        )
    seen: set[str] = set()
    for names in blocks:
        if len(names) < 2:
            raise InputError(
                f"the block {list(names)} has {len(names)} unit; it needs two at least, as the first always runs"
            )
        for name in names:
            if name not in modules:
                raise InputError(f'there is no module "{name}" in {type(model).__name__}; see model.named_modules()')
            if any(name == other or name.startswith(f"{other}.") or other.startswith(f"{name}.") for other in seen):
                raise InputError(f'the unit "{name}" is named twice, or is a part of another one; name each once')
            seen.add(name)
    return [tuple(names) for names in blocks]


def _check_named(runs: Sequence[Sequence[str]], visits: dict[str, Visit]) -> None:
    """Raise InputError unless named units run once, one after the other, on states of one shape."""
    for names in runs:
        for name in names:
            if name not in visits:
                raise InputError(f'the unit "{name}" does not run, or takes or gives something other than one tensor')
            if visits[name].times != 1:
                raise InputError(f'the unit "{name}" runs {visits[name].times} times per image; a unit runs once')
        for before, name in zip(names, names[1:], strict=False):
            here, last = visits[name], visits[before]
            if here.x is not last.y:
                raise InputError(
                    f'the unit "{name}" does not read what "{before}" gives; name units in the order they run'
                )
            if here.y.shape != here.x.shape:
                raise InputError(
                    f'the unit "{name}" makes {list(here.x.shape[1:])} into {list(here.y.shape[1:])} (C, H, W), but '
                    "the units of a block have one shape after the first; begin a new block with it"
                )


def _make_block(
    model: nn.Module,
    names: Sequence[str],
    visits: dict[str, Visit],
    halting: Halting,
    eps: float,
    output: OutputRule,
    is_named: bool,
) -> Block:
    units: list[AdaptedUnit] = []
    for name in names:
        module, visit = model.get_submodule(name), visits[name]
        reading: Reading | None = None
        try:
            reading = read_unit(module, visit.x.shape[1])
            if units and not reading.keeps_state:
                raise Undescribable("its shortcut is not its input itself")
        except Undescribable as error:
            if units:  # the first always runs, whatever it is
                raise InputError(
                    f'the unit "{name}" ({type(module).__name__}) cannot be described: {error}; leave it out, or begin '
                    "a new block with it"
                ) from error
        units.append(AdaptedUnit(module, reading, name, visit.y.shape[1]))
    channels = units[-1].out_channels
    like = next(model.parameters())
    heads = [
        make_score(halting, channels, partial(BatchNorm2d, eps=1e-5, momentum=0.1), nn.Identity()) for _ in units[1:]
    ]
    for head in heads:
        init_weights(head)
    block = Block(units, heads, halting, eps, output)
    block.scores.to(like.device, like.dtype)  # type: ignore[attr-defined]  # a ModuleList
    return block


def _tell_dense(blocks: Sequence[Block]) -> None:
    """Say, once, which units or parts of units are computed everywhere."""
    whole, parts = [], []
    for block in blocks:
        for unit in list(block.units)[1:]:
            assert isinstance(unit, AdaptedUnit)
            description = unit.description()
            if not description.is_perforable:
                whole.append(unit.name)
            elif description.everywhere:
                last = description.everywhere[-1]
                parts.append(f"{unit.name} (up to {type(last).__name__})")
    if whole:
        warnings.warn(
            f"these units have convolutions that cannot skip positions and are computed everywhere: {', '.join(whole)}",
            stacklevel=3,
        )
    if parts:
        warnings.warn(
            "these units average over the whole map, hence are computed everywhere up to there while any position is "
            f"active: {', '.join(parts)}",
            stacklevel=3,
        )


__all__ = ["adapt", "restore"]

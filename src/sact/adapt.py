"""`sact.adapt`: somebody's residual network becomes adaptive; `sact.restore` gives it back.

A block is a run of units that follow each other, keep their input's shape and add to it; what stands right before them
(the unit that changes the resolution or the channels) is its first unit, which always runs everywhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .block import OUTPUT_RULES, Block, OutputRule
from .compiled import CompiledNetwork
from .errors import InputError
from .halting import EPS
from .layers import BatchNorm2d
from .models.adapted import AdaptedConfig, AdaptedNetwork, AdaptedUnit
from .models.adaptive import AdaptiveNetwork
from .models.architectures import find_architecture, find_preprocessing
from .models.registry import check_eps
from .probing import Probe, Visit, image_channels, observe
from .reading import Reading, Undescribable, read_unit
from .scores import Halting, make_score, reset_score_bias
from .trials import evaluating
from .units import is_plain

_score_norm = partial(BatchNorm2d, eps=1e-5, momentum=0.1)


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
            shape or cannot be described, something else reads the states between units, or a value is out of range.

    Source: section 3.2 for the blocks, section 4 for starting from a trained network.
    """
    if isinstance(model, (AdaptiveNetwork, CompiledNetwork)) or not isinstance(model, nn.Module):
        raise InputError(
            f"sact.adapt takes somebody's network, a torch.nn.Module, but got {type(model).__name__}"
            + ("; it is adaptive already" if isinstance(model, nn.Module) else "")
        )
    if any(kind.__name__ == "GeneralizedRCNN" for kind in type(model).__mro__):  # without importing torchvision
        raise InputError(f"{type(model).__name__} is a detector, which takes lists of images; use sact.adapt_detector")
    if halting not in get_args(Halting):
        raise InputError(f'halting is "{halting}", but it must be one of "none", "act", "sact"')
    if output not in OUTPUT_RULES:
        raise InputError(f'output is "{output}", but it must be one of {", ".join(OUTPUT_RULES)}')
    check_eps(eps)
    channels = image_channels(model)
    named = None if blocks is None else _check_names(model, blocks)
    probe = observe(model, None if named is None else {name for run in named for name in run}, channels, image_size)
    readings = _Readings(model, probe.visits)
    if named is not None:
        _check_named(named, probe.visits)
    runs = _find_runs(model, probe.visits, readings) if named is None else named
    made = [_make_block(names, readings, "act" if halting == "act" else "sact", eps, output) for names in runs]
    result = probe.result
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
    _check_whole(model, made, config, probe)
    _tell_dense(made)
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


class _Readings:
    """Units of a network, each read once.

    Args:
        model: the network.
        visits: how its modules ran.
    """

    def __init__(self, model: nn.Module, visits: dict[str, Visit]) -> None:
        self.model = model
        self.visits = visits
        self._known: dict[str, Reading | Undescribable] = {}

    def read(self, name: str) -> Reading:
        """As `read_unit`."""
        if name not in self._known:
            try:
                self._known[name] = read_unit(self.model.get_submodule(name), self.visits[name].x)
            except Undescribable as error:
                self._known[name] = error
        known = self._known[name]
        if isinstance(known, Undescribable):
            raise known
        return known

    def is_unit(self, name: str) -> bool:
        """Whether a module is a residual unit that keeps its input's shape."""
        visit = self.visits[name]
        if visit.times != 1 or visit.x.dim() != 4 or visit.y.shape != visit.x.shape:
            return False
        try:
            return self.read(name).keeps_state
        except Undescribable:
            return False


def _find_runs(model: nn.Module, visits: dict[str, Visit], readings: _Readings) -> list[tuple[str, ...]]:
    """Names of each block's units: children of one container that run one after the other."""
    runs: list[tuple[str, ...]] = []
    for path, container in model.named_modules():
        if any(f"{path}.".startswith(f"{name}.") for run in runs for name in run):  # a unit, or a part of one
            continue
        run: list[str] = []
        names = [f"{path}.{name}" if path else name for name, _ in container.named_children()]
        for name in names:
            follows = bool(run) and name in visits and visits[name].x is visits[run[-1]].y
            if follows and readings.is_unit(name):
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


def _check_names(model: nn.Module, blocks: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    modules = dict(model.named_modules())
    is_list = isinstance(blocks, (list, tuple)) and bool(blocks)
    if not is_list or not all(
        isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names) for names in blocks
    ):
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


def _make_block(names: Sequence[str], readings: _Readings, halting: Halting, eps: float, output: OutputRule) -> Block:
    units: list[AdaptedUnit] = []
    for name in names:
        module = readings.model.get_submodule(name)
        reading: Reading | None = None
        try:
            reading = readings.read(name)
            if units and not reading.keeps_state:
                raise Undescribable("its shortcut is not its input itself")
        except Undescribable as error:
            if units:  # the first always runs, whatever it is
                raise InputError(
                    f'the unit "{name}" ({type(module).__name__}) cannot be described: {error}; leave it out, or begin '
                    "a new block with it"
                ) from error
        units.append(AdaptedUnit(module, reading, name, readings.visits[name].y.shape[1]))
    heads = [make_score(halting, units[-1].out_channels, _score_norm, nn.Identity()) for _ in units[1:]]
    for head in heads:  # every score is sigmoid(-3): features of other networks may have any scale
        for conv in head.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.zeros_(conv.weight)
        reset_score_bias(head)
    block = Block(units, heads, halting, eps, output)
    like = next(readings.model.parameters())
    block.scores.to(like.device, like.dtype)  # type: ignore[attr-defined]  # a ModuleList
    return block


def _check_whole(model: nn.Module, blocks: Sequence[Block], config: AdaptedConfig, probe: Probe) -> None:
    """Raise InputError unless the adapted network, halting off, does what the network did, through all its blocks."""
    if _does_same(AdaptedNetwork(model, blocks, config), probe):
        return
    alone = [
        AdaptedNetwork(model, [block], replace(config, blocks=(names,)))
        for block, names in zip(blocks, config.blocks, strict=True)
    ]
    guilty = [list(network.config.blocks[0]) for network in alone if not _does_same(network, probe)]
    raise InputError(
        f"{type(model).__name__} gives something else when the units {guilty or [list(run) for run in config.blocks]} "
        "run as blocks: something else reads or runs what is inside of these; name the units of others with blocks"
    )


@torch.no_grad()
def _does_same(adapted: AdaptedNetwork, probe: Probe) -> bool:
    with evaluating(adapted):
        halting, adapted.halting = adapted.halting, "none"
        try:
            result, ponder = adapted(probe.image, return_ponder=True)
        except (InputError, AttributeError, TypeError, LookupError):
            return False
        finally:
            adapted.halting = halting
    pairs = zip(tree_leaves(result), tree_leaves(probe.result), strict=True)
    return len(ponder.blocks) == len(adapted.blocks) and all(_is_same(ours, theirs) for ours, theirs in pairs)


def _is_same(ours: Any, theirs: Any) -> bool:
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor) or ours.shape != theirs.shape:
        return type(ours) is type(theirs) and not isinstance(ours, Tensor)
    ours, theirs = ours.double(), theirs.double()
    largest = float(theirs.abs().max()) if theirs.numel() else 0.0
    return torch.allclose(ours, theirs, rtol=0, atol=1e-5 * largest, equal_nan=True)


def _tell_dense(blocks: Sequence[Block]) -> None:
    """Say, once, which units or parts of units are computed everywhere."""
    whole, parts = [], []
    for block in blocks:
        for unit in list(block.units)[1:]:
            assert isinstance(unit, AdaptedUnit)
            description = unit.description()
            odd = [stage.conv for stage in description.stages if not is_plain(stage.conv)]
            culprit = [*description.everywhere, *odd][-1:]
            if not description.is_perforable:
                whole.append(f"{unit.name} ({', '.join(type(layer).__name__ for layer in culprit)})")
            elif culprit:
                parts.append(f"{unit.name} (up to {type(culprit[0]).__name__})")
    if whole:
        warnings.warn(
            "these units are computed everywhere, as they end with something that needs the whole map, or have a "
            f"convolution that cannot be evaluated at single positions: {', '.join(whole)}",
            stacklevel=3,
        )
    if parts:
        warnings.warn(
            "these units have something that needs the whole map, hence are computed everywhere up to there while any "
            f"position is active: {', '.join(parts)}",
            stacklevel=3,
        )


__all__ = ["adapt", "restore"]

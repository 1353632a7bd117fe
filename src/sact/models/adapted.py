"""Somebody's network with runs of its units made adaptive. The network itself is neither changed nor copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..block import Block, OutputRule, RunBlock
from ..cap import within_cap
from ..errors import InputError
from ..flops import UnitFlops
from ..ponder import BlockPonder, Ponder
from ..reading import Reading, read_layers
from ..scores import Halting, ImageScore
from ..units import BaseUnit, Description
from .adaptive import AdaptiveNetwork, Output

_TURN: ContextVar[Callable[[int, Tensor], Tensor]] = ContextVar("sact_turn")
"""How the running network evaluates its block of a number; every `_Slot` calls it."""


@dataclass(frozen=True)
class Base:
    """Weights of a network in an installed package.

    Attributes:
        package: module that holds the file.
        file: its path in there, a PyTorch file of tensors in the order of the network's own.
        sha256: of the file.
        extra: of this package, which installs it.
    """

    package: str
    file: str
    sha256: str
    extra: str


@dataclass(frozen=True)
class AdaptedConfig:
    """What an adapted network is.

    Attributes:
        blocks: names of each block's units in the network that was adapted, in the order they run.
        num_classes: numbers that it gives per image; 0 where it gives feature maps.
        in_channels: channels of the image.
        halting: "none" (as it was before), "act" or "sact".
        eps: a position halts once its cumulative score reaches 1 - eps.
        output: what a block gives, see `sact.block.Block`.
        architecture: who builds the network, "timm/NAME" or "torchvision/NAME"; None where that is not known.
        options: arguments to build it with.
    """

    blocks: tuple[tuple[str, ...], ...]
    num_classes: int
    in_channels: int = 3
    halting: Halting = "sact"
    eps: float = 0.01
    output: OutputRule = "mean"
    architecture: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    family: str = "adapted"

    @property
    def features_only(self) -> bool:
        """Whether it gives feature maps."""
        return self.num_classes == 0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self) | {"blocks": [list(names) for names in self.blocks], "options": dict(self.options)}


class AdaptedUnit(BaseUnit):
    """A unit of somebody's network: its own module everywhere, kept where active.

    Args:
        module: takes and gives a state [N, C, H, W].
        reading: what it is made of; None for a block's first unit where that is not known.
        name: in the network, for messages.
        out_channels: channels of the next state.
    """

    def __init__(self, module: nn.Module, reading: Reading | None, name: str, out_channels: int) -> None:
        super().__init__()
        self.module = module
        self.reading = reading
        self.name = name
        self._out_channels = out_channels
        self.random = () if reading is None else reading.random
        # The state before it, which somebody may have wanted to overwrite, is still read where positions have halted.
        self._overwrites = reading is not None and reading.overwrites

    @property
    def out_channels(self) -> int:
        """Channels of the next state."""
        return self._out_channels

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """As `BaseUnit.forward`."""
        result: Tensor = self.module(x.clone() if self._overwrites else x)
        return result if active is None else torch.where(active[:, None], result, x)

    def description(self) -> Description:
        """What it computes besides its shortcut; empty where that is not known."""
        return Description() if self.reading is None else self.reading.description

    @property
    def keeps_state(self) -> bool:
        """Whether the shortcut is the raw input."""
        return self.reading is not None and self.reading.keeps_state

    def flops(self, score: tuple[int, int] = (0, 0)) -> UnitFlops:
        """As `BaseUnit.flops`."""
        shortcut = self.reading.shortcut if self.reading is not None else None
        projections = [layer for layer in shortcut or () if isinstance(layer, nn.Conv2d)]
        return self.description().flops(projections[0] if projections else None, score)


class _Slot(nn.Module):
    """Stands in the network where a block's first unit was; the others' places hold the identity."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        turn = _TURN.get(None)
        if turn is None:
            raise InputError(
                "this is the inside of an adapted network, which cannot run by itself; call what sact.adapt returned, "
                "and switch gradient checkpointing off"
            )
        return turn(self.index, x)


class AdaptedNetwork(AdaptiveNetwork):
    """Somebody's network, adaptive: same call, same weights, `return_ponder=True`; made by `sact.adapt`.

    Its weights are the original's own. `network` is the original with its units taken out: of the modules on the way
    to them there are copies, which share their parameters; all others are the original's.

    Args:
        original: the network.
        blocks: its units with their score heads.
        config: what this is.

    Attributes:
        base: where the network's own weights can be had, so that the score heads alone need be saved; None: nowhere.
    """

    config: AdaptedConfig
    base: Base | None = None
    min_size = 1  # it says itself what is too small for it

    def __init__(self, original: nn.Module, blocks: Sequence[Block], config: AdaptedConfig) -> None:
        super().__init__()
        self._original = (original,)  # in a tuple, lest its weights are counted twice
        self.config = config
        self.network = with_replaced(
            original,
            {
                name: (_Slot(index) if position == 0 else nn.Identity()).train(original.training)
                for index, names in enumerate(config.blocks)
                for position, name in enumerate(names)
            },
        )
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]  # ModuleList does not say what it holds
        self._sizes: dict[tuple[int, ...], int] = {}
        self._counted: list[nn.Module] = []  # whose FLOPs these are; a list, lest they are counted among the parts
        self.training = original.training
        self.blocks.training = original.training  # type: ignore[attr-defined]
        for block in blocks:  # but what is the original's own stays in its mode
            for part in (block, block.units, *block.units, *block.scores.modules()):  # type: ignore[attr-defined]
                part.training = original.training

    @property
    def halting(self) -> Halting:
        """Read and written: "none" gives the original's output."""
        return self.config.halting

    @halting.setter
    def halting(self, halting: Halting) -> None:
        made = "act" if isinstance(self.blocks[0].scores[0], ImageScore) else "sact"
        if halting not in ("none", made):
            raise InputError(
                f'halting is "{halting}", but this network was adapted for "{made}"; "none" switches it off'
            )
        self.config = replace(self.config, halting=halting)
        for block in self.blocks:
            block.halting = halting

    def run(self, images: Tensor, run_block: RunBlock, keep_distribution: bool = False) -> tuple[Output, Ponder]:
        """As `AdaptiveNetwork.run`."""
        self.check_images(images)
        run_block = within_cap(self, run_block, images)
        spent: list[BlockPonder | None] = [None] * len(self.blocks)

        def turn(index: int, x: Tensor) -> Tensor:
            result, spent[index] = run_block(self.blocks[index], x, keep_distribution)
            return result

        token = _TURN.set(turn)
        try:
            output: Output = self.network(images)
        finally:
            _TURN.reset(token)
        ponders = [ponder for ponder in spent if ponder is not None]
        return output, Ponder(ponders, self.fixed_flops(images.shape[-2:]))

    def fixed_flops(self, size: Sequence[int]) -> int:
        """FLOPs per image, at image size (H, W), of what always runs outside the blocks: all that is not described."""
        key = tuple(size)
        if not torch.compiler.is_compiling():
            parts = [*self.network.modules()]
            if len(parts) != len(self._counted) or any(map(is_not, parts, self._counted)):  # a new classifier
                self._sizes, self._counted = {}, parts
        if key not in self._sizes:
            try:
                self._sizes[key] = _without_weights(self).count_flops(key)
            except Exception:  # a forward pass that looks at values, or at tensors that are no buffers
                self._sizes[key] = deepcopy(self).count_flops(key)
        return self._sizes[key]

    def count_flops(self, size: Sequence[int]) -> int:
        """As `fixed_flops`, by running the network; what runs are norms as well, so that a copy is to be asked."""
        described = 0

        def turn(index: int, x: Tensor) -> Tensor:
            nonlocal described
            block, in_size = self.blocks[index], x.shape[-2:]
            for unit in block.units:
                x = unit(x)
            described += block.describe(in_size, x.shape[-2:]).dense_flops
            return x

        image = next(self.parameters()).new_zeros(1, self.config.in_channels, *size)
        token = _TURN.set(turn)
        try:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                self.eval().network(image)
        finally:
            _TURN.reset(token)
        return int(counter.get_total_flops()) - described

    def layers(self) -> list[nn.Module | int]:
        """The network as a chain of layers, in the order they run; a number stands for the block of that number.

        Layers that change nothing at inference may be among them. Norms that hold their activation are two layers.

        Raises:
            Undescribable: it is no such chain.
        """
        layers: list[nn.Module | int] = []
        for layer in read_layers(self.network):
            if isinstance(layer, nn.Identity):
                continue
            layers.append(layer.index if isinstance(layer, _Slot) else layer)
            if isinstance(layer, nn.BatchNorm2d) and isinstance(after := getattr(layer, "act", None), nn.Module):
                layers.append(after)
        return layers

    def original(self) -> nn.Module:
        """The network as it was, with the weights as they are now, and what was replaced in `network` meanwhile."""
        original = self._original[0]
        taken = {name for names in self.config.blocks for name in names}
        above = _above(taken)
        for path in above:
            source, target = self.network.get_submodule(path), original.get_submodule(path)
            target.__dict__.update({key: value for key, value in source.__dict__.items() if key != "_modules"})
            modules = {}
            for name, module in source._modules.items():
                full = f"{path}.{name}" if path else name
                modules[name] = target._modules[name] if full in taken or full in above else module
            target._modules.clear()
            target._modules.update(modules)
        return original


def _without_weights(network: AdaptedNetwork) -> AdaptedNetwork:
    """A copy whose tensors have shapes alone; it knows no original."""
    known: dict[int, Any] = {id(network._original): ()}
    attributes = [value for part in network.modules() for value in vars(part).values()]
    attributes = [value for value in attributes if isinstance(value, Tensor)]  # as hooks for pruning leave
    for tensor in (*network.parameters(), *network.buffers(), *attributes):
        empty = torch.empty_like(tensor, device="meta")
        known[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return deepcopy(network, known)


def with_replaced(root: nn.Module, replacements: dict[str, nn.Module]) -> nn.Module:
    """A network with other modules at some places; the modules above these are copied, all others are shared."""
    copies: dict[str, nn.Module] = {}
    for path in sorted(_above(replacements), key=lambda path: path.count(".") + bool(path)):
        source = root.get_submodule(path)
        copied: nn.Module = object.__new__(source.__class__)
        copied.__dict__ = dict(source.__dict__)  # parameters and buffers stay the same dicts, hence shared for good
        copied._modules = dict(source._modules)
        copies[path] = copied
        if path:
            above, _, name = path.rpartition(".")
            copies[above]._modules[name] = copied
    for path, module in replacements.items():
        above, _, name = path.rpartition(".")
        copies[above]._modules[name] = module
    return copies[""]


def _above(paths: Sequence[str] | set[str] | dict[str, nn.Module]) -> set[str]:
    """The paths of all modules that contain these."""
    found = {""}
    for path in paths:
        while path:
            path = path.rpartition(".")[0]
            found.add(path)
    return found

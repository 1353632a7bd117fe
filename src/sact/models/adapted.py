"""Somebody's network with runs of its units made adaptive. The network itself is neither changed nor copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..block import Block, OutputRule, RunBlock
from ..cap import within_cap
from ..errors import InputError
from ..flops import UnitFlops
from ..ponder import BlockPonder, Ponder
from ..reading import Reading
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

    @property
    def out_channels(self) -> int:
        """Channels of the next state."""
        return self._out_channels

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """As `BaseUnit.forward`."""
        result: Tensor = self.module(x)
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
        return _TURN.get()(self.index, x)


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

    def __init__(self, original: nn.Module, blocks: Sequence[Block], config: AdaptedConfig) -> None:
        super().__init__()
        self._original = (original,)  # in a tuple, lest its weights are counted twice
        self.config = config
        self.network = with_replaced(
            original,
            {
                name: _Slot(index) if position == 0 else nn.Identity()
                for index, names in enumerate(config.blocks)
                for position, name in enumerate(names)
            },
        )
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]  # ModuleList does not say what it holds
        self._sizes: dict[tuple[int, ...], int] = {}
        self.train(original.training)

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
        return output, Ponder(ponders, self._fixed(images.shape, ponders))

    def _fixed(self, shape: Sequence[int], ponders: list[BlockPonder]) -> int:
        key = tuple(shape[1:])
        if key not in self._sizes:
            dense = sum(ponder.description.dense_flops for ponder in ponders)
            self._sizes[key] = count_flops(self._original[0], key) - dense
        return self._sizes[key]

    def fixed_flops(self, size: tuple[int, ...]) -> int:
        """FLOPs per image, at image size (H, W), of what always runs outside the blocks: all that is not described."""
        key = (self.config.in_channels, *size)
        if key not in self._sizes:
            twin = deepcopy(self).eval().to("meta")
            with torch.no_grad():
                twin(torch.empty(1, *key, device="meta", dtype=next(self.parameters()).dtype))
            self._sizes[key] = twin._sizes[key]
        return self._sizes[key]

    def original(self) -> nn.Module:
        """The network as it was, with the weights as they are now."""
        original = self._original[0]
        taken = {name for names in self.config.blocks for name in names}
        for path in _above(taken):  # what was replaced in `network` meanwhile, a classifier for instance
            source, target = self.network.get_submodule(path), original.get_submodule(path)
            for name, module in source._modules.items():
                full = f"{path}.{name}" if path else name
                if full not in taken and full not in _above(taken):
                    target._modules[name] = module
        return original.train(self.training)


def count_flops(network: nn.Module, shape: Sequence[int]) -> int:
    """FLOPs (2 x multiply-adds of convolutions and linear layers) of one image [C, H, W], without computing it."""
    twin = deepcopy(network).eval().to("meta")
    dtype = next(network.parameters()).dtype
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(torch.empty(1, *shape, device="meta", dtype=dtype))
    return int(counter.get_total_flops())


def with_replaced(root: nn.Module, replacements: dict[str, nn.Module]) -> nn.Module:
    """A network with other modules at some places; the modules above these are copied, all others are shared."""
    copies: dict[str, nn.Module] = {}
    for path in sorted(_above(replacements), key=lambda path: path.count(".") + bool(path)):
        source = root.get_submodule(path)
        copied = source.__class__.__new__(source.__class__)
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

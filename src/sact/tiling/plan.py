"""What a network does to an image of one size, from map to map, and what room that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from ..block import Block
from ..errors import InputError
from ..folding import fold
from ..halting import start
from ..models.adapted import AdaptedNetwork
from ..models.adaptive import AdaptiveNetwork
from ..models.network import Network
from ..reading import Reading, Undescribable, read_unit
from ..units import BaseUnit, Description, Unit, on_map
from .store import room
from .windows import Box, Chain, Size, hull, is_local


class Step:
    """What makes the next map of one: a chain of layers, or a residual unit.

    Args:
        size: (H, W) of the map.
        channels: of the map.
        branch: layers.
        shortcut: layers whose result is added; none for the map itself, None for no shortcut.
        post: position-wise layers behind the sum.

    Raises:
        Undescribable: a layer cannot be evaluated in parts.
    """

    def __init__(
        self,
        size: Size,
        channels: int,
        branch: Sequence[nn.Module],
        shortcut: Sequence[nn.Module] | None = None,
        post: Sequence[nn.Module] = (),
    ) -> None:
        self.branch = Chain(branch, size, channels)
        self.shortcut = None if shortcut is None else Chain(shortcut, size, channels)
        self.post = post
        self.in_size, self.out_size, self.channels = size, self.branch.out_size, self.branch.channels
        self.stride, self.reach = self.branch.stride, self.branch.reach

    def needs(self, box: Box) -> Box:
        """The part of the map that a part of the result is computed from."""
        needed = self.branch.needs(box)
        return needed if self.shortcut is None else hull(needed, self.shortcut.needs(box))

    def run(self, x: Tensor, at: Box, box: Box) -> Tensor:
        """A part of the result [1, C', h', w'], of a part [1, C, h, w] of the map that holds what it needs."""
        result = self.branch.run(x, at, box)
        if self.shortcut is not None:
            result = self.shortcut.run(x, at, box) + result
        for layer in self.post:
            result = on_map(layer, result)
        return result


@dataclass
class BlockSteps:
    """A block and its units at the size at which they run."""

    block: Block
    units: list[Step]

    @property
    def keeps_mean(self) -> bool:
        """Whether a weighted sum of states is kept beside the state."""
        return self.block.halting != "none" and self.block.output == "mean"


@dataclass
class Plan:
    """A network at an image size.

    Attributes:
        stages: what is evaluated from map to map, in order.
        pooled: layers between the last map and the average over it.
        head: the average, and the layers behind it; empty where the network gives no logits.
        need: bytes of the two maps that are there at a time, at most.
    """

    stages: list[Step | BlockSteps]
    pooled: Chain | None = None
    head: list[nn.Module] = field(default_factory=list)
    need: int = 0


def make_plan(network: AdaptiveNetwork, size: Size, dtype: torch.dtype) -> Plan:
    """How a network is evaluated on an image of (H, W) pixels.

    Raises:
        InputError: it has a layer, named in the message, that cannot be evaluated in parts.
    """
    try:
        plan = _Planner(network, size).plan()
    except Undescribable as error:
        raise InputError(
            f"this network cannot be evaluated in tiles because of {error}; call it on the image, shrunk if need be"
        ) from error
    plan.need = _need(plan.stages, dtype)
    return plan


def _parts(network: AdaptiveNetwork) -> list[nn.Module | int]:
    """The network as layers, with the numbers of its blocks among them."""
    if isinstance(network, AdaptedNetwork):
        return network.layers()
    if not isinstance(network, Network):
        raise Undescribable(f"its class, {type(network).__name__}")
    parts: list[nn.Module | int] = [*network.stem, *range(len(network.blocks))]
    if isinstance(network.head, nn.Sequential) and network.classifier is not None:
        parts += [*network.head, network.classifier]
    return parts


class _Planner:
    """Walks through a network and keeps account of the map's size."""

    def __init__(self, network: AdaptiveNetwork, size: Size) -> None:
        self.network = network
        self.size, self.channels = size, network.config.in_channels
        self.stages: list[Step | BlockSteps] = []
        self.layers: list[nn.Module] = []
        self.width = self.channels  # behind `layers`

    def plan(self) -> Plan:
        parts = _parts(self.network)
        for position, part in enumerate(parts):
            if isinstance(part, int):
                self._flush()
                self._add_block(self.network.blocks[part])
            elif is_local(part, self.width):
                self.layers.append(part)
                self.width = part.out_channels if isinstance(part, nn.Conv2d) else self.width
            elif _averages(part, self.width):
                head = [layer for layer in parts[position:] if isinstance(layer, nn.Module)]
                return Plan(self.stages, Chain(self.layers, self.size, self.channels), head)
            else:
                self._flush()
                self._add_unit(part)
        if not self.network.config.features_only:
            raise Undescribable("its head, which does not average over the image")
        return Plan(self.stages)

    def _flush(self) -> None:
        if self.layers:
            self._add(Step(self.size, self.channels, self.layers))
            self.layers = []

    def _add(self, step: Step) -> Step:
        self.stages.append(step)
        return self._follow(step)

    def _follow(self, step: Step) -> Step:
        self.size, self.channels = step.out_size, step.channels
        self.width = self.channels
        return step

    def _add_block(self, block: Block) -> None:
        steps = [self._follow(self._unit_step(unit)) for unit in block.units]
        self.stages.append(BlockSteps(block, steps))
        for step in steps[1:]:
            if step.in_size != step.out_size or step.branch.stride != 1:
                raise Undescribable("a unit behind a block's first that changes the resolution")

    def _add_unit(self, layer: nn.Module) -> None:
        """A residual unit that is in no block."""
        like = next(layer.parameters(), torch.zeros(()))
        x = torch.randn(1, self.channels, 8, 8, generator=torch.Generator().manual_seed(0)).to(like)
        try:
            reading = read_unit(layer, x)
        except Undescribable as error:
            raise Undescribable(f"{type(layer).__name__}, which is neither local nor a unit of such layers") from error
        self._add(self._reading_step(reading, type(layer).__name__))

    def _unit_step(self, unit: BaseUnit) -> Step:
        if isinstance(unit, Unit):
            before = [*unit.preact] if unit.shortcut_preactivated else []
            return self._step(unit.description(), [*before, unit.shortcut], "a unit")
        reading: Reading | None = getattr(unit, "reading", None)
        name = str(getattr(unit, "name", type(unit).__name__))
        if reading is None:
            raise Undescribable(f"{name}, of which it is not known what it computes")
        return self._reading_step(reading, name)

    def _reading_step(self, reading: Reading, name: str) -> Step:
        return self._step(reading.description, reading.shortcut, name)

    def _step(self, description: Description, shortcut: Sequence[nn.Module] | None, name: str) -> Step:
        if description.everywhere:
            raise Undescribable(f"{type(description.everywhere[-1]).__name__} in {name}, which needs the whole map")
        folded = fold(description)
        branch = [layer for stage in folded.stages for layer in (*stage.pointwise, stage.conv)]
        return Step(self.size, self.channels, [*branch, *folded.tail], shortcut, folded.post)


@torch.no_grad()
def _averages(layer: nn.Module, channels: int) -> bool:
    """Whether a layer gives the mean over all positions, in whatever shape."""
    x = torch.randn(1, channels, 5, 7, generator=torch.Generator().manual_seed(0))
    try:
        result = layer(x)
    except Exception:  # whatever a layer raises that takes something else than maps
        return False
    if not isinstance(result, Tensor) or result.numel() != channels:
        return False
    return torch.allclose(result.flatten(), x.mean((2, 3)).flatten(), atol=1e-6)


def _need(stages: Sequence[Step | BlockSteps], dtype: torch.dtype) -> int:
    """Bytes of the two maps that are there at a time, at most."""
    wide = start(torch.empty(0, dtype=dtype)).remainder.dtype
    here = need = 0
    for stage in stages:
        last = stage.units[-1] if isinstance(stage, BlockSteps) else stage
        values = prod(last.out_size) * last.channels
        state = room(values, dtype)
        need = max(need, here + state)
        here = state
        if isinstance(stage, BlockSteps) and stage.keeps_mean:
            here = room(values, wide)
            need = max(need, state + here)
    return need

"""The form of a block that a graph with lists is made from: it calls operators that `nodes` writes out.

States live as rows [P, C], one per position of the batch, P = N H W. What depends on how many positions are active
stays inside of the operators, so that for `torch.export` every shape follows from that of the images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..block import Block
from ..engines.perforated import on_map
from ..folding import fold
from ..scores import PositionScore
from ..units import BaseUnit, Description
from .nodes import write_halt, write_neighbours, write_places, write_unit
from .pointwise import can_write
from .specs import SPECS, HaltSpec, UnitSpec

LARGE = 1e9
"""Added to a logit or taken from it, to force a score to 1 or 0."""

LIBRARY = torch.library.Library("sact_export", "DEF")
LIBRARY.define("places(Tensor active) -> (Tensor, Tensor, Tensor)")
LIBRARY.define("neighbours(Tensor active, int kernel) -> Tensor")
LIBRARY.define(
    "unit(Tensor rows, Tensor values, Tensor output, Tensor mean, Tensor remainder, Tensor active, Tensor shape, "
    "Tensor images, Tensor[] neighbours, int key) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "halt(Tensor rows, Tensor mean, Tensor cumulative, Tensor remainder, Tensor units, Tensor active, Tensor shape, "
    "Tensor zeros, Tensor neighbours, Tensor? forced, int key) -> (Tensor, Tensor, Tensor, Tensor)"
)

TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.sact_export.places.default: write_places,
    torch.ops.sact_export.neighbours.default: write_neighbours,
    torch.ops.sact_export.unit.default: write_unit,
    torch.ops.sact_export.halt.default: write_halt,
}
"""Which function writes which operator, for `torch.onnx.export`."""


@torch.library.register_fake("sact_export::places", lib=LIBRARY)
def _places(active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    count, positions = active.shape[0], active.numel()
    shape = active.new_empty(4, dtype=torch.int64)
    return shape, active.new_empty(positions), active.new_empty((count, positions))


@torch.library.register_fake("sact_export::neighbours", lib=LIBRARY)
def _neighbours(active: Tensor, kernel: int) -> Tensor:
    return active.new_empty((active.numel(), kernel * kernel), dtype=torch.int32)


@torch.library.register_fake("sact_export::unit", lib=LIBRARY)
def _unit(rows: Tensor, values: Tensor, output: Tensor, mean: Tensor, *others: object) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(output), torch.empty_like(mean)


@torch.library.register_fake("sact_export::halt", lib=LIBRARY)
def _halt(rows: Tensor, mean: Tensor, cumulative: Tensor, *others: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    one, two, three, four = (torch.empty_like(cumulative) for _ in range(4))
    return one, two, three, four


class ListedBlock(nn.Module):
    """A SACT block in evaluation mode that computes its units at listed positions.

    Args:
        block: the block.

    Attributes:
        forced: unit counts [N, H, W] to run instead of what the scores say, which are computed all the same; for
            measuring.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.units = nn.ModuleList(block.units)
        self.output = block.output
        self.forced: Tensor | None = None
        self.descriptions = [None, *(_read(unit) for unit in list(block.units)[1:])]
        kernels = {stage.conv.kernel_size[0] for each in self.descriptions if each for stage in each.stages}
        self.kernels = tuple(sorted({*kernels, 3} - {1}))  # scores read 3x3
        self.unit_keys, self.halt_keys = [], []
        for number, description in enumerate(self.descriptions):
            listed = Description() if description is None else description
            listed = Description((), listed.stages, listed.tail, listed.post)
            spec = UnitSpec(listed, self.output == "mean", number < len(block.scores), self.kernels)
            self.unit_keys.append(_remember(spec))
        for head in block.scores:
            assert isinstance(head, PositionScore)
            self.halt_keys.append(_remember(HaltSpec(head, block.eps, float(block.score_shift))))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The block's input [N, C, H, W] to its output, its unit counts and its ponder costs [N, H, W]."""
        x = self.units[0](x)
        count, _, height, width = x.shape
        active = torch.ones_like(x[:, :1])
        rows, mean = _as_rows(x), x.mean((2, 3))
        output = rows
        cumulative, remainder, units = torch.zeros_like(active), active, active
        shape, zeros, images = torch.ops.sact_export.places(active)
        neighbours = [torch.ops.sact_export.neighbours(active, kernel) for kernel in self.kernels]
        around = neighbours[self.kernels.index(3)]
        for number, (unit, description) in enumerate(zip(self.units, self.descriptions, strict=True)):
            if number > 0 and description is None:
                after = unit(_as_picture(rows, count, height, width), active[:, 0] > 0)
                here = _as_rows(after)
                output = output + (remainder * active).flatten()[:, None] * (here - rows)
                rows, mean = here, after.mean((2, 3))
            elif description is not None:
                values = rows
                if description.everywhere:
                    picture = _as_picture(rows, count, height, width)
                    for layer in description.everywhere:
                        picture = on_map(layer, picture)
                    values = _as_rows(picture)
                rows, output, mean = torch.ops.sact_export.unit(
                    rows, values, output, mean, remainder, active, shape, images, neighbours, self.unit_keys[number]
                )
            if number < len(self.halt_keys):
                forced = self.forced
                if forced is not None:
                    forced = torch.where(forced == number + 1, LARGE, -LARGE)[:, None]
                maps = cumulative, remainder, units, active
                cumulative, remainder, units, active = torch.ops.sact_export.halt(
                    rows, mean, *maps, shape, zeros, around, forced, self.halt_keys[number]
                )
        given = _as_picture(output if self.output == "mean" else rows, count, height, width)
        return given, units[:, 0].int(), (units + remainder)[:, 0]


def _read(unit: BaseUnit) -> Description | None:
    """A unit's description with norms folded; None where it is computed everywhere."""
    if not unit.keeps_state:
        return None
    description = unit.description()
    if not description.is_perforable:
        return None
    description = fold(description)
    return description if can_write(description) else None


def _remember(spec: UnitSpec | HaltSpec) -> int:
    SPECS.append(spec)
    return len(SPECS) - 1


def _as_rows(picture: Tensor) -> Tensor:
    return picture.permute(0, 2, 3, 1).flatten(0, 2)


def _as_picture(rows: Tensor, count: int, height: int, width: int) -> Tensor:
    return rows.view(count, height, width, -1).permute(0, 3, 1, 2)

"""A network tile by tile: every layer, unit and score of the whole image before the next one.

The state of a block is one map, which every unit overwrites in place; a unit still reads, around a tile, what was there
before it. Scores need the average over the whole state, hence they are computed when the unit is through.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from .. import halting
from ..block import Block
from ..cap import Allowance
from ..ponder import BlockPonder
from ..scores import ImageScore, PositionScore, ScoreHead, to_score
from ..units import on_map
from .plan import BlockSteps, Plan, Step
from .store import FeatureMap, Store, as_picture
from .windows import Box, Chain, Size, Span, crop


class Source(Protocol):
    """A map that can be read in parts."""

    @property
    def size(self) -> Size: ...
    def read(self, box: Box) -> Tensor: ...


def tiles(size: Size, side: int) -> Iterator[Box]:
    """A map in squares, row by row; smaller ones at its end."""
    for top in range(0, size[0], side):
        for left in range(0, size[1], side):
            yield (top, min(top + side, size[0])), (left, min(left + side, size[1]))


def shrink(box: Box, mask: Tensor) -> Box | None:
    """The least part of a box that holds all positions of a mask [H, W] in it; None: there are none."""
    (top, bottom), (left, right) = box
    inside = mask[top:bottom, left:right]
    rows, columns = _extent(inside.any(1), top), _extent(inside.any(0), left)
    return None if rows is None or columns is None else (rows, columns)


def _extent(mask: Tensor, start: int) -> Span | None:
    found = mask.nonzero()
    return (start + int(found[0]), start + int(found[-1]) + 1) if len(found) else None


class Sweep:
    """Tiles of a map that is overwritten on the way, and still read as it was before.

    Args:
        map: the map.
        side: of a tile, at least `reach`.
        reach: how far around a tile is read.
    """

    def __init__(self, map: FeatureMap, side: int, reach: int) -> None:
        self.map, self.side, self.reach = map, side, reach
        self._before: list[tuple[Box, Tensor]] = []  # parts as they were: above the tile, and left of it

    def __iter__(self) -> Iterator[Box]:
        above: list[tuple[Box, Tensor]] = []
        below: list[tuple[Box, Tensor]] = []
        left: list[tuple[Box, Tensor]] = []
        for rows, columns in tiles(self.map.size, self.side):
            if columns[0] == 0:
                above, left = below, []
                below = self._keep(((max(rows[1] - self.reach, rows[0]), rows[1]), (0, self.map.size[1])))
            right = self._keep((rows, (max(columns[1] - self.reach, columns[0]), columns[1])))
            self._before = above + left
            yield rows, columns
            left = right

    def _keep(self, box: Box) -> list[tuple[Box, Tensor]]:
        return [(box, self.map.part(box).clone())] if self.reach else []

    def read(self, box: Box) -> Tensor:
        """A part as it was before the sweep, [1, C, h, w]; within reach of the present tile."""
        values = self.map.part(box).clone()
        for at, before in self._before:
            rows, columns = _common(box[0], at[0]), _common(box[1], at[1])
            values[_slice(rows, box[0]), _slice(columns, box[1])] = before[_slice(rows, at[0]), _slice(columns, at[1])]
        return as_picture(values)


def _common(one: Span, other: Span) -> Span:
    start = max(one[0], other[0])
    return start, max(start, min(one[1], other[1]))


def _slice(span: Span, at: Span) -> slice:
    return slice(span[0] - at[0], span[1] - at[0])


class TiledRun:
    """One evaluation of a plan.

    Args:
        plan: of the network at the image's size.
        store: holds the maps.
        tile: side of a tile, in pixels.
        like: on whose device, and in whose dtype, tiles are computed.
    """

    def __init__(self, plan: Plan, store: Store, tile: int, like: Tensor) -> None:
        self.plan, self.store = plan, store
        self.tile, self.like = tile, like
        self.stride = 1  # pixels per position
        self.end = 1  # where the present map lies

    def run(self, image: Source, allowance: Allowance | None) -> tuple[Tensor | None, list[BlockPonder]]:
        """Logits [1, classes] (None where the network has none), and what the blocks spent.

        Args:
            image: in parts.
            allowance: what it may still spend, under a cap.
        """
        source: Source = image
        spent: list[BlockPonder] = []
        for stage in self.plan.stages:
            if isinstance(stage, BlockSteps):
                source, ponder = self.block(stage, source, allowance)
                spent.append(ponder)
            else:
                source = self.step(stage, source)
        return self.logits(source), spent

    def side(self, reach: int = 0) -> int:
        """Of a tile, in positions of the present map."""
        return max(self.tile // self.stride, reach, 1)

    def step(self, step: Step, source: Source) -> FeatureMap:
        """The next map, at the other end of the store."""
        self.stride *= step.stride
        self.end = 1 - self.end
        result = self.store.place(self.end, step.out_size, step.channels, self.like.dtype)
        for box in tiles(step.out_size, self.side()):
            needed = step.needs(box)
            result.write(box, step.run(self.to_network(source.read(needed)), needed, box))
            self.store.let_go()
        return result

    def block(self, steps: BlockSteps, source: Source, allowance: Allowance | None) -> tuple[FeatureMap, BlockPonder]:
        """As `Block.forward`, in which nothing changes but that maps are read and written in parts."""
        block, in_size = steps.block, source.size
        state = self.step(steps.units[0], source)
        if block.halting == "none":
            for step in steps.units[1:]:
                self.advance(step, state)
            return state, block.plain_ponder(state.picture, in_size)

        picture = state.picture
        halts = halting.start(picture[:, 0] if block.halting == "sact" else picture[:, 0, 0, 0])
        mean = self.store.place(1 - self.end, state.size, picture.shape[1], halts.remainder.dtype)
        total = self.total(state)
        for index, (step, head) in enumerate(zip(steps.units, [*block.scores, None], strict=True)):
            if index:
                if not bool(halts.active.any()):
                    break
                self.advance(step, state, halts.active[0] if block.halting == "sact" else None, total)
            score = None if head is None else block.decide(self.scores(head, state, total, halts, block), index)
            halts, weight = halting.step(halts, score, block.eps, block.limit(allowance, index, picture))
            if steps.keeps_mean:
                weight = weight.reshape(-1, *(weight.shape[1:] or (1, 1)))[0].expand(state.size)
                self.add(mean, weight, state, is_first=index == 0)
        ponder = block.ponder(halts, in_size, state.size)
        if not steps.keeps_mean:
            return state, ponder
        self.end = 1 - self.end
        return mean, ponder

    def advance(self, step: Step, state: FeatureMap, active: Tensor | None = None, total: Tensor | None = None) -> None:
        """Replace a state by the next one; tiles without an active position are skipped.

        Args:
            step: the unit.
            state: the state, which is overwritten.
            active: where it is to change, bool [H, W]; None: everywhere.
            total: sum of the state over all positions, float64 [C], kept up to date in place.
        """
        sweep = Sweep(state, self.side(step.reach), step.reach)
        for tile in sweep:
            box = tile if active is None else shrink(tile, active)
            if box is None:
                continue
            needed = step.needs(box)
            x = sweep.read(needed)
            result = step.run(self.to_network(x), needed, box).to("cpu")
            before = crop(x, needed, box)
            if active is not None:
                (top, bottom), (left, right) = box
                result = torch.where(active[top:bottom, left:right], result, before)
            state.write(box, result)
            if total is not None:
                total += _sum(result) - _sum(before)
            self.store.let_go()

    def scores(
        self, head: ScoreHead, state: FeatureMap, total: Tensor, halts: halting.HaltingState, block: Block
    ) -> Tensor:
        """A head's scores, [1, H, W] or [1]; zero in tiles without an active position."""
        mean = self.to_network((total / (state.size[0] * state.size[1]))[None, :, None, None])
        term = head.pooled(mean)
        if isinstance(head, ImageScore):
            return to_score(term, block.score_shift).to("cpu")
        assert isinstance(head, PositionScore)
        local = Chain([*head.local()], state.size, state.picture.shape[1])
        result = torch.zeros_like(halts.remainder)
        for tile in tiles(state.size, self.side()):
            box = shrink(tile, halts.active[0])
            if box is None:
                continue
            needed = local.needs(box)
            logit = local.run(self.to_network(state.read(needed)), needed, box)[:, 0] + term[:, None, None]
            (top, bottom), (left, right) = box
            result[:, top:bottom, left:right] = to_score(logit, block.score_shift)
            self.store.let_go()
        return result

    def add(self, mean: FeatureMap, weight: Tensor, state: FeatureMap, is_first: bool) -> None:
        """Add the state, weighted by [H, W], to a map that is empty at first."""
        for tile in tiles(state.size, self.side()):
            box = tile if is_first else shrink(tile, weight != 0)
            if box is None:
                continue
            (top, bottom), (left, right) = box
            weighted = weight[top:bottom, left:right, None] * state.part(box)
            if is_first:
                mean.part(box).copy_(weighted)
            else:
                mean.part(box).add_(weighted)
            self.store.let_go()

    def total(self, state: FeatureMap) -> Tensor:
        """Sum over all positions, float64 [C]."""
        total = torch.zeros(state.picture.shape[1], dtype=torch.float64)
        for tile in tiles(state.size, self.side()):
            total += _sum(as_picture(state.part(tile)))
            self.store.let_go()
        return total

    def logits(self, source: Source) -> Tensor | None:
        """What the layers behind the last map make of it."""
        chain = self.plan.pooled
        if chain is None:
            return None
        total = torch.zeros(chain.channels, dtype=torch.float64)
        height, width = chain.out_size
        for box in tiles(chain.out_size, self.side()):
            needed = chain.needs(box)
            total += _sum(chain.run(self.to_network(source.read(needed)), needed, box).to("cpu"))
            self.store.let_go()
        x = self.to_network((total / (height * width))[None, :, None, None])
        for layer in self.plan.head:
            x = on_map(layer, x) if isinstance(layer, torch.nn.BatchNorm2d) else layer(x)
        return x.flatten(1)

    def to_network(self, x: Tensor) -> Tensor:
        """Where, and as what, the network computes."""
        return x.to(self.like)


def _sum(x: Tensor) -> Tensor:
    """[1, C, h, w] summed over positions, float64 [C]; within a tile in its own precision, at least float32."""
    return x.sum((0, 2, 3), dtype=torch.promote_types(x.dtype, torch.float32)).double()

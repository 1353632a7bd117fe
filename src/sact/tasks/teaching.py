"""Teaching an adapted network where to stop, without labels: the network as it was is the teacher.

The loss is KL(teacher || student) + the relative squared difference of the blocks' outputs + tau * ponder cost; with a
wanted share of the FLOPs tau is moved until the share is met.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..block import Block, RunBlock
from ..cap import Allowance
from ..errors import InputError
from ..models.adapted import AdaptedNetwork
from ..ponder import BlockPonder, Ponder

Learn = Literal["heads", "norms", "all"]
LEARN = ("heads", "norms", "all")

TAU_START = 0.005
TAU_GAIN = 0.3
TAU_RATE = 0.002
"""With a wanted share, tau is `TAU_GAIN` times what the share is above it, plus a part that starts at `TAU_START` and
moves by `TAU_RATE` times that in every step."""


@dataclass(frozen=True)
class Lesson:
    """How to teach.

    Attributes:
        tau: weight of the ponder cost; None: it follows `share`.
        share: wanted mean share of the dense FLOPs, in (0, 1]; with `tau` None.
        learn: what changes: the score heads, also the affine parameters of norms, or everything.
        views: images to learn from, in all.
        batch_size: of a step.
        lr: the largest learning rate (AdamW, one cycle) of the heads; norms a tenth, all else a hundredth.
        features: weight of the agreement of the blocks' outputs.
        seed: of the heads' order of views.
    """

    tau: float | None = None
    share: float | None = None
    learn: Learn = "heads"
    views: int = 4000
    batch_size: int = 16
    lr: float = 0.02
    features: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.tau is None) == (self.share is None):
            raise InputError("give either tau, the weight of the ponder cost, or share, the wanted share of the FLOPs")
        if self.tau is not None and not (math.isfinite(self.tau) and self.tau >= 0):
            raise InputError(f"tau is {self.tau}, but it must be a number of at least 0")
        if self.share is not None and not 0 < self.share <= 1:
            raise InputError(f"share is {self.share}, but it must lie in (0, 1], as a share of the dense FLOPs")
        if self.learn not in LEARN:
            raise InputError(f'learn is "{self.learn}", but it must be one of {", ".join(LEARN)}')
        for name in ("views", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}, but it must be greater than 0")


@dataclass(frozen=True)
class Progress:
    """One step: smoothed values of what is shown while teaching."""

    step: int
    steps: int
    loss: float
    agreement: float
    share: float
    tau: float


def teach(
    model: AdaptedNetwork,
    views: Dataset[Tensor],
    lesson: Lesson,
    report: Callable[[Progress], None] = lambda progress: None,
    teacher: AdaptedNetwork | None = None,
) -> None:
    """Teach a network to stop, in place; it ends in evaluation mode.

    Args:
        model: with halting on. Only what `lesson.learn` names changes.
        views: tensors [C, H, W] as the network expects them.
        lesson: how.
        report: called after each step.
        teacher: the network as it was, adapted alike; its halting counts for nothing. None: this one, as it is now.

    Raises:
        InputError: halting is off, the network is no classifier, or the loss is no longer finite.
    """
    if model.halting == "none":
        raise InputError('halting is "none", so there is nothing to teach; set model.halting = "sact" first')
    model.check_classifies()
    generator = torch.Generator().manual_seed(lesson.seed)
    loader = DataLoader(views, lesson.batch_size, shuffle=True, drop_last=True, generator=generator)
    steps = len(loader)
    if not steps:
        found = len(views)  # type: ignore[arg-type]  # map-style data sets have a length
        raise InputError(f"a batch of {lesson.batch_size} views is wanted, but there are {found}; give more views")
    if teacher is None:
        teacher = model if lesson.learn == "heads" else copy.deepcopy(model)  # which else would learn as well
    groups = _parameters(model, lesson)
    tau, held = (TAU_START, TAU_START) if lesson.tau is None else (lesson.tau, 0.0)
    seen: Progress | None = None
    device = next(model.parameters()).device
    with _learning(model, lesson):
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        rates = [float(group["lr"]) for group in groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.2)
        for step, images in enumerate(_batches(loader), start=1):
            images = images.to(device)
            wanted, wanted_features = _run_plain(teacher, images)
            logits, features, ponder = _student(model, images)
            assert ponder.cost is not None
            agreement = F.kl_div(logits.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)
            close = torch.stack(
                [_difference(own, theirs) for own, theirs in zip(features, wanted_features, strict=True)]
            )
            loss = agreement + lesson.features * close.mean() + tau * ponder.cost.mean()
            if not bool(torch.isfinite(loss)):
                raise InputError(f"the loss is {float(loss)} at step {step}; lower lr ({lesson.lr:g})")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
            optimizer.step()
            schedule.step()
            share = float(ponder.flops.double().mean()) / ponder.dense_flops
            same = float((logits.argmax(1) == wanted.argmax(1)).float().mean())
            seen = _smooth(seen, Progress(step, steps, float(loss.detach()), same, share, tau))
            if lesson.share is not None:
                beyond = seen.share - lesson.share
                held = max(held + TAU_RATE * beyond, 0.0)
                tau = max(held + TAU_GAIN * beyond, 0.0)
            report(seen)
    model.eval()


def _batches(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    yield from loader


def _difference(own: Tensor, theirs: Tensor) -> Tensor:
    """Squared difference, relative to the square of the teacher's."""
    return (own - theirs).square().mean() / theirs.square().mean().clamp(min=1e-12)


@torch.no_grad()
def _run_plain(model: AdaptedNetwork, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and blocks' outputs of the network without halting."""

    def run_block(
        block: Block, x: Tensor, keep_distribution: bool = False, allowance: Allowance | None = None
    ) -> tuple[Tensor, BlockPonder]:
        in_size = x.shape[-2:]
        for unit in block.units:
            x = unit(x)
        return x, block.plain_ponder(x, in_size)

    logits, features, _ = _run(model, images, run_block)
    return logits, features


def _student(model: AdaptedNetwork, images: Tensor) -> tuple[Tensor, list[Tensor], Ponder]:
    return _run(model, images, Block.__call__)


def _run(model: AdaptedNetwork, images: Tensor, run_block: RunBlock) -> tuple[Tensor, list[Tensor], Ponder]:
    """Logits, blocks' outputs, and what they cost."""
    features: list[Tensor] = []

    def run(
        block: Block, x: Tensor, keep_distribution: bool = False, allowance: Allowance | None = None
    ) -> tuple[Tensor, BlockPonder]:
        output, ponder = run_block(block, x, keep_distribution, allowance)
        features.append(output)
        return output, ponder

    logits, ponder = model.run(images, run)
    assert isinstance(logits, Tensor)
    return logits, features, ponder


def _smooth(before: Progress | None, now: Progress) -> Progress:
    if before is None:
        return now
    keep = 0.9

    def mix(name: str) -> float:
        return keep * float(getattr(before, name)) + (1 - keep) * float(getattr(now, name))

    return Progress(now.step, now.steps, mix("loss"), mix("agreement"), mix("share"), now.tau)


def _parameters(model: AdaptedNetwork, lesson: Lesson) -> list[dict[str, Any]]:
    """The optimiser's groups: heads, and what else learns."""
    heads = model.score_parameters()
    groups: list[dict[str, Any]] = [{"params": heads, "lr": lesson.lr}]
    if lesson.learn == "heads":
        return groups
    known = {id(parameter) for parameter in heads}
    own: Iterable[nn.Parameter] = model.parameters()
    if lesson.learn == "norms":
        norms = [module for module in model.modules() if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm))]
        own = (parameter for norm in norms for parameter in norm.parameters(recurse=False))
    rest = list({id(parameter): parameter for parameter in own if id(parameter) not in known}.values())
    return [*groups, {"params": rest, "lr": lesson.lr / (10 if lesson.learn == "norms" else 100)}]


@contextmanager
def _learning(model: AdaptedNetwork, lesson: Lesson) -> Iterator[None]:
    """The network in evaluation mode with heads whose norms learn; only what learns has gradients, meanwhile."""
    wanted = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    learning = {id(p) for group in _parameters(model, lesson) for p in group["params"]}
    model.eval()
    for block in model.blocks:
        for head in block.scores:
            head.train()
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in learning)
    try:
        yield
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(wanted[id(parameter)])
        model.eval()

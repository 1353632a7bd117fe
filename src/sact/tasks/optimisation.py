"""The optimiser and the learning-rate schedule of a recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from ..models.dense import extractor
from ..recipe import Recipe

POLY_POWER = 0.9
"""Of the schedule customary in segmentation (DeepLab)."""


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD or AdamW with weight decay on convolution and matrix weights only, as in the paper."""
    groups = _parameter_groups(model, recipe)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))


def make_schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe, total_steps: int, steps_per_epoch: int
) -> lr_scheduler.LRScheduler:
    """The learning-rate schedule of a recipe, to be stepped after every optimiser step."""
    if recipe.schedule == "one_cycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        rise = max(0.1, 2 / (total_steps + 1))  # at least one step, however short the run
        return lr_scheduler.OneCycleLR(
            optimizer, peaks, total_steps=total_steps + 1, pct_start=rise, cycle_momentum=False
        )
    warm = None
    if recipe.warmup_steps:
        warm = lr_scheduler.LinearLR(optimizer, 1 / (recipe.warmup_steps + 1), total_iters=recipe.warmup_steps)
    main: lr_scheduler.LRScheduler
    if recipe.schedule == "poly":
        main = lr_scheduler.PolynomialLR(optimizer, total_steps, POLY_POWER)
    else:
        factor = 1 if recipe.max_steps is not None else steps_per_epoch
        milestones = [milestone * factor for milestone in recipe.milestones] if recipe.schedule == "step" else []
        main = lr_scheduler.MultiStepLR(optimizer, milestones, recipe.gamma)
    return main if warm is None else lr_scheduler.ChainedScheduler([warm, main])


def _parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    scores = set(extractor(model).score_parameters())
    for parameter in model.parameters():
        groups.setdefault((parameter.dim() > 1, parameter in scores), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": recipe.weight_decay if is_weight else 0.0,
            "lr": recipe.lr * (recipe.score_lr_scale if is_score else 1.0),
        }
        for (is_weight, is_score), parameters in groups.items()
    ]

"""The training loop that the baselines share: a recipe's data, optimiser and schedule, one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sact.layers import BatchNorm2d
from sact.recipe import Recipe
from sact.tasks.classification import collate
from sact.tasks.loops import make_loader
from sact.tasks.optimisation import make_schedule

Loss = Callable[[Tensor, Tensor, float], Tensor]
"""Images [N, 3, S, S], labels int64 [N] and the share of training that is done to the loss, []."""


def fit(
    model: nn.Module,
    loss: Loss,
    recipe: Recipe,
    data: Dataset[Any],
    epochs: int,
    heads: Sequence[nn.Parameter] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a model in place and leave it in evaluation mode.

    Args:
        model: to train.
        loss: of a batch, under the recipe's precision.
        recipe: whose optimisation fields and seed are used; as in the library, weight decay is on convolutions alone.
        data: elements start with (image, label).
        epochs: passes over the data.
        heads: parameters that learn `score_lr_scale` times as fast.
        quiet: print no progress.

    Returns:
        Images seen, seconds taken, and the mean loss of the last 50 steps.
    """
    torch.manual_seed(recipe.seed)
    if recipe.norm_momentum is not None:
        for module in model.modules():
            if isinstance(module, (BatchNorm2d, nn.BatchNorm2d)):
                module.momentum = recipe.norm_momentum
    loader = make_loader(data, recipe.batch_size, 0, collate, shuffle=True)
    steps = epochs * len(loader)
    optimizer = torch.optim.AdamW(groups(model, recipe, heads), lr=recipe.lr, betas=(recipe.momentum, 0.999))
    schedule = make_schedule(optimizer, recipe, steps, len(loader))
    model.train().to(memory_format=torch.channels_last)
    start, step = time.perf_counter(), 0
    recent: list[float] = []
    for _ in range(epochs):
        for images, labels in loader:
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16-mixed"):
                value = loss(images, labels, step / steps)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            schedule.step()
            step += 1
            recent = [*recent[-49:], float(value.detach())]
            if not quiet and step % 50 == 0:
                print(f"step {step} of {steps}: loss {sum(recent) / len(recent):.4f}", flush=True)
    model.eval()
    return {
        "images": step * recipe.batch_size,
        "seconds": time.perf_counter() - start,
        "loss": sum(recent) / max(1, len(recent)),
    }


def groups(model: nn.Module, recipe: Recipe, heads: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """Parameters as the optimiser takes them, as `sact.tasks` groups them."""
    fast = {id(parameter) for parameter in heads}
    found: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        found.setdefault((parameter.dim() == 4, id(parameter) in fast), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": recipe.weight_decay if is_weight else 0.0,
            "lr": recipe.lr * (recipe.score_lr_scale if is_head else 1.0),
        }
        for (is_weight, is_head), parameters in found.items()
    ]

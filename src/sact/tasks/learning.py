"""A model of any task with its loss, metrics and optimiser, as a Lightning module."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..models.dense import extractor
from ..recipe import Recipe
from .optimisation import make_optimizer, make_schedule
from .task import Measures, Step, find_task

SETTLING = 8
"""Steps in which the norms of fresh score heads take statistics, where norms are frozen."""


class Learning(L.LightningModule):
    """The task's loss plus tau times the ponder cost: L' = L + tau sum_k rho_k (section 3.1, equation 10).

    Args:
        model: of the recipe's task, trained in place.
        recipe: loss and optimisation fields are read from it.
        measures: of the model on the validation data.
        total_steps: length of the training run in steps, for the schedule.
        steps_per_epoch: turns milestones in epochs into steps.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, measures: Measures, total_steps: int = 1, steps_per_epoch: int = 1
    ) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.measures = measures
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self._task = find_task(recipe.task)
        # A function, no module, whose parameters would be saved a second time.
        self._train_run = self._task.make_train_run(model, recipe)
        self._fresh = _fresh_norms(model) if recipe.freeze_norms and recipe.init is not None else []

    def on_train_epoch_start(self) -> None:
        """Norms may stay frozen while everything else trains."""
        if self.recipe.freeze_norms:
            for norm in _norms(self._task.pretrained(self.model)):
                norm.eval()

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Fresh score heads on a trained network have nothing to freeze yet: their norms first see a few batches."""
        if self.global_step <= SETTLING:
            for norm in self._fresh:
                norm.train(self.global_step < SETTLING)
                norm.momentum = 1 / (self.global_step + 1)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """The loss of a batch, [] float32.

        Raises:
            RecipeError: it is not finite.
        """
        step = self._task.train_step(self._train_run, batch, self.recipe)
        loss, cost = step.loss, step.ponder.cost
        if cost is not None:
            loss = loss + self.recipe.tau * cost.mean()
        # Lightning writes a row behind every so many steps; the first one is for the progress bar.
        logs = self.global_step == 0 or (self.global_step + 1) % self.recipe.log_every == 0
        if logs or loss.device.type == "cpu":  # elsewhere the host would wait for the device
            self._check(loss)
        if logs:
            self._log_step(loss, step)
        return loss

    def _check(self, loss: Tensor) -> None:
        if not bool(torch.isfinite(loss)):
            recipe = self.recipe
            raise RecipeError(
                f"the loss is {loss.item()} at step {self.global_step}: training has diverged; lower lr (it is "
                f"{recipe.lr:g}), let it rise with warmup_steps (it is {recipe.warmup_steps}), or set gradient_clip"
            )

    def _log_step(self, loss: Tensor, step: Step) -> None:
        ponder = step.ponder
        values = {"loss": loss} | step.values | {"flops_share": ponder.flops.float().mean() / ponder.dense_flops}
        if ponder.cost is not None:
            values["ponder"] = ponder.cost.mean()
        for name, value in values.items():
            self.log(f"train/{name}", value.detach(), prog_bar=not name.startswith("loss"), batch_size=1)

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """Measure a batch."""
        self._task.measure(self.model, batch, self.measures)

    def on_validation_epoch_end(self) -> None:
        """Log what the task names first, ponder cost and units per block."""
        results = self.measures.compute()
        for name, value in self._task.headlines(results).items():
            self.log(f"val/{name}", value, prog_bar=True)
        self.log("val/flops_share", results["share"], prog_bar=True)
        if results["cost"] is not None:
            self.log("val/ponder", results["cost"], prog_bar=True)
        for index, block in enumerate(results["blocks"], start=1):
            for name, value in block["units"].items():
                self.log(f"block{index}/units_{name}", float(value))
            if block["cost"] is not None:
                self.log(f"block{index}/ponder", block["cost"]["mean"])
        self.measures.reset()

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser and schedule."""
        optimizer = make_optimizer(self.model, self.recipe)
        scheduler = make_schedule(optimizer, self.recipe, self.total_steps, self.steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]


def _fresh_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Norms of score heads that have seen nothing."""
    heads = nn.ModuleList(head for block in extractor(model).blocks for head in block.scores)
    return [norm for norm in _norms(heads) if norm.running_mean is not None and not norm.running_mean.any()]

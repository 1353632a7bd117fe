"""Classification: a network with its loss, metrics and optimiser, as a Lightning module."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines import prepare
from ..models import Network
from ..ponder import Ponder
from ..recipe import Recipe
from .evaluation import Measures

Batch = tuple[Tensor, Tensor]


class Classification(L.LightningModule):
    """Cross-entropy plus tau times the ponder cost: L' = L + tau sum_k rho_k (section 3.1, equation 10).

    Args:
        model: the network to train, in place.
        recipe: loss and optimisation fields are read from it.
        total_steps: length of the training run in steps, for the schedule.
        steps_per_epoch: turns milestones in epochs into steps.
    """

    def __init__(self, model: Network, recipe: Recipe, total_steps: int = 1, steps_per_epoch: int = 1) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.measures = Measures(model)
        # No module, whose parameters would be saved a second time.
        self._train_run = prepare(model, "gather", norm_statistics=recipe.norm_statistics)

    def on_train_epoch_start(self) -> None:
        """Norms may stay frozen while everything else trains."""
        if self.recipe.freeze_norms:
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The loss of a batch, [] float32."""
        images, labels = self._prepare(batch[0]), batch[1]
        logits, ponder = self._train_run(images)
        assert isinstance(logits, Tensor)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)
        cost = ponder.cost
        if cost is not None:
            loss = loss + self.recipe.tau * cost.mean()
        if self.global_step % self.recipe.log_every == 0:
            self._log_step(loss, logits, labels, ponder)
        return loss

    def _log_step(self, loss: Tensor, logits: Tensor, labels: Tensor, ponder: Ponder) -> None:
        accuracy = (logits.argmax(1) == labels).float().mean()
        values = {"loss": loss, "acc": accuracy, "flops_share": ponder.flops.float().mean() / ponder.dense_flops}
        if ponder.cost is not None:
            values["ponder"] = ponder.cost.mean()
        for name, value in values.items():
            self.log(f"train/{name}", value.detach(), prog_bar=name != "loss")

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """Update accuracy and ponder statistics."""
        images, labels = self._prepare(batch[0]), batch[1]
        logits, ponder = self.model(images, return_ponder=True)
        self.measures.update(logits, labels, ponder)

    def on_validation_epoch_end(self) -> None:
        """Log accuracy, ponder cost and units per block."""
        results = self.measures.compute()
        self.log("val/acc", results["top1"], prog_bar=True)
        self.log("val/top5", results["top5"])
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
        """SGD or AdamW with weight decay on convolution weights only, as in the paper, and the schedule."""
        recipe = self.recipe
        groups = _parameter_groups(self.model, recipe)
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
        else:
            optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))
        scheduler = make_schedule(optimizer, recipe, self.total_steps, self.steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _prepare(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.recipe.channels_last else images


def make_schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe, total_steps: int, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning-rate schedule of a recipe, to be stepped after every optimiser step."""
    if recipe.schedule == "one_cycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        rise = max(0.1, 2 / (total_steps + 1))  # at least one step, however short the run
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, peaks, total_steps=total_steps + 1, pct_start=rise, cycle_momentum=False
        )
    factor = 1 if recipe.max_steps is not None else steps_per_epoch
    milestones = [milestone * factor for milestone in recipe.milestones] if recipe.schedule == "step" else []
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, recipe.gamma)


def _parameter_groups(model: Network, recipe: Recipe) -> list[dict[str, Any]]:
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    scores = set(model.score_parameters())
    for parameter in model.parameters():
        groups.setdefault((parameter.dim() == 4, parameter in scores), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": recipe.weight_decay if is_weight else 0.0,
            "lr": recipe.lr * (recipe.score_lr_scale if is_score else 1.0),
        }
        for (is_weight, is_score), parameters in groups.items()
    ]

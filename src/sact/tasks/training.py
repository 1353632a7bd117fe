"""Train a recipe, on Lightning."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from ..checkpoints import save_pretrained
from ..data import create_dataset
from ..data.materialised import Materialised
from ..errors import CheckpointError, RecipeError
from ..files import make_folder, write_json, write_text
from ..models import AdaptiveNetwork
from ..models.dense import DenseModel
from ..recipe import ClassificationRecipe, Recipe, dump_recipe, load_recipe
from .evaluation import evaluate
from .learning import Learning
from .loops import calm, interruptible, make_loader, make_trainer
from .pictures import PonderPictures
from .task import find_task

# TensorBoard would import all of TensorFlow, where that is installed, merely to write event files; this is its own
# switch.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))

RECIPE_NAME = "recipe.yaml"
MODEL_FOLDER = "model"
RESULTS_NAME = "results.json"
RESUME_NAME = "last.ckpt"
VALIDATIONS = 20
"""Most validations in a run, unless the recipe says otherwise."""


def train(recipe: Recipe, folder: str | Path, resume: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Train a model of any task and evaluate it on the validation split.

    The folder receives `recipe.yaml` (resolved), `last.ckpt` after every epoch, TensorBoard and CSV logs,
    `ponder/epoch_*.png` (adaptive networks), and at the end `model/` (see `sact.from_pretrained`) and `results.json`.

    Args:
        recipe: what to train.
        folder: of the run; created.
        resume: continue from `last.ckpt` if the folder has one, and return at once if the run is finished.
        quiet: no progress bar.

    Returns:
        The results on the validation split, see `evaluate`.

    Raises:
        RecipeError: the folder holds another run, or the recipe does not fit its data or this machine.
        CheckpointError: `init` names no checkpoint that fits, or the checkpoint to resume from is damaged.
        InputError: the folder cannot be written, the data cannot be had, or validation data has other classes.
    """
    folder = Path(folder)
    _check_folder(folder, recipe, resume)
    checkpoint = folder / RESUME_NAME
    resumes = resume and checkpoint.is_file()
    if resumes and (folder / RESULTS_NAME).is_file():
        return dict(json.loads((folder / RESULTS_NAME).read_text()))
    training, validation = training_data(recipe), validation_data(recipe)
    L.seed_everything(recipe.seed, verbose=False)
    model = make_model(recipe, training)
    task = find_task(recipe.task)
    task.check_data(model, validation)
    steps_done = 0
    if resumes:
        steps_done = _check_checkpoint(checkpoint, model)
        # What follows must not see the first epochs' order and reflections again.
        L.seed_everything(recipe.seed + steps_done, verbose=False)
    batch_size, workers = recipe.batch_size, recipe.workers
    batches = len(training) // batch_size
    if batches == 0:
        raise RecipeError(f"batch_size is {batch_size}, but there are only {len(training)} training images")
    epochs = recipe.max_epochs or math.ceil((recipe.max_steps or 1) / batches)
    eval_batch = task.EVAL_BATCH or batch_size
    with calm(), interruptible():
        trainer = _make_trainer(recipe, folder, epochs, steps_done, validation, quiet)
        if trainer.is_global_zero:
            write_text(folder / RECIPE_NAME, dump_recipe(recipe))
        steps_per_epoch = math.ceil(len(training) / trainer.world_size) // batch_size
        total_steps = recipe.max_steps or epochs * steps_per_epoch
        learning = Learning(model, recipe, task.make_measures(model, validation), total_steps, steps_per_epoch)
        seed, processes = recipe.seed + steps_done, trainer.world_size
        loader = make_loader(training, batch_size, workers, task.collate, True, seed, processes)
        val_loader = make_loader(validation, eval_batch, workers, task.collate)
        trainer.fit(learning, loader, val_loader, ckpt_path=str(checkpoint) if resumes else None, weights_only=True)
    model.eval()
    results = evaluate(model, validation, eval_batch, recipe.precision, recipe.accelerator, quiet=quiet)
    if trainer.is_global_zero:
        ids = getattr(training, "category_ids", None)
        facts: dict[str, Any] = {} if ids is None else {"category_ids": list(ids)}
        save_pretrained(model, folder / MODEL_FOLDER, recipe=recipe.model_dump(), results=results, **facts)
        write_json(folder / RESULTS_NAME, results)
    return results


def _make_trainer(
    recipe: Recipe, folder: Path, epochs: int, steps_done: int, validation: Any, quiet: bool
) -> L.Trainer:
    """The trainer of a run, which logs, keeps a checkpoint, and draws."""
    callbacks: list[L.Callback] = [
        ModelCheckpoint(
            folder,
            filename="last",
            save_top_k=1,
            monitor=None,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
    ]
    if recipe.halting != "none":
        callbacks.append(PonderPictures(folder / "ponder", validation))
    if not quiet:
        callbacks.append(ProgressBar(refresh_rate=10))
    return make_trainer(
        recipe.accelerator,
        recipe.devices,
        recipe.precision,
        max_epochs=recipe.max_epochs if recipe.max_steps is None else -1,
        max_steps=recipe.max_steps or -1,
        check_val_every_n_epoch=recipe.val_every or math.ceil(epochs / VALIDATIONS),
        gradient_clip_val=recipe.gradient_clip,
        logger=[_csv_logger(folder, steps_done), TensorBoardLogger(folder, "", "tensorboard")],
        callbacks=callbacks,
        enable_progress_bar=not quiet,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=recipe.log_every,
    )


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar without the logger's version number."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        metrics: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        metrics.pop("v_num", None)
        return metrics


def training_data(recipe: Recipe) -> Any:
    """The recipe's training set, drawn to disk if it says so."""
    arguments = _data_arguments(recipe, recipe.train_length)
    source = create_dataset(recipe.data, "train", seed=recipe.seed, train=True, **arguments)
    if not (isinstance(recipe, ClassificationRecipe) and recipe.cache):
        return source
    return Materialised(source, {"data": recipe.data, "seed": recipe.seed} | arguments)


def validation_data(recipe: Recipe, split: str = "val") -> Any:
    """The recipe's validation set (or another held-out split)."""
    return create_dataset(recipe.data, split, seed=recipe.seed, **_data_arguments(recipe, recipe.val_length))


def _data_arguments(recipe: Recipe, length: int | None) -> dict[str, Any]:
    size = getattr(recipe, "image_size", None)
    return {"size": size, "data_dir": recipe.data_dir, "length": length} | recipe.data_options


def make_model(recipe: Recipe, dataset: Any) -> AdaptiveNetwork | DenseModel:
    """The recipe's model, started from `init` if given, ready for its data, in training mode.

    Raises:
        RecipeError: `init` is another model, or there are fewer classes than in the data.
        CheckpointError: nothing usable is at `init`.
    """
    model = find_task(recipe.task).make_model(recipe, dataset).train()
    if recipe.norm_momentum is not None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = recipe.norm_momentum
    return model.to(memory_format=torch.channels_last) if recipe.channels_last else model


def _check_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Make the folder, unless it is there; raise if it holds a run that this one may not touch."""
    if not _is_first_process():  # the first one has done this for all
        return
    saved = folder / RECIPE_NAME
    if not saved.is_file():
        make_folder(folder)
    elif not resume:
        raise RecipeError(f"{folder} already holds a run; continue it with --resume, or name another folder")
    else:
        theirs, ours = load_recipe(saved).model_dump(), recipe.model_dump()
        for name in ours:
            if theirs[name] != ours[name]:
                raise RecipeError(
                    f"{folder} holds a run of another recipe: its {name} is {theirs[name]}, not {ours[name]}; "
                    "name another folder"
                )


def _check_checkpoint(path: Path, model: nn.Module) -> int:
    """The steps that a checkpoint of this model has behind it. Nothing in it is executed."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        steps, tensors = int(saved["global_step"]), saved["state_dict"]
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
    except Exception as error:  # a damaged file can fail in any way; none of it is ours
        raise CheckpointError(
            f"{path} cannot be resumed from, it is damaged or no checkpoint of a run ({type(error).__name__}); "
            "delete the folder and train again"
        ) from error
    for name, tensor in model.state_dict().items():
        if shapes.get(f"model.{name}") != tensor.shape:
            raise CheckpointError(f"{path} is a checkpoint of another network: {name} is missing or of another shape")
    return steps


def _csv_logger(folder: Path, steps_done: int) -> CSVLogger:
    """A logger to `csv/metrics.csv` that goes on behind the given step, where Lightning's would start anew."""
    logger = CSVLogger(folder, "", "csv")
    path = folder / "csv" / "metrics.csv"
    if steps_done == 0 or not path.is_file() or not _is_first_process():
        return logger
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) < steps_done]
    experiment = logger.experiment  # empties the folder
    if rows:
        experiment.metrics_keys = list(rows[0])
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, experiment.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)
    return logger


def _is_first_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0

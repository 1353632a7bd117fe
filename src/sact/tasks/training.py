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

from ..checkpoints import from_pretrained, save_pretrained
from ..data import create_dataset
from ..data.materialised import Materialised
from ..errors import CheckpointError, RecipeError
from ..files import make_folder, write_json, write_text
from ..models import Network, create_model
from ..recipe import Recipe, dump_recipe, load_recipe
from .classification import Classification
from .evaluation import evaluate
from .loops import calm, interruptible, make_loader, make_trainer
from .pictures import PonderPictures

# TensorBoard would import all of TensorFlow, where that is installed, merely to write event files; this is its own
# switch.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))

RECIPE_NAME = "recipe.yaml"
MODEL_FOLDER = "model"
RESULTS_NAME = "results.json"
RESUME_NAME = "last.ckpt"


def train(recipe: Recipe, folder: str | Path, resume: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Train a network and evaluate it on the validation split.

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
        InputError: the folder cannot be written, or the data cannot be had.
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
    steps_done = 0
    if resumes:
        steps_done = _check_checkpoint(checkpoint, model)
        # What follows must not see the first epochs' order and reflections again.
        L.seed_everything(recipe.seed + steps_done, verbose=False)
    train_loader = make_loader(training, recipe.batch_size, recipe.workers, shuffle=True)
    if len(train_loader) == 0:
        raise RecipeError(f"batch_size is {recipe.batch_size}, but there are only {len(training)} training images")
    epochs = recipe.max_epochs or math.ceil((recipe.max_steps or 1) / len(train_loader))
    checkpoints = ModelCheckpoint(
        folder, filename="last", save_top_k=1, monitor=None, save_on_train_epoch_end=True, enable_version_counter=False
    )
    callbacks: list[L.Callback] = [checkpoints]
    if recipe.halting != "none":
        callbacks.append(PonderPictures(folder / "ponder", validation))
    if not quiet:
        callbacks.append(ProgressBar(refresh_rate=10))
    with calm(), interruptible():
        trainer = make_trainer(
            recipe.accelerator,
            recipe.devices,
            recipe.precision,
            max_epochs=recipe.max_epochs if recipe.max_steps is None else -1,
            max_steps=recipe.max_steps or -1,
            check_val_every_n_epoch=math.ceil(epochs / 20),
            logger=[_csv_logger(folder, steps_done), TensorBoardLogger(folder, "", "tensorboard")],
            callbacks=callbacks,
            enable_progress_bar=not quiet,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=recipe.log_every,
        )
        if trainer.is_global_zero:
            write_text(folder / RECIPE_NAME, dump_recipe(recipe))
        steps_per_epoch = math.ceil(len(training) / trainer.world_size) // recipe.batch_size
        total_steps = recipe.max_steps or epochs * steps_per_epoch
        task = Classification(model, recipe, total_steps, steps_per_epoch)
        resume_from = str(checkpoint) if resumes else None
        val_loader = make_loader(validation, recipe.batch_size, recipe.workers)
        trainer.fit(task, train_loader, val_loader, ckpt_path=resume_from, weights_only=True)
    model.eval()
    results = evaluate(
        model,
        validation,
        batch_size=recipe.batch_size,
        precision=recipe.precision,
        accelerator=recipe.accelerator,
        quiet=quiet,
    )
    if trainer.is_global_zero:
        save_pretrained(model, folder / MODEL_FOLDER, recipe=recipe.model_dump(), results=results)
        write_json(folder / RESULTS_NAME, results)
    return results


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar without the logger's version number."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        metrics: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        metrics.pop("v_num", None)
        return metrics


def training_data(recipe: Recipe) -> Any:
    """The recipe's training set, drawn to disk if it says so."""
    options = dict(recipe.data_options)
    arguments: dict[str, Any] = {"size": recipe.image_size, "data_dir": recipe.data_dir, "length": recipe.train_length}
    source = create_dataset(recipe.data, "train", seed=recipe.seed, train=True, **arguments, **options)
    if not recipe.cache:
        return source
    return Materialised(source, {"data": recipe.data, "seed": recipe.seed} | arguments | options)


def validation_data(recipe: Recipe, split: str = "val") -> Any:
    """The recipe's validation set (or another held-out split)."""
    return create_dataset(
        recipe.data,
        split,
        size=recipe.image_size,
        data_dir=recipe.data_dir,
        length=recipe.val_length,
        seed=recipe.seed,
        **recipe.data_options,
    )


def make_model(recipe: Recipe, dataset: Any) -> Network:
    """The recipe's network, started from `init` if given, ready for its data.

    Raises:
        RecipeError: `init` is a network of other units, width or classes, or there are fewer classes than in the data.
    """
    classes = recipe.num_classes or dataset.num_classes
    if classes < dataset.num_classes:
        raise RecipeError(f"num_classes is {classes}, but {recipe.data} has {dataset.num_classes}; leave it out")
    model = create_model(
        recipe.model,
        recipe.halting,
        num_classes=classes,
        eps=recipe.eps,
        units=recipe.units,
        base_channels=recipe.base_channels,
    )
    if recipe.init is not None:
        started = from_pretrained(recipe.init, halting=recipe.halting, eps=recipe.eps)
        if not isinstance(started, Network):
            raise RecipeError(f"init is {recipe.init}, an adapted network; sact adapt teaches those")
        theirs, ours = started.config.to_dict(), model.config.to_dict()
        for name in theirs:
            if theirs[name] != ours[name]:
                raise RecipeError(
                    f"init is {recipe.init}, whose {name} is {theirs[name]}, but the recipe's is {ours[name]}"
                )
        model = started
    model.train()
    model.preprocessing = dict(dataset.preprocessing)
    model.class_names = [*dataset.class_names, *map(str, range(dataset.num_classes, classes))]
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


def _check_checkpoint(path: Path, model: Network) -> int:
    """The steps that a checkpoint of this network has behind it. Nothing in it is executed."""
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

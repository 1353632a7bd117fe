"""Train a recipe, evaluate a network: the loops, on Lightning."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from ..checkpoints import from_pretrained, save_pretrained
from ..compiled import CompiledNetwork
from ..data import create_dataset
from ..data.materialised import Materialised
from ..errors import CheckpointError, InputError, RecipeError
from ..files import make_folder, write_json, write_text
from ..models import Network, create_model
from ..recipe import Recipe, dump_recipe, load_recipe, make_recipe
from .classification import Classification
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
        The results on the validation split, see `Classification.results`.

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
    train_loader = _loader(training, recipe, shuffle=True)
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
    with _calm(), _interruptible():
        trainer = _make_trainer(
            recipe,
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
        trainer.fit(task, train_loader, _loader(validation, recipe), ckpt_path=resume_from, weights_only=True)
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


def evaluate(
    model: Network | CompiledNetwork,
    dataset: Dataset[Any],
    batch_size: int = 100,
    precision: str = "32-true",
    accelerator: str = "auto",
    workers: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Accuracy and cost of a network over a data set.

    Args:
        model: a `Network`, or what `sact.compile` made of one.
        dataset: elements start with (image, label).
        batch_size: images at a time.
        precision: "32-true", "bf16-mixed", "16-mixed" or "64-true".
        accelerator: as in Lightning.
        workers: processes that load data.
        quiet: no progress bar.

    Returns:
        `top1`, `top5`, and the fields of `PonderStatistics.compute`.

    Raises:
        InputError: the data set has more classes than the network, or is empty.
        RecipeError: `batch_size`, `precision`, `accelerator` or `workers` is impossible.
    """
    network = model.model if isinstance(model, CompiledNetwork) else model
    if network.config.features_only:
        raise InputError("this network returns features, not classes; create it with features_only=False")
    classes = getattr(dataset, "num_classes", None)
    if not len(dataset):  # type: ignore[arg-type]  # map-style data sets have a length
        raise InputError("the data set is empty; there is nothing to evaluate")
    if classes is not None and classes > network.config.num_classes:
        raise InputError(
            f"the data set has {classes} classes, but the network knows {network.config.num_classes}; "
            "evaluate it on the data it was trained for"
        )
    machine = {"accelerator": accelerator, "devices": 1, "precision": precision, "workers": workers}
    fields = {"model": "resnet50", "data": "scenes", "max_steps": 1, "batch_size": batch_size}
    recipe = make_recipe(fields | machine, "evaluate")
    task = Classification(network, recipe)
    task.model = model  # type: ignore[assignment]  # same call, perhaps another engine
    task.eval()
    with _calm(), _interruptible():
        trainer = _make_trainer(
            recipe,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=not quiet,
        )
        trainer.test(task, _loader(dataset, recipe), verbose=False)
    return task.results()


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


def _make_trainer(recipe: Recipe, **options: Any) -> L.Trainer:
    """A trainer on the recipe's machine.

    Raises:
        RecipeError: this machine is another.
    """
    try:
        return L.Trainer(accelerator=recipe.accelerator, devices=recipe.devices, precision=recipe.precision, **options)
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise RecipeError(
            f"accelerator {recipe.accelerator} with devices {recipe.devices} and precision {recipe.precision} "
            f"cannot be had here: {' '.join(str(error).split())}"
        ) from error


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


def _loader(dataset: Dataset[Any], recipe: Recipe, shuffle: bool = False) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        recipe.batch_size,
        shuffle=shuffle,
        drop_last=shuffle,
        num_workers=recipe.workers,
        persistent_workers=recipe.workers > 0,
        collate_fn=_image_and_label,
    )


def _image_and_label(items: list[tuple[Any, ...]]) -> Any:
    """Batches hold images and labels alone; scenes also carry a mask, which training does not read."""
    return default_collate([item[:2] for item in items])


@contextmanager
def _calm() -> Iterator[None]:
    """Keep Lightning's advice about workers, devices and logging out of the terminal; errors still show."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tips = os.environ.get("LIGHTNING_DISABLE_TIPS")
    os.environ["LIGHTNING_DISABLE_TIPS"] = "1"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
        try:
            yield
        finally:
            logger.setLevel(level)
            if tips is None:
                del os.environ["LIGHTNING_DISABLE_TIPS"]


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lightning answers Ctrl-C by ignoring it from then on and leaving Python; make it an exception again."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None

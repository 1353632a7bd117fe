"""Train a recipe, evaluate a network: the loops, on Lightning."""

from __future__ import annotations

import json
import logging
import math
import os
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
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from ..checkpoints import from_pretrained, save_pretrained
from ..data import create_dataset
from ..data.materialised import Materialised
from ..engines import CompiledNetwork
from ..errors import InputError, RecipeError
from ..files import write_json, write_text
from ..models import Network, create_model
from ..recipe import Recipe, dump_recipe
from .classification import Classification
from .pictures import PonderPictures

# TensorBoard would import all of TensorFlow, where that is installed, merely to write event files; this is its own switch.
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
        RecipeError: the folder holds another run, or the recipe does not fit its data.
        CheckpointError: `init` names no checkpoint that fits.
    """
    folder = Path(folder)
    checkpoint = _claim(folder, recipe, resume)
    if checkpoint is not None and (folder / RESULTS_NAME).is_file():
        return dict(json.loads((folder / RESULTS_NAME).read_text()))
    L.seed_everything(recipe.seed, verbose=False)
    training, validation = training_data(recipe), validation_data(recipe)
    model = make_model(recipe, training)
    train_loader = _loader(training, recipe, shuffle=True)
    steps_per_epoch = len(train_loader)
    total_steps = recipe.max_steps or (recipe.max_epochs or 1) * steps_per_epoch
    if steps_per_epoch == 0:
        raise RecipeError(f"batch_size is {recipe.batch_size}, but there are only {len(training)} training images")
    task = Classification(model, recipe, total_steps, steps_per_epoch)
    checkpoints = ModelCheckpoint(
        folder, filename="last", save_top_k=1, monitor=None, save_on_train_epoch_end=True, enable_version_counter=False
    )
    callbacks: list[L.Callback] = [checkpoints]
    if recipe.halting != "none":
        callbacks.append(PonderPictures(folder / "ponder", validation))
    if not quiet:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    with _calm():
        trainer = L.Trainer(
            accelerator=recipe.accelerator,
            devices=recipe.devices,
            precision=recipe.precision,
            max_epochs=recipe.max_epochs if recipe.max_steps is None else -1,
            max_steps=recipe.max_steps or -1,
            check_val_every_n_epoch=max(1, math.ceil(total_steps / steps_per_epoch / 20)),
            logger=[CSVLogger(folder, "", "csv"), TensorBoardLogger(folder, "", "tensorboard")],
            callbacks=callbacks,
            enable_progress_bar=not quiet,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=recipe.log_every,
        )
        trainer.fit(task, train_loader, _loader(validation, recipe), ckpt_path=checkpoint, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    model.eval()
    results = evaluate(model, validation, batch_size=recipe.batch_size, precision=recipe.precision, quiet=quiet)
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
    """
    network = model.model if isinstance(model, CompiledNetwork) else model
    classes = getattr(dataset, "num_classes", None)
    if not len(dataset):  # type: ignore[arg-type]  # map-style data sets have a length
        raise InputError("the data set is empty; there is nothing to evaluate")
    if classes is not None and classes > network.config.num_classes:
        raise InputError(
            f"the data set has {classes} classes, but the network knows {network.config.num_classes}; "
            "evaluate it on the data it was trained for"
        )
    recipe = Recipe(model="resnet50", data="scenes", max_steps=1, batch_size=batch_size, workers=workers)
    task = Classification(network, recipe)
    task.model = model  # type: ignore[assignment]  # same call, perhaps another engine
    task.eval()
    with _calm():
        trainer = L.Trainer(
            accelerator=accelerator,
            devices=1,
            precision=precision,  # type: ignore[arg-type]  # checked by Lightning
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=not quiet,
        )
        trainer.test(task, _loader(dataset, recipe), verbose=False)
    return task.results()


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
        RecipeError: `init` is a network of other units, width or classes.
    """
    classes = recipe.num_classes or dataset.num_classes
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
        if started.config != model.config:
            raise RecipeError(f"init is {recipe.init}, a {started.config}, but the recipe describes a {model.config}")
        model = started
    model.train()
    model.preprocessing = dict(dataset.preprocessing)
    model.class_names = list(dataset.class_names)
    if recipe.norm_momentum is not None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = recipe.norm_momentum
    return model.to(memory_format=torch.channels_last) if recipe.channels_last else model


def _claim(folder: Path, recipe: Recipe, resume: bool) -> str | None:
    """Make the folder this recipe's; the checkpoint to resume from, if there is one."""
    saved = folder / RECIPE_NAME
    text = dump_recipe(recipe)
    checkpoint = folder / RESUME_NAME
    if saved.is_file():
        if not resume:
            raise RecipeError(f"{folder} already holds a run; continue it with --resume, or name another folder")
        if saved.read_text(encoding="utf-8") != text:
            raise RecipeError(f"{folder} holds a run of another recipe (see {saved}); name another folder")
    else:
        write_text(saved, text)
    return str(checkpoint) if checkpoint.is_file() else None


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

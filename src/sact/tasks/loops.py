"""What training and evaluation share: the trainer, batches, and Lightning's manners."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset

from ..errors import RecipeError


def make_trainer(accelerator: str, devices: int | str, precision: Any, **options: Any) -> L.Trainer:
    """A trainer on a machine as it is described.

    Raises:
        RecipeError: this machine is another.
    """
    try:
        return L.Trainer(accelerator=accelerator, devices=devices, precision=precision, **options)
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise RecipeError(
            f"accelerator {accelerator} with devices {devices} and precision {precision} "
            f"cannot be had here: {' '.join(str(error).split())}"
        ) from error


def make_loader(
    dataset: Dataset[Any],
    batch_size: int,
    workers: int,
    collate: Callable[[list[Any]], Any],
    shuffle: bool = False,
) -> DataLoader[Any]:
    """Batches as `collate` makes them of elements; shuffled ones leave out an incomplete last batch."""
    return DataLoader(
        dataset,
        batch_size,
        shuffle=shuffle,
        drop_last=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
    )


@contextmanager
def calm() -> Iterator[None]:
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
            else:
                os.environ["LIGHTNING_DISABLE_TIPS"] = tips


@contextmanager
def interruptible() -> Iterator[None]:
    """Lightning answers Ctrl-C by ignoring it from then on and leaving Python; make it an exception again."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None

"""What training and evaluation share: the trainer, batches, and Lightning's manners."""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import RecipeError

BINS_PER_OCTAVE = 3
"""How finely aspect ratios are told apart, as in torchvision's reference training."""


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
    seed: int = 0,
    processes: int = 1,
) -> DataLoader[Any]:
    """Batches as `collate` makes them of elements; shuffled ones leave out an incomplete last batch.

    Shuffled images of different sizes, where the data set says them, come in batches of like shape; `seed` is of their
    order. Of so many processes each takes every so manyth image.
    """
    sizes = getattr(dataset, "sizes", None) if shuffle else None
    sampler = None if sizes is None else LikeShapes(sizes, batch_size * processes, seed)
    return DataLoader(
        dataset,
        batch_size,
        shuffle=shuffle and sampler is None,
        sampler=sampler,
        drop_last=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
    )


class LikeShapes(Sampler[int]):
    """A random order in which images of like aspect ratio follow each other, so that batches are padded little.

    Each pass has another order, and every process that counts passes from the start has the same.

    Args:
        sizes: width and height of every image.
        batch_size: images of like shape that stand together, of all processes; what is left over stands at the end.
        seed: of the order.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], batch_size: int, seed: int) -> None:
        self.shapes = [round(BINS_PER_OCTAVE * math.log2(width / height)) for width, height in sizes]
        self.batch_size = batch_size
        self.seed = seed
        self.passes = 0

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.passes)
        self.passes += 1
        waiting: dict[int, list[int]] = {}
        batches: list[list[int]] = []
        for index in torch.randperm(len(self.shapes), generator=generator).tolist():
            alike = waiting.setdefault(self.shapes[index], [])
            alike.append(index)
            if len(alike) == self.batch_size:
                batches.append(waiting.pop(self.shapes[index]))
        yield from itertools.chain(*batches, *waiting.values())


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

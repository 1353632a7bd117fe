"""Ponder-map pictures while training: the same validation images after every validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from ..maps import save_png
from .task import task_of


class PonderPictures(L.Callback):
    """After each validation, write the task's contact sheet of images and ponder maps, as PNG and to TensorBoard.

    Args:
        folder: of the PNG files, `epoch_000.png` and on.
        dataset: of the validation; its first images are shown.
        count: how many.
    """

    def __init__(self, folder: Path, dataset: Any, count: int = 6) -> None:
        self.folder = folder
        self.dataset = dataset
        self.count = count

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the sheet."""
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        model = pl_module.model
        assert isinstance(model, torch.nn.Module)
        with torch.no_grad():
            sheet = task_of(model).draw_sheet(model, self.dataset, self.count)
        save_png(sheet, self.folder / f"epoch_{trainer.current_epoch:03d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(
                    "ponder_maps", np.asarray(sheet), global_step=trainer.global_step, dataformats="HWC"
                )

"""Ponder-map pictures while training: the same validation images after every validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from torch import Tensor

from ..maps import contact_sheet, save_png
from ..preprocessing import to_bytes
from .classification import Classification


class PonderPictures(L.Callback):
    """After each validation, write a contact sheet of images and their ponder maps, as PNG and to TensorBoard.

    Args:
        folder: of the PNG files, `epoch_000.png` and on.
        dataset: its first images are shown; elements start with (image float32 [3, S, S], label).
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
        assert isinstance(pl_module, Classification)
        images = torch.stack([self.dataset[index][0] for index in range(min(self.count, len(self.dataset)))])
        parameter = next(pl_module.model.parameters())
        with torch.no_grad():
            _, ponder = pl_module.model(images.to(parameter.device, parameter.dtype), return_ponder=True)
        maps = ponder.map(tuple(images.shape[-2:])).float().cpu().numpy()
        pictures = [_to_picture(image) for image in images]
        captions = [f"ponder cost {cost.mean():.1f}" for cost in maps]
        sheet = contact_sheet(list(zip(pictures, maps, captions, strict=True)), columns=3)
        save_png(sheet, self.folder / f"epoch_{trainer.current_epoch:03d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(
                    "ponder_maps", np.asarray(sheet), global_step=trainer.global_step, dataformats="HWC"
                )


def _to_picture(image: Tensor) -> NDArray[np.uint8]:
    """Any float image [3, H, W] as uint8 [H, W, 3], stretched to its own range: normalisations differ."""
    low, high = float(image.min()), float(image.max())
    picture: NDArray[np.uint8] = to_bytes((image - low) / max(high - low, 1e-6)).permute(1, 2, 0).numpy()
    return picture

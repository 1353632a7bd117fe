"""Does the ponder map find the object? Area under the ROC curve of the map against the object mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Subset

from ..compiled import CompiledNetwork
from ..errors import InputError
from ..maps import auc
from ..models import AdaptiveNetwork


@torch.inference_mode()
def map_auc(
    model: AdaptiveNetwork | CompiledNetwork, dataset: Any, length: int | None = None, batch_size: int = 100
) -> NDArray[np.float64]:
    """The AUC of each image's ponder map against its mask.

    Args:
        model: an adaptive network, in evaluation mode.
        dataset: elements (image float32 [3, S, S], label, object mask bool [S, S]), as in scenes.
        length: use the first images only.
        batch_size: images at a time.

    Returns:
        [M] in [0, 1], one value per image whose mask is neither empty nor full; 0.5 is chance.

    Raises:
        InputError: the network is plain, or the data set has no masks.
    """
    if len(dataset[0]) < 3:
        raise InputError("the data set has no object masks; use scenes")
    chosen = Subset(dataset, range(min(length or len(dataset), len(dataset))))
    values = []
    for images, _, masks in DataLoader(chosen, batch_size):
        _, ponder = model(images, return_ponder=True)
        maps = ponder.map(tuple(images.shape[-2:])).float().numpy()
        values += [
            auc(map, mask) for map, mask in zip(maps, masks.numpy(), strict=True) if mask.any() and not mask.all()
        ]
    return np.array(values)

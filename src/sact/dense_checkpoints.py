"""Detectors and segmenters on disk: the same files as a network's, told apart by the family in the configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from .errors import CheckpointError, InputError
from .models.dense import DenseModel, extractor, with_network
from .models.detector import build_detector
from .models.detector_config import AdaptedDetectorConfig, DetectorConfig
from .models.registry import check_config
from .models.segmenter import SegmenterConfig, build_segmenter
from .scores import Halting

DENSE_FAMILIES = ("faster_rcnn", "segmenter")


def tensors_of_dense(model: DenseModel) -> dict[str, Tensor]:
    """What is saved: all tensors, by their names in a model that is not compiled.

    Raises:
        CheckpointError: the model is an adapted one, of which it is not known who builds it.
    """
    if isinstance(model.config, AdaptedDetectorConfig):
        raise CheckpointError(
            "an adapted detector cannot be saved by itself; save model.state_dict(), and load it into what "
            "sact.adapt_detector makes of the same detector"
        )
    return dict(with_network(model, extractor(model)).state_dict())


def load_dense(
    fields: dict[str, Any],
    tensors: dict[str, Tensor],
    source: str,
    halting: Halting | None = None,
    eps: float | None = None,
) -> DenseModel:
    """The model that a configuration's part on it describes, with these weights.

    Args:
        fields: what `to_dict` gave.
        tensors: what `tensors_of_dense` gave.
        source: named in errors.
        halting: overrides the saved kind; score heads are fresh, or left out.
        eps: overrides the saved threshold, in (0, 1).

    Raises:
        CheckpointError: fields or tensors are of another model.
        InputError: `halting` or `eps` is out of range.
        MissingExtraError: torchvision is not installed.
    """
    from .checkpoints import load_weights

    kind = DetectorConfig if fields["family"] == "faster_rcnn" else SegmenterConfig
    try:
        saved = kind.from_dict(fields)
    except InputError as error:
        raise CheckpointError(f"the configuration of {source} is not usable: {error}") from error
    chosen = replace(saved.backbone, halting=halting or saved.halting, eps=saved.eps if eps is None else eps)
    check_config(chosen)
    config = replace(saved, backbone=chosen)
    model: DenseModel = build_detector(config) if isinstance(config, DetectorConfig) else build_segmenter(config)
    load_weights(model, tensors, source, fresh_scores=saved.halting != config.halting)
    return model

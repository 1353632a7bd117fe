"""Spatially adaptive computation time: residual networks that decide, position by position, how many units to run."""

import contextlib
import sys
from importlib.metadata import PackageNotFoundError, version

from .adapt import adapt, restore
from .adapt_detector import adapt_detector
from .budget import Calibration
from .calibration import calibrate
from .checkpoints import from_pretrained, list_pretrained, push_to_hub, save_pretrained
from .compiled import compile
from .detecting import Detections, detect
from .errors import CheckpointError, InputError, MissingExtraError, RecipeError, SactError
from .exporting import export
from .models import (
    AdaptedNetwork,
    AdaptiveNetwork,
    Detector,
    Network,
    Segmenter,
    create_detector,
    create_model,
    create_segmenter,
    list_models,
)
from .padded import PaddedPonder
from .ponder import BlockPonder, Ponder
from .predict import Prediction, predict
from .preprocessing import list_preprocessing, preprocess
from .segmenting import Segmentation, segment
from .tf_checkpoints import import_tf_checkpoint
from .tiling import TiledResult, tiled

__all__ = [
    "AdaptedNetwork",
    "AdaptiveNetwork",
    "BlockPonder",
    "Calibration",
    "CheckpointError",
    "Detections",
    "Detector",
    "InputError",
    "MissingExtraError",
    "Network",
    "PaddedPonder",
    "Ponder",
    "Prediction",
    "RecipeError",
    "SactError",
    "Segmentation",
    "Segmenter",
    "TiledResult",
    "adapt",
    "adapt_detector",
    "calibrate",
    "compile",
    "create_detector",
    "create_model",
    "create_segmenter",
    "detect",
    "export",
    "from_pretrained",
    "import_tf_checkpoint",
    "list_models",
    "list_preprocessing",
    "list_pretrained",
    "predict",
    "preprocess",
    "push_to_hub",
    "restore",
    "save_pretrained",
    "segment",
    "tiled",
]

try:
    __version__ = version("sact")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.0.0"

if "timm.models" in sys.modules:  # only then: importing timm takes seconds
    with contextlib.suppress(ImportError):  # of an old timm; `import sact.timm_models` says what it lacks
        from . import timm_models as timm_models

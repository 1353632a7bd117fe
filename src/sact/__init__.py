"""Spatially adaptive computation time: residual networks that decide, position by position, how many units to run."""

from importlib.metadata import PackageNotFoundError, version

from .checkpoints import from_pretrained, list_pretrained, push_to_hub, save_pretrained
from .compiled import compile
from .errors import CheckpointError, InputError, MissingExtraError, RecipeError, SactError
from .models import Network, create_model, list_models
from .ponder import BlockPonder, Ponder
from .predict import Prediction, predict
from .preprocessing import list_preprocessing, preprocess
from .tf_checkpoints import import_tf_checkpoint

__all__ = [
    "BlockPonder",
    "CheckpointError",
    "InputError",
    "MissingExtraError",
    "Network",
    "Ponder",
    "Prediction",
    "RecipeError",
    "SactError",
    "compile",
    "create_model",
    "from_pretrained",
    "import_tf_checkpoint",
    "list_models",
    "list_preprocessing",
    "list_pretrained",
    "predict",
    "preprocess",
    "push_to_hub",
    "save_pretrained",
]

try:
    __version__ = version("sact")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.0.0"

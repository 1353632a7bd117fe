"""Spatially adaptive computation time: residual networks that decide, position by position, how many units to run."""

from .checkpoints import from_pretrained, list_pretrained, push_to_hub
from .engines import compile
from .errors import CheckpointError, InputError, MissingExtraError, RecipeError, SactError
from .models import Network, create_model, list_models
from .ponder import BlockPonder, Ponder
from .tf_checkpoints import import_tf_checkpoint

__all__ = [
    "BlockPonder",
    "CheckpointError",
    "InputError",
    "MissingExtraError",
    "Network",
    "Ponder",
    "RecipeError",
    "SactError",
    "compile",
    "create_model",
    "from_pretrained",
    "import_tf_checkpoint",
    "list_models",
    "list_pretrained",
    "push_to_hub",
]

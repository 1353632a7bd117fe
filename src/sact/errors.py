"""What goes wrong, as exceptions. Each message is one sentence that names the value and the remedy."""

from __future__ import annotations

import importlib
from types import ModuleType


class SactError(Exception):
    """Base of every error that sact raises on purpose; the command line prints it and exits with code 2."""


class InputError(SactError, ValueError):
    """An argument, image or tensor is not usable; the message names the value and the remedy."""


class RecipeError(SactError, ValueError):
    """A recipe has a misspelt, missing or impossible field."""


class CheckpointError(SactError, ValueError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class MissingExtraError(SactError, ImportError):
    """An optional dependency is not installed; the message gives the pip command that installs it."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: dotted module name.
        extra: the extra of this package that provides it.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: the module cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is needed for this and could not be imported ({error}); "
            f"install it with: pip install 'sact[{extra}]'"
        ) from error

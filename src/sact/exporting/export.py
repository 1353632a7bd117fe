"""`sact.export`: a network leaves, as a file that runs without this library."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ..compiled import CompiledNetwork
from ..errors import InputError, require
from ..files import make_folder, replacing
from ..models.adaptive import AdaptiveNetwork
from ..models.dense import check_network
from .check import Agreement, compare, samples
from .forms import Exportable, MaskedBlock
from .specs import remembering

Target = Literal["torch", "onnx"]

SUFFIXES: dict[Target, str] = {"torch": ".pt2", "onnx": ".onnx"}
OTHER_BATCH = 3
OTHER_MARGINS = ((19, 11), (32, 64))
"""Pixels more in height and width for the second comparison; the next ones where the network itself refuses these."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        size: (H, W) that the images must have; None: any.
        batch: images in a batch; None: any number.
        skips: whether it computes at listed positions only.
        outputs: names of what it gives.
        agreement: how far it is from the definition, on random images.
    """

    path: Path
    size: tuple[int, int] | None
    batch: int | None
    skips: bool
    outputs: tuple[str, ...]
    agreement: Agreement


def export(
    model: AdaptiveNetwork | CompiledNetwork,
    path: str | Path,
    to: Target | None = None,
    *,
    dense: bool = False,
    size: int | tuple[int, int] | None = None,
    batch: int | None = None,
) -> Exported:
    """Write a network as a file that runs without this library, and compare it with the definition.

    The file takes "images" [N, C, H, W], prepared as for the network, and gives "logits" [N, classes] ("features_1" and
    so on where the network gives features) and, per block that halts, "units_k" (int32, units evaluated) and "cost_k"
    (ponder cost): [N, H_k, W_k], or [N] under ACT. Its budget is the network's at this moment. The file appears only if
    it gives what the network gives, on random images of two batch sizes and two image sizes where these are free.

    Args:
        model: any network of this library, in evaluation mode, float32; adapted ones too.
        path: the file to write.
        to: "onnx": a graph for ONNX Runtime and others, whose blocks compute at listed active positions only, with
            lists made in the graph (SACT; the masked form for ACT). "torch": a program for `torch.export.load`, of the
            masked form. By default what the suffix of `path` says, .onnx or .pt2.
        dense: no lists in the ONNX graph either: it computes everything and multiplies by masks, for runtimes that want
            shapes which do not depend on values.
        size: fix the images' size, (H, W) or one number for a square; by default it is free.
        batch: fix the number of images; by default it is free.

    Returns:
        What was written.

    Raises:
        InputError: a value is out of range, the model is in training mode, not float32, or has a cap, the folder cannot
            be written, an operator of the network cannot be exported (it is named, with its module), or what was
            exported gives something else than the network.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
    """
    path = Path(path)
    to = _target(path, to)
    network = _checked(model)
    size = _size(size, network)
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise InputError(f"batch is {batch!r}, but it must be a whole number of at least 1, or None for any number")
    if to == "onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            require(module, "export")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the file to write, like {path / ('model' + SUFFIXES[to])}")
    make_folder(path.parent)
    return write(network, path, to, dense, size, batch)


@torch.no_grad()
def write(
    network: AdaptiveNetwork,
    path: Path,
    to: Target,
    dense: bool = False,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
) -> Exported:
    """`export` of checked arguments."""
    skips = to == "onnx" and not dense and network.config.halting == "sact"
    with remembering():
        make_block: type[nn.Module] = MaskedBlock
        if skips:
            from .listed import ListedBlock

            make_block = ListedBlock
        form = Exportable(network, make_block)
        usual = size or usual_size(network)
        example = samples(network, batch or 2, usual)
        with replacing(path) as temporary:
            if to == "onnx":
                from .onnx_file import load, write_onnx

                write_onnx(form, network, example, temporary, size is None, batch is None)
            else:
                from .torch_file import load, write_torch

                write_torch(form, network, example, temporary, size is None, batch is None)
            run, outputs = load(temporary)
            agreement = compare(network, run, _shapes(network, usual, size is None, batch))
    return Exported(path, size, batch, skips, outputs, agreement)


def usual_size(network: AdaptiveNetwork) -> tuple[int, int]:
    """(H, W) of the images that a network was made for."""
    customary = 32 if getattr(network.config, "family", "") == "cifar_resnet" else 224
    side = int((network.preprocessing or {}).get("size", customary))
    return side, side


def _shapes(
    network: AdaptiveNetwork, size: tuple[int, int], free_size: bool, batch: int | None
) -> list[tuple[int, int, int]]:
    """(N, H, W) of the batches of images that are compared."""
    other = size
    for high, wide in OTHER_MARGINS if free_size else ():
        other = size[0] + high, size[1] + wide
        with contextlib.suppress(Exception):  # whatever a network raises that wants, say, multiples of 32
            network(samples(network, 1, other))
            break
    return list(dict.fromkeys([(batch or 1, *size), (batch or OTHER_BATCH, *other)]))


def _target(path: Path, to: str | None) -> Target:
    if to is None:
        for target, suffix in SUFFIXES.items():
            if path.suffix == suffix:
                return target
        raise InputError(f'{path.name} does not end with .onnx or .pt2; say what to write with to="onnx" or "torch"')
    for target in SUFFIXES:
        if to == target:
            return target
    raise InputError(f'to is "{to}", but it must be one of {", ".join(SUFFIXES)}')


def _checked(model: AdaptiveNetwork | CompiledNetwork) -> AdaptiveNetwork:
    check_network(model)
    network = model.model if isinstance(model, CompiledNetwork) else model
    if not isinstance(network, AdaptiveNetwork):
        raise InputError(
            f"sact.export takes a network of this library, got {type(network).__name__}; make it one with sact.adapt"
        )
    training = [name for name, module in network.named_modules() if module.training]
    if training:
        raise InputError(
            f'the model is in training mode (its module "{training[0]}" is), but what leaves is for inference; '
            "call model.eval() first"
        )
    if network.cap is not None:
        raise InputError(
            f"the model has a cap ({network.cap:g}), which cannot be exported; set model.cap = None, and a budget "
            "to spend less on average"
        )
    wrong = next((name for name, value in network.named_parameters() if value.dtype != torch.float32), None)
    if wrong is not None:
        raise InputError(f"the weights ({wrong}) are not float32; call model.float() first")
    if any(block.forced_units is not None for block in network.blocks):
        raise InputError("a block has forced_units, which are for measuring; set them to None first")
    if any(value.device.type != "cpu" for value in network.parameters()):
        network = copy.deepcopy(network).cpu()
    return network


def _size(size: int | tuple[int, int] | None, network: AdaptiveNetwork) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or any(not isinstance(side, int) or side < network.min_size for side in sides):
        raise InputError(
            f"size is {size!r}, but it must be (height, width) or one number, of at least {network.min_size} pixels"
        )
    return sides[0], sides[1]

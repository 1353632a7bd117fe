"""Import of the authors' released TensorFlow checkpoints. Everything is inferred from variable names and shapes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import CheckpointError, require
from .models.network import Network, NetworkConfig
from .models.registry import build
from .scores import Halting

Shapes = dict[str, tuple[int, ...]]

SCOPES = {"resnet": "resnet_v2", "cifar_resnet": "resnet_residual"}
PREPROCESSING: dict[str, dict[str, Any]] = {
    "resnet": {"name": "imagenet_sact", "size": 224},
    "cifar_resnet": {"name": "cifar_sact", "size": 32},
}

_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_CONV = {"weight": "weights", "bias": "biases"}
LEAVES = tuple(f"/{leaf}" for leaf in (*_NORM.values(), *_CONV.values()))
"""How weights are named; optimizer slots and moving averages have a further part behind."""

_SCORE = {"local_norm": "local_bn", "global_norm": "global_bn"}


def import_tf_checkpoint(path: str | Path) -> Network:
    """Read a checkpoint of the authors' code, either family, with or without halting.

    Args:
        path: a checkpoint prefix (".../model.ckpt-123") or the folder that holds it.

    Returns:
        The network in evaluation mode, with its evaluation preprocessing in `.preprocessing`.

    Raises:
        CheckpointError: there is no checkpoint, or a variable is missing or of a wrong shape; it is named.
        MissingExtraError: TensorFlow is not installed (extra `tf`).
    """
    prefix = find_prefix(Path(path))
    # TensorFlow greets at length on import.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    tf = require("tensorflow", "tf")
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    except Exception as error:  # TensorFlow raises its own status errors, RuntimeError and ValueError alike
        raise CheckpointError(f"{prefix} cannot be read as a TensorFlow checkpoint: {error}") from error
    model = build(infer_config(shapes, str(prefix)))
    _check_leftovers(model, shapes, str(prefix))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            source = tf_name(name, model.config.family)
            tensor.copy_(_to_torch(source, shapes, reader, tuple(tensor.shape), str(prefix)))
    model.preprocessing = dict(PREPROCESSING[model.config.family])
    return model.eval()


def _check_leftovers(model: Network, shapes: Shapes, source: str) -> None:
    """Raise if there are weights that the inferred network has no place for: it is not the one that was saved."""
    family = model.config.family
    used = {tf_name(name, family) for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    for name in sorted(shapes):
        if name.startswith(f"{SCOPES[family]}/") and name.endswith(LEAVES) and name not in used:
            raise CheckpointError(f"{source} holds the variable {name}, but lacks others of the same unit or layer")


def find_prefix(path: Path) -> Path:
    """The checkpoint prefix that `path` names: itself, or the newest one in a folder.

    Raises:
        CheckpointError: nothing is there.
    """
    if path.is_dir():
        state = path / "checkpoint"
        named = re.search(r'^model_checkpoint_path: "(.*)"', state.read_text(), re.M) if state.is_file() else None
        if named and (path / f"{Path(named[1]).name}.index").is_file():
            return path / Path(named[1]).name
        found = sorted(path.glob("*.index"), key=_global_step)
        if found:
            return found[-1].with_suffix("")
        raise CheckpointError(f"the folder {path} holds no TensorFlow checkpoint (no *.index file); name its prefix")
    for suffix in (".index", ".meta"):
        if path.name.endswith(suffix):
            path = path.with_suffix("")
    if not Path(f"{path}.index").is_file() and not path.is_file():
        raise CheckpointError(
            f"there is no TensorFlow checkpoint at {path}; name a folder, or a prefix like model.ckpt-123"
        )
    return path


def infer_config(shapes: Shapes, source: str) -> NetworkConfig:
    """What network a set of variables belongs to.

    Raises:
        CheckpointError: it is none of the authors' networks, or a variable that tells is missing.
    """
    families = [family for family, scope in SCOPES.items() if any(name.startswith(f"{scope}/") for name in shapes)]
    if not families:
        raise CheckpointError(
            f"{source} holds no network of the authors: no variable is named resnet_v2/ or resnet_residual/"
        )
    family = families[0]
    scope = SCOPES[family]
    units: dict[int, int] = {}
    for name in shapes:
        found = re.match(rf"{scope}/block_?(\d+)/unit_(\d+)/", name)
        if found:
            units[int(found[1])] = max(units.get(int(found[1]), 0), int(found[2]))
    blocks = range(1, max(units, default=0) + 1)
    missing = [block for block in blocks if block not in units]
    if missing or not units:
        raise CheckpointError(f"{source} has no variables of block {missing[0] if missing else 1}")

    def shape(torch_name: str) -> tuple[int, ...]:
        name = tf_name(torch_name, family)
        if name not in shapes:
            raise CheckpointError(f"{source} lacks the variable {name}")
        if len(shapes[name]) != 4:
            raise CheckpointError(
                f"{source}: variable {name} has shape {list(shapes[name])} instead of [H, W, Cin, Cout]"
            )
        return shapes[name]

    return NetworkConfig(
        family=family,
        units=tuple(units[block] for block in blocks),
        base_channels=shape("blocks.0.units.0.branch.conv1.weight")[-1],
        num_classes=shape("classifier.weight")[-1],
        in_channels=shape("stem.conv.weight")[-2],
        halting=_infer_halting(shapes),
    )


def tf_name(name: str, family: str) -> str:
    """The authors' name of one of our parameters or buffers."""
    return "/".join([SCOPES[family], *_tf_path(name.split("."), family)])


def _tf_path(parts: list[str], family: str) -> Iterator[str]:
    cifar = family == "cifar_resnet"
    *module, leaf = parts
    if module[0] == "blocks":
        yield f"block_{int(module[1]) + 1}" if cifar else f"block{int(module[1]) + 1}"
        yield f"unit_{int(module[3]) + 1}"
        if module[2] == "scores":
            yield "halting_proba"
            yield _SCORE.get(module[4], module[4])
        else:
            yield "residual" if cifar else "bottleneck_v2"
            if module[-1].startswith("norm") and module[4] == "branch":
                yield module[-1].replace("norm", "conv")
                yield "BatchNorm"
            else:
                yield "preact" if module[4] == "preact" else module[-1]
    else:
        top = {"stem": "Conv" if cifar else "conv1", "head": "BatchNorm" if cifar else "postnorm"}
        yield top.get(module[0], "logits")
    yield (_NORM if "norm" in module[-1] else _CONV)[leaf]


def _infer_halting(shapes: Shapes) -> Halting:
    if any("/halting_proba/local_conv/" in name for name in shapes):
        return "sact"
    return "act" if any("/halting_proba/" in name for name in shapes) else "none"


def _to_torch(name: str, shapes: Shapes, reader: Any, wanted: tuple[int, ...], source: str) -> torch.Tensor:
    if name not in shapes:
        raise CheckpointError(f"{source} lacks the variable {name}, which should have shape {list(_hwio(wanted))}")
    if shapes[name] != _hwio(wanted):
        raise CheckpointError(
            f"{source}: variable {name} has shape {list(shapes[name])} instead of {list(_hwio(wanted))}"
        )
    values = np.asarray(reader.get_tensor(name))
    return torch.from_numpy(np.ascontiguousarray(values.transpose(3, 2, 0, 1) if values.ndim == 4 else values))


def _hwio(shape: tuple[int, ...]) -> tuple[int, ...]:
    """TensorFlow's shape of one of our tensors: convolutions are [H, W, Cin, Cout] there."""
    return (shape[2], shape[3], shape[1], shape[0]) if len(shape) == 4 else shape


def _global_step(index: Path) -> tuple[int, str]:
    found = re.search(r"-(\d+)\.index$", index.name)
    return (int(found[1]) if found else -1, index.name)

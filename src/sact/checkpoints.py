"""Weights on disk and on the hub: `model.safetensors` plus `config.json`. Nothing is ever unpickled."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from .adapted_checkpoints import describe_adapted, load_adapted, tensors_of
from .budget import describe_budget, restore_budget
from .card import CARD_NAME, PICTURE_NAME, as_json, is_unedited, model_card
from .dense_checkpoints import DENSE_FAMILIES, load_dense, tensors_of_dense
from .errors import CheckpointError, InputError
from .files import replacing, write_text
from .models.adapted import AdaptedNetwork
from .models.adaptive import AdaptiveNetwork
from .models.dense import DenseModel, check_network, extractor
from .models.network import Network
from .models.registry import build, config_from_dict
from .scores import Halting

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
FORMAT = 1
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
"""Suffixes of files that PyTorch pickles."""


def save_pretrained(
    model: AdaptiveNetwork | DenseModel,
    folder: str | Path,
    picture: Image.Image | None = None,
    half: bool = False,
    **metadata: Any,
) -> None:
    """Write a network, detector or segmenter to a folder, each file whole or not at all.

    The folder receives `config.json`, `model.safetensors`, a model card `README.md` (see `model_card`), unless there is
    one that somebody wrote or edited, and the picture.

    Args:
        model: any network of this library, or a detector or segmenter; compiled ones are saved as they were before.
        folder: created if it does not exist.
        picture: shown in the card and written as `ponder.png`; without one, such a file that is there is shown.
        half: store the weights of layers in float16, which halves the file; norms and biases stay as they are, and all
            is float32 again when it is loaded.
        **metadata: JSON-able facts to keep in the configuration (metrics, the recipe, a licence).

    Raises:
        CheckpointError: the folder cannot be written.
        InputError: the metadata is not JSON-able, or the picture is none.
    """
    folder = Path(folder)
    network = extractor(model)
    config = {
        "format": FORMAT,
        "network": describe_adapted(model) if isinstance(model, AdaptedNetwork) else model.config.to_dict(),
        "preprocessing": None if isinstance(model, DenseModel) else model.preprocessing,
        "class_names": model.class_names,
        "metadata": metadata,
    }
    config |= describe_budget(network)
    if picture is not None and not isinstance(picture, Image.Image):
        raise InputError(f"the picture is {type(picture).__name__}, but it must be a PIL image; see PIL.Image.open")
    text = json.dumps(as_json(config), indent=2) + "\n"
    shown = picture is not None or (folder / PICTURE_NAME).is_file()
    card = model_card(model, metadata, PICTURE_NAME if shown else None)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _held(model).items()}
    if half:
        tensors = {name: _halved(tensor) for name, tensor in tensors.items()}
    try:
        with replacing(folder / WEIGHTS_NAME) as path:
            safetensors.torch.save_file(tensors, path)
        write_text(folder / CONFIG_NAME, text)
        if picture is not None:
            with replacing(folder / PICTURE_NAME) as path:
                picture.save(path, format="PNG")
        if not (folder / CARD_NAME).exists() or is_unedited((folder / CARD_NAME).read_text("utf-8", "replace")):
            write_text(folder / CARD_NAME, card)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"the checkpoint could not be written to {folder}: {error}") from error


def _held(model: AdaptiveNetwork | DenseModel) -> dict[str, Tensor]:
    if isinstance(model, DenseModel):
        return tensors_of_dense(model)
    return tensors_of(model) if isinstance(model, AdaptedNetwork) else dict(model.state_dict())


def _halved(tensor: Tensor) -> Tensor:
    """In float16 where it is the weight of a layer; norms know variances that float16 cannot hold."""
    return tensor.half() if tensor.dtype == torch.float32 and tensor.dim() > 1 else tensor


def from_pretrained(
    source: str | Path, halting: Halting | None = None, eps: float | None = None, features_only: bool | None = None
) -> Any:
    """Load a network, detector or segmenter, in evaluation mode.

    Args:
        source: a folder written by `save_pretrained`, the name of a network that ships with the package (see
            `list_pretrained`), or a Hugging Face hub id "owner/name".
        halting: override the saved kind. A plain network's weights start an adaptive one whose score heads are fresh
            (section 4 of the paper); an adaptive network becomes plain by leaving its heads out.
        eps: override the saved threshold, in (0, 1). Another `eps` or `halting` drops calibration, budget and cap.
        features_only: True makes a classifier a backbone, which returns the blocks' outputs; its head is left out.

    Returns:
        What was saved: an `AdaptiveNetwork`, a `Detector` or a `Segmenter`.

    Raises:
        CheckpointError: nothing is there, the files are damaged or of another network, or `features_only` is False and
            the network was saved without a classifier.
        InputError: `halting` or `eps` is out of range.
        MissingExtraError: a detector or segmenter, and torchvision is not installed.
    """
    folder = _locate(source)
    config = read_config(folder)
    model: AdaptiveNetwork | DenseModel
    family = config["network"].get("family")
    if features_only is not None and family in ("adapted", *DENSE_FAMILIES):
        kind = "an adapted network" if family == "adapted" else "a detector or segmenter"
        raise CheckpointError(f"{source} is {kind}, made as it is; leave out features_only")
    if family in DENSE_FAMILIES:
        model = load_dense(config["network"], read_weights(folder / WEIGHTS_NAME), str(source), halting, eps)
        config = config | {"network": config["network"]["backbone"]}
    elif family == "adapted":
        model = load_adapted(config["network"], read_weights(folder / WEIGHTS_NAME), str(source), halting, eps)
    else:
        model = _load_own(folder, config["network"], str(source), halting, eps, features_only)
    if isinstance(model, AdaptiveNetwork):
        model.preprocessing = config.get("preprocessing")
    model.class_names = config.get("class_names")
    restore_budget(extractor(model), config)
    return model.eval()


def pretrained_network(source: str | Path, halting: Halting | None = None, eps: float | None = None) -> AdaptiveNetwork:
    """As `from_pretrained`, where a network by itself is needed.

    Raises:
        CheckpointError: as `from_pretrained`.
        InputError: it is a detector or segmenter.
    """
    model = from_pretrained(source, halting, eps)
    check_network(model, str(source))
    network: AdaptiveNetwork = model
    return network


def _load_own(
    folder: Path,
    fields: dict[str, Any],
    source: str,
    halting: Halting | None,
    eps: float | None,
    features_only: bool | None,
) -> Network:
    try:
        saved = config_from_dict(fields)
    except InputError as error:
        raise CheckpointError(f"{folder / CONFIG_NAME} is not usable: {error}") from error
    if saved.features_only and features_only is False:
        raise CheckpointError(f"{source} was saved without a classifier; leave out features_only=False")
    model = build(
        replace(
            saved,
            halting=halting or saved.halting,
            eps=saved.eps if eps is None else eps,
            features_only=saved.features_only if features_only is None else features_only,
        )
    )
    tensors = read_weights(folder / WEIGHTS_NAME)
    if model.config.features_only and not saved.features_only:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(("head.", "classifier."))}
    load_weights(model, tensors, source, fresh_scores=saved.halting != model.config.halting)
    return model


def read_metadata(source: str | Path) -> dict[str, Any]:
    """What `save_pretrained` was given to keep beside the weights: results, the recipe, a licence.

    Raises:
        CheckpointError: nothing is there, or its configuration is damaged.
    """
    metadata = read_config(_locate(source)).get("metadata", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(
            f"the metadata of {source} is {metadata!r}, but it must be a dict; save the checkpoint again"
        )
    return metadata


def list_pretrained() -> list[str]:
    """Names of the networks whose weights ship with the package."""
    root = resources.files("sact") / "weights"
    return sorted(entry.name for entry in root.iterdir() if (entry / CONFIG_NAME).is_file()) if root.is_dir() else []


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed `config.json` of a checkpoint folder.

    Raises:
        CheckpointError: it is missing, not JSON, or of another kind.
    """
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); name a folder written by save_pretrained"
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not valid JSON ({error}); the checkpoint is damaged, save it again"
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("network"), dict):
        raise CheckpointError(f"{path} has no description of a sact network; name a folder written by save_pretrained")
    if config.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {config.get('format')}, but this version reads {FORMAT}; update sact")
    return config


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); copy or save it again") from error


def load_weights(model: nn.Module, tensors: dict[str, Tensor], source: str, fresh_scores: bool = False) -> None:
    """Copy tensors into a network, all or nothing.

    Args:
        model: receives the weights.
        tensors: by parameter or buffer name.
        source: named in errors.
        fresh_scores: leave the model's score heads as they are and ignore any in `tensors`.

    Raises:
        CheckpointError: a tensor is missing, unexpected, or of another shape; it is named.
    """
    if fresh_scores:
        tensors = {name: tensor for name, tensor in tensors.items() if ".scores." not in name}
    expected = {name: t for name, t in model.state_dict().items() if not (fresh_scores and ".scores." in name)}
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unexpected" for name in tensors if name not in expected]
    problems += [
        f"{name} has shape {list(tensors[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CheckpointError(
            f"{source} holds the weights of another network: {problems[0]}{more}; "
            "create the model with the units, width and classes that it was saved with"
        )
    model.load_state_dict(tensors, strict=False)


def _locate(source: str | Path) -> Path:
    folder = Path(source)
    _refuse_pickles(folder)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; name the folder with {CONFIG_NAME} and {WEIGHTS_NAME}")
    name = str(source)
    if name in list_pretrained():
        return Path(str(resources.files("sact") / "weights" / name))
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _download(name)
    raise CheckpointError(
        f'there is no checkpoint "{name}": not a folder, not a packaged network '
        f"({', '.join(list_pretrained()) or 'none'}), and not a hub id owner/name; "
        "a run's is there when sact train has ended"
    )


def _refuse_pickles(path: Path) -> None:
    """Raise CheckpointError if a pickle stands where safetensors should."""
    files = [path] if path.is_file() else [] if (path / WEIGHTS_NAME).is_file() else sorted(path.glob("*"))
    pickles = [file for file in files if file.suffix.lower() in PICKLES and file.is_file()]
    if pickles and (path / "model" / CONFIG_NAME).is_file():
        raise CheckpointError(f"{path} is a run of sact train; its network is in {path / 'model'}")
    if pickles:
        raise CheckpointError(
            f"{pickles[0]} is a pickle, which can run code when it is read, so sact reads none; load it with "
            "torch.load(..., weights_only=True), give the tensors to load_state_dict of a network from "
            "sact.create_model, and save that with save_pretrained"
        )


def _download(hub_id: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME]))
    except Exception as error:  # the hub's own, its HTTP library's, the system's
        raise CheckpointError(
            f'"{hub_id}" is neither a folder here nor to be had from the hub ({_reason(error)}); check the name, and '
            "where there is no connection download it before, where there is one"
        ) from error


def push_to_hub(
    source: AdaptiveNetwork | DenseModel | str | Path,
    hub_id: str,
    picture: Image.Image | None = None,
    **metadata: Any,
) -> str:
    """Upload a model to the Hugging Face hub: configuration, weights, card and picture, nothing else.

    Args:
        source: a folder written by `save_pretrained`, or a network, detector or segmenter to save for the purpose.
        hub_id: "owner/name"; made if it does not exist.
        picture: of a network, see `save_pretrained`.
        **metadata: of a network.

    Returns:
        The address.

    Raises:
        CheckpointError: the folder is no checkpoint, or the hub does not take it.
        InputError: `hub_id` is not "owner/name", or a folder was given together with a picture or metadata.
    """
    if hub_id.count("/") != 1 or not all(hub_id.split("/")):
        raise InputError(f'hub id is "{hub_id}", but it must be of the form owner/name')
    if isinstance(source, (AdaptiveNetwork, DenseModel)):
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(source, folder, picture, **metadata)
            return _upload(Path(folder), hub_id)
    if picture is not None or metadata:
        raise InputError(f"{source} has its own metadata and picture; change them with save_pretrained")
    _refuse_pickles(Path(source))
    read_config(Path(source))
    return _upload(Path(source), hub_id)


def _upload(folder: Path, hub_id: str) -> str:
    import huggingface_hub

    shared = [CONFIG_NAME, WEIGHTS_NAME, CARD_NAME, PICTURE_NAME]
    try:
        api = huggingface_hub.HfApi()
        api.create_repo(hub_id, exist_ok=True)
        return str(api.upload_folder(repo_id=hub_id, folder_path=str(folder), allow_patterns=shared))
    except Exception as error:  # the hub's own, its HTTP library's, the system's
        raise CheckpointError(
            f'"{hub_id}" could not be uploaded ({_reason(error)}); check the name and the connection, and log in with '
            "huggingface_hub.login()"
        ) from error


def _reason(error: Exception) -> str:
    from huggingface_hub.utils import RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):  # whose first line is the number of a request
        return "there is no such repository, or it is private"
    return (str(error).strip() or type(error).__name__).splitlines()[0]

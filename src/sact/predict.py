"""Images in, arrays out: a classification with the map of where the work went."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from .compiled import CompiledNetwork
from .errors import InputError
from .files import replacing
from .maps import block_figure, contact_sheet, figure, save_png
from .models import AdaptiveNetwork
from .models.dense import check_network
from .ponder import Ponder
from .preprocessing import IMAGE_SUFFIXES, display_image, is_image, open_image, preprocess

ENDS = ("", "_blocks")
"""What `write_pictures` puts behind the name of an image."""


@dataclass(frozen=True)
class Prediction:
    """What a network says about one image, and what that cost.

    Attributes:
        image: the part that the network saw, at its size, uint8 RGB.
        index: class index.
        name: class name, or the index as text.
        score: softmax probability of the class, in [0, 1].
        scores: softmax probabilities of all classes, float32 [classes].
        flops: the paper's count.
        share: FLOPs relative to the plain network of the same units.
        map: ponder cost map at the image's size, float32 [H, W]; None from a plain network.
        block_maps: each block's ponder cost at its own resolution, float32 [H_k, W_k]; empty from a plain network.
        ponder: everything spent, of this one image.
        seconds: what the network took on the clock, without reading and preparing the image.
    """

    image: Image.Image
    index: int
    name: str
    score: float
    scores: NDArray[np.float32]
    flops: int
    share: float
    map: NDArray[np.float32] | None
    block_maps: list[NDArray[np.float32]]
    ponder: Ponder
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The numbers, JSON-able."""
        numbers = {"class": self.name, "class_index": self.index, "score": self.score}
        cost = {"flops": self.flops, "flops_share": self.share, "milliseconds": 1e3 * self.seconds}
        return numbers | cost | {"blocks": block_numbers(self.ponder)}


def block_numbers(ponder: Ponder) -> list[dict[str, Any]]:
    """What each block spent on the first image, JSON-able."""
    return [
        {
            "units_mean": float(block.units[0].float().mean()),
            "unit_count": block.max_units,
            "ponder_cost": None if block.cost is None else float(block.cost[0].mean()),
            "flops": int(block.flops[0]),
        }
        for block in ponder.blocks
    ]


@torch.inference_mode()
def predict(
    model: AdaptiveNetwork | CompiledNetwork, image: Image.Image | str | Path, keep_distribution: bool = False
) -> Prediction:
    """Classify one image.

    Args:
        model: a network, compiled or not, whose weights know their preprocessing.
        image: a picture or the path of a JPEG, PNG or WebP file.
        keep_distribution: keep the halting distribution in the ponder.

    Raises:
        InputError: the image cannot be read, or the network has no preprocessing, has no classifier, or is in training
            mode.
    """
    check_network(model)
    network = model.model if isinstance(model, CompiledNetwork) else model
    if not isinstance(network, AdaptiveNetwork):
        raise InputError(f"predict takes a network, got {type(model).__name__}; load one with sact.from_pretrained")
    if network.preprocessing is None:
        raise InputError(
            "this network does not say how images are prepared for it; set model.preprocessing, for instance to "
            '{"name": "imagenet_sact", "size": 224} (see sact.list_preprocessing())'
        )
    network.check_classifies()
    if network.training:
        raise InputError("this network is in training mode, in which norms depend on the batch; call model.eval()")
    picture = image if isinstance(image, Image.Image) else open_image(image)
    tensor = preprocess(picture, network.preprocessing)
    parameter = next(network.parameters())
    batch = tensor[None].to(parameter.device, parameter.dtype)
    start = time.perf_counter()
    logits, ponder = model(batch, return_ponder=True, return_halting_distribution=keep_distribution)
    if batch.is_cuda:
        torch.cuda.synchronize(batch.device)
    seconds = time.perf_counter() - start
    probabilities = logits[0].float().softmax(0)
    index = int(probabilities.argmax())
    adaptive = ponder.cost is not None
    flops = int(ponder.flops[0])
    return Prediction(
        image=display_image(picture, network.preprocessing),
        index=index,
        name=network.class_names[index] if network.class_names else str(index),
        score=float(probabilities[index]),
        scores=as_array(probabilities),
        flops=flops,
        share=flops / ponder.dense_flops,
        map=as_array(ponder.map(tuple(tensor.shape[-2:]))[0]) if adaptive else None,
        block_maps=[as_array(block.map()[0]) for block in ponder.blocks] if adaptive else [],
        ponder=ponder,
        seconds=seconds,
    )


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The image files that paths name; a folder stands for the images in it.

    Raises:
        InputError: a path does not exist, a folder holds no image, or no path is given.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(entry for entry in path.iterdir() if is_image(entry))
            if not inside:
                raise InputError(f"the folder {path} holds no image ({', '.join(IMAGE_SUFFIXES)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"there is no image {path}; check the path")
    if not found:
        raise InputError("no image is given; name at least one JPEG, PNG or WebP file")
    return found


def write_pictures(prediction: Prediction, name: str, folder: Path) -> None:
    """Write `NAME.png` (image, ponder map, overlay) and `NAME_blocks.png`; of a plain network the image alone."""
    if prediction.map is None:
        save_png(prediction.image, folder / f"{name}.png")
        return
    title = f"{prediction.name} ({prediction.score:.0%})"
    caption = f"{prediction.share:.0%} of the plain network's FLOPs"
    save_png(figure(prediction.image, prediction.map, title, caption), folder / f"{name}.png")
    save_png(block_figure(prediction.image, prediction.block_maps, title=title), folder / f"{name}_blocks.png")


def write_sheet(predictions: Sequence[Prediction], path: Path) -> None:
    """Write a contact sheet of the predictions that have a ponder map, if any has."""
    cells = [
        (prediction.image, prediction.map, f"{prediction.name}\n{prediction.share:.0%} of FLOPs")
        for prediction in predictions
        if prediction.map is not None
    ]
    if cells:
        save_png(contact_sheet(cells, columns=min(3, len(cells))), path)


def write_arrays(prediction: Prediction, path: Path) -> None:
    """Write an .npz for analysis: `map`, and per block k from 1 `block{k}_units`, `_cost`, `_halting_distribution`."""
    arrays: dict[str, Any] = {"image": np.asarray(prediction.image)}
    if prediction.map is not None:
        arrays["map"] = prediction.map
    for number, block in enumerate(prediction.ponder.blocks, start=1):
        arrays[f"block{number}_units"] = block.units[0].cpu().numpy()
        if block.cost is not None:
            arrays[f"block{number}_cost"] = as_array(block.cost[0])
        if block.halting_distribution is not None:
            arrays[f"block{number}_halting_distribution"] = as_array(block.halting_distribution[0])

    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def unique_names(paths: Sequence[Path], ends: Sequence[str] = ENDS) -> list[str]:
    """File names without suffix, numbered where the pictures of two (NAME.png with these ends) would have one name."""
    names: list[str] = []
    taken = {"contact_sheet"}
    for path in paths:
        name, number = path.stem, 2
        while taken & {f"{name}{end}" for end in ends}:
            name, number = f"{path.stem}_{number}", number + 1
        taken |= {f"{name}{end}" for end in ends}
        names.append(name)
    return names


def check_outputs(paths: Sequence[Path], names: Sequence[str], folder: Path, ends: Sequence[str] = ENDS) -> None:
    """Raise InputError if a picture of a result (NAME.png with these ends) would replace one of the images."""
    written = {(folder / f"{name}{end}.png").resolve() for name in names for end in ends}
    written.add((folder / "contact_sheet.png").resolve())
    for path in paths:
        if path.resolve() in written:
            raise InputError(f"the image {path} would be replaced by a picture of its result; name another folder")


def as_array(values: torch.Tensor) -> NDArray[np.float32]:
    """A tensor as float32 in NumPy."""
    return np.asarray(values.float().cpu().numpy(), dtype=np.float32)

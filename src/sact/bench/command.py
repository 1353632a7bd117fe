"""`sact bench`: options to networks, images and forced shares."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import read_metadata
from ..errors import InputError
from ..files import make_folder, write_json
from ..models import AdaptiveNetwork
from ..predict import find_images
from ..preprocessing import open_image, preprocess
from .masks import Forcing
from .measure import bench
from .report import table

DEFAULT_SHARE = 0.5


def run(model: AdaptiveNetwork, options: argparse.Namespace, saved: bool) -> int:
    """Measure, print the table, and write JSON where it was asked for.

    Args:
        model: in evaluation mode; its weights matter only if it halts by itself.
        options: of the verb.
        saved: whether the network has weights of its own, so that its own halting means something.

    Returns:
        The exit code: 1 if a contestant gave another answer or failed, else 0.

    Raises:
        InputError: an option is out of range, or there are no images.
    """
    for name in ("batch", "batches"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} is {getattr(options, name)}, but it must be at least 1")
    if options.seed < 0:
        raise InputError(f"--seed is {options.seed}, but it must be at least 0")
    if options.json and options.json != "-":
        make_folder(Path(options.json).parent)
    forcings = _forcings(model, options, saved)
    source, batches = _batches(model, options, bool(forcings), saved)
    result: dict[str, Any] = {"model": options.model, "images": source} | bench(
        model,
        batches,
        forcings,
        engines=_names(options.engines),
        peers=_names(options.peers),
        threads=options.threads,
        seconds=options.seconds,
        seed=options.seed,
    )
    if options.json == "-":
        print(json.dumps(result, indent=2))
    else:
        print(table(result))
    if options.json and options.json != "-":
        write_json(Path(options.json), result)
        print(f"the results are in {options.json}")
    for row in result["rows"]:
        if row["failed"]:
            print(f"sact bench: {row['name']}: {row['problem']}", file=sys.stderr)
    return int(any(row["failed"] for row in result["rows"]))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _forcings(model: AdaptiveNetwork, options: argparse.Namespace, saved: bool) -> list[Forcing]:
    shares = options.share
    if shares is None:
        shares = [] if saved or model.config.halting == "none" else [DEFAULT_SHARE]
    return [Forcing(share, masks) for masks in _names(options.masks) for share in shares]


def _batches(
    model: AdaptiveNetwork, options: argparse.Namespace, forced: bool, saved: bool
) -> tuple[str, list[Tensor]]:
    """What the images are, and batches of them: one where halting is forced or there is none, else several."""
    spec = dict(model.preprocessing or {})
    customary = 32 if model.config.family == "cifar_resnet" else 224
    height, width = options.size or (spec.get("size", customary),) * 2
    if options.images:
        return "files", _given(options.images, spec, options)
    if forced or not saved or model.config.halting == "none":
        generator = torch.Generator().manual_seed(options.seed)
        return "noise", [torch.randn(options.batch, model.config.in_channels, height, width, generator=generator)]
    if height != width:
        raise InputError(f"--size is {height}x{width}, but scenes are square; give one side, or your own --images")
    from ..data import Scenes

    recipe = read_metadata(options.model).get("recipe", {})
    of_scenes = recipe.get("data_options", {}) if recipe.get("data") == "scenes" else {}
    length = options.batch * options.batches
    data = Scenes("test", size=height, length=length, seed=options.seed, **of_scenes)
    return "held-out scenes", list(torch.stack([data[index][0] for index in range(length)]).split(options.batch))


def _given(paths: list[str], spec: dict[str, Any], options: argparse.Namespace) -> list[Tensor]:
    if not spec:
        raise InputError(
            f"{options.model} does not say how images are prepared for it; leave out --images, or name a network with "
            "trained weights"
        )
    if options.size:
        if options.size[0] != options.size[1]:
            raise InputError(f"--size is {options.size[0]}x{options.size[1]}, but --images are brought to a square")
        spec["size"] = options.size[0]
    files = find_images(paths)
    if len(files) < options.batch:
        raise InputError(
            f"--batch is {options.batch}, but there are {len(files)} images; give more, or a smaller batch"
        )
    whole = len(files) // options.batch * options.batch
    images = torch.stack([preprocess(open_image(file), spec) for file in files[:whole]])
    return list(images.split(options.batch))

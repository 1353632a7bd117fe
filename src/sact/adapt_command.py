"""`sact adapt`: a trained network learns from photographs, without labels, where to stop."""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapt import adapt
from .calibration import calibrate
from .checkpoints import pretrained_network, save_pretrained
from .compiled import compile
from .data.photo_folder import Photo, Photos, Views, read_photos
from .errors import InputError, require
from .files import make_folder, write_json
from .maps import overlay
from .models.adapted import AdaptedNetwork
from .models.sources import build_on_base, load_network
from .ponder import Ponder
from .predict import Prediction, predict, write_sheet
from .preprocessing import preprocess

if TYPE_CHECKING:
    from .tasks.teaching import Progress

CALIBRATION_IMAGES = 128
SHEET_IMAGES = 12
BATCH = 16
TIMED_IMAGES = 8
TIMED_ROUNDS = 5
SURE = 0.2
"""Score of a class from which on the original counts as sure of it."""
IMAGENET = {"name": "imagenet_torchvision", "size": 224}


def run(options: argparse.Namespace) -> None:
    """Make adaptive, teach, judge, calibrate, save.

    Args:
        options: of the verb.

    Raises:
        InputError: an option is out of range, or the photographs cannot be used.
        CheckpointError: the network or its weights cannot be had.
    """
    require("torchvision", "tasks")
    from .tasks.teaching import Lesson, teach

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.tau is None and options.share is None:
        options.share = 0.8
    lesson = Lesson(
        options.tau, options.share, options.learn, options.views, options.batch_size, options.lr, seed=options.seed
    )
    out = Path(options.out)
    model = load(options)
    assert model.preprocessing is not None
    size = int(model.preprocessing["size"])
    photos = read_photos(options.images, size)
    held_out = photos.held_out
    if options.held_out:
        others = read_photos(options.held_out, size)
        photos = Photos([*photos.train, *photos.held_out], [], [*photos.broken, *others.broken])
        held_out = [*others.train, *others.held_out]
    _tell_broken(photos)
    make_folder(out)
    print(f"{len(photos.train)} photographs to learn from, {len(held_out)} held out to judge by")
    model.to(device)
    original = as_it_was(model)
    before = judge(model, original, held_out)
    views = Views(photos.train, model.preprocessing, options.views, options.seed)
    with progress_bar(options.quiet) as show:
        teach(model, views, lesson, show, original)
    calibrate(model, prepared(model, photos.train[:CALIBRATION_IMAGES]))
    after = judge(model, original, held_out)
    recipe = {name: value for name, value in vars(lesson).items() if value is not None}
    recipe |= {"task": "agreement with the original network, without labels", "photographs": len(photos.train)}
    results = headline(after) | {"before": before, "after": after, "times": time_against(model, original, held_out)}
    print(table(results))
    predictions = [predict(model, photo.picture) for photo in held_out[:SHEET_IMAGES]]
    save_pretrained(model.cpu(), out, picture=_picture(predictions), recipe=recipe, results=results)
    write_sheet(predictions, out / "contact_sheet.png")
    write_json(out / "results.json", {"model": options.model, "recipe": recipe} | results)
    print(f"the network, results.json and contact_sheet.png are in {out}; next: sact predict PHOTO --model {out}")


def load(options: argparse.Namespace) -> AdaptedNetwork:
    """The adapted network that the options name, with a preprocessing.

    Raises:
        InputError: the folder holds a network of another kind.
    """
    if Path(options.model).is_dir():
        saved = pretrained_network(options.model)
        if not isinstance(saved, AdaptedNetwork):
            raise InputError(f"{options.model} is a network of sact's own; train it with sact train")
        model = saved
    else:
        network, architecture, base = load_network(options.model, options.weights)
        blocks = None if options.blocks is None else _blocks(options.blocks)
        model = adapt(network, options.halting, output=options.output, blocks=blocks, architecture=architecture)
        model.base = base
    spec = dict(model.preprocessing or IMAGENET)
    if model.base is not None:  # with it these weights name more photographs rightly than with timm's bicubic
        spec["interpolation"] = "bilinear"
    if options.size is not None:
        if options.size < model.min_size:
            raise InputError(f"--size is {options.size}, but it must be at least {model.min_size}")
        spec["size"] = options.size
    model.preprocessing = spec
    model.class_names = model.class_names or imagenet_classes(model.config.num_classes)
    return model


def as_it_was(model: AdaptedNetwork) -> AdaptedNetwork:
    """The network before it learned anything: with the weights of its base, or else a copy of what it is now."""
    if model.base is None:
        network = copy.deepcopy(model)
    else:
        architecture = str(model.config.architecture)
        plain = build_on_base(architecture, dict(model.config.options), model.base)
        network = adapt(plain, blocks=model.config.blocks, architecture=architecture)
        network.to(next(model.parameters()).device)
    network.halting = "none"
    network.preprocessing, network.class_names = model.preprocessing, model.class_names
    return network


def imagenet_classes(count: int) -> list[str] | None:
    """ImageNet's class names, as torchvision has them, for a network of a thousand classes."""
    if count != 1000:
        return None
    models = require("torchvision.models", "tasks")
    return list(models.ResNet50_Weights.DEFAULT.meta["categories"])


@torch.inference_mode()
def judge(model: AdaptedNetwork, original: AdaptedNetwork, photos: Sequence[Photo]) -> dict[str, Any]:
    """Agreement with the original network on photographs, and where that is sure; and the share of its FLOPs."""
    fast = compile(model)
    same: list[bool] = []
    sure: list[bool] = []
    close: list[float] = []
    shares: list[float] = []
    for start in range(0, len(photos), BATCH):
        batch = prepared(model, photos[start : start + BATCH])
        wanted = original(batch)
        logits, ponder = fast(batch, return_ponder=True)
        assert isinstance(logits, Tensor) and isinstance(wanted, Tensor) and isinstance(ponder, Ponder)
        same += (logits.argmax(1) == wanted.argmax(1)).tolist()
        sure += (wanted.softmax(1).amax(1) >= SURE).tolist()
        logs = logits.log_softmax(1), wanted.log_softmax(1)
        close += F.kl_div(*logs, reduction="none", log_target=True).sum(1).tolist()
        shares += (ponder.flops.double() / ponder.dense_flops).tolist()
    of_sure = [one for one, counts in zip(same, sure, strict=True) if counts]
    return {
        "images": len(same),
        "agreement": statistics.fmean(same),
        "sure_images": sum(sure),
        "sure_agreement": statistics.fmean(of_sure) if of_sure else None,
        "kl": max(statistics.fmean(close), 0.0),
        "share": statistics.fmean(shares),
        "share_std": statistics.pstdev(shares),
    }


def prepared(model: AdaptedNetwork, photos: Sequence[Photo]) -> Tensor:
    """Photographs as the network expects them, on its device."""
    images = torch.stack([preprocess(photo.picture, model.preprocessing or IMAGENET) for photo in photos])
    return images.to(next(model.parameters()).device)


@torch.inference_mode()
def time_against(model: AdaptedNetwork, original: AdaptedNetwork, photos: Sequence[Photo]) -> dict[str, Any]:
    """Milliseconds of one image, in turns: this in its fastest engine, and the original in the faster of two ways.

    These are eager PyTorch, and the same engine with halting off.
    """
    device = next(model.parameters()).device
    images = prepared(model, photos[:TIMED_IMAGES]).split(1)
    runs: dict[str, Callable[[Tensor], Any]] = {
        "eager": original.original(),
        "engine": compile(original, freeze=True),
        "adapted": compile(model, freeze=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(TIMED_ROUNDS + 1):
        for image in images:
            for name, run in runs.items():
                start = time.perf_counter()
                run(image)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if round_:
                    taken[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    fastest = min(("eager", "engine"), key=lambda name: medians[name])
    ratios = [own / theirs for own, theirs in zip(taken["adapted"], taken[fastest], strict=True)]
    lower, middle, upper = statistics.quantiles(ratios, n=4)
    shown = {"adapted": medians["adapted"], "original": medians[fastest], "original_in": fastest}
    return {"milliseconds": shown, "ratio": {"median": middle, "lower_quartile": lower, "upper_quartile": upper}}


def headline(after: dict[str, Any]) -> dict[str, Any]:
    """What a card shows."""
    return {name: after[name] for name in ("agreement", "sure_agreement", "share", "images")}


def table(results: dict[str, Any]) -> str:
    """Before and after, as text."""
    lines = [f"{'':12}{'agreement':>12}{'where sure':>12}{'KL':>10}{'FLOPs':>10}{'std':>8}"]
    for name in ("before", "after"):
        row = results[name]
        sure = "-" if row["sure_agreement"] is None else f"{row['sure_agreement']:.1%}"
        lines.append(
            f"{name:12}{row['agreement']:>12.1%}{sure:>12}{row['kl']:>10.4f}{row['share']:>10.1%}{row['share_std']:>8.1%}"
        )
    times = results["times"]
    ratio, milliseconds = times["ratio"], times["milliseconds"]
    way = "in eager PyTorch" if milliseconds["original_in"] == "eager" else "in the same engine, halting off"
    lines.append(
        f"time {milliseconds['adapted']:.1f} ms, the original {milliseconds['original']:.1f} ms ({way}): "
        f"{ratio['median']:.2f} of it ({ratio['lower_quartile']:.2f} to {ratio['upper_quartile']:.2f})"
    )
    return "\n".join(lines)


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """What shows how teaching goes, as a bar; nothing when quiet."""
    with require("tqdm", "tasks").tqdm(disable=quiet, unit="step") as bar:

        def show(progress: Progress) -> None:
            bar.total = progress.steps
            bar.update()
            shown = f"agreement {progress.agreement:.1%}, FLOPs {progress.share:.1%}, tau {progress.tau:.3g}"
            bar.set_postfix_str(shown)

        yield show


def _picture(predictions: Sequence[Prediction]) -> Any:
    """The photograph with the widest span of work, and where it went."""
    found = [one for one in predictions if one.map is not None]
    if not found:
        return None
    best = max(found, key=lambda one: float(one.map.std()) if one.map is not None else 0.0)
    assert best.map is not None
    return overlay(best.image, best.map)


def _tell_broken(photos: Photos) -> None:
    if photos.broken:
        print(f"{len(photos.broken)} files are no readable images and are left out:")
        for path, reason in photos.broken:
            print(f"  {path}: {reason}")


def _blocks(text: str) -> list[list[str]]:
    try:
        blocks = json.loads(text)
    except ValueError:
        blocks = None
    if not isinstance(blocks, list) or not all(isinstance(names, list) for names in blocks):
        raise InputError(
            f'--blocks is "{text}", but it must be a list of lists of names like [["layer3.0", "layer3.1"]]'
        )
    return blocks

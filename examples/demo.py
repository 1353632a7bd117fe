"""The demo: a trained network classifies scenes that it has never seen, and a page shows where the work went.

    python examples/demo.py [--out demo] [--model scenes] [--scenes 1000] [--examples 12] [--data-dir DIR] [--threads N]

It writes `index.html`, one self-contained page, and `results.json`. Nothing is trained. About a minute on two cores.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from page import Example, render
from photos import classify_photographs
from timing import LIMIT, spread, time_batches
from torch import Tensor

import sact
from sact.bench.report import cores, processor
from sact.checkpoints import read_metadata
from sact.data import Scenes, create_dataset
from sact.errors import InputError
from sact.files import write_json, write_text
from sact.flops_report import count
from sact.maps import auc

BATCH_SIZES = (1, 16)
_EVALUATED_AT_A_TIME = 50
# Different batches of a size that are timed in turn.
_BATCHES = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code: 0, or 2 for a bad argument or input."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = make_parser().parse_args(arguments)
    try:
        make_demo(options, shlex.join(["python", "examples/demo.py", *arguments]))
    except sact.SactError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Classify held-out scenes and write a page that shows where the work went."
    )
    parser.add_argument(
        "--out", metavar="DIR", default="demo", help="folder of index.html and results.json (%(default)s)"
    )
    parser.add_argument("--model", default="scenes", help="packaged network, folder or hub id (%(default)s)")
    parser.add_argument("--scenes", type=int, default=1000, help="held-out scenes to classify (%(default)s)")
    parser.add_argument("--examples", type=int, default=12, help="how many of them the page shows (%(default)s)")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="folder of background photographs (default: those of this machine)"
    )
    parser.add_argument(
        "--photographs",
        metavar="MODEL",
        default="efficientnet_lite2",
        help="adapted ImageNet network to show on photographs, or none (%(default)s)",
    )
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: its own choice)")
    return parser


def make_demo(options: argparse.Namespace, command: str) -> None:
    """Everything that the command does; `command` is quoted on the page."""
    for name, least in (("scenes", 1), ("examples", 1), ("threads", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"--{name} is {value}, but it must be at least {least}")
    out = Path(options.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out is {out}, but that folder cannot be made ({error.strerror}); name another") from error
    if options.threads is not None:
        torch.set_num_threads(options.threads)

    adaptive = sact.from_pretrained(options.model)
    if adaptive.config.halting == "none":
        raise InputError(
            f'"{options.model}" is a plain network and has no ponder map; name an adaptive one with --model'
        )
    scenes = held_out_scenes(options.model, adaptive, options.scenes, options.data_dir)
    print(f"classifying {len(scenes)} held-out scenes on crops of {len(scenes.photographs)} held-out photographs ...")
    measured, examples = classify(adaptive, scenes, options.examples)
    print("measuring the time of the engines and the plain network, in turns ...")
    plain = sact.from_pretrained(options.model, halting="none")
    timings = [time_batches(adaptive, plain, first_batches(scenes, size)) for size in BATCH_SIZES]

    photographs = None
    if options.photographs != "none":
        print("classifying photographs with a network trained on ImageNet ...")
        photographs = classify_photographs(options.photographs)
    results = {
        "command": command,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": machine(),
        "network": describe(options.model, adaptive, scenes.size),
        **measured,
        "timings": timings,
        "examples": [example.summary() for example in examples],
        "photographs": None
        if photographs is None
        else photographs | {"examples": [example.summary() for example in photographs["examples"]]},
    }
    write_json(out / "results.json", results)
    write_text(out / "index.html", render(results, examples, LIMIT, photographs))
    print_headlines(results)
    print(f"the page is {(out / 'index.html').resolve()}")


def held_out_scenes(source: str, model: sact.AdaptiveNetwork, length: int, data_dir: str | None = None) -> Scenes:
    """Test scenes like those that the network was trained on: photographs and items that training never saw.

    Raises:
        InputError: the network was not trained on scenes.
    """
    recipe = read_metadata(source).get("recipe", {})
    if recipe.get("data") != "scenes":
        raise InputError(
            f'"{source}" was trained on {recipe.get("data", "unknown data")}, but the demo needs a network trained on '
            "scenes; train one with: sact train recipes/scenes_sact.yaml"
        )
    size = recipe.get("image_size") or (model.preprocessing or {}).get("size")
    options = recipe.get("data_options", {})
    scenes = create_dataset(
        "scenes", "test", size=size, data_dir=data_dir or recipe.get("data_dir"), length=length, **options
    )
    assert isinstance(scenes, Scenes)
    return scenes


@torch.inference_mode()
def classify(model: sact.AdaptiveNetwork, scenes: Scenes, shown: int) -> tuple[dict[str, Any], list[Example]]:
    """Accuracy and cost over all scenes, by the definition of the network (masked), and the first few as examples."""
    correct: list[bool] = []
    shares: list[float] = []
    aucs: list[float] = []
    units: list[list[float]] = []
    examples: list[Example] = []
    for start in range(0, len(scenes), _EVALUATED_AT_A_TIME):
        items = [scenes[index] for index in range(start, min(start + _EVALUATED_AT_A_TIME, len(scenes)))]
        logits, ponder = model(torch.stack([image for image, _, _ in items]), return_ponder=True)
        probabilities = logits.softmax(1)
        maps = ponder.map(scenes.size).numpy()
        means = torch.stack(
            [block.units.float().reshape(len(items), -1).mean(1) for block in ponder.blocks], 1
        ).tolist()
        batch_shares = (ponder.flops.double() / ponder.dense_flops).tolist()
        for row, (image, label, mask) in enumerate(items):
            area = auc(maps[row], mask.numpy()) if 0 < int(mask.sum()) < mask.numel() else None
            index = int(probabilities[row].argmax())
            correct.append(index == label)
            if area is not None:
                aucs.append(area)
            if len(examples) < shown:
                examples.append(
                    Example(
                        picture=to_picture(image),
                        map=maps[row],
                        truth=scenes.class_names[label],
                        name=scenes.class_names[index],
                        score=float(probabilities[row, index]),
                        share=batch_shares[row],
                        units=means[row],
                        auc=area,
                    )
                )
        shares += batch_shares
        units += means
    accuracy = float(np.mean(correct))
    measured = {
        "scenes": len(correct),
        "photographs": len(scenes.photographs),
        "accuracy": {"value": accuracy, "standard_error": (accuracy * (1 - accuracy) / len(correct)) ** 0.5},
        "flops_share": spread(shares) | {"values": shares},
        "units": [float(mean) for mean in np.mean(units, axis=0)],
        "map_auc": spread(aucs) if aucs else None,
    }
    return measured, examples


def first_batches(scenes: Scenes, size: int) -> list[Tensor]:
    """A few different batches of the first scenes: how long an adaptive network takes depends on the picture."""
    images = [scenes[index % len(scenes)][0] for index in range(size * _BATCHES)]
    return [torch.stack(images[start : start + size]) for start in range(0, len(images), size)]


def describe(source: str, model: sact.AdaptiveNetwork, size: int) -> dict[str, Any]:
    """The network in numbers."""
    report = count(model, (size, size))
    return {
        "name": source,
        "halting": model.config.halting,
        "units": [len(block.units) for block in model.blocks],
        "base_channels": model.blocks[0].units[0].stages()[0].conv.out_channels,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "image_size": size,
        "plain_flops": report["plain"],
        "least_share": report["fewest"] / report["plain"],
        # The study's result on its own held-out scenes, kept beside the packaged weights.
        "trained_plain_top1": read_metadata(source).get("results", {}).get("plain_top1"),
    }


def machine() -> dict[str, Any]:
    """What the times were measured on."""
    return {"cpu": processor(), "cores": cores(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def to_picture(image: Tensor) -> NDArray[np.uint8]:
    """A scene [3, S, S] in [-1, 1] as uint8 [S, S, 3]."""
    pixels: NDArray[np.uint8] = image.add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
    return pixels


def print_headlines(results: dict[str, Any]) -> None:
    """The page's headline numbers."""
    accuracy, share, area = results["accuracy"], results["flops_share"], results["map_auc"]
    print(
        f"accuracy {accuracy['value']:.1%} +- {accuracy['standard_error']:.1%} on {results['scenes']} held-out scenes"
    )
    print(f"FLOPs {share['mean']:.1%} of the plain network's (standard deviation between scenes {share['std']:.1%})")
    if area is not None:
        print(f"ponder map against object mask: AUC {area['mean']:.3f}")
    for timing in results["timings"]:
        for row in timing["engines"]:
            where = f"batch {timing['batch']:>2} {row['name']:6}"
            if row["milliseconds"] is None:
                print(f"{where} not timed: its output differs by {row['difference']:.2g}")
            else:
                times, ratio = row["milliseconds"], row["ratio"]
                quartiles = f"{ratio['lower_quartile']:.2f} to {ratio['upper_quartile']:.2f}"
                print(f"{where} {times['median']:8.1f} ms, {ratio['median']:.2f} x plain (quartiles {quartiles})")


if __name__ == "__main__":
    raise SystemExit(main())

"""SACT beside what else one could use on scenes: plain networks, ACT, Gumbel gates and a glimpse model.

    python benchmarks/compare.py [--folder runs/study] [--out runs/compare] [--seconds 60]

Takes the networks that benchmarks/study.py trained, trains the two baselines where they are missing (about 15 minutes),
measures all on held-out scenes, and times them in turns; everything on one thread. `--seconds 0` times nothing. Recipe
fields are overridden as for `sact train`. `benchmarks/compare_report.py` writes the page from results.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from baselines.fit import Loss, fit
from baselines.gumbel import LOSS_WEIGHT, NOISE_UNTIL, GumbelNetwork
from baselines.ram import RecurrentAttention, ram_loss
from baselines.timing import compare_and_time, contestants
from safetensors.torch import load_file, save_file
from study import FULL, ROOT, plain_name
from study_report import best_sact, full_row, held_against, measured, model_names
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import sact
from sact.bench.report import conditions
from sact.data import Scenes
from sact.files import replacing, write_json
from sact.recipe import ClassificationRecipe, load_recipe, parse_overrides
from sact.tasks.training import training_data

RECIPES = ROOT / "recipes"
RAM_WIDTH = 48
"""With which its FLOPs are about those of the SACT network."""
RAM_LR = 0.002
WEIGHTS = "model.safetensors"
TIMED_IMAGES = 256
BATCHES = (1, 64)

Classify = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images [N, 3, S, S] to logits [N, classes] and FLOPs [N]."""


def main() -> int:
    """Train, measure, time; the exit code is 1 where an evaluation gave another answer, and 2 for a bad argument."""
    parser = argparse.ArgumentParser(description="Compare SACT with other ways to spend less, on scenes.")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "study", help="of the trained study")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "compare")
    parser.add_argument("--length", type=int, default=4000, help="held-out scenes for accuracy and FLOPs")
    parser.add_argument("--seconds", type=float, default=60.0, help="time in turns, per batch size")
    options, overrides = parser.parse_known_args()
    try:
        return run(options, parse_overrides(overrides))
    except sact.SactError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Everything but the page."""
    first = options.folder / plain_name(FULL) / "first" / "model"
    if not first.is_dir():
        raise sact.InputError(f"{options.folder} holds no trained study; run benchmarks/study.py first")
    torch.set_num_threads(1)
    study = [measured(options.folder, name, options.length) for name in model_names(options.folder)]
    chosen = chosen_rows(options.folder, study)
    recipe = load_recipe(RECIPES / "scenes_sact.yaml", halting="none", tau=0.0, init=None, **overrides)
    assert isinstance(recipe, ClassificationRecipe)
    gumbel = trained_gumbel(options.out / "gumbel", first, recipe, chosen["sact"]["flops"] / chosen["full"]["flops"])
    ram = trained_ram(options.out / "ram", recipe)
    test = Scenes("test", size=recipe.image_size or 64, length=options.length, **recipe.data_options)
    baselines: dict[str, Classify] = {
        "gumbel": lambda images: gumbel_classify(gumbel, images),
        "ram": lambda images: (ram(images).logits, torch.full((len(images),), ram.flops())),
        "ram-sampled": lambda images: (ram(images, sample=True).logits, torch.full((len(images),), ram.flops())),
    }
    rows = chosen | {name: evaluated(classify, test) for name, classify in baselines.items()}
    for name, row in rows.items():
        print(f"{name}: top-1 {row['top1']:.4f}, {row['flops'] / 1e6:.1f} MFLOPs", flush=True)
    results = {
        "rows": rows,
        "length": options.length,
        "training": {
            name: json.loads((options.out / name / "training.json").read_text()) for name in ("gumbel", "ram")
        },
        "conditions": conditions(1),
        "times": [],
    }
    failed = False
    if options.seconds > 0:
        images = torch.stack([test[index][0] for index in range(min(TIMED_IMAGES, len(test)))])
        networks = {name: own_network(options.folder / row["name"] / "model") for name, row in chosen.items()}
        entrants = contestants(networks, gumbel, ram)
        results["times"] = [compare_and_time(entrants, images, size, options.seconds) for size in BATCHES]
        failed = any(one["problem"] for timed in results["times"] for one in timed["rows"])
    write_json(options.out / "results.json", results)
    return int(failed)


def own_network(folder: Path) -> sact.Network:
    """A saved network of the library's own."""
    network = sact.from_pretrained(folder)
    assert isinstance(network, sact.Network)
    return network


def chosen_rows(folder: Path, study: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The study's rows that the page shows: the full plain network, the best cheap SACT one, and theirs nearby."""
    best = best_sact(study)
    same = held_against(folder, best, study)
    act = [row for row in study if row["halting"] == "act"]
    found = {
        "full": full_row(study),
        "same": next((row for row in study if row["name"] == same), None),
        "act": min(act, key=lambda row: abs(row["flops"] - best["flops"]), default=None),
        "sact": best,
    }
    missing = [name for name, row in found.items() if row is None]
    if missing:
        raise sact.InputError(f"{folder} lacks the study's {missing[0]} network; run benchmarks/study.py to its end")
    return {name: row for name, row in found.items() if row is not None}


def trained_gumbel(out: Path, first: Path, recipe: ClassificationRecipe, share: float) -> GumbelNetwork:
    """The gated network, trained for as long as SACT from the same plain network, to the same share of its FLOPs."""
    model = GumbelNetwork(own_network(first))
    size = recipe.image_size or 64
    target = model.target(share, (size, size))
    heads = [parameter for _, head in model.masked() for parameter in head.parameters()]

    def loss(images: Tensor, labels: Tensor, done: float) -> Tensor:
        logits, masks = model(images, noise=done < NOISE_UNTIL)
        task = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        return task + LOSS_WEIGHT * model.sparsity_loss(masks, target, done)

    return trained(out, model, lambda: training(model, loss, recipe, recipe.max_epochs or 1, heads))


def trained_ram(out: Path, recipe: ClassificationRecipe) -> RecurrentAttention:
    """The glimpse model, trained from scratch on as many images as both phases of the study's networks see."""
    epochs = (recipe.max_epochs or 1) + (load_recipe(RECIPES / "scenes_plain.yaml").max_epochs or 1)
    torch.manual_seed(recipe.seed)
    model = RecurrentAttention(len(Scenes.class_names), RAM_WIDTH)
    faster = recipe.model_copy(update={"lr": RAM_LR})

    def loss(images: Tensor, labels: Tensor, done: float) -> Tensor:
        return ram_loss(model(images, sample=True), labels, recipe.label_smoothing)

    return trained(out, model, lambda: training(model, loss, faster, epochs))


def training(
    model: nn.Module, loss: Loss, recipe: ClassificationRecipe, epochs: int, heads: Sequence[nn.Parameter] = ()
) -> dict[str, Any]:
    """`fit` on the recipe's training data."""
    return fit(model, loss, recipe, training_data(recipe), epochs, heads)


def trained(out: Path, model: Any, train: Callable[[], dict[str, Any]]) -> Any:
    """A model with the weights in a folder, trained first where there are none; in evaluation mode."""
    if not (out / WEIGHTS).is_file():
        print(f"training {out.name}", flush=True)
        write_json(out / "training.json", train() | {"conditions": conditions(1)})
        with replacing(out / WEIGHTS) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary)
    model.load_state_dict(load_file(out / WEIGHTS))
    return model.eval().to(memory_format=torch.channels_last)


def gumbel_classify(model: GumbelNetwork, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the FLOPs of each image."""
    logits, masks = model(images)
    return logits, model.flops(masks, (images.shape[2], images.shape[3]))


@torch.inference_mode()
def evaluated(classify: Classify, data: Any) -> dict[str, Any]:
    """Top-1 with its standard error, and FLOPs with their standard deviation over images."""
    torch.manual_seed(0)
    right, flops = [], []
    for images, labels, _ in DataLoader(data, 200):
        logits, spent = classify(images.contiguous(memory_format=torch.channels_last))
        right.append(logits.argmax(1) == labels)
        flops.append(spent.double())
    top1 = float(torch.cat(right).double().mean())
    every = torch.cat(flops)
    return {
        "top1": top1,
        "top1_error": (top1 * (1 - top1) / len(every)) ** 0.5,
        "flops": float(every.mean()),
        "flops_std": float(every.std(correction=0)),
    }


if __name__ == "__main__":
    raise SystemExit(main())

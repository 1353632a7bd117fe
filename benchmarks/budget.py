"""Accuracy against budget and against cap, on scenes: one trained network, nothing trained again.

    python benchmarks/budget.py [--length 2000] [--calibration 500]

Calibrates the packaged network on validation scenes, runs it at budgets across its reachable range and under caps, and
fills docs/budget.md and docs/budget.png. About four minutes on one core.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from study import ROOT
from study_report import COLORS, fill, finish
from torch import Tensor

import sact
from sact.bench.report import conditions
from sact.budget import Calibration
from sact.checkpoints import read_metadata
from sact.compiled import CompiledNetwork
from sact.data import Scenes

PAGE = ROOT / "docs" / "budget.md"
PLOT = ROOT / "docs" / "budget.png"
STUDY = ROOT / "docs" / "study" / "results.csv"
STEP = 0.05


class Data(NamedTuple):
    """Scenes [N, 3, S, S] and their labels [N]."""

    images: Tensor
    labels: Tensor


class Point(NamedTuple):
    """What the network does under one setting: mean, spread and largest share of the dense FLOPs, and top-1."""

    budget: float | None
    cap: float | None
    share: float
    deviation: float
    largest: float
    top1: float
    error: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure accuracy against budget on scenes.")
    parser.add_argument("--length", type=int, default=2000, help="test scenes")
    parser.add_argument("--calibration", type=int, default=500, help="scenes to calibrate with")
    options = parser.parse_args()
    fast = sact.compile(sact.from_pretrained("scenes"))
    test = scenes("test", options.length)
    alike = sact.calibrate(fast, scenes("test", options.calibration, seed=1).images)
    elsewhere = [measure(fast, test, budget) for budget in budgets(alike)]
    calibration = sact.calibrate(fast, scenes("val", options.calibration).images)
    curve = [measure(fast, test, budget) for budget in budgets(calibration)]
    capped = [measure(fast, test, budget, cap) for budget, cap in caps(calibration)]
    plot(curve, capped, study_points(), PLOT)
    now = conditions(torch.get_num_threads())
    command = f"`python benchmarks/budget.py --length {options.length} --calibration {options.calibration}`"
    under = (
        f"{command}, {now['date']}, {now['processor']} ({now['cores']} cores), PyTorch {now['versions']['torch']}; "
        f"{options.length} test scenes, one network; ± of a share is its standard deviation over images, ± of top-1 "
        "the standard error."
    )
    fill(PAGE, "budget", f"{curve_table(curve, elsewhere)}\n\n{under}")
    fill(PAGE, "cap", cap_table(capped))
    print(PAGE.read_text(encoding="utf-8"))


def scenes(split: str, length: int, seed: int = 0) -> Data:
    """Scenes like those that the packaged network was trained on."""
    recipe = read_metadata("scenes")["recipe"]
    data = Scenes(split, size=recipe["image_size"], length=length, seed=seed, **recipe["data_options"])
    items = [data[index] for index in range(length)]
    return Data(torch.stack([item[0] for item in items]), torch.tensor([item[1] for item in items]))


def budgets(calibration: Calibration) -> list[float | None]:
    """None (as it was trained), and round numbers that can be reached."""
    first = math.ceil(calibration.least / STEP)
    last = math.floor(min(1.0, calibration.most) / STEP)
    return [None, *(round(STEP * index, 2) for index in range(first, last + 1))]


def caps(calibration: Calibration) -> list[tuple[float | None, float]]:
    """Caps for the network as it was trained, and for one whose budget is the same number."""
    lowest = math.ceil(calibration.least / STEP)
    pairs: list[tuple[float | None, float]] = []
    for index in range(15, lowest - 1, -1):
        cap = round(STEP * index, 2)
        pairs += [(None, cap), (cap, cap)]
    return pairs


@torch.inference_mode()
def measure(fast: CompiledNetwork, data: Data, budget: float | None, cap: float | None = None) -> Point:
    """Run the network over the scenes under a budget and a cap."""
    fast.budget, fast.cap = budget, cap
    shares, right = [], []
    for images, labels in zip(data.images.split(100), data.labels.split(100), strict=True):
        logits, ponder = fast(images, return_ponder=True)
        shares.append(ponder.flops.double() / ponder.dense_flops)
        right.append(logits.argmax(1) == labels)
    fast.budget = fast.cap = None
    share, top1 = torch.cat(shares), float(torch.cat(right).double().mean())
    error = (top1 * (1 - top1) / len(share)) ** 0.5
    point = Point(budget, cap, float(share.mean()), float(share.std()), float(share.max()), top1, error)
    print(point, flush=True)
    return point


def curve_table(curve: list[Point], alike: list[Point]) -> str:
    """The budgets' table as Markdown."""
    other = {point.budget: point for point in alike}
    lines = [
        "| budget | share of FLOPs, % | most, % | top-1, % | calibrated on test photographs: share, % | top-1, % |",
        "|---|---|---|---|---|---|",
    ]
    for point in curve:
        budget = "none, as trained" if point.budget is None else f"{point.budget:.2f}"
        twin = other.get(point.budget)
        cells = [budget, share(point), f"{100 * point.largest:.1f}", top1(point)]
        cells += [share(twin), top1(twin)] if twin is not None else ["out of reach", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cap_table(points: list[Point]) -> str:
    """The caps' table as Markdown: a row per cap."""
    lines = [
        "| cap | as trained: share, % | most, % | top-1, % "
        "| with a budget of the same: share, % | most, % | top-1, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for free, held in zip(points[::2], points[1::2], strict=True):
        cells = [f"{free.cap:.2f}", share(free), f"{100 * free.largest:.1f}", top1(free)]
        cells += [share(held), f"{100 * held.largest:.1f}", top1(held)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def share(point: Point) -> str:
    """Mean and standard deviation over images."""
    return f"{100 * point.share:.1f} ± {100 * point.deviation:.1f}"


def top1(point: Point) -> str:
    """With its standard error."""
    return f"{100 * point.top1:.2f} ± {100 * point.error:.2f}"


def study_points() -> dict[str, list[dict[str, float]]]:
    """The study's networks by kind, as shares of its full plain network's FLOPs; empty where they were not measured."""
    if not STUDY.is_file():
        return {}
    with open(STUDY, newline="") as file:
        rows = list(csv.DictReader(file))
    full = float(rows[0]["flops"])
    found: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        numbers = {"share": float(row["flops"]) / full, "top1": float(row["top1"]), "error": float(row["top1_error"])}
        found.setdefault(row["halting"], []).append(numbers)
    return found


def plot(curve: list[Point], capped: list[Point], study: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Top-1 against the share that was spent."""
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")

    def draw(points: list[dict[str, Any]], label: str, color: str, marker: str, line: str = "") -> None:
        points = sorted(points, key=lambda point: point["share"])
        xs, ys, errors = ([100 * point[name] for point in points] for name in ("share", "top1", "error"))
        axes.errorbar(
            xs, ys, yerr=errors, label=label, color=color, marker=marker, linestyle=line, capsize=2, markersize=5
        )

    chosen = [point._asdict() for point in curve]
    draw(chosen, "one network, by budget", COLORS["sact"], "o", "-")
    trained = next(point for point in curve if point.budget is None)
    axes.plot(100 * trained.share, 100 * trained.top1, "o", color="#d93025", markersize=9, zorder=3, label="as trained")
    draw([p._asdict() for p in capped if p.budget is None], "as trained, by cap", COLORS["act"], "v", ":")
    if "sact" in study:
        draw(study["sact"], "trained anew for each tau", "#188038", "s", "--")
    axes.set(xlabel="share of the dense FLOPs spent, %", ylabel="top-1 on held-out scenes, %")
    finish(figure, axes, path)


if __name__ == "__main__":
    main()

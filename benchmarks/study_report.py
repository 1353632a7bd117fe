"""Measure the networks that benchmarks/study.py trained, on held-out scenes; write the tables and plots.

    python benchmarks/study_report.py [--folder runs/study] [--length 4000]

Writes docs/study/*.csv and *.png, and fills the tables in README.md and docs/study.md.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from study import DEPTHS, FULL, ROOT, TAUS, adaptive_name, plain_name, same_flops_units

import sact
from sact.bench.report import cores, processor
from sact.checkpoints import read_metadata
from sact.data import Scenes
from sact.files import replacing, write_json, write_text
from sact.maps import contact_sheet, save_png
from sact.tasks.localisation import map_auc
from sact.tasks.training import evaluate

OUT = ROOT / "docs" / "study"
SIZES = (48, 64, 80, 96, 128)
COLORS = {"plain": "#5f6368", "act": "#e37400", "sact": "#1a73e8", "same": "#9aa0a6"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the study's networks and write its tables and plots.")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "study")
    parser.add_argument("--length", type=int, default=4000, help="held-out scenes for accuracy and FLOPs")
    parser.add_argument("--sweep-length", type=int, default=1000, help="held-out scenes per resolution")
    options = parser.parse_args()
    rows = [measured(options.folder, name, options.length) for name in model_names(options.folder)]
    for row in rows:
        row["same_flops"] = held_against(options.folder, row, rows)
    sweep = resolution_sweep(options.folder, rows, options.sweep_length)
    write_csv(OUT / "results.csv", rows)
    write_csv(OUT / "resolution.csv", sweep)
    plot_flops(rows, OUT / "accuracy_flops.png")
    plot_resolution(sweep, OUT / "accuracy_resolution.png")
    write_maps(options.folder, best_sact(rows)["name"], OUT / "maps.png")
    text = table(rows)
    conditions = describe_machine(options.length)
    for page in (ROOT / "README.md", ROOT / "docs" / "study.md"):
        fill(page, "study", f"{text}\n\n{conditions}")
    fill(ROOT / "docs" / "study.md", "resolution", resolution_table(sweep))
    print(text)


def model_names(folder: Path) -> list[str]:
    """Every network of the study: plain by depth, those of the same FLOPs, ACT, SACT."""
    adaptive = [adaptive_name(halting, tau) for halting in ("act", "sact") for tau in TAUS[halting]]
    same = sorted({same_flops_units(folder, name) for name in adaptive} - set(DEPTHS), reverse=True)
    names = [plain_name(units) for units in [*DEPTHS, *same]] + adaptive
    for name in [name for name in names if not (folder / name / "results.json").is_file()]:
        print(f"{name} is not trained; the report leaves it out", flush=True)
        names.remove(name)
    return names


def measured(folder: Path, name: str, length: int) -> dict[str, Any]:
    """`measure`, or what it found before."""
    kept = folder / name / f"test-{length}.json"
    if not kept.is_file():
        write_json(kept, measure(folder, name, length))
    return dict(json.loads(kept.read_text()))


def measure(folder: Path, name: str, length: int) -> dict[str, Any]:
    """One network's row of the table."""
    source = folder / name / "model"
    model = sact.from_pretrained(source)
    recipe = read_metadata(source)["recipe"]
    data = scenes(source, length)
    results = evaluate(model, data, batch_size=200, quiet=True)
    adaptive = model.config.halting != "none"
    aucs = map_auc(model, data, length=1000) if model.config.halting == "sact" else None
    row = {
        "name": name,
        "halting": model.config.halting,
        "tau": recipe["tau"] if adaptive else None,
        "units": " ".join(f"{block['units']['mean']:.2f}" for block in results["blocks"]),
        "top1": results["top1"],
        "top1_error": (results["top1"] * (1 - results["top1"]) / length) ** 0.5,
        "flops": results["flops"]["mean"],
        "flops_std": results["flops"]["std"],
        "ponder": results["cost"],
        "map_auc": float(aucs.mean()) if aucs is not None else None,
    }
    print(f"{name}: top-1 {row['top1']:.4f}, {row['flops'] / 1e6:.1f} MFLOPs, map AUC {row['map_auc']}", flush=True)
    return row


def scenes(source: Path, length: int, size: int | None = None) -> Scenes:
    """The held-out scenes of a network's data, at its size or another."""
    recipe = read_metadata(source)["recipe"]
    return Scenes("test", size=size or recipe["image_size"], length=length, **recipe["data_options"])


def held_against(folder: Path, row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str | None:
    """The plain network of an adaptive one's mean units per block, if it is trained."""
    if row["halting"] == "none":
        return None
    name = plain_name(same_flops_units(folder, row["name"]))
    return name if any(other["name"] == name for other in rows) else None


def best_sact(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The most accurate SACT network at no more than 60 % of the full plain network's FLOPs (else the cheapest)."""
    full = full_row(rows)
    candidates = [row for row in rows if row["halting"] == "sact"]
    cheap = [row for row in candidates if float(row["flops"]) <= 0.6 * float(full["flops"])]
    if not cheap:
        return min(candidates, key=lambda row: float(row["flops"]))
    return max(cheap, key=lambda row: float(row["top1"]))


def full_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The full plain network's row."""
    return next(row for row in rows if row["name"] == plain_name(FULL))


def resolution_sweep(folder: Path, rows: Sequence[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    """Accuracy and FLOPs of some networks on the same scenes drawn at other resolutions."""
    best = best_sact(rows)
    act = min((row for row in rows if row["halting"] == "act"), key=lambda row: abs(row["flops"] - best["flops"]))
    chosen = {
        plain_name(FULL): "plain",
        best["same_flops"]: "plain, same FLOPs as SACT",
        act["name"]: "ACT",
        best["name"]: "SACT",
    }
    found = []
    for name, label in chosen.items():
        source = folder / name / "model"
        model = sact.from_pretrained(source)
        for size in SIZES:
            kept = folder / name / f"test-{length}-{size}px.json"
            if not kept.is_file():
                write_json(kept, evaluate(model, scenes(source, length, size), batch_size=100, quiet=True))
            results = json.loads(kept.read_text())
            found.append(
                {"name": name, "label": label, "size": size, "top1": results["top1"], "flops": results["flops"]["mean"]}
            )
        print(
            f"{name}: " + ", ".join(f"{row['size']} {row['top1']:.4f}" for row in found if row["name"] == name),
            flush=True,
        )
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown."""
    full = full_row(rows)
    by_name = {row["name"]: row for row in rows}
    lines = [
        "| network | tau | units per block | top-1 % | MFLOPs | of full | same-FLOPs plain top-1 % | map AUC |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        same = by_name[row["same_flops"]] if row["same_flops"] else None
        cells = [
            row["halting"].upper() if row["tau"] is not None else "plain",
            f"{row['tau']:g}" if row["tau"] is not None else "",
            row["units"] if row["tau"] is not None else row["name"].removeprefix("plain-").replace("-", " "),
            f"{100 * row['top1']:.2f} ± {100 * row['top1_error']:.2f}",
            f"{row['flops'] / 1e6:.1f} ± {row['flops_std'] / 1e6:.1f}"
            if row["tau"] is not None
            else f"{row['flops'] / 1e6:.1f}",
            f"{100 * row['flops'] / full['flops']:.1f} %",
            f"{100 * same['top1']:.2f} ({same['flops'] / 1e6:.1f} M)" if same else "",
            f"{row['map_auc']:.3f}" if row["map_auc"] is not None else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def resolution_table(sweep: Sequence[dict[str, Any]]) -> str:
    """Accuracy by test resolution as Markdown."""
    lines = [f"| network | {' | '.join(f'{size} px' for size in SIZES)} |", "|---" * (len(SIZES) + 1) + "|"]
    for label in dict.fromkeys(row["label"] for row in sweep):
        cells = [f"{100 * row['top1']:.1f} % ({row['flops'] / 1e6:.0f} M)" for row in sweep if row["label"] == label]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def describe_machine(length: int) -> str:
    """The conditions that the numbers hold under."""
    today = datetime.date.today().isoformat()
    return (
        f"`make study`, {today}, {processor()} ({cores()} cores), PyTorch {torch.__version__}; "
        f"{length} held-out scenes, one training run each; ± is the standard error of top-1, and the standard "
        "deviation of FLOPs over images."
    )


def fill(page: Path, marker: str, text: str) -> None:
    """Replace what stands between `<!-- marker -->` and `<!-- /marker -->` in a page."""
    content = page.read_text(encoding="utf-8")
    start, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    before, found, rest = content.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{page} has no place marked {start} ... {end}")
    write_text(page, f"{before}{start}\n{text}\n{end}{after}")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows with the same keys, as CSV."""
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def plot_flops(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy against FLOPs, a curve per kind of network."""
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    depths = {plain_name(units) for units in DEPTHS}
    kinds = [
        ("plain, by depth", "plain", [row for row in rows if row["name"] in depths]),
        (
            "plain of an adaptive network's FLOPs",
            "same",
            [r for r in rows if r["halting"] == "none" and r["name"] not in depths],
        ),
        ("ACT", "act", [row for row in rows if row["halting"] == "act"]),
        ("SACT", "sact", [row for row in rows if row["halting"] == "sact"]),
    ]
    for label, color, chosen in kinds:
        if not chosen:
            continue
        chosen = sorted(chosen, key=lambda row: row["flops"])
        xs, ys, errors = columns(chosen, "flops"), columns(chosen, "top1"), columns(chosen, "top1_error")
        axes.errorbar(
            [x / 1e6 for x in xs],
            [100 * y for y in ys],
            yerr=[100 * error for error in errors],
            label=label,
            color=COLORS[color],
            marker="o",
            linestyle="" if color == "same" else "-",
            capsize=2,
        )
    axes.set(xlabel="MFLOPs per image", ylabel="top-1 on held-out scenes, %")
    finish(figure, axes, path)


def plot_resolution(sweep: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy against test resolution."""
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    colors = dict(zip(dict.fromkeys(row["label"] for row in sweep), ("plain", "same", "act", "sact"), strict=False))
    for label, color in colors.items():
        chosen = [row for row in sweep if row["label"] == label]
        ys = [100 * y for y in columns(chosen, "top1")]
        axes.plot(columns(chosen, "size"), ys, label=label, color=COLORS[color], marker="o")
    axes.set(xlabel="test resolution, pixels", ylabel="top-1 on held-out scenes, %", xticks=SIZES)
    finish(figure, axes, path)


def finish(figure: Any, axes: Any, path: Path) -> None:
    """The plots' common look; written whole or not at all."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def columns(rows: Iterable[dict[str, Any]], key: str) -> list[float]:
    """One field of every row."""
    return [row[key] for row in rows]


def write_maps(folder: Path, name: str, path: Path) -> None:
    """A contact sheet of held-out scenes with the ponder maps of one network."""
    source = folder / name / "model"
    model = sact.from_pretrained(source)
    data = scenes(source, 12)
    images = torch.stack([data[index][0] for index in range(12)])
    with torch.inference_mode():
        logits, ponder = model(images, return_ponder=True)
    maps = ponder.map(tuple(images.shape[-2:])).numpy()
    pictures = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    shares = ponder.flops.double() / ponder.dense_flops
    captions = [
        f"{data.class_names[int(index)]}, {float(share):.0%} of FLOPs"
        for index, share in zip(logits.argmax(1), shares, strict=True)
    ]
    save_png(contact_sheet(list(zip(pictures, maps, captions, strict=True)), columns=3), path)


if __name__ == "__main__":
    main()

"""Package the study's best SACT network: `sact.from_pretrained("scenes")`.

    python benchmarks/export_scenes.py [--folder runs/study]

Convolution weights are stored in half precision, which halves the file; norms stay in single precision. What is kept
beside them: the recipe, the study's row on held-out scenes, the full plain network's top-1 there, and a calibration on
validation scenes, so that the network has a budget to turn.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from study import ROOT
from study_report import best_sact, full_row

import sact
from sact.checkpoints import read_metadata
from sact.data import Scenes

CALIBRATED_WITH = 500
LICENCE = (
    "Apache-2.0; trained on Fashion-MNIST (MIT) pasted into photographs of Debian's wallpaper packages and scikit-image"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Package a network of the study.")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "study")
    options = parser.parse_args()
    with open(ROOT / "docs" / "study" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    full, row = (pick(rows) for pick in (full_row, best_sact))
    source = options.folder / row["name"] / "model"
    model = sact.from_pretrained(source)
    numbers = {key: float(row[key]) for key in ("top1", "flops", "map_auc")}
    recipe = read_metadata(source)["recipe"] | {"init": None, "data_dir": None}
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    for module in convolutions:  # as they will be when loaded
        module.half().float()
    scenes = Scenes("val", size=recipe["image_size"], length=CALIBRATED_WITH, **recipe["data_options"])
    sact.calibrate(model, torch.stack([scenes[index][0] for index in range(len(scenes))]))
    for module in convolutions:
        module.half()
    out = ROOT / "src" / "sact" / "weights" / "scenes"
    sact.save_pretrained(
        model,
        out,
        recipe=recipe,
        results=numbers | {"plain_top1": float(full["top1"])},
        licence=LICENCE,
    )
    print(f"{out}: {sum(file.stat().st_size for file in out.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

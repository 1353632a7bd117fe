"""Ponder maps against fixations drawn inside the objects of composed images.

    python benchmarks/saliency.py --composed runs/composed --model runs/dense/detection/sact-0.01/model [--model ...]
    python benchmarks/saliency.py --composed runs/composed-garments --model scenes --size 128 \\
        --folder runs/saliency-garments --block garments --picture docs/saliency.png

Makes a fixation set in cat2000's layout of the composed test images (kept in --folder), evaluates every model on it as
`sact saliency` does, and writes the tables of a block of docs/saliency.md, and a picture of the first model. A minute
per model and core. docs/saliency.md says how the images are made.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from study import ROOT
from study_report import fill, write_csv

from sact.bench.report import conditions
from sact.checkpoints import from_pretrained
from sact.files import write_json
from sact.maps import save_png
from sact.saliency.datasets import read_fixations
from sact.saliency.evaluate import METHODS, Settings, evaluate
from sact.saliency.figures import figure
from sact.saliency.fixations import FixationSet
from sact.saliency.object_fixations import make_fixation_set
from sact.saliency.ponder_maps import ponder_mapper
from sact.saliency.report import markdown_categories, markdown_table

PAGE = ROOT / "docs" / "saliency.md"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure ponder maps on composed images.")
    parser.add_argument("--composed", type=Path, default=ROOT / "runs" / "composed", help="what sact compose wrote")
    parser.add_argument("--model", action="append", required=True, help="a SACT model; again for more")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "saliency", help="of the fixation set")
    parser.add_argument("--size", type=int, help="longer side of images (default: as sact saliency does)")
    parser.add_argument("--limit", type=int, help="use this many images")
    parser.add_argument("--block", default="saliency", help="of the page, to be filled (%(default)s)")
    parser.add_argument("--picture", type=Path, help="a file for the first model's")
    options = parser.parse_args()
    if not (options.folder / "trainSet").exists():
        make_fixation_set(options.composed, options.folder)
    fixations = read_fixations("cat2000", options.folder, options.limit)
    parts = [measure(name, fixations, options, index == 0) for index, name in enumerate(options.model)]
    now = conditions(1)
    made = f"{now['date']}, {now['processor']}, PyTorch {now['versions']['torch']}"
    fill(PAGE, options.block, "\n\n".join([*parts, f"`python benchmarks/saliency.py {arguments(options)}`, {made}."]))


def measure(name: str, fixations: FixationSet, options: argparse.Namespace, shown: bool) -> str:
    """The tables of one model, for the page; all numbers go beside the fixation set."""
    evaluation = evaluate(fixations, ponder_mapper(from_pretrained(name), size=options.size), Settings())
    results = evaluation.results
    file = "-".join(Path(name).parts[-2:])
    write_json(options.folder / f"{file}.json", {"model": name} | results)
    write_csv(options.folder / f"{file}.csv", evaluation.rows)
    if shown and options.picture:
        note = "Looked: positions drawn on the objects. Each map has its own scale."
        save_png(figure(evaluation.shown, note), options.picture)
    return "\n\n".join([heading(name, results), markdown_table(evaluation.rows), markdown_categories(evaluation.rows)])


def heading(name: str, results: dict[str, Any]) -> str:
    """The model, and what was found for it."""
    found, images = results["parameters"], results["images"]
    return (
        f"`{name}`, {images['test']} images, means ± standard errors; blur {found['blur']:g} px and weight "
        f"{found['centre_weight']:g} of the centre prior ({METHODS[1]} alone: {found['blur_alone']:g} px), found on "
        f"{images['train']} other images."
    )


def arguments(options: argparse.Namespace) -> str:
    """What repeats this run."""
    others = [(name, getattr(options, name)) for name in ("composed", "size", "limit", "folder", "block", "picture")]
    given = [("model", name) for name in options.model] + [(name, value) for name, value in others if value]
    shown = [(name, os.path.relpath(value, ROOT) if isinstance(value, Path) else value) for name, value in given]
    return " ".join(f"--{name} {value}" for name, value in shown)


if __name__ == "__main__":
    main()

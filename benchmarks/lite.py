"""Package the adapted ImageNet network: choose its budget, measure it on held-out pictures, fill docs/adapt.md.

    python examples/photographs.py --out runs/photographs
    sact adapt efficientnet_lite2 --images runs/photographs/train --held-out runs/photographs/held_out \\
        --output halted --learn norms --share 0.88 --views 2400 --out runs/lite2-first
    sact adapt runs/lite2-first --images runs/photographs/train --held-out runs/photographs/held_out \\
        --learn norms --share 0.9 --views 3000 --lr 0.01 --out runs/lite2
    python benchmarks/lite.py --model runs/lite2

The same with heads that learn alone, for comparison:

    sact adapt efficientnet_lite2 --images runs/photographs/train --held-out runs/photographs/held_out \\
        --output halted --share 0.93 --views 2400 --out runs/lite2-heads
    python benchmarks/lite.py --model runs/lite2-heads --out runs/lite2-heads/package --marker lite-heads

Pictures are kept apart by file: nothing of held_out/ is in train/. The budget is the smallest at which the network
gives the original's class for 95 % of the pictures in train/, so that held-out pictures choose nothing; where there is
none, the network stays as it was trained.
"""

from __future__ import annotations

import argparse
import json
import math
from datetime import date
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from study_report import fill

import sact
from sact.adapt_command import SURE, as_it_was, headline, judge, prepared
from sact.bench.report import cores, processor
from sact.checkpoints import read_metadata, save_pretrained
from sact.data.photo_folder import Photo, read_photos
from sact.files import write_json
from sact.maps import overlay

CURVE = "curve.json"
MARKER = "lite"
WANTED = 0.95
CALIBRATED_WITH = 96
STEPS = 6
LEAST = 0.8
"""Budgets below are not looked at."""


def main(arguments: list[str] | None = None) -> int:
    """Measure and package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/lite2"), help="what sact adapt wrote (%(default)s)")
    parser.add_argument("--photographs", type=Path, default=Path("runs/photographs"), help="folder (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("src/sact/weights/efficientnet_lite2"))
    parser.add_argument("--marker", default=MARKER, help="the place of the table in the page (%(default)s)")
    parser.add_argument("--page", type=Path, default=Path("docs/adapt.md"))
    parser.add_argument("--report", action="store_true", help="only fill the page with what was measured")
    options = parser.parse_args(arguments)
    if not options.report:
        measure(options)
    report(options)
    return 0


def measure(options: argparse.Namespace) -> None:
    """Judge the network at budgets, choose one, and package the network with it."""
    model = sact.from_pretrained(options.model)
    assert isinstance(model, sact.AdaptedNetwork) and model.preprocessing is not None
    size = int(model.preprocessing["size"])
    train, held_out = (read(options.photographs / name, size) for name in ("train", "held_out"))
    chosen = train[:: max(1, len(train) // CALIBRATED_WITH)]
    calibration = model.calibration or sact.calibrate(model, prepared(model, chosen))
    least, most = max(calibration.least, LEAST), min(calibration.most, 1.0)
    span = [least + (most - least) * step / STEPS for step in range(STEPS + 1)]
    original = as_it_was(model)
    rows: list[dict[str, Any]] = []
    for share in [None, *reversed(span)]:
        model.budget = share
        row: dict[str, Any] = {"budget": share, "train": judge(model, original, chosen)}
        row["held_out"] = judge(model, original, held_out)
        print(f"budget {share}: train {row['train']['agreement']:.3f}, held out {row['held_out']['agreement']:.3f}")
        rows.append(row)
    good = [row for row in rows if row["budget"] is not None and row["train"]["agreement"] >= WANTED]
    best = good[-1] if good else rows[0]
    model.budget = best["budget"]
    recipe = read_metadata(options.model).get("recipe", {})
    kept = {"recipe": recipe, "results": headline(best["held_out"]) | {"after": best["held_out"]}}
    save_pretrained(model, options.out, picture=example(model), licence="apache-2.0", **kept)
    measured = {
        "curve": rows,
        "budget": best["budget"],
        "learned_from": len(train),
        "conditions": f"{date.today()}, {processor()} ({cores()} cores), torch {torch.__version__}",
    }
    write_json(options.model / CURVE, measured)


def report(options: argparse.Namespace) -> None:
    """Fill the page with what was measured."""
    measured = json.loads((options.model / CURVE).read_text(encoding="utf-8"))
    rows = measured["curve"]
    pictures = f"{WANTED:.0%} of {rows[0]['train']['images']} pictures of train/ have the original's class"
    bold = f"the least of these budgets at which {pictures}"
    if measured["budget"] is None:
        bold = f"the network as trained, as at none of these budgets {pictures}"
    named = "" if options.marker == MARKER else f" --out {options.out} --marker {options.marker}"
    caption = (
        f"`python benchmarks/lite.py --model {options.model}{named}`, {measured['conditions']}; "
        f"{rows[0]['held_out']['images']} held-out pictures, kept apart by file from the {measured['learned_from']} "
        f"that it learned from; in bold {bold}; ± of the FLOPs is the standard deviation over pictures, of the "
        f"agreement its standard error; sure: the original's class has a score of {SURE:g} or more."
    )
    fill(options.page, options.marker, table(rows, measured["budget"], caption))


def read(folder: Path, size: int) -> list[Photo]:
    """All photographs of a folder."""
    photos = read_photos([folder], size)
    return sorted([*photos.train, *photos.held_out], key=lambda photo: photo.path)


def example(model: sact.AdaptedNetwork) -> Image.Image | None:
    """scikit-image's cat (CC0), and where the network worked."""
    from skimage import data

    prediction = sact.predict(model, Image.fromarray(data.chelsea()))
    return None if prediction.map is None else overlay(prediction.image, prediction.map)


def table(rows: list[dict[str, Any]], packaged: float | None, caption: str) -> str:
    """The page's block."""
    lines = [
        "| budget | FLOPs | the original's class | where the original is sure | pictures of train/ |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        own = row["held_out"]
        sure_error = math.sqrt(own["sure_agreement"] * (1 - own["sure_agreement"]) / own["sure_images"])
        sure = f"{down(own['sure_agreement'])} ± {up(sure_error)} of {own['sure_images']}"
        mark = "**" if row["budget"] == packaged else ""
        agreement = f"{down(own['agreement'])} ± {up(error(own))} of {own['images']}"
        flops = f"{up(own['share'])} ± {up(own['share_std'])}"
        budget = "as trained" if row["budget"] is None else f"{row['budget']:.3f}"
        lines.append(f"| {mark}{budget}{mark} | {flops} | {agreement} | {sure} | {down(row['train']['agreement'])} |")
    return "\n".join([*lines, "", caption])


def error(one: dict[str, Any]) -> float:
    """Standard error of the agreement."""
    share = float(one["agreement"])
    return math.sqrt(share * (1 - share) / int(one["images"]))


def down(value: float) -> str:
    """As a percentage, rounded to our disadvantage."""
    return f"{math.floor(value * 1000) / 10:.1f} %"


def up(value: float) -> str:
    """As a percentage, rounded to our disadvantage."""
    return f"{math.ceil(value * 1000) / 10:.1f} %"


if __name__ == "__main__":
    raise SystemExit(main())

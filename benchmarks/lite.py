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
    parser.add_argument("--marker", default="lite", help="the place of the table in the page (%(default)s)")
    parser.add_argument("--page", type=Path, default=Path("docs/adapt.md"))
    options = parser.parse_args(arguments)
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
    budget: float | None = None
    shares: list[float | None] = [None, *reversed(span)]
    for share in shares:
        model.budget = share
        on_train, row = judge(model, original, chosen), judge(model, original, held_out)
        rows.append({"budget": share, "train": on_train, "held_out": row})
        seen = f"train {on_train['agreement']:.3f}, held out {row['agreement']:.3f} at {row['share']:.3f}"
        print(f"budget {share}: {seen}")
        if share is not None and on_train["agreement"] >= WANTED:
            budget = share
    model.budget = budget
    after = judge(model, original, held_out)
    print(f"chosen {model.budget}: {after}")
    results: dict[str, Any] = {"after": after, "curve": rows, "budget": model.budget}
    recipe = read_metadata(options.model).get("recipe", {})
    kept = {"recipe": recipe, "results": headline(after) | {"after": after}, "licence": "apache-2.0"}
    save_pretrained(model, options.out, picture=example(model), **kept)
    write_json(options.model / "curve.json", results)
    rule = f"the least of these at which {WANTED:.0%} of {len(chosen)} pictures of train/ have the original's class"
    chosen_as = f"none, for there is not {rule}" if budget is None else rule
    conditions = (
        f"`python benchmarks/lite.py`, {date.today()}, {processor()} ({cores()} cores), torch {torch.__version__}; "
        f"{len(held_out)} held-out pictures, kept apart from the {len(train)} it learned from by file; the budget in "
        f"bold is the packaged one, {chosen_as}; ± of the FLOPs is the standard deviation over pictures, of the "
        f"agreement its standard error; sure: the original's class has a score of {SURE:g} or more."
    )
    fill(options.page, options.marker, table(rows, results, conditions))
    return 0


def read(folder: Path, size: int) -> list[Photo]:
    """All photographs of a folder."""
    photos = read_photos([folder], size)
    return sorted([*photos.train, *photos.held_out], key=lambda photo: photo.path)


def example(model: sact.AdaptedNetwork) -> Image.Image | None:
    """scikit-image's cat (CC0), and where the network worked."""
    from skimage import data

    prediction = sact.predict(model, Image.fromarray(data.chelsea()))
    return None if prediction.map is None else overlay(prediction.image, prediction.map)


def table(rows: list[dict[str, Any]], results: dict[str, Any], conditions: str) -> str:
    """The page's block."""
    lines = [
        "| budget | FLOPs | the original's class | where the original is sure | pictures of train/ |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        own = row["held_out"]
        sure_error = math.sqrt(own["sure_agreement"] * (1 - own["sure_agreement"]) / own["sure_images"])
        sure = f"{down(own['sure_agreement'])} ± {up(sure_error)} of {own['sure_images']}"
        mark = "**" if row["budget"] == results["budget"] else ""
        agreement = f"{down(own['agreement'])} ± {up(error(own))} of {own['images']}"
        flops = f"{up(own['share'])} ± {up(own['share_std'])}"
        budget = "as trained" if row["budget"] is None else f"{row['budget']:.3f}"
        lines.append(f"| {mark}{budget}{mark} | {flops} | {agreement} | {sure} | {down(row['train']['agreement'])} |")
    return "\n".join([*lines, "", conditions])


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

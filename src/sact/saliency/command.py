"""Compare ponder maps with human eye fixations: AUC-Judd, shuffled AUC, NSS, CC, KL and SIM, per category, beside the
centre prior, uniform and one-human baselines. Writes results.json, results.csv and figure.png. The ponder map is
blurred and mixed with a centre prior; how much of both is found on a training part of the images, not evaluated on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluate import Settings


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("folder", metavar="DIR", help="the data set in its published layout")
    parser.add_argument("--dataset", default="cat2000", help="cat2000 or mit1003 (%(default)s)")
    parser.add_argument(
        "--model", default="efficientnet_lite2", help="folder, hub id, or packaged network (%(default)s)"
    )
    parser.add_argument("--out", metavar="DIR", default="saliency", help="folder of the results (%(default)s)")
    parser.add_argument(
        "--size",
        type=_size,
        metavar="WxH",
        help="bring images to this size, or, of a single number, their longer side (default: that to 320 pixels, 640 "
        "for a detector or segmenter, so that cat2000 becomes 320x180 or 640x360)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use this many images, from all categories")
    parser.add_argument("--engine", default="auto", help="auto, masked, gather, native or triton (%(default)s)")
    parser.add_argument("--blur", type=float, metavar="PX", help="deviation of the blur in those pixels; no search")
    parser.add_argument("--centre-weight", type=float, metavar="W", help="of the centre prior, 0 to 1; no search")
    parser.add_argument("--blur-grid", type=_numbers, metavar="PX,PX", help="blurs to try (default: 0,2,4,8,16,32)")
    parser.add_argument("--weight-grid", type=_numbers, metavar="W,W", help="weights to try (default: 0,0.2,...,1)")
    parser.add_argument(
        "--train-share",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="of each category's images, to find the two on (%(default)s)",
    )
    parser.add_argument("--pictures", type=int, default=5, metavar="N", help="images in figure.png (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the division into parts (%(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> None:
    """Run the verb."""
    from ..checkpoints import from_pretrained
    from ..files import make_folder, write_json
    from ..maps import save_png
    from .datasets import read_fixations
    from .evaluate import evaluate
    from .figures import figure
    from .ponder_maps import long_side, ponder_mapper
    from .report import category_table, report_problems, table, write_csv

    settings = _settings(options)
    out = Path(options.out)
    make_folder(out)
    model = from_pretrained(options.model)
    ponder_map = ponder_mapper(model, options.engine, options.size)
    fixations = read_fixations(options.dataset, options.folder, options.limit)
    evaluation = evaluate(fixations, ponder_map, settings)
    results = evaluation.results
    size = f"{options.size[1]}x{options.size[0]}" if isinstance(options.size, tuple) else options.size
    about = {"dataset": options.dataset, "folder": options.folder, "model": options.model}
    about |= {"size": long_side(model) if size is None else size}
    write_json(out / "results.json", about | results)
    write_csv(out / "results.csv", evaluation.rows)
    if evaluation.shown:
        save_png(figure(evaluation.shown, "Each map has its own scale."), out / "figure.png")
    for line in report_problems(results):
        print(line, file=sys.stderr)
    found = results["parameters"]
    print(
        f"blur {found['blur']:g} px, weight of the centre prior {found['centre_weight']:g}, from "
        f"{results['images']['train']} images; without it blur {found['blur_alone']:g} px"
    )
    print(table(evaluation.rows))
    print()
    print(category_table(evaluation.rows))
    if results["one_human"].startswith("not available"):
        print(f"one human: {results['one_human']}")
    print(f"results.json, results.csv and figure.png are in {out}")


def _settings(options: argparse.Namespace) -> Settings:
    from ..errors import InputError
    from .evaluate import Settings

    grids: dict[str, Any] = {}
    for name, given, grid, field in (
        ("blur", options.blur, options.blur_grid, "blurs"),
        ("centre-weight", options.centre_weight, options.weight_grid, "weights"),
    ):
        if given is not None and grid is not None:
            raise InputError(f"--{name} and its grid are both given; leave one of them out")
        if given is not None or grid is not None:
            grids[field] = (given,) if given is not None else tuple(grid)
    if options.pictures < 0:
        raise InputError(f"--pictures is {options.pictures}, but it must not be negative")
    if options.seed < 0:
        raise InputError(f"--seed is {options.seed}, but it must not be negative")
    return Settings(
        train_share=options.train_share, seed=options.seed, pictures=options.pictures, quiet=options.quiet, **grids
    )


def _size(text: str) -> int | tuple[int, int]:
    """(height, width) of WxH, or the longer side."""
    try:
        sides = [int(part) for part in text.lower().split("x")]
        width, height = sides if len(sides) > 1 else sides * 2
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a size like 320x180 (width x height) or 320') from None
    return (height, width) if len(sides) > 1 else width


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a list of numbers like 0,2,4') from None

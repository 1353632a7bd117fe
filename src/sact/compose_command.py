"""Compose a data set of cut-outs on photographs: pictures, boxes, instance masks and categories in COCO's format, and
semantic masks. Cut-outs and photographs are divided among train, val and test by file."""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

_MOST_REASONS = 20


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "--cutouts", metavar="DIR", required=True, help="PNG or WebP files with transparency, in folders by category"
    )
    parser.add_argument(
        "--backgrounds",
        metavar="DIR",
        nargs="+",
        help="folders of photographs (default: this machine's desktop backgrounds)",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to make")
    for split, count in (("train", 1000), ("val", 200), ("test", 200)):
        parser.add_argument(f"--{split}", type=int, default=count, metavar="N", help=f"{split} pictures (%(default)s)")
    parser.add_argument(
        "--size",
        type=_size,
        nargs="+",
        default=[(256, 192)],
        metavar="WIDTHxHEIGHT",
        help="of the pictures in pixels; of several each picture gets one (256x192)",
    )
    parser.add_argument("--objects", type=_int_range, default=(1, 6), metavar="N-M", help="in a picture (1-6)")
    parser.add_argument(
        "--scale",
        type=_float_range,
        default=(0.15, 0.5),
        metavar="X-Y",
        help="longer side of an object as a fraction of the picture's longer side (0.15-0.5)",
    )
    parser.add_argument("--empty", type=float, default=0.05, help="share of pictures without objects (%(default)s)")
    parser.add_argument(
        "--min-visible",
        type=float,
        default=0.3,
        help="least share of an object that stays visible (%(default)s)",
    )
    _add_cutout_options(parser)
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files (%(default)s)")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads (%(default)s)")


def _add_cutout_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--categories", type=_names, metavar="A,B,C", help="use these alone (default: all with enough)")
    parser.add_argument(
        "--category-level",
        type=int,
        default=1,
        help="levels of folders that name a category; 0: all is one category (%(default)s)",
    )
    parser.add_argument("--min-cutouts", type=int, default=3, help="least cut-outs of a category (%(default)s)")
    parser.add_argument("--min-side", type=int, default=64, help="least longer side of a cut-out (%(default)s)")
    parser.add_argument("--no-drawings", action="store_true", help="leave out what looks like a drawing")


def run(options: argparse.Namespace) -> None:
    """`sact compose`."""
    from .data.compose import PREVIEW, RECORD, compose
    from .data.compositing import Style
    from .data.splits import SPLITS

    there = (Path(options.out) / RECORD).is_file()
    start = time.perf_counter()
    record = compose(
        options.out,
        options.cutouts,
        options.backgrounds,
        counts={split: getattr(options, split) for split in SPLITS},
        style=Style(tuple(options.size), options.objects, options.scale, options.empty, options.min_visible),
        seed=options.seed,
        categories=options.categories,
        category_level=options.category_level,
        min_cutouts=options.min_cutouts,
        min_side=options.min_side,
        drawings=not options.no_drawings,
        workers=options.workers,
    )
    print_record(record)
    how = "was there already" if there else f"made in {time.perf_counter() - start:.0f} s"
    print(f"{options.out} {how}; look at {Path(options.out) / PREVIEW}")


def print_record(record: dict[str, Any]) -> None:
    """What was left out, by reason, and a table of files, pictures and objects by split."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in record["left_out"].items():
        by_reason[reason].append(name)
    for reason, names in list(by_reason.items())[:_MOST_REASONS]:
        print(f"left out: {reason}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}")
    if len(by_reason) > _MOST_REASONS:
        print(f"left out for {len(by_reason) - _MOST_REASONS} more reasons: see compose.json")
    splits, files = record["summary"], record["files"]
    print(f"{'':24}" + "".join(f"{split:>9}" for split in splits) + "   (cut-outs)")
    rows = [
        ("pictures", [part["pictures"] for part in splits.values()], ""),
        ("photographs", [len(files[split]["backgrounds"]) for split in splits], ""),
        ("objects", [part["objects"] for part in splits.values()], ""),
    ]
    for name in record["categories"]:
        cutouts = " ".join(str(len(files[split]["cutouts"][name])) for split in splits)
        rows.append((f"  {name}", [part["objects_of"][name] for part in splits.values()], f"   ({cutouts})"))
    for label, values, note in rows:
        print(f"{label:24}" + "".join(f"{value:>9}" for value in values) + note)


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a size like 640x480, width first') from None
    return width, height


def _int_range(text: str) -> tuple[int, int]:
    try:
        parts = [int(part) for part in text.split("-")]
        least, most = parts * 2 if len(parts) == 1 else parts
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a range like 1-6') from None
    return least, most


def _float_range(text: str) -> tuple[float, float]:
    try:
        parts = [float(part) for part in text.split("-")]
        least, most = parts * 2 if len(parts) == 1 else parts
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a range like 0.15-0.5') from None
    return least, most


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]

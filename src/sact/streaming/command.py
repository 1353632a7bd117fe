"""Write the ponder maps of many pictures: images, folders, videos, and pictures larger than memory.

What is finished is skipped, so that a run that ended in the middle goes on when it is started again. Files that cannot
be read are named in the end, and the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import InputError

MOST_NAMED = 20


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help="images, videos, .npy, TIFF, or folders of them")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write, or to go on with")
    parser.add_argument(
        "--model",
        default="efficientnet_lite2",
        help="folder, hub id, or packaged network; also a detector (%(default)s)",
    )
    parser.add_argument(
        "--format", default="npz", help="of npz, png (heat map) and overlay, like npz,png (%(default)s)"
    )
    parser.add_argument("--recursive", action="store_true", help="look into folders of folders, too")
    parser.add_argument(
        "--size", type=_size, help="shorter side in pixels, or own: as pictures are (default: as the model is used to)"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of a video, every N-th frame (%(default)s)")
    parser.add_argument("--fps", type=float, help="of a video, so many frames per second instead")
    parser.add_argument("--frames-per-file", type=int, default=100, metavar="N", help="of a video (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="pictures of a size at a time (%(default)s)")
    parser.add_argument(
        "--tile-above", type=float, default=8.0, metavar="MP", help="megapixels from which on in tiles (%(default)s)"
    )
    parser.add_argument("--tile", type=int, default=1024, metavar="N", help="side of a tile in pixels (%(default)s)")
    parser.add_argument("--budget", type=float, help="mean share of the dense FLOPs (default: the network's own)")
    parser.add_argument("--cap", type=float, help="share of the dense FLOPs that no picture may exceed")
    parser.add_argument("--engine", default="auto", help="auto, masked, gather, native or triton (%(default)s)")
    parser.add_argument("--device", help="(default: cuda if there is one, else cpu)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Run the verb.

    Returns:
        1 where something could not be read, or not to its end, else 0.
    """
    import torch

    from ..checkpoints import from_pretrained
    from ..models.dense import extractor
    from .run import PROBLEMS, write_maps
    from .work import Wishes

    formats = tuple(dict.fromkeys(part.strip() for part in options.format.split(",")))
    wishes = Wishes(formats, options.every, options.fps, options.frames_per_file, options.batch)
    model = from_pretrained(options.model)
    network = extractor(model)
    if options.budget is not None:
        network.budget = options.budget
    if options.cap is not None:
        network.cap = options.cap
    model.to(_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu")))
    report = write_maps(
        model,
        options.inputs,
        options.out,
        wishes,
        recursive=options.recursive,
        name=options.model,
        quiet=options.quiet,
        size=options.size,
        engine=options.engine,
        tile=options.tile,
        tile_above=options.tile_above,
    )
    for file, problem in report.problems[:MOST_NAMED]:
        print(f"{file}: {problem}", file=sys.stderr)
    if len(report.problems) > MOST_NAMED:
        print(f"and {len(report.problems) - MOST_NAMED} more, see {Path(options.out) / PROBLEMS}", file=sys.stderr)
    share = "" if report.share is None else f", {report.share:.1%} of the plain network's FLOPs"
    before = f"; {report.before} files were there already" if report.before else ""
    print(f"{report.pictures} pictures{share}{before}; the maps and index.csv are in {options.out}")
    return 1 if report.problems else 0


def _device(name: str) -> str:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f'--device is "{name}", which is not to be had here ({str(error).splitlines()[0]})') from error
    return name


def _size(text: str) -> int | str:
    if text == "own":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is neither a number of pixels nor own') from None

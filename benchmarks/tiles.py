"""What evaluating an image in tiles takes, in memory and time, against evaluating it whole; fills docs/tiles.md.

    python benchmarks/tiles.py [--scratch DIR]

A ResNet-50 with random weights, every unit in the middle of the image (half its height and width), one per block
elsewhere. Each figure is of a process of its own, in one thread: memory beyond the network and the image, at its peak,
and processor time. The largest image is for SACT alone. About 20 minutes on one core, 8 GB of memory and 11 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from study_report import fill

import sact
from sact.bench import memory
from sact.bench.report import conditions
from sact.scores import Halting

SIZES = [(1024, 1024), (2048, 1536), (4096, 3072), (8192, 6144)]
MOST_WHOLE = 4096 * 3072
"""Pixels above which images are not evaluated whole."""
WAYS = {"whole": "whole", "compiled": "whole, compiled", "tiled": "tiles of 512"}
PAGE = Path(__file__).resolve().parents[1] / "docs" / "tiles.md"
NORMALISE = {"name": "scenes"}


def main() -> None:
    """Measure everything and fill the page, or measure one thing for that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="folder (%(default)s)")
    parser.add_argument("--one", nargs=4, metavar=("WAY", "HALTING", "WIDTH", "HEIGHT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, halting, width, height = options.one
        print(json.dumps(measure(way, halting, int(width), int(height), options.scratch)))
        return
    rows = []
    for halting in ("none", "sact"):
        for width, height in SIZES if halting == "sact" else SIZES[:-1]:
            ways = [way for way in WAYS if way == "tiled" or width * height <= MOST_WHOLE]
            found = {way: alone(way, halting, width, height, options.scratch) for way in ways}
            print(f"{halting} {width}x{height}: {found}", file=sys.stderr)
            rows.append(row(halting, width, height, found))
    fill(PAGE, "tiles", "\n".join([*HEADER, *rows, "", caption()]))


def alone(way: str, halting: str, width: int, height: int, scratch: Path) -> dict[str, Any]:
    """`measure` in a process of its own."""
    arguments = [__file__, "--scratch", str(scratch), "--one", way, halting, str(width), str(height)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@torch.no_grad()
def measure(way: str, halting: str, width: int, height: int, scratch: Path) -> dict[str, Any]:
    """One evaluation: its peak of memory, processor time, logits, and what maps took."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = sact.create_model("resnet50", halting=cast(Halting, halting)).eval()
    model.preprocessing = NORMALISE
    with tempfile.TemporaryFile(dir=scratch) as file:
        pixels = np.memmap(file, np.uint8, "w+", shape=(height, width, 3))
        for top in range(0, height, 64):
            rows = pixels[top : top + 64]
            rows[:] = np.random.default_rng(top).integers(0, 256, rows.shape, dtype=np.uint8)
        sact.tiled(model, pixels[:64, :64])
        force_middle(model, height, width)
        images = None
        if way != "tiled":
            images = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float().div_(127.5).sub_(1)
        before, _ = memory.resident(), memory.restart_peak()
        start = time.process_time()
        scratch_bytes = 0
        if images is None:
            result = sact.tiled(model, pixels, scratch=scratch, memory=0)
            logits, ponder, scratch_bytes = result.logits, result.ponder, result.map_bytes
        else:
            logits, ponder = (sact.compile(model) if way == "compiled" else model)(images, return_ponder=True)
        seconds, peak = time.process_time() - start, memory.peak()
    assert before is not None and peak is not None and logits is not None
    return {
        "bytes": peak - before,
        "seconds": seconds,
        "scratch": scratch_bytes,
        "share": int(ponder.flops[0]) / ponder.dense_flops,
        "logits": logits[0].tolist(),
    }


def force_middle(model: sact.Network, height: int, width: int) -> None:
    """Every unit in the middle, half as high and wide as the image, and one elsewhere."""
    if model.config.halting == "none":
        return
    for block, stride in zip(model.blocks, model.feature_strides, strict=True):
        rows, columns = -(-height // stride), -(-width // stride)
        units = torch.ones(1, rows, columns, dtype=torch.int32)
        units[:, rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4] = len(block.units)
        block.forced_units = units


HEADER = [
    f"| network | image | {' | '.join(f'memory, {name}' for name in WAYS.values())} | scratch file "
    f"| {' | '.join(f'seconds, {name}' for name in WAYS.values())} | FLOPs | logits differ by |",
    f"|{'---|' * (5 + 2 * len(WAYS))}",
]


def row(halting: str, width: int, height: int, found: dict[str, dict[str, Any]]) -> str:
    """A line of the table."""
    tiles = found["tiled"]
    memories = [f"{found[way]['bytes'] / 1e9:.2f} GB" if way in found else "–" for way in WAYS]
    seconds = [f"{found[way]['seconds']:.0f}" if way in found else "–" for way in WAYS]
    difference = "–"
    if "whole" in found:
        whole, own = (torch.tensor(one["logits"], dtype=torch.float64) for one in (found["whole"], tiles))
        difference = f"{float((own - whole).abs().max() / whole.abs().max()):.0e}"
    name = "plain" if halting == "none" else "SACT"
    share = f"{tiles['share']:.0%}"
    cells = [name, f"{width}x{height}", *memories, f"{tiles['scratch'] / 1e9:.2f} GB", *seconds, share, difference]
    return f"| {' | '.join(cells)} |"


def caption() -> str:
    """What the numbers hold under."""
    now = conditions(1)
    return (
        f"`python benchmarks/tiles.py`, {now['date']}, {now['processor']} ({now['cores']} cores), one thread, float32, "
        f"PyTorch {now['versions']['torch']}; ResNet-50 with random weights, in the SACT network every unit in the "
        "middle (half the height and width) and one per block elsewhere. Memory: peak beyond the network and the "
        "image. Seconds: processor time, one run each. FLOPs: of the plain network's. Differences: the greatest, "
        "relative to the greatest logit. –: not run."
    )


if __name__ == "__main__":
    main()

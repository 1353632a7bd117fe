"""The CPU engine beside other runtimes; writes benchmarks/cpu.md, cpu.csv and cpu.png.

    python benchmarks/cpu.py [--only resnet101-1x224x224 ...] [--seconds S] [--threads 2]

Every row is one network and input: the plain network in eager PyTorch, torch.compile, ONNX Runtime and OpenVINO, and
the adaptive one at several shares of its FLOPs, all in turns. A row's measurements are kept in runs/bench-cpu, so that
`--only` measures some anew and the report still has all; `--only` without names writes the report alone.
The report is made by `cpu_report.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cpu_report import write_report
from roofline import measure_limits, measure_parts, parts
from torch import Tensor

import sact
from sact.bench import PEERS, Forcing, bench, force_units, table
from sact.checkpoints import read_metadata
from sact.data import Scenes
from sact.files import write_json

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "runs" / "bench-cpu"
OUT = Path(__file__).resolve().parent
SHARES = (0.3, 0.5, 0.7, 1.0)
SCENES_LENGTH = 64


@dataclass(frozen=True)
class Row:
    """One network and input.

    Attributes:
        model: name for `sact.create_model`, or "scenes", the packaged network, which halts by itself.
        shape: (N, H, W) of the images.
        forcings: shares to reach; empty for a trained network.
        seconds: how long turns go on.
        peers: to compare with; on large pictures one, for a run takes long.
    """

    model: str
    shape: tuple[int, int, int]
    forcings: tuple[Forcing, ...]
    seconds: float
    peers: tuple[str, ...] = PEERS

    @property
    def name(self) -> str:
        """What `--only` takes."""
        return f"{self.model}-{'x'.join(map(str, self.shape))}"


def _scenes(*shares: float) -> tuple[Forcing, ...]:
    return tuple(Forcing(share) for share in shares)


ROWS = (
    Row("resnet101", (1, 224, 224), (*_scenes(*SHARES), Forcing(0.5, "random")), 30),
    Row("resnet101", (1, 448, 448), _scenes(*SHARES), 45),
    Row("resnet101", (1, 640, 480), _scenes(*SHARES), 60),
    Row("resnet101", (8, 224, 224), _scenes(*SHARES), 70),
    Row("resnet50", (1, 224, 224), _scenes(0.5, 0.7), 15),
    Row("cifar_resnet32", (1, 32, 32), _scenes(0.6), 6),
    Row("cifar_resnet32", (64, 32, 32), _scenes(0.6), 10),
    Row("cifar_resnet110", (1, 32, 32), _scenes(0.6), 8),
    Row("cifar_resnet110", (64, 32, 32), _scenes(0.6), 15),
    Row("scenes", (1, 64, 64), (), 10),
    Row("scenes", (64, 64, 64), (), 15),
    Row("resnet50", (1, 768, 1024), _scenes(0.5), 5, ("onnxruntime",)),
    Row("resnet50", (1, 1536, 2048), _scenes(0.5), 5, ("onnxruntime",)),
    Row("resnet50", (1, 3072, 4096), _scenes(0.5), 5, ("onnxruntime",)),
)
ROOFLINE_ROW = ROWS[0]
ROOFLINE_SHARES = (1.0, 0.5, 0.3)
ROOFLINE_SECONDS = 8


def main() -> int:
    """Measure and report; the exit code is 1 where a contestant gave another answer, and 2 for a bad argument."""
    parser = argparse.ArgumentParser(description="Time the CPU engine beside other runtimes.")
    names = [row.name for row in ROWS]
    parser.add_argument(
        "--only", nargs="*", choices=names, metavar="ROW", help=f"measure these rows: {', '.join(names)}"
    )
    parser.add_argument("--seconds", type=float, help="time per row (default: by row, about half an hour for all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engines", default="native,masked", help="of ours (%(default)s)")
    parser.add_argument("--peers", default=",".join(PEERS), help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of cpu.md, cpu.csv and cpu.png")
    options = parser.parse_args()
    try:
        return run(options, names if options.only is None else options.only)
    except sact.SactError as error:
        print(f"cpu: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace, chosen: Sequence[str]) -> int:
    """Measure the chosen rows and write the report of all that are kept."""
    failed = False
    for row in ROWS:
        if row.name in chosen:
            result = measure(row, options)
            write_json(KEPT / f"{row.name}.json", result)
            print(f"{row.name}\n{table(result)}\n", flush=True)
            failed |= any(one["failed"] for one in result["rows"])
    if chosen:
        print("measuring what this machine can do at most", flush=True)
        torch.set_num_threads(options.threads)
        write_json(KEPT / "limits.json", measure_limits()._asdict())
        write_json(KEPT / "parts.json", {"measured": [measured_parts(share) for share in ROOFLINE_SHARES]})
    write_report(KEPT, options.out, [row.name for row in ROWS])
    return int(failed)


def measured_parts(share: float) -> dict[str, Any]:
    """What the parts of the first row's network demand, and the time that they take."""
    model, (images,) = prepare(ROOFLINE_ROW)
    units = force_units(model, ROOFLINE_ROW.shape, Forcing(share))
    seconds = measure_parts(model, images, units, ROOFLINE_SECONDS)
    found = zip(parts(model, ROOFLINE_ROW.shape, units), seconds, strict=True)
    return {
        "row": ROOFLINE_ROW.name,
        "share": share,
        "parts": [part._asdict() | {"seconds": taken} for part, taken in found],
    }


def measure(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """Time one row."""
    model, batches = prepare(row)
    return bench(
        model,
        batches,
        row.forcings,
        engines=options.engines.split(","),
        # Those of the row; misspelt ones too, so that they are refused.
        peers=[name for name in options.peers.split(",") if name and (name in row.peers or name not in PEERS)],
        threads=options.threads,
        seconds=options.seconds or row.seconds,
    )


def prepare(row: Row) -> tuple[sact.Network, list[Tensor]]:
    """The network and its images: noise for one that is not trained, as its halting is forced; else scenes."""
    torch.manual_seed(0)
    count, height, width = row.shape
    if row.forcings:
        return sact.create_model(row.model, halting="sact").eval(), [torch.randn(count, 3, height, width)]
    model = sact.from_pretrained(row.model)
    assert isinstance(model, sact.Network)
    recipe = read_metadata(row.model)["recipe"]
    length = max(SCENES_LENGTH, count)
    data = Scenes("test", size=height, length=length, **recipe["data_options"])
    images = torch.stack([data[index][0] for index in range(length)])
    return model, list(images.split(count))


if __name__ == "__main__":
    raise SystemExit(main())

"""Adapted networks in the CPU engine beside the original in other runtimes; writes benchmarks/adapted.md.

    python benchmarks/adapted.py [--only lite2 resnet50] [--seconds S] [--threads 2]

Every row is one network: the original in eager PyTorch, torch.compile, ONNX Runtime and OpenVINO, and the adapted one
at several shares of what its blocks can skip, all in turns. Measurements are kept in runs/bench-adapted, so that
`--only` measures some anew and the report still has all; `--only` without names writes the report alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from cells import short, times
from torch import nn

import sact
from sact.bench import PEERS, Forcing, bench, describe, table
from sact.files import write_json, write_text
from sact.flops_report import count

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "runs" / "bench-adapted"
OUT = Path(__file__).resolve().parent / "adapted.md"
SHARES = (0.0, 0.3, 0.5, 0.7, 1.0)


class Row(NamedTuple):
    """One network and the side of its images."""

    title: str
    make: Callable[[], nn.Module]
    side: int


ROWS = {
    "lite2": Row("timm tf_efficientnet_lite2", lambda: timm.create_model("tf_efficientnet_lite2"), 260),
    "resnet50": Row("torchvision resnet50", lambda: torchvision.models.resnet50(), 224),
}

HOW_TO_READ = """*Skippable* is the share of the blocks' skippable work that was done: 0 where every position stops
after its block's first unit, 1 where none stops. *Share* is all FLOPs that were done over those of the original (the
paper's count). *Speed-up* is the median time of the fastest peer, which runs the original, over ours. *Realised* is the
speed-up times the share: 100 % where every FLOP that is saved is time that is saved. Weights are random and units are
forced, around the objects of held-out scenes. Outputs are compared before anything is timed, and all contestants of a
network take turns. Times are medians in milliseconds, with quartiles in brackets."""


def main() -> int:
    """Measure and report; the exit code is 1 where a contestant gave another answer, and 2 for a bad argument."""
    parser = argparse.ArgumentParser(description="Time adapted networks in the CPU engine beside other runtimes.")
    parser.add_argument("--only", nargs="*", choices=ROWS, metavar="ROW", help=f"measure these: {', '.join(ROWS)}")
    parser.add_argument("--seconds", type=float, default=45.0, help="of turns per network (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", default=",".join(PEERS), help="(%(default)s)")
    options = parser.parse_args()
    failed = False
    try:
        for name in ROWS if options.only is None else options.only:
            result = measure(ROWS[name], options)
            write_json(KEPT / f"{name}.json", result)
            print(f"{name}\n{table(result)}\n", flush=True)
            failed |= any(one["failed"] for one in result["rows"])
        write_text(OUT, report())
    except sact.SactError as error:
        print(f"adapted: {error}", file=sys.stderr)
        return 2
    print(f"the report is in {OUT}")
    return int(failed)


def measure(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """Time one network."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sact.adapt(row.make().eval())
    flops = count(model, (row.side, row.side))
    # Of the original's FLOPs; what is skippable are units without score heads.
    totals = {
        share: (flops["fewest"] + share * (flops["plain"] - flops["fewest"])) / flops["plain"] for share in SHARES
    }
    least = (flops["fewest"] + 1) / flops["plain"]  # the next whole position above rounding
    forcings = [Forcing(max(total, least)) for total in totals.values()]
    result = bench(
        model,
        [torch.randn(1, 3, row.side, row.side)],
        forcings,
        engines=["native"],
        peers=[name for name in options.peers.split(",") if name],
        threads=options.threads,
        seconds=options.seconds,
    )
    return result | {"model": row.title, "skippable": list(SHARES)}


def report() -> str:
    """adapted.md, of what is kept.

    Raises:
        InputError: nothing is.
    """
    results = {name: json.loads(path.read_text()) for name in ROWS if (path := KEPT / f"{name}.json").is_file()}
    if not results:
        raise sact.InputError("nothing was measured yet; leave out --only, or name rows behind it")
    parts = ["# Adapted networks in the CPU engine", "`python benchmarks/adapted.py`", HOW_TO_READ]
    for result in results.values():
        parts += [
            f"## {result['model']}, {'x'.join(map(str, result['input']))}",
            describe(result),
            "\n".join(lines(result)),
        ]
    return "\n\n".join(parts) + "\n"


def lines(result: dict[str, Any]) -> list[str]:
    """One network's table."""
    found = ["| | skippable | share | ms | speed-up | realised |", "|---|---|---|---|---|---|"]
    shares = iter(result["skippable"])
    for one in result["rows"]:
        if one["problem"]:
            found.append(f"| {one['name']} | | | not timed: {one['problem']} | | |")
        elif one["kind"] == "peer":
            found.append(f"| original in {one['name']} | | | {times(one)} | {short(one['speed_up'])} | |")
        if one["kind"] == "engine":
            share = next(shares)
            if not one["problem"]:
                found.append(
                    f"| adapted in {one['name']} | {share:g} | {one['share']:.1%} | {times(one)} | "
                    f"{short(one['speed_up'])} | {one['realised_share']:.1%} |"
                )
    return found


if __name__ == "__main__":
    raise SystemExit(main())

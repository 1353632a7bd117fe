"""The CPU engine beside other runtimes; writes benchmarks/cpu.md, cpu.csv and cpu.png.

    python benchmarks/cpu.py [--only resnet101-1x224x224 ...] [--seconds S] [--threads 2]

Every row is one network and input: the plain network in eager PyTorch, torch.compile, ONNX Runtime and OpenVINO, and
the adaptive one at several shares of its FLOPs, all in turns. A row's measurements are kept in runs/bench-cpu, so that
`--only` measures some anew and the report still has all; `--only` without names writes the report alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from roofline import Limits, measure_limits, roofline
from study_report import fill, write_csv
from torch import Tensor

import sact
from sact.bench import MASKS, PEERS, Forcing, bench, describe, force_units, table
from sact.checkpoints import read_metadata
from sact.data import Scenes
from sact.files import replacing, write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "runs" / "bench-cpu"
OUT = Path(__file__).resolve().parent
SHARES = (0.3, 0.5, 0.7, 1.0)
SCENES_LENGTH = 64
HEADLINE_ROW = "resnet101-1x224x224"
COLORS = ("#1a73e8", "#e37400", "#188038", "#a142f4")


@dataclass(frozen=True)
class Row:
    """One network and input.

    Attributes:
        model: name for `sact.create_model`, or "scenes", the packaged network, which halts by itself.
        shape: (N, H, W) of the images.
        forcings: shares to reach; empty for a trained network.
        seconds: how long turns go on.
    """

    model: str
    shape: tuple[int, int, int]
    forcings: tuple[Forcing, ...]
    seconds: float

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
)
PLOTTED = "resnet101"
ROOFLINE_ROW = ROWS[0]
ROOFLINE_SHARES = (1.0, 0.5)


def main() -> int:
    """Measure and report; the exit code is 1 where a contestant gave another answer, and 2 for a bad argument."""
    parser = argparse.ArgumentParser(description="Time the CPU engine beside other runtimes.")
    names = [row.name for row in ROWS]
    parser.add_argument(
        "--only", nargs="*", choices=names, metavar="ROW", help=f"measure these rows: {', '.join(names)}"
    )
    parser.add_argument("--seconds", type=float, help="time per row (default: by row, about 5 minutes for all)")
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
    kept = [row for row in ROWS if (KEPT / f"{row.name}.json").is_file()]
    if not kept:
        raise sact.InputError("nothing was measured yet; leave out --only, or name rows behind it")
    write_report(options.out, kept)
    return int(failed)


def measure(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """Time one row."""
    model, batches = prepare(row)
    return bench(
        model,
        batches,
        row.forcings,
        engines=options.engines.split(","),
        peers=[name for name in options.peers.split(",") if name],
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
    recipe = read_metadata(row.model)["recipe"]
    length = max(SCENES_LENGTH, count)
    data = Scenes("test", size=height, length=length, **recipe["data_options"])
    images = torch.stack([data[index][0] for index in range(length)])
    return model, list(images.split(count))


def write_report(out: Path, rows: Sequence[Row]) -> None:
    """cpu.md, cpu.csv and cpu.png from the kept measurements."""
    results = {row.name: json.loads((KEPT / f"{row.name}.json").read_text()) for row in rows}
    write_csv(out / "cpu.csv", [line for row in rows for line in flat(row, results[row.name])])
    plot(results, out / "cpu.png")
    write_text(out / "cpu.md", page(rows, results))
    if out == OUT and HEADLINE_ROW in results:
        fill(ROOT / "README.md", "cpu", headline(results))
    print(f"the report is in {out / 'cpu.md'}")


def headline(results: dict[str, Any]) -> str:
    """What the README says: one network and input, every share."""
    result = results[HEADLINE_ROW]
    lines = ["| share of FLOPs | time | speed-up | realised share |", "|---|---|---|---|"]
    for one in result["rows"]:
        if one["name"] == "native" and one["masks"] == "scenes" and one["milliseconds"]:
            times = one["milliseconds"]
            lines.append(
                f"| {one['share']:.1%} | {times['median']:.1f} ms ({times['lower_quartile']:.1f} to "
                f"{times['upper_quartile']:.1f}) | {one['speed_up']:.2f} | {one['realised_share']:.1%} |"
            )
    peer = next(one for one in result["rows"] if one["name"] == result["fastest_peer"])
    lines.append(
        f"\n`python benchmarks/cpu.py`; {HEADLINE_ROW}, medians and quartiles, against the plain network in the "
        f"fastest peer ({peer['name']}, {peer['milliseconds']['median']:.1f} ms); {conditions({HEADLINE_ROW: result})}"
    )
    return "\n".join(lines)


def flat(row: Row, result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row's measurements as lines of the CSV, each with its conditions."""
    held = result["conditions"]
    lines = []
    for one in result["rows"]:
        times = one["milliseconds"] or dict.fromkeys(("lower_quartile", "median", "upper_quartile"))
        lines.append(
            {
                "network": row.model,
                "images": "x".join(map(str, row.shape)),
                "contestant": one["name"],
                "masks": one["masks"] or "",
                "flops": one["flops"],
                "share": f"{one['share']:.4f}",
                "median_ms": rounded(times["median"]),
                "lower_quartile_ms": rounded(times["lower_quartile"]),
                "upper_quartile_ms": rounded(times["upper_quartile"]),
                "speed_up": rounded(one["speed_up"]),
                "realised_share": rounded(one["realised_share"]),
                "memory_mib": "" if one["memory"] is None else round(one["memory"] / 2**20),
                "difference": "" if one["difference"] is None else f"{one['difference']:.1e}",
                "problem": one["problem"],
                "rounds": result["rounds"],
                "processor": held["processor"],
                "cores": held["cores"],
                "threads": held["threads"],
                "versions": " ".join(f"{name} {version}" for name, version in held["versions"].items()),
                "date": held["date"],
            }
        )
    return lines


def rounded(value: float | None) -> str:
    """Four digits, or nothing."""
    return "" if value is None else f"{value:.4g}"


def page(rows: Sequence[Row], results: dict[str, Any]) -> str:
    """cpu.md."""
    parts = [
        "# The CPU engine beside other runtimes",
        "`python benchmarks/cpu.py`; every number with its spread is in [cpu.csv](cpu.csv). " + conditions(results),
        HOW_TO_READ,
        peers_table(rows, results),
        ours_table(rows, results),
    ]
    problems = [
        f"- {row.name}, {one['name']}: {one['problem']}"
        for row in rows
        for one in results[row.name]["rows"]
        if one["problem"]
    ]
    if problems:
        parts += ["## Not timed", "\n".join(problems)]
    parts += ["## Time against share", "![Time against share of FLOPs](cpu.png)"]
    if (KEPT / "limits.json").is_file() and ROOFLINE_ROW.name in results:
        parts += ["## How far from the machine's limits", roofline_note(results[ROOFLINE_ROW.name])]
    return "\n\n".join(parts) + "\n"


HOW_TO_READ = """\
*Share* is the FLOPs that were done over those of the plain network (the paper's count). *Speed-up* is the median time
of the fastest peer, which runs the plain network, over ours. *Realised* is the speed-up times the share: 100 % where
every FLOP that is saved is time that is saved, against the fastest peer. Shares are forced, since these networks are
not trained: around the objects of held-out scenes (*scenes*), or at random positions (*random*), the hard case. The
network named scenes is trained and halts by itself on held-out scenes. Outputs are compared before anything is timed,
and all contestants of a row take turns. Times are medians in milliseconds, with quartiles in brackets. *Memory* is what
a contestant adds to the process at the peak of a run, its own copies of the weights included."""


def conditions(results: dict[str, Any]) -> str:
    """The machine and versions of all rows; more than one where rows were measured under different ones."""
    lines = dict.fromkeys(describe(result).partition("; medians")[0] for result in results.values())
    rounds = [result["rounds"] for result in results.values()]
    span = f"{min(rounds)} to {max(rounds)}" if min(rounds) < max(rounds) else f"{min(rounds)}"
    return "; ".join(lines) + f"; {span} interleaved rounds."


def peers_table(rows: Sequence[Row], results: dict[str, Any]) -> str:
    """The plain network in every peer, and the adaptive one computed densely."""
    names = [*PEERS, "masked"]
    lines = [
        "## Dense: the plain network, and the adaptive one computed everywhere",
        "",
        "| network | images | GFLOPs | eager | torch.compile | ONNX Runtime | OpenVINO | adaptive, dense |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        result = results[row.name]
        by_name = {one["name"]: one for one in result["rows"]}
        cells = [row.model, "x".join(map(str, row.shape)), f"{result['plain_flops'] / 1e9:.3g}"]
        for name in names:
            cell = times(by_name[name]) if name in by_name else ""
            cells.append(f"**{cell}**" if name == result["fastest_peer"] else cell)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ours_table(rows: Sequence[Row], results: dict[str, Any]) -> str:
    """Our engines at every share."""
    lines = [
        "## Adaptive: our engines against the fastest peer",
        "",
        "| network | images | engine | masks | share | ms | speed-up | realised | memory, MiB | fastest peer, ms |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        result = results[row.name]
        fastest = next((one for one in result["rows"] if one["name"] == result["fastest_peer"]), None)
        for one in result["rows"]:
            if one["kind"] == "peer" or one["name"] == "masked" or not one["milliseconds"]:
                continue
            cells = [
                row.model,
                "x".join(map(str, row.shape)),
                one["name"],
                one["masks"] or "its own",
                f"{one['share']:.1%}",
                times(one),
                f"{one['speed_up']:.2f}" if one["speed_up"] else "",
                f"{one['realised_share']:.1%}" if one["realised_share"] else "",
                f"{one['memory'] / 2**20:.0f}" if one["memory"] is not None else "",
                f"{fastest['name']} {fastest['milliseconds']['median']:.3g}" if fastest else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def times(one: dict[str, Any]) -> str:
    """Median and quartiles."""
    spread = one["milliseconds"]
    if not spread:
        return "not timed"
    return f"{spread['median']:.3g} ({spread['lower_quartile']:.3g}-{spread['upper_quartile']:.3g})"


def roofline_note(result: dict[str, Any]) -> str:
    """Bytes and FLOPs per block, the limit they set, and how far the engine is from it."""
    limits = Limits(**json.loads((KEPT / "limits.json").read_text()))
    model, _ = prepare(ROOFLINE_ROW)
    parts = [
        f"{ROOFLINE_ROW.name}. A large matrix product reached {limits.gflops:.0f} GFLOP/s here and reading from memory "
        f"{limits.gigabytes:.1f} GB/s, so that less than {limits.gflops / limits.gigabytes:.1f} FLOPs per byte from "
        "memory leave the arithmetic units waiting. *Weights* is what a run reads from memory where they exceed the "
        "caches; *activations* is what all convolutions read and write at the positions they run, most of it in the "
        "caches. A block's limit is the longer of its FLOPs at that rate and its weights at that bandwidth."
    ]
    for share in ROOFLINE_SHARES:
        forcing = Forcing(share)
        units = force_units(model, ROOFLINE_ROW.shape, forcing)
        blocks = roofline(model, ROOFLINE_ROW.shape, units, limits)
        lines = [
            f"| share {share:g} | GFLOPs | weights, MB | activations, MB | FLOPs per weight byte | limit, ms | by |",
            "|---" * 7 + "|",
        ]
        for block in blocks:
            lines.append(
                f"| {block.name} | {block.flops / 1e9:.3f} | {block.weight_bytes / 1e6:.1f} | "
                f"{block.activation_bytes / 1e6:.1f} | {block.flops / block.weight_bytes:.0f} | "
                f"{1e3 * block.seconds:.2f} | {block.bound} |"
            )
        total = 1e3 * sum(block.seconds for block in blocks)
        measured = next(
            (
                one["milliseconds"]["median"]
                for one in result["rows"]
                if one["name"] == "native" and one["masks"] == MASKS[0] and one["wanted_share"] == share
                and one["milliseconds"]
            ),
            None,
        )  # fmt: skip
        took = f"; the engine took {measured:.1f} ms, the limit is {total / measured:.0%} of that" if measured else ""
        parts.append("\n".join(lines) + f"\n\nThe network's limit is {total:.1f} ms{took}.")
    return "\n\n".join(parts)


def plot(results: dict[str, Any], path: Path) -> None:
    """Time against share, both relative to the plain network in the fastest peer, with the proportional line."""
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    axes.plot([0, 1.02], [0, 1.02], color="#5f6368", linestyle="--", label="proportional to FLOPs")
    colors = iter(COLORS)
    dates = set()
    for name, result in results.items():
        if not name.startswith(PLOTTED):
            continue
        fastest = next((one for one in result["rows"] if one["name"] == result["fastest_peer"]), None)
        if fastest is None:
            continue
        dates.add(result["conditions"]["date"])
        dense, color = fastest["milliseconds"]["median"], next(colors)
        for masks, marker in zip(MASKS, ("o", "x"), strict=True):
            chosen = [
                one
                for one in result["rows"]
                if one["name"] == "native" and one["masks"] == masks and one["milliseconds"]
            ]
            if not chosen:
                continue
            chosen.sort(key=lambda one: float(one["share"]))
            spreads = [one["milliseconds"] for one in chosen]
            middles = [spread["median"] / dense for spread in spreads]
            errors = [
                [(spread["median"] - spread["lower_quartile"]) / dense for spread in spreads],
                [(spread["upper_quartile"] - spread["median"]) / dense for spread in spreads],
            ]
            label = f"{name.partition('-')[2]}, {masks} (fastest peer: {result['fastest_peer']})"
            xs = [one["share"] for one in chosen]
            axes.errorbar(xs, middles, yerr=errors, marker=marker, color=color, label=label, capsize=2)
    axes.set(
        xlabel="share of the plain network's FLOPs",
        ylabel="time over the fastest peer's",
        title=f"{PLOTTED}, SACT, {', '.join(sorted(dates))}",
        xlim=(0, 1.05),
        ylim=(0, None),
    )
    axes.axhline(1.0, color="#9aa0a6", linewidth=0.8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())

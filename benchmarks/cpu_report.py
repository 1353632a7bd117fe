"""The report of `cpu.py`: tables, a plot and a roofline note from kept measurements."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from cells import short, times
from roofline import Limits, Part
from study_report import fill, write_csv

import sact
from sact.bench import MASKS, PEERS, describe
from sact.files import replacing, write_text

HERE = Path(__file__).resolve().parent
HEADLINE_ROW = "resnet101-1x224x224"
PLOTTED = "resnet101"
LARGE_NETWORK, LARGE_SHARE = "resnet50", 0.5
COLORS = ("#1a73e8", "#e37400", "#188038", "#a142f4")


def write_report(kept: Path, out: Path, names: Sequence[str]) -> None:
    """cpu.md, cpu.csv and cpu.png from kept measurements; the README's table too, where `out` is this folder.

    Args:
        kept: folder of <row>.json, limits.json and parts.json.
        out: where the report goes.
        names: rows, as they are listed; those that were not measured are left out.

    Raises:
        InputError: nothing was measured.
    """
    results = {
        name: json.loads((kept / f"{name}.json").read_text()) for name in names if (kept / f"{name}.json").is_file()
    }
    if not results:
        raise sact.InputError("nothing was measured yet; leave out --only, or name rows behind it")
    write_csv(out / "cpu.csv", [line for name, result in results.items() for line in flat(name, result)])
    plot(results, out / "cpu.png")
    limits, parts = kept / "limits.json", kept / "parts.json"
    roofline = ""
    if limits.is_file() and parts.is_file():
        measured = json.loads(parts.read_text())["measured"]
        roofline = roofline_note(Limits(**json.loads(limits.read_text())), measured, results.get(measured[0]["row"]))
    write_text(out / "cpu.md", page(results, roofline))
    if out.resolve() == HERE and HEADLINE_ROW in results:
        fill(HERE.parent / "README.md", "cpu", headline(results))
    print(f"the report is in {out / 'cpu.md'}")


def network_and_images(name: str) -> tuple[str, str]:
    """The two parts of a row's name."""
    network, _, images = name.rpartition("-")
    return network, images


def fastest_peer(result: dict[str, Any]) -> dict[str, Any] | None:
    """The measurements of the peer that the others are held against; None where none was timed."""
    return next((one for one in result["rows"] if one["name"] == result["fastest_peer"]), None)


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
    peer = fastest_peer(result)
    if peer is None:
        return "\n".join(lines)
    lines.append(
        f"\n`python benchmarks/cpu.py`; {HEADLINE_ROW}, medians and quartiles, against the plain network in the "
        f"fastest peer ({peer['name']}, {peer['milliseconds']['median']:.1f} ms); {conditions({HEADLINE_ROW: result})}"
    )
    return "\n".join(lines)


def flat(row: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row's measurements as lines of the CSV, each with its conditions."""
    held = result["conditions"]
    network, images = network_and_images(row)
    lines = []
    for one in result["rows"]:
        times = one["milliseconds"] or dict.fromkeys(("lower_quartile", "median", "upper_quartile"))
        lines.append(
            {
                "network": network,
                "images": images,
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


def page(results: dict[str, Any], roofline: str) -> str:
    """cpu.md."""
    parts = [
        "# The CPU engine beside other runtimes",
        "`python benchmarks/cpu.py`; every number with its spread is in [cpu.csv](cpu.csv). " + conditions(results),
        HOW_TO_READ,
        peers_table(results),
        ours_table(results),
    ]
    problems = [
        f"- {name}, {one['name']}: {one['problem']}"
        for name, result in results.items()
        for one in result["rows"]
        if one["problem"]
    ]
    if problems:
        parts += ["## Not timed", "\n".join(problems)]
    parts += ["## Time against share", "![Time against share of FLOPs](cpu.png)"]
    large = large_table(results)
    if large:
        parts += ["## Large pictures", large]
    if roofline:
        parts += ["## How far from the machine's limits", roofline]
    return "\n\n".join(parts) + "\n"


HOW_TO_READ = """\
*Share* is the FLOPs that were done over those of the plain network (the paper's count). *Speed-up* is the median time
of the fastest peer, which runs the plain network, over ours. *Realised* is the speed-up times the share: 100 % where
every FLOP that is saved is time that is saved, against the fastest peer; more is possible, since our engine runs 3x3
convolutions in tiles (Winograd's minimal filtering), with fewer products than FLOPs are counted. Shares are forced,
since these networks are not trained: around the objects of held-out scenes (*scenes*), or at random positions
(*random*), the hard case. The network named scenes is trained and halts by itself on held-out scenes. Outputs are
compared before anything is timed, and all contestants of a row take turns. Times are medians in milliseconds, with
quartiles in brackets. *Memory* is what a contestant adds to the process at the peak of a run, its own copies of the
weights included. Large pictures have one peer, ONNX Runtime; an empty cell was not measured."""


def conditions(results: dict[str, Any]) -> str:
    """The machine and versions of all rows; more than one where rows were measured under different ones."""
    lines = dict.fromkeys(describe(result).partition("; medians")[0] for result in results.values())
    rounds = [result["rounds"] for result in results.values()]
    span = f"{min(rounds)} to {max(rounds)}" if min(rounds) < max(rounds) else f"{min(rounds)}"
    return "; ".join(lines) + f"; {span} interleaved rounds."


def peers_table(results: dict[str, Any]) -> str:
    """The plain network in every peer, and the adaptive one computed densely."""
    names = [*PEERS, "masked"]
    lines = [
        "## Dense: the plain network, and the adaptive one computed everywhere",
        "",
        "| network | images | GFLOPs | eager | torch.compile | ONNX Runtime | OpenVINO | adaptive, dense |",
        "|---" * 8 + "|",
    ]
    for row, result in results.items():
        by_name = {one["name"]: one for one in result["rows"]}
        cells = [*network_and_images(row), short(result["plain_flops"] / 1e9)]
        for name in names:
            cell = times(by_name[name]) if name in by_name else ""
            cells.append(f"**{cell}**" if name == result["fastest_peer"] else cell)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ours_table(results: dict[str, Any]) -> str:
    """Our engines at every share."""
    lines = [
        "## Adaptive: our engines against the fastest peer",
        "",
        "| network | images | engine | masks | share | ms | speed-up | realised | memory, MiB | fastest peer, ms |",
        "|---" * 10 + "|",
    ]
    for row, result in results.items():
        fastest = fastest_peer(result)
        for one in result["rows"]:
            if one["kind"] == "peer" or one["name"] == "masked" or not one["milliseconds"]:
                continue
            cells = [
                *network_and_images(row),
                one["name"],
                one["masks"] or "its own",
                f"{one['share']:.1%}",
                times(one),
                f"{one['speed_up']:.2f}" if one["speed_up"] else "",
                f"{one['realised_share']:.1%}" if one["realised_share"] else "",
                f"{one['memory'] / 2**20:.0f}" if one["memory"] is not None else "",
                f"{fastest['name']} {short(fastest['milliseconds']['median'])}" if fastest else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def large_table(results: dict[str, Any]) -> str:
    """Time and memory of one network by the size of the picture."""
    lines = [
        "| network | images | share | megapixels | ms | ms per megapixel | memory, MiB | fastest peer's memory |",
        "|---" * 8 + "|",
    ]
    for row, result in results.items():
        network, images = network_and_images(row)
        count, height, width = map(int, images.split("x"))
        if network != LARGE_NETWORK or count > 1:
            continue
        peer = fastest_peer(result)
        for one in result["rows"]:
            if one["name"] != "native" or one["wanted_share"] != LARGE_SHARE or not one["milliseconds"]:
                continue
            pixels = height * width / 1e6
            memory = [one["memory"], peer["memory"] if peer else None]
            cells = [network, images, f"{one['share']:.1%}", f"{pixels:.2f}", times(one)]
            cells.append(f"{one['milliseconds']['median'] / pixels:.0f}")
            cells += [f"{each / 2**20:.0f}" if each is not None else "" for each in memory]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def roofline_note(limits: Limits, measured: list[dict[str, Any]], result: dict[str, Any] | None) -> str:
    """Bytes and FLOPs per block, the limit they set, and how far the engine is from it."""
    texts = [
        f"{measured[0]['row']}. A large matrix product reached {limits.gflops:.0f} GFLOP/s here, reading from memory "
        f"{limits.gigabytes:.1f} GB/s, so that less than {limits.gflops / limits.gigabytes:.1f} FLOPs per byte from "
        "memory leave the arithmetic units waiting. *Weights* is what a run reads from memory where they exceed the "
        "caches; *activations* is what all convolutions read and write at the positions they run, most of it in the "
        "caches. A limit is the longer of the FLOPs at that rate and the weights at that bandwidth. FLOPs are the "
        "paper's count; 3x3 convolutions in tiles take 16 products for 36 of them, so the engine may pass the limit. "
        "*Took* is the difference of median times of networks of the first blocks."
    ]
    for one in measured:
        lines = [
            f"| share {one['share']:g} | GFLOPs | weights, MB | activations, MB | FLOPs per weight byte | "
            "limit, ms | by | took, ms | limit / took |",
            "|---" * 9 + "|",
        ]
        total = [0.0, 0.0]
        for held in one["parts"]:
            taken = held["seconds"]
            part = Part(**{name: held[name] for name in Part._fields})
            least, bound = part.limit(limits)
            total = [total[0] + least, total[1] + taken]
            lines.append(
                f"| {part.name} | {part.flops / 1e9:.3f} | {part.weight_bytes / 1e6:.1f} | "
                f"{part.activation_bytes / 1e6:.1f} | {part.flops / part.weight_bytes:.0f} | "
                f"{1e3 * least:.2f} | {bound} | {1e3 * taken:.2f} | {least / taken:.0%} |"
            )
        least, taken = total
        lines.append(f"| all | | | | | {1e3 * least:.2f} | | {1e3 * taken:.2f} | {least / taken:.0%} |")
        texts.append("\n".join(lines))
        peer = fastest_peer(result) if result else None
        if result and peer:
            share = sum(held["flops"] for held in one["parts"]) / result["plain_flops"]
            realised = share * peer["milliseconds"]["median"] / (1e3 * least)
            texts.append(f"At the limit the realised share against {peer['name']} would be {realised:.1%}.")
    return "\n\n".join(texts)


def plot(results: dict[str, Any], path: Path) -> None:
    """Time against share, both relative to the plain network in the fastest peer, with the proportional line."""
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    axes.plot([0, 1.02], [0, 1.02], color="#5f6368", linestyle="--", label="proportional to FLOPs")
    colors = iter(COLORS)
    dates = set()
    for name, result in results.items():
        if not name.startswith(PLOTTED):
            continue
        fastest = fastest_peer(result)
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

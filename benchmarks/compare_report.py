"""Fill the tables of docs/compare.md with what benchmarks/compare.py measured.

python benchmarks/compare_report.py [--results runs/compare/results.json] [--page docs/compare.md]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cells import short, times
from study import ROOT
from study_report import fill

from sact.errors import InputError


class Facts(NamedTuple):
    """What a table says of a network that nobody has to measure."""

    label: str
    dense: str
    deterministic: str


FACTS = {
    "full": Facts("plain, full", "yes", "yes"),
    "same": Facts("plain, SACT's FLOPs", "yes", "yes"),
    "act": Facts("ACT", "yes", "yes"),
    "sact": Facts("SACT", "yes", "yes"),
    "gumbel": Facts("Gumbel gates", "yes", "at inference; noise in training"),
    "ram": Facts("glimpses (RAM)", "no", "at inference, with mean locations; drawn in training"),
}
WAYS = {
    "dense": "everything is computed",
    "engine": "`sact.compile(model)`",
    "gather": '`sact.compile(model, "gather")`',
    "perforated": "active positions, by the gather engine's operators",
}


def main() -> int:
    """Write the page's tables; the exit code is 2 where there are no results."""
    parser = argparse.ArgumentParser(description="Write the tables of docs/compare.md.")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "compare" / "results.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "compare.md")
    options = parser.parse_args()
    try:
        results = read(options.results)
    except InputError as error:
        print(f"compare_report: {error}", file=sys.stderr)
        return 2
    fill(options.page, "compare", f"{table(results)}\n\n{notes(results)}")
    fill(options.page, "ways", ways_table(results))
    print(table(results))
    return 0


def read(path: Path) -> dict[str, Any]:
    """The results of benchmarks/compare.py.

    Raises:
        InputError: there are none, or they are no JSON.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}); run benchmarks/compare.py first") from error


def table(results: dict[str, Any]) -> str:
    """A row per network, timed in the way that is fastest at each batch size."""
    batches = [f"batch {timed['batch']}: ms per image | time of full" for timed in results["times"]]
    head = ["network", "top-1 %", "MFLOPs", "FLOPs of full", *batches, "dense outputs", "deterministic"]
    lines = [f"| {' | '.join(head)} |", "|---" * (6 + 2 * len(batches)) + "|"]
    full = results["rows"]["full"]["flops"]
    for name, facts in FACTS.items():
        row = results["rows"][name]
        varies = f" ± {row['flops_std'] / 1e6:.1f}" if row["flops_std"] else ""
        cells = [
            facts.label + (f", tau {row['tau']:g}" if row.get("tau") is not None else ""),
            f"{100 * row['top1']:.2f} ± {100 * row['top1_error']:.2f}",
            f"{row['flops'] / 1e6:.1f}{varies}",
            f"{100 * row['flops'] / full:.1f} %",
        ]
        for timed in results["times"]:
            cells += time_cells(fastest(timed, name), fastest(timed, "full"), timed["batch"])
        lines.append(f"| {' | '.join([*cells, facts.dense, facts.deterministic])} |")
    return "\n".join(lines)


def ways_table(results: dict[str, Any]) -> str:
    """A row per network and way to run it, beside the full plain network run by the same kernels."""
    if not results["times"]:
        return "Not timed."
    batches = [f"batch {timed['batch']}: ms per image | time of full there" for timed in results["times"]]
    lines = [
        f"| network | evaluated | by | {' | '.join(batches)} |",
        "|---" * (3 + 2 * len(batches)) + "|",
    ]
    for index, one in enumerate(results["times"][0]["rows"]):
        cells = [FACTS[one["network"]].label, WAYS[one["way"]], one["runs_in"]]
        for timed in results["times"]:
            plain = fastest(timed, "full", one["runs_in"])
            cells += time_cells(timed["rows"][index], plain, timed["batch"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def fastest(timed: dict[str, Any], network: str, runs_in: str | None = None) -> dict[str, Any]:
    """The fastest way that a network was timed in, by certain kernels if they are named; without times if none was."""
    rows = [row for row in timed["rows"] if row["network"] == network and runs_in in (None, row["runs_in"])]
    rows = [row for row in rows if row["milliseconds"]]
    return min(rows, key=lambda row: row["milliseconds"]["median"], default={"milliseconds": None})


def time_cells(one: dict[str, Any], full: dict[str, Any], batch: int) -> list[str]:
    """Median and quartiles per image, and the ratio to the full plain network's median."""
    if not one["milliseconds"] or not full["milliseconds"]:
        return [times(one), ""]
    each = {"milliseconds": {name: value / batch for name, value in one["milliseconds"].items()}}
    return [times(each), short(one["milliseconds"]["median"] / full["milliseconds"]["median"])]


def notes(results: dict[str, Any]) -> str:
    """The conditions that the numbers hold under, and what did not get into the table."""
    held = results["conditions"]
    lines = [
        f"`python benchmarks/compare.py`, {held['date']}, {held['processor']} ({held['cores']} cores), "
        f"one thread, PyTorch {held['versions']['torch']}; {results['length']} held-out scenes, one training run each; "
        "± is the standard error of top-1, and the standard deviation of FLOPs over images. Times are processor time, "
        f"medians (and quartiles) of {rounds(results['times'])} turns; each network's are those of its fastest way to "
        "run, as the next table has them, and the ratio is to the full plain network's fastest."
    ]
    sampled = results["rows"]["ram-sampled"]
    lines.append(
        f"With locations drawn as in training instead of their means, the glimpse model reaches "
        f"{100 * sampled['top1']:.2f} ± {100 * sampled['top1_error']:.2f} %."
    )
    trained = results["training"]
    lines.append(
        "Training the baselines took "
        + " and ".join(
            f"{trained[name]['seconds'] / 60:.0f} minutes ({trained[name]['images']} images; {FACTS[name].label})"
            for name in ("gumbel", "ram")
        )
        + ", on one core that was not always free."
    )
    for timed in results["times"]:
        for one in timed["rows"]:
            if one["problem"]:
                lines.append(f"{FACTS[one['network']].label}, {WAYS[one['way']]}, is not timed: {one['problem']}.")
    return "\n\n".join(lines)


def rounds(timings: Sequence[dict[str, Any]]) -> str:
    """Turns per batch size, as text."""
    return " and ".join(f"{timed['rounds']} (batch {timed['batch']})" for timed in timings) or "no"


if __name__ == "__main__":
    raise SystemExit(main())

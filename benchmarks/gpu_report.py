"""The report of `gpu.py`: what is wanted, row by row, and what kept measurements say to it. It needs no GPU."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cells import short, times

from sact.files import replacing, write_text

AIM = 0.95
"""Of the rows with large batches, beyond their bar."""
MEMORY_BAR = 0.7
"""Most memory of a training step, as a share of the plain network's."""
COMPILED_PEERS = {"inference": "max-autotune", "training": "compile"}
"""The peer without which the fastest one may not have been there."""
PENDING = "to be measured"
LEFT_OUT = "left_out.json"


class Row(NamedTuple):
    """One network, precision and input, at several shares of the plain network's FLOPs.

    Attributes:
        kind: "inference" or "training".
        precision: "bf16" or "fp32"; of a training step's autocast.
        shape: (N, H, W) of the images.
        shares: to reach.
    """

    kind: str
    precision: str
    shape: tuple[int, int, int]
    shares: tuple[float, ...]

    @property
    def name(self) -> str:
        """What `--only` takes."""
        first = "training" if self.kind == "training" else self.precision
        return f"{first}-{self.images}"

    @property
    def images(self) -> str:
        """As text: NxHxW."""
        return "x".join(map(str, self.shape))

    def bar(self, share: float) -> float:
        """The least realised share."""
        if self.kind == "training":
            return 0.75
        if share == 1.0:
            return 0.97
        return 0.85 if self.shape[0] > 1 else 0.8

    def aims(self, share: float) -> bool:
        """Whether `AIM` holds."""
        return self.kind == "inference" and self.shape[0] > 1 and share < 1.0


ROWS = (
    Row("inference", "bf16", (64, 224, 224), (0.3, 0.5, 0.7, 1.0)),
    Row("training", "bf16", (64, 224, 224), (0.5,)),
    Row("inference", "bf16", (1, 224, 224), (0.5, 0.7, 1.0)),
    Row("inference", "bf16", (16, 448, 448), (0.3, 0.5, 0.7, 1.0)),
    Row("inference", "fp32", (1, 224, 224), (0.5, 0.7, 1.0)),
    Row("inference", "bf16", (1, 640, 480), (0.5, 0.7, 1.0)),
    Row("inference", "fp32", (1, 640, 480), (0.5, 0.7, 1.0)),
)
"""The most important ones first."""


def write_report(kept: Path, out: Path, rows: Sequence[Row] = ROWS) -> str:
    """gpu.md, and gpu.csv where something was measured. Returns the page.

    Args:
        kept: folder of <row>.json, and of what the last run left out.
        out: where the report goes.
        rows: all that are wanted; the report lists those without measurements as well.
    """
    results = {row.name: json.loads(path.read_text()) for row in rows if (path := kept / f"{row.name}.json").is_file()}
    left_out = json.loads((kept / LEFT_OUT).read_text()) if (kept / LEFT_OUT).is_file() else {}
    text = page(rows, results, left_out)
    lines = [line for row in rows if row.name in results for line in flat(row, results[row.name])]
    if lines:
        write_csv(out / "gpu.csv", lines)
    write_text(out / "gpu.md", text)
    return text


def write_csv(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Lines, whose keys may differ, as CSV. That of `study_report.py` needs packages that a GPU's machine may lack."""
    names = dict.fromkeys(name for line in lines for name in line)
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(names))
        writer.writeheader()
        writer.writerows(lines)


def page(rows: Sequence[Row], results: dict[str, Any], left_out: dict[str, str]) -> str:
    """gpu.md."""
    missing = [row.name for row in rows if row.name not in results]
    parts = ["# The GPU engine beside the plain network", introduction(missing, bool(results)), HOW_TO_READ]
    parts += ["## Against the bars", bars_table(rows, results)]
    parts += ["## Training memory", MEMORY, memory_table(rows, results)]
    parts += ["## The plain network in each peer", peers_table(rows, results)]
    parts += ["## How far from the machine's limits", ROOFLINE, limits_table(results), roofline_table(rows, results)]
    problems = [
        f"- {name}, {label(one)}: {one['problem']}"
        for name, result in results.items()
        for one in result["contestants"]
        if one["problem"]
    ]
    problems += [f"- {name}, left out of the last call: {reason}" for name, reason in left_out.items()]
    if problems:
        parts += ["## Not timed", "\n".join(problems)]
    parts += ["## Checked without a GPU", CHECKED]
    parts += ["## Environment", environments(results) or f"- {PENDING}"]
    return "\n\n".join(part for part in parts if part) + "\n"


def introduction(missing: Sequence[str], any_measured: bool) -> str:
    """The command, and which numbers there are."""
    text = (
        "`python benchmarks/gpu.py` on a machine with a CUDA device; less than ten minutes a call, and calls add up: "
        "a call first measures what is missing. (`--quick`, without max-autotune, measures more per call. Where units "
        "run is found from scenes, whose photographs and clothes a bare machine may lack: run `--prepare` elsewhere "
        "and take `runs/bench-gpu` along.)"
    )
    if not any_measured:
        return f"**The numbers are still to be measured on a GPU.** {text}"
    text += " Every number with its spread is in [gpu.csv](gpu.csv)."
    return f"{text} **Still to be measured: {listed(missing)}.**" if missing else text


def listed(names: Iterable[str]) -> str:
    """Names, as in a sentence."""
    return ", ".join(names)


HOW_TO_READ = """\
ResNet-101 with SACT. *Share* is the FLOPs that were done over those of the plain network (the paper's count: a run's
`ponder.flops` over its `ponder.dense_flops`). *Speed-up* is the time of the fastest peer, which runs the plain network,
over ours. *Realised* is the speed-up times the share: 100 % where every FLOP that is saved is time that is saved. The
network is not trained, so where units run is forced: around the objects of held-out scenes. Its images are noise, of
which its norms have the statistics.

Peers: the plain network in eager PyTorch (channels-last, cudnn.benchmark) and in torch.compile (max-autotune; in
training, and wherever max-autotune could not be had, the default mode), at inference each in a CUDA graph; the fastest
counts. Ours is `sact.compile(model, "triton", freeze=True)`, which captures itself in a graph, and in training
`sact.compile(model, "triton")`. Float32 means TF32 products for everybody, as that is the faster dense choice. A
training step is zeroed gradients, forward, loss, backward and SGD with momentum: float32 weights, bf16 autocast, norms
in evaluation mode.

Outputs come before times. All are held against the definition in float32 without TF32, of the same weights and unit
counts, by the largest difference as a share of the largest logit. It may be twice that of plain PyTorch (the masked
definition, for ours) in the same precision, plus one rounding; in training that of the gradient, by norm, three times.
Without TF32 our float32 differs by at most 1e-4. Unit counts are equal. Whoever fails gets no time.

Times are medians in milliseconds, quartiles in brackets: CUDA events around several runs, contestants in turns, at
least 20 of them; the L2 cache is not flushed between runs. Every run takes its images from the same tensor, which a
graph's copies into its own; ours also copies logits and ponder out."""

MEMORY = """\
What a training step adds to the memory that PyTorch has allocated before it (weights, momentum), at its highest point;
gradients count. Held against the fastest peer's."""

ROOFLINE = """\
A part is a block, with the stem or the head beside it. Its limit is the longer of its FLOPs at the rate of a large
matrix product, and its bytes at the bandwidth of a large copy (read and written): each convolution, those of the score
heads included, reads its input and its weights once and writes its output, ours at the positions that it runs; each
unit reads the state that it adds to, and ours reads and writes the block's output as well. A network's limit is the sum
of its parts'; what stays in the L2 cache from one layer to the next can beat it. *Realised at the limits* is what the
realised share would be if the plain network and ours both took no more than that."""

CHECKED = """\
- Every kernel passes its tests in Triton's interpreter, on the CPU, against its definition in plain PyTorch.
- Every kernel compiles for Hopper (sm_90); those of convolutions have tensor-core products and asynchronous copies.

`python -m pytest tests/test_triton.py` does both."""


def bars_table(rows: Sequence[Row], results: dict[str, Any]) -> str:
    """Ours at every share, with its bar."""
    lines = [
        "| run | precision | images | share | ms | fastest peer, ms | speed-up | differs (may) | realised | bar | "
        "verdict |",
        "|---" * 11 + "|",
    ]
    for row in rows:
        result = results.get(row.name)
        for share in row.shares:
            first = [row.kind, row.precision, row.images]
            wanted = f"≥ {row.bar(share):.0%}" + (f", aim {AIM:.0%}" if row.aims(share) else "")
            one = find(result, share)
            cells = [f"{share:.0%}", "", "", "", "", ""]
            if result and one:
                peer = fastest_peer(result)
                cells = [
                    f"{one['flops'] / result['plain_flops']:.1%}",
                    times(one) + (" (no graph)" if row.kind == "inference" and not one["graph"] else ""),
                    f"{peer['name']} {times(peer)}" if peer else "",
                    f"{one['speed_up']:.2f}" if one["speed_up"] else "",
                    f"{one['difference']:.1e} ({one['allowed']:.1e})" if one["difference"] is not None else "",
                    f"{one['realised_share']:.1%}" if one["realised_share"] else "",
                ]
            lines.append(f"| {' | '.join([*first, *cells, wanted, verdict(row, share, result)])} |")
    return "\n".join(lines)


def verdict(row: Row, share: float, result: dict[str, Any] | None) -> str:
    """What the numbers say to the bar."""
    one = find(result, share)
    if result is None or one is None:
        return PENDING
    realised = one["realised_share"]
    if realised is None:
        return "no peer" if one["milliseconds"] else "not timed"
    text = "met" if realised >= row.bar(share) else "missed"
    if row.aims(share) and realised >= AIM:
        text += ", aim too"
    compiled = COMPILED_PEERS[row.kind]
    if not any(peer["name"] == compiled and peer["milliseconds"] for peer in result["contestants"]):
        text += f" (without {compiled})"
    return text


def memory_table(rows: Sequence[Row], results: dict[str, Any]) -> str:
    """What a training step adds, ours and each peer's."""
    lines = [
        "| precision | images | share | MiB | peers, MiB | ours over the fastest peer's | bar | |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        if row.kind != "training":
            continue
        result = results.get(row.name)
        for share in row.shares:
            cells = ["", "", ""]
            one, peer = find(result, share), fastest_peer(result)
            said = PENDING
            if result and one:
                peers = [
                    f"{each['name']} {mib(each['memory'])}"
                    for each in result["contestants"]
                    if each["share"] is None and each["memory"] is not None
                ]
                ratio = one["memory"] / peer["memory"] if peer and peer["memory"] and one["memory"] else None
                cells = [mib(one["memory"]), listed(peers), "" if ratio is None else f"{ratio:.2f}"]
                said = "not measured" if ratio is None else "met" if ratio <= MEMORY_BAR else "missed"
            line = [row.precision, row.images, f"{share:.0%}", *cells, f"≤ {MEMORY_BAR}", said]
            lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def peers_table(rows: Sequence[Row], results: dict[str, Any]) -> str:
    """The plain network's times; the fastest stands out."""
    names = ("eager", "max-autotune", "compile")
    lines = [
        "| run | precision | images | GFLOPs | eager, ms | max-autotune, ms | torch.compile, default mode, ms |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        result = results.get(row.name)
        cells = ["", PENDING, "", ""]
        if result:
            by_name = {one["name"]: one for one in result["contestants"] if one["share"] is None}
            shown = [times(by_name[name]) if name in by_name else "" for name in names]
            pairs = zip(names, shown, strict=True)
            cells = [short(result["plain_flops"] / 1e9)]
            cells += [f"**{cell}**" if name == result["fastest_peer"] else cell for name, cell in pairs]
        lines.append(f"| {' | '.join([row.kind, row.precision, row.images, *cells])} |")
    return "\n".join(lines)


def limits_table(results: dict[str, Any]) -> str:
    """What the machines do at most."""
    lines = ["| copying, GB/s | bf16 products, TFLOP/s | TF32 products, TFLOP/s |", "|---|---|---|"]
    found = {
        f"| {limits['copy'] / 1e9:.0f} | {limits['bf16'] / 1e12:.0f} | {limits['fp32'] / 1e12:.0f} |": None
        for limits in (result["limits"] for result in results.values())
    }
    return "\n".join([*lines, *(found or [f"| {PENDING} | | |"])])


def least_seconds(parts: Sequence[dict[str, Any]], limits: dict[str, float], precision: str) -> tuple[float, ...]:
    """(At the rate of products, at the copy's bandwidth, at the longer of the two part by part.)"""
    arithmetic = [part["flops"] / limits[precision] for part in parts]
    moving = [part["bytes"] / limits["copy"] for part in parts]
    return sum(arithmetic), sum(moving), sum(map(max, arithmetic, moving))


def roofline_table(rows: Sequence[Row], results: dict[str, Any]) -> str:
    """Limits beside what was measured, of the plain network and of ours."""
    lines = [
        "| precision | images | network | GFLOPs | MB | FLOPs alone, ms | bytes alone, ms | limit, ms | took, ms | "
        "limit / took | realised at the limits |",
        "|---" * 11 + "|",
    ]
    for row in rows:
        if row.kind != "inference":
            continue
        result = results.get(row.name)
        if result is None:
            lines.append(f"| {row.precision} | {row.images} | {PENDING} |" + " |" * 8)
            continue
        plain = least_seconds(result["parts"], result["limits"], row.precision)[-1]
        shown = [("plain", result["parts"], fastest_peer(result))]
        shown += [(label(one), one["parts"], one) for one in result["contestants"] if one["share"] is not None]
        for name, parts, one in shown:
            if not parts:
                continue
            arithmetic, moving, least = least_seconds(parts, result["limits"], row.precision)
            flops, moved = (sum(part[what] for part in parts) for what in ("flops", "bytes"))
            taken = one["milliseconds"]["median"] if one and one["milliseconds"] else None
            cells = [row.precision, row.images, name, short(flops / 1e9), short(moved / 1e6)]
            cells += [short(1e3 * seconds) for seconds in (arithmetic, moving, least)]
            cells += [short(taken), f"{1e3 * least / taken:.0%}"] if taken else ["", ""]
            cells.append("" if name == "plain" else f"{plain / least * flops / result['plain_flops']:.0%}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def environments(results: dict[str, Any]) -> str:
    """Where rows were measured; one line per environment and command."""
    held: dict[str, list[str]] = {}
    for name, result in results.items():
        text = "; ".join(f"{what} {value}" for what, value in result["environment"].items() if what != "command")
        held.setdefault(f"{text}; `{result['environment']['command']}`", []).append(name)
    return "\n".join(f"- {listed(names)}: {text}" for text, names in held.items())


def flat(row: Row, result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row's measurements as lines of the CSV, each with its environment."""
    lines = []
    for one in result["contestants"]:
        spread = one["milliseconds"] or dict.fromkeys(("lower_quartile", "median", "upper_quartile"))
        ours = one["share"] is not None
        parts = one["parts"] if ours else result["parts"]
        least = least_seconds(parts, result["limits"], row.precision)[-1] if parts else None
        lines.append(
            {
                "kind": row.kind,
                "precision": row.precision,
                "images": row.images,
                "contestant": one["name"],
                "wanted_share": one["share"] if ours else "",
                "share": f"{one['flops'] / result['plain_flops']:.4f}",
                "flops": one["flops"],
                "median_ms": rounded(spread["median"]),
                "lower_quartile_ms": rounded(spread["lower_quartile"]),
                "upper_quartile_ms": rounded(spread["upper_quartile"]),
                "speed_up": rounded(one["speed_up"]),
                "realised_share": rounded(one["realised_share"]),
                "bar": row.bar(one["share"]) if ours else "",
                "verdict": verdict(row, one["share"], result) if ours else "",
                "limit_ms": rounded(None if least is None else 1e3 * least),
                "difference": rounded(one["difference"]),
                "allowed": rounded(one["allowed"]),
                "graph": one["graph"],
                "memory_mib": "" if one["memory"] is None else mib(one["memory"]),
                "problem": one["problem"],
                "turns": result["turns"],
                **{f"limit_{name}": f"{value:.4g}" for name, value in result["limits"].items()},
                **result["environment"],
            }
        )
    return lines


def find(result: dict[str, Any] | None, share: float) -> dict[str, Any] | None:
    """What was found for ours at a wanted share."""
    return next((one for one in (result or {}).get("contestants", []) if one["share"] == share), None)


def fastest_peer(result: dict[str, Any] | None) -> dict[str, Any] | None:
    """The peer that ours is held against; None where none was timed."""
    if result is None:
        return None
    found = (one for one in result["contestants"] if one["share"] is None and one["name"] == result["fastest_peer"])
    return next(found, None)


def label(one: dict[str, Any]) -> str:
    """A contestant's name with what was asked of it."""
    return f"plain in {one['name']}" if one["share"] is None else f"{one['name']} at {one['share']:g}"


def mib(count: int | None) -> str:
    """Bytes as MiB."""
    return "" if count is None else f"{count / 2**20:.0f}"


def rounded(value: float | None) -> str:
    """Four digits, or nothing."""
    return "" if value is None else f"{value:.4g}"

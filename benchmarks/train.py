"""A training step that skips what has halted, on the CPU; writes benchmarks/train.md.

    python benchmarks/train.py [--only resnet50-8x224x224 ...] [--rounds 7] [--threads 2]

A step is forward, backward and the loss, with norms in evaluation mode. The plain network takes its turns in eager
PyTorch (channels last) and in torch.compile; the adaptive one by its definition and through the gather engine, whose
gradients are compared with the definition's first. Kept for the backward pass is what autograd saves, parameters
excluded. A row's measurements are kept in runs/bench-train, so that `--only` measures some anew and the report still
has all; `--only` without names writes the report alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from study_report import fill
from torch import Tensor, nn

import sact
from sact.bench import Forcing, force_units
from sact.bench.peers import plain_network
from sact.bench.report import conditions
from sact.files import write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "runs" / "bench-train"
OUT = Path(__file__).resolve().with_suffix(".md")
TAU = 0.01
BAR = 0.7
TOLERANCE = 1e-9
"""Largest difference of a float64 gradient, as a share of its largest entry, with which the engine is timed. (Float32
says little of an untrained network: signs of activations near zero differ, and the definition is itself 1e-3 off.)"""

Step = Callable[[], object]


class Row(NamedTuple):
    """One network and input, at several shares of its FLOPs."""

    model: str
    shape: tuple[int, int, int]
    shares: tuple[float, ...]

    @property
    def name(self) -> str:
        """What `--only` takes."""
        return f"{self.model}-{'x'.join(map(str, self.shape))}"


HEADLINE_ROW = "resnet101-8x224x224"
ROWS = (
    Row("resnet50", (8, 224, 224), (0.5, 0.7)),
    Row("resnet101", (8, 224, 224), (0.3, 0.5, 0.7, 1.0)),
    Row("resnet101", (2, 448, 448), (0.5,)),
    Row("cifar_resnet110", (64, 32, 32), (0.5,)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a training step that skips what has halted.")
    names = [row.name for row in ROWS]
    parser.add_argument("--only", nargs="*", choices=names, metavar="ROW", help=f"measure these: {', '.join(names)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for row in ROWS:
        if row.name in (names if options.only is None else options.only):
            result = measure(row, options.rounds) | {"conditions": conditions(options.threads)}
            write_json(KEPT / f"{row.name}.json", result)
            print("\n".join(table([result])), flush=True)
    kept = [KEPT / f"{name}.json" for name in names]
    results = [json.loads(path.read_text()) for path in kept if path.is_file()]
    write_text(OUT, report(results))
    for result in results:
        if result["row"] == HEADLINE_ROW:
            fill(ROOT / "README.md", "train", headline(result))


def measure(row: Row, rounds: int) -> dict[str, Any]:
    """Compare gradients, then let all take turns."""
    torch.manual_seed(0)
    adaptive = sact.create_model(row.model, halting="sact").eval().to(memory_format=torch.channels_last)
    plain = plain_network(adaptive)
    images = torch.randn(row.shape[0], 3, *row.shape[1:]).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (len(images),))
    compiled = torch.compile(plain, dynamic=False)
    steps: dict[str, Step] = {
        "plain in eager PyTorch": lambda: dense_step(plain, plain, images, labels),
        "plain in torch.compile": lambda: dense_step(compiled, plain, images, labels),
    }
    steps["plain in torch.compile"]()  # compiles
    found: dict[str, dict[str, Any]] = {name: {"kept": kept_bytes(step, plain)} for name, step in steps.items()}
    for share in row.shares:
        forced = force_units(adaptive, row.shape, Forcing(share))
        for engine in ("masked", "gather"):
            if engine == "masked" and share != row.shares[0]:
                continue  # the same work whatever the share
            name = f"{engine} at {share:g}"
            fast = sact.compile(adaptive, engine)
            steps[name] = partial(adaptive_step, fast, adaptive, forced, images, labels)
            found[name] = {"kept": kept_bytes(steps[name], adaptive), "share": flops_share(adaptive, forced, images)}
        found[f"gather at {share:g}"]["difference"] = compare(adaptive, forced, images, labels)
        if not found[f"gather at {share:g}"]["difference"] <= TOLERANCE:
            del steps[f"gather at {share:g}"]
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    for name, taken in seconds.items():
        found[name]["seconds"] = taken
    return {"row": row.name, "rounds": rounds, "contestants": found}


def dense_step(call: Callable[[Tensor], Tensor], plain: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Forward and backward of the plain network."""
    plain.zero_grad(set_to_none=True)
    F.cross_entropy(call(images), labels).backward()


def adaptive_step(
    fast: nn.Module, model: sact.Network, forced: list[Tensor], images: Tensor, labels: Tensor
) -> sact.Ponder:
    """Forward and backward of the adaptive network with these unit counts."""
    for block, units in zip(model.blocks, forced, strict=True):
        block.forced_units = units
    model.zero_grad(set_to_none=True)
    logits, ponder = fast(images, return_ponder=True)
    (F.cross_entropy(logits, labels) + TAU * ponder.cost.mean()).backward()
    return ponder


def compare(model: sact.Network, forced: list[Tensor], images: Tensor, labels: Tensor) -> float:
    """The largest difference of a gradient from the definition's, as a share of its largest entry: of the first image,
    in float64.
    """
    model = copy.deepcopy(model).double()
    gradients = []
    for engine in ("masked", "gather"):
        fast = sact.compile(model, engine)
        adaptive_step(fast, model, [units[:1] for units in forced], images[:1].double(), labels[:1])
        gradients.append([parameter.grad for parameter in model.parameters()])
    if any(ours is None and theirs is not None for theirs, ours in zip(*gradients, strict=True)):
        return math.inf
    pairs = [(ours, theirs) for theirs, ours in zip(*gradients, strict=True) if theirs is not None and ours is not None]
    return max(float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)) for ours, theirs in pairs)


def flops_share(model: sact.Network, forced: list[Tensor], images: Tensor) -> float:
    """Share of the plain network's FLOPs."""
    for block, units in zip(model.blocks, forced, strict=True):
        block.forced_units = units
    with torch.no_grad():
        ponder = sact.compile(model)(images, return_ponder=True)[1]
    return float(ponder.flops.double().mean()) / ponder.dense_flops


def kept_bytes(step: Step, model: nn.Module) -> int:
    """Bytes that autograd keeps between forward and backward pass, without parameters and buffers."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values())


def table(results: list[dict[str, Any]]) -> list[str]:
    """A line per contestant."""
    lines = [
        "| network, images | step | FLOPs | median s (quartiles) | of the dense step | realised share | "
        "kept, MiB (of eager) |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        found = result["contestants"]
        dense = {name: one for name, one in found.items() if name.startswith("plain")}
        fastest = min(statistics.median(one["seconds"]) for one in dense.values())
        eager = found["plain in eager PyTorch"]["kept"]
        for name, one in found.items():
            kept = f"{one['kept'] / 2**20:.0f} ({one['kept'] / eager:.0%})"
            share = one.get("share", 1.0)
            if "seconds" not in one:
                lines.append(
                    f"| {result['row']} | {name} | {share:.1%} | gradients differ by {one['difference']:.0e} ||||"
                )
                continue
            median = statistics.median(one["seconds"])
            low, _, high = statistics.quantiles(one["seconds"], n=4)
            realised = f"{fastest / median * share:.1%}" if name.startswith("gather") else ""
            lines.append(
                f"| {result['row']} | {name} | {share:.1%} | {median:.3f} ({low:.3f} to {high:.3f}) | "
                f"{median / fastest:.3f} | {realised} | {kept} |"
            )
    return lines


def headline(result: dict[str, Any]) -> str:
    """What the README says: one network, every share."""
    found = result["contestants"]
    dense = min(statistics.median(one["seconds"]) for name, one in found.items() if name.startswith("plain"))
    eager = found["plain in eager PyTorch"]["kept"]
    lines = ["| share of FLOPs | step | of the dense step | kept, of the dense step's |", "|---|---|---|---|"]
    for name, one in found.items():
        if name.startswith("gather") and "seconds" in one:
            median = statistics.median(one["seconds"])
            low, _, high = statistics.quantiles(one["seconds"], n=4)
            lines.append(
                f"| {one['share']:.1%} | {median:.2f} s ({low:.2f} to {high:.2f}) | {median / dense:.1%} | "
                f"{one['kept'] / eager:.0%} |"
            )
    held = result["conditions"]
    return "\n".join(
        [
            *lines,
            "",
            f"`python benchmarks/train.py`; {HEADLINE_ROW}, medians and quartiles, against the faster of eager PyTorch "
            f"and torch.compile ({dense:.2f} s); {held['processor']} ({held['cores']} cores), {held['threads']} "
            f"threads, float32, torch {held['versions']['torch']}, {held['date']}; {result['rounds']} interleaved "
            "rounds.",
        ]
    )


def report(results: list[dict[str, Any]]) -> str:
    """benchmarks/train.md."""
    lines = [
        "# A training step that skips what has halted",
        "",
        "Forward pass, loss and backward pass on the CPU in float32, norms in evaluation mode, halting forced on the "
        "objects of scenes. The dense step is the faster of the plain network in eager PyTorch and in torch.compile. "
        f"Wanted: at most {BAR} of it at half of the FLOPs. Gradients through `gather` were first compared with the "
        f"definition's, in float64 on the first image (largest difference below {TOLERANCE:g} of the largest entry). "
        '"Kept" is what autograd holds between the passes.',
        "",
        *table(results),
        "",
    ]
    for result in results:
        held = result["conditions"]
        lines.append(
            f"- {result['row']}: {held['processor']}, {held['cores']} cores, {held['threads']} threads, PyTorch "
            f"{held['versions']['torch']}, {held['date']}, {result['rounds']} interleaved rounds."
        )
    return "\n".join([*lines, "", "`python benchmarks/train.py`", ""])


if __name__ == "__main__":
    main()

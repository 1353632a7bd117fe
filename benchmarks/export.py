"""What skipping saves in ONNX Runtime: exported graphs with lists against the plain network, both in ONNX Runtime.

    python benchmarks/export.py [--rounds 40] [--threads 2] [--networks resnet50,...] [--out benchmarks/export.md]

Where units run is given to the graph as an input: all units at the positions nearest to a scene's object, one unit
elsewhere. Scores are computed all the same. Before anything is timed, the graph's logits and unit counts are compared
with the definition's. About three minutes on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sact
from sact.bench.masks import distance_to_object
from sact.bench.peers import plain_network
from sact.bench.report import conditions
from sact.data import Scenes
from sact.exporting.forms import Exportable
from sact.exporting.listed import ListedBlock
from sact.exporting.onnx_file import session, translate
from sact.exporting.specs import remembering
from sact.exporting.torch_file import output_names, trace
from sact.files import write_text
from sact.flops import block_flops
from sact.flops_report import shapes
from sact.models.adapted import AdaptedNetwork

SHARES = (0.3, 0.5, 0.7)
SIZE = 224
TOLERANCE = 1e-3
MASK_SIZE = 128


class Case(NamedTuple):
    """A measured share of active positions: of the plain network's FLOPs, and times in seconds."""

    network: str
    active: float
    flops: float
    dense: np.ndarray
    skipping: np.ndarray

    @property
    def realised(self) -> float:
        """Speed-up divided by the reduction in FLOPs."""
        return float(np.median(self.dense) / np.median(self.skipping) * self.flops)


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description="Time exported graphs in ONNX Runtime.")
    parser.add_argument("--rounds", type=int, default=40, help="interleaved runs per share (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cases = []
    for name in options.networks.split(","):
        for case in measure(name, options.rounds, options.threads):
            print(row(case), flush=True)
            cases.append(case)
    write_text(options.out, page(cases, options.rounds, options.threads))


def resnet(name: str) -> sact.AdaptiveNetwork:
    """One of this library's networks, with fresh weights."""
    return sact.create_model(name, halting="sact", num_classes=1000)


def torchvision_resnet50() -> sact.AdaptiveNetwork:
    """Torchvision's, adapted, with fresh weights."""
    import torchvision

    return sact.adapt(torchvision.models.resnet50().eval())


def timm_lite2() -> sact.AdaptiveNetwork:
    """EfficientNet-Lite2 of timm, adapted, with fresh weights; it gives the state at halting, as the packaged one."""
    import timm

    return sact.adapt(timm.create_model("tf_efficientnet_lite2").eval(), output="halted")


NETWORKS: dict[str, Callable[[], sact.AdaptiveNetwork]] = {
    "resnet101": lambda: resnet("resnet101"),
    "resnet50": lambda: resnet("resnet50"),
    "torchvision resnet50": torchvision_resnet50,
    "timm tf_efficientnet_lite2": timm_lite2,
}


def measure(name: str, rounds: int, threads: int) -> list[Case]:
    """One network at every share."""
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    plain = model.original() if isinstance(model, AdaptedNetwork) else plain_network(model)
    images = torch.randn(1, 3, SIZE, SIZE)
    ponder = shapes(model, (SIZE, SIZE))
    sizes = [block.description.out_size for block in ponder.blocks]
    most = [block.max_units for block in ponder.blocks]
    dense, skipping = dense_graph(plain.eval(), images, threads), skipping_graph(model, images, sizes, threads)
    cases = []
    for share in SHARES:
        forced = [unit_counts(size, count, share) for size, count in zip(sizes, most, strict=True)]
        check(name, model, skipping, images, forced)
        spent = sum(int(block_flops(b.description, u)[0]) for b, u in zip(ponder.blocks, forced, strict=True))
        times = in_turns([partial(dense, images), partial(skipping, images, forced)], rounds)
        cases.append(Case(name, share, (spent + ponder.fixed_flops) / ponder.dense_flops, *times))
    return cases


def unit_counts(size: tuple[int, int], most: int, share: float) -> Tensor:
    """All units at this share of the positions, those nearest to an object, one elsewhere: int32 [1, H, W]."""
    distance = distance_to_object(Scenes("test", size=MASK_SIZE)[0][2])[None, None]
    order = F.interpolate(distance, size, mode="bilinear", antialias=True).flatten()
    counts = torch.ones(order.numel(), dtype=torch.int32)
    counts[order.argsort()[: round(share * order.numel())]] = most
    return counts.view(1, *size)


def skipping_graph(
    model: sact.AdaptiveNetwork, images: Tensor, sizes: list[tuple[int, int]], threads: int
) -> Callable[[Tensor, list[Tensor]], dict[str, Tensor]]:
    """The graph with lists, whose unit counts are inputs, in ONNX Runtime."""
    forced = [torch.ones(1, *size, dtype=torch.int32) for size in sizes]
    with remembering(), torch.no_grad():
        form = Exportable(model, ListedBlock, takes_forced=True)
        program = trace(form, model, images, False, False, "ONNX", forced)
        made = translate(program, form, model)
    names = output_names(program)
    runs = in_runtime(made, threads)
    inputs = [each.name for each in runs.get_inputs()]

    def run(images: Tensor, forced: list[Tensor]) -> dict[str, Tensor]:
        feed = dict(zip(inputs, [each.numpy() for each in (images, *forced)], strict=True))
        return {name: torch.from_numpy(value) for name, value in zip(names, runs.run(None, feed), strict=True)}

    return run


def in_runtime(made: Any, threads: int) -> Any:
    """A session of a graph, `onnx_ir.Model`."""
    from onnxscript import ir

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        ir.save(made, path)
        return session(path, threads)


def dense_graph(plain: nn.Module, images: Tensor, threads: int) -> Callable[[Tensor], Any]:
    """The plain network in ONNX Runtime, exported for this shape."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.onnx"
        torch.onnx.export(plain, (images,), path, dynamo=False, input_names=["images"], output_names=["logits"])
        runs = session(path, threads)
    return lambda images: runs.run(None, {"images": images.numpy()})


@torch.no_grad()
def check(
    name: str, model: sact.AdaptiveNetwork, run: Callable[..., dict[str, Tensor]], images: Tensor, forced: list[Tensor]
) -> None:
    """Refuse to time what gives something else than the definition."""
    for block, units in zip(model.blocks, forced, strict=True):
        block.forced_units = units
    logits, ponder = model(images, return_ponder=True)
    for block in model.blocks:
        block.forced_units = None
    got = run(images, forced)
    off = float((got["logits"] - logits).abs().max() / logits.abs().max())
    same = all(torch.equal(got[f"units_{k}"], block.units) for k, block in enumerate(ponder.blocks, start=1))
    if not (off < TOLERANCE and same):
        raise SystemExit(f"{name}: the graph differs from the definition (logits by {off:.2g}, units equal: {same})")


def in_turns(runs: list[Callable[[], Any]], rounds: int) -> list[np.ndarray]:
    """Seconds of each run in each round; in turns, so that what else the machine does meets all alike."""
    times = np.empty((len(runs), rounds))
    for number in range(-3, rounds):
        for index, run in enumerate(runs):
            start = time.perf_counter()
            run()
            if number >= 0:
                times[index, number] = time.perf_counter() - start
    return list(times)


def row(case: Case) -> str:
    """A line of the table."""
    spread = [
        " / ".join(f"{1e3 * q:.1f}" for q in np.quantile(t, (0.25, 0.5, 0.75))) for t in (case.dense, case.skipping)
    ]
    speedup = np.median(case.dense) / np.median(case.skipping)
    return (
        f"| {case.network} | {case.active:.0%} | {case.flops:.3f} | {spread[0]} | {spread[1]} | {speedup:.2f} | "
        f"{case.realised:.2f} |"
    )


def page(cases: list[Case], rounds: int, threads: int) -> str:
    """The page."""
    held = conditions(threads)
    versions = ", ".join(f"{name} {version}" for name, version in held["versions"].items() if name != "openvino")
    return f"""\
# Exported graphs in ONNX Runtime

Made by `python benchmarks/export.py`. The graph with lists against the plain network of the same weights, both in ONNX
Runtime, one image of {SIZE}x{SIZE}. All units run at the share of the positions that is active (those nearest to a
scene's object), one unit elsewhere; these counts are given as inputs, and the scores are computed all the same. FLOPs
share: of the plain network's. Times in ms: lower quartile / median / upper quartile. Realised share: speed-up x FLOPs
share; 1 would be all that the FLOPs promise.

{held["processor"]} ({held["cores"]} cores), {held["threads"]} threads, float32, {versions}, {held["date"]};
{rounds} interleaved rounds. Outputs were compared with the definition first.

| network | active | FLOPs share | plain, ms | with lists, ms | speed-up | realised share |
|---|---|---|---|---|---|---|
{chr(10).join(map(row, cases))}
"""


if __name__ == "__main__":
    main()

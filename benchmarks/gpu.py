"""The GPU engine beside the plain network, on one CUDA device; writes benchmarks/gpu.md and gpu.csv.

    python benchmarks/gpu.py [--minutes 9] [--only bf16-1x224x224 ...] [--quick]
    python benchmarks/gpu.py --prepare     only find where units are to run; needs no GPU, but the data of scenes
    python benchmarks/gpu.py --report      only write the report of what is kept; needs no GPU

A row is one network, precision and input: outputs are compared, then all take turns. Rows are measured in the order of
their importance while the minutes last, and kept in runs/bench-gpu, so that `--only` measures some anew and the report
has all. Unit counts are kept there as well: taken along, they spare a machine without the data. `gpu_report.py` says
what is wanted and makes the report.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import gc
import math
import platform
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import roofline
import torch
import torch.nn.functional as F
from gpu_device import DTYPES, Call, Device, arithmetic, cuda_device, driver, measure_limits
from gpu_report import LEFT_OUT, ROWS, Row, bars_table, write_report
from torch import Tensor, nn

import sact
from sact.bench import Forcing, force_units
from sact.bench.peers import plain_network
from sact.bench.report import cores, processor
from sact.block import Block
from sact.engines import triton as engine
from sact.files import replacing, write_json
from sact.flops import block_flops, dilate
from sact.flops_report import shapes
from sact.ponder import BlockPonder, Ponder

OUT = Path(__file__).resolve().parent
KEPT = OUT.parent / "runs" / "bench-gpu"

EXACT = 1e-4
"""Largest difference of our float32 without TF32, as a share of the largest logit."""
ERRORS, GRADIENT_ERRORS = 2.0, 3.0
"""Largest error in terms of that of plain PyTorch in the same precision."""
ROUNDING = {"bf16": 2.0**-8, "fp32": 2.0**-11}
"""And one rounding of a number to bfloat16, or to TF32."""

RESIDUAL = 0.25
"""Of their usual size. With fresh norms activations double from unit to unit, and no error of the first ones is seen;
with settled ones and whole residuals bfloat16 alone changes logits by 14 %. With this it is 2 %."""

FIRST_GUESS, QUICK_GUESS = 150.0, 75.0
"""Seconds that a row is taken to need until one of its kind has been measured; the second without max-autotune."""
RESERVE = 60.0
"""Seconds that compiling a peer must leave to the rest of its row."""

Answer = tuple[Tensor, dict[str, Tensor]]
"""Logits, and gradients by name."""


class Effort(NamedTuple):
    """How long and how often is measured.

    Attributes:
        turns: at least, of every contestant.
        seconds: of a row's turns, if those are not over yet.
        turn: seconds of one turn.
        repeats: least runs in a turn.
        calls: of our network ahead of everything, in which it looks at shares, and captures itself.
    """

    turns: int = 20
    seconds: float = 8.0
    turn: float = 0.04
    repeats: int = 3
    calls: int = 8


EFFORT = Effort()


class Part(NamedTuple):
    """What a block, with the stem or the head beside it, demands of a machine: FLOPs, and bytes moved."""

    name: str
    flops: int
    bytes: int


class Peer(NamedTuple):
    """A way to run the plain network.

    Attributes:
        name: in the report.
        prepare: (network on its device, images) to a call.
        instead: what is tried where it fails.
    """

    name: str
    prepare: Callable[[nn.Module, Tensor], Call]
    instead: Peer | None = None


@dataclass(frozen=True)
class Setting:
    """A row, and all that measuring it takes.

    Attributes:
        row: what to measure.
        model: float32 on the CPU, in evaluation mode.
        images: on the device, [N, C, H, W] in channels-last.
        targets: of training, int64 [N].
        device: where.
        peers: of the plain network.
        effort: how long.
        stop: when, by `time.perf_counter`, all must be over.
    """

    row: Row
    model: sact.Network
    images: Tensor
    targets: Tensor
    device: Device
    peers: Sequence[Peer]
    effort: Effort
    stop: float


@dataclass
class Contestant:
    """Something to time, and what was found.

    Attributes:
        name: of a peer, or "sact".
        share: the wanted one; None for a peer.
        run: once; None while it cannot.
        flops: of the batch.
        parts: what it demands, block by block; empty for a peer.
        difference: from the definition in float32, as a share of the largest logit.
        allowed: the largest such difference.
        graph: whether a CUDA graph is replayed; None in training.
        memory: bytes that a training step adds.
        problem: why it is not timed; empty if it is.
        failed: whether that is a wrong answer.
        seconds: per run, of each turn.
    """

    name: str
    share: float | None = None
    run: Callable[[], object] | None = None
    flops: int = 0
    parts: list[Part] = field(default_factory=list)
    difference: float | None = None
    allowed: float | None = None
    graph: bool | None = None
    memory: int | None = None
    problem: str = ""
    failed: bool = False
    seconds: list[float] = field(default_factory=list)

    def judge(self, difference: float, allowed: float, what: str = "its output") -> None:
        """Take note of a difference; one that is too large, or no number, ends it."""
        self.difference, self.allowed = difference, allowed
        if not difference <= allowed:
            self.fail(f"{what} differs from the definition by {difference:.2g}, more than {allowed:.2g}")

    def fail(self, problem: str) -> None:
        """A wrong answer."""
        self.problem, self.failed = f"{problem}; it is not timed", True


class TimeIsUp(BaseException):
    """No `Exception`, since compilers catch those and go on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; the exit code is 1 where something failed, 2 for a bad argument or without a CUDA device."""
    parser = argparse.ArgumentParser(description="Time the GPU engine beside the plain network.")
    names = [row.name for row in ROWS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="ROW", help=f"of {', '.join(names)}")
    parser.add_argument("--minutes", type=float, default=9.0, help="a row that would not fit is left out (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="torch.compile's default mode instead of max-autotune")
    parser.add_argument("--prepare", action="store_true", help="only find where units are to run; needs no GPU")
    parser.add_argument("--report", action="store_true", help="only write the report of what is kept; needs no GPU")
    parser.add_argument("--kept", type=Path, default=KEPT, help="folder of measurements (runs/bench-gpu)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of gpu.md and gpu.csv (benchmarks)")
    options = parser.parse_args(arguments)
    chosen = [row for row in ROWS if row.name in (options.only or names)]
    if not options.only:  # so that calls add up
        chosen.sort(key=lambda row: (options.kept / f"{row.name}.json").is_file())
    try:
        if options.report:
            write_report(options.kept, options.out)
            return 0
        if options.prepare:
            model = make_model()
            for row in chosen:
                keep_units(model, row, options.kept)
            return 0
        if not torch.cuda.is_available():
            print("gpu: there is no CUDA device here; --report and --prepare work without one", file=sys.stderr)
            return 2
        return run(options, chosen, cuda_device())
    except sact.SactError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace, chosen: Sequence[Row], device: Device) -> int:
    """Measure the chosen rows while the time lasts; the report is written after each."""
    stop = time.perf_counter() + 60 * options.minutes
    held = environment(options)
    model = make_model()
    limits = measure_limits(device)
    guesses = {"inference": QUICK_GUESS if options.quick else FIRST_GUESS, "training": QUICK_GUESS}
    failed = False
    left_out: dict[str, str] = {}
    for row in chosen:
        start = time.perf_counter()
        if stop - start < guesses[row.kind]:
            left = max(0, stop - start)
            left_out[row.name] = f"it needs about {guesses[row.kind]:.0f} s, and {left:.0f} s were left"
        else:
            print(f"{row.name} ...", file=sys.stderr, flush=True)
            try:
                maps = keep_units(model, row, options.kept)
                result = measure(row, model, maps, device, peers_of(row, options.quick), stop=stop)
                failed |= any(one["failed"] for one in result["contestants"])
                if not any(one["milliseconds"] for one in result["contestants"]):
                    raise RuntimeError(result["contestants"][-1]["problem"])
                write_json(options.kept / f"{row.name}.json", result | {"limits": limits, "environment": held})
                print(f"{bars_table([row], {row.name: result})}\n", flush=True)
                guesses[row.kind] = time.perf_counter() - start
            except Exception as error:  # the rows that follow may still do
                left_out[row.name], failed = said(error), True
            release()
        write_json(options.kept / LEFT_OUT, left_out)
        write_report(options.kept, options.out)
    for name, reason in left_out.items():
        print(f"{name}, left out: {reason}")
    print(f"the report is in {options.out / 'gpu.md'}")
    return int(failed)


def make_model() -> sact.Network:
    """The network that all rows run, on the CPU."""
    torch.manual_seed(0)
    model = sact.create_model("resnet101", halting="sact")
    settle(model, torch.randn(8, 3, 96, 96))
    return model


@torch.no_grad()
def settle(model: sact.Network, images: Tensor) -> None:
    """Give a fresh network residuals of `RESIDUAL` and the norm statistics of these images; in evaluation mode then."""
    for block in model.blocks:
        block.forced_units = torch.tensor(len(block.units))
        for unit in block.units:
            unit.stages()[-1].conv.weight.mul_(RESIDUAL)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(images)
    model.eval()
    for block in model.blocks:
        block.forced_units = None


def keep_units(model: sact.Network, row: Row, kept: Path) -> dict[float, list[Tensor]]:
    """Units to run at each share of a row, per block [N, H_k, W_k]; found once, and kept."""
    maps = {}
    for share in row.shares:
        path = kept / "units" / f"{row.images}-{share:g}.pt"
        if not path.is_file():
            with replacing(path) as temporary:
                torch.save([units.byte() for units in force_units(model, row.shape, Forcing(share))], temporary)
        maps[share] = [units.int() for units in torch.load(path, weights_only=True)]
    return maps


def measure(
    row: Row,
    model: sact.Network,
    maps: dict[float, list[Tensor]],
    device: Device,
    peers: Sequence[Peer],
    effort: Effort = EFFORT,
    stop: float = math.inf,
) -> dict[str, Any]:
    """Compare and time one row.

    Args:
        row: what to measure.
        model: float32 on the CPU, in evaluation mode. Left as it is.
        maps: units to run, by share.
        device: where.
        peers: of the plain network.
        effort: how long.
        stop: when, by `time.perf_counter`, all must be over.

    Returns:
        JSON-able: the plain network's FLOPs, its parts, and the contestants with what was found.
    """
    start = time.perf_counter()
    training = row.kind == "training"
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(row.shape[0], model.config.in_channels, *row.shape[1:], generator=generator)
    images = images.to(device.name, torch.float32 if training else DTYPES[row.precision])
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.randint(model.config.num_classes, (len(images),), generator=generator).to(device.name)
    setting = Setting(row, model, images, targets, device, peers, effort, stop)
    plain_flops = len(images) * shapes(model, row.shape[1:]).dense_flops
    with torch.set_grad_enabled(training), arithmetic(tf32=True, benchmark=True):
        contestants = training_peers(setting) if training else inference_peers(setting)
        contestants += [ours(setting, share, maps[share]) for share in row.shares]
        for one in contestants:
            one.flops = one.flops or plain_flops
        turns = take_turns(contestants, device, effort)
    return summary(contestants, plain_flops) | {
        "turns": turns,
        "seconds": time.perf_counter() - start,
        "plain_flops": plain_flops,
        "parts": [] if training else [part._asdict() for part in demanded(model, row, None)],
    }


def eager(network: nn.Module, images: Tensor) -> Call:
    """As it is."""
    return network


def compiled(mode: str) -> Callable[[nn.Module, Tensor], Call]:
    """torch.compile in this mode, at inference with frozen weights, which lets it fold norms."""

    def prepare(network: nn.Module, images: Tensor) -> Call:
        import torch._inductor.config

        for freezing in (False,) if torch.is_grad_enabled() else (True, False):
            call = torch.compile(network, mode=mode, fullgraph=True, dynamic=False)
            try:
                with warnings.catch_warnings(), torch._inductor.config.patch(freezing=freezing):
                    warnings.simplefilter("ignore")
                    call(images)
                break
            except Exception:  # freezing is known to fail on some networks; without it, what fails is raised
                if not freezing:
                    raise
                torch._dynamo.reset()
        return call

    return prepare


EAGER, COMPILE = Peer("eager", eager), Peer("compile", compiled("default"))
MAX_AUTOTUNE = Peer("max-autotune", compiled("max-autotune-no-cudagraphs"), COMPILE)


def peers_of(row: Row, quick: bool) -> tuple[Peer, ...]:
    """Those of a row."""
    return EAGER, COMPILE if quick or row.kind == "training" else MAX_AUTOTUNE


def inference_peers(setting: Setting) -> list[Contestant]:
    """The plain network in every peer, compared."""
    images, precision = setting.images, setting.row.precision
    plain = plain_network(setting.model)
    plain.to(setting.device.name, images.dtype).to(memory_format=torch.channels_last)
    with arithmetic(tf32=False, benchmark=False):
        expected = copy.deepcopy(plain).float()(images.float())
    with arithmetic(tf32=True, benchmark=False):
        allowed = ERRORS * difference(plain(images), expected) + ROUNDING[precision]

    def prepare(one: Contestant, peer: Peer) -> None:
        captured = setting.device.capture(peer.prepare(copy.deepcopy(plain), images), images)
        one.run, one.graph = (lambda: captured(images)), True
        one.judge(difference(captured(images), expected), allowed)

    return attempt(setting, prepare)


def attempt(setting: Setting, prepare: Callable[[Contestant, Peer], None]) -> list[Contestant]:
    """Prepare every peer; whatever goes wrong with one is its problem, and what stands for it is tried."""
    found = []
    for peer in setting.peers:
        tried: Peer | None = peer
        while tried is not None:
            one = Contestant(tried.name)
            try:
                # What stands in must have its turn as well.
                with time_limit(setting.stop - time.perf_counter() - RESERVE * (2 if tried.instead else 1)):
                    prepare(one, tried)
            except (Exception, TimeIsUp) as error:
                one.problem = said(error)
            found.append(one)
            tried = tried.instead if one.problem else None
    return found


def ours(setting: Setting, share: float, units: Sequence[Tensor]) -> Contestant:
    """Our network at one share, compared; whatever goes wrong with it is a finding, and the peers still have theirs."""
    one = Contestant("sact", share)
    try:
        (train_ours if setting.row.kind == "training" else infer_ours)(one, setting, forced(setting, units), units)
    except Exception as error:
        one.problem, one.failed = said(error), True
    return one


def infer_ours(one: Contestant, setting: Setting, network: sact.Network, units: Sequence[Tensor]) -> None:
    """Inference; the first share in float32 is also compared without TF32."""
    row, images = setting.row, setting.images
    with arithmetic(tf32=False, benchmark=False):
        expected, spent = copy.deepcopy(network).float()(images.float(), return_ponder=True)
        one.flops, one.parts = int(spent.flops.sum()), demanded(setting.model, row, units)
        if row.precision == "fp32" and one.share == row.shares[0]:
            one.judge(difference(sact.compile(network, "triton")(images), expected), EXACT, "without TF32 it")
            if one.problem:
                return
    with arithmetic(tf32=True, benchmark=False):
        allowed = ERRORS * difference(network(images), expected) + ROUNDING[row.precision]
    fast = sact.compile(network, "triton", freeze=True)
    for number in range(setting.effort.calls):
        fast(images)
        if number + 1 == engine.OBSERVED_CALLS:
            setting.device.synchronise()
    one.graph = replays_a_graph(fast, images)
    logits, ponder = fast(images, return_ponder=True)
    one.judge(difference(logits, expected), allowed)
    if not same_units(ponder, spent):
        one.fail("its unit counts differ from the definition's")
    one.run = lambda: fast(images)


def forced(setting: Setting, units: Sequence[Tensor]) -> sact.Network:
    """A copy of the network, in the images' precision on the device, that runs these units."""
    network, device = copy.deepcopy(setting.model), setting.device.name
    network.to(device, setting.images.dtype).to(memory_format=torch.channels_last)
    for block, counts in zip(network.blocks, units, strict=True):
        block.forced_units = counts.to(device)
    return network


def replays_a_graph(network: nn.Module, images: Tensor) -> bool:
    """Whether a call of our network replays a CUDA graph."""
    with mock.patch.object(engine.Graph, "replay", autospec=True, side_effect=engine.Graph.replay) as replay:
        network(images)
    return bool(replay.called)


@dataclass
class Step:
    """One step of training: float32 weights, bf16 autocast, SGD with momentum whose rate is 0, so that all stay alike.

    Attributes:
        network: whose weights are trained.
        call: how it is called.
        images: [N, C, H, W].
        targets: int64 [N].
    """

    network: nn.Module
    call: Call
    images: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.0, momentum=0.9)

    def __call__(self) -> None:
        self.differentiate(autocast=True)
        self.optimizer.step()

    def differentiate(self, autocast: bool) -> Tensor:
        """The loss's gradients; returns the logits."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=autocast):
            logits: Tensor = self.call(self.images)
        F.cross_entropy(logits.float(), self.targets).backward()
        return logits

    def answer(self, autocast: bool = True) -> Answer:
        """Logits, and gradients by name."""
        logits = self.differentiate(autocast).detach()
        named = self.network.named_parameters()
        return logits, {name: weight.grad for name, weight in named if weight.grad is not None}


def training_peers(setting: Setting) -> list[Contestant]:
    """Training steps of the plain network in every peer, compared."""
    plain = plain_network(setting.model)
    plain.to(setting.device.name).to(memory_format=torch.channels_last)
    expected, allowed = definition(setting, plain)

    def prepare(one: Contestant, peer: Peer) -> None:
        network = copy.deepcopy(plain)
        with torch.autocast(setting.device.name, torch.bfloat16):
            call = peer.prepare(network, setting.images)
        compare_step(one, setting, Step(network, call, setting.images, setting.targets), expected, allowed)

    return attempt(setting, prepare)


def train_ours(one: Contestant, setting: Setting, network: sact.Network, units: Sequence[Tensor]) -> None:
    """A training step."""
    expected, allowed = definition(setting, network)
    with torch.no_grad():
        one.flops = int(network(setting.images, return_ponder=True)[1].flops.sum())
    step = Step(network, sact.compile(network, "triton"), setting.images, setting.targets)
    compare_step(one, setting, step, expected, allowed)


def definition(setting: Setting, network: nn.Module) -> tuple[Answer, tuple[float, float]]:
    """A network's own logits and gradients in float32, and how much those of autocast may differ from them."""
    step = Step(network, network, setting.images, setting.targets)
    with arithmetic(tf32=False, benchmark=False):
        expected = step.answer(autocast=False)
        logits, gradients = step.answer()
    step.optimizer.zero_grad(set_to_none=True)
    rounding = ROUNDING[setting.row.precision]
    return expected, (
        ERRORS * difference(logits, expected[0]) + rounding,
        GRADIENT_ERRORS * gradient_difference(gradients, expected[1]) + rounding,
    )


def compare_step(one: Contestant, setting: Setting, step: Step, expected: Answer, allowed: tuple[float, float]) -> None:
    """Logits and gradients of a step, then its memory."""
    logits, gradients = step.answer()
    one.judge(gradient_difference(gradients, expected[1]), allowed[1], "its gradient")
    if not one.problem:
        one.judge(difference(logits, expected[0]), allowed[0])
    if one.problem:
        return
    del logits, gradients
    step()
    step.optimizer.zero_grad(set_to_none=True)
    one.memory = setting.device.peak(step)
    one.run = step


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest, as a share of their largest number; infinite where shapes differ or something is no number."""
    if ours.shape != theirs.shape:
        return math.inf
    found = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max().clamp_min(1e-30))
    return math.inf if math.isnan(found) else found


def gradient_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The norm of the difference over theirs, of all together; infinite where others are there."""
    if set(ours) != set(theirs):
        return math.inf
    off = sum(float((ours[name].double() - one.double()).square().sum()) for name, one in theirs.items())
    found = math.sqrt(off / max(1e-60, sum(float(one.double().square().sum()) for one in theirs.values())))
    return math.inf if math.isnan(found) else found


def same_units(ours: Ponder, theirs: Ponder) -> bool:
    """Whether the same units ran everywhere."""
    pairs = zip(ours.blocks, theirs.blocks, strict=True)
    return all(torch.equal(our.units.cpu(), their.units.cpu()) for our, their in pairs)


def take_turns(contestants: Sequence[Contestant], device: Device, effort: Effort) -> int:
    """Time everyone once per turn, each turn from another start; returns the turns."""
    timed = [(one, one.run) for one in contestants if one.run is not None and not one.problem]
    repeats = {}
    for one, call in timed:
        device.clock(call, 1)
        taken = device.clock(call, effort.repeats)
        repeats[id(one)] = max(effort.repeats, min(200, math.ceil(effort.turn / taken)))
    turns, stop = 0, time.perf_counter() + effort.seconds
    while timed and (turns < effort.turns or time.perf_counter() < stop):
        first = turns % len(timed)
        for one, call in [*timed[first:], *timed[:first]]:
            call()  # the one before has filled the caches
            one.seconds.append(device.clock(call, repeats[id(one)]))
        turns += 1
    return turns


def summary(contestants: Sequence[Contestant], plain_flops: int) -> dict[str, Any]:
    """What was found, held against the fastest peer."""
    medians = {one.name: float(np.median(one.seconds)) for one in contestants if one.share is None and one.seconds}
    fastest = min(medians, key=lambda name: medians[name]) if medians else None
    found = []
    for one in contestants:
        speed_up = medians[fastest] / float(np.median(one.seconds)) if fastest and one.seconds else None
        found.append(
            {
                "name": one.name,
                "share": one.share,
                "flops": one.flops,
                "milliseconds": spread(one.seconds) if one.seconds else None,
                "speed_up": speed_up,
                "realised_share": speed_up * one.flops / plain_flops if speed_up and one.share is not None else None,
                "difference": one.difference,
                "allowed": one.allowed,
                "graph": one.graph,
                "memory": one.memory,
                "problem": one.problem,
                "failed": one.failed,
                "parts": [part._asdict() for part in one.parts],
            }
        )
    return {"fastest_peer": fastest, "contestants": found}


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, in milliseconds."""
    lower, median, upper = np.percentile(1e3 * np.asarray(seconds), [25, 50, 75])
    return {"lower_quartile": float(lower), "median": float(median), "upper_quartile": float(upper)}


def demanded(model: sact.Network, row: Row, units: Sequence[Tensor] | None) -> list[Part]:
    """What a row demands block by block where these units run; None for the plain network."""
    ponder = shapes(model, row.shape[1:])
    runs = list(units) if units is not None else [whole(row, block) for block in ponder.blocks]
    size = DTYPES[row.precision].itemsize
    found = []
    for part, block, spent, run in zip(
        roofline.parts(model, row.shape, runs), model.blocks, ponder.blocks, runs, strict=True
    ):
        flops, numbers = part.flops, (part.weight_bytes + part.activation_bytes) // roofline.BYTES
        shortcut = block.units[0].shortcut
        if isinstance(shortcut, nn.Conv2d):
            numbers += run.numel() * (shortcut.in_channels + shortcut.out_channels)
        if units is None:  # no score heads
            flops += row.shape[0] * spent.description.dense_flops - int(block_flops(spent.description, run).sum())
        else:
            numbers += halting_numbers(block, run)
        found.append(Part(part.name, flops, size * numbers))
    return found


def whole(row: Row, block: BlockPonder) -> Tensor:
    """Every unit everywhere, int [N, H, W]."""
    return torch.full((row.shape[0], *block.description.out_size), block.max_units, dtype=torch.int32)


def halting_numbers(block: Block, units: Tensor) -> int:
    """Numbers that halting moves: score heads read states and weights, the block's output is read and written."""
    channels, numbers = block.units[0].out_channels, 0
    for index in range(1, len(block.units) + 1):
        active = units >= index
        if index > 1:
            numbers += 2 * channels * int(active.sum())
        if index < len(block.units) and bool(active.any()):
            numbers += channels * (9 + int(dilate(active, 1).sum()))
    return numbers


def release() -> None:
    """Let go of a row's networks, graphs and compiled code."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeIsUp inside after these seconds."""
    if math.isinf(seconds):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeIsUp(f"it took more than the {seconds:.0f} s that were left for it")

    seconds = max(1.0, seconds)
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def said(error: BaseException) -> str:
    """An error as one short line that names no folder of this machine."""
    lines = str(error).strip().splitlines()
    text = re.sub(r"(/[^\s/:'\"]+){2,}", "...", lines[0] if lines else type(error).__name__)
    return text[:200]


def environment(options: argparse.Namespace) -> dict[str, str]:
    """What the numbers hold under."""
    import triton

    device = torch.cuda.get_device_properties(0)
    flags = [f"--minutes {options.minutes:g}", *(["--only", *options.only] if options.only else [])]
    return {
        "GPU": f"{device.name} ({device.multi_processor_count} multiprocessors, {device.total_memory / 2**30:.0f} GiB)",
        "driver": driver(),
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
        "PyTorch": torch.__version__,
        "Triton": triton.__version__,
        "Python": platform.python_version(),
        "processor": f"{processor()} ({cores()} cores)",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python benchmarks/gpu.py", *flags, *(["--quick"] if options.quick else [])]),
    }


if __name__ == "__main__":
    raise SystemExit(main())

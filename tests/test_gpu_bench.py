"""`benchmarks/gpu.py` without a GPU: its report and its arithmetic, and its measuring with the CPU for a device."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import needs_triton
from torch import Tensor, nn

import sact
from sact.flops_report import shapes

FOLDER = Path(__file__).parents[1] / "benchmarks"
LIMITS = {"copy": 4e12, "bf16": 8e14, "fp32": 4e14}
ENVIRONMENT = {"GPU": "a GPU", "PyTorch": "2", "command": "python benchmarks/gpu.py --minutes 9"}


@pytest.fixture(scope="module")
def gpu() -> Any:
    """benchmarks/gpu.py."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("gpu_benchmark", FOLDER / "gpu.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["gpu_benchmark"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("gpu_benchmark", None)


@pytest.fixture
def report(gpu: ModuleType) -> ModuleType:
    return sys.modules["gpu_report"]


def cpu_clock(run: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times


@pytest.fixture
def device(gpu: ModuleType) -> Any:
    """The CPU, without graphs, and with memory that is made up."""

    def peak(run: Callable[[], object]) -> int:
        run()
        return 1 << 20

    return gpu.Device("cpu", cpu_clock, lambda call, images: call, lambda: None, peak)


@pytest.fixture
def tiny(gpu: ModuleType) -> sact.Network:
    model = sact.create_model("resnet", halting="sact", units=[2, 2], base_channels=4, num_classes=7)
    gpu.settle(model, torch.randn(8, 3, 32, 32))
    return model


def some_units(model: sact.Network, shape: tuple[int, int, int]) -> list[Tensor]:
    """All units in the left half of every picture, one elsewhere."""
    maps = []
    for block in shapes(model, shape[1:]).blocks:
        units = torch.ones(shape[0], *block.description.out_size, dtype=torch.int32)
        units[:, :, : max(1, units.shape[2] // 2)] = block.max_units
        maps.append(units)
    return maps


def found(share: float | None, name: str, milliseconds: float | None, **more: Any) -> dict[str, Any]:
    """A contestant of made-up results."""
    spread = None
    if milliseconds:
        spread = {
            "lower_quartile": 0.9 * milliseconds,
            "median": milliseconds,
            "upper_quartile": 1.1 * milliseconds,
        }
    return {
        "name": name,
        "share": share,
        "flops": round(1e12 * (share or 1)),
        "milliseconds": spread,
        "speed_up": None,
        "realised_share": None,
        "difference": 1e-3,
        "allowed": 4e-3,
        "graph": True,
        "memory": None,
        "problem": "",
        "failed": False,
        "parts": [] if share is None else [{"name": "block 1", "flops": round(1e12 * share), "bytes": 10**9}],
    } | more


def results(fastest: str | None, *contestants: dict[str, Any]) -> dict[str, Any]:
    parts = [{"name": "block 1", "flops": 8 * 10**11, "bytes": 10**9}, {"name": "block 2", "flops": 0, "bytes": 10**9}]
    return {
        "fastest_peer": fastest,
        "contestants": list(contestants),
        "turns": 20,
        "plain_flops": 10**12,
        "parts": parts,
        "limits": LIMITS,
        "environment": ENVIRONMENT,
    }


def cells(page: str, *start: str) -> list[str]:
    """The first line of a table that starts with these cells."""
    line = next(line for line in page.splitlines() if line.startswith(f"| {' | '.join(start)} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_committed_page_lists_every_row(report: ModuleType) -> None:
    page = (FOLDER / "gpu.md").read_text()
    for row in report.ROWS:
        for share in row.shares:
            assert f"≥ {row.bar(share):.0%}" in page
        assert f"| {row.kind} | {row.precision} | {row.images} |" in page
    assert str(FOLDER.parent) not in page


def test_bars(report: ModuleType) -> None:
    bars = {(row.name, share): row.bar(share) for row in report.ROWS for share in row.shares}
    assert bars["bf16-64x224x224", 0.3] == bars["bf16-16x448x448", 0.7] == 0.85
    assert bars["bf16-1x224x224", 0.5] == bars["fp32-1x640x480", 0.7] == 0.8
    assert {bars[name, share] for name, share in bars if share == 1.0} == {0.97}
    assert bars["training-64x224x224", 0.5] == 0.75
    assert len(bars) == 2 * 4 + 4 * 3 + 1


def test_a_report_of_nothing(report: ModuleType, tmp_path: Path) -> None:
    page = report.write_report(tmp_path / "kept", tmp_path)
    assert "still to be measured on a GPU" in page
    assert cells(page, "inference", "fp32", "1x640x480", "70%")[-2:] == ["≥ 80%", "to be measured"]
    assert cells(page, "bf16", "64x224x224", "50%")[-2:] == ["≤ 0.7", "to be measured"]
    assert not (tmp_path / "gpu.csv").exists()


def test_a_report_of_some_rows(report: ModuleType, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    large = results(
        "max-autotune",
        found(None, "eager", 12.0),
        found(None, "max-autotune", 10.0),
        found(0.3, "sact", 3.1, speed_up=10 / 3.1, realised_share=0.3 * 10 / 3.1),
        found(0.5, "sact", 5.5, speed_up=10 / 5.5, realised_share=0.5 * 10 / 5.5),
        found(0.7, "sact", 9.0, speed_up=10 / 9, realised_share=0.7 * 10 / 9, graph=False),
        found(1.0, "sact", None, problem="its output differs", failed=True),
    )
    small = results(
        "eager",
        found(None, "eager", 2.0),
        found(None, "max-autotune", None, problem="it took more than the 9 s that were left for it"),
        found(0.5, "sact", 1.2, speed_up=2 / 1.2, realised_share=1 / 1.2),
    )
    training = results(
        "compile",
        found(None, "eager", 90.0, memory=20 << 20, graph=None),
        found(None, "compile", 80.0, memory=16 << 20, graph=None),
        found(0.5, "sact", 60.0, memory=12 << 20, speed_up=80 / 60, realised_share=40 / 60, graph=None, parts=[]),
    ) | {"parts": []}
    for name, result in (("bf16-64x224x224", large), ("bf16-1x224x224", small), ("training-64x224x224", training)):
        (kept / f"{name}.json").write_text(json.dumps(result))
    (kept / report.LEFT_OUT).write_text(json.dumps({"fp32-1x224x224": "it needs about 150 s, and 40 s were left"}))
    page = report.write_report(kept, tmp_path)
    assert cells(page, "inference", "bf16", "64x224x224", "30.0%")[4:] == [
        "3.1 (2.79-3.41)",
        "max-autotune 10 (9-11)",
        "3.23",
        "1.0e-03 (4.0e-03)",
        "96.8%",
        "≥ 85%, aim 95%",
        "met, aim too",
    ]
    assert cells(page, "inference", "bf16", "64x224x224", "50.0%")[-1] == "met"
    missed = cells(page, "inference", "bf16", "64x224x224", "70.0%")
    assert (missed[4], missed[-1]) == ("9 (8.1-9.9) (no graph)", "missed")
    assert cells(page, "inference", "bf16", "64x224x224", "100.0%")[-1] == "not timed"
    assert cells(page, "inference", "bf16", "1x224x224", "50.0%")[-1] == "met (without max-autotune)"
    assert cells(page, "inference", "bf16", "1x224x224", "70%")[-1] == "to be measured"
    assert cells(page, "training", "bf16", "64x224x224", "50.0%")[-1] == "missed"
    assert cells(page, "bf16", "64x224x224", "50%")[3:] == [
        "12", "eager 20, compile 16", "0.75", "≤ 0.7", "missed"
    ]  # fmt: skip
    assert "- bf16-64x224x224, sact at 1: its output differs" in page
    assert "- fp32-1x224x224, left out of the last call: it needs about 150 s, and 40 s were left" in page
    assert "Still to be measured: bf16-16x448x448, fp32-1x224x224, bf16-1x640x480, fp32-1x640x480." in page
    assert "- bf16-64x224x224, training-64x224x224, bf16-1x224x224: GPU a GPU; PyTorch 2; `python" in page
    lines = list(csv.DictReader((tmp_path / "gpu.csv").open()))
    assert len(lines) == 6 + 3 + 3
    assert lines[2]["verdict"] == "met, aim too"
    assert {line["GPU"] for line in lines} == {"a GPU"}


def test_the_limits_of_a_made_up_row(report: ModuleType) -> None:
    result = results("eager", found(None, "eager", 2.0), found(0.5, "sact", 1.5))
    # 800 GFLOPs at 800 TFLOP/s and 1 GB at 4 TB/s, then 1 GB alone.
    assert report.least_seconds(result["parts"], LIMITS, "bf16") == pytest.approx((1e-3, 0.5e-3, 1.25e-3))
    row = report.Row("inference", "bf16", (1, 224, 224), (0.5,))
    table = report.roofline_table([row], {row.name: result})
    assert cells(table, "bf16", "1x224x224", "plain")[3:] == ["800", "2000", "1", "0.5", "1.25", "2", "62%", ""]
    ours = ["500", "1000", "0.625", "0.25", "0.625", "1.5", "42%", "100%"]
    assert cells(table, "bf16", "1x224x224", "sact at 0.5")[3:] == ours


def test_the_realised_share(gpu: ModuleType) -> None:
    peers = [gpu.Contestant(name, flops=1000, seconds=seconds) for name, seconds in (("a", [4.0]), ("b", [1, 2, 9.0]))]
    ours = gpu.Contestant("sact", 0.4, flops=400, seconds=[1.0])
    summary = gpu.summary([*peers, ours], 1000)
    assert summary["fastest_peer"] == "b"
    assert summary["contestants"][-1]["speed_up"] == 2
    assert summary["contestants"][-1]["realised_share"] == pytest.approx(0.8)
    assert summary["contestants"][0]["realised_share"] is None
    assert summary["contestants"][1]["milliseconds"] == {
        "lower_quartile": 1500, "median": 2000, "upper_quartile": 5500
    }  # fmt: skip


@torch.no_grad()
def test_what_the_plain_network_demands(gpu: ModuleType, report: ModuleType) -> None:
    """By hooks: each convolution's input, weights and output, and the state that each unit adds to."""
    model = sact.create_model("resnet", halting="sact", units=[2, 3], num_classes=7).eval()
    row = report.Row("inference", "bf16", (2, 64, 96), ())
    wanted = gpu.demanded(model, row, None)
    numbers: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        numbers.append(output.numel())
        if isinstance(layer, nn.Conv2d):
            skipped = layer.stride[0] ** 2 if layer.kernel_size == (1, 1) else 1
            numbers.extend([layer.weight.numel(), inputs[0].numel() // skipped])

    units = [unit for block in model.blocks for unit in block.units]
    convs = [layer for part in [model.stem, *units] for layer in part.modules() if isinstance(layer, nn.Conv2d)]
    for layer in [*convs, *units]:
        layer.register_forward_hook(count)
    nn.Sequential(model.stem, *units)(torch.randn(2, 3, 64, 96))
    assert model.classifier is not None
    ends = [model.classifier.weight, model.classifier.bias, model.stem[0].bias]
    assert sum(part.bytes for part in wanted) == 2 * (sum(numbers) + sum(weights.numel() for weights in ends))
    assert sum(part.flops for part in wanted) == 2 * shapes(model, (64, 96)).dense_flops


def test_what_one_active_position_demands(gpu: ModuleType, report: ModuleType) -> None:
    model = sact.create_model("resnet", halting="sact", units=[2], num_classes=7).eval()
    row = report.Row("inference", "fp32", (1, 64, 64), ())
    least = [torch.ones(1, 16, 16, dtype=torch.int32)]
    one = [least[0].clone()]
    one[0][0, 8, 8] = 2
    (before,), (after,) = gpu.demanded(model, row, least), gpu.demanded(model, row, one)
    wide, narrow = 256, 64
    weights = 2 * wide * narrow + 9 * narrow * narrow
    # The first convolution at 9 positions, the second reads those; the third, the state and the output at one.
    activations = 9 * (wide + narrow) + (9 * narrow + narrow) + (narrow + wide) + wide + 2 * wide
    assert after.bytes - before.bytes == 4 * (weights + activations)
    assert after.flops - before.flops == 2 * (9 * wide * narrow + 9 * narrow * narrow + narrow * wide)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_device(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--kept", str(tmp_path / "kept"), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("gpu: there is no CUDA device here")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_the_report_alone(gpu: ModuleType, tmp_path: Path) -> None:
    assert gpu.main(["--report", "--kept", str(tmp_path / "kept"), "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.md"]


def test_unit_counts_are_kept(gpu: ModuleType, report: ModuleType, tiny: sact.Network, tmp_path: Path) -> None:
    row = report.Row("inference", "fp32", (2, 32, 32), (1.0,))
    first = gpu.keep_units(tiny, row, tmp_path)
    assert [units.unique().tolist() for units in first[1.0]] == [[2], [2]]
    torch.save([torch.ones(2, 8, 8).byte(), torch.ones(2, 4, 4).byte()], tmp_path / "units" / "2x32x32-1.pt")
    assert all(bool((units == 1).all()) for units in gpu.keep_units(tiny, row, tmp_path)[1.0])


@needs_triton
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_inference_is_measured(
    gpu: ModuleType,
    report: ModuleType,
    tiny: sact.Network,
    device: Any,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if precision == "bf16":
        monkeypatch.setattr(gpu, "ERRORS", 6.0)  # the interpreter cuts numbers off where a GPU rounds them

    def broken(network: nn.Module, images: Tensor) -> Any:
        raise RuntimeError("out of luck in /some/folder/file.py\nmore")

    def wrong(network: nn.Module, images: Tensor) -> Any:
        return lambda x: -network(x)

    row = report.Row("inference", precision, (1, 32, 32), (0.5,))
    maps = {0.5: some_units(tiny, row.shape)}
    peers = [gpu.EAGER, gpu.Peer("broken", broken, gpu.Peer("instead", gpu.eager)), gpu.Peer("wrong", wrong)]
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    effort = gpu.Effort(turns=2, seconds=0, turn=0, repeats=1, calls=1)
    result = gpu.measure(row, tiny, maps, device, peers, effort)
    after = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    assert after == before
    assert result["turns"] == 2
    names = [one["name"] for one in result["contestants"]]
    assert names == ["eager", "broken", "instead", "wrong", "sact"]
    eager, failing, instead, differing, ours = result["contestants"]
    assert failing["problem"] == "out of luck in ..."
    assert not failing["failed"]
    assert differing["failed"]
    assert "its output differs from the definition" in differing["problem"]
    assert differing["milliseconds"] is None
    for one in (eager, instead, ours):
        assert one["problem"] == ""
        assert one["difference"] <= one["allowed"]
        assert one["milliseconds"]["median"] > 0
    assert result["plain_flops"] == eager["flops"] == sum(part["flops"] for part in result["parts"])
    assert not ours["graph"]
    assert ours["flops"] == sum(part["flops"] for part in ours["parts"]) < result["plain_flops"]
    for block, units in zip(tiny.blocks, maps[0.5], strict=True):
        block.forced_units = units
    with torch.no_grad():
        assert ours["flops"] == int(tiny(torch.zeros(1, 3, 32, 32), return_ponder=True)[1].flops.sum())
    json.dumps(result)


@needs_triton
def test_a_wrong_answer_of_ours_gets_no_time(
    gpu: ModuleType, report: ModuleType, tiny: sact.Network, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = report.Row("inference", "fp32", (1, 32, 32), (0.5,))
    maps = {0.5: some_units(tiny, row.shape)}
    effort = gpu.Effort(turns=1, seconds=0, turn=0, repeats=1, calls=1)
    monkeypatch.setattr(gpu, "EXACT", -1.0)
    (_, ours) = gpu.measure(row, tiny, maps, device, [gpu.EAGER], effort)["contestants"]
    assert ours["failed"]
    assert ours["problem"].startswith("without TF32 it differs")
    monkeypatch.setattr(gpu, "same_units", lambda *_: False)
    monkeypatch.setattr(gpu, "EXACT", 1e-4)
    (_, ours) = gpu.measure(row, tiny, maps, device, [gpu.EAGER], effort)["contestants"]
    assert ours["problem"] == "its unit counts differ from the definition's; it is not timed"


@needs_triton
def test_training_is_measured(gpu: ModuleType, report: ModuleType, tiny: sact.Network, device: Any) -> None:
    row = report.Row("training", "bf16", (2, 32, 32), (0.5,))
    maps = {0.5: some_units(tiny, row.shape)}
    effort = gpu.Effort(turns=1, seconds=0, turn=0, repeats=1)
    before = {name: weight.clone() for name, weight in tiny.named_parameters()}
    result = gpu.measure(row, tiny, maps, device, [gpu.EAGER, gpu.Peer("off", scaled)], effort)
    eager, off, ours = result["contestants"]
    for one in (eager, ours):
        assert one["problem"] == ""
        assert one["memory"] == 1 << 20
        assert one["milliseconds"]["median"] > 0
    assert "its gradient differs" in off["problem"]
    assert ours["flops"] < eager["flops"] == result["plain_flops"]
    assert ours["realised_share"] == pytest.approx(ours["speed_up"] * ours["flops"] / eager["flops"])
    assert all(torch.equal(before[name], weight) for name, weight in tiny.named_parameters())
    assert all(weight.grad is None for weight in tiny.parameters())


def scaled(network: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """The same logits with other gradients."""

    def call(images: Tensor) -> Tensor:
        logits: Tensor = network(images)
        return 4 * logits - 3 * logits.detach()

    return call


@needs_triton
def test_a_whole_run(
    gpu: ModuleType,
    report: ModuleType,
    tiny: sact.Network,
    device: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One row is measured, one fails, and one would not fit."""
    rows = (
        report.Row("inference", "fp32", (1, 32, 32), (1.0,)),
        report.Row("inference", "fp32", (1, 48, 32), (1.0,)),
        report.Row("training", "bf16", (2, 32, 32), (1.0,)),
    )
    measured = gpu.measure

    def measure(row: Any, *arguments: Any, stop: float) -> Any:
        if row == rows[1]:
            raise RuntimeError("no luck")
        return measured(row, *arguments, gpu.Effort(turns=1, seconds=0, turn=0, repeats=1, calls=1), stop=stop)

    for name, stand_in in (
        ("measure", measure),
        ("make_model", lambda: tiny),
        ("environment", lambda options: ENVIRONMENT),
        ("measure_limits", lambda device: LIMITS),
        ("peers_of", lambda row, quick: [gpu.EAGER]),
        ("write_report", lambda kept, out: report.write_report(kept, out, rows)),
        ("FIRST_GUESS", 0.0),
    ):
        monkeypatch.setattr(gpu, name, stand_in)
    options = argparse.Namespace(kept=tmp_path / "kept", out=tmp_path, minutes=1.0, quick=False, only=None)
    assert gpu.run(options, rows, device) == 1
    printed = capsys.readouterr().out
    assert "| inference | fp32 | 1x32x32 |" in printed
    assert "fp32-1x48x32, left out: no luck" in printed
    assert "training-2x32x32, left out: it needs about 75 s, and" in printed
    page = (tmp_path / "gpu.md").read_text()
    assert cells(page, "inference", "fp32", "1x48x32", "100%")[-1] == "to be measured"
    assert "- fp32-1x48x32, left out of the last call: no luck" in page
    assert len((tmp_path / "gpu.csv").read_text().splitlines()) == 3


def test_the_machine_is_measured(gpu: ModuleType, device: Any) -> None:
    limits = gpu.measure_limits(device, side=32, floats=1 << 10)
    assert set(limits) == {"copy", "bf16", "fp32"}
    assert all(value > 0 for value in limits.values())


def test_time_is_limited(gpu: ModuleType) -> None:
    with pytest.raises(gpu.TimeIsUp, match="more than the 1 s"), gpu.time_limit(1.0):
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue


def test_plain_peers_are_compiled(gpu: ModuleType, tiny: sact.Network) -> None:
    rows = {row.name: row for row in gpu.ROWS}
    inference, training = rows["bf16-1x224x224"], rows["training-64x224x224"]
    assert [peer.name for peer in gpu.peers_of(inference, False)] == ["eager", "max-autotune"]
    assert gpu.MAX_AUTOTUNE.instead == gpu.COMPILE
    assert [peer.name for peer in gpu.peers_of(inference, True)] == ["eager", "compile"]
    assert [peer.name for peer in gpu.peers_of(training, False)] == ["eager", "compile"]

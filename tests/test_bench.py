"""`sact.bench`: shares that are reached, answers that are compared, and no time for a wrong one."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sact
from sact import cli
from sact.bench import Forcing, bench, force_units, measure, memory, peers, report
from sact.bench.masks import distance_to_object
from sact.data import Scenes, find_photographs
from sact.engines import Engine
from sact.flops_report import count

KINDS = ["act", "sact"]


def has_scenes() -> bool:
    try:
        Scenes("test", size=32, length=1)
    except sact.SactError:
        return False
    return bool(find_photographs())


needs_scenes = pytest.mark.skipif(not has_scenes(), reason="the photographs or items of scenes are not on this machine")


class Clock:
    """Stands for `time.perf_counter`: every look at it is `step` seconds after the one before."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(1.0)
    monkeypatch.setattr(measure.time, "perf_counter", clock)
    return clock


@pytest.fixture
def tiny(make_model):
    def make(**options: Any) -> sact.Network:
        given = {"halting": "sact", "units": [3, 4], "base_channels": 4, "num_classes": 5} | options
        return make_model(given.pop("name", "cifar_resnet"), **given)

    return make


def share_of(model: sact.Network, units: list[Tensor], shape: tuple[int, int, int]) -> float:
    """What the network itself says that these unit counts cost."""
    for block, counts in zip(model.blocks, units, strict=True):
        block.forced_units = counts
    with torch.no_grad():
        _, ponder = model(torch.randn(shape[0], model.config.in_channels, *shape[1:]), return_ponder=True)
    for block, spent, counts in zip(model.blocks, ponder.blocks, units, strict=True):
        assert torch.equal(spent.units, counts)
        block.forced_units = None
    return float(ponder.flops.double().mean()) / ponder.dense_flops


@pytest.mark.parametrize("name", ["resnet", "cifar_resnet"])
@pytest.mark.parametrize("kind", [pytest.param("scenes", marks=needs_scenes), "random"])
@pytest.mark.parametrize("share", [0.75, 0.9])
def test_shares_are_reached(tiny, name: str, kind: str, share: float) -> None:
    model = tiny(name=name, units=[6, 8], base_channels=24)
    shape = (3, 64, 96)
    units = force_units(model, shape, Forcing(share, kind))
    assert share_of(model, units, shape) == pytest.approx(share, abs=0.02)
    for block, counts in zip(model.blocks, units, strict=True):
        assert counts.dtype == torch.int32
        assert counts.min() >= 1
        assert counts.max() <= len(block.units)
    assert not torch.equal(units[0][0], units[0][1]), "every image has its own mask"


def test_a_share_of_one_is_every_unit_everywhere(tiny) -> None:
    model = tiny()
    units = force_units(model, (2, 32, 32), Forcing(1.0, "random"))
    assert [set(counts.flatten().tolist()) for counts in units] == [{3}, {4}]
    assert share_of(model, units, (2, 32, 32)) > 1.0


def test_the_least_share_is_reached(tiny) -> None:
    model = tiny()
    counted = count(model, (32, 32))
    least = counted["fewest"] / counted["plain"]
    units = force_units(model, (1, 32, 32), Forcing(least + 1e-9, "random"))
    assert all((counts == 1).all() for counts in units)
    with pytest.raises(sact.InputError, match=rf"share is 0.1, .* are {least:.3f} .* ask for at least"):
        force_units(model, (1, 32, 32), Forcing(0.1, "random"))


def test_act_is_forced_per_image(tiny) -> None:
    model = tiny(halting="act", units=[6, 8])
    units = force_units(model, (8, 32, 32), Forcing(0.6))
    assert [counts.shape for counts in units] == [(8,), (8,)]
    assert share_of(model, units, (8, 32, 32)) == pytest.approx(0.6, abs=0.05)


@needs_scenes
def test_units_run_around_objects(tiny) -> None:
    model = tiny(units=[8])
    counts = force_units(model, (1, 128, 128), Forcing(0.5))[0][0]
    mask = Scenes("test", size=128, seed=0)[0][2]
    inside, outside = counts[mask].float().mean(), counts[~mask].float().mean()
    assert inside > outside + 2
    steps = (counts[:, 1:] - counts[:, :-1]).abs().float().mean()
    scattered = force_units(model, (1, 128, 128), Forcing(0.5, "random"))[0][0]
    assert steps < 0.2 * (scattered[:, 1:] - scattered[:, :-1]).abs().float().mean()


def test_random_masks_follow_the_seed(tiny) -> None:
    model = tiny()
    first, same, other = (force_units(model, (2, 32, 32), Forcing(0.8, "random"), seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(
    ("forcing", "says"),
    [
        (Forcing(0.0, "random"), r"share is 0, .* \(0, 1\]"),
        (Forcing(1.5, "random"), "share is 1.5"),
        (Forcing(math.nan, "random"), "share is nan"),
        (Forcing(0.8, "disks"), 'masks is "disks", but it must be one of scenes, random'),
    ],
)
def test_bad_forcings(tiny, forcing: Forcing, says: str) -> None:
    with pytest.raises(sact.InputError, match=says):
        force_units(tiny(), (1, 32, 32), forcing)


def test_plain_networks_have_no_share(tiny) -> None:
    with pytest.raises(sact.InputError, match="plain network"):
        force_units(tiny(halting="none"), (1, 32, 32), Forcing(0.8))


def test_missing_data_is_said(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    import sact.data

    def missing(*arguments: Any, **options: Any) -> None:
        raise sact.InputError("there are no photographs here; give some")

    monkeypatch.setattr(sact.data, "Scenes", missing)
    with pytest.raises(sact.InputError, match="no photographs"):
        force_units(tiny(), (1, 32, 32), Forcing(0.8, "scenes"))


def test_distance_to_object_against_brute_force() -> None:
    mask = torch.rand(9, 9) < 0.3
    mask[0, 0], mask[8, 8] = True, False
    points = torch.stack(torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij"), -1).reshape(-1, 2)
    between = torch.cdist(points, points)
    flat = mask.flatten()
    to_inside, to_outside = between[:, flat].min(1).values, between[:, ~flat].min(1).values
    expected = torch.where(flat, -to_outside, to_inside).reshape(9, 9) / 9
    torch.testing.assert_close(distance_to_object(mask), expected)


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_the_plain_network_of_an_adaptive_one(tiny, kind: str) -> None:
    model = tiny(halting=kind)
    images = torch.randn(2, 3, 40, 36)
    plain = peers.plain_network(model)
    expected = sact.create_model("cifar_resnet", units=[3, 4], base_channels=4, num_classes=5).eval()
    expected.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if "score" not in name})
    with torch.no_grad():
        torch.testing.assert_close(plain(images), expected(images))
    plain[0][0].weight.data.zero_()
    assert model.stem[0].weight.any(), "it is a copy"


@pytest.mark.parametrize("name", ["eager", "onnxruntime", "openvino"])
def test_peers_give_the_plain_networks_logits(tiny, name: str) -> None:
    if name != "eager":
        pytest.importorskip("onnx")
        pytest.importorskip(name)
    plain, images = peers.plain_network(tiny(name="resnet")), torch.randn(2, 3, 33, 40)
    with torch.no_grad():
        run = peers.prepare(name, plain, images, 1)
        first, again = run(images), run(2 * images)
        torch.testing.assert_close(first, plain(images), rtol=0, atol=1e-4 * float(plain(images).abs().max()))
        assert not torch.equal(first, again)
        assert torch.equal(first, run(images)), "an output is not overwritten by the next run"


@pytest.mark.slow
def test_torch_compile_gives_the_plain_networks_logits(tiny) -> None:
    plain, images = peers.plain_network(tiny()), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(peers.prepare("compile", plain, images, 1)(images), plain(images))


def run_bench(model: sact.Network, *forcings: Forcing, **options: Any) -> dict[str, Any]:
    given = {"engines": ["gather", "masked"], "peers": ["eager"], "threads": 1, "seconds": 1e-6} | options
    batches = given.pop("batches", [torch.randn(2, 3, 32, 32)])
    return bench(model, batches, forcings, **given)


def rows_by_name(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    names = dict.fromkeys(row["name"] for row in result["rows"])
    return {name: [row for row in result["rows"] if row["name"] == name] for name in names}


def test_what_a_benchmark_says(tiny, clock: Clock) -> None:
    model = tiny()
    threads = torch.get_num_threads()
    result = run_bench(model, Forcing(0.75, "random"), Forcing(0.9, "random"))
    json.dumps(result)
    rows = rows_by_name(result)
    assert {name: len(found) for name, found in rows.items()} == {"eager": 1, "gather": 2, "masked": 1}
    assert result["fastest_peer"] == "eager"
    assert result["rounds"] >= measure.LEAST_ROUNDS
    for row in result["rows"]:
        # The clock says that everything takes a second.
        assert row["milliseconds"] == dict.fromkeys(row["milliseconds"], 1000.0)
        assert row["speed_up"] == 1.0
        assert row["difference"] <= 1e-4
        assert row["problem"] == ""
    plain = count(model, (32, 32))["plain"]
    assert result["plain_flops"] == 2 * plain
    assert rows["eager"][0]["share"] == 1.0
    assert rows["eager"][0]["realised_share"] is None
    for row, share in zip(rows["gather"], (0.75, 0.9), strict=True):
        assert row["wanted_share"] == share
        assert row["share"] == pytest.approx(share, abs=0.03)
        assert row["flops"] == round(row["share"] * 2 * plain)
        # (dense time / our time) / (dense FLOPs / our FLOPs), the times being equal
        assert row["realised_share"] == pytest.approx(row["share"])
    held = result["conditions"]
    assert held["threads"] == 1
    assert held["processor"]
    assert torch.get_num_threads() == threads
    assert all(block.forced_units is None for block in model.blocks)
    text = report.table(result)
    for part in (held["processor"], held["date"], torch.__version__, "1 thread", "gather at 0.75, random", "1000.00"):
        assert part in text


def test_ratios_come_from_medians(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine takes 3, 1, 2, 100, 2 seconds and the peer 4 each time: a median of 2, twice as fast."""
    taken = {"eager": iter([4.0] * 5), "gather": iter([3.0, 1.0, 2.0, 100.0, 2.0])}
    model = tiny()

    def take_turns(contestants: list[measure.Contestant], batches: list[Tensor], seconds: float) -> int:
        for one in contestants:
            one.seconds = list(taken[one.name])
        return 5

    monkeypatch.setattr(measure, "_take_turns", take_turns)
    row = rows_by_name(run_bench(model, Forcing(0.8, "random"), engines=["gather"]))["gather"][0]
    assert row["milliseconds"]["median"] == 2000.0
    assert row["milliseconds"]["lower_quartile"] == 2000.0
    assert row["milliseconds"]["upper_quartile"] == 3000.0
    assert row["speed_up"] == 2.0
    assert row["realised_share"] == pytest.approx(2.0 * row["share"])


def test_turns_are_taken_from_another_start_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.time, "perf_counter", Clock(1.0))
    turns: list[str] = []
    contestants = [
        measure.Contestant(name, "peer", run=lambda images, name=name: turns.append(name)) for name in ("a", "b", "c")
    ]
    assert measure._take_turns(contestants, [torch.zeros(1)], 1e-6) == measure.LEAST_ROUNDS
    # All are thought quick at first, and run once untimed; a second each, they are not.
    assert turns[:6] == list("aabbcc")
    assert turns[6:15] == list("bcacababc")
    assert {len(one.seconds) for one in contestants} == {measure.LEAST_ROUNDS}


def test_its_own_halting_over_several_batches(tiny) -> None:
    model = tiny()
    batches = [torch.randn(2, 3, 32, 32) for _ in range(3)]
    result = run_bench(model, batches=batches)
    with torch.no_grad():
        flops = [int(model(images, return_ponder=True)[1].flops.sum()) for images in batches]
    row = rows_by_name(result)["gather"][0]
    timed = sorted(flops[index % 3] for index in range(result["rounds"]))
    assert timed[0] <= row["flops"] <= timed[-1]
    assert row["wanted_share"] is None
    assert report.label(row) == "gather"


def test_a_plain_network_and_no_peers(tiny) -> None:
    result = run_bench(tiny(halting="none"), peers=[])
    assert result["fastest_peer"] is None
    assert {row["speed_up"] for row in result["rows"]} == {None}
    assert {row["share"] for row in result["rows"]} == {1.0}
    assert "none was timed" in report.table(result)


def spoil(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let the gather engine give another answer."""
    honest = measure.compile

    def compile(model: sact.Network, engine: Engine, *, freeze: bool) -> Any:
        fast = honest(model, engine, freeze=freeze)
        if engine != "gather":
            return fast

        def run(images: Tensor, return_ponder: bool = False) -> Any:
            logits, ponder = change(*fast(images, return_ponder=True))
            return (logits, ponder) if return_ponder else logits

        return run

    monkeypatch.setattr(measure, "compile", compile)


def test_a_wrong_answer_gets_no_time(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda logits, ponder: (logits + 2e-4 * logits.abs().max(), ponder))
    result = run_bench(tiny(), Forcing(0.8, "random"))
    row = rows_by_name(result)["gather"][0]
    assert row["failed"]
    assert row["milliseconds"] is row["speed_up"] is row["realised_share"] is None
    assert "differs from the reference by 0.0002" in row["problem"]
    assert "not timed" in report.table(result)
    assert rows_by_name(result)["masked"][0]["milliseconds"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_answer_that_is_no_number_is_wrong(tiny, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    spoil(monkeypatch, lambda logits, ponder: (logits * value, ponder))
    assert rows_by_name(run_bench(tiny(), Forcing(0.8, "random")))["gather"][0]["failed"]


def test_other_unit_counts_are_wrong(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(logits: Tensor, ponder: sact.Ponder) -> tuple[Tensor, sact.Ponder]:
        ponder.blocks[0].units[0, :3] += 1
        return logits, ponder

    spoil(monkeypatch, change)
    row = rows_by_name(run_bench(tiny(), Forcing(0.8, "random")))["gather"][0]
    assert row["failed"]
    assert "unit counts differ" in row["problem"]


def test_wrong_peers_get_no_time_and_are_not_the_fastest(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = peers.prepare

    def prepare(name: str, plain: nn.Sequential, images: Tensor, threads: int) -> Any:
        run = honest("eager", plain, images, threads)
        return run if name == "eager" else lambda images: 1.01 * run(images)

    monkeypatch.setattr(measure, "load", lambda name: None)
    monkeypatch.setattr(measure, "prepare", prepare)
    result = run_bench(tiny(), Forcing(0.8, "random"), peers=["openvino", "eager"])
    rows = rows_by_name(result)
    assert rows["openvino"][0]["failed"]
    assert rows["openvino"][0]["milliseconds"] is None
    assert result["fastest_peer"] == "eager"


def test_missing_and_broken_peers_are_left_out_with_the_reason(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)

    def broken(name: str) -> None:
        if name == "compile":
            raise RuntimeError("there is no C++ compiler\nand more")
        peers.load(name)

    monkeypatch.setattr(measure, "load", broken)
    result = run_bench(tiny(), Forcing(0.8, "random"), peers=["openvino", "compile", "eager"])
    rows = rows_by_name(result)
    assert "left out" in rows["openvino"][0]["problem"]
    assert "sact[bench]" in rows["openvino"][0]["problem"] or "onnx" in rows["openvino"][0]["problem"]
    assert rows["compile"][0]["problem"] == "left out: there is no C++ compiler"
    assert not any(row["failed"] for row in result["rows"])
    assert "there is no C++ compiler" in report.table(result)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engines": ["fast"]}, 'engine is "fast", but it must be one of masked, gather, native'),
        ({"peers": ["tvm"]}, 'peer is "tvm", but it must be one of eager, compile, onnxruntime, openvino'),
        ({"threads": 0}, "threads is 0"),
        ({"seconds": 0.0}, "seconds is 0"),
        ({"seconds": math.nan}, "seconds is nan"),
        ({"batches": []}, "no images"),
        ({"batches": [torch.randn(1, 3, 32, 32), torch.randn(1, 3, 40, 32)]}, "all must be float32"),
        ({"batches": [torch.randn(1, 4, 32, 32)]}, "4 channels"),
    ],
)
def test_bad_options(tiny, options: dict[str, Any], says: str) -> None:
    with pytest.raises(sact.InputError, match=says):
        run_bench(tiny(), **options)


def test_networks_that_cannot_be_timed(tiny) -> None:
    with pytest.raises(sact.InputError, match="training mode"):
        run_bench(tiny().train())
    with pytest.raises(sact.InputError, match="features"):
        run_bench(tiny(features_only=True))


def test_threads_are_put_back_after_an_error(tiny) -> None:
    before = torch.get_num_threads()
    with pytest.raises(sact.InputError, match="share is 0.01"):
        run_bench(tiny(), Forcing(0.01, "random"), threads=before + 1)
    assert torch.get_num_threads() == before


def test_memory_is_what_a_contestant_adds() -> None:
    before = memory.resident()
    if before is None or not memory.restart_peak():
        pytest.skip("this system does not tell")
    block = bytearray(64 << 20)
    del block
    highest = memory.peak()
    assert highest is not None
    assert highest - before >= 60 << 20


def run_command(*arguments: str) -> int:
    short = ["--seconds", "1e-6", "--threads", "1", "--peers", "eager", "--engines", "gather,masked"]
    return cli.main(["bench", *arguments, *short])


def test_the_command_for_a_new_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "new" / "bench.json"
    network = ["cifar_resnet", "--units", "2,3", "--base-channels", "4", "--size", "32x40", "--batch", "2"]
    assert run_command(*network, "--share", "0.8,1", "--masks", "random", "--json", str(file)) == 0
    result = json.loads(file.read_text())
    assert result["input"] == [2, 3, 32, 40]
    assert result["halting"] == "sact"
    assert result["images"] == "noise"
    assert [row["wanted_share"] for row in result["rows"]] == [None, 0.8, 1.0, 0.8]
    out = capsys.readouterr().out
    assert "gather at 0.8, random" in out
    assert str(file) in out


def test_the_command_prints_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("cifar_resnet", "--units=2", "--base-channels=4", "--halting=none", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rows"][-1]["share"] == 1.0


@needs_scenes
def test_the_command_for_the_packaged_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("scenes", "--batches", "2", "--batch", "2", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["batches"]) == ("held-out scenes", 2)
    share = next(row["share"] for row in result["rows"] if row["name"] == "masked")
    assert 0.3 < share < 0.95
    assert all(row["wanted_share"] is None for row in result["rows"])


def test_the_command_on_given_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from PIL import Image

    for index in range(3):
        Image.new("RGB", (80, 60), (80 * index, 40, 90)).save(tmp_path / f"{index}.png")
    assert run_command("scenes", "--images", str(tmp_path), "--batch", "2", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["batches"], result["input"]) == ("files", 1, [2, 3, 64, 64])
    assert run_command("scenes", "--images", str(tmp_path), "--batch", "4") == 2
    assert "--batch is 4, but there are 3 images" in capsys.readouterr().err


def test_the_command_fails_on_a_wrong_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda logits, ponder: (1.1 * logits, ponder))
    assert run_command("cifar_resnet", "--units=2,3", "--base-channels=4", "--share=0.8", "--masks=random") == 1
    captured = capsys.readouterr()
    assert "not timed" in captured.out
    assert "sact bench: gather: its output differs" in captured.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cifar_resnet20", "--share", "0.05", "--masks", "random"], "ask for at least"),
        (["cifar_resnet20", "--halting", "none", "--share", "0.5"], "plain network"),
        (["cifar_resnet20", "--masks", "disks"], 'masks is "disks"'),
        (["cifar_resnet20", "--batch", "0"], "--batch is 0"),
        (["cifar_resnet20", "--seed", "-1"], "--seed is -1"),
        (["cifar_resnet21"], "there is no model"),
        (["scenes", "--size", "64x96"], "scenes are square"),
        (["cifar_resnet20", "--images", "x.png"], "does not say how images are prepared"),
    ],
)
def test_bad_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert run_command(*arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_shares_that_are_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "cifar_resnet20", "--share", "half"])
    assert stopped.value.code == 2
    assert "is not a list of shares like 0.3,0.5" in capsys.readouterr().err


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """benchmarks/cpu.py with one small row."""
    pytest.importorskip("matplotlib")
    path = Path(__file__).parents[1] / "benchmarks" / "cpu.py"
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location("cpu_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "cpu_benchmark", module)
    spec.loader.exec_module(module)
    row = module.Row("cifar_resnet20", (1, 32, 32), (Forcing(0.6, "random"), Forcing(1.0, "random")), 1e-6)
    monkeypatch.setattr(module, "ROWS", (row,))
    monkeypatch.setattr(module, "ROOFLINE_ROW", row)
    monkeypatch.setattr(module, "ROOFLINE_SHARES", (1.0,))
    monkeypatch.setattr(module, "ROOFLINE_SECONDS", 0)
    monkeypatch.setattr(sys.modules["cpu_report"], "PLOTTED", "cifar")
    monkeypatch.setattr(module, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(module, "measure_limits", lambda: sys.modules["roofline"].Limits(100.0, 10.0))
    return module


def test_the_report(cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = ["cpu.py", "--out", str(tmp_path), "--peers", "eager", "--engines", "gather,masked", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", command)
    assert cpu.main() == 0
    page = (tmp_path / "cpu.md").read_text()
    assert report.processor() in page
    assert "| cifar_resnet20 | 1x32x32 | gather | random | 60." in page
    assert "| block 3, head |" in page
    lines = (tmp_path / "cpu.csv").read_text().splitlines()
    assert len(lines) == 1 + 1 + 2 + 1
    assert all(report.processor() in line and torch.__version__ in line for line in lines[1:])
    assert (tmp_path / "cpu.png").stat().st_size > 1000
    (tmp_path / "cpu.md").unlink()
    monkeypatch.setattr(sys, "argv", [*command, "--only"])
    monkeypatch.setattr(cpu, "bench", None)
    assert cpu.main() == 0
    assert (tmp_path / "cpu.md").read_text() == page, "the report alone, from what was kept"


def test_a_misspelt_peer(cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["cpu.py", "--peers", "onnx", "--engines", "gather", "--threads", "1"])
    assert cpu.main() == 2
    assert 'peer is "onnx", but it must be one of' in capsys.readouterr().err


def test_a_report_of_nothing(
    cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cpu.py", "--only"])
    assert cpu.main() == 2
    assert "nothing was measured yet" in capsys.readouterr().err


def test_roofline_counts_every_byte_once(cpu: ModuleType, tiny) -> None:
    import roofline

    model = tiny(name="resnet", units=[2, 2])
    units = force_units(model, (1, 64, 64), Forcing(1.0, "random"))
    found = roofline.parts(model, (1, 64, 64), units)
    units_convs = [layer for block in model.blocks for unit in block.units for layer in unit.modules()]
    weights = sum(layer.weight.numel() for layer in units_convs if isinstance(layer, nn.Conv2d))
    around = sum(parameter.numel() for part in (model.stem, model.classifier) for parameter in part.parameters())
    assert sum(part.weight_bytes for part in found) == 4 * (weights + around)
    assert sum(part.flops for part in found) == count(model, (64, 64))["most"]
    assert roofline.Part("", 100, 10, 0).limit(roofline.Limits(1e-9, 1e-9)) == (100.0, "FLOPs")
    assert roofline.Part("", 100, 10, 0).limit(roofline.Limits(1e-9, 5e-11)) == (200.0, "weights")
    fewest = roofline.parts(model, (1, 64, 64), [torch.ones_like(counts) for counts in units])
    for less, more in zip(fewest, found, strict=True):
        assert less.weight_bytes < more.weight_bytes
        assert less.activation_bytes < more.activation_bytes


@pytest.mark.parametrize("name", ["eager", "onnxruntime", "openvino"])
def test_feature_maps_in_other_runtimes(name: str) -> None:
    model = sact.create_model("resnet", units=[2, 1, 2], base_channels=4, features_only=True).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, plain = model(images), peers.plain_features(model)
        for ours, theirs in zip(peers.prepare(name, plain, images, 1)(images), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

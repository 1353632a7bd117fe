"""The baselines of `benchmarks/compare.py`, tiny, and the page that it fills."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import MakeModel
from torch import Tensor, nn

import sact
from sact.flops import conv_flops, dilate
from sact.flops_report import shapes
from sact.recipe import make_recipe

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = ["compare", "compare_report", "baselines.fit", "baselines.gumbel", "baselines.ram", "baselines.timing"]


@pytest.fixture(scope="module")
def code() -> Iterator[dict[str, Any]]:
    """The benchmark's modules by name."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name.rpartition(".")[2]: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(sys.modules) - before:  # the names are short, and other benchmarks may have the same
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
                del sys.modules[name]


@pytest.fixture
def gumbel(code: dict[str, Any], make_model: MakeModel) -> Any:
    """A gated network whose masks vary over positions and images."""
    model = code["gumbel"].GumbelNetwork(make_model("resnet", units=[3, 2], base_channels=4, num_classes=5)).eval()
    with torch.no_grad():
        for _, head in model.masked():
            head.local_conv.weight.mul_(5)
            head.local_conv.bias.fill_(-0.5)
    return model


def images(count: int = 3, size: int = 64) -> Tensor:
    return torch.randn(count, 3, size, size + 8, generator=torch.Generator().manual_seed(1))


def test_inactive_positions_keep_their_state(code: dict[str, Any], gumbel: Any) -> None:
    seen = []

    def watched(unit: Any, x: Tensor, mask: Tensor) -> Tensor:
        after = code["gumbel"].masked_unit(unit, x, mask)
        dense = unit(x)
        assert torch.equal(after[~mask[:, None].expand_as(x)], x[~mask[:, None].expand_as(x)])
        assert torch.equal(after[mask[:, None].expand_as(x)], dense[mask[:, None].expand_as(x)])
        seen.append(mask)
        return after

    with torch.no_grad():
        logits, masks = gumbel(images(), evaluate_unit=watched)
        assert torch.equal(logits, gumbel(images())[0])
    assert len(seen) == len(masks) == 3
    assert all(mask.dtype == torch.bool for mask in masks)
    assert all(0.05 < float(mask.float().mean()) < 0.95 for mask in masks)


@pytest.mark.parametrize("dense_share", [0.0, 0.5, 1.0])
def test_perforated_gates_give_the_masked_answer(
    code: dict[str, Any], gumbel: Any, monkeypatch: pytest.MonkeyPatch, dense_share: float
) -> None:
    monkeypatch.setattr(code["gumbel"], "DENSE_SHARE", dense_share)
    run = code["gumbel"].perforate(gumbel)
    with torch.no_grad():
        for batch in (images(), images(1, 48).contiguous(memory_format=torch.channels_last)):
            expected, masks = gumbel(batch)
            logits, found = run(batch)
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, masks, strict=True))
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        for _, head in gumbel.masked():
            head.local_conv.bias.fill_(-1e4)  # nothing runs
        expected, masks = gumbel(images())
        assert not any(mask.any() for mask in masks)
        torch.testing.assert_close(run(images())[0], expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_mask_heads(gumbel: Any) -> None:
    gumbel.train()
    torch.manual_seed(3)
    logits, masks = gumbel(images(), noise=True)
    assert all(set(mask.detach().round(decimals=5).unique().tolist()) <= {0.0, 1.0} for mask in masks)
    for loss in (F.cross_entropy(logits, torch.tensor([0, 1, 2])), gumbel.sparsity_loss(masks, 0.01, 1.0)):
        gumbel.zero_grad()
        loss.backward(retain_graph=True)
        for _, head in gumbel.masked():
            assert float(head.local_conv.weight.grad.abs().max()) > 0
            assert float(head.global_conv.weight.grad.abs().max()) > 0


def test_noise_draws_with_the_probability_of_the_soft_mask(code: dict[str, Any]) -> None:
    logits = torch.tensor([-1.5, 0.0, 2.0]).repeat(20000, 1)
    drawn = code["gumbel"].straight_through(logits, noise=True).mean(0)
    torch.testing.assert_close(drawn, logits[0].sigmoid(), atol=0.015, rtol=0)
    assert code["gumbel"].straight_through(logits, noise=False).mean(0).tolist() == [0, 1, 1]


def test_flops_fall_with_the_masks(gumbel: Any) -> None:
    size = (64, 72)
    plain = shapes(gumbel.network, size).dense_flops
    with torch.no_grad():
        masks = gumbel(images())[1]
    full, none = ([torch.full_like(mask, value) for mask in masks] for value in (True, False))
    fixed, gated = gumbel.fixed_flops(size)
    areas = [mask[0].numel() for mask in masks]
    heads = sum(
        conv_flops(head.local_conv) * area + conv_flops(head.global_conv)
        for (_, head), area in zip(gumbel.masked(), areas, strict=True)
    )
    assert gumbel.flops(full, size).tolist() == [plain + heads] * 3
    assert gumbel.flops(none, size).tolist() == [fixed] * 3 == [plain + heads - gated] * 3
    expected = torch.full((3,), fixed)
    for (unit, _), mask in zip(gumbel.masked(), masks, strict=True):
        first, *rest = (conv_flops(stage.conv) for stage in unit.stages())
        expected += first * dilate(mask, 1).sum((1, 2)) + sum(rest) * mask.sum((1, 2))
    assert torch.equal(gumbel.flops(masks, size), expected)
    assert gumbel.target((fixed + 0.25 * gated) / plain, size) == pytest.approx(0.25)
    with pytest.raises(sact.InputError, match="masks reach from"):
        gumbel.target(0.01, size)


def test_the_sparsity_loss_is_least_at_its_target(code: dict[str, Any], gumbel: Any) -> None:
    with torch.no_grad():
        shapes_of = [mask.shape for mask in gumbel(images())[1]]
    full = [torch.ones(shape) for shape in shapes_of]
    none = [torch.zeros(shape) for shape in shapes_of]
    assert float(gumbel.sparsity_loss(full, 1.0, 0.0)) == float(gumbel.sparsity_loss(none, 0.0, 0.0)) == 0
    assert float(gumbel.sparsity_loss(full, 0.4, 1.0)) == pytest.approx(0.6**2)  # the network's share alone
    assert float(gumbel.sparsity_loss(full, 0.4, 0.0)) == pytest.approx(2 * 0.6**2)  # and each unit's bound
    mask = torch.zeros(1, 6, 6)
    mask[0, 2, 2] = 1
    assert torch.equal(code["gumbel"].spread(mask, 1).bool(), dilate(mask.bool(), 1))


def test_glimpses_are_patches_of_all_scales(code: dict[str, Any]) -> None:
    ram = code["ram"]
    batch = torch.rand(2, 3, 64, 64) + 1  # nowhere zero, as the padding is
    patches = ram.glimpse(ram.pyramid(batch), torch.tensor([[0.0, 0.0], [-1.0, -1.0]]))
    assert patches.shape == (2, 9, 16, 16)
    centre, corner = patches.unflatten(1, (3, 3))
    torch.testing.assert_close(centre[0], batch[0, :, 24:40, 24:40])
    torch.testing.assert_close(centre[1], F.avg_pool2d(batch[:1], 2)[0, :, 8:24, 8:24])
    torch.testing.assert_close(centre[2], F.avg_pool2d(batch[:1], 4)[0])
    for scale, patch in zip(ram.SCALES, corner, strict=True):
        torch.testing.assert_close(patch[:, 8:, 8:], F.avg_pool2d(batch[1:], scale)[0, :, :8, :8])
        assert torch.count_nonzero(patch[:, :8]) == torch.count_nonzero(patch[:, :, :8]) == 0


def test_a_glimpse_follows_x_to_the_right_and_y_down(code: dict[str, Any]) -> None:
    ram = code["ram"]
    batch = torch.zeros(1, 3, 64, 64)
    batch[0, :, 63, 40] = 1
    patch = ram.glimpse(ram.pyramid(batch)[:1], torch.tensor([[0.25, 1.0]]))[0, 0]
    assert patch.nonzero().tolist() == [[7, 8]]


def test_reinforce_reaches_the_location_network_alone(code: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = code["ram"].RecurrentAttention(5, width=4, glimpses=3)
    batch, labels = torch.randn(6, 3, 64, 64), torch.arange(6) % 5
    outcome = model(batch, sample=True)
    assert outcome.locations.shape == (6, 3, 2)
    assert outcome.log_probs.shape == outcome.baselines.shape == (6, 2)
    code["ram"].ram_loss(outcome, labels).backward()
    for part in (model.location, model.baseline, model.classifier, model.core.weight_hh, model.what, model.where):
        parameters = [part] if isinstance(part, nn.Parameter) else part.parameters()
        assert all(float(parameter.grad.abs().max()) > 0 for parameter in parameters if parameter.dim() > 1)
    model.zero_grad()
    (-outcome.log_probs.detach() + model(batch, sample=True).log_probs).sum().backward()
    assert model.core.weight_hh.grad is None
    assert float(model.location.weight.grad.abs().max()) > 0


def test_rewarded_locations_become_likelier(code: dict[str, Any]) -> None:
    outcome = code["ram"].Outcome(
        torch.tensor([[2.0, 0.0], [2.0, 0.0]]),
        torch.zeros(2, 2, 2),
        torch.zeros(2, 1, requires_grad=True),
        torch.full((2, 1), 0.25, requires_grad=True),
    )
    code["ram"].ram_loss(outcome, torch.tensor([0, 1])).backward()
    # Descent moves against the gradient: up by the advantage 0.75 where the answer was right, down by 0.25 where wrong.
    assert outcome.log_probs.grad.flatten().tolist() == pytest.approx([-0.75 / 2, 0.25 / 2])
    assert outcome.baselines.grad.flatten().tolist() == pytest.approx([2 * (0.25 - 1) / 2, 2 * 0.25 / 2])


def test_glimpses_are_deterministic_with_mean_locations(code: dict[str, Any]) -> None:
    model = code["ram"].RecurrentAttention(5, width=4, glimpses=3).eval()
    batch = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(batch).logits, model(batch).logits)
        assert not torch.equal(model(batch, sample=True).locations, model(batch, sample=True).locations)


def test_flops_of_glimpses_are_counted_layer_by_layer(code: dict[str, Any]) -> None:
    model = code["ram"].RecurrentAttention(5, width=4, glimpses=3).eval()
    counted = 0

    def count(module: nn.Module, given: Any, result: Any) -> None:
        nonlocal counted
        if isinstance(module, nn.Conv2d):
            counted += conv_flops(module) * result[0, 0].numel()
        elif isinstance(module, nn.Linear) and module is not model.baseline:
            counted += 2 * module.weight.numel()
        elif isinstance(module, nn.LSTMCell):
            counted += 2 * (module.weight_ih.numel() + module.weight_hh.numel())

    for module in model.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    assert model.flops() == counted


def test_fit_trains_and_leaves_evaluation_mode(code: dict[str, Any]) -> None:
    recipe = make_recipe(
        {"model": "resnet", "units": [1, 1], "data": "fashion_mnist", "optimizer": "adamw", "lr": 0.01, "max_epochs": 1}
        | {"batch_size": 8, "schedule": "one_cycle", "norm_momentum": 0.5, "score_lr_scale": 10}
    )
    data = [(torch.full((3, 8, 8), float(index % 2)), index % 2) for index in range(64)]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(1), nn.Linear(4 * 36, 2))
    shares: list[float] = []

    def loss(pictures: Tensor, labels: Tensor, done: float) -> Tensor:
        shares.append(done)
        return F.cross_entropy(model(pictures), labels)

    found = code["fit"].fit(model, loss, recipe, data, 2, list(model[3].parameters()), quiet=True)
    assert (found["images"], len(shares), shares[0]) == (128, 16, 0.0)
    assert 0.9 < shares[-1] < 1
    assert not model.training
    assert model[1].momentum == 0.5
    pictures = torch.stack([picture for picture, _ in data[:2]])
    assert model(pictures).argmax(1).tolist() == [0, 1]
    groups = code["fit"].groups(model, recipe, list(model[0].parameters()))
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert (rates[id(model[0].weight)], rates[id(model[3].weight)]) == pytest.approx((0.1, 0.01))
    assert decays == {id(parameter): 2e-4 if parameter.dim() == 4 else 0.0 for parameter in model.parameters()}


def test_what_answers_otherwise_is_not_timed(code: dict[str, Any]) -> None:
    timing = code["timing"]
    decided = torch.zeros(4, 2, 500, dtype=torch.int32)

    def answer(off: float = 0.0, changed: int = 0) -> Any:
        units = decided.clone()
        units.view(-1)[:changed] = 1
        return lambda batch: (batch.flatten(1)[:, :3] + off, [units[: len(batch)]])

    runs = {"right": answer(), "wrong": answer(off=1), "flips": answer(9, 100), "one": answer(0, 1)}
    entrants = [timing.Contestant(name, "dense", "PyTorch", run, run, answer()) for name, run in runs.items()]
    found = timing.compare_and_time(entrants, torch.rand(9, 3, 2, 2) + 1, 4, 1e-6)
    rows = {row["network"]: row for row in found["rows"]}
    assert found["rounds"] == timing.LEAST_ROUNDS
    assert rows["right"]["problem"] == rows["one"]["problem"] == ""
    assert rows["right"]["milliseconds"]["median"] > 0
    assert "logits differ" in rows["wrong"]["problem"]
    assert "differ" in rows["flips"]["problem"]
    assert rows["wrong"]["milliseconds"] is rows["flips"]["milliseconds"] is None


def test_every_way_to_run_a_network_is_compared_and_timed(
    code: dict[str, Any], gumbel: Any, make_model: MakeModel
) -> None:
    options = {"units": [2, 2], "base_channels": 4, "num_classes": 5}
    networks = {"full": make_model(halting="none", **options), "sact": make_model(halting="sact", **options)}
    ram = code["ram"].RecurrentAttention(5, width=4, glimpses=2).eval()
    entrants = code["timing"].contestants(networks, gumbel, ram)
    found = code["timing"].compare_and_time(entrants, torch.randn(3, 3, 64, 64), 2, 1e-6)
    ways = [(row["network"], row["way"]) for row in found["rows"]]
    assert ways == [
        *[("full", "dense"), ("full", "engine"), ("sact", "dense"), ("sact", "engine"), ("sact", "gather")],
        *[("gumbel", "dense"), ("gumbel", "perforated"), ("ram", "dense")],
    ]
    assert [row["problem"] for row in found["rows"]] == [""] * len(ways)
    assert all(row["milliseconds"]["lower_quartile"] > 0 for row in found["rows"])


def fake_results(code: dict[str, Any]) -> dict[str, Any]:
    spread = {"lower_quartile": 64.0, "median": 128.0, "upper_quartile": 192.0}
    faster = {name: value / 2 for name, value in spread.items()}
    row = {"top1": 0.75, "top1_error": 0.01, "flops": 1e8, "flops_std": 0.0, "tau": None}
    rows = {name: dict(row) for name in (*code["compare_report"].FACTS, "ram-sampled")}
    rows["sact"] |= {"tau": 0.04, "flops": 6e7, "flops_std": 4e6}
    timed = [
        {"network": "full", "way": "dense", "runs_in": "PyTorch", "problem": "", "milliseconds": spread},
        {"network": "full", "way": "engine", "runs_in": "the native engine", "problem": "", "milliseconds": faster},
        {"network": "gumbel", "way": "dense", "runs_in": "PyTorch", "problem": "", "milliseconds": spread},
        {"network": "ram", "way": "dense", "runs_in": "PyTorch", "problem": "it is off", "milliseconds": None},
    ]
    trained = {"seconds": 120.0, "images": 48000}
    held = {"date": "2026-01-02", "processor": "CPU", "cores": 2, "threads": 1, "versions": {"torch": "2"}}
    return {
        "rows": rows,
        "length": 400,
        "training": {"gumbel": trained, "ram": trained},
        "conditions": held,
        "times": [{"batch": size, "rounds": 7, "rows": timed} for size in (1, 64)],
    }


def test_the_report_fills_the_page(
    code: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, kept = tmp_path / "compare.md", tmp_path / "results.json"
    page.write_text((FOLDER.parent / "docs" / "compare.md").read_text())
    kept.write_text(json.dumps(fake_results(code)))
    monkeypatch.setattr(sys, "argv", ["compare_report.py", f"--results={kept}", f"--page={page}"])
    assert code["compare_report"].main() == 0
    text = page.read_text()
    cells = {line.split(" | ")[0][2:]: line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")}
    table = text.partition("<!-- compare -->")[2].partition("<!-- /compare -->")[0]
    assert table.count("\n| ") == 1 + len(code["compare_report"].FACTS)
    assert cells["SACT, tau 0.04"][1:4] == ["75.00 ± 1.00", "60.0 ± 4.0", "60.0 %"]
    assert "| plain, full | 75.00 ± 1.00 | 100.0 | 100.0 % | 64 (32-96) | 1 | 1 (0.5-1.5) | 1 | yes | yes |" in table
    assert "| Gumbel gates | 75.00 ± 1.00 | 100.0 | 100.0 % | 128 (64-192) | 2 | 2 (1-3) | 2 | yes |" in table
    assert "RAM), everything is computed, is not timed: it is off." in table
    ways = text.partition("<!-- ways -->")[2].partition("<!-- /ways -->")[0]
    assert "| Gumbel gates | everything is computed | PyTorch | 128 (64-192) | 1 | 2 (1-3) | 1 |" in ways
    assert "| glimpses (RAM) | everything is computed | PyTorch | not timed |  | not timed |  |" in ways
    kept.unlink()
    assert code["compare_report"].main() == 2
    assert "run benchmarks/compare.py first" in capsys.readouterr().err
    assert page.read_text() == text


def test_compare_wants_a_trained_study(
    code: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", f"--folder={tmp_path}", f"--out={tmp_path / 'out'}"])
    assert code["compare"].main() == 2
    assert "run benchmarks/study.py first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_trained_baseline_is_not_trained_again(code: dict[str, Any], tmp_path: Path) -> None:
    model = code["ram"].RecurrentAttention(5, width=4)
    calls = []

    def train() -> dict[str, Any]:
        calls.append(1)
        return {"images": 64}

    first = code["compare"].trained(tmp_path / "ram", model, train)
    again = code["compare"].trained(tmp_path / "ram", code["ram"].RecurrentAttention(5, width=4), train)
    assert calls == [1]
    assert not again.training
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert json.loads((tmp_path / "ram" / "training.json").read_text())["images"] == 64

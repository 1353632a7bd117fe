"""Statistics, loss, schedules, and the training loop, on networks small enough to train in a second."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_RECIPE
from PIL import Image
from torch import Tensor, nn

import sact
from sact.flops import BlockFlops, UnitFlops
from sact.ponder import BlockPonder, Ponder
from sact.recipe import Recipe, load_recipe, make_recipe
from sact.tasks import classification, training
from sact.tasks.evaluation import evaluate
from sact.tasks.learning import Learning
from sact.tasks.optimisation import make_optimizer, make_schedule
from sact.tasks.pictures import PonderPictures
from sact.tasks.statistics import PonderStatistics


def recipe_of(**changes: Any) -> Recipe:
    fields = TINY_RECIPE | {"lr": 0.05} | changes
    if changes.get("halting") == "none":
        fields["tau"] = 0.0
    if "max_steps" in changes:
        del fields["max_epochs"]
    return make_recipe(fields)


def train(folder: Path, resume: bool = False, **changes: Any) -> dict[str, Any]:
    return training.train(recipe_of(**changes), folder, resume, quiet=True)


def read_log(folder: Path) -> list[dict[str, str]]:
    with open(folder / "csv" / "metrics.csv") as file:
        return list(csv.DictReader(file))


def read_checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last.ckpt", weights_only=True)


# Statistics


def make_ponder(rng: np.random.Generator, images: int, kind: str) -> Ponder:
    """Blocks of 4 and 3 units of which the last is never run in the second."""
    blocks = []
    for length, most, side in ((4, 4, 3), (3, 2, 2)):
        shape = (images, side, side) if kind == "sact" else (images,)
        units = torch.from_numpy(rng.integers(1, most + 1, shape).astype(np.int32))
        if kind == "none":
            units = torch.full(shape, length, dtype=torch.int32)
        cost = None if kind == "none" else units + torch.from_numpy(rng.random(shape).astype(np.float32))
        unit = UnitFlops(((0, 7), (1, 5)), score_local=2, score_global=3)
        blocks.append(BlockPonder(units, cost, BlockFlops((unit,) * length, (side, side), (side, side))))
    return Ponder(blocks, 1000)


@pytest.mark.parametrize("kind", ["none", "act", "sact"])
def test_statistics_against_numpy(kind: str) -> None:
    rng = np.random.default_rng(0)
    ponders = [make_ponder(rng, images, kind) for images in (5, 2)]
    statistics = PonderStatistics(2)
    for ponder in ponders:
        statistics.update(ponder)
    results = json.loads(json.dumps(statistics.compute()))

    def check(values: dict[str, float], expected: list[Tensor]) -> None:
        array = torch.cat([part.flatten() for part in expected]).double().numpy()
        assert values["mean"] == pytest.approx(array.mean(), rel=1e-6)
        assert values["std"] == pytest.approx(array.std(), rel=1e-5, abs=1e-9)

    check(results["flops"], [ponder.flops for ponder in ponders])
    assert results["dense_flops"] == ponders[0].dense_flops
    assert results["share"] == pytest.approx(results["flops"]["mean"] / ponders[0].dense_flops)
    for index, block in enumerate(results["blocks"]):
        parts = [ponder.blocks[index] for ponder in ponders]
        check(block["flops"], [part.flops for part in parts])
        check(block["units"], [part.units for part in parts])
        assert block["units"]["unit_count"] == (4, 3)[index]
        assert block["units"]["max"] == max(int(part.units.max()) for part in parts)
        if kind == "none":
            assert block["cost"] is None
        else:
            check(block["cost"], [part.cost for part in parts])
    assert [block["units"]["dead_units"] for block in results["blocks"]] == ([0, 0] if kind == "none" else [0, 1])
    if kind == "none":
        assert results["cost"] is None
    else:
        assert results["cost"] == pytest.approx(sum(block["cost"]["mean"] for block in results["blocks"]))


def test_statistics_forget_on_reset() -> None:
    rng = np.random.default_rng(0)
    first, second = make_ponder(rng, 4, "sact"), make_ponder(rng, 3, "sact")
    used, fresh = PonderStatistics(2), PonderStatistics(2)
    used.update(first)
    used.reset()
    used.update(second)
    fresh.update(second)
    assert used.compute() == fresh.compute()


def test_what_does_not_vary_has_no_deviation() -> None:
    """Sums of squares of large numbers are rounded; that is not variance."""
    unit = UnitFlops(((0, 15_602_814_977),))
    statistics = PonderStatistics(1)
    for count in (63, 64, 1, 17):
        units = torch.ones(count, dtype=torch.int32)
        statistics.update(Ponder([BlockPonder(units, None, BlockFlops((unit,), (1, 1), (1, 1)))], 0))
    assert statistics.compute()["flops"] == {"mean": 15_602_814_977.0, "std": 0.0}


def test_statistics_keep_their_precision() -> None:
    assert PonderStatistics(2).half().flops.dtype == torch.float64


def test_statistics_stay_where_float64_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PonderStatistics(2).to("meta").flops.device.type == "meta"
    monkeypatch.setattr(sact.tasks.statistics, "NO_FLOAT64", ("meta",))
    stayed = nn.Sequential(PonderStatistics(2)).to("meta")[0]
    assert (stayed.flops.device.type, stayed.device.type) == ("cpu", "cpu")


# Loss and optimisation


@pytest.mark.parametrize(("tau", "smoothing"), [(0.0, 0.0), (0.3, 0.0), (0.3, 0.2)])
def test_the_loss(make_model, tau: float, smoothing: float) -> None:
    model = make_model("resnet", halting="sact", units=[2, 2], base_channels=4, num_classes=10)
    recipe = recipe_of(tau=tau, label_smoothing=smoothing, log_every=10**6)
    task = Learning(model, recipe, classification.make_measures(model, None))
    task._log_step = lambda *args: None  # type: ignore[method-assign]  # logs need a trainer
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 3, 3, 9])
    loss = task.training_step((images, labels), 0)
    logits, ponder = model(images, return_ponder=True)
    logs = logits.log_softmax(1)
    one_hot = F.one_hot(labels, 10) * (1 - smoothing) + smoothing / 10
    expected = -(one_hot * logs).sum(1).mean() + tau * ponder.cost.mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_weight_decay_is_on_convolution_weights_only(make_model) -> None:
    model = make_model("resnet", halting="sact", units=[2, 2], base_channels=4)
    recipe = recipe_of(weight_decay=0.3, score_lr_scale=10.0, schedule="constant")
    for optimizer in ("sgd", "adamw"):
        groups = make_optimizer(model, recipe.model_copy(update={"optimizer": optimizer})).param_groups
        found = {id(p): (group["weight_decay"], group["lr"]) for group in groups for p in group["params"]}
        convolutions = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d)}
        assert len(found) == len(list(model.parameters())) > len(convolutions)
        for name, parameter in model.named_parameters():
            decay, lr = found[id(parameter)]
            assert decay == (0.3 if id(parameter) in convolutions else 0.0), name
            assert lr == pytest.approx(0.5 if "score" in name else 0.05), name


def rates(recipe: Recipe, total_steps: int, steps_per_epoch: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    schedule = make_schedule(optimizer, recipe, total_steps, steps_per_epoch)
    seen = []
    for _ in range(total_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_milestones_are_epochs_or_steps() -> None:
    by_epoch = rates(recipe_of(max_epochs=4, milestones=[1, 3], gamma=0.5, lr=0.8), 40, 10)
    assert [by_epoch[step] for step in (0, 9, 10, 29, 30, 39)] == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.2])
    by_step = rates(recipe_of(max_steps=40, milestones=[1, 3], gamma=0.5, lr=0.8), 40, 10)
    assert [by_step[step] for step in (0, 1, 2, 3, 39)] == pytest.approx([0.8, 0.4, 0.4, 0.2, 0.2])


def test_other_schedules() -> None:
    assert set(rates(recipe_of(schedule="constant", milestones=[1], lr=0.8), 20, 5)) == {0.8}
    cycle = rates(recipe_of(schedule="one_cycle", lr=0.8), 50, 5)
    assert max(cycle) == pytest.approx(0.8, rel=0.02)
    assert cycle.index(max(cycle)) in (4, 5)
    assert cycle[0] == pytest.approx(0.8 / 25)
    assert cycle[-1] < 0.01
    assert all(a > b for a, b in zip(cycle[5:], cycle[6:], strict=False))


def test_poly_falls_to_nothing() -> None:
    poly = rates(recipe_of(schedule="poly", lr=0.8), 20, 5)
    assert poly == pytest.approx([0.8 * (1 - step / 20) ** 0.9 for step in range(20)], rel=1e-6)


@pytest.mark.parametrize("schedule", ["step", "poly", "constant"])
def test_warm_up_is_linear_and_leaves_the_rest_as_it_is(schedule: str) -> None:
    changes = {"max_steps": 20, "schedule": schedule, "milestones": [2, 12], "gamma": 0.5, "lr": 0.8}
    plain = rates(recipe_of(**changes), 20, 5)
    warm = rates(recipe_of(**changes, warmup_steps=4), 20, 5)
    factors = [1 / 5, 2 / 5, 3 / 5, 4 / 5, *[1.0] * 16]
    assert warm == pytest.approx([rate * factor for rate, factor in zip(plain, factors, strict=True)], rel=1e-6)


@pytest.mark.parametrize("total_steps", range(1, 25))
def test_one_cycle_of_any_length(total_steps: int) -> None:
    cycle = rates(recipe_of(schedule="one_cycle", lr=0.8), total_steps, 1)
    assert all(0 < lr <= 0.8 + 1e-9 for lr in cycle)
    if total_steps > 2:
        assert max(cycle) > 0.75
        assert cycle[-1] < max(cycle)


# Training


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(folder, max_epochs=2, train_length=64)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained plain network. Not to be changed."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    train(folder, halting="none")
    return folder / "model"


def test_the_folder_of_a_run(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {"recipe.yaml", "last.ckpt", "csv", "tensorboard", "ponder", "model", "results.json"}
    assert load_recipe(finished / "recipe.yaml") == recipe_of(max_epochs=2, train_length=64)
    assert "weight_decay: 0.0002" in (finished / "recipe.yaml").read_text()
    assert read_checkpoint(finished)["global_step"] == 8
    assert sorted(path.name for path in (finished / "ponder").iterdir()) == ["epoch_000.png", "epoch_001.png"]
    with Image.open(finished / "ponder" / "epoch_001.png") as sheet:
        assert min(sheet.size) > 300


def test_the_results_of_a_run(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    model = sact.from_pretrained(finished / "model")
    assert (model.config.halting, model.config.units, model.config.num_classes) == ("sact", (2, 2), 10)
    assert (model.class_names[0], model.preprocessing) == ("T-shirt/top", {"name": "scenes", "size": 32})
    metadata = sact.checkpoints.read_metadata(finished / "model")
    assert metadata["results"] == results
    assert make_recipe(metadata["recipe"]) == recipe_of(max_epochs=2, train_length=64)
    validation = training.validation_data(recipe_of())
    images, labels = torch.stack([x for x, _ in validation]), torch.tensor([y for _, y in validation])
    with torch.no_grad():
        logits, ponder = model(images, return_ponder=True)
    assert len(images) == 16
    assert results["top1"] == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=1e-6)
    top5 = (logits.topk(5).indices == labels[:, None]).any(1).float().mean().item()
    assert results["top5"] == pytest.approx(top5, abs=1e-6)
    assert results["flops"]["mean"] == pytest.approx(ponder.flops.double().mean().item(), rel=1e-3)
    assert results["cost"] == pytest.approx(ponder.cost.mean().item(), rel=1e-3)


def test_the_logs_of_a_run(finished: Path) -> None:
    rows = read_log(finished)
    steps = [int(row["step"]) for row in rows if row["train/loss"]]
    assert steps == list(range(8))
    validations = [row for row in rows if row["val/acc"]]
    assert [row["epoch"] for row in validations] == ["0", "1"]
    for row in validations:
        for name in ("val/top5", "val/ponder", "val/flops_share"):
            assert float(row[name]) >= 0
        for block in ("block1", "block2"):
            mean, most, dead = (float(row[f"{block}/units_{name}"]) for name in ("mean", "max", "dead_units"))
            assert 1 <= mean <= most <= 2
            assert dead == 2 - most
            assert float(row[f"{block}/units_std"]) >= 0
            assert float(row[f"{block}/ponder"]) > mean
    for row in rows[:4]:
        assert float(row["train/ponder"]) > 2
        assert 0 < float(row["train/flops_share"]) < 1.1


def test_rows_of_the_log_hold_the_step_they_name(finished: Path, tmp_path: Path) -> None:
    every = [row["train/loss"] for row in read_log(finished)]
    train(tmp_path, max_epochs=2, train_length=64, log_every=3)
    rows = {int(row["step"]): row["train/loss"] for row in read_log(tmp_path) if row["train/loss"]}
    steps = [row for row in every if row]
    assert rows == {2: steps[2], 5: steps[5]}


def test_tensorboard_has_scalars_and_pictures(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/ponder", "val/acc", "val/ponder", "block2/units_dead_units"} <= set(
        events.Tags()["scalars"]
    )
    assert [event.step for event in events.Images("ponder_maps")] == [4, 8]


def test_tau_pushes_the_cost_down(tmp_path: Path) -> None:
    common = {"units": [3, 3], "train_length": 192, "max_epochs": 2, "score_lr_scale": 20.0, "log_every": 50}
    free = train(tmp_path / "free", tau=0.0, **common)
    dear = train(tmp_path / "dear", tau=1.0, **common)
    assert dear["cost"] < free["cost"] - 1
    assert dear["share"] < free["share"]
    units = [sum(block["units"]["mean"] for block in results["blocks"]) for results in (dear, free)]
    assert units[0] < units[1] - 0.5


@pytest.mark.parametrize("kind", ["act", "sact"])
def test_a_plain_network_starts_an_adaptive_one(plain: Path, kind: str) -> None:
    recipe = recipe_of(halting=kind, init=str(plain))
    model = training.make_model(recipe, training.validation_data(recipe))
    assert model.training
    assert model.config.halting == kind
    theirs = sact.from_pretrained(plain).state_dict()
    ours = model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    conv = "global_conv" if kind == "act" else "local_conv"
    assert [getattr(head, conv).bias.item() for block in model.blocks for head in block.scores] == [-3.0, -3.0]


def test_an_adaptive_network_keeps_its_heads(finished: Path) -> None:
    recipe = recipe_of(init=str(finished / "model"))
    model = training.make_model(recipe, training.validation_data(recipe))
    theirs = sact.from_pretrained(finished / "model").state_dict()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in theirs.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": [2, 3]}, r"whose units is \[2, 2\], but the recipe's is \[2, 3\]"),
        ({"base_channels": 8}, "whose base_channels is 4, but the recipe's is 8"),
        ({"num_classes": 12}, "whose num_classes is 10, but the recipe's is 12"),
        ({"model": "cifar_resnet"}, "whose family is resnet"),
    ],
)
def test_init_of_another_network(plain: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(sact.RecipeError, match=message):
        train(tmp_path / "run", init=str(plain), **changes)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_init_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(sact.CheckpointError, match=r"\./nothing"):
        train(tmp_path, init="./nothing")


def test_a_corrected_recipe_may_use_the_folder(tmp_path: Path) -> None:
    """What failed before the first step has not claimed the folder."""
    with pytest.raises(sact.RecipeError, match="batch_size is 33, but there are only 32 training images"):
        train(tmp_path, batch_size=33)
    with pytest.raises(sact.RecipeError, match="num_classes is 5, but fashion_mnist has 10"):
        train(tmp_path, num_classes=5)
    train(tmp_path, num_classes=12)
    model = sact.from_pretrained(tmp_path / "model")
    assert (model.config.num_classes, len(model.class_names)) == (12, 12)


@pytest.mark.parametrize("changes", [{"accelerator": "abacus"}, {"devices": 0}])
def test_machines_that_are_not_there(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(sact.RecipeError, match="cannot be had here"):
        train(tmp_path, **changes)


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(sact.InputError, match="cannot be written"):
        train(tmp_path / "file" / "run")


def test_an_occupied_folder(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(sact.RecipeError, match="already holds a run; continue it with --resume"):
        train(finished, max_epochs=2, train_length=64)
    with pytest.raises(sact.RecipeError, match="another recipe: its tau is 0.01, not 0.02"):
        train(finished, resume=True, max_epochs=2, train_length=64, tau=0.02)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_finished_run_is_not_trained_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "training_data", lambda recipe: pytest.fail("it trains"))
    results = train(finished, resume=True, max_epochs=2, train_length=64)
    assert results == json.loads((finished / "results.json").read_text())


def interrupt(monkeypatch: pytest.MonkeyPatch, at_step: int, error: BaseException) -> pytest.MonkeyPatch:
    original = Learning.training_step

    def training_step(self: Learning, batch: Any, batch_index: int) -> Tensor:
        if self.global_step == at_step:
            raise error
        return original(self, batch, batch_index)

    monkeypatch.setattr(Learning, "training_step", training_step)
    return monkeypatch


class Fault(Exception):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Fault()], ids=["ctrl-c", "error"])
def test_an_interrupted_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    changes = {"max_epochs": 3, "train_length": 48, "schedule": "one_cycle", "optimizer": "adamw", "lr": 0.001}
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt(patch, 4, error)
        with pytest.raises(type(error)):
            train(tmp_path, **changes)
    assert signal.getsignal(signal.SIGINT) is handler
    assert read_checkpoint(tmp_path)["global_step"] == 3
    assert not (tmp_path / "results.json").exists()
    first = [row["train/loss"] for row in read_log(tmp_path) if row["train/loss"]]

    seen = []
    original = Learning.training_step

    def training_step(self: Learning, batch: Any, batch_index: int) -> Tensor:
        seen.append((self.current_epoch, self.global_step, self.optimizers().param_groups[0]["lr"]))
        return original(self, batch, batch_index)

    monkeypatch.setattr(Learning, "training_step", training_step)
    train(tmp_path, resume=True, **changes)
    assert [(epoch, step) for epoch, step, _ in seen] == [(1, 3), (1, 4), (1, 5), (2, 6), (2, 7), (2, 8)]
    expected = rates(recipe_of(**changes), 9, 3)
    assert [lr for *_, lr in seen] == pytest.approx(expected[3:], rel=1e-6)
    assert read_checkpoint(tmp_path)["global_step"] == 9
    assert (tmp_path / "results.json").is_file()
    assert (tmp_path / "model" / "model.safetensors").is_file()
    rows = [row for row in read_log(tmp_path) if row["train/loss"]]
    assert [row["train/loss"] for row in rows][:3] == first[:3]
    assert [int(row["step"]) for row in rows] == list(range(9))
    assert [row["epoch"] for row in read_log(tmp_path) if row["val/acc"]] == ["0", "1", "2"]


def test_a_resumed_epoch_sees_another_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[list[int]] = []
    original = classification.collate

    def collate(items: Any) -> Any:
        orders.append([int(label) for _, label in items])
        return original(items)

    monkeypatch.setattr(classification, "collate", collate)
    with monkeypatch.context() as patch:
        interrupt(patch, 2, Fault())
        with pytest.raises(Fault):
            train(tmp_path, max_epochs=2)
    first = orders[:2]
    orders.clear()
    train(tmp_path, resume=True, max_epochs=2)
    assert sorted(sum(first, [])) == sorted(sum(orders[:2], []))
    assert orders[:2] != first


@pytest.fixture
def interrupted(finished: Path, tmp_path: Path) -> Path:
    """A run whose results are still missing."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    return tmp_path / "run"


def resume(folder: Path) -> dict[str, Any]:
    return train(folder, resume=True, max_epochs=2, train_length=64)


def test_a_run_that_only_lacks_its_results_gets_them(finished: Path, interrupted: Path) -> None:
    assert resume(interrupted) == json.loads((finished / "results.json").read_text())


def test_a_checkpoint_is_never_unpickled(interrupted: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    saved = read_checkpoint(interrupted)
    torch.save(saved | {"bomb": Bomb()}, interrupted / "last.ckpt")
    with pytest.raises(sact.CheckpointError, match=r"last\.ckpt cannot be resumed from") as caught:
        resume(interrupted)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()
    torch.load(interrupted / "last.ckpt", weights_only=False)
    assert (tmp_path / "exploded").exists(), "the bomb is one"


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None, {"a": 1}, [1]], ids=str)
def test_damaged_checkpoints(interrupted: Path, content: Any) -> None:
    path = interrupted / "last.ckpt"
    if content is None:
        path.write_bytes(path.read_bytes()[:-1000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(sact.CheckpointError, match=r"last\.ckpt cannot be resumed from"):
        resume(interrupted)


def test_a_checkpoint_of_another_network(interrupted: Path) -> None:
    saved = read_checkpoint(interrupted)
    saved["state_dict"]["model.classifier.weight"] = torch.zeros(3, 32, 1, 1)
    torch.save(saved, interrupted / "last.ckpt")
    with pytest.raises(sact.CheckpointError, match=r"another network: classifier\.weight"):
        resume(interrupted)


def test_max_steps_may_end_inside_an_epoch(tmp_path: Path) -> None:
    train(tmp_path, max_steps=3)
    assert read_checkpoint(tmp_path)["global_step"] == 3
    assert [int(row["step"]) for row in read_log(tmp_path) if row["train/loss"]] == [0, 1, 2]


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions(tmp_path: Path, precision: str) -> None:
    results = train(tmp_path, precision=precision)
    model = sact.from_pretrained(tmp_path / "model")
    assert next(model.parameters()).dtype == torch.float32
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    assert results["cost"] > 2
    assert len(list((tmp_path / "ponder").iterdir())) == 1


def test_act_and_plain_runs(plain: Path, tmp_path: Path) -> None:
    results = train(tmp_path, halting="act")
    assert results["cost"] > 2
    plain_results = json.loads((plain.parent / "results.json").read_text())
    assert (plain_results["cost"], plain_results["share"], plain_results["flops"]["std"]) == (None, 1.0, 0.0)
    assert not (plain.parent / "ponder").exists()


@pytest.mark.parametrize("frozen", [True, False])
def test_norms(plain: Path, tmp_path: Path, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    momenta = set()
    original = Learning.training_step

    def training_step(self: Learning, batch: Any, batch_index: int) -> Tensor:
        norms = [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]
        momenta.update(norm.momentum for norm in norms)
        assert all(norm.training != frozen for norm in norms)
        assert self.model.training
        return original(self, batch, batch_index)

    monkeypatch.setattr(Learning, "training_step", training_step)
    train(tmp_path, halting="none", init=str(plain), max_epochs=2, freeze_norms=frozen, norm_momentum=0.125)
    assert momenta == {0.125}
    before, after = sact.from_pretrained(plain).state_dict(), sact.from_pretrained(tmp_path / "model").state_dict()
    statistics = [name for name in before if "running" in name]
    assert statistics
    assert all(torch.equal(before[name], after[name]) == frozen for name in statistics)
    assert not torch.equal(before["stem.conv.weight"], after["stem.conv.weight"])


def test_the_same_seed_is_the_same_run(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(tmp_path / name, seed=seed)
    a, b, c = (sact.from_pretrained(tmp_path / name / "model").state_dict() for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["stem.conv.weight"], c["stem.conv.weight"])


def test_lightning_is_left_as_it_was(tmp_path: Path) -> None:
    logger = logging.getLogger("lightning.pytorch")
    level, tips = logger.level, os.environ.get("LIGHTNING_DISABLE_TIPS")
    train(tmp_path)
    assert (logger.level, os.environ.get("LIGHTNING_DISABLE_TIPS")) == (level, tips)


def test_pictures_of_a_small_validation_set(make_model, tmp_path: Path) -> None:
    model = make_model("resnet", halting="sact", units=[2], base_channels=4)
    task = Learning(model, recipe_of(), classification.make_measures(model, None))
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False)
    pictures = PonderPictures(tmp_path, [(torch.zeros(3, 32, 32), 0)])
    pictures.on_validation_epoch_end(trainer, task)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_000.png"]


# Evaluation


@pytest.mark.parametrize("kind", ["none", "act", "sact"])
def test_engines_evaluate_alike(make_model, kind: str) -> None:
    model = make_model("resnet", halting=kind, units=[3, 2], base_channels=4, num_classes=10)
    data = training.validation_data(recipe_of(val_length=50))
    results = [
        evaluate(engine, data, batch_size=batch, accelerator="cpu", quiet=True)
        for engine, batch in ((model, 50), (sact.compile(model, "masked"), 7), (sact.compile(model, "gather"), 16))
    ]
    assert json.loads(json.dumps(results[0])) == results[0]
    if kind != "none":
        assert results[0]["blocks"][0]["units"]["std"] > 0
    for other in results[1:]:
        for key in ("top1", "top5", "share", "cost", "dense_flops"):
            assert other[key] == (results[0][key] and pytest.approx(results[0][key], rel=1e-5))
        for ours, theirs in zip(other["blocks"], results[0]["blocks"], strict=True):
            for key in ("units", "flops", "cost"):
                assert ours[key] == (theirs[key] and pytest.approx(theirs[key], rel=1e-5))


def test_evaluation_does_not_change_the_network(make_model) -> None:
    model = make_model("resnet", halting="sact", units=[2, 2], base_channels=4, num_classes=10).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, training.validation_data(recipe_of()), accelerator="cpu", quiet=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (5, {}, "the data set has 10 classes, but the network knows 5"),
        (10, {"batch_size": 0}, "batch_size is 0"),
        (10, {"workers": -1}, "workers is -1"),
        (10, {"precision": "8-bit"}, "precision is '8-bit'"),
        (10, {"accelerator": "abacus"}, "accelerator abacus"),
    ],
)
def test_evaluations_that_cannot_be(make_model, classes: int, options: dict[str, Any], message: str) -> None:
    model = make_model("resnet", units=[1, 1], base_channels=4, num_classes=classes)
    with pytest.raises(sact.SactError, match=message):
        evaluate(model, training.validation_data(recipe_of()), quiet=True, **options)


def test_an_empty_data_set(make_model) -> None:
    with pytest.raises(sact.InputError, match="empty"):
        evaluate(make_model("resnet", units=[1], base_channels=4), [], quiet=True)

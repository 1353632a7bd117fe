"""Training and evaluation of detectors and segmenters, on composed pictures and on a COCO of a few images."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composed import CATEGORIES
from fake_coco import NAMES, write_fake_coco
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics.classification import MulticlassJaccardIndex

import sact
from sact.cli import main
from sact.models.dense import extractor
from sact.recipe import Recipe, load_recipe, make_recipe
from sact.tasks import detection, segmentation, training
from sact.tasks.evaluation import evaluate
from sact.tasks.learning import SETTLING, Learning
from sact.tasks.loops import LikeShapes, make_loader
from sact.tasks.segmentation_measures import SegmentationMeasures

RECIPES = Path(__file__).parents[1] / "recipes"

SHARED: dict[str, Any] = {
    "model": "resnet",
    "units": [2, 2],
    "base_channels": 4,
    "halting": "sact",
    "tau": 0.01,
    "freeze_norms": False,
    "optimizer": "adamw",
    "lr": 0.001,
    "batch_size": 4,
    "max_epochs": 1,
    "log_every": 1,
    "accelerator": "cpu",
    "devices": 1,
}
TASKS: dict[str, dict[str, Any]] = {
    "detection": {
        "data": "coco",
        "fpn_channels": 8,
        "representation_size": 16,
        "min_sizes": [64, 72],
        "test_size": 64,
        "max_size": 128,
        "anchor_sizes": [[8], [16], [32]],
        "rpn_pre_nms_top_n_train": 50,
        "rpn_post_nms_top_n_train": 20,
        "rpn_post_nms_top_n_test": 20,
        "rpn_batch_size_per_image": 32,
        "box_batch_size_per_image": 16,
        "box_score_thresh": 0.0,
    },
    "segmentation": {"data": "coco_segmentation", "image_size": 64, "output_stride": 8},
}
C4: dict[str, Any] = {"form": "c4", "units": [2, 2, 1], "anchor_sizes": [[8, 16, 32]]}
BLOCK = {"flops", "units", "cost"}


def recipe_of(task: str, folder: Path, **changes: Any) -> Recipe:
    fields = SHARED | TASKS[task] | {"task": task, "data_dir": str(folder)} | changes
    if fields["halting"] == "none":
        fields["tau"] = 0.0
    if "max_steps" in changes:
        del fields["max_epochs"]
    return make_recipe(fields)


def train(recipe: Recipe, folder: Path, resume: bool = False) -> dict[str, Any]:
    return training.train(recipe, folder, resume, quiet=True)


def read_log(folder: Path) -> list[dict[str, str]]:
    with open(folder / "csv" / "metrics.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain classification network whose norms have seen something."""
    torch.manual_seed(1)
    network = sact.create_model("resnet", units=[2, 2], base_channels=4, num_classes=3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(torch.randn(4, 3, 48, 48))
    folder = tmp_path_factory.mktemp("classifier")
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(composed_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each task. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    for task in TASKS:
        train(recipe_of(task, composed_set, max_epochs=2), folder / task)
    return {task: folder / task for task in TASKS}


# Runs


@pytest.mark.parametrize("task", TASKS)
def test_a_run(runs: dict[str, Path], composed_set: Path, task: str) -> None:
    folder = runs[task]
    names = {path.name for path in folder.iterdir()}
    assert names == {"recipe.yaml", "last.ckpt", "csv", "tensorboard", "ponder", "model", "results.json"}
    recipe = recipe_of(task, composed_set, max_epochs=2)
    assert load_recipe(folder / "recipe.yaml") == recipe
    results = json.loads((folder / "results.json").read_text())
    metadata = sact.checkpoints.read_metadata(folder / "model")
    assert metadata["results"] == results
    assert metadata["category_ids"] == [1, 2, 3]
    assert make_recipe(metadata["recipe"]) == recipe
    headline = {"detection": ("map", "map50", "map_large", "mar_100"), "segmentation": ("miou", "accuracy")}[task]
    assert all(results[name] is None or 0 <= results[name] <= 1 for name in headline)
    assert 0 < results["share"] < 1.1
    assert 2 * 2 < results["cost"] < 2 * 3
    assert 4 < results["ponder_inside"] < 6
    assert len(results["blocks"]) == 2
    assert all(set(block) == BLOCK for block in results["blocks"])
    model = sact.from_pretrained(folder / "model")
    assert list(model.class_names) == ([] if task == "detection" else ["background"]) + list(CATEGORIES)
    again = evaluate(model, training.validation_data(recipe), accelerator="cpu", quiet=True)
    for name in (*headline, "share", "cost", "ponder_inside", "ponder_outside"):
        assert again[name] == (results[name] and pytest.approx(results[name], rel=1e-5)), name


@pytest.mark.parametrize("task", TASKS)
def test_the_spread_of_flops_is_that_over_images(runs: dict[str, Path], composed_set: Path, task: str) -> None:
    """Of a network whose score heads tell positions apart; trained for two epochs they hardly do."""
    model = sact.from_pretrained(runs[task] / "model").eval()
    torch.manual_seed(0)
    for name, values in model.network.named_parameters():
        if "score" in name:
            nn.init.normal_(values, std=3)
    data = training.validation_data(recipe_of(task, composed_set))
    images = [data[index][0] for index in range(len(data))]
    ponders = [model([image] if task == "detection" else image[None], return_ponder=True)[1] for image in images]
    shares = torch.cat([ponder.flops / ponder.dense_flops for ponder in ponders])
    results = evaluate(model, data, accelerator="cpu", quiet=True)
    assert results["share"] == pytest.approx(float(shares.mean()), rel=1e-5)
    assert results["share_std"] == pytest.approx(float(shares.std(correction=0)), rel=1e-3) and shares.std() > 1e-4


@pytest.mark.parametrize("task", TASKS)
def test_the_logs_and_pictures_of_a_run(runs: dict[str, Path], task: str) -> None:
    rows = read_log(runs[task])
    headline, parts = {
        "detection": ("map50", ("objectness", "rpn_box_reg", "classifier", "box_reg")),
        "segmentation": ("miou", ()),
    }[task]
    steps = [row for row in rows if row["train/loss"]]
    assert [int(row["step"]) for row in steps] == [0, 1, 2, 3]
    for row in steps:
        tau_cost = 0.01 * float(row["train/ponder"])
        if parts:
            total = sum(float(row[f"train/loss_{part}"]) for part in parts) + tau_cost
            assert float(row["train/loss"]) == pytest.approx(total, rel=1e-4)
        else:
            assert float(row["train/loss"]) > tau_cost
            assert 0 <= float(row["train/acc"]) <= 1
    validations = [row for row in rows if row["val/flops_share"]]
    assert [row["epoch"] for row in validations] == ["0", "1"]
    assert all(0 <= float(row[f"val/{headline}"]) <= 1 for row in validations)
    assert all(1 <= float(row["block2/units_mean"]) <= 2 for row in validations)
    sheets = sorted((runs[task] / "ponder").iterdir())
    assert [path.name for path in sheets] == ["epoch_000.png", "epoch_001.png"]
    with Image.open(sheets[0]) as sheet:
        assert min(sheet.size) > 300


@pytest.mark.parametrize("task", TASKS)
def test_parameters_are_saved_once(runs: dict[str, Path], task: str) -> None:
    saved = torch.load(runs[task] / "last.ckpt", weights_only=True)["state_dict"]
    model = sact.from_pretrained(runs[task] / "model")
    assert {f"model.{name}" for name in model.state_dict()} == set(saved)
    assert all(torch.equal(saved[f"model.{name}"], value) for name, value in model.state_dict().items())


def test_the_papers_form(composed_set: Path, tmp_path: Path) -> None:
    results = train(recipe_of("detection", composed_set, **C4, max_steps=1), tmp_path)
    assert len(results["blocks"]) == 2
    model = sact.from_pretrained(tmp_path / "model")
    assert (model.config.form, len(extractor(model).blocks)) == ("c4", 2)


@pytest.mark.parametrize(
    "changes", [{"halting": "act"}, {"precision": "64-true"}, {"precision": "bf16-mixed"}], ids=str
)
def test_other_halting_and_precisions(composed_set: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    for task in TASKS:
        results = train(recipe_of(task, composed_set, max_steps=1, val_length=2, **changes), tmp_path / task)
        assert results["cost"] > 4
        assert results["ponder_inside"] > 4
        model = sact.from_pretrained(tmp_path / task / "model")
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_validation_data_of_other_classes(composed_set: Path, tmp_path: Path) -> None:
    shutil.copytree(composed_set, tmp_path / "data")
    file = tmp_path / "data" / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "cats"
    file.write_text(json.dumps(content))
    with pytest.raises(sact.InputError, match="has 3 classes, cats, .* the model knows 3 classes, balls"):
        train(recipe_of("detection", tmp_path / "data"), tmp_path / "run")


def test_a_plain_run_has_no_ponder(composed_set: Path, tmp_path: Path) -> None:
    results = train(recipe_of("segmentation", composed_set, halting="none", head="deeplabv3", max_steps=1), tmp_path)
    assert (results["share"], results["share_std"], results["cost"], results["ponder_inside"]) == (1.0, 0.0, None, None)
    assert not (tmp_path / "ponder").exists()


@pytest.mark.parametrize("task", TASKS)
def test_an_interrupted_run_is_resumed(
    composed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    recipe = recipe_of(task, composed_set, max_epochs=2, schedule="poly", warmup_steps=3, val_length=1)
    original = Learning.training_step

    def stop(self: Learning, batch: Any, batch_index: int) -> Tensor:
        if self.global_step == 3:
            raise KeyboardInterrupt
        return original(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(Learning, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    train(recipe, tmp_path, resume=True)
    assert [int(row["step"]) for row in read_log(tmp_path) if row["train/loss"]] == [0, 1, 2, 3]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_loss_that_is_no_number_ends_the_run(composed_set: Path, tmp_path: Path) -> None:
    recipe = recipe_of("segmentation", composed_set, optimizer="sgd", lr=1e30, max_epochs=2)
    with pytest.raises(sact.RecipeError, match=r"the loss is (nan|inf) at step 1: .*lower lr \(it is 1e\+30\)"):
        train(recipe, tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_gradients_are_clipped(composed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    original = Learning.configure_gradient_clipping

    def look(self: Learning, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        gradients = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        lengths.append(float(torch.cat(gradients).norm()))

    monkeypatch.setattr(Learning, "configure_gradient_clipping", look)
    for clip in (None, 0.125):
        train(recipe_of("segmentation", composed_set, max_steps=1, gradient_clip=clip), tmp_path / str(clip))
    assert lengths[0] > 0.2
    assert lengths[1] == pytest.approx(0.125, rel=1e-3)


# What training starts from and does


def model_of(recipe: Recipe) -> Any:
    return training.make_model(recipe, training.training_data(recipe))


def test_a_classifier_gives_its_extractor(composed_set: Path, classifier: Path) -> None:
    theirs = sact.from_pretrained(classifier).state_dict()
    for task in TASKS:
        ours = extractor(model_of(recipe_of(task, composed_set, init=str(classifier)))).state_dict()
        shared = set(theirs) & set(ours)
        assert len(shared) > 20
        assert all(torch.equal(theirs[name], ours[name]) for name in shared)


@pytest.mark.parametrize("task", TASKS)
def test_a_model_of_the_same_kind_gives_all(runs: dict[str, Path], composed_set: Path, task: str) -> None:
    init = str(runs[task] / "model")
    theirs = sact.from_pretrained(init).state_dict()
    for halting in ("sact", "none"):
        ours = model_of(recipe_of(task, composed_set, init=init, halting=halting)).state_dict()
        assert all(torch.equal(theirs[name], value) for name, value in ours.items())
        assert (len(ours) == len(theirs)) == (halting == "sact")


def test_other_classes_make_fresh_boxes(runs: dict[str, Path], composed_set: Path) -> None:
    init = str(runs["detection"] / "model")
    theirs = sact.from_pretrained(init).state_dict()
    model = model_of(recipe_of("detection", composed_set, init=init, num_classes=5))
    assert model.class_names == [*CATEGORIES, "3", "4"]
    other = {name for name, value in model.state_dict().items() if not value.equal(theirs[name])}
    assert {name.rsplit(".", 2)[0] for name in other} == {"roi_heads.box_predictor"}


@pytest.mark.parametrize(
    ("task", "changes", "error", "message"),
    [
        ("detection", {"fpn_channels": 16}, sact.RecipeError, "whose fpn_channels is 8, but the recipe's is 16"),
        ("detection", {"anchor_sizes": [[9], [16], [32]]}, sact.RecipeError, "whose anchors is"),
        ("segmentation", {"head": "deeplabv3"}, sact.RecipeError, "whose head is fcn, but the recipe's is deeplabv3"),
        ("detection", {"units": [2, 3]}, sact.CheckpointError, "init is .*of another network"),
        ("segmentation", {"base_channels": 8}, sact.CheckpointError, "init is .*of another network"),
        ("detection", {"num_classes": 2}, sact.RecipeError, "num_classes is 2, but coco has 3"),
        ("segmentation", {"init": "./nothing"}, sact.CheckpointError, r"\./nothing"),
    ],
)
def test_starts_that_cannot_be(
    runs: dict[str, Path], composed_set: Path, task: str, changes: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        model_of(recipe_of(task, composed_set, **{"init": str(runs[task] / "model")} | changes))


def test_a_classifier_does_not_start_from_a_detector(runs: dict[str, Path], tmp_path: Path) -> None:
    fields = {"model": "resnet", "units": [2, 2], "base_channels": 4, "data": "fashion_mnist", "max_epochs": 1}
    with pytest.raises(sact.RecipeError, match="a detector or segmenter"):
        train(make_recipe(fields | {"init": str(runs["detection"] / "model"), "train_length": 128}), tmp_path)


def test_images_have_the_sizes_of_training(composed_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("detection", composed_set, min_sizes=[48, 60, 80], max_size=96)
    model, data = model_of(recipe), training.training_data(recipe)
    run = detection.make_train_run(model, recipe)
    seen = set()
    for _ in range(16):
        _, ponder = run(*detection.collate([data[0], data[1]]))
        seen.add(tuple(ponder.sizes))
    assert seen == {((48, 57),) * 2, ((60, 72),) * 2, ((80, 96),) * 2}  # of 80 x 96
    _, ponder = model.eval()([data[0][0]], return_ponder=True)
    assert ponder.sizes == [(64, 76)]


class Sized(Dataset[int]):
    """Elements that have sizes."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> int:
        return index


def test_images_of_like_shape_stand_together() -> None:
    sizes = [(96, 80), (80, 96), (200, 100)] * 7
    sampler = LikeShapes(sizes, 3, seed=5)
    assert len(sampler) == 21
    first, second = list(sampler), list(sampler)
    for order in (first, second):
        assert sorted(order) == list(range(21))
        batches = [{sizes[index] for index in order[at : at + 3]} for at in range(0, 18, 3)]
        assert all(len(batch) == 1 for batch in batches)
        assert len({shape for batch in batches[:4] for shape in batch}) > 1
    assert first != second
    assert list(LikeShapes(sizes, 3, seed=5)) == first
    loader = make_loader(Sized(sizes), 3, 0, list, shuffle=True, seed=5, processes=2)
    assert isinstance(loader.sampler, LikeShapes)
    order = list(loader.sampler)
    for rank in range(2):  # as Lightning divides it
        own = order[rank::2]
        assert all(len({sizes[index] for index in own[at : at + 3]}) == 1 for at in range(0, 9, 3))
    assert list(LikeShapes(sizes, 3, seed=6)) == second


def test_frozen_norms(composed_set: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained network's norms stay; those of the heads that are put on it see the first batches, then stay, too."""
    seen: list[dict[str, Tensor]] = []
    original = Learning.training_step

    def look(self: Learning, batch: Any, batch_index: int) -> Tensor:
        result = original(self, batch, batch_index)
        seen.append({name: value.clone() for name, value in self.model.state_dict().items() if "running" in name})
        return result

    monkeypatch.setattr(Learning, "training_step", look)
    steps = SETTLING + 2
    recipe = recipe_of(
        "segmentation", composed_set, init=str(classifier), freeze_norms=True, max_steps=steps, val_every=steps
    )
    train(recipe, tmp_path)
    theirs = sact.from_pretrained(classifier).state_dict()
    for name in seen[0]:
        inside = name.removeprefix("network.")
        if "classifier" in name:
            assert not seen[-2][name].equal(seen[-1][name]), name
        elif "scores" in name:
            assert not seen[0][name].equal(seen[SETTLING - 1][name]), name
            assert seen[SETTLING - 1][name].equal(seen[-1][name]), name
        elif inside in theirs:
            assert theirs[inside].equal(seen[-1][name]), name
    assert any("scores" in name for name in seen[0])


def test_the_loss_of_a_segmenter_is_over_known_pixels(composed_set: Path) -> None:
    recipe = recipe_of("segmentation", composed_set)
    torch.manual_seed(0)
    images, logits = torch.rand(2, 3, 4, 5), torch.randn(2, 4, 4, 5)
    masks = torch.randint(4, (2, 4, 5))
    masks[0, :, 2:] = 255
    step = segmentation.train_step(lambda images: (logits, None), (images, masks), recipe)
    known = masks != 255
    logs = logits.log_softmax(1).permute(0, 2, 3, 1)[known]
    expected = -logs[torch.arange(len(logs)), masks[known]].mean()
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert step.values["acc"].item() == pytest.approx((logits.argmax(1) == masks)[known].float().mean().item())
    nothing = segmentation.train_step(lambda images: (logits, None), (images, torch.full_like(masks, 255)), recipe)
    assert (nothing.loss.item(), nothing.values["acc"].item()) == (0.0, 0.0)


# Measures of a segmenter


def ponder_of(cost: Tensor) -> sact.Ponder:
    """What a network of one block of two units spends whose ponder cost is this, [N, H, W]."""
    from sact.flops import BlockFlops, UnitFlops

    units = torch.ones(cost.shape, dtype=torch.int32)
    size = cost.shape[-2], cost.shape[-1]
    return sact.Ponder([sact.BlockPonder(units, cost, BlockFlops((UnitFlops(((0, 6),)),) * 2, size, size))], 12)


def test_mean_iou_by_hand() -> None:
    """Classes a, b, c and d, of which d neither occurs nor is found; 255 is left out."""
    measures = SegmentationMeasures(["a", "b", "c", "d"], 1)
    masks = torch.tensor([[[0, 0, 1, 1], [2, 2, 255, 255]]])
    found = torch.tensor([[[0, 1, 1, 1], [2, 0, 3, 3]]])
    cost = torch.tensor([[[3.0, 5.0, 1.0, 1.0], [2.0, 6.0, 100.0, 100.0]]])
    measures.update(F.one_hot(found, 4).permute(0, 3, 1, 2).float(), masks, ponder_of(cost))
    results = json.loads(json.dumps(measures.compute()))
    assert results["per_class"] == pytest.approx({"a": 1 / 3, "b": 2 / 3, "c": 1 / 2})
    assert results["miou"] == pytest.approx(0.5)
    assert results["accuracy"] == pytest.approx(4 / 6)
    assert results["ponder_inside"] == pytest.approx((1 + 1 + 2 + 6) / 4)
    assert results["ponder_outside"] == pytest.approx((3 + 5) / 2)
    assert results["flops"] == {"mean": 12 + 8 * 6, "std": 0}
    assert results["share"] == pytest.approx((12 + 8 * 6) / (12 + 2 * 8 * 6))
    measures.reset()
    measures.update(F.one_hot(masks % 255, 4).permute(0, 3, 1, 2).float(), masks, ponder_of(cost))
    assert measures.compute()["miou"] == 1


def test_mean_iou_is_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    measures, theirs = SegmentationMeasures(list("abcdef"), 1), MulticlassJaccardIndex(6, ignore_index=255)
    for _ in range(3):
        logits = torch.randn(2, 6, 9, 7, generator=generator)
        masks = torch.randint(5, (2, 9, 7), generator=generator)  # "f" is found, but never there
        masks[torch.rand(masks.shape, generator=generator) < 0.2] = 255
        measures.update(logits, masks, ponder_of(torch.full((2, 9, 7), 2.0)))
        theirs.update(logits, masks)
    assert measures.compute()["miou"] == pytest.approx(float(theirs.compute()), rel=1e-5)


# sact eval


def run_eval(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        code = main(["eval", *map(str, arguments), "--quiet"])
    except SystemExit as error:
        code = int(error.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("task", TASKS)
def test_eval(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str) -> None:
    recorded = json.loads((runs[task] / "results.json").read_text())
    name = {"detection": "map50", "segmentation": "miou"}[task]
    for engine in ("gather", "auto"):
        code, output, errors = run_eval(
            capsys, runs[task] / "model", "--engine", engine, "--json", tmp_path / "eval.json"
        )
        assert (code, errors) == (0, "")
        results = json.loads((tmp_path / "eval.json").read_text())
        assert set(results) == set(recorded)
        for key in (name, "share", "share_std", "cost", "ponder_inside", "ponder_outside"):
            assert results[key] == pytest.approx(recorded[key], rel=1e-3, abs=1e-6), key
    lines = output.splitlines()
    assert f"{results[name]:.2%}" in lines[0]
    assert f"{results['share']:.1%} +- {results['share_std']:.1%} of the plain extractor" in lines[1]
    assert lines[2] == (
        f"ponder cost {results['ponder_inside']:.2f} on objects, {results['ponder_outside']:.2f} elsewhere"
    )
    assert len(lines) == 3 + 1 + 2 + 1


def test_eval_of_other_splits_and_folders(
    runs: dict[str, Path], composed_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file = runs["detection"] / "model", tmp_path / "eval.json"
    images = json.loads((composed_set / "annotations" / "instances_test.json").read_text())["annotations"]
    arguments = ("--split=test", f"--data-dir={composed_set}", "--batch-size=3", f"--json={file}")
    assert run_eval(capsys, model, *arguments)[0] == 0
    names = [CATEGORIES[each["category_id"] - 1] for each in images]
    assert set(json.loads(file.read_text())["per_category"]) == set(names)
    assert run_eval(capsys, model, *arguments, "--length=1")[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data=scenes"], "'scenes' is no data set for detection; choose one of coco"),
        (["--data=coco_segmentation"], "no data set for detection"),
        (["--data-dir=nowhere"], "nowhere"),
        (["--batch-size=0"], "--batch-size is 0"),
        (["--length=5"], "length must be from 1 to 4"),
        (["--size=64"], "size is 64"),
    ],
)
def test_evaluations_that_cannot_be(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    code, output, errors = run_eval(capsys, runs["detection"] / "model", "--json", tmp_path / "eval.json", *options)
    assert (code, output) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1


def test_eval_on_other_classes(
    runs: dict[str, Path], fake_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for task, known in (("detection", "balls, boxes, stars"), ("segmentation", "background, balls, boxes")):
        code, _, errors = run_eval(
            capsys, runs[task] / "model", "--data-dir", fake_coco, "--json", tmp_path / "eval.json"
        )
        assert code == 2
        assert f"the model knows {len(CATEGORIES) + (task == 'segmentation')} classes, {known}" in errors


# The paper's recipes, on a COCO of a few images


@pytest.fixture(scope="session")
def fake_coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_coco(tmp_path_factory.mktemp("fake") / "coco")


def slow_but(*quick: str) -> list[Any]:
    names = sorted(path.stem for path in RECIPES.glob("coco_*.yaml"))
    assert set(quick) <= set(names)
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in names]


def one_step(name: str, fake_coco: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """A step of a recipe on small images, from an ImageNet network with random weights."""
    wanted = load_recipe(RECIPES / f"{name}.yaml")
    network = sact.create_model(
        wanted.model, "sact" if wanted.halting == "sact" else "none", base_channels=changes.get("base_channels")
    )
    network.save_pretrained(folder / "imagenet")
    sizes: dict[str, Any] = {"min_sizes": [64], "test_size": 64, "max_size": 128}
    if wanted.task == "segmentation":
        sizes = {"image_size": 64}
    fields = {"init": str(folder / "imagenet"), "data_dir": str(fake_coco), "batch_size": 2, "workers": 0}
    length = {"max_epochs": None, "max_steps": 1, "milestones": [], "accelerator": "cpu", "devices": 1}
    recipe = load_recipe(RECIPES / f"{name}.yaml", **fields | length | sizes | changes)
    return train(recipe, folder / "run")


@pytest.mark.parametrize("name", slow_but("coco_resnet101_sact_tau0.005", "coco_segmentation_resnet101_sact_tau0.005"))
def test_recipes_of_coco(fake_coco: Path, tmp_path: Path, name: str) -> None:
    results = one_step(name, fake_coco, tmp_path, base_channels=4)
    model = sact.from_pretrained(tmp_path / "run" / "model")
    assert math.isfinite(results["flops"]["mean"])
    if "segmentation" in name:
        assert (model.config.num_classes, model.config.head) == (81, "deeplabv3")
    else:
        assert (model.config.num_classes, model.class_names) == (
            80,
            [each for each in NAMES if each not in ("__background__", "N/A")],
        )
        assert set(results["per_category"]) <= set(model.class_names)
        assert model.config.form == ("fpn" if "fpn" in name else "c4")
    assert (results["cost"] is None) == ("plain" in name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco_resnet101_sact_tau0.005", "coco_segmentation_resnet101_sact_tau0.005"])
def test_recipes_of_coco_at_their_width(fake_coco: Path, tmp_path: Path, name: str) -> None:
    results = one_step(name, fake_coco, tmp_path)
    assert 0 < results["share"] < 1.1
    assert extractor(sact.from_pretrained(tmp_path / "run" / "model")).config.base_channels == 64

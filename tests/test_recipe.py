"""`sact.recipe`: what a recipe may say, and the one sentence that it gets for anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sact.errors import RecipeError
from sact.recipe import dump_recipe, load_recipe, make_recipe, parse_overrides

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
FIELDS: dict[str, Any] = {"model": "resnet", "units": [2, 2], "data": "fashion_mnist", "max_epochs": 1}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_of_this_repository_load_and_come_back(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_recipe(recipe))
    assert load_recipe(resolved) == recipe
    assert yaml.safe_load(resolved.read_text()).keys() == type(recipe).model_fields.keys()


def test_there_are_recipes_of_the_paper_and_of_the_study() -> None:
    names = {path.stem for path in RECIPES}
    assert {"scenes_plain", "scenes_act", "scenes_sact"} <= names
    loaded = [load_recipe(path) for path in RECIPES]
    assert {recipe.halting for recipe in loaded if recipe.model == "cifar_resnet32"} == {"none", "act", "sact"}
    dense = [recipe for recipe in loaded if recipe.task == "detection" and recipe.model_dump()["form"] == "c4"]
    wanted = {("resnet101", "none", 0.0), ("resnet101", "sact", 0.001), ("resnet101", "sact", 0.005)}
    assert {(recipe.model, recipe.halting, recipe.tau) for recipe in dense} == {*wanted, ("resnet50", "none", 0.0)}
    for halting in ("act", "sact"):
        chosen = [recipe for recipe in loaded if (recipe.model, recipe.halting) == ("resnet101", halting)]
        assert {recipe.tau for recipe in chosen} == {0.01, 0.005, 0.001}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": [2, 2]}, 'no field "unit"; did you mean units?'),
        ({"xyzzy": 1}, 'no field "xyzzy"; the fields are task, model, units'),
        ({1: 2}, "1"),
        ({"data": None}, "data is None"),
        (
            {"data": "mnist"},
            'data is "mnist", but for classification it must be cifar10 or fashion_mnist or imagenet or scenes',
        ),
        ({"tau": "much"}, "tau is 'much'"),
        ({"tau": 1.5, "halting": "sact"}, "tau is 1.5"),
        ({"tau": -0.1, "halting": "sact"}, "tau is -0.1"),
        ({"tau": float("nan"), "halting": "sact"}, "tau is nan"),
        ({"tau": 0.01}, 'tau is 0.01, but halting is "none"; set halting'),
        ({"eps": 0}, "eps is 0"),
        ({"eps": 1.0}, "eps is 1.0"),
        ({"halting": "often"}, "halting is 'often'"),
        ({"lr": 0}, "lr is 0"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"units": "many"}, "units is 'many'"),
        ({"units": [2, "x"]}, "units.1 is 'x'"),
        ({"units": []}, "units is []"),
        ({"units": [2, 0]}, "units is [2, 0]"),
        ({"units": None}, 'model "resnet" needs units'),
        ({"model": "resnt101", "units": None}, "did you mean resnet101?"),
        ({"base_channels": 0}, "base_channels is 0"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"max_epochs": None}, "either max_epochs or max_steps"),
        ({"max_steps": 10}, "either max_epochs or max_steps"),
        ({"max_epochs": 1.5}, "max_epochs is 1.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"image_size": 31}, "image_size is 31"),
        ({"train_length": 0}, "train_length is 0"),
        ({"optimizer": "lamb"}, "optimizer is 'lamb'"),
        ({"precision": "8-bit"}, "precision is '8-bit'"),
        ({"label_smoothing": 1}, "label_smoothing is 1"),
        ({"data_options": {"size": 64}}, "data_options may not hold size"),
        ({"data_options": {"seed": 1}}, "data_options may not hold seed"),
        ({"cache": True}, 'cache is true, but data is "fashion_mnist"'),
    ],
    ids=str,
)
def test_impossible_recipes(change: dict[Any, Any], message: str) -> None:
    make_recipe(FIELDS)
    with pytest.raises(RecipeError) as caught:
        make_recipe(FIELDS | change, "my.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("my.yaml: ")
    assert "\n" not in str(caught.value)


DETECTION = {"task": "detection", "model": "resnet50", "data": "coco", "max_epochs": 1, "init": "model"}
SEGMENTATION = {"task": "segmentation", "model": "resnet50", "data": "coco_segmentation", "max_epochs": 1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (FIELDS | {"task": "saliency"}, "task is 'saliency', but it must be one of classification, detection"),
        (FIELDS | {"task": ["detection"]}, "task is ['detection']"),
        (FIELDS | {"form": "c4"}, "form is a field of detection, but the task is classification; leave it out, or set"),
        (FIELDS | {"data": "coco"}, 'data is "coco", but for classification it must be cifar10 or'),
        (FIELDS | {"warmup_steps": 5, "schedule": "one_cycle"}, "warmup_steps is 5, but the schedule one_cycle"),
        (FIELDS | {"gradient_clip": 0}, "gradient_clip is 0"),
        (FIELDS | {"val_every": 0}, "val_every is 0"),
        (DETECTION | {"image_size": 64}, "image_size is a field of classification and segmentation, but the task is"),
        (DETECTION | {"data": "imagenet"}, 'data is "imagenet", but for detection it must be coco'),
        (DETECTION | {"init": None}, "freeze_norms is true, but without init norms know nothing yet"),
        (DETECTION | {"form": "c5"}, "form is 'c5'"),
        (DETECTION | {"forms": "c4"}, 'no field "forms"; did you mean form?'),
        (DETECTION | {"min_sizes": []}, "min_sizes is []"),
        (
            DETECTION | {"min_sizes": [800, 1400]},
            "min_sizes is [800, 1400], but sides must be from 32 to max_size, 1333",
        ),
        (DETECTION | {"min_sizes": [16]}, "min_sizes is [16]"),
        (DETECTION | {"test_size": 1400}, "test_size is 1400, but sides must be from 32 to max_size, 1333"),
        (DETECTION | {"max_size": 8}, "max_size is 8"),
        (DETECTION | {"anchor_sizes": [32, 64]}, "anchor_sizes.0 is 32"),
        (DETECTION | {"box_score_thresh": 1}, "box_score_thresh is 1"),
        (DETECTION | {"num_classes": 0}, "num_classes is 0"),
        (DETECTION | {"form": "c4", "anchor_sizes": [[32], [64]]}, "anchor_sizes is [[32], [64]], but it must hold"),
        (SEGMENTATION | {"freeze_norms": True}, "freeze_norms is true, but without init norms know nothing yet"),
        (SEGMENTATION | {"output_stride": 12}, "output_stride is 12"),
        (SEGMENTATION | {"head": "lraspp"}, "head is 'lraspp'"),
        (SEGMENTATION | {"head": "deeplabv3", "batch_size": 1}, "batch_size is 1, but the norms of deeplabv3"),
        (SEGMENTATION | {"label_smoothing": 0.1}, "label_smoothing is a field of classification"),
        (SEGMENTATION | {"data": "coco"}, 'data is "coco", but for segmentation it must be coco_segmentation'),
        ({"task": "detection", "model": "resnet50"}, "the field data is missing; add 'data: ...' (one of coco)"),
    ],
    ids=str,
)
def test_impossible_recipes_of_tasks(fields: dict[str, Any], message: str) -> None:
    for possible in (DETECTION, SEGMENTATION):
        make_recipe(possible)
    with pytest.raises(RecipeError) as caught:
        make_recipe(fields, "my.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tasks_have_defaults_of_their_own() -> None:
    classification, detection, segmentation = map(make_recipe, (FIELDS, DETECTION, SEGMENTATION))
    assert (classification.task, detection.task, segmentation.task) == ("classification", "detection", "segmentation")
    assert [recipe.freeze_norms for recipe in (classification, detection, segmentation)] == [False, True, False]
    assert [recipe.lr for recipe in (classification, detection, segmentation)] == [0.1, 0.02, 0.02]
    assert parse_overrides(["--form=c4", "--image_size=64"]) == {"form": "c4", "image_size": 64}


@pytest.mark.parametrize("missing", ["model", "data"])
def test_missing_fields(missing: str) -> None:
    with pytest.raises(RecipeError, match=f"the field {missing} is missing") as caught:
        make_recipe({name: value for name, value in FIELDS.items() if name != missing})
    assert ("fashion_mnist" in str(caught.value)) == (missing == "data")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: [1, 2", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"- model\n- data\n", "but holds list"),
        (b"resnet", "but holds str"),
        (b"", "but holds NoneType"),
        (b"!!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.yaml", tmp_path):
        with pytest.raises(RecipeError, match=r"cannot be read: .*; see the folder recipes/"):
            load_recipe(path)


def test_overrides_replace_fields_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(FIELDS))
    arguments = [
        "--tau",
        "0.01",
        "--units=[2,3]",
        "--halting",
        "sact",
        "--max-epochs=7",
        "--train_length=null",
        "--lr=1e-3",
    ]
    recipe = load_recipe(path, **parse_overrides(arguments))
    assert (recipe.tau, recipe.units, recipe.halting, recipe.max_epochs) == (0.01, [2, 3], "sact", 7)
    assert (recipe.train_length, recipe.lr) == (None, 0.001)
    assert recipe.data == FIELDS["data"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tau"], "--tau needs a value, for instance --tau=0.0"),
        (["--lr", "0.1", "--tau"], "--tau needs a value"),
        (["--ta", "1"], 'no field "ta"; did you mean tau?'),
        (["0.01"], 'unexpected argument "0.01"'),
        (["-t", "1"], 'unexpected argument "-t"'),
        (["--units=[2,"], '--units has the value "[2,", which is not valid YAML'),
    ],
)
def test_overrides_that_are_none(arguments: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_overrides(arguments)
    assert message in str(caught.value)

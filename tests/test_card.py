"""`sact.card`: the card says what the metadata say, the hub can read it, its examples run, and edits survive."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

import sact
from sact.card import is_unedited, model_card
from sact.recipe import ClassificationRecipe

NETWORK = {"units": [3, 2], "base_channels": 4, "num_classes": 5}
RECIPE = {"model": "resnet", "units": [3, 2], "base_channels": 4, "data": "scenes", "max_epochs": 1, "halting": "sact"}
RESULTS = {
    "top1": 0.74999,
    "top5": 0.29,
    "share": 0.50001,
    "flops": {"mean": 71_310_001.0, "std": 5e6},
    "dense_flops": 119_390_000.0,
    "map_auc": 0.5,
    "split": "test",
    "blocks": [
        {"units": {"mean": 2.5, "std": 0.5, "max": 3, "unit_count": 3}, "cost": {"mean": 2.75}},
        {"units": {"mean": 1.25, "std": 0.5, "max": 2, "unit_count": 2}, "cost": None},
    ],
}


@pytest.fixture
def model(make_model) -> sact.Network:
    return make_model("resnet", halting="sact", **NETWORK)


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_hub_reads_it(model) -> None:
    card = model_card(model, {"recipe": RECIPE, "results": RESULTS, "licence": "MIT; data by others"}, "ponder.png")
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("sact", "image-classification", "mit")
    assert {"sact", "spatially-adaptive-computation-time"} <= set(data.tags)
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {"accuracy": 0.74999, "top_5_accuracy": 0.29, "flops_share": 0.50001}
    assert {result.dataset_name for result in data.eval_results} == {"scenes"}
    assert data.model_name == "resnet 3-2 (SACT)"
    assert "](ponder.png)" in card
    assert "MIT; data by others" in card


def test_results_are_never_rounded_in_our_favour(model) -> None:
    card = model_card(model, {"results": RESULTS | {"plain_top1": 0.800001}})
    for row in (
        "| top-1 | 74.99 % |",
        "| top-5 | 29.00 % |",
        "| top-1 of the plain network | 80.01 % |",
        "| FLOPs, of the plain network's | 50.01 % |",
        "| MFLOPs per image | 71.4 ± 5.0 |",
        "| MFLOPs of the plain network | 119.3 |",
        r"| map\_auc | 0.5 |",
        "| split | test |",
        "| 0 | 3 | 2.5 | 0.5 | 3 | 2.75 |",
        "| 1 | 2 | 1.25 | 0.5 | 2 |  |",
    ):
        assert row in card


def test_the_network_is_described(model) -> None:
    model.preprocessing = {"name": "scenes", "size": 64}
    card = model_card(model, {})
    count = f"{sum(parameter.numel() for parameter in model.parameters()):,}"
    for row in ("units per block | 3, 2", "halting | sact, eps 0.01", "classes | 5", f"parameters | {count}"):
        assert f"| {row} |" in card
    assert '`{"name": "scenes", "size": 64}`' in card
    assert "Classification of images into 5 classes" in card
    for absent in ("## Results", "## Recipe", "## Licence", "## Further facts", "![", "model-index", "license"):
        assert absent not in card


@pytest.mark.parametrize(("halting", "tag"), [("none", None), ("act", "adaptive-computation-time")])
def test_other_networks(make_model, halting: str, tag: str | None) -> None:
    card = model_card(make_model("cifar_resnet", halting=halting, **NETWORK), {})
    assert ([tag] if tag else []) == front_matter(card)["tags"][2:]
    features = model_card(make_model("cifar_resnet", halting=halting, features_only=True, **NETWORK), {})
    assert front_matter(features)["pipeline_tag"] == "image-feature-extraction"
    assert "| classes |" not in features


@pytest.mark.parametrize(
    ("licence", "known"),
    [
        ("Apache-2.0; trained on others' data", "apache-2.0"),
        ("cc-by-4.0", "cc-by-4.0"),
        ("MIT", "mit"),
        ("mine", "other"),
        ("", None),
    ],
)
def test_licences(model, licence: str, known: str | None) -> None:
    assert front_matter(model_card(model, {"licence": licence})).get("license") == known
    assert front_matter(model_card(model, {"license": licence})).get("license") == known


def test_the_recipe_is_one(model, tmp_path: Path) -> None:
    recipe = ClassificationRecipe(**RECIPE, data_dir=str(tmp_path), workers=7, init=str(tmp_path / "model"), tau=0.02)
    card = model_card(model, {"recipe": recipe.model_dump()})
    shown = ClassificationRecipe(**yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1]))
    assert shown == recipe.model_copy(update={"data_dir": None, "workers": 0, "init": None})
    assert str(tmp_path) not in card
    assert "init: runs/plain" in model_card(model, {"recipe": RECIPE | {"init": "runs/plain"}})


@pytest.mark.parametrize("kind", ["predicts", "features", "unprepared"])
def test_the_example_runs(make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    model = make_model("resnet", halting="sact", features_only=kind == "features", **NETWORK)
    if kind != "unprepared":
        model.preprocessing = {"name": "scenes", "size": 32}
    model.save_pretrained(tmp_path)
    Image.new("RGB", (40, 40), "teal").save(tmp_path / "photo.jpg")
    card = (tmp_path / "README.md").read_text()
    program = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert "FOLDER_OR_HUB_ID" in program
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with torch.no_grad():
        exec(program.replace("FOLDER_OR_HUB_ID", str(tmp_path)), names)
    if kind == "predicts":
        assert 0 < names["prediction"].score <= 1
    else:
        assert names["ponder"].flops.shape == (1,)
        assert len(names["features"] if kind == "features" else names["logits"][0]) == (2 if kind == "features" else 5)


def test_facts_that_would_break_the_page(model) -> None:
    odd = {
        "name": 'a "b": <i>c</i> | d\n# e',
        "dataset": "x: [y",
        "results": {"top1": 0.5, "a|b": 1, "nan": float("nan"), "text": "<script>\n|", "flag": True, "blocks": [3]},
        "recipe": "none",
        "note": "``` and\n---\n````",
        "description": "Made of *photographs*.",
    }
    card = model_card(model, odd)
    data = front_matter(card)
    assert data["model-index"][0]["results"][0]["dataset"]["name"] == "x: [y"
    assert '# a "b": \\<i\\>c\\</i\\> \\| d \\# e\n' in card
    assert "<script>" not in card
    assert r"| a\|b | 1 |" in card
    assert "| nan |" not in card
    assert "| flag |" not in card
    assert "\nMade of *photographs*.\n" in card
    assert "## Recipe" not in card
    assert yaml.safe_load(re.search(r"`````yaml\n(.*?)`````", card, re.DOTALL)[1]) == {"note": odd["note"]}
    assert is_unedited(card)
    with pytest.raises(sact.InputError, match="cannot be written as JSON"):
        model_card(model, {"accuracy": torch.tensor(1)})


def test_an_edited_card_is_left_alone(model, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    model.save_pretrained(tmp_path, note="first")
    assert "note: first" in card.read_text()
    assert is_unedited(card.read_text())
    model.save_pretrained(tmp_path, note="second")
    assert "note: second" in card.read_text()
    edited = card.read_text().replace("## Use", "## How to use")
    for kept in (edited, "mine", card.read_text() + "more\n"):
        assert not is_unedited(kept)
        card.write_text(kept)
        model.save_pretrained(tmp_path, note="third")
        assert card.read_text() == kept
    card.unlink()
    model.save_pretrained(tmp_path, note="fourth")
    assert "note: fourth" in card.read_text()


def test_a_picture_is_written_and_shown(model, tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 6), "orange")
    model.save_pretrained(tmp_path, picture=picture)
    with Image.open(tmp_path / "ponder.png") as written:
        assert (written.format, written.size, written.getpixel((0, 0))) == ("PNG", (8, 6), (255, 165, 0))
    model.save_pretrained(tmp_path)
    assert "](ponder.png)" in (tmp_path / "README.md").read_text()
    assert "picture" not in (tmp_path / "config.json").read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("README.md", "config.json", "model.safetensors", "ponder.png")
    ]
    with pytest.raises(sact.InputError, match="picture is str"):
        model.save_pretrained(tmp_path / "new", picture="ponder.png")
    assert not (tmp_path / "new").exists()

"""The command line, end to end: what each verb does, and the one line that any bad input gets."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_RECIPE
from PIL import Image

import sact
from sact import cli
from sact.flops_report import count

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
VERBS = ["train", "eval", "predict", "flops", "import-tf"]

Sact = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Sact:
    """The command line in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        return (code, *capfd.readouterr())

    return run


def outside(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command line as users start it."""
    command = [sys.executable, "-m", "sact", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def check_refusal(code: int, errors: str, verb: str, *texts: str) -> None:
    """Exit code 2 and one line that says who speaks and what is wrong."""
    assert code == 2
    assert errors.startswith(f"sact {verb}: " if verb else "sact: ")
    assert errors.count("\n") == 1
    assert errors.endswith("\n")
    assert "Traceback" not in errors
    for text in texts:
        assert text in errors


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """`sact train` on a recipe: the folder where it ran, and what it said. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY_RECIPE))
    return folder, outside("train", "tiny.yaml", "--tau", "0.02", "--units=[3, 2]", cwd=folder)


@pytest.fixture(scope="module")
def model(trained: tuple[Path, Any]) -> Path:
    return trained[0] / "runs" / "tiny" / "model"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(TINY_RECIPE))
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.jpg")
    return tmp_path / "picture.jpg"


# What each verb does


@pytest.mark.parametrize("verb", VERBS)
def test_help(run: Sact, verb: str) -> None:
    code, output, errors = run(verb, "--help")
    assert (code, errors) == (0, "")
    assert output.startswith(f"usage: sact {verb}")
    assert "None" not in output


def test_help_names_every_verb(run: Sact) -> None:
    code, output, errors = run("--help")
    assert (code, errors) == (0, "")
    assert all(f"sact {verb} " in output for verb in VERBS)
    assert max(map(len, output.splitlines())) <= 100


def test_help_lists_the_fields_of_a_recipe(run: Sact, monkeypatch: pytest.MonkeyPatch) -> None:
    from sact.recipe_fields import RECIPES, SECTIONS, Recipe, own_fields

    monkeypatch.setenv("COLUMNS", "100")
    code, output, errors = run("train", "--help")
    assert (code, errors) == (0, "")
    assert max(map(len, output.splitlines())) <= 100
    words = " ".join(output[output.index(SECTIONS["task"]) :].split())
    assert all(f"{section}: --{first}" in words for first, section in SECTIONS.items())
    shared, *parts = re.split(r" task: \w+: ", words)
    for fields, text in zip(
        [list(Recipe.model_fields), *map(own_fields, RECIPES.values())], [shared, *parts], strict=True
    ):
        places = [f" {text}".index(f" --{name} ") for name in fields]
        assert places == sorted(places)
    for kind in (Recipe, *RECIPES.values()):
        assert all((field.description or "") in words for field in kind.model_fields.values())
    for text in (
        *("--units [INT,...]", "--lr NUMBER", "(default: 0.1)", "--halting none|act|sact", "--devices INT|auto"),
        *("--anchor_sizes [[INT,...],...]", "--form fpn|c4", "--output_stride 8|16|32"),
    ):
        assert text in words


def test_help_without_the_extra(run: Sact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    code, output, errors = run("train", "--help")
    assert (code, errors) == (0, "")
    assert "--resume" in output
    assert "pip install 'sact[tasks]'" in output


def test_version(run: Sact) -> None:
    assert run("--version") == (0, f"sact {sact.__version__}\n", "")


def test_the_installed_command(run: Sact) -> None:
    command = Path(sys.executable).with_name("sact")
    finished = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60)
    assert (finished.returncode, finished.stdout) == (0, f"sact {sact.__version__}\n")


def test_train(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, finished = trained
    assert finished.returncode == 0, finished.stderr
    run_folder = folder / "runs" / "tiny"
    assert sorted(path.name for path in folder.iterdir()) == ["runs", "tiny.yaml"]
    resolved = yaml.safe_load((run_folder / "recipe.yaml").read_text())
    assert (resolved["tau"], resolved["units"], resolved["lr"]) == (0.02, [3, 2], 0.1)
    results = json.loads((run_folder / "results.json").read_text())
    assert f"top-1 {results['top1']:.2%}" in finished.stdout
    assert "the network is in runs/tiny/model" in finished.stdout
    progress = finished.stdout + finished.stderr
    assert all(name in progress for name in ("train/acc=", "train/ponder=", "train/flops_share="))
    assert "Traceback" not in progress


def test_train_resumes_a_finished_run(run: Sact, trained: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained[0])
    code, output, errors = run("train", "tiny.yaml", "--tau=0.02", "--units=[3,2]", "--resume", "--quiet")
    assert (code, errors) == (0, "")
    assert "top-1" in output
    code, _, errors = run("train", "tiny.yaml", "--tau=0.02", "--units=[3,2]", "--quiet")
    check_refusal(code, errors, "train", "already holds a run", "--resume")
    code, _, errors = run("train", "tiny.yaml", "--resume", "--quiet")
    check_refusal(code, errors, "train", "another recipe")


def test_ctrl_c(run: Sact, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sact.tasks.learning import Learning

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Learning, "training_step", interrupt)
    code, _, errors = run("train", recipe, "--out", tmp_path / "run", "--quiet")
    assert (code, errors) == (130, "sact train: interrupted\n")


def test_eval(run: Sact, model: Path, tmp_path: Path) -> None:
    recorded = json.loads((model.parent / "results.json").read_text())
    for engine in ("masked", "gather", "auto"):
        file = tmp_path / "new" / f"{engine}.json"
        code, output, errors = run("eval", model, "--length", 16, "--engine", engine, "--json", file, "--quiet")
        assert (code, errors) == (0, "")
        results = json.loads(file.read_text())
        assert set(results) == {"top1", "top5", "flops", "dense_flops", "share", "cost", "blocks"}
        assert f"top-1 {results['top1']:.2%}   top-5 {results['top5']:.2%}" in output
        assert f"{results['share']:.1%} of the plain network" in output
        assert len(output.splitlines()) == 6
        for key in ("top1", "top5", "share", "cost"):
            assert results[key] == pytest.approx(recorded[key], rel=1e-5)
        for ours, theirs in zip(results["blocks"], recorded["blocks"], strict=True):
            assert ours["flops"] == pytest.approx(theirs["flops"], rel=1e-5)
            assert ours["cost"] == pytest.approx(theirs["cost"], rel=1e-4)


def test_eval_options_override_what_the_network_remembers(run: Sact, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    code, _, errors = run(
        "eval", model, "--size=40", "--length=8", "--split=test", "--batch-size=3", "--json", file, "--quiet"
    )
    assert (code, errors) == (0, "")
    larger = json.loads(file.read_text())["dense_flops"]
    assert larger == count(sact.from_pretrained(model), (40, 40))["plain"]


def test_eval_draws_the_scenes_of_the_run(
    run: Sact, make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sact.tasks import evaluation

    asked: dict[str, Any] = {}

    class Stop(sact.SactError):
        pass

    def create_dataset(*arguments: Any, **options: Any) -> None:
        asked.update(options, arguments=arguments)
        raise Stop("seen")

    network = make_model("resnet", units=[2], base_channels=4, num_classes=10)
    remembered = {
        "data": "scenes",
        "seed": 7,
        "image_size": 48,
        "data_dir": "photos",
        "data_options": {"scale": [0.3, 0.5]},
    }
    network.save_pretrained(tmp_path / "model", recipe=remembered)
    monkeypatch.setattr(evaluation, "create_dataset", create_dataset)
    check_refusal(*run("eval", tmp_path / "model")[::2], "eval", "seen")
    expected = {"seed": 7, "size": 48, "data_dir": "photos", "scale": [0.3, 0.5], "length": None}
    assert asked == expected | {"arguments": ("scenes", "val")}
    run("eval", tmp_path / "model", "--data", "cifar10", "--size", 32)
    assert asked["arguments"] == ("cifar10", "val")
    assert (asked["seed"], asked["size"], asked["data_dir"]) == (0, 32, None)


def test_predict(run: Sact, model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, size in (("a.jpg", (60, 90)), ("a.png", (90, 60)), ("b.webp", (32, 32))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(photos / name)
    out = tmp_path / "out"
    code, output, errors = run("predict", photos, "--model", model, "--out", out, "--npz")
    assert (code, errors) == (0, "")
    pictures = {f"{name}{end}" for name in ("a", "a_2", "b") for end in (".png", "_blocks.png", ".npz")}
    assert {path.name for path in out.iterdir()} == pictures | {"contact_sheet.png", "predictions.json"}
    for path in out.glob("*.png"):
        with Image.open(path) as image:
            image.load()
    records = json.loads((out / "predictions.json").read_text())["predictions"]
    assert [Path(record["image"]).name for record in records] == ["a.jpg", "a.png", "b.webp"]
    for record, line in zip(records, output.splitlines(), strict=False):
        prediction = sact.predict(sact.from_pretrained(model), record["image"])
        assert (record["class"], record["class_index"]) == (prediction.name, prediction.index)
        assert record["score"] == pytest.approx(prediction.score, abs=1e-4)
        assert record["flops_share"] == pytest.approx(prediction.share, rel=1e-4)
        assert record["image"] in line
        assert record["class"] in line
        assert f"{record['flops_share']:.1%}" in line
    with np.load(out / "a_2.npz") as arrays:
        shapes = {name: arrays[name].shape for name in arrays}
    assert shapes["map"] == (32, 32)
    assert shapes["block1_halting_distribution"] == (3, 8, 8)
    assert shapes["block2_halting_distribution"] == (2, 4, 4)
    assert shapes["block1_cost"] == shapes["block1_units"] == (8, 8)


def test_predict_at_another_size(run: Sact, model: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("predict", picture, "--model", model, "--out", out, "--size", 64, "--npz", "--engine", "masked")[0] == 0
    with np.load(out / "picture.npz") as arrays:
        assert arrays["map"].shape == (64, 64)
        assert arrays["block1_units"].shape == (16, 16)


def test_predict_with_a_plain_network(run: Sact, make_model, picture: Path, tmp_path: Path) -> None:
    network = make_model("resnet", units=[2], base_channels=4, num_classes=3)
    network.preprocessing = {"name": "scenes", "size": 32}
    network.save_pretrained(tmp_path / "plain")
    code, output, errors = run("predict", picture, "--model", tmp_path / "plain", "--out", tmp_path / "out", "--npz")
    assert (code, errors) == (0, "")
    assert "100.0% of the plain network's FLOPs" in output


def test_flops(run: Sact, model: Path) -> None:
    code, output, errors = run("flops", "resnet101", "--num-classes", 1001)
    assert (code, errors) == (0, "")
    assert output.splitlines()[-1].split() == ["network"] + ["15,602,814,976"] * 3
    code, output, _ = run("flops", "cifar_resnet110", "--json")
    assert json.loads(output)["plain"] == 505_775_360
    code, output, _ = run(
        "flops", "resnet", "--units=2,1", "--base-channels=8", "--halting=sact", "--size=64x96", "--json"
    )
    with torch.device("meta"):
        network = sact.create_model("resnet", "sact", units=[2, 1], base_channels=8)
    assert json.loads(output) == count(network, (64, 96))
    grey = json.loads(run("flops", "cifar_resnet110", "--json", "--in-channels=1")[1])
    assert 505_775_360 - grey["plain"] == 2 * 9 * (3 - 1) * 16 * 32 * 32
    code, output, errors = run("flops", model, "--json")
    assert (code, errors) == (0, "")
    assert json.loads(output) == count(sact.from_pretrained(model), (32, 32))
    code, output, _ = run("flops", model, "--halting=none")
    assert "halting none, 32x32" in output


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden vectors are not beside this checkout")
@pytest.mark.parametrize("case", ["cifar_sact_2", "cifar_act_3"])
def test_import_tf(run: Sact, tmp_path: Path, case: str) -> None:
    pytest.importorskip("tensorflow", reason="the extra tf is not installed")
    code, output, _ = run("import-tf", GOLDEN / case / "ckpt", "--out", tmp_path / "imported")
    assert code == 0
    assert output.startswith("cifar_resnet, units [")
    network = sact.from_pretrained(tmp_path / "imported")
    assert network.preprocessing == {"name": "cifar_sact", "size": 32}
    assert network.config.halting == case.split("_")[1]
    with np.load(GOLDEN / case / "golden.npz") as golden, torch.no_grad():
        logits = network(torch.from_numpy(golden["inputs"]).permute(0, 3, 1, 2).contiguous())
        np.testing.assert_allclose(logits.numpy(), golden["logits"], rtol=0, atol=1e-4)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "verb", "text"),
    [
        ([], "", "VERB"),
        (["fly"], "", "invalid choice: 'fly'"),
        (["train"], "train", "RECIPE"),
        (["predict"], "predict", "IMAGE"),
        (["import-tf", "x"], "import-tf", "--out"),
        (["eval", "model", "--length", "many"], "eval", "invalid int value: 'many'"),
        (["eval", "model", "--split", "half"], "eval", "invalid choice: 'half'"),
        (["eval", "model", "extra"], "", "unrecognized arguments: extra"),
        (["predict", "a.jpg", "--colour"], "", "unrecognized arguments: --colour"),
        (["flops", "resnet101", "--units", "3,x"], "flops", '"3,x" is not a list of unit counts'),
        (["flops", "resnet101", "--size", "big"], "flops", '"big" is not a size'),
        (["flops", "resnet101", "--size", "224x31"], "flops", '"224x31" is too small'),
        (["flops", "resnt101"], "flops", "did you mean resnet101?"),
        (["flops", "resnet"], "flops", "needs units"),
        (["flops", "resnet101", "--units", "0,1"], "flops", "units is [0, 1]"),
        (["flops", "resnet101", "--num-classes", "0"], "flops", "num_classes is 0"),
        (["flops", "resnet101", "--in-channels", "0"], "flops", "in_channels is 0"),
        (["flops", "./no/model"], "flops", "./no/model"),
        (["eval", "./no/model"], "eval", 'no checkpoint "./no/model"'),
        (["import-tf", "./no/checkpoint", "--out", "x"], "import-tf", "no TensorFlow checkpoint at no/checkpoint"),
        (["train", "no.yaml"], "train", "no.yaml cannot be read"),
    ],
    ids=" ".join,
)
def test_arguments(
    run: Sact, arguments: list[str], verb: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output, errors = run(*arguments)
    check_refusal(code, errors, verb, text)
    assert output == ""
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_as_users_see_it(model: Path, tmp_path: Path) -> None:
    """Nothing that libraries print at the start or the end of a process gets between."""
    finished = outside("eval", model, "--size=28", "--length=4", "--quiet", cwd=tmp_path)
    check_refusal(finished.returncode, finished.stderr, "eval", "28x28 pixels")
    assert finished.stdout == ""
    assert list(tmp_path.iterdir()) == []


def png(width: int, height: int) -> bytes:
    """A PNG file that states a size and has one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 4)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        ("missing", "there is no image"),
        ("empty", "is empty (0 bytes)"),
        ("text", "is not a readable JPEG, PNG or WebP image"),
        ("truncated", "damaged or truncated"),
        ("enormous", "too large"),
        ("large", "100000x2000"),
        ("gif", "is not a readable"),
        ("empty folder", "holds no image"),
    ],
)
def test_images(run: Sact, model: Path, picture: Path, tmp_path: Path, damage: str, text: str) -> None:
    bad = tmp_path / "bad.jpg"
    content = picture.read_bytes()
    if damage == "empty folder":
        bad.mkdir()
    elif damage == "gif":
        Image.new("RGB", (40, 40)).save(bad, format="GIF")
    elif damage != "missing":
        bad.write_bytes(
            {
                "empty": b"",
                "text": b"no image",
                "truncated": content[: len(content) // 2],
                "enormous": png(100_000, 100_000),
                "large": png(100_000, 2000),
            }[damage]
        )
    out = tmp_path / "out"
    code, _, errors = run("predict", picture, bad, "--model", model, "--out", out)
    if damage == "large" and "too large" in errors:
        text = "too large"
    check_refusal(code, errors, "predict", text, "bad.jpg")
    if damage in ("missing", "empty folder"):  # seen before any work starts
        assert not out.exists()
        return
    # What was done before the bad image is kept, whole; of the bad one there is nothing.
    names = {"picture.png", "picture_blocks.png", "contact_sheet.png", "predictions.json"}
    assert {path.name for path in out.iterdir()} == names
    assert len(json.loads((out / "predictions.json").read_text())["predictions"]) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--size=31"], "31x31 pixels, but both sides must be at least 32"),
        (["--size=0"], "size must be an integer from 1"),
        (["--engine=warp"], 'engine is "warp"'),
        (["--model=./nothing"], 'no checkpoint "./nothing"'),
    ],
)
def test_predictions(run: Sact, model: Path, picture: Path, tmp_path: Path, options: list[str], text: str) -> None:
    code, _, errors = run("predict", picture, "--model", model, "--out", tmp_path / "out", *options)
    check_refusal(code, errors, "predict", text)


def test_a_network_without_preprocessing(run: Sact, make_model, picture: Path, tmp_path: Path) -> None:
    make_model("resnet", units=[2], base_channels=4).save_pretrained(tmp_path / "model")
    code, _, errors = run("predict", picture, "--model", tmp_path / "model", "--out", tmp_path / "out")
    check_refusal(code, errors, "predict", "preprocessing")


def test_predictions_do_not_replace_the_image(run: Sact, model: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    Image.new("RGB", (40, 40)).save(image)
    before = image.read_bytes()
    code, _, errors = run("predict", image, "--model", model, "--out", tmp_path)
    check_refusal(code, errors, "predict", "would be replaced")
    assert image.read_bytes() == before


@pytest.mark.parametrize("verb", ["predict", "eval", "train", "import-tf"])
def test_folders_that_cannot_be_written(
    run: Sact, model: Path, recipe: Path, picture: Path, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "below"
    arguments: list[object]
    if verb == "predict":
        arguments = [picture, "--model", model, "--out", below]
    elif verb == "eval":
        arguments = [model, "--length=4", "--quiet", "--json", below / "results.json"]
    elif verb == "train":
        arguments = [recipe, "--quiet", "--out", below]
    else:
        if not GOLDEN.is_dir():
            pytest.skip("the golden vectors are not beside this checkout")
        pytest.importorskip("tensorflow", reason="the extra tf is not installed")
        arguments = [GOLDEN / "cifar_sact_2" / "ckpt", "--out", below]
    code, _, errors = run(verb, *arguments)
    check_refusal(code, errors, verb, str(below), "written")


def test_a_disk_that_fills_up(
    run: Sact, model: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "x.npz"))

    monkeypatch.setattr(sys.modules["sact.predict"], "write_arrays", fail)
    code, _, errors = run("predict", picture, "--model", model, "--out", tmp_path / "out", "--npz")
    check_refusal(code, errors, "predict", "x.npz: No space left on device")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--batch-size=0"], "--batch-size is 0"),
        (["--length=0"], "length must be from 1 to 5000"),
        (["--length=100000"], "length must be from 1 to 5000"),
        (["--size=0"], "at least 28"),
        (["--size=28"], "28x28 pixels, but both sides must be at least 32"),
        (["--engine=warp"], 'engine is "warp"'),
        (["--data=mnist"], "'mnist' is no data set for classification; choose one of cifar10, fashion_mnist"),
        (["--data=coco"], "'coco' is no data set for classification"),
        (["--data=imagenet"], "ImageNet cannot be downloaded"),
        (["--data-dir=nowhere"], "'nowhere' does not have"),
    ],
)
def test_evaluations(run: Sact, model: Path, options: list[str], text: str) -> None:
    code, output, errors = run("eval", model, "--length=4", "--quiet", *options)
    check_refusal(code, errors, "eval", text)
    assert output == ""


def test_a_network_that_remembers_no_data(run: Sact, make_model, tmp_path: Path) -> None:
    network = make_model("resnet", units=[2], base_channels=4, num_classes=5)
    network.save_pretrained(tmp_path)
    check_refusal(*run("eval", tmp_path)[::2], "eval", "--data")
    arguments = ("eval", tmp_path, "--data=fashion_mnist", "--length=4", "--quiet")
    check_refusal(*run(*arguments)[::2], "eval", "10 classes, but the network knows 5")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("{", "is not valid JSON"),
        ({"network": 3}, "no description"),
        ({"format": 7}, "format 7"),
        ({"metadata": [1]}, "metadata"),
        ({"preprocessing": {"name": "x"}}, "unknown preprocessing 'x'"),
    ],
    ids=str,
)
def test_damaged_configurations(run: Sact, make_model, picture: Path, tmp_path: Path, change: Any, text: str) -> None:
    network = make_model("resnet", units=[2], base_channels=4, num_classes=10)
    network.preprocessing = {"name": "scenes", "size": 32}
    network.save_pretrained(tmp_path / "model", recipe={"data": "fashion_mnist", "image_size": 32})
    config = tmp_path / "model" / "config.json"
    config.write_text(change if isinstance(change, str) else json.dumps(json.loads(config.read_text()) | change))
    if not (isinstance(change, dict) and "preprocessing" in change):
        code, _, errors = run("eval", tmp_path / "model", "--length=4", "--quiet")
        check_refusal(code, errors, "eval", text)
    if not (isinstance(change, dict) and "metadata" in change):
        code, _, errors = run("predict", picture, "--model", tmp_path / "model", "--out", tmp_path / "out")
        check_refusal(code, errors, "predict", text)


def test_saved_networks_have_their_own_shape(run: Sact, model: Path) -> None:
    for option, text in (
        ("--units=2,2", "--units is [2, 2]"),
        ("--num-classes=3", "--num-classes is 3"),
        ("--in-channels=3", "--in-channels is 3"),
    ):
        check_refusal(*run("flops", model, option)[::2], "flops", text, "leave it out")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--taux=1"], 'no field "taux"; did you mean tau?'),
        (["--tau"], "--tau needs a value"),
        (["--tau=2"], "tau is 2"),
        (["--eps=0"], "eps is 0"),
        (["--halting=none"], 'halting is "none"'),
        (["extra"], 'unexpected argument "extra"'),
        (["--data=mnist"], 'data is "mnist"'),
        (["--model=resnt50", "--units=null"], "did you mean resnet50?"),
        (["--max_steps=3"], "either max_epochs or max_steps"),
        (["--init=./nothing"], 'no checkpoint "./nothing"'),
        (["--train_length=1000000"], "length must be from 1 to 55000"),
        (["--batch_size=33"], "only 32 training images"),
        (["--num_classes=4"], "fashion_mnist has 10"),
        (["--accelerator=abacus"], "accelerator abacus"),
        (["--data_options={scale: 1}"], "no option scale"),
    ],
)
def test_recipes(run: Sact, recipe: Path, tmp_path: Path, options: list[str], text: str) -> None:
    code, output, errors = run("train", recipe, "--out", tmp_path / "run", "--quiet", *options)
    check_refusal(code, errors, "train", text)
    assert output == ""
    assert list((tmp_path / "run").glob("*")) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["RECIPE", "--lr", "0.5", "--tau", "7"],
        ["--lr", "0.5", "RECIPE", "--tau=7"],
        ["--lr=0.5", "--tau", "7", "RECIPE"],
        ["--tau", "7", "--quiet", "RECIPE", "--lr=0.5"],
    ],
    ids=" ".join,
)
def test_the_recipe_stands_anywhere(run: Sact, recipe: Path, tmp_path: Path, arguments: list[str]) -> None:
    given = [recipe if argument == "RECIPE" else argument for argument in arguments]
    code, _, errors = run("train", "--out", tmp_path / "run", *given)
    check_refusal(code, errors, "train", f"{recipe}: tau is 7")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--tau", "recipe.yaml"], "no RECIPE is given"),
        (["--taux", "recipe.yaml"], 'no field "taux"; did you mean tau?'),
        (["--tau", "1", "recipe.yaml", "other.yaml"], 'unexpected argument "other.yaml"'),
    ],
    ids=str,
)
def test_a_recipe_that_is_not_one(run: Sact, arguments: list[str], text: str) -> None:
    check_refusal(*run("train", *arguments)[::2], "train", text)


@pytest.mark.parametrize(
    ("verb", "missing", "extra"),
    [
        ("train", "pydantic", "tasks"),
        ("train", "yaml", "tasks"),
        ("train", "lightning", "tasks"),
        ("train", "torchmetrics", "tasks"),
        ("eval", "lightning", "tasks"),
        ("eval", "tensorboard", "tasks"),
        ("eval", "pydantic", "tasks"),
        ("import-tf", "tensorflow", "tf"),
    ],
)
def test_missing_extras(
    run: Sact,
    model: Path,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    missing: str,
    extra: str,
) -> None:
    """As where they are not installed: what is already imported of ours is forgotten, and theirs cannot be imported."""
    import sact.recipe
    import sact.tasks.training

    for name in ("recipe", "tasks"):
        monkeypatch.setattr(sact, name, getattr(sact, name))  # put back at the end, whatever is imported meanwhile
    for name in [name for name in sys.modules if name.startswith(("sact.tasks", "sact.recipe"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    (tmp_path / "model.ckpt.index").write_bytes(b"")
    arguments = {
        "train": [recipe, "--out", tmp_path / "run", "--quiet"],
        "eval": [model, "--length=4", "--quiet"],
        "import-tf": [tmp_path / "model.ckpt", "--out", tmp_path / "out"],
    }[verb]
    code, _, errors = run(verb, *arguments)
    check_refusal(code, errors, verb, missing, f"pip install 'sact[{extra}]'")


def test_what_needs_no_extra(
    run: Sact, model: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "lightning",
        "torchmetrics",
        "pydantic",
        "yaml",
        "torchvision",
        "tensorboard",
        "tensorflow",
        "matplotlib",
    ):
        monkeypatch.setitem(sys.modules, name, None)
    for arguments in (["--help"], ["flops", model], ["predict", picture, "--model", model, "--out", tmp_path / "out"]):
        code, _, errors = run(*arguments)
        assert (code, errors) == (0, "")

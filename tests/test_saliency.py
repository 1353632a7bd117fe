"""From ponder maps to saliency maps and their evaluation, and `sact saliency` end to end."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeModel
from fake_cat2000 import SIZE, write_cat2000, write_mit1003
from PIL import Image

import sact
from sact import InputError, cli
from sact.saliency.baselines import one_human
from sact.saliency.datasets import read_fixations
from sact.saliency.evaluate import METHODS, Elsewhere, Settings, evaluate
from sact.saliency.fixations import FixationSet, Stimulus
from sact.saliency.measures import auc_judd
from sact.saliency.ponder_maps import ponder_mapper
from sact.saliency.postprocess import (
    Parameters,
    best,
    blurred,
    centre_prior,
    fit_centre,
    resized,
    saliency_map,
    scaled_points,
    search,
)

MEASURES = ("AUC-Judd", "sAUC", "NSS", "CC", "KL", "SIM")
PIXELS = {"name": "imagenet_sact", "size": 64}


def stimulus(*points: tuple[int, int], size: tuple[int, int] = (4, 6), name: str = "a/1") -> Stimulus:
    category = name.split("/")[0]
    return Stimulus(name, category, Path(name), size, np.array(points, dtype=np.int32).reshape(-1, 2), (), 1.0)


def brightness(picture: Image.Image) -> np.ndarray:
    """A ponder map that finds the square at once."""
    return np.asarray(picture.convert("L"), dtype=np.float64) > 120


@pytest.fixture
def fixations(tmp_path: Path) -> FixationSet:
    return read_fixations("cat2000", write_cat2000(tmp_path / "cat2000"))


def test_blurred_scales_to_one() -> None:
    values = np.array([[1.0, 3.0], [5.0, 2.0]])
    assert blurred(values, 0).tolist() == [[0, 0.5], [1, 0.25]]
    assert not blurred(np.full((5, 7), 3.3), 2).any()
    dot = np.zeros((9, 9))
    dot[4, 4] = 1
    smooth = blurred(dot, 1)
    assert smooth[4, 4] == 1 and smooth.min() == 0
    assert smooth[4, 5] == pytest.approx(np.exp(-0.5), abs=1e-2)


def test_centre_prior_by_hand() -> None:
    prior = centre_prior((1, 3), (1 / 3, 1.0))  # pixels at -1/3, 0 and 1/3 of the width
    assert prior[0] == pytest.approx([np.exp(-0.5), 1, np.exp(-0.5)])
    prior = centre_prior((4, 6), (0.2, 0.3))
    assert np.allclose(prior, prior[::-1, ::-1]) and prior[1, 2] == prior.max()


def test_fit_centre_by_hand() -> None:
    # Pixel centres at x 0.5 and 2.5 of 4, y 1.5 of 2: offsets -3/8 and 1/8, and 1/4, of the sides.
    x, y = fit_centre([stimulus((0, 1), (2, 1), size=(2, 4))])
    assert x == pytest.approx(np.sqrt(((3 / 8) ** 2 + (1 / 8) ** 2) / 2)) and y == pytest.approx(1 / 4)


def test_saliency_map_mixes() -> None:
    ponder = np.array([[1.0, 2.0], [3.0, 1.0]])
    prior = centre_prior((2, 2), (0.5, 0.5))
    assert np.allclose(saliency_map(ponder, (2, 2), Parameters(0, 0, (0.5, 0.5))), [[0, 0.5], [1, 0]])
    assert np.allclose(saliency_map(ponder, (2, 2), Parameters(0, 1, (0.5, 0.5))), prior)
    mixed = saliency_map(ponder, (2, 2), Parameters(0, 0.25, (0.5, 0.5)))
    assert np.allclose(mixed, 0.75 * np.array([[0, 0.5], [1, 0]]) + 0.25 * prior)
    assert saliency_map(ponder, (20, 30), Parameters(1, 0.5, (0.2, 0.2))).shape == (20, 30)
    assert resized(np.array([[0.0, 1.0]]), (1, 4)).ravel() == pytest.approx([0, 0.25, 0.75, 1])


def test_parameters_are_checked() -> None:
    with pytest.raises(InputError, match="blur is -1"):
        Parameters(-1, 0, (1, 1))
    with pytest.raises(InputError, match="weight of the centre prior is 1.5"):
        Settings(weights=(0.5, 1.5))
    with pytest.raises(InputError, match="no blur or no weight"):
        Settings(blurs=())


def test_scaled_points() -> None:
    points = np.array([[0, 0], [5, 3], [2, 1]], dtype=np.int32)
    assert scaled_points(points, (4, 6), (2, 3)).tolist() == [[0, 0], [2, 1], [1, 0]]
    assert scaled_points(points, (4, 6), (8, 12)).tolist() == [[1, 1], [11, 7], [5, 3]]


def test_search_is_the_mean_over_images() -> None:
    rng = np.random.default_rng(0)
    train = [(stimulus((1, 2), (4, 0)), rng.random((4, 6))), (stimulus((3, 3)), rng.random((4, 6)))]
    blurs, weights, centre = (0, 1.5), (0, 0.3, 1), (0.2, 0.3)
    table, count = search(iter(train), blurs, weights, centre)
    assert count == 2 and table.shape == (2, 3)
    for row, blur in enumerate(blurs):
        for column, weight in enumerate(weights):
            parameters = Parameters(blur, weight, centre)
            aucs = [auc_judd(saliency_map(ponder, (4, 6), parameters), one.points) for one, ponder in train]
            assert table[row, column] == pytest.approx(np.mean(aucs), abs=1e-6)
    assert best(np.array([[0.1, 0.7], [0.7, 0.2]]), (3, 4), (5, 6)) == (3, 6)


def test_one_human_predicts_the_others() -> None:
    observers = tuple(np.array([[x, x // 2]], dtype=np.int32) for x in range(3))
    nobody = np.empty((0, 2), dtype=np.int32)
    seen = replace(stimulus(), observers=(*observers, nobody), degree=0)
    chosen = set()
    for seed in range(20):
        one = one_human(seen, np.random.default_rng(seed))
        assert one is not None and len(one.others) == 2
        (at,) = np.argwhere(one.prediction)[:, ::-1].tolist()
        assert at not in one.others.tolist()
        chosen.add(tuple(at))
    assert chosen == {(0, 0), (1, 0), (2, 1)}
    assert one_human(replace(seen, observers=(observers[0], nobody)), np.random.default_rng(0)) is None


def test_elsewhere_scales_the_others() -> None:
    one, two = stimulus((1, 2), (5, 3)), stimulus((6, 2), size=(8, 12), name="a/2")
    elsewhere = Elsewhere([one, two])
    assert elsewhere.for_image(one).tolist() == [[3, 1]]
    assert elsewhere.for_image(two).tolist() == [[2, 4], [10, 6]]


def test_a_map_that_finds_the_square(fixations: FixationSet) -> None:
    results = evaluate(fixations, brightness, Settings(train_share=0.5, quiet=True)).results
    rows = {(row["category"], row["method"]): row for row in results["rows"]}
    assert {category for category, _ in rows} == {"all", "Action", "Art"}
    assert [method for category, method in rows if category == "Art"] == list(METHODS)
    everything = {method: rows["all", method] for method in METHODS}
    assert everything["ponder map"]["images"] == 4 and rows["Art", "uniform"]["images"] == 2
    assert everything["ponder map"]["AUC-Judd"] > 0.9 > everything["centre prior"]["AUC-Judd"]
    assert everything["blurred + centre"]["AUC-Judd"] > 0.9
    assert everything["one human"]["AUC-Judd"] > 0.9
    assert everything["uniform"]["AUC-Judd"] == everything["uniform"]["sAUC"] == 0.5
    assert everything["uniform"]["NSS"] == everything["uniform"]["CC"] == 0
    for measure in ("sAUC", "NSS", "CC", "SIM"):
        assert everything["ponder map"][measure] > everything["uniform"][measure]
    of_categories = [rows[category, "ponder map"]["NSS"] for category in ("Action", "Art")]
    assert everything["ponder map"]["NSS"] == pytest.approx(np.mean(of_categories))
    assert results["parameters"]["centre_weight"] < 1
    grid = {(one["blur"], one["centre_weight"]): one["AUC-Judd"] for one in results["parameters"]["grid"]}
    found = (results["parameters"]["blur"], results["parameters"]["centre_weight"])
    assert grid[found] == max(grid.values()) and len(grid) == 36


def test_a_map_that_tells_nothing_leaves_the_centre_prior(fixations: FixationSet) -> None:
    """Fixations in the centre, and a map that is highest at the border."""
    centre = np.array([[47, 26], [48, 27], [49, 28]], np.int32)
    stimuli = [replace(one, points=centre, observers=()) for one in fixations.stimuli]

    def border(picture: Image.Image) -> np.ndarray:
        return 1 - centre_prior(SIZE, (0.2, 0.2))

    results = evaluate(FixationSet(stimuli), border, Settings(train_share=0.5, quiet=True)).results
    assert results["parameters"]["centre_weight"] > 0.5
    assert results["one_human"].startswith("not available")


def test_parameters_come_from_the_training_part_alone(fixations: FixationSet) -> None:
    """Moving the fixations of evaluated images changes the measures, not the parameters; of the others the reverse."""
    rng = np.random.default_rng(0)
    settings = Settings(train_share=0.5, quiet=True)

    def moved(chosen: set[str]) -> FixationSet:
        far = {
            one.name: np.stack([rng.integers(0, side, 9) for side in SIZE[::-1]], axis=1).astype(np.int32)
            for one in fixations.stimuli
        }
        stimuli = [replace(one, points=far[one.name]) if one.name in chosen else one for one in fixations.stimuli]
        return FixationSet(stimuli)

    before = evaluate(fixations, brightness, settings).results
    train, rest = (set(before["split"][part]) for part in ("train", "test"))
    assert train | rest == {one.name for one in fixations.stimuli} and not train & rest
    assert len(train) == len(rest) == 4
    after = evaluate(moved(rest), brightness, settings).results
    assert after["parameters"] == before["parameters"]
    assert after["rows"][0]["AUC-Judd"] < before["rows"][0]["AUC-Judd"] - 0.1
    other = evaluate(moved(train), brightness, settings).results
    assert other["parameters"] != before["parameters"]
    assert other["rows"][0] == before["rows"][0]  # the ponder map itself has no parameters


def test_given_parameters_need_no_search(fixations: FixationSet) -> None:
    asked: list[str] = []

    def watched(picture: Image.Image) -> np.ndarray:
        asked.append("map")
        return brightness(picture)

    results = evaluate(fixations, watched, Settings((3,), (0.25,), 0.5, quiet=True, pictures=0))
    assert len(asked) == 4  # the evaluated ones
    parameters = results.results["parameters"]
    assert (parameters["blur"], parameters["centre_weight"], parameters["grid"]) == (3, 0.25, None)
    assert not results.shown


def test_an_image_that_cannot_be_decoded_is_left_out(fixations: FixationSet) -> None:
    torn = fixations.stimuli[0].path
    torn.write_bytes(torn.read_bytes()[:900])
    results = evaluate(fixations, brightness, Settings((0,), (0,), 0.3, quiet=True)).results
    assert results["images"]["test"] == 5
    assert len(results["problems"]) == 1 and str(torn) in results["problems"][0]
    for one in fixations.stimuli:
        one.path.unlink()
    with pytest.raises(InputError, match="none of the 2 images to find parameters on can be read"):
        evaluate(fixations, brightness, Settings(train_share=0.3, quiet=True))
    with pytest.raises(InputError, match="none of 6 images could be evaluated"):
        evaluate(fixations, brightness, Settings((0,), (0,), 0.3, quiet=True))


def test_ponder_map_of_a_network(make_model: MakeModel) -> None:
    """The map of the network itself, for pixels prepared as its preprocessing says."""
    model = make_model(halting="sact", units=[2, 2, 2], base_channels=4, num_classes=3)
    model.preprocessing = PIXELS
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 160, 3)).astype(np.uint8))
    found = ponder_mapper(model, "masked", size=(45, 80))(picture)
    small = picture.resize((80, 45), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 127.5 - 1
    _, ponder = model(pixels, return_ponder=True)
    assert np.allclose(found, ponder.map((45, 80))[0].detach(), atol=1e-5)
    assert np.ptp(found) > 0
    assert ponder_mapper(model, "masked")(picture).shape == (180, 320)
    assert ponder_mapper(model, "masked")(picture.resize((40, 80))).shape == (320, 160)
    assert ponder_mapper(model, "masked", 64)(picture.resize((80, 60))).shape == (48, 64)


def test_networks_without_a_map_are_refused(make_model: MakeModel) -> None:
    model = make_model(halting="sact", units=[1, 1], base_channels=4)
    with pytest.raises(InputError, match="does not say how images are prepared"):
        ponder_mapper(model)
    model.preprocessing = PIXELS
    for size in (0, -5, (0, 320)):
        with pytest.raises(InputError, match=r"the size is .*, but sides in pixels must be positive"):
            ponder_mapper(model, size=size)
    with pytest.raises(InputError, match="images of 320x20 are too small"):
        ponder_mapper(model, size=(20, 320))
    for halting in ("act", "none"):
        with pytest.raises(InputError, match=f'halting "{halting}"'):
            ponder_mapper(make_model(halting=halting, units=[1, 1], base_channels=4))


@pytest.fixture(scope="module")
def cat2000(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that tests leave as it is."""
    return write_cat2000(tmp_path_factory.mktemp("cat2000"), images=2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that halts early in places."""
    torch.manual_seed(0)
    model = sact.create_model("resnet", halting="sact", units=[2, 2, 2], base_channels=4, num_classes=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "score" in name and name.endswith("bias"):
                parameter.fill_(1)
    model.preprocessing = PIXELS
    folder = tmp_path_factory.mktemp("network")
    model.save_pretrained(folder)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["saliency", *(str(argument) for argument in arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_command_on_cat2000(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_cat2000(tmp_path / "cat2000"), tmp_path / "out"
    (folder / "trainSet" / "FIXATIONLOCS" / "Art" / "002.mat").unlink()
    options = ("--size", "96x54", "--train-share", "0.5", "--blur-grid", "0,2", "--pictures", "2", "--quiet")
    code, said, errors = run(capsys, "--dataset", "cat2000", folder, "--model", saved, "--out", out, *options)
    assert code == 0, errors
    assert "Art/002.mat is missing; image left out" in errors
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    assert results["size"] == "96x54" and results["images"] == {"train": 4, "test": 3}
    assert results["parameters"]["blur"] in (0, 2) and len(results["parameters"]["grid"]) == 12
    rows = {(row["category"], row["method"]): row for row in results["rows"]}
    assert set(rows) == {(category, method) for category in ("all", "Action", "Art") for method in METHODS}
    assert set(results["measures"]) == set(MEASURES)
    with open(out / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(results["rows"])
    for written, row in zip(table, results["rows"], strict=True):
        assert written["method"] == row["method"]
        assert float(written["KL"]) == pytest.approx(row["KL"])
    everything = rows["all", "ponder map"]
    line = next(line for line in said.splitlines() if line.startswith("ponder map"))
    assert [float(cell) for cell in line.split()[2:]] == [round(everything[name], 3) for name in MEASURES] + [3]
    assert any(line.startswith("Action") for line in said.splitlines())
    with Image.open(out / "figure.png") as figure:
        assert figure.width > 4 * 240 and figure.height > 2 * 130


def test_command_on_mit1003(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_mit1003(tmp_path / "mit"), tmp_path / "out"
    options = ("--size", "96x54", "--blur", "4", "--centre-weight", "0.5", "--pictures", "0", "--quiet")
    code, said, errors = run(capsys, "--dataset", "mit1003", folder, "--model", saved, "--out", out, *options)
    assert code == 0, errors
    assert "24 fixations outside their images are left out (4 of " in errors
    assert "blur 4 px, weight of the centre prior 0.5" in said
    results = json.loads((out / "results.json").read_text())
    assert results["images"] == {"train": 1, "test": 2} and results["parameters"]["grid"] is None
    assert [row["method"] for row in results["rows"] if row["category"] == "MIT1003"] == list(METHODS)
    assert not (out / "figure.png").exists()


def test_command_with_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The extractor's map, of the longer side 640."""
    detector = sact.create_detector(
        "resnet", num_classes=2, halting="sact", units=[1, 1, 1], base_channels=4, fpn_channels=8
    )
    detector.eval().save_pretrained(tmp_path / "model")
    folder, out = write_cat2000(tmp_path / "cat2000", categories=("Art",), images=2), tmp_path / "out"
    options = ("--blur", "2", "--centre-weight", "0.5", "--quiet")
    code, _, errors = run(capsys, folder, "--model", tmp_path / "model", "--out", out, *options)
    assert code == 0, errors
    assert json.loads((out / "results.json").read_text())["size"] == 640


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dataset", "salicon"), "must be one of cat2000, mit1003"),
        (("--dataset", "mit1003"), "has no folder ALLSTIMULI"),
        (("--blur", "2", "--blur-grid", "1,2"), "--blur and its grid are both given"),
        (("--blur", "-2"), "the blur is -2"),
        (("--centre-weight", "2"), "weight of the centre prior is 2"),
        (("--train-share", "1"), "training share is 1"),
        (("--limit", "0"), "number of images is 0"),
        (("--seed", "-1"), "--seed is -1"),
        (("--pictures", "-1"), "--pictures is -1"),
        (("--size", "320x16"), "images of 320x16 are too small: both sides must be at least 32"),
        (("--size", "16"), "images of a longer side of 16 are too small"),
        (("--engine", "warp"), "warp"),
    ],
)
def test_command_says_what_is_wrong(
    saved: Path,
    cat2000: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    options = ("--model", saved, "--out", tmp_path / "out", "--quiet", *arguments)
    code, _, errors = run(capsys, cat2000, *options)
    assert code == 2 and said in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "out" / "results.json").exists()


def test_command_refuses_what_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (("--size", "320x"), ("--blur-grid", "1,x")):
        with pytest.raises(SystemExit) as ended:
            run(capsys, tmp_path, option, value)
        assert ended.value.code == 2
        assert f'"{value}" is not' in capsys.readouterr().err

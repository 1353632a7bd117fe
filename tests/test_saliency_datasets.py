"""cat2000 and MIT1003 in their layouts: what is read, and what is said where something is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_cat2000 import SIZE, draw, look_at, recording, write_cat2000, write_image, write_mit1003, write_observers
from PIL import Image
from scipy.io import savemat

from sact import InputError
from sact.saliency.datasets import read_fixations
from sact.saliency.fixations import FixationSet, open_stimulus, split, spread
from sact.saliency.gaze import find_fixations


@pytest.fixture
def cat2000(tmp_path: Path) -> Path:
    return write_cat2000(tmp_path)


def pairs(points: np.ndarray) -> set[tuple[int, int]]:
    return {(int(x), int(y)) for x, y in points}


def test_cat2000_reads_what_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    write_cat2000(tmp_path, images=2)
    picture, corner = draw(rng)
    observers = [look_at(rng, corner, count) for count in (3, 5)]
    write_image(tmp_path, "Sketch/001", picture, np.concatenate(observers))
    write_observers(
        tmp_path / "trainSet" / "allFixData.mat",
        {"Sketch/001.jpg": [("1-2-ab.eye", observers[0]), ("1-2-cd.eye", observers[1])]},
    )
    found = read_fixations("cat2000", tmp_path)
    assert [one.name for one in found.stimuli] == [
        "Action/001", "Action/002", "Art/001", "Art/002", "Sketch/001"
    ]  # fmt: skip
    sketch = found.stimuli[-1]
    assert sketch.category == "Sketch" and sketch.size == SIZE
    assert pairs(sketch.points) == pairs(np.concatenate(observers))
    assert [one.tolist() for one in sketch.observers] == [one.tolist() for one in observers]
    assert sketch.degree == pytest.approx(96 * 38 / 1920)
    assert not found.problems and not found.dropped and not found.no_observers
    assert np.asarray(open_stimulus(sketch)).shape == (*SIZE, 3)
    assert len(read_fixations("cat2000", tmp_path / "trainSet").stimuli) == 5


def test_limit_takes_from_all_categories(cat2000: Path) -> None:
    names = [one.name for one in read_fixations("cat2000", cat2000, limit=3).stimuli]
    assert names == ["Action/001", "Action/002", "Art/001"]
    assert spread({"a": [1, 2, 3], "b": [4], "c": [5, 6]}, 5) == [1, 2, 4, 5, 6]
    assert spread({"a": [1], "b": [2]}, 9) == [1, 2]


def test_mit1003_reads_what_was_written(tmp_path: Path) -> None:
    found = read_fixations("mit1003", write_mit1003(tmp_path))
    assert len(found.stimuli) == 3 and not found.problems
    for stimulus in found.stimuli:
        assert stimulus.category == "MIT1003" and stimulus.size == SIZE and stimulus.degree == 34
        # The dots survive JPEG, and the recordings lead to the same places; the first, central rest is left out.
        assert [len(one) for one in stimulus.observers] == [4, 4]
        assert pairs(stimulus.points) == pairs(np.concatenate(stimulus.observers))
    assert set(found.dropped.values()) == {4}  # the places outside that the eye is led through
    assert len(read_fixations("mit1003", tmp_path, limit=2).stimuli) == 2


def test_observers_are_optional(cat2000: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (cat2000 / "trainSet" / "allFixData.mat").unlink()
    found = read_fixations("cat2000", cat2000)
    assert found.no_observers.endswith("allFixData.mat is missing")
    assert all(not one.observers for one in found.stimuli)
    mit = write_mit1003(tmp_path_factory.mktemp("mit"))
    (mit / "DATA").rename(mit / "elsewhere")
    assert "DATA" in read_fixations("mit1003", mit).no_observers


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b"no MATLAB file at all"), "not a readable MATLAB file"),
        (lambda path: savemat(path, {"other": np.ones(2)}), "has no field allData"),
        (lambda path: savemat(path, {"allData": np.ones(2)}), "has no field allData that is a containers.Map"),
        (lambda path: write_observers(path, {"else/9.jpg": [("1-2-ab.eye", np.ones((2, 2), int))]}), "names an image"),
    ],
)
def test_unusable_observers_are_explained(cat2000: Path, write: object, reason: str) -> None:
    path = cat2000 / "trainSet" / "allFixData.mat"
    path.unlink()
    write(path)  # type: ignore[operator]
    found = read_fixations("cat2000", cat2000)
    assert str(path) in found.no_observers and reason in found.no_observers
    assert len(found.stimuli) == 8


def test_what_is_wrong_is_left_out_and_named(cat2000: Path) -> None:
    root = cat2000 / "trainSet"
    locations = root / "FIXATIONLOCS" / "Action"
    (locations / "001.mat").unlink()
    savemat(locations / "002.mat", {"fixations": np.ones(SIZE)})
    savemat(locations / "003.mat", {"fixLocs": np.ones((SIZE[0], 7))})
    savemat(locations / "004.mat", {"fixLocs": np.zeros(SIZE)})
    (root / "FIXATIONLOCS" / "Art" / "001.mat").write_bytes(b"torn")
    (root / "Stimuli" / "Art" / "002.jpg").write_bytes(b"no image")
    found = read_fixations("cat2000", cat2000)
    assert [one.name for one in found.stimuli] == ["Art/003", "Art/004"]
    said = {problem.split("FIXATIONLOCS/")[-1].split("Stimuli/")[-1] for problem in found.problems}
    assert "Action/001.mat is missing; image left out" in said
    assert "Action/002.mat has no field fixLocs (it has fixations); image left out" in said
    assert "Action/003.mat: field fixLocs is 7x54, but its image is 96x54 pixels; image left out" in said
    assert "Action/004.mat: field fixLocs has no fixation; image left out" in said
    assert any(one.startswith("Art/001.mat is not a readable MATLAB file") for one in said)
    assert any(one.startswith("Art/002.jpg is not a readable image") for one in said)
    assert len(found.problems) == 6


def test_fixations_outside_are_counted() -> None:
    found = FixationSet()
    given = [(0, 0), (95.9, 53.9), (96, 3), (3, 54), (-0.1, 3), (np.nan, 3)]
    assert found.inside(given, SIZE, "a.mat").tolist() == [[0, 0], [95, 53]]
    assert found.dropped == {"a.mat": 4}


def test_recordings_of_another_form(tmp_path: Path) -> None:
    mit = write_mit1003(tmp_path, images=2)
    first, second = sorted((mit / "DATA" / "ajs").glob("*.mat"))
    savemat(first, {"x": {"DATA": {"gaze": np.ones((9, 2))}}})
    second.unlink()
    found = read_fixations("mit1003", mit)
    assert [len(one.observers) for one in found.stimuli] == [1, 1]
    assert f"{first} has no field NAME.DATA(1).eyeData (it has x)" in found.problems[0]
    assert f"{second} is missing" in found.problems[1]


@pytest.mark.parametrize(
    ("dataset", "folder", "said"),
    [
        ("salicon", "", "must be one of cat2000, mit1003"),
        ("cat2000", "none", "has no folder Stimuli; cat2000 lies in trainSet/Stimuli/CATEGORY/001.jpg"),
        ("mit1003", "", "has no folder ALLSTIMULI; MIT1003 lies in"),
    ],
)
def test_another_layout(cat2000: Path, dataset: str, folder: str, said: str) -> None:
    with pytest.raises(InputError, match=said.replace("(", "\\(")):
        read_fixations(dataset, cat2000 / folder)


def test_nothing_usable(cat2000: Path) -> None:
    for path in (cat2000 / "trainSet" / "FIXATIONLOCS").rglob("*.mat"):
        path.unlink()
    with pytest.raises(InputError, match=r"holds no image with fixations; the first problem: .*001.mat is missing"):
        read_fixations("cat2000", cat2000)
    with pytest.raises(InputError, match="number of images is 0"):
        read_fixations("cat2000", cat2000, limit=0)


def test_pictures_are_as_they_were_shown(cat2000: Path) -> None:
    """An orientation in the file, as one image of the published set has by mistake, does not turn it."""
    path = cat2000 / "trainSet" / "Stimuli" / "Art" / "001.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    with Image.open(path) as picture:
        picture.save(path, exif=exif)
    (tagged,) = [one for one in read_fixations("cat2000", cat2000).stimuli if one.name == "Art/001"]
    assert tagged.size == SIZE and open_stimulus(tagged).size == SIZE[::-1]


def test_split_is_by_image_inside_categories(cat2000: Path) -> None:
    stimuli = read_fixations("cat2000", cat2000).stimuli
    train, rest = split(stimuli, 0.5, seed=3)
    assert {one.name for one in train} | {one.name for one in rest} == {one.name for one in stimuli}
    assert sorted(one.category for one in train) == ["Action"] * 2 + ["Art"] * 2
    assert [one.name for one in split(stimuli, 0.5, seed=3)[0]] == [one.name for one in train]
    assert len({tuple(one.name for one in split(stimuli, 0.5, seed)[0]) for seed in range(8)}) > 1
    # What is in other categories changes nothing.
    alone = [one for one in stimuli if one.category == "Art"]
    assert split(alone, 0.5, seed=3)[0] == [one for one in train if one.category == "Art"]
    # At least one image of a category on each side.
    assert len(split(stimuli, 0.01, 0)[0]) == 2 and len(split(stimuli, 0.99, 0)[1]) == 2
    with pytest.raises(InputError, match="leave nothing to find parameters on"):
        split(stimuli[:1], 0.5, 0)
    with pytest.raises(InputError, match="training share is 1"):
        split(stimuli, 1, 0)


def test_find_fixations_between_saccades() -> None:
    places = np.array([[30, 20], [90, 50], [5, 40]])
    found = find_fixations(recording(places))
    assert found.tolist() == [[48, 27], [800, 800], [30, 20], [800, 800], [90, 50], [800, 800], [5, 40]]


def test_a_short_rest_is_no_fixation() -> None:
    start, end = np.array([0.0, 0.0]), np.array([600.0, 0.0])
    way, back = np.linspace(start, end, 8), np.linspace(end, start, 8)

    def gaze(between: int, last: int) -> np.ndarray:
        rest = np.repeat(start[None], 60, axis=0)
        return np.concatenate([rest, way, np.repeat(end[None], between, axis=0), back, rest[:last]])

    assert find_fixations(gaze(40, 60)).tolist() == [[0, 0], [600, 0], [0, 0]]
    assert find_fixations(gaze(8, 60)).tolist() == [[0, 0], [0, 0]]  # 33 ms there
    assert find_fixations(gaze(40, 8)).tolist() == [[0, 0], [600, 0]]


def test_gaze_without_a_saccade_is_one_fixation() -> None:
    still = np.array([[10.0, 20.0], [11.0, 20.0], [12.0, 26.0]] * 20)
    still[0] = np.nan
    assert find_fixations(still).tolist() == [[11, 20]]
    assert find_fixations(np.ones((3, 2))).tolist() == [[1, 1]]

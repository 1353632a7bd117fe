"""`sact compose`: what is visible of overlapping objects, splits by file, the same bytes, what COCO's tools read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composed import CATEGORIES, COUNTS, write_backgrounds, write_cutouts
from PIL import Image, ImageOps

from sact import InputError
from sact.cli import main
from sact.data.backgrounds import load_backgrounds
from sact.data.coco_writing import annotation, bounding_box, decode_runs, encode_runs
from sact.data.compose import compose
from sact.data.compositing import Instance, Style, blend, compose_picture, put_in_front
from sact.data.cutouts import Cutout, find_cutouts, group_variants, read_cutout, split_cutouts
from sact.data.photographs import Photograph
from sact.data.splits import SPLITS, split_by_rank

SMALL = {"train": 2, "val": 1, "test": 1}
STYLE = Style(sizes=((48, 40),), objects=(1, 3), scale=(0.3, 0.6))


def read(folder: Path, split: str) -> Any:
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cutouts` and `backgrounds`."""
    folder = tmp_path_factory.mktemp("sources")
    write_cutouts(folder / "cutouts", per_category=3)
    write_backgrounds(folder / "backgrounds", count=4)
    return folder


def square(size: tuple[int, int], left: int, top: int, side: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def instance(left: int, top: int, side: int) -> Instance:
    return Instance(Cutout("", "", np.empty((0, 0, 4), np.uint8)), square((40, 50), left, top, side), side * side)


def test_runs_go_down_the_columns_and_start_with_zeros() -> None:
    mask = np.array([[0, 1, 1], [0, 1, 0]], bool)
    assert encode_runs(mask) == {"size": [2, 3], "counts": [2, 3, 1]}
    assert encode_runs(~mask) == {"size": [2, 3], "counts": [0, 2, 3, 1]}
    assert encode_runs(np.zeros((2, 3), bool))["counts"] == [6]
    np.testing.assert_array_equal(decode_runs(encode_runs(mask)), mask)


def test_boxes_enclose_whole_pixels() -> None:
    assert bounding_box(square((40, 50), 7, 3, 5)) == [7, 3, 5, 5]
    assert annotation(square((40, 50), 7, 3, 5), 2, cutout="a.png") == {
        "category_id": 2,
        "bbox": [7, 3, 5, 5],
        "area": 25,
        "iscrowd": 0,
        "segmentation": {"size": [40, 50], "counts": [283, 5, 35, 5, 35, 5, 35, 5, 35, 5, 1552]},
        "cutout": "a.png",
    }


def test_what_is_in_front_takes_its_pixels_from_what_is_behind() -> None:
    behind, front = instance(10, 10, 20), instance(20, 15, 20)
    instances = [behind]
    assert put_in_front(instances, front, min_visible=0.5)
    assert instances == [behind, front]
    assert behind.visible.sum() == 20 * 20 - 10 * 15  # columns 20 to 29, rows 15 to 29 are covered
    assert bounding_box(behind.visible) == [10, 10, 20, 20]
    assert front.visible.sum() == 20 * 20
    assert not (behind.visible & front.visible).any()


def test_an_object_is_refused_where_too_little_of_one_would_be_seen() -> None:
    behind = instance(10, 10, 10)
    instances = [behind]
    assert not put_in_front(instances, instance(12, 10, 10), min_visible=0.3)  # 20 of 100 pixels would remain
    assert behind.visible.sum() == 100
    assert len(instances) == 1
    assert put_in_front(instances, instance(14, 10, 10), min_visible=0.3)  # 40
    beyond = instance(48, 30, 10)  # 2 of its 10 columns are in the picture
    assert beyond.visible.sum() == 20
    assert not put_in_front(instances, beyond, min_visible=0.3)


def test_a_layer_is_blended_by_its_opacity() -> None:
    class Neutral(np.random.Generator):
        """Draws what changes nothing: contrast, brightness and tint 1, no drawing towards the ground, no shadow."""

        def uniform(self, low: Any = 0, high: Any = 1, size: Any = None) -> Any:
            middle = 0.0 if low == 0 else 1.0
            return middle if size is None else np.full(size, middle)

        def random(self, *_: Any, **__: Any) -> Any:
            return 1.0

    scene = np.full((4, 4, 3), 100, np.float32)
    layer = np.zeros((2, 2, 4), np.float32)
    layer[..., :3] = np.array([200, 0, 50]) * 0.25
    layer[..., 3] = 0.25
    blend(scene, layer, (3, 1), Neutral(np.random.PCG64(0)))
    np.testing.assert_allclose(scene[1:3, 3], [[125, 75, 87.5]] * 2)
    scene[1:3, 3] = 100
    np.testing.assert_array_equal(scene, 100)


def test_masks_fit_the_objects_in_the_picture() -> None:
    """Red discs on blue: where the picture is red is where the masks are, but for blurred edges."""
    disc = np.zeros((60, 60, 4), np.uint8)
    rows, columns = np.mgrid[:60, :60]
    disc[(rows - 29.5) ** 2 + (columns - 29.5) ** 2 < 30**2] = [255, 0, 0, 255]
    cutouts = {"discs": [Cutout("discs/a.png", "discs", disc)]}
    blue = Photograph("blue", np.full((100, 140, 3), [0, 0, 250], np.uint8))
    style = Style(sizes=((120, 90),), objects=(3, 3), scale=(0.3, 0.5), empty=0)
    for seed in range(5):
        picture = compose_picture([blue], cutouts, style, np.random.default_rng(seed))
        red = picture.pixels[..., 0].astype(int) > picture.pixels[..., 2]
        masks = np.stack([one.visible for one in picture.instances])
        assert masks.sum(0).max() == 1
        union = masks.any(0)
        assert union.sum() > 400
        assert (red & union).sum() / (red | union).sum() > 0.93


@pytest.mark.parametrize("size", [(120, 90), (80, 120)])
def test_objects_have_the_scale_asked_for(size: tuple[int, int]) -> None:
    pixels = np.full((40, 80, 4), 255, np.uint8)
    cutouts = {"bars": [Cutout("bars/a.png", "bars", pixels)]}
    photograph = Photograph("grey", np.full((100, 140, 3), 90, np.uint8))
    style = Style(sizes=(size,), objects=(1, 1), scale=(0.4, 0.4), empty=0, min_visible=1)
    for seed in range(8):
        (bar,) = compose_picture([photograph], cutouts, style, np.random.default_rng(seed)).instances
        assert abs(max(bounding_box(bar.visible)[2:]) - 48) <= 2


def test_empty_pictures_come_in_the_share_asked_for(sources: Path) -> None:
    cutouts = {"bars": [Cutout("bars/a.png", "bars", np.full((40, 80, 4), 255, np.uint8))]}
    photograph = Photograph("grey", np.full((60, 60, 3), 90, np.uint8))
    style = Style(sizes=((48, 48),), objects=(1, 1), empty=0.4)
    generator = np.random.default_rng(0)
    empty = [not compose_picture([photograph], cutouts, style, generator).instances for _ in range(200)]
    assert 0.3 < np.mean(empty) < 0.5


def test_the_set_has_the_pictures_and_masks_that_its_annotations_say(composed_set: Path) -> None:
    for split in SPLITS:
        content = read(composed_set, split)
        assert [category["name"] for category in content["categories"]] == list(CATEGORIES)
        assert len(content["images"]) == COUNTS[split]
        ids = [one["id"] for one in content["annotations"]]
        assert len(set(ids)) == len(ids) > 0
        for image in content["images"]:
            with Image.open(composed_set / split / image["file_name"]) as file:
                assert file.size == (image["width"], image["height"]) == (96, 80)
            expected = np.zeros((80, 96), np.uint8)
            for one in content["annotations"]:
                if one["image_id"] == image["id"]:
                    expected[decode_runs(one["segmentation"])] = one["category_id"]
            semantic = np.asarray(Image.open(composed_set / "semantic" / split / f"{image['id']:06}.png"))
            np.testing.assert_array_equal(semantic, expected)


def test_coco_tools_read_the_same_boxes_and_areas(composed_set: Path) -> None:
    faster_coco_eval = pytest.importorskip("faster_coco_eval")
    mask_tools = pytest.importorskip("faster_coco_eval.core.mask")
    for split in SPLITS:
        path = composed_set / "annotations" / f"instances_{split}.json"
        coco = faster_coco_eval.COCO(str(path))
        for one in read(composed_set, split)["annotations"]:
            runs = coco.annToRLE(coco.anns[one["id"]])
            assert int(mask_tools.area(runs)) == one["area"]
            np.testing.assert_array_equal(mask_tools.toBbox(runs), one["bbox"])
            np.testing.assert_array_equal(mask_tools.decode(runs), decode_runs(one["segmentation"]))


def test_no_file_is_in_two_splits_and_every_category_is_in_each(composed_set: Path) -> None:
    files = json.loads((composed_set / "compose.json").read_text())["files"]
    for kind in ("backgrounds", "cutouts"):
        seen: list[str] = []
        for split in SPLITS:
            of_split = files[split][kind]
            if kind == "cutouts":
                assert sorted(of_split) == sorted(CATEGORIES)
                of_split = [name for names in of_split.values() for name in names]
            seen += of_split
        assert len(seen) == len(set(seen)) == {"backgrounds": 6, "cutouts": 15}[kind]
    for split in SPLITS:
        content = read(composed_set, split)
        assert {image["background"] for image in content["images"]} <= set(files[split]["backgrounds"])
        listed = {name for names in files[split]["cutouts"].values() for name in names}
        assert {one["cutout"] for one in content["annotations"]} <= listed


def test_the_same_arguments_give_the_same_bytes_with_any_number_of_workers(sources: Path, tmp_path: Path) -> None:
    counts = {"train": 4, "val": 2, "test": 2}
    for name, workers, seed in (("one", 1, 3), ("four", 4, 3), ("other", 1, 4)):
        compose(
            tmp_path / name, sources / "cutouts", [sources / "backgrounds"], counts, STYLE, seed=seed, workers=workers
        )
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 2 * 8 + 3 + 2
    assert files == sorted(p.relative_to(tmp_path / "four") for p in (tmp_path / "four").rglob("*") if p.is_file())
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "four" / file).read_bytes(), file
    picture = Path("train") / "000001.jpg"
    assert (tmp_path / "one" / picture).read_bytes() != (tmp_path / "other" / picture).read_bytes()


def test_a_picture_does_not_depend_on_how_many_there_are(sources: Path, tmp_path: Path) -> None:
    compose(tmp_path / "few", sources / "cutouts", [sources / "backgrounds"], SMALL, STYLE)
    compose(tmp_path / "more", sources / "cutouts", [sources / "backgrounds"], {**SMALL, "train": 3}, STYLE)
    for name in ("000001.jpg", "000002.jpg"):
        assert (tmp_path / "few" / "train" / name).read_bytes() == (tmp_path / "more" / "train" / name).read_bytes()


def test_a_set_that_is_there_is_kept(sources: Path, tmp_path: Path) -> None:
    arguments = (sources / "cutouts", [sources / "backgrounds"], SMALL, STYLE)
    first = compose(tmp_path / "set", *arguments)
    picture = tmp_path / "set" / "train" / "000001.jpg"
    before = picture.stat().st_mtime_ns
    assert compose(tmp_path / "set", *arguments) == first
    with pytest.raises(InputError, match="holds another set: its seed is 0, not 1"):
        compose(tmp_path / "set", *arguments, seed=1)
    assert picture.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="not empty"):
        compose(tmp_path / "set" / "train", *arguments)
    with pytest.raises(InputError, match="is a file"):
        compose(picture, *arguments)


def test_nothing_is_left_behind_when_it_fails(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sact.data.compose.write_preview", fail)
    with pytest.raises(OSError, match="No space"):
        compose(tmp_path / "set", sources / "cutouts", [sources / "backgrounds"], SMALL, STYLE)
    assert list(tmp_path.iterdir()) == []


def test_splits_by_rank() -> None:
    assert split_by_rank({"a": 0.9, "b": 0.1, "c": 0.5}) == {"train": ["b"], "val": ["c"], "test": ["a"]}
    counts = {split: len(names) for split, names in split_by_rank({str(n): n / 40 for n in range(40)}).items()}
    assert counts == {"train": 24, "val": 6, "test": 10}


def test_variants_of_a_cut_out_stay_together(sources: Path) -> None:
    image = Image.open(sources / "cutouts" / "stars" / "stars_0.png")
    half = image.crop((0, 0, 36, 72))  # not its own mirror image
    variants = [half, ImageOps.mirror(half), half.resize((60, 110)), image]
    cutouts = [Cutout(f"stars/{number}.png", "stars", np.asarray(one)) for number, one in enumerate(variants)]
    assert [[one.name for one in group] for group in group_variants(cutouts)] == [
        ["stars/0.png", "stars/1.png", "stars/2.png"],
        ["stars/3.png"],
    ]
    with pytest.raises(InputError, match="'stars' has 2 different usable cut-outs, but 3 are needed"):
        split_cutouts(cutouts, ["stars"], 1)


def test_a_cut_out_is_used_in_one_category_alone() -> None:
    """Else it could fall into two splits: two in `b` are those of `a`, one of them mirrored, and one in `c`."""
    noise = np.random.default_rng(0).integers(0, 256, (7, 6, 6, 4), np.uint8)
    pictures = list(noise.repeat(8, 1).repeat(8, 2))
    for picture in pictures:
        picture[..., 3] = 255
    of = {"a": pictures[:4], "b": [pictures[0][:, ::-1], pictures[1], *pictures[4:7]], "c": [pictures[3]]}
    cutouts = [Cutout(f"{name}/{n}.png", name, one) for name, members in of.items() for n, one in enumerate(members)]
    divided, left_out = split_cutouts(cutouts, None, 3)
    used = [cutout.name for of_split in divided.values() for members in of_split.values() for cutout in members]
    assert sorted(used) == ["a/0.png", "a/1.png", "a/2.png", "a/3.png", "b/2.png", "b/3.png", "b/4.png"]
    assert set(left_out) == {"b/0.png", "b/1.png", "c"}
    assert left_out["b/0.png"] == "a variant of 'a/0.png', which is of another category"
    with pytest.raises(InputError, match="'c' has 0 different usable cut-outs, but 3 are needed"):
        split_cutouts(cutouts, ["a", "c"], 3)
    with pytest.raises(InputError, match="'b' has 3 different usable cut-outs, but 4 are needed"):
        split_cutouts(cutouts, ["a", "b"], 4)


def test_a_category_that_is_left_out_keeps_no_cut_out_from_others() -> None:
    """`b` is too small without what is in `a`, so that what `c` has in common with `b` stays in `c`."""
    pictures = list(np.random.default_rng(0).integers(0, 256, (7, 6, 6, 4), np.uint8).repeat(8, 1).repeat(8, 2))
    for picture in pictures:
        picture[..., 3] = 255
    of = {"a": pictures[:3], "b": [pictures[0], *pictures[3:5]], "c": pictures[4:]}
    cutouts = [Cutout(f"{name}/{n}.png", name, one) for name, members in of.items() for n, one in enumerate(members)]
    divided, left_out = split_cutouts(cutouts, None, 3)
    used = [cutout.name for of_split in divided.values() for members in of_split.values() for cutout in members]
    assert sorted(used) == [f"{name}/{n}.png" for name in "ac" for n in range(3)]
    assert set(left_out) == {"b"}


def test_light_and_dark_backgrounds_stay_together(tmp_path: Path) -> None:
    write_backgrounds(tmp_path, count=8)
    for number in range(4):  # pairs of pictures that differ, whose names say that they belong together
        (tmp_path / f"clouds_{2 * number}.png").rename(tmp_path / f"hills{number}-l.png")
        (tmp_path / f"clouds_{2 * number + 1}.png").rename(tmp_path / f"hills{number}-d.png")
    divided, left_out = load_backgrounds([tmp_path], 64)
    assert not left_out
    assert sorted(len(photographs) for photographs in divided.values()) == [2, 2, 4]
    for photographs in divided.values():
        names = {photograph.name for photograph in photographs}
        assert {name[:-1] + "l" for name in names} == {name for name in names if name.endswith("l")}


def test_categories_by_level_of_folders(tmp_path: Path) -> None:
    for name in ("animals/birds/owl.png", "animals/cat.png", "top.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "animals" / "notes.txt").touch()
    assert find_cutouts(tmp_path, 1) == {"animals/birds/owl.png": "animals", "animals/cat.png": "animals"}
    assert find_cutouts(tmp_path, 2) == {"animals/birds/owl.png": "animals/birds", "animals/cat.png": "animals"}
    assert set(find_cutouts(tmp_path, 0).values()) == {"object"}
    assert len(find_cutouts(tmp_path, 0)) == 3


def saved(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_cut_outs_are_trimmed_and_reduced(tmp_path: Path) -> None:
    pixels = np.zeros((100, 120, 4), np.uint8)
    pixels[20:60, 10:90] = [9, 8, 7, 255]
    file = saved(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(read_cutout(file, 200), pixels[20:60, 10:90])
    assert read_cutout(file, 40).shape == (20, 40, 4)


def test_cut_outs_of_no_use_say_why(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 4), dtype=np.uint8)
    noise[..., 3] = 0
    speck, glass, flat = noise.copy(), noise.copy(), np.zeros_like(noise)
    speck[:10, :10, 3] = 255
    glass[..., 3] = 60
    glass[:20, :20, 3] = 255
    flat[:60, :60] = [200, 40, 40, 255]
    for pixels, reason in ((noise[..., :3], "no transparency"), (speck, "fewer than 200"), (glass, "translucent")):
        with pytest.raises(InputError, match=reason):
            read_cutout(saved(tmp_path / "a.png", pixels), 100)
    file = saved(tmp_path / "flat.png", flat)
    with pytest.raises(InputError, match="under 64"):
        read_cutout(file, 100, min_side=64)
    with pytest.raises(InputError, match="looks like a drawing"):
        read_cutout(file, 100, drawings=False)
    assert read_cutout(file, 100).shape == (60, 60, 4)
    noise[:60, :60, 3] = 255
    assert read_cutout(saved(tmp_path / "photo.png", noise), 100, drawings=False).shape == (60, 60, 4)


def test_the_command_prints_what_it_made_and_what_it_left_out(
    sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cutouts = shutil.copytree(sources / "cutouts", tmp_path / "cutouts")
    (cutouts / "boxes" / "broken.png").write_bytes((cutouts / "boxes" / "boxes_0.png").read_bytes()[:300])
    (cutouts / "few").mkdir()
    shutil.copy(cutouts / "balls" / "balls_0.png", cutouts / "few" / "one.png")
    arguments = [
        "--cutouts",
        str(cutouts),
        "--backgrounds",
        str(sources / "backgrounds"),
        "--out",
        str(tmp_path / "set"),
    ]
    arguments += ["--train", "3", "--val", "1", "--test", "1", "--size", "64x48", "48x64", "--objects", "2"]
    arguments += ["--scale", "0.3-0.4", "--empty", "0"]
    assert main(["compose", *arguments, "--workers", "2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert any("broken.png' is damaged" in line for line in out)
    assert any("fewer than 3 different usable cut-outs: few" in line for line in out)
    assert "pictures                        3        1        1" in out
    objects = len(read(tmp_path / "set", "train")["annotations"])
    assert any(line.startswith(f"objects{objects:>26}") for line in out)
    assert any(line.startswith("  balls") and line.endswith("(1 1 1)") for line in out)
    assert (tmp_path / "set" / "preview.png").is_file()
    assert main(["compose", *arguments]) == 0
    assert "set was there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"counts": {**SMALL, "val": 0}}, "val is to have 0 pictures"),
        ({"counts": {"train": 1}}, "must name train, val and test"),
        ({"style": Style(objects=(3, 2))}, "objects are"),
        ({"style": Style(scale=(0.5, 1.5))}, "the scale is"),
        ({"style": Style(empty=1.0)}, "share of empty pictures is 1.0"),
        ({"style": Style(min_visible=0)}, "least visible share is 0"),
        ({"style": Style(sizes=((640, 8),))}, "the size is"),
        ({"seed": -1}, "the seed is -1"),
        ({"workers": 0}, "workers is 0"),
        ({"categories": ["balls", "cats"]}, "no category 'cats'; choose from balls, boxes, stars"),
        ({"min_cutouts": 4}, r"no category has the 4 .*usable: balls 3, boxes 3, stars 3"),
        ({"min_cutouts": 4, "categories": ["balls"]}, "'balls' has 3 different usable cut-outs, but 4"),
        ({"cutouts": "nowhere"}, "no folder 'nowhere' of cut-outs"),
        ({"backgrounds": ["nowhere"]}, "no folder 'nowhere' of background"),
    ],
)
def test_bad_arguments(sources: Path, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "cutouts": sources / "cutouts",
        "backgrounds": [sources / "backgrounds"],
        "counts": SMALL,
        "style": STYLE,
    }
    with pytest.raises(InputError, match=message):
        compose(tmp_path / "set", **{**arguments, **changed})
    assert list(tmp_path.iterdir()) == []


def test_folders_without_what_is_needed(sources: Path, tmp_path: Path) -> None:
    empty, opaque = tmp_path / "empty", tmp_path / "opaque"
    empty.mkdir()
    write_backgrounds(opaque / "photos", count=4)
    with pytest.raises(InputError, match="no PNG or WebP files"):
        compose(tmp_path / "set", empty, [sources / "backgrounds"], SMALL, STYLE)
    with pytest.raises(InputError, match="none of the 4 files in .* has transparency"):
        compose(tmp_path / "set", opaque, [sources / "backgrounds"], SMALL, STYLE)
    with pytest.raises(InputError, match="lie in no folders"):
        compose(tmp_path / "set", opaque / "photos", [sources / "backgrounds"], SMALL, STYLE)
    with pytest.raises(InputError, match="no photographs in"):
        compose(tmp_path / "set", sources / "cutouts", [empty], SMALL, STYLE)
    (opaque / "photos" / "clouds_0.png").write_bytes(b"\x89PNG")
    (opaque / "photos" / "clouds_1.png").unlink()
    with (
        pytest.warns(UserWarning, match="clouds_0.png' is not a readable picture"),
        pytest.raises(InputError, match="2 photographs for backgrounds were found, but 3"),
    ):
        compose(tmp_path / "set", sources / "cutouts", [opaque / "photos"], SMALL, STYLE)


@pytest.mark.parametrize("option", [["--size", "64"], ["--objects", "many"], ["--scale", "0.1-0.2-0.3"]])
def test_the_command_names_an_option_it_cannot_read(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compose", "--cutouts", "a", "--out", "b", *option])
    assert f'"{option[1]}" is not a' in capsys.readouterr().err


def test_splits_do_not_depend_on_the_size_of_the_pictures(sources: Path, tmp_path: Path) -> None:
    records = []
    for size in ((48, 40), (160, 120)):
        style = Style(sizes=(size,), objects=(1, 1))
        out = tmp_path / str(size[0])
        records.append(compose(out, sources / "cutouts", [sources / "backgrounds"], SMALL, style, drawings=False))
    assert records[0]["files"] == records[1]["files"]

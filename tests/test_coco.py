"""COCO-format data sets: what is read, in which layouts, and what is done about files with problems."""

from __future__ import annotations

import itertools
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_coco import CATEGORIES, COLOURS, USED, write_annotations, write_fake_coco
from PIL import Image
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from sact.data import CocoDetection, CocoSegmentation, check_coco, create_dataset
from sact.data.coco_layout import find_annotations
from sact.data.coco_masks import draw_mask, draw_semantic, read_segmentation
from sact.data.coco_report import FATAL, KINDS, LEFT_OUT
from sact.errors import InputError

Content = dict[str, Any]
WIDTH, HEIGHT = 40, 30


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_coco(tmp_path_factory.mktemp("coco"))


def box_of(left: float, top: float, width: float, height: float, **fields: Any) -> Content:
    corners = [left, top, left + width, top, left + width, top + height, left, top + height]
    usual = {"category_id": 1, "area": width * height, "iscrowd": 0, "segmentation": [corners]}
    return usual | {"bbox": [left, top, width, height]} | fields


def write_small(folder: Path, change: Callable[[Content], None] = lambda content: None) -> Path:
    """Three images of 40 x 30 pixels with one object each, two categories; `change` edits the content."""
    (folder / "train").mkdir(parents=True, exist_ok=True)
    for number in (1, 2, 3):
        file = folder / "train" / f"{number}.png"
        if not file.exists():
            Image.new("RGB", (WIDTH, HEIGHT), (60 * number, 0, 0)).save(file)
    images = [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in (1, 2, 3)]
    annotations = [box_of(5, 5, 20, 10) | {"id": 10 * n, "image_id": n} for n in (1, 2, 3)]
    content: Content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}]
    change(content)
    write_annotations(folder, "train", content.pop("images"), content.pop("annotations"), **content)
    return folder


def read(folder: Path, **options: Any) -> CocoDetection:
    """A data set whose problems do not matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CocoDetection(folder, max_left_out=1, **options)


# What is read


def test_published_layout(coco: Path) -> None:
    data = CocoDetection(coco, "train")
    assert data.annotation_file.name == "instances_train2017.json" and not data.problems.counts
    assert data.num_classes == len(data.class_names) == 80
    assert data.class_names[0] == "person" and data.category_ids[79] == 90 and data.class_names[79] == "toothbrush"
    assert data.category_ids == tuple(sorted(category["id"] for category in CATEGORIES))
    assert len(data) == 8 and len(CocoDetection(coco, "val")) == len(CocoDetection(coco, "test")) == 4
    assert "crowd regions: 1, images without objects: 1; problems: none" in str(data.problems)


@pytest.mark.parametrize("train", [False, True])
def test_boxes_are_where_the_objects_were_drawn(coco: Path, train: bool) -> None:
    """The last object of an image is a square of its category's colour with nothing on it; a reflection moves both."""
    data = CocoDetection(coco, "train", train=train)
    for index in (2, 4, 5, 6, 7) * 3:  # the others have no object, a crowd on top, or are grey
        image, target = data[index]
        assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
        left, top, right, bottom = target["boxes"][-1].int().tolist()
        inside = image[:, top:bottom, left:right].flatten(1)
        expected = torch.tensor(COLOURS[data.category_ids[target["labels"][-1] - 1]]) / 255
        if not train:
            assert torch.allclose(inside.median(1).values, expected, atol=0.03)
        # Colours keep their order whatever brightness, contrast and saturation; the ground is grey noise.
        assert (inside.argmax(0) == expected.argmax()).float().mean() > 0.95


def test_targets(coco: Path) -> None:
    data = CocoDetection(coco, "val", masks=True)
    image, target = data[1]
    listed = json.loads(data.annotation_file.read_text())
    assert target["image_id"] == listed["images"][1]["id"]
    assert image.shape == (3, listed["images"][1]["height"], listed["images"][1]["width"])
    theirs = [each for each in listed["annotations"] if each["image_id"] == target["image_id"]]
    assert target["iscrowd"].tolist() == [0, 0, 1] and target["area"].tolist() == [each["area"] for each in theirs]
    assert target["masks"].sum((1, 2)).tolist() == target["area"].tolist()
    assert [data.category_ids[label - 1] for label in target["labels"]] == [each["category_id"] for each in theirs]
    empty = data[0][1]
    assert empty["boxes"].shape == (0, 4) and empty["labels"].shape == (0,) and empty["masks"].shape[0] == 0
    assert [target[name].dtype for name in ("boxes", "labels", "area", "iscrowd")] == [
        torch.float32, torch.int64, torch.float32, torch.int64,
    ]  # fmt: skip


def test_training_leaves_crowds_out_and_reflects_masks(coco: Path) -> None:
    data = CocoDetection(coco, "train", train=True, masks=True)
    for _ in range(6):
        image, target = data[1]
        assert target["iscrowd"].tolist() == [0, 0] and target["masks"].shape[1:] == image.shape[1:]
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = mask.nonzero(as_tuple=True)
            assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box.int().tolist()
    assert data[0][1]["boxes"].shape == (0, 4)


def test_lengths_by_name_and_batches(coco: Path) -> None:
    data = create_dataset("coco", "train", data_dir=coco, length=4, train=True)
    assert isinstance(data, CocoDetection)
    assert [data[index][1]["image_id"] for index in range(4)] == [1000, 1014, 1028, 1042]
    images, targets = data.collate([data[0], data[-1]])
    assert len(images) == 2 and targets[1]["image_id"] == 1042
    copy = pickle.loads(pickle.dumps(CocoDetection(coco, "val")))
    assert torch.equal(copy[1][0], CocoDetection(coco, "val")[1][0])
    with pytest.raises(InputError, match="detection keep theirs"):
        create_dataset("coco", "train", size=64, data_dir=coco)
    with pytest.raises(InputError, match="COCO cannot be downloaded"):
        create_dataset("coco", "train")
    with pytest.raises(InputError, match="has no option scale; it has annotations, class_agnostic, images, masks"):
        create_dataset("coco", "train", data_dir=coco, scale=2)


def test_torchvision_trains_on_it(coco: Path) -> None:
    data = CocoDetection(coco, "train", train=True)
    images, targets = data.collate([data[0], data[1]])
    backbone = nn.Conv2d(3, 4, 16, stride=16)
    backbone.out_channels = 4
    anchors, pool = AnchorGenerator(((16, 32),), ((1.0,),)), MultiScaleRoIAlign(["0"], 2, 2)
    model = FasterRCNN(backbone, 81, 64, 96, rpn_anchor_generator=anchors, box_roi_pool=pool)
    assert all(torch.isfinite(loss) for loss in model(images, targets).values())


# Masks


def test_semantic_masks_are_drawn(coco: Path) -> None:
    data = create_dataset("coco_segmentation", "val", data_dir=coco)
    assert isinstance(data, CocoSegmentation)
    assert data.class_names[:2] == ("background", "person") and data.num_classes == 81
    image, mask = data[1]
    assert image.shape == (3, 96, 96) and mask.shape == (96, 96) and mask.dtype == torch.int64
    boxes = CocoDetection(coco, "val")[1][1]
    height, width = 80, 96
    assert (mask[height:] == 255).all() and (image[:, height:] == 0).all()
    expected = torch.zeros(height, width, dtype=torch.int64)
    expected[70:, :20] = 255
    for index in boxes["area"][:2].argsort(descending=True):
        left, top, right, bottom = boxes["boxes"][index].int().tolist()
        expected[top:bottom, left:right] = boxes["labels"][index]
    assert torch.equal(mask[:height], expected)


def test_overlaps_crowds_and_missing_segmentations() -> None:
    whole, part = ([np.array(box_of(*box)["segmentation"][0], np.float32)] for box in ((0, 0, 8, 4), (0, 0, 4, 4)))
    boxes = np.array([[0, 0, 4, 4], [0, 0, 8, 4], [6, 0, 10, 2]], np.float32)
    areas, none = np.array([16, 32, 8], np.float32), np.zeros(3, bool)
    labels = np.array([1, 2, 3])
    classes = draw_semantic([part, whole, None], boxes, labels, areas, none, (10, 4))
    assert (
        classes[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 255, 255] and classes[3].tolist() == [1] * 4 + [2] * 4 + [0] * 2
    )
    classes = draw_semantic([part, whole], boxes[:2], labels[:2], areas[:2], np.array([True, False]), (10, 4))
    assert classes[0].tolist() == [2] * 8 + [0] * 2
    classes = draw_semantic([part, whole], boxes[:2], labels[:2], areas[:2], np.array([False, True]), (10, 4))
    assert classes[0].tolist() == [1] * 4 + [255] * 4 + [0] * 2


def test_polygons_that_stick_out_keep_their_edges() -> None:
    """A triangle whose third corner lies 100 pixels left of the image; positions are inside if their centres are."""
    mask = draw_mask(read_segmentation([[10, 10, 10, 50, -100, 30]], width=64, height=64), width=64, height=64)
    y, x = np.mgrid[:64, :64] + 0.5
    expected = (x < 10) & (np.abs(y - 30) < 20 * (x + 100) / 110)
    assert mask.sum() == 382 and np.array_equal(mask, expected)


def test_training_crops(coco: Path) -> None:
    data = create_dataset("coco_segmentation", "train", data_dir=coco, size=64, train=True)
    seen = set()
    for image, mask in data:  # type: ignore[attr-defined]  # a map-style data set
        assert image.shape == (3, 64, 64) and mask.shape == (64, 64) and image.dtype == torch.float32
        seen |= set(mask.unique().tolist())
    known = {[category["id"] for category in CATEGORIES].index(number) + 1 for number in USED}
    assert seen - {0, 255} <= known and len(seen & known) >= 2


def test_batches_of_masks_are_padded() -> None:
    one, other = (torch.ones(3, 32, 64), torch.ones(32, 64).long()), (torch.ones(3, 64, 32), torch.ones(64, 32).long())
    images, masks = CocoSegmentation.collate([one, other])
    assert images.shape == (2, 3, 64, 64) and masks.shape == (2, 64, 64)
    assert images.sum() == 2 * 3 * 32 * 64 and (masks == 255).sum() == 2 * 32 * 64


def test_semantic_files_count_by_the_order_of_categories(tmp_path: Path) -> None:
    """Labels follow the ids, the files' indices the list: here the dog is first in it."""
    write_small(tmp_path, lambda content: content["categories"].reverse())
    masks = tmp_path / "semantic" / "train"
    masks.mkdir(parents=True)
    indices = np.zeros((HEIGHT, WIDTH), np.uint8)
    indices[0, :3] = (1, 2, 255)
    for number in (1, 2, 3):
        Image.fromarray(indices).save(masks / f"{number}.png")
    data = CocoSegmentation(tmp_path)
    assert data.class_names == ("background", "cat", "dog")
    assert data[0][1][0, :4].tolist() == [2, 1, 255, 0] and data[0][1].shape == (32, 64)
    for wrong, message in (
        (indices[:, ::-1] + 3, "has the index 3, but there are 3 classes"),
        (indices[1:], "of 40 x 29 pixels"),
    ):
        Image.fromarray(wrong).save(masks / "2.png")
        with pytest.raises(InputError, match=message):
            data[1]
    (masks / "2.png").write_bytes((masks / "3.png").read_bytes()[:40])
    with pytest.raises(InputError, match="cannot be read"):
        data[1]


@pytest.mark.parametrize(
    "segmentation",
    [
        None, 7, [], [[]], {}, [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5, float("nan")]],
        [[0, 0, 1e300, 0, 1, 1]], [[0, 0, 50, 0, 1, 1]], [["a"] * 6], [10**400] * 6, [[1, 2, 3, 4, 5, 6], [1]],
        {"size": [4, 5], "counts": [10, 11]}, {"size": [4, 5], "counts": [30, -10]},
        {"size": [4, 5], "counts": [19.5, 0.5]}, {"size": [5, 4], "counts": [20]}, {"size": [4, 5], "counts": ["a"]},
        {"size": [4, 5], "counts": None}, {"size": [4, 5], "counts": "zzzzzz"}, {"size": [4, 5], "counts": ""},
        {"counts": [20]},
    ],
)  # fmt: skip
def test_unusable_segmentations(segmentation: Any) -> None:
    assert read_segmentation(segmentation, width=5, height=4) is None


# Layouts


def moved(coco: Path, folder: Path, annotations: str, images: str) -> Path:
    """The validation split of the fake COCO in another layout."""
    for source, target in ((coco / "annotations" / "instances_val2017.json", annotations), (coco / "val2017", images)):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / target).symlink_to(source)
    return folder


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_val.json", "val"),
        ("annotations/instances_val2014.json", "images/val2014"),
        ("annotations/instances_validation.json", "images"),
        ("annotations/val.json", "images/val"),
    ],
)
def test_other_layouts(coco: Path, tmp_path: Path, annotations: str, images: str) -> None:
    data = CocoDetection(moved(coco, tmp_path, annotations, images), "val")
    assert torch.equal(data[1][0], CocoDetection(coco, "val")[1][0])


def test_annotations_beside_the_images(tmp_path: Path) -> None:
    write_small(tmp_path)
    (tmp_path / "annotations" / "instances_train.json").rename(tmp_path / "train" / "_annotations.coco.json")
    assert len(CocoDetection(tmp_path)) == 3


def test_the_latest_year_is_read(coco: Path, tmp_path: Path) -> None:
    for year in (2014, 2017):
        moved(coco, tmp_path, f"annotations/instances_val{year}.json", f"val{year}")
    assert find_annotations(tmp_path, "val")[1] == "val2017"


def test_named_files(coco: Path, tmp_path: Path) -> None:
    moved(coco, tmp_path, "labels/my_val.json", "photos_val")
    options = {"annotations": "labels/my_{split}.json", "images": "photos_{split}"}
    assert len(create_dataset("coco", "val", data_dir=tmp_path, **options)) == 4  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"it has labels/my_val.json; name one with the option annotations"):
        CocoDetection(tmp_path, "val")
    with pytest.raises(InputError, match=r"no annotation file '.*my_train.json'; it has labels/my_val.json"):
        CocoDetection(tmp_path, "train", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"such as '000000002000.jpg', are not in .*name their folder with the option"):
        CocoDetection(tmp_path, "val", annotations="labels/my_val.json")


def test_no_coco_at_all(coco: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "000001.txt").write_text("0 0.5 0.5 0.1 0.1")
    with pytest.raises(InputError, match="it has no JSON file at all"):
        CocoDetection(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        CocoDetection(tmp_path / "nowhere")
    with pytest.raises(InputError, match="there is no folder"):
        CocoDetection(coco / "annotations" / "instances_val2017.json")
    with pytest.raises(InputError, match="unknown split 'minival'"):
        CocoDetection(coco, "minival")


# Problems


def edit(section: str, position: int, **fields: Any) -> Callable[[Content], None]:
    """Replace fields of an entry; `...` takes one out."""

    def change(content: Content) -> None:
        entry = content[section][position]
        entry.update(fields)
        for name in [name for name, value in fields.items() if value is ...]:
            del entry[name]

    return change


def append(section: str, entry: Any) -> Callable[[Content], None]:
    return lambda content: content[section].append(entry)


def no_objects(content: Content) -> None:
    content["annotations"].clear()


CASES: list[tuple[str, Callable[[Content], None], str]] = [
    ("no_section", lambda content: content.update(categories={}), "categories: {}"),
    ("no_section", lambda content: content.update(annotations=None), "annotations: None"),
    ("bad_category", edit("categories", 1, id="7"), "categories[1].id: '7'"),
    ("bad_category", edit("categories", 1, name=...), "categories[1].name: missing"),
    ("bad_category", append("categories", 5), "categories[2]: 5"),
    ("bad_category", lambda content: content["categories"].clear(), "categories: none are listed"),
    ("duplicate_category", edit("categories", 1, id=1), "categories[1].id (id 1): as categories[0]"),
    ("same_name", edit("categories", 1, name="cat"), "categories[1].name (id 7): cat"),
    ("bad_image", edit("images", 2, file_name=7), "images[2].file_name: 7"),
    ("bad_image", append("images", {"id": 10**30, "file_name": "1.png"}), "images[3].id: 10000"),
    ("bad_image", append("images", None), "images[3]: None"),
    ("duplicate_image", edit("images", 2, id=1), "images[2].id (id 1): as images[0]"),
    ("same_file", edit("images", 2, file_name="1.png"), "images[2].file_name (id 3): 1.png, as images[0]"),
    ("no_size", edit("images", 1, width=0), "images[1].width, .height (id 2): 0, 30"),
    ("missing_file", edit("images", 1, file_name="9.png"), "images[1].file_name (id 2): "),
    ("unreadable_file", edit("images", 1, file_name="broken.png"), "images[1].file_name (id 2): "),
    (
        "other_size",
        edit("images", 1, width=30, height=40),
        "images[1].width, .height (id 2): 30 x 40, but 2.png has 40",
    ),
    ("bad_annotation", append("annotations", []), "annotations[3]: []"),
    ("bad_annotation", edit("annotations", 1, image_id=...), "annotations[1].image_id (id 20): missing"),
    ("bad_annotation", edit("annotations", 1, image_id="2"), "annotations[1].image_id (id 20): '2'"),
    ("bad_annotation", edit("annotations", 1, category_id=1.5), "annotations[1].category_id (id 20): 1.5"),
    ("bad_annotation", edit("annotations", 1, iscrowd="no"), "annotations[1].iscrowd (id 20): 'no'"),
    ("duplicate_annotation", edit("annotations", 2, id=10), "annotations[2].id (id 10): as annotations[0]"),
    ("no_annotation_id", edit("annotations", 1, id=...), "annotations[1].id: missing"),
    ("unknown_image", edit("annotations", 1, image_id=99), "annotations[1].image_id (id 20): 99"),
    ("unknown_category", edit("annotations", 1, category_id=2), "annotations[1].category_id (id 20): 2"),
    ("bad_box", edit("annotations", 1, bbox=...), "annotations[1].bbox (id 20): missing"),
    ("bad_box", edit("annotations", 1, bbox=[1, 2, 3]), "annotations[1].bbox (id 20): [1, 2, 3]"),
    ("bad_box", edit("annotations", 1, bbox=[1, 2, 3, float("nan")]), "annotations[1].bbox (id 20): [1, 2, 3, nan]"),
    ("bad_box", edit("annotations", 1, bbox=[1, 2, 3, 10**400]), "annotations[1].bbox (id 20): [1, 2, 3, 1000"),
    ("bad_box", edit("annotations", 1, bbox=[1, 2, True, 3]), "annotations[1].bbox (id 20): [1, 2, True, 3]"),
    ("zero_area", edit("annotations", 1, bbox=[1, 2, 0, 3]), "annotations[1].bbox (id 20): [1, 2, 0, 3]"),
    ("zero_area", edit("annotations", 1, bbox=[9, 9, -5, 3]), "annotations[1].bbox (id 20): [9, 9, -5, 3]"),
    ("outside", edit("annotations", 1, bbox=[40, 2, 5, 5]), "(id 20): [40, 2, 5, 5] in an image of 40 x 30"),
    ("sticks_out", edit("annotations", 1, bbox=[-5, 2, 50, 5]), "(id 20): [-5, 2, 50, 5] in an image of 40 x 30"),
    ("no_area", edit("annotations", 1, area=float("inf")), "annotations[1].area (id 20): inf"),
    (
        "bad_segmentation",
        edit("annotations", 1, segmentation=[[1, 2]]),
        "annotations[1].segmentation (id 20): [[1, 2]]",
    ),
    ("nothing_left", no_objects, "annotations: 0 entries, none usable"),
]


@pytest.mark.parametrize(("kind", "change", "text"), CASES)
def test_each_problem_is_named_and_dealt_with(
    tmp_path: Path, kind: str, change: Callable[[Content], None], text: str
) -> None:
    write_small(tmp_path, change)
    (tmp_path / "train" / "broken.png").write_bytes(b"no image")
    report = check_coco(tmp_path, max_left_out=1, masks="objects")
    assert dict(report.counts) == {kind: 1}
    assert text in str(report) and KINDS[kind].wrong in str(report) and str(report.file) in str(report)
    if KINDS[kind].done == FATAL:
        with pytest.raises(InputError) as error:
            CocoDetection(tmp_path, max_left_out=1)
        assert text in str(error.value) and str(report.file) in str(error.value) and "\n" not in str(error.value)
        return
    with pytest.warns(UserWarning, match=KINDS[kind].wrong):
        data = CocoDetection(tmp_path, max_left_out=1, masks=True)
    lost = KINDS[kind].done == LEFT_OUT
    images, objects = len(data), sum(len(target["boxes"]) for _, target in data)  # type: ignore[attr-defined, misc]
    added = len(json.loads(data.annotation_file.read_text())[KINDS[kind].section]) > 3 or kind == "same_name"
    assert (images, objects) == {
        "images": (3 - (lost and not added), 3 - (lost and not added)),
        "annotations": (3, 3 - (lost and not added)),
        "categories": (3, 3),
    }[KINDS[kind].section]


def test_names_of_classes_differ(tmp_path: Path) -> None:
    """In the order of ids, whatever that of the list; the background has a name as well."""
    names = ["cat", "dog", "cat", "cat", "cat (2)", "background"]
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    write_small(tmp_path, lambda content: content.update(categories=categories[::-1]))
    expected = ("cat", "dog", "cat (3)", "cat (4)", "cat (2)", "background")
    assert read(tmp_path).class_names == expected
    with pytest.warns(UserWarning, match="kept as two classes"):
        assert CocoSegmentation(tmp_path).class_names == ("background", *expected[:-1], "background (2)")


def test_every_kind_of_problem_is_tested_and_documented() -> None:
    elsewhere = {"not_json", "missing_mask", "too_few_images", "too_few_annotations"}
    assert {kind for kind, _, _ in CASES} | elsewhere == set(KINDS)
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    assert [
        f"| {kind.wrong} | {kind.done} |" for kind in KINDS.values() if f"| {kind.wrong} | {kind.done} |" not in page
    ] == []


@pytest.mark.parametrize(
    "text", ["", "{", '{"images": [', "[]", "7", "\x00\xff", "[" * 100_000, '{"a": 1' + "0" * 5000 + "}"]
)
def test_files_that_are_no_annotations(tmp_path: Path, text: str) -> None:
    write_small(tmp_path)
    file = tmp_path / "annotations" / "instances_train.json"
    file.write_bytes(text.encode("latin-1"))
    assert check_coco(tmp_path).fatal[0].kind in ("not_json", "no_section")
    with pytest.raises(InputError, match=r"instances_train.json: (the file is not readable JSON|a list of the format)"):
        CocoDetection(tmp_path)


def test_boxes_are_clipped(tmp_path: Path) -> None:
    write_small(tmp_path, edit("annotations", 1, bbox=[-5, 22.5, 50, 20]))
    with pytest.warns(
        UserWarning, match="1 x a box sticks out of the image by more than a pixel; clipped: annotations"
    ):
        data = CocoDetection(tmp_path)
    assert data[1][1]["boxes"].tolist() == [[0.0, 22.5, 40.0, 30.0]]
    assert data[1][1]["area"].tolist() == [200.0]


def test_rounding_is_no_problem(tmp_path: Path) -> None:
    write_small(tmp_path, edit("annotations", 1, bbox=[0.4, 10.2, 39.9, 20.1]))
    data = CocoDetection(tmp_path)
    assert not data.problems.counts and data[1][1]["boxes"][0, 2:].tolist() == [40.0, 30.0]


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([30.0, 5, 1e-7, 5], "zero_area"),
        ([0.0, 5, 1e-6, 5], "zero_area"),  # vanishes when it is reflected to 40
        ([39.999, 5, 5, 5], "outside"),
        ([30.0, 5, 0.02, 5], None),
    ],
)
def test_boxes_too_thin_for_float32_are_left_out(tmp_path: Path, box: list[float], kind: str | None) -> None:
    write_small(tmp_path, edit("annotations", 1, bbox=box))
    data = read(tmp_path)
    counts = {name: count for name, count in data.problems.counts.items() if name != "sticks_out"}
    assert counts == ({kind: 1} if kind else {}) and len(data[1][1]["boxes"]) == (0 if kind else 1)


def test_only_a_small_share_is_left_out(tmp_path: Path) -> None:
    write_small(tmp_path, edit("images", 1, file_name="9.png"))
    message = (
        r"too many images had to be left out, images: 1 of 3, of which the first is images\[1\].file_name \(id 2\)"
    )
    with pytest.raises(InputError, match=message):
        CocoDetection(tmp_path)
    with pytest.raises(InputError, match="max_left_out"):
        CocoDetection(tmp_path, max_left_out=0.33)
    with pytest.warns(UserWarning, match="an image file is missing; left out"):
        data = CocoDetection(tmp_path, max_left_out=0.34)
    assert [target["image_id"] for _, target in data] == [1, 3]  # type: ignore[attr-defined]
    write_small(tmp_path, edit("annotations", 1, bbox=[0, 0, 0, 0]))
    with pytest.raises(InputError, match="too many annotations had to be left out, annotations: 1 of 3"):
        CocoDetection(tmp_path)
    for share in (-0.1, 2, "all", True, float("nan")):
        with pytest.raises(InputError, match="max_left_out is"):
            CocoDetection(tmp_path, max_left_out=share)  # type: ignore[arg-type]


def test_images_without_a_semantic_mask(tmp_path: Path) -> None:
    write_small(tmp_path)
    masks = tmp_path / "semantic" / "train"
    masks.mkdir(parents=True)
    for number in (1, 2):
        Image.new("L", (WIDTH, HEIGHT)).save(masks / f"{number}.png")
    with pytest.raises(InputError, match=r"images\[2\].file_name \(id 3\): .*3.png, an image has no semantic mask"):
        CocoSegmentation(tmp_path)
    assert len(CocoDetection(tmp_path)) == 3


def test_sizes_that_are_not_listed_are_those_of_the_files(tmp_path: Path) -> None:
    write_small(tmp_path, edit("images", 1, width=..., height=...))
    data = read(tmp_path)
    assert data[1][0].shape == (3, HEIGHT, WIDTH) and data.problems.counts == {"no_size": 1}


@pytest.mark.parametrize("upright", [True, False])
def test_orientation_is_what_the_annotations_say(tmp_path: Path, upright: bool) -> None:
    """A picture that is stored lying, with EXIF that turns it, may have been labelled either way."""
    size = (HEIGHT, WIDTH) if upright else (WIDTH, HEIGHT)
    name = {"file_name": "turned.jpg", "width": size[0], "height": size[1]}
    write_small(tmp_path, edit("images", 0, **name))
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the left edge comes up
    Image.fromarray(pixels).save(tmp_path / "train" / "turned.jpg", exif=exif)
    image, _ = CocoDetection(tmp_path)[0]
    assert image.shape == (3, size[1], size[0])
    assert (image[:, :9] if upright else image[:, :, :9]).mean() > 0.95 and image.mean() < 0.3


def test_damaged_pictures(tmp_path: Path) -> None:
    """The header is sound, so that only reading the picture tells."""
    write_small(tmp_path)
    file = tmp_path / "train" / "2.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(InputError, match=r"2.png' is damaged or truncated"):
        CocoDetection(tmp_path)[1]
    with pytest.warns(UserWarning, match="left out of training: .*2.png"):
        assert CocoDetection(tmp_path, train=True)[1][1]["image_id"] == 3
    for number in (1, 3):
        (tmp_path / "train" / f"{number}.png").write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="20 image files in a row are broken"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CocoDetection(tmp_path, train=True)[0]


def test_reports_name_few_of_many_cases(tmp_path: Path) -> None:
    def change(content: Content) -> None:
        content["annotations"] += [box_of(1, 1, 0, 5) | {"id": 100 + n, "image_id": 1} for n in range(500)]

    write_small(tmp_path, change)
    report = check_coco(tmp_path, max_left_out=1)
    assert report.counts == {"zero_area": 500} and len(report.problems) == 100
    assert len(str(report)) < 500 and "; ..." in str(report)
    assert [problem.field for problem in report.problems[:2]] == ["annotations[3].bbox", "annotations[4].bbox"]


def test_whatever_stands_in_a_field(tmp_path: Path) -> None:
    """Either an InputError of one line, or a data set all of whose targets are sound."""
    write_small(tmp_path)
    numbers: list[Any] = [-1, 0, 1.5, 10**400, float("nan"), float("inf")]
    values = [*numbers, None, True, "", "x", "\0/../1.png", [], {}, [[]], [1, 2, 3, 4]]
    fields = [
        *itertools.product(["images"], ["id", "file_name", "width", "height"]),
        *itertools.product(
            ["annotations"], ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"]
        ),
        *itertools.product(["categories"], ["id", "name"]),
    ]
    refused = 0
    for (section, field), value in itertools.product(fields, values):
        write_small(tmp_path, edit(section, 1, **{field: value}))
        try:
            data = read(tmp_path, masks=True)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and "instances_train.json" in str(error)
            continue
        for image, target in data:  # type: ignore[attr-defined]
            assert image.shape == (3, HEIGHT, WIDTH)
            boxes = target["boxes"]
            assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all() and (boxes[:, 2] <= WIDTH).all()
            assert (target["area"] > 0).all() and target["masks"].shape == (len(boxes), HEIGHT, WIDTH)
            assert ((target["labels"] >= 1) & (target["labels"] <= data.num_classes)).all()
    assert refused > 20

"""Boxes, classes and ponder maps as pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from sact.dense_pictures import (
    IGNORED,
    Sheet,
    beside_map,
    class_color,
    class_image,
    detection_panel,
    draw_boxes,
    draw_classes,
    legend,
    palette,
    segmentation_panel,
)

GREY = Image.new("RGB", (300, 200), (90, 90, 90))


def is_color(picture: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    return (np.asarray(picture) == color).all(-1)


def test_colors_tell_classes_apart() -> None:
    colors = np.array([class_color(label) for label in range(1, 201)], dtype=np.float64)
    apart = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + 1e9 * np.eye(len(colors))
    assert apart.min() > 0
    assert apart[:28, :28].min() > 30
    assert np.diagonal(apart, offset=1).min() > 100  # neighbouring labels


def test_boxes_are_where_they_should_be() -> None:
    drawn = draw_boxes(GREY, [[50, 40, 150, 120], [200, 100, 280, 180]], [1, 2], ["", ""])
    first, second = is_color(drawn, class_color(1)), is_color(drawn, class_color(2))
    assert np.argwhere(first).min(0).tolist() == [40, 50]
    assert np.argwhere(first).max(0).tolist() == [120, 150]
    assert np.argwhere(second).min(0).tolist() == [100, 200]
    assert not first[50:110, 60:140].any()
    assert drawn.getpixel((100, 80)) == drawn.getpixel((0, 0)) == (90, 90, 90)
    assert GREY.getextrema() == ((90, 90),) * 3


def test_boxes_scale_with_the_panel() -> None:
    """An image of 300 pixels keeps its size; in one of 1280, reduced to 640, boxes are half as large."""
    boxes = [[100, 60, 200, 160]]
    for width, side, scale in ((300, None, 1), (1280, None, 0.5), (300, 150, 0.5)):
        panel = detection_panel(Image.new("RGB", (width, 200)), boxes, [1], [""], side)
        there = np.argwhere(is_color(panel, class_color(1)))
        assert there.min(0).tolist() == [60 * scale, 100 * scale]
        assert there.max(0).tolist() == [160 * scale, 200 * scale]


@pytest.mark.parametrize(
    "box", [[0, 0, 300, 200], [-5, -5, 2, 2], [50, 50, 50, 50], [299, 199, 299, 199], [9, 8, 7, 6]]
)
def test_labels_stay_in_the_picture(box: list[float]) -> None:
    plain = draw_boxes(GREY, [box], [1], [""])
    drawn = draw_boxes(GREY, [box], [1], ["cat 99%"])
    changed = np.argwhere(np.asarray(drawn) != np.asarray(plain))
    height, width = (np.ptp(changed[:, axis]) + 1 for axis in (0, 1))
    assert drawn.size == GREY.size
    assert 14 <= height <= 20
    assert 45 <= width <= 75


def test_labels_do_not_hide_each_other() -> None:
    """Three boxes in one place, of which the first hides the others: their colours are those of their labels."""
    drawn = draw_boxes(GREY, [[100, 80, 250, 150]] * 3, [1, 2, 3], ["first", "second", "third"])
    bare = draw_boxes(GREY, [[100, 80, 250, 150]] * 3, [1, 2, 3], ["", "", ""])
    for label in (1, 2, 3):
        strip = is_color(drawn, class_color(label)) & ~is_color(bare, class_color(label))
        assert strip.sum() > 300


def test_long_labels_are_cut() -> None:
    drawn = draw_boxes(GREY, [[10, 50, 60, 90]], [1], ["a very long name indeed " * 10])
    assert drawn.size == GREY.size
    assert is_color(drawn, class_color(1)).any()


def test_classes_are_tinted() -> None:
    classes = np.zeros((200, 300), np.uint8)
    classes[50:100, 100:200] = 3
    classes[:10, :10] = IGNORED
    drawn = np.asarray(draw_classes(GREY, classes)).astype(float)
    expected = 90 + 0.6 * (np.array(class_color(3)) - 90)
    np.testing.assert_allclose(drawn[75, 150], expected, atol=0.6)
    assert drawn[150, 150].tolist() == drawn[5, 5].tolist() == [90, 90, 90]
    assert drawn[75, 99].tolist() == drawn[99, 150].tolist() == [255, 255, 255]  # last pixels before another class
    panel = segmentation_panel(GREY, classes, side=150)
    np.testing.assert_allclose(np.asarray(panel)[37, 75], expected, atol=0.6)


def test_indices_survive_as_png() -> None:
    classes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    buffer = io.BytesIO()
    class_image(classes).save(buffer, "PNG")
    with Image.open(buffer) as read:
        assert read.mode == "P"
        np.testing.assert_array_equal(np.asarray(read), classes)
        colors = np.asarray(read.convert("RGB")).reshape(256, 3)
    assert colors[[0, 3, 255]].tolist() == [[0, 0, 0], list(class_color(3)), [255, 255, 255]]
    assert len(palette()) == 768


def test_figures() -> None:
    map = np.linspace(2, 8, 200 * 300, dtype=np.float32).reshape(200, 300)
    alone, pair = (beside_map(GREY, "objects", values, "no objects", "50% of FLOPs") for values in (None, map))
    assert pair.width > alone.width + 300
    assert is_color(pair, (252, 255, 164)).any()  # the brightest colour of the scale
    key = legend([(label, f"class {label}") for label in range(1, 30)])
    assert all(is_color(key, class_color(label)).sum() >= 14 * 14 for label in range(1, 15))
    assert not is_color(key, class_color(15)).any()
    with_key = beside_map(GREY, "classes", map, "title", "", key)
    assert with_key.width > pair.width


def test_sheets_keep_thumbnails_alone() -> None:
    map = np.ones((2000, 3000), np.float32)
    sheet = Sheet(most=2)
    for number in range(3):
        sheet.add(Image.new("RGB", (3000, 2000)), map, f"{number}")
    assert [(panel.size, values.shape) for panel, values, _ in sheet.cells] == [((256, 171), (171, 256))] * 2
    drawn = sheet.draw()
    plain = Sheet()
    plain.add(GREY, None, "no map")
    assert drawn.width > 4 * 256
    assert 256 < plain.draw().width < 400

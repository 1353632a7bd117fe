"""Ponder maps as pictures: `sact.maps`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sact import drawing, maps
from sact.errors import InputError

DARKEST, BRIGHTEST = (0x00, 0x00, 0x04), (0xFC, 0xFF, 0xA4)
WHITE = (255, 255, 255)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def brute_force_auc(map: np.ndarray, mask: np.ndarray) -> float:
    wins = [1.0 if on > off else 0.5 if on == off else 0.0 for on in map[mask] for off in map[~mask]]
    return sum(wins) / len(wins)


def has_color(picture: Image.Image, color: tuple[int, int, int]) -> bool:
    return bool((np.asarray(picture) == color).all(axis=-1).any())


@pytest.mark.parametrize("levels", [2, 5, 10**6])
@pytest.mark.parametrize("objects", [0.02, 0.5, 0.95])
def test_auc_is_the_share_of_ordered_pairs(rng: np.random.Generator, levels: int, objects: float) -> None:
    map = rng.integers(levels, size=(11, 13)) / 7
    mask = rng.random((11, 13)) < objects
    assert maps.auc(map, mask) == pytest.approx(brute_force_auc(map, mask), abs=1e-12)


def test_auc_of_perfect_reversed_and_constant_maps() -> None:
    mask = np.zeros((6, 4), bool)
    mask[2:4, 1:3] = True
    assert maps.auc(mask.astype(float), mask) == 1
    assert maps.auc(-mask.astype(float), mask) == 0
    assert maps.auc(np.full((6, 4), 3.7), mask) == 0.5


def test_auc_resizes_a_smaller_map(rng: np.random.Generator) -> None:
    map, mask = rng.random((3, 4)), rng.random((9, 8)) < 0.4
    assert maps.auc(map, mask) == maps.auc(map.repeat(3, axis=0).repeat(2, axis=1), mask)


@pytest.mark.parametrize(
    "mask",
    [np.ones((4, 4), bool), np.zeros((4, 4), bool), np.ones((4, 4)), np.eye(3, dtype=bool), np.array([True, False])],
    ids=["all", "none", "float", "smaller than the map", "rank 1"],
)
def test_auc_refuses_masks_without_a_curve(mask: np.ndarray) -> None:
    with pytest.raises(InputError, match="mask"):
        maps.auc(np.eye(4), mask)


def test_colorize_puts_end_colors_at_the_ends() -> None:
    colors = maps.colorize(np.array([[4.2, 10.0], [15.0, 21.7]]))
    assert colors.shape == (2, 2, 3) and colors.dtype == np.uint8
    assert tuple(colors[0, 0]) == DARKEST and tuple(colors[1, 1]) == BRIGHTEST


def test_colorize_clips_to_the_range() -> None:
    colors = maps.colorize(np.array([[-3.0, 1.0, 5.0, 9.0]]), low=1, high=5)
    assert (colors[0, 0] == colors[0, 1]).all() and (colors[0, 2] == colors[0, 3]).all()
    assert tuple(colors[0, 0]) == DARKEST and tuple(colors[0, 3]) == BRIGHTEST


def test_brightness_grows_with_the_map() -> None:
    ramp = maps.colorize(np.linspace(0, 1, 256)[None])
    luma = ramp[0] @ np.array([0.299, 0.587, 0.114])
    assert len(np.unique(ramp[0], axis=0)) == 256
    assert (np.diff(luma) > -1).all() and (np.diff(luma[::8]) > 0).all()


@pytest.mark.parametrize("value", [0.0, 7.25, 1e12, -3.0])
def test_constant_map_has_the_middle_color(value: float) -> None:
    middle = maps.colorize(np.array([[0.0, 0.5, 1.0]]))[0, 1]
    assert (maps.colorize(np.full((3, 5), value)) == middle).all()
    assert maps.figure(np.zeros((32, 32, 3), np.uint8), np.full((3, 5), value)).width > 3 * 224


def test_rounding_errors_do_not_fill_the_scale() -> None:
    noisy = np.full((2, 2), 12, np.float32)
    noisy[0, 0] = np.nextafter(noisy[0, 0], np.float32(13))
    assert np.ptp(maps.colorize(noisy).astype(int), axis=(0, 1)).max() <= 3


@pytest.mark.parametrize(
    "map",
    [
        np.array([[1, np.nan]]),
        np.array([[np.inf, 1]]),
        np.zeros(4),
        np.zeros((1, 4, 4)),
        np.zeros((0, 4)),
        np.zeros((2, 2), complex),
        np.array([["a"]]),
        [[1, 2], [3]],
        torch.zeros(2, 2, requires_grad=True),
    ],
    ids=["nan", "inf", "rank 1", "rank 3", "empty", "complex", "text", "ragged", "needs grad"],
)
def test_bad_maps_are_refused_everywhere(map: object) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    mask = np.eye(8, dtype=bool)
    calls = (
        lambda: maps.colorize(map),
        lambda: maps.overlay(image, map),
        lambda: maps.figure(image, map),
        lambda: maps.block_figure(image, [map]),
        lambda: maps.contact_sheet([(image, map, "")]),
        lambda: maps.softmax_map(map),
        lambda: maps.auc(map, mask),
    )
    for call in calls:
        with pytest.raises(InputError, match="the map"):
            call()


@pytest.mark.parametrize("low, high", [(3, 2), (np.nan, None), (None, np.inf)])
def test_bad_ranges_are_refused(low: float | None, high: float | None) -> None:
    with pytest.raises(InputError, match="low"):
        maps.colorize(np.eye(3), low=low, high=high)


def test_tensors_are_maps() -> None:
    assert (maps.colorize(torch.eye(3)) == maps.colorize(np.eye(3))).all()


@pytest.mark.parametrize("size", [(14, 14), (15, 23), (7, 30)])
def test_resize_agrees_with_torch_nearest(rng: np.random.Generator, size: tuple[int, int]) -> None:
    map = rng.random((7, 5))
    expected = torch.nn.functional.interpolate(torch.from_numpy(map)[None, None], size=size)[0, 0].numpy()
    picture = np.asarray(maps.overlay(np.full((*size, 3), 255, np.uint8), map))
    assert (picture == np.asarray(maps.overlay(np.full((*size, 3), 255, np.uint8), expected))).all()


def test_overlay_is_dark_grey_at_low_and_colored_at_high() -> None:
    image = np.empty((4, 8, 3), np.uint8)
    image[:] = (200, 80, 20)
    cold, *_, hot = np.asarray(maps.overlay(image, np.array([[0.0, 1.0]])))[0].astype(int)
    grey = np.asarray(Image.fromarray(image).convert("L"))[0, 0]
    assert len(set(cold)) == 1 and cold[0] == round(0.35 * grey)
    assert hot.sum() > 2 * cold.sum() and hot.max() - hot.min() > 50


def test_overlay_at_full_strength_on_white_is_the_map_color() -> None:
    white = Image.new("RGB", (6, 4), WHITE)
    assert maps.overlay(white, np.array([[1.0, 9.0]]), alpha=1).getpixel((5, 0)) == BRIGHTEST
    assert maps.overlay(white, np.array([[1.0, 9.0]]), alpha=0).getpixel((5, 0)) == WHITE


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
def test_overlay_takes_any_pillow_image(mode: str) -> None:
    picture = maps.overlay(Image.new(mode, (10, 6)), np.eye(3))
    assert picture.mode == "RGB" and picture.size == (10, 6)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3)),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
    ids=["float", "channels first", "empty", "batch"],
)
def test_bad_images_are_refused(image: np.ndarray) -> None:
    with pytest.raises(InputError, match="the image is"):
        maps.overlay(image, np.eye(2))


def test_unreadable_pillow_images_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    whole = maps.save_png(rng.integers(256, size=(64, 64, 3), dtype=np.uint8), tmp_path / "whole.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:2000])
    with Image.open(cut) as truncated, pytest.raises(InputError, match="cannot be decoded"):
        maps.overlay(truncated, np.eye(2))
    with pytest.raises(InputError, match="0 x 4 pixels"):
        maps.overlay(Image.new("RGB", (0, 4)), np.eye(2))


def test_transparent_images_stand_on_white() -> None:
    assert maps.overlay(Image.new("RGBA", (4, 4)), np.array([[0.0, 1.0]]), alpha=0).getpixel((3, 0)) == WHITE


def test_overlay_refuses_a_larger_map_and_a_bad_alpha() -> None:
    image = np.zeros((4, 8, 3), np.uint8)
    with pytest.raises(InputError, match=r"\[8, 4\] is larger than the image \[4, 8\]"):
        maps.overlay(image, np.zeros((8, 4)))
    for alpha in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="alpha"):
            maps.overlay(image, np.eye(2), alpha=alpha)


def test_color_bar_runs_from_low_to_high() -> None:
    upright, flat = maps.color_bar(4.2, 21.7, height=200), maps.color_bar(4.2, 21.7, width=300, label="")
    assert upright.height == 200 and flat.width == 300 and maps.color_bar(0, 1).width == 256
    assert upright.getpixel((0, 0)) == BRIGHTEST and upright.getpixel((0, 199)) == DARKEST
    assert flat.getpixel((0, 0)) == DARKEST and flat.getpixel((299, 0)) == BRIGHTEST


@pytest.mark.parametrize("low, high", [(4.2, 21.7), (0, 1), (1, 1), (-3, 1e6), (1.001, 1.004), (0, 1e-7)])
def test_ticks_hold_both_ends_and_increase(low: float, high: float) -> None:
    span = drawing.value_range([], low, high)
    ticks = drawing.tick_texts(span, 300, lambda text: 8.0 * len(text))
    values = [value for value, _ in ticks]
    assert (values[0], values[-1]) == span and values == sorted(set(values)) and len(values) <= 7
    assert all(float(text) == pytest.approx(value, abs=0.06 * (span[1] - span[0])) for value, text in ticks)


def test_tick_values_have_a_decimal_where_the_range_needs_it() -> None:
    assert [text for _, text in drawing.tick_texts((4.2, 21.7), 300, lambda _: 20.0)] == ["4.2", "10", "15", "21.7"]


def test_bad_color_bars_are_refused() -> None:
    for options in ({"width": 200, "height": 200}, {"width": 20}, {"height": 0}):
        with pytest.raises(InputError):
            maps.color_bar(0, 1, **options)
    with pytest.raises(InputError, match="low"):
        maps.color_bar(2, 1)


@pytest.mark.parametrize("height, width", [(28, 28), (96, 96), (300, 500), (96, 20), (1, 1), (900, 1600)])
def test_figure_has_readable_panels_at_any_size(height: int, width: int) -> None:
    image = np.full((height, width, 3), 128, np.uint8)
    picture = maps.figure(image, np.arange(1.0, 1 + height * width).reshape(height, width), "a title", "a caption")
    panel = drawing.resize_to_panel(Image.fromarray(image), drawing.panel_side(Image.fromarray(image), 640))
    assert 224 <= max(panel.size) <= 640
    assert picture.width > 3 * panel.width and picture.height > panel.height
    assert picture.getpixel((0, 0)) == WHITE
    assert has_color(picture, BRIGHTEST) and has_color(picture, (128, 128, 128))


def test_figure_grows_by_its_texts_and_wraps_them() -> None:
    image, map = np.zeros((64, 64, 3), np.uint8), np.eye(8)
    plain = maps.figure(image, map)
    long = maps.figure(image, map, title="word " * 60, caption="unbroken" * 60)
    assert long.width == plain.width and long.height > plain.height + 60


def test_block_figure_gives_each_block_its_own_range() -> None:
    small, large = np.array([[1.0, 3.0]]), np.array([[1.0, 20.0], [2.0, 1.0]])
    picture = np.asarray(maps.block_figure(np.full((64, 64), 128, np.uint8), [small, large], ["one", "two"]))
    bright = (picture == BRIGHTEST).all(axis=-1).sum(axis=0)
    third = picture.shape[1] // 3
    assert not bright[:third].any() and bright[third : 2 * third].any() and bright[2 * third :].any()


def test_block_figure_refuses_no_maps_and_wrong_names() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    for chosen, names in (([], None), ([np.eye(2)], ["a", "b"])):
        with pytest.raises(InputError, match="names"):
            maps.block_figure(image, chosen, names)


def test_contact_sheet_lays_out_rows_of_columns() -> None:
    item = (np.zeros((40, 40, 3), np.uint8), np.eye(4), "caption")
    one, two, four = (maps.contact_sheet([item] * count, columns=2) for count in (1, 2, 4))
    assert two.width > 1.8 * one.width and two.height == one.height
    assert four.width == two.width and four.height > 1.6 * two.height


def test_contact_sheet_shares_one_range() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    items = [(image, np.full((2, 2), 1.0), ""), (image, np.full((2, 2), 5.0), "")]
    picture = maps.contact_sheet(items, columns=2, panels=["map"], panel_size=64)
    pixels = np.asarray(picture)
    row = pixels[pixels.shape[0] // 4]
    assert (row == DARKEST).all(axis=-1).sum() == 64 and (row == BRIGHTEST).all(axis=-1).sum() == 64


def test_contact_sheet_takes_images_of_different_sizes() -> None:
    items = [(np.zeros((h, w, 3), np.uint8), np.eye(1), "long caption " * 9) for h, w in ((9, 30), (300, 20), (1, 50))]
    assert maps.contact_sheet(items, columns=2, panels=("image", "map", "overlay")).mode == "RGB"


def test_bad_contact_sheets_are_refused() -> None:
    item = (np.zeros((8, 8, 3), np.uint8), np.eye(2), "")
    for items, options in (
        ([], {}),
        ([item], {"columns": 0}),
        ([item], {"panel_size": 3}),
        ([item], {"panels": ["heat"]}),
    ):
        with pytest.raises(InputError, match="give"):
            maps.contact_sheet(items, **options)


def test_softmax_map_is_the_softmax(rng: np.random.Generator) -> None:
    map = rng.random((6, 7))
    weights = maps.softmax_map(map)
    expected = torch.softmax(torch.from_numpy(map).flatten() * 5, dim=0).reshape(6, 7).numpy()
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    np.testing.assert_allclose(maps.softmax_map(3 + 20 * map, rescale=True), maps.softmax_map(map, rescale=True))


def test_softmax_map_of_extremes() -> None:
    assert maps.softmax_map(np.array([[1e5, -1e5]])).tolist() == [[1, 0]]
    np.testing.assert_allclose(maps.softmax_map(np.full((2, 4), 9.0), rescale=True), 1 / 8)
    for temperature in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="temperature"):
            maps.softmax_map(np.eye(2), temperature)


def test_save_png_makes_folders_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "map.png"
    maps.save_png(Image.new("RGB", (3, 2)), path)
    assert maps.save_png(np.full((5, 4, 3), 7, np.uint8), path) == path
    with Image.open(path) as read:
        assert read.size == (4, 5) and read.getpixel((0, 0)) == (7, 7, 7)
    assert [entry.name for entry in path.parent.iterdir()] == ["map.png"]


def test_save_png_keeps_the_old_file_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = maps.save_png(Image.new("RGB", (3, 2)), tmp_path / "map.png")
    before = path.read_bytes()

    def half_written(self: Image.Image, target: Path, format: str) -> None:
        target.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", half_written)
    with pytest.raises(InputError, match="no space left"):
        maps.save_png(Image.new("RGB", (9, 9)), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_save_png_refuses_other_endings_and_impossible_places(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="png"):
        maps.save_png(Image.new("RGB", (3, 2)), tmp_path / "map.jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        maps.save_png(Image.new("RGB", (3, 2)), tmp_path / "file" / "map.png")

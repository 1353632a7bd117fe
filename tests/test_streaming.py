"""`sact maps` of images: what is written, whatever happens on the way. Videos: test_streaming_video.py."""

from __future__ import annotations

import gc
import json
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from streamed import check_arrays, draw, read_table, spend, tree

import sact
from sact.cli import main
from sact.drawing import to_colors
from sact.streaming import images
from sact.streaming.arrays import array_size, open_array, reduced
from sact.streaming.journal import Journal, open_journal
from sact.streaming.measuring import Meter
from sact.streaming.prefetch import reading_ahead
from sact.streaming.progress import Progress
from sact.streaming.run import write_maps
from sact.streaming.sources import Source, find_sources
from sact.streaming.work import Wishes, batches


@pytest.fixture
def network(make_model) -> sact.Network:
    model = make_model("resnet", halting="sact", units=[3, 2], base_channels=4, num_classes=5)
    model.preprocessing = {"name": "scenes", "size": 48}
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, one of them in a folder of its own."""
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    for seed, (name, size) in enumerate({"a.png": (80, 60), "b.png": (60, 90), "deep/c.png": (64, 64)}.items()):
        Image.fromarray(draw(*size, seed)).save(root / name)
    return root


def is_reading() -> bool:
    return any(thread.name == "sact-reading-ahead" for thread in threading.enumerate())


def test_what_is_written(network: sact.Network, folder: Path, tmp_path: Path) -> None:
    report = write_maps(network, [folder], tmp_path / "out", recursive=True, quiet=True)
    assert (report.pictures, report.before, report.problems) == (3, 0, [])
    ponders = {}
    for name, size in (("a.png", (64, 48)), ("b.png", (48, 72)), ("deep/c.png", (48, 48))):
        with Image.open(folder / name) as image:
            seen = image.resize(size, Image.Resampling.BILINEAR)
        ponders[name] = spend(network, seen)
        check_arrays(tmp_path / f"out/{name}.npz", ponders[name], size[::-1])
    rows = read_table(tmp_path / "out/index.csv")
    assert [row["file"] for row in rows] == list(ponders)
    for row, ponder in zip(rows, ponders.values(), strict=True):
        assert int(row["flops"]) == int(ponder.flops[0])
        assert float(row["share"]) == pytest.approx(int(ponder.flops[0]) / ponder.dense_flops)
        assert float(row["cost"]) == pytest.approx(float(ponder.cost[0]), rel=1e-5)
        assert float(row["seconds"]) > 0
    assert [rows[1][name] for name in ("width", "height", "seen_width", "seen_height")] == ["60", "90", "48", "72"]
    flops = sum(int(ponder.flops[0]) for ponder in ponders.values())
    assert report.share == pytest.approx(flops / sum(ponder.dense_flops for ponder in ponders.values()))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("a.png.npz", "b.png.npz", "deep", "index.csv", "index.jsonl", "settings.json")
    }


def test_own_size_and_others(network: sact.Network, folder: Path, tmp_path: Path) -> None:
    write_maps(network, [folder / "a.png"], tmp_path / "own", size="own", quiet=True)
    with Image.open(folder / "a.png") as image:
        check_arrays(tmp_path / "own/a.png.npz", spend(network, image), (60, 80))
    assert Meter(network).seen_size((60, 90)) == (48, 72)
    assert Meter(network, 60).seen_size((90, 61)) == (88, 60)
    assert Meter(network, "own").seen_size((7, 9)) == (7, 9)
    for size in (0, True, 2.5, "large", 31):
        with pytest.raises(sact.InputError, match="size is"):
            Meter(network, size)  # type: ignore[arg-type]


def test_pictures_in_colour(network: sact.Network, folder: Path, tmp_path: Path) -> None:
    write_maps(network, [folder / "a.png"], tmp_path / "out", Wishes(("png", "overlay")), size="own", quiet=True)
    with Image.open(folder / "a.png") as image:
        cost = spend(network, image).map((15, 20))[0].numpy().repeat(4, 0).repeat(4, 1).astype(np.float16)
    # The same colours for all pictures: 2 per block at least, and one more than its units at most.
    expected = to_colors((cost.astype(np.float64) - 4) / (7 - 4))
    with Image.open(tmp_path / "out/a.png.map.png") as drawn:
        assert drawn.size == (80, 60)
        np.testing.assert_allclose(np.asarray(drawn).astype(int), expected.astype(int), atol=4)
    with Image.open(tmp_path / "out/a.png.overlay.png") as drawn:
        assert drawn.size == (80, 60)
        assert np.ptp(np.asarray(drawn)[:, :40].astype(int)) > np.ptp(np.asarray(drawn)[:, 60:].astype(int))
    assert not (tmp_path / "out/a.png.npz").exists()


def test_batches_change_nothing(network: sact.Network, tmp_path: Path) -> None:
    sizes = [(80, 60)] * 3 + [(60, 80)] + [(80, 60)] * 2
    for number, size in enumerate(sizes):
        Image.fromarray(draw(*size, number)).save(tmp_path / f"{number}.png")
    seen: list[int] = []
    meter_call = Meter.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Meter, "__call__", lambda self, some: seen.append(len(some)) or meter_call(self, some))
        write_maps(network, [tmp_path], tmp_path / "two", Wishes(batch=2), quiet=True)
    assert seen == [2, 1, 1, 2]
    write_maps(network, [tmp_path], tmp_path / "one", quiet=True)
    for number in range(len(sizes)):
        with np.load(tmp_path / f"one/{number}.png.npz") as one, np.load(tmp_path / f"two/{number}.png.npz") as two:
            np.testing.assert_array_equal(one["block1_units"], two["block1_units"])
            np.testing.assert_allclose(one["map"], two["map"], rtol=2e-3)


def test_what_cannot_be_read_is_named_and_the_others_go_on(network: sact.Network, folder: Path, tmp_path: Path) -> None:
    (folder / "a0.jpg").write_bytes(b"no picture")
    Image.fromarray(draw(200, 150)).save(folder / "a1.jpg")
    (folder / "a1.jpg").write_bytes((folder / "a1.jpg").read_bytes()[:3000])
    Image.fromarray(draw(20, 20)).save(folder / "a2.png")
    report = write_maps(network, [folder], tmp_path / "out", Wishes(batch=4), size="own", quiet=True)
    assert [name for name, _ in report.problems] == ["a0.jpg", "a1.jpg", "a2.png"]
    for (_, problem), part in zip(report.problems, ("not a readable", "truncated", "20x20 pixels"), strict=True):
        assert part in problem
    assert [row["file"] for row in read_table(tmp_path / "out/problems.csv")] == ["a0.jpg", "a1.jpg", "a2.png"]
    assert [row["file"] for row in read_table(tmp_path / "out/index.csv")] == ["a.png", "b.png"]
    for name in ("a0.jpg", "a1.jpg", "a2.png"):
        (folder / name).unlink()
    assert write_maps(network, [folder], tmp_path / "out", size="own", quiet=True).problems == []
    assert not (tmp_path / "out/problems.csv").exists()


def test_pictures_beyond_the_limit_can_be_converted(network: sact.Network, tmp_path: Path) -> None:
    """A PNG whose header says 151 megapixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 12300, 12300, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT\x35\xaf\x06\x1e")
    [(name, problem)] = write_maps(network, [tmp_path], tmp_path / "out", quiet=True).problems
    assert name == "a.png" and "151290000 pixels" in problem
    assert problem.endswith("; scale it down or convert it to TIFF or .npy, which are read piece by piece")


def test_networks_without_maps(make_model, network: sact.Network, folder: Path, tmp_path: Path) -> None:
    plain = make_model("resnet", halting="none", units=[1], base_channels=4)
    plain.preprocessing = network.preprocessing
    with pytest.raises(sact.InputError, match="plain"):
        write_maps(plain, [folder], tmp_path / "out")
    with pytest.raises(sact.InputError, match="training mode"):
        write_maps(network.train(), [folder], tmp_path / "out")
    network.eval().preprocessing = None
    with pytest.raises(sact.InputError, match=r"model\.preprocessing"):
        write_maps(network, [folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_networks_that_halt_per_image(make_model, folder: Path, tmp_path: Path) -> None:
    model = make_model("resnet", halting="act", units=[3, 2], base_channels=4)
    model.preprocessing = {"name": "scenes", "size": 64}
    write_maps(model, [folder / "a.png"], tmp_path, size="own", quiet=True)
    with Image.open(folder / "a.png") as image:
        ponder = spend(model, image)
    with np.load(tmp_path / "a.png.npz") as arrays:
        assert arrays["map"].shape == (15, 20)
        np.testing.assert_allclose(arrays["map"], np.full((15, 20), float(ponder.cost[0])), rtol=1e-3)
        assert [int(arrays[f"block{k}_units"]) for k in (1, 2)] == [int(block.units[0]) for block in ponder.blocks]


def test_detectors_and_segmenters(tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("torchvision")
    options = {"units": [2, 2], "base_channels": 4}
    segmenter = sact.create_segmenter("resnet", 3, halting="sact", **options).eval()
    write_maps(segmenter, [folder / "a.png"], tmp_path / "segmenter", quiet=True)
    with Image.open(folder / "a.png") as image:
        check_arrays(tmp_path / "segmenter/a.png.npz", spend(segmenter.network, image), (60, 80))
    limits = {"min_size": 48, "max_size": 70, "image_mean": (0.0, 0.0, 0.0), "image_std": (0.5, 0.5, 0.5)}
    detector = sact.create_detector("resnet", 3, halting="sact", form="fpn", **options, **limits).eval()
    meter = Meter(detector)
    assert meter.size == [48, 70]
    assert meter.seen_size((60, 80)) == (48, 64)
    assert meter.seen_size((60, 140)) == (30, 70)
    with Image.open(folder / "a.png") as image:
        seen = meter.fit(image)
        (spent,) = meter([seen])
        with torch.no_grad():
            pixels = torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None].float() / 127.5
            _, ponder = detector.network(pixels, return_ponder=True)
    assert spent.flops == int(ponder.flops[0])
    np.testing.assert_allclose(spent.map, ponder.map(spent.map.shape)[0], rtol=1e-3)


def test_finished_files_are_not_read_again(
    network: sact.Network, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_maps(network, [folder], out, recursive=True, quiet=True)
    before, opened = tree(out), []
    read = images.open_image
    monkeypatch.setattr(images, "open_image", lambda path, **options: opened.append(path.name) or read(path, **options))
    report = write_maps(network, [folder], out, recursive=True, quiet=True)
    assert (report.pictures, report.before, report.share, opened) == (0, 3, None, [])
    assert tree(out) == before
    (out / "a.png.npz").unlink()
    os.utime(folder / "b.png", ns=(1, 1))
    assert write_maps(network, [folder], out, recursive=True, quiet=True).pictures == 2
    assert opened == ["a.png", "b.png"]
    assert tree(out).keys() == before.keys()
    assert tree(out)["a.png.npz"] == before["a.png.npz"]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_run_ends_like_one_that_was_not(
    network: sact.Network, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out = tmp_path / "out"
    write_maps(network, [folder], tmp_path / "whole", recursive=True, quiet=True)
    write = images.write_picture
    written: list[Any] = []

    def interrupted(files: Any, *arguments: Any) -> None:
        if len(written) == after:
            (out / ".a.png-abcdefgh.tmp.npz").write_bytes(b"half")  # what kill -9 leaves
            raise KeyboardInterrupt
        written.append(files)
        write(files, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(images, "write_picture", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_maps(network, [folder], out, recursive=True, quiet=True)
    assert not (out / "index.csv").exists()
    assert not is_reading()
    with open(out / "index.jsonl", "a", encoding="utf-8") as file:
        file.write('{"file": "b.png", "ki')
    report = write_maps(network, [folder], out, recursive=True, quiet=True)
    assert (report.before, report.pictures) == (after, 3 - after)
    assert tree(out) == tree(tmp_path / "whole")


def test_results_of_other_settings_are_refused(network: sact.Network, folder: Path, tmp_path: Path, make_model) -> None:
    write_maps(network, [folder], tmp_path / "out", name="first", quiet=True)
    write_maps(network, [folder], tmp_path / "out", name="the same", size=48, quiet=True)
    for options, wishes, difference in (
        ({"size": 64}, Wishes(), r"size 48, but now it is 64; name another --out"),
        ({}, Wishes(("npz", "png")), r'format \["npz"\], but now it is \["npz", "png"\]'),
        ({}, Wishes(fps=2), "fps null, but now it is 2"),
    ):
        with pytest.raises(sact.InputError, match=difference):
            write_maps(network, [folder], tmp_path / "out", wishes, name="first", quiet=True, **options)
    other = make_model("resnet", seed=1, halting="sact", units=[3, 2], base_channels=4, num_classes=5)
    other.preprocessing = network.preprocessing
    with pytest.raises(sact.InputError, match='model "first", but now it is "second"'):
        write_maps(other, [folder], tmp_path / "out", name="second", quiet=True)
    with pytest.raises(sact.InputError, match='weights "'):
        write_maps(other, [folder], tmp_path / "out", name="first", quiet=True)
    network.cap = 0.9
    with pytest.raises(sact.InputError, match=r"cap null, but now it is 0\.9"):
        write_maps(network, [folder], tmp_path / "out", name="first", quiet=True)
    (tmp_path / "out/settings.json").write_text("{")
    with pytest.raises(sact.InputError, match=r"settings\.json cannot be read"):
        write_maps(network, [folder], tmp_path / "out", name="first", quiet=True)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    settings = {"weights": "a", "model": "b"}
    with (
        open_journal(tmp_path, settings),
        pytest.raises(sact.InputError, match="another process is writing"),
        open_journal(tmp_path, settings),
    ):
        pass
    with open_journal(tmp_path, settings):
        pass


def test_journal(tmp_path: Path) -> None:
    one, two = (Source(Path(name), name, kind, (3, 4)) for name, kind in (("b.png", "image"), ("a.mp4", "video")))
    journal = Journal(tmp_path)
    journal.add(one, {"flops": 5})
    for part in (0, 1, 2, 1):  # from part 1 on it was done again
        journal.add(two, {"part": part, "frames": 10 * part})
    assert [part["frames"] for part in journal.parts(two)] == [0, 10]
    journal.close(finished=False)
    (tmp_path / "index.jsonl").write_text((tmp_path / "index.jsonl").read_text() + '[]\n{"kind": 1}\n\0\0{"file": "c')
    journal = Journal(tmp_path)
    assert journal.done(one) == {"file": "b.png", "kind": "image", "flops": 5, "stamp": [3, 4]}
    assert journal.done(Source(Path("b.png"), "b.png", "image", (3, 5))) is None
    assert journal.done(two) is None
    assert [part["part"] for part in journal.parts(two)] == [0, 1]
    journal.close(finished=True)
    assert [json.loads(line)["file"] for line in (tmp_path / "index.jsonl").read_text().splitlines()] == [
        *("b.png", "a.mp4", "a.mp4")
    ]
    journal = Journal(tmp_path)
    journal.add(two, {"frames": 20})
    assert journal.parts(two) == []
    journal.close(finished=True)
    assert [row["file"] for row in read_table(tmp_path / "index.csv")] == ["a.mp4", "b.png"]


def test_what_is_found(folder: Path, tmp_path: Path) -> None:
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"")
    (folder / "clip.MP4").write_bytes(b"")
    found = find_sources([folder], tmp_path / "out")
    assert [(source.name, source.kind) for source in found] == [
        *(("a.png", "image"), ("b.png", "image"), ("clip.MP4", "video"))
    ]
    for name in ("results", "deep/out"):
        (folder / name).mkdir()
        for file in ("x.overlay.png", "settings.json", "index.jsonl"):
            (folder / name / file).write_bytes(b"")
    (folder / "deep/out/index.jsonl").unlink()
    found = find_sources([folder, folder / "a.png"], folder / "deep/out", recursive=True)
    assert [source.name for source in found] == ["a.png", "b.png", "clip.MP4", "deep/c.png"]
    assert found[0].stamp == ((folder / "a.png").stat().st_size, (folder / "a.png").stat().st_mtime_ns)


def test_what_cannot_be_found(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty/deep").mkdir(parents=True)
    (tmp_path / "empty/deep/a.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    for inputs, message in (
        ([tmp_path / "nowhere"], "there is no file or folder .*nowhere"),
        ([tmp_path / "notes.txt"], "of no kind that is read here"),
        ([tmp_path / "empty"], "holds no image, array or video; --recursive"),
        ([folder, tmp_path / "empty/deep"], "would both have results named a.png"),
        ([folder, tmp_path / "out"], "--out is .* which is the folder of the pictures"),
        ([], "nothing to read is given"),
    ):
        (tmp_path / "out").mkdir(exist_ok=True)
        with pytest.raises(sact.InputError, match=message):
            find_sources(inputs, tmp_path / "out")


def test_tiles_give_what_the_whole_picture_gives(network: sact.Network, tmp_path: Path) -> None:
    pixels = draw(200, 150)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    np.save(tmp_path / "large.npy", pixels)
    with Image.open(tmp_path / "large.png") as image:
        ponder = spend(network, image)
    options = {"size": "own", "tile": 64, "tile_above": 0.02, "quiet": True}
    report = write_maps(network, [tmp_path], tmp_path / "out", Wishes(("npz", "overlay")), **options)
    assert (report.pictures, report.problems) == (2, [])
    for name in ("large.png", "large.npy"):
        check_arrays(tmp_path / f"out/{name}.npz", ponder, (150, 200))
        with Image.open(tmp_path / f"out/{name}.overlay.png") as drawn:
            assert drawn.size == (200, 150)


def test_arrays(network: sact.Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = draw(101, 62)
    np.save(tmp_path / "a.npy", pixels)
    np.save(tmp_path / "grey.npy", pixels[..., 0])
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    tifffile.imwrite(tmp_path / "packed.tiff", pixels, compression="zlib", tile=(32, 32), photometric="rgb")
    for name, expected in (
        ("a.npy", pixels),
        ("a.tif", pixels),
        ("packed.tiff", pixels),
        ("grey.npy", pixels[..., :1]),
    ):
        assert array_size(tmp_path / name) == (62, 101)
        with open_array(tmp_path / name, tmp_path) as opened:
            assert opened.shape == (62, 101, 3)
            np.testing.assert_array_equal(opened, np.broadcast_to(expected, (62, 101, 3)))
    assert len(list(tmp_path.iterdir())) == 4
    np.save(tmp_path / "float.npy", pixels / 255)
    np.save(tmp_path / "four.npy", np.zeros((40, 40, 4), np.uint8))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:500])
    (tmp_path / "broken.tif").write_bytes(b"II*nothing")
    report = write_maps(network, [tmp_path], tmp_path / "out", quiet=True)
    assert [name for name, _ in report.problems] == ["a.npy", "broken.tif", "float.npy", "four.npy"]
    assert "cannot be read" in report.problems[0][1]
    assert "float64 [62, 101, 3]" in report.problems[2][1]
    assert report.pictures == 3


@pytest.mark.parametrize("kind", ["palette", "miniswhite", "cielab", "ycbcr"])
def test_tiffs_of_other_colours_are_refused(tmp_path: Path, kind: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels, options = draw(40, 30), {}
    if kind in ("palette", "miniswhite"):
        pixels = pixels[..., 0]
    if kind == "palette":
        options["colormap"] = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=kind, **options)
    with pytest.raises(sact.InputError, match=rf"a\.tif are of the kind {kind.upper()}, .*; convert it to RGB"):
        array_size(tmp_path / "a.tif")


def test_arrays_are_reduced_by_rows(network: sact.Network, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (47, 91, 3), dtype=np.uint8)
    small = np.asarray(reduced(pixels, 5))
    assert small.shape == (11, 22, 3)
    expected = pixels[:44, :88].reshape(11, 4, 22, 4, 3).mean((1, 3))
    np.testing.assert_allclose(small, expected, atol=0.51)
    assert reduced(pixels, 24).size == (91, 47)
    np.save(tmp_path / "a.npy", np.repeat(np.repeat(draw(), 8, 0), 8, 1))
    write_maps(network, [tmp_path / "a.npy"], tmp_path / "out", size=60, quiet=True)
    twice = Image.fromarray(np.repeat(np.repeat(draw(), 2, 0), 2, 1))
    seen = twice.resize((80, 60), Image.Resampling.BILINEAR)
    check_arrays(tmp_path / "out/a.npy.npz", spend(network, seen), (60, 80))


def test_reading_ahead() -> None:
    made: list[int] = []
    closed = threading.Event()

    def numbers(error: bool = False) -> Iterator[int]:
        try:
            for number in range(100):
                made.append(number)
                yield number
                if error and number == 3:
                    raise sact.InputError("broken")
        finally:
            closed.set()

    with reading_ahead(numbers(), 2) as items:
        assert [next(items), next(items)] == [0, 1]
    assert closed.is_set()
    assert len(made) <= 5  # two taken, two waiting, one in hand
    assert not is_reading()
    with reading_ahead(numbers(), 3) as items:
        assert list(items) == list(range(100))
    taken: list[int] = []
    with pytest.raises(sact.InputError, match="broken"), reading_ahead(numbers(error=True), 3) as items:
        taken.extend(items)
    assert taken in ([], [0, 1, 2, 3])
    assert not is_reading()


def test_batches() -> None:
    groups = batches(iter("aaabbcaa"), str, 2)
    assert ["".join(group) for group in groups] == ["aa", "a", "bb", "c", "aa"]


def test_memory_is_flat(network: sact.Network, tmp_path: Path) -> None:
    source = Image.fromarray(draw(64, 48))
    source.save(tmp_path / "000.png")
    for number in range(1, 220):
        (tmp_path / f"{number:03}.png").symlink_to(tmp_path / "000.png")
    counts: dict[int, tuple[int, int]] = {}
    add = Progress.add

    def counted(progress: Progress, spents: Any) -> None:
        add(progress, spents)
        if progress.count in (70, 220):
            gc.collect()
            tensors = sum(isinstance(each, torch.Tensor) for each in gc.get_objects())
            pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
            counts[progress.count] = tensors, pages * os.sysconf("SC_PAGE_SIZE")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "add", counted)
        write_maps(network, [tmp_path], tmp_path / "out", quiet=True)
    assert counts[220][0] == counts[70][0]
    assert counts[220][1] - counts[70][1] < 4 * 2**20  # 150 such pictures and their maps take 2.6 MB as float32 alone


def test_wishes_that_cannot_be_met() -> None:
    for options, message in (
        ({"formats": ("jpg",)}, r"formats are \['jpg'\]"),
        ({"formats": ()}, "give one or more"),
        ({"every": 0}, "every is 0"),
        ({"batch": -1}, "batch is -1"),
        ({"fps": 0.0}, "fps is 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": 2.0, "every": 2}, "choose one"),
    ):
        with pytest.raises(sact.InputError, match=message):
            Wishes(**options)


def test_the_command(network: sact.Network, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network.save_pretrained(tmp_path / "model")
    arguments = ["maps", str(folder), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*arguments, "--recursive", "--format", "npz, overlay", "--device", "cpu"]) == 0
    output, errors = capsys.readouterr()
    assert output.startswith("3 pictures, ") and "index.csv" in output
    assert errors == ""
    assert (tmp_path / "out/deep/c.png.overlay.png").is_file()
    assert main([*arguments, "--recursive", "--format", "overlay,npz", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("0 pictures; 3 files were there already")
    (folder / "bad.jpg").write_bytes(b"no picture")
    assert main([*arguments, "--recursive", "--format", "overlay,npz", "--device", "cpu"]) == 1
    assert capsys.readouterr().err.startswith("bad.jpg: ")
    for extra, message in (
        (["--device", "abacus"], '--device is "abacus"'),
        (["--format", "jpg"], "formats are"),
        (["--size", "8"], "size is 8"),
        (["--every", "0"], "every is 0"),
        (["--tile", "8"], "tile is 8"),
        (["--budget", "0.5"], "calibrat"),
    ):
        assert main([*arguments, *extra]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--size", "large"])
    assert "neither a number" in capsys.readouterr().err


def test_interrupted_on_the_command_line(
    network: sact.Network, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    network.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(images, "write_picture", interrupt)
    assert main(["maps", str(folder), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]) == 130

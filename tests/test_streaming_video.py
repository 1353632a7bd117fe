"""`sact maps` of videos: frames, parts, going on in the middle, and what is damaged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streamed import draw, read_table, spend, tree

import sact
from sact.streaming import encoding, films
from sact.streaming.measuring import Meter
from sact.streaming.progress import Progress
from sact.streaming.run import write_maps
from sact.streaming.video import Mark, open_video
from sact.streaming.work import Wishes
from sact.streaming.writing import draw as draw_frame

av = pytest.importorskip("av", reason="PyAV is not installed")
if encoding.encoder() is None:
    pytest.skip("PyAV has no encoder for videos here", allow_module_level=True)

RATE, FRAMES, SIZE = 10, 24, (64, 48)
SEVEN = Wishes(("npz", "png", "overlay"), frames_per_file=7)


def write_video(path: Path, count: int = FRAMES, turn: int = 0, **options: str) -> Path:
    """Noise that moves over grey, with a key frame every eight."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(encoding.encoder(), rate=RATE, options={"g": "8", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        if turn:
            stream.set_display_rotation(turn)
        for number in range(count):
            pixels = np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)
            pixels[8:32, number : number + 24] = draw(48, 24, number)[:, :24]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4")


@pytest.fixture
def network(make_model) -> sact.Network:
    model = make_model("resnet", halting="sact", units=[3, 2], base_channels=4, num_classes=5)
    model.preprocessing = {"name": "scenes", "size": 48}
    return model


def test_the_bar_ends_full(network: sact.Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that are seconds apart are far fewer than the rate says; a picture beside them counts as well."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream(encoding.encoder(), rate=25)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, milliseconds in enumerate((0, 40, 80, 2000, 2040, 5000)):
            frame = av.VideoFrame.from_ndarray(draw(*SIZE, number))
            frame.pts, frame.time_base = milliseconds, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with open_video(tmp_path / "a.mkv") as opened:
        assert opened.count > 100
    Image.fromarray(draw(*SIZE)).save(tmp_path / "b.png")
    bars: list[Progress] = []
    monkeypatch.setattr(Progress, "close", lambda progress: bars.append(progress))
    assert write_maps(network, [tmp_path], tmp_path / "out").pictures == 7
    assert bars[0]._bar.total == 7


def decoded(path: Path) -> list[Image.Image]:
    with av.open(str(path)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


def test_what_is_written(network: sact.Network, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = write_maps(network, [video], out, SEVEN, quiet=True)
    assert (report.pictures, report.problems) == (FRAMES, [])
    parts = [f"frames_{part:06}.npz" for part in range(4)]
    assert sorted(path.name for path in (out / "clip.mp4").iterdir()) == [
        "frames.csv",
        *parts,
        "map.mp4",
        "overlay.mp4",
    ]
    ponders = [spend(network, picture) for picture in decoded(video)]
    loaded = [dict(np.load(out / "clip.mp4" / name)) for name in parts]
    assert [len(arrays["map"]) for arrays in loaded] == [7, 7, 7, 3]
    assert {name: array.dtype.name for name, array in loaded[0].items()} == {
        "frame": "int64",
        "time": "float64",
        "size": "int32",
        "flops": "int64",
        "dense_flops": "int64",
        "map": "float16",
        "block1_units": "uint8",
        "block2_units": "uint8",
    }
    joined = {name: np.concatenate([arrays[name] for arrays in loaded]) for name in ("frame", "time", "flops", "map")}
    np.testing.assert_array_equal(joined["frame"], np.arange(FRAMES))
    np.testing.assert_allclose(joined["time"], np.arange(FRAMES) / RATE)
    assert joined["flops"].tolist() == [int(ponder.flops[0]) for ponder in ponders]
    np.testing.assert_allclose(joined["map"], np.stack([ponder.map((12, 16))[0] for ponder in ponders]), rtol=1e-3)
    np.testing.assert_array_equal(loaded[3]["block2_units"][2], ponders[-1].blocks[1].units[0])
    rows = read_table(out / "clip.mp4/frames.csv")
    assert [int(row["flops"]) for row in rows] == joined["flops"].tolist()
    assert [float(row["time"]) for row in rows] == [number / RATE for number in range(FRAMES)]
    (whole,) = read_table(out / "index.csv")
    assert (whole["kind"], whole["width"], whole["height"], whole["frames"]) == ("video", "64", "48", "24")
    assert int(whole["flops"]) == round(joined["flops"].mean())
    assert float(whole["share"]) == pytest.approx(joined["flops"].mean() / ponders[0].dense_flops)


def test_drawn_videos(network: sact.Network, video: Path, tmp_path: Path) -> None:
    write_maps(network, [video], tmp_path / "out", SEVEN, quiet=True)
    for name in ("map", "overlay"):
        with av.open(str(tmp_path / f"out/clip.mp4/{name}.mp4")) as container:
            assert container.streams.video[0].average_rate == RATE
            frames = list(container.decode(video=0))
        assert [frame.time for frame in frames] == pytest.approx([number / RATE for number in range(FRAMES)])
        assert (frames[0].width, frames[0].height) == SIZE
    pictures = decoded(video)
    meter = Meter(network)
    for kind, name in (("png", "map"), ("overlay", "overlay")):
        drawn = decoded(tmp_path / f"out/clip.mp4/{name}.mp4")
        for number in (0, 6, 7, 23):
            expected = draw_frame(kind, pictures[number], *meter([pictures[number]]), meter.scale)
            differences = [np.abs(np.asarray(expected, int) - np.asarray(picture, int)).mean() for picture in drawn]
            assert differences[number] < 6
            assert name == "map" or int(np.argmin(differences)) == number


def test_some_frames(network: sact.Network, video: Path, tmp_path: Path) -> None:
    for options, numbers, rate in (
        ({"every": 5}, [0, 5, 10, 15, 20], 2),
        ({"fps": 4.0}, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23], 4),
        ({"fps": 50.0}, list(range(FRAMES)), 10),
    ):
        with open_video(video, **options) as opened:
            assert opened.rate == rate
            assert opened.count == len(numbers)
            assert [mark.number for mark, _ in opened.frames()] == numbers
            assert opened.problem == ""
        with open_video(video, **options) as opened:
            mark = Mark(numbers[2], numbers[2] / RATE, None)
            assert [mark.number for mark, _ in opened.frames(mark)] == numbers[3:]
    write_maps(network, [video], tmp_path / "out", Wishes(("npz", "overlay"), every=5), quiet=True)
    assert len(decoded(tmp_path / "out/clip.mp4/overlay.mp4")) == 5


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_reading_goes_on_behind_a_frame(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name)
    with open_video(path) as opened:
        frames = list(opened.frames())
        assert opened.problem == ""
    assert len(frames) == FRAMES
    for number in (0, 7, 8, 13, 22, 23):
        with open_video(path) as opened:
            rest = list(opened.frames(frames[number][0]))
        assert [mark for mark, _ in rest] == [mark for mark, _ in frames[number + 1 :]]
        for (_, picture), (_, expected) in zip(rest, frames[number + 1 :], strict=True):
            assert picture.tobytes() == expected.tobytes()
    lost = Mark(13, 1.3, 7_000_001)  # a stamp that no frame has
    with open_video(path) as opened:
        assert [mark.number for mark, _ in opened.frames(lost)] == list(range(14, FRAMES))


@pytest.mark.parametrize("after", [0, 7, 16, 21])
def test_an_interrupted_video_ends_like_one_that_was_not(
    network: sact.Network, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    write_maps(network, [video], tmp_path / "whole", SEVEN, quiet=True)
    draw, drawn = films.draw, []

    def interrupted(*arguments: Any) -> Image.Image:
        drawn.append(arguments)
        if len(drawn) > 2 * after:  # a map and an overlay of each
            raise KeyboardInterrupt
        return draw(*arguments)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(films, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_maps(network, [video], out, SEVEN, quiet=True)
    assert len(list(out.glob("clip.mp4/frames_*.npz"))) == after // 7
    assert not (out / "clip.mp4/overlay.mp4").exists()
    (out / "clip.mp4/overlay_000003.mp4").write_bytes(b"half")
    report = write_maps(network, [video], out, SEVEN, quiet=True)
    assert report.pictures == FRAMES - after // 7 * 7
    assert tree(out) == tree(tmp_path / "whole")
    assert write_maps(network, [video], out, SEVEN, quiet=True).pictures == 0


def test_interrupted_while_the_parts_are_joined(
    network: sact.Network, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    write_maps(network, [video], tmp_path / "whole", SEVEN, quiet=True)
    for function in ("join", "remove_segments"):
        with monkeypatch.context() as patch:
            patch.setattr(films, function, interrupted)
            with pytest.raises(KeyboardInterrupt):
                write_maps(network, [video], out, SEVEN, quiet=True)
    assert len(list(out.glob("clip.mp4/overlay_*.mp4"))) == 4
    assert write_maps(network, [video], out, SEVEN, quiet=True).pictures == 0
    assert tree(out) == tree(tmp_path / "whole")
    (out / "clip.mp4/frames_000002.npz").unlink()
    assert write_maps(network, [video], out, SEVEN, quiet=True).pictures == FRAMES
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process_is_no_loss(network: sact.Network, video: Path, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path / "model")
    wishes = Wishes(("npz", "overlay"), frames_per_file=2)
    write_maps(network, [video], tmp_path / "whole", wishes, name=str(tmp_path / "model"), quiet=True)
    out = tmp_path / "out"
    command = [Path(sys.executable).with_name("sact"), "maps", video, "--model", tmp_path / "model", "--out", out]
    command += ["--format", "npz,overlay", "--frames-per-file", "2", "--quiet", "--device", "cpu"]
    for files in (1, 4, 9):
        process = subprocess.Popen(command)
        while len(list(out.glob("clip.mp4/frames_*.npz"))) < files:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True)
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_a_video_that_is_cut_short(network: sact.Network, tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, **({"movflags": "faststart"} if name == "clip.mp4" else {}))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    report = write_maps(network, [path], tmp_path / "out", Wishes(frames_per_file=4), quiet=True)
    with av.open(str(path)) as container:
        packets = sum(packet.size > 0 for packet in container.demux(video=0))
    assert packets - 1 <= report.pictures <= packets < FRAMES - 5  # the last one may be torn
    ((file, problem),) = report.problems
    assert file == name
    rows = read_table(tmp_path / f"out/{name}/frames.csv")
    assert problem.endswith(f"cut short: its last frame is at {float(rows[-1]['time']):.2f} s of 2.40 s")
    assert len(rows) == report.pictures
    assert read_table(tmp_path / "out/index.csv")[0]["problem"] == problem
    again = write_maps(network, [path], tmp_path / "out", Wishes(frames_per_file=4), quiet=True)
    assert (again.pictures, again.before, again.problems) == (0, 1, report.problems)


def test_a_damaged_video(network: sact.Network, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with av.open(str(video)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(video.read_bytes())
    for number in (9, 10, 11):
        position, size = packets[number]
        content[position + 5 : position + size] = bytes([255]) * (size - 5)
    video.write_bytes(content)
    wishes = Wishes(frames_per_file=4)
    report = write_maps(network, [video], tmp_path / "whole", wishes, quiet=True)
    assert report.pictures >= FRAMES - 8
    ((_, problem),) = report.problems
    assert problem.startswith("damaged at ") and "could not be decoded" in problem
    assert 0.5 <= float(problem.split("damaged at ")[1].split(" s")[0]) <= 1.3
    save, saved = films.save_arrays, []

    def interrupted(*arguments: Any) -> None:
        saved.append(arguments)
        if len(saved) == 4:
            raise KeyboardInterrupt
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(films, "save_arrays", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_maps(network, [video], tmp_path / "out", wishes, quiet=True)
    assert write_maps(network, [video], tmp_path / "out", wishes, quiet=True).problems == report.problems
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_no_videos(network: sact.Network, video: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "headless.mp4").write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    names = ["headless.mp4", "sound.mkv", "text.mp4"]
    report = write_maps(network, [tmp_path / name for name in names], tmp_path / "out", quiet=True)
    assert [name for name, _ in report.problems] == names
    for (_, problem), part in zip(report.problems, ("it was cut short", "sound alone", "is no video"), strict=True):
        assert part in problem
    assert list((tmp_path / "out").glob("**/*.npz")) == []


def test_phones_turn_their_videos(tmp_path: Path) -> None:
    upright, turned = write_video(tmp_path / "a.mp4", 2), write_video(tmp_path / "b.mp4", 2, turn=90)
    with open_video(turned) as opened:
        pictures = [picture for _, picture in opened.frames()]
    assert pictures[0].size == (48, 64)
    # av_display_rotation_set: counter-clockwise.
    np.testing.assert_array_equal(np.asarray(pictures[1]), np.rot90(np.asarray(decoded(upright)[1])))


def test_videos_with_sound_that_is_longer(tmp_path: Path) -> None:
    path = tmp_path / "long.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoding.encoder(), rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=8000)
        for number in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw(64, 48, number))))
        container.mux(stream.encode(None))
        for number in range(30):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            samples.rate, samples.pts, samples.time_base = 8000, 800 * number, Fraction(1, 8000)
            container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    with open_video(path) as opened:
        assert len(list(opened.frames())) == 4
        assert opened.problem == ""


def test_without_an_encoder(
    network: sact.Network, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sact.streaming.run as streaming_run

    for module in (films, streaming_run):
        monkeypatch.setattr(module, "encoder", lambda: None)
    with pytest.warns(UserWarning, match="overlay of videos are left out"):
        write_maps(network, [video], tmp_path / "out", Wishes(("npz", "overlay")), quiet=True)
    assert {path.name for path in (tmp_path / "out/clip.mp4").iterdir()} == {"frames.csv", "frames_000000.npz"}
    with pytest.raises(sact.InputError, match="no encoder"):
        write_maps(network, [video], tmp_path / "other", Wishes(("overlay",)), quiet=True)


def test_without_the_extra(network: sact.Network, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(sact.MissingExtraError, match=r"sact\[video\]"):
        write_maps(network, [video], tmp_path / "out", quiet=True)


def test_another_video_of_the_same_name(network: sact.Network, video: Path, tmp_path: Path) -> None:
    write_maps(network, [video], tmp_path / "out", SEVEN, quiet=True)
    write_video(video, 9)
    os.utime(video, ns=(5, 5))
    assert write_maps(network, [video], tmp_path / "out", SEVEN, quiet=True).pictures == 9
    assert len(list((tmp_path / "out/clip.mp4").glob("frames_*.npz"))) == 2
    assert read_table(tmp_path / "out/index.csv")[0]["frames"] == "9"

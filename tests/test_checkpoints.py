"""`sact.checkpoints`: what is saved comes back, what is damaged is named, and nothing is unpickled."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub.utils import RepositoryNotFoundError
from PIL import Image
from torch import Tensor

import sact
from sact import checkpoints, files
from sact.checkpoints import read_metadata

NETWORK = {"units": [3, 2], "base_channels": 4, "num_classes": 5}


@pytest.fixture
def folder(make_model, tmp_path: Path) -> Path:
    """A saved SACT network."""
    make_model("cifar_resnet", halting="sact", **NETWORK).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edit_config(folder: Path, **changes) -> None:
    path = folder / checkpoints.CONFIG_NAME
    config = json.loads(path.read_text())
    config["network"] |= changes
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("options", [{}, {"eps": 0.2, "in_channels": 1}, {"features_only": True}])
@pytest.mark.parametrize("kind", ["none", "act", "sact"])
@pytest.mark.parametrize("name", ["resnet", "cifar_resnet"])
def test_round_trip_is_bit_for_bit(make_model, tmp_path: Path, name: str, kind: str, options: dict) -> None:
    model = make_model(name, halting=kind, **NETWORK, **options)
    model.preprocessing = {"name": "cifar_sact", "size": 32}
    model.class_names = ["a", "b", "ç", "d", "e"]
    model.save_pretrained(tmp_path / "new" / "folder", accuracy=0.5, note="é")
    loaded = sact.from_pretrained(tmp_path / "new" / "folder")
    assert loaded.config == model.config
    assert (loaded.preprocessing, loaded.class_names) == (model.preprocessing, model.class_names)
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
    images = torch.randn(2, model.config.in_channels, 32, 32)
    with torch.no_grad():
        for ours, theirs in zip(loaded(images), model(images), strict=True):
            assert torch.equal(ours, theirs)
    assert checkpoints.read_config(tmp_path / "new" / "folder")["metadata"] == {"accuracy": 0.5, "note": "é"}
    written = sorted(p.name for p in (tmp_path / "new" / "folder").iterdir())
    assert written == ["README.md", "config.json", "model.safetensors"]


def test_saving_accepts_other_layouts(make_model, tmp_path: Path) -> None:
    model = make_model("cifar_resnet", halting="sact", **NETWORK).to(memory_format=torch.channels_last)
    model.save_pretrained(tmp_path)
    weights = sact.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["act", "sact"])
def test_plain_weights_start_an_adaptive_network_with_fresh_heads(make_model, tmp_path: Path, kind: str) -> None:
    plain = make_model("resnet", **NETWORK)
    plain.save_pretrained(tmp_path)
    adaptive = sact.from_pretrained(tmp_path, halting=kind, eps=0.05)
    assert (adaptive.config.halting, adaptive.config.eps) == (kind, 0.05)
    assert all(torch.equal(adaptive.state_dict()[key], value) for key, value in plain.state_dict().items())
    conv = "global_conv" if kind == "act" else "local_conv"
    assert [getattr(head, conv).bias.item() for block in adaptive.blocks for head in block.scores] == [-3.0] * 3
    assert len(adaptive.score_parameters()) > 0
    images = torch.randn(2, 3, 32, 32)
    force = {name: value for name, value in adaptive.named_parameters() if name.endswith(f"{conv}.bias")}
    with torch.no_grad():
        for bias in force.values():
            bias.fill_(-100)  # never halts: the plain network
        torch.testing.assert_close(adaptive(images), plain(images))


@pytest.mark.parametrize("kind", ["none", "act"])
def test_another_kind_leaves_the_saved_heads_out(folder: Path, kind: str) -> None:
    saved, other = sact.from_pretrained(folder), sact.from_pretrained(folder, halting=kind)
    assert other.config.halting == kind
    shared = {key: value for key, value in saved.state_dict().items() if "score" not in key}
    assert all(torch.equal(other.state_dict()[key], value) for key, value in shared.items())
    assert bool(other.score_parameters()) == (kind == "act")


@pytest.mark.parametrize("halting", [None, "none"])
@pytest.mark.parametrize("name", ["resnet", "cifar_resnet"])
def test_a_classifier_becomes_a_backbone(make_model, tmp_path: Path, name: str, halting: str | None) -> None:
    classifier = make_model(name, halting="sact", **NETWORK)
    classifier.save_pretrained(tmp_path / "classifier")
    backbone = sact.from_pretrained(tmp_path / "classifier", halting=halting, features_only=True)
    assert backbone.config.features_only
    weights = classifier.state_dict()
    left_out = {key.split(".")[0] for key in weights.keys() - backbone.state_dict().keys() if "score" not in key}
    assert left_out == {"head", "classifier"}
    assert all(torch.equal(weights[key], value) for key, value in backbone.state_dict().items())
    backbone.save_pretrained(tmp_path / "backbone")
    images = torch.randn(2, 3, 40, 32)
    again = sact.from_pretrained(tmp_path / "backbone", features_only=True)
    with torch.no_grad():
        features = backbone(images)
        assert len(features) == len(NETWORK["units"])
        for found in (again(images), sact.from_pretrained(tmp_path / "backbone")(images)):
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, features, strict=True))
        if halting is None:
            torch.testing.assert_close(
                classifier.classifier(classifier.head(features[-1])).flatten(1), classifier(images)
            )


def test_a_backbone_does_not_become_a_classifier(make_model, tmp_path: Path, folder: Path) -> None:
    make_model("resnet", features_only=True, **NETWORK).save_pretrained(tmp_path / "backbone")
    with pytest.raises(sact.CheckpointError, match="saved without a classifier; leave out features_only=False"):
        sact.from_pretrained(tmp_path / "backbone", features_only=False)
    assert sact.from_pretrained(folder, features_only=False).classifier is not None


@pytest.mark.parametrize(("options", "message"), [({"halting": "spatial"}, '"spatial"'), ({"eps": 1.5}, "eps is 1.5")])
def test_overrides_out_of_range_are_not_the_checkpoints_fault(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(sact.InputError, match=message):
        sact.from_pretrained(folder, **options)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), Interrupted(), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_while_writing_leaves_the_old_file_whole(
    tmp_path: Path, failure: BaseException, existing: bool
) -> None:
    path = tmp_path / "weights"
    if existing:
        path.write_bytes(b"old")

    def write() -> None:
        with files.replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise failure

    with pytest.raises(type(failure)):
        write()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == ([("weights", b"old")] if existing else [])


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), safetensors.SafetensorError("I/O error: no space left")]
)
def test_a_full_disk_is_a_checkpoint_error(
    make_model, folder: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(tensors: dict[str, Tensor], path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise failure

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(sact.CheckpointError, match=r"no space left|No space left"):
        make_model("cifar_resnet", **NETWORK).save_pretrained(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_class_names_that_are_not_json(make_model, tmp_path: Path) -> None:
    model = make_model("cifar_resnet", **NETWORK)
    model.class_names = {"a", "b"}
    with pytest.raises(sact.InputError, match="set is not JSON"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_metadata_that_is_not_json_changes_nothing(make_model, folder: Path) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(sact.InputError, match="Tensor is not JSON"):
        make_model("cifar_resnet", **NETWORK).save_pretrained(folder, accuracy=torch.tensor(1))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_written_file_has_ordinary_permissions(folder: Path) -> None:
    plain = folder / "plain"
    plain.write_text("")
    assert {p.stat().st_mode for p in folder.iterdir()} == {plain.stat().st_mode}


def test_a_folder_that_is_a_file(make_model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(sact.CheckpointError, match="file"):
        make_model("cifar_resnet", **NETWORK).save_pretrained(tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"config\.json cannot be read"),
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        ("[]", "no description of a sact network"),
        ('{"network": 3}', "no description of a sact network"),
        ('{"network": {}}', "format None"),
        ('{"format": 99, "network": {}}', "format 99"),
        ('{"format": 1, "network": {}}', "units"),
        ('{"format": 1, "network": {"units": 3, "family": "resnet"}}', "does not describe"),
    ],
)
def test_missing_or_garbage_configuration(folder: Path, text: str | bytes | None, message: str) -> None:
    path = folder / checkpoints.CONFIG_NAME
    path.unlink() if text is None else path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(sact.CheckpointError, match=message) as caught:
        sact.from_pretrained(folder)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": ["a"]}, "units is"),
        ({"units": [0]}, r"units is \[0\]"),
        ({"base_channels": "wide"}, "base_channels is wide"),
        ({"num_classes": None}, "num_classes is None"),
        ({"halting": "often"}, '"often"'),
        ({"family": "vgg"}, '"vgg"'),
        ({"eps": "x"}, "eps is x"),
        ({"colour": 1}, "colour"),
    ],
)
def test_configurations_that_describe_no_network(folder: Path, change: dict, message: str) -> None:
    edit_config(folder, **change)
    with pytest.raises(sact.CheckpointError, match=message):
        sact.from_pretrained(folder)


@pytest.mark.parametrize("kept", [0, 5, 100, -1], ids=["empty", "no header", "part of the header", "one byte short"])
def test_truncated_weights(folder: Path, kept: int) -> None:
    path = folder / checkpoints.WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(sact.CheckpointError, match=r"model\.safetensors cannot be read"):
        sact.from_pretrained(folder)


def test_missing_weights(folder: Path) -> None:
    (folder / checkpoints.WEIGHTS_NAME).unlink()
    with pytest.raises(sact.CheckpointError, match=r"model\.safetensors cannot be read"):
        sact.from_pretrained(folder)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: Path(path).write_bytes(pickle.dumps(value))])
def test_nothing_is_unpickled(folder: Path, tmp_path: Path, write) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    path = folder / checkpoints.WEIGHTS_NAME
    write({"weight": Bomb()}, path)
    with pytest.raises(sact.CheckpointError, match=r"model\.safetensors cannot be read"):
        sact.from_pretrained(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"units": [3, 1]}, r"blocks\.1\.(units\.1|scores\.0)\..* is unexpected \(and \d+ more\)"),
        ({"units": [3, 3]}, r"blocks\.1\.units\.2\..* is missing \(and \d+ more\)"),
        ({"num_classes": 7}, r"classifier\..* has shape \[5.*instead of \[7"),
        ({"base_channels": 5}, r"has shape \[4.*instead of \[5"),
        ({"family": "resnet"}, r"is missing"),
    ],
)
def test_weights_of_another_network_are_named(folder: Path, other: dict, message: str) -> None:
    edit_config(folder, **other)
    with pytest.raises(sact.CheckpointError, match=message) as caught:
        sact.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_loading_is_all_or_nothing(make_model) -> None:
    model = make_model("cifar_resnet", **NETWORK)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tensors = {key: value + 1 for key, value in before.items()}
    del tensors["classifier.bias"]
    with pytest.raises(sact.CheckpointError, match=r"classifier\.bias is missing"):
        checkpoints.load_weights(model, tensors, "somewhere")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_hub_ids_are_downloaded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot_download(hub_id: str, allow_patterns: list[str]) -> str:
        asked.append((hub_id, allow_patterns))
        return shutil.copytree(folder, tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    loaded = sact.from_pretrained("someone/sact-small")
    assert asked == [("someone/sact-small", ["config.json", "model.safetensors"])]
    assert torch.equal(loaded.classifier.weight, sact.from_pretrained(folder).classifier.weight)


@pytest.mark.parametrize("error", [OSError("offline\nlong story"), ValueError("not a repo"), OSError()])
def test_hub_failures(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(sact.CheckpointError, match=r'"someone/nothing".*(offline|not a repo|OSError)') as caught:
        sact.from_pretrained("someone/nothing")
    assert "\n" not in str(caught.value)


def test_a_repository_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args, **kwargs):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        sact.CheckpointError, match='"someone/nothing" .*no such repository, or it is private.*check the'
    ):
        sact.from_pretrained("someone/nothing")


def test_a_hub_id_without_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the hub's own code, which is told that it is offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(sact.CheckpointError, match=r'"someone/nothing" is neither.*no connection download it before'):
        sact.from_pretrained("someone/nothing")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "weights.pkl", "W.PTH"])
def test_pickles_are_refused_with_the_safe_way(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args, **kwargs):
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr(pickle, "load", fail)
    (folder / name).write_bytes(pickle.dumps({"weight": 1}))
    assert sact.from_pretrained(folder).config.halting == "sact"  # what lies beside safetensors is of no interest
    (folder / "model.safetensors").unlink()
    for source in (folder, folder / name, str(folder / name)):
        with pytest.raises(
            sact.CheckpointError, match=r"weights_only=True.*load_state_dict.*save_pretrained"
        ) as caught:
            sact.from_pretrained(source)
        assert str(caught.value).startswith(f"{folder / name} is a pickle")


def test_a_run_and_a_file_are_not_the_folder_to_name(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run" / "model")
    (tmp_path / "run" / "last.ckpt").write_bytes(b"")
    with pytest.raises(sact.CheckpointError, match=r"run is a run of sact train; its network is in .*run/model"):
        sact.from_pretrained(tmp_path / "run")
    with pytest.raises(sact.CheckpointError, match=r"model\.safetensors is a file; name the folder"):
        sact.from_pretrained(folder / "model.safetensors")


@pytest.mark.parametrize("source", ["no_such_network", "/no/such/folder", "./no/such", "../nothing"])
def test_sources_that_do_not_exist(source: str) -> None:
    with pytest.raises(sact.CheckpointError, match=f'no checkpoint "{source}"'):
        sact.from_pretrained(source)


def test_packaged_networks_load() -> None:
    for name in sact.list_pretrained():
        assert isinstance(sact.from_pretrained(name), sact.AdaptiveNetwork)


def test_push_to_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Api:
        def create_repo(self, *args, **kwargs) -> None:
            calls.append(("create", args, kwargs))

        def upload_folder(self, **kwargs) -> str:
            calls.append(("upload", kwargs))
            return "https://hub/someone/net"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert sact.push_to_hub(folder, "someone/net") == "https://hub/someone/net"
    shared = ["config.json", "model.safetensors", "README.md", "ponder.png"]
    upload = {"repo_id": "someone/net", "folder_path": str(folder), "allow_patterns": shared}
    assert calls == [("create", ("someone/net",), {"exist_ok": True}), ("upload", upload)]
    calls.clear()
    for wrong in ("net", "/net", "someone/"):
        with pytest.raises(sact.InputError, match=f'"{wrong}"'):
            sact.push_to_hub(folder, wrong)
    with pytest.raises(sact.InputError, match="its own metadata"):
        sact.push_to_hub(folder, "someone/net", accuracy=1)
    with pytest.raises(sact.CheckpointError, match=r"config\.json cannot be read"):
        sact.push_to_hub(tmp_path, "someone/net")
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(sact.CheckpointError, match=r"weights\.pt is a pickle"):
        sact.push_to_hub(tmp_path, "someone/net")
    assert not calls


def test_push_a_network_to_the_hub(make_model, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded = {}

    class Api:
        def create_repo(self, *args, **kwargs) -> None: ...

        def upload_folder(self, repo_id: str, folder_path: str, allow_patterns: list[str]) -> str:
            uploaded.update({file.name: file.read_bytes() for file in Path(folder_path).iterdir()})
            uploaded["model"] = sact.from_pretrained(folder_path)
            uploaded["folder"] = Path(folder_path)
            return "https://hub/someone/net"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model = make_model("cifar_resnet", halting="sact", **NETWORK)
    address = sact.push_to_hub(model, "someone/net", picture=Image.new("RGB", (2, 2)), licence="MIT")
    assert address == "https://hub/someone/net"
    assert torch.equal(uploaded["model"].classifier.weight, model.classifier.weight)
    assert json.loads(uploaded["config.json"])["metadata"] == {"licence": "MIT"}
    assert b"license: mit" in uploaded["README.md"] and b"](ponder.png)" in uploaded["README.md"]
    assert "ponder.png" in uploaded
    assert not uploaded["folder"].exists()


@pytest.mark.parametrize("error", [OSError("no route\nlong story"), ValueError("bad name"), RuntimeError("client")])
def test_uploads_that_fail(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Api:
        def create_repo(self, *args, **kwargs) -> None:
            raise error

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(
        sact.CheckpointError, match=r'"someone/net" could not be uploaded \((no route|bad name|client)\)'
    ):
        sact.push_to_hub(folder, "someone/net")


def test_packaged_network_is_the_study_s() -> None:
    """The weights that ship are small, load by name, and carry the numbers of the study's table."""
    name = "scenes"
    folder = Path(sact.__file__).parent / "weights" / name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 4_000_000
    model, metadata = sact.from_pretrained(name), read_metadata(name)
    assert model.config.halting == "sact"
    assert len(model.class_names) == model.config.num_classes
    with open(Path(__file__).parents[1] / "docs" / "study" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    results = metadata["results"]
    assert [row["halting"] for row in rows if float(row["top1"]) == results["top1"]].count("sact") == 1
    assert any(float(row["flops"]) == results["flops"] for row in rows)
    assert str(Path.home()) not in (folder / "config.json").read_text()

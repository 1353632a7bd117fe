"""`sact.timm_models`: the networks in timm give what the library's own give, and what is built on timm runs on them."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import timm.optim
import torch
from conftest import NATIVE
from torch import nn

import sact
from sact.models.registry import CONFIGS
from sact.timm_models import TimmNetwork

SMALL = {"units": [2, 1, 3], "base_channels": 8, "num_classes": 7}
FAMILIES = {"resnet": "sact_resnet50", "cifar_resnet": "sact_cifar_resnet20"}
DOCS = Path(__file__).parents[1] / "docs" / "timm.md"


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 40)


def create(family: str = "resnet", **options) -> nn.Module:
    return timm.create_model(FAMILIES[family], **(SMALL | options)).eval()


def test_every_network_is_listed_with_its_defaults() -> None:
    names = timm.list_models("sact_*")
    assert sorted(names) == sorted(f"sact_{name}" for name in sact.list_models())
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name)
        config = CONFIGS[name.removeprefix("sact_")]
        assert model.default_cfg["architecture"] == name
        assert model.num_classes == config.num_classes == model.default_cfg["num_classes"]
        assert model.backbone.config == replace(config, halting="sact", features_only=True)


def test_importing_both_registers() -> None:
    program = "import timm, sact; print(timm.is_model('sact_resnet50'))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True"]


def test_a_missing_timm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sact.timm_models", "sact.timm_network"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "timm.models", None)
    with pytest.raises(sact.MissingExtraError, match=r"pip install 'sact\[timm\]'"):
        importlib.import_module("sact.timm_models")


@pytest.mark.parametrize("halting", ["none", "act", "sact"])
@pytest.mark.parametrize("family", FAMILIES)
def test_results_are_the_library_s_own(make_model, images, family: str, halting: str) -> None:
    network = make_model(family, halting=halting, **SMALL)
    model = TimmNetwork(network).eval()
    logits, ponder = model(images, return_ponder=True)
    expected, spent = network(images, return_ponder=True)
    assert torch.equal(logits, expected)
    assert torch.equal(ponder.flops, spent.flops)
    assert ponder.dense_flops == spent.dense_flops
    assert model.ponder is ponder
    if halting == "none":
        assert ponder.cost is None
    else:
        assert torch.equal(ponder.cost, spent.cost)
        assert ponder.cost.std() > 0
    assert torch.equal(model.forward_head(model.forward_features(images)), expected)
    assert network.head is not None  # the given network is not taken apart
    assert torch.equal(network(images), expected)


@pytest.mark.parametrize("halting", ["none", "sact"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_go_both_ways(make_model, images, tmp_path: Path, family: str, halting: str) -> None:
    network = make_model(family, halting=halting, **SMALL)
    network.preprocessing = {"name": "scenes", "size": 64}
    network.save_pretrained(tmp_path)
    weights = str(tmp_path / "model.safetensors")
    model = create(family, halting=halting, checkpoint_path=weights)
    assert torch.equal(model(images), network(images))
    back = TimmNetwork(network).to_network()
    assert (back.config, back.preprocessing) == (network.config, network.preprocessing)
    assert torch.equal(back.eval()(images), network(images))
    same = create(family, halting=halting)
    same.load_state_dict(model.state_dict())
    assert torch.equal(same(images), network(images))


def test_pretrained_weights_of_other_channels_and_classes(make_model, images, tmp_path: Path) -> None:
    network = make_model("resnet", halting="sact", **SMALL)
    network.save_pretrained(tmp_path)
    cfg = {"file": str(tmp_path / "model.safetensors"), "num_classes": SMALL["num_classes"]}
    other = create(pretrained=True, pretrained_cfg_overlay=cfg, num_classes=4, in_chans=1)
    assert other.classifier.out_channels == 4
    summed = network.stem.conv.weight.sum(1, keepdim=True)
    torch.testing.assert_close(other.backbone.stem.conv.weight, summed)
    assert torch.equal(other.backbone.blocks[2].units[0].branch[0].weight, network.blocks[2].units[0].branch[0].weight)
    features = create(pretrained=True, pretrained_cfg_overlay=cfg, features_only=True)(images)
    backbone = sact.from_pretrained(tmp_path, features_only=True)
    assert all(torch.equal(*pair) for pair in zip(features[1:], backbone(images), strict=True))
    with pytest.raises(RuntimeError, match="No pretrained weights exist for sact_resnet50"):
        create(pretrained=True)


@pytest.mark.parametrize("feature_cls", [None, "getter"])
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_that_are_described(images, family: str, feature_cls: str | None) -> None:
    backbone = create(family, features_only=True, feature_cls=feature_cls)
    info = backbone.feature_info
    assert info.reduction() == ([2, 4, 8, 16] if family == "resnet" else [1, 2, 4])
    features = backbone(images)
    modules = dict(backbone.model.named_modules())
    for feature, channels, reduction, name in zip(
        features, info.channels(), info.reduction(), info.module_name(), strict=True
    ):
        assert feature.shape == (2, channels, 64 // reduction, -(-40 // reduction))
        assert name in modules
    assert len(backbone.model.ponder.blocks) == len(SMALL["units"])
    assert backbone.model.ponder.cost.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_feature_values(make_model, images, family: str) -> None:
    model = TimmNetwork(make_model(family, halting="sact", **SMALL)).eval()
    own = model.backbone(images)
    final, features = model.forward_intermediates(images)
    assert torch.equal(final, model.forward_features(images))
    assert all(torch.equal(*pair) for pair in zip(features[-3:], own, strict=True))
    if family == "resnet":
        assert torch.equal(features[0], model.backbone.stem.conv(images))
        normed = model.forward_intermediates(images, norm=True, intermediates_only=True)
        assert torch.equal(normed[-1], final)
        assert not torch.equal(final, own[-1])
    assert torch.equal(model.forward_intermediates(images, 1, intermediates_only=True)[0], own[-1])


@pytest.mark.parametrize("indices", [(0,), (1, 2), (2, -4), 2])
def test_blocks_that_no_feature_needs_are_left_out(make_model, images, indices) -> None:
    network = make_model("resnet", halting="sact", **SMALL)
    model = TimmNetwork(network).eval()
    wanted = model.forward_intermediates(images, indices, intermediates_only=True)
    kept = model.prune_intermediate_layers(indices)
    found = model.forward_intermediates(images, kept, intermediates_only=True)
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
    assert len(model.ponder.blocks) == len(model.backbone.blocks) == max(max(kept), 1)
    assert model.num_features == model(images).shape[1] == network.feature_channels[len(model.backbone.blocks) - 1]
    assert model.num_classes == 0
    assert model.to_network().config.features_only


def test_the_stem_feature_is_counted(make_model, images) -> None:
    model = TimmNetwork(make_model("resnet", halting="sact", **SMALL)).eval()
    model.forward_intermediates(images, [1, 3])
    without = model.ponder.flops
    model.forward_intermediates(images, [0, 3])
    assert (model.ponder.flops - without).tolist() == [2 * 7 * 7 * 3 * 64 * 32 * 20] * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_classifier_and_pooling(images, family: str) -> None:
    model = create(family, num_classes=0)
    channels = model.num_features
    features = model.forward_features(images)
    assert (model(images).shape, model.get_classifier()) == ((2, channels), model.classifier)
    assert isinstance(model.get_classifier(), nn.Identity)
    if family == "resnet":
        torch.testing.assert_close(model(images), features.mean((2, 3)))
        model.reset_classifier(0, "max")
        assert torch.equal(model(images), features.amax((2, 3)))
    model.reset_classifier(3, "avgmax")
    logits = model(images)
    assert logits.shape == (2, 3)
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.equal(logits, model.classifier(pooled[:, :, None, None]).flatten(1))
    assert model.get_classifier().out_channels == model.num_classes == 3
    assert model.ponder.fixed_flops == model.backbone.fixed_flops((64, 40)) + 2 * channels * 3
    model.reset_classifier(0, "")
    assert model(images).shape == features.shape


def test_dropout_in_training_alone(images) -> None:
    model = create(drop_rate=0.5)
    features = model.forward_features(images)
    assert torch.equal(model.forward_head(features), model.forward_head(features))
    kept = model.train().forward_head(features, pre_logits=True)
    assert 0.2 < (kept == 0).float().mean() < 0.95


def test_what_was_spent_does_not_pile_up(images) -> None:
    model = create()
    assert model.ponder is None
    model(images)
    first = model.ponder
    model.forward_features(images[:1])
    assert len(first.flops) == 2
    assert len(model.ponder.flops) == 1
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.ponder is None
        assert torch.equal(copied(images), model(images))
    assert model.ponder is not None


def test_the_ponder_cost_teaches_the_scores(images) -> None:
    backbone = create(features_only=True).train()
    backbone(images)
    backbone.ponder.cost.mean().backward()
    graded = {name for name, parameter in backbone.named_parameters() if parameter.grad is not None}
    assert {name for name, _ in backbone.named_parameters() if "score" in name} <= graded


@pytest.mark.parametrize("engine", ["gather", NATIVE])
@pytest.mark.parametrize("family", FAMILIES)
def test_engines_agree(make_model, images, family: str, engine: str) -> None:
    network = make_model(family, halting="sact", **SMALL)
    truth, fast = TimmNetwork(network).eval(), TimmNetwork(network, engine=engine).eval()
    assert fast.engine == engine
    with torch.no_grad():
        _, expected = truth.forward_intermediates(images)
        _, found = fast.forward_intermediates(images)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(fast(images), truth(images), atol=1e-4, rtol=1e-4)
        assert torch.equal(fast.ponder.flops, truth.ponder.flops)


def test_exported(make_model, images) -> None:
    model = TimmNetwork(make_model("resnet", halting="sact", units=[2], base_channels=4)).eval()
    with torch.no_grad():
        expected, ponder = model(images, return_ponder=True)
        program = torch.export.export(model, (images,)).module()
        torch.testing.assert_close(program(images), expected)
    assert model.ponder is ponder


def test_layer_decay_finds_every_layer() -> None:
    model = create()
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    depth = [scale[id(block.units[0].branch[0].weight)] for block in model.backbone.blocks]
    assert scale[id(model.backbone.stem.conv.weight)] < depth[0] < depth[1] < depth[2]
    assert scale[id(model.classifier.weight)] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": 3}, "sact_resnet50 has no option colour"),
        ({"drop_path_rate": 0.1}, r"drop_path_rate is 0\.1"),
        ({"output_stride": 16}, "output_stride is 16"),
        ({"global_pool": "catavgmax"}, 'global_pool is "catavgmax"'),
        ({"drop_rate": 1.0}, r"drop_rate is 1\.0"),
        ({"halting": "often"}, '"often"'),
        ({"eps": 2}, "eps is 2"),
        ({"engine": "diesel"}, '"diesel"'),
        ({"in_chans": 0}, "in_channels is 0"),
        ({"features_only": True, "out_indices": (1, 4)}, r"\(1, 4\).* 4 features, 0 to 3"),
        ({"features_only": True, "out_indices": ()}, "feature indices"),
        ({"features_only": True, "feature_cls": "hook"}, 'feature_cls is "hook"'),
    ],
)
def test_options_that_are_refused(options: dict, message: str) -> None:
    with pytest.raises(sact.InputError, match=message):
        create(**options)
    assert create(drop_path_rate=0.0, output_stride=32).num_classes == 7


def test_misuse(make_model, images) -> None:
    with pytest.raises(sact.InputError, match="got Linear"):
        TimmNetwork(nn.Linear(1, 1))
    model = create(global_pool="max")
    with pytest.raises(sact.InputError, match='global_pool is "max"'):
        model.to_network()
    with pytest.raises(sact.InputError, match='output_fmt is "NHWC"'):
        model.forward_intermediates(images, output_fmt="NHWC")
    with pytest.raises(sact.InputError, match="gradient checkpointing"):
        model.set_grad_checkpointing()
    model.set_grad_checkpointing(False)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    """What the examples of docs/timm.md leave behind, and what they print."""
    torch.manual_seed(0)
    printed, names = io.StringIO(), {}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(tmp_path_factory.mktemp("page"))
        for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL):
            exec(block, names)
    return names, printed.getvalue()


def test_segmentation_models_pytorch(page) -> None:
    """The page's U-Net on `tu-sact_resnet50`, behind one backward pass and with the fastest engine."""
    unet = page[0]["unet"]
    assert page[0]["masks"].shape == (2, 2, 64, 64)
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    scores = [parameter.grad for name, parameter in unet.named_parameters() if "score" in name]
    assert any(grad.count_nonzero() for grad in scores)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        found = unet(images)
        unet.encoder.model.model.engine = "masked"
        torch.testing.assert_close(found, unet(images), atol=1e-3, rtol=1e-3)


def test_the_page_is_current(page) -> None:
    names, rows = page
    assert rows.count("sact_") == len(sact.list_models())
    assert rows in DOCS.read_text()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(names["again"].eval()(images), names["scenes"].eval()(images))


def test_segmentation_models_pytorch_elsewhere() -> None:
    images = torch.randn(2, 3, 32, 32)
    options = {"encoder_weights": None, "encoder_depth": 2, "decoder_channels": (32, 16)}
    assert smp.Unet("tu-sact_cifar_resnet20", **options)(images).shape == (2, 1, 32, 32)
    with pytest.raises(sact.InputError, match="output_stride is 8"):
        smp.DeepLabV3("tu-sact_resnet50", encoder_weights=None)

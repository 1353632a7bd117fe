"""An adaptive extractor under torchvision's segmentation heads, and output strides."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import NATIVE, MakeModel
from dense_models import TINY, tiny_detector, tiny_segmenter
from torch import nn

import sact
from sact.models import config_from_dict
from sact.models.segmenter import SegmenterConfig

IMAGES = torch.rand(2, 3, 70, 90, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("halting", ["none", "act", "sact"])
@pytest.mark.parametrize("head", ["fcn", "deeplabv3"])
@torch.no_grad()
def test_logits(head: str, halting: str) -> None:
    segmenter = tiny_segmenter(halting, head)
    logits, ponder = segmenter(IMAGES, return_ponder=True)
    assert logits.shape == (2, 4, 70, 90)
    assert logits.equal(segmenter(IMAGES))
    assert [block.description.out_size for block in ponder.blocks] == [(18, 23), (9, 12), (9, 12), (9, 12)]
    assert (ponder.cost is None) == (halting == "none")


@torch.no_grad()
def test_by_hand() -> None:
    """Pixels to [-1, 1], the extractor, its classification network's last norm and ReLU, the head, bilinear."""
    segmenter = tiny_segmenter()
    last = segmenter.network(2 * IMAGES - 1)[-1]
    norm = segmenter.post.norm
    deviation = (norm.running_var + norm.eps).sqrt()[:, None, None]
    x = (last - norm.running_mean[:, None, None]) / deviation
    x = (x * norm.weight[:, None, None] + norm.bias[:, None, None]).relu()
    expected = F.interpolate(segmenter.classifier(x), size=(70, 90), mode="bilinear")
    torch.testing.assert_close(segmenter(IMAGES), expected, atol=1e-4, rtol=1e-4)


def test_heads_are_torchvisions() -> None:
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead
    from torchvision.models.segmentation.fcn import FCNHead

    assert isinstance(tiny_segmenter(head="fcn").classifier, FCNHead)
    deeplab = tiny_segmenter(head="deeplabv3", atrous_rates=[3, 6])
    assert isinstance(deeplab.classifier, DeepLabHead)
    dilations = {conv.dilation[0] for conv in deeplab.classifier.modules() if isinstance(conv, nn.Conv2d)}
    assert dilations == {1, 3, 6}
    assert deeplab.config.atrous_rates == (3, 6)


@pytest.mark.parametrize("engine", ["gather", NATIVE])
@torch.no_grad()
def test_compiled(engine: Any) -> None:
    segmenter = tiny_segmenter()
    fast = sact.compile(segmenter, engine)
    assert isinstance(fast, sact.Segmenter)
    logits, ponder = segmenter(IMAGES, return_ponder=True)
    ours, spent = fast(IMAGES, return_ponder=True)
    torch.testing.assert_close(ours, logits, atol=1e-4, rtol=1e-4)
    assert spent.flops.equal(ponder.flops)
    assert all(block.units.unique().numel() > 1 for block in ponder.blocks)


def test_training() -> None:
    segmenter = tiny_segmenter().train()
    with torch.autocast("cpu", torch.bfloat16):
        logits, ponder = segmenter(IMAGES, return_ponder=True)
    assert logits.dtype == torch.float32
    loss = F.cross_entropy(logits, torch.zeros(2, 70, 90, dtype=torch.int64)) + 0.01 * ponder.cost.mean()
    loss.backward()
    assert all(one.grad.isfinite().all() for one in segmenter.parameters() if one.grad is not None)
    assert segmenter.network.blocks[0].scores[0].local_conv.weight.grad.abs().sum() > 0


def test_start_from() -> None:
    torch.manual_seed(3)
    plain = sact.create_model("resnet", **TINY, num_classes=7)
    with torch.no_grad():
        plain.head.norm.bias.normal_()
    segmenter = tiny_segmenter()
    segmenter.start_from(plain)
    assert segmenter.post.norm.bias.equal(plain.head.norm.bias)
    for ours, theirs in zip(segmenter.network.blocks, plain.blocks, strict=True):
        for name, tensor in theirs.units.state_dict().items():
            assert ours.units.state_dict()[name].equal(tensor)
    paper = tiny_detector("sact", "c4")
    paper.start_from(segmenter)
    assert paper.roi_heads.box_head.head.norm.bias.equal(plain.head.norm.bias)
    assert (
        paper.network.blocks[0]
        .scores[0]
        .local_conv.weight.equal(segmenter.network.blocks[0].scores[0].local_conv.weight)
    )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0], "image\\[None\\]"),
        (IMAGES[:, :1], "1 channels"),
        (255 * IMAGES, r"image 0 has values from .* in \[0, 1\]"),
        ((255 * IMAGES).byte(), "uint8"),
        (IMAGES[:, :, :20], "20x90"),
        (IMAGES[:0], "empty"),
    ],
)
def test_bad_images(images: torch.Tensor, message: str) -> None:
    with pytest.raises(sact.InputError, match=message):
        tiny_segmenter()(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "unet"}, 'head is \'unet\', but it must be "fcn" or "deeplabv3"'),
        ({"atrous_rate": [1]}, "did you mean atrous_rates"),
        ({"atrous_rates": []}, r"atrous_rates is \[\]"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"output_stride": 12}, "output_stride is 12, .* power of 2"),
        ({"output_stride": 2}, "output_stride is 2, but the stem of this family has a stride of 4"),
        ({"image_mean": 0.5}, "image_mean is 0.5"),
        ({"class_names": ["background"]}, "class_names has 1 names"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    given = {"name": "resnet", "num_classes": 4} | TINY | options
    with pytest.raises(sact.InputError, match=message):
        sact.create_segmenter(**given)


def test_where_a_network_is_needed() -> None:
    with pytest.raises(sact.InputError, match=r"is a segmenter, .* sact segment"):
        sact.predict(tiny_segmenter(), "photo.jpg")


def test_the_configuration_survives_json() -> None:
    config = tiny_segmenter(output_stride=16).config
    assert SegmenterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("name", "output_stride", "strides"),
    [
        ("resnet", None, (4, 8, 16, 32)),
        ("resnet", 32, (4, 8, 16, 32)),
        ("resnet", 16, (4, 8, 16, 16)),
        ("resnet", 8, (4, 8, 8, 8)),
        ("resnet", 4, (4, 4, 4, 4)),
        ("cifar_resnet", 2, (1, 2, 2, 2)),
        ("cifar_resnet", 1, (1, 1, 1, 1)),
    ],
)
@pytest.mark.parametrize("engine", ["gather", NATIVE])
@torch.no_grad()
def test_output_stride(
    name: str, output_stride: int | None, strides: tuple[int, ...], engine: Any, make_model: MakeModel
) -> None:
    options = {"units": [2, 2, 3, 2], "base_channels": 8, "features_only": True, "output_stride": output_stride}
    model = make_model(name, halting="sact", **options)
    assert model.feature_strides == strides
    images = torch.randn(2, 3, 32, 64)
    features, ponder = model(images, return_ponder=True)
    for feature, stride, block in zip(features, strides, ponder.blocks, strict=True):
        assert feature.shape[-2:] == (32 // stride, 64 // stride) == block.units.shape[-2:]
    ours, spent = sact.compile(model, engine)(images, return_ponder=True)
    for own, feature in zip(ours, features, strict=True):
        torch.testing.assert_close(own, feature, atol=1e-4, rtol=1e-4)
    assert spent.flops.equal(ponder.flops)


def test_weights_do_not_depend_on_the_output_stride() -> None:
    models = [sact.create_model("resnet", **TINY, output_stride=stride) for stride in (None, 8)]
    whole, fine = ({name: tensor.shape for name, tensor in model.state_dict().items()} for model in models)
    assert whole == fine


def test_configurations_of_before() -> None:
    fields = sact.create_model("resnet", **TINY).config.to_dict()
    del fields["output_stride"]
    assert config_from_dict(fields).output_stride is None

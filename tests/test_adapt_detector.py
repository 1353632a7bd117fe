"""Detectors and segmentation models of torchvision with their extractors made adaptive."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NATIVE
from dense_models import SIZES, two_images, two_targets
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.segmentation.fcn import FCN, FCNHead
from torchvision.ops.misc import FrozenBatchNorm2d

import sact
from sact.units import FrozenNorm

LAYERS = {"layer1": "0", "layer2": "1"}


@cache
def theirs(kind: type = FasterRCNN, norm: Callable[..., nn.Module] = FrozenBatchNorm2d) -> nn.Module:
    """A small one; its norms have seen something."""
    torch.manual_seed(0)
    body = ResNet(BasicBlock, [3, 2, 1, 1], norm_layer=norm)
    for part in body.modules():
        if isinstance(part, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(1, 2)
    backbone = BackboneWithFPN(body, LAYERS, [64, 128], 16)
    boxes = {"box_score_thresh": 0.0, "box_detections_per_img": 5, "box_batch_size_per_image": 8}
    proposals = {"rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 10, "rpn_post_nms_top_n_train": 10}
    anchors = sact.create_detector("resnet", 1, units=[1, 1], base_channels=4, fpn_channels=4).rpn.anchor_generator
    return kind(
        backbone, 4, min_size=64, max_size=96, rpn_anchor_generator=anchors, **boxes, **proposals
    ).eval()  # fmt: skip


def halting_now(model: Any) -> Any:
    """With score heads that stop positions at different units."""
    torch.manual_seed(0)
    with torch.no_grad():
        for block in model.network.blocks:
            for head in block.scores:
                head.local_conv.weight.normal_(0, 10 * head.local_conv.weight[0].numel() ** -0.5)
                head.local_conv.bias.fill_(4)
    return model


def same(ours: list[dict[str, Tensor]], others: list[dict[str, Tensor]], **within: float) -> None:
    for one, other in zip(ours, others, strict=True):
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], **within)


@pytest.mark.parametrize(
    ("kind", "norm"), [(FasterRCNN, FrozenBatchNorm2d), (FasterRCNN, nn.BatchNorm2d), (MaskRCNN, FrozenBatchNorm2d)]
)
@torch.no_grad()
def test_as_before(kind: type, norm: Any) -> None:
    original = theirs(kind, norm)
    model = sact.adapt_detector(original, output="halted")
    assert isinstance(model, sact.Detector) and not model.training
    assert model.config.num_classes == 3
    assert [block.units[0].name for block in model.network.blocks] == ["layer1.0", "layer2.0"]
    detections, ponder = model(two_images(), return_ponder=True)
    same(detections, original(two_images()), atol=1e-4, rtol=1e-4)
    assert [tuple(one.shape) for one in ponder.maps()] == list(SIZES)
    assert {id(one) for one in original.parameters()} <= {id(one) for one in model.parameters()}


@pytest.mark.parametrize("engine", ["gather", NATIVE])
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:the CPU engine lacks feature maps")
def test_compiled(engine: Any) -> None:
    """Frozen norms are norms to the engines, which warn of nothing else that they lack."""
    model = halting_now(sact.adapt_detector(theirs()))
    detections, ponder = model(two_images(), return_ponder=True)
    assert all(block.units.unique().numel() > 1 for block in ponder.blocks)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ours, spent = sact.compile(model, engine)(two_images(), return_ponder=True)
    assert not any("Frozen" in str(each.message) for each in told)
    same(ours, detections, atol=1e-3, rtol=1e-4)
    assert spent.flops.equal(ponder.flops)


def test_training() -> None:
    original = theirs()
    model = halting_now(sact.adapt_detector(original)).train()
    assert not any(part.training for part in (original, original.rpn, original.roi_heads))
    losses, ponder = model(two_images(), two_targets(), return_ponder=True)
    (sum(losses.values()) + 0.01 * ponder.cost.mean()).backward()
    heads = model.network.score_parameters()
    assert heads and all(one.grad is not None and one.grad.isfinite().all() for one in heads)
    model.eval()


@torch.no_grad()
def test_converted_with_the_original() -> None:
    original = deepcopy(theirs())
    model = sact.adapt_detector(original, output="halted").double()
    images = [image.double() for image in two_images()]
    same(model(images), original(images), atol=1e-6, rtol=1e-6)


def test_frozen_norm() -> None:
    """The same function, with the numbers that the layer has now, in any mode."""
    theirs_ = FrozenBatchNorm2d(3, eps=0.1)
    ours = FrozenNorm(theirs_).train()
    theirs_.running_var.fill_(4)
    theirs_.running_mean = torch.tensor([1.0, 2, 3])
    theirs_.eps = 0.5
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(ours(x), (x - torch.tensor([1.0, 2, 3])[:, None, None]) / 4.5**0.5)
    torch.testing.assert_close(ours(x), theirs_(x))
    assert not ours.training


@torch.no_grad()
def test_segmentation() -> None:
    """`sact.adapt` takes segmentation models as they are; atrous units are computed everywhere, which is told."""
    torch.manual_seed(0)
    strides = [False, False, True]
    body = ResNet(Bottleneck, [2, 2, 1, 2], width_per_group=8, replace_stride_with_dilation=strides)
    original = FCN(IntermediateLayerGetter(body, {"layer4": "out"}), FCNHead(2048, 3)).eval()
    with pytest.warns(UserWarning, match=r"computed everywhere.*backbone\.layer4\.1"):
        model = sact.adapt(original, output="halted")
    images = torch.randn(2, 3, 64, 96)
    output, ponder = model(images, return_ponder=True)
    torch.testing.assert_close(output["out"], original(images)["out"])
    assert ponder.map((64, 96)).shape == (2, 64, 96)
    torch.testing.assert_close(sact.compile(model, "gather")(images)["out"], output["out"], atol=1e-4, rtol=1e-4)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(sact.InputError, match=r"Faster R-CNN.* got Linear"):
        sact.adapt_detector(nn.Linear(1, 1))
    with pytest.raises(sact.InputError, match=r"FasterRCNN is a detector.* sact\.adapt_detector"):
        sact.adapt(theirs())
    with pytest.raises(sact.CheckpointError, match="state_dict"):
        sact.adapt_detector(theirs()).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())

"""Faster R-CNN with an adaptive extractor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import NATIVE
from dense_models import SIZES, SMALL_BOXES, TINY, tiny_detector, two_images, two_targets
from torch import Tensor, nn

import sact
from sact.block import Block
from sact.engines import gather
from sact.models.dense import extractor
from sact.models.detector_config import DetectorConfig

FORMS = ("fpn", "c4")
SMALL = TINY | SMALL_BOXES
LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}


def same(ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]]) -> None:
    """Detections are equal within 1e-4 of a pixel and of a score."""
    for one, other in zip(ours, theirs, strict=True):
        assert one["labels"].equal(other["labels"])
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("halting", ["none", "act", "sact"])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_detections(form: str, halting: str) -> None:
    detections, ponder = tiny_detector(halting, form)(two_images(), return_ponder=True)
    for (height, width), one in zip(SIZES, detections, strict=True):
        assert one["boxes"].shape == (len(one["labels"]), 4) and len(one["labels"]) <= 10
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"] <= torch.tensor([width, height, width, height]) + 1e-4).all()
        assert one["labels"].dtype == torch.int64 and set(one["labels"].tolist()) <= {1, 2, 3}
        assert one["scores"].equal(one["scores"].sort(descending=True).values)
    assert len(ponder.blocks) == (4 if form == "fpn" else 3)
    if halting == "none":
        assert ponder.cost is None
        assert (ponder.flops == ponder.dense_flops).all()
        with pytest.raises(sact.InputError, match="plain"):
            ponder.maps()
    else:
        assert [tuple(one.shape) for one in ponder.maps()] == list(SIZES)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_torchvisions_computation(form: str) -> None:
    """The same parts in torchvision's own GeneralizedRCNN give the same losses and detections."""
    from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

    detector = tiny_detector("none", form)

    class Backbone(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            seen, looked_at = detector.neck(detector.network(x))
            return seen if form == "fpn" else looked_at

    theirs = GeneralizedRCNN(Backbone(), detector.rpn, detector.roi_heads, detector.transform).eval()
    if form == "c4":  # whose proposals read the features through a norm
        detector.neck.norm, detector.neck.act = nn.Identity(), nn.Identity()
    images, targets = two_images(), two_targets()
    with torch.no_grad():
        same(detector(images), theirs(images))
    theirs.train()
    detector.train()
    detector.network.eval()
    detector.roi_heads.box_head.eval()
    torch.manual_seed(1)
    expected = theirs(images, targets)
    torch.manual_seed(1)
    losses = detector(images, targets)
    assert losses.keys() == expected.keys() == LOSSES
    for name in LOSSES:
        torch.testing.assert_close(losses[name], expected[name])


@pytest.mark.parametrize("engine", ["gather", NATIVE])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_compiled(form: str, engine: Any) -> None:
    detector = tiny_detector("sact", form)
    fast = sact.compile(detector, engine)
    assert isinstance(fast, sact.Detector)
    detections, ponder = detector(two_images(), return_ponder=True)
    ours, spent = fast(two_images(), return_ponder=True)
    same(ours, detections)
    torch.testing.assert_close(spent.cost, ponder.cost, atol=1e-4, rtol=1e-4)
    assert spent.flops.equal(ponder.flops)
    assert all(block.units.unique().numel() > 1 for block in ponder.blocks)  # positions halt differently
    assert {id(tensor) for tensor in fast.parameters()} == {id(tensor) for tensor in detector.parameters()}
    detector.roi_heads.box_predictor.cls_score.bias += torch.tensor([0.0, 2, 0, 0])  # both see it
    same(fast(two_images()), detector(two_images()))


def test_compiled_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """With norms in evaluation mode the gather engine gives the same losses and gradients, and does skip."""
    detector = tiny_detector().double().train()  # in which no ReLU is so near 0 that rounding turns it
    detector.network.eval()
    images = [image.double() for image in two_images()]
    perforated = []
    monkeypatch.setattr(gather, "convolve", lambda *given, **named: perforated.append(1) or convolve(*given, **named))
    found = []
    for model in (detector, sact.compile(detector, "gather")):
        torch.manual_seed(2)
        losses, ponder = model(images, two_targets(), return_ponder=True)
        detector.zero_grad()
        (sum(losses.values()) + 0.01 * ponder.cost.mean()).backward()
        gradients = {name: one.grad.clone() for name, one in detector.named_parameters() if one.grad is not None}
        found.append((losses, gradients))
    (losses, gradients), (ours, own) = found
    assert gradients.keys() == own.keys()
    for name in LOSSES:
        torch.testing.assert_close(ours[name], losses[name], atol=1e-8, rtol=1e-8)
    for name in gradients:
        torch.testing.assert_close(own[name], gradients[name])
    assert perforated


convolve = gather.convolve


@pytest.mark.parametrize("form", FORMS)
def test_images_without_objects(form: str) -> None:
    detector = tiny_detector("sact", form).train()
    none = two_targets()[1]
    losses = detector(two_images(), [none, none])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_box_reg"].item() == losses["loss_rpn_box_reg"].item() == 0
    sum(losses.values()).backward()
    assert all(one.grad is None or one.grad.isfinite().all() for one in detector.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_half_precision(form: str) -> None:
    """Under autocast coordinates, scores and losses are float32; channels-last weights change nothing."""
    detector = tiny_detector("sact", form)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for one in detector(two_images()):
            assert one["boxes"].dtype == one["scores"].dtype == torch.float32
    detector.train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(two_images(), two_targets())
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    detector.eval()
    with torch.no_grad():
        before = detector(two_images())
        same(detector.to(memory_format=torch.channels_last)(two_images()), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_weights_in_another_precision(form: str, dtype: torch.dtype) -> None:
    """Boxes and scores stay in float32 where the weights have less."""
    detector = tiny_detector("sact", form).to(dtype)
    for one in detector([image.to(dtype) for image in two_images()]):
        assert one["boxes"].dtype == one["scores"].dtype == torch.promote_types(dtype, torch.float32)
        assert one["boxes"].isfinite().all() and len(one["boxes"])


def test_multi_scale() -> None:
    """In training one of the sizes is drawn, else the last one serves."""
    detector = tiny_detector(min_size=(64, 96), max_size=192)
    seen = []
    detector.network.register_forward_hook(lambda module, given, result: seen.append(tuple(given[0].shape[-2:])))
    square = [torch.rand(3, 80, 80)]
    with torch.no_grad():
        detector(square)
        detector.train()
        detector.network.eval()
        for _ in range(8):
            detector(square, two_targets()[1:])
    assert seen[0] == (96, 96)
    assert set(seen[1:]) == {(64, 64), (96, 96)}


def test_proposals_read_fixed_strides() -> None:
    """torchvision derives the strides of RoIAlign from the first images it sees; ours are the network's."""
    detector = tiny_detector()
    pool = detector.roi_heads.box_roi_pool
    assert pool.scales == [1 / stride for stride in detector.network.feature_strides] == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    with torch.no_grad():
        detector([torch.rand(3, 33, 33)])
    assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert tiny_detector(form="c4").roi_heads.box_roi_pool.scales == [1 / 16]


def test_the_papers_form() -> None:
    detector = tiny_detector("sact", "c4", units=[3, 4, 6, 2])
    assert [len(block.units) for block in detector.network.blocks] == [3, 4, 6]
    block = detector.roi_heads.box_head.block
    assert isinstance(block, Block) and block.halting == "none" and len(block.units) == 2 and not len(block.scores)
    assert block.units[0].branch.conv2.stride == (2, 2)
    pooled = detector.roi_heads.box_head(torch.rand(5, detector.network.feature_channels[-1], 14, 14))
    assert pooled.shape == (5, 8 * 8 * 4, 1, 1)


@pytest.mark.parametrize("form", FORMS)
def test_start_from_a_plain_classifier(form: str) -> None:
    torch.manual_seed(3)
    plain = sact.create_model("resnet", **TINY, num_classes=7)
    detector = sact.create_detector("resnet", 3, "sact", form, **SMALL)
    biases = [head.local_conv.bias.item() for block in detector.network.blocks for head in block.scores]
    weights = [head.local_conv.weight.clone() for block in detector.network.blocks for head in block.scores]
    detector.start_from(plain)
    assert detector.network.stem.conv.weight.equal(plain.stem.conv.weight)
    blocks = list(detector.network.blocks)
    if form == "c4":
        blocks.append(detector.roi_heads.box_head.block)
        assert detector.roi_heads.box_head.head.norm.weight.equal(plain.head.norm.weight)
    for ours, theirs in zip(blocks, plain.blocks, strict=True):
        for name, tensor in theirs.units.state_dict().items():
            assert ours.units.state_dict()[name].equal(tensor)
    assert set(biases) == {-3.0}
    kept = [head.local_conv.weight for block in detector.network.blocks for head in block.scores]
    assert all(own.equal(before) for own, before in zip(kept, weights, strict=True))


def test_start_from_an_adaptive_one() -> None:
    torch.manual_seed(3)
    trained = sact.create_model("resnet", "sact", **TINY)
    detector = sact.create_detector("resnet", 3, "sact", "c4", **SMALL)
    detector.start_from(sact.compile(trained, "gather"))
    for name, tensor in detector.network.state_dict().items():
        assert tensor.equal(trained.state_dict()[name])
    other = sact.create_detector("resnet", 5, "sact", "fpn", **SMALL)
    other.start_from(detector)
    for name, tensor in other.network.blocks[3].units.state_dict().items():
        assert tensor.equal(trained.blocks[3].units.state_dict()[name])
    plain = sact.create_detector("resnet", 3, "none", **SMALL)
    plain.start_from(trained)
    assert plain.network.blocks[1].units[1].branch.conv2.weight.equal(trained.blocks[1].units[1].branch.conv2.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": [2, 3, 4, 2]}, r"it has no blocks\.2\.units\.3\.preact\.norm\.weight \(and"),
        ({"units": [2, 3, 2, 2]}, r"its blocks\.2\.units\.2\.preact\.norm\.weight has no place"),
        ({"base_channels": 4}, r"its blocks\.0\.units\.0.* has shape \[8, 64, 1, 1\] instead of \[4, 64, 1, 1\]"),
    ],
)
def test_start_from_another_network(options: dict[str, Any], message: str) -> None:
    detector = sact.create_detector("resnet", 3, "sact", **(SMALL | options))
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    with pytest.raises(sact.CheckpointError, match=message):
        detector.start_from(sact.create_model("resnet", **TINY))
    assert all(tensor.equal(before[name]) for name, tensor in detector.state_dict().items())


def test_start_from_what_reads_other_pixels() -> None:
    plain = sact.create_model("resnet", **TINY)
    plain.preprocessing = {"name": "imagenet_torchvision"}
    detector = sact.create_detector("resnet", 3, **SMALL)
    with pytest.warns(UserWarning, match="image_mean"):
        detector.start_from(plain)
    own = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    sact.create_detector("resnet", 3, **SMALL, **own).start_from(plain)
    with pytest.raises(sact.InputError, match="got Linear"):
        detector.start_from(nn.Linear(1, 1))


def test_budget_and_extractor() -> None:
    detector = tiny_detector()
    assert extractor(detector) is extractor(sact.compile(detector, "gather")) is detector.network
    detector.network.cap = 0.9
    with torch.no_grad():
        _, ponder = sact.compile(detector, "gather")(two_images(), return_ponder=True)
    assert (ponder.flops <= 0.9 * ponder.dense_flops).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda detector: sact.predict(detector, "photo.jpg"),
        lambda detector: sact.calibrate(detector, torch.rand(2, 3, 32, 32)),
        lambda detector: sact.export(detector, "model.onnx"),
    ],
)
def test_where_a_network_is_needed(call: Any) -> None:
    with pytest.raises(sact.InputError, match=r"is a detector, but a network .* sact detect"):
        call(tiny_detector())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "at least one"),
        ([torch.rand(1, 40, 40)], r"image 0 must be a tensor \[3, H, W\], but got shape \(1, 40, 40\)"),
        ([torch.rand(3, 40, 40), "photo.jpg"], "image 1 .* got str"),
        ([torch.zeros(3, 40, 40, dtype=torch.uint8)], r"image 0 is torch\.uint8"),
        ([255 * torch.ones(3, 40, 40)], r"image 0 has values from 255 to 255, .* \[0, 1\]"),
        ([torch.full((3, 40, 40), float("nan"))], "image 0 has values from nan"),
    ],
)
def test_bad_images(images: list[Any], message: str) -> None:
    with pytest.raises(sact.InputError, match=message):
        tiny_detector()(images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "2 images, none targets"),
        ({"boxes": torch.zeros(2, 5)}, r'"boxes" of target 0 must be floating point \[K, 4\]'),
        ({"labels": torch.ones(3, dtype=torch.int64)}, r'"labels" of target 0 must be int64 \[2\], .* \[3\]'),
        ({"labels": torch.ones(2)}, "int64"),
        ({"labels": torch.tensor([0, 1])}, r"labels of target 0 are \[0, 1\], .* 1 to 3"),
        ({"labels": torch.tensor([4, 1])}, "1 to 3"),
        ({"boxes": torch.tensor([[1.0, 1, 5, 5], [7, 7, 7, 9]])}, r"box 1 of target 0 is \[7\.0, 7\.0, 7\.0, 9\.0\]"),
        ({"boxes": torch.tensor([[1.0, 1, 5, float("nan")], [7, 7, 9, 9]])}, "box 0 of target 0"),
    ],
)
def test_bad_targets(change: dict[str, Tensor] | None, message: str) -> None:
    targets = None if change is None else [two_targets()[0] | change, two_targets()[1]]
    with pytest.raises(sact.InputError, match=message):
        tiny_detector().train()(two_images(), targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "yolo"}, 'form is \'yolo\', but it must be "fpn" or "c4"'),
        ({"box_detections_per_image": 3}, "did you mean box_detections_per_img"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"min_size": 2000}, r"min_size is \[2000\] and max_size 128"),
        ({"min_size": "large"}, "min_size is 'large', but it must be numbers"),
        ({"rpn_nms_thresh": 1.5}, r"rpn_nms_thresh is 1\.5, .* \[0, 1\]"),
        ({"anchor_sizes": [16, 32]}, "each of 5 feature maps"),
        ({"aspect_ratios": []}, "aspect_ratios"),
        ({"image_std": [1, 1, 0]}, "image_std"),
        ({"form": "c4", "units": [2]}, "one more"),
        ({"class_names": ["a"]}, "class_names has 1 names, but num_classes is 3"),
        ({"halting": "spatial"}, 'halting is "spatial"'),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    given = {"name": "resnet", "num_classes": 3} | SMALL | options
    with pytest.raises(sact.InputError, match=message):
        sact.create_detector(**given)


def test_anchors() -> None:
    of = lambda **options: tiny_detector(**options).rpn.anchor_generator  # noqa: E731
    assert of().sizes == ((32,), (64,), (128,), (256,), (512,))
    assert of(form="c4").sizes == ((32, 64, 128, 256, 512),)
    assert of(anchor_sizes=[8, 16, 32, 64, 128]).sizes == ((8,), (16,), (32,), (64,), (128,))
    assert of(form="c4", anchor_sizes=[8, 16], aspect_ratios=[1]).num_anchors_per_location() == [2]


def test_the_configuration_survives_json() -> None:
    import json

    config = tiny_detector(min_size=(64, 96), anchor_sizes=[8, 16, 32, 64, 128]).config
    assert DetectorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert SMALL_BOXES["fpn_channels"] == config.fpn_channels

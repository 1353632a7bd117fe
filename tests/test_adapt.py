"""`sact.adapt` and `sact.restore`: somebody's network, adaptive; halting off it is the network that it was."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch
from conftest import NATIVE
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from toy_units import PARTLY, REFUSED, SKIPPING, WHOLE, C, ToyNetwork, Unit, conv, refused, vary_norms

import sact
from sact.engines import gather
from sact.models.adapted import AdaptedNetwork
from sact.scores import SCORE_BIAS, ImageScore
from sact.trials import evaluating

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")


def _convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(24, 32, 2), CNBlockConfig(32, None, 3)], stochastic_depth_prob=0.3, layer_scale=0.5)


class Expected(NamedTuple):
    """A network, the lengths of its blocks, the first one's names, and what is computed everywhere.

    Attributes:
        build: the network.
        lengths: of its blocks.
        first: names of the first and last unit of the first block.
        tells: in the warning; None where there is none.
    """

    build: Callable[[], nn.Module]
    lengths: list[int]
    first: tuple[str, str]
    tells: str | None = None


def _torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    return partial(torchvision.models.get_model, name, weights=None, **options)


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return partial(timm.create_model, name, **options)


RESNET, FOUR = ("layer1.0", "layer1.1"), [3, 4, 6, 3]
STAGES, BLOCKS = ("stages.0.blocks.0", "stages.0.blocks.1"), ("blocks.1.0", "blocks.1.1")
NETWORKS = {
    "torchvision resnet18": Expected(_torchvision("resnet18"), [2, 2, 2, 2], RESNET),
    "torchvision narrow resnet50": Expected(
        _torchvision("resnet50", width_per_group=8), FOUR, ("layer1.0", "layer1.2")
    ),
    "torchvision narrow resnext50": Expected(
        _torchvision("resnet50", groups=4, width_per_group=4), FOUR, ("layer1.0", "layer1.2")
    ),
    "torchvision mobilenet_v2": Expected(
        _torchvision("mobilenet_v2", width_mult=0.35), [2, 3, 4, 3, 3], ("features.2", "features.3")
    ),
    "torchvision efficientnet_b0": Expected(
        _torchvision("efficientnet_b0"), [2, 2, 3, 3, 4], ("features.2.0", "features.2.1"), "SqueezeExcitation"
    ),
    "torchvision regnet_y_400mf": Expected(
        _torchvision("regnet_y_400mf"),
        [3, 6, 6],
        ("trunk_output.block2.block2-0", "trunk_output.block2.block2-2"),
        "SqueezeExcitation",
    ),
    "torchvision convnext": Expected(_convnext, [2, 3], ("features.1.0", "features.1.1")),
    "timm resnet26d": Expected(_timm("resnet26d"), [2, 2, 2, 2], RESNET),
    "timm mobilenetv2_050": Expected(_timm("mobilenetv2_050"), [2, 3, 4, 3, 3], ("blocks.1.0", "blocks.1.1")),
    "timm tf_efficientnet_lite0": Expected(_timm("tf_efficientnet_lite0"), [2, 2, 3, 3, 4], BLOCKS),
    "timm regnety_002": Expected(_timm("regnety_002"), [4, 7], ("s3.b1", "s3.b4"), "SEModule"),
    "timm convnext_atto": Expected(_timm("convnext_atto"), [2, 2, 6, 2], STAGES),
    "timm convnextv2_atto": Expected(_timm("convnextv2_atto"), [2, 2, 6, 2], STAGES, "GlobalResponseNorm"),
}
SLOW = {
    "torchvision resnet50": Expected(_torchvision("resnet50"), FOUR, ("layer1.0", "layer1.2")),
    "torchvision resnext50_32x4d": Expected(_torchvision("resnext50_32x4d"), FOUR, ("layer1.0", "layer1.2")),
    "torchvision wide_resnet50_2": Expected(_torchvision("wide_resnet50_2"), FOUR, ("layer1.0", "layer1.2")),
    "torchvision regnet_x_400mf": Expected(
        _torchvision("regnet_x_400mf"), [2, 7, 12], ("trunk_output.block2.block2-0", "trunk_output.block2.block2-1")
    ),
    "torchvision convnext_tiny": Expected(
        _torchvision("convnext_tiny"), [3, 3, 9, 3], ("features.1.0", "features.1.2")
    ),
    "timm resnet18": Expected(_timm("resnet18"), [2, 2, 2, 2], RESNET),
    "timm resnet50d": Expected(_timm("resnet50d"), FOUR, ("layer1.0", "layer1.2")),
    "timm resnetv2_50": Expected(_timm("resnetv2_50"), FOUR, ("stages.0.blocks.0", "stages.0.blocks.2")),
    "timm seresnet50": Expected(_timm("seresnet50"), FOUR, ("layer1.0", "layer1.2"), "layer4.2 (SEModule)"),
    "timm efficientnet_lite0": Expected(_timm("efficientnet_lite0"), [2, 2, 3, 3, 4], BLOCKS),
    "timm efficientnet_b0": Expected(_timm("efficientnet_b0"), [2, 2, 3, 3, 4], BLOCKS, "SqueezeExcite"),
    "timm regnetx_002": Expected(_timm("regnetx_002"), [4, 7], ("s3.b1", "s3.b4")),
    "timm resnext26ts": Expected(_timm("resnext26ts"), [2, 2, 2, 2], ("stages.0.0", "stages.0.1")),
    "timm resnetv2_50x1_bit": Expected(
        _timm("resnetv2_50x1_bit"), FOUR, ("stages.0.blocks.0", "stages.0.blocks.2"), "StdConv2d"
    ),
}
PARAMETERS = [*NETWORKS, *[pytest.param(name, marks=pytest.mark.slow) for name in SLOW]]
EVERY_NETWORK = pytest.mark.parametrize("name", PARAMETERS)


class Pair(NamedTuple):
    """A network as it was made, the same one adapted, and what was said meanwhile."""

    before: nn.Module
    original: nn.Module
    adapted: AdaptedNetwork
    said: list[str]


@torch.no_grad()
def vary_heads(adapted: AdaptedNetwork, bias: float = -1.0) -> None:
    """Heads whose scores differ between positions: of normalised states, as after training."""
    norms = []
    for block in adapted.blocks:
        for head in block.scores:
            layer = head.global_conv if isinstance(head, ImageScore) else head.local_conv
            layer.weight.normal_(0, 2 * layer.weight[0].numel() ** -0.5)
            layer.bias.fill_(bias)
            norms += [each for each in head.modules() if isinstance(each, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with evaluating(adapted):
        for norm in norms:
            norm.train()
        like = next(adapted.parameters())
        adapted(pictures(4, 64, adapted.config.in_channels).to(like))
    for norm in norms:
        norm.momentum = 0.1


@cache
def pair(name: str) -> Pair:
    """Made once; tests leave it as it is."""
    torch.manual_seed(0)
    network = (NETWORKS | SLOW)[name].build().eval()
    vary_norms(network)
    before = copy.deepcopy(network)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adapted = sact.adapt(network, eps=0.3)  # with which positions halt in short blocks, too
    vary_heads(adapted)
    return Pair(before, network, adapted, [str(each.message) for each in said])


def toy(*names: str, **options: Any) -> ToyNetwork:
    """Units of these kinds between a stem and a classifier."""
    units = [(SKIPPING | {n: make for n, (make, _) in (PARTLY | WHOLE).items()})[name]() for name in names]
    network = ToyNetwork(*units, **options).eval()
    vary_norms(network)
    return network


def simple(**options: Any) -> ToyNetwork:
    return toy("bottleneck", "preactivated", "functional", "grouped", **options)


def adapted_toy(network: nn.Module | None = None, halting: Any = "sact", **options: Any) -> AdaptedNetwork:
    adapted = sact.adapt(simple() if network is None else network, halting, **options)
    vary_heads(adapted)
    return adapted


def pictures(count: int = 2, side: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def without_halting(adapted: AdaptedNetwork, images: Tensor, engine: str = "masked") -> tuple[Any, sact.Ponder]:
    kept, adapted.halting = adapted.halting, "none"
    try:
        with torch.no_grad():
            return sact.compile(adapted, engine)(images, return_ponder=True)
    finally:
        adapted.halting = kept


def storages(network: nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers()) if tensor.numel()}


def hooks(network: nn.Module) -> int:
    dicts = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(part, name)) for part in network.modules() for name in dicts)


# Networks of libraries


@EVERY_NETWORK
def test_halting_off_the_output_is_the_original_s(name: str) -> None:
    before, _, adapted, _ = pair(name)
    with torch.no_grad():
        expected = before(pictures())
    output, ponder = without_halting(adapted, pictures())
    assert torch.equal(output, expected)
    assert ponder.cost is None
    assert torch.equal(without_halting(adapted, pictures(), "gather")[0], expected)


@EVERY_NETWORK
def test_blocks_are_where_they_are_known_to_be(name: str) -> None:
    adapted = pair(name).adapted
    expected = (NETWORKS | SLOW)[name]
    assert [len(names) for names in adapted.config.blocks] == expected.lengths
    assert (adapted.config.blocks[0][0], adapted.config.blocks[0][-1]) == expected.first


@EVERY_NETWORK
def test_what_is_computed_everywhere_is_said_once_by_name(name: str) -> None:
    _, _, adapted, said = pair(name)
    tells = (NETWORKS | SLOW)[name].tells
    assert len(said) == (tells is not None)
    for names in adapted.config.blocks if tells is not None else ():
        assert tells in said[0] and names[-1] in said[0] and f"{names[0]} " not in said[0]


@EVERY_NETWORK
def test_only_score_heads_are_added_and_the_network_stays(name: str) -> None:
    before, original, adapted, _ = pair(name)
    torch.testing.assert_close(original.state_dict(), before.state_dict(), rtol=0, atol=0)
    assert [*map(type, original.modules())] == [*map(type, before.modules())]
    assert hooks(original) == hooks(before) == hooks(adapted)
    assert [set(vars(part)) for part in original.modules()] == [set(vars(part)) for part in before.modules()]
    assert {id(value) for value in original.parameters()} <= {id(value) for value in adapted.parameters()}
    heads = {value.data_ptr() for block in adapted.blocks for value in block.scores.state_dict().values()}
    assert storages(adapted) == storages(original) | (heads & storages(adapted))
    assert not heads & storages(original)
    added = len([*adapted.parameters()]) - len([*original.parameters()])
    assert added == len(adapted.score_parameters()) == 7 * sum(len(block.scores) for block in adapted.blocks)


@EVERY_NETWORK
def test_gather_is_the_definition(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(gather, "DENSE_SHARE", 2.0)
    adapted = pair(name).adapted
    fast = sact.compile(adapted, "gather")
    with torch.no_grad():
        expected, ponder = adapted(pictures(), return_ponder=True)
        found, our_ponder = fast(pictures(), return_ponder=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5 * float(expected.abs().max()))
    for ours, theirs in zip(our_ponder.blocks, ponder.blocks, strict=True):
        assert torch.equal(ours.units, theirs.units)
    assert torch.equal(our_ponder.flops, ponder.flops)
    assert max(len(block.units.unique()) for block in ponder.blocks) > 1


@EVERY_NETWORK
def test_flops_are_those_that_pytorch_counts(name: str) -> None:
    before, _, adapted, _ = pair(name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        before(pictures(1))
    _, plain = without_halting(adapted, pictures())
    assert plain.flops.tolist() == [counter.get_total_flops()] * 2
    assert plain.dense_flops == counter.get_total_flops()
    assert plain.fixed_flops == adapted.fixed_flops((64, 64)) > 0
    for block in adapted.blocks:
        block.forced_units = torch.ones(1, 1, 1, dtype=torch.int)
    try:
        with torch.no_grad():
            _, least = adapted(pictures(1), return_ponder=True)
    finally:
        for block in adapted.blocks:
            block.forced_units = None
    assert least.dense_flops == plain.dense_flops
    assert int(least.flops) < 0.95 * plain.dense_flops


@EVERY_NETWORK
def test_restored_it_is_the_network(name: str) -> None:
    before, original, adapted, _ = pair(name)
    assert sact.restore(adapted) is original
    assert sact.restore(sact.compile(adapted, "gather")) is original
    with torch.no_grad():
        assert torch.equal(original(pictures()), before(pictures()))


@pytest.mark.parametrize("engine", [NATIVE, "auto"])
@pytest.mark.parametrize("name", ["torchvision mobilenet_v2", "torchvision resnet18", "timm convnext_atto"])
def test_every_engine_takes_adapted_networks(name: str, engine: str) -> None:
    adapted = pair(name).adapted
    with torch.no_grad():
        expected, ponder = adapted(pictures(), return_ponder=True)
        found, our_ponder = sact.compile(adapted, engine)(pictures(), return_ponder=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5 * float(expected.abs().max()))
    assert torch.equal(our_ponder.flops, ponder.flops)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision resnet18", "torchvision/resnet18"),
        ("torchvision efficientnet_b0", "torchvision/efficientnet_b0"),
        ("torchvision regnet_y_400mf", "torchvision/regnet_y_400mf"),
        ("timm convnext_atto", "timm/convnext_atto"),
        ("timm regnety_002", "timm/regnety_002"),
        ("torchvision narrow resnet50", None),
    ],
)
def test_who_built_a_network_is_found(name: str, expected: str | None) -> None:
    config = pair(name).adapted.config
    assert config.architecture == expected
    assert dict(config.options).get("num_classes") == (1000 if expected else None)


def test_preprocessing_comes_along() -> None:
    found = pair("timm convnext_atto").adapted.preprocessing
    assert found is not None and found["mean"] == [0.485, 0.456, 0.406]
    assert pair("torchvision resnet18").adapted.preprocessing is not None
    assert adapted_toy().preprocessing is None


# Features


def _layer_getter() -> nn.Module:
    from torchvision.models._utils import IntermediateLayerGetter

    return IntermediateLayerGetter(torchvision.models.resnet18(weights=None), {"layer2": "two", "layer4": "four"})


@pytest.mark.parametrize(
    "build",
    [
        _timm("convnext_atto", features_only=True),
        _timm("regnetx_002", features_only=True),
        _timm("mobilenetv2_035", features_only=True, out_indices=(1, 3)),
        _layer_getter,
    ],
    ids=["convnext", "regnetx", "mobilenetv2", "torchvision"],
)
def test_networks_that_give_features(build: Callable[[], nn.Module]) -> None:
    network = build().eval()
    with torch.no_grad():
        expected = network(pictures())
    adapted = sact.adapt(network)
    assert adapted.config.features_only and adapted.config.num_classes == 0
    output, ponder = without_halting(adapted, pictures())
    assert type(output) is type(expected)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    assert len(ponder.blocks) == len(adapted.config.blocks)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels_and_sizes(channels: int) -> None:
    network = simple(in_channels=channels)
    adapted = sact.adapt(network, "none")
    for side in (8, 28, 45):
        images = pictures(3, side, channels)
        with torch.no_grad():
            assert torch.equal(adapted(images), network(images))


# Modes, copies and training


def mixed(network: ToyNetwork) -> ToyNetwork:
    """In training mode, but for norms and the container of the units."""
    network.train()
    for part in network.modules():
        part.training = not isinstance(part, (nn.BatchNorm2d, nn.Sequential))
    return network


def test_modes_stay_as_they_are() -> None:
    network = mixed(simple())
    modes = [part.training for part in network.modules()]
    before = copy.deepcopy(network.state_dict())
    adapted = sact.adapt(network)
    assert [part.training for part in network.modules()] == modes
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert adapted.training and adapted.blocks[0].scores[0].local_norm.training
    assert sact.restore(adapted) is network
    assert [part.training for part in network.modules()] == modes


@pytest.mark.parametrize("mode", [True, False])
def test_modes_are_set_for_all(mode: bool) -> None:
    network = simple().train(not mode)
    adapted = sact.adapt(network).train(mode)
    assert all(part.training == mode for part in adapted.modules())
    restored = sact.restore(adapted)
    assert all(part.training == mode for part in restored.modules())


def test_adapting_twice_leaves_nothing_behind() -> None:
    network = simple()
    before = {name: set(vars(part)) for name, part in network.named_modules()}
    for _ in range(2):
        adapted = sact.adapt(network)
        with torch.no_grad():
            adapted(pictures())
    assert hooks(network) == 0
    assert {name: set(vars(part)) for name, part in network.named_modules()} == before
    assert type(network) is ToyNetwork and type(adapted.network) is ToyNetwork


def test_random_numbers_of_others_are_not_used_up_by_trying_out() -> None:
    network = simple()
    state = torch.get_rng_state()
    with pytest.raises(sact.InputError):
        sact.adapt(network, blocks=[["layers.0", "fc"]])
    assert torch.equal(torch.get_rng_state(), state)


def step(adapted: AdaptedNetwork, call: Any = None) -> None:
    optimizer = torch.optim.SGD(adapted.parameters(), lr=0.1)
    logits, ponder = (call or adapted)(pictures(4, 32), return_ponder=True)
    (logits.square().mean() + 0.1 * ponder.cost.mean()).backward()
    optimizer.step()


def test_restored_after_training_it_has_the_weights_of_now() -> None:
    network = simple()
    with torch.no_grad():
        before = network(pictures())
    adapted = adapted_toy(network).train()
    step(adapted)
    restored = sact.restore(adapted.eval())
    with torch.no_grad():
        after = restored(pictures())
        assert torch.equal(after, without_halting(adapted, pictures())[0])
    assert restored is network
    assert not torch.allclose(before, after, atol=1e-3)


def test_what_was_replaced_is_restored_and_counted() -> None:
    network = simple()
    adapted = adapted_toy(network)
    adapted.network.fc = nn.Sequential(nn.Linear(C, 16), nn.ReLU(), nn.Linear(16, 3))
    adapted.network.note = "three classes"
    output, ponder = without_halting(adapted, pictures())
    assert output.shape == (2, 3)
    restored = sact.restore(adapted)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert torch.equal(restored(pictures()), output)
    assert restored is network and restored.note == "three classes"
    assert [name for name, _ in restored.named_children()] == ["stem", "layers", "fc"]
    assert 2 * ponder.dense_flops == counter.get_total_flops()


def test_reset_classifier_of_timm() -> None:
    network = timm.create_model("mobilenetv2_035").eval()
    adapted = sact.adapt(network)
    adapted.network.reset_classifier(7)
    assert adapted(pictures(1)).shape == (1, 7)
    restored = sact.restore(adapted)
    assert restored is network and restored.num_classes == 7 and restored(pictures(1)).shape == (1, 7)


@pytest.mark.parametrize("how", ["copied", "pickled"])
def test_copies_are_whole_and_apart(how: str) -> None:
    adapted = adapted_toy(toy("bottleneck", *[name for name in SKIPPING if name != "parametrised"], "squeeze-excite"))
    twin = copy.deepcopy(adapted) if how == "copied" else pickle.loads(pickle.dumps(adapted))
    with torch.no_grad():
        expected = adapted(pictures())
        assert torch.equal(twin(pictures()), expected)
    assert not storages(twin) & storages(adapted)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.1)
        assert torch.equal(adapted(pictures()), expected)
        restored = sact.restore(twin)
        assert storages(restored) < storages(twin)
        assert torch.equal(restored(pictures()), without_halting(twin, pictures())[0])
        torch.testing.assert_close(sact.compile(twin, "gather")(pictures()), twin(pictures()), rtol=1e-4, atol=1e-5)


def test_other_precisions() -> None:
    network = simple()
    adapted = adapted_toy(network).to(torch.float64)
    assert {tensor.dtype for tensor in adapted.parameters()} == {torch.float64}
    images = pictures().double()
    with torch.no_grad():
        assert torch.equal(without_halting(adapted, images)[0], sact.restore(adapted)(images))
    half = sact.adapt(simple().bfloat16())
    assert {tensor.dtype for tensor in half.parameters()} == {torch.bfloat16}
    assert half(pictures().bfloat16()).isfinite().all()


def test_what_drops_drops_in_training_mode_alone() -> None:
    network = toy("bottleneck", "identities", "drops")
    adapted = adapted_toy(network)
    fast = sact.compile(adapted, "gather")
    with torch.no_grad():
        assert torch.equal(adapted(pictures()), adapted(pictures()))
    for part in adapted.train().modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    results = []
    for call in (adapted, fast, adapted):
        torch.manual_seed(len(results) // 2)
        results.append(call(pictures()))
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])


@pytest.mark.parametrize("output", ["mean", "halted"])
@pytest.mark.parametrize("name", ["toy", "squeeze-excite", "ConvNeXt", "into its input"])
def test_gather_trains_as_the_definition(monkeypatch: pytest.MonkeyPatch, name: str, output: Any) -> None:
    """With norms in evaluation mode, in float64."""
    monkeypatch.setattr(gather, "DENSE_SHARE", 2.0)
    network = simple() if name == "toy" else toy("bottleneck", *[name] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = adapted_toy(network, output=output).double()
    found = []
    for call in (adapted, sact.compile(adapted, "gather")):
        adapted.zero_grad()
        logits, ponder = call(pictures(3, 24).double(), return_ponder=True)
        (logits.square().mean() + 0.1 * ponder.cost.mean()).backward()
        found.append({key: value.grad for key, value in adapted.named_parameters()})
        assert len(ponder.blocks[0].units.unique()) > 1
    assert all(gradient is not None for key, gradient in found[0].items() if "global_norm" not in key)
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-10)
    scores = [gradient for key, gradient in found[0].items() if "local_conv.weight" in key]
    assert all(gradient.abs().max() > 1e-6 for gradient in scores)


def test_heads_alone_can_learn() -> None:
    adapted = adapted_toy().train()
    frozen = copy.deepcopy(sact.restore(adapted).state_dict())
    for parameter in sact.restore(adapted).parameters():
        parameter.requires_grad_(False)
    sact.restore(adapted).eval()
    step(adapted)
    torch.testing.assert_close(sact.restore(adapted).state_dict(), frozen, rtol=0, atol=0)
    assert all(parameter.grad is not None for parameter in adapted.score_parameters())


# Halting


def test_act_halts_whole_images() -> None:
    adapted = adapted_toy(halting="act")
    assert adapted.halting == "act"
    images = torch.cat([pictures(6), 3 * pictures(6)])
    with torch.no_grad():
        expected, ponder = adapted(images, return_ponder=True)
        found, ours = sact.compile(adapted, "gather")(images, return_ponder=True)
    assert ponder.blocks[0].units.shape == (12,)
    assert torch.equal(ours.blocks[0].units, ponder.blocks[0].units)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(ponder.blocks[0].units.unique()) > 1


@pytest.mark.parametrize("halting", ["act", "sact"])
def test_halting_is_switched(halting: Any) -> None:
    network = simple()
    adapted = adapted_toy(network, halting)
    with torch.no_grad():
        halted = adapted(pictures())
        adapted.halting = "none"
        assert adapted.config.halting == "none"
        assert torch.equal(adapted(pictures()), network(pictures()))
        adapted.halting = halting
        assert torch.equal(adapted(pictures()), halted)
        assert not torch.equal(halted, network(pictures()))
    other = "sact" if halting == "act" else "act"
    with pytest.raises(sact.InputError, match=f'adapted for "{halting}"'):
        adapted.halting = other


def test_fresh_heads_let_nearly_everything_run() -> None:
    adapted = sact.adapt(simple())
    with torch.no_grad():
        _, ponder = adapted(pictures(), return_ponder=True)
    assert ponder.blocks[0].units.float().mean() > 3.5
    assert all(float(head.local_conv.bias) == SCORE_BIAS for head in adapted.blocks[0].scores)


@torch.no_grad()
@pytest.mark.parametrize("engine", ["masked", "gather"])
def test_output_halted_is_the_state_in_which_each_position_stopped(
    monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setattr(gather, "DENSE_SHARE", 2.0)
    network = toy("bottleneck", "grouped", "ConvNeXt", "preactivated")
    network.fc = nn.Identity()
    adapted = adapted_toy(network, output="halted")
    units = torch.randint(1, 5, (2, 32, 32))
    adapted.blocks[0].forced_units = units
    x = network.layers[0](network.stem(pictures()))
    for index in range(1, 4):
        x = torch.where((units > index)[:, None], network.layers[index](x), x)
    found = sact.compile(adapted, engine)(pictures())
    torch.testing.assert_close(found, x.mean((2, 3)), rtol=1e-5, atol=1e-6)
    adapted.blocks[0].output = "mean"
    adapted.blocks[0].forced_units = None
    mean = adapted(pictures())
    adapted.blocks[0].output = "halted"
    assert not torch.allclose(adapted(pictures()), mean, atol=1e-3)


def test_output_halted_has_the_gradient_of_the_mean() -> None:
    """Straight-through: of heads as well."""
    adapted = adapted_toy(output="halted")
    adapted.network.fc = nn.Identity()
    incoming = torch.randn(2, C)
    found = []
    for output in ("mean", "halted"):
        adapted.zero_grad()
        adapted.blocks[0].output = output
        adapted(pictures()).backward(incoming)
        found.append([parameter.grad.clone() for parameter in adapted.score_parameters() if parameter.grad is not None])
    torch.testing.assert_close(found[1], found[0])
    assert sum(gradient.abs().max() > 0 for gradient in found[1]) >= 6


def test_threads_do_not_mix_their_images() -> None:
    adapted = adapted_toy()
    fast = sact.compile(adapted, "gather")
    batches = [pictures(1, side) for side in (16, 24, 32, 40)] * 3
    with torch.no_grad():
        expected = [adapted(images) for images in batches]

    def run(call: Any, images: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = call(images)
        return result

    with ThreadPoolExecutor(4) as pool:
        for call in (adapted, fast):
            for found, wanted in zip(pool.map(partial(run, call), batches), expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["masked", "gather"])
def test_torch_compile(engine: str) -> None:
    adapted = adapted_toy(toy("bottleneck", "grouped"))
    call = sact.compile(adapted, engine)
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(call, backend="eager")(pictures(1, 16))
        torch.testing.assert_close(found, adapted(pictures(1, 16)), rtol=1e-4, atol=1e-5)


# Units by name


def test_named_units_become_blocks() -> None:
    network = torchvision.models.resnet18(weights=None).eval()
    names = [["layer2.0", "layer2.1"], ["layer4.0", "layer4.1"]]
    adapted = sact.adapt(network, blocks=names)
    assert [list(each) for each in adapted.config.blocks] == names
    with torch.no_grad():
        assert torch.equal(without_halting(adapted, pictures())[0], network(pictures()))


def test_units_that_stand_anywhere_can_be_named() -> None:
    class Scattered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.third = nn.Conv2d(3, C, 3), Unit(conv())
            self.second, self.first = nn.ModuleDict({"unit": Unit(conv())}), Unit(conv())

        def forward(self, x: Tensor) -> Tensor:
            return self.third(self.second["unit"](self.first(self.stem(x)))).mean((2, 3))

    network = Scattered().eval()
    adapted = adapted_toy(network, blocks=[["first", "second.unit", "third"]])
    with torch.no_grad():
        assert torch.equal(without_halting(adapted, pictures())[0], network(pictures()))
        assert not torch.equal(adapted(pictures()), network(pictures()))
    assert sact.restore(adapted) is network


def test_the_first_unit_may_be_anything() -> None:
    network = ToyNetwork(refused("concat"), Unit(conv()), Unit(conv())).eval()
    adapted = sact.adapt(network)
    assert adapted.config.blocks == (("layers.0", "layers.1", "layers.2"),)
    with torch.no_grad():
        assert torch.equal(without_halting(adapted, pictures())[0], network(pictures()))


def test_runs_end_at_what_cannot_be_described() -> None:
    network = ToyNetwork(Unit(conv()), Unit(conv()), refused("concat"), Unit(conv()), Unit(conv())).eval()
    adapted = sact.adapt(network)
    assert adapted.config.blocks == (("layers.0", "layers.1"), ("layers.2", "layers.3", "layers.4"))


@pytest.mark.parametrize("name", [*PARTLY, *WHOLE])
def test_units_that_are_computed_everywhere_are_warned_about(name: str) -> None:
    network = toy("bottleneck", "grouped", name)
    with pytest.warns(UserWarning, match="computed everywhere") as records:
        sact.adapt(network)
    said = [each for each in records if "Triggered internally" not in str(each.message)]  # by PyTorch
    assert len(said) == 1
    message, culprit = str(said[0].message), {**PARTLY, **WHOLE}[name][1]
    assert ("up to" in message) == (name in PARTLY)
    assert "layers.2" in message and culprit in message and "layers.1" not in message
    assert said[0].filename == __file__


# Bad input


def check(message: str, model: Any = None, **options: Any) -> None:
    with pytest.raises(sact.InputError, match=message):
        sact.adapt(simple() if model is None else model, **options)


@pytest.mark.parametrize("build", [_torchvision("vgg11"), _torchvision("alexnet")], ids=["vgg", "alexnet"])
def test_networks_without_residual_units(build: Callable[[], nn.Module]) -> None:
    with torch.device("meta"):
        network = build()
    network = network.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    check(r"has no run of residual units of one shape; name them, for instance blocks=\[\[", network)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"halting": "some"}, 'halting is "some", but it must be one of "none", "act", "sact"'),
        ({"output": "last"}, 'output is "last", but it must be one of mean, halted'),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"eps": 1.5}, "eps is 1.5"),
        ({"blocks": []}, "it must be a list of lists"),
        ({"blocks": "layers"}, "it must be a list of lists"),
        ({"blocks": ["layers.0", "layers.1"]}, "it must be a list of lists"),
        ({"blocks": [["layers.0"]]}, r"\['layers.0'\] has 1 unit; it needs two"),
        ({"blocks": [[]]}, "has 0 unit"),
        ({"blocks": [["layers.0", "layers.9"]]}, 'there is no module "layers.9" in ToyNetwork'),
        ({"blocks": [["layers.0", "layers.1", "layers.1"]]}, '"layers.1" is named twice'),
        ({"blocks": [["layers.0", "layers.1"], ["layers.1", "layers.2"]]}, '"layers.1" is named twice'),
        ({"blocks": [["layers", "layers.1"]]}, '"layers.1" is named twice, or is a part of another one'),
        ({"blocks": [["layers.1", "layers.0"]]}, 'does not read what "layers.1" gives; name units in the order'),
        ({"blocks": [["layers.0", "layers.2"]]}, '"layers.2" does not read what "layers.0" gives'),
        ({"blocks": [["layers.3", "fc"]]}, '"fc" does not read what'),
        ({"blocks": [["stem.0", "stem.1"]]}, r'"stem.1" \(BatchNorm2d\) cannot be described'),
        ({"architecture": "timm/resnet18"}, "other tensors than this one has"),
        ({"image_size": 0}, "image_size is 0"),
    ],
    ids=str,
)
def test_options_that_are_wrong(options: dict[str, Any], message: str) -> None:
    check(message, **options)


def test_named_units_of_differing_shapes() -> None:
    check(
        r'"layer2.0" makes \[64, 16, 16\] into \[128, 8, 8\] \(C, H, W\)',
        torchvision.models.resnet18(weights=None),
        blocks=[["layer1.1", "layer2.0", "layer2.1"]],
    )


@pytest.mark.parametrize("name", REFUSED)
def test_named_units_that_cannot_be_described(name: str) -> None:
    network = ToyNetwork(Unit(conv()), refused(name)).eval()
    if name == "channels last":
        check("does not run on an image", network, blocks=[["layers.0", "layers.1"]])
        return
    message = rf'the unit "layers.1" \(_Forward\) cannot be described: .*({REFUSED[name][1]})'
    check(message, network, blocks=[["layers.0", "layers.1"]])


def test_a_unit_that_runs_twice() -> None:
    class Again(ToyNetwork):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.layers(self.layers(self.stem(x))).mean((2, 3)))

    network = Again(Unit(conv()), Unit(conv()))
    check('"layers.0" runs 2 times per image', network, blocks=[["layers.0", "layers.1"]])
    check("no run of residual units", network)


def test_a_unit_that_does_not_run() -> None:
    network = simple()
    network.spare = nn.Sequential(Unit(conv()), Unit(conv()))
    check('"spare.0" does not run', network, blocks=[["spare.0", "spare.1"]])
    assert sact.adapt(network).config.blocks == (tuple(f"layers.{index}" for index in range(4)),)


@pytest.mark.parametrize("blocks", [None, [["layers.0", "layers.1"]]])
def test_states_that_something_else_reads(blocks: Any) -> None:
    class Dense(ToyNetwork):
        def forward(self, x: Tensor) -> Tensor:
            first = self.layers[0](self.stem(x))
            return self.fc((first + self.layers[1](first)).mean((2, 3)))

    network = Dense(Unit(conv()), Unit(conv())).eval()
    check(r"\['layers.0', 'layers.1'\]\] run as blocks: something else reads or runs", network, blocks=blocks)


def test_units_that_the_network_also_knows_by_another_way() -> None:
    class Listed(ToyNetwork):
        def __init__(self) -> None:
            super().__init__(Unit(conv()), Unit(conv()))
            self.order = [*self.layers]

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for layer in self.order:
                x = layer(x)
            return self.fc(x.mean((2, 3)))

    check("something else reads or runs what is inside", Listed().eval())


def test_networks_that_take_something_else() -> None:
    class Masked(ToyNetwork):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x * mask)

    check("does not run on an image .* name the side that it takes with image_size", Masked(Unit(conv())))
    check("Linear has no 2-D convolution", nn.Linear(3, 3))


def test_networks_of_one_size() -> None:
    class Fixed(ToyNetwork):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] != 48:
                raise ValueError("48 pixels, please")
            return super().forward(x)

    network = Fixed(Unit(conv()), Unit(conv())).eval()
    check(r"does not run on an image \[1, 3, 224, 224\] \(48 pixels, please\)", network)
    adapted = sact.adapt(network, image_size=48)
    assert adapted(pictures(1, 48)).shape == (1, 5)


def test_networks_that_count_on_values_or_on_tensors_of_their_own() -> None:
    """FLOPs are counted without values where that is possible."""

    class Scaled(ToyNetwork):
        def forward(self, x: Tensor) -> Tensor:
            factor = torch.ones(1, 3, 1, 1)
            return super().forward(x * factor if float(x.abs().max()) < 100 else x)

    network = Scaled(Unit(conv()), Unit(conv())).eval()
    adapted = sact.adapt(network)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(pictures(1))
    assert without_halting(adapted, pictures(1))[1].dense_flops == counter.get_total_flops()


@pytest.mark.parametrize("compiled", [False, True])
def test_networks_that_are_adaptive_already(compiled: bool) -> None:
    adapted = adapted_toy()
    model = sact.compile(adapted, "gather") if compiled else adapted
    check("it is adaptive already", model)
    check("it is adaptive already", sact.create_model("cifar_resnet20"))


@pytest.mark.parametrize("model", ["resnet18", None, 3, torch.ones(3)], ids=["name", "None", "number", "tensor"])
def test_what_is_no_network(model: Any) -> None:
    with pytest.raises(sact.InputError, match=f"a torch.nn.Module, but got {type(model).__name__}"):
        sact.adapt(model)
    with pytest.raises(sact.InputError, match=f"takes what sact.adapt returned, got {type(model).__name__}"):
        sact.restore(model)


def test_restoring_what_was_not_adapted() -> None:
    for model in (simple(), sact.create_model("cifar_resnet20"), sact.compile(sact.create_model("cifar_resnet20"))):
        with pytest.raises(sact.InputError, match="takes what sact.adapt returned, got"):
            sact.restore(model)


def test_the_inside_of_an_adapted_network_does_not_run_by_itself() -> None:
    with pytest.raises(sact.InputError, match="call what sact.adapt returned"):
        adapted_toy().network(pictures())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pictures(1, channels=1), "images have 1 channels, but this network takes 3"),
        (pictures().double(), "torch.float64"),
        (torch.full((1, 3, 16, 16), torch.nan), "NaN"),
        (pictures()[0], "one image is a batch of one"),
    ],
    ids=["channels", "dtype", "nan", "rank"],
)
def test_images_that_are_wrong(images: Tensor, message: str) -> None:
    with pytest.raises(sact.InputError, match=message):
        adapted_toy()(images)

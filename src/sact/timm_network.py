"""A network of this library with timm's methods and attributes, as classifier and as a source of features."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .engines import Engine, Run, choose, prepare
from .errors import InputError, require
from .flops import conv_flops
from .layers import init_weights
from .models import Network
from .models.registry import build
from .ponder import Ponder

require("timm.models", "timm")  # says how to install it
from timm.layers import SelectAdaptivePool2d  # noqa: E402

POOLS = ("avg", "max", "avgmax", "")

Indices = int | Sequence[int] | None
"""Which features: all, the last n, or these (negative ones from the end)."""


class TimmNetwork(nn.Module):
    """A network of this library with timm's methods and attributes. It shares the weights of the one that is given.

    Args:
        network: a classifier or a backbone.
        global_pool: "avg", "max", "avgmax", or "" to keep positions apart.
        drop_rate: dropout before the classifier in training, in [0, 1).
        engine: as in `sact.compile`; "masked" is the definition and skips nothing. Readable and writable.

    Attributes:
        backbone: stem and blocks, a `Network` that returns the blocks' outputs.
        ponder: what the last call spent, differentiable, or None; replaced at each call, not copied or pickled.
        feature_info: channels, reduction and module of every feature: where the stem ends in pooling its convolution's
            output, then the blocks' outputs.
        num_classes: 0 without a classifier.
        num_features: channels of the last feature.
    """

    ponder: Ponder | None
    classifier: nn.Conv2d | nn.Identity

    def __init__(
        self, network: Network, global_pool: str = "avg", drop_rate: float = 0.0, engine: Engine = "masked"
    ) -> None:
        super().__init__()
        if not isinstance(network, Network):
            raise InputError(
                f"TimmNetwork takes a network made by sact, got {type(network).__name__}; see sact.create_model"
            )
        if not 0.0 <= drop_rate < 1.0:
            raise InputError(f"drop_rate is {drop_rate}, but it must lie in [0, 1)")
        head, classifier = network.head, network.classifier
        self.backbone = Network(
            replace(network.config, features_only=True),
            network.stem,
            list(network.blocks),
            nn.Sequential(),
            nn.Conv2d(1, 1, 1),  # left out, as the head is
            network.feature_channels,
            network.feature_strides,
        )
        self.backbone.preprocessing, self.backbone.class_names = network.preprocessing, network.class_names
        self.head = nn.Sequential(OrderedDict([("pool", nn.Identity())] if head is None else head.named_children()))
        self.classifier = nn.Identity() if classifier is None else classifier
        self.num_classes = 0 if classifier is None else classifier.out_channels
        self.in_chans = network.config.in_channels
        self.num_features = self.head_hidden_size = network.feature_channels[-1]
        self.drop_rate = drop_rate
        self.feature_info = _feature_info(network)
        self.ponder = None
        self.set_pool(global_pool)
        self.engine = engine

    @property
    def engine(self) -> Engine:
        """How the blocks are evaluated."""
        return self._engine

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self._run: Run = prepare(self.backbone, choose(engine, next(self.parameters()).device))
        self._engine = engine

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TimmNetwork:
        """What `to`, `cuda` and the like come down to."""
        super()._apply(fn, recurse)
        self.engine = self._engine
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_run"} | {"ponder": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.engine = self._engine

    def forward(self, images: Tensor, return_ponder: bool = False) -> Tensor | tuple[Tensor, Ponder]:
        """Classify images.

        Args:
            images: [N, in_chans, H, W], floating point, both sides at least 32.
            return_ponder: also return what it spent, which `ponder` holds in any case.

        Returns:
            Logits [N, num_classes], or without a classifier pooled features [N, num_features]; with `global_pool=""`
            both keep their positions, [N, ..., H', W'].

        Raises:
            InputError: as `Network.forward`.
        """
        features, ponder = self._run_backbone(images)
        output = self.forward_head(self._before_pool(features[-1]))
        if isinstance(self.classifier, nn.Conv2d):
            ponder.fixed_flops += conv_flops(self.classifier) * prod(output.shape[2:])
        return (output, ponder) if return_ponder else output

    def forward_features(self, images: Tensor) -> Tensor:
        """What the head pools: [N, num_features, H', W'], of the ImageNet family behind the last norm."""
        return self._before_pool(self._run_backbone(images)[0][-1])

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """From `forward_features` to logits, or to what the classifier sees."""
        for layer in list(self.head)[self._pool_index :]:
            features = layer(features)
        features = F.dropout(features, self.drop_rate, self.training)
        output = features if pre_logits else self.classifier(features)
        return output.flatten(1) if self.global_pool else output

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Indices = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features at several resolutions.

        Args:
            x: images, as `forward` takes them.
            indices: positions in `feature_info`.
            norm: apply the last norm to the last block's output.
            stop_early: of no effect; `prune_intermediate_layers` leaves out blocks that are not needed.
            output_fmt: "NCHW".
            intermediates_only: leave out the first result.

        Returns:
            What `forward_features` returns, and the list of features [N, C_k, H_k, W_k].

        Raises:
            InputError: there is no such feature or format.
        """
        if output_fmt != "NCHW":
            raise InputError(f'output_fmt is "{output_fmt}", but features are "NCHW"')
        taken = _take(len(self.feature_info), indices)
        outputs, ponder = self._run_backbone(x)
        normed = self._before_pool(outputs[-1])
        features = [*outputs[:-1], normed if norm else outputs[-1]]
        if len(self.backbone.stem) > 1:
            features = [self._stem_feature(x, ponder) if 0 in taken else x, *features]
        found = [features[index] for index in taken]
        return found if intermediates_only else (normed, found)

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Leave out what the features at `indices` do not need; returns them counted from the first."""
        taken = _take(len(self.feature_info), indices)
        kept = max(max(taken) + len(self.backbone.blocks) - len(self.feature_info) + 1, 1)
        ends_early = kept < len(self.backbone.blocks)
        if ends_early:
            backbone = self.backbone
            backbone.blocks = nn.ModuleList(list(backbone.blocks)[:kept])  # type: ignore[assignment]
            backbone.feature_channels = backbone.feature_channels[:kept]
            backbone.feature_strides = backbone.feature_strides[:kept]
            backbone.config = replace(backbone.config, units=backbone.config.units[:kept])
            self.num_features = self.head_hidden_size = backbone.feature_channels[-1]
            self.engine = self._engine
        if prune_norm or prune_head or ends_early:
            self.reset_classifier(0, "")
        if prune_norm or ends_early:
            self.head = nn.Sequential(OrderedDict(pool=nn.Identity()))
        return taken

    def get_classifier(self) -> nn.Module:
        """The classifier, a 1x1 convolution, or the identity."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one; 0 classes leave it out."""
        self.num_classes = num_classes
        self.classifier = nn.Identity()
        if num_classes:
            weight = next(self.parameters())
            self.classifier = nn.Conv2d(self.num_features, num_classes, 1, device=weight.device, dtype=weight.dtype)
            init_weights(self.classifier)
        if global_pool is not None:
            self.set_pool(global_pool)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How layers of equal depth are found by name, for learning rates that fall with depth."""
        unit = r"^backbone\.blocks\.(\d+)" if coarse else r"^backbone\.blocks\.(\d+)\.(?:units|scores)\.(\d+)"
        return {"stem": r"^backbone\.stem", "blocks": [(unit, None), (r"^head", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Raise InputError if `enable`: blocks are not computed again for their gradients."""
        if enable:
            raise InputError('sact networks have no gradient checkpointing; engine="gather" keeps less in training')

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:  # PyTorch's own named tuple
        """As `nn.Module.load_state_dict`; the tensors of a `model.safetensors` of this library fit, too."""
        return super().load_state_dict(timm_names(state_dict), strict, assign)

    def to_network(self) -> Network:
        """A copy as this library's own network, for `save_pretrained`, `sact.compile` and the rest.

        Raises:
            InputError: pooling is not that of this library.
        """
        if self.num_classes and self.global_pool != "avg":
            raise InputError(f'global_pool is "{self.global_pool}", but sact\'s own classifiers pool by "avg"')
        features_only = self.num_classes == 0
        classes = self.num_classes or self.backbone.config.num_classes
        network = build(replace(self.backbone.config, features_only=features_only, num_classes=classes))
        weights = {name.removeprefix("backbone."): tensor for name, tensor in self.state_dict().items()}
        expected = network.state_dict()
        network.load_state_dict({name: weights[name] for name in expected})
        network.preprocessing, network.class_names = self.backbone.preprocessing, self.backbone.class_names
        parameter = next(self.parameters())
        return network.train(self.training).to(parameter.device, parameter.dtype)

    @property
    def _pool_index(self) -> int:
        return next(index for index, (name, _) in enumerate(self.head.named_children()) if name == "pool")

    def _before_pool(self, features: Tensor) -> Tensor:
        for layer in list(self.head)[: self._pool_index]:
            features = layer(features)
        return features

    def set_pool(self, global_pool: str) -> None:
        """Pool otherwise, see `global_pool`."""
        if global_pool not in POOLS:
            raise InputError(f'global_pool is "{global_pool}", but it must be one of "avg", "max", "avgmax", ""')
        self.global_pool = global_pool
        self.head.pool = SelectAdaptivePool2d(pool_type=global_pool) if global_pool else nn.Identity()

    def _run_backbone(self, images: Tensor) -> tuple[list[Tensor], Ponder]:
        features, ponder = self._run(images)
        assert isinstance(features, list)
        if not torch.compiler.is_exporting():  # a program has no place for it
            self.ponder = ponder
        return features, ponder

    def _stem_feature(self, images: Tensor, ponder: Ponder) -> Tensor:
        """The output of the stem's convolution, computed once more: engines return what blocks return."""
        conv = self.backbone.stem[0]
        assert isinstance(conv, nn.Conv2d)
        feature: Tensor = conv(images)
        ponder.fixed_flops += conv_flops(conv) * prod(feature.shape[2:])
        return feature


def _feature_info(network: Network) -> list[dict[str, Any]]:
    stem_conv = network.stem[0]
    assert isinstance(stem_conv, nn.Conv2d)
    info: list[dict[str, Any]] = []
    if len(network.stem) > 1:
        stem = {"num_chs": stem_conv.out_channels, "reduction": stem_conv.stride[0], "module": "backbone.stem.conv"}
        info.append(stem)
    for index, (channels, stride) in enumerate(zip(network.feature_channels, network.feature_strides, strict=True)):
        info.append({"num_chs": channels, "reduction": stride, "module": f"backbone.blocks.{index}"})
    return info


def _take(count: int, indices: Indices) -> list[int]:
    if indices is None:
        return list(range(count))
    wanted = list(range(-indices, 0)) if isinstance(indices, int) else list(indices)
    if not wanted or not all(-count <= index < count for index in wanted):
        raise InputError(f"feature indices are {indices}, but this network has {count} features, 0 to {count - 1}")
    return [index % count for index in wanted]


def timm_names(tensors: Mapping[str, Any], model: nn.Module | None = None) -> dict[str, Any]:
    """A state dict with this library's names as one with those of `TimmNetwork`, which stay as they are."""
    return {
        f"backbone.{name}" if name.startswith(("stem.", "blocks.")) else name: value for name, value in tensors.items()
    }

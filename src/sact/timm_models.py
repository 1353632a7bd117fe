"""This library's networks by name in timm: importing this module makes `timm.create_model("sact_resnet101")` work.

`import sact` imports it where timm has been imported before. What is built on timm, such as
segmentation_models_pytorch, then finds the networks by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .engines import Engine
from .errors import InputError
from .halting import EPS
from .models import create_model, list_models
from .models.registry import CONFIGS
from .ponder import Ponder
from .scores import Halting
from .timm_network import Indices, TimmNetwork, timm_names

# Behind ours, which says how to install timm where it is missing.
from timm.models import FeatureInfo, build_model_with_cfg, generate_default_cfgs, register_model  # isort: skip

PREFIX = "sact_"
FIXED = {"output_stride": 32, "drop_path_rate": 0.0, "drop_block_rate": 0.0, "pruned": False}
"""Options of timm's networks that have one value here."""


class TimmFeatures(nn.Module):
    """What `features_only=True` gives: images to the list of features at `out_indices`.

    Attributes:
        feature_info: `channels()`, `reduction()` and `module_name()` of these features.
        ponder: what the last call spent, see `TimmNetwork`.
    """

    def __init__(self, model: TimmNetwork, out_indices: Indices = None) -> None:
        super().__init__()
        taken = model.prune_intermediate_layers(out_indices, prune_norm=True)
        self.feature_info = FeatureInfo(model.feature_info, tuple(taken))
        self.model = model

    @property
    def ponder(self) -> Ponder | None:
        """What the last call spent."""
        return self.model.ponder

    def forward(self, images: Tensor) -> list[Tensor]:
        """[N, in_chans, H, W] to features [N, C_k, H_k, W_k]."""
        features = self.model.forward_intermediates(images, self.feature_info.out_indices, intermediates_only=True)
        assert isinstance(features, list)
        return features


def _make(
    name: str,
    num_classes: int,
    in_chans: int,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    halting: Halting = "sact",
    eps: float = EPS,
    units: Sequence[int] | None = None,
    base_channels: int | None = None,
    engine: Engine = "masked",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **others: Any,
) -> TimmNetwork:
    for option, value in others.items():
        if option not in FIXED:
            raise InputError(f"{PREFIX}{name} has no option {option} (it is {value!r}); leave it out")
        if value != FIXED[option]:
            raise InputError(f"{option} is {value!r}, but networks of sact know {FIXED[option]!r} alone; leave it out")
    network = create_model(name, halting, num_classes or 1, in_chans, eps, units, base_channels)
    model = TimmNetwork(network, "avg", drop_rate, engine)
    if num_classes == 0:
        model.reset_classifier(0)
    model.set_pool(global_pool)
    return model.to(device=device, dtype=dtype)


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        if isinstance(options.get("feature_cls", TimmFeatures), str) and options["feature_cls"] != "getter":
            raise InputError(
                f'feature_cls is "{options["feature_cls"]}", but sact networks know "getter"; leave it out'
            )
        model: nn.Module = build_model_with_cfg(
            lambda **arguments: _make(name, **arguments),
            PREFIX + name,
            pretrained,
            feature_cfg={"out_indices": None, "feature_cls": TimmFeatures},
            pretrained_filter_fn=timm_names,
            **options,
        )
        return model

    create.__name__ = create.__qualname__ = PREFIX + name
    create.__doc__ = f'`sact.create_model("{name}", halting="sact")` for timm, see `TimmNetwork`.'
    return create


def _default_cfg(name: str) -> dict[str, Any]:
    cifar = CONFIGS[name].family == "cifar_resnet"
    side = 32 if cifar else 224
    return {
        "url": "",
        "num_classes": CONFIGS[name].num_classes,
        "input_size": (3, side, side),
        "min_input_size": (3, 32, 32),
        "pool_size": (8, 8) if cifar else (7, 7),
        "crop_pct": 1.0 if cifar else 0.875,
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "backbone.stem.conv",
        "classifier": "classifier",
    }


default_cfgs = generate_default_cfgs({PREFIX + name: _default_cfg(name) for name in list_models()})

__all__ = ["TimmFeatures", "TimmNetwork"]  # timm adds what is registered
if not TYPE_CHECKING:
    globals().update({PREFIX + name: register_model(_entrypoint(name)) for name in list_models()})

"""Networks by name."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, TypeGuard, get_args

from ..errors import InputError
from ..halting import EPS
from ..scores import Halting
from . import cifar, resnet
from .network import Network, NetworkConfig

FAMILIES = {"resnet": resnet.build, "cifar_resnet": cifar.build}

_IMAGENET = NetworkConfig("resnet", (), base_channels=64, num_classes=1000)
_CIFAR = NetworkConfig("cifar_resnet", (), base_channels=16, num_classes=10)

CONFIGS: dict[str, NetworkConfig] = {
    "resnet50": replace(_IMAGENET, units=(3, 4, 6, 3)),
    "resnet101": replace(_IMAGENET, units=(3, 4, 23, 3)),
    "resnet152": replace(_IMAGENET, units=(3, 8, 36, 3)),
    "resnet200": replace(_IMAGENET, units=(3, 24, 36, 3)),
    **{f"cifar_resnet{6 * n + 2}": replace(_CIFAR, units=(n, n, n)) for n in (3, 5, 7, 9, 18)},
}
FREE_FORMS = {"resnet": _IMAGENET, "cifar_resnet": _CIFAR}


def list_models() -> list[str]:
    """Names that `create_model` takes as they are; the free forms "resnet" and "cifar_resnet" also need `units`."""
    return list(CONFIGS)


def create_model(
    name: str,
    halting: Halting = "none",
    num_classes: int | None = None,
    in_channels: int = 3,
    eps: float = EPS,
    units: Sequence[int] | None = None,
    base_channels: int | None = None,
    features_only: bool = False,
    output_stride: int | None = None,
) -> Network:
    """Create a network with fresh weights.

    Args:
        name: one of `list_models()`, "cifar_resnetD" of any depth D = 6n + 2, or a free form "resnet" / "cifar_resnet".
        halting: "none" (plain), "act" (halting per image) or "sact" (per position).
        num_classes: outputs; 1000 / 10 by default.
        in_channels: channels of the images.
        eps: in (0, 1); a position halts once its cumulative score reaches 1 - eps.
        units: units per block, each at least 1. The free forms need it; elsewhere it replaces the named list.
        base_channels: width of the first block; doubled in each later block.
        features_only: return the list of block outputs instead of logits, for detection backbones.
        output_stride: a power of 2, the most pixels of the image per position; blocks that would go beyond it keep the
            resolution of the one before. By default every block but the first halves it.

    Raises:
        InputError: an unknown name, a free form without units, or a value out of range.

    Source: section 4.1 (ImageNet family), section 4.2 (CIFAR family).
    """
    config = make_config(
        name,
        halting=halting,
        num_classes=num_classes,
        in_channels=in_channels,
        eps=eps,
        units=units,
        base_channels=base_channels,
        features_only=features_only,
        output_stride=output_stride,
    )
    return build(config)


def make_config(
    name: str,
    *,
    halting: Halting = "none",
    num_classes: int | None = None,
    in_channels: int = 3,
    eps: float = EPS,
    units: Sequence[int] | None = None,
    base_channels: int | None = None,
    features_only: bool = False,
    output_stride: int | None = None,
) -> NetworkConfig:
    """The configuration that `create_model` builds from; its arguments.

    Raises:
        InputError: as `create_model`.
    """
    base = _find(name)
    if units is None and not base.units:
        raise InputError(f'model "{name}" needs units, the number of units per block, for instance units=[2, 3, 4, 2]')
    try:
        counts = base.units if units is None else tuple(operator.index(count) for count in units)
    except TypeError as error:
        raise InputError(f"units is {units!r}, but it must be a list of whole numbers, one per block") from error
    config = replace(
        base,
        units=counts,
        base_channels=base.base_channels if base_channels is None else base_channels,
        num_classes=base.num_classes if num_classes is None else num_classes,
        in_channels=in_channels,
        halting=halting,
        eps=eps,
        features_only=features_only,
        output_stride=output_stride,
    )
    check_config(config)
    return config


def build(config: NetworkConfig) -> Network:
    """Create the network that a configuration describes.

    Raises:
        InputError: a value out of range.
    """
    check_config(config)
    return FAMILIES[config.family](config)


def check_config(config: NetworkConfig) -> None:
    """Raise InputError, naming the field and its value, if `config` describes no network."""
    if config.family not in FAMILIES:
        raise InputError(f'family is "{config.family}", but it must be one of {", ".join(FAMILIES)}')
    if config.halting not in get_args(Halting):
        raise InputError(f'halting is "{config.halting}", but it must be one of "none", "act", "sact"')
    if not config.units or not all(is_count(count) for count in config.units):
        raise InputError(f"units is {list(config.units)}, but every block needs at least 1 unit")
    for field in ("base_channels", "num_classes", "in_channels"):
        if not is_count(getattr(config, field)):
            raise InputError(f"{field} is {getattr(config, field)}, but it must be a whole number of at least 1")
    stride = config.output_stride
    if stride is not None and not (is_count(stride) and stride.bit_count() == 1):
        raise InputError(f"output_stride is {stride!r}, but it must be a power of 2 such as 8, or None for no limit")
    check_eps(config.eps)


def config_from_dict(fields: dict[str, Any]) -> NetworkConfig:
    """The inverse of `NetworkConfig.to_dict`.

    Raises:
        InputError: a field is missing, unknown or out of range.
    """
    try:
        config = NetworkConfig(**(fields | {"units": tuple(fields["units"])}))
    except (TypeError, KeyError) as error:
        raise InputError(f"the configuration does not describe a network of this version: {error}") from error
    check_config(config)
    return config


def check_eps(eps: float) -> None:
    """Raise InputError unless `eps` lies in (0, 1)."""
    if not isinstance(eps, Real) or not 0.0 < eps < 1.0:
        raise InputError(f"eps is {eps}, but it must lie strictly between 0 and 1; the paper uses {EPS}")


def is_count(value: object) -> TypeGuard[int]:
    """Whether something is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _find(name: str) -> NetworkConfig:
    if not isinstance(name, str):
        raise InputError(f"the name of a model is {name!r}, but it must be text; choose one of {', '.join(CONFIGS)}")
    if name in CONFIGS:
        return CONFIGS[name]
    if name in FREE_FORMS:
        return FREE_FORMS[name]
    depth = re.fullmatch(r"cifar_resnet([0-9]{1,4})", name)
    if depth and int(depth[1]) >= 8 and (int(depth[1]) - 2) % 6 == 0:
        n = (int(depth[1]) - 2) // 6
        return replace(_CIFAR, units=(n, n, n))
    near = difflib.get_close_matches(name, CONFIGS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join([*CONFIGS, *FREE_FORMS])}"
    raise InputError(f'there is no model "{name}"; {hint}')

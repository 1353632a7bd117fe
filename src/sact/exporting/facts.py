"""What travels with an exported network, as text by name."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version

from ..models.adaptive import AdaptiveNetwork


def facts(network: AdaptiveNetwork) -> dict[str, str]:
    """Version, configuration, preprocessing, class names and budget, those that there are; JSON."""
    try:
        here = version("sact")
    except PackageNotFoundError:  # a source tree that is not installed
        here = "0.0.0"
    values = {
        "sact_version": here,
        "config": network.config.to_dict(),
        "preprocessing": network.preprocessing,
        "class_names": network.class_names,
        "budget": network.budget,
        "score_shift": network.blocks[0].score_shift if len(network.blocks) else None,
    }
    return {f"sact.{name}.json": json.dumps(value) for name, value in values.items() if value is not None}

"""The networks: stem, blocks, head; built by name."""

from .adapted import AdaptedNetwork
from .adaptive import AdaptiveNetwork
from .network import Network, NetworkConfig
from .registry import build, config_from_dict, create_model, list_models

__all__ = [
    "AdaptedNetwork",
    "AdaptiveNetwork",
    "Network",
    "NetworkConfig",
    "build",
    "config_from_dict",
    "create_model",
    "list_models",
]

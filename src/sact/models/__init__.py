"""The networks: stem, blocks, head; built by name."""

from .adapted import AdaptedNetwork
from .adaptive import AdaptiveNetwork
from .detector import Detector, create_detector
from .network import Network, NetworkConfig
from .registry import build, config_from_dict, create_model, list_models
from .segmenter import Segmenter, create_segmenter

__all__ = [
    "AdaptedNetwork",
    "AdaptiveNetwork",
    "Detector",
    "Network",
    "NetworkConfig",
    "Segmenter",
    "build",
    "config_from_dict",
    "create_detector",
    "create_model",
    "create_segmenter",
    "list_models",
]

"""Networks as files that run without this library: `sact.export`."""

from .export import Exported, export

__all__ = ["Exported", "export"]

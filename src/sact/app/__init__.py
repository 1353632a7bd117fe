"""The page of `sact serve`: drop a photograph, see the class and where the work went, turn the budget.

Nothing here is imported by the rest of the library; it needs the extra "app".
"""

from __future__ import annotations

import os

# Before anything imports Gradio or the hub's client, which read these once: the page tells nobody that it is used.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from .server import serve

__all__ = ["serve"]

"""Where downloaded and prepared data is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder: `$SACT_CACHE`, else `$XDG_CACHE_HOME/sact`, else `~/.cache/sact`. Not created."""
    if chosen := os.environ.get("SACT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sact"

"""The definition: compute everything, keep what is active. Every other engine is tested against it.

Its mathematics is `Block.forward` (and `Unit.forward`); as an engine it runs exactly that.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..block import Block
from . import Run

if TYPE_CHECKING:
    from ..models.network import Network


def prepare(model: Network, freeze: bool = False) -> Run:
    """Evaluate a network by its definition; trains, works on any device, saves no time. It keeps nothing to freeze."""
    return partial(model.run, run_block=Block.__call__)

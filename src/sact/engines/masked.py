"""The definition: compute everything, keep what is active. Every other engine is tested against it.

Its mathematics is `Block.forward` (and `Unit.forward`); as an engine it runs exactly that.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..block import Block
from ..errors import InputError
from . import NormStatistics, Run

if TYPE_CHECKING:
    from ..models.adaptive import AdaptiveNetwork


def prepare(model: AdaptiveNetwork, freeze: bool = False, norm_statistics: NormStatistics = "all") -> Run:
    """Evaluate a network by its definition; trains, works on any device, saves no time. It keeps nothing to freeze.

    Raises:
        InputError: norms are to take their statistics over active positions.
    """
    if norm_statistics != "all":
        raise InputError(
            f'norm_statistics is "{norm_statistics}", but the masked engine evaluates every position; use '
            'engine="gather"'
        )
    return partial(model.run, run_block=Block.__call__)

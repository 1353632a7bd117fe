"""How far work is: pictures per second, and the share of FLOPs so far."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import require
from .measuring import Spent


class Progress:
    """Sums over pictures, shown as a bar on a terminal.

    Args:
        total: pictures that are expected.
        quiet: show nothing.

    Attributes:
        count: pictures so far.
    """

    def __init__(self, total: int, quiet: bool) -> None:
        self.count = 0
        self._flops = self._dense_flops = 0
        tqdm = require("tqdm", "tasks").tqdm
        self._bar = tqdm(total=total, unit=" images", disable=quiet or None, dynamic_ncols=True)

    @property
    def share(self) -> float | None:
        """FLOPs of all pictures, of the plain network's; None before the first."""
        return self._flops / self._dense_flops if self._dense_flops else None

    def expect(self, count: int) -> None:
        """Pictures are added to, or taken from, what is expected."""
        self._bar.total = max(0, (self._bar.total or 0) + count)
        self._bar.refresh()

    def add(self, spents: Sequence[Spent]) -> None:
        """Pictures are done."""
        self.count += len(spents)
        self._flops += sum(spent.flops for spent in spents)
        self._dense_flops += sum(spent.dense_flops for spent in spents)
        self._bar.set_postfix_str(f"FLOPs {self.share:.1%}", refresh=False)
        self._bar.update(len(spents))

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

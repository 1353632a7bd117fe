"""A budget at inference: the mean share of the dense FLOPs that a trained network spends, set without training again.

The knob is a shift of every score's logit. `sact.calibrate` finds out what it buys; a budget is looked up in that.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .cap import as_number, check_adaptive
from .errors import CheckpointError, InputError

if TYPE_CHECKING:
    from .models.adaptive import AdaptiveNetwork


@dataclass(frozen=True)
class Calibration:
    """What shifts of the scores' logits make a network spend, as shares of the dense FLOPs.

    Attributes:
        shifts: ascending, at least two.
        shares: mean share over the images at each shift, none above the one before it.
        deviations: standard deviation of the images' shares at each shift.
        images: how many images it was made with.
        image_size: their (H, W); None where they differed.
    """

    shifts: tuple[float, ...]
    shares: tuple[float, ...]
    deviations: tuple[float, ...]
    images: int
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.shifts), len(self.shares), len(self.deviations)}
        rises = any(a >= b for a, b in pairwise(self.shifts)) or any(a < b for a, b in pairwise(self.shares))
        if len(lengths) > 1 or len(self.shifts) < 2 or rises or self.least == self.most:
            raise InputError(
                "the calibration is not usable: shares must fall as shifts rise; make it with sact.calibrate"
            )

    @property
    def least(self) -> float:
        """The least mean share that was reached."""
        return self.shares[-1]

    @property
    def most(self) -> float:
        """The largest."""
        return self.shares[0]

    def shift_for(self, share: float) -> float:
        """The shift that makes the mean share this one, linear between those that were tried.

        Args:
            share: from `least` to `most`.
        """
        rising = [-value for value in self.shares]
        at = bisect_right(rising, -share, hi=len(rising) - 1)  # shares[at - 1] >= share >= shares[at]
        at = max(at, 1)
        above, below = self.shares[at - 1], self.shares[at]
        part = (above - share) / (above - below) if above > below else 0.0
        return self.shifts[at - 1] + part * (self.shifts[at] - self.shifts[at - 1])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """What `to_dict` made.

        Raises:
            InputError: it has other entries.
        """
        try:
            size = values["image_size"]
            shifts, shares, deviations = (
                tuple(float(number) for number in values[name]) for name in ("shifts", "shares", "deviations")
            )
            image_size = None if size is None else (int(size[0]), int(size[1]))
            return cls(shifts, shares, deviations, int(values["images"]), image_size)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(f"the calibration is not usable ({error}); make it again with sact.calibrate") from error


def set_budget(model: AdaptiveNetwork, budget: object) -> float | None:
    """Shift the scores of a network so that it spends this share on average; None: as it was trained.

    Returns:
        The budget.

    Raises:
        InputError: it is no number in (0, 1], the network is plain or not calibrated, or the share cannot be reached.
    """
    if budget is None:
        shift, share = 0.0, None
    else:
        share = _check_share(budget)
        check_adaptive(model, "budget")
        if model.calibration is None:
            raise InputError(
                f"budget is {share:g}, but this network does not know what its budgets buy; "
                "run sact.calibrate(model, images) once"
            )
        least, most = model.calibration.least, model.calibration.most
        if not least <= share <= most:
            raise InputError(
                f"budget is {share:g}, but this network spends {math.ceil(1e3 * least) / 1e3:g} to "
                f"{math.floor(1e3 * most) / 1e3:g} of the dense FLOPs on average; choose a budget in between"
            )
        shift = model.calibration.shift_for(share)
    for block in model.blocks:
        block.score_shift = shift
    return share


def describe_budget(model: AdaptiveNetwork) -> dict[str, Any]:
    """Calibration, budget and cap as entries of a saved configuration; those that are set."""
    calibration = None if model.calibration is None else model.calibration.to_dict()
    entries = {"calibration": calibration, "budget": model.budget, "cap": model.cap}
    return {name: value for name, value in entries.items() if value is not None}


def restore_budget(model: AdaptiveNetwork, config: Mapping[str, Any]) -> None:
    """What `describe_budget` made, unless the network halts in another way than the one that was saved.

    Raises:
        CheckpointError: it is not usable.
    """
    saved = config["network"]
    if (saved.get("halting"), saved.get("eps")) != (model.config.halting, model.config.eps):
        return
    try:
        if config.get("calibration") is not None:
            model.calibration = Calibration.from_dict(config["calibration"])
        model.budget, model.cap = config.get("budget"), config.get("cap")
    except InputError as error:
        raise CheckpointError(f"the saved budget is not usable: {error}") from error


def _check_share(budget: object) -> float:
    share = as_number(budget)
    if share is None or not 0 < share <= 1:
        raise InputError(
            f"budget is {budget!r}, but it must be a share of the dense FLOPs, a number above 0 and at most 1, "
            "or None for the network as trained"
        )
    return share

"""A network and its budget, as a visitor sets them."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr

from .networks import Served
from .pieces import note

# Nothing of the page is an interface for programs.
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
LATEST: dict[str, Any] = QUIET | {"trigger_mode": "always_last"}


class Setting(NamedTuple):
    """A network and its budget, as a visitor sets them.

    Attributes:
        network: its name.
        budget: slider, shown where the network is calibrated.
        back: button that goes back to the budget the network came with.
        uncalibrated: says why there is no slider.
        chosen: the budget that was set; None for the one the network came with.
    """

    network: gr.Dropdown
    budget: gr.Slider
    back: gr.Button
    uncalibrated: gr.HTML
    chosen: gr.State


def make_setting(
    by_name: dict[str, Served], where: str, one: Served | None = None, start: float | None = None
) -> Setting:
    one = one or next(iter(by_name.values()))
    setting = Setting(
        gr.Dropdown(list(by_name), value=one.name, label="Network", elem_id=f"network-{where}"),
        _budget(one, start, elem_id=f"budget-{where}"),
        gr.Button(
            "Usual budget", size="sm", visible=one.reach is not None, elem_classes="back", elem_id=f"back-{where}"
        ),
        gr.HTML(_no_budget(one), visible=one.reach is None, elem_classes="sact"),
        gr.State(start),
    )

    def change(name: str) -> tuple[Any, Any, Any, None]:
        other = by_name[name]
        able = other.reach is not None
        return _budget(other), gr.Button(visible=able), gr.HTML(_no_budget(other), visible=not able), None

    setting.network.input(change, setting.network, setting[1:], **QUIET)
    setting.budget.input(lambda value: value, setting.budget, setting.chosen, **LATEST)
    setting.back.click(
        lambda name: (_budget(by_name[name]), None), setting.network, [setting.budget, setting.chosen], **QUIET
    )
    return setting


def _budget(one: Served, start: float | None = None, **options: Any) -> gr.Slider:
    low, high = one.reach or (0.0, 1.0)
    usual = start if start is not None else one.usual if one.usual is not None else high
    return gr.Slider(
        low,
        high,
        round(min(max(usual, low), high), 3),
        step=0.01,
        label="Budget: share of the dense FLOPs",
        info="On average over photographs; each spends its own share.",
        visible=one.reach is not None,
        buttons=[],
        **options,
    )


def _no_budget(one: Served) -> str:
    if one.network.config.halting == "none":
        return note("A plain network has no budget: it always runs every unit.")
    return note("This network has no calibration, so its budget cannot be set; sact.calibrate makes one.")

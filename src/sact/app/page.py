"""The page itself: what lies where, and what follows what. The answers are in answers.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from ..errors import InputError
from ..preprocessing import IMAGE_SUFFIXES
from .answers import EMPTY, answer, answer_both, answer_files
from .networks import Served, read_picture
from .pieces import note

_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
LOOK: dict[str, Any] = {
    "theme": gr.themes.Default(primary_hue="orange", neutral_hue="slate", font=_FONT, font_mono=_MONO),
    "css_paths": Path(__file__).with_name("style.css"),
}
"""For `launch`: fonts of the visitor's system, nothing fetched from elsewhere."""

_TITLE = """<div class="title"><h1>sact</h1>
<p>A network that decides, position by position, how many of its units to run.</p></div>"""
_SET_OPACITY = "(value) => document.documentElement.style.setProperty('--opacity', value / 100)"
_THUMBNAIL = 160
_KEPT_SECONDS = 6 * 3600
"""How long a visitor's files stay while the page runs; when it is closed they go."""
_PROGRESS = gr.Progress()
"""As a default value it marks the argument by which Gradio hands over the visitor's own progress bar."""
# Nothing of the page is an interface for programs.
_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_LATEST: dict[str, Any] = _QUIET | {"trigger_mode": "always_last"}


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


def make_page(served: Sequence[Served], examples: Sequence[Path], folder: Path) -> gr.Blocks:
    """The page, not yet on any address.

    Args:
        served: at least one; the first is chosen when the page opens.
        examples: images to choose from, possibly none; the first is shown when the page opens.
        folder: where CSV files go.
    """
    by_name = {one.name: one for one in served}
    with gr.Blocks(title="sact", analytics_enabled=False, delete_cache=(600, _KEPT_SECONDS), fill_width=True) as page:
        gr.HTML(_TITLE)
        open_tab = gr.State("one")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=280) as left:
                photo = _photograph(examples)
                opacity = gr.Slider(0, 100, 50, step=1, label="Opacity of the map, %", buttons=[], elem_id="opacity")
            with gr.Column(scale=9, min_width=320), gr.Tabs():
                with gr.Tab("One network", id="one") as one_tab:
                    _one(page, photo, by_name)
                with gr.Tab("Compare", id="compare") as compare_tab:
                    _compare(compare_tab, open_tab, photo, by_name)
                with gr.Tab("Many files", id="files") as files_tab:
                    _files(by_name, folder)
        opacity.input(None, opacity, None, js=_SET_OPACITY, **_QUIET)
        for tab, shown in ((one_tab, True), (compare_tab, True), (files_tab, False)):
            tab.select(_opener(str(tab.id), shown), None, [open_tab, left], **_QUIET)
    return page


def _opener(name: str, shown: bool) -> Callable[[], tuple[str, Any]]:
    """Which tab is open, and whether the photograph is shown beside it."""
    return lambda: (name, gr.Column(visible=shown))


def _photograph(examples: Sequence[Path]) -> gr.Image:
    """Where a photograph is dropped, and the examples."""
    photo = gr.Image(
        str(examples[0]) if examples else None,
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        label="Photograph",
        height=230,
        buttons=[],
        elem_id="photograph",
    )
    # Gradio's own would open the file to check it, and say no more than "Error"; `read_picture` says what is wrong.
    photo.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    if len(examples) > 1:
        gallery = gr.Gallery(
            [_thumbnail(file) for file in examples],
            label="Examples",
            columns=4,
            height="auto",
            allow_preview=False,
            object_fit="cover",
            buttons=[],
            interactive=False,
            elem_classes="examples",
            elem_id="examples",
        )

        def choose(event: gr.SelectData) -> str:
            return str(examples[int(event.index)])

        gallery.select(choose, None, photo, **_QUIET)
    return photo


def _one(page: gr.Blocks, photo: gr.Image, by_name: dict[str, Served]) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300):
            view = gr.HTML(note(EMPTY), elem_classes="sact", elem_id="view")
        with gr.Column(scale=4, min_width=300):
            setting = _setting(by_name, "one")
            numbers = gr.HTML(elem_classes="sact", elem_id="numbers")

    def show(path: str | None, name: str, budget: float | None) -> Iterator[tuple[str, str]]:
        yield from answer(by_name[name], path, budget)

    inputs, outputs = [photo, setting.network, setting.chosen], [view, numbers]
    page.load(show, inputs, outputs, **_QUIET)
    photo.change(show, inputs, outputs, **_LATEST)
    setting.chosen.change(show, inputs, outputs, **_LATEST)
    setting.network.change(show, inputs, outputs, **_LATEST)


def _compare(tab: gr.Tab, open_tab: gr.State, photo: gr.Image, by_name: dict[str, Served]) -> None:
    names = list(by_name)
    first, second = by_name[names[0]], by_name[names[min(1, len(names) - 1)]]
    # The same network twice would show nothing: the right one begins halfway down to its least budget.
    start = None
    if first is second and second.reach is not None and second.usual is not None:
        start = round(max(second.reach[0], (second.reach[0] + second.usual) / 2), 3)
    settings, outputs = [], []
    with gr.Row(equal_height=False):
        for side, one, budget in (("left", first, None), ("right", second, start)):
            with gr.Column(min_width=300):
                settings.append(_setting(by_name, side, one, budget))
    for what, text in (("view", note(EMPTY)), ("numbers", "")):
        with gr.Row(equal_height=False):
            for side in ("left", "right"):
                with gr.Column(min_width=300):
                    outputs.append(gr.HTML(text, elem_classes="sact", elem_id=f"{what}-{side}"))

    def show(
        path: str | None, name: str, budget: float | None, other: str, other_budget: float | None
    ) -> Iterator[tuple[str, ...]]:
        for left, right in answer_both([(by_name[name], budget), (by_name[other], other_budget)], path):
            yield left[0], right[0], left[1], right[1]

    inputs = [photo, *(part for setting in settings for part in (setting.network, setting.chosen))]
    tab.select(show, inputs, outputs, **_LATEST)
    for part in inputs[1:]:
        part.change(show, inputs, outputs, **_LATEST)

    def show_if_open(name: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        if name == "compare":
            yield from show(*values)
        else:
            yield tuple(gr.skip() for _ in outputs)

    photo.change(show_if_open, [open_tab, *inputs], outputs, **_LATEST)


def _files(by_name: dict[str, Served], folder: Path) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300):
            files = gr.File(
                file_count="multiple",
                file_types=[*IMAGE_SUFFIXES],
                label="Photographs",
                height=190,
                elem_id="files",
            )
        with gr.Column(scale=4, min_width=300):
            setting = _setting(by_name, "files")
            with gr.Row():
                start = gr.Button("Classify", variant="primary", elem_id="classify")
                download = gr.DownloadButton("Download CSV", interactive=False, elem_id="download")
    table = gr.HTML(note("Each file becomes a row: class, score, FLOPs share, units per block, milliseconds."))
    table.elem_classes, table.elem_id = ["sact"], "table"

    def run(
        paths: list[str] | None, name: str, budget: float | None, progress: gr.Progress = _PROGRESS
    ) -> tuple[str, Any]:
        shown, path = answer_files(by_name[name], paths, budget, folder, lambda part, text: progress(part, desc=text))
        return shown, gr.DownloadButton(value=path, interactive=path is not None)

    inputs = [files, setting.network, setting.chosen]
    start.click(run, inputs, [table, download], api_visibility="private", show_progress_on=table)


def _setting(by_name: dict[str, Served], where: str, one: Served | None = None, start: float | None = None) -> Setting:
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

    setting.network.input(change, setting.network, setting[1:], **_QUIET)
    setting.budget.input(lambda value: value, setting.budget, setting.chosen, **_LATEST)
    setting.back.click(
        lambda name: (_budget(by_name[name]), None), setting.network, [setting.budget, setting.chosen], **_QUIET
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


def _thumbnail(file: Path) -> Image.Image:
    try:
        picture = read_picture(file)
    except InputError:
        return Image.new("RGB", (_THUMBNAIL, _THUMBNAIL), "grey")
    picture = picture.copy()
    picture.thumbnail((2 * _THUMBNAIL, _THUMBNAIL))
    return picture

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
from .settings import LATEST, QUIET, make_setting

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
_SET_THRESHOLD = "(value) => document.documentElement.style.setProperty('--threshold', value)"
_THUMBNAIL = 160
_KEPT_SECONDS = 6 * 3600
"""How long a visitor's files stay while the page runs; when it is closed they go."""
_PROGRESS = gr.Progress()
"""As a default value it marks the argument by which Gradio hands over the visitor's own progress bar."""


class Shared(NamedTuple):
    """What all tabs share.

    Attributes:
        page: all of it.
        photo: the photograph.
        first: id of the tab that is open when the page opens.
        open_tab: id of the tab that is open now.
        left: the column with the photograph.
    """

    page: gr.Blocks
    photo: gr.Image
    first: str
    open_tab: gr.State
    left: gr.Column


def make_page(served: Sequence[Served], examples: Sequence[Path], folder: Path) -> gr.Blocks:
    """The page, not yet on any address. It has tabs for the kinds of models that are served.

    Args:
        served: at least one; the first of a kind is chosen when the page opens.
        examples: images to choose from, possibly none; the first is shown when the page opens.
        folder: where CSV files go.
    """
    networks, detectors, segmenters = (
        {one.name: one for one in served if one.verb == verb} for verb in ("classify", "detect", "segment")
    )
    first = "one" if networks else "detect" if detectors else "segment"
    with gr.Blocks(title="sact", analytics_enabled=False, delete_cache=(600, _KEPT_SECONDS), fill_width=True) as page:
        gr.HTML(_TITLE)
        open_tab = gr.State(first)
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=280) as left:
                shared = Shared(page, _photograph(examples), first, open_tab, left)
                opacity = gr.Slider(0, 100, 50, step=1, label="Opacity of the map, %", buttons=[], elem_id="opacity")
            with gr.Column(scale=9, min_width=320), gr.Tabs():
                if networks:
                    _network_tabs(shared, networks, folder)
                if detectors:
                    with gr.Tab("Detection", id="detect") as tab:
                        _found(shared, tab, detectors)
                if segmenters:
                    with gr.Tab("Segmentation", id="segment") as tab:
                        _found(shared, tab, segmenters)
        opacity.input(None, opacity, None, js=_SET_OPACITY, **QUIET)
    return page


def _network_tabs(shared: Shared, networks: dict[str, Served], folder: Path) -> None:
    with gr.Tab("One network", id="one") as tab:
        _one(shared, tab, networks)
    with gr.Tab("Compare", id="compare") as tab:
        _compare(shared, tab, networks)
    with gr.Tab("Many files", id="files") as tab:
        _files(networks, folder)
    tab.select(lambda: ("files", gr.Column(visible=False)), None, [shared.open_tab, shared.left], **QUIET)


def _follow(
    shared: Shared, tab: gr.Tab, show: Callable[..., Iterator[Any]], inputs: list[Any], outputs: list[Any]
) -> None:
    """Answer when a tab opens, and when an input changes while it is open."""
    nothing = tuple(gr.skip() for _ in outputs)

    def opened(before: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        opening = tab.id, gr.Column(visible=True)
        yield *opening, *nothing
        if before != tab.id:  # when the page opens, the first tab is answered as the page loads
            for answered in show(*values):
                yield *opening, *answered

    def changed(name: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        yield from show(*values) if name == tab.id else [nothing]

    if tab.id == shared.first:
        shared.page.load(show, inputs, outputs, **QUIET)
    tab.select(opened, [shared.open_tab, *inputs], [shared.open_tab, shared.left, *outputs], **LATEST)
    for part in inputs:
        part.change(changed, [shared.open_tab, *inputs], outputs, **LATEST)


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

        gallery.select(choose, None, photo, **QUIET)
    return photo


def _one(shared: Shared, tab: gr.Tab, by_name: dict[str, Served]) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300):
            view = gr.HTML(note(EMPTY), elem_classes="sact", elem_id="view")
        with gr.Column(scale=4, min_width=300):
            setting = make_setting(by_name, "one")
            numbers = gr.HTML(elem_classes="sact", elem_id="numbers")

    def show(path: str | None, name: str, budget: float | None) -> Iterator[tuple[str, str]]:
        yield from answer(by_name[name], path, budget)

    _follow(shared, tab, show, [shared.photo, setting.network, setting.chosen], [view, numbers])


def _found(shared: Shared, tab: gr.Tab, by_name: dict[str, Served]) -> None:
    """Detection or segmentation, whichever the tab is for."""
    where = str(tab.id)
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300):
            view = gr.HTML(note(EMPTY), elem_classes="sact", elem_id=f"view-{where}")
        with gr.Column(scale=4, min_width=300):
            setting = make_setting(by_name, where)
            if where == "detect":
                threshold = gr.Slider(0, 100, 50, step=1, label="Least score shown, %", buttons=[], elem_id="threshold")
                threshold.input(None, threshold, None, js=_SET_THRESHOLD, **QUIET)
            numbers = gr.HTML(elem_classes="sact", elem_id=f"numbers-{where}")

    def show(path: str | None, name: str, budget: float | None) -> Iterator[tuple[str, str]]:
        yield from answer(by_name[name], path, budget)

    _follow(shared, tab, show, [shared.photo, setting.network, setting.chosen], [view, numbers])


def _compare(shared: Shared, tab: gr.Tab, by_name: dict[str, Served]) -> None:
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
                settings.append(make_setting(by_name, side, one, budget))
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

    inputs = [shared.photo, *(part for setting in settings for part in (setting.network, setting.chosen))]
    _follow(shared, tab, show, inputs, outputs)


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
            setting = make_setting(by_name, "files")
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


def _thumbnail(file: Path) -> Image.Image:
    try:
        picture = read_picture(file)
    except InputError:
        return Image.new("RGB", (_THUMBNAIL, _THUMBNAIL), "grey")
    picture = picture.copy()
    picture.thumbnail((2 * _THUMBNAIL, _THUMBNAIL))
    return picture

"""Screenshots of the page of `sact serve`, for docs/app.md.

    python examples/screenshots.py [--out docs/app] [--model scenes] [--found runs/composed/test]

They are taken in the chromium (or google-chrome) of this machine through Playwright. On them are photographs of
scikit-image that are in the public domain or CC0, and scenes made of these; detectors and segmenters are shown with the
first picture of the folder --found.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import sact
from sact.app import examples
from sact.app.server import running
from sact.checkpoints import read_metadata
from sact.data import create_dataset
from sact.errors import InputError, require
from sact.maps import save_png
from sact.models.dense import DenseModel
from sact.predict import find_images

PHOTOGRAPHS = ("chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "astronaut.png")
SIZE = {"width": 1320, "height": 860}
MOST_BYTES = 400_000
_CALIBRATION_SCENES = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Take them; returns the exit code: 0, or 2 for a bad argument or input."""
    parser = argparse.ArgumentParser(description="Take the screenshots of docs/app.md.")
    parser.add_argument("--out", metavar="DIR", default="docs/app", help="folder of the pictures (%(default)s)")
    parser.add_argument("--model", action="append", help="folder, hub id or packaged network (default: all packaged)")
    parser.add_argument("--found", metavar="DIR", help="photographs for detectors and segmenters (default: no picture)")
    parser.add_argument("--first", type=int, default=0, help="start with this one of them (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            names = options.model or sact.list_pretrained()
            dense = [name for name in names if isinstance(sact.from_pretrained(name), DenseModel)]
            networks = [name for name in names if name not in dense]
            if networks:
                take(networks, Path(options.out), Path(folder))
            if dense and options.found:
                shown = Path(folder) / "found"
                shown.mkdir()
                for file in find_images([options.found])[options.first :][: examples.MOST]:
                    shutil.copy(file, shown)
                take_found(dense, shown, Path(options.out))
    except sact.SactError as error:
        print(f"screenshots: {error}", file=sys.stderr)
        return 2
    return 0


def take(models: Sequence[str], out: Path, folder: Path) -> None:
    """Take the three pictures of networks; `folder` is for what is made on the way."""
    shown = make_examples(folder)
    served = [calibrated(name, folder) for name in models]
    with opened(served, shown) as page:
        is_scenes = (sact.from_pretrained(served[0]).preprocessing or {}).get("name") == "scenes"
        choose(page, shown, "scene 2.png" if is_scenes else "camera.png")
        save(page, out / "one.png")
        page.get_by_role("tab", name="Compare").click()
        page.wait_for_selector("#numbers-right .tile.time b:has-text('ms')")
        save(page, out / "compare.png")
        page.get_by_role("tab", name="Many files").click()
        page.locator("#files input[type=file]").set_input_files(sorted(shown.iterdir()))
        page.locator("#files").get_by_text("rocket").wait_for()
        page.locator("#classify").click()
        page.wait_for_selector("#table tbody tr")
        save(page, out / "files.png")


def take_found(models: Sequence[str], photographs: Path, out: Path) -> None:
    """Take a picture of each of the tabs Detection and Segmentation that is there."""
    with opened(models, photographs) as page:
        for tab, where in (("Detection", "detect"), ("Segmentation", "segment")):
            if page.get_by_role("tab", name=tab).count():
                page.get_by_role("tab", name=tab).click()
                page.wait_for_selector(f"#numbers-{where} .tile.time b:has-text('ms')")
                save(page, out / f"{where}.png")


@contextlib.contextmanager
def opened(models: Sequence[str], shown: Path) -> Iterator[Any]:
    """The page with these models and photographs in a browser."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        raise InputError("there is no chromium or google-chrome here; install one, for instance: apt install chromium")
    sync_api = require("playwright.sync_api", "dev")
    with running(models, examples=shown) as (_, address), sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(address)
        page.get_by_role("tab").first.wait_for()
        yield page
        browser.close()


def make_examples(folder: Path) -> Path:
    """Photographs, and scenes with these as backgrounds; the folder that has them."""
    photographs, shown = folder / "photographs", folder / "examples"
    for target in (photographs, shown):
        target.mkdir()
    for file in examples.photographs():
        if file.name in PHOTOGRAPHS:
            shutil.copy(file, photographs)
            shutil.copy(file, shown)
    if not any(shown.iterdir()):
        raise InputError("the photographs are those of scikit-image; install it with: pip install 'sact[tasks]'")
    examples.make_scenes(shown, backgrounds=photographs)
    return shown


def calibrated(name: str, folder: Path) -> str:
    """The network if its budget can be set, else a copy that was calibrated on scenes, if it was trained on them."""
    model = sact.from_pretrained(name)
    recipe = read_metadata(name).get("recipe", {})
    if model.calibration is not None or recipe.get("data") != "scenes":
        return name
    options = recipe.get("data_options", {})
    scenes = create_dataset("scenes", "val", size=recipe["image_size"], length=_CALIBRATION_SCENES, **options)
    sact.calibrate(model, (scenes[index][0][None] for index in range(_CALIBRATION_SCENES)))
    model.save_pretrained(folder / Path(name).name)
    return str(folder / Path(name).name)


def choose(page: Any, shown: Path, name: str) -> None:
    """Click on an example, and wait for the answer with its time."""
    page.wait_for_selector("#numbers .tile.time b:has-text('ms')")
    before = page.locator("#numbers").inner_text()
    page.locator("#examples button").nth(sorted(file.name for file in shown.iterdir()).index(name)).click()
    page.wait_for_function("before => document.querySelector('#numbers').innerText != before", arg=before)
    page.wait_for_selector("#numbers .tile.time b:has-text('ms')")
    page.wait_for_timeout(3000)  # the time comes after the classes


def save(page: Any, path: Path) -> None:
    """A picture of the whole page, with fewer colours where it would be large."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)  # for what fades in
    height = page.evaluate("document.querySelector('.gradio-container').scrollHeight")
    page.set_viewport_size({**SIZE, "height": max(height, 480)})
    page.wait_for_timeout(300)
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        page.screenshot(path=file.name)
        picture = Image.open(file.name).convert("RGB")
    save_png(picture, path)
    if path.stat().st_size > MOST_BYTES:
        save_png(picture.quantize(256, dither=Image.Dither.FLOYDSTEINBERG), path)
    page.set_viewport_size(SIZE)
    print(f"{path}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    sys.exit(main())

"""Find the class of every pixel of images with a segmenter. For each image: a picture with the classes beside the
ponder map, and the classes as an 8-bit PNG of indices; of all: a contact sheet and segments.json."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .dense_command import add_common_options, caption, load_model, look_at_all

if TYPE_CHECKING:
    from PIL import Image

    from .segmenting import Segmentation

_ENDS = ("", "_classes")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    add_common_options(parser, "segments")
    parser.add_argument("--size", type=int, help="short side in pixels that the segmenter sees (default: as it is)")


def run(options: argparse.Namespace) -> int:
    """`sact segment`."""
    from .detecting import check_size
    from .files import make_folder
    from .models.segmenter import Segmenter
    from .predict import check_outputs, find_images, unique_names
    from .result_files import predictions_file
    from .segmenting import LONGEST, segment

    if options.size is not None:
        check_size(options.size, LONGEST)
    paths = find_images(options.images)
    model = load_model(options, Segmenter)
    out, names = Path(options.out), unique_names(paths, _ENDS)
    check_outputs(paths, names, out, _ENDS)
    make_folder(out)
    with predictions_file(out / "segments.json", options.model) as record:
        code = look_at_all(
            paths,
            names,
            out,
            look=lambda path: segment(model, path, options.size),
            draw=partial(_draw, folder=out),
            keep=lambda path, found: record({"image": str(path)} | found.summary()),
        )
    print(f"pictures, classes and segments.json are in {out}")
    return code


def _draw(found: Segmentation, name: str, folder: Path) -> Image.Image:
    from .dense_pictures import THUMBNAIL, beside_map, class_image, legend, segmentation_panel
    from .maps import save_png

    key = legend([(label, f"{name} {share:.1%}") for label, name, share in found.found()])
    panel = segmentation_panel(found.image, found.classes)
    picture = beside_map(panel, "classes", found.map, found.headline(), caption(found), key)
    save_png(picture, folder / f"{name}.png")
    save_png(class_image(found.classes), folder / f"{name}_classes.png")
    return segmentation_panel(found.image, found.classes, THUMBNAIL)

"""Find objects in images with a detector. For each image: a picture with boxes beside the ponder map; of all: a contact
sheet, predictions.json, and detections.json in COCO's result format."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .dense_command import add_common_options, caption, load_model, look_at_all
from .errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from .detecting import Detections

_ENDS = ("",)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    add_common_options(parser, "detections")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score of an object (%(default)s)")
    parser.add_argument("--size", type=int, help="short side in pixels that the detector sees (default: its own)")
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        help="in COCO's format: ids of images, by their file names, and of categories (default: file names and labels)",
    )


def run(options: argparse.Namespace) -> int:
    """`sact detect`."""
    from torch import from_numpy

    from .checkpoints import read_metadata
    from .coco_names import CocoNames
    from .data.coco_results import results_to_coco
    from .detecting import check_size, detect
    from .files import make_folder
    from .models.detector import Detector
    from .predict import check_outputs, find_images, unique_names
    from .result_files import json_list, predictions_file

    if not 0 <= options.threshold <= 1:
        raise InputError(f"--threshold is {options.threshold}, but scores lie in [0, 1]")
    if options.size is not None:
        check_size(options.size)
    paths = find_images(options.images)
    known = CocoNames.read(options.annotations, paths) if options.annotations else None
    model = load_model(options, Detector)
    recorded = read_metadata(options.model).get("category_ids")
    ids = known.category_ids(model.class_names, recorded) if known else recorded
    out, names = Path(options.out), unique_names(paths, _ENDS)
    check_outputs(paths, names, out, _ENDS)
    make_folder(out)
    image_ids = known.image_ids if known else dict(zip(paths, names, strict=True))
    with json_list(out / "detections.json") as add, predictions_file(out / "predictions.json", options.model) as record:

        def keep(path: Path, found: Detections) -> None:
            record({"image": str(path)} | found.summary())
            values = {"boxes": found.boxes, "labels": found.labels, "scores": found.scores}
            tensors = {name: from_numpy(value) for name, value in values.items()}
            add(*results_to_coco(image_ids[path], tensors, ids))

        code = look_at_all(
            paths,
            names,
            out,
            look=lambda path: detect(model, known.open(path) if known else path, options.threshold, options.size),
            draw=partial(_draw, folder=out),
            keep=keep,
        )
    print(f"pictures, detections.json and predictions.json are in {out}")
    return code


def _draw(found: Detections, name: str, folder: Path) -> Image.Image:
    from .dense_pictures import THUMBNAIL, beside_map, detection_panel
    from .maps import save_png

    labels = found.labels.tolist()
    texts = [f"{name} {score:.0%}" for name, score in zip(found.names, found.scores.tolist(), strict=True)]
    panel = detection_panel(found.image, found.boxes, labels, texts)
    save_png(beside_map(panel, "objects", found.map, found.headline(), caption(found)), folder / f"{name}.png")
    return detection_panel(found.image, found.boxes, labels, [""] * len(found), THUMBNAIL)

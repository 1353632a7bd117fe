"""What `sact detect` and `sact segment` have in common: options, the model, and one image after the other."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from .detecting import Detections
    from .models.dense import DenseModel
    from .segmenting import Segmentation

    Model = TypeVar("Model", bound=DenseModel)
    Result = TypeVar("Result", Detections, Segmentation)


MOST_NAMED = 20
"""Pictures that are named where they could not be read."""


def add_common_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Images, folder, model, engine, size, budget and cap."""
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="JPEG, PNG or WebP files, or folders of them")
    parser.add_argument("--out", metavar="DIR", default=out, help="folder of the results (%(default)s)")
    parser.add_argument("--model", required=True, help="folder that sact train or save_pretrained made, or hub id")
    parser.add_argument("--engine", default="auto", help="auto, masked, gather, native or triton (%(default)s)")
    parser.add_argument("--budget", type=float, help="mean share of the dense FLOPs (default: the model's own)")
    parser.add_argument("--cap", type=float, help="share of the dense FLOPs that no image may exceed")


def load_model(options: argparse.Namespace, kind: type[Model]) -> Model:
    """The model that the options name, compiled, at their budget and cap.

    Args:
        options: those of `add_common_options`.
        kind: `Detector` or `Segmenter`.

    Raises:
        InputError: it is of another kind.
        CheckpointError: it cannot be loaded.
    """
    from .checkpoints import from_pretrained
    from .compiled import compile
    from .models.dense import extractor

    name = kind.__name__.lower()
    model = from_pretrained(options.model)
    if not isinstance(model, kind):
        raise InputError(f"{options.model} is no {name}, but {_what(model)}; name another one with --model")
    network = extractor(model)
    if options.budget is not None:
        network.budget = options.budget
    if options.cap is not None:
        network.cap = options.cap
    return compile(model, options.engine)


def look_at_all(
    paths: Sequence[Path],
    names: Sequence[str],
    folder: Path,
    look: Callable[[Path], Result],
    draw: Callable[[Result, str], Image.Image],
    keep: Callable[[Path, Result], None],
) -> int:
    """Look at one image after the other, write a picture of each and a contact sheet, and print a line for each.

    What cannot be read is left out and named in the end.

    Args:
        paths: the images.
        names: of their pictures.
        folder: where these go.
        look: finds what is in an image.
        draw: writes the pictures of a result under a name, and gives the thumbnail.
        keep: takes note of a result.

    Returns:
        The exit code: 1 where something could not be read.

    Raises:
        InputError: nothing could be read.
    """
    from .dense_pictures import Sheet
    from .maps import save_png

    sheet = Sheet()
    problems: list[str] = []  # not the errors, which hold on to pictures
    try:
        for path, name in zip(paths, names, strict=True):
            try:
                result = look(path)
                if not sheet.cells:  # engines prepare themselves at the first image of a size
                    result = look(path)
            except InputError as error:
                problems.append(str(error))
                continue
            print(f"{path}: {result.headline()}; {caption(result)}, {1e3 * result.seconds:.1f} ms")
            sheet.add(draw(result, name), result.map, f"{result.headline()}\n{result.share:.0%} of FLOPs")
            keep(path, result)
        if not sheet.cells:
            raise InputError(problems[0])
    finally:
        if sheet.cells:
            save_png(sheet.draw(), folder / "contact_sheet.png")
    for problem in problems[:MOST_NAMED]:
        print(f"left out: {problem}", file=sys.stderr)
    if len(problems) > MOST_NAMED:
        print(f"and {len(problems) - MOST_NAMED} more", file=sys.stderr)
    return 1 if problems else 0


def caption(result: Detections | Segmentation) -> str:
    """What is said below a picture."""
    return f"{result.share:.0%} of the plain extractor's FLOPs"


def _what(model: Any) -> str:
    from .models.dense import DenseModel

    if not isinstance(model, DenseModel):
        return "a network that classifies images (sact predict)"
    return "a detector (sact detect)" if model.config.family == "faster_rcnn" else "a segmenter (sact segment)"

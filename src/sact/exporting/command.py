"""`sact export`: a network as a file for other runtimes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError
from ..models.adaptive import AdaptiveNetwork
from .export import SUFFIXES, Exported, export, usual_size


def add_options(verb: argparse.ArgumentParser) -> None:
    """The options of the verb, besides those that name a network."""
    verb.add_argument("--to", required=True, help="onnx or torch")
    verb.add_argument("--out", metavar="FILE", help="(default: the network's name with .onnx or .pt2)")
    verb.add_argument("--dense", action="store_true", help="no lists: compute everything, multiply by masks (ONNX)")
    verb.add_argument("--batch", type=int, help="fix the number of images (default: any)")


def run(options: argparse.Namespace, make: Callable[[argparse.Namespace], AdaptiveNetwork]) -> None:
    """Write the file, and say how to run it.

    Args:
        options: of the verb.
        make: the network that the options name, with weights.
    """
    if options.to not in SUFFIXES:
        raise InputError(f'--to is "{options.to}", but it must be one of {", ".join(SUFFIXES)}')
    path = Path(options.out or Path(options.model).name + SUFFIXES[options.to])
    network = make(options).eval()
    written = export(network, path, options.to, dense=options.dense, size=options.size, batch=options.batch)
    print(describe(written))
    print("run it:")
    print(f"  {next_command(written, options.to, network)}")


def describe(written: Exported) -> str:
    """What was written, in a few lines."""
    height, width = written.size or ("height", "width")
    form = "computes at listed active positions" if written.skips else "computes everything"
    shapes = ", ".join(f"{n} of {h}x{w}" for n, h, w in written.agreement.shapes)
    megabytes = written.path.stat().st_size / 1e6
    return (
        f"{written.path}: {megabytes:.1f} MB, {form}\n"
        f"images [{written.batch or 'any number'}, channels, {height}, {width}] to {', '.join(written.outputs)}\n"
        f"compared with the definition on random images ({shapes}): unit counts equal, largest difference "
        f"{written.agreement.difference:.1g}"
    )


def next_command(written: Exported, to: str, network: AdaptiveNetwork) -> str:
    """A line of Python that runs the file."""
    height, width = written.size or usual_size(network)
    shape = (written.batch or 1, network.config.in_channels, height, width)
    first = written.outputs[0]
    if to == "onnx":
        code = (
            f"import numpy, onnxruntime; run = onnxruntime.InferenceSession({str(written.path)!r}).run; "
            f"images = numpy.zeros({shape}, numpy.float32); print(run([{first!r}], {{'images': images}})[0].shape)"
        )
    else:
        code = (
            f"import torch; run = torch.export.load({str(written.path)!r}).module(); "
            f"print(run(torch.zeros{shape})[{first!r}].shape)"
        )
    return f'python -c "{code}"'

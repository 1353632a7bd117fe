"""Programs of `torch.export`: the masked form, in PyTorch's own operators alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from ..errors import InputError
from ..models.adaptive import AdaptiveNetwork
from .check import Run
from .facts import facts
from .failures import naming
from .forms import Exportable


def trace(
    form: Exportable,
    network: AdaptiveNetwork,
    example: Tensor,
    free_size: bool,
    free_batch: bool,
    what: str,
    forced: list[Tensor] | None = None,
) -> ExportedProgram:
    """A program of a network's form.

    Args:
        form: the network.
        network: the same, for messages.
        example: images [N, C, H, W] to try it on, N > 1 where the batch is free.
        free_size: whether height and width are free.
        free_batch: whether the number of images is.
        what: is being made, for messages.
        forced: unit counts, where the form takes them; their shapes are fixed.

    Raises:
        InputError: an operator fails, or the network's code fixes what is to be free.
    """
    free = ((0,) if free_batch else ()) + ((2, 3) if free_size else ())
    shapes: dict[str, Any] = {"images": dict.fromkeys(free, Dim.AUTO)}
    args: tuple[Any, ...] = (example,)
    if forced is not None:
        shapes["forced"], args = [None] * len(forced), (example, forced)
    with naming(form, network, what), torch.no_grad():
        program = torch.export.export(form, args, dynamic_shapes=shapes, strict=False)
    inputs = program.graph_module.graph.find_nodes(op="placeholder")
    found = next(node for node in inputs if node.name == "images").meta["val"].shape
    fixed = [("number of images", "height", "height", "width")[axis] for axis in free if _is_fixed(found[axis])]
    if fixed:
        height, width = example.shape[-2:]
        raise InputError(
            f"the code of this network fixes the {fixed[0]} of the images; export it for one size, "
            f"size=({height}, {width}), and one number of images, batch=1"
        )
    return program


def _is_fixed(length: int | torch.SymInt) -> bool:
    return isinstance(length, int) or length.node.expr.is_number


def write_torch(
    form: Exportable, network: AdaptiveNetwork, example: Tensor, path: Path, free_size: bool, free_batch: bool
) -> None:
    """Write a program as a file.

    Raises:
        InputError: as `trace`.
    """
    program = trace(form, network, example, free_size, free_batch, "torch")
    try:
        torch.export.save(program, path, extra_files=facts(network))
    except Exception as error:  # whatever its serialisation raises
        raise InputError(
            f"the program cannot be saved ({type(error).__name__}: {error}); fix the images' size and number, which "
            "leaves out what is computed from them: size=, batch="
        ) from error


def output_names(program: ExportedProgram) -> tuple[str, ...]:
    """Names of what a program gives, in order."""
    spec = program.call_spec.out_spec
    assert spec is not None
    return tuple(str(name) for name in spec.context)


def load(path: Path) -> tuple[Run, tuple[str, ...]]:
    """A program's run and the names of its outputs."""
    program = torch.export.load(path)
    module = program.module()

    def run(images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            results: dict[str, Tensor] = module(images)
        return results

    return run, output_names(program)

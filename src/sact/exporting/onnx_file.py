"""ONNX graphs: with lists, or of the masked form."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, require
from ..models.adaptive import AdaptiveNetwork
from .check import Run
from .facts import facts
from .failures import node_failure
from .forms import Exportable
from .specs import SPECS
from .torch_file import output_names, trace

OPSET = 18
LIMIT = 2_000_000_000
"""Bytes of one ONNX file."""


def write_onnx(
    form: Exportable, network: AdaptiveNetwork, example: Tensor, path: Path, free_size: bool, free_batch: bool
) -> None:
    """Write a network's form as an ONNX file.

    Raises:
        InputError: as `trace`; an operator has no form in ONNX; or the weights are too large for one file.
    """
    weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    if weights > LIMIT:
        raise InputError(f"the weights are {weights / 1e9:.1f} GB, but an ONNX file holds 2 GB; export to torch")
    program = trace(form, network, example, free_size, free_batch, "ONNX")
    model = translate(program, form, network)
    _finish(model, output_names(program), network, free_size, free_batch)
    from onnxscript import ir

    ir.save(model, path)


def translate(program: torch.export.ExportedProgram, form: Exportable, network: AdaptiveNetwork) -> Any:
    """A program as an ONNX model, an `onnx_ir.Model`.

    Raises:
        InputError: an operator has no form there.
    """
    table = None
    if SPECS:
        from .listed import TRANSLATIONS

        table = TRANSLATIONS
    try:
        with _quiet():
            made = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, custom_translation_table=table, verbose=False
            )
    except Exception as error:  # whatever the exporter raises
        raise node_failure(program, form, network, error) from error
    assert made is not None
    return made.model


def _finish(model: Any, names: Sequence[str], network: AdaptiveNetwork, free_size: bool, free_batch: bool) -> None:
    """Names that people read, in place of the exporter's; what travels along."""
    from onnxscript import ir

    graph = model.graph
    for node in graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = None  # with names of sizes that mean nothing to anybody
    height, width = ("height", "width") if free_size else graph.inputs[0].shape[2:]
    graph.inputs[0].shape = ir.Shape(
        ["batch" if free_batch else graph.inputs[0].shape[0], network.config.in_channels, height, width]
    )
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name
        dims = [dim if isinstance(dim, int) else f"{value.name}_{axis}" for axis, dim in enumerate(value.shape)]
        if free_batch and dims:
            dims[0] = "batch"
        value.shape = ir.Shape(dims)
    graph.name = "sact"
    for name, text in facts(network).items():
        model.metadata_props[name.removesuffix(".json")] = text


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter prints and warns of, none of which a user can do anything about."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)


def session(path: Path | bytes, threads: int = 0) -> Any:
    """A session of ONNX Runtime on the CPU; 0 threads: its own choice."""
    runtime = require("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    model = path if isinstance(path, bytes) else str(path)
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def load(path: Path) -> tuple[Run, tuple[str, ...]]:
    """A graph's run in ONNX Runtime and the names of its outputs."""
    runs = session(path)
    names = tuple(output.name for output in runs.get_outputs())

    def run(images: Tensor) -> dict[str, Tensor]:
        values = runs.run(None, {"images": images.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return run, names

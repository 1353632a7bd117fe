"""The plain network in other runtimes: what an engine has to beat. Each is set up for low latency on the CPU."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import require
from ..models import AdaptedNetwork, AdaptiveNetwork, Network

Run = Callable[[Tensor], Any]
"""Images float32 [N, C, H, W] in; logits [N, classes] out, or the list of feature maps of one that gives those."""

PEERS = ("eager", "compile", "onnxruntime", "openvino")
"""Eager PyTorch, torch.compile with frozen weights, ONNX Runtime and OpenVINO."""


class _Features(nn.Module):
    """Layers that give the output of every block."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.stem = model.stem
        self.blocks = nn.ModuleList(nn.Sequential(*block.units) for block in model.blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = self.stem(images), []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps


def plain_features(model: Network) -> nn.Module:
    """As `plain_network`, of a network without classifier: images to feature maps."""
    return copy.deepcopy(_Features(model)).eval()


def plain_network(model: AdaptiveNetwork) -> nn.Module:
    """The plain network of the same weights, as nothing but its layers: images to logits.

    The peers get this, not a `Network`, so that none pays for our checks and counting. Of an adapted network it is the
    original.
    """
    model.check_classifies()
    if isinstance(model, AdaptedNetwork):
        return copy.deepcopy(model.original()).eval()
    assert isinstance(model, Network)
    assert model.head is not None
    assert model.classifier is not None
    units = [unit for block in model.blocks for unit in block.units]
    return copy.deepcopy(nn.Sequential(model.stem, *units, model.head, model.classifier, nn.Flatten(1))).eval()


def load(name: str) -> None:
    """Run a trifle in one of `PEERS`, so that what the runtime itself occupies is not taken for a network's memory.

    Raises:
        MissingExtraError: its package is not installed.
    """
    trifle = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 3), nn.Flatten(1)).eval()
    images = torch.zeros(1, 1, 8, 8)
    prepare(name, trifle, images, 1)(images)


def prepare(name: str, plain: nn.Module, images: Tensor, threads: int) -> Run:
    """The plain network in one of `PEERS`.

    Args:
        name: which.
        plain: as `plain_network` or `plain_features` makes it; it is copied.
        images: float32 [N, C, H, W]; the runtimes are set up for this shape.
        threads: of the runtimes that do not follow PyTorch's own number.

    Raises:
        MissingExtraError: its package is not installed.
    """
    if name == "eager":
        return _eager(plain, images)
    if name == "compile":
        return _compile(plain, images)
    require("onnx", "bench")  # PyTorch's exporter needs it
    if name == "onnxruntime":
        require("onnxruntime", "bench")
        return _onnxruntime(plain, images, threads)
    require("openvino", "bench")
    return _openvino(plain, images, threads)


def _eager(plain: nn.Module, images: Tensor) -> Run:
    """In the memory layout that is faster here."""
    runs = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        network = copy.deepcopy(plain).to(memory_format=memory_format)

        def run(images: Tensor, network: nn.Module = network, layout: torch.memory_format = memory_format) -> Any:
            return network(images.contiguous(memory_format=layout))

        run(images)
        start = time.perf_counter()
        run(images)
        runs.append((time.perf_counter() - start, run))
    return min(runs, key=lambda timed: timed[0])[1]


def _compile(plain: nn.Module, images: Tensor) -> Run:
    import torch._inductor.config

    torch._dynamo.reset()  # graphs kept per code object are limited, and every network is an nn.Sequential
    compiled = torch.compile(copy.deepcopy(plain), fullgraph=True, dynamic=False)
    with warnings.catch_warnings(), torch._inductor.config.patch(freezing=True):
        warnings.simplefilter("ignore")
        compiled(images)
    return compiled


def _onnxruntime(plain: nn.Module, images: Tensor, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime.InferenceSession(
            str(_export(plain, images, Path(folder))), options, providers=["CPUExecutionProvider"]
        )

    def run(images: Tensor) -> Any:
        return _one_or_all([torch.from_numpy(array) for array in session.run(None, {"images": images.numpy()})])

    return run


def _openvino(plain: nn.Module, images: Tensor, threads: int) -> Run:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    with tempfile.TemporaryDirectory() as folder:
        compiled = openvino.Core().compile_model(str(_export(plain, images, Path(folder))), "CPU", settings)
    request = compiled.create_infer_request()

    def run(images: Tensor) -> Any:
        arrays = request.infer([images.numpy()], share_inputs=True, share_outputs=False).values()
        return _one_or_all([torch.from_numpy(array) for array in arrays])

    return run


def _one_or_all(outputs: list[Tensor]) -> Tensor | list[Tensor]:
    return outputs[0] if len(outputs) == 1 else outputs


def _export(plain: nn.Module, images: Tensor, folder: Path) -> Path:
    path = folder / "plain.onnx"
    with warnings.catch_warnings():  # tracing takes the sizes of this shape for constants, which is wanted
        warnings.simplefilter("ignore")
        torch.onnx.export(copy.deepcopy(plain), (images,), path, dynamo=False, input_names=["images"])
    return path

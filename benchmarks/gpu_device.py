"""The device that `gpu.py` measures on: its clock, graphs, memory, arithmetic, and what it can do at most."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

Call = Callable[[Tensor], Any]
"""Images in, logits out (and maybe more)."""


class Device(NamedTuple):
    """What measuring needs of a device; tests run with one that is none.

    Attributes:
        name: PyTorch's.
        clock: (run, times) to seconds per run.
        capture: (call, images) to the same call, as a graph.
        synchronise: waits for the device.
        peak: run to the bytes that it adds to what is allocated, at its highest point.
    """

    name: str
    clock: Callable[[Callable[[], object], int], float]
    capture: Callable[[Call, Tensor], Call]
    synchronise: Callable[[], None]
    peak: Callable[[Callable[[], object]], int]


def measure_limits(device: Device, side: int = 8192, floats: int = 1 << 29) -> dict[str, float]:
    """Bytes per second of a copy, read and written, and FLOPs per second of matrix products; the best of several."""
    with arithmetic(tf32=True, benchmark=True):
        products = {name: product_rate(device, side, dtype) for name, dtype in DTYPES.items()}
    return {"copy": copy_rate(device, floats)} | products


def copy_rate(device: Device, floats: int) -> float:
    """Bytes per second."""
    source = torch.randn(floats, device=device.name)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best(device, lambda: target.copy_(source))


def product_rate(device: Device, side: int, dtype: torch.dtype) -> float:
    """FLOPs per second."""
    one, other = (torch.randn(side, side, device=device.name).to(dtype) for _ in range(2))
    out = torch.empty_like(one)
    return 2 * side**3 / best(device, lambda: torch.mm(one, other, out=out))


def best(device: Device, run: Callable[[], object]) -> float:
    """Seconds per run, of the fastest of several goes."""
    device.clock(run, 3)
    return min(device.clock(run, 5) for _ in range(5))


def cuda_device() -> Device:
    """The current CUDA device."""
    return Device("cuda", cuda_clock, cuda_graph, torch.cuda.synchronize, cuda_peak)


def cuda_clock(run: Callable[[], object], times: int) -> float:
    """Seconds per run, on the device."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / times


def cuda_graph(call: Call, images: Tensor) -> Call:
    """A call captured for these images' shape; its result is overwritten by the next one."""
    held = images.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # so that nothing is compiled or tuned while capturing
            call(held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call(held)

    def replay(images: Tensor) -> Any:
        held.copy_(images)
        graph.replay()
        return result

    return replay


def cuda_peak(run: Callable[[], object]) -> int:
    """Bytes that a run adds to what is allocated, at its highest point."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@contextmanager
def arithmetic(tf32: bool, benchmark: bool) -> Iterator[None]:
    """Whether float32 products are TF32, and whether cuDNN times its algorithms; as before afterwards."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32 = matmul.allow_tf32 = tf32
    cudnn.benchmark = benchmark
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


def driver() -> str:
    """The driver's version, where nvidia-smi tells."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        lines = []
    return lines[0] if lines else "unknown"

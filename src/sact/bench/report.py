"""A benchmark as text: the conditions that its numbers hold under, and one line per contestant."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def conditions(threads: int) -> dict[str, Any]:
    """What numbers measured now hold under: processor, cores, threads, versions, date."""
    versions = {}
    for package in ("torch", "onnxruntime", "openvino"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "cores": cores(),
        "threads": threads,
        "versions": versions | {"torch": torch.__version__},
        "date": datetime.date.today().isoformat(),
    }


def cores() -> int | None:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):  # not Linux: the platform's own name has to do
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe(result: dict[str, Any]) -> str:
    """The conditions of a benchmark, on one line."""
    held = result["conditions"]
    versions = ", ".join(f"{name} {version}" for name, version in held["versions"].items())
    threads = f"{held['threads']} thread{'' if held['threads'] == 1 else 's'}"
    return (
        f"{held['processor']} ({held['cores']} cores), {threads}, float32, {versions}, {held['date']}; "
        f"medians of {result['rounds']} interleaved rounds"
    )


def table(result: dict[str, Any]) -> str:
    """What `bench` found, for the terminal."""
    shape = "x".join(map(str, result["input"]))
    gflops = result["plain_flops"] / 1e9
    fastest = result["fastest_peer"] or "none was timed"
    lines = [
        f"{result.get('model', result['family'])}, units {result['units']}, halting {result['halting']}, images {shape}"
        f"{' of ' + result['images'] if 'images' in result else ''}",
        f"plain network: {gflops:.4g} GFLOPs; the fastest peer: {fastest}",
        f"{'':28}{'FLOPs':>8}{'median ms':>11}  {'quartiles':>17}{'speed-up':>10}{'realised':>10}{'MiB':>7}"
        f"{'differs':>9}",
    ]
    for row in result["rows"]:
        name = label(row)
        if row["problem"]:
            lines.append(f"{name:28}{row['problem']}")
            continue
        times = row["milliseconds"]
        quartiles = f"{times['lower_quartile']:.2f} - {times['upper_quartile']:.2f}"
        realised = f"{row['realised_share']:.1%}" if row["realised_share"] else "-"
        speed_up = f"{row['speed_up']:.2f}x" if row["speed_up"] else "-"
        memory = f"{row['memory'] / 2**20:.0f}" if row["memory"] is not None else "-"
        lines.append(
            f"{name:28}{row['share']:>8.1%}{times['median']:>11.2f}  {quartiles:>17}{speed_up:>10}{realised:>10}"
            f"{memory:>7}{row['difference']:>9.0e}"
        )
    lines.append(describe(result))
    return "\n".join(lines)


def label(row: dict[str, Any]) -> str:
    """A contestant's name with what was asked of it."""
    if row["kind"] == "peer":
        return f"plain in {row['name']}"
    wanted = "" if row["wanted_share"] is None else f" at {row['wanted_share']:g}, {row['masks']}"
    return f"{row['name']}{wanted}"

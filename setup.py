"""Build the CPU engine: one source, a library for each instruction set, chosen when it is loaded.

Every library is optional: where there is no compiler, sact installs without it and the gather engine serves.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup

NATIVE = "src/sact/engines/native"
# Per instruction set: floats per vector, rows per tile (as many as the registers hold), compiler options.
X86 = {
    "avx512": (16, 14, ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx2", "-mfma"]),
    "avx2": (8, 6, ["-mavx2", "-mfma"]),
    "portable": (4, 6, []),
}
COMMON = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-pthread", "-g0"]
ARM = {"neon": (4, 12, []), "portable": (4, 6, [])}


def extension(isa: str, width: int, rows: int, options: list[str]) -> Extension:
    """The engine for one instruction set: a plain shared library, loaded with ctypes."""
    return Extension(
        f"sact.engines._native_{isa}",
        [f"{NATIVE}/native.cpp"],
        depends=[str(path) for path in Path(NATIVE).glob("*.h")],
        define_macros=[("SACT_WIDTH", str(width)), ("SACT_ROWS", str(rows)), ("Py_LIMITED_API", "0x030A0000")],
        extra_compile_args=[*COMMON, *options],
        extra_link_args=["-pthread", *(["-ldl"] if sys.platform == "linux" else [])],
        py_limited_api=True,
        optional=True,
    )


KERNELS = {"x86_64": X86, "amd64": X86, "aarch64": ARM, "arm64": ARM}
kernels = KERNELS.get(platform.machine().lower(), {"portable": (4, 6, [])})
setup(ext_modules=[] if sys.platform == "win32" else [extension(isa, *how) for isa, how in kernels.items()])

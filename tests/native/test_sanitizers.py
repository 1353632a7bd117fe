"""The C++ of the CPU engine under sanitizers, and on another processor; see `driver.cpp`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src" / "sact" / "engines" / "native"
COMPILER = next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
]


def run(command: list[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=600)


def compile_with(sanitizers: str, source: Path, program: Path, *options: str) -> subprocess.CompletedProcess[str]:
    common = ["-std=c++17", "-O2", "-g1", "-pthread", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    return run([COMPILER, *common, *options, f"-I{SOURCE}", source, "-o", program])


@pytest.fixture(params=["address,undefined", "thread"])
def sanitizers(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Sanitizers whose programs run here."""
    source, program = tmp_path / "nothing.cpp", tmp_path / "nothing"
    source.write_text("int main() { return 0; }\n")
    built = compile_with(request.param, source, program)
    if built.returncode or run([program]).returncode:
        pytest.skip(f"{COMPILER} has no runtime for -fsanitize={request.param} here")
    return request.param


@pytest.mark.parametrize(("width", "rows"), [(4, 6), (16, 14)])
def test_random_networks(sanitizers: str, width: int, rows: int, tmp_path: Path) -> None:
    """Vectors of any width compile for any processor; memory is walked through as in the real build."""
    program = tmp_path / "driver"
    options = (f"-DSACT_WIDTH={width}", f"-DSACT_ROWS={rows}", "-DSACT_CHECK", "-Wno-psabi")
    built = compile_with(sanitizers, HERE / "driver.cpp", program, *options)
    assert built.returncode == 0, built.stderr
    networks = 20 if sanitizers == "thread" else 40
    ran = run([program, str(networks)], TSAN_OPTIONS="halt_on_error=1")
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert ran.stdout == f"{networks} networks\n"


@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64")),
    reason="needs g++-aarch64-linux-gnu and qemu-user to build and run for another processor",
)
def test_neon(tmp_path: Path) -> None:
    """The NEON build, emulated."""
    program = tmp_path / "driver"
    options = ["-std=c++17", "-O3", "-ffp-contract=fast", "-pthread", "-static", "-DSACT_WIDTH=4", "-DSACT_ROWS=12"]
    built = run(["aarch64-linux-gnu-g++", *options, "-DSACT_CHECK", f"-I{SOURCE}", HERE / "driver.cpp", "-o", program])
    assert built.returncode == 0, built.stderr
    ran = run(["qemu-aarch64", program, "40"])
    assert (ran.returncode, ran.stdout) == (0, "40 networks\n"), ran.stderr[-4000:]

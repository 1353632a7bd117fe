"""Peak resident memory of a stretch of code, where the system tells (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def resident() -> int | None:
    """Bytes of memory in use now, once what is free has been given back to the system; None where it is not known."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library; the number is only less sharp
        ctypes.CDLL(None).malloc_trim(0)
    return _read("VmRSS")


def restart_peak() -> bool:
    """Let the peak start from here; False where the system cannot."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak() -> int | None:
    """Bytes at the highest point since `restart_peak`; None where it is not known."""
    return _read("VmHWM")


def _read(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)

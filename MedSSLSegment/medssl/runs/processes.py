"""Whether a process that wrote its number down is still there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["is_alive", "start_mark"]

_STATE, _START = 0, 19
"""Fields of /proc/PID/stat after the name of the program."""


def start_mark(pid: int) -> str:
    """What tells a process from a later one with the same number; "" where the system does not say."""
    fields = _stat(pid)
    return fields[_START] if fields else ""


def is_alive(pid: int, mark: str = "") -> bool:
    """Whether a process of this machine runs.

    Args:
        pid: its number.
        mark: what `start_mark` said of it; another process that got its number since is not taken for it.
    """
    if sys.platform == "linux":
        fields = _stat(pid)
        return bool(fields) and fields[_STATE] not in "ZX" and mark in ("", fields[_START])
    if sys.platform == "win32":
        return _windows_is_alive(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and another user's
        return True
    return True


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _windows_is_alive(pid: int) -> bool:
    import ctypes

    query, still_active = 0x1000, 259
    kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    handle = kernel.OpenProcess(query, False, pid)
    if not handle:
        return False
    status = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(status))
    kernel.CloseHandle(handle)
    return bool(status.value == still_active)

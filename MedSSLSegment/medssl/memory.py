"""How much memory this process uses and could still take, on its machine or within its container's limit."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["available_bytes", "available_on", "gigabytes", "used_bytes"]

_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_V1 = _CGROUP / "memory"


def available_bytes() -> int | None:
    """Bytes this process could still take without swapping; None where the system does not tell."""
    limits = [limit for limit in (_machine_available(), _container_available()) if limit is not None]
    return min(limits, default=None)


def available_on(device: str) -> int | None:
    """Bytes that this process could still take on a device, such as "cpu" or "cuda:0"; None where it cannot be told."""
    if not device.startswith("cuda"):
        return available_bytes()
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def used_bytes() -> int:
    """Bytes of memory this process holds; on a system without /proc the most it ever held."""
    try:
        resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return _peak_bytes()
    return resident_pages * os.sysconf("SC_PAGE_SIZE")


def gigabytes(count: int) -> str:
    """A number of bytes for a person, e.g. "2.1 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 0.95e9 else f"{count / 1e6:.0f} MB"


def _machine_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return _machine_available_elsewhere()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _machine_available_elsewhere() -> int | None:
    if sys.platform == "win32":
        return _windows_available()
    names = os.sysconf_names
    if "SC_AVPHYS_PAGES" in names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if "SC_PHYS_PAGES" in names:  # macOS names no free memory; what is not wired can be made free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return None


def _container_available() -> int | None:
    """What the control group's limit leaves; idle file cache counts as free, the kernel gives it up first."""
    for folder, limit_file, usage_file, cache_field in (
        (_CGROUP, "memory.max", "memory.current", "inactive_file"),
        (_CGROUP_V1, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit_text = (folder / limit_file).read_text().strip()
            usage = int((folder / usage_file).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        if limit_text == "max":
            return None
        return max(int(limit_text) - usage + int(statistics.get(cache_field, 0)), 0)
    return None


def _peak_bytes() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _windows_available() -> int | None:
    import ctypes

    class MemoryStatus(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total_physical", ctypes.c_ulonglong),
            ("available_physical", ctypes.c_ulonglong),
            ("total_page_file", ctypes.c_ulonglong),
            ("available_page_file", ctypes.c_ulonglong),
            ("total_virtual", ctypes.c_ulonglong),
            ("available_virtual", ctypes.c_ulonglong),
            ("available_extended_virtual", ctypes.c_ulonglong),
        )

    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    if not ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined,unused-ignore]
        return None
    return int(status.available_physical)

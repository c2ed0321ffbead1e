"""Say which of the system's drawing libraries Qt and VTK would miss; exit 1 when there are any."""

from __future__ import annotations

import ctypes
import sys

NEEDED = (
    "libEGL.so.1",
    "libGL.so.1",
    "libfontconfig.so.1",
    "libxkbcommon.so.0",
    "libdbus-1.so.3",
    "libglib-2.0.so.0",
)


def missing_libraries() -> list[str]:
    """Return the names of the shared libraries that cannot be loaded; none are needed outside Linux."""
    if not sys.platform.startswith("linux"):
        return []
    missing = []
    for name in NEEDED:
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    return missing


if __name__ == "__main__":
    if missing := missing_libraries():
        sys.exit("Missing: " + ", ".join(missing))

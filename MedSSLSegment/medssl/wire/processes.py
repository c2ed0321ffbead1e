"""Processes of our own: apart from this one, without a window, and ended together with all that they have started."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from typing import Any

__all__ = ["apart", "end_tree"]

_NO_WINDOW: int = getattr(subprocess, "CREATE_NO_WINDOW", 0)


def apart() -> dict[str, Any]:
    """What `subprocess.Popen` has to be told, so that `end_tree` finds all of it and Windows opens no console for it.

    The process leads a group of its own: Ctrl-C in a terminal is then this program's affair.
    """
    return {"start_new_session": True, "creationflags": _NO_WINDOW}


def end_tree(pid: int, *, by_force: bool = False) -> None:
    """Ask a process that was started `apart`, and all that it has started, to end; nothing happens if it is gone.

    Args:
        pid: its number.
        by_force: do not ask. Windows, whose own tool walks the tree, cannot ask a program without a window.
    """
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL if by_force else signal.SIGTERM)
        return
    subprocess.run(
        ["taskkill", "/T", "/F", "/PID", str(pid)], capture_output=True, check=False, creationflags=_NO_WINDOW
    )

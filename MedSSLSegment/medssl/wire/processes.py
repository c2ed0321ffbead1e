"""Processes of our own: apart from this one, without a window, and ended together with what belongs to them."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from typing import Any

__all__ = ["apart", "end_group", "end_tree"]

_NO_WINDOW: int = getattr(subprocess, "CREATE_NO_WINDOW", 0)


def apart() -> dict[str, Any]:
    """What `subprocess.Popen` has to be told, so that it leads a group of its own and Windows opens no console for it.

    Ctrl-C in a terminal is then this program's affair.
    """
    return {"start_new_session": True, "creationflags": _NO_WINDOW}


def end_group(process: subprocess.Popen[Any], *, by_force: bool = False) -> None:
    """Ask a process that was started `apart` and its group to end; nothing happens if it is gone.

    What it has started apart, such as a training run, is not of its group and goes on. Windows has no such groups: the
    process alone ends, without being asked.

    Args:
        process: leads the group.
        by_force: do not ask.
    """
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL if by_force else signal.SIGTERM)
    else:
        process.kill()


def end_tree(process: subprocess.Popen[Any], *, by_force: bool = False) -> None:
    """`end_group` for a program that has started nothing which is to go on: on Windows all that it started ends too."""
    if hasattr(os, "killpg"):
        end_group(process, by_force=by_force)
    else:
        words = ["taskkill", "/T", "/F", "/PID", str(process.pid)]
        subprocess.run(words, capture_output=True, check=False, creationflags=_NO_WINDOW)

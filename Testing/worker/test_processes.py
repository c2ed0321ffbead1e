"""Processes end together with what they have started, whatever the system."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from medssl.runs.processes import is_alive
from medssl.wire.processes import apart, end_group, end_tree

LAUNCHER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="asks for groups of processes")
@pytest.mark.parametrize("end", [end_group, end_tree])
@pytest.mark.parametrize("by_force", [False, True])
def test_what_a_launcher_has_started_ends_with_it(end: Callable[..., None], by_force: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True, **apart()
    ) as launcher:
        assert launcher.stdout is not None
        child = int(launcher.stdout.readline())
        end(launcher, by_force=by_force)
        assert launcher.wait(10) < 0
    deadline = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(child)
    end(launcher, by_force=by_force)  # it is gone already


class Windows:
    """A process there, and what was done to end it."""

    pid = 4711

    def __init__(self) -> None:
        self.done: list[list[str] | str] = []

    def kill(self) -> None:
        self.done.append("kill")


def test_on_windows_an_installers_tree_ends_and_a_workers_training_runs_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process: Any = Windows()
    monkeypatch.delattr(os, "killpg", raising=False)
    monkeypatch.setattr(subprocess, "run", lambda words, **_: process.done.append(words))
    end_tree(process)
    end_group(process)
    assert process.done == [["taskkill", "/T", "/F", "/PID", "4711"], "kill"]

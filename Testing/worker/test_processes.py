"""Processes end together with what they have started, whatever the system."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from medssl.runs.processes import is_alive
from medssl.wire.processes import apart, end_tree

LAUNCHER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="asks for groups of processes")
@pytest.mark.parametrize("by_force", [False, True])
def test_what_a_launcher_has_started_ends_with_it(by_force: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True, **apart()
    ) as launcher:
        assert launcher.stdout is not None
        child = int(launcher.stdout.readline())
        end_tree(launcher.pid, by_force=by_force)
        assert launcher.wait(10) < 0
    deadline = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(child)
    end_tree(launcher.pid, by_force=by_force)  # it is gone already


def test_windows_ends_the_tree_with_its_own_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.delattr(os, "killpg", raising=False)
    monkeypatch.setattr(subprocess, "run", lambda words, **_: called.append(words))
    end_tree(4711)
    assert called == [["taskkill", "/T", "/F", "/PID", "4711"]]

"""Runs that outlive what started them: on Windows without a window of their own or of what they start in turn."""

from __future__ import annotations

import subprocess

import pytest
from medssl.runs import detached


def test_on_windows_a_run_has_a_console_that_nobody_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"CREATE_NO_WINDOW": 0x08000000, "CREATE_NEW_PROCESS_GROUP": 0x200}
    for name, value in flags.items():
        monkeypatch.setattr(subprocess, name, value, raising=False)
    monkeypatch.setattr(detached.sys, "platform", "win32")
    assert detached._apart() == {"creationflags": 0x08000200}

"""Starts the real worker with an engine that calls bright voxels the segment; see Testing/worker/fake_worker.py."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from medssl.client import LocalCommand

__all__ = ["FakeCommand"]

_FAKE_WORKER = Path(__file__).parent / "worker" / "fake_worker.py"


@dataclass(frozen=True, kw_only=True)
class FakeCommand(LocalCommand):
    """Starts the real worker with the fake engine."""

    def argv(self) -> list[str]:
        """Program and arguments."""
        return [sys.executable, str(_FAKE_WORKER)]

"""For every test: a model folder of its own, and no attempt at drawing where the system's libraries are missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawing_libraries import missing_libraries

_DRAW = [Path(__file__).parent / folder for folder in ("qt", "web")]
_MISSING = missing_libraries()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the tests that need Qt or views, which would fail while they are imported."""
    return True if _MISSING and collection_path in _DRAW else None


def pytest_report_header() -> str | None:
    """Say what is left out and why."""
    if not _MISSING:
        return None
    return f"skipped: Testing/qt and Testing/web, because the system lacks {', '.join(_MISSING)}"


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's model folder, empty, so that no test reads or writes the real one."""
    home = tmp_path_factory.mktemp("medssl_home")
    monkeypatch.setenv("MEDSSL_HOME", str(home))
    return home

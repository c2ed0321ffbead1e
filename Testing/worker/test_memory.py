from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from medssl import memory


def test_memory_held_shows_up_as_used() -> None:
    before = memory.used_bytes()
    held = np.frombuffer(
        mmap.mmap(-1, 40 << 20), np.uint8
    )  # pages of its own, not ones the process had freed
    held[:] = 1
    assert memory.used_bytes() - before > 0.8 * held.nbytes


def test_a_container_limit_below_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 600000\ninactive_file 50000\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available_bytes() == 350_000


def test_an_older_container_limit_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text("1000\n")
    (folder / "memory.usage_in_bytes").write_text("1200\n")
    (folder / "memory.stat").write_text("total_inactive_file 100\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_CGROUP_V1", folder)
    assert memory.available_bytes() == 0


@pytest.mark.parametrize("limit", ["max", None])
def test_without_a_container_limit_the_machine_decides(
    limit: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit:
        for name, text in (("max", limit), ("current", "5"), ("stat", "anon 5")):
            (tmp_path / f"memory.{name}").write_text(text + "\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_CGROUP_V1", tmp_path / "memory")
    available = memory.available_bytes()
    assert available is not None
    assert available > 50_000_000


@pytest.mark.parametrize(("count", "text"), [(5_400_000_000, "5.4 GB"), (740_200_000, "740 MB"), (0, "0 MB")])
def test_sizes_are_written_for_people(count: int, text: str) -> None:
    assert memory.gigabytes(count) == text

"""What pre-training would cost is told before it begins, and nothing is left of the telling."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from medssl.client import LocalCommand, WorkerClient
from medssl.errors import Cancelled, InputError
from medssl.home import runs_folder
from medssl.phantom import phantom_ct
from medssl.volume import write_volume

PATIENCE_S = 240.0


@pytest.fixture
def client(own_home: Path, fake_command: LocalCommand) -> Iterator[WorkerClient]:
    """A client whose worker keeps its things in this test's own folder."""
    with WorkerClient(fake_command) as running:
        yield running


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small scans."""
    folder = tmp_path_factory.mktemp("scans")
    for seed in (0, 1):
        phantom = phantom_ct(seed, (8, 32, 32), (40.0, 12.0, 12.0))
        write_volume(phantom.volume, folder / f"{seed}.nii.gz")
    return folder


@pytest.fixture
def settings(scans: Path, tmp_path: Path) -> dict[str, Any]:
    """A small network on them."""
    return {
        "method": "simclr",
        "data": str(scans),
        "preset": "cpu",
        "size": [32, 32],
        "batch": 4,
        "minutes": 30.0,
        "cache": str(tmp_path / "cache"),
        "device": "cpu",
    }


def test_time_and_memory_are_told_and_no_run_begins(client: WorkerClient, settings: dict[str, Any]) -> None:
    text = client.estimate_pretrain(settings).result(PATIENCE_S).summary["estimate"]
    assert "steps of 4 samples will take about 30 min" in text
    assert text.endswith("of memory.")
    assert not runs_folder().exists()


def test_settings_that_cannot_be_are_said_in_the_commands_own_words(
    client: WorkerClient, settings: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="has no preset 'huge'; choose one of auto"):
        client.estimate_pretrain({**settings, "preset": "huge"}).result(PATIENCE_S)


def test_an_estimate_can_be_cancelled(client: WorkerClient, settings: dict[str, Any]) -> None:
    ticket = client.estimate_pretrain(settings)
    time.sleep(0.3)
    ticket.cancel()
    with pytest.raises(Cancelled):
        ticket.result(PATIENCE_S)

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
from medssl.prompts import SlicePrompt
from medssl.volume import Volume, write_volume

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


def test_cases_models_clicks_and_questions_do_not_wait_for_an_estimate(
    client: WorkerClient, settings: dict[str, Any], volume: Volume, click: SlicePrompt
) -> None:
    estimate = client.estimate_pretrain(settings)
    others = [client.list_cases(), client.list_runs(), client.predict(volume, click), client.info()]
    for ticket in others:
        ticket.result(PATIENCE_S)
    assert not estimate.done
    estimate.cancel()
    with pytest.raises(Cancelled):
        estimate.result(PATIENCE_S)


@pytest.mark.skipif(not Path("/proc/thread-self/children").exists(), reason="looks for processes in /proc")
def test_closing_the_client_under_an_estimate_leaves_no_process_behind(
    client: WorkerClient, settings: dict[str, Any]
) -> None:
    pid = client.hello().result(PATIENCE_S).pid
    client.estimate_pretrain(settings)
    ends = time.monotonic() + PATIENCE_S
    while not (measuring := children(pid)):
        assert time.monotonic() < ends
        time.sleep(0.02)
    client.close()
    assert not any(Path(f"/proc/{each}").exists() for each in measuring)


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for each in lists for child in each.read_text().split()]


def test_an_estimate_can_be_cancelled(client: WorkerClient, settings: dict[str, Any]) -> None:
    ticket = client.estimate_pretrain(settings)
    time.sleep(0.3)
    ticket.cancel()
    with pytest.raises(Cancelled):
        ticket.result(PATIENCE_S)

"""Cases, runs and models through a real worker process: answered at any time, never half done, never lost."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medssl.cases import CaseStore, Vouched
from medssl.client import LocalCommand, WorkerClient
from medssl.errors import InputError, StorageError, WorkerDied
from medssl.events import Log
from medssl.home import cases_folder, runs_folder
from medssl.messages import AddCase, Finished, PutVolume, VolumePart, to_frame
from medssl.phantom import phantom_ct
from medssl.prompts import Reference, SlicePrompt
from medssl.runs.run_folder import RunFolder, TrainingMetric, list_runs
from medssl.segmentation import Segment
from medssl.volume import Volume
from medssl.wire.codec import encode_labels
from medssl.wire.framing import write_frame
from medssl.wire.ticket import Ticket

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
PATIENCE_S = 240.0
LIVER = Segment("liver", 1, (0.5, 0.25, 0.0))
VOUCHED = (Vouched("liver", 0, (3,)),)


def facts(ticket: Ticket[Finished]) -> dict[str, Any]:
    return ticket.result(PATIENCE_S).summary


def drawn(volume: Volume) -> np.ndarray:
    """A label map with one annotated slice."""
    labels = np.zeros(volume.shape_kji, np.uint8)
    labels[3, 5:9, 7:20] = 1
    return labels


@pytest.fixture
def client(own_home: Path, fake_command: LocalCommand) -> Iterator[WorkerClient]:
    """A client whose worker keeps its things in this test's own folder."""
    with WorkerClient(fake_command) as running:
        yield running


def test_a_case_is_added_changed_removed_and_brought_back(client: WorkerClient, volume: Volume) -> None:
    labels = drawn(volume)
    codes = {"liver": "SCT^10200004^Liver"}
    added = facts(client.add_case(volume, labels, [LIVER], VOUCHED, name="Case 1", codes=codes))["case"]
    assert (added["name"], added["revision"], added["segments"][0]["slices"]) == ("Case 1", 1, 1)
    case = CaseStore(cases_folder()).case(added["id"])
    np.testing.assert_array_equal(case.segmentation().labels_kji, labels)
    np.testing.assert_array_equal(case.volume().voxels_kji, volume.voxels_kji)
    assert case.codes == codes

    labels[4] = labels[3]
    again = (Vouched("liver", 0, (3, 4), "propagated"),)
    changed = facts(client.update_case(added["id"], labels, [LIVER], again, what="one more slice"))["case"]
    assert changed["vouched"] == [{"segment": "liver", "axis": 0, "indices": [3, 4], "origin": "propagated"}]
    assert changed["history"][-1]["what"] == "one more slice"
    assert facts(client.list_cases()) == {"store": str(cases_folder()), "cases": [changed], "problems": []}

    removed = facts(client.remove_case(added["id"]))["removed"]
    assert facts(client.list_cases())["cases"] == []
    assert facts(client.restore_case(removed))["case"] == changed


def test_what_cannot_be_filed_is_said_in_one_sentence(client: WorkerClient, volume: Volume) -> None:
    elsewhere = str(cases_folder().parent / "mine")
    client.add_case(volume, drawn(volume), [LIVER], VOUCHED, store=elsewhere).result(PATIENCE_S)
    for ticket, sentence in (
        (client.add_case(volume, drawn(volume), [LIVER], VOUCHED, store=elsewhere), "already in the store"),
        (client.add_case(volume, drawn(volume), [LIVER], ()), "No slice is vouched for"),
        (client.add_case(volume, drawn(volume)[1:], [LIVER], VOUCHED), "shape"),
        (client.update_case("none", drawn(volume), [LIVER], VOUCHED), "There is no case 'none'"),
        (client.read_run(elsewhere), "holds no run"),
        (client.stop_run(elsewhere), "holds no run"),
    ):
        with pytest.raises(InputError, match=sentence):
            ticket.result(PATIENCE_S)


def test_cases_are_kept_while_the_worker_computes(
    client: WorkerClient, make_volume: Callable[..., Volume], reference: Reference
) -> None:
    volume = make_volume(slices=2000)
    work = client.propagate(volume, [reference], model="steady")
    next(work.events())
    facts(client.add_case(volume, drawn(volume), [LIVER], VOUCHED, name="a"))
    assert [case["name"] for case in facts(client.list_cases())["cases"]] == ["a"]
    assert not work.done
    work.cancel()


@dataclass(frozen=True, kw_only=True)
class FullDisk(LocalCommand):
    """Starts the fake worker where no file may grow beyond 8 KiB, which stands in for a full disk."""

    def argv(self) -> list[str]:
        return ["bash", "-c", f"ulimit -f 8; exec {shlex.join([sys.executable, str(FAKE_WORKER)])}"]


def test_a_full_disk_is_one_sentence_leaves_no_half_case_and_the_worker_goes_on(
    own_home: Path, make_volume: Callable[..., Volume], reference: Reference
) -> None:
    large = make_volume(slices=60, shape_hw=(64, 64))
    with WorkerClient(FullDisk()) as client:
        with pytest.raises(StorageError, match="could not be written"):
            client.add_case(large, drawn(large), [LIVER], VOUCHED).result(PATIENCE_S)
        pid = client.status.pid
        assert facts(client.list_cases())["cases"] == []
        small = make_volume()
        assert client.propagate(small, [reference]).result(PATIENCE_S)
        assert client.status.pid == pid
    assert CaseStore(cases_folder()).cases() == []


def test_closing_the_client_loses_no_case(client: WorkerClient, make_volume: Callable[..., Volume]) -> None:
    volume = make_volume(slices=300, shape_hw=(64, 64))
    ticket = client.add_case(volume, drawn(volume), [LIVER], VOUCHED)
    client.close()
    (case,) = CaseStore(cases_folder()).cases()
    assert ticket.result().summary["case"]["id"] == case.id


def test_a_client_that_dies_loses_no_case(own_home: Path, volume: Volume) -> None:
    segments, labels = (LIVER,), encode_labels(drawn(volume))
    key = volume.content_hash
    with subprocess.Popen(
        [sys.executable, str(FAKE_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number, message in enumerate((
            PutVolume(key, volume.shape_kji, "int16", volume.ijk_to_ras),
            VolumePart(key, 0, volume.voxels_kji),
            AddCase(key, labels, segments, VOUCHED, name="a"),
            AddCase(key, labels, segments, VOUCHED, store=str(own_home / "second"), name="b"),
        )):  # fmt: skip
            write_frame(process.stdin, to_frame(number + 1, message))
        process.stdout.close()
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0
    assert [case.name for case in CaseStore(cases_folder()).cases()] == ["a"]
    assert [case.name for case in CaseStore(own_home / "second").cases()] == ["b"]


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.2])
def test_a_worker_killed_while_it_keeps_a_case_leaves_a_whole_one_or_none(
    client: WorkerClient, make_volume: Callable[..., Volume], click: SlicePrompt, after_s: float
) -> None:
    volume = make_volume(slices=300, shape_hw=(96, 96))
    client.predict(volume, click).result(PATIENCE_S)
    pid = client.status.pid
    assert pid is not None
    ticket = client.add_case(volume, drawn(volume), [LIVER], VOUCHED)
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    with suppress(WorkerDied):
        ticket.result(PATIENCE_S)
    left = facts(client.list_cases())
    assert left["problems"] == []
    if not left["cases"]:
        facts(client.add_case(volume, drawn(volume), [LIVER], VOUCHED))
    (case,) = CaseStore(cases_folder()).cases()
    np.testing.assert_array_equal(case.volume().voxels_kji, volume.voxels_kji)
    np.testing.assert_array_equal(case.segmentation().labels_kji, drawn(volume))


def test_a_run_is_read_bit_by_bit(client: WorkerClient) -> None:
    run = RunFolder.create(runs_folder() / "one", "pretrain", {"method": "mae"})
    with run.occupied():
        run.append_event(Log("4 scans."))
        run.append_event(TrainingMetric(1, 0.5, {"loss": 2.0}, 1e-3, 20.0))
        run.save_picture(1, np.full((4, 6, 3), 7, np.uint8))
        first = facts(client.read_run(str(run.path)))
        assert first["run"]["state"] == "running"
        assert [event["type"] for event in first["events"]] == ["log", "metric"]
        assert first["events"][1]["values"] == {"loss": 2.0}
        assert first["picture_step"] == 1
        np.testing.assert_array_equal(first["picture"], np.full((4, 6, 3), 7, np.uint8))

        run.append_event(TrainingMetric(2, 1.0, {"loss": 1.0}, 1e-3, 20.0))
        second = facts(client.read_run(str(run.path), after_event=2, after_picture=1))
        assert (second["first_event"], second["picture"]) == (2, None)
        assert [event["step"] for event in second["events"]] == [2]
    run.forget_after(0)
    after = facts(client.read_run(str(run.path), after_event=3))
    assert after["run"]["state"] == "done"
    assert (after["first_event"], len(after["events"])) == (0, 1)
    assert [listed["name"] for listed in facts(client.list_runs())["runs"]] == ["one"]
    with pytest.raises(InputError, match="is not running; its state is 'done'"):
        client.stop_run(str(run.path)).result(PATIENCE_S)


@pytest.fixture
def no_run_left(own_home: Path) -> Iterator[None]:
    """Ends what a failing test would leave running for hours."""
    yield
    for run in list_runs(runs_folder()):
        if run.status.state == "running" and run.status.pid not in (None, os.getpid()):
            os.kill(run.status.pid or 0, signal.SIGKILL)


def test_a_fine_tuning_outlives_its_worker_is_found_again_and_stopped(
    client: WorkerClient, no_run_left: None
) -> None:
    phantom = phantom_ct(seed=0, shape_kji=(12, 32, 32), spacing_kji_mm=(20.0, 12.0, 12.0))
    liver = phantom.segmentation.segment("liver")
    index = int(phantom.segmentation.mask("liver").sum(axis=(1, 2)).argmax())
    vouched = [Vouched("liver", 0, (index - 1, index, index + 1))]
    labels = np.where(phantom.segmentation.labels_kji == liver.label, liver.label, 0).astype(np.uint8)
    facts(client.add_case(phantom.volume, labels, [liver], vouched, name="a"))
    settings = {"segments": ["liver"], "backbone": "unet2d_4", "size": [32, 32], "device": "cpu"}

    begun = facts(client.start_finetune({**settings, "batch": 1, "steps": 100_000, "patience": 0}))["run"]
    assert Path(begun["path"]).parent == runs_folder()
    worker = client.status.pid
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    _wait(lambda: client.status.state == "stopped")
    (found,) = facts(client.list_runs())["runs"]
    assert client.status.pid != worker
    assert (found["state"], found["pid"]) == ("running", begun["pid"])
    facts(client.stop_run(found["path"]))
    _wait(lambda: facts(client.read_run(found["path"]))["run"]["state"] != "running")
    assert facts(client.read_run(found["path"]))["run"]["state"] == "stopped"
    with pytest.raises(InputError, match="has not made a model yet"):
        client.adopt_run(found["path"], "liver").result(PATIENCE_S)


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)

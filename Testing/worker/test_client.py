from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from medssl.cases import Vouched
from medssl.client import LocalCommand, Ticket, WorkerClient
from medssl.errors import Cancelled, InputError, MedSSLError, NotEnoughMemory, WorkerDied, WorkerError
from medssl.events import Progress
from medssl.messages import Failed, Finished
from medssl.prompts import Reference, SlicePrompt
from medssl.results import SliceMask
from medssl.segmentation import Segment
from medssl.volume import Volume, Window

MakeVolume = Callable[..., Volume]
PATIENCE_S = 120.0


def masks(ticket: Ticket[Finished]) -> list[SliceMask]:
    return [event for event in ticket.events() if isinstance(event, SliceMask)]


def wait_for_slices(ticket: Ticket[Finished], count: int) -> list[SliceMask]:
    """Poll, as a timer would, until so many slices have come."""
    seen: list[SliceMask] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(seen) < count and time.monotonic() < deadline:
        seen += [event for event in ticket.poll() if isinstance(event, SliceMask)]
        time.sleep(0.002)
    assert len(seen) >= count
    return seen


def stop(pid: int) -> None:
    """Have a process hang, and wait until each of its threads does; a busy machine takes its time."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE_S
    while any(is_going(each) for each in Path(f"/proc/{pid}/task").glob("*/stat")):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_going(stat: Path) -> bool:
    return stat.read_text().rpartition(")")[2].split()[0] not in ("T", "t")


def process_is_gone(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_every_slice_comes_back_as_soon_as_it_is_known(
    client: WorkerClient, volume: Volume, reference: Reference
) -> None:
    ticket = client.propagate(volume, [reference], {"axis": 0}, model="steady")
    first = wait_for_slices(ticket, 1)
    assert not ticket.done
    found = first + masks(ticket)
    assert [mask.index for mask in found] == list(range(50))
    assert {mask.segment for mask in found} == {"liver"}
    np.testing.assert_array_equal(np.stack([mask.mask for mask in found]), volume.voxels_kji > 0)
    assert ticket.result().summary == {"slices": 50, "options": {"axis": 0}}


def test_progress_says_how_far_it_is_and_how_long_it_will_take(
    client: WorkerClient, volume: Volume, reference: Reference
) -> None:
    events = list(client.propagate(volume, [reference]).events())
    steps = [event for event in events if isinstance(event, Progress) and not event.text]
    assert [step.done for step in steps] == list(range(1, 51))
    assert all(step.total == 50 and step.seconds_left is not None for step in steps)


def test_polling_yields_each_event_once_and_the_outcome_last(
    client: WorkerClient, volume: Volume, reference: Reference
) -> None:
    ticket = client.propagate(volume, [reference])
    ticket.result(PATIENCE_S)
    events = ticket.poll()
    assert isinstance(events[-1], Finished)
    assert sum(isinstance(event, SliceMask) for event in events) == 50
    assert ticket.poll() == []


def test_a_click_is_answered_by_one_mask(client: WorkerClient, volume: Volume, click: SlicePrompt) -> None:
    ticket = client.predict(volume, click, segment="spleen", window=Window(40, 400))
    (answer,) = masks(ticket)
    assert (answer.segment, answer.axis, answer.index) == ("spleen", 0, 4)
    np.testing.assert_array_equal(answer.mask, volume.voxels_kji[4] > 0)


def test_a_coarse_mask_is_refined(client: WorkerClient, volume: Volume) -> None:
    coarse = np.random.default_rng(0).random(volume.shape_kji) > 0.7
    found = masks(client.refine(volume, coarse, segment="liver"))
    np.testing.assert_array_equal(np.stack([mask.mask for mask in found]), coarse)


def test_a_click_is_answered_in_the_middle_of_a_long_request(
    client: WorkerClient, volume: Volume, reference: Reference, click: SlicePrompt
) -> None:
    long = client.propagate(volume, [reference])
    wait_for_slices(long, 2)
    assert len(masks(client.predict(volume, click))) == 1
    assert not long.done
    assert client.status.state == "busy"


def test_a_click_goes_ahead_of_long_requests_in_the_queue(
    client: WorkerClient, volume: Volume, reference: Reference, click: SlicePrompt
) -> None:
    running, queued = client.propagate(volume, [reference]), client.propagate(volume, [reference])
    clicked = client.predict(volume, click)
    clicked.result(PATIENCE_S)
    assert not running.done
    assert not queued.done
    queued.cancel()
    running.cancel()


def test_a_click_stops_what_is_encoded_ahead_of_it(
    client: WorkerClient, volume: Volume, click: SlicePrompt
) -> None:
    client.expect(volume, 0, 4, model="tireless").result(PATIENCE_S)
    assert len(masks(client.predict(volume, click))) == 1


def test_a_slice_that_is_looked_at_is_encoded_while_nothing_is_asked(
    client: WorkerClient, make_volume: MakeVolume, click: SlicePrompt
) -> None:
    volume = make_volume(seed=8)
    client.expect(volume, 0, 4).result(PATIENCE_S)
    deadline_s = time.monotonic() + PATIENCE_S
    while not client.predict(volume, click).result(PATIENCE_S).summary["encoded"]:
        assert time.monotonic() < deadline_s


def test_an_error_ahead_of_a_click_is_nobodys_and_the_worker_goes_on(
    client: WorkerClient, volume: Volume, click: SlicePrompt
) -> None:
    client.expect(volume, 0, 4, model="clumsy").result(PATIENCE_S)
    pid = client.status.pid
    assert len(masks(client.predict(volume, click))) == 1
    assert client.status.pid == pid


def test_cancelling_stops_a_run_of_slices_within_a_third_of_a_second(
    client: WorkerClient, volume: Volume, reference: Reference
) -> None:
    def seconds_to_cancel() -> float:
        ticket = client.propagate(volume, [reference])
        wait_for_slices(ticket, 3)
        started = time.monotonic()
        ticket.cancel()
        with pytest.raises(Cancelled, match="as you asked"):
            ticket.result(PATIENCE_S)
        return time.monotonic() - started

    assert min(seconds_to_cancel() for _ in range(3)) < 0.3  # the best of three: the machine may be busy


def test_a_cancelled_run_leaves_the_worker_its_volume_and_its_model(
    fresh_client: WorkerClient, volume: Volume, reference: Reference
) -> None:
    ticket = fresh_client.propagate(volume, [reference], model="steady")
    wait_for_slices(ticket, 3)
    pid = fresh_client.status.pid
    ticket.cancel()
    with pytest.raises(Cancelled):
        ticket.result(PATIENCE_S)
    again = fresh_client.propagate(volume, [reference], model="steady")
    texts = {event.text for event in again.events() if isinstance(event, Progress)}
    assert "Sending the volume" not in texts
    info = fresh_client.info().result(PATIENCE_S)
    assert info.volumes == (volume.content_hash,)
    assert info.models == ("steady",)
    assert info.pid == pid


def test_a_queued_request_is_cancelled_without_waiting_for_its_turn(
    client: WorkerClient, volume: Volume, reference: Reference
) -> None:
    running, queued = client.propagate(volume, [reference]), client.propagate(volume, [reference])
    wait_for_slices(running, 1)
    queued.cancel()
    with pytest.raises(Cancelled):
        queued.result(PATIENCE_S)
    assert not running.done
    running.cancel()


def test_cancelling_what_has_ended_changes_nothing(
    client: WorkerClient, volume: Volume, click: SlicePrompt
) -> None:
    ticket = client.predict(volume, click)
    outcome = ticket.result(PATIENCE_S)
    ticket.cancel()
    assert ticket.result() is outcome


def test_a_volume_is_sent_once_and_again_after_it_was_forgotten(
    fresh_client: WorkerClient, volume: Volume, click: SlicePrompt
) -> None:
    def sent(ticket: Ticket[Finished]) -> bool:
        return "Sending the volume" in [
            event.text for event in ticket.events() if isinstance(event, Progress)
        ]

    assert sent(fresh_client.predict(volume, click))
    assert not sent(fresh_client.predict(replace(volume, name="same voxels"), click))
    fresh_client.forget(volume)
    assert fresh_client.info().result(PATIENCE_S).volumes == ()
    assert sent(fresh_client.predict(volume, click))


def test_a_volume_that_had_to_make_room_is_sent_again_unasked(
    fake_command: LocalCommand, make_volume: MakeVolume, click: SlicePrompt
) -> None:
    first, second = make_volume(seed=1), make_volume(seed=2)
    little_room = {**os.environ, "FAKE_WORKER_BUDGET": str(first.voxels_kji.nbytes)}
    with WorkerClient(replace(fake_command, base_environment=little_room)) as client:
        for volume in (first, second, first):
            (answer,) = masks(client.predict(volume, click))
            np.testing.assert_array_equal(answer.mask, volume.voxels_kji[4] > 0)
            assert client.info().result(PATIENCE_S).volumes == (volume.content_hash,)


def test_clicks_and_cancels_find_gaps_while_a_large_volume_is_sent_through_a_slow_line(
    slow_line_command: LocalCommand, volume: Volume, make_volume: MakeVolume, click: SlicePrompt
) -> None:
    with WorkerClient(slow_line_command) as client:
        client.predict(volume, click).result(PATIENCE_S)
        large = make_volume(slices=80, shape_hw=(512, 512))  # 42 MB, two seconds
        sending = client.predict(large, click)
        while not sending.poll():
            time.sleep(0.005)
        client.predict(volume, click).result(PATIENCE_S)
        assert not sending.done
        sending.cancel()
        with pytest.raises(Cancelled):
            sending.result(0.1)
        assert client.info().result(PATIENCE_S).volumes == (volume.content_hash,)


def test_asking_does_not_wait_for_the_voxels(
    slow_line_command: LocalCommand, make_volume: MakeVolume, click: SlicePrompt
) -> None:
    with WorkerClient(slow_line_command) as client:
        ticket = client.predict(make_volume(slices=40, shape_hw=(512, 512)), click)
        assert not ticket.done
        texts = [event.text for event in ticket.events() if isinstance(event, Progress)]
    assert texts.count("Sending the volume") > 3


@pytest.mark.parametrize(
    ("model", "kind", "sentence"),
    [
        ("refusing", InputError, "The annotation is empty; draw the organ on one slice."),
        ("stopping", Cancelled, "Stopped by the engine."),
        ("buggy", WorkerError, r"nobody foresaw \(ZeroDivisionError: division by zero\); its log"),
        ("out of memory", NotEnoughMemory, r"Memory ran out while working \(cannot allocate 9 GB\)\."),
        ("huge", NotEnoughMemory, r"huge needs about 1000000\.0 GB more memory and 2\.0 GB is free"),
    ],
)
def test_a_request_that_fails_ends_with_its_own_error_and_the_worker_lives(
    client: WorkerClient,
    volume: Volume,
    reference: Reference,
    click: SlicePrompt,
    model: str,
    kind: type[MedSSLError],
    sentence: str,
) -> None:
    with pytest.raises(kind, match=sentence):
        client.propagate(volume, [reference], model=model).result(PATIENCE_S)
    pid = client.status.pid
    client.predict(volume, click).result(PATIENCE_S)
    assert client.status.pid == pid


def test_a_request_that_cannot_be_sent_fails_alone(
    client: WorkerClient, volume: Volume, reference: Reference, click: SlicePrompt
) -> None:
    ticket = client.propagate(volume, [reference], {"axis": {1, 2}})
    with pytest.raises(WorkerError, match=r"options\.axis holds a set"):
        ticket.result(PATIENCE_S)
    client.predict(volume, click).result(PATIENCE_S)


@pytest.mark.parametrize("model", ["chatty", "greedy reader"])
def test_what_the_engine_prints_or_reads_does_not_disturb_the_messages(
    client: WorkerClient, volume: Volume, reference: Reference, model: str
) -> None:
    assert len(masks(client.propagate(volume, [reference], model=model))) == 50


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("killed", "ended by SIGKILL, often because memory ran out; the next request starts it again"),
        ("exiting", r"exit status 3 \(CUDA error: an illegal memory access\); the next request starts it"),
        ("cut", "damaged .*cut short: 8 of 20 bytes"),
        ("garbled", "damaged .*not a message"),
    ],
)
def test_a_dead_worker_ends_every_ticket_with_one_sentence_and_the_next_request_works(
    client: WorkerClient, volume: Volume, reference: Reference, click: SlicePrompt, model: str, sentence: str
) -> None:
    running, queued = (
        client.propagate(volume, [reference], model=model),
        client.propagate(volume, [reference]),
    )
    for ticket in (running, queued):
        with pytest.raises(WorkerDied, match=sentence):
            ticket.result(PATIENCE_S)
    events = running.poll()
    assert sum(isinstance(event, Failed) for event in events) == 1
    assert sum(isinstance(event, SliceMask) for event in events) == 25
    assert len(masks(client.predict(volume, click))) == 1


def test_kill_9_in_the_middle_keeps_what_had_arrived_and_the_volume_is_sent_again(
    client: WorkerClient, volume: Volume, reference: Reference
) -> None:
    ticket = client.propagate(volume, [reference])
    arrived = wait_for_slices(ticket, 5)
    pid = client.status.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        ticket.result(PATIENCE_S)
    arrived += [event for event in ticket.poll() if isinstance(event, SliceMask)]
    assert [mask.index for mask in arrived] == list(range(len(arrived)))
    assert client.status.state == "stopped"
    again = client.propagate(volume, [reference])
    assert len(masks(again)) == 50
    assert client.status.pid != pid


def test_a_worker_that_died_while_idle_is_replaced_unnoticed(
    client: WorkerClient, volume: Volume, click: SlicePrompt
) -> None:
    client.predict(volume, click).result(PATIENCE_S)
    pid = client.status.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert process_is_gone(pid) or client.status.state == "stopped"
    assert len(masks(client.predict(volume, click))) == 1


def test_closing_ends_a_computing_worker_at_once(
    fresh_client: WorkerClient, volume: Volume, reference: Reference
) -> None:
    ticket = fresh_client.propagate(volume, [reference], model="busy")
    wait_for_slices(ticket, 25)
    pid = fresh_client.status.pid
    assert pid is not None
    fresh_client.close()
    assert process_is_gone(pid)
    with pytest.raises(WorkerDied, match="was closed before"):
        ticket.result(0)
    assert fresh_client.status.state == "stopped"


def test_a_worker_that_does_not_react_is_ended_by_force(
    fresh_client: WorkerClient, volume: Volume, click: SlicePrompt
) -> None:
    fresh_client.predict(volume, click).result(PATIENCE_S)
    pid = fresh_client.status.pid
    assert pid is not None
    stop(pid)
    fresh_client.close()
    assert process_is_gone(pid)


def test_a_worker_that_hangs_is_ended_after_a_cancel_and_the_next_request_works(
    fake_command: LocalCommand, volume: Volume, reference: Reference
) -> None:
    with WorkerClient(fake_command, silence_seconds=0.2) as client:
        ticket = client.propagate(volume, [reference])
        wait_for_slices(ticket, 2)
        pid = client.status.pid
        assert pid is not None
        stop(pid)
        ticket.cancel()
        with pytest.raises(
            WorkerDied, match=r"said nothing for 0\.2 s after it was asked to stop, and was ended"
        ):
            ticket.result(PATIENCE_S)
        assert process_is_gone(pid)
        assert len(masks(client.propagate(volume, [reference]))) == 50


def test_a_worker_that_hangs_while_a_volume_is_sent_is_ended_after_a_cancel(
    fake_command: LocalCommand, make_volume: MakeVolume, click: SlicePrompt
) -> None:
    with WorkerClient(fake_command, silence_seconds=0.2) as client:
        pid = client.hello().result(PATIENCE_S).pid
        stop(pid)
        ticket = client.predict(make_volume(slices=80, shape_hw=(256, 256)), click)
        time.sleep(0.1)  # more than a pipe holds: the first part waits to be taken
        ticket.cancel()
        assert process_is_gone(pid)
        small = make_volume(seed=3)
        assert len(masks(client.predict(small, click))) == 1


def test_a_worker_that_only_takes_long_is_left_alone_after_a_cancel(
    fake_command: LocalCommand, volume: Volume, reference: Reference
) -> None:
    with WorkerClient(fake_command, silence_seconds=0.5) as client:
        ticket = client.propagate(volume, [reference], model="busy")
        wait_for_slices(ticket, 25)
        pid = client.status.pid
        ticket.cancel()
        time.sleep(1.0)
        assert client.status.pid == pid
        assert not ticket.done


def test_a_worker_that_is_still_being_sent_something_is_left_alone_after_a_cancel(
    slow_line_command: LocalCommand, volume: Volume, click: SlicePrompt, tmp_path: Path
) -> None:
    """What asks it to stop waits behind the labels of a case, which take longer over the line than it may be silent."""
    with WorkerClient(slow_line_command, silence_seconds=0.5) as client:
        client.predict(volume, click).result(PATIENCE_S)
        pid = client.status.pid
        labels = np.ones((40, 1024, 1024), np.uint8)
        liver, vouched = [Segment("liver", 1, (1.0, 0.0, 0.0))], [Vouched("liver", 0, (1,))]
        case = client.update_case("gone", labels, liver, vouched, store=str(tmp_path))
        time.sleep(0.1)  # the labels are on their way
        first = client.predict(volume, click)
        first.cancel()
        assert len(masks(client.predict(volume, click))) == 1
        with pytest.raises(InputError, match="no case 'gone'"):
            case.result(PATIENCE_S)
        assert client.status.pid == pid


def test_a_client_that_is_killed_leaves_no_worker_behind(tmp_path: Path) -> None:
    script = f"""
import sys, time
import numpy as np
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from conftest import FakeCommand, WorkerClient, Reference, SlicePrompt, _noise
client = WorkerClient(FakeCommand())
reference = Reference("liver", SlicePrompt(0, 3, mask=np.ones((24, 32), bool)))
ticket = client.propagate(_noise(), [reference], model="busy")
while not ticket.poll(): time.sleep(0.01)
print(client.hello() and client.status.pid, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        worker_pid = int(process.stdout.readline())
        process.kill()
    assert process_is_gone(worker_pid)


def test_a_python_that_is_not_there_is_named() -> None:
    with WorkerClient(LocalCommand(python="/nowhere/python")) as client:
        with pytest.raises(WorkerDied, match="'/nowhere/python' does not run"):
            client.info().result(PATIENCE_S)
        assert client.status.state == "stopped"


def test_a_python_without_the_engine_is_explained(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named numpy' >&2\nexit 1\n")
    python.chmod(0o755)
    with (
        WorkerClient(LocalCommand(python=str(python))) as client,
        pytest.raises(WorkerDied, match=r"exit status 1 \(No module named numpy\)"),
    ):
        client.info().result(PATIENCE_S)


def test_waiting_for_a_result_can_end_early(
    client: WorkerClient, volume: Volume, reference: Reference
) -> None:
    ticket = client.propagate(volume, [reference])
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.01 s"):
        ticket.result(0.01)
    ticket.cancel()


def test_the_status_line_knows_the_worker(
    fresh_client: WorkerClient, volume: Volume, click: SlicePrompt
) -> None:
    assert fresh_client.status.state == "stopped"
    fresh_client.predict(volume, click).result(PATIENCE_S)
    status = fresh_client.status
    assert (status.state, status.device) == ("ready", "cpu")
    assert status.memory_used_bytes is not None
    assert status.memory_used_bytes > 1_000_000


def test_neither_the_client_nor_an_idle_worker_loads_torch() -> None:
    with WorkerClient() as client:
        assert client.hello().result(PATIENCE_S).version
        assert not client.info().result(PATIENCE_S).torch_loaded
    heavy = ["torch", "SimpleITK", "scipy", "vtk", "slicer", "qt"]
    script = f"import sys, medssl.client; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_nothing_that_names_a_patient_reaches_the_worker_or_its_log(
    fresh_client: WorkerClient, volume: Volume, reference: Reference, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG", logger="medssl"):
        masks(fresh_client.propagate(volume, [reference]))
        deadline = time.monotonic() + PATIENCE_S  # the worker's log comes through a pipe of its own
        while "Propagate 1: done" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        fresh_client.close()
    assert "Propagate 1: done" in caplog.text
    assert "patient_name" not in caplog.text

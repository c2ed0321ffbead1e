from __future__ import annotations

import io
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from medssl.messages import (
    Cancel,
    Failed,
    Forget,
    Hello,
    Message,
    Propagate,
    PutVolume,
    Shutdown,
    VolumePart,
    Welcome,
    from_frame,
    to_frame,
)
from medssl.prompts import Reference
from medssl.results import SliceMask
from medssl.volume import Volume
from medssl.wire.framing import Frame, read_frame, write_frame

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
PATIENCE_S = 120


class Talk:
    """A worker process seen as what goes in and what comes out."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self.stdin: IO[bytes] = process.stdin
        self.stdout: IO[bytes] = process.stdout

    def say(self, request_id: int, message: Message) -> None:
        write_frame(self.stdin, to_frame(request_id, message))

    def say_volume(self, volume: Volume) -> None:
        key = volume.content_hash
        self.say(1, PutVolume(key, volume.shape_kji, "int16", volume.ijk_to_ras))
        self.say(1, VolumePart(key, 0, volume.voxels_kji))

    def hear(self, kind: type[Message], request_id: int) -> Message:
        """The next reply of this kind to this request."""
        while (frame := read_frame(self.stdout)) is not None:
            message = from_frame(frame)
            if frame.request_id == request_id and isinstance(message, kind):
                return message
        raise AssertionError(f"The worker ended without a {kind.__name__}.")


@pytest.fixture
def talk() -> Iterator[Talk]:
    with subprocess.Popen(
        [sys.executable, str(FAKE_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        yield Talk(process)
        process.kill()


def test_a_worker_introduces_itself_before_it_is_asked(talk: Talk) -> None:
    assert talk.hear(Welcome, 0).pid == talk.process.pid


@pytest.mark.parametrize("model", ["steady", "busy"])
def test_the_end_of_the_input_ends_a_computing_worker(
    talk: Talk, volume: Volume, reference: Reference, model: str
) -> None:
    talk.say_volume(volume)
    talk.say(2, Propagate(volume.content_hash, (reference,), {}, model))
    talk.hear(SliceMask, 2)
    talk.stdin.close()
    assert talk.process.wait(PATIENCE_S) == 0


def test_an_idle_worker_ends_with_its_input(talk: Talk) -> None:
    talk.stdin.close()
    assert talk.process.wait(PATIENCE_S) == 0


def test_a_worker_can_be_told_to_end(talk: Talk) -> None:
    talk.say(1, Shutdown())
    assert talk.process.wait(PATIENCE_S) == 0


def test_a_worker_whose_client_no_longer_listens_ends(
    talk: Talk, volume: Volume, reference: Reference
) -> None:
    talk.say_volume(volume)
    talk.say(2, Propagate(volume.content_hash, (reference,), {}, "steady"))
    talk.hear(SliceMask, 2)
    talk.stdout.close()
    assert talk.process.wait(PATIENCE_S) == 0


def test_a_worker_whose_line_is_reset_with_a_reply_unread_ends() -> None:
    """As with ssh, which gives a program one socket for its input and its output."""
    ours, its = socket.socketpair()
    command = [sys.executable, str(FAKE_WORKER)]
    with its, subprocess.Popen(command, stdin=its, stdout=its, stderr=subprocess.DEVNULL) as process:
        with ours:
            select.select([ours], [], [], PATIENCE_S)  # its greeting has come, and nobody reads it
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.skipif(
    sys.platform != "linux", reason="limits the memory of another process, which only Linux can"
)
def test_a_volume_that_memory_is_refused_for_fails_alone(talk: Talk) -> None:
    """Memory may be limited (ulimit -v, Windows' commit limit) though the machine has plenty."""
    import resource

    talk.hear(Welcome, 0)
    used = int(Path(f"/proc/{talk.process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(talk.process.pid, resource.RLIMIT_AS, (used + (200 << 20),) * 2)
    talk.say(1, PutVolume("abc", (300, 1024, 1024), "int16", np.eye(4)))
    failed = talk.hear(Failed, 1)
    assert failed.kind == "NotEnoughMemory"
    talk.say(2, Hello())
    talk.hear(Welcome, 2)


def test_damage_on_the_way_in_is_reported_and_ends_the_worker(talk: Talk) -> None:
    talk.stdin.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    talk.stdin.flush()
    failed = talk.hear(Failed, 0)
    assert failed.kind == "ProtocolError"
    assert "not a message" in failed.message
    assert talk.process.wait(PATIENCE_S) == 1


def test_a_frame_cut_in_the_middle_is_reported_and_ends_the_worker(talk: Talk, volume: Volume) -> None:
    whole = io.BytesIO()
    write_frame(whole, to_frame(1, VolumePart("abc", 0, volume.voxels_kji)))
    talk.stdin.write(whole.getvalue()[:500])
    talk.stdin.close()
    assert "cut short" in talk.hear(Failed, 0).message
    assert talk.process.wait(PATIENCE_S) == 1


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (Frame("dance", 7), "ProtocolError"),
        (Frame("cancel", 7, {"request": 1}), "ProtocolError"),
        (Frame("welcome", 7, {"version": "1", "pid": 1}), "ProtocolError"),
        (to_frame(7, Propagate("no such volume", ())), "VolumeNotHeld"),
        (to_frame(7, PutVolume("abc", (10**6, 10**6, 10**3), "int16", np.eye(4))), "NotEnoughMemory"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.type,
)
def test_a_message_that_cannot_be_served_fails_alone(talk: Talk, frame: Frame, kind: str) -> None:
    write_frame(talk.stdin, frame)
    assert talk.hear(Failed, 7).kind == kind
    talk.say(8, Hello())
    talk.hear(Welcome, 8)


def test_cancelling_or_forgetting_what_is_not_there_changes_nothing(talk: Talk) -> None:
    talk.say(1, Cancel(99))
    talk.say(2, Forget("no such volume"))
    talk.say(3, Hello())
    assert talk.hear(Welcome, 3).volumes == ()


def test_the_real_worker_started_by_hand_explains_itself() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "medssl.worker", "--help"], capture_output=True, text=True, check=True
    )
    assert "standard input and output" in run.stdout


def test_a_worker_has_torchs_threads_wait_briefly_unless_told_otherwise() -> None:
    script = "import medssl.worker as w, os; w._leave_cores_to_others(); print(os.environ['GOMP_SPINCOUNT'])"
    for chosen, count in (("", "20000"), ("7", "7")):
        environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
        environment |= {"GOMP_SPINCOUNT": chosen} if chosen else {}
        command = [sys.executable, "-c", script]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert run.stdout.strip() == count

"""One life of a worker process, and the three threads at its pipes.

The writer sends what is asked, a volume first where the worker lacks it; the reader hands replies to their
tickets and, when the process is gone, tells every open ticket so in one sentence; the third keeps the last
lines of the log.
"""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from ..errors import Cancelled, MedSSLError, WorkerDied
from ..events import Eta
from ..messages import (
    STREAMED,
    VOLUME_NOT_HELD,
    Cancel,
    Failed,
    Forget,
    Message,
    PutVolume,
    VolumePart,
    Welcome,
    WorkerInfo,
    from_frame,
    to_frame,
)
from .framing import read_frame, write_frame
from .launch import WorkerCommand
from .processes import apart, end_group
from .ticket import Ticket

if TYPE_CHECKING:
    from ..volume import Volume

__all__ = ["SILENCE_SECONDS", "Connection", "WorkerStatus"]

_log = logging.getLogger(__name__)

_PART_BYTES = 1 << 20
"""Voxels per frame: small enough that a click or a cancel soon finds a gap, on a slow line too."""
SILENCE_SECONDS = 60.0
"""How long a worker may say nothing after it was asked to stop something; even while it computes it answers that."""
_PIECE_BYTES = 1 << 16
_GRACE_SECONDS = 2.0
_STDERR_LINES = 30
_NO_REQUEST = 0


@dataclass(frozen=True)
class WorkerStatus:
    """The worker, for a status line."""

    state: Literal["stopped", "starting", "ready", "busy"]
    pid: int | None = None
    device: str = ""
    """Of the model used last; empty before the first one."""
    memory_used_bytes: int | None = None


class Connection:
    """A running worker.

    Args:
        command: how to start it.
        silence_seconds: how long it may say nothing after it was asked to stop something.

    Raises:
        WorkerDied: the program cannot be started at all.
    """

    def __init__(self, command: WorkerCommand, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._command = command
        self._silence_seconds = silence_seconds
        self._heard = 0  # frames
        self._unanswered = 0  # cancels, each of which the worker answers at once with a sign of life
        self._is_watched = False
        self._is_silent = False
        self._changed = threading.Condition()  # guards everything down to _ended
        self._waiting: deque[Ticket[Any]] = deque()
        self._notes: deque[Message] = deque()  # go ahead of requests and have no reply
        self._open: dict[int, Ticket[Any]] = {}
        self._sent: set[int] = set()
        self._volume_resent: set[int] = set()
        self._held: set[str] = set()
        self._closing = False
        self._ended: Failed | None = None
        self._welcome: Welcome | None = None
        self._info: WorkerInfo | None = None
        self._complaint = ""
        self._log_tail: deque[str] = deque(maxlen=_STDERR_LINES)
        self._process = _start(command)
        self._stdin = _Metered(cast(IO[bytes], self._process.stdin))
        self._threads = {
            name: threading.Thread(target=target, name=f"worker {name}", daemon=True)
            for name, target in (("log", self._keep_log), ("reader", self._read), ("writer", self._write))
        }
        for thread in self._threads.values():
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests still have a chance."""
        return self._ended is None and not self._closing and self._process.poll() is None

    @property
    def status(self) -> WorkerStatus:
        """What the worker said last about itself."""
        if not self.alive:
            return WorkerStatus("stopped")
        info, pid = self._info, self._welcome.pid if self._welcome else None
        state: Literal["starting", "ready", "busy"] = "starting" if pid is None else "ready"
        if pid is not None and self._open:
            state = "busy"
        if info is None:
            return WorkerStatus(state, pid)
        return WorkerStatus(state, pid, info.device, info.memory_used_bytes)

    def submit(self, ticket: Ticket[Any]) -> None:
        """Send a request as soon as its turn comes; if the worker is gone, the ticket ends with that."""
        with self._changed:
            if self._ended is None:
                self._open[ticket.request_id] = ticket
                self._waiting.append(ticket)
                self._changed.notify_all()
                return
        ticket.add(self._ended)

    def cancel(self, ticket: Ticket[Any]) -> None:
        """Stop a request: at once if it was not sent yet, else by asking the worker; one that hangs is ended."""
        with self._changed:
            if ticket.request_id not in self._sent:
                self._open.pop(ticket.request_id, None)
                ticket.add(Failed.from_error(Cancelled("Stopped, as you asked.")))
            self._notes.append(Cancel(ticket.request_id))  # a sign of life is the answer, whatever it meets
            self._changed.notify_all()
            self._unanswered += 1
            if not self._is_watched:
                self._watch()

    def forget(self, content_hash: str) -> None:
        """Have the worker drop a volume."""
        with self._changed:
            self._held.discard(content_hash)
            self._notes.append(Forget(content_hash))
            self._changed.notify_all()

    def close(self) -> None:
        """End the process: by the end of its input, else by force. Open tickets end with `WorkerDied`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._end_by_force()
        for thread in self._threads.values():
            thread.join(_GRACE_SECONDS)

    # The writer thread.

    def _write(self) -> None:
        try:
            while self._wait_for_work():
                self._send_notes()
                if (ticket := self._take_waiting()) is not None:
                    self._send_request(ticket)
        except OSError:  # the worker is gone; the reader finds out why
            pass
        except Exception as error:  # perhaps in the middle of a message: the worker would wait for its rest
            _log.error("a request cannot be sent", exc_info=error)
            self._end_by_force()
        with suppress(OSError):
            self._stdin.close()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._ended or self._notes or self._waiting)
            return not self._closing and self._ended is None

    def _take_waiting(self) -> Ticket[Any] | None:
        with self._changed:
            return self._waiting.popleft() if self._waiting else None

    def _send_notes(self) -> None:
        while True:
            with self._changed:
                if not self._notes:
                    return
                note = self._notes.popleft()
            self._send(_NO_REQUEST, note)

    def _send_request(self, ticket: Ticket[Any]) -> None:
        if ticket.done:
            return
        try:
            request = ticket.request
            if ticket.volume is not None:
                if not self._send_volume(ticket, ticket.volume):
                    return
                request = dataclasses.replace(request, volume=ticket.volume.content_hash)
            frame = to_frame(ticket.request_id, request)
            with self._changed:
                if ticket.done or self._closing:
                    return
                self._sent.add(ticket.request_id)
            write_frame(self._stdin, frame)
        except (MedSSLError, TypeError) as error:  # it cannot be sent itself; the connection is unharmed
            _log.error("request %d cannot be sent", ticket.request_id, exc_info=error)
            self._finish(ticket, Failed(type(error).__name__, str(error)))

    def _send_volume(self, ticket: Ticket[Any], volume: Volume) -> bool:
        """Send a volume the worker lacks, with gaps for what is urgent; False if its request has ended."""
        if volume.content_hash in self._held:
            return True
        voxels = volume.voxels_kji
        dtype = cast(Literal["int16", "float32"], voxels.dtype.name)
        self._send(
            ticket.request_id, PutVolume(volume.content_hash, volume.shape_kji, dtype, volume.ijk_to_ras)
        )
        step = max(_PART_BYTES // voxels[0].nbytes, 1)
        eta = Eta(len(voxels))
        for first in range(0, len(voxels), step):
            if ticket.done or self._closing:
                self._send(_NO_REQUEST, Forget(volume.content_hash))
                return False
            part = voxels[first : first + step]
            self._send(ticket.request_id, VolumePart(volume.content_hash, first, part))
            ticket.add(eta.step(first + len(part), "Sending the volume"))
            self._send_notes()
            self._send_what_needs_no_volume()
        with self._changed:
            self._held.add(volume.content_hash)
        return True

    def _send_what_needs_no_volume(self) -> None:
        """Let requests whose volume the worker holds already go ahead of a volume under way."""
        with self._changed:
            waiting = tuple(self._waiting)
        for ticket in waiting:
            if ticket.volume is None or ticket.volume.content_hash in self._held:
                with self._changed:
                    if ticket not in self._waiting:
                        continue
                    self._waiting.remove(ticket)
                self._send_request(ticket)

    def _send(self, request_id: int, message: Message) -> None:
        write_frame(self._stdin, to_frame(request_id, message))

    # The reader thread.

    def _read(self) -> None:
        stdout = cast(IO[bytes], self._process.stdout)
        problem = ""
        try:
            while (frame := read_frame(stdout)) is not None:
                self._receive(frame.request_id, from_frame(frame))
        except (MedSSLError, OSError) as error:
            problem = str(error)
        except Exception as error:
            _log.error("a reply cannot be read", exc_info=error)
            problem = f"{type(error).__name__}: {error}"
        with suppress(OSError):
            stdout.close()
        self._end(problem)

    def _receive(self, request_id: int, reply: Message) -> None:
        self._heard += 1
        if isinstance(reply, Welcome):
            if request_id == _NO_REQUEST and self._welcome is not None:
                with self._changed:
                    self._unanswered = max(self._unanswered - 1, 0)
            self._welcome = reply
        if isinstance(reply, WorkerInfo):
            self._info = reply
        if request_id == _NO_REQUEST and isinstance(reply, Failed):
            self._complaint = reply.message
        ticket = self._open.get(request_id)
        if ticket is None:
            return
        if isinstance(reply, Failed) and reply.kind == VOLUME_NOT_HELD and self._queue_again(ticket):
            return
        if isinstance(reply, STREAMED):
            ticket.add(reply)
        else:
            self._finish(ticket, reply)

    def _watch(self) -> None:
        """See after a while whether the worker has said anything since now; with `_changed` held."""
        self._is_watched = True
        timer = threading.Timer(self._silence_seconds, self._end_if_silent, [self._signs_of_life])
        timer.daemon = True
        timer.start()

    @property
    def _signs_of_life(self) -> tuple[int, int]:
        """Frames that have come, and bytes that have gone: over a slow line what was asked may still be on its way."""
        return self._heard, self._stdin.taken_bytes

    def _end_if_silent(self, before: tuple[int, int]) -> None:
        """End a worker that owes an answer and has given no sign of life since these.

        The next request gets a new one. What it had said before it fell silent may come in after it was asked to stop,
        so as long as it owes an answer it is watched on.
        """
        if not self.alive:
            return
        if self._unanswered and self._signs_of_life == before:
            self._is_silent = True
            self._end_by_force()
            return
        with self._changed:
            self._is_watched = False
            if self._unanswered:
                self._watch()

    def _queue_again(self, ticket: Ticket[Any]) -> bool:
        """Send a request once more, volume first, because the worker had to make room for another one."""
        with self._changed:
            if ticket.volume is None or ticket.request_id in self._volume_resent:
                return False
            self._volume_resent.add(ticket.request_id)
            self._sent.discard(ticket.request_id)
            self._held.discard(ticket.volume.content_hash)
            self._waiting.appendleft(ticket)
            self._changed.notify_all()
        return True

    def _finish(self, ticket: Ticket[Any], outcome: Message) -> None:
        with self._changed:
            self._open.pop(ticket.request_id, None)
            self._sent.discard(ticket.request_id)
        ticket.add(outcome)

    def _end(self, problem: str) -> None:
        """Close the books: find out why the worker is gone and tell every open ticket."""
        failed = Failed.from_error(WorkerDied(self._cause_of_death(problem)))
        with self._changed:
            self._ended = failed
            orphans = list(self._open.values())
            self._open.clear()
            self._waiting.clear()
            self._changed.notify_all()
        for ticket in orphans:
            ticket.add(failed)

    def _cause_of_death(self, problem: str) -> str:
        try:
            status = self._process.wait(_GRACE_SECONDS / 4 if problem else _GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._end_by_force()
            status = 0
        if self._closing:
            return "The worker was closed before the request had ended."
        if self._is_silent:
            return (
                f"The worker said nothing for {self._silence_seconds:g} s after it was asked to stop, and was ended;"
                " the next request starts it again."
            )
        if self._complaint:
            return _damaged(f"it could not read the request: {self._complaint}")
        if problem and status == 0:
            return _damaged(problem) if self._welcome else _no_worker(problem)
        self._threads["log"].join(_GRACE_SECONDS / 4)
        return self._command.explain(status, self._log_tail[-1] if self._log_tail else "")

    # The process.

    def _keep_log(self) -> None:
        with cast(IO[bytes], self._process.stderr) as stderr:
            for line in stderr:
                text = line.decode(errors="replace").strip()
                if text:
                    self._log_tail.append(text)
                    _log.debug("worker: %s", text)

    def _end_by_force(self) -> None:
        """Ask the whole process group to end, then make it: a launcher's child must not stay behind."""
        for by_force in (False, True):
            end_group(self._process, by_force=by_force)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS / 4)
                return


class _Metered:
    """A stream to write to that says how much it has taken, piece by piece."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.taken_bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        """Write all of it."""
        view = memoryview(data)
        for first in range(0, len(view), _PIECE_BYTES):
            self.taken_bytes += self._stream.write(view[first : first + _PIECE_BYTES])
        return len(view)

    def flush(self) -> None:
        """Pass on what is held back."""
        self._stream.flush()

    def close(self) -> None:
        """Nothing more comes."""
        self._stream.close()


def _no_worker(problem: str) -> str:
    """What came was not from a worker, as a greeting in the other machine's start-up files is not."""
    return (
        f"No worker answered ({problem.rstrip('.')}); if its machine prints a greeting at login, silence that, then"
        " try again."
    )


def _damaged(problem: str) -> str:
    return (
        f"The connection to the worker was damaged ({problem.rstrip('.')}); the next request starts it again."
    )


def _start(command: WorkerCommand) -> subprocess.Popen[bytes]:
    argv = command.argv()
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=command.environment(),
            **apart(),
        )
    except (OSError, ValueError) as error:
        raise WorkerDied(f"The worker cannot be started: {argv[0]!r} does not run ({error}).") from error

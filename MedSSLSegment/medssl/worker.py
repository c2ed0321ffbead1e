"""The worker: one process that holds the volumes, the models and the device, and answers messages on a pipe.

Three threads: a reader takes messages, the main thread computes, and a clerk does what concerns folders alone
(case stores, training runs, models). What waits for another program, such as the start of a training run, does so in a
thread of its own, and keeps nobody else waiting. A long request (propagate, refine, ...) is a generator: after each
item the main thread first answers what came in and is quick (a click, a question), then looks whether the request was
cancelled, and goes on. While nothing is asked it encodes slices that may be asked about next. The process ends when
its input ends, in the middle of a computation too, but not before the clerk has put away what it was given: a client
that is gone leaves nothing running and loses nothing.

Start it with ``python -m medssl.worker``; `medssl.client` does.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import IO, NoReturn

from . import __version__, memory
from .errors import Cancelled, MedSSLError, NotEnoughMemory, ProtocolError
from .events import Progress
from .messages import (
    Cancel,
    Expect,
    Failed,
    Finished,
    Forget,
    Hello,
    Info,
    Message,
    Predict,
    PredictVolume,
    Propagate,
    PutVolume,
    Refine,
    SegmentVolume,
    Shutdown,
    Streamed,
    VolumePart,
    Welcome,
    WorkerInfo,
    from_frame,
    to_frame,
)
from .serving.engine import Engine, EngineBackend, EngineRequest
from .serving.filing import FILING_REQUESTS, WAITING_REQUESTS, Desk, file_request
from .serving.volume_store import VolumeStore
from .volume import Volume
from .wire.framing import Frame, read_frame, write_frame

__all__ = ["Worker", "claim_standard_streams", "main"]

_log = logging.getLogger(__name__)

_LONG = (Propagate, Refine, PredictVolume, SegmentVolume)
_NO_REQUEST = 0
_CLERK_SECONDS = 120.0
"""How long the end of the process waits for what is being written; cut off, it would be lost, but harm nothing."""
_ERRAND_SECONDS = 5.0
"""How long it waits for each thread that was waiting itself, and now leaves off."""


@dataclass(eq=False)
class _Job:
    """A request in the queue or under way."""

    request_id: int
    request: Message
    cancelled: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it was taken from the queue."""
        return time.monotonic() - self.started


class Worker:
    """Answers the messages of one client until its input ends.

    Args:
        engine: what does the work.
        incoming: frames from the client.
        outgoing: frames to the client.
        volumes: where volumes are kept.
    """

    def __init__(
        self, engine: Engine, incoming: IO[bytes], outgoing: IO[bytes], volumes: VolumeStore | None = None
    ) -> None:
        self._engine = engine
        self._incoming = incoming
        self._outgoing = outgoing
        self._volumes = volumes or VolumeStore()
        self._send_lock = threading.Lock()
        self._changed = threading.Condition()
        self._quick: deque[_Job] = deque()
        self._long: deque[_Job] = deque()
        self._filed: deque[_Job] = deque()
        # A long job, between two of its items a quick one, a filed one, and those that wait for other programs.
        self._running: list[_Job] = []
        self._ahead: tuple[str, Iterator[None]] | None = (
            None  # a volume's hash, and work for when nothing is asked
        )
        self._exit_status: int | None = None  # set when the process is to end
        self._clerk = threading.Thread(target=self._file, name="clerk", daemon=True)
        self._errands: list[threading.Thread] = []
        self._answers: dict[type[Message], Callable[[_Job], Message]] = {
            Hello: lambda job: self._welcome(),
            Info: lambda job: self._info(),
            Forget: self._forget,
            Predict: self._predict,
            Expect: self._expect,
            **dict.fromkeys(_LONG, self._compute),
            **dict.fromkeys(FILING_REQUESTS, self._put_away),
        }

    def run(self) -> NoReturn:
        """Answer messages until the input ends; then end the process."""
        self._clerk.start()
        self._send(_NO_REQUEST, self._welcome())
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._quick or self._long or self._ahead)
                queue = self._quick or self._long
                job = self._start_next(queue) if queue else None
            if job is None:
                self._go_ahead()
            else:
                self._serve(job)

    # The reader thread.

    def _read(self) -> None:
        try:
            while (frame := read_frame(self._incoming)) is not None:
                self._receive(frame)
        except OSError as error:  # the line is gone, and with it the client
            _log.info("%s", error)
        except Exception as error:  # out of step with the other end: nothing after this can be trusted
            _log.error("%s", error)
            self._send(_NO_REQUEST, _as_failed(error))
            self._end(1)
        self._end(0)

    def _receive(self, frame: Frame) -> None:
        try:
            self._accept(frame.request_id, from_frame(frame))
        except Exception as error:
            self._send(frame.request_id, _as_failed(error))

    def _accept(self, request_id: int, message: Message) -> None:
        """Act on what must not wait for the main thread; queue the rest."""
        match message:
            case Cancel():
                self._cancel(message.request_id)
            case PutVolume():
                for content_hash in self._volumes.announce(message):
                    self._enqueue(_Job(_NO_REQUEST, Forget(content_hash)))
            case VolumePart():
                self._volumes.add_part(message)
            case Shutdown():
                self._end(0)
            case Forget():
                self._volumes.discard(message.content_hash)
                self._enqueue(_Job(request_id, message))
            case _ if isinstance(message, WAITING_REQUESTS):
                self._send_on_errand(_Job(request_id, message))
            case _ if type(message) in self._answers:
                self._enqueue(_Job(request_id, message))
            case _:
                raise ProtocolError(f"A worker does not answer {type(message).__name__} messages.")

    def _enqueue(self, job: _Job) -> None:
        with self._changed:
            self._queue_of(job.request).append(job)
            self._changed.notify_all()

    def _send_on_errand(self, job: _Job) -> None:
        """Begin a request that will wait for another program."""
        errand = threading.Thread(target=self._serve, args=(job,), name="errand", daemon=True)
        with self._changed:
            self._running.append(job)
            self._errands = [each for each in self._errands if each.is_alive()] + [errand]
            errand.start()

    def _queue_of(self, request: Message) -> deque[_Job]:
        if isinstance(request, FILING_REQUESTS):
            return self._filed
        return self._long if isinstance(request, _LONG) else self._quick

    def _cancel(self, request_id: int) -> None:
        with self._changed:
            queued = (*self._quick, *self._long, *self._filed)
            waiting = [job for job in queued if job.request_id == request_id]
            for job in waiting:
                self._queue_of(job.request).remove(job)
            for job in self._running:
                if job.request_id == request_id:
                    job.cancelled.set()
        for _ in waiting:
            self._send(request_id, Failed.from_error(_cancelled()))
        self._send(_NO_REQUEST, self._welcome())  # a sign of life: the computation may take long to stop

    # The main thread.

    def _start_next(self, queue: deque[_Job]) -> _Job:
        """Take the next job of a queue, with `_changed` held so that a cancel always finds it somewhere."""
        job = queue.popleft()
        job.started = time.monotonic()
        self._running.append(job)
        return job

    def _serve(self, job: _Job) -> None:
        """Answer one request, whatever happens."""
        outcome = "done"
        try:
            self._reply(job, self._answers[type(job.request)](job))
        except Exception as error:
            failed = _as_failed(error)
            outcome = failed.kind
            self._reply(job, failed)
        with self._changed:
            self._running.remove(job)
        _log.info("%s %d: %s, %.2f s", type(job.request).__name__, job.request_id, outcome, job.seconds)

    def _reply(self, job: _Job, reply: Message) -> None:
        if job.request_id != _NO_REQUEST:
            if not isinstance(reply, Welcome | WorkerInfo) and not isinstance(job.request, FILING_REQUESTS):
                self._send(_NO_REQUEST, self._info())
            self._send(job.request_id, reply)

    def _serve_quick(self) -> None:
        while True:
            with self._changed:
                if not self._quick:
                    return
                job = self._start_next(self._quick)
            self._serve(job)

    def _stream(self, job: _Job, events: Generator[Streamed, None, dict[str, object] | None]) -> Message:
        """Send what a long job yields; between two items, answer quick requests and honour a cancel."""
        with closing(events):
            while not job.cancelled.is_set():
                try:
                    event = next(events)
                except StopIteration as end:
                    return Finished(job.seconds, end.value or {})
                self._send(job.request_id, event)
                self._serve_quick()
        raise _cancelled()

    def _compute(self, job: _Job) -> Message:
        volume = self._prepare(job)
        return self._stream(job, self._engine.compute(volume, job.request, job.cancelled.is_set))

    def _predict(self, job: _Job) -> Message:
        volume = self._prepare(job)
        mask, facts = self._engine.predict(volume, job.request)
        self._send(job.request_id, mask)
        self._begin_ahead(volume, job.request)
        return Finished(job.seconds, facts)

    def _expect(self, job: _Job) -> Message:
        self._begin_ahead(self._volumes.get(job.request.volume), job.request)
        return Finished(job.seconds)

    def _forget(self, job: _Job) -> Message:
        content_hash = job.request.content_hash
        if self._ahead is not None and self._ahead[0] == content_hash:
            self._ahead = None
        self._engine.forget(content_hash)
        return Finished(job.seconds)

    # Ahead of what will be asked.

    def _begin_ahead(self, volume: Volume, request: Predict | Expect) -> None:
        self._ahead = request.volume, self._engine.encode_ahead(volume, request, self._waiting)

    def _waiting(self) -> list[Message]:
        with self._changed:
            return [job.request for job in (*self._quick, *self._long)]

    def _go_ahead(self) -> None:
        """Take one step of what may be wanted next; where it fails, whoever asks for it hears why."""
        assert self._ahead is not None
        try:
            next(self._ahead[1])
        except StopIteration:
            self._ahead = None
        except Exception as error:
            _log.warning("encoding ahead: %s", error)
            self._ahead = None

    def _prepare(self, job: _Job) -> Volume:
        """The volume of a request, once it is clear that the work on it fits in memory."""
        request: EngineRequest = job.request
        volume = self._volumes.get(request.volume)
        need = self._engine.bytes_needed(request, volume)
        if request.model not in self._engine.models:
            self._send(job.request_id, Progress(0, 0, None, f"Loading {request.model}"))
        available = self._engine.bytes_available(request.device)
        if available is not None and need > available:
            raise NotEnoughMemory(
                f"{request.model} needs about {memory.gigabytes(need)} more memory and"
                f" {memory.gigabytes(available)} is free; close other programs or choose a smaller model."
            )
        return volume

    # The clerk's thread.

    def _file(self) -> NoReturn:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._filed or self._exit_status is not None)
                job = self._start_next(self._filed) if self._filed else None
            if job is None:
                self._leave()
            self._serve(job)

    def _leave(self) -> NoReturn:
        """End the process; errands leave off first, so that no program they have started is left behind."""
        for errand in self._errands:
            errand.join(_ERRAND_SECONDS)
        _end_process(self._exit_status or 0)

    def _put_away(self, job: _Job) -> Message:
        def cancelled() -> bool:
            return job.cancelled.is_set() or self._exit_status is not None

        facts = file_request(job.request, Desk(self._volumes.get, cancelled))
        return Finished(job.seconds, facts)

    def _end(self, status: int) -> None:
        """Have the clerk put away what it was given and then end the process; it and errands go on until then."""
        with self._changed:
            self._exit_status = status
            self._changed.notify_all()
        if threading.current_thread() not in (self._clerk, *self._errands):
            self._clerk.join(_CLERK_SECONDS)
            _end_process(status)

    # Replies.

    def _welcome(self) -> Welcome:
        return Welcome(__version__, os.getpid(), self._volumes.hashes)

    def _info(self) -> WorkerInfo:
        return WorkerInfo(
            pid=os.getpid(),
            device=self._engine.device,
            models=self._engine.models,
            volumes=self._volumes.hashes,
            memory_used_bytes=memory.used_bytes(),
            memory_available_bytes=memory.available_bytes(),
            torch_loaded="torch" in sys.modules,
        )

    def _send(self, request_id: int, message: Message) -> None:
        frame = to_frame(request_id, message)
        try:
            with self._send_lock:
                write_frame(self._outgoing, frame)
        except OSError:  # the client is gone
            self._end(0)


def claim_standard_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Keep standard input and output for frames alone; call it before anything else can print.

    From then on whatever writes to file descriptor 1, Python or a C library, goes to standard error, and
    nothing else can read standard input.

    Returns:
        The streams of incoming and outgoing frames.
    """
    sys.stdout.flush()
    incoming, outgoing = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    if sys.platform == "win32":
        import msvcrt

        msvcrt.setmode(incoming, os.O_BINARY)
        msvcrt.setmode(outgoing, os.O_BINARY)
    return os.fdopen(incoming, "rb"), os.fdopen(outgoing, "wb")


def _leave_cores_to_others() -> None:
    """Have torch's threads wait for each other for some microseconds only; call it before torch is loaded.

    By default GNU OpenMP spins for milliseconds. Beside a program that draws images, as 3D Slicer does, every wait is
    then lost to both; without any spinning a large network is a third slower on an idle machine.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def _end_process(status: int) -> NoReturn:
    """End at once, whatever the main thread is doing."""
    logging.shutdown()
    os._exit(status)


def _cancelled() -> Cancelled:
    return Cancelled("Stopped, as you asked.")


def _as_failed(error: Exception) -> Failed:
    """The reply for an error; the traceback of one that nobody foresaw goes to the log."""
    if isinstance(error, MedSSLError):
        return Failed.from_error(error)
    _log.error("unforeseen", exc_info=error)
    # torch's error for a full GPU is known by its name: torch must not be imported just to catch it.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Failed("NotEnoughMemory", f"Memory ran out while working ({_one_line(error)}).")
    return Failed(
        "InternalError",
        f"The worker met a problem nobody foresaw ({type(error).__name__}: {_one_line(error)});"
        " its log on standard error says where.",
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the worker on standard input and output.

    Returns:
        An exit status, only where the worker did not start; otherwise the process ends with its input.
    """
    parser = argparse.ArgumentParser(
        prog="medssl worker",
        description="Serve one MedSSLSegment client over standard input and output. The client starts this"
        " itself, here or on another machine through ssh; nothing listens on the network.",
    )
    parser.add_argument("--threads", type=int, help="CPU threads to compute with (default: all cores)")
    arguments = parser.parse_args(argv)
    if sys.stdin.isatty():
        parser.print_help(sys.stderr)
        return 2
    incoming, outgoing = claim_standard_streams()
    _leave_cores_to_others()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    return Worker(EngineBackend(threads=arguments.threads), incoming, outgoing).run()


if __name__ == "__main__":
    sys.exit(main())

"""The worker seen from the other end of the pipe: requests go in, tickets come out, and nothing blocks.

    with WorkerClient() as client:
        ticket = client.propagate(volume, references)
        for event in ticket.events():  # or ticket.poll() from a timer
            ...

Standard library and numpy only: this runs inside 3D Slicer, where torch must never be loaded. The first
request starts the worker, and so does the next one after it died. A volume is sent once in a worker's life,
by a thread of its own, so that neither a large volume nor a slow line holds up the caller.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .codec import to_plain
from .connection import Connection, WorkerStatus
from .errors import WorkerDied
from .launch import LocalCommand, SshCommand, WorkerCommand
from .messages import (
    Failed,
    Finished,
    Hello,
    Info,
    Message,
    Predict,
    Propagate,
    Refine,
    Welcome,
    WorkerInfo,
)
from .registry import DEFAULT_MODEL
from .ticket import Ticket

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .prompts import Reference, SlicePrompt
    from .propagate import PropagateOptions
    from .refine import RefineOptions
    from .volume import Volume, Window

__all__ = ["LocalCommand", "SshCommand", "Ticket", "WorkerClient", "WorkerCommand", "WorkerStatus"]


class WorkerClient:
    """Sends requests to one worker, which it starts, starts again after a death, and ends.

    Args:
        command: how to start the worker; by default on this machine, with this Python.
    """

    def __init__(self, command: WorkerCommand | None = None) -> None:
        self._command = command or LocalCommand()
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def __enter__(self) -> WorkerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def status(self) -> WorkerStatus:
        """How the worker is, from what it said last; asks nothing and never waits."""
        connection = self._connection
        return connection.status if connection else WorkerStatus("stopped")

    def hello(self) -> Ticket[Welcome]:
        """Ask who the worker is, which starts it."""
        return self._submit(Hello())

    def info(self) -> Ticket[WorkerInfo]:
        """Ask for the worker's memory, device, models and volumes."""
        return self._submit(Info())

    def propagate(
        self,
        volume: Volume,
        references: Sequence[Reference],
        options: PropagateOptions | Mapping[str, Any] | None = None,
        *,
        model: str = DEFAULT_MODEL,
        device: str = "auto",
    ) -> Ticket[Finished]:
        """Carry references through a volume; the ticket yields `Progress`, `Log` and `SliceMask`.

        Args:
            volume: sent if the worker does not hold it.
            references: at least one.
            options: `PropagateOptions`, or some of its fields by name.
            model: id from the registry.
            device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        """
        request = Propagate("", tuple(references), _fields(options), model, device)
        return self._submit(request, volume)

    def predict(
        self,
        volume: Volume,
        prompt: SlicePrompt,
        *,
        segment: str = "",
        window: Window | None = None,
        model: str = DEFAULT_MODEL,
        device: str = "auto",
    ) -> Ticket[Finished]:
        """Answer one prompt on one slice, ahead of long requests; the ticket yields one `SliceMask`.

        Args:
            volume: sent if the worker does not hold it.
            prompt: points, box or mask.
            segment: name that comes back with the mask.
            window: for the whole volume; None = chosen from its intensities.
            model: id from the registry.
            device: as for `propagate`.
        """
        level_width = None if window is None else (window.level, window.width)
        return self._submit(Predict("", segment, prompt, level_width, model, device), volume)

    def refine(
        self,
        volume: Volume,
        coarse_kji: NDArray[np.bool_],
        options: RefineOptions | Mapping[str, Any] | None = None,
        *,
        segment: str = "",
        model: str = DEFAULT_MODEL,
        device: str = "auto",
    ) -> Ticket[Finished]:
        """Sharpen a coarse mask; the ticket yields `Progress` and `SliceMask`, its outcome holds the report.

        Args:
            volume: sent if the worker does not hold it.
            coarse_kji: (K, J, I) bool on the volume's grid.
            options: `RefineOptions`, or some of its fields by name.
            segment: name that comes back with the masks.
            model: id from the registry.
            device: as for `propagate`.
        """
        request = Refine("", segment, coarse_kji, _fields(options), model, device)
        return self._submit(request, volume)

    def forget(self, volume: Volume) -> None:
        """Have the worker drop a volume and what it computed from it; a later request sends it again."""
        connection = self._connection
        if connection is not None and connection.alive:
            connection.forget(volume.content_hash)

    def close(self) -> None:
        """End the worker and leave no process behind; open tickets end with `WorkerDied`."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _submit(self, request: Message, volume: Volume | None = None) -> Ticket[Any]:
        request_id = next(self._ids)
        try:
            with self._lock:
                if self._connection is None or not self._connection.alive:
                    self._connection = Connection(self._command)
                connection = self._connection
        except WorkerDied as error:
            ticket: Ticket[Any] = Ticket(request_id, request, volume, lambda _: None)
            ticket.add(Failed.from_error(error))
            return ticket
        ticket = Ticket(request_id, request, volume, connection.cancel)
        connection.submit(ticket)
        return ticket


def _fields(options: Any) -> dict[str, Any]:
    """The fields of an options dataclass as plain values."""
    if options is None:
        return {}
    return dict(options) if isinstance(options, Mapping) else to_plain(options)[0]

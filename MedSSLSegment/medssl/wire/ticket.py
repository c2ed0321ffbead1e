"""A ticket: one request under way, seen by the one who asked."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from ..messages import STREAMED, Failed, Message, Streamed

if TYPE_CHECKING:
    from ..volume import Volume

__all__ = ["Ticket"]

_Outcome = TypeVar("_Outcome", bound=Message)


class Ticket(Generic[_Outcome]):
    """What the worker says about one request, in order, and how it ended. Safe to use from any thread.

    Args:
        request_id: unique in the client's life.
        request: what to send; its field `volume`, where it has one, is filled in from `volume`.
        volume: what the request works on.
        on_cancel: called with the ticket when it is to be cancelled.
    """

    def __init__(
        self,
        request_id: int,
        request: Message,
        volume: Volume | None,
        on_cancel: Callable[[Ticket[_Outcome]], None],
    ) -> None:
        self.request_id = request_id
        self.request = request
        self.volume = volume
        self._on_cancel = on_cancel
        self._changed = threading.Condition()
        self._events: deque[Streamed] = deque()
        self._outcome: _Outcome | Failed | None = None
        self._outcome_taken = False

    @property
    def done(self) -> bool:
        """Whether the request has ended; events may still wait to be taken."""
        return self._outcome is not None

    def poll(self) -> list[Streamed | _Outcome | Failed]:
        """Take what has arrived, without waiting; the outcome, `Failed` too, comes once and last."""
        with self._changed:
            taken: list[Streamed | _Outcome | Failed] = list(self._events)
            self._events.clear()
            if self._outcome is not None and not self._outcome_taken:
                self._outcome_taken = True
                taken.append(self._outcome)
        return taken

    def events(self) -> Iterator[Streamed]:
        """Yield what arrives until the request ends.

        Raises:
            MedSSLError: once everything was yielded, if the request failed, was cancelled or lost its worker.
        """
        while (event := self._next_event()) is not None:
            yield event
        self.result()

    def result(self, timeout: float | None = None) -> _Outcome:
        """Wait for the outcome; events stay where they are.

        Raises:
            MedSSLError: the request failed, was cancelled or lost its worker.
            TimeoutError: it has not ended within `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._outcome is not None, timeout):
                raise TimeoutError(f"Request {self.request_id} has not ended within {timeout:g} s.")
        if isinstance(self._outcome, Failed):
            raise self._outcome.error()
        return cast(_Outcome, self._outcome)

    def cancel(self) -> None:
        """Ask to stop; the outcome is then `Failed` of kind "Cancelled", unless there is one already."""
        if not self.done:
            self._on_cancel(self)

    def add(self, reply: Message) -> None:
        """Take in a reply of the worker; what comes after the outcome does not count."""
        with self._changed:
            if self._outcome is not None:
                return
            if isinstance(reply, STREAMED):
                self._events.append(reply)
            else:
                self._outcome = reply
            self._changed.notify_all()

    def _next_event(self) -> Streamed | None:
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._outcome is not None)
            return self._events.popleft() if self._events else None

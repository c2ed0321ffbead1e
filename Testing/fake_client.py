"""Stands in for the worker's client where a test answers in the worker's place: real tickets, real signatures."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medssl.client import Ticket, WorkerClient
from medssl.errors import MedSSLError
from medssl.messages import Failed, Finished, Hello, Streamed

__all__ = ["Asked", "FakeClient", "FakeTicket"]


class FakeTicket(Ticket[Finished]):
    """A ticket as the client hands out; what the worker would say, the test says."""

    def __init__(self) -> None:
        super().__init__(0, Hello(), None, self._note_cancel)
        self.was_cancelled = False

    def _note_cancel(self, ticket: object) -> None:
        self.was_cancelled = True

    def say(self, *events: Streamed) -> None:
        """Masks, progress, ..., in this order."""
        for event in events:
            self.add(event)

    def end(self, **summary: Any) -> None:
        """The request is done."""
        self.add(Finished(0.1, summary))

    def fail(self, error: MedSSLError) -> None:
        """The request has failed, was cancelled, or lost its worker."""
        self.add(Failed.from_error(error))


@dataclass(frozen=True, eq=False)
class Asked:
    """One request; its arguments are found by name, those left to their defaults too."""

    name: str
    """Of the client's method."""
    arguments: Mapping[str, Any]
    ticket: FakeTicket

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]


class FakeClient:
    """Remembers what it was asked and leaves the answers to the test.

    Every method of `medssl.client.WorkerClient` that gives a ticket is here, and takes what that one takes.

    Args:
        is_ready_at_once: whether `expect` is answered by itself.
    """

    def __init__(self, is_ready_at_once: bool = True) -> None:
        self.is_ready_at_once = is_ready_at_once
        self.asked: list[Asked] = []
        self.was_closed = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(WorkerClient, name)
        if not inspect.isfunction(method):
            raise AttributeError(f"{name} is not asked of the worker")
        signature = inspect.signature(method)

        def ask(*args: Any, **kwargs: Any) -> FakeTicket:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            self.asked.append(Asked(name, bound.arguments, FakeTicket()))
            if name == "expect" and self.is_ready_at_once:
                self.asked[-1].ticket.end()
            return self.asked[-1].ticket

        return ask

    @property
    def run(self) -> FakeTicket:
        """The newest ticket of a request that somebody waits for."""
        return next(asked.ticket for asked in reversed(self.asked) if asked.name != "expect")

    @property
    def expected(self) -> list[tuple[int, int]]:
        """(axis, index) of every slice that was to be got ready, the newest last."""
        return [(asked["axis"], asked["index"]) for asked in self.asked_for("expect")]

    def asked_for(self, name: str) -> list[Asked]:
        """Every request under this name, the newest last."""
        return [asked for asked in self.asked if asked.name == name]

    def answer(self, name: str, **summary: Any) -> None:
        """End what was asked for under this name and waits."""
        for asked in self.asked_for(name):
            asked.ticket.end(**summary)

    def close(self) -> None:
        """End the worker."""
        self.was_closed = True

"""What long work tells its caller while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Eta", "Log", "Progress", "drain", "duration", "never"]

_Event = TypeVar("_Event")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Progress:
    """How far a request has come."""

    done: int
    """Steps finished, 0 .. total."""
    total: int
    """Steps in all; may shrink when a stop rule ends a direction early."""
    seconds_left: float | None = None
    """Estimated seconds to the end; None before the first step is known."""
    text: str = ""
    """What is being done, for a person."""


@dataclass(frozen=True)
class Log:
    """One line for a person, e.g. why propagation stopped at a slice."""

    text: str


class Eta:
    """Turns step counts into `Progress` with the time left, from the mean pace since it was made."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._started = time.monotonic()

    def step(self, done: int, text: str = "") -> Progress:
        """Report `done` of `total` steps finished."""
        if done <= 0:
            return Progress(0, self.total, None, text)
        pace_s = (time.monotonic() - self._started) / done
        return Progress(done, self.total, pace_s * max(self.total - done, 0), text)


def drain(work: Generator[_Event, None, _Result], on_event: Callable[[_Event], None]) -> _Result:
    """Run work that yields events to its end, handing each one over; return what it returns."""
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            result: _Result = end.value
            return result
        on_event(event)


def never() -> bool:
    """The answer to "cancelled?" where nobody can ask to stop."""
    return False


def duration(seconds: float) -> str:
    """Write a length of time for a person: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"

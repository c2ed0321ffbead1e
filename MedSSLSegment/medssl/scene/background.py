"""Work on arrays that would hold up the front end, done in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Task"]

_T = TypeVar("_T")


class Task(Generic[_T]):
    """A function under way in another thread; it may touch arrays, but no node and no widget.

    Args:
        work: called once.
        is_awaited: the program does not end before it has returned.
    """

    def __init__(self, work: Callable[[], _T], *, is_awaited: bool = False) -> None:
        self._work = work
        self._result: _T
        self._error: BaseException | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="medssl scene", daemon=not is_awaited).start()

    @property
    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        return self._ended.is_set()

    def wait(self, seconds: float | None) -> bool:
        """Wait at most so long, None = to the end; returns `done`."""
        return self._ended.wait(seconds)

    def result(self) -> _T:
        """What the function returned, or its error; waits for it."""
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error
        finally:
            self._ended.set()

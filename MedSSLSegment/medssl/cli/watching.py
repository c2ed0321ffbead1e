"""What training commands share: how a run is shown, and how Ctrl-C stops it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..events import Log, Progress
from ..runs.run_folder import RunFolder, RunStatus, TrainingMetric, plain
from .terminal import ProgressBar

__all__ = ["follow", "run_detached", "show", "state_in_words", "stopped_by_signals"]

_LOOK_EVERY_S = 0.5


@contextmanager
def stopped_by_signals() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C or a request to end came; a second one ends the program at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        print("medssl: saving after this step; once more to end at once", file=sys.stderr)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show(events: Iterable[Progress | Log | TrainingMetric], bar: ProgressBar) -> None:
    """Show what training tells, as it comes."""
    for event in events:
        if isinstance(event, Progress):
            bar(event)
        else:
            bar.say(_line(event))


def run_detached(kind: str, config: Any) -> None:
    """Start a run in the background and say how it can be watched.

    Args:
        kind: the words of the command that does it.
        config: its settings, a dataclass.

    Raises:
        MedSSLError: as `start_detached`.
    """
    from ..runs.detached import start_detached

    run = start_detached(kind, plain(config))
    print(f"{run.path} is running as process {run.status.pid}; watch it with: medssl runs follow {run.path}")


def follow(run: RunFolder, cancelled: Callable[[], bool] = lambda: False) -> RunStatus:
    """Show a run of another process from its beginning until it ends; its last state."""
    shown = 0
    with ProgressBar(sys.stderr, "Training") as bar:
        while True:
            status = run.status  # before the events, so that none is missed at the end
            events = run.events()
            show(events[shown:], bar)
            shown = len(events)
            if status.progress is not None:
                bar(status.progress)
            if status.state != "running" or cancelled():
                return status
            time.sleep(_LOOK_EVERY_S)


def state_in_words(run: RunFolder) -> str:
    """The state and what follows from it, for a person."""
    status = run.status
    go_on = f"go on with: medssl runs resume {run.path}"
    if status.state == "done":
        made = "encoder" if run.kind == "pretrain" else "model"
        return f"{run.path} is done; its {made} is {run.checkpoint}"
    if status.state == "failed":
        return f"{run.path} failed: {status.message}"
    if status.state == "lost":
        return f"{run.path} ended without a word (killed, or out of memory); {go_on}"
    if status.state == "running":
        return f"{run.path} is running as process {status.pid} on {status.host}"
    return f"{run.path} is {status.state}; {go_on}"


def _line(event: Log | TrainingMetric) -> str:
    if isinstance(event, Log):
        return event.text
    values = ", ".join(f"{name} {value:.4g}" for name, value in event.values.items())
    return f"step {event.step}: {values} ({event.samples_per_second:.3g} samples/s)"

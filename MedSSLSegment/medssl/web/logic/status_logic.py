"""The status line: the session, the desks and the worker in words."""

from __future__ import annotations

import asyncio

from trame_server import Server

from ..ui.status_ui import StatusState, StatusUI
from ..work import Work
from .section import SectionLogic

__all__ = ["StatusLogic", "time_left_text"]

_COLORS = {"stopped": "grey", "starting": "amber", "ready": "green", "busy": "blue"}
_NOTICE_S, _BAD_NOTICE_S = 5.0, 10.0
"""How long a sentence is shown, whether or not a page is open."""


def time_left_text(seconds: float | None) -> str:
    """Time left for a person, e.g. "about 20 s left"; empty when it is not known."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    return f"about {round(seconds / 60)} min left"


class StatusLogic(SectionLogic[StatusState]):
    """Status, undo and redo."""

    def __init__(self, server: Server, work: Work) -> None:
        super().__init__(server, work, StatusState)
        self._pids: set[int] = set()
        self._sentences: tuple[str, ...] = ("", "")
        self._latest = ""
        self._notice_end: asyncio.TimerHandle | None = None
        work.said.connect(self.say)

    def set_ui(self, ui: StatusUI) -> None:
        """Listen to the widgets."""
        ui.cancel_clicked.connect(self.cancel)
        ui.notice_clicked.connect(self.hush)

    def cancel(self) -> None:
        """Stop what runs."""
        self.session.cancel()
        self.work.predict.cancel()
        self.show()

    def undo(self) -> None:
        """Take the last step back."""
        self.work.predict.cancel()
        self.work.attempt(self.session.undo)
        self._show_history()

    def redo(self) -> None:
        """Bring back what was taken back."""
        self.work.predict.cancel()
        self.work.attempt(self.session.redo)
        self._show_history()

    def _show_history(self) -> None:
        self.work.predict.overlay.refresh()
        self.work.look_soon()

    def say(self, sentence: str, is_bad: bool) -> None:
        """Say something once: a page that is opened when its time is up does not say it again."""
        self.data.notice, self.data.is_notice_bad, self.data.is_notice_shown = sentence, is_bad, True
        if self._notice_end is not None:
            self._notice_end.cancel()
        seconds = _BAD_NOTICE_S if is_bad else _NOTICE_S
        self._notice_end = asyncio.get_running_loop().call_later(seconds, self.hush)

    def hush(self) -> None:
        """Take away what was said."""
        with self.state:
            self.data.is_notice_shown = False

    def show(self) -> None:
        """Show where the work stands."""
        data, desk, status = self.data, self.work.predict, self.session.status
        is_predicting = desk.is_running
        data.is_running = self.work.is_running
        data.text = self._last_word(status.text, desk.message)
        data.percent = round(100 * (desk.fraction if is_predicting else status.fraction), 1)
        data.time_left = time_left_text(desk.seconds_left if is_predicting else status.seconds_left)
        data.can_undo, data.can_redo = self.session.can_undo, self.session.can_redo
        self._show_worker()

    def _last_word(self, *sentences: str) -> str:
        """The sentence that changed last."""
        changed = [new for new, old in zip(sentences, self._sentences, strict=True) if new != old]
        self._sentences = sentences
        self._latest = changed[-1] if changed else self._latest
        return self._latest

    def _show_worker(self) -> None:
        status = self.work.client.status
        if status.pid is not None:
            self._pids.add(status.pid)
        device = f", {status.device}" if status.device else ""
        memory = "" if status.memory_used_bytes is None else f", {status.memory_used_bytes / 1e9:.1f} GB"
        again = len(self._pids) > 1
        words = {
            "starting": "The worker is starting again..." if again else "The worker is starting...",
            "ready": f"Worker ready{device}{memory}",
            "busy": f"Worker busy{device}{memory}",
            "stopped": (
                "The worker is gone; the next request starts it again."
                if self._pids
                else "The worker starts with the first request."
            ),
        }
        self.data.worker, self.data.worker_color = words[status.state], _COLORS[status.state]

"""The line at the bottom: what runs, how long still, what the worker does, and a way to stop it."""

from __future__ import annotations

from dataclasses import dataclass

from trame.widgets.html import Div, Span
from trame.widgets.vuetify3 import VFooter, VIcon, VProgressLinear, VSnackbar
from trame_server.utils.typed_state import TypedState
from undo_stack import Signal

from .parts import Button, named

__all__ = ["StatusState", "StatusUI"]


@dataclass
class StatusState:
    """Where the work stands."""

    text: str = ""
    percent: float = 0.0
    """0 .. 100 of what runs or ran last."""
    time_left: str = ""
    is_running: bool = False
    worker: str = ""
    worker_color: str = "grey"
    can_undo: bool = False
    can_redo: bool = False
    notice: str = ""
    """Said once, over the page."""
    is_notice_shown: bool = False
    is_notice_bad: bool = False
    loading: str = ""
    """What is being read; empty for nothing."""


class StatusUI(VFooter):  # type: ignore[misc]
    """The status line, and sentences that are said once."""

    cancel_clicked = Signal()
    notice_clicked = Signal()

    def __init__(self) -> None:
        super().__init__(app=True, border=True, height=40, classes="py-0 px-3 ga-3")
        self._state = TypedState(self.state, StatusState)
        name = self._state.name
        with self:
            VIcon("mdi-circle", size="x-small", color=(name.worker_color,))
            Span(f"{{{{ {name.worker} }}}}", classes="text-caption text-no-wrap", **named("worker"))
            Span(
                f"{{{{ {name.text} }}}}", title=(name.text,),
                classes="text-body-2 flex-grow-1 text-truncate", **named("status"),
            )  # fmt: skip
            with Div(v_if=(name.is_running,), classes="d-flex align-center ga-3"):
                Span(f"{{{{ {name.time_left} }}}}", classes="text-caption text-no-wrap")
                VProgressLinear(
                    model_value=(name.percent,), color="primary", height=8, rounded=True, style="width: 180px"
                )
                Button(
                    "Cancel", "Stop. What has been written stays and can be undone.", self.cancel_clicked,
                    color="error", **named("cancel"),
                )  # fmt: skip
            with VSnackbar(
                v_model=(name.is_notice_shown,),
                color=(f"{name.is_notice_bad} ? 'error' : undefined",),
                timeout=-1,  # the logic takes it away: a page that was closed meanwhile cannot
                location="top",
                **named("notice"),
            ):
                Span(
                    f"{{{{ {name.notice} }}}}", title="Click to close.", style="cursor: pointer",
                    click=self.notice_clicked,
                )  # fmt: skip

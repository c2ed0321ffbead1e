"""The overlay that lists keys and what the mouse does."""

from __future__ import annotations

from dataclasses import dataclass, field

from trame.widgets.html import Div, Kbd, Span
from trame.widgets.vuetify3 import VCard, VCardActions, VCardText, VCardTitle, VDialog
from trame_server.utils.typed_state import TypedState

from .parts import Button, Choice

__all__ = ["HelpState", "HelpUI"]


@dataclass
class HelpState:
    """What is listed."""

    is_shown: bool = False
    rows: list[Choice] = field(default_factory=list)
    """What it does, and by which key or movement."""


class HelpUI(VDialog):  # type: ignore[misc]
    """Keys and the mouse."""

    def __init__(self) -> None:
        super().__init__(max_width=880)
        state = TypedState(self.state, HelpState)
        self.v_model = (state.name.is_shown,)
        with self, VCard():
            VCardTitle("Keys and the mouse")
            with (
                VCardText(),
                Div(style="columns: 2; column-gap: 32px"),
                Div(
                    v_for=(f"row in {state.name.rows}",),
                    key="row.value",
                    classes="d-flex mb-2",
                    style="break-inside: avoid",
                ),
            ):
                Kbd("{{ row.value }}", style="min-width: 136px; margin-right: 12px; align-self: start")
                Span("{{ row.title }}")
            with VCardActions(classes="justify-end"):
                Button("Close", "Back to work. (Esc)", f"{state.name.is_shown} = false")

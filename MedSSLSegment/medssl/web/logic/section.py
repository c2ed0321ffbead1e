"""What every section's logic has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from trame_server import Server
from trame_slicer.app.logic import BaseLogic

from ...registry import known_models
from ..ui.parts import Choice
from ..work import Work

__all__ = ["SectionLogic", "kept", "promptable_models", "trackers"]

T = TypeVar("T")


class SectionLogic(BaseLogic[T]):  # type: ignore[misc]
    """A section of the page over the work.

    Args:
        server: holds the page's state.
        work: what is worked on.
        state_type: the section's state.
    """

    def __init__(self, server: Server, work: Work, state_type: type[T]) -> None:
        super().__init__(server, work.slicer_app, state_type)
        self.work = work
        self.session = work.session
        work.polled.connect(self.show)

    def show(self) -> None:
        """Show what there is now; called after every look at what has arrived."""


def promptable_models() -> list[Choice]:
    """Models that answer points and boxes."""
    return [
        Choice(f"{entry.id}: {entry.purpose}", entry.id) for entry in known_models() if entry.answers_prompts
    ]


def trackers() -> list[Choice]:
    """Models that follow a mask from slice to slice."""
    return [Choice(f"{entry.id}: {entry.purpose}", entry.id) for entry in known_models() if entry.propagates]


def kept(chosen: str, choices: Iterable[Choice]) -> str:
    """A choice, as long as it is there; else the first; else none."""
    values = [choice.value for choice in choices]
    return chosen if chosen in values else (values[0] if values else "")

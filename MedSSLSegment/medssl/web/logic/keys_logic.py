"""The keyboard, and the overlay that lists it: every key in one place."""

from __future__ import annotations

from collections.abc import Callable

from trame_server import Server

from ..ui.help_ui import HelpState
from ..ui.parts import Choice
from ..work import Work
from .section import SectionLogic

__all__ = ["KeysLogic"]

_DECIDING = ("Enter", "Escape", "Backspace")
_ANOTHER = "A"
_MOUSE = (
    ("Wheel", "Scroll through the slices"),
    ("Ctrl + wheel", "Zoom"),
    ("Middle button", "Move the image"),
    ("Right button", "Zoom"),
    ("Shift + mouse", "Crosshair: the other views follow"),
    ("Click", "With + Point: on the object"),
    ("Shift + click", "With + Point: beside the object"),
    ("Drag", "With + Point or Box: a box around the object"),
)


class KeysLogic(SectionLogic[HelpState]):
    """Keys.

    Args:
        server: holds the page's state.
        work: what is worked on.
        actions: {key as the page sends it: (what it does, in words, what to call)}.
    """

    def __init__(
        self, server: Server, work: Work, actions: dict[str, tuple[str, Callable[[], object]]]
    ) -> None:
        super().__init__(server, work, HelpState)
        self._actions = {**actions, "?": ("This list", self.toggle_help)}
        keys = [Choice(what, key) for key, (what, _) in self._actions.items() if what]
        self.data.rows = keys + [Choice(what, movement) for movement, what in _MOUSE]

    def show(self) -> None:
        """Take the keys that decide about prompts only while there are some: they mean other things to a page."""
        prompts = self.session.prompts
        has_prompts = prompts.place is not None and prompts.place in prompts.pending()
        left_out = {*(() if has_prompts else _DECIDING), *(() if prompts.has_another else (_ANOTHER,))}
        self.state.medssl_keys = [key for key in self._actions if key not in left_out]

    def press(self, key: str) -> None:
        """Do what a key is for."""
        if key in self._actions:
            self._actions[key][1]()

    def toggle_help(self) -> None:
        """Show the list, or hide it."""
        self.data.is_shown = not self.data.is_shown

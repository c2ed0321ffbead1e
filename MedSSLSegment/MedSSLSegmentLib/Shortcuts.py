"""Every keyboard shortcut of the module, in one place; they work only while the module is open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
from slicer.i18n import tr as _

__all__ = ["Shortcuts"]


class Shortcuts:
    """Keys and what they do.

    Args:
        actions: {key: (what it does, in words; what to call)}.
    """

    def __init__(self, actions: dict[str, tuple[str, Callable[[], None]]]) -> None:
        self.actions = actions
        self._shortcuts: list[Any] = []

    def activate(self, parent: Any) -> None:
        """Listen to the keys anywhere in a window."""
        self.deactivate()
        for key, (_what, act) in self.actions.items():
            shortcut = qt.QShortcut(qt.QKeySequence(key), parent)
            shortcut.activated.connect(act)
            self._shortcuts.append(shortcut)

    def deactivate(self) -> None:
        """Leave the keys to others."""
        for shortcut in self._shortcuts:
            shortcut.enabled = False
            shortcut.deleteLater()
        self._shortcuts.clear()

    def text(self) -> str:
        """The list, for the settings."""
        return "\n".join(
            _("{key}: {what}").format(key=k, what=what) for k, (what, _act) in self.actions.items()
        )

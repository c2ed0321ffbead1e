"""Every keyboard shortcut of the module, in one place; they work only while the module is open."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
        self._shortcuts: dict[str, Any] = {}
        self._paused: frozenset[str] = frozenset()

    def activate(self, parent: Any) -> None:
        """Listen to the keys anywhere in a window."""
        self.deactivate()
        for key, (_what, act) in self.actions.items():
            shortcut = qt.QShortcut(qt.QKeySequence(key), parent)
            shortcut.activated.connect(act)
            shortcut.autoRepeat = False  # a key that is held down acts once
            shortcut.enabled = key not in self._paused
            self._shortcuts[key] = shortcut

    def deactivate(self) -> None:
        """Leave the keys to others."""
        for shortcut in self._shortcuts.values():
            shortcut.enabled = False
            shortcut.deleteLater()
        self._shortcuts.clear()

    @property
    def active(self) -> set[str]:
        """The keys that work now."""
        return {key for key, shortcut in self._shortcuts.items() if shortcut.enabled}

    def pause(self, keys: Iterable[str]) -> None:
        """Leave exactly these keys to others for now, e.g. Return to a field of text or an effect."""
        paused = frozenset(keys)
        if paused != self._paused:
            self._paused = paused
            for key, shortcut in self._shortcuts.items():
                shortcut.enabled = key not in paused

    def text(self) -> str:
        """The list, for the settings."""
        return "\n".join(
            _("{key}: {what}").format(key=k, what=what) for k, (what, _act) in self.actions.items()
        )

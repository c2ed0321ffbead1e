"""The view that somebody is busy with is drawn first, and for a moment alone.

Without a graphics card each picture takes a core for tens of milliseconds, and every view wants a new one whenever
anything changes in the scene. What the person waits for comes before what lies beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from trame_slicer.core import ViewManager
from trame_slicer.views import AbstractView

__all__ = ["Focus"]


class Focus:
    """Holds the pictures of all views but one back, for a while.

    Args:
        views: trame-slicer's.
    """

    def __init__(self, views: ViewManager) -> None:
        self._views = views
        self._held: list[AbstractView] = []
        self._end: asyncio.TimerHandle | None = None

    def on(self, view: AbstractView, seconds: float) -> None:
        """Draw one view alone.

        Args:
            view: is drawn at once; the one before it has to wait now like the others.
            seconds: from now on, whatever was said before.
        """
        self._let_go([view])
        for each in self._views.get_views():
            if each is not view and not each.is_render_blocked:
                each.set_render_blocked(True)
                self._held.append(each)
        if self._end is not None:
            self._end.cancel()
        self._end = asyncio.get_running_loop().call_later(seconds, self._let_go, self._held)

    def _let_go(self, views: Iterable[AbstractView]) -> None:
        """Have views drawn again, unless another layout has put them away meanwhile."""
        free = [view for view in self._held if view in views]
        self._held = [view for view in self._held if view not in free]
        for view in self._views.filter_visible_views(free):
            view.set_render_blocked(False)

"""The wheel: jumps of whole slices, and no picture drawn that nobody needs while it turns."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from trame_slicer.core import ViewManager
from trame_slicer.views import AbstractView, SliceView

__all__ = ["ScrollLogic", "slice_after"]

_REST_S = 0.2
"""Without a jump for so long, the wheel is at rest."""


def slice_after(offset_mm: float, notches: int, range_mm: tuple[float, float], step_mm: float) -> float:
    """Where a view is after so many notches.

    Args:
        offset_mm: of the slice before.
        notches: slices to go, negative towards lower offsets.
        range_mm: of the first and of the last slice.
        step_mm: from slice to slice.
    """
    first_mm, last_mm = range_mm
    return min(max(offset_mm + notches * step_mm, first_mm), last_mm)


class ScrollLogic:
    """Moves one view, and holds the others until the wheel rests: each of them wants a new picture for every slice.

    Args:
        views: trame-slicer's.
    """

    def __init__(self, views: ViewManager) -> None:
        self._views = views
        self._held: list[AbstractView] = []
        self._rest: asyncio.TimerHandle | None = None

    def scroll(self, name: str, notches: int) -> bool:
        """Move a slice view.

        Args:
            name: of the view.
            notches: slices to go.

        Returns:
            Whether it has moved: at either end of the volume it does not.
        """
        view = self._views.get_view(name)
        if not isinstance(view, SliceView):
            return False
        before_mm = view.get_slice_value()
        after_mm = slice_after(before_mm, notches, view.get_slice_range(), view.get_slice_step())
        if after_mm == before_mm:
            return False
        self._let_go([view])
        self._hold(each for each in self._views.get_views() if each is not view)
        view.set_slice_value(after_mm)
        return True

    def _hold(self, views: Iterable[AbstractView]) -> None:
        for view in views:
            if not view.is_render_blocked:
                view.set_render_blocked(True)
                self._held.append(view)
        if self._rest is not None:
            self._rest.cancel()
        self._rest = asyncio.get_running_loop().call_later(_REST_S, self._let_go, self._held)

    def _let_go(self, views: Iterable[AbstractView]) -> None:
        """Have views draw again, unless another layout has put them away meanwhile."""
        free = [view for view in self._held if view in views]
        self._held = [view for view in self._held if view not in free]
        for view in self._views.filter_visible_views(free):
            view.set_render_blocked(False)

"""The wheel: jumps of whole slices, drawn before anything else."""

from __future__ import annotations

from trame_slicer.core import ViewManager
from trame_slicer.views import SliceView

from .focus import Focus

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
    """Moves one view; the others are drawn when the wheel rests.

    Args:
        views: trame-slicer's.
        focus: says which view is drawn alone.
    """

    def __init__(self, views: ViewManager, focus: Focus) -> None:
        self._views, self._focus = views, focus

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
        self._focus.on(view, _REST_S)
        view.set_slice_value(after_mm)
        return True

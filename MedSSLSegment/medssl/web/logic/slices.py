"""Which slice of the volume a view shows."""

from __future__ import annotations

from trame_slicer.views import SliceView

from ...errors import InputError
from ...scene.prompting import axis_of_normal, place_of
from ...scene.session import Session

__all__ = ["slice_in_view"]


def slice_in_view(session: Session, view: SliceView, axis: int | None = None) -> tuple[int, int] | None:
    """(slice axis, slice index) at the middle of a view; None beside the volume, or while it is being read.

    Args:
        session: its volume.
        view: a slice view.
        axis: slice axis; None = the one the view looks along.
    """
    to_ras = view.get_view_node().GetSliceToRAS()
    normal, centre = ([to_ras.GetElement(row, column) for row in range(3)] for column in (2, 3))
    try:
        volume = session.volume()
        axis = axis_of_normal(volume, normal) if axis is None else axis
        place, _ = place_of(volume, "", centre, axis)
    except InputError:
        return None
    return axis, place.index

"""Which slice of the volume a view shows, and where views meet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from trame_slicer.views import SliceView

from ...errors import InputError
from ...scene.prompting import axis_of_normal, place_of
from ...scene.session import Session
from ...volume import Volume

__all__ = ["meeting_point", "slice_in_view"]


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


def meeting_point(volume: Volume, views: Sequence[SliceView]) -> list[float]:
    """Where the slices that views show meet.

    Args:
        volume: what they show.
        views: slice views; along what none of them says, it is the volume's middle.

    Returns:
        (3,) RAS in mm; where they meet beside the volume, the voxel next to it.
    """
    last_ijk = np.array(volume.shape_kji[::-1]) - 1
    middle = (volume.ijk_to_ras @ [*(last_ijk / 2), 1.0])[:3]
    to_ras = [view.get_view_node().GetSliceToRAS() for view in views]
    normals, centres = (
        np.array([[each.GetElement(row, column) for row in range(3)] for each in to_ras]) for column in (2, 3)
    )
    along_mm = ((centres - middle) * normals).sum(axis=1)
    met = middle + np.linalg.lstsq(normals, along_mm, rcond=None)[0]
    ijk = np.linalg.solve(volume.ijk_to_ras, [*met, 1.0])[:3].clip(0, last_ijk)
    return list(map(float, (volume.ijk_to_ras @ [*ijk, 1.0])[:3]))

"""What a user can say about one slice: points, a box, or a mask.

A prompt lives on the 2D array that `medssl.volume.take_slice` returns for its axis and index. Pixel coordinates are
(x, y) = (column, row) with pixel centres at integers, as in SAM.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

__all__ = ["Reference", "SlicePrompt", "box_of_mask"]


def _no_points() -> NDArray[np.float32]:
    return np.zeros((0, 2), np.float32)


def _no_labels() -> NDArray[np.int32]:
    return np.zeros((0,), np.int32)


@dataclass(frozen=True, eq=False)
class SlicePrompt:
    """Points, a box or a mask on one slice.

    Raises:
        InputError: nothing is given, or shapes and labels do not fit together.
    """

    axis: int
    """Slice axis of the voxel grid: 0 = K, 1 = J, 2 = I."""
    index: int
    """Slice index along `axis`."""
    points_xy_px: NDArray[np.float32] = field(default_factory=_no_points)
    """(N, 2) points as (column, row)."""
    point_labels: NDArray[np.int32] = field(default_factory=_no_labels)
    """(N,) 1 = on the object, 0 = off it."""
    box_xyxy_px: NDArray[np.float32] | None = None
    """(4,) first column, first row, last column, last row."""
    mask: NDArray[np.bool_] | None = None
    """(H, W) the object's pixels."""

    def __post_init__(self) -> None:
        if self.axis not in (0, 1, 2):
            raise InputError(f"A prompt's slice axis must be 0, 1 or 2, not {self.axis}.")
        if self.points_xy_px.ndim != 2 or self.points_xy_px.shape[1] != 2:
            raise InputError(f"Points must be an (N, 2) array of x, y; got shape {self.points_xy_px.shape}.")
        if len(self.point_labels) != len(self.points_xy_px):
            raise InputError(f"{len(self.points_xy_px)} points came with {len(self.point_labels)} labels; give one each.")
        if not np.isin(self.point_labels, (0, 1)).all():
            raise InputError("A point's label must be 1 (on the object) or 0 (off it).")
        if self.box_xyxy_px is not None:
            x0, y0, x1, y1 = (float(v) for v in self.box_xyxy_px)
            if not (x1 > x0 and y1 > y0):
                raise InputError(f"The box {x0:g}, {y0:g}, {x1:g}, {y1:g} is empty; give first and last corner in that order.")
        if self.mask is not None and self.mask.ndim != 2:
            raise InputError(f"A mask prompt must be one 2D slice; got shape {self.mask.shape}.")
        if self.mask is None and self.box_xyxy_px is None and len(self.points_xy_px) == 0:
            raise InputError("The prompt is empty: give a point, a box or a mask.")


@dataclass(frozen=True, eq=False)
class Reference:
    """A prompt the user vouches for, on behalf of one segment."""

    segment: str
    """Name of the segment."""
    prompt: SlicePrompt


def box_of_mask(mask: NDArray[np.bool_], margin_px: tuple[float, float] = (0.0, 0.0)) -> NDArray[np.float32] | None:
    """Smallest box around a mask, grown by a margin and clipped to the slice.

    Args:
        mask: (H, W) bool.
        margin_px: growth in rows and columns, pixels.

    Returns:
        (4,) x0, y0, x1, y1 in pixels, or None for an empty mask.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    cols = np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return None
    height, width = mask.shape
    return np.array(
        [
            max(cols[0] - margin_px[1], 0),
            max(rows[0] - margin_px[0], 0),
            min(cols[-1] + margin_px[1], width - 1),
            min(rows[-1] + margin_px[0], height - 1),
        ],
        np.float32,
    )

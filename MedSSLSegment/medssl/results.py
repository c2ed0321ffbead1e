"""What long work hands back, slice by slice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SliceMask", "UncertaintyMap"]


@dataclass(frozen=True, eq=False)
class SliceMask:
    """One segment on one slice of the volume, ready to be written into the user's segmentation."""

    segment: str
    """Name of the segment."""
    axis: int
    """Slice axis of the voxel grid: 0 = K, 1 = J, 2 = I."""
    index: int
    """Slice index along `axis`."""
    mask: NDArray[np.bool_]
    """(H, W) on the grid of `medssl.volume.take_slice`."""
    confidence: float
    """How sure the program is of this slice, 0 .. 1; the Dice it expects where the tracker can tell."""
    is_reference: bool = False
    """True where the mask is the user's own and was not predicted."""
    stage: str = ""
    """Step of a longer pipeline that made it, e.g. "coarse", "refined", "propagated"; empty elsewhere."""


@dataclass(frozen=True, eq=False)
class UncertaintyMap:
    """How unsure the program is of each pixel of one slice, for an overlay."""

    axis: int
    """Slice axis of the voxel grid: 0 = K, 1 = J, 2 = I."""
    index: int
    """Slice index along `axis`."""
    shape_hw: tuple[int, int]
    """Of the whole slice, as `medssl.volume.take_slice` gives it."""
    start_hw: tuple[int, int]
    """First row and column of `levels`."""
    levels: NDArray[np.uint8]
    """(h, w) 0 = sure .. 255 = no idea; everything outside is 0."""

    @classmethod
    def of(cls, axis: int, index: int, uncertainty: NDArray[np.float32]) -> UncertaintyMap:
        """Shorten (H, W) uncertainties, 0 .. 1, to the box that holds what is not 0."""
        levels = np.rint(255.0 * uncertainty).astype(np.uint8)
        rows, columns = (np.flatnonzero(levels.any(axis=other)) for other in (1, 0))
        shape = (levels.shape[0], levels.shape[1])
        if not rows.size:
            return cls(axis, index, shape, (0, 0), levels[:0, :0])
        top, left = int(rows[0]), int(columns[0])
        box = levels[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
        return cls(axis, index, shape, (top, left), box)

    def whole(self) -> NDArray[np.uint8]:
        """(H, W) levels of the slice."""
        levels = np.zeros(self.shape_hw, np.uint8)
        (top, left), (height, width) = self.start_hw, self.levels.shape
        levels[top : top + height, left : left + width] = self.levels
        return levels

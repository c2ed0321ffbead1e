"""What long work hands back, slice by slice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SliceMask"]


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
    """How sure the program is of this slice, 0 .. 1."""
    is_reference: bool = False
    """True where the mask is the user's own and was not predicted."""

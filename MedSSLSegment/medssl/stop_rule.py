"""Decides on each slice whether the object is still there, because a tracker invents foreground after its end."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .foundation.protocols import TrackedSlice

__all__ = ["StopRule"]

_COLLAPSED = 0.02
_LEAK = 6.0


class StopRule:
    """The stop rule of one outer stretch; ask it about every slice in order.

    A slice is without the object where the tracker's object score is below one half, the mask is empty, has shrunk to
    a fiftieth of the reference slice's, or has leaked to six times it. `patience` such slices in a row end the stretch.

    Args:
        reference_mask: (H, W) the mask on the reference slice.
        spacing_rc_mm: pixel size of the slice, rows then columns.
        step_mm: distance between slices.
        patience: slices without the object that end the stretch.
    """

    def __init__(
        self,
        reference_mask: NDArray[np.bool_],
        spacing_rc_mm: tuple[float, float],
        step_mm: float,
        patience: int,
    ) -> None:
        self.stopped = False
        """True once the stretch has ended."""
        self._reference_area = max(int(reference_mask.sum()), 1)
        self._patience = patience
        self._without = 0

    def judge(self, answer: TrackedSlice) -> bool:
        """True where the object is not on this slice."""
        share = int(answer.mask.sum()) / self._reference_area
        gone = answer.score <= 0.5 or share < _COLLAPSED or share > _LEAK
        self._without = self._without + 1 if gone else 0
        self.stopped = self._without >= self._patience
        return gone

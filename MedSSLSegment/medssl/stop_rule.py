"""Decides on each slice whether the object is still there, because a tracker invents foreground after its end."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .foundation.protocols import TrackedSlice

__all__ = ["StopRule"]

_COLLAPSED = 0.02
_SUDDEN_LEAK = 6.0  # over the largest mask so far
_SLOW_LEAK = 15.0  # over the reference slice


class StopRule:
    """The stop rule of one outer stretch; ask it about every slice in order.

    A slice is without the object where the tracker's object score is not above one half, or the mask has shrunk to
    less than a fiftieth of the reference slice's, or has leaked: it is more than six times as large as the largest so
    far, or fifteen times as large as the reference slice's. `patience` such slices in a row end the stretch.

    The reference slice allows more than a single step does, because an organ that was annotated near its tip does grow
    to many times that size, but not from one slice to the next.

    Args:
        reference_mask: (H, W) bool, the mask on the reference slice.
        patience: slices without the object that end the stretch, at least 1.

    Raises:
        InputError: the reference mask is empty or the patience is below 1.
    """

    def __init__(self, reference_mask: NDArray[np.bool_], patience: int) -> None:
        if patience < 1:
            raise InputError(f"It takes at least 1 slice without the object to stop, not {patience}.")
        if not reference_mask.any():
            raise InputError("The mask on a reference slice is empty; paint the object on it first.")
        self.stopped = False
        """True once the stretch has ended."""
        self._reference_px = self._largest_px = int(np.count_nonzero(reference_mask))
        self._patience = patience
        self._without = 0

    def judge(self, answer: TrackedSlice) -> bool:
        """True where the object is not on this slice."""
        area_px = int(np.count_nonzero(answer.mask))
        collapsed = area_px == 0 or area_px < _COLLAPSED * self._reference_px
        leaked = area_px > min(_SUDDEN_LEAK * self._largest_px, _SLOW_LEAK * self._reference_px)
        gone = answer.score <= 0.5 or collapsed or leaked
        if gone:
            self._without += 1
        else:
            self._without = 0
            self._largest_px = max(self._largest_px, area_px)
        self.stopped = self.stopped or self._without >= self._patience
        return gone

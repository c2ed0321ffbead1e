"""Decides on each slice whether the object is still there, because a tracker invents foreground after its end."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .foundation.protocols import TrackedSlice

__all__ = ["StopRule"]

_COLLAPSED = 0.02
_SUDDEN_LEAK = 6.0  # over the largest mask so far
_SLOW_LEAK = 15.0  # over the reference slice
_DOUBT = 0.4
"""What is taken off the logit of each object score once the object has been gone: a score of 0.6 says nothing then.
Chosen, as the two below, on patients and phantoms that the benchmarks do not score."""
_MOST = 3.0
"""What one slice can say at most, for or against."""
_HOPELESS = -8.0
"""What speaks against the object's coming back when it is waited for no longer."""


class StopRule:
    """The stop rule of one outer stretch; tell it of every slice in order.

    A slice is without the object where the tracker's object score is not above one half, or the mask has shrunk to
    less than a fiftieth of the reference slice's, or has leaked: it is more than six times as large as the largest so
    far, or fifteen times as large as the reference slice's. `patience` such slices in a row end the stretch.

    After fewer of them the object has to come back for good: an organ has few gaps, but what lies behind its end often
    looks like it on a slice here and there. The slices from the gap on wait until more speaks for the object than
    against it, in the sum of the logits of their object scores, and then show it together; where the stretch ends
    before, none of them does.

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
        self._evidence: float | None = None
        """Of the slices since the object was gone, that it is back; None where it has not been gone."""
        self._waiting: list[TrackedSlice] = []

    def follow(self, answer: TrackedSlice) -> list[TrackedSlice]:
        """Take in the next slice.

        Returns:
            The slices that are now known to show the object, in order: this one, with those that have waited, or none.
        """
        if self.stopped:
            return []
        said = self._logit(answer)
        is_there = said > 0.0
        self._without = 0 if is_there else self._without + 1
        if is_there:
            self._largest_px = max(self._largest_px, int(np.count_nonzero(answer.mask)))
        if is_there and self._evidence is None:
            return [answer]
        self._evidence = (self._evidence or 0.0) + min(max(said - _DOUBT, -_MOST), _MOST)
        if is_there:
            self._waiting.append(replace(answer, probability=None))  # large, and nobody asks for it
        if self._evidence > 0.0:
            back, self._waiting, self._evidence = self._waiting, [], None
            return back
        self.stopped = self._without >= self._patience or self._evidence <= _HOPELESS
        return []

    def _logit(self, answer: TrackedSlice) -> float:
        """Of the object's being there; without end where the mask cannot be it."""
        area_px = int(np.count_nonzero(answer.mask))
        collapsed = area_px == 0 or area_px < _COLLAPSED * self._reference_px
        leaked = area_px > min(_SUDDEN_LEAK * self._largest_px, _SLOW_LEAK * self._reference_px)
        if collapsed or leaked or answer.score <= 0.0:
            return -math.inf
        return math.log(answer.score / (1.0 - answer.score)) if answer.score < 1.0 else math.inf

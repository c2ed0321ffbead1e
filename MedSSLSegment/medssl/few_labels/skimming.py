"""Which slices are looked at first, and where the slices between them are looked at afterwards.

What is at least as thick as the distance between two slices that are looked at first is on one of them, so the slices
between need a look only around what their two neighbours show.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..prompts import box_of_mask
from ..volume import rows_of_neighbours

__all__ = ["Box", "around_found", "box_of", "joined", "stretches", "stride"]

Box = tuple[slice, slice]
"""Rows and columns."""

_THINNEST_MM = 6.0
"""What is thinner, or on one slice only, may be overlooked."""
_SUSPICION = 0.05
"""Probability of being anything but background that asks for a closer look."""
_MARGIN_MM = 8.0
"""By how much the outline may move between two slices that are looked at first."""


def stride(spacing_mm: float) -> int:
    """From one slice that is looked at first to the next: 6 mm, and two slices at least."""
    return max(2, int(_THINNEST_MM / spacing_mm + 1e-6))


def stretches(wanted: Sequence[int], start: int, step: int, at_once: int) -> list[list[int]]:
    """Slices that are looked at first, in stretches of neighbours.

    Args:
        wanted: rising slice numbers; each run of neighbours begins and ends with a slice that is looked at.
        start: the stretches nearest to it come first.
        step: from one slice to the next.
        at_once: steps of a stretch, at most.

    Returns:
        Rising slices; where a run is longer than a stretch, the last slice of one is the first of the next.
    """
    found = []
    for first, last in rows_of_neighbours(wanted):
        look = [*range(first, last, step), last]
        found += [look[n : n + at_once + 1] for n in range(0, max(1, len(look) - 1), at_once)]
    return sorted(found, key=lambda part: max(part[0] - start, start - part[-1], 0))


def box_of(mask: NDArray[np.bool_], margin: tuple[int, int]) -> Box | None:
    """Smallest box around what is True in (J, I), and a margin in pixels; None where nothing is."""
    box = box_of_mask(mask, margin)
    if box is None:
        return None
    left, top, right, bottom = (int(corner) for corner in box)
    return slice(top, bottom + 1), slice(left, right + 1)


def around_found(probabilities: NDArray[np.float32], spacing_ji_mm: Sequence[float]) -> Box | None:
    """Where the neighbours of a slice are looked at, from what was found on it.

    Args:
        probabilities: (N, J, I), the background first.
        spacing_ji_mm: of rows and columns.

    Returns:
        None where there is nothing but background.
    """
    row_mm, column_mm = spacing_ji_mm
    margin = round(_MARGIN_MM / row_mm), round(_MARGIN_MM / column_mm)
    return box_of(probabilities[0] < 1.0 - _SUSPICION, margin)


def joined(one: Box | None, other: Box | None) -> Box | None:
    """Smallest box around both."""
    if one is None or other is None:
        return one or other
    rows, columns = (
        slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return rows, columns

"""A label map built up slice by slice, where the more confident segment wins a voxel that two claim."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .results import SliceMask
from .segmentation import Segment, Segmentation
from .volume import Volume, as_stack

__all__ = ["Canvas"]

_REFERENCE_RANK = 2.0
"""Rank of a reference slice where segments overlap: above every confidence, which ends at 1."""


class Canvas:
    """Label map under construction.

    Args:
        volume: whose grid it is on.
        axis: slice axis (0 = K, 1 = J, 2 = I).
        segments: those that will be written; each slice of a segment is written once.
    """

    def __init__(self, volume: Volume, axis: int, segments: Sequence[Segment]) -> None:
        self._ijk_to_ras = volume.ijk_to_ras
        self._axis = axis
        self._segments = tuple(segments)
        self._position = {segment.name: position for position, segment in enumerate(segments, start=1)}
        # positions 1 .. S instead of labels, so that 0 stays the background and can be an index
        self._owner_kji = np.zeros(volume.shape_kji, np.uint8 if len(segments) < 256 else np.uint16)
        slices = volume.shape_kji[axis]
        self._rank = np.full((len(segments) + 1, slices), -1.0, np.float32)  # the background stays at -1
        self._confidence = np.full((len(segments) + 1, slices), np.nan, np.float32)

    def write(self, result: SliceMask) -> None:
        """Put a slice of a segment on; a reference slice wins over every other segment's."""
        position = self._position[result.segment]
        owner_hw = as_stack(self._owner_kji, self._axis)[result.index]
        rank = self._rank[:, result.index]
        rank[position] = _REFERENCE_RANK if result.is_reference else result.confidence
        self._confidence[position, result.index] = result.confidence
        owner_hw[result.mask & (rank[owner_hw] < rank[position])] = position

    def confidence(self) -> dict[str, NDArray[np.float32]]:
        """(N,) per segment: of each slice 0 .. 1, NaN where none was written."""
        return {name: self._confidence[position] for name, position in self._position.items()}

    def segmentation(self) -> Segmentation:
        """What has been written so far, with the segments' own labels."""
        labels = np.array([0, *(segment.label for segment in self._segments)])
        values = labels.astype(np.uint8 if labels.max() < 256 else np.uint16)
        return Segmentation(values[self._owner_kji], self._ijk_to_ras, self._segments)

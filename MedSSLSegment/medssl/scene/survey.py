"""What there is of each segment, slice by slice: which slices a person drew, how much was found, how surely.

`look` reads the nodes, which is quick; what it returns does the counting, which is not, and may run in another thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..suggest import Evidence
from ..volume import Volume, as_stack
from .corrections import last_propagation, slices_to_redo
from .layers import Layer, slice_fingerprint
from .nodes import annotated_slices, guess_axis, painted_across
from .tags import Step, confidences, left_out, predicted_slices, steps

__all__ = ["ReferenceSlice", "SegmentSurvey", "Survey", "look"]


@dataclass(frozen=True)
class ReferenceSlice:
    """A slice that a person drew, corrected or accepted."""

    segment: str
    """Id of its segment."""
    axis: int
    """Slice axis, 0 = K, 1 = J, 2 = I."""
    index: int
    """Slice index along `axis`."""
    used: bool
    """Ticked: propagation starts from it. One that is not is filled like any other slice."""


@dataclass(frozen=True, eq=False)
class SegmentSurvey:
    """One segment across one axis of N slices."""

    id: str
    drawn: tuple[int, ...]
    """Reference slices: what a person drew, corrected or accepted, and did not leave out; rising."""
    area_px: NDArray[np.float64]
    """(N,) pixels of the segment."""
    confidence: NDArray[np.float64]
    """(N,) of the program, 0 .. 1; NaN where it wrote nothing."""
    left_out: tuple[int, ...] = ()
    """Slices that would be reference slices, had the person not left them out; rising."""
    absent: tuple[int, ...] = ()
    """Slices that the program had filled and a person has emptied: the segment is not there; rising."""

    last: Step = field(default_factory=lambda: last_propagation((), 0))
    """Its last propagation across the axis."""
    marks: Mapping[int, int] = field(default_factory=dict)
    """Fingerprints of the masks on the slices that somebody drew, used or left out; where it was looked at before
    writing, on all slices that hold any of it."""

    @property
    def to_redo(self) -> tuple[int, ...]:
        """Slices that have changed since the last propagation, or that it did not come to; see `slices_to_redo`."""
        return slices_to_redo(self.last, {index: self.marks[index] for index in self.drawn})

    def with_used(self, index: int, used: bool) -> SegmentSurvey:
        """The same, with a slice used as a reference slice or left out; unchanged where nobody drew."""
        found = {*self.drawn, *self.left_out}
        if index not in found:
            return self
        left = {*self.left_out} - {index} if used else {*self.left_out, index}
        return replace(self, drawn=tuple(sorted(found - left)), left_out=tuple(sorted(left)))

    def evidence(self, volume: Volume, axis: int) -> Evidence:
        """For `medssl.suggest`."""
        return Evidence(
            self.id,
            axis,
            volume.step_mm(axis),
            self.area_px,
            self.drawn,
            self.absent,
            confidence=self._confidence(),
        )

    def _confidence(self) -> NDArray[np.float64] | None:
        """Slices drawn or without the segment are nothing to doubt; without a run there is no confidence at all."""
        if np.isnan(self.confidence).all():
            return None
        known = self.confidence.copy()
        known[list(self.drawn)] = 1.0
        known[np.isnan(known) & (self.area_px == 0)] = 1.0
        return known


@dataclass(frozen=True, eq=False)
class Survey:
    """The chosen segments, looked at across one axis."""

    axis: int
    """Slice axis, 0 = K, 1 = J, 2 = I: the one asked for, or the one the person painted across."""
    view: str
    """The anatomical view the slices belong to, e.g. "axial"."""
    segments: dict[str, SegmentSurvey]
    """By segment id."""
    painted_in: Mapping[str, str] = field(default_factory=dict)
    """The view a segment was painted in, by segment id, of those that tell."""

    @property
    def drawn(self) -> dict[str, list[int]]:
        """Segment id -> its reference slices, for those that have any."""
        return {i: list(segment.drawn) for i, segment in self.segments.items() if segment.drawn}

    @property
    def references(self) -> tuple[ReferenceSlice, ...]:
        """Every slice that somebody drew, used or left out, segment by segment and rising."""
        return tuple(
            ReferenceSlice(i, self.axis, index, index in segment.drawn)
            for i, segment in self.segments.items()
            for index in sorted((*segment.drawn, *segment.left_out))
        )

    def take_in(self, segment_id: str, index: int, area_px: float, confidence: float) -> None:
        """Show a slice that has arrived since; what becomes of it in the segment, the next look tells."""
        segment = self.segments.get(segment_id)
        if segment is not None:
            segment.area_px[index], segment.confidence[index] = area_px, confidence

    def has_changed(self, segment_ids: Iterable[str]) -> bool:
        """Whether some of the segments have slices to redo."""
        return any(
            self.segments[i].drawn and self.segments[i].to_redo for i in segment_ids if i in self.segments
        )

    def with_used(self, segment_id: str, index: int, used: bool) -> Survey:
        """The same, with a slice used as a reference slice or left out."""
        changed = {segment_id: self.segments[segment_id].with_used(index, used)}
        return replace(self, segments={**self.segments, **changed})


def look(
    segmentation_node: Any,
    segment_ids: Sequence[str],
    volume: Volume,
    axis: int | None = None,
    *,
    before_writing: bool = False,
) -> Callable[[], Survey]:
    """Read some segments' labelmaps and tags.

    Args:
        segmentation_node: vtkMRMLSegmentationNode.
        segment_ids: which segments.
        volume: the volume they were drawn on.
        axis: slice axis; None = the one the person painted across.
        before_writing: mark every slice that holds anything, so that what a person changes from now on can be told.

    Raises:
        InputError: a segment is missing, stored as a surface, or on another grid.
    """
    parts = [
        (
            i,
            Layer.of(segmentation_node, i, volume),
            predicted_slices(segmentation_node, i),
            confidences(segmentation_node, i),
            left_out(segmentation_node, i),
            steps(segmentation_node, i),
        )
        for i in segment_ids
    ]
    return lambda: _count(parts, volume, axis, before_writing)


def _count(
    parts: Sequence[tuple[str, Layer, Any, Any, Any, Any]],
    volume: Volume,
    axis: int | None,
    before_writing: bool,
) -> Survey:
    drawings = {i: layer.drawn(volume.shape_kji, marks) for i, layer, marks, *_ in parts}
    if axis is None:
        axis = guess_axis(mask for _, mask in drawings.values() if mask.any())
    segments = {}
    for i, layer, marks, sure, left, done in parts:
        start, mask = drawings[i]
        found = [start[axis] + n for n in annotated_slices(mask, axis)]
        drawn = tuple(n for n in found if (axis, n) not in left)
        unused = tuple(n for n in found if (axis, n) in left)
        curve = np.full(volume.shape_kji[axis], np.nan)
        for (marked_axis, index), value in sure.items():
            if marked_axis == axis and index < len(curve):
                curve[index] = value
        areas = _areas(layer, volume, axis)
        emptied = _emptied(areas, {n for marked, n in marks if marked == axis and (axis, n) not in left})
        marked = np.flatnonzero(areas).tolist() if before_writing else found
        found_marks = {n: slice_fingerprint(layer.slice_mask(volume.shape_kji, axis, n)) for n in marked}
        last = last_propagation(done, axis)
        segments[i] = SegmentSurvey(i, drawn, areas, curve, unused, emptied, last, found_marks)
    across = {i: painted_across(mask) for i, (_, mask) in drawings.items()}
    painted_in = {i: volume.view_of(each) for i, each in across.items() if each is not None}
    return Survey(axis, volume.view_of(axis), segments, painted_in)


def _emptied(areas: NDArray[np.float64], filled: set[int]) -> tuple[int, ...]:
    """Of the slices the program had filled, those that are empty now; none of a segment that was cleared as a whole."""
    return tuple(n for n in sorted(filled) if n < len(areas) and areas[n] == 0) if areas.any() else ()


def _areas(layer: Layer, volume: Volume, axis: int) -> NDArray[np.float64]:
    areas = np.zeros(volume.shape_kji[axis])
    start, shape = layer.box(volume.shape_kji)
    if layer.voxels_kji is not None and min(shape) > 0:
        for n, labels in enumerate(as_stack(layer.mask_in(start, shape), axis)):
            areas[start[axis] + n] = np.count_nonzero(labels)
    return areas

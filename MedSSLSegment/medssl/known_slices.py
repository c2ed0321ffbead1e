"""Slices that a person has settled: a prediction leaves them exactly as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from .cases import Case
from .evidence import vouched_references
from .segmentation import Segmentation
from .volume import as_stack, take_slice

__all__ = ["KnownSlices"]


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownSlices:
    """Slices across one axis on which somebody has said where a segment is, or that it is not there."""

    axis: int
    """Slice axis of the volume's own grid: 0 = K, 1 = J, 2 = I."""
    shown: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """By segment, the slices that show it as `labels` has it."""
    absent: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """By segment, the slices on which it is not."""
    labels: Segmentation | None = None
    """(K, J, I) on the volume's grid, with every segment of `shown`; without it, only `absent` changes a result."""

    @classmethod
    def of_case(cls, case: Case | None, axis: int) -> KnownSlices:
        """What a case of the volume vouches for; nothing without one.

        Raises:
            InputError: the case's labels cannot be read.
        """
        shown, absent = vouched_references(case, axis)
        labels = case.segmentation() if case is not None and any(shown.values()) else None
        return cls(axis=axis, shown=shown, absent=absent, labels=labels)

    def count(self, names: Sequence[str]) -> int:
        """How many slices of these segments are known."""
        return sum(len(set(slices.get(name, ()))) for slices in (self.shown, self.absent) for name in names)

    def without(self, drawn: Mapping[str, Sequence[int]]) -> KnownSlices:
        """What is known of the other slices: where somebody has drawn anew, by segment, that counts."""
        shown, absent = (
            {name: sorted({*indices}.difference(drawn.get(name, ()))) for name, indices in slices.items()}
            for slices in (self.shown, self.absent)
        )
        return replace(self, shown=shown, absent=absent)

    def put_into(self, found: Segmentation) -> Segmentation:
        """A result with the known slices as they are known; segments that were not looked for are left out.

        Args:
            found: (K, J, I) on the volume's grid; only read.

        Raises:
            InputError: the labels lie on another grid.
        """
        if not self.count(found.names):
            return found
        if self.labels is not None:
            self.labels.require_grid_of(found)
        shown = {} if self.labels is None else self.shown
        labels = found.labels_kji.copy()
        for segment in found.segments:
            for index in {*shown.get(segment.name, ()), *self.absent.get(segment.name, ())}:
                plane = take_slice(labels, self.axis, index)
                plane[plane == segment.label] = 0
        for segment in found.segments:
            if self.labels is not None and shown.get(segment.name):
                mask = as_stack(self.labels.mask(segment.name), self.axis)
                for index in shown[segment.name]:
                    take_slice(labels, self.axis, index)[mask[index]] = segment.label
        return replace(found, labels_kji=labels)

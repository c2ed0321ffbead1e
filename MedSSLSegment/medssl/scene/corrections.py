"""What a propagation leaves to be done again: slices that changed since it began, and those it did not come to."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import Any

from ..volume import Volume
from . import nodes, tags
from .layers import slice_fingerprint

__all__ = ["last_propagation", "missed_slices", "slices_to_redo"]

_NONE = tags.Step("propagate", "")


def last_propagation(segmentation_node: Any, segment_id: str, axis: int) -> tags.Step:
    """The newest propagation of a segment across an axis; an empty one where there was none."""
    steps = tags.steps(segmentation_node, segment_id)
    runs = (step for step in steps if step.what == "propagate" and step.axis == axis)
    return max(runs, key=lambda step: step.when, default=_NONE)


def slices_to_redo(
    segmentation_node: Any, segment_id: str, volume: Volume, axis: int, drawn: Sequence[int]
) -> set[int]:
    """Slices whose stretches have to be tracked again.

    They were drawn, corrected or taken away since the last propagation began. Where it was cancelled or failed, one
    slice stands for each stretch that it left unfinished.

    Args:
        segmentation_node: vtkMRMLSegmentationNode.
        segment_id: the segment.
        volume: the grid it was drawn on.
        axis: slice axis, 0 = K, 1 = J, 2 = I.
        drawn: its reference slices now, rising.
    """
    last = last_propagation(segmentation_node, segment_id, axis)
    marks = dict(zip(last.references, last.marks, strict=False))
    corrected = {
        index
        for index in drawn
        if index in marks
        and slice_fingerprint(nodes.read_slice(segmentation_node, segment_id, volume, axis, index))
        != marks[index]
    }
    unfinished = {bisect(drawn, index): index for index in _indices(last.missed)}
    return corrected | (set(drawn) ^ set(last.references)) | set(unfinished.values())


def missed_slices(
    before: tags.Step, covered: Iterable[range], decided: Collection[int]
) -> tuple[tuple[int, int], ...]:
    """The slices that still wait for a propagation when one has ended, as `Step.missed` keeps them.

    Args:
        before: the propagation before it, whose missed slices wait on.
        covered: the slices it was to decide about.
        decided: those it has decided about, and those that somebody drew.

    Returns:
        (first, last) of each row of slices, rising.
    """
    waiting = sorted({*chain.from_iterable(covered), *_indices(before.missed)}.difference(decided))
    first = [n for at, n in enumerate(waiting) if at == 0 or waiting[at - 1] < n - 1]
    last = [n for at, n in enumerate(waiting, start=1) if at == len(waiting) or waiting[at] > n + 1]
    return tuple(zip(first, last, strict=True))


def _indices(rows: Iterable[tuple[int, int]]) -> Iterable[int]:
    return chain.from_iterable(range(first, last + 1) for first, last in rows)

"""What a propagation leaves to be done again: slices that changed since it began, and those it did not come to."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Iterable, Mapping
from itertools import chain

from ..volume import rows_of_neighbours
from .tags import Step

__all__ = ["last_propagation", "missed_slices", "slices_to_redo"]

_NONE = Step("propagate", "")


def last_propagation(steps: Iterable[Step], axis: int) -> Step:
    """The newest propagation across an axis among what was done to a segment; an empty one where there was none."""
    runs = (step for step in steps if step.what == "propagate" and step.axis == axis)
    return max(runs, key=lambda step: step.when, default=_NONE)


def slices_to_redo(last: Step, drawn: Mapping[int, int]) -> tuple[int, ...]:
    """Slices whose stretches have to be tracked again; rising.

    They were drawn, corrected or taken away since the last propagation began. Where it was cancelled or failed, one
    slice stands for each stretch that it left unfinished.

    Args:
        last: the last propagation.
        drawn: the reference slices of now, rising, with the fingerprints of their masks.
    """
    marks = dict(zip(last.references, last.marks, strict=False))
    corrected = {index for index, mark in drawn.items() if marks.get(index, mark) != mark}
    unfinished = {bisect(tuple(drawn), index): index for index in _indices(last.missed)}
    return tuple(sorted(corrected | (drawn.keys() ^ set(last.references)) | set(unfinished.values())))


def missed_slices(
    before: Step, covered: Iterable[range], decided: Collection[int]
) -> tuple[tuple[int, int], ...]:
    """The slices that still wait for a propagation when one has ended, as `Step.missed` keeps them.

    Args:
        before: the propagation before it, whose missed slices wait on.
        covered: the slices it was to decide about.
        decided: those it has decided about, and those that somebody drew.

    Returns:
        (first, last) of each row of slices, rising.
    """
    waiting = {*chain.from_iterable(covered), *_indices(before.missed)}.difference(decided)
    return tuple(rows_of_neighbours(sorted(waiting)))


def _indices(rows: Iterable[tuple[int, int]]) -> Iterable[int]:
    return chain.from_iterable(range(first, last + 1) for first, last in rows)

"""Labels carried from annotated slices to the others, so that one slice of a case teaches nearly as much as all.

A network that learns from annotated slices alone never sees what lies far from them, and finds the organ where there is
none. The tracker that carries a user's slice through a volume says, well enough to learn from, where the organ goes on
and where it has ended. Where it is not sure, nothing is taught.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..datasets.data import IGNORE
from ..errors import Cancelled
from ..events import Eta, Log, Progress
from ..foundation.protocols import SliceTracker
from ..prompts import Reference, SlicePrompt
from ..propagate import PropagateOptions, propagate
from ..results import SliceMask
from ..volume import Volume, as_stack, take_slice
from .annotated_samples import AnnotatedCase, by_scan
from .skimming import box_of

__all__ = ["carried_labels", "with_carried_labels"]

_SURE = 0.65
"""Confidence, the Dice that is expected of it, from which a slice teaches."""
_UNSURE_BEFORE_MM, _UNSURE_SHARE = 10.0, 0.4
"""Of the slices that would teach an object on its way to an end, so many millimetres are left out, the last ones, and
at most so large a share: a tracker that runs on past an end would teach that it does."""
_ENOUGH_SCANS = 3
"""From so many scans on, slices can be left out before an end; fewer need each of them more. Chosen on training
patients."""
_UNSURE_BEYOND_MM = 12.0
"""So far past the slice where an object was last seen, its surroundings teach nothing."""
_AROUND_MM = 10.0
"""What belongs to the surroundings of an object, in the plane."""


def with_carried_labels(
    learn_from: Sequence[AnnotatedCase],
    measure_on: Sequence[AnnotatedCase],
    load_tracker: Callable[[], SliceTracker],
    cancelled: Callable[[], bool] = lambda: False,
    *,
    only: Collection[str] | None = None,
    seconds: float = math.inf,
) -> Iterator[Progress | Log | list[AnnotatedCase]]:
    """Add what annotated slices say about the others; slices that are measured on stay unseen.

    Args:
        learn_from: cases, annotated on some slices or on all.
        measure_on: cases, or slices of the same scans, whose labels nothing may be learnt about.
        load_tracker: called once, if a case has slices to label.
        cancelled: asked between slices.
        only: ids of the scans to carry labels in; None for all.
        seconds: after which no scan is begun and the one under way is left out.

    Yields:
        Progress; a Log where something was carried, or left out for lack of time; last the cases, those given first.

    Raises:
        Cancelled: `cancelled` said so.
    """
    scans = [
        parts
        for scan, parts in by_scan(learn_from).items()
        if any((p.labels == IGNORE).any() for p in parts) and (only is None or scan in only)
    ]
    carried: list[AnnotatedCase] = []
    forget_ends = len(by_scan(learn_from)) >= _ENOUGH_SCANS
    until = time.monotonic() + seconds
    eta, tracker = Eta(len(scans)), load_tracker() if scans else None
    done = 0
    for parts in scans:
        try:
            new = tracker and carried_labels(
                parts, tracker, lambda: cancelled() or time.monotonic() > until, forget_ends=forget_ends
            )
        except Cancelled:
            if cancelled():
                raise
            break
        if new:
            for measured in measure_on:
                if measured.scan.id == new.scan.id:
                    new.labels[measured.labels != IGNORE] = IGNORE
            carried.append(new)
        done += 1
        yield eta.step(done, f"carrying annotated slices of {parts[0].scan.name}")
    if carried:
        yield Log(f"Annotated slices of {_cases(len(carried))} were carried to the others, which teach too.")
    if done < len(scans):
        yield Log(f"There was no time to carry those of {_cases(len(scans) - done)}; a larger budget has it.")
    yield [*learn_from, *carried]


def _cases(count: int) -> str:
    return f"{count} case{'s' * (count > 1)}"


def carried_labels(
    parts: Sequence[AnnotatedCase],
    tracker: SliceTracker,
    cancelled: Callable[[], bool] = lambda: False,
    *,
    forget_ends: bool = True,
) -> AnnotatedCase | None:
    """What annotated slices of a scan say about its other slices.

    Args:
        parts: of one scan, with whole slices annotated across one axis; the axis with most of them counts.
        tracker: carries the segments from the annotated slices.
        cancelled: asked between slices.
        forget_ends: leave out the last slices before an object's end, where the tracker is least to be trusted.

    Returns:
        Another part of the scan: labels on the slices nobody vouches for, IGNORE where the tracker is not sure and on
        the annotated slices. It knows the segments that an annotated slice shows. None where nothing is annotated,
        nothing is left to label, or no annotated slice shows a segment.

    Raises:
        Cancelled: `cancelled` said so.
    """
    vouched = np.logical_or.reduce([part.labels != IGNORE for part in parts])
    axis = _axis_of_slices(vouched)
    references = [reference for part in parts for reference in _references(part, axis)]
    if not references or vouched.all():
        return None
    scan, shown = parts[0].scan, sorted({int(reference.segment) for reference in references})
    volume = Volume(parts[0].image, np.diag([*scan.spacing_kji_mm[::-1], 1.0]), scan.name)
    labels = np.zeros(vouched.shape, np.uint8)
    owners = np.zeros(vouched.shape, np.uint8)  # how many segments claim a voxel
    found: dict[int, list[int]] = {label: [] for label in shown}
    for event in propagate(volume, references, tracker, PropagateOptions(axis=axis), cancelled):
        if isinstance(event, SliceMask) and event.mask.any():
            label = int(event.segment)
            found[label].append(event.index)
            take_slice(labels, axis, event.index)[event.mask] = label if event.confidence >= _SURE else IGNORE
            take_slice(owners, axis, event.index)[event.mask] += 1
    before_mm = _UNSURE_BEFORE_MM if forget_ends else 0.0
    for label, indices in found.items():
        drawn = [each.prompt.index for each in references if int(each.segment) == label]
        _forget_ends(labels, label, indices, drawn, axis, scan.spacing_kji_mm, before_mm)
    labels[(owners > 1) | vouched] = IGNORE
    known = np.zeros_like(parts[0].known)
    known[[0, *shown]] = True
    return replace(parts[0], labels=labels, known=known, is_carried=True)


def _axis_of_slices(vouched: NDArray[np.bool_]) -> int:
    """The axis across which most slices are vouched for as a whole."""
    slices = [int(as_stack(vouched, axis).all(axis=(1, 2)).sum()) for axis in range(3)]
    return slices.index(max(slices))


def _references(part: AnnotatedCase, axis: int) -> list[Reference]:
    references = []
    whole = as_stack(part.labels != IGNORE, axis).all(axis=(1, 2))
    for index in np.flatnonzero(whole).tolist():
        plane = take_slice(part.labels, axis, index)
        for label in np.flatnonzero(part.known)[1:].tolist():
            if (plane == label).any():
                references.append(Reference(str(label), SlicePrompt(axis, index, mask=plane == label)))
    return references


def _forget_ends(
    labels: NDArray[np.uint8],
    label: int,
    found: Sequence[int],
    drawn: Sequence[int],
    axis: int,
    spacing_kji_mm: tuple[float, float, float],
    before_mm: float,
) -> None:
    """Where an object ends is the tracker's weakest answer: just before it, the object teaches nothing, and just past
    it, its surroundings do not.

    Args:
        labels: (K, J, I), changed in place.
        label: of the object.
        found: slices it was found on, the annotated ones among them.
        drawn: the annotated ones.
        axis: of the slices.
        spacing_kji_mm: of the labels.
        before_mm: what is left out before an end, at most.
    """
    count, step_mm = labels.shape[axis], spacing_kji_mm[axis]
    row_mm, column_mm = (mm for n, mm in enumerate(spacing_kji_mm) if n != axis)
    margin = math.ceil(_AROUND_MM / row_mm), math.ceil(_AROUND_MM / column_mm)
    for last, outermost, step in ((min(found), min(drawn), -1), (max(found), max(drawn), 1)):
        shown = [
            (index, box)
            for index in range(last, outermost - step, -step)
            if (box := box_of(take_slice(labels, axis, index) == label, margin)) is not None
        ]
        if last in (0, count - 1) or not shown:  # the volume ends here; or another segment hides this one
            continue
        before = round(min(before_mm / step_mm, _UNSURE_SHARE * (len(shown) - 1)))
        for index, _ in shown[:before]:
            plane = take_slice(labels, axis, index)
            plane[plane == label] = IGNORE
        for index in range(last + step, last + step * (math.ceil(_UNSURE_BEYOND_MM / step_mm) + 1), step):
            if 0 <= index < count:
                region = take_slice(labels, axis, index)[shown[0][1]]
                region[region == 0] = IGNORE

"""Carries reference slices through a volume: plan the stretches, track them, stop where the object ends, blend.

A stretch lies between two neighbouring reference slices of a segment, or between the outermost one and the end of the
range. A stretch between two references is tracked from both ends and blended by distance; an outer one is tracked
outwards until the stop rule finds the object gone. Read `propagate` first.

Axis letters: H, W rows and columns of a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import Cancelled, InputError
from .events import Eta, Progress
from .foundation.protocols import SliceTracker, TrackedSlice, TrackJob
from .prompts import Reference, box_of_mask
from .results import SliceMask
from .stop_rule import StopRule
from .volume import Volume, Window, take_slice

if TYPE_CHECKING:
    from .foundation.protocols import TrackingSession

__all__ = ["PropagateOptions", "propagate"]


@dataclass(frozen=True, kw_only=True)
class PropagateOptions:
    """How to carry reference slices through a volume."""

    axis: int = 0
    """Slice axis: 0 = K, 1 = J, 2 = I."""
    first: int | None = None
    """Lowest slice to track; None is the first of the volume."""
    last: int | None = None
    """Highest slice to track; None is the last of the volume."""
    direction: Literal["both", "higher", "lower"] = "both"
    """Which way to go from the reference slices."""
    stop: bool = True
    """End an outer stretch where the object has ended; without it every slice of the range is tracked."""
    patience: int = 2
    """Slices without the object that end an outer stretch."""
    crop: Literal["auto", "off"] = "off"
    """auto tracks on a crop around the references, 3 times their box: for small structures with models that see the whole slice."""
    window: Window | None = None
    """Intensity window for the whole volume; None chooses one (`Window.auto`)."""
    changed: tuple[int, ...] = ()
    """Reference slices that changed since the last run: only stretches that touch one are tracked again. Empty: all."""


def propagate(
    volume: Volume,
    references: Sequence[Reference],
    tracker: SliceTracker,
    options: PropagateOptions | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[SliceMask | Progress]:
    """Carry reference slices through a volume; each slice is yielded as soon as it is known.

    A reference slice comes first, with its mask as drawn (or as predicted from its points or box) and
    ``is_reference``; a slice after the object's end is not yielded.

    Args:
        volume: the image; its voxels are only read.
        references: prompts on slices across ``options.axis``, any number for any number of segments.
        tracker: the model.
        options: range, direction, stop rule, window.
        cancelled: asked between slices.

    Raises:
        InputError: no references, or one that does not fit the volume or the options.
        Cancelled: `cancelled` said so; what was yielded stands.
    """
    options = options or PropagateOptions()
    _check(volume, references, options)
    window = options.window or Window.auto(volume)
    if options.crop == "auto":
        yield from _propagate_cropped(volume, references, tracker, options, window, cancelled)
        return
    session = tracker.open(volume, options.axis, window)
    run = _Run(volume, options, references, session)
    yield from run.references()
    yield from run.stretches(cancelled)


@dataclass(frozen=True)
class _Stretch:
    """Slices between two neighbouring references of a segment, or outside the outermost one."""

    object_id: int
    jobs: tuple[TrackJob, ...]
    """One for an outer stretch, two (upwards, then downwards) between references."""


@dataclass
class _Waiting:
    """Answers of one direction that wait for the other direction's answer on the same slice."""

    answers: dict[int, TrackedSlice] = field(default_factory=dict)


class _Run:
    """One propagation under way."""

    def __init__(
        self,
        volume: Volume,
        options: PropagateOptions,
        references: Sequence[Reference],
        session: TrackingSession,
    ) -> None:
        self._volume, self._options, self._session = volume, options, session
        self._all = sorted(references, key=lambda reference: reference.prompt.index)
        self._names = list(dict.fromkeys(reference.segment for reference in references))
        self._masks: dict[tuple[int, int], NDArray[np.bool_]] = {}

    def references(self) -> Iterator[SliceMask]:
        """Show the tracker every reference slice."""
        for reference in self._all:
            object_id, prompt = self._names.index(reference.segment), reference.prompt
            answer = self._session.add_reference(object_id, prompt)
            mask = answer.mask if prompt.mask is None else prompt.mask
            self._masks[object_id, prompt.index] = mask
            confidence = answer.score if prompt.mask is None else 1.0
            yield SliceMask(reference.segment, prompt.axis, prompt.index, mask, confidence, True)

    def stretches(self, cancelled: Callable[[], bool]) -> Iterator[SliceMask | Progress]:
        """Track every stretch side by side."""
        stretches = self._plan()
        between = {job: stretch for stretch in stretches if len(stretch.jobs) == 2 for job in stretch.jobs}
        outer = {job for stretch in stretches if len(stretch.jobs) == 1 for job in stretch.jobs}
        rules = {job: self._rule(job) for job in outer if self._options.stop}
        waiting = {stretch: _Waiting() for stretch in between.values()}
        jobs = [job for stretch in stretches for job in stretch.jobs]
        eta = Eta(sum(abs(job.stop - job.start) for job in jobs))
        done = 0
        yield eta.step(0)
        for answers in self._session.run(jobs):
            for job, answer in answers:
                done += 1
                if job in between:
                    yield from self._blend(between[job], waiting[between[job]], job, answer)
                    continue
                if job in rules:
                    gone = rules[job].judge(answer)
                    if rules[job].stopped:
                        self._session.drop(job)
                        eta.total -= abs(job.stop - answer.index)
                    if gone:
                        continue
                yield self._slice(answer.object_id, answer.index, answer.mask, answer.score * answer.quality)
            yield eta.step(done)
            if cancelled():
                raise Cancelled("Propagation was cancelled; the slices that had arrived are kept.")

    def _plan(self) -> list[_Stretch]:
        stretches: list[_Stretch] = []
        for object_id in range(len(self._names)):
            indices = sorted(index for number, index in self._masks if number == object_id)
            stretches += self._outer(object_id, indices)
            stretches += self._inner(object_id, indices)
        return stretches

    def _outer(self, object_id: int, indices: list[int]) -> Iterator[_Stretch]:
        first = self._options.first or 0
        count = self._volume.shape_kji[self._options.axis]
        last = count - 1 if self._options.last is None else self._options.last
        lower, higher = TrackJob(object_id, indices[0], first), TrackJob(object_id, indices[-1], last)
        if self._options.direction != "higher" and first < indices[0] and self._touched(indices[0]):
            yield _Stretch(object_id, (lower,))
        if self._options.direction != "lower" and last > indices[-1] and self._touched(indices[-1]):
            yield _Stretch(object_id, (higher,))

    def _inner(self, object_id: int, indices: list[int]) -> Iterator[_Stretch]:
        for low, high in zip(indices[:-1], indices[1:], strict=True):
            if high - low < 2 or not self._touched(low, high):
                continue
            up, down = TrackJob(object_id, low, high - 1), TrackJob(object_id, high, low + 1)
            jobs = {"both": (up, down), "higher": (up,), "lower": (down,)}[self._options.direction]
            yield _Stretch(object_id, jobs)

    def _touched(self, *indices: int) -> bool:
        return not self._options.changed or any(index in self._options.changed for index in indices)

    def _rule(self, job: TrackJob) -> StopRule:
        mask = self._masks[job.object_id, job.start]
        return StopRule(
            mask,
            self._volume.slice_spacing_mm(self._options.axis),
            self._volume.step_mm(self._options.axis),
            self._options.patience,
        )

    def _blend(
        self, stretch: _Stretch, waiting: _Waiting, job: TrackJob, answer: TrackedSlice
    ) -> Iterator[SliceMask]:
        """Weigh the two directions by their distance from their references, once both have come."""
        other = waiting.answers.pop(answer.index, None)
        if other is None:
            waiting.answers[answer.index] = answer
            return
        up, down = (answer, other) if job is stretch.jobs[0] else (other, answer)
        low, high = stretch.jobs[0].start, stretch.jobs[1].start
        share = (high - answer.index) / (high - low)
        mask = share * _probability(up) + (1 - share) * _probability(down) > 0.5
        agreement = _agreement(up.mask, down.mask)
        yield self._slice(stretch.object_id, answer.index, mask, 0.5 + 0.5 * agreement)

    def _slice(self, object_id: int, index: int, mask: NDArray[np.bool_], confidence: float) -> SliceMask:
        return SliceMask(self._names[object_id], self._options.axis, index, mask, float(confidence))


def _probability(answer: TrackedSlice) -> NDArray[np.float32]:
    """Foreground probability, halved where the tracker doubts that the object is there at all."""
    probability = answer.mask.astype(np.float32) if answer.probability is None else answer.probability
    return probability if answer.score > 0.5 else 0.5 * probability


def _agreement(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    size = int(first.sum()) + int(second.sum())
    return 1.0 if size == 0 else 2.0 * int((first & second).sum()) / size


def _check(volume: Volume, references: Sequence[Reference], options: PropagateOptions) -> None:
    volume.require_stack(options.axis)
    if not references:
        raise InputError("There is nothing to propagate: annotate at least one slice first.")
    count = volume.shape_kji[options.axis]
    first = 0 if options.first is None else options.first
    last = count - 1 if options.last is None else options.last
    if not 0 <= first <= last < count:
        raise InputError(
            f"The slice range {first} to {last} does not lie within this volume's slices 0 to {count - 1}."
        )
    shape = take_slice(volume.voxels_kji, options.axis, 0).shape
    for reference in references:
        _check_reference(reference, options.axis, count, shape)


def _check_reference(reference: Reference, axis: int, count: int, shape: tuple[int, ...]) -> None:
    prompt, name = reference.prompt, reference.segment
    if prompt.axis != axis:
        raise InputError(
            f"The reference slice {prompt.index} of {name} was drawn across axis {prompt.axis}, but propagation runs along"
            f" axis {axis}; draw all reference slices in one view."
        )
    if not 0 <= prompt.index < count:
        raise InputError(
            f"The reference slice {prompt.index} of {name} lies outside the volume's slices 0 to {count - 1}."
        )
    if prompt.mask is not None and prompt.mask.shape != shape:
        raise InputError(
            f"The reference slice {prompt.index} of {name} is {prompt.mask.shape[0]} x {prompt.mask.shape[1]} pixels, but the"
            f" volume's slices are {shape[0]} x {shape[1]}."
        )
    if prompt.mask is not None and not prompt.mask.any():
        raise InputError(
            f"The reference slice {prompt.index} of {name} is empty; paint the object on it first."
        )


# ------------------------------------------------------------------------------------------------------------- crop


def _propagate_cropped(
    volume: Volume,
    references: Sequence[Reference],
    tracker: SliceTracker,
    options: PropagateOptions,
    window: Window,
    cancelled: Callable[[], bool],
) -> Iterator[SliceMask | Progress]:
    """Work on a part of every slice; results come back on the whole slice."""
    from dataclasses import replace

    rows, cols = _crop_around(volume, references, options.axis)
    part = _cropped_volume(volume, options.axis, rows, cols)
    shape = take_slice(volume.voxels_kji, options.axis, 0).shape
    inner = replace(options, crop="off", window=window)
    moved = [_moved(reference, rows, cols) for reference in references]
    for event in propagate(part, moved, tracker, inner, cancelled):
        if isinstance(event, SliceMask):
            whole = np.zeros(shape, bool)
            whole[rows, cols] = event.mask
            event = replace(event, mask=whole)
        yield event


def _crop_around(volume: Volume, references: Sequence[Reference], axis: int) -> tuple[slice, slice]:
    """Three times the box of all references, square in mm, inside the slice."""
    boxes = [_box(reference) for reference in references]
    low = np.min([box[:2] for box in boxes], axis=0)[::-1]  # rows, columns
    high = np.max([box[2:] for box in boxes], axis=0)[::-1] + 1.0
    spacing = np.array(volume.slice_spacing_mm(axis))
    shape = np.array(take_slice(volume.voxels_kji, axis, 0).shape)
    half_px = 1.5 * float(((high - low) * spacing).max()) / spacing
    centre = (low + high) / 2
    start = np.clip(np.floor(centre - half_px), 0, shape).astype(int)
    stop = np.clip(np.ceil(centre + half_px), 0, shape).astype(int)
    return slice(int(start[0]), int(stop[0])), slice(int(start[1]), int(stop[1]))


def _box(reference: Reference) -> NDArray[np.float32]:
    prompt = reference.prompt
    if prompt.mask is not None:
        box = box_of_mask(prompt.mask)
        if box is not None:
            return box
    if prompt.box_xyxy_px is not None:
        return prompt.box_xyxy_px
    raise InputError(
        "A crop needs a mask or a box on every reference slice; points alone do not say how large the object is."
    )


def _cropped_volume(volume: Volume, axis: int, rows: slice, cols: slice) -> Volume:
    cut = [rows, cols]
    cut.insert(axis, slice(None))
    offset_ijk = np.array([cut[2].start or 0, cut[1].start or 0, cut[0].start or 0, 1.0])
    ijk_to_ras = volume.ijk_to_ras.copy()
    ijk_to_ras[:, 3] = volume.ijk_to_ras @ offset_ijk
    return Volume(volume.voxels_kji[tuple(cut)], ijk_to_ras, volume.name)


def _moved(reference: Reference, rows: slice, cols: slice) -> Reference:
    from dataclasses import replace

    prompt = reference.prompt
    offset = np.array([cols.start, rows.start], np.float32)
    box = None if prompt.box_xyxy_px is None else prompt.box_xyxy_px - np.tile(offset, 2)
    mask = None if prompt.mask is None else prompt.mask[rows, cols]
    return Reference(
        reference.segment,
        replace(prompt, points_xy_px=prompt.points_xy_px - offset, box_xyxy_px=box, mask=mask),
    )

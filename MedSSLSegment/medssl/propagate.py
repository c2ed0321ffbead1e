"""Carries reference slices through a volume: plan the stretches, track them, stop where the object ends, blend.

A stretch lies between two neighbouring reference slices of a segment, or between the outermost one and the end of the
range. A stretch between two references is tracked from both ends and blended; an outer one is tracked
outwards until the stop rule finds the object gone. Read `propagate` first.

Axis letters: H, W rows and columns of a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import Cancelled, InputError
from .events import Eta, Progress
from .foundation.protocols import SliceTracker, TrackedSlice, TrackJob
from .prompts import Reference, SlicePrompt, box_of_mask
from .results import SliceMask
from .stop_rule import StopRule
from .volume import Volume, Window, take_slice

if TYPE_CHECKING:
    from .foundation.protocols import TrackingSession

__all__ = ["PropagateOptions", "propagate"]

_CROP_FACTOR = 3.0  # side of the crop over the larger side of the references' box
_FAINT = 1 / 256  # a foreground probability that cannot matter when two are blended
_ABSENT = 0.2  # object score below which an object is absent between two references


@dataclass(frozen=True, kw_only=True)
class PropagateOptions:
    """How to carry reference slices through a volume.

    Raises:
        InputError: a direction, crop or patience that does not exist.
    """

    axis: int = 0
    """Slice axis: 0 = K, 1 = J, 2 = I."""
    first: int | None = None
    """Lowest slice to fill; None is the first of the volume. A reference slice may lie below."""
    last: int | None = None
    """Highest slice to fill; None is the last of the volume. A reference slice may lie above."""
    direction: Literal["both", "higher", "lower"] = "both"
    """Which way to go from the reference slices."""
    stop: bool = True
    """End an outer stretch where the object has ended; without it every slice of the range is filled."""
    patience: int = 2
    """Slices without the object that end an outer stretch, at least 1."""
    crop: Literal["auto", "off"] = "off"
    """auto tracks on a crop around the references, 3 times as large as their box: for small structures with models
    that see the whole slice."""
    window: Window | None = None
    """Intensity window for the whole volume; None chooses one (`Window.auto`)."""
    changed: tuple[int, ...] = ()
    """Slices on which a reference was drawn, corrected or removed since the last run: only stretches that reach one
    are tracked again. Empty: all. Give the references of the segments that changed, and only those."""

    def __post_init__(self) -> None:
        if self.direction not in ("both", "higher", "lower"):
            raise InputError(f"There is no direction '{self.direction}'; choose both, higher or lower.")
        if self.crop not in ("auto", "off"):
            raise InputError(f"There is no crop '{self.crop}'; choose auto or off.")
        if self.patience < 1:
            raise InputError(f"The patience must be at least 1 slice, not {self.patience}.")


def propagate(
    volume: Volume,
    references: Sequence[Reference],
    tracker: SliceTracker,
    options: PropagateOptions | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[SliceMask | Progress]:
    """Carry reference slices through a volume; each slice is yielded as soon as it is known, and only once.

    The reference slices come first, each with its mask as drawn (or as predicted from its points or box) and
    ``is_reference``. Between two references every slice is yielded, with an empty mask where the object is not there.
    Outwards from the outermost ones a slice is yielded only where the object is; whoever fills a segment again clears
    what an earlier run has put on the others.

    Args:
        volume: the image; its voxels are only read.
        references: prompts on slices across ``options.axis``, any number for any number of segments, in any order.
        tracker: the model.
        options: range, direction, stop rule, crop, window.
        cancelled: asked between slices.

    Raises:
        InputError: no references, or one that does not fit the volume or the options; at once, before the first slice.
            Nothing was found at a reference's points or box; when its turn comes.
        Cancelled: `cancelled` said so; what was yielded stands.
    """
    options = options or PropagateOptions()
    _check(volume, references, options)
    window = options.window or Window.auto(volume)
    go = _propagate if options.crop == "off" else _propagate_on_crop
    return go(volume, references, tracker, options, window, cancelled)


def _propagate(
    volume: Volume,
    references: Sequence[Reference],
    tracker: SliceTracker,
    options: PropagateOptions,
    window: Window,
    cancelled: Callable[[], bool],
) -> Iterator[SliceMask | Progress]:
    run = _Run(volume, options, references, tracker.open(volume, options.axis, window), cancelled)
    yield from run.references()
    yield from run.stretches()


@dataclass(frozen=True)
class _Stretch:
    """Slices between two neighbouring references of a segment, or outside the outermost one."""

    object_id: int
    jobs: tuple[TrackJob, ...]
    """Upwards and downwards where a stretch between references is tracked from both ends, else one."""
    is_outer: bool


class _Run:
    """One propagation under way."""

    def __init__(
        self,
        volume: Volume,
        options: PropagateOptions,
        references: Sequence[Reference],
        session: TrackingSession,
        cancelled: Callable[[], bool],
    ) -> None:
        self._options, self._session, self._cancelled = options, session, cancelled
        self._range = _range(volume, options)
        self._all = sorted(references, key=lambda reference: reference.prompt.index)
        self._names = list(dict.fromkeys(reference.segment for reference in references))
        self._masks: dict[tuple[int, int], NDArray[np.bool_]] = {}
        self._waiting: dict[_Stretch, dict[int, dict[int, _Said]]] = {}

    def references(self) -> Iterator[SliceMask]:
        """Show the tracker every reference slice."""
        for reference in self._all:
            object_id, prompt = self._names.index(reference.segment), reference.prompt
            answer = self._session.add_reference(object_id, prompt)
            mask = answer.mask if prompt.mask is None else prompt.mask
            if not mask.any():
                raise InputError(
                    f"Nothing of {reference.segment} was found at the prompt on slice {prompt.index};"
                    " add a point or draw a box."
                )
            self._masks[object_id, prompt.index] = mask
            confidence = _confidence(answer) if prompt.mask is None else 1.0
            yield SliceMask(reference.segment, prompt.axis, prompt.index, mask, confidence, True)
            self._stop_if_cancelled()

    def stretches(self) -> Iterator[SliceMask | Progress]:
        """Track every stretch side by side."""
        stretches = {job: stretch for stretch in self._plan() for job in stretch.jobs}
        rules = {
            job: StopRule(self._masks[job.object_id, job.start], self._options.patience)
            for job, stretch in stretches.items()
            if stretch.is_outer and self._options.stop
        }
        eta = Eta(sum(abs(job.stop - job.start) for job in stretches))
        done = 0
        yield eta.step(0)
        for answers in self._session.run(list(stretches)):
            for job, answer in answers:
                done += 1
                known = rules[job].follow(answer) if job in rules else [answer]
                if job in rules and rules[job].stopped:
                    self._session.drop(job)
                    eta.total -= abs(job.stop - answer.index)
                for each in known:
                    if each.index in self._range:
                        yield from self._settle(stretches[job], job, each)
            yield eta.step(done)
            self._stop_if_cancelled()

    def _plan(self) -> list[_Stretch]:
        stretches: list[_Stretch] = []
        for object_id in range(len(self._names)):
            indices = sorted(index for number, index in self._masks if number == object_id)
            stretches += self._outer(object_id, indices[0], indices[-1])
            stretches += self._inner(object_id, indices)
        return stretches

    def _outer(self, object_id: int, lowest: int, highest: int) -> Iterator[_Stretch]:
        """From the outermost references to the ends of the range."""
        first, last = self._range[0], self._range[-1]
        if self._goes("lower") and first < lowest and self._reaches_change(None, lowest):
            yield _Stretch(object_id, (TrackJob(object_id, lowest, first),), is_outer=True)
        if self._goes("higher") and last > highest and self._reaches_change(highest, None):
            yield _Stretch(object_id, (TrackJob(object_id, highest, last),), is_outer=True)

    def _inner(self, object_id: int, indices: list[int]) -> Iterator[_Stretch]:
        """Between neighbouring references, each direction no farther than the range needs."""
        for low, high in pairwise(indices):
            lowest, highest = max(low + 1, self._range[0]), min(high - 1, self._range[-1])
            if lowest <= highest and self._reaches_change(low, high):
                up = (TrackJob(object_id, low, highest),) if self._goes("higher") else ()
                down = (TrackJob(object_id, high, lowest),) if self._goes("lower") else ()
                yield _Stretch(object_id, up + down, is_outer=False)

    def _goes(self, direction: Literal["higher", "lower"]) -> bool:
        return self._options.direction in ("both", direction)

    def _reaches_change(self, low: int | None, high: int | None) -> bool:
        """Whether a changed slice lies in low .. high; None has no end. A removed reference lies inside."""
        changed = self._options.changed
        return not changed or any(
            (low is None or low <= index) and (high is None or index <= high) for index in changed
        )

    def _settle(self, stretch: _Stretch, job: TrackJob, answer: TrackedSlice) -> Iterator[SliceMask]:
        """What an answer, perhaps with the one from the other direction, comes to."""
        if stretch.is_outer:
            yield self._slice(answer, answer.mask, _confidence(answer))
            return
        if len(stretch.jobs) == 1:
            present = answer.score >= _ABSENT
            mask = answer.mask if present else np.zeros_like(answer.mask)
            yield self._slice(answer, mask, _confidence(answer) if present else 1.0 - answer.score)
            return
        waiting = self._waiting.setdefault(stretch, {})
        said = waiting.setdefault(answer.index, {})
        said[job.step] = _Said.of(answer)
        if len(said) == 2:
            del waiting[answer.index]
            low, high = (job.start for job in stretch.jobs)
            share = (high - answer.index) / (high - low)
            yield self._slice(answer, *_blended(said[1], said[-1], share, answer.mask.shape))

    def _slice(self, answer: TrackedSlice, mask: NDArray[np.bool_], confidence: float) -> SliceMask:
        return SliceMask(
            self._names[answer.object_id], self._options.axis, answer.index, mask, float(confidence)
        )

    def _stop_if_cancelled(self) -> None:
        if self._cancelled():
            raise Cancelled("Propagation was cancelled; the slices that had arrived are kept.")


@dataclass(frozen=True, eq=False)
class _Said:
    """What one direction said about a slice, kept small until the other direction comes by."""

    rows: slice
    cols: slice
    probability: NDArray[np.float16]
    """Of the foreground, inside `rows` and `cols`; nothing to speak of outside."""
    score: float
    """Probability that the object is there, 0 .. 1."""
    expected_dice: float | None
    """Of its mask if it is; None where the tracker cannot tell."""

    @classmethod
    def of(cls, answer: TrackedSlice) -> _Said:
        probability = answer.mask.astype(np.float32) if answer.probability is None else answer.probability
        box = box_of_mask(probability > _FAINT)
        x0, y0, x1, y1 = (0, 0, -1, -1) if box is None else (int(corner) for corner in box)
        rows, cols = slice(y0, y1 + 1), slice(x0, x1 + 1)
        kept = probability[rows, cols].astype(np.float16)
        return cls(rows, cols, kept, answer.score, _expected_dice(answer))

    @property
    def fit(self) -> float:
        """Expected Dice; 1 where the tracker cannot tell, never quite 0."""
        return 1.0 if self.expected_dice is None else max(self.expected_dice, _FAINT)

    def whole(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """(H, W) the probability on the whole slice."""
        probability = np.zeros(shape, np.float32)
        probability[self.rows, self.cols] = self.probability
        return probability


def _blended(up: _Said, down: _Said, share: float, shape: tuple[int, ...]) -> tuple[NDArray[np.bool_], float]:
    """(H, W) mask and confidence from two directions, of which the upward one has come nearer by this share.

    A direction counts by the root of its nearness, by how likely it finds the object there, and by the square of the
    Dice that it expects (chosen on training patients; `bench_between.py` measures it). An object that two slices show
    is seldom absent between them, so both directions have to be sure of that.

    Where the directions cannot tell how well their masks fit, their agreement has to do for the confidence.
    """
    counts = np.sqrt([share, 1.0 - share]) * [said.fit**2 for said in (up, down)]
    scores = np.array([up.score, down.score])
    score = float(np.average(scores, weights=counts))
    if score < _ABSENT:
        return np.zeros(shape, bool), 1.0 - score
    part = counts * scores / (counts @ scores)
    first, second = up.whole(shape), down.whole(shape)
    mask = np.float32(part[0]) * first + np.float32(part[1]) * second > 0.5
    if up.expected_dice is None or down.expected_dice is None:
        return mask, 0.5 + 0.5 * _agreement(first > 0.5, second > 0.5)
    return mask, float(part @ [up.expected_dice, down.expected_dice])


def _confidence(answer: TrackedSlice) -> float:
    expected = _expected_dice(answer)
    return answer.score if expected is None else answer.score * expected


def _expected_dice(answer: TrackedSlice) -> float | None:
    return None if answer.quality is None else 2.0 * answer.quality / (1.0 + answer.quality)


def _agreement(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    size = int(first.sum()) + int(second.sum())
    return 1.0 if size == 0 else 2.0 * int((first & second).sum()) / size


def _range(volume: Volume, options: PropagateOptions) -> range:
    """The slices to fill."""
    first = 0 if options.first is None else options.first
    last = volume.shape_kji[options.axis] - 1 if options.last is None else options.last
    return range(first, last + 1)


def _check(volume: Volume, references: Sequence[Reference], options: PropagateOptions) -> None:
    volume.require_stack(options.axis)
    if not references:
        raise InputError("There is nothing to propagate; annotate at least one slice first.")
    count = volume.shape_kji[options.axis]
    wanted = _range(volume, options)
    if not 0 <= wanted.start < wanted.stop <= count:
        raise InputError(
            f"The slice range {wanted.start} to {wanted.stop - 1} is not one of this volume;"
            f" choose a first and a last slice, in this order, from 0 to {count - 1}."
        )
    for index in options.changed:
        if not 0 <= index < count:
            raise InputError(
                f"The changed slice {index} does not exist; give slices from 0 to {count - 1}, or none for all."
            )
    shape = take_slice(volume.voxels_kji, options.axis, 0).shape
    seen: set[tuple[str, int]] = set()
    for reference in references:
        _check_reference(reference, options.axis, count, shape)
        place = (reference.segment, reference.prompt.index)
        if place in seen:
            raise InputError(
                f"The reference slice {place[1]} of {place[0]} was given twice;"
                " put its points, box or mask into one prompt."
            )
        seen.add(place)


def _check_reference(reference: Reference, axis: int, count: int, shape: tuple[int, ...]) -> None:
    prompt = reference.prompt
    what = f"The reference slice {prompt.index} of {reference.segment}"
    if prompt.axis != axis:
        raise InputError(
            f"{what} was drawn across axis {prompt.axis}, but propagation runs along axis {axis};"
            " draw all reference slices in one view."
        )
    if not 0 <= prompt.index < count:
        raise InputError(f"{what} does not exist; choose a slice from 0 to {count - 1}.")
    if prompt.mask is not None and prompt.mask.shape != shape:
        raise InputError(
            f"{what} is {prompt.mask.shape[0]} x {prompt.mask.shape[1]} pixels, but the volume's slices are"
            f" {shape[0]} x {shape[1]}; draw it on this volume."
        )
    if prompt.mask is not None and not prompt.mask.any():
        raise InputError(f"{what} is empty; paint the object on it first.")
    _check_inside(what, prompt, shape)


def _check_inside(what: str, prompt: SlicePrompt, shape: tuple[int, ...]) -> None:
    """Points must be on the slice, a box may reach beyond it."""
    size_xy = np.array(shape[::-1]) - 0.5
    for x, y in prompt.points_xy_px:
        if not (-0.5 <= x <= size_xy[0] and -0.5 <= y <= size_xy[1]):
            raise InputError(
                f"{what} has a point at column {x:g}, row {y:g}, outside its {shape[0]} rows and"
                f" {shape[1]} columns; put it on the slice."
            )
    box = prompt.box_xyxy_px
    if box is not None and ((box[2:] < -0.5).any() or (box[:2] > size_xy).any()):
        raise InputError(
            f"{what} has a box from column {box[0]:g}, row {box[1]:g} to column {box[2]:g}, row {box[3]:g}, outside its"
            f" {shape[0]} rows and {shape[1]} columns; draw it on the slice."
        )


# The crop and its inverse


def _propagate_on_crop(
    volume: Volume,
    references: Sequence[Reference],
    tracker: SliceTracker,
    options: PropagateOptions,
    window: Window,
    cancelled: Callable[[], bool],
) -> Iterator[SliceMask | Progress]:
    """Work on a part of every slice; results come back on the whole slice."""
    shape = take_slice(volume.voxels_kji, options.axis, 0).shape
    rows, cols = _crop_around(volume, references, options.axis)
    part = _cropped_volume(volume, options.axis, rows, cols)
    moved = [_moved(reference, rows, cols) for reference in references]
    events = _propagate(part, moved, tracker, options, window, cancelled)
    return (_on_whole_slice(event, shape, rows, cols) for event in events)


def _crop_around(volume: Volume, references: Sequence[Reference], axis: int) -> tuple[slice, slice]:
    """Three times the box of all references, square in mm, inside the slice: its rows and columns."""
    boxes = np.array([_box(reference) for reference in references])
    low, high = boxes[:, 1::-1].min(axis=0), boxes[:, :1:-1].max(axis=0) + 1.0  # rows, columns
    spacing = np.array(volume.slice_spacing_mm(axis))
    shape = take_slice(volume.voxels_kji, axis, 0).shape
    half_px = _CROP_FACTOR / 2 * float(((high - low) * spacing).max()) / spacing
    centre = (low + high) / 2
    start = np.clip(np.floor(centre - half_px), 0, shape).astype(int)
    stop = np.clip(np.ceil(centre + half_px), 0, shape).astype(int)
    return slice(int(start[0]), int(stop[0])), slice(int(start[1]), int(stop[1]))


def _box(reference: Reference) -> NDArray[np.float32]:
    prompt = reference.prompt
    box = prompt.box_xyxy_px if prompt.mask is None else box_of_mask(prompt.mask)
    if box is None:
        raise InputError(
            f"The reference slice {prompt.index} of {reference.segment} has points only, which do not say how large the"
            " object is; draw a mask or a box on it, or propagate without a crop."
        )
    return box


def _cropped_volume(volume: Volume, axis: int, rows: slice, cols: slice) -> Volume:
    """The same place in space, fewer voxels."""
    cut = [rows, cols]
    cut.insert(axis, slice(0, volume.shape_kji[axis]))
    ijk_to_ras = volume.ijk_to_ras.copy()
    ijk_to_ras[:, 3] = volume.ijk_to_ras @ np.array([*(along.start for along in reversed(cut)), 1.0])
    return Volume(volume.voxels_kji[tuple(cut)], ijk_to_ras, volume.name)


def _moved(reference: Reference, rows: slice, cols: slice) -> Reference:
    """The same prompt on the crop; points beside it are too far from the object to tell anything."""
    prompt = reference.prompt
    offset_xy = np.array([cols.start, rows.start], np.float32)
    points = prompt.points_xy_px - offset_xy
    inside = ((points > -0.5) & (points < (cols.stop - cols.start - 0.5, rows.stop - rows.start - 0.5))).all(
        axis=1
    )
    box = None if prompt.box_xyxy_px is None else prompt.box_xyxy_px - np.tile(offset_xy, 2)
    mask = None if prompt.mask is None else prompt.mask[rows, cols]
    kept = replace(
        prompt,
        points_xy_px=points[inside],
        point_labels=prompt.point_labels[inside],
        box_xyxy_px=box,
        mask=mask,
    )
    return replace(reference, prompt=kept)


def _on_whole_slice(
    event: SliceMask | Progress, shape: tuple[int, ...], rows: slice, cols: slice
) -> SliceMask | Progress:
    """The inverse of the crop."""
    if not isinstance(event, SliceMask):
        return event
    mask = np.zeros(shape, bool)
    mask[rows, cols] = event.mask
    return replace(event, mask=mask)

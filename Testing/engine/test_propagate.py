from __future__ import annotations

import functools
import itertools
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from medssl.errors import Cancelled, InputError
from medssl.events import Progress
from medssl.foundation.protocols import TrackedSlice, TrackJob
from medssl.prompts import Reference, SlicePrompt
from medssl.propagate import PropagateOptions, propagate
from medssl.results import SliceMask
from medssl.volume import WINDOWS, Volume, Window, as_stack, take_slice

SHAPE_KJI = (12, 20, 24)


@dataclass
class CopyingTracker:
    """Copies the reference mask to every slice; a test says what else it sees. Notes what it was asked."""

    score: Callable[[TrackJob, int], float] = lambda job, index: 1.0
    probability: Callable[[TrackJob, int, np.ndarray], np.ndarray] | None = None
    mask: Callable[[TrackJob, int, np.ndarray], np.ndarray] = lambda job, index, reference: reference.copy()
    quality: float | None = None
    one_job_at_a_time: bool = False
    volume: Volume | None = None
    window: Window | None = None
    jobs: list[TrackJob] = field(default_factory=list)
    prompts: list[SlicePrompt] = field(default_factory=list)
    tracked: list[tuple[TrackJob, int]] = field(default_factory=list)

    def open(self, volume: Volume, axis: int, window: Window) -> CopyingSession:
        self.volume, self.window = volume, window
        return CopyingSession(self, volume, axis)


class CopyingSession:
    def __init__(self, tracker: CopyingTracker, volume: Volume, axis: int) -> None:
        self.tracker, self.stack = tracker, as_stack(volume.voxels_kji, axis)
        self.references: dict[tuple[int, int], np.ndarray] = {}
        self.dropped: set[TrackJob] = set()

    def add_reference(self, object_id: int, prompt: SlicePrompt) -> TrackedSlice:
        self.tracker.prompts.append(prompt)
        mask = prompt.mask
        if mask is None:
            mask = np.zeros(self.stack.shape[1:], bool)
            if prompt.box_xyxy_px is not None:
                x0, y0, x1, y1 = prompt.box_xyxy_px.astype(int)
                mask[y0 : y1 + 1, x0 : x1 + 1] = True
        self.references[object_id, prompt.index] = mask
        return TrackedSlice(object_id, prompt.index, mask, None, 0.8, 0.5)

    def remove_reference(self, object_id: int, index: int) -> None:
        del self.references[object_id, index]

    def run(self, jobs: Sequence[TrackJob]) -> Iterator[list[tuple[TrackJob, TrackedSlice]]]:
        self.tracker.jobs = list(jobs)
        going = [(job, range(job.start + job.step, job.stop + job.step, job.step)) for job in jobs]
        if self.tracker.one_job_at_a_time:
            for job, indices in going:
                for index in itertools.takewhile(lambda _, job=job: job not in self.dropped, indices):
                    yield [self.answer(job, index)]
            return
        for place in range(max((len(indices) for _, indices in going), default=0)):
            alive = [(job, i) for job, i in going if place < len(i) and job not in self.dropped]
            if alive:
                yield [self.answer(job, indices[place]) for job, indices in alive]

    def drop(self, job: TrackJob) -> None:
        self.dropped.add(job)

    def answer(self, job: TrackJob, index: int) -> tuple[TrackJob, TrackedSlice]:
        tracker, reference = self.tracker, self.references[job.object_id, job.start]
        tracker.tracked.append((job, index))
        probability = None if tracker.probability is None else tracker.probability(job, index, reference)
        mask = tracker.mask(job, index, reference) if probability is None else probability > 0.5
        score = tracker.score(job, index)
        return job, TrackedSlice(job.object_id, index, mask, probability, score, tracker.quality)


@functools.cache
def a_volume(shape_kji: tuple[int, int, int] = SHAPE_KJI, seed: int = 0) -> Volume:
    voxels = np.random.default_rng(seed).integers(-1000, 1000, shape_kji).astype(np.int16)
    return Volume(voxels, np.diag([0.7, 0.8, 3.0, 1.0]))


def an_oblique_volume() -> Volume:
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    ijk_to_ras = np.eye(4)
    ijk_to_ras[:3, :3] = turn * (0.7, 1.4, 3.0)
    ijk_to_ras[:3, 3] = (-31.0, 12.0, 77.0)
    return Volume(a_volume((14, 60, 70)).voxels_kji, ijk_to_ras)


def a_disc(shape: tuple[int, ...] = SHAPE_KJI[1:], radius: float = 4.0, shift: int = 0) -> np.ndarray:
    rows, cols = np.indices(shape)
    return np.hypot(rows - shape[0] // 2, cols - shape[1] // 2 - shift) <= radius


def on(index: int, segment: str = "liver", mask: np.ndarray | None = None, axis: int = 0) -> Reference:
    return Reference(segment, SlicePrompt(axis, index, mask=a_disc() if mask is None else mask))


def run(
    references: Sequence[Reference],
    tracker: CopyingTracker | None = None,
    volume: Volume | None = None,
    **options: Any,
) -> list[SliceMask | Progress]:
    tracker = CopyingTracker() if tracker is None else tracker
    volume = a_volume() if volume is None else volume
    return list(propagate(volume, references, tracker, PropagateOptions(**options)))


def masks(events: Sequence[SliceMask | Progress]) -> list[SliceMask]:
    return [event for event in events if isinstance(event, SliceMask)]


def found(events: Sequence[SliceMask | Progress], segment: str = "liver") -> list[int]:
    """Slices that were filled apart from the reference slices, in order; fails where one comes twice."""
    indices = [one.index for one in masks(events) if one.segment == segment]
    assert len(indices) == len(set(indices))
    return sorted(one.index for one in masks(events) if one.segment == segment and not one.is_reference)


def as_table(events: Sequence[SliceMask | Progress]) -> dict[tuple[str, int], tuple[bytes, float, bool]]:
    return {
        (one.segment, one.index): (one.mask.tobytes(), one.confidence, one.is_reference)
        for one in masks(events)
    }


# Which slices are filled


def slices_by_definition(
    references: Sequence[int], first: int, last: int, direction: str, changed: Sequence[int]
) -> list[int]:
    """Slice by slice: its neighbouring references decide."""
    filled = []
    for index in range(first, last + 1):
        below = [r for r in references if r < index]
        above = [r for r in references if r > index]
        low, high = max(below, default=-1), min(above, default=SHAPE_KJI[0])
        wanted = (below and direction != "lower") or (above and direction != "higher")
        if index not in references and wanted and (not changed or any(low <= c <= high for c in changed)):
            filled.append(index)
    return filled


@pytest.mark.parametrize("direction", ["both", "higher", "lower"])
def test_the_slices_that_are_filled_follow_from_their_neighbouring_references(direction: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(60):
        references = rng.choice(SHAPE_KJI[0], rng.integers(1, 5), replace=False).tolist()
        first, last = sorted(rng.integers(0, SHAPE_KJI[0], 2).tolist())
        changed = tuple(rng.choice(SHAPE_KJI[0], rng.integers(0, 3), replace=False).tolist())
        tracker = CopyingTracker(one_job_at_a_time=bool(rng.integers(2)))
        events = run(
            [on(index) for index in references],
            tracker,
            first=first,
            last=last,
            direction=direction,
            changed=changed,
        )
        assert found(events) == slices_by_definition(references, first, last, direction, changed)
        assert [one.index for one in masks(events) if one.is_reference] == sorted(references)


def test_one_reference_fills_the_whole_volume_in_both_directions() -> None:
    assert found(run([on(5)])) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]


def test_a_reference_outside_the_range_is_carried_into_it_and_fills_nothing_on_the_way() -> None:
    tracker = CopyingTracker()
    assert found(run([on(2)], tracker, first=5, last=7)) == [5, 6, 7]
    assert tracker.jobs == [TrackJob(0, 2, 7)]


def test_a_stretch_that_the_range_cuts_is_tracked_no_farther_than_needed() -> None:
    tracker = CopyingTracker()
    assert found(run([on(1), on(10)], tracker, first=4, last=6)) == [4, 5, 6]
    assert tracker.jobs == [TrackJob(0, 1, 6), TrackJob(0, 10, 4)]


def test_neighbouring_references_leave_nothing_to_track_between_them() -> None:
    tracker = CopyingTracker()
    run([on(0), on(1), on(2)], tracker, last=2)
    assert tracker.jobs == []


def test_each_segment_has_its_own_references() -> None:
    references = [on(2, "liver"), on(9, "liver"), on(6, "spleen"), on(11, "spleen")]
    events = run(references, direction="higher")
    assert found(events, "liver") == [3, 4, 5, 6, 7, 8, 10, 11]
    assert found(events, "spleen") == [7, 8, 9, 10]


def test_a_changed_reference_runs_the_stretches_on_both_sides_of_it_again() -> None:
    assert found(run([on(2), on(5), on(9)], changed=(5,))) == [3, 4, 6, 7, 8]


def test_a_removed_reference_runs_the_stretch_it_lay_in_again() -> None:
    references = [on(2), on(5), on(9)]
    assert found(run(references, changed=(7,))) == [6, 7, 8]
    assert found(run(references, changed=(11,))) == [10, 11]
    assert found(run(references, changed=(0,))) == [0, 1]


# What is on them


def test_reference_slices_come_first_exactly_as_drawn() -> None:
    drawn = {4: np.random.default_rng(0).random(SHAPE_KJI[1:]) > 0.5, 9: a_disc()}
    first, second = masks(run([on(9, mask=drawn[9]), on(4, mask=drawn[4])], CopyingTracker(quality=0.1)))[:2]
    assert [(one.index, one.confidence, one.is_reference) for one in (first, second)] == [
        (4, 1.0, True),
        (9, 1.0, True),
    ]
    for one in (first, second):
        np.testing.assert_array_equal(one.mask, drawn[one.index])


def test_a_box_becomes_a_reference_with_the_models_mask_and_confidence() -> None:
    box = np.array([3, 2, 8, 6], np.float32)
    reference, *others = masks(run([Reference("liver", SlicePrompt(0, 5, box_xyxy_px=box))]))
    assert (reference.is_reference, reference.confidence) == (True, pytest.approx(0.8 * 2 * 0.5 / 1.5))
    assert reference.mask.sum() == 6 * 5
    assert all((one.mask == reference.mask).all() for one in others)


@pytest.mark.parametrize(("quality", "dice"), [(None, 1.0), (0.5, 2 / 3), (1.0, 1.0)])
def test_confidence_outside_the_references_is_the_score_times_the_dice_of_the_expected_iou(
    quality: float | None, dice: float
) -> None:
    tracker = CopyingTracker(score=lambda job, index: 1 - index / 100, quality=quality)
    for one in masks(run([on(0)], tracker))[1:]:
        assert one.confidence == pytest.approx((1 - one.index / 100) * dice)


class JudgingTracker(CopyingTracker):
    """Expects this IoU of what it copies upwards, and this of what it copies downwards."""

    iou = (0.9, 0.3)

    def open(self, volume: Volume, axis: int, window: Window) -> CopyingSession:
        return JudgingSession(self, volume, axis)


class JudgingSession(CopyingSession):
    def answer(self, job: TrackJob, index: int) -> tuple[TrackJob, TrackedSlice]:
        job, answer = super().answer(job, index)
        return job, replace(answer, quality=JudgingTracker.iou[0 if job.step > 0 else 1])


def test_a_direction_that_expects_to_fit_better_has_the_greater_say_and_the_confidence_is_what_both_expect() -> (
    None
):
    low, high = 2, 9
    left, right = a_disc(shift=-5, radius=2), a_disc(shift=5, radius=2)
    dice = np.array([2 * iou / (1 + iou) for iou in JudgingTracker.iou])
    references = [on(low, mask=left), on(high, mask=right)]
    for one in masks(run(references, JudgingTracker(), first=low, last=high)):
        if not one.is_reference:
            say = np.sqrt([high - one.index, one.index - low]) * dice**2
            assert (one.mask == (left if say[0] > say[1] else right)).all()
            assert one.confidence == pytest.approx(say @ dice / say.sum())


@pytest.mark.parametrize("one_job_at_a_time", [False, True])
def test_two_directions_are_blended_by_the_root_of_their_nearness_pixel_by_pixel(
    one_job_at_a_time: bool,
) -> None:
    low, high = 2, 9

    def sixteenths(job: TrackJob, index: int) -> np.ndarray:
        return np.random.default_rng((job.start, index)).integers(0, 17, SHAPE_KJI[1:])

    tracker = CopyingTracker(
        probability=lambda job, index, reference: (sixteenths(job, index) / 16).astype(np.float32),
        one_job_at_a_time=one_job_at_a_time,
    )
    events = run([on(low), on(high)], tracker, first=low, last=high)
    for one in (one for one in masks(events) if not one.is_reference):
        up, down = sixteenths(TrackJob(0, low, 0), one.index), sixteenths(TrackJob(0, high, 0), one.index)
        near = np.sqrt([high - one.index, one.index - low])
        for pixel in np.ndindex(SHAPE_KJI[1:]):
            blended = (up[pixel] * near[0] + down[pixel] * near[1]) / 16 / near.sum()
            assert abs(blended - 0.5) < 1e-3 or one.mask[pixel] == (blended > 0.5)
        agreement = 2 * ((up > 8) & (down > 8)).sum() / ((up > 8).sum() + (down > 8).sum())
        assert one.confidence == pytest.approx(0.5 + 0.5 * agreement)


def test_masks_without_probabilities_go_over_from_one_reference_to_the_other_in_the_middle() -> None:
    left, right = a_disc(shift=-5, radius=2), a_disc(shift=5, radius=2)
    between = {one.index: one for one in masks(run([on(2, mask=left), on(9, mask=right)], first=2, last=9))}
    assert all((between[index].mask == (left if index <= 5 else right)).all() for index in range(2, 10))
    assert all(between[index].confidence == 0.5 for index in range(3, 9))


def test_a_direction_that_doubts_the_object_does_not_outvote_one_that_sees_it() -> None:
    tracker = CopyingTracker(score=lambda job, index: 0.1 if job.step > 0 else 0.9)
    left, right = a_disc(shift=-5, radius=2), a_disc(shift=5, radius=2)
    between = {one.index: one.mask for one in masks(run([on(2, mask=left), on(9, mask=right)], tracker))}
    assert not any((between[index] & left).any() for index in range(3, 9))
    assert (between[6] == right).all()


@pytest.mark.parametrize("direction", ["both", "higher", "lower"])
def test_between_references_a_slice_without_the_object_comes_back_empty_and_tracking_goes_on(
    direction: str,
) -> None:
    tracker = CopyingTracker(score=lambda job, index: 0.1 if 3 <= index <= 8 else 0.9)
    events = run([on(1), on(10)], tracker, first=1, last=10, direction=direction)
    between = {one.index: one for one in masks(events)}
    assert found(events) == list(range(2, 10))
    assert sorted(index for index in between if between[index].mask.any()) == [1, 2, 9, 10]
    assert all(between[index].confidence >= 0.9 for index in range(3, 9))


# The stop rule


def test_an_outer_stretch_ends_where_the_object_does_and_is_computed_no_farther() -> None:
    tracker = CopyingTracker(score=lambda job, index: 0.9 if 3 <= index <= 7 else 0.2)
    assert found(run([on(5)], tracker)) == [3, 4, 6, 7]
    assert sorted(index for _, index in tracker.tracked) == [1, 2, 3, 4, 6, 7, 8, 9]


def test_a_gap_shorter_than_the_patience_is_left_out_and_bridged() -> None:
    tracker = CopyingTracker(score=lambda job, index: 0.2 if index in (3, 6, 7) else 0.9)
    assert found(run([on(0)], tracker)) == [1, 2, 4, 5]
    assert found(run([on(0)], tracker, patience=3)) == [1, 2, 4, 5, 8, 9, 10, 11]


def test_the_object_may_end_before_the_range_begins() -> None:
    tracker = CopyingTracker(score=lambda job, index: 0.9 if index <= 3 else 0.2)
    assert found(run([on(1)], tracker, first=8)) == []
    assert len(tracker.tracked) == 4


def test_without_the_stop_rule_every_slice_is_filled() -> None:
    tracker = CopyingTracker(score=lambda job, index: 0.0)
    assert found(run([on(5)], tracker, stop=False)) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]


def test_a_disc_that_shrinks_away_is_followed_until_it_has_gone() -> None:
    tracker = CopyingTracker(mask=lambda job, index, reference: a_disc(radius=8 - 2 * abs(index - job.start)))
    assert found(run([on(5, mask=a_disc(radius=8))], tracker)) == [2, 3, 4, 6, 7, 8]


# Progress, cancelling, memory


def test_progress_never_goes_back_or_beyond_its_total_and_ends_at_it() -> None:
    rng = np.random.default_rng(1)
    for _ in range(25):
        there = rng.random((3, 2, SHAPE_KJI[0])) < 0.7
        tracker = CopyingTracker(
            score=lambda job, index, there=there: float(there[job.object_id, (job.step + 1) // 2, index]),
            one_job_at_a_time=bool(rng.integers(2)),
        )
        indices = [rng.choice(SHAPE_KJI[0], 2, replace=False).tolist() for _ in range(3)]
        references = [on(index, f"segment {s}") for s, pair in enumerate(indices) for index in pair]
        steps = [event for event in run(references, tracker) if isinstance(event, Progress)]
        assert steps[0].done == 0
        assert all(0 <= step.done <= step.total for step in steps)
        assert all(a.done <= b.done and a.total >= b.total for a, b in itertools.pairwise(steps))
        assert steps[-1].done == steps[-1].total == len(tracker.tracked)


def test_progress_comes_after_the_slices_it_counts() -> None:
    kinds = [type(event).__name__ for event in run([on(9)], direction="higher")]
    assert kinds == ["SliceMask", "Progress", "SliceMask", "Progress", "SliceMask", "Progress"]


def test_cancelling_stops_between_slices_and_what_was_yielded_stands() -> None:
    tracker, arrived = CopyingTracker(), []
    with pytest.raises(Cancelled, match="slices that had arrived are kept"):
        arrived.extend(propagate(a_volume(), [on(0)], tracker, cancelled=lambda: len(tracker.tracked) == 2))
    assert [one.index for one in masks(arrived)] == [0, 1, 2]
    assert len(tracker.tracked) == 2


def test_cancelling_is_heard_between_reference_slices() -> None:
    tracker = CopyingTracker()
    events = propagate(a_volume(), [on(1), on(5), on(8)], tracker, cancelled=lambda: True)
    assert next(events).is_reference
    with pytest.raises(Cancelled):
        next(events)
    assert len(tracker.prompts) == 1
    assert tracker.tracked == []


def test_nothing_of_a_slice_is_kept_once_it_was_handed_over() -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def a_noted_probability(job: TrackJob, index: int, reference: np.ndarray) -> np.ndarray:
        probability = reference.astype(np.float32)
        alive.append(weakref.ref(probability))
        return probability

    events = propagate(a_volume(), [on(2), on(6)], CopyingTracker(probability=a_noted_probability))
    for _ in events:
        assert sum(reference() is not None for reference in alive) <= 8  # one answer of each of the four jobs


def test_answers_that_wait_for_the_other_direction_take_a_fraction_of_their_slices() -> None:
    shape = (40, 128, 128)
    small = a_disc(shape[1:], radius=6)
    tracker = CopyingTracker(probability=lambda job, index, reference: reference * np.float32(0.9))
    events = propagate(a_volume(shape), [on(0, mask=small), on(39, mask=small)], tracker)
    tracemalloc.start()
    peak = 0
    for _ in events:
        peak = max(peak, tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert peak < 0.2 * 38 * 4 * shape[1] * shape[2]


# Symmetries


def sees_the_image(volume: Volume, axis: int) -> CopyingTracker:
    """A tracker whose masks and scores depend on the voxels, the object and the way."""
    stack = as_stack(volume.voxels_kji, axis)
    return CopyingTracker(
        probability=lambda job, index, reference: (
            np.roll(reference, index - job.start, axis=1) * (0.55 + stack[index] / 5000)
        ).astype(np.float32),
        score=lambda job, index: 0.2 + 0.8 * float(stack[index].mean() > -60),
    )


def test_the_order_of_references_and_segments_changes_nothing() -> None:
    volume = a_volume()
    references = [on(2, "a"), on(9, "a"), on(6, "b", a_disc(shift=3)), on(0, "c"), on(11, "c"), on(4, "c")]
    expected = as_table(run(references, sees_the_image(volume, 0), volume))
    rng = np.random.default_rng(0)
    for _ in range(10):
        shuffled = [references[n] for n in rng.permutation(len(references))]
        assert as_table(run(shuffled, sees_the_image(volume, 0), volume)) == expected


def test_several_segments_come_out_as_each_does_alone() -> None:
    volume = a_volume()
    groups = [[on(2, "a"), on(9, "a")], [on(6, "b", a_disc(shift=3))], [on(0, "c"), on(4, "c")]]
    together = as_table(run([one for group in groups for one in group], sees_the_image(volume, 0), volume))
    alone = [as_table(run(group, sees_the_image(volume, 0), volume)) for group in groups]
    assert together == {place: answer for table in alone for place, answer in table.items()}


@pytest.mark.parametrize("crop", ["off", "auto"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_axis_gives_what_the_turned_volume_gives_along_its_first(axis: int, crop: str) -> None:
    volume = an_oblique_volume()
    order = [axis, *(other for other in (0, 1, 2) if other != axis)]
    ijk_to_ras = volume.ijk_to_ras[:, [*(2 - kept for kept in reversed(order)), 3]]
    turned = Volume(volume.voxels_kji.transpose(order), ijk_to_ras)
    shape = turned.shape_kji[1:]
    drawn = {3: a_disc(shape, 3), 10: a_disc(shape, 2, shift=2)}
    tables = [
        as_table(
            run(
                [on(n, mask=m, axis=along) for n, m in drawn.items()],
                CopyingTracker(),
                one,
                axis=along,
                crop=crop,
            )
        )
        for one, along in ((volume, axis), (turned, 0))
    ]
    assert tables[0] == tables[1]
    assert len(tables[0]) == turned.shape_kji[0]


# The crop


def a_small_mask(volume: Volume, axis: int = 0, row: int = 20, col: int = 30) -> np.ndarray:
    mask = np.zeros(take_slice(volume.voxels_kji, axis, 0).shape, bool)
    mask[row : row + 4, col : col + 6] = True
    return mask


def test_a_crop_gives_back_the_masks_of_the_whole_slice() -> None:
    volume = an_oblique_volume()
    references = [on(3, mask=a_small_mask(volume)), on(9, "tumour", a_small_mask(volume, col=34))]
    whole = run(references, CopyingTracker(), volume)
    assert as_table(run(references, CopyingTracker(), volume, crop="auto")) == as_table(whole)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_crop_shows_the_tracker_the_same_voxels_at_the_same_place_in_space(axis: int) -> None:
    volume, tracker = an_oblique_volume(), CopyingTracker()
    mask = a_small_mask(volume, axis, row=6, col=8)
    run([on(5, mask=mask, axis=axis)], tracker, volume, axis=axis, crop="auto")
    part = tracker.volume
    assert part.shape_kji != volume.shape_kji
    assert part.shape_kji[axis] == volume.shape_kji[axis]
    to_whole = np.linalg.inv(volume.ijk_to_ras) @ part.ijk_to_ras
    place_kji = np.indices(part.shape_kji).reshape(3, -1)
    place_ijk1 = np.vstack([place_kji[::-1], np.ones(place_kji.shape[1])])
    i, j, k = np.rint(to_whole @ place_ijk1)[:3].astype(int)
    np.testing.assert_array_equal(part.voxels_kji[tuple(place_kji)], volume.voxels_kji[k, j, i])


def test_a_crop_is_three_times_the_references_box_and_square_in_millimetres() -> None:
    volume, tracker = an_oblique_volume(), CopyingTracker()
    run([on(5, mask=a_small_mask(volume, row=28, col=30))], tracker, volume, crop="auto")
    row_mm, col_mm = volume.slice_spacing_mm(0)
    side_mm = 3 * max(4 * row_mm, 6 * col_mm)
    assert tracker.volume.shape_kji[1] * row_mm == pytest.approx(side_mm, abs=2 * row_mm)
    assert tracker.volume.shape_kji[2] * col_mm == pytest.approx(side_mm, abs=2 * col_mm)


def test_a_crop_ends_at_the_edge_of_the_slice() -> None:
    volume = an_oblique_volume()
    corner = a_small_mask(volume, row=0, col=64)
    events = masks(run([on(5, mask=corner)], CopyingTracker(), volume, crop="auto"))
    assert len(events) == volume.shape_kji[0]
    assert all((one.mask == corner).all() for one in events)


def test_a_crop_moves_boxes_and_points_and_leaves_far_points_out() -> None:
    volume, tracker = an_oblique_volume(), CopyingTracker()
    box = np.array([30, 20, 35, 23], np.float32)
    points = np.array([[32, 21], [2, 55]], np.float32)
    prompt = SlicePrompt(0, 5, points, np.array([1, 0], np.int32), box)
    events = masks(run([Reference("tumour", prompt)], tracker, volume, crop="auto"))
    assert all((one.mask == a_small_mask(volume)).all() for one in events)
    seen = tracker.prompts[0]
    np.testing.assert_array_equal(seen.points_xy_px - seen.box_xyxy_px[:2], [[2, 1]])
    assert seen.point_labels.tolist() == [1]


@pytest.mark.parametrize("crop", ["off", "auto"])
def test_the_window_is_the_whole_volumes_unless_one_is_given(crop: str) -> None:
    volume, tracker = a_volume((12, 90, 90)), CopyingTracker()
    mask = a_disc((90, 90), 3)
    run([on(5, mask=mask)], tracker, volume, crop=crop)
    assert tracker.window == Window.auto(volume)
    run([on(5, mask=mask)], tracker, volume, crop=crop, window=WINDOWS["bone"])
    assert tracker.window == WINDOWS["bone"]


# Bad input


def points_at(x: float, y: float) -> SlicePrompt:
    return SlicePrompt(0, 5, np.array([[x, y]], np.float32), np.array([1], np.int32))


@pytest.mark.parametrize(
    ("references", "options", "sentence"),
    [
        ([], {}, "nothing to propagate; annotate at least one slice"),
        ([on(5)], {"first": 8, "last": 3}, r"slice range 8 to 3 .*in this order, from 0 to 11"),
        ([on(5)], {"last": 12}, r"slice range 0 to 12 .*from 0 to 11"),
        ([on(5)], {"first": -1}, r"slice range -1 to 11"),
        ([on(5)], {"changed": (5, 40)}, "changed slice 40 does not exist.*from 0 to 11"),
        ([on(12)], {}, "reference slice 12 of liver does not exist; choose a slice from 0 to 11"),
        ([on(5)], {"axis": 1}, "reference slice 5 of liver was drawn across axis 0.*along axis 1"),
        ([on(5), on(5)], {}, "reference slice 5 of liver was given twice"),
        ([on(5, mask=np.ones((4, 6), bool))], {}, "is 4 x 6 pixels.*slices are 20 x 24"),
        ([on(5, mask=np.zeros(SHAPE_KJI[1:], bool))], {}, "reference slice 5 of liver is empty; paint"),
        (
            [Reference("liver", points_at(24, 3))],
            {},
            "point at column 24, row 3, outside its 20 rows and 24 columns",
        ),
        ([Reference("liver", points_at(3, np.nan))], {}, "point at column 3, row nan"),
        (
            [Reference("liver", SlicePrompt(0, 5, box_xyxy_px=np.array([30, 2, 40, 9], np.float32)))],
            {},
            "box from column 30, row 2 to column 40, row 9, outside its 20 rows and 24 columns",
        ),
        ([Reference("liver", points_at(3, 3))], {"crop": "auto"}, "points only.*draw a mask or a box"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_before_any_work(
    references: list[Reference], options: dict[str, Any], sentence: str
) -> None:
    tracker = CopyingTracker()
    with pytest.raises(InputError, match=sentence):
        propagate(a_volume(), references, tracker, PropagateOptions(**options))
    assert tracker.volume is None


def test_a_box_may_reach_beyond_the_slice() -> None:
    box = np.array([20, 15, 30, 30], np.float32)
    assert found(run([Reference("liver", SlicePrompt(0, 5, box_xyxy_px=box))], last=6)) == [0, 1, 2, 3, 4, 6]


def test_the_same_slice_may_be_a_reference_of_two_segments() -> None:
    events = run([on(5, "liver"), on(5, "spleen")])
    assert found(events, "liver") == found(events, "spleen")


def test_a_prompt_on_which_the_model_finds_nothing_is_refused_with_its_slice_and_segment() -> None:
    with pytest.raises(InputError, match="Nothing of liver was found at the prompt on slice 5; add a point"):
        run([Reference("liver", points_at(3, 3))])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"direction": "up"}, "no direction 'up'; choose both, higher or lower"),
        ({"crop": "on"}, "no crop 'on'; choose auto or off"),
        ({"patience": 0}, "patience must be at least 1 slice, not 0"),
    ],
)
def test_options_that_do_not_exist_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        PropagateOptions(**options)


def test_a_volume_of_one_slice_is_refused() -> None:
    volume = a_volume((1, 20, 24))
    with pytest.raises(InputError, match="only one axial slice"):
        propagate(volume, [on(0)], CopyingTracker())

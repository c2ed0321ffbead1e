from __future__ import annotations

import numpy as np
import pytest
from medssl.errors import InputError
from medssl.foundation.intensity import (
    IntensityOptions,
    IntensitySession,
    IntensityTracker,
    _between,
    _block_mean,
    _patch_vote,
    _signed_distance,
    _smoothed,
    _without_holes,
)
from medssl.foundation.protocols import TrackedSlice, TrackJob
from medssl.prompts import SlicePrompt
from medssl.volume import WINDOWS, Volume, as_stack
from scipy import ndimage

SOFT_TISSUE = WINDOWS["soft-tissue"]
SHAPE_KJI = (24, 64, 72)
SPACING_KJI_MM = (3.0, 2.0, 1.5)
MIDDLE = 12


def an_affine(spacing_kji_mm: tuple[float, float, float] = SPACING_KJI_MM) -> np.ndarray:
    k, j, i = spacing_kji_mm
    return np.diag([i, j, k, 1.0])


def a_ball(radius_mm: float = 20.0, spacing: tuple[float, float, float] = SPACING_KJI_MM) -> np.ndarray:
    grid = np.indices(SHAPE_KJI).reshape(3, -1).T - (np.array(SHAPE_KJI) - 1) / 2
    return (np.linalg.norm(grid * spacing, axis=1) <= radius_mm).reshape(SHAPE_KJI)


def a_scan(organ: np.ndarray, organ_hu: float = 120.0, noise_hu: float = 10.0) -> Volume:
    noise = np.random.default_rng(0).normal(0, noise_hu, organ.shape)
    return Volume((np.where(organ, organ_hu, 40.0) + noise).astype(np.int16), an_affine())


def a_session(volume: Volume, axis: int = 0, **options: float) -> IntensitySession:
    return IntensityTracker(IntensityOptions(**options)).open(volume, axis, SOFT_TISSUE)


def track(session: IntensitySession, *jobs: TrackJob) -> dict[int, TrackedSlice]:
    return {tracked.index: tracked for items in session.run(jobs) for _, tracked in items}


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_ball_comes_back_from_its_middle_slice_along_any_axis(axis: int) -> None:
    ball = a_ball()
    stack = as_stack(ball, axis)
    middle = len(stack) // 2
    session = a_session(a_scan(ball), axis)
    session.add_reference(1, SlicePrompt(axis, middle, mask=stack[middle]))

    tracked = track(session, TrackJob(1, middle, len(stack) - 1), TrackJob(1, middle, 0))

    answer = np.zeros_like(stack)
    for index, result in tracked.items():
        answer[index] = result.mask & (result.score >= 0.5)
    others = np.arange(len(stack)) != middle
    assert sorted(tracked) == np.flatnonzero(others).tolist()
    assert dice(answer[others], stack[others]) > 0.93


def test_the_score_falls_below_one_half_where_the_object_ends() -> None:
    organ = np.zeros(SHAPE_KJI, bool)
    organ[4:18, 20:40, 20:44] = True
    session = a_session(a_scan(organ))
    session.add_reference(1, SlicePrompt(0, 10, mask=organ[10]))

    tracked = track(session, TrackJob(1, 10, 23), TrackJob(1, 10, 0))

    assert all(tracked[index].score > 0.5 for index in (5, 8, 12, 16))
    assert all(tracked[index].score < 0.5 for index in (0, 1, 2, 3, 18, 19, 20, 23))


def test_probability_and_mask_agree_and_lie_on_the_slices_own_grid() -> None:
    ball = a_ball()
    session = a_session(a_scan(ball))
    session.add_reference(7, SlicePrompt(0, MIDDLE, mask=ball[MIDDLE]))

    for result in track(session, TrackJob(7, MIDDLE, 23)).values():
        assert result.object_id == 7
        assert result.mask.shape == result.probability.shape == SHAPE_KJI[1:]
        assert result.probability.dtype == np.float32
        assert 0 <= result.probability.min() <= result.probability.max() <= 1
        np.testing.assert_array_equal(result.mask, result.probability > 0.5)


def test_a_large_object_is_tracked_on_a_coarser_grid_with_nearly_the_same_result() -> None:
    ball = a_ball()
    answers = []
    for side in (72, 12):
        session = a_session(a_scan(ball), max_side_px=side)
        session.add_reference(1, SlicePrompt(0, MIDDLE, mask=ball[MIDDLE]))
        tracked = track(session, TrackJob(1, MIDDLE, 16))
        answers.append(np.stack([tracked[index].mask for index in range(MIDDLE + 1, 17)]))
    assert dice(*answers) > 0.9


def test_a_neighbour_of_the_same_intensity_that_does_not_touch_is_left_alone() -> None:
    organ = np.zeros(SHAPE_KJI, bool)
    organ[:, 20:34, 20:40] = True
    neighbour = np.zeros(SHAPE_KJI, bool)
    neighbour[:, 38:50, 20:40] = True
    session = a_session(a_scan(organ | neighbour))
    session.add_reference(1, SlicePrompt(0, MIDDLE, mask=organ[MIDDLE]))

    for result in track(session, TrackJob(1, MIDDLE, 20)).values():
        assert not (result.mask & neighbour[0]).any()
        assert dice(result.mask, organ[0]) > 0.95


def test_several_objects_run_side_by_side_as_they_run_alone() -> None:
    ball = a_ball()
    shifted = np.roll(ball, 3, axis=1)
    volume = a_scan(ball)
    jobs = [TrackJob(1, MIDDLE, 16), TrackJob(2, MIDDLE, 10)]
    together = a_session(volume)
    for job, organ in zip(jobs, (ball, shifted), strict=True):
        together.add_reference(job.object_id, SlicePrompt(0, MIDDLE, mask=organ[MIDDLE]))
    rounds = list(together.run(jobs))
    assert [len(items) for items in rounds] == [2, 2, 1, 1]
    assert [tracked.index for job, tracked in rounds[1]] == [14, 10]

    for job, organ in zip(jobs, (ball, shifted), strict=True):
        alone = a_session(volume)
        alone.add_reference(job.object_id, SlicePrompt(0, MIDDLE, mask=organ[MIDDLE]))
        for index, result in track(alone, job).items():
            same = next(t for items in rounds for j, t in items if j == job and t.index == index)
            np.testing.assert_array_equal(same.mask, result.mask)
            assert same.score == result.score


def test_a_dropped_job_is_not_computed_any_further() -> None:
    ball = a_ball()
    session = a_session(a_scan(ball))
    session.add_reference(1, SlicePrompt(0, MIDDLE, mask=ball[MIDDLE]))
    higher, lower = TrackJob(1, MIDDLE, 20), TrackJob(1, MIDDLE, 5)

    seen = []
    for items in session.run([higher, lower]):
        seen.append([job for job, _ in items])
        session.drop(higher)

    assert seen == [[higher, lower]] + [[lower]] * 6


def test_a_box_finds_the_organ_that_fills_it() -> None:
    ball = a_ball()
    rows, cols = np.flatnonzero(ball[MIDDLE].any(1)), np.flatnonzero(ball[MIDDLE].any(0))
    box = np.array([cols[0], rows[0], cols[-1], rows[-1]], np.float32)

    found = a_session(a_scan(ball)).add_reference(1, SlicePrompt(0, MIDDLE, box_xyxy_px=box))

    assert dice(found.mask, ball[MIDDLE]) > 0.9
    assert found.score == 1.0


def test_an_object_that_fills_the_whole_slice_is_carried_on() -> None:
    rng = np.random.default_rng(1)
    volume = Volume(rng.normal(50, 10, (5, 16, 16)).astype(np.int16), an_affine())
    session = a_session(volume)
    session.add_reference(1, SlicePrompt(0, 2, mask=np.ones((16, 16), bool)))
    assert all(result.mask.any() for result in track(session, TrackJob(1, 2, 4)).values())


def test_patch_votes_equal_a_pixel_by_pixel_sum() -> None:
    rng = np.random.default_rng(2)
    image, before = rng.normal(0, 30, (2, 7, 9)).astype(np.float32)
    mask = ndimage.gaussian_filter(rng.normal(size=(7, 9)), 1) > 0
    expected = np.zeros((7, 9))
    inside, total = np.zeros((7, 9)), np.zeros((7, 9))
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            moved, voter = np.empty((7, 9)), np.zeros((7, 9))
            for y in range(7):
                for x in range(9):
                    moved[y, x] = before[np.clip(y + dy, 0, 6), np.clip(x + dx, 0, 8)]
                    if 0 <= y + dy < 7 and 0 <= x + dx < 9:
                        voter[y, x] = mask[y + dy, x + dx]
            unlike = ndimage.gaussian_filter((image - moved) ** 2, 0.5, radius=1)
            weight = np.exp(-unlike / (2 * 40.0**2) - (dy**2 + dx**2) / 2)
            inside += weight * voter
            total += weight
    expected = np.clip(np.log((inside + 1e-3) / (total - inside + 1e-3)), -4, 4)
    np.testing.assert_allclose(_patch_vote(image, before, mask, 40.0), expected, atol=1e-3)


@pytest.mark.parametrize("spacing", [(0.7, 0.7), (2.0, 1.5), (4.0, 0.9)])
@pytest.mark.parametrize("reach_mm", [3.0, 14.0])
def test_signed_distances_equal_the_exact_transform_up_to_their_reach(
    spacing: tuple[float, float], reach_mm: float
) -> None:
    mask = ndimage.binary_dilation(np.random.default_rng(1).random((40, 52)) > 0.997, iterations=4)
    mask[:20] = False
    exact = ndimage.distance_transform_edt(~mask, sampling=spacing)
    exact[exact > reach_mm] = np.inf
    exact -= ndimage.distance_transform_edt(mask, sampling=spacing)

    np.testing.assert_allclose(_signed_distance(mask, spacing, reach_mm), exact, rtol=1e-5)


def test_holes_are_filled_as_by_flooding_from_the_border() -> None:
    random = np.random.default_rng(2)
    for share in (0.4, 0.6, 0.75):
        mask = random.random((30, 41)) < share
        np.testing.assert_array_equal(_without_holes(mask), ndimage.binary_fill_holes(mask))
    solid = np.ones((5, 6), bool)
    np.testing.assert_array_equal(_without_holes(solid), solid)


def test_smoothing_and_coarser_and_finer_grids_equal_their_slow_references() -> None:
    image = np.random.default_rng(3).normal(size=(23, 31)).astype(np.float32)

    np.testing.assert_allclose(
        _smoothed(image, 0.5), ndimage.gaussian_filter(image, 0.5, radius=1, mode="nearest"), atol=1e-5
    )
    padded = np.pad(image, [(0, 1), (0, 2)], mode="edge")
    np.testing.assert_allclose(
        _block_mean(image, 3), padded.reshape(8, 3, 11, 3).mean(axis=(1, 3)), rtol=1e-5, atol=1e-6
    )
    finer = ndimage.zoom(image, 3, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(_between(_between(image, 3).T, 3).T, finer, atol=1e-5)


def test_a_removed_reference_can_no_longer_be_started_from() -> None:
    ball = a_ball()
    session = a_session(a_scan(ball))
    session.add_reference(1, SlicePrompt(0, MIDDLE, mask=ball[MIDDLE]))
    session.remove_reference(1, MIDDLE)
    with pytest.raises(InputError, match="no reference slice of object 1"):
        next(session.run([TrackJob(1, MIDDLE, 20)]))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (SlicePrompt(0, 3, mask=np.zeros(SHAPE_KJI[1:], bool)), "is empty"),
        (SlicePrompt(0, 3, mask=np.ones((4, 4), bool)), "has shape"),
        (SlicePrompt(1, 3, mask=np.ones(SHAPE_KJI[1:], bool)), "axis"),
        (SlicePrompt(0, 99, mask=np.ones(SHAPE_KJI[1:], bool)), "does not exist"),
        (SlicePrompt(0, 3, np.array([[4, 4]], np.float32), np.array([1])), "mask or a box"),
        (SlicePrompt(0, 3, box_xyxy_px=np.array([200, 200, 220, 220], np.float32)), "holds no pixel"),
    ],
)
def test_a_prompt_it_cannot_use_is_refused_in_one_sentence(prompt: SlicePrompt, message: str) -> None:
    with pytest.raises(InputError, match=message):
        a_session(a_scan(a_ball())).add_reference(1, prompt)

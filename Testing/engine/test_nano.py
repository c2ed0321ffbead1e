from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from medssl.errors import InputError, ModelError
from medssl.foundation.nano import NanoTracker
from medssl.foundation.nano_crop import Crop
from medssl.foundation.nano_image import NanoImagePredictor, dice_level
from medssl.foundation.nano_model import Decoded, Encoded, NanoConfig, NanoModel, load_nano, load_prompted
from medssl.foundation.protocols import Prediction, TrackedSlice, TrackingSession, TrackJob
from medssl.phantom import Phantom, phantom_ct
from medssl.prompts import SlicePrompt, box_of_mask
from medssl.registry import DEFAULT_MODEL, find_entry, model_path
from medssl.volume import WINDOWS, Volume
from scipy import ndimage
from torch import Tensor

SOFT_TISSUE = WINDOWS["soft-tissue"]
TINY = NanoConfig(image_size=64, embed_dim=8, model_dim=64, memory_dim=32, memories=3, edge_width=4)
CPU = torch.device("cpu")


class Planted(NanoModel):
    """A network whose mask is what the test says."""

    def decode(self, *given: Any, **named: Any) -> Decoded:
        answer = super().decode(*given, **named)
        encoded: Encoded = given[1]
        there = torch.full_like(answer.presence_logit, 6.0)
        return replace(answer, logits=self.seen(encoded), presence_logit=there)

    def seen(self, encoded: Encoded) -> Tensor:
        """(B, 1, S, S) logits."""
        raise AssertionError("the test says nothing")


class SeesBrightness(Planted):
    """A network that finds what is brighter than 90 HU, and says that it is there."""

    def seen(self, encoded: Encoded) -> Tensor:
        return 40.0 * (encoded.channels[:, 1:2] - 0.2)


@pytest.fixture(scope="module")
def random_model() -> NanoModel:
    torch.manual_seed(0)
    return NanoModel(TINY).eval()


@pytest.fixture(scope="module")
def bright_model() -> NanoModel:
    torch.manual_seed(0)
    return SeesBrightness(TINY).eval()


def a_stack(centres_rc: list[tuple[float, float]], radii: list[float] | None = None) -> np.ndarray:
    """(K, 60, 120) bool: one disk a slice."""
    row, col = np.mgrid[:60, :120]
    radii = radii or [9.0] * len(centres_rc)
    disks = [(row - r) ** 2 + (col - c) ** 2 <= s**2 for (r, c), s in zip(centres_rc, radii, strict=True)]
    return np.stack(disks)


def a_scan(objects: np.ndarray, spacing_kji_mm: tuple[float, float, float] = (3.0, 1.0, 1.0)) -> Volume:
    k, j, i = spacing_kji_mm
    noise = np.random.default_rng(0).normal(0, 8, objects.shape)
    return Volume((np.where(objects, 150.0, 10.0) + noise).astype(np.int16), np.diag([i, j, k, 1.0]))


def two_objects() -> tuple[np.ndarray, np.ndarray]:
    return a_stack([(25.0, 30.0 + k) for k in range(9)]), a_stack(
        [(35.0, 90.0 - k) for k in range(9)], [7.0] * 9
    )


def a_session(model: NanoModel, volume: Volume) -> TrackingSession:
    return NanoTracker(model).open(volume, 0, SOFT_TISSUE)


def run(session: TrackingSession, *jobs: TrackJob) -> dict[tuple[int, int], TrackedSlice]:
    return {(job.object_id, tracked.index): tracked for item in session.run(jobs) for job, tracked in item}


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / max(one.sum() + other.sum(), 1))


# --------------------------------------------------------------------------------------------------------- tracking


def test_jobs_side_by_side_answer_as_they_do_alone(random_model: NanoModel) -> None:
    first, second = two_objects()
    volume = a_scan(first | second)
    jobs = (TrackJob(1, 4, 8), TrackJob(1, 4, 1), TrackJob(2, 5, 0))

    def session() -> TrackingSession:
        opened = a_session(random_model, volume)
        opened.add_reference(1, SlicePrompt(0, 4, mask=first[4]))
        opened.add_reference(2, SlicePrompt(0, 5, mask=second[5]))
        return opened

    together = run(session(), *jobs)

    alone = {key: tracked for job in jobs for key, tracked in run(session(), job).items()}
    assert together.keys() == alone.keys()
    assert len(alone) == 4 + 3 + 5
    for key, tracked in alone.items():
        np.testing.assert_allclose(together[key].probability, tracked.probability, atol=2e-3)
        assert together[key].score == pytest.approx(tracked.score, abs=2e-3)


class SeesBrightnessAndRemembers(SeesBrightness):
    """A network whose answer depends, a little, on what it remembers."""

    def decode(self, *given: Any, **named: Any) -> Decoded:
        answer = super().decode(*given, **named)
        remembered = given[0].mean((1, 2, 3)).view(-1, 1, 1, 1)
        return replace(answer, logits=answer.logits + 3.0 * torch.tanh(20.0 * remembered))


def test_a_job_that_was_given_another_crop_goes_on_beside_the_others_and_answers_as_it_does_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = SeesBrightnessAndRemembers(TINY).eval()
    drifting = a_stack([(12.0, 14.0 + 1.5 * k) for k in range(24)])
    steady = a_stack([(45.0, 60.0)] * 24)
    jobs = (TrackJob(1, 0, 23), TrackJob(2, 0, 23))

    def session() -> TrackingSession:
        opened = a_session(model, a_scan(drifting | steady))
        opened.add_reference(1, SlicePrompt(0, 0, mask=drifting[0]))
        opened.add_reference(2, SlicePrompt(0, 0, mask=steady[0]))
        return opened

    alone = {key: tracked for job in jobs for key, tracked in run(session(), job).items()}
    rows: list[int] = []
    recall = model.recall
    monkeypatch.setattr(
        model, "recall", lambda encoded, *a: (rows.append(encoded.tokens.shape[1]), recall(encoded, *a))[1]
    )
    together = run(session(), *jobs)

    assert together.keys() == alone.keys()
    for key, tracked in alone.items():
        np.testing.assert_allclose(together[key].probability, tracked.probability, atol=2e-3)
    apart = rows.index(1)
    assert 2 in rows[:apart]
    assert 2 in rows[apart:]


def test_both_directions_of_an_object_learn_its_reference_slice_together(
    random_model: NanoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_objects()
    session = a_session(random_model, a_scan(first | second))
    session.add_reference(1, SlicePrompt(0, 4, mask=first[4]))
    session.add_reference(2, SlicePrompt(0, 4, mask=second[4]))
    rows: list[int] = []
    encode = random_model.encode
    monkeypatch.setattr(random_model, "encode", lambda x: (rows.append(len(x)), encode(x))[1])
    run(session, TrackJob(1, 4, 5), TrackJob(1, 4, 3), TrackJob(2, 4, 5), TrackJob(2, 4, 3))
    assert rows == [2, 4]


def test_the_last_slice_of_a_run_is_not_remembered(
    random_model: NanoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = two_objects()
    session = a_session(random_model, a_scan(first))
    session.add_reference(1, SlicePrompt(0, 4, mask=first[4]))
    calls: list[int] = []
    remember = random_model.remember
    monkeypatch.setattr(random_model, "remember", lambda *a: (calls.append(1), remember(*a))[1])
    run(session, TrackJob(1, 4, 7))
    assert len(calls) == 3  # the reference slice and two of three tracked ones


def test_the_small_network_computes_on_one_thread_and_gives_the_others_back(
    random_model: NanoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    encode = random_model.encode
    monkeypatch.setattr(
        random_model, "encode", lambda x: (seen.append(torch.get_num_threads()), encode(x))[1]
    )
    first, _ = two_objects()
    session = a_session(random_model, a_scan(first))
    session.add_reference(1, SlicePrompt(0, 4, mask=first[4]))
    try:
        torch.set_num_threads(2)
        for _ in session.run([TrackJob(1, 4, 7)]):
            assert torch.get_num_threads() == 2  # what comes in between, such as a click, has them all
        assert set(seen) == {1}
    finally:
        torch.set_num_threads(before)


def test_every_slice_comes_once_in_order_and_on_the_slices_own_grid(random_model: NanoModel) -> None:
    first, _ = two_objects()
    session = a_session(random_model, a_scan(first))
    session.add_reference(1, SlicePrompt(0, 4, mask=first[4]))

    items = list(session.run([TrackJob(1, 4, 8), TrackJob(1, 4, 2), TrackJob(1, 4, 4)]))

    assert [[tracked.index for _, tracked in item] for item in items] == [[5, 3], [6, 2], [7], [8]]
    for item in items:
        for _, tracked in item:
            assert tracked.mask.shape == tracked.probability.shape == (60, 120)
            assert np.array_equal(tracked.mask, tracked.probability > 0.5)
            assert 0.0 <= tracked.score <= 1.0


def test_a_dropped_job_stops_and_the_others_go_on(random_model: NanoModel) -> None:
    first, second = two_objects()
    session = a_session(random_model, a_scan(first | second))
    session.add_reference(1, SlicePrompt(0, 0, mask=first[0]))
    session.add_reference(2, SlicePrompt(0, 0, mask=second[0]))
    jobs = [TrackJob(1, 0, 6), TrackJob(2, 0, 6)]

    seen: dict[int, list[int]] = {1: [], 2: []}
    for item in session.run(jobs):
        for job, tracked in item:
            seen[job.object_id].append(tracked.index)
            if tracked.index == 3 and job.object_id == 1:
                session.drop(job)

    assert seen == {1: [1, 2, 3], 2: [1, 2, 3, 4, 5, 6]}


def test_memories_of_a_job_are_bounded(random_model: NanoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = a_stack([(30.0, 60.0)] * 14)
    session = a_session(random_model, a_scan(first))
    session.add_reference(1, SlicePrompt(0, 0, mask=first[0]))
    recall: Callable[..., Tensor] = random_model.recall
    remembered: list[int] = []

    def spy(encoded: Encoded, step: int, reference: dict[str, Any], recent: dict[int, Any]) -> Tensor:
        remembered.append(len(recent))
        return recall(encoded, step, reference, recent)

    monkeypatch.setattr(random_model, "recall", spy)
    run(session, TrackJob(1, 0, 13))

    assert len(remembered) == 13
    assert max(remembered) <= TINY.memories


def test_each_reference_slice_serves_its_own_jobs(bright_model: NanoModel) -> None:
    first, second = two_objects()
    session = a_session(bright_model, a_scan(first | second))
    session.add_reference(1, SlicePrompt(0, 1, mask=first[1]))
    session.add_reference(1, SlicePrompt(0, 7, mask=first[7]))
    session.add_reference(2, SlicePrompt(0, 4, mask=second[4]))

    answers = run(session, TrackJob(1, 1, 4), TrackJob(1, 7, 5), TrackJob(2, 4, 6))

    assert sorted(answers) == [(1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (2, 5), (2, 6)]
    for (object_id, index), tracked in answers.items():
        truth = (first, second)[object_id - 1][index]
        assert dice(tracked.mask, truth) > 0.85, (object_id, index)


def test_the_crop_follows_an_object_that_drifts(bright_model: NanoModel) -> None:
    drifting = a_stack([(30.0, 14.0 + 4 * k) for k in range(24)])  # five crops' widths in all
    session = a_session(bright_model, a_scan(drifting))
    session.add_reference(1, SlicePrompt(0, 0, mask=drifting[0]))

    answers = run(session, TrackJob(1, 0, 23))

    assert min(dice(answers[1, k].mask, drifting[k]) for k in range(1, 24)) > 0.8


def test_the_crop_closes_in_on_an_object_that_shrinks(bright_model: NanoModel) -> None:
    shrinking = a_stack([(30.0, 60.0)] * 12, [24.0 - 1.8 * k for k in range(12)])
    session = a_session(bright_model, a_scan(shrinking))
    session.add_reference(1, SlicePrompt(0, 0, mask=shrinking[0]))

    answers = run(session, TrackJob(1, 0, 11))

    assert dice(answers[1, 11].mask, shrinking[11]) > 0.75


def test_a_job_needs_a_reference_slice_with_something_on_it(random_model: NanoModel) -> None:
    first, _ = two_objects()
    session = a_session(random_model, a_scan(first))

    with pytest.raises(InputError, match="Slice 3 is no reference slice of object 1"):
        run(session, TrackJob(1, 3, 5))
    session.add_reference(1, SlicePrompt(0, 3, mask=np.zeros_like(first[3])))
    with pytest.raises(InputError, match="mask on slice 3 is empty"):
        run(session, TrackJob(1, 3, 5))


def test_a_forgotten_reference_is_none(random_model: NanoModel) -> None:
    first, _ = two_objects()
    session = a_session(random_model, a_scan(first))
    session.add_reference(1, SlicePrompt(0, 3, mask=first[3]))
    session.remove_reference(1, 3)

    with pytest.raises(InputError, match="no reference slice"):
        run(session, TrackJob(1, 3, 5))


# ------------------------------------------------------------------------------------------------- clicks and boxes


def test_clicks_and_boxes_find_what_the_network_sees(bright_model: NanoModel) -> None:
    first, second = two_objects()
    predictor = NanoImagePredictor(bright_model)
    predictor.set_image(a_scan(first | second).voxels_kji[4], SOFT_TISSUE, (1.0, 1.0))
    box = box_of_mask(second[4], (1.0, 1.0))
    assert box is not None

    boxed = predictor.predict(SlicePrompt(0, 4, box_xyxy_px=box))
    together = predictor.predict_boxes(np.stack([box, box]))

    assert dice(boxed.mask, second[4]) > 0.9
    assert boxed.logits.shape == (64, 64)
    assert 0.0 <= boxed.score <= 1.0
    for answer in together:
        assert np.array_equal(answer.mask, boxed.mask)
    assert predictor.predict_boxes(np.zeros((0, 4), np.float32)) == []


class IsSure(Planted):
    """A network that finds a square in each crop, and is as sure of it, and expects as much, as the test says."""

    chances: tuple[float, ...] = ()
    expects: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Of the rows of a batch, both."""

    def decode(self, *given: Any, **named: Any) -> Decoded:
        answer = super().decode(*given, **named)
        quality = torch.tensor(self.expects[: len(answer.quality)]).view(-1, 1)
        return replace(answer, quality=quality)

    def seen(self, encoded: Encoded) -> Tensor:
        logits = torch.full_like(encoded.channels[:, :1], -20.0)
        chances = self.chances if len(logits) == len(self.chances) else self.chances[:1] * len(logits)
        logits[..., 16:48, 16:48] = torch.tensor(chances).logit().view(-1, 1, 1, 1)
        return logits


@pytest.mark.parametrize("box", [None, np.array([15, 15, 60, 40], np.float32)])
def test_a_correcting_point_is_heeded_whatever_the_network_says(
    bright_model: NanoModel, box: np.ndarray | None
) -> None:
    two = a_stack([(28.0, 25.0)])[0] | a_stack([(28.0, 50.0)])[0]
    predictor = NanoImagePredictor(bright_model)
    predictor.set_image(np.where(two, 150, 10).astype(np.int16), SOFT_TISSUE, (1.0, 1.0))

    def answer(*points: tuple[float, float, int]) -> np.ndarray:
        xy = np.array([point[:2] for point in points], np.float32).reshape(-1, 2)
        labels = np.array([point[2] for point in points], np.int32)
        return predictor.predict(
            SlicePrompt(0, 0, points_xy_px=xy, point_labels=labels, box_xyxy_px=box)
        ).mask

    before = answer((25, 28, 1))
    assert before[28, 25]
    assert before[28, 50]
    assert not before[28, 38]
    after = answer((25, 28, 1), (50, 28, 0), (38, 28, 1))
    assert after[28, 25]
    assert not after[28, 50]
    assert after[28, 38]


class RemembersWhatItIsAsked(NanoImagePredictor):
    """Counts the looks at the slice, and keeps the hints that went with them."""

    def __init__(self, model: NanoModel) -> None:
        super().__init__(model)
        self.looks = 0
        self.hints: list[np.ndarray | None] = []
        self.crops: list[Crop] = []

    def _look(self, crops: Any, prompts: Any, hints: Any = None) -> Any:
        self.looks += 1
        self.crops.append(crops[0])
        self.hints.append(None if hints is None else hints[0])
        return super()._look(crops, prompts, hints)


def test_points_correct_what_was_found_before_them_which_is_not_worked_out_again(
    bright_model: NanoModel,
) -> None:
    disc = a_stack([(28.0, 50.0)])[0]
    predictor = RemembersWhatItIsAsked(bright_model)
    scan = np.where(disc, 150, 10).astype(np.int16)
    predictor.set_image(scan, SOFT_TISSUE, (1.0, 1.0))
    xy = np.array([[5.0, 5.0], [50.0, 28.0], [20.0, 28.0]], np.float32)
    first = SlicePrompt(0, 0, xy[1:2], np.array([1], np.int32))
    corrected = SlicePrompt(0, 0, xy, np.array([0, 1, 1], np.int32))

    clicked = predictor.predict(first)
    looks = predictor.looks
    answer = predictor.predict(corrected)

    assert predictor.looks == looks + 1
    assert np.array_equal(predictor.hints[-1], clicked.mask)
    assert answer.mask[28, 20]
    assert not answer.mask[5, 5]
    predictor.set_image(scan, SOFT_TISSUE, (1.0, 1.0))  # another slice, for all that is known
    assert np.array_equal(predictor.predict(corrected).mask, answer.mask)
    assert predictor.looks > looks + 2


def test_a_box_counts_though_little_was_found_in_it(bright_model: NanoModel) -> None:
    disc = a_stack([(28.0, 50.0)])[0]
    predictor = RemembersWhatItIsAsked(bright_model)
    predictor.set_image(np.where(disc, 150, 10).astype(np.int16), SOFT_TISSUE, (1.0, 1.0))
    box = np.array([10, 5, 110, 55], np.float32)

    predictor.predict(SlicePrompt(0, 0, np.array([[20.0, 40.0]], np.float32), np.array([1], np.int32), box))

    assert predictor.crops == [Crop.around(box, (1.0, 1.0))] * 2


def test_points_far_from_a_mask_correct_it_too(bright_model: NanoModel) -> None:
    two = a_stack([(28.0, 25.0)])[0] | a_stack([(28.0, 95.0)])[0]
    predictor = NanoImagePredictor(bright_model)
    predictor.set_image(np.where(two, 150, 10).astype(np.int16), SOFT_TISSUE, (1.0, 1.0))
    mask = a_stack([(28.0, 25.0)])[0]
    far = SlicePrompt(0, 0, np.array([[95.0, 28.0]], np.float32), np.array([1], np.int32), mask=mask)

    for prompt in (far, replace(far, box_xyxy_px=box_of_mask(mask))):
        assert predictor.predict(prompt).mask[28, 95]


def test_a_predictor_that_is_dropped_is_freed_at_once(bright_model: NanoModel) -> None:
    predictor = NanoImagePredictor(bright_model)
    gone = weakref.ref(predictor)
    gc.disable()
    try:
        del predictor
        assert gone() is None
    finally:
        gc.enable()


def test_points_are_heeded_where_the_first_one_has_found_nothing(bright_model: NanoModel) -> None:
    predictor = NanoImagePredictor(bright_model)
    predictor.set_image(np.full((60, 80), 10, np.int16), SOFT_TISSUE, (1.0, 1.0))
    two = SlicePrompt(0, 0, np.array([[20, 30], [40, 30]], np.float32), np.array([1, 1], np.int32))
    boxed = replace(two, box_xyxy_px=np.array([15, 25, 45, 35], np.float32))

    for prompt in (two, boxed):
        mask = predictor.predict(prompt).mask
        assert mask[30, 20]
        assert mask[30, 40]


def test_no_other_level_gives_a_greater_expected_dice() -> None:
    probability = np.random.default_rng(0).random((30, 40), np.float32) ** 4

    def expected(level: float) -> float:
        taken = probability[probability > level]
        return 2.0 * taken.sum() / (len(taken) + probability[probability > 0.01].sum())

    level = dice_level(probability)

    assert expected(level) == pytest.approx(
        max(expected(other) for other in np.linspace(0, 0.5, 501)), abs=1e-4
    )
    assert level == pytest.approx(expected(level) / 2.0, abs=1e-3)
    assert dice_level(np.ones((3, 3), np.float32)) == 0.5
    assert dice_level(np.zeros((3, 3), np.float32)) == 0.5


def test_the_score_of_an_answer_is_the_mean_probability_of_what_was_found() -> None:
    model = IsSure(TINY).eval()
    model.chances = (0.8,)
    predictor = NanoImagePredictor(model)
    predictor.set_image(np.zeros((100, 100), np.int16), SOFT_TISSUE, (1.0, 1.0))
    box = np.array([34, 34, 65, 65], np.float32)  # its crop has as many pixels as the network sees

    answer = predictor.predict_boxes(box[None], hint=np.ones((100, 100), bool))[0]

    assert answer.mask.sum() == 32 * 32
    assert answer.score == pytest.approx(0.8, abs=1e-5)


@pytest.mark.parametrize("best", range(3))
@pytest.mark.parametrize("by", ["sure of its pixels", "expected to fit"])
def test_of_the_crops_around_a_click_the_one_with_the_best_answer_counts(best: int, by: str) -> None:
    model = IsSure(TINY).eval()
    figures = tuple(0.95 if row == best else 0.6 for row in range(3))
    model.chances, model.expects = (
        (figures, (0.5,) * 3) if by == "sure of its pixels" else ((0.8,) * 3, figures)
    )
    predictor = NanoImagePredictor(model)
    predictor.set_image(np.zeros((900, 900), np.int16), SOFT_TISSUE, (1.0, 1.0))
    centre = SlicePrompt(0, 0, np.array([[450.0, 450.0]], np.float32), np.array([1], np.int32))

    answer = predictor.predict(centre)

    side = np.sqrt(answer.mask.sum())
    assert side == pytest.approx((70.0, 140.0, 280.0)[best] / 2, rel=0.1)


class FindsDiscs(Planted):
    """A network that finds, in the crops around a click, a disc of some radius in mm."""

    radii_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    sides_mm: tuple[float, float, float] = (70.0, 140.0, 280.0)

    def seen(self, encoded: Encoded) -> Tensor:
        place = torch.arange(TINY.image_size) + 0.5 - TINY.image_size / 2
        distance = torch.hypot(place, place[:, None])
        scale = torch.tensor(self.sides_mm) / TINY.image_size
        discs = torch.tensor(self.radii_mm) / scale
        logits = 4.0 * (discs.view(-1, 1, 1) - distance).clamp(-1.0, 1.0)
        return logits[: len(encoded.channels), None]


class FindsBeyondTheBorder(Planted):
    """A network that finds something to the left of the crops' middle, and in the first one what lies right of it."""

    def seen(self, encoded: Encoded) -> Tensor:
        logits = torch.full_like(encoded.channels[:, :1], -20.0)
        logits[1:, :, 28:36, 2:16] = 20.0
        logits[0, :, 28:36, 32:40] = 2.0
        return logits


def test_what_is_found_beyond_the_border_of_the_slice_does_not_count() -> None:
    predictor = SaysWhatIsLookedAtAgain(FindsBeyondTheBorder(TINY).eval())
    predictor.set_image(np.zeros((300, 300), np.int16), SOFT_TISSUE, (1.0, 1.0))

    first = predictor.predict(
        SlicePrompt(0, 0, np.array([[1.0, 150.0]], np.float32), np.array([1], np.int32))
    )

    assert first.mask.any()
    assert not first.mask[:, 20:].any()


class SaysWhatIsLookedAtAgain(NanoImagePredictor):
    def _again(self, prompt: SlicePrompt, first: Prediction) -> Prediction:
        return first


def test_the_other_answers_to_a_click_are_those_of_the_other_crops_and_then_the_first_again() -> None:
    model = FindsDiscs(TINY).eval()
    model.radii_mm = (10.0, 25.0, 60.0)
    predictor = SaysWhatIsLookedAtAgain(model)
    predictor.set_image(np.zeros((900, 900), np.int16), SOFT_TISSUE, (1.0, 1.0))
    click = SlicePrompt(0, 0, np.array([[450.0, 450.0]], np.float32), np.array([1], np.int32))

    answers = [predictor.predict(replace(click, choice=choice)) for choice in range(4)]

    radii = [float(np.sqrt(answer.mask.sum() / np.pi)) for answer in answers]
    assert sorted(radii[:3]) == pytest.approx([10.0, 25.0, 60.0], rel=0.1)
    assert radii[3] == radii[0]


@pytest.mark.parametrize(("radii_mm", "found_mm"), [((10.0, 25.0, 26.0), 25.5), ((20.0, 21.0, 70.0), 20.5)])
def test_of_equally_sure_answers_one_that_a_neighbouring_crop_agrees_with_is_looked_at_again(
    radii_mm: tuple[float, float, float], found_mm: float
) -> None:
    model = FindsDiscs(TINY).eval()
    model.radii_mm = radii_mm
    predictor = SaysWhatIsLookedAtAgain(model)
    predictor.set_image(np.zeros((900, 900), np.int16), SOFT_TISSUE, (1.0, 1.0))

    first = predictor.predict(
        SlicePrompt(0, 0, np.array([[450.0, 450.0]], np.float32), np.array([1], np.int32))
    )

    assert np.sqrt(first.mask.sum() / np.pi) == pytest.approx(found_mm, rel=0.1)


def test_a_prompt_on_which_nothing_is_found_is_an_empty_answer_and_no_reference(
    bright_model: NanoModel,
) -> None:
    dark = a_scan(np.zeros((5, 60, 120), bool))
    click = SlicePrompt(0, 2, np.array([[50.0, 30.0]], np.float32), np.array([1], np.int32))
    predictor = NanoImagePredictor(bright_model)
    predictor.set_image(dark.voxels_kji[2], SOFT_TISSUE, (1.0, 1.0))

    answer = predictor.predict(click)

    assert not answer.mask.any()
    assert answer.score == 0.0
    with pytest.raises(InputError, match="Nothing was found at the prompt on slice 2"):
        a_session(bright_model, dark).add_reference(1, click)


def test_questions_that_cannot_be_answered_are_refused(random_model: NanoModel) -> None:
    predictor = NanoImagePredictor(random_model)
    off = SlicePrompt(0, 0, np.array([[5.0, 5.0]], np.float32), np.array([0], np.int32))

    with pytest.raises(InputError, match="Set a slice"):
        predictor.predict(SlicePrompt(0, 0, box_xyxy_px=np.array([1, 1, 9, 9], np.float32)))
    predictor.set_image(np.zeros((30, 30), np.int16), SOFT_TISSUE, (1.0, 1.0))
    with pytest.raises(InputError, match="negative point alone"):
        predictor.predict(off)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Any) -> None:
    from medssl.checkpoints import write_checkpoint

    write_checkpoint(tmp_path / "other.safetensors", {"weight": torch.zeros(2)}, {"kind": "other"})

    with pytest.raises(ModelError, match="not the weights of a small model"):
        load_nano(tmp_path / "other.safetensors", CPU)
    write_checkpoint(tmp_path / "newer.safetensors", {"weight": torch.zeros(2)}, {"config": {"depth": 3}})
    with pytest.raises(ModelError, match="another version"):
        load_nano(tmp_path / "newer.safetensors", CPU)


# ---------------------------------------------------------------------------------------------- the shipped weights


@pytest.fixture(scope="module")
def shipped() -> NanoModel:
    path = model_path(find_entry(DEFAULT_MODEL))
    if not path.is_file():
        pytest.skip("The shipped weights are not in pretrained/.")
    return load_nano(path, CPU)[0]


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return phantom_ct(seed=3, shape_kji=(48, 80, 80), spacing_kji_mm=(8.0, 4.8, 4.8))


def middle_slice(stack: np.ndarray) -> int:
    filled = np.flatnonzero(stack.any((1, 2)))
    return int(filled[len(filled) // 2])


@pytest.mark.parametrize("organ", ["liver", "spleen"])
def test_the_shipped_weights_carry_an_organ_much_further_than_copying(
    shipped: NanoModel, phantom: Phantom, organ: str
) -> None:
    truth = phantom.segmentation.mask(organ)
    middle = middle_slice(truth)
    filled = np.flatnonzero(truth.any((1, 2)))
    session = NanoTracker(shipped).open(phantom.volume, 0, SOFT_TISSUE)
    session.add_reference(1, SlicePrompt(0, middle, mask=truth[middle]))

    answers = run(session, TrackJob(1, middle, int(filled[-1])), TrackJob(1, middle, int(filled[0])))

    others = sorted(index for _, index in answers)
    tracked = np.stack([answers[1, index].mask & (answers[1, index].score > 0.5) for index in others])
    copied = np.stack([truth[middle]] * len(others))
    assert dice(tracked, truth[others]) > dice(copied, truth[others]) + 0.1
    assert dice(tracked, truth[others]) > 0.75


@pytest.fixture(scope="module")
def prompted() -> NanoModel:
    path = model_path(find_entry(DEFAULT_MODEL))
    if not path.is_file():
        pytest.skip("The shipped weights are not in pretrained/.")
    return load_prompted(path, CPU)


def shown(model: NanoModel, phantom: Phantom, index: int) -> NanoImagePredictor:
    predictor = NanoImagePredictor(model)
    predictor.set_image(phantom.volume.voxels_kji[index], SOFT_TISSUE, phantom.volume.slice_spacing_mm(0))
    return predictor


@pytest.mark.parametrize("organ", ["liver", "spleen", "heart"])
def test_the_shipped_weights_answer_a_box(prompted: NanoModel, phantom: Phantom, organ: str) -> None:
    truth = phantom.segmentation.mask(organ)
    index = middle_slice(truth)

    answer = shown(prompted, phantom, index).predict(
        SlicePrompt(0, index, box_xyxy_px=box_of_mask(truth[index]))
    )

    assert dice(answer.mask, truth[index]) > 0.8


@pytest.mark.parametrize("organ", ["spleen", "vertebrae_L1"])
def test_the_shipped_weights_answer_a_click_on_a_small_organ(
    prompted: NanoModel, phantom: Phantom, organ: str
) -> None:
    truth = phantom.segmentation.mask(organ)
    index = middle_slice(truth)
    depth = ndimage.distance_transform_edt(truth[index])
    row, col = np.unravel_index(depth.argmax(), depth.shape)
    click = SlicePrompt(0, index, np.array([[col, row]], np.float32), np.array([1], np.int32))

    answer = shown(prompted, phantom, index).predict(click)

    assert dice(answer.mask, truth[index]) > 0.65


def test_a_point_beside_the_object_corrects_a_coarse_mask_that_runs_over(
    prompted: NanoModel, phantom: Phantom
) -> None:
    truth = phantom.segmentation.mask("spleen")
    index = middle_slice(truth)
    too_much = ndimage.binary_dilation(truth[index], iterations=6)
    row, col = np.argwhere(too_much & ~ndimage.binary_dilation(truth[index], iterations=3))[0]
    off = SlicePrompt(0, index, np.array([[col, row]], np.float32), np.array([0], np.int32), mask=too_much)

    answer = shown(prompted, phantom, index).predict(off)

    assert not answer.mask[row, col]
    assert dice(answer.mask, truth[index]) > dice(too_much, truth[index])

from __future__ import annotations

import numpy as np
import pytest
from medssl.errors import InputError
from medssl.foundation.protocols import TrackedSlice
from medssl.stop_rule import StopRule

SIDE = 64


def a_mask(pixels: int) -> np.ndarray:
    return (np.arange(SIDE * SIDE) < pixels).reshape(SIDE, SIDE)


def an_answer(pixels: int, score: float = 1.0) -> TrackedSlice:
    return TrackedSlice(0, 0, a_mask(pixels), None, score)


def slices_until_the_stop(rule: StopRule, answers: list[TrackedSlice]) -> list[bool]:
    """What the rule says about each slice, up to and including the one where it stops."""
    verdicts = []
    for answer in answers:
        verdicts.append(rule.judge(answer))
        if rule.stopped:
            break
    return verdicts


@pytest.mark.parametrize(
    ("answer", "gone"),
    [
        (an_answer(100, score=0.51), False),
        (an_answer(100, score=0.5), True),
        (an_answer(100, score=0.0), True),
        (an_answer(2), False),
        (an_answer(1), True),
        (an_answer(0), True),
        (an_answer(600), False),
        (an_answer(601), True),
    ],
)
def test_the_object_is_gone_by_its_score_a_collapse_or_a_leak(answer: TrackedSlice, gone: bool) -> None:
    assert StopRule(a_mask(100), patience=1).judge(answer) is gone


def test_an_empty_mask_is_gone_however_small_the_reference() -> None:
    assert StopRule(a_mask(1), patience=1).judge(an_answer(0))


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_it_stops_after_as_many_slices_without_the_object_as_it_has_patience(patience: int) -> None:
    rng = np.random.default_rng(patience)
    for _ in range(50):
        there = rng.random(30) < 0.6
        answers = [an_answer(100, score=float(present)) for present in there]
        verdicts = slices_until_the_stop(StopRule(a_mask(100), patience), answers)
        story = "".join("x" if present else "." for present in there)
        end = story.find("." * patience)
        expected = story if end < 0 else story[: end + patience]
        assert "".join("." if gone else "x" for gone in verdicts) == expected


def test_a_stretch_that_has_ended_stays_ended() -> None:
    rule = StopRule(a_mask(100), patience=1)
    rule.judge(an_answer(0))
    rule.judge(an_answer(100))
    assert rule.stopped


@pytest.mark.parametrize("step_mm", [1.0, 3.0, 5.0])
def test_a_ball_that_was_annotated_near_its_tip_is_followed_to_its_other_tip(step_mm: float) -> None:
    radius_mm = 25.0
    depths_mm = np.arange(2.0, 2 * radius_mm, step_mm)
    areas = np.pi * (
        2 * radius_mm * depths_mm - depths_mm**2
    )  # the section of a ball at a depth below its tip
    reference, *others = (round(area) for area in areas)
    assert max(others) > 6 * reference
    rule = StopRule(a_mask(reference), patience=2)
    assert not any(rule.judge(an_answer(area)) for area in others)


def test_a_leak_does_not_become_the_measure_of_the_next_one() -> None:
    rule = StopRule(a_mask(50), patience=3)
    assert [rule.judge(an_answer(area)) for area in (301, 301, 3000)] == [True, True, True]
    assert rule.stopped


def test_a_leak_that_creeps_is_noticed_at_fifteen_times_the_reference() -> None:
    rule = StopRule(a_mask(100), patience=2)
    areas = [200, 400, 800, 1500, 1501, 3000]
    assert slices_until_the_stop(rule, [an_answer(area) for area in areas]) == [False] * 4 + [True] * 2
    assert rule.stopped


def test_it_refuses_an_empty_reference_and_no_patience() -> None:
    with pytest.raises(InputError, match="reference slice is empty"):
        StopRule(a_mask(0), patience=2)
    with pytest.raises(InputError, match="at least 1 slice without the object to stop, not 0"):
        StopRule(a_mask(10), patience=0)

from __future__ import annotations

from dataclasses import replace

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


def numbered(answers: list[TrackedSlice]) -> list[TrackedSlice]:
    return [replace(answer, index=number) for number, answer in enumerate(answers)]


def story(rule: StopRule, answers: list[TrackedSlice]) -> str:
    """What became of each slice, up to and including the one where it stops: x shows the object, a dot does not."""
    shown: set[int] = set()
    for count, answer in enumerate(numbered(answers), 1):  # noqa: B007 - how far it came
        shown |= {one.index for one in rule.follow(answer)}
        if rule.stopped:
            break
    return "".join("x" if number in shown else "." for number in range(count))


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
    assert StopRule(a_mask(100), patience=1).follow(answer) == ([] if gone else [answer])


def test_an_empty_mask_is_gone_however_small_the_reference() -> None:
    assert StopRule(a_mask(1), patience=1).follow(an_answer(0)) == []


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_it_stops_after_as_many_slices_without_the_object_as_it_has_patience(patience: int) -> None:
    answers = [an_answer(100)] * 4 + [an_answer(0)] * 5
    assert story(StopRule(a_mask(100), patience), answers) == "xxxx" + "." * patience


def test_after_a_gap_the_object_is_back_once_its_scores_outweigh_the_doubts() -> None:
    surely, hardly, gone = an_answer(100, 0.95), an_answer(100, 0.7), an_answer(100, 0.3)
    assert story(StopRule(a_mask(100), 2), [surely, gone, surely, hardly]) == "x.xx"
    # -0.85 - 0.4, then +0.85 - 0.4 for each slice that hardly shows it: the third one tips the scales
    assert story(StopRule(a_mask(100), 2), [surely, gone, hardly, hardly]) == "x..."
    assert story(StopRule(a_mask(100), 2), [surely, gone, hardly, hardly, hardly]) == "x.xxx"


def test_what_looks_like_the_object_here_and_there_behind_its_end_is_left_out() -> None:
    hardly, gone = an_answer(100, 0.55), an_answer(100, 0.4)
    assert story(StopRule(a_mask(100), 2), [hardly, hardly, gone, hardly, hardly, gone, hardly]) == "xx....."


def test_it_waits_for_the_object_to_come_back_until_that_is_hopeless() -> None:
    rule = StopRule(a_mask(100), patience=100)
    assert story(rule, [an_answer(100), *[an_answer(0), an_answer(100, 0.55)] * 50]) == "x....."
    assert rule.stopped


def test_which_slices_show_the_object_is_what_a_look_back_at_the_scores_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        scores = rng.uniform(0.02, 0.98, 12)
        rule = StopRule(a_mask(100), patience=100)
        told = story(rule, [an_answer(100, score=float(score)) for score in scores])
        assert told == looked_back_at(scores)[: len(told)]


def looked_back_at(scores: np.ndarray) -> str:
    """The same with all scores at hand: each gap is closed by the first slice up to which its sum is above zero."""
    logits = np.log(scores / (1 - scores))
    shown, at = ["x" if logit > 0 else "." for logit in logits], 0
    while "." in shown[at:]:
        gap = shown.index(".", at)
        sums = np.cumsum(np.clip(logits[gap:] - 0.4, -3, 3))
        if not (sums > 0).any():
            shown[gap:] = "." * (len(scores) - gap)
            break
        at = gap + int((sums > 0).argmax()) + 1
    return "".join(shown)


def test_a_slice_that_waits_holds_no_probabilities() -> None:
    rule = StopRule(a_mask(100), patience=2)
    sure = replace(an_answer(100, 0.99), probability=np.ones((SIDE, SIDE), np.float32))
    rule.follow(replace(sure, score=0.4))
    (back,) = rule.follow(sure)
    assert back.probability is None
    np.testing.assert_array_equal(back.mask, sure.mask)


def test_a_stretch_that_has_ended_stays_ended() -> None:
    rule = StopRule(a_mask(100), patience=1)
    assert story(rule, [an_answer(0), an_answer(100), an_answer(100)]) == "."
    assert rule.follow(an_answer(100)) == []
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
    assert story(rule, [an_answer(area) for area in others]) == "x" * len(others)


def test_a_leak_does_not_become_the_measure_of_the_next_one() -> None:
    rule = StopRule(a_mask(50), patience=3)
    assert story(rule, [an_answer(area) for area in (301, 301, 3000)]) == "..."
    assert rule.stopped


def test_a_leak_that_creeps_is_noticed_at_fifteen_times_the_reference() -> None:
    rule = StopRule(a_mask(100), patience=2)
    areas = [200, 400, 800, 1500, 1501, 3000]
    assert story(rule, [an_answer(area) for area in areas]) == "xxxx.."
    assert rule.stopped


def test_it_refuses_an_empty_reference_and_no_patience() -> None:
    with pytest.raises(InputError, match="reference slice is empty"):
        StopRule(a_mask(0), patience=2)
    with pytest.raises(InputError, match="at least 1 slice without the object to stop, not 0"):
        StopRule(a_mask(10), patience=0)

"""Points that correct an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from medssl.foundation.correcting import Corrections, chosen, is_corrected
from medssl.foundation.protocols import Prediction
from medssl.prompts import SlicePrompt


def points(*labels: int) -> SlicePrompt:
    """Points at (0, 0), (1, 1), ... with these labels."""
    xy = np.arange(len(labels), dtype=np.float32)[:, None].repeat(2, 1)
    return SlicePrompt(0, 3, xy, np.array(labels, np.int32))


BOX = np.array([2, 2, 9, 9], np.float32)


class Asked:
    """A model that keeps what it is asked, and numbers its answers in their score."""

    def __init__(self) -> None:
        self.prompts: list[SlicePrompt] = []
        self.found: list[Prediction | None] = []

    def __call__(self, prompt: SlicePrompt, found: Prediction | None) -> Prediction:
        self.prompts.append(prompt)
        self.found.append(found)
        return Prediction(np.zeros((12, 12), bool), float(len(self.prompts)), np.zeros((3, 3), np.float32))


@pytest.mark.parametrize(
    ("prompt", "first"),
    [
        (points(1, 1), points(1)),
        (points(1, 0, 1), points(1)),
        (replace(points(0, 1), box_xyxy_px=BOX), SlicePrompt(0, 3, box_xyxy_px=BOX)),
    ],
)
def test_all_points_go_with_what_the_box_or_the_first_click_has_found(
    prompt: SlicePrompt, first: SlicePrompt
) -> None:
    asked = Asked()

    answer = Corrections().answer(prompt, asked)

    assert answer.score == 2.0
    assert asked.prompts[0].is_like(first)
    assert asked.prompts[1] is prompt
    assert asked.found[0] is None
    assert asked.found[1] is not None
    assert asked.found[1].score == 1.0


def test_the_first_click_on_the_object_comes_first_though_one_beside_it_was_placed_before() -> None:
    asked = Asked()

    Corrections().answer(points(0, 1), asked)

    assert asked.prompts[0].points_xy_px.tolist() == [[1.0, 1.0]]
    assert asked.prompts[0].point_labels.tolist() == [1]


def test_corrections_follow_the_answer_that_was_chosen() -> None:
    asked = Asked()
    corrections = Corrections()

    corrections.answer(replace(points(1), choice=1), asked)
    corrections.answer(replace(points(1, 0), choice=1), asked)
    corrections.answer(replace(points(1, 0), choice=0), asked)

    assert [prompt.choice for prompt in asked.prompts] == [1, 1, 0, 0]
    assert asked.found[1] is not None
    assert asked.found[1].score == 1.0
    assert asked.found[3] is not None
    assert asked.found[3].score == 3.0


def test_answers_that_look_the_same_are_one_and_behind_the_last_it_begins_anew() -> None:
    masks = np.zeros((4, 10, 10), bool)
    masks[0, :5], masks[1, :5], masks[2, :8], masks[3, 5:] = True, True, True, True
    masks[1, 5, 0] = True
    answers = [Prediction(mask, 1.0 - n / 10, np.zeros((3, 3), np.float32)) for n, mask in enumerate(masks)]

    assert [chosen(answers, choice).score for choice in range(5)] == [1.0, 0.8, 0.7, 1.0, 0.8]


def test_no_more_answers_are_worked_out_than_are_needed() -> None:
    def worked_out() -> Iterator[Prediction]:
        yield Prediction(np.ones((3, 3), bool), 1.0, np.zeros((3, 3), np.float32))
        raise AssertionError("the second one was worked out")

    assert chosen(worked_out(), 0).score == 1.0


def test_what_was_found_first_is_asked_for_once_until_another_slice_is_looked_at() -> None:
    asked = Asked()
    corrections = Corrections()

    for prompt in (points(1), points(1, 0), points(1, 0, 1), points(1)):
        corrections.answer(prompt, asked)
    assert [len(prompt.points_xy_px) for prompt in asked.prompts] == [1, 2, 3]
    corrections.forget()
    corrections.answer(points(1), asked)
    assert len(asked.prompts) == 4
    corrections.answer(replace(points(1), box_xyxy_px=BOX), asked)
    assert len(asked.prompts) == 6


@pytest.mark.parametrize("prompt", [points(0), replace(points(1, 0), mask=np.ones((12, 12), bool))])
def test_what_nothing_was_found_for_before_is_asked_once(prompt: SlicePrompt) -> None:
    asked = Asked()

    Corrections().answer(prompt, asked)

    assert asked.prompts == [prompt]
    assert asked.found == [None]


def test_a_single_click_or_a_box_alone_is_not_corrected() -> None:
    assert not is_corrected(points(1))
    assert not is_corrected(SlicePrompt(0, 3, box_xyxy_px=BOX))
    assert is_corrected(points(1, 0))
    assert is_corrected(replace(points(1), box_xyxy_px=BOX))

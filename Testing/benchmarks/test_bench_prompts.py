"""The benchmark of prompts: what is asked, and how the answers are summed up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bench_prompts import Answer, ask, render
from medssl.foundation.protocols import Prediction
from medssl.prompts import SlicePrompt
from medssl.volume import Volume, Window
from numpy.typing import NDArray
from protocol import Case


class FindsTheBright:
    """A model that finds all that is bright, and remembers what it was asked."""

    def __init__(self) -> None:
        self.prompts: list[SlicePrompt] = []

    def set_image(
        self, slice_hu: NDArray[np.generic], window: Window, spacing_rc_mm: tuple[float, float]
    ) -> None:
        self._slice = slice_hu

    def predict(self, prompt: SlicePrompt) -> Prediction:
        self.prompts.append(prompt)
        return Prediction(self._slice > 0, 0.9, np.zeros((1, 1), np.float32))


def a_case() -> Case:
    labels = np.zeros((6, 30, 30), np.uint8)
    labels[1:5, 8:20, 10:24] = 1
    labels[5, 0, 0] = 1  # too small to be asked about
    return Case("c", Volume(labels.astype(np.int16), np.eye(4)), labels, {1: "block"})


def test_a_click_lies_in_the_inner_half_of_an_object_and_boxes_tightly_or_loosely_around_it() -> None:
    model = FindsTheBright()
    answers = list(ask(model, a_case(), np.random.default_rng(0)))
    assert [answer.kind for answer in answers] == ["click", "box", "loose box"] * 2
    assert [answer.dice for answer in answers] == pytest.approx([1.0] * 6)
    asked = [prompt for prompt in model.prompts if prompt.choice == 0]
    for prompt, answer in zip(asked, answers, strict=True):
        assert 1 <= prompt.index < 5
        if prompt.box_xyxy_px is None:
            (column, row), (on,) = prompt.points_xy_px[0], prompt.point_labels
            assert (12 <= column < 22, 10 <= row < 18, on) == (True, True, 1)
        elif answer.kind == "box":
            assert prompt.box_xyxy_px.tolist() == [10, 8, 23, 19]
        else:
            off = (prompt.box_xyxy_px - np.array([10, 8, 23, 19])) * np.array([-1, -1, 1, 1])
            assert (off > 0).all()
            assert (off < 0.08 * np.array([14, 12, 14, 12]) + 1.5).all()


class FindsItAtLast(FindsTheBright):
    """A model whose third answer to a click is right."""

    def predict(self, prompt: SlicePrompt) -> Prediction:
        found = super().predict(prompt)
        return found if prompt.choice == 2 else replace(found, mask=~found.mask)


def test_the_best_of_the_answers_is_scored() -> None:
    answers = list(ask(FindsItAtLast(), a_case(), np.random.default_rng(0)))
    assert [(answer.kind, answer.dice, answer.best) for answer in answers[:2]] == [
        ("click", 0.0, 1.0),
        ("box", 0.0, 1.0),
    ]


def test_the_table_has_a_line_for_each_kind_of_prompt_and_each_organ() -> None:
    answers = [
        Answer("p", organ, kind, dice, score, dice + 0.1)
        for organ in ("liver", "spleen")
        for kind, found in (
            ("click", ((0.2, 0.3), (0.6, 0.7))),
            ("box", ((0.8, 0.9), (0.9, 0.8))),
            ("loose box", ((0.5, 0.6), (0.7, 0.9))),
        )
        for dice, score in found
    ]
    text = render(answers, "a-model", "--phantoms 2")
    assert "| click | 4 | 0.400 [0.200, 0.600] | 0.500 | 50% | 1.00 |" in text
    assert "| box | 4 | 0.850" in text
    assert "| loose box | 4 | 0.600" in text
    assert "| spleen | 2 | 0.40 | 0.85 | 0.60 |" in text

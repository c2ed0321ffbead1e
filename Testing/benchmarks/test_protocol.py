"""The benchmark counts what it says it counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from medssl.volume import Volume
from protocol import (
    Case,
    ObjectScore,
    ObjectTask,
    bootstrap_mean,
    copy_mask,
    held_out_cases,
    object_tasks,
    paired_gain,
    patient_of,
    score_object,
)
from tables import accuracy_tables


def a_case(labels: np.ndarray) -> Case:
    voxels = np.arange(labels.size, dtype=np.int16).reshape(labels.shape)
    return Case("case", Volume(voxels, np.eye(4)), labels, {1: "liver", 2: "spleen", 3: "absent"})


def a_task(filled: list[int], count: int = 12) -> ObjectTask:
    labels = np.zeros((count, 4, 4), np.uint8)
    labels[filled, 1:3, 1:3] = 1
    return next(object_tasks(a_case(labels)))


def a_score(method: str, case: str, own: float, whole: float = 0.5, organ: str = "liver") -> ObjectScore:
    return ObjectScore(method, case, case, organ, own, whole, 0, 10, 0.1)


def test_only_objects_of_five_slices_or_more_are_tasks() -> None:
    labels = np.zeros((12, 4, 4), np.uint8)
    labels[2:7, 0, 0] = 1
    labels[2:6, 3, 3] = 2
    assert [task.organ for task in object_tasks(a_case(labels))] == ["liver"]


@pytest.mark.parametrize(
    ("filled", "index"), [([3, 4, 5, 6, 7], 5), ([2, 3, 4, 9, 10], 4), ([2, 3, 4, 5, 6, 7], 4)]
)
def test_the_annotated_slice_is_the_filled_one_nearest_the_middle_of_the_extent(
    filled: list[int], index: int
) -> None:
    task = a_task(filled)
    assert (task.index, task.first, task.last) == (index, filled[0], filled[-1])


def test_the_annotated_slice_counts_in_no_figure() -> None:
    task = a_task([3, 4, 5, 6, 7])
    only_annotation = np.zeros_like(task.truth_kji)
    only_annotation[task.index] = task.annotation
    score = score_object("method", task, only_annotation)
    assert (score.own_dice, score.whole_dice, score.overrun) == (0.0, 0.0, 0)


def test_running_past_the_end_costs_whole_volume_dice_only() -> None:
    task = a_task([3, 4, 5, 6, 7])
    answer = np.repeat(task.annotation[None], 12, axis=0)
    score = score_object("method", task, answer)
    assert score.own_dice == 1.0
    assert score.whole_dice == pytest.approx(2 * 4 / (4 + 11))
    assert score.overrun == 7


def test_the_confidence_of_a_slice_is_held_against_the_dice_of_that_slice() -> None:
    task = a_task([3, 4, 5, 6, 7])
    answer = np.repeat(task.annotation[None], 12, axis=0)
    answer[6, 1, 1:3] = False
    score = score_object("method", task, answer, confidence={8: 0.3, 6: 0.7, 4: 0.9})
    assert score.told == [(0.9, 1.0), (0.7, 2 * 2 / (2 + 4)), (0.3, 0.0)]


def test_copying_fills_exactly_the_true_extent() -> None:
    task = a_task([3, 4, 5, 6, 7])
    np.testing.assert_array_equal(copy_mask(task), task.truth_kji)


def test_the_bootstrap_draws_patients_and_is_the_same_every_time() -> None:
    values, patients = [0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"]
    interval = bootstrap_mean(values, patients)
    assert interval == bootstrap_mean(values, patients)
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.0, 1.0)
    assert bootstrap_mean([0.3] * 5, ["a"] * 5).high == pytest.approx(0.3)


def test_a_gain_is_paired_by_object() -> None:
    scores = [a_score("new", f"case {n}", 0.1 * n + 0.05) for n in range(6)]
    scores += [a_score("old", f"case {n}", 0.1 * n) for n in reversed(range(6))]
    gain = paired_gain(scores, "new", "old", lambda score: score.own_dice)
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.05, 0.05, 0.05))


def test_the_held_out_list_names_at_least_thirty_patients_once_each() -> None:
    groups = held_out_cases()
    assert len(set(groups["head_neck"])) == len(groups["head_neck"]) >= 30
    assert patient_of(groups["same_patient_as_abdomen"][0]) == groups["abdomen"][0]


def test_the_tables_hold_every_method_and_organ() -> None:
    methods = ("copy", "intensity", "ours")
    scores = [
        vars(a_score(m, c, 0.5, organ=o)) for m in methods for c in "ab" for o in ("liver", "spinal_cord")
    ]
    text = accuracy_tables({"groups": [{"title": "Some", "scores": scores}], "peak_bytes": 1e9})
    assert "4 objects of 2 patients" in text
    assert "| spinal_cord | 2 | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 |" in text
    assert "| own extent | intensity | +0.000 [+0.000, +0.000] |" in text


def test_the_tables_say_what_a_confidence_is_worth() -> None:
    told = [(0.1, 0.0), (0.1, 0.2), (0.9, 0.8), (1.0, 1.0)]
    scores = [vars(replace(a_score(m, "a", 0.5), told=told)) for m in ("copy", "intensity", "ours")]
    text = accuracy_tables({"groups": [{"title": "Some", "scores": scores}], "peak_bytes": 1e9})
    assert f"correlation {np.corrcoef(np.transpose(told))[0, 1]:.2f}" in text
    assert "| 0 to 0.2 | 50% | 0.10 |" in text
    assert "| 0.4 to 0.6 | 0% | - |" in text
    assert "| 0.8 to 1 | 50% | 0.90 |" in text

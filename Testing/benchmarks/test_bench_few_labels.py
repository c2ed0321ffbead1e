"""The few-label benchmark: which slice is vouched for, which runs there are, and how gains are counted."""

from __future__ import annotations

import numpy as np
import pytest
from bench_few_labels import Run, Score, Work, gain, planned, report, vouched_slice
from medssl.few_labels.annotated_samples import AnnotatedCase
from medssl.segmenting import STAGES


def test_the_vouched_slice_shows_most_of_the_segments() -> None:
    labels = np.zeros((5, 8, 8), np.uint8)
    labels[1, :6] = 1  # the largest, alone
    labels[2, :3] = 1
    labels[2, 4:6] = 2
    labels[3, :1] = 2
    case = AnnotatedCase(None, np.zeros(labels.shape, np.int16), labels, np.array([True, True, True]))  # type: ignore[arg-type]
    assert vouched_slice(case) == 2


def test_without_encoders_there_are_random_weights_on_every_number_of_cases() -> None:
    runs = planned(None, [1, 3, 10], ["one", "all"], 2, most=5)
    assert {run.cases for run in runs} == {1, 3, 5}
    assert len(runs) == len({run.file for run in runs}) == 3 * 2 * 2
    assert all(run.arm == "scratch unet2d_16" and not run.encoder for run in runs)


def test_gains_are_paired_and_losses_counted() -> None:
    pairs = {"a": (0.5, 0.7), "b": (0.8, 0.79), "c": (0.9, 0.8), "d": (0.6, 0.6)}
    scores = [
        Score(patient, "mandible", stage, value, 1.0)
        for patient, values in pairs.items()
        for stage, value in zip(("coarse", "refined"), values, strict=True)
    ]
    interval, worse = gain(scores, "refined")  # type: ignore[arg-type]
    assert interval.mean == pytest.approx((0.2 - 0.01 - 0.1) / 4)
    assert worse == 0.25


def test_the_report_has_a_line_for_every_kind_of_run() -> None:
    scores = [Score("a", "mandible", stage, 0.5, 3.0) for stage in STAGES]
    runs = [
        Run("scratch unet2d_16", "unet2d_16", "", count, "one", seed) for count in (1, 3) for seed in (0, 1)
    ]
    text = report([(run, scores) for run in runs], Work("", "", (), ("a",), None, "m"))
    assert text.count("| scratch unet2d_16 | 1 | one | 0.500") == 1
    assert "| scratch unet2d_16 | 3 | one | refined | +0.000" in text

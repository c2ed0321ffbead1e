"""The click benchmark's person behaves like one, and its table says what was measured."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from bench_click import DEFAULT_MODEL, Click, _arguments, make_trace, report


def labels() -> np.ndarray:
    """Two organs, on slices 3 to 16 of 20."""
    volume = np.zeros((20, 30, 40), np.uint8)
    volume[3:15, 5:12, 6:14] = 1
    volume[6:17, 18:25, 20:33] = 2
    return volume


def test_the_same_seed_is_the_same_person() -> None:
    assert make_trace(labels(), 5, seed=1) == make_trace(labels(), 5, seed=1)
    assert make_trace(labels(), 5, seed=1) != make_trace(labels(), 5, seed=2)


def test_the_person_scrolls_slice_by_slice_stops_and_clicks_on_what_is_there() -> None:
    volume, stops = labels(), 30
    trace = make_trace(volume, stops)
    clicks = [step for step in trace if step.click_xy_px is not None]
    assert np.all(np.diff([step.at_s for step in trace]) > 0)
    assert np.all(np.abs(np.diff([step.index for step in trace])) <= 1)
    assert sum(step.is_last for step in clicks) == stops
    for before, step in pairwise(trace):
        if step.click_xy_px is None:
            continue
        column, row = (int(value) for value in step.click_xy_px)
        assert (volume[step.index, row, column] > 0) == step.positive
        if before.click_xy_px is None:
            assert step.positive  # the first click says where the object is
            assert step.at_s - before.at_s > 0.3


def test_only_clicks_on_encoded_slices_count_and_the_others_are_told() -> None:
    clicks = [Click(0.03, 0.02, True, 0.004)] * 19 + [Click(0.9, 0.8, False, 0.004)]
    row = next(
        line for line in report({"net": clicks}, _arguments([])).splitlines() if line.startswith("| net")
    )
    assert row == "| net | 20 | 95.0% | 0% | 30 | **30** | 20 | 4.0 |"
    assert DEFAULT_MODEL in report({}, _arguments([]))

"""Slices that are looked at first leave no gap wider than a step, and boxes hold what they are made for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from medssl.few_labels.covering import starts_within
from medssl.few_labels.skimming import around_found, box_of, joined, stretches, stride
from medssl.volume import rows_of_neighbours


@pytest.mark.parametrize(
    ("spacing_mm", "slices"), [(10.0, 2), (5.0, 2), (3.0, 2), (2.0, 3), (1.0, 6), (0.6, 10)]
)
def test_a_step_is_six_mm_and_two_slices_at_least(spacing_mm: float, slices: int) -> None:
    assert stride(spacing_mm) == slices


@pytest.mark.parametrize("step", [1, 2, 6])
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_stretches_hold_every_wanted_slice_once_but_for_the_ends_they_share(step: int, at_once: int) -> None:
    wanted = np.flatnonzero(np.random.default_rng(step).random(200) < 0.95).tolist()
    parts = sorted(stretches(wanted, 100, step, at_once))
    spans = [k for part in parts for k in range(part[0], part[-1] + 1)]
    assert sorted(set(spans)) == wanted
    shared = [b[0] for a, b in itertools.pairwise(parts) if a[-1] == b[0]]
    assert len(spans) == len(wanted) + len(shared)
    assert all(b - a <= step for part in parts for a, b in itertools.pairwise(part))
    assert all(len(part) <= at_once + 1 for part in parts)
    ends = {k for row in rows_of_neighbours(wanted) for k in row}
    assert ends <= {k for part in parts for k in part}


def test_the_stretch_with_the_start_comes_first() -> None:
    for start in range(40):
        first = stretches(range(40), start, 3, 2)[0]
        assert first[0] <= start <= first[-1]


def test_a_box_holds_what_was_found_and_a_margin_and_stays_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((12, 9)) < 0.03
        box = box_of(mask, (2, 1))
        if box is None:
            assert not mask.any()
            continue
        near = np.zeros_like(mask)
        for j, i in np.argwhere(mask):
            near[max(0, j - 2) : j + 3, max(0, i - 1) : i + 2] = True
        rows, columns = (np.flatnonzero(near.any(axis=axis)) for axis in (1, 0))
        assert box == (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))


def test_neighbours_are_looked_at_where_a_slice_may_show_something() -> None:
    probabilities = np.zeros((3, 20, 20), np.float32)
    probabilities[0] = 1.0
    assert around_found(probabilities, (4.0, 2.0)) is None
    probabilities[:, 10, 10] = 0.9, 0.05, 0.05
    assert around_found(probabilities, (4.0, 2.0)) == (slice(8, 13), slice(6, 15))


def test_two_boxes_are_joined_to_one_around_both() -> None:
    one, other = (slice(2, 5), slice(7, 9)), (slice(4, 8), slice(1, 3))
    assert joined(one, other) == (slice(2, 8), slice(1, 9))
    assert joined(one, None) == joined(None, one) == one
    assert joined(None, None) is None


def test_tiles_cover_the_part_they_are_for_and_stay_inside_the_whole() -> None:
    for length, tile in itertools.product((16, 17, 40, 100), (8, 16)):
        for first, last in itertools.combinations(range(0, length + 1, 3), 2):
            firsts = starts_within(slice(first, last), length, tile, 8)
            covered = {n for start in firsts for n in range(start, start + tile)}
            assert covered >= set(range(first, last))
            assert min(covered) >= 0
            assert max(covered) < length
            assert len(firsts) == 1 or last - first > tile

"""Prompts refuse what makes no sense; boxes and points are taken from masks where they should be."""

from __future__ import annotations

import numpy as np
import pytest
from medssl.errors import InputError
from medssl.prompts import (
    SlicePrompt,
    box_of_mask,
    boxes_of_components,
    label_components,
    margin_px,
    points_from_scribble,
    prompt_from_scribbles,
)
from scipy import ndimage


def mask_of(*pixels: tuple[int, int], shape: tuple[int, int] = (8, 10)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for row, col in pixels:
        mask[row, col] = True
    return mask


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "The prompt is empty"),
        ({"axis": 3, "mask": mask_of((1, 1))}, "axis must be 0, 1 or 2, not 3"),
        ({"points_xy_px": np.zeros((2, 3), np.float32)}, r"\(N, 2\) array"),
        ({"points_xy_px": np.zeros((2, 2), np.float32)}, "2 points came with 0 labels"),
        ({"points_xy_px": np.zeros((1, 2), np.float32), "point_labels": np.array([2])}, r"must be 1 .* or 0"),
        ({"box_xyxy_px": np.array([5.0, 5.0, 5.0, 9.0], np.float32)}, "The box 5, 5, 5, 9 is empty"),
        ({"mask": np.zeros((2, 2, 2), bool)}, "must be one 2D slice"),
    ],
)
def test_a_prompt_that_makes_no_sense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SlicePrompt(**{"axis": 0, "index": 1, **fields})  # type: ignore[arg-type]


def test_a_box_has_its_corners_on_the_outermost_pixels() -> None:
    mask = mask_of((2, 3), (5, 7))
    np.testing.assert_array_equal(box_of_mask(mask), [3, 2, 7, 5])
    np.testing.assert_array_equal(box_of_mask(mask, (1, 2)), [1, 1, 9, 6])
    np.testing.assert_array_equal(box_of_mask(mask, (100, 100)), [0, 0, 9, 7])
    assert box_of_mask(np.zeros((4, 4), bool)) is None


def test_a_margin_in_millimetres_is_wider_in_the_finer_direction() -> None:
    assert margin_px(6.0, (3.0, 0.5)) == (2.0, 12.0)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.35, 0.5, 0.65, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (23, 31), (64, 64)])
def test_components_are_those_of_an_independent_labelling(density: float, shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(int(density * 100)).random(shape) < density
    expected, count = ndimage.label(mask, np.ones((3, 3)))
    labels = label_components(mask)
    assert labels.max() == count
    pairs = set(zip(labels.ravel().tolist(), expected.ravel().tolist(), strict=True))
    assert len(pairs) == len(np.unique(expected))  # one of ours for each of theirs


def test_components_are_numbered_in_the_order_of_their_first_pixel() -> None:
    mask = mask_of((0, 8), (1, 0), (2, 9), (2, 8), (1, 9), (7, 4))
    labels = label_components(mask)
    assert [labels[0, 8], labels[1, 0], labels[2, 8], labels[7, 4]] == [1, 2, 1, 3]


def test_every_component_gets_a_box_and_the_largest_comes_first() -> None:
    mask = mask_of((1, 1), (5, 5), (5, 6), (6, 5), (0, 8), (0, 9))
    np.testing.assert_array_equal(boxes_of_components(mask), [[5, 5, 6, 6], [8, 0, 9, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(boxes_of_components(mask, min_pixels=2), [[5, 5, 6, 6], [8, 0, 9, 0]])
    np.testing.assert_array_equal(boxes_of_components(mask, 3, (1, 2)), [[3, 4, 8, 7]])
    assert boxes_of_components(np.zeros((4, 4), bool)).shape == (0, 4)


def stroke() -> np.ndarray:
    """A curved stroke five pixels thick."""
    rows, cols = np.mgrid[:80, :100]
    radius = np.hypot(rows - 70, cols - 50)
    return np.asarray((np.abs(radius - 40) < 2.6) & (rows < 70))


def test_points_spread_along_the_middle_of_a_stroke() -> None:
    points = points_from_scribble(stroke(), 5)
    assert points.shape == (5, 2)
    radius = np.hypot(points[:, 1] - 70, points[:, 0] - 50)
    assert np.abs(radius - 40).max() < 2  # the middle line, not the rim
    angles = np.sort(np.arctan2(70 - points[:, 1], points[:, 0] - 50))
    gaps = np.diff(angles)
    assert gaps.max() < 1.7 * gaps.min()
    assert angles[0] < 0.2
    assert angles[-1] > np.pi - 0.2


def test_each_of_several_strokes_gets_a_point() -> None:
    scribble = np.zeros((50, 50), bool)
    scribble[5:8, 5:20] = scribble[40:43, 30:45] = scribble[5:20, 40:43] = True
    points = points_from_scribble(scribble, 3).astype(int)
    labels = label_components(scribble)
    assert {int(labels[y, x]) for x, y in points} == {1, 2, 3}


@pytest.mark.parametrize("method", ["even", "random"])
@pytest.mark.parametrize("count", [1, 4, 30])
def test_points_lie_on_the_scribble_and_are_the_same_every_time(method: str, count: int) -> None:
    scribble = stroke()
    points = points_from_scribble(scribble, count, method)  # type: ignore[arg-type]
    assert len(np.unique(points, axis=0)) == len(points) == count
    assert scribble[points[:, 1].astype(int), points[:, 0].astype(int)].all()
    np.testing.assert_array_equal(points, points_from_scribble(scribble, count, method))  # type: ignore[arg-type]


def test_other_seeds_give_other_random_points() -> None:
    first, second = (points_from_scribble(stroke(), 5, "random", seed) for seed in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("method", ["even", "random"])
def test_a_tiny_scribble_gives_the_pixels_it_has(method: str) -> None:
    tiny = mask_of((3, 4), (3, 5))
    points = points_from_scribble(tiny, 9, method)  # type: ignore[arg-type]
    assert sorted(points.tolist()) == [[4, 3], [5, 3]]
    assert points_from_scribble(np.zeros((4, 4), bool), 3, method).shape == (0, 2)  # type: ignore[arg-type]


def test_a_scribble_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(InputError, match="At least 1 point"):
        points_from_scribble(stroke(), 0)
    with pytest.raises(InputError, match="one 2D slice"):
        points_from_scribble(np.zeros((2, 2, 2), bool), 1)


def test_scribbles_on_and_off_the_object_become_one_prompt() -> None:
    off = mask_of((79, 99), shape=(80, 100))
    prompt = prompt_from_scribbles(1, 7, stroke(), off, points_each=3)
    assert (prompt.axis, prompt.index) == (1, 7)
    assert prompt.point_labels.tolist() == [1, 1, 1, 0]
    assert prompt.points_xy_px[-1].tolist() == [99, 79]
    assert prompt_from_scribbles(1, 7, stroke()).point_labels.tolist() == [1] * 5
    with pytest.raises(InputError, match="The prompt is empty"):
        prompt_from_scribbles(1, 7, np.zeros((4, 4), bool))

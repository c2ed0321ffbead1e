"""The square of a slice that the small model looks at, and the way there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medssl.foundation.nano_crop import Crop

CROPS = [
    Crop(5, 7, 20, 24),
    Crop(-6, -3, 30, 28),
    Crop(44, 50, 40, 40),
    Crop(-10, -10, 90, 90),
    Crop(70, 80, 9, 9),
]


@pytest.mark.parametrize("crop", CROPS)
def test_putting_a_crop_back_is_the_inverse_of_cutting_it(crop: Crop) -> None:
    whole = np.random.default_rng(0).random((60, 64), np.float32)
    rows, cols = np.mgrid[:60, :64]
    inside = (rows >= crop.row) & (rows < crop.row + crop.height)
    inside &= (cols >= crop.col) & (cols < crop.col + crop.width)

    cut = crop.cut_mask(whole)
    back = crop.put_back(cut, whole.shape)

    assert cut.shape == (crop.height, crop.width)
    np.testing.assert_array_equal(back, np.where(inside, whole, 0))
    np.testing.assert_array_equal(crop.cut_mask(back), cut)


@pytest.mark.parametrize("crop", CROPS)
def test_beyond_the_slice_the_image_goes_on_with_its_edge(crop: Crop) -> None:
    whole = np.random.default_rng(0).integers(-1000, 1000, (60, 64)).astype(np.int16)
    padded = np.pad(whole, 100, mode="edge")

    expected = padded[100 + crop.row :, 100 + crop.col :][: crop.height, : crop.width]

    np.testing.assert_array_equal(crop.cut(whole), expected)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (3.0, 1.0), (0.7, 2.5)])
def test_a_crop_is_square_in_millimetres_and_twice_the_object(spacing: tuple[float, float]) -> None:
    box = np.array([40.0, 20.0, 79.0, 39.0])

    crop = Crop.around(box, spacing)

    height_mm, width_mm = crop.height * spacing[0], crop.width * spacing[1]
    assert height_mm == pytest.approx(width_mm, abs=max(spacing))
    assert width_mm == pytest.approx(2 * max(20 * spacing[0], 40 * spacing[1]), abs=max(spacing))
    assert crop.row + crop.height / 2 == pytest.approx(30, abs=0.5)
    assert crop.col + crop.width / 2 == pytest.approx(60, abs=0.5)


def test_points_go_where_their_pixels_go() -> None:
    crop = Crop(-6, 10, 32, 32)
    slice_hw = np.zeros((60, 64), np.float32)
    slice_hw[11, 25] = 1.0

    doubled = torch.nn.functional.interpolate(torch.from_numpy(crop.cut(slice_hw))[None, None], (64, 64))[
        0, 0
    ]

    x, y = crop.to_crop(np.array([[25.0, 11.0]]), 64)[0]
    rows, cols = np.nonzero(doubled.numpy())
    assert (y, x) == (rows.mean() + 0.5, cols.mean() + 0.5)


@pytest.mark.parametrize(
    ("row", "col", "cut"),
    [
        (5, 5, {"top", "bottom", "left", "right"}),
        (0, 5, {"bottom", "left", "right"}),
        (12, -3, {"top", "right"}),
    ],
)
def test_a_mask_is_cut_off_where_the_slice_goes_on_beyond_its_crop(row: int, col: int, cut: set[str]) -> None:
    crop = Crop(row, col, 8, 8)
    edges = {"top": np.s_[0], "bottom": np.s_[-1], "left": np.s_[:, 0], "right": np.s_[:, -1]}
    for name, edge in edges.items():
        mask = np.zeros((16, 16), bool)
        mask[edge] = True
        mask[[0, 0, -1, -1], [0, -1, 0, -1]] = False  # a corner lies on two edges
        assert crop.cuts_off(mask, (20, 20)) == (name in cut), name
    assert not crop.cuts_off(np.zeros((16, 16), bool), (20, 20))


def test_a_mask_is_seen_in_another_crop_where_it_lies_on_the_slice() -> None:
    """Both crops have as many pixels as they are shown with, so that the way over the slice is exact."""
    small, large = Crop(10, 14, 16, 16), Crop(6, 20, 16, 16)
    mask = np.random.default_rng(0).random((16, 16)) > 0.5

    seen = small.shown_in(large, mask)

    on_the_slice = small.put_back(mask.astype(np.float32), (50, 50))
    np.testing.assert_array_equal(seen, large.cut_mask(on_the_slice) > 0.5)


def test_a_mask_shrinks_in_a_crop_twice_as_large() -> None:
    small, large = Crop(10, 10, 16, 16), Crop(2, 2, 32, 32)

    seen = small.shown_in(large, np.ones((16, 16), bool))

    expected = np.zeros((16, 16), bool)
    expected[4:12, 4:12] = True
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(large.shown_in(small, expected), np.ones((16, 16), bool))

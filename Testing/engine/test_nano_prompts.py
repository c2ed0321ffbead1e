"""What points say on the small model's crop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medssl.foundation.nano_prompts import point_reach, prior_mask

SIZE = 24


def test_a_point_speaks_for_pixels_near_it_that_look_like_it_and_for_those_beside_it() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(0.0, 0.3, (2, 1, SIZE, SIZE)).astype(np.float32)
    xy = np.array(
        [[[5.5, 7.5], [20.5, 3.5], [12.0, 12.0]], [[1.5, 1.5], [9.5, 16.5], [0.0, 0.0]]], np.float32
    )
    labels = np.array([[1, 0, 2], [1, 1, -1]])  # a box corner and padding among them

    on, off = point_reach(*map(torch.from_numpy, (image, xy, labels)), 6.0)

    for row in range(2):
        for kind, reach in ((1, on), (0, off)):
            expected = np.zeros((SIZE, SIZE))
            for (x, y), label in zip(xy[row], labels[row], strict=True):
                if label == kind:
                    around = np.median(image[row, 0, int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2])
                    for i in range(SIZE):
                        for j in range(SIZE):
                            away2 = (j + 0.5 - x) ** 2 + (i + 0.5 - y) ** 2
                            unlike = (image[row, 0, i, j] - around) / 0.25
                            like = np.exp(-away2 / 36.0 - unlike**2 / 2)
                            expected[i, j] = max(expected[i, j], like, np.exp(-away2 / 9.0))
            np.testing.assert_allclose(reach[row, 0].numpy(), expected, atol=1e-5)


def test_a_box_is_first_taken_for_the_ellipse_that_fills_it() -> None:
    corners = torch.tensor([[[4.0, 6.0], [20.0, 18.0], [12.0, 12.0]]])
    guess = prior_mask(corners, torch.tensor([[2, 3, -1]]), SIZE)[0, 0].numpy()
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    inside = ((x - 12) / 8) ** 2 + ((y - 12) / 6) ** 2 <= 1
    assert (guess > 0.5).tolist() == inside.tolist()
    assert guess.sum() == pytest.approx(np.pi * 8 * 6, rel=0.03)
    assert np.mean((guess > 0) & (guess < 1)) < 0.12


def test_a_point_beyond_the_crop_is_no_error_and_says_little() -> None:
    on, off = point_reach(
        torch.zeros(1, 1, SIZE, SIZE), torch.tensor([[[-40.0, 300.0]]]), torch.tensor([[1]]), 6.0
    )
    assert float(on.max()) < 1e-6
    assert float(off.max()) == 0.0

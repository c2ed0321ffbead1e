"""What a box may mean to the small model, and which of its answers fit the box."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from medssl.foundation.nano_boxes import box_guesses, overflow, parts_inside, shortfall
from medssl.foundation.nano_image import NanoImagePredictor
from medssl.foundation.nano_model import Decoded, Encoded, NanoConfig, NanoModel
from medssl.foundation.nano_prompts import prior_mask
from medssl.metrics import dice
from medssl.prompts import SlicePrompt
from medssl.volume import WINDOWS
from scipy import ndimage
from torch import Tensor

SIZE = 40
TINY = NanoConfig(image_size=64, embed_dim=8, model_dim=64, memory_dim=32, memories=3, edge_width=4)


def boxes(*corners: tuple[float, float, float, float]) -> tuple[Tensor, Tensor]:
    """Boxes, one a row, with a click and padding after them."""
    xy = torch.tensor([[[x0, y0], [x1, y1], [9.0, 9.0], [0.0, 0.0]] for x0, y0, x1, y1 in corners])
    return xy, torch.tensor([[2, 3, 1, -1]] * len(corners))


def within(values: np.ndarray, parts: list[np.ndarray]) -> float:
    """Sum of squared differences from the mean of each part."""
    return sum(float(((values[part] - values[part].mean()) ** 2).sum()) for part in parts if part.any())


def test_parts_of_a_box_are_divided_where_intensities_within_them_differ_least() -> None:
    rng = np.random.default_rng(3)
    images = rng.normal([[[-60.0]], [[40.0]]], 25.0, (2, SIZE, SIZE))
    images[:, 10:16, 8:30] += 160.0
    images[:, 20:28, 12:22] -= 300.0
    image = torch.from_numpy(images.astype(np.float32))[:, None]
    points = boxes((6.0, 7.0, 34.0, 33.0), (6.0, 7.0, 34.0, 33.0))

    guesses = box_guesses(image, *points).numpy()

    for row in range(2):
        smooth = ndimage.uniform_filter(images[row], 3)[7:33, 6:34].ravel()
        inside = guesses[row, :, 7:33, 6:34].reshape(5, -1) > 0
        assert guesses[row, 1:].sum() == inside[1:].sum(), "nothing beyond the box"
        darker, brighter, darkest, brightest = inside[1:]
        assert np.array_equal(darker, ~brighter)
        assert not (darkest & brightest).any()
        assert smooth[darkest].max() < smooth[brightest].min()
        levels = np.linspace(*np.quantile(smooth, [0.01, 0.99]), 49)[1:-1]
        two = min(within(smooth, [smooth < level, smooth >= level]) for level in levels)
        assert within(smooth, [darker, brighter]) <= 1.01 * two
        three = min(
            within(smooth, [smooth < low, (smooth >= low) & (smooth < high), smooth >= high])
            for low, high in combinations(levels, 2)
        )
        assert within(smooth, [darkest, ~darkest & ~brightest, brightest]) <= 1.01 * three


def test_the_first_guess_is_the_ellipse_and_so_is_a_part_that_holds_nothing() -> None:
    points = boxes((6.0, 7.0, 34.0, 33.0))

    guesses = box_guesses(torch.full((1, 1, SIZE, SIZE), 40.0), *points)

    ellipse = prior_mask(*points, SIZE)[0, 0]
    alike = [torch.equal(guess, ellipse) for guess in guesses[0]]
    assert alike[0]
    assert sum(alike) == 3, "of two parts one holds everything, and of three"
    assert all(guess.any() for guess in guesses[0])


def test_one_metal_pixel_does_not_decide_how_a_box_is_divided() -> None:
    image = torch.zeros(1, 1, 2 * SIZE, 2 * SIZE)
    image[..., SIZE:] = 100.0
    with_metal = image.clone()
    with_metal[..., 12, 12] = 30000.0
    points = boxes((12.0, 14.0, 68.0, 66.0))

    plain, struck = (box_guesses(each, *points)[0, 2] > 0 for each in (image, with_metal))

    assert int((plain != struck).sum()) <= 9, "the pixels that it is smoothed into"


def test_overflow_is_the_share_of_the_boxs_surroundings_that_a_mask_covers() -> None:
    box = np.array([8.0, 10.0, 24.0, 30.0])  # columns 8 .. 23, rows 10 .. 29
    mask = np.zeros((SIZE, SIZE), bool)
    mask[10:30, 8:24] = True
    assert overflow(mask, box) == 0.0
    mask[:, 8:24] = True
    assert overflow(mask, box) == pytest.approx(2 * 16 / (2 * 16 + 2 * 20))
    assert overflow(np.ones((SIZE, SIZE), bool), box) == 1.0
    assert overflow(np.ones((SIZE, SIZE), bool), np.array([0.0, 0.0, SIZE, SIZE])) == 0.0


def test_shortfall_is_the_mean_share_of_the_box_between_a_mask_and_its_sides() -> None:
    box = np.array([8.0, 10.0, 24.0, 30.0])
    mask = np.zeros((SIZE, SIZE), bool)
    assert shortfall(mask, box) == 1.0
    mask[12:30, 8:20] = True  # 2 of 20 rows free above, 4 of 16 columns on the right
    assert shortfall(mask, box) == pytest.approx((2 / 20 + 4 / 16) / 4)
    mask[:] = True
    assert shortfall(mask, box) == 0.0


class Believes(NanoModel):
    """A network that finds what it is shown as a first guess, and expects of it what the test says."""

    expects: tuple[float, ...] = (0.5,) * 5

    def decode(self, *given: Any, **named: Any) -> Decoded:
        answer = super().decode(*given, **named)
        quality = torch.tensor(self.expects)[: len(answer.quality), None]
        return replace(answer, logits=self.seen(given[1]), quality=quality)

    def seen(self, encoded: Encoded) -> Tensor:
        return 20.0 * encoded.channels[:, 3:4]


class Finds(Believes):
    """Begins with squares of some sides in the middle of the crop."""

    sides: tuple[int, ...]

    def seen(self, encoded: Encoded) -> Tensor:
        if len(encoded.channels) == 1:
            return super().seen(encoded)
        logits = torch.full_like(encoded.channels[:, :1], -20.0)
        for row, side in enumerate(self.sides):
            middle = slice(32 - side // 2, 32 + side // 2)
            logits[row, 0, middle, middle] = 20.0
        return logits


BOX = np.array([34, 34, 65, 65], np.float32)  # its crop has as many pixels as the network sees


def a_predictor(model: NanoModel) -> NanoImagePredictor:
    predictor = NanoImagePredictor(model.eval())
    image = np.full((100, 100), 40, np.int16)
    image[34:66, 34:50], image[40:60, 54:60] = -700, 900
    predictor.set_image(image, WINDOWS["soft-tissue"], (1.0, 1.0))
    return predictor


@pytest.mark.parametrize("best", range(5))
def test_the_guess_whose_answer_promises_most_counts_and_the_others_can_be_looked_through(best: int) -> None:
    torch.manual_seed(0)
    model = Believes(TINY)
    model.expects = tuple(9.0 if guess == best else 0.0 for guess in range(5))
    predictor = a_predictor(model)
    image = torch.from_numpy(predictor._shown()[18:82, 18:82].astype(np.float32))[None, None]
    guess = box_guesses(image, torch.tensor([[[16.0, 16.0], [48.0, 48.0]]]), torch.tensor([[2, 3]]))[0, best]
    prompt = SlicePrompt(0, 0, box_xyxy_px=BOX)

    answer = predictor.predict(prompt)

    assert dice(answer.mask[18:82, 18:82], guess.numpy() > 0.5) > 0.99
    assert np.array_equal(predictor.predict_boxes(BOX[None])[0].mask, answer.mask)
    others = [predictor.predict(replace(prompt, choice=choice)).mask for choice in (1, 2)]
    assert all(dice(answer.mask, other) < 0.9 for other in others)
    assert dice(*others) < 0.9


@pytest.mark.parametrize("sides", [(60, 60, 60, 32, 32), (8, 8, 8, 32, 32)])
def test_the_answer_that_fits_the_box_counts(sides: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = Finds(TINY)
    model.sides = sides

    answer = a_predictor(model).predict(SlicePrompt(0, 0, box_xyxy_px=BOX))

    assert answer.mask.sum() == 32 * 32


def test_a_box_in_which_nothing_is_found_is_answered_with_nothing() -> None:
    torch.manual_seed(0)
    model = Finds(TINY)
    model.sides = (0,) * 5

    answer = a_predictor(model).predict(SlicePrompt(0, 0, box_xyxy_px=BOX))

    assert not answer.mask.any()
    assert answer.score == 0.0


def test_parts_that_lie_mostly_beyond_the_box_are_none_of_its_object() -> None:
    mask = np.zeros((30, 30), bool)
    mask[6:10, 8:20] = True  # 12 columns, 9 of them in the box
    mask[20:26, 2:11] = True  # 9 columns, 3 of them in the box
    mask[15:17, 14:17] = True
    mask[0, 29] = True
    box = np.array([8, 5, 16, 27], np.float32)

    kept = parts_inside(mask, box)

    expected = mask.copy()
    expected[20:26, 2:11] = False
    expected[0, 29] = False
    assert np.array_equal(kept, expected)
    assert not parts_inside(np.zeros((30, 30), bool), box).any()
    assert not parts_inside(mask, np.array([-9, -9, -3, -2], np.float32)).any()

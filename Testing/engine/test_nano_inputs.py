from __future__ import annotations

import numpy as np
import pytest
import torch
from medssl.foundation.nano_inputs import (
    CHANNELS,
    Appearance,
    _dilate,
    _patch_vote,
    learn_appearance,
    make_channels,
    update_appearance,
)
from medssl.foundation.nano_prompts import prior_mask
from torch import Tensor

SIZE = 64
FITTED, SOFT_TISSUE, BEFORE, MASK, EVIDENCE, VOTE, CLASSICAL = range(CHANNELS)


def a_disk(centre: tuple[float, float] = (30.0, 34.0), radius: float = 12.0) -> Tensor:
    row, col = np.mgrid[:SIZE, :SIZE]
    inside = (row - centre[0]) ** 2 + (col - centre[1]) ** 2 <= radius**2
    return torch.from_numpy(inside.astype(np.float32))[None, None]


def a_slice(mask: Tensor, organ_hu: float = 110.0, seed: int = 0) -> Tensor:
    """Whole HU, so that adding a number is exact."""
    noise = np.random.default_rng(seed).normal(0, 12, mask.shape)
    return torch.from_numpy(np.rint(mask.numpy() * organ_hu + noise).astype(np.float32))


# -------------------------------------------------------------------------------------------------- slow references


def slow_dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Largest value within radius // 2 cells of the 2 x 2 cell a pixel lies in."""
    half, reach = len(mask) // 2, radius // 2
    cells = mask.reshape(half, 2, half, 2).max((1, 3))
    grown = np.zeros_like(cells)
    for row in range(half):
        for col in range(half):
            grown[row, col] = cells[
                max(row - reach, 0) : row + reach + 1, max(col - reach, 0) : col + reach + 1
            ].max()
    return grown.repeat(2, 0).repeat(2, 1)


def slow_ring(mask: np.ndarray) -> np.ndarray:
    return np.maximum(slow_dilate(mask, len(mask) // 8) + 0.05 - mask, 0)


def slow_bin(fitted: float) -> int:
    return int(np.rint((fitted + 1.5) * 47 / 3))


def slow_histogram(fitted: np.ndarray, weight: np.ndarray) -> np.ndarray:
    counts = np.zeros(48)
    for value, share in zip(fitted.ravel(), weight.ravel(), strict=True):
        counts[slow_bin(value)] += share
    smooth = np.convolve(counts, [0.06, 0.24, 0.4, 0.24, 0.06], mode="same")
    return smooth / smooth.sum()


def slow_vote(image: np.ndarray, before: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """At half resolution, literally: every place's likeness is the mean square difference over 3 x 3."""
    half = len(image) // 2
    reach = half // 32
    image, before, mask = (a.reshape(half, 2, half, 2).mean((1, 3)) for a in (image, before, mask))
    difference = np.zeros((3, 3, half, half))
    inside_there = np.zeros((3, 3, half, half))
    for row, col, down, across in np.ndindex(half, half, 3, 3):
        r, c = row + (down - 1) * reach, col + (across - 1) * reach
        there = before[np.clip(r, 0, half - 1), np.clip(c, 0, half - 1)]
        difference[down, across, row, col] = (image[row, col] - there) ** 2
        inside_there[down, across, row, col] = mask[r, c] if 0 <= r < half and 0 <= c < half else 0.0
    odds = np.zeros((half, half))
    for row, col in np.ndindex(half, half):
        inside, total = 0.0, 2e-3
        for down, across in np.ndindex(3, 3):
            patch = difference[down, across, max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2]
            near = ((down - 1) ** 2 + (across - 1) ** 2) / 2
            weight = np.exp(-patch.mean() / (2 * 40.0**2) - near)
            inside += weight * inside_there[down, across, row, col]
            total += weight
        odds[row, col] = np.clip(np.log((inside + 1e-3) / (total - inside)), -4, 4)
    return odds


# ------------------------------------------------------------------------------------------------------------ tests


@pytest.mark.parametrize("radius", [2, 4, 8])
def test_growing_works_at_half_resolution(radius: int) -> None:
    mask = torch.from_numpy(np.random.default_rng(1).random((32, 32), np.float32) ** 8)

    grown = _dilate(mask[None, None], radius)[0, 0].numpy()

    np.testing.assert_array_equal(grown, slow_dilate(mask.numpy(), radius))


def test_window_and_histograms_are_those_of_a_literal_count() -> None:
    mask = a_disk() * 0.9
    image = a_slice(a_disk())
    inside, ring = mask[0, 0].numpy(), slow_ring(mask[0, 0].numpy())
    hu = image[0, 0].numpy().astype(np.float64)

    appearance = learn_appearance(image, mask)

    mean, beside = np.average(hu, weights=inside), np.average(hu, weights=ring)
    spread = np.sqrt(np.average((hu - mean) ** 2, weights=inside))
    half_width = np.clip(1.5 * abs(mean - beside) + 2 * spread, 60, 900)
    fitted = np.clip((hu - mean) / half_width, -1.5, 1.5)
    assert float(appearance.centre_hu) == pytest.approx(mean, abs=1e-2)
    assert float(appearance.half_width_hu) == pytest.approx(half_width, rel=1e-3)
    np.testing.assert_allclose(appearance.inside[0], slow_histogram(fitted, inside), atol=2e-3)
    np.testing.assert_allclose(appearance.outside[0], slow_histogram(fitted, ring), atol=2e-3)
    assert torch.equal(appearance.reference_inside, appearance.inside)


def test_the_evidence_is_the_log_ratio_of_the_two_histograms() -> None:
    mask, image = a_disk(), a_slice(a_disk())
    appearance = learn_appearance(image, mask)
    appearance.inside = appearance.inside.roll(2, 1)  # half of the say is the reference's

    channels = make_channels(appearance, image, image, mask)[0].double().numpy()

    inside = 0.5 * (appearance.reference_inside[0] + appearance.inside[0]).double().numpy()
    outside = 0.5 * (appearance.reference_outside[0] + appearance.outside[0]).double().numpy()
    table = np.clip(np.log((inside + 0.1 / 48) / (outside + 0.1 / 48)), -3, 3)
    expected = [[table[slow_bin(1.5 * value)] for value in row] for row in channels[FITTED]]
    np.testing.assert_allclose(3 * channels[EVIDENCE], expected, atol=1e-4)


def test_the_vote_is_that_of_a_literal_loop() -> None:
    mask, before = a_disk(), a_slice(a_disk())
    image = a_slice(a_disk((32.0, 33.0), 10.0), seed=1)

    vote = _patch_vote(image, before, mask)

    odds = slow_vote(image[0, 0].numpy(), before[0, 0].numpy(), mask[0, 0].numpy())
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(odds)[None, None], scale_factor=2, mode="bilinear"
    )
    np.testing.assert_allclose(vote, expected, atol=1e-3)


def test_on_an_identical_slice_all_evidence_points_at_the_mask() -> None:
    mask, image = a_disk(), a_slice(a_disk())

    channels = make_channels(learn_appearance(image, mask), image, image, mask)

    assert channels.shape == (1, CHANNELS, SIZE, SIZE)
    assert float(channels.abs().max()) <= 1.0
    assert torch.equal(channels[:, FITTED], channels[:, BEFORE])
    assert torch.equal(channels[:, MASK], 2 * mask[:, 0] - 1)
    assert torch.equal(channels[:, SOFT_TISSUE], ((image[:, 0] - 40) / 250).clamp(-1, 1))
    inside, outside = a_disk(radius=9.0)[:, 0] > 0, a_disk(radius=16.0)[:, 0] == 0
    for channel in (EVIDENCE, VOTE, CLASSICAL):
        assert float((channels[:, channel][inside] > 0).float().mean()) > 0.99
        assert float((channels[:, channel][outside] < 0).float().mean()) > 0.99


@pytest.mark.parametrize("mask", [torch.zeros(1, 1, SIZE, SIZE), torch.ones(1, 1, SIZE, SIZE), a_disk()])
def test_constant_images_and_extreme_masks_give_finite_channels(mask: Tensor) -> None:
    flat = torch.full((1, 1, SIZE, SIZE), 17.0)

    appearance = learn_appearance(flat, mask)
    channels = make_channels(appearance, flat, flat, mask)
    followed = update_appearance(appearance, flat, mask)

    assert bool(channels.isfinite().all())
    assert bool(followed.inside.isfinite().all())
    assert bool(followed.outside.isfinite().all())


@pytest.mark.parametrize("shift_hu", [-1000.0, 37.0, 512.0])
def test_the_fitted_window_does_not_see_a_shift_of_all_intensities(shift_hu: float) -> None:
    mask, image, before = a_disk(), a_slice(a_disk(), seed=1), a_slice(a_disk())

    def fitted(shift: float) -> Tensor:
        appearance = learn_appearance(before + shift, mask)
        return make_channels(appearance, image + shift, before + shift, mask)[:, [FITTED, BEFORE, MASK]]

    torch.testing.assert_close(fitted(shift_hu), fitted(0.0), atol=2e-3, rtol=0)


def test_the_histograms_follow_the_object_and_stay_where_nothing_was_found() -> None:
    mask = torch.cat([a_disk(), torch.zeros(1, 1, SIZE, SIZE)])
    image = a_slice(a_disk()).expand(2, -1, -1, -1)
    brighter = image + 30
    before = learn_appearance(image, a_disk().expand(2, -1, -1, -1))

    after = update_appearance(before, brighter, mask, rate=0.25)

    fitted = (brighter[0] - before.centre_hu[0]) / before.half_width_hu[0]
    fresh = slow_histogram(fitted.clamp(-1.5, 1.5).numpy(), a_disk().numpy())
    np.testing.assert_allclose(after.inside[0], 0.75 * before.inside[0].numpy() + 0.25 * fresh, atol=2e-3)
    assert torch.equal(after.inside[1], before.inside[1])
    assert torch.equal(after.outside[1], before.outside[1])
    assert torch.equal(after.reference_inside, before.reference_inside)


def test_rows_of_a_batch_know_nothing_of_each_other() -> None:
    masks = torch.cat([a_disk(), a_disk((20.0, 20.0), 6.0)])
    images = torch.cat([a_slice(masks[:1]), a_slice(masks[1:], 300.0)])

    def channels(appearance: Appearance, rows: slice) -> Tensor:
        return make_channels(appearance, images[rows], images[rows], masks[rows])

    together = channels(learn_appearance(images, masks), slice(None))
    second = channels(learn_appearance(images, masks).rows(torch.tensor([1])), slice(1, 2))

    torch.testing.assert_close(together[1:], second)
    torch.testing.assert_close(together[:1], channels(learn_appearance(images[:1], masks[:1]), slice(1)))


def points(*labelled: tuple[float, float, int]) -> tuple[Tensor, Tensor]:
    rows = torch.tensor(labelled)
    return rows[None, :, :2], rows[None, :, 2].int()


def test_clicks_are_guessed_to_be_small_disks_where_the_object_is() -> None:
    guess = prior_mask(*points((10.5, 20.5, 1), (40.5, 50.5, 1), (30.5, 8.5, 0)), SIZE)[0, 0].numpy()

    assert guess[20, 10] == pytest.approx(1.0)
    assert guess[50, 40] == pytest.approx(1.0)
    assert guess[8, 30] < 0.01
    assert np.pi * 2**2 < (guess > 0.5).sum() < 2 * np.pi * 4**2


def test_padding_and_clicks_beside_a_box_do_not_change_the_guess() -> None:
    clicked, boxed = points((10, 20, 1)), points((10, 20, 2), (50, 36, 3))
    padded = points((10, 20, 1), (33, 33, -1), (0, 0, -1))
    with_click = points((10, 20, 2), (50, 36, 3), (5, 60, 1))

    assert torch.equal(prior_mask(*padded, SIZE), prior_mask(*clicked, SIZE))
    assert torch.equal(prior_mask(*with_click, SIZE), prior_mask(*boxed, SIZE))


def test_padding_alone_guesses_nothing() -> None:
    assert not prior_mask(*points((5, 5, -1)), SIZE).any()

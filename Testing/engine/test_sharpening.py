"""A coarse mask comes closer to what the volume itself shows, and loses nothing where that says nothing."""

from __future__ import annotations

import numpy as np
import pytest
from medssl.errors import Cancelled
from medssl.events import Progress, drain
from medssl.metrics import dice
from medssl.segmentation import Segment, Segmentation
from medssl.sharpening import FEATURES, WEIGHTS, Surroundings, features, sharpen
from medssl.volume import Volume
from scipy import ndimage

GRID = np.diag([2.0, 2.0, 3.0, 1.0])
SPACING_KJI = (3.0, 2.0, 2.0)
SEGMENTS = (Segment("liver", 3, (1.0, 0.0, 0.0)), Segment("spleen", 7, (0.0, 1.0, 0.0)))
SHAPE = (18, 48, 56)


def ball(centre: tuple[int, int, int], radii: tuple[int, int, int]) -> np.ndarray:
    places = np.indices(SHAPE, float)
    return sum(((p - c) / r) ** 2 for p, c, r in zip(places, centre, radii, strict=True)) < 1  # type: ignore[no-any-return]


LIVER, SPLEEN = ball((9, 20, 16), (6, 12, 10)), ball((9, 26, 42), (5, 9, 8))


def scan(contrast: float = 90.0) -> Volume:
    noise = np.random.default_rng(0).normal(0, 12, SHAPE)
    image = (LIVER | SPLEEN) * contrast + noise - 20
    return Volume(image.astype(np.int16), GRID)


def too_fat(pixels: int = 3) -> tuple[Segmentation, np.ndarray]:
    """Both organs with a rim of neighbours, of which the network is less and less sure."""
    labels, sure = np.zeros(SHAPE, np.uint8), np.full(SHAPE, 0.97, np.float32)
    for mask, label in ((LIVER, 3), (SPLEEN, 7)):
        away = ndimage.distance_transform_edt(~mask, sampling=(1.5, 1.0, 1.0))
        labels[away <= pixels] = label
        rim = (away > 0) & (away <= pixels)
        sure[rim] = 0.9 - 0.1 * away[rim] / pixels
    return Segmentation(labels, GRID, SEGMENTS), sure


def sharpened(volume: Volume, coarse: Segmentation, sure: np.ndarray) -> Segmentation:
    return drain(sharpen(volume, coarse, sure), lambda event: None)


@pytest.mark.parametrize("contrast", [90.0, -70.0])
def test_what_the_intensities_speak_against_goes(contrast: float) -> None:
    coarse, sure = too_fat()
    found = sharpened(scan(contrast), coarse, sure)
    for name, truth in (("liver", LIVER), ("spleen", SPLEEN)):
        assert dice(coarse.mask(name), truth) < 0.8
        assert dice(found.mask(name), truth) > 0.88
    assert found.segments == SEGMENTS


def test_what_the_network_missed_beside_a_sure_part_joins() -> None:
    coarse, sure = too_fat(pixels=0)
    labels = coarse.labels_kji.copy()
    labels[:, 26:30][labels[:, 26:30] == 3] = 0
    sure[:, 26:30] = 0.6
    cut = Segmentation(labels, GRID, SEGMENTS)
    missed = LIVER & ~cut.mask("liver")
    found = sharpened(scan(), cut, sure)
    assert found.mask("liver")[missed].mean() > 0.5


def test_each_voxel_goes_to_one_segment_and_empty_ones_stay_empty() -> None:
    coarse, sure = too_fat()
    only = Segmentation(np.where(coarse.labels_kji == 3, 3, 0).astype(np.uint8), GRID, SEGMENTS)
    found = sharpened(scan(), only, sure)
    assert not found.mask("spleen").any()
    np.testing.assert_array_equal(
        found.mask("liver")[:, :, :28], sharpened(scan(), coarse, sure).mask("liver")[:, :, :28]
    )


def test_an_object_that_looks_like_nothing_in_particular_keeps_its_mask() -> None:
    coarse, _ = too_fat()
    doubtful = np.full(SHAPE, 0.55, np.float32)
    noise = Volume(np.random.default_rng(1).normal(0, 12, SHAPE).astype(np.int16), GRID)
    found = sharpened(noise, coarse, doubtful)
    np.testing.assert_array_equal(found.labels_kji, coarse.labels_kji)


def test_an_object_of_which_the_surest_part_is_a_wrong_one_keeps_its_mask() -> None:
    """Else the right part would go, because it does not look like the wrong one."""
    labels = np.where(LIVER, 3, 0).astype(np.uint8)
    labels[SPLEEN] = 3
    sure = np.where(SPLEEN, 0.999, 0.6).astype(np.float32)
    unlike = Volume((LIVER * 90 - SPLEEN * 250).astype(np.int16), GRID)
    coarse = Segmentation(labels, GRID, SEGMENTS)
    np.testing.assert_array_equal(sharpened(unlike, coarse, sure).labels_kji, labels)


def test_features_are_what_they_are_said_to_be() -> None:
    coarse, sure = too_fat()
    around = Surroundings.of(scan(), coarse.mask("liver"), sure)
    assert around is not None
    near = around.near
    values = dict(zip(FEATURES, features(around), strict=True))
    inside = around.mask[near]
    assert len(WEIGHTS) == len(FEATURES)
    np.testing.assert_array_equal(values["1"], 1.0)
    np.testing.assert_allclose(
        values["L"][inside], np.log(sure / (1 - sure))[around.box][near][inside], rtol=1e-4
    )
    assert (values["L"][~inside] <= 0).all()
    sigma = [2.0 / mm for mm in SPACING_KJI]
    odds = np.zeros(near.shape, np.float32)
    chance = np.clip(np.where(around.mask, around.chance, np.minimum(around.chance, 0.5)), 1e-3, 1 - 1e-3)
    odds = np.log(chance / (1 - chance))
    smooth = ndimage.gaussian_filter(odds, sigma, truncate=3.0)
    np.testing.assert_allclose(values["L2"], smooth[near], atol=1e-4)
    truth = LIVER[around.box][near]
    assert values["evidence"][truth].mean() > 1 > -1 > values["evidence"][~truth].mean()


def test_it_can_be_stopped_and_says_how_far_it_is() -> None:
    coarse, sure = too_fat()
    events: list[Progress] = []
    drain(sharpen(scan(), coarse, sure), events.append)
    assert [(event.done, event.total) for event in events] == [(1, 2), (2, 2)]
    with pytest.raises(Cancelled):
        drain(sharpen(scan(), coarse, sure, lambda: True), events.append)

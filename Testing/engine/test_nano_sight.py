from __future__ import annotations

import numpy as np
import pytest
from medssl.foundation.nano_sight import (
    SLICE_FEATURES,
    Course,
    IntensityScale,
    Sight,
    Surroundings,
    clipped_logit,
)

SIDE = 48


def a_square(start: int = 16, stop: int = 32) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[start:stop, start:stop] = True
    return mask


def an_image(inside: float = 60.0, beside: float = -100.0, noise: float = 10.0, seed: int = 0) -> np.ndarray:
    noisy = np.random.default_rng(seed).normal(0.0, noise, (SIDE, SIDE))
    return (np.where(a_square(), inside, beside) + noisy).astype(np.int16)


def a_sight(
    area: int = 256, inside: float = 0.6, likeness: float | None = 0.9, sureness: float = 0.8
) -> Sight:
    around = Surroundings(inside, 0.05, 0.3, 0.1, 0.02, likeness)
    return Sight(area=area, around=around, network_logit=2.0, intensity_logit=1.0, sureness=sureness)


def named(features: np.ndarray) -> dict[str, float]:
    return dict(zip(SLICE_FEATURES, features.tolist(), strict=True))


def a_course() -> Course:
    return Course(a_sight(likeness=None).as_reference(256), pixel_mm2=4.0, step_mm=5.0)


def test_an_image_and_what_lies_beside_the_object_are_seen_on_the_objects_own_scale() -> None:
    image, mask = an_image(), a_square()
    scale = IntensityScale.around(image, mask)
    seen = Surroundings.of(image, mask, scale, an_image(seed=1))
    shown = np.clip((image - scale.low) / (scale.high - scale.low), 0, 1)
    box = np.zeros_like(mask)
    box[10:38, 10:38] = True  # a quarter of 16 pixels and two more, on every side
    assert seen.inside == pytest.approx(shown[mask].mean(), abs=1e-5)
    assert seen.spread == pytest.approx(max(shown[mask].std(), 0.02), abs=1e-5)
    assert seen.beside == pytest.approx(shown[box & ~mask].mean(), abs=1e-5)
    assert seen.likeness is not None
    assert 0.9 < seen.likeness < 1.0


def test_neither_the_scale_of_the_intensities_nor_the_size_of_the_pixels_matters() -> None:
    image, before, mask = an_image().astype(np.float32), an_image(seed=1).astype(np.float32), a_square()

    def features(factor: float, offset: float, repeat: int) -> np.ndarray:
        def large(array: np.ndarray) -> np.ndarray:
            return array.repeat(repeat, 0).repeat(repeat, 1)

        first, second, inside = large(image * factor + offset), large(before * factor + offset), large(mask)
        scale = IntensityScale.around(first, inside)
        course = Course(
            Sight(area=int(inside.sum()), around=Surroundings.of(first, inside, scale)), 4.0 / repeat**2, 5.0
        )
        around = Surroundings.of(second, inside, scale, first)
        return course.go_on(Sight(area=int(inside.sum()), around=around))

    plain = features(1.0, 0.0, 1)
    np.testing.assert_allclose(features(0.01, 7.0, 1), plain, atol=1e-3)
    np.testing.assert_allclose(features(1.0, 0.0, 4), plain, atol=0.1)


def test_large_objects_are_looked_at_on_every_other_pixel_only_and_look_the_same() -> None:
    image, mask = (part.repeat(8, 0).repeat(8, 1) for part in (an_image(), a_square()))
    scale = IntensityScale.around(image, mask)
    large = Surroundings.of(image, mask, scale)
    small = Surroundings.of(an_image(), a_square(), scale)
    assert large.inside == pytest.approx(small.inside, abs=0.01)
    assert large.beside == pytest.approx(small.beside, abs=0.02)


def test_features_say_what_their_names_say() -> None:
    course = a_course()
    for area in (200, 300, 100):
        course.go_on(a_sight(area))
    values = named(course.go_on(a_sight(60, inside=0.7, likeness=0.5, sureness=0.55)))
    spread_contrast = 0.3 / np.hypot(0.05, 0.1) + 0.05
    contrast = 0.4 / np.hypot(0.05, 0.1) + 0.05
    assert values == {
        "constant": 1.0,
        "logit of the network's object score": 2.0,
        "logit of the intensity tracker's object score": 1.0,
        "Dice of the two masks": 0.9,
        "mean probability inside the mask": 0.55,
        "Dice with the mask of the slice before": 0.9,
        "log of the area over the reference slice's": pytest.approx(np.log(61 / 257)),
        "log of the reference slice's area in square millimetres": pytest.approx(np.log(1024.0)),
        "log of 1 + distance from the reference slice over the object's width there": pytest.approx(
            np.log1p(20.0 / 32.0)
        ),
        "log of 1 + distance from the reference slice in millimetres": pytest.approx(np.log1p(20.0)),
        "distance from the reference slice in units of 50 mm": 0.4,
        "log of the area over the largest so far": pytest.approx(np.log(61 / 301)),
        "log of the area over that of the slice before": pytest.approx(np.log(61 / 101)),
        "log of the area over that of three slices before": pytest.approx(np.log(61 / 201)),
        "mean intensity inside less the reference slice's, in its spreads": pytest.approx(2.0),
        "log of the spread inside over the reference slice's": 0.0,
        "mean intensity beside less the reference slice's, in its spreads": 0.0,
        "log of the contrast over the reference slice's": pytest.approx(np.log(contrast / spread_contrast)),
        "mean change inside since the slice before, in spreads of the reference slice": pytest.approx(0.4),
        "correlation of the image with that of the slice before": 0.5,
        "that less its mean over the three slices before": pytest.approx(-0.4),
        "mean logit of the network's object score over the three slices before": 2.0,
        "mean logit of the intensity tracker's object score over the three slices before": 1.0,
        "mean Dice of the two masks over the three slices before": pytest.approx(0.9),
        "mean probability inside the mask, over the three slices before": pytest.approx(0.8),
        "mean Dice with the mask of the slice before, over the three slices before": pytest.approx(0.9),
        "least mean probability inside the mask so far": 0.55,
    }


def test_the_first_slice_is_compared_with_the_annotated_one() -> None:
    values = named(a_course().go_on(a_sight(area=127)))
    for name in ("largest so far", "slice before", "three slices before"):
        area = next(
            value for key, value in values.items() if key.startswith("log of the area") and name in key
        )
        assert area == pytest.approx(np.log(128 / 257))
    assert values["that less its mean over the three slices before"] == 0.0
    assert values["mean logit of the network's object score over the three slices before"] == 3.0


def test_nothing_found_flat_images_and_metal_have_finite_features() -> None:
    mask, nothing = a_square(), np.zeros((SIDE, SIDE), bool)
    flat, metal = np.zeros((SIDE, SIDE), np.int16), np.full((SIDE, SIDE), 30000, np.int16)
    scale = IntensityScale.around(flat, mask)
    course = Course(Sight(area=256, around=Surroundings.of(flat, mask, scale)), 1.0, 3.0)
    for image, found in ((flat, nothing), (metal, mask), (flat, nothing), (metal, nothing)):
        around = Surroundings.of(image, found, scale, flat)
        sight = Sight(area=int(found.sum()), around=around, sureness=0.0, agreement=0.0)
        values = course.go_on(sight)
        assert np.isfinite(values).all()
        assert np.abs(values).max() < 10


def test_a_slice_that_might_have_been_annotated_is_taken_for_surely_the_object() -> None:
    seen = a_sight(area=50, sureness=0.2)
    reference = seen.as_reference(80)
    assert reference == Sight(area=80, around=Surroundings(0.6, 0.05, 0.3, 0.1))


def test_scores_of_nought_and_one_have_a_logit() -> None:
    assert clipped_logit(0.75) == pytest.approx(np.log(3.0))
    assert clipped_logit(1.0) == pytest.approx(np.log(999.0))
    assert clipped_logit(0.0) == pytest.approx(-np.log(999.0))

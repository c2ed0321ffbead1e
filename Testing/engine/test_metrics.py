"""Metrics agree with a slow and obvious version and with MONAI, and say what they do with empty masks."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
from medssl.errors import InputError
from medssl.metrics import (
    dice,
    evaluate,
    hausdorff95_mm,
    normalised_surface_dice,
    surface_distances_mm,
    volume_error,
)
from medssl.segmentation import Segment, Segmentation
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.7, 0.9)]


def ball(center: tuple[float, ...], radius: float, shape: tuple[int, ...] = (11, 13, 12)) -> Mask:
    grids = np.ogrid[tuple(slice(n) for n in shape)]
    mask: Mask = sum((g - c) ** 2 for g, c in zip(grids, center, strict=True)) <= radius**2
    return mask


def noise(seed: int, part: float = 0.1) -> Mask:
    mask: Mask = np.random.default_rng(seed).random((6, 7, 8)) < part
    return mask


def border() -> Mask:
    """Touches every side of the array."""
    mask = np.ones((5, 6, 7), bool)
    mask[2, 3, 3] = False
    return mask


def line() -> Mask:
    mask = np.zeros((5, 6, 7), bool)
    mask[2, 3, :] = True
    return mask


PAIRS = {
    "balls that overlap": (ball((5, 6, 6), 4), ball((5, 7, 5), 3.5)),
    "balls apart": (ball((2, 2, 2), 2), ball((8, 9, 9), 2.5)),
    "one inside the other": (ball((5, 6, 6), 4.5), ball((5, 6, 6), 2)),
    "the same": (ball((5, 6, 6), 4), ball((5, 6, 6), 4)),
    "noise": (noise(1), noise(2)),
    "dense noise": (noise(3, 0.7), noise(4, 0.8)),
    "to the border": (border(), line()),
    "two voxels": (ball((3, 3, 3), 0), ball((8, 9, 10), 0)),
}


def slow_surface(mask: Mask) -> list[tuple[int, ...]]:
    """Voxels of a mask that have one of six neighbours outside it or beyond the edge."""
    padded = np.pad(mask, 1)
    steps = [tuple(sign * (axis == a) for a in range(3)) for axis in range(3) for sign in (-1, 1)]
    return [
        voxel
        for voxel in itertools.product(*(range(n) for n in mask.shape))
        if mask[voxel]
        and not all(padded[tuple(v + s + 1 for v, s in zip(voxel, step, strict=True))] for step in steps)
    ]


def slow_distances(a: Mask, b: Mask, spacing: tuple[float, ...]) -> list[float]:
    def apart(p: tuple[int, ...], q: tuple[int, ...]) -> float:
        return math.sqrt(sum(((x - y) * s) ** 2 for x, y, s in zip(p, q, spacing, strict=True)))

    others = slow_surface(b)
    return [min(apart(p, q) for q in others) for p in slow_surface(a)]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", PAIRS)
def test_distances_scores_and_tolerance_agree_with_the_slow_version(
    name: str, spacing: tuple[float, float, float]
) -> None:
    a, b = PAIRS[name]
    there, back = slow_distances(a, b, spacing), slow_distances(b, a, spacing)
    np.testing.assert_allclose(surface_distances_mm(a, b, spacing)[0], there, atol=1e-9)
    np.testing.assert_allclose(surface_distances_mm(a, b, spacing)[1], back, atol=1e-9)
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert hausdorff95_mm(a, b, spacing) == pytest.approx(expected)
    near = sum(d <= 1.5 for d in there + back) / len(there + back)
    assert normalised_surface_dice(a, b, spacing, 1.5) == pytest.approx(near)


@pytest.mark.filterwarnings(
    "ignore:monai.metrics.utils:FutureWarning"
)  # monai warns itself of its own option
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", PAIRS)
def test_scores_agree_with_monai(name: str, spacing: tuple[float, float, float]) -> None:
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")
    a, b = (torch.from_numpy(mask)[None, None].float() for mask in PAIRS[name])
    hd95 = monai.compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=spacing)
    nsd = monai.compute_surface_dice(a, b, [1.5], include_background=True, spacing=spacing)
    overlap = monai.compute_dice(a, b)
    assert hausdorff95_mm(*PAIRS[name], spacing) == pytest.approx(float(hd95), rel=1e-5)
    assert normalised_surface_dice(*PAIRS[name], spacing, 1.5) == pytest.approx(float(nsd), rel=1e-5)
    assert dice(*PAIRS[name]) == pytest.approx(float(overlap), rel=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_scores_do_not_care_which_mask_comes_first(name: str) -> None:
    a, b = PAIRS[name]
    assert dice(a, b) == dice(b, a)
    assert hausdorff95_mm(a, b, (3, 0.7, 0.9)) == hausdorff95_mm(b, a, (3, 0.7, 0.9))
    assert normalised_surface_dice(a, b, (3, 0.7, 0.9), 2) == normalised_surface_dice(b, a, (3, 0.7, 0.9), 2)


def test_closed_forms() -> None:
    cube, moved = np.zeros((12, 12, 12), bool), np.zeros((12, 12, 12), bool)
    cube[2:6, 2:6, 2:6] = True
    moved[4:8, 2:6, 2:6] = True
    assert dice(cube, moved) == 0.5
    assert hausdorff95_mm(cube, moved, (3, 1, 1)) == 6
    assert volume_error(cube, moved) == 0
    moved[8] = moved[7]
    assert volume_error(moved, cube) == 0.25
    assert volume_error(cube, moved) == -0.2
    voxel, other = ball((1, 1, 1), 0), ball((1, 1, 5), 0)
    assert hausdorff95_mm(voxel, other, (3, 0.7, 0.9)) == pytest.approx(3.6)


def test_the_tolerance_includes_its_end() -> None:
    a, b = ball((1, 1, 1), 0), ball((1, 1, 3), 0)
    assert normalised_surface_dice(a, b, (1, 1, 1), 2.0) == 1
    assert normalised_surface_dice(a, b, (1, 1, 1), 1.999) == 0
    assert normalised_surface_dice(a, a, (1, 1, 1), 0) == 1


def test_empty_masks_have_a_policy() -> None:
    none, some = np.zeros((4, 5, 6), bool), ball((2, 2, 2), 1, (4, 5, 6))
    assert dice(none, none) == 1
    assert hausdorff95_mm(none, none, (1, 1, 1)) == 0
    assert normalised_surface_dice(none, none, (1, 1, 1), 2) == 1
    assert volume_error(none, none) == 0
    for a, b in ((none, some), (some, none)):
        assert dice(a, b) == 0
        assert hausdorff95_mm(a, b, (1, 1, 1)) == np.inf
        assert normalised_surface_dice(a, b, (1, 1, 1), 1e9) == 0
    assert volume_error(none, some) == -1
    assert volume_error(some, none) == np.inf


def test_masks_and_spacings_that_do_not_fit_are_refused() -> None:
    a = np.ones((4, 5, 6), bool)
    for call in (dice, volume_error, lambda x, y: hausdorff95_mm(x, y, (1, 1, 1))):
        with pytest.raises(
            InputError, match=r"shapes \(4, 5, 6\) and \(3, 5, 6\); compare masks of one grid"
        ):
            call(a, a[1:])
    with pytest.raises(InputError, match="three spacings above 0"):
        hausdorff95_mm(a, a, (1, 0, 1))
    with pytest.raises(InputError, match="need 3D masks"):
        hausdorff95_mm(a[0], a[0], (1, 1, 1))


def organs(names: dict[str, Mask], spacing: tuple[float, float, float] = (3.0, 0.7, 0.9)) -> Segmentation:
    labels = np.zeros((11, 13, 12), np.uint8)
    for label, mask in enumerate(names.values(), start=1):
        labels[mask] = label
    segments = tuple(Segment(name, label, (1, 0, 0)) for label, name in enumerate(names, start=1))
    return Segmentation(labels, np.diag([*spacing[::-1], 1.0]), segments)


def test_a_segmentation_is_scored_segment_by_segment() -> None:
    truth = organs({"liver": ball((3, 3, 3), 2), "spleen": ball((8, 9, 8), 2)})
    guess = organs({"spleen": ball((8, 9, 9), 2), "tumour": ball((3, 10, 3), 1), "liver": ball((3, 3, 3), 2)})
    scores = {score.segment: score for score in evaluate(guess, truth, tolerance_mm=1.0)}
    assert list(scores) == ["liver", "spleen", "tumour"]
    liver, spleen, tumour = scores.values()
    assert (liver.dice, liver.hd95_mm, liver.nsd, liver.volume_error) == (1, 0, 1, 0)
    a, b = ball((8, 9, 9), 2), ball((8, 9, 8), 2)
    assert spleen.dice == dice(a, b)
    assert spleen.hd95_mm == hausdorff95_mm(a, b, (3.0, 0.7, 0.9))
    assert spleen.nsd == normalised_surface_dice(a, b, (3.0, 0.7, 0.9), 1.0)
    assert spleen.tolerance_mm == 1.0
    assert spleen.true_ml == pytest.approx(b.sum() * 3.0 * 0.7 * 0.9 / 1000)
    assert (tumour.dice, tumour.hd95_mm, tumour.nsd, tumour.true_ml) == (0, np.inf, 0, 0)
    assert tumour.predicted_ml > 0


def test_a_segment_that_was_not_predicted_scores_zero() -> None:
    truth = organs({"liver": ball((3, 3, 3), 2), "spleen": ball((8, 9, 8), 2)})
    guess = organs({"liver": ball((3, 3, 3), 2)})
    assert [(s.segment, s.dice) for s in evaluate(guess, truth)] == [("liver", 1), ("spleen", 0)]
    assert [(s.segment, s.dice) for s in evaluate(guess, truth, segments=["liver"])] == [("liver", 1)]


def test_segmentations_that_cannot_be_compared_are_refused() -> None:
    truth = organs({"liver": ball((3, 3, 3), 2)})
    cases = [
        (
            organs({"spleen": ball((3, 3, 3), 2)}),
            {},
            r"prediction \(spleen\) and the truth \(liver\) share no segment",
        ),
        (organs({"liver": ball((3, 3, 3), 2)}, (2.0, 0.7, 0.9)), {}, "lies up to 10 mm off the voxels of"),
        (truth, {"tolerance_mm": -1.0}, "tolerance is -1 mm; give 0 or more"),
        (truth, {"segments": ["heart"]}, "has no segment 'heart'; choose from those it has: 1 = liver"),
    ]
    for guess, options, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            evaluate(guess, truth, **options)  # type: ignore[arg-type]
        assert re.fullmatch(r"[^\n]+\.", str(caught.value))

"""The next slice worth annotating: the formula against a literal loop, and the behaviour a user expects."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from medssl.errors import InputError
from medssl.suggest import Evidence, embed_slices, suggest_slices, suggest_volumes
from medssl.volume import Volume, Window


def organ(slices: int = 21, **more: object) -> Evidence:
    """An organ of 100 pixels on slices 3 .. slices - 4, annotated in the middle, tracked without doubt."""
    area = np.zeros(slices)
    area[3:-3] = 100.0
    known = Evidence("liver", 0, 5.0, area, (slices // 2,), confidence=np.where(area > 0, 0.95, np.nan))
    return replace(known, **more)  # type: ignore[arg-type]


def drift(distance: float, reach: float) -> float:
    return 1.0 - math.exp(-distance / reach)


def literal_gains(evidence: Evidence, signs: np.ndarray, reach: float) -> list[float]:
    """Between the outermost reference slices, where the object is for certain."""
    gains = []
    for z in range(len(evidence.area_px)):
        gain = 0.0
        for s, area in enumerate(evidence.area_px):
            now = min(abs(s - r) * evidence.step_mm for r in evidence.references)
            then = min(now, abs(s - z) * evidence.step_mm)
            if now > 0:
                wrong = 1 - (1 - 0.5 * drift(now, reach)) * (1 - signs[s])
                gain += wrong * area * (1 - drift(then, reach) / drift(now, reach))
        gains.append(gain)
    return gains


def test_the_gain_is_the_sum_of_what_a_reference_slice_puts_right() -> None:
    rng = np.random.default_rng(0)
    area = rng.uniform(50, 150, 12)
    uncertainty, agreement = rng.uniform(0, 0.5, 12), rng.uniform(0.5, 1, 12)
    evidence = Evidence("a", 1, 3.0, area, (0, 11), uncertainty=uncertainty, agreement=agreement)
    gains = literal_gains(evidence, 1 - (1 - uncertainty) * agreement, 20.0)
    (best,) = suggest_slices([evidence], count=1, reach_mm=20.0)
    assert best.index == int(np.argmax(gains))
    assert best.gain == pytest.approx(max(gains))
    assert (best.axis, best.segment) == (1, "a")


def test_an_end_that_may_be_overrun_is_looked_for_before_the_inside_is_mended() -> None:
    area = np.zeros(60)
    area[20:56] = 100.0  # annotated from 22 to 30; a long way beyond
    known = Evidence("a", 0, 3.0, area, (22, 26, 30), confidence=np.where(area > 0, 0.9, np.nan))
    (best,) = suggest_slices([known], count=1)
    assert 36 < best.index < 55


def test_beyond_a_slice_without_the_object_nothing_is_suggested() -> None:
    area = np.zeros(30)
    area[8:18] = 100.0
    known = Evidence("a", 0, 3.0, area, (12,), (7, 18), confidence=np.where(area > 0, 0.9, np.nan))
    indices = {s.index for s in suggest_slices([known], count=30)}
    assert indices
    assert indices <= set(range(8, 18))


def test_what_was_found_past_a_slice_without_the_object_is_known_to_be_wrong() -> None:
    """The tracker overran the end by 20 slices, and somebody has looked at one of them."""
    area = np.zeros(60)
    area[10:50] = 100.0
    known = Evidence("a", 0, 3.0, area, (20,), confidence=np.where(area > 0, 0.9, np.nan))
    assert max(s.index for s in suggest_slices([known], count=20)) > 31
    seen = replace(known, absent=(31,))
    assert max(s.index for s in suggest_slices([seen], count=20)) < 31
    hole = replace(known, references=(20, 40), absent=(30,))
    assert 30 not in {s.index for s in suggest_slices([hole], count=60)}
    assert suggest_slices([replace(known, references=(), absent=range(60))]) == []


def test_both_sides_of_one_reference_slice_count_alike() -> None:
    (low, high) = suggest_slices([organ(21)], count=2)
    assert low.index + high.index == 20


def test_where_the_tracker_doubts_comes_first() -> None:
    confidence = np.where(organ().area_px > 0, 0.95, np.nan)
    confidence[14:17] = 0.2
    (best,) = suggest_slices([organ(confidence=confidence)], count=1)
    assert best.index in (14, 15, 16)
    assert "tracker is unsure" in best.reason


def test_a_gap_in_the_middle_is_said_to_be_a_lost_object() -> None:
    area = organ().area_px.copy()
    area[14:17] = 0.0
    confidence = np.where(area > 0, 0.95, 0.05)
    first = suggest_slices([organ(area_px=area * 3, confidence=confidence, references=(10, 20))], count=3)
    assert any("lost the object" in s.reason for s in first)


def test_without_any_sign_of_trouble_the_farthest_slices_come_first() -> None:
    first, second = suggest_slices([organ(41)], count=2)
    assert first.index < 20 < second.index or second.index < 20 < first.index
    assert "far from any reference slice" in first.reason


def test_suggestions_spread_out_and_never_repeat() -> None:
    suggestions = suggest_slices([organ(61)], count=6)
    indices = sorted(s.index for s in suggestions)
    assert len(set(indices)) == 6
    assert min(np.diff(indices)) >= 3


def test_a_reference_slice_is_never_suggested_again() -> None:
    evidence = organ(references=tuple(range(21)))
    assert suggest_slices([evidence]) == []


def test_slices_far_outside_the_object_are_never_suggested() -> None:
    indices = {s.index for s in suggest_slices([organ(41)], count=41)}
    assert indices <= set(range(41))
    area = np.zeros(41)
    area[18:23] = 50.0
    assert {s.index for s in suggest_slices([organ(41, area_px=area)], count=41)} <= set(range(15, 26))


def test_the_larger_of_two_equally_doubtful_organs_comes_first() -> None:
    small = replace(organ(), segment="gallbladder", area_px=organ().area_px / 10)
    assert suggest_slices([small, organ()], count=1)[0].segment == "liver"


def test_an_organ_that_nobody_annotated_is_suggested_where_it_is_largest() -> None:
    area = np.array([0, 10, 40, 90, 40, 10, 0], float)
    best, *others = suggest_slices([Evidence("spleen", 0, 5.0, area)], count=3)
    assert best.index == 3
    assert others
    assert all("no slice of this segment is annotated yet" in each.reason for each in (best, *others))


def test_a_slice_unlike_the_annotated_ones_gains_from_it() -> None:
    embeddings = np.tile(np.float32([1, 0]), (21, 1))
    embeddings[5] = [-1, 0]
    plain, novel = (
        [s.index for s in suggest_slices([known], count=21)]
        for known in (organ(), organ(embeddings=embeddings))
    )
    assert novel.index(5) < plain.index(5)


def test_nothing_found_yet_is_said() -> None:
    with pytest.raises(InputError, match="annotate one slice of it first"):
        suggest_slices([Evidence("liver", 0, 5.0, np.zeros(10))])


def test_curves_of_different_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="The uncertainty of liver has 4 slices, not 5"):
        Evidence("liver", 0, 5.0, np.zeros(5), uncertainty=np.zeros(4))


def test_equal_slices_have_equal_embeddings_of_unit_length() -> None:
    voxels = np.random.default_rng(1).integers(-200, 300, (4, 40, 30)).astype(np.int16)
    voxels[3] = voxels[0]
    embeddings = embed_slices(Volume(voxels, np.eye(4)), 0)
    assert np.array_equal(embeddings[0], embeddings[3])
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-5)
    assert embeddings[0] @ embeddings[1] < 0.99


def test_a_large_slice_is_described_as_the_same_slice_at_half_the_size() -> None:
    rows, columns = np.indices((256, 256)) / 256
    large = np.stack([300 * np.sin(6 * rows + n) * np.cos(4 * columns) for n in range(3)])
    found = [
        embed_slices(Volume(v.astype(np.float32), np.eye(4)), 0, Window(0, 600))
        for v in (large, large[:, ::2, ::2])
    ]
    np.testing.assert_allclose(found[0], found[1], atol=0.02)


def test_volumes_are_ranked_by_doubt_and_by_novelty() -> None:
    doubtful = organ(confidence=np.full(21, 0.5))
    ranked = suggest_volumes(
        {"sure": [organ()], "doubtful": [doubtful], "empty": [organ(area_px=np.zeros(21))]}
    )
    assert [volume.name for volume in ranked] == ["empty", "doubtful", "sure"]
    assert ranked[0].reason == "nothing was found in it"
    known = [np.float32([1.0, 0.0])]
    looks = {"old": np.float32([1.0, 0.0]), "new": np.float32([-1.0, 0.1])}
    first = suggest_volumes({"old": [organ()], "new": [organ()]}, looks, known)[0]
    assert first.name == "new"
    assert "unlike every annotated volume" in first.reason

from __future__ import annotations

from dataclasses import replace

import fit_fusion
import numpy as np
import pytest
from medssl.foundation.nano_fusion import LogitNet
from medssl.foundation.nano_sight import Sight, Surroundings

STEP_MM = 5.0


def a_way(areas: list[int], patient: str = "ct_hn_1", number: int = 0) -> fit_fusion._Way:
    sights = tuple(Sight(area=area, around=Surroundings(inside=area / 1000)) for area in areas)
    found = np.array(areas, float)
    reference = Sight(area=100, around=Surroundings())
    target = (patient, "liver")
    way = fit_fusion._Way(patient, target, reference, sights, found, found, 4.0, STEP_MM)
    return replace(way, ahead=number)


def distances_mm(way: fit_fusion._Way) -> list[float]:
    return (50.0 * way.features[:, 10]).tolist()


def test_slices_are_counted_from_the_annotated_one() -> None:
    assert distances_mm(a_way([90, 80, 70])) == pytest.approx([5.0, 10.0, 15.0])


def test_a_way_looks_as_it_would_had_another_slice_been_annotated() -> None:
    up, down = a_way([90, 80, 70, 60, 50]), a_way([95, 85])
    onwards, back = (way for way in fit_fusion._moved([up, down], seed=0) if way.target[2] == 0)
    at = onwards.target[3]
    assert [sight.area for sight in onwards.sights] == [90, 80, 70, 60, 50][at + 1 :]
    assert distances_mm(onwards)[0] == pytest.approx(STEP_MM)  # the next slice to the annotated one
    assert [sight.area for sight in back.sights] == [95, 85]
    assert distances_mm(back)[0] == pytest.approx((at + 2) * STEP_MM)  # beyond the middle one
    for way in (onwards, back):
        assert way.reference.area == [90, 80, 70, 60, 50][at]
        assert way.reference.around.inside == pytest.approx(way.reference.area / 1000)


def test_slices_are_kept_up_to_where_the_stop_rule_ends_the_way() -> None:
    way = a_way([90, 80, 70, 60, 50, 40])
    logits = np.array([3.0, 2.0, -1.0, 2.0, -3.0, -3.0])
    kept = fit_fusion._kept(way, logits, memory=0.0)
    assert kept.tolist() == [True, True, False, True, False, False]


def test_slices_not_of_the_head_and_neck_make_up_their_share() -> None:
    ways = [a_way([50] * 30), a_way([50] * 10, patient="phantom_1")]
    weights = fit_fusion._patient_weights(ways)
    assert weights[30:].sum() / weights.sum() == pytest.approx(0.4)
    assert weights.mean() == pytest.approx(1.0)


def test_two_nets_in_one_say_the_mean_of_what_they_say() -> None:
    rng = np.random.default_rng(0)
    new, kept = (
        LogitNet(
            linear=tuple(rng.normal(size=count)),
            units=tuple(map(tuple, rng.normal(size=(units, count)))),
            out=tuple(rng.normal(size=units)),
        )
        for count, units in ((27, 3), (11, 2))
    )
    features = rng.normal(size=(6, 27))
    expected = 0.7 * new.logit(features) + 0.3 * kept.logit(features)
    np.testing.assert_allclose(fit_fusion.blended(new, kept, 0.3).logit(features), expected)
    assert fit_fusion.blended(new, kept, 0.0) is new

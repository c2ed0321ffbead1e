from __future__ import annotations

import json

import numpy as np
import pytest
from medssl.foundation.nano_fusion import (
    MIXING_FEATURES,
    Fusion,
    FusionState,
    LogitNet,
    mixing_features,
    sight_of,
)
from medssl.foundation.nano_sight import SLICE_FEATURES, Surroundings
from medssl.foundation.protocols import TrackedSlice

COUNT = len(SLICE_FEATURES)


def a_square(start: int, stop: int, probability: float = 0.9) -> np.ndarray:
    square = np.zeros((20, 20), np.float32)
    square[start:stop, start:stop] = probability
    return square


def an_answer(probability: np.ndarray, score: float = 0.8) -> TrackedSlice:
    return TrackedSlice(1, 3, probability > 0.5, probability, score)


def an_image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-100, 200, (20, 20)).astype(np.int16)


def a_state(previous: np.ndarray | None = None) -> FusionState:
    state = FusionState.begin(an_image(0), a_square(6, 14) > 0.5, 4.0, 5.0)
    state.previous = state.previous if previous is None else previous
    state.image, state.image_before = an_image(1), an_image(0)
    return state


def always(logit: float) -> LogitNet:
    return LogitNet(linear=(logit, *(0.0,) * (len(MIXING_FEATURES) - 1)))


def test_probabilities_are_mixed_by_the_weight_that_the_net_tells() -> None:
    network, other = a_square(5, 15, 0.8), a_square(8, 18, 0.6)
    settled = Fusion(mixing=always(-np.log(3.0))).settle(network, 0.9, an_answer(other), a_state())
    np.testing.assert_allclose(settled.probability, 0.25 * network + 0.75 * other, rtol=1e-6)


def test_the_weight_depends_on_how_sure_the_two_are() -> None:
    sure = LogitNet(
        linear=tuple(8.0 * ("mean probability inside the network" in name) for name in MIXING_FEATURES)
    )
    other = a_square(8, 18, 0.6)
    shares = [
        Fusion(mixing=sure).settle(a_square(5, 15, p), 0.9, an_answer(other), a_state()).probability[6, 6] / p
        for p in (0.6, 0.9)
    ]
    np.testing.assert_allclose(shares, 1 / (1 + np.exp(-8.0 * np.array([0.6, 0.9]))), rtol=1e-5)


def test_mixing_features_say_what_their_names_say() -> None:
    network, other, before = a_square(6, 14, 0.9), a_square(6, 12, 0.7), a_square(7, 14) > 0.5
    values = mixing_features(network, 0.75, other, 0.25, before)
    assert dict(zip(MIXING_FEATURES, values, strict=True)) == {
        "constant": 1.0,
        "logit of the network's object score": pytest.approx(np.log(3.0)),
        "logit of the intensity tracker's object score": pytest.approx(-np.log(3.0)),
        "Dice of the two masks": pytest.approx(2 * 36 / (64 + 36)),
        "mean probability inside the network's mask": pytest.approx(0.9),
        "mean probability inside the intensity tracker's mask": pytest.approx(0.7),
        "Dice of the network's mask with the mask of the slice before": pytest.approx(2 * 49 / (64 + 49)),
        "Dice of the intensity tracker's mask with the mask of the slice before": pytest.approx(
            2 * 25 / (36 + 49)
        ),
        "log of the network's area over that of the slice before": pytest.approx(np.log(65 / 50)),
        "log of the intensity tracker's area over that of the slice before": pytest.approx(np.log(37 / 50)),
    }
    nothing = np.zeros_like(network)
    assert np.isfinite(mixing_features(nothing, 0.0, nothing, 1.0, nothing > 0)).all()


def test_an_intensity_tracker_that_found_nothing_has_no_say_in_the_mask() -> None:
    network = a_square(5, 15)
    settled = Fusion(mixing=always(0.0)).settle(network, 0.9, an_answer(np.zeros_like(network)), a_state())
    np.testing.assert_array_equal(settled.probability, network)


def test_what_is_seen_on_a_slice_is_what_both_trackers_say_and_how_the_image_looks() -> None:
    state, mixed = a_state(), a_square(6, 12, 0.8)
    sight = sight_of(a_square(6, 14, 0.9), 0.75, an_answer(a_square(6, 12, 0.7), 0.25), mixed, state)
    assert (sight.area, sight.network_logit, sight.intensity_logit) == (
        36,
        pytest.approx(np.log(3.0)),
        pytest.approx(-np.log(3.0)),
    )
    assert (sight.agreement, sight.sureness, sight.steadiness) == pytest.approx(
        (2 * 36 / (64 + 36), 0.8, 2 * 36 / (36 + 64))
    )
    assert sight.around == Surroundings.of(an_image(1), mixed > 0.5, state.scale, an_image(0))


def test_an_empty_slice_has_finite_features() -> None:
    nothing = np.zeros((20, 20), np.float32)
    state = a_state(nothing > 0)
    seen = sight_of(nothing, 0.0, an_answer(nothing, 1.0), nothing, state)
    assert np.isfinite(state.course.go_on(seen)).all()


def test_weights_that_were_fitted_to_fewer_features_belong_to_the_first_of_them() -> None:
    old = LogitNet(linear=(1.0, 2.0), units=((0.5, -1.0),), out=(3.0,))
    features = np.random.default_rng(0).normal(size=(4, COUNT))
    np.testing.assert_array_equal(old.logit(features), old.logit(features[:, :2]))


def test_the_presence_net_equals_its_sum_written_out() -> None:
    rng = np.random.default_rng(0)
    linear, units, out = rng.normal(size=COUNT), rng.normal(size=(3, COUNT)), rng.normal(size=3)
    net = LogitNet(linear=tuple(linear), units=tuple(map(tuple, units)), out=tuple(out))
    features = rng.normal(size=(5, COUNT))

    expected = [
        sum(linear * row) + sum(o * np.tanh(sum(unit * row)) for o, unit in zip(out, units, strict=True))
        for row in features
    ]
    np.testing.assert_allclose(net.logit(features), expected)
    np.testing.assert_allclose(LogitNet(linear=tuple(linear)).logit(features), features @ linear)


def test_the_score_follows_the_slices_slowly_by_its_memory() -> None:
    gone = LogitNet(linear=(-2.0, *(0.0,) * (COUNT - 1)))
    state = a_state()
    state.logit = 4.0
    scores = [
        Fusion(presence=gone, memory=0.5)
        .settle(a_square(6, 14), 0.9, an_answer(a_square(6, 14)), state)
        .score
        for _ in range(3)
    ]
    expected_logits = np.array([1.0, -0.5, -1.25])
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-expected_logits)))
    assert state.course.steps == 3


def test_a_mask_of_surer_pixels_is_expected_to_fit_better() -> None:
    def quality(probability: float) -> float:
        square = a_square(6, 14, probability)
        return Fusion().settle(square, 0.9, an_answer(square), a_state()).quality

    assert 0.0 < quality(0.55) < quality(0.75) < quality(0.95) < 1.0


def test_the_expected_fit_is_that_of_its_net_on_this_slice_alone() -> None:
    net = LogitNet(linear=(0.5, *(0.0,) * (COUNT - 1)))
    state = a_state()
    state.logit = -4.0
    settled = Fusion(quality=net).settle(a_square(6, 14), 0.1, an_answer(a_square(6, 14)), state)
    assert settled.quality == pytest.approx(1 / (1 + np.exp(-0.5)))


def test_weights_survive_the_metadata_of_a_checkpoint() -> None:
    net = LogitNet(linear=tuple(range(COUNT)), units=((0.5,) * COUNT, (0.25,) * COUNT), out=(1.0, -1.0))
    fusion = Fusion(mixing=always(-0.5), presence=net, memory=0.7, quality=LogitNet(linear=(1.0,) * COUNT))
    meta = json.loads(json.dumps({"fusion": fusion.to_meta()}))
    assert Fusion.from_meta(meta) == fusion
    assert Fusion.from_meta({}) == Fusion()


def test_weights_from_before_the_mixing_was_learnt_are_mixed_evenly() -> None:
    fusion = Fusion(mixing=always(-0.5), memory=0.7)
    kept = {name: value for name, value in fusion.to_meta().items() if name != "mixing"}
    assert Fusion.from_meta({"fusion": {**kept, "network": 0.45}}) == Fusion(memory=0.7)

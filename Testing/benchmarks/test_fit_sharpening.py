"""The fit finds what tells an object from its surroundings, and judges by what was missed as well."""

from __future__ import annotations

import numpy as np
from fit_sharpening import Object, fit
from medssl.sharpening import FEATURES


def an_object(seed: int, missed: int = 0) -> Object:
    """Only the evidence says where the object is, from 1 upwards."""
    values = np.random.default_rng(seed).normal(0, 2, (len(FEATURES), 3000)).astype(np.float32)
    values[0] = 1.0
    return Object("run", str(seed), "liver", values, values[FEATURES.index("evidence")] > 1.0, missed, 0.5)


def test_the_weights_follow_what_decides() -> None:
    weights = fit([an_object(seed) for seed in range(4)])
    found = dict(zip(FEATURES, weights, strict=True))
    assert max(found, key=lambda name: abs(found[name])) in ("evidence", "1")
    assert abs(found["L"]) < 0.1 * found["evidence"]
    assert an_object(9).dice(weights) > 0.95


def test_voxels_out_of_reach_count_as_missed() -> None:
    weights = fit([an_object(0)])
    near, far = an_object(1), an_object(1, missed=2000)
    true = int(near.truth.sum())
    overlap = near.dice(weights)
    assert far.dice(weights) < overlap * (2 * true) / (2 * true + 1000)

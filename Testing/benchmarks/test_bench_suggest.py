"""The simulated user of the suggestion benchmark: spacing, counting, and tracks that are not computed twice."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
from bench_suggest import Outcome, RememberedTracker, User, evenly_spaced, measure, needed_by_object, report
from medssl.foundation.intensity import IntensityTracker
from medssl.prompts import Reference, SlicePrompt
from medssl.propagate import propagate
from medssl.results import SliceMask
from medssl.suggest import embed_slices
from medssl.volume import Volume
from protocol import ObjectTask


def a_user(first: int = 4, last: int = 15, count: int = 24) -> User:
    """A ball of soft tissue in fat."""
    z, y, x = np.ogrid[:count, :40, :40]
    radius = 12 * np.sqrt(np.clip(1 - ((z - (first + last) / 2) / ((last - first) / 2 + 0.5)) ** 2, 0, 1))
    truth = (y - 20) ** 2 + (x - 20) ** 2 < radius**2
    voxels = np.where(truth, 60, -100) + np.random.default_rng(0).normal(0, 5, truth.shape)
    volume = Volume(voxels.astype(np.int16), np.diag([2.0, 2.0, 3.0, 1.0]))
    present = np.flatnonzero(truth.any(axis=(1, 2)))
    task = ObjectTask(
        "c", "p", "ball", truth, int(present[len(present) // 2]), int(present[0]), int(present[-1])
    )
    return User(task, volume, IntensityTracker(), embed_slices(volume, 0))


def an_outcome(way: str, dice: list[float], organ: str = "ball") -> Outcome:
    return Outcome("c", "p", organ, 10, way, [[n] for n in range(len(dice))], dice, 1.0)


def test_evenly_spaced_slices_divide_the_true_extent() -> None:
    user = a_user()
    extent = user.task.last - user.task.first + 1
    assert evenly_spaced(user, 1) == [user.task.index]
    three = evenly_spaced(user, 3)
    np.testing.assert_allclose(np.diff(three), extent / 3, atol=1)
    assert three[0] - user.task.first == pytest.approx(user.task.last - three[-1], abs=1)
    assert evenly_spaced(user, extent) == user.present.tolist()


def test_remembered_tracks_give_what_tracking_again_gives() -> None:
    user = a_user()
    remembered = RememberedTracker(IntensityTracker())
    for slices in ([9], [6, 9], [6, 9, 13]):
        references = [Reference("ball", SlicePrompt(0, z, mask=user.task.truth_kji[z])) for z in slices]
        masks = []
        for tracker in (remembered, IntensityTracker()):
            found = {}
            for event in propagate(user._volume, references, tracker):
                if isinstance(event, SliceMask):
                    found[event.index] = event.mask
            masks.append(found)
        assert masks[0].keys() == masks[1].keys()
        assert all((masks[0][z] == masks[1][z]).all() for z in masks[0])


def test_a_slice_without_the_object_ends_the_propagation_there() -> None:
    user = a_user()
    answer, _ = user.result([user.task.index, user.task.last + 1])
    assert not answer[user.task.last + 1 :].any()


def test_annotating_every_slice_and_both_ends_is_perfect() -> None:
    user = a_user()
    every = range(user.task.first - 1, user.task.last + 2)
    assert user.dice(list(every)) == 1.0


def test_slices_needed_are_counted_to_nine_tenths_of_the_best() -> None:
    assert an_outcome("suggested", [0.5, 0.89, 0.9, 0.95]).needed == 3
    assert an_outcome("suggested", [0.5, 0.6]).needed == 3  # one more than were tried
    needed = needed_by_object([an_outcome("random 0", [0.95]), an_outcome("random 1", [0.1, 0.2, 0.95])])
    assert needed == {"random": {("c", "ball"): 2.0}}


def test_all_ways_are_measured_and_reported() -> None:
    outcomes = measure(a_user(), most=3, draws=2)
    assert {o.way for o in outcomes} == {"suggested", "evenly spaced", "random 0", "random 1"}
    assert all(len(o.dice) == len(o.slices) <= 3 for o in outcomes)
    text = report(outcomes, argparse.Namespace(model="intensity", most=3, draws=2))
    assert "1 objects of 1 patients" in text
    assert "| evenly spaced |" in text

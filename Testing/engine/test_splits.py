"""Splits never part a patient."""

from __future__ import annotations

import itertools

import pytest
from medssl.data import Scan
from medssl.errors import InputError
from medssl.input_contract import IntensityStats
from medssl.splits import folds, require_apart, split, subset


def scans_of(*patients: str) -> list[Scan]:
    stats = IntensityStats(0, 1, 0, 1)
    return [
        Scan(f"id{n}", f"{patient}/{n}.nii.gz", patient, (4, 5, 6), (1.0, 1.0, 1.0), stats)
        for n, patient in enumerate(patients)
    ]


MANY = scans_of(*(f"patient {n % 20}" for n in range(50)))


def patients_in(indices: tuple[int, ...]) -> set[str]:
    return {MANY[n].patient for n in indices}


def test_a_split_holds_every_scan_once_and_no_patient_twice() -> None:
    parts = split(MANY, {"train": 0.7, "validation": 0.1, "test": 0.2}, seed=4)
    assert sorted(n for part in parts.values() for n in part) == list(range(50))
    assert [len(patients_in(part)) for part in parts.values()] == [14, 2, 4]


def test_the_seed_alone_decides_the_split() -> None:
    shares = {"train": 0.5, "test": 0.5}
    assert split(MANY, shares, seed=1) == split(MANY, shares, seed=1)
    assert split(MANY, shares, seed=1) != split(MANY, shares, seed=2)


def test_every_part_of_a_split_has_a_patient() -> None:
    parts = split(scans_of("a", "b", "c"), {"train": 0.98, "validation": 0.01, "test": 0.01})
    assert [len(part) for part in parts.values()] == [1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_smaller_shares_lie_in_larger_ones(seed: int) -> None:
    shares = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
    chosen = [set(subset(MANY, share, seed)) for share in shares]
    for smaller, larger in itertools.pairwise(chosen):
        assert smaller <= larger
    assert [len({MANY[n].patient for n in part}) for part in chosen] == [1, 1, 2, 4, 10, 20]


def test_one_more_patient_does_not_reshuffle_the_others() -> None:
    before = [MANY[n].patient for n in subset(MANY, 0.5, 3)]
    after = subset([*MANY, *scans_of("newcomer")], 10 / 21, 3)
    kept = {[*MANY, *scans_of("newcomer")][n].patient for n in after}
    assert len(set(before) - kept) <= 1


def test_folds_hold_out_every_scan_once() -> None:
    made = folds(MANY, 5, seed=1)
    assert sorted(n for _, held_out in made for n in held_out) == list(range(50))
    for training, held_out in made:
        assert not patients_in(training) & patients_in(held_out)
        assert len(training) + len(held_out) == 50


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(InputError, match="add up to 1"):
        split(MANY, {"train": 0.5, "test": 0.6})
    with pytest.raises(InputError, match="A split into 2 parts needs a patient for each, not 1 in all"):
        split(scans_of("a", "a"), {"train": 0.5, "test": 0.5})
    with pytest.raises(InputError, match="above 0 and at most 1"):
        subset(MANY, 0.0)
    with pytest.raises(InputError, match="patient for each"):
        folds(scans_of("a", "b"), 3)


def test_data_that_overlap_are_refused_in_one_sentence() -> None:
    one, two = scans_of("a", "b"), scans_of("c", "d", "b")[2:]
    require_apart({"pre-training": one[:1], "test": two})
    with pytest.raises(InputError, match=r"1 patient of the training data is also in the test data \(b\)"):
        require_apart({"training": one, "test": two})
    with pytest.raises(InputError, match="1 scan of the pre-training data"):
        require_apart({"pre-training": ["id7", one[1].id], "test": one})

"""Splits and subsets of scans that never part a patient.

Patients are put in an order that depends on the seed and their name alone, so a smaller share is contained in a larger
one, and one more patient does not reshuffle the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from .data import Scan
from .errors import InputError

__all__ = ["folds", "require_apart", "split", "subset"]

_SHOWN = 3


def split(scans: Sequence[Scan], shares: Mapping[str, float], seed: int = 0) -> dict[str, tuple[int, ...]]:
    """Divide scans by patient.

    Args:
        scans: all of them.
        shares: of the patients, by name of the part, e.g. {"train": 0.8, "test": 0.2}; they add up to 1.
        seed: another one gives another split.

    Returns:
        Indices into `scans` by part, rising. Every part has at least one patient.

    Raises:
        InputError: the shares do not add up to 1, or there are fewer patients than parts.
    """
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise InputError(f"The shares of a split must be above 0 and add up to 1, not {dict(shares)}.")
    patients = _shuffled(scans, seed)
    if len(patients) < len(shares):
        raise InputError(
            f"A split into {len(shares)} parts needs a patient for each, not {len(patients)} in all; give more, or say"
            " in patients.csv whose the scans are."
        )
    counts = _counts(len(patients), list(shares.values()))
    parts: dict[str, tuple[int, ...]] = {}
    start = 0
    for name, count in zip(shares, counts, strict=True):
        parts[name] = _scans_of(scans, patients[start : start + count])
        start += count
    return parts


def subset(scans: Sequence[Scan], share: float, seed: int = 0) -> tuple[int, ...]:
    """Some of the patients, at least one; with the same seed a smaller share is contained in a larger one.

    Args:
        scans: all of them.
        share: of the patients, above 0 and up to 1.
        seed: another one gives other patients.

    Returns:
        Indices into `scans`, rising.
    """
    if not 0 < share <= 1:
        raise InputError(f"The share of the patients must be above 0 and at most 1, not {share:g}.")
    patients = _shuffled(scans, seed)
    return _scans_of(scans, patients[: max(1, round(share * len(patients)))])


def folds(
    scans: Sequence[Scan], count: int, seed: int = 0
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Divide scans by patient for cross-validation; every scan is held out once.

    Returns:
        (training, held out) indices into `scans` per fold, rising.

    Raises:
        InputError: fewer than two folds, or fewer patients than folds.
    """
    patients = _shuffled(scans, seed)
    if not 2 <= count <= len(patients):
        raise InputError(
            f"Cross-validation needs 2 folds or more and a patient for each, not {count} for {len(patients)} patients."
        )
    held_out = [_scans_of(scans, patients[n::count]) for n in range(count)]
    everything = range(len(scans))
    return tuple((tuple(sorted(set(everything).difference(part))), part) for part in held_out)


def require_apart(parts: Mapping[str, Iterable[Scan | str]]) -> None:
    """Check that no scan and no patient is in two parts.

    Args:
        parts: scans, or ids of scans (of which only that is known), by what to call the part in a message, e.g.
            "pre-training", "test".

    Raises:
        InputError: some are.
    """
    scan_in: dict[str, str] = {}
    patient_in: dict[str, str] = {}
    for name, scans in parts.items():
        listed = list(scans)
        _claim(scan_in, name, {s if isinstance(s, str) else s.id: _shown(s) for s in listed}, "scan")
        _claim(patient_in, name, {s.patient: s.patient for s in listed if isinstance(s, Scan)}, "patient")


def _claim(owner: dict[str, str], name: str, keys: Mapping[str, str], what: str) -> None:
    shared = [key for key in keys if owner.get(key, name) != name]
    if shared:
        shown = ", ".join(sorted(keys[key] for key in shared)[:_SHOWN]) + (
            ", ..." if len(shared) > _SHOWN else ""
        )
        plural, verb = ("", "is") if len(shared) == 1 else ("s", "are")
        raise InputError(
            f"{len(shared)} {what}{plural} of the {owner[shared[0]]} data {verb} also in the {name} data ({shown});"
            " leave them out of one of the two."
        )
    owner.update(dict.fromkeys(keys, name))


def _shown(scan: Scan | str) -> str:
    return scan[:12] if isinstance(scan, str) else scan.name


def _shuffled(scans: Sequence[Scan], seed: int) -> list[str]:
    return sorted({scan.patient for scan in scans}, key=lambda patient: _draw(seed, patient))


def _draw(seed: int, patient: str) -> bytes:
    return hashlib.sha256(f"{seed} {patient}".encode("utf-8", "surrogateescape")).digest()


def _scans_of(scans: Sequence[Scan], patients: Sequence[str]) -> tuple[int, ...]:
    chosen = set(patients)
    return tuple(n for n, scan in enumerate(scans) if scan.patient in chosen)


def _counts(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers, at least 1 each, that add up to `total`, close to the shares."""
    counts = [max(1, round(share * total)) for share in shares]
    while sum(counts) != total:
        step = 1 if sum(counts) < total else -1
        able = [n for n, count in enumerate(counts) if count + step >= 1]
        counts[max(able, key=lambda n: step * (shares[n] * total - counts[n]))] += step
    return counts

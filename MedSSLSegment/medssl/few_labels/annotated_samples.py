"""Annotated cases as fine-tuning sees them, and the batches drawn from them.

A case may be annotated on a few slices only, and for some of the segments only; samples are drawn where somebody
vouched for something, and small organs are seen as often as large ones. A scan whose slices teach different segments
comes in several parts, each an `AnnotatedCase` of the same scan; it counts as one wherever cases are counted.

Axis letters: B samples, C channels, N classes (0 is the background), S the spatial axes (J, I or K, J, I).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..datasets.data import AIR_HU, IGNORE, Scan, fit_slice
from ..datasets.input_contract import InputContract
from ..datasets.sources import is_excluded
from ..errors import InputError

if TYPE_CHECKING:
    from ..datasets.labelled import LabelledScan

__all__ = [
    "AnnotatedCase",
    "AnnotatedSamples",
    "Batch",
    "by_scan",
    "hold_out",
    "vouched_slices",
]

_MARGIN = 1.25
"""Samples are drawn this much larger than the network's input, so that a turn brings in real surroundings."""
_HELD_OUT = 0.2
"""Share of the cases, or of the slices of few cases, that is kept for validation."""
_FEW_CASES = 3
_LEAST_SHARE_SEEN = 0.3
"""Of the samples of a scan, on slices that somebody has annotated, however many more labels were carried from them."""
_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True, eq=False)
class AnnotatedCase:
    """One scan on the contract's grid, with class indices where somebody vouched for them."""

    scan: Scan
    image: NDArray[np.int16]
    """(K, J, I)."""
    labels: NDArray[np.uint8]
    """(K, J, I): 0 background, n + 1 the n-th segment, IGNORE where nobody vouched."""
    known: NDArray[np.bool_]
    """(N,) classes this case was annotated for; the background is always one."""
    is_carried: bool = False
    """Whether nobody has seen these labels: a tracker has carried them from annotated slices."""

    def __post_init__(self) -> None:
        if self.image.shape != self.labels.shape:
            raise InputError(
                f"{self.scan.name}: the labels have the shape {self.labels.shape}, the image {self.image.shape}."
            )

    @classmethod
    def of(cls, labelled: LabelledScan) -> AnnotatedCase:
        """Take a labelled scan into memory."""
        known = np.array([True, *labelled.known])
        return cls(labelled.scan, np.asarray(labelled.image[:]), np.asarray(labelled.labels[:]), known)

    @cached_property
    def vouched_slices(self) -> NDArray[np.intp]:
        """Slices with at least one voxel that somebody vouched for."""
        return np.flatnonzero((self.labels != IGNORE).any(axis=(1, 2)))

    @cached_property
    def shown(self) -> frozenset[int]:
        """Class indices of the segments that are on a vouched slice."""
        return frozenset(np.unique(self.labels).tolist()) - {0, IGNORE}

    @cached_property
    def shown_slices(self) -> NDArray[np.intp]:
        """Slices with a segment on them."""
        return np.flatnonzero(((self.labels > 0) & (self.labels != IGNORE)).any(axis=(1, 2)))

    def slices_of(self, label: int) -> NDArray[np.intp]:
        """Slices that show a segment."""
        return np.flatnonzero((self.labels == label).any(axis=(1, 2)))

    def only_slices(self, slices: Sequence[int] | NDArray[np.intp]) -> AnnotatedCase:
        """The same case, vouched for on these slices alone."""
        labels = np.full_like(self.labels, IGNORE)
        labels[slices] = self.labels[slices]
        return replace(self, labels=labels)


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples with a margin, before augmentation."""

    images: Tensor
    """(B, C, *larger) float32."""
    labels: Tensor
    """(B, *larger) uint8."""
    known: Tensor
    """(B, N) bool."""


class AnnotatedSamples:
    """Draws batches from annotated cases.

    Args:
        cases: at least one with something vouched for.
        contract: how intensities become the network's input.
        divisor: what the sides of the network's input must be multiples of.
        organ_share: share of the samples that are drawn around a segment; the others lie anywhere vouched for.

    Raises:
        InputError: nothing is vouched for, or no segment is on any vouched slice.
    """

    def __init__(
        self,
        cases: Sequence[AnnotatedCase],
        contract: InputContract,
        divisor: int = 1,
        organ_share: float = 0.6,
    ) -> None:
        self.cases = tuple(case for case in cases if case.vouched_slices.size)
        if not self.cases:
            raise InputError("No slice is vouched for in any case; annotate at least one slice.")
        self.contract = contract
        self.organ_share = organ_share
        self.size = tuple(-(-side // divisor) * divisor for side in contract.size)
        self._scans = [[self.cases.index(part) for part in parts] for parts in by_scan(self.cases).values()]
        self._shares = [_shares([self.cases[n] for n in parts]) for parts in self._scans]
        self._shown = [
            {label: k for label in range(1, len(case.known)) if (k := case.slices_of(label)).size}
            for case in self.cases
        ]
        if not any(self._shown):
            raise InputError("No segment is on any vouched slice; annotate a slice that shows one.")

    @property
    def whole(self) -> bool:
        """Whether a sample is a whole slice, scaled."""
        return self.contract.fit == "resize" and self.contract.spatial_dims == 2

    def draw(self, rng: np.random.Generator, count: int) -> Batch:
        """Draw `count` samples; the same generator state gives the same samples."""
        parts = [self._sample(rng) for _ in range(count)]
        return Batch(
            torch.from_numpy(np.stack([image for image, _, _ in parts])),
            torch.from_numpy(np.stack([labels for _, labels, _ in parts])),
            torch.from_numpy(np.stack([known for _, _, known in parts])),
        )

    def _sample(
        self, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
        n = self._which(rng)
        case = self.cases[n]
        centre = self._centre(rng, n)
        if self.whole:
            image, labels = self._whole_slice(case, centre[0])
        else:
            image, labels = self._window(case, centre, rng)
        return image, labels, case.known

    def _which(self, rng: np.random.Generator) -> int:
        """A case: every scan as often, and its parts by their shares."""
        scan = int(rng.integers(len(self._scans)))
        parts = self._scans[scan]
        return parts[0] if len(parts) == 1 else int(rng.choice(parts, p=self._shares[scan]))

    def _centre(self, rng: np.random.Generator, n: int) -> tuple[int, int, int]:
        """A voxel (k, j, i) to draw around: of a segment, each as often, or anywhere on a vouched slice."""
        labels, shown = self.cases[n].labels, self._shown[n]
        if shown and rng.random() < self.organ_share:
            label = list(shown)[int(rng.integers(len(shown)))]
            k = int(rng.choice(shown[label]))
            places = np.flatnonzero(labels[k] == label)
        else:
            k = int(rng.choice(self.cases[n].vouched_slices))
            places = np.flatnonzero(labels[k] != IGNORE)
        j, i = divmod(int(places[rng.integers(len(places))]), labels.shape[2])
        return k, j, i

    def _whole_slice(self, case: AnnotatedCase, k: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        image = self.contract.apply(_slab(case.image, k, self.contract.neighbours), case.scan.stats)
        labels = torch.from_numpy(case.labels[k])[None, None].float()
        nearest = F.interpolate(labels, size=self.size, mode="nearest-exact")[0, 0]
        return fit_slice(image, self.size, "resize"), nearest.to(torch.uint8).numpy()

    def _window(
        self, case: AnnotatedCase, centre: tuple[int, int, int], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """A part of the scan with a margin around `size`; `centre` lies anywhere in its inner four fifths."""
        dims = self.contract.spatial_dims
        place, lengths = centre[-dims:], case.image.shape[-dims:]
        larger = tuple(round(side * _MARGIN / 2) * 2 for side in self.size)
        starts = [
            _start(at, length, side, rng) - (wide - side) // 2
            for at, length, side, wide in zip(place, lengths, self.size, larger, strict=True)
        ]
        if dims == 3:
            image, labels = case.image, case.labels
        else:
            image, labels = _slab(case.image, centre[0], self.contract.neighbours), case.labels[centre[0]]
        window = _cut(image, starts, larger, AIR_HU)
        return self.contract.apply(window, case.scan.stats), _cut(labels, starts, larger, IGNORE)


def by_scan(cases: Sequence[AnnotatedCase]) -> dict[str, list[AnnotatedCase]]:
    """The parts of each scan, by its id, in the order in which the scans come."""
    scans: dict[str, list[AnnotatedCase]] = {}
    for case in cases:
        scans.setdefault(case.scan.id, []).append(case)
    return scans


def vouched_slices(parts: Sequence[AnnotatedCase]) -> list[int]:
    """Rising numbers of the slices of a scan with something that any of its parts vouches for."""
    slices: list[int] = np.unique(np.concatenate([part.vouched_slices for part in parts])).tolist()
    return slices


def _shares(parts: Sequence[AnnotatedCase]) -> NDArray[np.float64]:
    """Of a scan's samples: each part as often as it has slices, but the carried ones no more often than is good."""
    shares = np.array([float(part.vouched_slices.size) for part in parts])
    shares /= shares.sum()
    carried = np.array([part.is_carried for part in parts])
    seen = float(shares[~carried].sum())
    if 0.0 < seen < _LEAST_SHARE_SEEN:
        shares[~carried] *= _LEAST_SHARE_SEEN / seen
        shares[carried] *= (1.0 - _LEAST_SHARE_SEEN) / (1.0 - seen)
    return shares


def hold_out(
    cases: Sequence[AnnotatedCase], seed: int = 0, validation: Sequence[str] = ()
) -> tuple[list[AnnotatedCase], list[AnnotatedCase], str]:
    """Divide cases into those to learn from and those to measure on.

    Args:
        cases: all of them; scans of one patient are never parted.
        seed: of the choice.
        validation: names, patients, or files and folders as they are left out (* stands for anything) to measure on;
            empty to choose: one patient in five, of those who show most segments, but nobody who alone shows one; of
            fewer than three patients, or where nobody can be spared, a run of neighbouring slices, and nothing where
            there are fewer than three slices.

    Returns:
        To learn from, to measure on (may be empty), and a line that says what is measured on.

    Raises:
        InputError: a name is unknown, shows no segment, or nothing would be left to learn from.
    """
    patients = sorted({case.scan.patient for case in cases})
    if validation:
        meant = {word: {c.scan.patient for c in cases if _is_called(c.scan, word)} for word in validation}
        unknown = sorted(word for word, patients_meant in meant.items() if not patients_meant)
        chosen = set[str]().union(*meant.values())
        if unknown or len(chosen) == len(patients):
            raise InputError(
                f"Validation on {', '.join(unknown or validation)} is not possible; name some, not all, of the cases"
                f" {_names(cases)}."
            )
    elif len(patients) >= _FEW_CASES:
        count = max(1, round(_HELD_OUT * len(patients)))
        order = np.random.default_rng([seed, len(patients)]).permutation(len(patients))
        chosen = _dispensable(cases, [patients[n] for n in order], count)
    else:
        chosen = set()
    if not chosen:
        return _hold_out_slices(cases)
    held = [case for case in cases if case.scan.patient in chosen]
    if not any(case.shown for case in held):
        raise InputError(
            f"Validation on {_names(held)} is not possible: no segment is on the slices vouched for; name others."
        )
    learnt = [case for case in cases if case.scan.patient not in chosen]
    return learnt, held, f"measured on {_names(held)}"


def _is_called(scan: Scan, word: str) -> bool:
    return word in (scan.name, scan.patient, scan.id) or is_excluded(scan.name, [word])


def _dispensable(cases: Sequence[AnnotatedCase], patients: Sequence[str], count: int) -> set[str]:
    """`count` of the patients without whom the others still show every segment; first those who show most segments.

    Someone who shows none says nothing about a network's Dice, and is never among them.
    """
    shown: dict[str, set[int]] = {patient: set() for patient in patients}
    for case in cases:
        shown[case.scan.patient] |= case.shown
    chosen: set[str] = set()
    for patient in sorted(patients, key=lambda patient: -len(shown[patient])):
        others = [shown[other] for other in patients if other != patient and other not in chosen]
        if len(chosen) < count and shown[patient] and shown[patient] <= set[int]().union(*others):
            chosen.add(patient)
    return chosen


def _hold_out_slices(
    cases: Sequence[AnnotatedCase],
) -> tuple[list[AnnotatedCase], list[AnnotatedCase], str]:
    """Keep neighbouring slices, from the middle of the organ, of each part of the scan that shows it most often."""
    scans = by_scan(cases).values()
    chosen = max(scans, key=lambda parts: sum(part.shown_slices.size for part in parts))
    kept = {n: run for n, case in enumerate(cases) if case in chosen and (run := _middle(case)).size}
    if not kept:
        return list(cases), [], "nothing is held out: there are too few annotated slices"
    learnt = [
        case.only_slices(np.setdiff1d(case.vouched_slices, kept[n])) if n in kept else case
        for n, case in enumerate(cases)
    ]
    held = [cases[n].only_slices(run) for n, run in kept.items()]
    count = np.unique(np.concatenate(list(kept.values()))).size
    return (
        learnt,
        held,
        f"measured on {count} slice{'s' * (count > 1)} of {_names(held)}, kept out of the learning",
    )


def _middle(case: AnnotatedCase) -> NDArray[np.intp]:
    """Slices to hold out of a case: a fifth of those that show a segment; none of fewer than three."""
    shown = case.shown_slices
    if shown.size < _FEW_CASES:
        return shown[:0]
    length = max(1, round(_HELD_OUT * shown.size))
    first = (shown.size - length) // 2
    return shown[first : first + length]


def _names(cases: Sequence[AnnotatedCase]) -> str:
    """Of the scans, each once."""
    return ", ".join(parts[0].scan.name for parts in by_scan(cases).values())


def _slab(image: NDArray[np.int16], k: int, neighbours: int) -> NDArray[np.int16]:
    """(2 n + 1, J, I) slices around k; beyond the ends the last one repeats."""
    around = np.clip(np.arange(k - neighbours, k + neighbours + 1), 0, len(image) - 1)
    slab: NDArray[np.int16] = image[around]
    return slab


def _start(at: int, length: int, side: int, rng: np.random.Generator) -> int:
    """First index of a window of `side` that holds `at` and lies inside, or around all where it is longer."""
    if length <= side:
        return (length - side) // 2
    reach = max(1, int(0.8 * side))
    start = at - (side - reach) // 2 - int(rng.integers(reach))
    return min(max(start, 0), length - side)


def _cut(array: NDArray[_T], starts: Sequence[int], sides: Sequence[int], fill: int) -> NDArray[_T]:
    """Window over the last axes; `fill` where it reaches beyond the array."""
    lead = array.shape[: array.ndim - len(sides)]
    result = np.full((*lead, *sides), fill, array.dtype)
    lengths = array.shape[len(lead) :]
    lows = [max(start, 0) for start in starts]
    highs = [min(start + side, n) for start, side, n in zip(starts, sides, lengths, strict=True)]
    target: tuple[Any, ...] = (
        ...,
        *(slice(a - s, b - s) for a, b, s in zip(lows, highs, starts, strict=True)),
    )
    source: tuple[Any, ...] = (..., *(slice(a, b) for a, b in zip(lows, highs, strict=True)))
    result[target] = array[source]
    return result

"""One annotated slice per object: which objects, which slice, and how the answer is scored.

Every labelled object with an extent of at least `MIN_EXTENT` slices along axis 0 is one task. Its annotated slice is
the non-empty slice nearest the middle of its extent. A method gets the volume and that one slice, never the extent
(only `copy_mask`, the baseline that repeats the annotated mask, is told it), and answers with a mask for the whole
volume. The annotated slice counts in no figure.

- own-extent Dice: over the slices where the object exists;
- whole-volume Dice: over all slices, so that running past the object's end costs;
- overrun: slices with foreground beyond the object's first and last slice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from medssl.errors import InputError
from medssl.phantom import phantom_ct
from medssl.segmentation import read_segmentation
from medssl.volume import Volume, read_volume
from numpy.typing import NDArray

__all__ = [
    "EARLY_ENDING",
    "MIN_EXTENT",
    "Case",
    "Interval",
    "ObjectScore",
    "ObjectTask",
    "bootstrap_mean",
    "copy_mask",
    "data_root",
    "development_cases",
    "held_out_cases",
    "mean_dice",
    "object_tasks",
    "paired_gain",
    "patient_of",
    "phantom_case",
    "read_case",
    "score_object",
]

MIN_EXTENT = 5
"""Smallest extent of an object in slices, first to last."""
EARLY_ENDING = ("spinal_cord", "esophagus")
"""Organs that go on past the end of their clinical contours; means are given with and without them."""
_HOLDOUT = Path(__file__).with_name("holdout.json")
_DEVELOPMENT = Path(__file__).with_name("development.json")
_RESAMPLES = 2000


def data_root(argument: str | None) -> Path | None:
    """Data folder of the `--data` argument, else of the environment variable MEDSSL_DATA, else None."""
    given = argument or os.environ.get("MEDSSL_DATA")
    return Path(given).expanduser() if given else None


def held_out_cases() -> dict[str, list[str]]:
    """Held-out folder names by group: `head_neck`, `abdomen`, `same_patient_as_abdomen`, `mr`."""
    groups = json.loads(_HOLDOUT.read_text())
    return {name: list(folders) for name, folders in groups.items() if name != "rule"}


def development_cases() -> list[str]:
    """Folder names on which choices about prompts may be made: what answers them was not taught these."""
    cases: list[str] = json.loads(_DEVELOPMENT.read_text())["cases"]
    return cases


def held_out_folders(root: Path, *groups: str) -> list[str]:
    """Names of the held-out cases of some groups that a data folder has."""
    held_out = held_out_cases()
    return [name for group in groups for name in held_out[group] if (root / name).is_dir()]


def patient_of(case: str) -> str:
    """Patient behind a case folder; the two folders cut from one TotalSegmentator example are one patient."""
    groups = held_out_cases()
    return groups["abdomen"][0] if case in groups["same_patient_as_abdomen"] else case


@dataclass(frozen=True, eq=False)
class Case:
    """A labelled volume of a data folder."""

    name: str
    """Folder name."""
    volume: Volume
    labels_kji: NDArray[np.integer[Any]]
    """(K, J, I) label values."""
    organs: dict[int, str]
    """Organ name of each label value."""


@dataclass(frozen=True, eq=False)
class ObjectTask:
    """One object of one case, and the slice that is annotated for it."""

    case: str
    patient: str
    organ: str
    truth_kji: NDArray[np.bool_]
    """(K, J, I) the object."""
    index: int
    """Annotated slice along axis 0."""
    first: int
    """First slice of the object."""
    last: int
    """Last slice of the object."""

    @property
    def annotation(self) -> NDArray[np.bool_]:
        """(J, I) the mask a method is given."""
        return self.truth_kji[self.index]


@dataclass(frozen=True)
class ObjectScore:
    """How well one method did on one object."""

    method: str
    case: str
    patient: str
    organ: str
    own_dice: float
    whole_dice: float
    overrun: int
    slices: int
    """Slices the method computed; 0 for a method that computes none."""
    seconds: float
    told: Sequence[tuple[float, float]] = ()
    """Of each slice that was filled, the confidence the method gave it and its true Dice; none without confidence."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def phantom_case(seed: int) -> Case:
    """A phantom with all its organs."""
    phantom = phantom_ct(seed)
    organs = {segment.label: segment.name for segment in phantom.segmentation.segments}
    return Case(f"phantom {seed}", phantom.volume, phantom.segmentation.labels_kji, organs)


def read_case(folder: Path) -> Case:
    """Read `ct.nii.gz` (or `mr.nii.gz`), `label.nii.gz` and `labels.json` of a case folder.

    Raises:
        InputError: one of them is missing, damaged or does not fit the others.
    """
    images = [folder / name for name in ("ct.nii.gz", "mr.nii.gz") if (folder / name).exists()]
    if not images:
        raise InputError(f"The folder {folder} has neither ct.nii.gz nor mr.nii.gz.")
    volume = read_volume(images[0])
    segmentation = read_segmentation(folder / "label.nii.gz", like=volume)
    organs = {segment.label: segment.name for segment in segmentation.segments}
    return Case(folder.name, volume, segmentation.labels_kji, organs)


def object_tasks(case: Case, min_extent: int = MIN_EXTENT) -> Iterator[ObjectTask]:
    """The objects of a case that are long enough, in the order of their label values."""
    for label, organ in sorted(case.organs.items()):
        truth = case.labels_kji == label
        filled = np.flatnonzero(truth.any(axis=(1, 2)))
        if filled.size == 0 or filled[-1] - filled[0] + 1 < min_extent:
            continue
        first, last = int(filled[0]), int(filled[-1])
        index = int(filled[np.abs(filled - (first + last) / 2).argmin()])
        yield ObjectTask(case.name, patient_of(case.name), organ, truth, index, first, last)


def copy_mask(task: ObjectTask) -> NDArray[np.bool_]:
    """(K, J, I) the annotated mask repeated over the object's true extent."""
    answer = np.zeros_like(task.truth_kji)
    answer[task.first : task.last + 1] = task.annotation
    return answer


def mean_dice(answer: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """3D Dice of two boolean stacks; 1 when both are empty."""
    total = int(answer.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2 * int((answer & truth).sum()) / total


def score_object(
    method: str,
    task: ObjectTask,
    answer_kji: NDArray[np.bool_],
    seconds: float = 0.0,
    slices: int = 0,
    confidence: Mapping[int, float] | None = None,
) -> ObjectScore:
    """Score a method's mask for one object.

    Args:
        method: its name.
        task: the object.
        answer_kji: (K, J, I) bool, the method's mask.
        seconds: wall time it took.
        slices: slices it computed in that time.
        confidence: what it says of the slices it filled, by slice.
    """
    counted = np.ones(len(answer_kji), bool)
    counted[task.index] = False
    own = counted & task.truth_kji.any(axis=(1, 2))
    beyond = answer_kji.any(axis=(1, 2))
    beyond[task.first : task.last + 1] = False
    return ObjectScore(
        method=method,
        case=task.case,
        patient=task.patient,
        organ=task.organ,
        own_dice=mean_dice(answer_kji[own], task.truth_kji[own]),
        whole_dice=mean_dice(answer_kji[counted], task.truth_kji[counted]),
        overrun=int(beyond.sum()),
        slices=slices,
        seconds=seconds,
        told=[
            (said, mean_dice(answer_kji[index], task.truth_kji[index]))
            for index, said in sorted((confidence or {}).items())
        ],
    )


def bootstrap_mean(values: Sequence[float], clusters: Sequence[str], resamples: int = _RESAMPLES) -> Interval:
    """Mean over objects with a percentile bootstrap interval.

    Whole patients are drawn, because the objects of one patient are not independent; where there is only one
    patient its objects are drawn, and the interval then says nothing about other patients.

    Args:
        values: (n,) one value per object.
        clusters: (n,) the patient of each object.
        resamples: number of bootstrap samples; the random numbers are always the same.
    """
    keys: Sequence[object] = list(clusters) if len(set(clusters)) > 1 else list(range(len(values)))
    grouped: dict[object, list[float]] = {}
    for key, value in zip(keys, values, strict=True):
        grouped.setdefault(key, []).append(value)
    sums = np.array([sum(group) for group in grouped.values()])
    counts = np.array([len(group) for group in grouped.values()])
    drawn = np.random.default_rng(0).integers(0, len(sums), (resamples, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(float(np.mean(values)), float(low), float(high))


def paired_gain(
    scores: Iterable[ObjectScore], method: str, parent: str, figure: Callable[[ObjectScore], float]
) -> Interval:
    """Mean gain of a method over another on the same objects, paired by object.

    Args:
        scores: scores of all methods on the same objects.
        method: the method that should gain.
        parent: the method it is held against.
        figure: which number of a score to compare.
    """
    table: dict[str, dict[tuple[str, str], float]] = {method: {}, parent: {}}
    for score in scores:
        if score.method in table:
            table[score.method][score.case, score.organ] = figure(score)
    gains = [gain - table[parent][key] for key, gain in table[method].items()]
    return bootstrap_mean(gains, [patient_of(case) for case, _ in table[method]])

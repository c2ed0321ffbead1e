"""Choose the weights with which the default settles network and intensity tracker; prints how well they end objects,
and keeps them on request in the weights' metadata.

    fit_fusion.py --data FOLDER [--model FILE] [--cases 44] [--keep-mixing] [--kept-share 0.5] [--write]

Uses patients of the data folder that `holdout.json` does not hold out, and phantoms for organs of the trunk. How much
say the network has on a slice is learnt first (`mixing.py`). Then every object is tracked once from its middle slice,
past its end, without ever stopping; features and the overlap with the truth are noted on every slice. A small net
learns on which slices the object is there, from these ways and from the same ways as they would look had another
slice been annotated: a user does not always take the middle one. How much of the score is remembered from slice to
slice is chosen by five-fold cross-validation over patients. A last net learns how well the mask fits where the object
is, which becomes the confidence that a user sees for every slice.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from medssl.checkpoints import read_checkpoint, write_checkpoint
from medssl.foundation.nano import NanoTracker
from medssl.foundation.nano_fusion import Fusion, FusionState, LogitNet, Settled, sight_of
from medssl.foundation.nano_model import NanoModel, load_nano
from medssl.foundation.nano_sight import Course, Sight
from medssl.foundation.protocols import TrackedSlice, TrackJob
from medssl.phantom import phantom_ct
from medssl.prompts import SlicePrompt
from medssl.propagate import PropagateOptions
from medssl.registry import find_entry, model_path
from medssl.stop_rule import StopRule
from medssl.volume import WINDOWS
from mixing import fit_mixing
from nets import train_net
from numpy.typing import NDArray
from protocol import Case, ObjectTask, held_out_cases, object_tasks, read_case
from torch.nn import functional as F

_PHANTOM = "phantom_"
_MANY = ("rib_", "vertebrae_")  # they would outnumber all other organs of a phantom
_PHANTOMS = {5001: 4.0, 5002: 4.0, 5003: 2.5, 5004: 1.5}  # seeds, and the distance between slices in mm
_OTHERS = (  # labelled CTs of the trunk and of limbs
    "ct_ts_aorta_dissection",
    "ct_sts_001",
    "ct_sts_002",
    "ct_cip64_lung",
    "ct_elastix_lung",
)
_BEYOND = 20  # slices tracked past an object's end
_MOVES = 2  # other annotated slices an object is imagined with, besides its middle one
_OTHER_SHARE = 0.4  # of the slices that are not of the head and neck: there are few
_MEMORIES = (0.0, 0.15, 0.3, 0.5)
# Dice on an object's own extent against that on the whole volume: to draw is more work than to erase.
_OWN_COUNTS = 2.0
_FOLDS = 5
_START_LOGIT = 3.0
_PATIENCE = PropagateOptions().patience
_REFERENCE = -1  # in place of a slice's index
_UNITS, _STEPS = 32, 2000


@dataclass(frozen=True, eq=False)
class _Way:
    """One object in one direction, slice by slice, never stopped; or a part of that."""

    patient: str
    target: tuple[object, ...]
    """Which object, and which annotated slice of it: what the ways of one answer have in common."""
    reference: Sight
    """The annotated slice."""
    sights: tuple[Sight, ...]
    overlap: NDArray[np.float64]
    """(n,) pixels common to mask and truth."""
    true: NDArray[np.float64]
    """(n,) pixels of the truth."""
    pixel_mm2: float
    step_mm: float
    ahead: int = 0
    """Slices between the annotated one and the first of these."""

    @cached_property
    def features(self) -> NDArray[np.float64]:
        """(n, features)"""
        course = Course(self.reference, self.pixel_mm2, self.step_mm, self.ahead)
        return np.array([course.go_on(sight) for sight in self.sights])

    @cached_property
    def found(self) -> NDArray[np.float64]:
        """(n,) pixels of the mask."""
        return np.array([sight.area for sight in self.sights], float)

    @property
    def iou(self) -> NDArray[np.float64]:
        """(n,) of mask and truth; 0 where both are empty."""
        return self.overlap / np.maximum(self.found + self.true - self.overlap, 1.0)

    def seen_from(self, target: tuple[object, ...], reference: Sight, first: int, ahead: int) -> _Way:
        """The slices from `first` on, had another slice been annotated, `ahead` slices before that."""
        return replace(
            self,
            target=target,
            reference=reference,
            sights=self.sights[first:],
            overlap=self.overlap[first:],
            true=self.true[first:],
            ahead=ahead,
        )


class _Recording(Fusion):
    """Notes what is seen on every slice that is settled, and never lets the object end."""

    notes: ClassVar[dict[tuple[int, int], Sight]] = {}

    def settle(
        self, probability: NDArray[np.float32], presence: float, other: TrackedSlice, state: FusionState
    ) -> Settled:
        mixed = self._mixed(probability, presence, other, state)
        self.notes[other.object_id, other.index] = sight_of(probability, presence, other, mixed, state)
        self.notes[other.object_id, _REFERENCE] = state.course.reference
        return replace(super().settle(probability, presence, other, state), score=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default=None, help="weights; the shipped ones by default")
    parser.add_argument("--write", action="store_true", help="keep the result in the weights' metadata")
    parser.add_argument(
        "--cases", type=int, default=44, help="head-and-neck patients to track, evenly chosen"
    )
    parser.add_argument(
        "--keep-mixing", action="store_true", help="only fit what ends objects, and the quality"
    )
    parser.add_argument(
        "--kept-share",
        type=float,
        default=0.0,
        help="of the net in the weights in what ends objects: two err less",
    )
    options = parser.parse_args()
    path = Path(options.model) if options.model else model_path(find_entry("medssl-nano"))
    model, kept = load_nano(path, torch.device("cpu"))
    cases = list(_cases(Path(options.data), options.cases))
    mixing = kept.mixing if options.keep_mixing else fit_mixing(model, cases)
    best = fit([way for case in cases for way in _track(model, mixing, case)], mixing)
    best = replace(best, presence=blended(best.presence, kept.presence, options.kept_share))
    if options.write:
        keep(path, best)


def keep(path: Path, fusion: Fusion) -> None:
    """Write the weights of the settlement into a checkpoint's metadata."""
    tensors, meta = read_checkpoint(path)
    write_checkpoint(path, tensors, {**meta, "fusion": fusion.to_meta()})


def blended(new: LogitNet, kept: LogitNet, kept_share: float) -> LogitNet:
    """The net whose logit is the weighted mean of two nets'; the kept one may know fewer features."""
    if kept_share == 0.0:
        return new
    missing = (0.0,) * (len(new.linear) - len(kept.linear))
    shares = (1.0 - kept_share, kept_share)
    linear = np.average([new.linear, (*kept.linear, *missing)], axis=0, weights=shares)
    return LogitNet(
        linear=tuple(linear.tolist()),
        units=(*new.units, *((*unit, *missing) for unit in kept.units)),
        out=tuple(
            share * weight for share, net in zip(shares, (new, kept), strict=True) for weight in net.out
        ),
    )


def fit(ways: list[_Way], mixing: LogitNet) -> Fusion:
    """The settlement that ends objects best, judged on patients it was not fitted to (but for the mixing)."""
    moved = [way for seed in range(_MOVES) for way in _moved(ways, seed)]
    judged = _moved(ways, _MOVES)
    patients = sorted({way.patient for way in ways})
    np.random.default_rng(0).shuffle(patients)
    logits: dict[str, list[NDArray[np.float64]]] = {"middle slice": [], "another slice": []}
    groups: dict[str, list[_Way]] = {"middle slice": [], "another slice": []}
    for fold in range(_FOLDS):
        out = set(patients[fold::_FOLDS])
        net = _train_presence([way for way in ways + moved if way.patient not in out])
        for name, all_ways in (("middle slice", ways), ("another slice", judged)):
            left = [way for way in all_ways if way.patient in out]
            groups[name] += left
            logits[name] += [net.logit(way.features) for way in left]
    values = {}
    for memory in _MEMORIES:
        each = {name: _value(groups[name], logits[name], memory) for name in groups}
        print(f"memory {memory}: {each}", flush=True)
        values[memory] = sum(
            _OWN_COUNTS * own + whole for kinds in each.values() for own, whole in kinds.values()
        )
    _print_quality(ways, patients)
    return Fusion(
        mixing=mixing,
        presence=_train_presence(ways + moved),
        memory=max(_MEMORIES, key=values.__getitem__),
        quality=_train_quality(ways),
    )


def _cases(root: Path, count: int) -> Iterator[Case]:
    held_out = {name for names in held_out_cases().values() for name in names}
    names = sorted(f.name for f in root.glob("ct_hn*") if f.name not in held_out)
    for name in [*names[:: max(len(names) // count, 1)][:count], *_OTHERS]:
        if (root / name).is_dir():
            yield read_case(root / name)
    for seed, step_mm in _PHANTOMS.items():
        phantom = phantom_ct(seed, (int(384.0 / step_mm), 128, 128), (step_mm, 3.0, 3.0))
        organs = {
            segment.label: segment.name
            for segment in phantom.segmentation.segments
            if not segment.name.startswith(_MANY)
        }
        yield Case(f"{_PHANTOM}{seed}", phantom.volume, phantom.segmentation.labels_kji, organs)


def _track(model: NanoModel, mixing: LogitNet, case: Case) -> Iterator[_Way]:
    """The ways of every object of a case."""
    session = NanoTracker(model, _Recording(mixing=mixing)).open(case.volume, 0, WINDOWS["soft-tissue"])
    tasks = list(object_tasks(case))
    jobs = []
    for number, task in enumerate(tasks):
        session.add_reference(number, SlicePrompt(0, task.index, mask=task.annotation))
        ends = (max(task.first - _BEYOND, 0), min(task.last + _BEYOND, len(task.truth_kji) - 1))
        jobs += [TrackJob(number, task.index, end) for end in ends if end != task.index]
    _Recording.notes.clear()
    masks = {(job.object_id, answer.index): answer.mask for item in session.run(jobs) for job, answer in item}
    for job in jobs:
        indices = range(job.start + job.step, job.stop + job.step, job.step)
        yield _way(case, tasks[job.object_id], job.object_id, indices, masks)


def _way(
    case: Case,
    task: ObjectTask,
    number: int,
    indices: Sequence[int],
    masks: dict[tuple[int, int], NDArray[np.bool_]],
) -> _Way:
    pairs = [(masks[number, index], task.truth_kji[index]) for index in indices]
    step_mm, row_mm, col_mm = case.volume.spacing_kji_mm
    return _Way(
        task.patient,
        (task.case, task.organ),
        _Recording.notes[number, _REFERENCE],
        tuple(_Recording.notes[number, index] for index in indices),
        np.array([(mask & truth).sum() for mask, truth in pairs], float),
        np.array([truth.sum() for _, truth in pairs], float),
        row_mm * col_mm,
        step_mm,
    )


def _moved(ways: Iterable[_Way], seed: int) -> list[_Way]:
    """The ways as they would look had a slice between the middle and an end been annotated.

    What was found is left as it is; only what it is compared with is the other slice.
    """
    rng = np.random.default_rng(seed)
    objects: dict[tuple[object, ...], list[_Way]] = {}
    for way in ways:
        objects.setdefault(way.target, []).append(way)
    moved = []
    for target, both in objects.items():
        for number, way in enumerate(both):
            inside = np.flatnonzero(way.true > 0)
            if len(inside) < 3:
                continue
            at = int(inside[min(int(rng.uniform(0.1, 0.8) * len(inside)), len(inside) - 2)])
            reference = way.sights[at].as_reference(int(way.true[at]))
            name = (*target, number, at)
            moved.append(way.seen_from(name, reference, at + 1, 0))
            moved += [other.seen_from(name, reference, 0, at + 1) for other in both if other is not way]
    return [way for way in moved if len(way.true)]


def _train_presence(ways: list[_Way]) -> LogitNet:
    """On every slice, by its share of the object."""
    there = _there(ways)
    size = np.concatenate([np.maximum(way.found, way.true) / way.reference.area for way in ways])
    return _train(_features(ways), there.astype(float), np.clip(size, 0.1, 2.0) * _patient_weights(ways))


def _train_quality(ways: list[_Way]) -> LogitNet:
    """On the slices where the object is."""
    there = _there(ways)
    iou = np.concatenate([way.iou for way in ways])
    return _train(_features(ways)[there], iou[there], _patient_weights(ways)[there])


def _features(ways: list[_Way]) -> NDArray[np.float64]:
    return np.concatenate([way.features for way in ways])


def _there(ways: list[_Way]) -> NDArray[np.bool_]:
    """Slices that show the object."""
    return np.concatenate([way.true > 0 for way in ways])


def _patient_weights(ways: list[_Way]) -> NDArray[np.float64]:
    """What each slice counts, so that those that are not of the head and neck make up their share."""
    other = np.concatenate([np.full(len(way.true), not way.patient.startswith("ct_hn")) for way in ways])
    share = other.mean()
    return np.where(other, _OTHER_SHARE / max(share, 1e-6), (1.0 - _OTHER_SHARE) / max(1.0 - share, 1e-6))


def _train(x: NDArray[np.float64], target: NDArray[np.float64], weights: NDArray[np.float64]) -> LogitNet:
    """Weighted cross-entropy of (n, features) with n targets 0 .. 1."""
    wanted, weight = map(torch.from_numpy, (target, weights))
    return train_net(
        x,
        lambda logits, rows: F.binary_cross_entropy_with_logits(logits, wanted[rows], weight[rows]),
        units=_UNITS,
        steps=_STEPS,
    )


def _print_quality(ways: list[_Way], patients: Sequence[str]) -> None:
    """How the expected IoU goes with the measured one, on patients it was not fitted to."""
    expected, measured = [], []
    for fold in range(_FOLDS):
        out = set(patients[fold::_FOLDS])
        net = _train_quality([way for way in ways if way.patient not in out])
        left = [way for way in ways if way.patient in out]
        there = _there(left)
        expected.append(1.0 / (1.0 + np.exp(-net.logit(_features(left)[there]))))
        measured.append(np.concatenate([way.iou for way in left])[there])
    told, true = np.concatenate(expected), np.concatenate(measured)
    print(
        f"IoU of {len(true)} slices: correlation {np.corrcoef(told, true)[0, 1]:.2f}, mean error"
        f" {np.abs(told - true).mean():.3f}, by the mean alone {np.abs(true - true.mean()).mean():.3f}",
        flush=True,
    )


def _value(
    ways: list[_Way], logits: list[NDArray[np.float64]], memory: float
) -> dict[str, tuple[float, float]]:
    """Own-extent and whole-volume Dice, if the object score ended every way."""
    sums: dict[tuple[object, ...], NDArray[np.float64]] = {}
    for way, logit in zip(ways, logits, strict=True):
        keep = _kept(way, logit, memory)
        inside = keep & (way.true > 0)
        counts = np.array(
            [way.overlap[keep].sum(), way.found[inside].sum(), way.found[keep].sum(), way.true.sum()]
        )
        sums[way.target] = sums.get(way.target, np.zeros(4)) + counts
    groups: dict[str, list[tuple[float, float]]] = {}
    for target, (overlap, inside_px, found, true) in sums.items():
        kind = "head and neck" if str(target[0]).startswith("ct_hn") else "other"
        dice = (2 * overlap / max(inside_px + true, 1.0), 2 * overlap / max(found + true, 1.0))
        groups.setdefault(kind, []).append(dice)
    return {
        kind: (round(float(own), 4), round(float(whole), 4))
        for kind, (own, whole) in ((kind, np.mean(group, axis=0)) for kind, group in groups.items())
    }


def _kept(way: _Way, logits: NDArray[np.float64], memory: float) -> NDArray[np.bool_]:
    """Slices on which the object is said to be there, up to where the stop rule ends the way."""
    keep = np.zeros(len(way.true), bool)
    rule, smooth = StopRule(np.ones(way.reference.area, bool), _PATIENCE), _START_LOGIT
    for place, logit in enumerate(logits):
        smooth = memory * smooth + (1.0 - memory) * logit
        mask, score = np.ones(way.sights[place].area, bool), float(1.0 / (1.0 + np.exp(-smooth)))
        keep[[shown.index for shown in rule.follow(TrackedSlice(0, place, mask, None, score))]] = True
        if rule.stopped:
            break
    return keep


if __name__ == "__main__":
    main()

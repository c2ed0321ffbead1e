"""Choose the weights with which the default settles network and intensity tracker; prints a `Fusion`, and keeps it on
request in the weights' metadata.

    fit_fusion.py --data FOLDER [--model FILE] [--cases 26] [--write]

Uses patients of the data folder that `holdout.json` does not hold out, and phantoms for organs of the trunk. Every one
is tracked once per mixing weight without ever stopping, and the overlap with the truth is noted on every slice. The
weights of the object score then maximise the mean of own-extent and whole-volume Dice that stopping by that score would
have given: a logistic regression is the start, a seeded random search the refinement.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from medssl.checkpoints import read_checkpoint, write_checkpoint
from medssl.foundation.nano import NanoTracker, load_nano
from medssl.foundation.nano_fusion import Fusion, FusionState, presence_features
from medssl.foundation.nano_model import NanoModel
from medssl.foundation.protocols import TrackedSlice
from medssl.phantom import phantom_ct
from medssl.prompts import Reference, SlicePrompt
from medssl.propagate import PropagateOptions, propagate
from medssl.registry import find_entry, model_path
from medssl.results import SliceMask
from numpy.typing import NDArray
from protocol import Case, ObjectTask, held_out_cases, object_tasks, read_case
from scipy.optimize import minimize

_PHANTOM = "phantom_"
_MANY = ("rib_", "vertebrae_")  # they would outnumber all other organs of a phantom
_PHANTOM_SEEDS = (5001, 5002)
_NETWORK_WEIGHTS = (0.45,)  # the intensity tracker is the stronger of the two, by a little
_START_LOGIT = 3.0
_PATIENCE = PropagateOptions().patience
_ROUNDS = 800


@dataclass(frozen=True, eq=False)
class _Way:
    """One object in one direction, slice by slice, never stopped."""

    patient: str
    features: NDArray[np.float64]  # (n, features)
    overlap: NDArray[np.float64]  # (n,) pixels common to mask and truth
    found: NDArray[np.float64]  # (n,) pixels of the mask
    true: NDArray[np.float64]  # (n,) pixels of the truth


class _Recording(Fusion):
    """Notes the features of every slice that is settled, and never lets the object end."""

    notes: ClassVar[dict[tuple[int, int], tuple[float, ...]]] = {}

    def settle(
        self, probability: NDArray[np.float32], presence: float, other: TrackedSlice, state: FusionState
    ) -> tuple[NDArray[np.float32], float]:
        now = replace(state, steps=state.steps + 1)
        features = presence_features(probability, presence, other, self._mixed(probability, other), now)
        self.notes[other.object_id, other.index] = features
        mixed, _ = super().settle(probability, presence, other, state)
        return mixed, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default=None, help="weights; the shipped ones by default")
    parser.add_argument("--write", action="store_true", help="keep the result in the weights' metadata")
    parser.add_argument("--cases", type=int, default=26)
    options = parser.parse_args()
    path = Path(options.model) if options.model else model_path(find_entry("medssl-nano"))
    model, _ = load_nano(path, torch.device("cpu"))
    cases = list(_cases(Path(options.data), options.cases))
    fitted = [_fit(model, cases, weight) for weight in _NETWORK_WEIGHTS]
    best = max(fitted, key=lambda pair: pair[0])[1]
    print(best)
    if options.write:
        tensors, meta = read_checkpoint(path)
        write_checkpoint(path, tensors, {**meta, "fusion": asdict(best)})


def _cases(root: Path, count: int) -> Iterator[Case]:
    held_out = {name for names in held_out_cases().values() for name in names}
    names = sorted(f.name for f in root.glob("ct_hn*") if f.name not in held_out)
    for name in names[:: max(len(names) // count, 1)][:count]:
        yield read_case(root / name)
    for seed in _PHANTOM_SEEDS:
        phantom = phantom_ct(seed)
        organs = {
            segment.label: segment.name
            for segment in phantom.segmentation.segments
            if not segment.name.startswith(_MANY)
        }
        yield Case(f"{_PHANTOM}{seed}", phantom.volume, phantom.segmentation.labels_kji, organs)


def _fit(model: NanoModel, cases: list[Case], network: float) -> tuple[float, Fusion]:
    ways = [way for case in cases for way in _track(model, case, network)]
    start = Fusion(network=network, presence=_logistic(ways), memory=0.5)
    value = _value(ways, start)
    print(f"{start}: {value}", flush=True)
    rng = np.random.default_rng(0)
    best, best_value = start, value
    for _ in range(_ROUNDS):
        presence = tuple((np.array(best.presence) + rng.normal(0.0, 0.15, len(best.presence))).tolist())
        memory = float(np.clip(best.memory + rng.normal(0.0, 0.05), 0.0, 0.9))
        tried = Fusion(network=network, presence=presence, memory=memory)
        value = _value(ways, tried)
        if sum(value) > sum(best_value):
            best, best_value = tried, value
    best = replace(best, presence=tuple(round(v, 3) for v in best.presence), memory=round(best.memory, 3))
    print(f"{best}: {_value(ways, best)}", flush=True)
    return sum(best_value), best


def _track(model: NanoModel, case: Case, network: float) -> Iterator[tuple[_Way, ...]]:
    """The two ways of every object of a case."""
    tasks = list(object_tasks(case))
    references = [
        Reference(str(number), SlicePrompt(0, task.index, mask=task.annotation))
        for number, task in enumerate(tasks)
    ]
    _Recording.notes.clear()
    masks: dict[tuple[int, int], NDArray[np.bool_]] = {}
    events = propagate(
        case.volume, references, NanoTracker(model, _Recording(network=network)), PropagateOptions(stop=False)
    )
    for event in events:
        if isinstance(event, SliceMask):
            masks[int(event.segment), event.index] = event.mask
    for number, task in enumerate(tasks):
        ends = (range(task.index + 1, len(task.truth_kji)), range(task.index - 1, -1, -1))
        yield tuple(_way(task, number, indices, masks) for indices in ends)


def _way(
    task: ObjectTask, number: int, indices: Sequence[int], masks: dict[tuple[int, int], NDArray[np.bool_]]
) -> _Way:
    pairs = [(masks[number, index], task.truth_kji[index]) for index in indices]
    return _Way(
        task.patient,
        np.array([_Recording.notes[number, index] for index in indices]).reshape(len(indices), -1),
        np.array([(mask & truth).sum() for mask, truth in pairs], float),
        np.array([mask.sum() for mask, _ in pairs], float),
        np.array([truth.sum() for _, truth in pairs], float),
    )


def _logistic(ways: list[tuple[_Way, ...]]) -> tuple[float, ...]:
    filled = [way for pair in ways for way in pair if len(way.true)]
    x = np.concatenate([way.features for way in filled])
    y = np.concatenate([way.true > 0 for way in filled])

    def loss(weights: NDArray[np.float64]) -> float:
        logit = x @ weights
        likelihood = np.logaddexp(0.0, -logit) * y + np.logaddexp(0.0, logit) * ~y
        return float(likelihood.mean() + 1e-3 * weights @ weights)

    return tuple(float(weight) for weight in minimize(loss, np.zeros(x.shape[1])).x)


def _value(ways: list[tuple[_Way, ...]], fusion: Fusion) -> tuple[float, float]:
    """Own-extent and whole-volume Dice, if the object score ended every way; patients and phantoms weigh alike."""
    groups: dict[bool, list[tuple[float, float]]] = {}
    for pair in ways:
        kept = [_kept(way, fusion) for way in pair]
        overlap = sum(float((way.overlap * keep).sum()) for way, keep in zip(pair, kept, strict=True))
        found = sum(float((way.found * keep).sum()) for way, keep in zip(pair, kept, strict=True))
        inside = sum(
            float((way.found * keep * (way.true > 0)).sum()) for way, keep in zip(pair, kept, strict=True)
        )
        true = sum(float(way.true.sum()) for way in pair)
        dice = (2 * overlap / max(inside + true, 1.0), 2 * overlap / max(found + true, 1.0))
        groups.setdefault(pair[0].patient.startswith(_PHANTOM), []).append(dice)
    own, whole = np.mean([np.mean(group, axis=0) for group in groups.values()], axis=0)
    return float(own), float(whole)


def _kept(way: _Way, fusion: Fusion) -> NDArray[np.bool_]:
    """Slices on which the object is said to be there, up to where the stop rule ends the way."""
    keep = np.zeros(len(way.true), bool)
    if not keep.size:
        return keep
    logits = way.features @ np.array(fusion.presence)
    smooth, without = _START_LOGIT, 0
    for place, logit in enumerate(logits):
        smooth = fusion.memory * smooth + (1.0 - fusion.memory) * logit
        keep[place] = smooth > 0 and way.found[place] > 0
        without = 0 if keep[place] else without + 1
        if without >= _PATIENCE:
            break
    return keep


if __name__ == "__main__":
    main()

"""Learns how much say the network has against the intensity tracker on a slice.

What is right on one slice depends on what both trackers went on from, which is what was mixed before. So objects are
tracked several times, each time with the weights learnt so far, and all that was seen is learnt from (DAgger: Ross,
Gordon and Bagnell, AISTATS 2011).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from medssl.foundation.nano import NanoTracker
from medssl.foundation.nano_fusion import Fusion, FusionState, LogitNet, Settled, mixing_features
from medssl.foundation.nano_model import NanoModel
from medssl.foundation.protocols import TrackedSlice, TrackJob
from medssl.prompts import SlicePrompt
from medssl.volume import WINDOWS
from nets import train_net
from numpy.typing import NDArray
from protocol import Case, object_tasks

_SHARES = np.array([0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0])
"""Weights of the network that are tried on every slice; between them its Dice is interpolated."""
_ROUNDS = 3
_UNITS, _STEPS, _BATCH, _RATE, _DECAY = 12, 3000, 512, 3e-3, 0.1
_TO_THE_MIDDLE = 0.05
"""A weight of 0 or 1 has to gain a quarter of this in Dice over one half."""
_OTHER_WEIGHT = 2.0  # of an object that is not of the head and neck: there are few


@dataclass(frozen=True, eq=False)
class MixedSlice:
    """What every weight would have come to on one slice of an object."""

    patient: str
    target: tuple[str, str]
    """Case and organ."""
    features: NDArray[np.float64]
    """Of `mixing_features`."""
    dice: NDArray[np.float64]
    """Of the mask for each of the weights that are tried."""
    true: int
    """Pixels of the truth."""

    def dice_of(self, mixing: LogitNet) -> float:
        """Dice of the mask that a net's weight comes to."""
        share = 1.0 / (1.0 + np.exp(-mixing.logit(self.features)))
        return float(np.interp(share, _SHARES, self.dice))


def fit_mixing(model: NanoModel, cases: Sequence[Case]) -> LogitNet:
    """The net that tells the network's weight, learnt from `_ROUNDS` rounds over the cases."""
    seen: list[MixedSlice] = []
    fusion = Fusion()
    for number in range(_ROUNDS):
        tracked = [each for case in cases for each in mixed_slices(model, fusion, case)]
        dice = np.mean([each.dice_of(fusion.mixing) for each in tracked])
        print(f"mixing, round {number + 1}: Dice of a slice {dice:.4f}", flush=True)
        seen += tracked
        fusion = replace(fusion, mixing=train_mixing(seen))
    return fusion.mixing


def train_mixing(slices: Sequence[MixedSlice]) -> LogitNet:
    """The net with the best Dice on average, objects counted alike, and the slices of one by their area."""
    area: dict[tuple[str, str], int] = {}
    for each in slices:
        area[each.target] = area.get(each.target, 0) + each.true
    counts = np.array(
        [
            each.true / area[each.target] * (1.0 if each.patient.startswith("ct_hn") else _OTHER_WEIGHT)
            for each in slices
        ]
    )
    weight = torch.from_numpy(counts / counts.mean())
    dice = torch.from_numpy(np.stack([each.dice for each in slices]))
    shares = torch.from_numpy(_SHARES)

    def loss(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        share = torch.sigmoid(logits).clamp(1e-4, 1.0 - 1e-4)
        above = torch.searchsorted(shares, share.detach()).clamp(1, len(shares) - 1)
        low, high = shares[above - 1], shares[above]
        part = (share - low) / (high - low)
        tried = dice[rows]
        expected = torch.lerp(
            tried.gather(1, above[:, None] - 1)[:, 0], tried.gather(1, above[:, None])[:, 0], part
        )
        far = _TO_THE_MIDDLE * (share - 0.5).square()
        return 10.0 * (weight[rows] * (far - expected)).mean()

    features = np.stack([each.features for each in slices])
    return train_net(features, loss, units=_UNITS, steps=_STEPS, batch=_BATCH, rate=_RATE, decay=_DECAY)


def mixed_slices(model: NanoModel, fusion: Fusion, case: Case) -> Iterator[MixedSlice]:
    """Every slice of every object of a case, tracked from its middle slice to its ends."""
    tasks = list(object_tasks(case))
    trial = _Trying(**vars(fusion))
    session = NanoTracker(model, trial).open(case.volume, 0, WINDOWS["soft-tissue"])
    _Trying.truths = [task.truth_kji for task in tasks]
    _Trying.tried = {}
    jobs = []
    for number, task in enumerate(tasks):
        session.add_reference(number, SlicePrompt(0, task.index, mask=task.annotation))
        jobs += [TrackJob(number, task.index, end) for end in (task.first, task.last) if end != task.index]
    for _ in session.run(jobs):
        pass
    for (number, index), (features, dice) in _Trying.tried.items():
        task = tasks[number]
        true = int(task.truth_kji[index].sum())
        yield MixedSlice(task.patient, (task.case, task.organ), features, dice, true)


class _Trying(Fusion):
    """Notes what every weight would come to on a slice, and never lets the object end."""

    truths: ClassVar[Sequence[NDArray[np.bool_]]] = ()
    """(K, H, W) of each object."""
    tried: ClassVar[dict[tuple[int, int], tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}

    def settle(
        self, probability: NDArray[np.float32], presence: float, other: TrackedSlice, state: FusionState
    ) -> Settled:
        truth = self.truths[other.object_id][other.index]
        if other.probability is not None and other.mask.any() and truth.any():
            masks = [
                np.float32(share) * probability + np.float32(1.0 - share) * other.probability > 0.5
                for share in _SHARES
            ]
            features = mixing_features(probability, presence, other.probability, other.score, state.previous)
            self.tried[other.object_id, other.index] = (
                features,
                np.array([_dice(mask, truth, state.window) for mask in masks]),
            )
        return replace(super().settle(probability, presence, other, state), score=1.0)


def _dice(mask: NDArray[np.bool_], truth: NDArray[np.bool_], window: tuple[slice, slice]) -> float:
    """Of a mask on a part of a slice with the truth on all of it."""
    common = np.count_nonzero(mask & truth[window])
    return 2.0 * common / max(np.count_nonzero(mask) + np.count_nonzero(truth), 1)

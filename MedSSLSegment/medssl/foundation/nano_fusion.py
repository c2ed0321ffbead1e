"""Settles what the small network and the intensity tracker say about one slice.

They fail on different organs: the network loses bone, lung and many-part objects, the intensity tracker loses soft
organs of low contrast. Their probabilities are mixed, and both trackers go on from the mixture. Whether the object is
still there is a logistic function of both object scores and of how the mask behaves, smoothed over the slices.
``Testing/benchmarks/fit_fusion.py`` chooses the weights, on patients that the benchmark does not score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .protocols import TrackedSlice

__all__ = ["PRESENCE_FEATURES", "Fusion", "FusionState", "presence_features"]

PRESENCE_FEATURES = (
    "constant",
    "logit of the network's object score",
    "logit of the intensity tracker's object score",
    "Dice of the two masks",
    "log of the area over the reference slice's",
    "log of 1 + distance from the reference slice over the object's width there",
    "mean probability inside the mask",
    "Dice with the mask of the slice before",
)
_START_LOGIT = 3.0


@dataclass
class FusionState:
    """One object on its way in one direction."""

    reference_area: int
    """Pixels of the mask on the reference slice."""
    step_over_width: float
    """Distance between slices over the object's width on the reference slice."""
    previous: NDArray[np.bool_]
    """(H, W) mask on the slice before."""
    logit: float = _START_LOGIT
    """Logit of the object score on the slice before."""
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """Weights of the settlement."""

    network: float = 0.5
    """Weight of the network's probability against the intensity tracker's, 0 .. 1."""
    presence: tuple[float, ...] = (0.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0)
    """Logistic weights of the object score, for `PRESENCE_FEATURES`."""
    memory: float = 0.5
    """Share of the slices before in the object score's logit, 0 .. 1."""

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Fusion:
        """The weights kept in a checkpoint's metadata under ``fusion``; the defaults where there are none."""
        kept = meta.get("fusion")
        if kept is None:
            return cls()
        return cls(network=kept["network"], presence=tuple(kept["presence"]), memory=kept["memory"])

    def settle(
        self, probability: NDArray[np.float32], presence: float, other: TrackedSlice, state: FusionState
    ) -> tuple[NDArray[np.float32], float]:
        """One answer from two.

        Args:
            probability: (H, W) of the network, whether or not the object is there.
            presence: the network's object score, 0 .. 1.
            other: the intensity tracker's answer.
            state: what is known from the slices before; brought up to this slice.

        Returns:
            (H, W) probability and the object score, 0 .. 1.
        """
        mixed = self._mixed(probability, other)
        state.steps += 1
        logit = float(np.dot(self.presence, presence_features(probability, presence, other, mixed, state)))
        state.logit = self.memory * state.logit + (1.0 - self.memory) * logit
        state.previous = mixed > 0.5
        return mixed, float(1.0 / (1.0 + np.exp(-state.logit)))

    def _mixed(self, probability: NDArray[np.float32], other: TrackedSlice) -> NDArray[np.float32]:
        if other.probability is None or not other.mask.any():
            return probability
        return np.float32(self.network) * probability + np.float32(1.0 - self.network) * other.probability


def presence_features(
    probability: NDArray[np.float32],
    presence: float,
    other: TrackedSlice,
    mixed: NDArray[np.float32],
    state: FusionState,
) -> tuple[float, ...]:
    """The values of `PRESENCE_FEATURES` on one slice; the mask is the mixture's."""
    mask = mixed > 0.5
    area = int(mask.sum())
    return (
        1.0,
        _logit(presence),
        _logit(other.score),
        _dice(probability > 0.5, other.mask),
        float(np.log((area + 1) / (state.reference_area + 1))),
        float(np.log1p(state.steps * state.step_over_width)),
        float(mixed[mask].mean()) if area else 0.0,
        _dice(mask, state.previous),
    )


def _dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    size = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return 2.0 * int(np.count_nonzero(first & second)) / size if size else 0.0


def _logit(score: float) -> float:
    clipped = min(max(score, 1e-3), 1.0 - 1e-3)
    return float(np.log(clipped / (1.0 - clipped)))

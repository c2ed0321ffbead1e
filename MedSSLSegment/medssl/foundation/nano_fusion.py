"""Settles what the small network and the intensity tracker say about one slice.

They fail on different organs: the network loses bone, lung and many-part objects, the intensity tracker loses soft
organs of low contrast. Their probabilities are mixed, and both trackers go on from the mixture. Whether the object is
still there is decided by a few numbers - both object scores, how the mask behaves, how large the object is and how far
it has been followed - put through a net of a dozen units and smoothed over the slices.
``Testing/benchmarks/fit_fusion.py`` chooses the weights, on patients that the benchmark does not score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .protocols import TrackedSlice

__all__ = [
    "SLICE_FEATURES",
    "Fusion",
    "FusionState",
    "LogitNet",
    "Settled",
    "distance_features",
    "slice_features",
]

SLICE_FEATURES = (
    "constant",
    "logit of the network's object score",
    "logit of the intensity tracker's object score",
    "Dice of the two masks",
    "mean probability inside the mask",
    "Dice with the mask of the slice before",
    "log of the area over the reference slice's",
    "log of the reference slice's area in square millimetres",
    "log of 1 + distance from the reference slice over the object's width there",
    "log of 1 + distance from the reference slice in millimetres",
    "distance from the reference slice in units of 50 mm",
)
_START_LOGIT = 3.0


@dataclass
class FusionState:
    """One object on its way in one direction."""

    reference_area: int
    """Pixels of the mask on the reference slice."""
    pixel_mm2: float
    """Area of a pixel."""
    step_mm: float
    """Distance between slices."""
    previous: NDArray[np.bool_]
    """Mask on the slice before, of the same shape as the probabilities that are settled next."""
    logit: float = _START_LOGIT
    """Logit of the object score on the slice before."""
    steps: int = 0


@dataclass(frozen=True)
class Settled:
    """What two trackers come to on one slice."""

    probability: NDArray[np.float32]
    """(H, W) of the object, whether or not it is there."""
    score: float
    """Probability that the object is there, 0 .. 1."""
    quality: float
    """Expected IoU of the mask if it is, 0 .. 1."""


@dataclass(frozen=True, kw_only=True)
class LogitNet:
    """A weighted sum of `SLICE_FEATURES` and of a few tanh units over them."""

    linear: tuple[float, ...]
    """(n,) weights of the features."""
    units: tuple[tuple[float, ...], ...] = ()
    """(m, n) weights of the features in each unit."""
    out: tuple[float, ...] = ()
    """(m,) weights of the units."""

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> LogitNet:
        """The weights kept as plain JSON values."""
        return cls(
            linear=tuple(meta["linear"]), units=tuple(map(tuple, meta["units"])), out=tuple(meta["out"])
        )

    def logit(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """(...,) of features (..., n)."""
        linear: NDArray[np.float64] = features @ np.array(self.linear)
        return (
            linear + np.tanh(features @ np.array(self.units).T) @ np.array(self.out) if self.out else linear
        )


def _weights(of: Mapping[int, float]) -> tuple[float, ...]:
    return tuple(of.get(place, 0.0) for place in range(len(SLICE_FEATURES)))


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """Weights of the settlement."""

    network: float = 0.5
    """Weight of the network's probability against the intensity tracker's, 0 .. 1."""
    presence: LogitNet = LogitNet(linear=_weights({1: 0.5, 2: 0.5}))
    """The object score: the mean of both trackers', unless it was fitted."""
    memory: float = 0.5
    """Share of the slices before in the object score's logit, 0 .. 1."""
    quality: LogitNet = LogitNet(linear=_weights({0: -4.0, 4: 8.0}))
    """The mask's IoU where the object is: steeper than the mean probability inside it, unless it was fitted."""

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Fusion:
        """The weights kept in a checkpoint's metadata under ``fusion``; the defaults where there are none."""
        kept = meta.get("fusion")
        if kept is None:
            return cls()
        return cls(
            network=kept["network"],
            presence=LogitNet.from_meta(kept["presence"]),
            memory=kept["memory"],
            quality=LogitNet.from_meta(kept["quality"]),
        )

    def to_meta(self) -> dict[str, Any]:
        """The inverse of `from_meta`: what to keep under ``fusion``, as plain JSON values."""
        return asdict(self)

    def settle(
        self, probability: NDArray[np.float32], presence: float, other: TrackedSlice, state: FusionState
    ) -> Settled:
        """One answer from two.

        Args:
            probability: (H, W) of the network, whether or not the object is there; a slice or a part of one.
            presence: the network's object score, 0 .. 1.
            other: the intensity tracker's answer on the same part.
            state: what is known from the slices before; brought up to this slice.
        """
        mixed = self._mixed(probability, other)
        state.steps += 1
        features = slice_features(probability, presence, other, mixed, state)
        logit = float(self.presence.logit(features))
        state.logit = self.memory * state.logit + (1.0 - self.memory) * logit
        state.previous = mixed > 0.5
        return Settled(mixed, _share(state.logit), _share(float(self.quality.logit(features))))

    def _mixed(self, probability: NDArray[np.float32], other: TrackedSlice) -> NDArray[np.float32]:
        if other.probability is None or not other.mask.any():
            return probability
        return np.float32(self.network) * probability + np.float32(1.0 - self.network) * other.probability


def slice_features(
    probability: NDArray[np.float32],
    presence: float,
    other: TrackedSlice,
    mixed: NDArray[np.float32],
    state: FusionState,
) -> NDArray[np.float64]:
    """The values of `SLICE_FEATURES` on one slice; the mask is the mixture's."""
    mask = mixed > 0.5
    area = int(np.count_nonzero(mask))
    of_the_slice = (
        1.0,
        _logit(presence),
        _logit(other.score),
        _dice(probability > 0.5, other.mask),
        float(mixed[mask].mean()) if area else 0.0,
        _dice(mask, state.previous),
    )
    return np.concatenate(
        [
            of_the_slice,
            distance_features(area, state.steps * state.step_mm, state.reference_area, state.pixel_mm2),
        ]
    )


def distance_features(
    area: int, distance_mm: float, reference_area: int, pixel_mm2: float
) -> NDArray[np.float64]:
    """The last of `SLICE_FEATURES`: what follows from sizes and distances alone.

    Args:
        area: pixels of the mask.
        distance_mm: from the reference slice.
        reference_area: pixels of the mask on the reference slice.
        pixel_mm2: area of a pixel.
    """
    reference_mm2 = reference_area * pixel_mm2
    return np.array(
        [
            np.log((area + 1) / (reference_area + 1)),
            np.log(reference_mm2),
            np.log1p(distance_mm / np.sqrt(reference_mm2)),
            np.log1p(distance_mm),
            distance_mm / 50.0,
        ]
    )


def _dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    size = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return 2.0 * int(np.count_nonzero(first & second)) / size if size else 0.0


def _share(logit: float) -> float:
    return float(1.0 / (1.0 + np.exp(-logit)))


def _logit(score: float) -> float:
    clipped = min(max(score, 1e-3), 1.0 - 1e-3)
    return float(np.log(clipped / (1.0 - clipped)))

"""Settles what the small network and the intensity tracker say about one slice.

They fail on different organs: the network loses bone, lung and many-part objects, the intensity tracker loses soft
organs of low contrast. Their probabilities are mixed, and both trackers go on from the mixture; how much say the
network has, a small net tells from how sure each of the two is and how each mask moves. Whether the object is still
there is decided by a few numbers - both object scores, how the mask and the image under it have changed, how large the
object is and how far it has been followed (`nano_sight`) - put through another net and smoothed over the slices.
``Testing/benchmarks/fit_fusion.py`` chooses the weights, on patients that the benchmark does not score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .nano_sight import SLICE_FEATURES, Course, IntensityScale, Sight, Surroundings, clipped_logit
from .protocols import TrackedSlice

__all__ = [
    "MIXING_FEATURES",
    "Fusion",
    "FusionState",
    "LogitNet",
    "Settled",
    "mixing_features",
    "sight_of",
]

MIXING_FEATURES = (
    "constant",
    "logit of the network's object score",
    "logit of the intensity tracker's object score",
    "Dice of the two masks",
    "mean probability inside the network's mask",
    "mean probability inside the intensity tracker's mask",
    "Dice of the network's mask with the mask of the slice before",
    "Dice of the intensity tracker's mask with the mask of the slice before",
    "log of the network's area over that of the slice before",
    "log of the intensity tracker's area over that of the slice before",
)
"""Nothing of sizes and distances: they would tell the organs of the fitting patients apart, and no others."""

_START_LOGIT = 3.0


@dataclass
class FusionState:
    """One object on its way in one direction."""

    course: Course
    """What has been seen of it so far."""
    scale: IntensityScale
    previous: NDArray[np.bool_]
    """Mask on the slice before, of the same shape as the probabilities that are settled next."""
    image: NDArray[np.generic]
    """Intensities of the slice that is settled next, of that shape too."""
    image_before: NDArray[np.generic]
    """Those of the slice before."""
    window: tuple[slice, slice] = (slice(None), slice(None))
    """Rows and columns of the slice that these cover."""
    logit: float = _START_LOGIT
    """Logit of the object score on the slice before."""

    @classmethod
    def begin(
        cls, image: NDArray[np.generic], mask: NDArray[np.bool_], pixel_mm2: float, step_mm: float
    ) -> FusionState:
        """From a reference slice.

        Args:
            image: (H, W) intensities.
            mask: (H, W) the object, not empty.
            pixel_mm2: area of a pixel.
            step_mm: distance between slices.
        """
        scale = IntensityScale.around(image, mask)
        reference = Sight(area=int(np.count_nonzero(mask)), around=Surroundings.of(image, mask, scale))
        return cls(Course(reference, pixel_mm2, step_mm), scale, mask, image, image)


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
    """A weighted sum of features and of a few tanh units over them."""

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
        """(...,) of features (..., n or more); the net knows the first n."""
        features = features[..., : len(self.linear)]
        linear: NDArray[np.float64] = features @ np.array(self.linear)
        return (
            linear + np.tanh(features @ np.array(self.units).T) @ np.array(self.out) if self.out else linear
        )


def _weights(of: Mapping[int, float], features: tuple[str, ...] = SLICE_FEATURES) -> tuple[float, ...]:
    return tuple(of.get(place, 0.0) for place in range(len(features)))


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """Weights of the settlement."""

    mixing: LogitNet = LogitNet(linear=_weights({}, MIXING_FEATURES))
    """Weight of the network's probability against the intensity tracker's, of `MIXING_FEATURES`: one half, unless it
    was fitted."""
    presence: LogitNet = LogitNet(linear=_weights({1: 0.5, 2: 0.5}))
    """The object score, of `SLICE_FEATURES`: the mean of both trackers', unless it was fitted."""
    memory: float = 0.5
    """Share of the slices before in the object score's logit, 0 .. 1."""
    quality: LogitNet = LogitNet(linear=_weights({0: -4.0, 4: 8.0}))
    """The mask's IoU where the object is, of `SLICE_FEATURES`: steeper than the mean probability inside it, unless it
    was fitted."""

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Fusion:
        """The weights kept in a checkpoint's metadata under ``fusion``; the defaults where there are none."""
        kept = meta.get("fusion")
        if kept is None:
            return cls()
        return cls(
            mixing=LogitNet.from_meta(kept["mixing"]) if "mixing" in kept else cls.mixing,
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
        mixed = self._mixed(probability, presence, other, state)
        features = state.course.go_on(sight_of(probability, presence, other, mixed, state))
        logit = float(self.presence.logit(features))
        state.logit = self.memory * state.logit + (1.0 - self.memory) * logit
        state.previous = mixed > 0.5
        return Settled(mixed, _share(state.logit), _share(float(self.quality.logit(features))))

    def _mixed(
        self, probability: NDArray[np.float32], presence: float, other: TrackedSlice, state: FusionState
    ) -> NDArray[np.float32]:
        if other.probability is None or not other.mask.any():
            return probability
        features = mixing_features(probability, presence, other.probability, other.score, state.previous)
        network = np.float32(_share(float(self.mixing.logit(features))))
        return network * probability + (np.float32(1.0) - network) * other.probability


def mixing_features(
    network: NDArray[np.float32],
    network_score: float,
    intensity: NDArray[np.float32],
    intensity_score: float,
    previous: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """The values of `MIXING_FEATURES` on one slice.

    Args:
        network: (H, W) probability of the network.
        network_score: its object score, 0 .. 1.
        intensity: (H, W) probability of the intensity tracker.
        intensity_score: its object score, 0 .. 1.
        previous: (H, W) mask on the slice before.
    """
    masks = (network > 0.5, intensity > 0.5)
    before = int(np.count_nonzero(previous))
    return np.array(
        [
            1.0,
            clipped_logit(network_score),
            clipped_logit(intensity_score),
            _dice(*masks),
            _mean_inside(network, masks[0]),
            _mean_inside(intensity, masks[1]),
            *(_dice(mask, previous) for mask in masks),
            *(np.log((int(np.count_nonzero(mask)) + 1) / (before + 1)) for mask in masks),
        ]
    )


def sight_of(
    probability: NDArray[np.float32],
    presence: float,
    other: TrackedSlice,
    mixed: NDArray[np.float32],
    state: FusionState,
) -> Sight:
    """What is seen on the next slice; the mask is the mixture's. Arguments as for `Fusion.settle`."""
    mask = mixed > 0.5
    return Sight(
        area=int(np.count_nonzero(mask)),
        around=Surroundings.of(state.image, mask, state.scale, state.image_before),
        network_logit=clipped_logit(presence),
        intensity_logit=clipped_logit(other.score),
        agreement=_dice(probability > 0.5, other.mask),
        sureness=_mean_inside(mixed, mask),
        steadiness=_dice(mask, state.previous),
    )


def _mean_inside(probability: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    return float(probability[mask].mean()) if mask.any() else 0.0


def _dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    size = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return 2.0 * int(np.count_nonzero(first & second)) / size if size else 0.0


def _share(logit: float) -> float:
    return float(1.0 / (1.0 + np.exp(-logit)))

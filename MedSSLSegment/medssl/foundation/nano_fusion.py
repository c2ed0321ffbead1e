"""Settles what the small network and the intensity tracker say about one slice.

They fail on different organs: the network loses bone, lung and many-part objects, the intensity tracker loses soft
organs of low contrast. Both answers are weighed by how sure each is, and both trackers go on from the outcome.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .protocols import TrackedSlice

__all__ = ["Fusion"]


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """Weights of the settlement, chosen on patients that the benchmark does not score."""

    network: float = 0.5
    """Weight of the network's probability against the intensity tracker's, 0 .. 1."""
    presence: tuple[float, float, float] = (1.0, 0.0, 0.0)
    """Logistic weights of the object score: the network's logit, the intensity tracker's logit, constant."""

    def settle(
        self, probability: NDArray[np.float32], presence: float, other: TrackedSlice
    ) -> tuple[NDArray[np.float32], float]:
        """One answer from two.

        Args:
            probability: (H, W) of the network, whether or not the object is there.
            presence: the network's object score, 0 .. 1.
            other: the intensity tracker's answer.

        Returns:
            (H, W) probability and the object score, 0 .. 1.
        """
        assert other.probability is not None
        mixed = np.float32(self.network) * probability + np.float32(1 - self.network) * other.probability
        network, intensity, constant = self.presence
        logit = network * _logit(presence) + intensity * _logit(other.score) + constant
        return mixed, float(1 / (1 + np.exp(-logit)))


def _logit(score: float) -> float:
    clipped = min(max(score, 1e-4), 1 - 1e-4)
    return float(np.log(clipped / (1 - clipped)))

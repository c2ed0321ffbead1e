"""Two clusters in every image's patches, the whole batch at once.

B batch, N patches, D numbers in a patch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TwoMeans", "hashed_uniform", "squared_distances", "two_means"]

# splitmix64 (Steele, Lea and Flood 2014), in wrapping signed 64-bit arithmetic
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
_LARGEST_SALT = 2**62 - 1


class TwoMeans(NamedTuple):
    """Result of `two_means`."""

    labels: Tensor
    """(B, N) int64, 0 or 1."""
    centres: Tensor
    """(B, 2, D) float32 means of the clusters."""
    constant: Tensor
    """(B,) bool: all patches are equal, so there is nothing to tell apart (labels are 0)."""


def hashed_uniform(keys: Tensor, count: int, *salts: int) -> Tensor:
    """Random numbers that belong to a key, whatever the batch it comes in.

    Args:
        keys: (B,) int64.
        count: numbers per key.
        salts: what else they depend on, e.g. the run's seed; whole numbers of at most 62 bits.

    Returns:
        (B, count) float64, uniform in 0 <= u < 1.
    """
    index = torch.arange(1, count + 1, device=keys.device)
    state = keys
    for salt in salts:
        state = _mixed(state + _GOLDEN) ^ (salt & _LARGEST_SALT)
    state = _mixed(state + _GOLDEN)[:, None] + index * _GOLDEN
    return (_mixed(state) & ((1 << 53) - 1)).double() / float(1 << 53)


def two_means(points: Tensor, keys: Tensor, seed: int = 0, rounds: int = 20) -> TwoMeans:
    """k-means with k = 2, started by k-means++ from (seed, key).

    Args:
        points: (B, N, D), N >= 2.
        keys: (B,) int64: what the start depends on, e.g. the slice's id.
        seed: of the run.
        rounds: of assignment and averaging; a batch takes the same number, so nothing waits for the device.

    Returns:
        Labels and centres; the numbering of the two clusters has no meaning.
    """
    points = points.detach().float()
    constant = (points == points[:, :1]).all(2).all(1)  # (B,)
    centres = _plus_plus(points, hashed_uniform(keys, 2, seed))
    for _ in range(rounds):
        centres = _averaged(points, centres)
    nearer_to_second = squared_distances(points, centres).argmin(2)
    return TwoMeans(nearer_to_second.masked_fill(constant[:, None], 0), centres, constant)


def squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    """(B, N, D) points and (B, 2, D) centres to (B, N, 2)."""
    return (points[:, :, None] - centres[:, None]).square().sum(3)


def _plus_plus(points: Tensor, uniform: Tensor) -> Tensor:
    """One point uniformly, the second with odds of its squared distance to the first: (B, 2, D)."""
    B, N, _ = points.shape
    rows = torch.arange(B, device=points.device)
    first = (uniform[:, 0] * N).long()  # (B,)
    odds = (points - points[rows, first][:, None]).square().sum(2).double().cumsum(1)  # (B, N)
    second = torch.searchsorted(odds, uniform[:, 1:] * odds[:, -1:], right=True)[:, 0]
    return torch.stack([points[rows, first], points[rows, second.clamp(max=N - 1)]], dim=1)


def _averaged(points: Tensor, centres: Tensor) -> Tensor:
    """Mean of each cluster's points; an empty cluster starts again at the point its partner fits worst."""
    distances = squared_distances(points, centres)  # (B, N, 2)
    nearest, labels = distances.min(2)
    share = torch.nn.functional.one_hot(labels, 2).to(points.dtype)  # (B, N, 2)
    counts = share.sum(1)[:, :, None]  # (B, 2, 1)
    means = share.mT @ points / counts.clamp(min=1)
    rows = torch.arange(len(points), device=points.device)
    return torch.where(counts > 0, means, points[rows, nearest.argmax(1)][:, None])


def _mixed(state: Tensor) -> Tensor:
    state = (state ^ _shifted(state, 30)) * _MIX_1
    state = (state ^ _shifted(state, 27)) * _MIX_2
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own repeats the sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)

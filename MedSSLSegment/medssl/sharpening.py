"""A coarse mask, weighed against what the volume itself looks like there.

A network that has learnt from a few slices knows roughly where an object is, and its outline is blurred. Its surest
voxels show what the intensities of the object are in this very volume, and what lies beside it what they are not:

    evidence(v) = log(inside(v) / beside(v))           the two histograms at the intensity of v, clipped to -3 .. 3

A voxel near the coarse mask belongs to the object where

    score(v) = b + w . (L, L2, L5, evidence, evidence2) > 0

with L the log odds of the network's probability, and the numbers the mm of a Gaussian mean around v. The same six
numbers hold for every object, network and number of cases; `Testing/benchmarks/fit_sharpening.py` fits them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import Cancelled
from .events import Eta, Progress
from .metrics import dice
from .segmentation import Segmentation
from .volume import Volume

__all__ = ["FEATURES", "WEIGHTS", "Surroundings", "features", "sharpen"]

_Mask = NDArray[np.bool_]
_Values = NDArray[np.float32]

FEATURES = ("1", "L", "L2", "L5", "evidence", "evidence2")
"""What a voxel is judged by, in this order."""
WEIGHTS = (-0.47, 0.36, 0.43, 0.4, 1.59, 2.23)
"""Of `FEATURES`, from `fit_sharpening.py`."""
_REACH_MM = 8.0
"""So far from the coarse mask a voxel may still join the object, and lies what the object is told from."""
_FINE_MM, _WIDE_MM = 2.0, 5.0
_BINS = 72
_LOW_HU, _HIGH_HU = -300.0, 600.0
_SMOOTHING = (0.05, 0.1, 0.2, 0.3, 0.2, 0.1, 0.05)
_LARGEST_EVIDENCE = 3.0
_FLOOR = 0.1 / _BINS
_ALMOST_NOTHING = 1e-6
_LEAST_CHANCE = 1e-3
_LEAST_AGREEMENT = 0.6
"""An object whose sharpened mask would have a lower Dice with the coarse one stays as it was: the surest voxels are
probably wrong ones, and say nothing of what it looks like."""


@dataclass(frozen=True, eq=False)
class Surroundings:
    """A box around an object, with what the network says there."""

    box: tuple[slice, slice, slice]
    """Of the volume, K, J, I."""
    image: _Values
    """(k, j, i) intensities, HU."""
    mask: _Mask
    """(k, j, i) the coarse mask."""
    chance: _Values
    """(k, j, i) the network's probability of the object, at least one half inside the mask and at most that outside."""
    near: _Mask
    """(k, j, i) voxels that may belong to the object."""
    spacing_kji_mm: tuple[float, float, float]

    @classmethod
    def of(
        cls, volume: Volume, mask_kji: _Mask, probability_kji: NDArray[np.floating[Any]]
    ) -> Surroundings | None:
        """Cut them out; None of an empty mask.

        Args:
            volume: the image.
            mask_kji: (K, J, I) bool, the coarse mask.
            probability_kji: (K, J, I) of the label that was chosen, 0 .. 1; outside the mask the object gets what it
                leaves.
        """
        from scipy import ndimage

        found = ndimage.find_objects(mask_kji.view(np.uint8))
        if not found:
            return None
        margins = [int(np.ceil(_REACH_MM / mm)) + 1 for mm in volume.spacing_kji_mm]
        k, j, i = (slice(max(s.start - m, 0), s.stop + m) for s, m in zip(found[0], margins, strict=True))
        mask, sure = mask_kji[k, j, i], probability_kji[k, j, i].astype(np.float32)
        chance = np.where(mask, np.maximum(sure, 0.5), np.minimum(1.0 - sure, 0.5)).astype(np.float32)
        near = ndimage.distance_transform_edt(~mask, sampling=volume.spacing_kji_mm) <= _REACH_MM
        return cls(
            (k, j, i),
            volume.voxels_kji[k, j, i].astype(np.float32),
            mask,
            chance,
            near,
            volume.spacing_kji_mm,
        )


def sharpen(
    volume: Volume,
    coarse: Segmentation,
    probability_kji: NDArray[np.floating[Any]],
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[Progress, None, Segmentation]:
    """Weigh every segment of a coarse mask against the volume's own intensities.

    Args:
        volume: the image, a CT.
        coarse: on its grid; only read.
        probability_kji: (K, J, I) the network's, of the label that it chose, 0 .. 1.
        cancelled: asked between segments.

    Yields:
        Progress, segment by segment.

    Returns:
        The sharpened mask, of the same segments.

    Raises:
        Cancelled: `cancelled` said so.
    """
    labels = np.zeros_like(coarse.labels_kji)
    best = np.zeros(coarse.shape_kji, np.float32)
    eta = Eta(len(coarse.segments))
    for done, segment in enumerate(coarse.segments, start=1):
        if cancelled():
            raise Cancelled("The segmentation was cancelled while sharpening.")
        around = Surroundings.of(volume, coarse.labels_kji == segment.label, probability_kji)
        if around is not None:
            score = _score(around)
            wins = score > best[around.box]
            labels[around.box][wins] = segment.label
            best[around.box][wins] = score[wins]
        yield eta.step(done, "sharpened")
    return replace(coarse, labels_kji=labels)


def features(around: Surroundings) -> _Values:
    """What the voxels near an object are judged by.

    Returns:
        (6, n) float32: `FEATURES` of the n voxels of `around.near`, in its order.
    """
    chance = np.clip(around.chance, _LEAST_CHANCE, 1.0 - _LEAST_CHANCE)
    odds = np.log(chance / (1.0 - chance))
    says = _evidence(around)
    fine, wide, smooth = (
        _mean_around(values, mm, around.spacing_kji_mm)
        for values, mm in ((odds, _FINE_MM), (odds, _WIDE_MM), (says, _FINE_MM))
    )
    curves = (np.ones_like(odds), odds, fine, wide, says, smooth)
    return np.stack([values[around.near] for values in curves]).astype(np.float32)


def _score(around: Surroundings) -> _Values:
    """(k, j, i) above 0 where a voxel belongs to the object."""
    score = np.full(around.mask.shape, -1.0, np.float32)
    score[around.near] = np.asarray(WEIGHTS, np.float32) @ features(around)
    if dice(score > 0, around.mask) < _LEAST_AGREEMENT:
        return np.where(around.mask, np.float32(1.0), np.float32(-1.0))
    return score


def _evidence(around: Surroundings) -> _Values:
    """(k, j, i) how much likelier each intensity is inside the object than beside it."""
    bins = _bins(around.image)
    inside = np.where(around.mask, (2.0 * around.chance - 1.0) ** 2, 0.0) + _ALMOST_NOTHING
    beside = (around.near & ~around.mask) + _ALMOST_NOTHING
    ratio = np.log((_histogram(bins, inside) + _FLOOR) / (_histogram(bins, beside) + _FLOOR))
    evidence: _Values = np.clip(ratio, -_LARGEST_EVIDENCE, _LARGEST_EVIDENCE).astype(np.float32)[bins]
    return evidence


def _histogram(bins: NDArray[np.intp], weight: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(72,) smoothed, of sum 1."""
    counts = np.convolve(np.bincount(bins.ravel(), weight.ravel(), _BINS), _SMOOTHING, "same")
    share: NDArray[np.float64] = counts / counts.sum()
    return share


def _bins(image_hu: NDArray[np.number[Any]]) -> NDArray[np.intp]:
    """Range of intensity of each pixel, 0 .. 71."""
    share = (np.clip(image_hu.astype(np.float32), _LOW_HU, _HIGH_HU) - _LOW_HU) / (_HIGH_HU - _LOW_HU)
    bins: NDArray[np.intp] = np.rint(share * (_BINS - 1)).astype(np.intp)
    return bins


def _mean_around(values: _Values, sigma_mm: float, spacing_kji_mm: tuple[float, float, float]) -> _Values:
    from scipy import ndimage

    sigma = [sigma_mm / mm for mm in spacing_kji_mm]
    mean: _Values = ndimage.gaussian_filter(values, sigma, truncate=3.0)
    return mean

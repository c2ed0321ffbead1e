"""What is seen of an object on its way through the slices, in the numbers that say whether it is still there.

Whether an organ has ended is seldom seen on one slice. What tells it is how the mask and the image under it have
changed since the annotated slice and over the last slices: they are compared here, in shares and ratios, so that
neither the pixels' size nor the scale of the intensities matters.

Axis letters: H, W rows and columns of a slice or a part of one, n slices, F features.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..prompts import box_of_mask

__all__ = ["SLICE_FEATURES", "Course", "IntensityScale", "Sight", "Surroundings", "clipped_logit"]

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
    "log of the area over the largest so far",
    "log of the area over that of the slice before",
    "log of the area over that of three slices before",
    "mean intensity inside less the reference slice's, in its spreads",
    "log of the spread inside over the reference slice's",
    "mean intensity beside less the reference slice's, in its spreads",
    "log of the contrast over the reference slice's",
    "mean change inside since the slice before, in spreads of the reference slice",
    "correlation of the image with that of the slice before",
    "that less its mean over the three slices before",
    "mean logit of the network's object score over the three slices before",
    "mean logit of the intensity tracker's object score over the three slices before",
    "mean Dice of the two masks over the three slices before",
    "mean probability inside the mask, over the three slices before",
    "mean Dice with the mask of the slice before, over the three slices before",
    "least mean probability inside the mask so far",
)
"""Weights that were fitted to fewer of them belong to the first ones."""

_PAST = 3
"""Slices that the latest one is compared with."""
_SURE_LOGIT, _SURE = 3.0, 0.9
"""Object scores, and shares, that an annotated slice is taken to have."""
_BESIDE_SHARE, _BESIDE_PX = 0.25, 2
"""How far what lies beside a mask reaches beyond its box: in shares of its sides, and in pixels besides."""
_LOOKED_AT_PX = 64
"""Pixels of a box that are looked at along a side, at most; of larger ones every other, third, ..."""
_LEAST_SPREAD = 0.02
"""Of the intensities, in shares of their scale: flat images are noise."""
_LEAST_CONTRAST = 0.05
_FAR = 6.0
"""Differences in intensity are not told apart beyond."""


@dataclass(frozen=True)
class IntensityScale:
    """The intensities that matter for an object: those around it on its reference slice, and half as many again."""

    low: float
    high: float

    @classmethod
    def around(cls, image: NDArray[np.generic], mask: NDArray[np.bool_]) -> IntensityScale:
        """Of an object on its reference slice, both (H, W)."""
        first, last = np.percentile(image[_box(mask)].astype(np.float32), (1.0, 99.0)).tolist()
        beyond = max((last - first) / 2.0, 1e-6)
        return cls(first - beyond, last + beyond)

    def apply(self, image: NDArray[np.generic]) -> NDArray[np.float32]:
        """To 0 .. 1."""
        shares: NDArray[np.float32] = np.clip(
            (image.astype(np.float32) - self.low) / (self.high - self.low), 0, 1
        )
        return shares


@dataclass(frozen=True)
class Surroundings:
    """Intensities in a mask and beside it, in shares of an `IntensityScale`."""

    inside: float = 0.0
    """Mean in the mask."""
    spread: float = _LEAST_SPREAD
    """Standard deviation in the mask, not quite 0."""
    beside: float = 0.0
    """Mean of what else lies in the mask's box and next to it."""
    beside_spread: float = _LEAST_SPREAD
    change: float = 0.0
    """Mean absolute difference to the slice before, in the mask."""
    likeness: float | None = None
    """Correlation of the box with the same part of the slice before, -1 .. 1; None where that was not looked at."""

    @classmethod
    def of(
        cls,
        image: NDArray[np.generic],
        mask: NDArray[np.bool_],
        scale: IntensityScale,
        before: NDArray[np.generic] | None = None,
    ) -> Surroundings:
        """Look at the image under a mask and around it, all (H, W); an empty mask has none."""
        if not mask.any():
            return cls(likeness=None if before is None else 0.0)
        box = _box(mask)
        shown, inside = scale.apply(image[box]), mask[box]
        within, outside = shown[inside], shown[~inside]
        beside = outside if outside.size else within
        seen = cls(float(within.mean()), _spread(within), float(beside.mean()), _spread(beside))
        if before is None:
            return seen
        earlier = scale.apply(before[box])
        change = float(np.abs(within - earlier[inside]).mean())
        return replace(seen, change=change, likeness=_correlation(shown, earlier))

    @property
    def contrast(self) -> float:
        """Difference of inside and beside in their spreads, not quite 0."""
        return (
            abs(self.inside - self.beside) / float(np.hypot(self.spread, self.beside_spread))
            + _LEAST_CONTRAST
        )


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What is seen of an object on one slice."""

    area: int
    """Pixels of the mask."""
    around: Surroundings
    network_logit: float = _SURE_LOGIT
    """Of the network's object score."""
    intensity_logit: float = _SURE_LOGIT
    """Of the intensity tracker's object score."""
    agreement: float = _SURE
    """Dice of the two trackers' masks."""
    sureness: float = _SURE
    """Mean probability inside the mask that they have come to."""
    steadiness: float = _SURE
    """Dice of that with the mask of the slice before."""

    def as_reference(self, area: int) -> Sight:
        """The same slice, had a person drawn a mask of so many pixels on it."""
        return Sight(area=area, around=replace(self.around, change=0.0, likeness=None))


@dataclass(eq=False)
class Course:
    """An object's way from its reference slice, as far as it has been followed."""

    reference: Sight
    pixel_mm2: float
    """Area of a pixel."""
    step_mm: float
    """Distance between slices."""
    steps: int = 0
    """Slices between the reference slice and the latest one, and one for that."""
    _latest: deque[Sight] = field(init=False)
    _largest: int = field(init=False)
    _least_sure: float = _SURE

    def __post_init__(self) -> None:
        self._latest = deque([self.reference] * _PAST, _PAST)
        self._largest = self.reference.area

    def go_on(self, sight: Sight) -> NDArray[np.float64]:
        """Take in the next slice.

        Returns:
            (F,) its `SLICE_FEATURES`.
        """
        self.steps += 1
        self._largest = max(self._largest, sight.area)
        self._least_sure = min(self._least_sure, sight.sureness)
        features = np.array([*self._of_the_slice(sight), *self._of_the_image(sight), *self._of_the_past()])
        self._latest.append(sight)
        return features

    def _of_the_slice(self, sight: Sight) -> tuple[float, ...]:
        reference_mm2 = self.reference.area * self.pixel_mm2
        distance_mm = self.steps * self.step_mm
        return (
            1.0,
            sight.network_logit,
            sight.intensity_logit,
            sight.agreement,
            sight.sureness,
            sight.steadiness,
            _log_ratio(sight.area, self.reference.area),
            np.log(reference_mm2),
            np.log1p(distance_mm / np.sqrt(reference_mm2)),
            np.log1p(distance_mm),
            distance_mm / 50.0,
            _log_ratio(sight.area, self._largest),
            _log_ratio(sight.area, self._latest[-1].area),
            _log_ratio(sight.area, self._latest[0].area),
        )

    def _of_the_image(self, sight: Sight) -> tuple[float, ...]:
        now, then = sight.around, self.reference.around
        likeness = now.likeness or 0.0
        known = [each.around.likeness for each in self._latest if each.around.likeness is not None]
        return (
            _in_spreads(now.inside - then.inside, then.spread),
            np.log(now.spread / then.spread),
            _in_spreads(now.beside - then.beside, then.beside_spread),
            np.log(now.contrast / then.contrast),
            _in_spreads(now.change, then.spread),
            likeness,
            likeness - sum(known) / len(known) if known else 0.0,
        )

    def _of_the_past(self) -> tuple[float, ...]:
        past = [
            (each.network_logit, each.intensity_logit, each.agreement, each.sureness, each.steadiness)
            for each in self._latest
        ]
        return (*np.mean(past, axis=0).tolist(), self._least_sure)


def clipped_logit(score: float) -> float:
    """Of a score 0 .. 1, which may be quite 0 or 1."""
    clipped = min(max(score, 1e-3), 1.0 - 1e-3)
    return float(np.log(clipped / (1.0 - clipped)))


def _box(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns of a mask that is not empty and of what lies beside it; not every one where it is large."""
    box = box_of_mask(mask)
    assert box is not None
    spans = []
    for first, last, length in ((box[1], box[3], mask.shape[0]), (box[0], box[2], mask.shape[1])):
        low, high = int(first), int(last) + 1
        beyond = int(_BESIDE_SHARE * (high - low)) + _BESIDE_PX
        low, high = max(low - beyond, 0), min(high + beyond, length)
        spans.append(slice(low, high, -(-(high - low) // _LOOKED_AT_PX)))
    return spans[0], spans[1]


def _spread(values: NDArray[np.float32]) -> float:
    return max(float(values.std()), _LEAST_SPREAD)


def _correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Pearson's, 0 where one of the two is flat."""
    one, other = first - first.mean(), second - second.mean()
    size = float(np.sqrt((one * one).sum() * (other * other).sum()))
    return float((one * other).sum()) / size if size > 1e-6 else 0.0


def _log_ratio(area: int, other: int) -> float:
    return float(np.log((area + 1) / (other + 1)))


def _in_spreads(difference: float, spread: float) -> float:
    return float(np.clip(difference / spread, -_FAR, _FAR))

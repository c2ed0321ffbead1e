"""Which slice to annotate next, and why.

What annotating slice z is worth is the number of voxels that it is expected to put right. Slice s has e(s) wrong ones:
its area times the chance that a voxel of it is wrong, from its distance to the reference slices, what the model is
unsure of, what the tracker doubts, where the masks disagree, and how unlike the annotated slices it looks. Errors grow
with the distance d from the nearest reference slice as drift(d) = 1 - exp(-d / reach), so with z annotated as well a
share drift(d') / drift(d) of them is left:

    mended(z) = sum over s of e(s) * (1 - drift(min(d(s), |s - z|)) / drift(d(s)))

Beyond the outermost reference slices nobody has said that the object goes on. It is there on slice z with a chance p(z)
that falls towards the end that the tracker found. If it is not, everything found from z on is wrong and goes:

    gain(z) = p(z) * mended(z) + (1 - p(z)) * area found from z on

Between reference slices p is 1. Where somebody has seen that the object is not there, on a slice beyond the outermost
reference slice, it has ended: what was found from there on is known to be wrong, and nothing is left to ask.

A greedy choice by this gain spreads out by itself: next to a chosen slice little is left to gain; and it looks for the
ends of the object where much would have to go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .volume import Volume, Window, as_stack

__all__ = ["Evidence", "Suggestion", "VolumeSuggestion", "embed_slices", "suggest_slices", "suggest_volumes"]

_Curve = NDArray[np.float64]

REACH_MM = 15.0
"""Distance from a reference slice at which errors have grown to two thirds of what they come to far away."""
_FAR_DOUBT = 0.5
"""Chance of a wrong voxel far from any reference slice, where nothing else speaks against it."""
_LIKELY_END = 0.6
"""Share of the way from the outermost reference slice to the found end where the object ends as likely as not."""
_STEEPNESS = 3.0
"""How fast the chance that it goes on falls there."""
_NOVELTY_WEIGHT = 0.25
_TAIL_SLICES = 3
"""Slices beyond the found object on which it may go on unseen."""
_SIDE = 16
_LOOKED_AT = 64
"""Rows and columns of a large slice that are looked at, at least; fewer than twice as many."""
_NOT_YET = "no slice of this segment is annotated yet, and much of it lies here"
_UNSEEN = 0.5
"""Doubt on a slice that propagation never came to, while the object may be there."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of one segment's slices across one axis; N slices.

    Raises:
        InputError: curves of different lengths.
    """

    segment: str
    axis: int
    step_mm: float
    """Distance between neighbouring slices."""
    area_px: _Curve
    """(N,) pixels of the segment as found; 0 where it was not found."""
    references: Sequence[int] = ()
    """Slices that somebody vouches for and that show the segment."""
    absent: Sequence[int] = ()
    """Slices on which somebody has seen that the segment is not there."""
    confidence: _Curve | None = None
    """(N,) the tracker's, 0 .. 1; NaN where it did not come."""
    uncertainty: _Curve | None = None
    """(N,) the model's mean uncertainty over the segment's surroundings, 0 (sure) .. 1 (no idea)."""
    agreement: _Curve | None = None
    """(N,) lowest Dice between the sharpened, the refined and the propagated mask, 0 .. 1; NaN where all are empty."""
    embeddings: NDArray[np.float32] | None = None
    """(N, D) what each slice looks like; see `embed_slices`."""

    def __post_init__(self) -> None:
        count = len(self.area_px)
        for name in ("confidence", "uncertainty", "agreement", "embeddings"):
            curve = getattr(self, name)
            if curve is not None and len(curve) != count:
                raise InputError(f"The {name} of {self.segment} has {len(curve)} slices, not {count}.")


@dataclass(frozen=True)
class Suggestion:
    """A slice worth annotating."""

    segment: str
    axis: int
    index: int
    gain: float
    """Voxels expected to be put right, per millimetre of slice spacing; comparable within a volume."""
    reason: str
    """One clause for a person, e.g. "far from any reference slice (31 mm)"."""


@dataclass(frozen=True)
class VolumeSuggestion:
    """A volume worth annotating."""

    name: str
    score: float
    """Share of what was found that is expected to be wrong, weighted with how unlike the known volumes it looks."""
    reason: str


def suggest_slices(
    evidence: Sequence[Evidence], count: int = 5, reach_mm: float = REACH_MM
) -> list[Suggestion]:
    """Rank slices by what annotating them would mend, the best first.

    Each suggestion assumes that those before it have been followed, so the list can be worked off in one go.

    Args:
        evidence: of every segment of interest.
        count: how many slices at most.
        reach_mm: how far a reference slice helps; smaller for organs that change quickly.

    Raises:
        InputError: nothing was found of any segment.
    """
    if not any(np.any(each.area_px > 0) for each in evidence):
        raise InputError("Nothing has been found of any segment yet; annotate one slice of it first.")
    pending = [_without_absent(each) for each in evidence]
    annotated = [bool(len(each.references)) for each in evidence]
    bests = [_best(each, reach_mm) for each in pending]
    chosen: list[Suggestion] = []
    while len(chosen) < count:
        n = max(range(len(bests)), key=lambda place: bests[place].gain)
        if bests[n].gain <= 0:
            break
        chosen.append(bests[n])
        pending[n] = replace(pending[n], references=(*pending[n].references, bests[n].index))
        bests[n] = _best(pending[n], reach_mm)
        if not annotated[n]:
            bests[n] = replace(bests[n], reason=_NOT_YET)
    return chosen


def suggest_volumes(
    evidence: Mapping[str, Sequence[Evidence]],
    embeddings: Mapping[str, NDArray[np.float32]] | None = None,
    known: Sequence[NDArray[np.float32]] = (),
) -> list[VolumeSuggestion]:
    """Rank volumes by how much is expected to be wrong in what was predicted on them.

    Args:
        evidence: per volume, of each segment.
        embeddings: (D,) per volume: what it looks like.
        known: (D,) of every volume that has been annotated.
    """
    ranked = []
    for name, found in evidence.items():
        parts = [_without_absent(part) for part in found]
        area = sum(float(part.area_px.sum()) for part in parts)
        wrong = sum(float((_doubt(part, REACH_MM) * _possible_area(part)).sum()) for part in parts)
        share = wrong / area if area else 1.0
        novelty = _novelty_of(embeddings[name], known) if embeddings and known else 0.0
        reason = (
            "nothing was found in it" if not area else f"about {share:.0%} of what was found looks doubtful"
        )
        if novelty > 0.5:
            reason += "; unlike every annotated volume"
        ranked.append(VolumeSuggestion(name, share * (1.0 + novelty), reason))
    return sorted(ranked, key=lambda volume: -volume.score)


def embed_slices(volume: Volume, axis: int, window: Window | None = None) -> NDArray[np.float32]:
    """Describe each slice without a network: a small picture and a histogram of it.

    Of a large slice every n-th row and column is looked at, so that a slice takes a fraction of a millisecond, whatever
    its size.

    Returns:
        (N, 16 * 16 + 16) float32, of unit length.
    """
    window = window or Window.auto(volume)
    stack = as_stack(volume.voxels_kji, axis)
    rows, columns = (max(1, side // _LOOKED_AT) for side in stack.shape[1:])
    stack = stack[:, ::rows, ::columns]
    described = []
    for image in stack:
        shown = window.apply(image)
        rows = [part.mean(axis=0) for part in np.array_split(shown, min(_SIDE, len(shown)))]
        small = [
            part.mean(axis=1) for part in np.array_split(np.stack(rows), min(_SIDE, shown.shape[1]), axis=1)
        ]
        histogram = np.histogram(shown, _SIDE, (0.0, 1.0))[0] / shown.size
        picture = np.zeros(_SIDE * _SIDE)
        flat = np.stack(small).ravel()
        picture[: flat.size] = flat - flat.mean()
        described.append(np.concatenate([_unit(picture), _unit(histogram)]))
    return np.stack(described).astype(np.float32) / np.float32(np.sqrt(2))


def _without_absent(evidence: Evidence) -> Evidence:
    """Without what was found where somebody has seen that the segment is not there, or has ended."""
    if not len(evidence.absent):
        return evidence
    area, absent = np.asarray(evidence.area_px, float).copy(), np.asarray(evidence.absent, int)
    area[absent] = 0.0
    if len(evidence.references):
        area[: max(absent[absent < min(evidence.references)], default=-1) + 1] = 0.0
        area[min(absent[absent > max(evidence.references)], default=len(area)) :] = 0.0
    return replace(evidence, area_px=area)


def _best(evidence: Evidence, reach_mm: float) -> Suggestion:
    """The slice of one segment that gains most."""
    gain = _gains(evidence, reach_mm)
    index = int(gain.argmax())
    return Suggestion(
        evidence.segment, evidence.axis, index, float(gain[index]), _reason(evidence, index, reach_mm)
    )


def _gains(evidence: Evidence, reach_mm: float) -> _Curve:
    """(N,) what annotating each slice is worth; see the top of this file."""
    area, there = _possible_area(evidence), _presence(evidence)
    places = np.arange(len(area))
    now_mm = _distance_mm(evidence)
    then_mm = np.minimum(now_mm, np.abs(places[:, None] - places) * evidence.step_mm)  # (candidate, slice)
    drift_now = _drift(now_mm, reach_mm)
    left = np.where(drift_now > 0, _drift(then_mm, reach_mm) / np.maximum(drift_now, 1e-9), 1.0)
    mended = (area * _doubt(evidence, reach_mm) * (1.0 - left)).sum(axis=1)
    gain: _Curve = there * mended + (1.0 - there) * _beyond(evidence, area)
    gain[[*evidence.references, *evidence.absent]] = 0.0
    gain[area == 0] = 0.0  # nothing to paint there
    return gain


def _drift(distance_mm: _Curve, reach_mm: float) -> _Curve:
    """How far errors have grown, 0 .. 1."""
    grown: _Curve = 1.0 - np.exp(-distance_mm / reach_mm)
    return grown


def _presence(evidence: Evidence) -> _Curve:
    """(N,) chance that the segment is on a slice: 1 between reference slices, falling beyond the outermost ones."""
    there = np.ones(len(evidence.area_px))
    found = np.flatnonzero(evidence.area_px > 0)
    if not len(evidence.references) or not len(found):
        return there
    places = np.arange(len(there))
    first, last = min(evidence.references), max(evidence.references)
    for outermost, end, step in ((first, found[0], -1), (last, found[-1], 1)):
        length = max(1, (end - outermost) * step)
        way = np.maximum((places - outermost) * step, 0) / length
        there = np.minimum(there, 1.0 / (1.0 + (way / _LIKELY_END) ** _STEEPNESS))
    return there


def _beyond(evidence: Evidence, area: _Curve) -> _Curve:
    """(N,) area found on a slice and outwards of it; 0 between the reference slices."""
    beyond = np.zeros(len(area))
    if len(evidence.references):
        first, last = min(evidence.references), max(evidence.references)
        beyond[:first] = np.cumsum(evidence.area_px[:first])
        beyond[last + 1 :] = np.cumsum(evidence.area_px[:last:-1])[::-1]
    return beyond


def _distance_mm(evidence: Evidence) -> _Curve:
    """(N,) from each slice to the nearest reference; infinite without any."""
    indices = np.arange(len(evidence.area_px))
    if not len(evidence.references):
        return np.full(len(indices), np.inf)
    steps = np.abs(indices[:, None] - np.asarray(evidence.references, int)[None]).min(axis=1)
    distance: _Curve = steps * evidence.step_mm
    return distance


def _possible_area(evidence: Evidence) -> _Curve:
    """Area as found, and where it may have been lost: half of its neighbours' in a gap, less and less past the ends."""
    area = np.asarray(evidence.area_px, float).copy()
    found = np.flatnonzero(area > 0)
    if not len(found):
        return area
    gap = np.setdiff1d(np.arange(found[0], found[-1]), [*found, *evidence.absent])
    area[gap] = 0.5 * np.interp(gap, found, area[found])
    for end, step in ((found[0], -1), (found[-1], 1)):
        for n in range(1, _TAIL_SLICES + 1):
            index = end + n * step
            if not 0 <= index < len(area) or index in evidence.absent:
                break
            area[index] = area[end] * 0.5**n
    return area


def _doubt(evidence: Evidence, reach_mm: float) -> _Curve:
    """(N,) chance that a voxel of the slice is wrong, from independent signs of trouble."""
    right = 1.0 - _FAR_DOUBT * _drift(_distance_mm(evidence), reach_mm)
    for sign in _signs(evidence).values():
        right *= 1.0 - sign
    return 1.0 - right


def _signs(evidence: Evidence) -> dict[str, _Curve]:
    """Each sign of trouble as a chance, 0 .. 1 per slice."""
    signs = {}
    if evidence.confidence is not None:
        confidence = np.nan_to_num(evidence.confidence, nan=_UNSEEN)
        signs["confidence"] = 1.0 - np.clip(confidence, 0.0, 1.0)
    if evidence.uncertainty is not None:
        signs["uncertainty"] = np.clip(evidence.uncertainty, 0.0, 1.0)
    if evidence.agreement is not None:
        signs["agreement"] = 1.0 - np.clip(np.nan_to_num(evidence.agreement, nan=1.0), 0.0, 1.0)
    if evidence.embeddings is not None and len(evidence.references):
        signs["novelty"] = _NOVELTY_WEIGHT * _novelty(evidence.embeddings, evidence.references)
    return signs


def _novelty(embeddings: NDArray[np.float32], references: Sequence[int]) -> _Curve:
    """(N,) how unlike the nearest reference slice each slice looks, 0 .. 1."""
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-9)
    similarity = (unit @ unit[np.asarray(references, int)].T).max(axis=1)
    novelty: _Curve = np.clip((1.0 - similarity) / 2.0, 0.0, 1.0).astype(float)
    return novelty


def _novelty_of(embedding: NDArray[np.float32], known: Sequence[NDArray[np.float32]]) -> float:
    stacked = np.stack([embedding, *known])
    return float(_novelty(stacked, range(1, len(stacked)))[0] * 2.0)


def _unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    length = float(np.linalg.norm(values))
    return values / length if length > 0 else values


def _reason(evidence: Evidence, index: int, reach_mm: float) -> str:
    """The strongest sign of trouble on the slice, in words."""
    distance = float(_distance_mm(evidence)[index])
    signs = {name: float(curve[index]) for name, curve in _signs(evidence).items()}
    far = 0.0 if not np.isfinite(distance) else 1.0 - np.exp(-distance / reach_mm)
    name, strength = max(signs.items(), key=lambda item: item[1], default=("", 0.0))
    if not len(evidence.references):
        return _NOT_YET
    if strength < 0.5 * far or not name:
        return f"far from any reference slice ({distance:.0f} mm)"
    if name == "confidence":
        lost = evidence.area_px[index] == 0 or not np.isfinite(evidence.confidence[index])  # type: ignore[index]
        return (
            "the tracker lost the object here" if lost else f"the tracker is unsure here ({1 - strength:.0%})"
        )
    if name == "agreement":
        return f"the sharpened, refined and propagated masks disagree here (Dice {1 - strength:.2f})"
    if name == "uncertainty":
        return f"the model is unsure here ({strength:.0%})"
    return "looks unlike every annotated slice"

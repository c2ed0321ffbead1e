"""A classical tracker: intensity statistics, patch votes and distance, no network and no weights.

From slice to slice the mask may move within a band around where it was. A pixel's score is the sum of

    the log-likelihood ratio of its intensity inside and beside the object (histograms of the reference slice that
    follow the object slowly), smoothed a little;
    the vote of the previous slice: pixels with a similar neighbourhood say whether they were inside;
    minus the signed distance to the previous mask.

Pixels above zero that are connected to the previous mask are the new mask. Being honest and quick, it is what learned
trackers have to beat, and it serves where no model can be loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import InputError
from ..prompts import SlicePrompt
from ..volume import Window, as_stack
from .protocols import TrackedSlice, TrackJob

if TYPE_CHECKING:
    from ..volume import Volume

__all__ = ["IntensityOptions", "IntensitySession", "IntensityTrack", "IntensityTracker"]

_BINS = 64
_FLOOR = 1e-3
_PRESENT = 3.0  # logit the presence starts from on the reference slice
_RIM_MM = 3.0
_SURE = 0.05  # least logit, either way, of a pixel that cleaning put inside or outside
_BOX_ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class IntensityOptions:
    """The tracker's settings; the defaults were chosen on patients that the benchmark does not score."""

    band_mm: float = 8.0
    """How far the mask may grow from one slice to the next."""
    ring_mm: float = 14.0
    """Width of the surroundings the object is told apart from."""
    prior_mm: float = 5.0
    """Distance from the previous contour that outweighs one unit of evidence."""
    bias: float = -0.2
    """Added to every score; below 0 keeps the mask from creeping outwards."""
    vote_weight: float = 0.55
    """Weight of the previous slice's patches against the histograms."""
    adaptation: float = 0.1
    """Share of a new slice in the histograms, 0 .. 1."""
    clip: float = 5.0
    """Largest evidence one pixel's intensity can give."""
    presence: tuple[float, float, float, float, float] = (0.17, 0.44, -0.475, 0.713, -1.637)
    """Logistic weights of the object score: constant; mean evidence inside; mean evidence on the rim outside; log of
    the area over the reference's; log of 1 + distance from the reference over the object's width there."""
    presence_threshold: float = 0.75
    """Presence logit at which the score is one half."""
    presence_memory: float = 0.8
    """Share of the earlier slices in the presence, 0 .. 1."""
    collapse: float = 0.25
    """A mask smaller than this share of the slice before ends the object at once."""
    max_side_px: int = 72
    """An object wider than this on its reference slice is tracked on a coarser grid."""


class IntensityTracker:
    """Carries masks from slice to slice by intensity alone; a `medssl.foundation.protocols.SliceTracker`.

    It takes a mask or a box on a reference slice. It is deterministic and costs some milliseconds a slice.
    """

    def __init__(self, options: IntensityOptions | None = None) -> None:
        self._options = options or IntensityOptions()

    def open(self, volume: Volume, axis: int, window: Window) -> IntensitySession:
        """Begin work on a volume.

        Args:
            volume: its voxels are only read.
            axis: slice axis, 0 = K, 1 = J, 2 = I.
            window: sets the scale of what counts as a similar intensity (a tenth of its width).
        """
        return IntensitySession(volume, axis, window, self._options)


class IntensitySession:
    """The tracker at work on one volume and axis; keeps nothing but the references."""

    def __init__(self, volume: Volume, axis: int, window: Window, options: IntensityOptions) -> None:
        self._slices = as_stack(volume.voxels_kji, axis)
        self._spacing = volume.slice_spacing_mm(axis)
        self._step_mm = volume.step_mm(axis)
        self._axis = axis
        self._window = window
        self._options = options
        self._references: dict[tuple[int, int], NDArray[np.bool_]] = {}
        self._dropped: set[TrackJob] = set()

    def add_reference(self, object_id: int, prompt: SlicePrompt) -> TrackedSlice:
        """Learn what an object is from a mask or a box on one slice.

        Raises:
            InputError: the prompt has neither, its mask is empty or of another size, or it is for another slice axis.
        """
        mask = self._mask_of(prompt)
        self._references[object_id, prompt.index] = mask
        return TrackedSlice(object_id, prompt.index, mask, None, 1.0)

    def remove_reference(self, object_id: int, index: int) -> None:
        """Forget a reference slice."""
        self._references.pop((object_id, index), None)

    def run(self, jobs: Sequence[TrackJob]) -> Iterator[list[tuple[TrackJob, TrackedSlice]]]:
        """Track all jobs side by side, every job one slice further per item.

        Raises:
            InputError: a job starts on a slice that is no reference of its object.
        """
        self._dropped.clear()
        states = {job: self._begin(job) for job in jobs if job.start != job.stop}
        while states:
            yield [(job, state.advance()) for job, state in states.items()]
            states = {
                job: state
                for job, state in states.items()
                if state.index != job.stop and job not in self._dropped
            }

    def drop(self, job: TrackJob) -> None:
        """Stop computing a job of the run under way."""
        self._dropped.add(job)

    def _begin(self, job: TrackJob) -> IntensityTrack:
        mask = self._references.get((job.object_id, job.start))
        if mask is None:
            raise InputError(
                f"Slice {job.start} is no reference slice of object {job.object_id}; add it first."
            )
        if not 0 <= job.stop < len(self._slices):
            raise InputError(
                f"Slice {job.stop} does not exist; slices run from 0 to {len(self._slices) - 1}."
            )
        return IntensityTrack(
            self._slices, self._spacing, self._step_mm, self._window, self._options, job, mask
        )

    def _mask_of(self, prompt: SlicePrompt) -> NDArray[np.bool_]:
        if prompt.axis != self._axis:
            raise InputError(
                f"The prompt is for slice axis {prompt.axis}; this run goes along axis {self._axis}."
            )
        if not 0 <= prompt.index < len(self._slices):
            raise InputError(
                f"Slice {prompt.index} does not exist; slices run from 0 to {len(self._slices) - 1}."
            )
        shape = self._slices[prompt.index].shape
        if prompt.mask is not None:
            if prompt.mask.shape != shape:
                raise InputError(f"The mask has shape {prompt.mask.shape} but the slice has {shape}.")
            if not prompt.mask.any():
                raise InputError(f"The mask on slice {prompt.index} is empty; paint the object first.")
            return prompt.mask.astype(bool)
        if prompt.box_xyxy_px is None:
            raise InputError(
                "The intensity tracker needs a mask or a box on its reference slice, not points."
            )
        image = self._slices[prompt.index].astype(np.float32)
        return _segment_box(image, prompt.box_xyxy_px, self._spacing, self._window, self._options)


@dataclass(frozen=True, eq=False)
class _Appearance:
    """Smoothed intensity histograms inside an object and beside it."""

    low: float
    bin_width: float
    blur_bins: float
    inside: NDArray[np.float64] = field(repr=False)
    """(_BINS,) sums to 1."""
    outside: NDArray[np.float64] = field(repr=False)
    """(_BINS,) sums to 1."""

    @classmethod
    def learn(
        cls, image: NDArray[np.float32], mask: NDArray[np.bool_], ring: NDArray[np.bool_], width: float
    ) -> _Appearance:
        """Fit to an object on one slice; `width` is the window's."""
        beside = image[ring] if ring.any() else image[~mask]
        known = np.concatenate([image[mask], beside])
        low, high = np.percentile(known, (0.5, 99.5))
        low, high = low - 0.15 * width, high + 0.15 * width
        bin_width = float(high - low) / _BINS
        blur = max(0.025 * width, 0.15 * float(image[mask].std())) / bin_width
        blank = cls(float(low), bin_width, max(blur, 0.5), np.zeros(0), np.zeros(0))
        return replace(blank, inside=blank.histogram(image[mask]), outside=blank.histogram(beside))

    def follow(self, inside: NDArray[np.float32], outside: NDArray[np.float32], rate: float) -> _Appearance:
        """Take in the intensities of one more slice."""
        if inside.size == 0 or outside.size == 0:
            return self
        return replace(
            self,
            inside=(1 - rate) * self.inside + rate * self.histogram(inside),
            outside=(1 - rate) * self.outside + rate * self.histogram(outside),
        )

    def log_likelihood_ratio(self, image: NDArray[np.float32], clip: float) -> NDArray[np.float32]:
        """Evidence of each pixel (same shape), above 0 where it looks like the object."""
        table = np.clip(np.log((self.inside + _FLOOR) / (self.outside + _FLOOR)), -clip, clip)
        ratio: NDArray[np.float32] = table.astype(np.float32)[self._bins(image)]
        return ratio

    def histogram(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        counts = np.bincount(self._bins(values), minlength=_BINS).astype(np.float64)
        smooth: NDArray[np.float64] = ndimage.gaussian_filter1d(counts, self.blur_bins, mode="nearest")
        return smooth / max(float(smooth.sum()), 1e-9)

    def _bins(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        bins: NDArray[np.int64] = np.clip((values - self.low) / self.bin_width, 0, _BINS - 1).astype(np.int64)
        return bins


@dataclass(frozen=True, eq=False)
class LocalAnswer:
    """What the tracker found on one slice: a part of the slice, nothing outside it."""

    rows: slice
    cols: slice
    probability: NDArray[np.float32]
    """Of the object inside `rows` and `cols`; above 0.5 is the mask."""
    score: float
    """Probability that the object is still there."""


class IntensityTrack:
    """One object on its way in one direction."""

    def __init__(
        self,
        slices: NDArray[np.generic],
        spacing: tuple[float, float],
        step_mm: float,
        window: Window,
        options: IntensityOptions,
        job: TrackJob,
        mask: NDArray[np.bool_],
    ) -> None:
        self.index = job.start
        self._slices, self._window, self._options, self._job = slices, window, options, job
        self._step_mm = step_mm
        self._full_spacing = spacing
        self._factor = max(1, round(max(_extent(mask)) / options.max_side_px))
        self._spacing = (spacing[0] * self._factor, spacing[1] * self._factor)
        self._mask = mask
        self._area = self._first_area = int(np.count_nonzero(mask))
        self._width_mm = float(np.sqrt(self._area * spacing[0] * spacing[1]))
        self._presence = _PRESENT
        self._ended = False
        crop = self._crop()
        coarse = self._coarse_mask(crop)
        distance = _signed_distance(coarse, self._spacing, options.ring_mm)
        ring = (distance > 0) & (distance <= options.ring_mm)
        self._appearance = _Appearance.learn(self._image(crop, self.index), coarse, ring, window.width)

    def advance(self) -> TrackedSlice:
        """Go one slice further; once the mask has vanished, every slice is empty and scores 0."""
        found = self.step()
        probability = np.zeros(self._mask.shape, np.float32)
        probability[found.rows, found.cols] = found.probability
        return TrackedSlice(self._job.object_id, self.index, self._mask, probability, found.score)

    def step(self) -> LocalAnswer:
        """As `advance`, but only the part of the slice that was looked at."""
        before, self.index = self.index, self.index + self._job.step
        if self._area == 0:
            return LocalAnswer(slice(0, 0), slice(0, 0), np.zeros((0, 0), np.float32), 0.0)
        crop = self._crop()
        previous = self._coarse_mask(crop)
        image, image_before = self._image(crop, self.index), self._image(crop, before)
        evidence = self._evidence(image, image_before, previous)
        distance = _signed_distance(previous, self._spacing, self._options.ring_mm)
        logits = evidence - distance / self._options.prior_mm + self._options.bias
        logits[distance > self._options.band_mm] = -_PRESENT
        coarse = _clean(logits > 0, previous)
        self._follow(image, coarse, distance)
        score = self._score(evidence, coarse)
        settled = np.where(coarse, np.maximum(logits, _SURE), np.minimum(logits, -_SURE)).astype(np.float32)
        probability = (1 / (1 + np.exp(-self._refined(settled, crop)))).astype(np.float32)
        self._mask = np.zeros_like(self._mask)
        self._mask[crop] = probability > 0.5
        self._area = int(np.count_nonzero(self._mask))
        return LocalAnswer(*crop, probability, score)

    def correct(self, mask: NDArray[np.bool_]) -> None:
        """Go on from another mask (H, W) than the one found on the current slice; an empty one is ignored."""
        if mask.any():
            self._mask, self._area = mask, int(np.count_nonzero(mask))

    def _evidence(
        self, image: NDArray[np.float32], image_before: NDArray[np.float32], previous: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        ratio = self._appearance.log_likelihood_ratio(image, self._options.clip)
        vote = _patch_vote(
            self._clipped(image), self._clipped(image_before), previous, 0.1 * self._window.width
        )
        smooth: NDArray[np.float32] = _smoothed(ratio, 0.4)
        return smooth + np.float32(self._options.vote_weight) * vote

    def _clipped(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.clip(
            image, self._window.level - self._window.width, self._window.level + self._window.width
        )

    def _follow(
        self, image: NDArray[np.float32], mask: NDArray[np.bool_], distance: NDArray[np.float32]
    ) -> None:
        beside = (distance > 0) & (distance <= self._options.ring_mm) & ~mask
        self._appearance = self._appearance.follow(image[mask], image[beside], self._options.adaptation)

    def _score(self, evidence: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
        """Probability that the object is still there, from this slice and, fading, those before."""
        area = int(np.count_nonzero(mask)) * self._factor**2
        self._ended |= area < max(1.0, self._options.collapse * self._area)
        if self._ended:
            return 0.0
        outwards = _distance_beside(mask, self._spacing, max(_RIM_MM, *self._spacing) + 1e-3)
        rim = (outwards > 0) & np.isfinite(outwards)
        travelled = abs(self.index - self._job.start) * self._step_mm / self._width_mm
        constant, inside, outside, shrunk, far = self._options.presence
        logit = (
            constant
            + inside * float(evidence[mask].mean())
            + outside * (float(evidence[rim].mean()) if rim.any() else 0.0)
            + shrunk * float(np.log(area / self._first_area))
            + far * float(np.log1p(travelled))
        )
        memory = self._options.presence_memory
        self._presence = memory * self._presence + (1 - memory) * logit
        return float(1 / (1 + np.exp(self._options.presence_threshold - self._presence)))

    def _crop(self) -> tuple[slice, slice]:
        """The mask's box and its surroundings on the slice's own grid."""
        margins = (int(np.ceil(self._options.ring_mm / mm)) + self._factor for mm in self._full_spacing)
        rows, cols = (
            slice(max(box.start - margin, 0), min(box.stop + margin, size))
            for box, margin, size in zip(_bounds(self._mask), margins, self._mask.shape, strict=True)
        )
        return rows, cols

    def _image(self, crop: tuple[slice, slice], index: int) -> NDArray[np.float32]:
        return _block_mean(self._slices[index][crop].astype(np.float32), self._factor)

    def _coarse_mask(self, crop: tuple[slice, slice]) -> NDArray[np.bool_]:
        if self._factor == 1:
            return self._mask[crop]
        share = _block_mean(self._mask[crop].astype(np.float32), self._factor)
        coarse: NDArray[np.bool_] = share >= min(0.5, float(share.max()))
        return coarse

    def _refined(self, logits: NDArray[np.float32], crop: tuple[slice, slice]) -> NDArray[np.float32]:
        """Bring coarse logits back to the slice's own grid."""
        if self._factor == 1:
            return logits
        height, width = self._mask[crop].shape
        rows = _between(logits, self._factor)[:height]
        return _between(rows.T, self._factor)[:width].T


def _segment_box(
    image: NDArray[np.float32],
    box_xyxy_px: NDArray[np.float32],
    spacing: tuple[float, float],
    window: Window,
    options: IntensityOptions,
) -> NDArray[np.bool_]:
    """The object that fills a box: start from an ellipse, then let intensities inside and beside it decide."""
    x0, y0, x1, y1 = (float(v) for v in box_xyxy_px)
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    inside_box = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
    ellipse = ((x - (x0 + x1) / 2) / (x1 - x0 + 1)) ** 2 + ((y - (y0 + y1) / 2) / (y1 - y0 + 1)) ** 2 <= 0.2
    if not ellipse.any():
        raise InputError(f"The box {x0:g}, {y0:g}, {x1:g}, {y1:g} holds no pixel of the slice.")
    mask: NDArray[np.bool_] = ellipse
    ring = (_distance_beside(inside_box, spacing, options.ring_mm) <= options.ring_mm) & ~inside_box
    reach_mm = float(np.hypot((y1 - y0 + 1) * spacing[0], (x1 - x0 + 1) * spacing[1]))
    distance = _signed_distance(ellipse, spacing, reach_mm)
    for _ in range(_BOX_ROUNDS):
        appearance = _Appearance.learn(image, mask, ring, window.width)
        ratio = ndimage.gaussian_filter(appearance.log_likelihood_ratio(image, options.clip), 0.7)
        logits = ratio - distance / options.prior_mm
        grown = _clean((logits > 0) & inside_box, ellipse)
        if not grown.any():
            break
        mask = grown
    return mask


def _patch_vote(
    image: NDArray[np.float32],
    image_before: NDArray[np.float32],
    mask_before: NDArray[np.bool_],
    scale: float,
) -> NDArray[np.float32]:
    """Log odds that a pixel is inside, voted by the 3 x 3 pixels at its place on the slice before.

    A vote counts by how alike the two small neighbourhoods are and by how near the voter is (patch-based label
    fusion: Coupe et al., NeuroImage 54, 2011, eq. 1-4).
    """
    height, width = image.shape
    unit = np.float32(np.sqrt(0.5) / scale)
    image = image * unit
    padded = np.pad(image_before * unit, 1, mode="edge")
    inside_before = np.pad(mask_before.astype(np.float32), 1)
    inside, total = np.zeros_like(image), np.zeros_like(image)
    for row in range(3):
        for col in range(3):
            window = (slice(row, row + height), slice(col, col + width))
            unlike = image - padded[window]
            weight = _smoothed(np.multiply(unlike, unlike, out=unlike), 0.5)
            weight += np.float32(((row - 1) ** 2 + (col - 1) ** 2) / 2)
            np.exp(np.negative(weight, out=weight), out=weight)
            total += weight
            weight *= inside_before[window]
            inside += weight
    floor = np.float32(_FLOOR)
    return np.clip(np.log((inside + floor) / (total - inside + floor)), -4, 4)


def _smoothed(image: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """Gaussian filter cut off at one pixel, for a sigma_px of at most 0.5; the edge is repeated."""
    side = float(np.exp(-0.5 / sigma_px**2))
    here, beside = np.float32(1.0 / (1.0 + 2.0 * side)), np.float32(side / (1.0 + 2.0 * side))
    share = image * beside
    across = image * here
    across[:, 1:] += share[:, :-1]
    across[:, :-1] += share[:, 1:]
    across[:, 0] += share[:, 0]
    across[:, -1] += share[:, -1]
    np.multiply(across, beside, out=share)
    across *= here
    across[1:] += share[:-1]
    across[:-1] += share[1:]
    across[0] += share[0]
    across[-1] += share[-1]
    return across


def _clean(mask: NDArray[np.bool_], previous: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the components that touch the previous mask; fill holes."""
    components, count = ndimage.label(mask)
    if count > 1:
        touching = np.zeros(count + 1, bool)
        touching[components[mask & previous]] = True
        mask = touching[components]
    elif not (mask & previous).any():
        return np.zeros_like(mask)
    return _without_holes(mask)


def _without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill what is not connected to the array's border."""
    background, count = ndimage.label(~mask)
    if count < 2:
        return mask
    hole = np.ones(count + 1, bool)
    for edge in (background[0], background[-1], background[:, 0], background[:, -1]):
        hole[edge] = False
    hole[0] = True
    filled: NDArray[np.bool_] = hole[background]
    return filled


def _signed_distance(
    mask: NDArray[np.bool_], spacing: tuple[float, float], reach_mm: float
) -> NDArray[np.float32]:
    """Millimetres to the mask, negative inside it, pixel centre to pixel centre; beyond `reach_mm` infinite."""
    distance = _distance_beside(mask, spacing, reach_mm)
    rows, cols = (slice(max(span.start - 1, 0), span.stop + 1) for span in _bounds(mask))
    distance[rows, cols] -= ndimage.distance_transform_edt(mask[rows, cols], sampling=spacing)
    return distance


def _distance_beside(
    mask: NDArray[np.bool_], spacing: tuple[float, float], reach_mm: float
) -> NDArray[np.float32]:
    """Millimetres to the mask, 0 inside it and infinite beyond `reach_mm`.

    Along the rows first, then the least over the columns (Saito and Toriwaki, Pattern Recognition 27, 1994), whose
    loop ends at the reach.
    """
    row_mm, col_mm = spacing
    place = np.arange(mask.shape[1], dtype=np.float32) * np.float32(col_mm)
    before = np.maximum.accumulate(np.where(mask, place, -np.inf).astype(np.float32), axis=1)
    after = np.minimum.accumulate(np.where(mask, place, np.inf).astype(np.float32)[:, ::-1], axis=1)[:, ::-1]
    along = np.square(np.minimum(place - before, after - place))
    least = along.copy()
    for step in range(1, min(int(reach_mm / row_mm), len(mask) - 1) + 1):
        away = along + np.float32((step * row_mm) ** 2)
        np.minimum(least[step:], away[:-step], out=least[step:])
        np.minimum(least[:-step], away[step:], out=least[:-step])
    distance: NDArray[np.float32] = np.sqrt(least)
    distance[distance > np.float32(reach_mm)] = np.inf
    return distance


def _block_mean(image: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    if factor == 1:
        return image
    padding = [(0, -size % factor) for size in image.shape]
    padded = np.pad(image, padding, mode="edge")
    means: NDArray[np.float32] = padded[::factor, ::factor].copy()
    for place in range(1, factor**2):
        means += padded[place // factor :: factor, place % factor :: factor]
    means *= np.float32(1 / factor**2)
    return means


def _between(values: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Bring (n, ...) to (n * factor, ...) by linear interpolation; beyond the outermost centres they are repeated."""
    place = np.clip((np.arange(len(values) * factor) + 0.5) / factor - 0.5, 0, len(values) - 1)
    low = np.minimum(place.astype(np.intp), len(values) - 2)
    share = (place - low).astype(np.float32)[:, None]
    fine: NDArray[np.float32] = values[low] * (1 - share) + values[low + 1] * share
    return fine


def _bounds(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def _extent(mask: NDArray[np.bool_]) -> tuple[int, int]:
    rows, cols = _bounds(mask)
    return rows.stop - rows.start, cols.stop - cols.start

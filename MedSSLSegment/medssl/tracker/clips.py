"""Clips for training the default tracker: a few neighbouring slices and one object's mask on them.

Three kinds of object, so that the tracker learns to follow outlines rather than a list of organs:

- labelled organs of real CT (`LabelledVolume` with labels);
- pseudo-objects of any CT, no label needed: one connected band of intensities inside a drifting blob;
- organ shapes of label maps without an image, drawn with random plausible intensities, texture, blur and noise
  (after SynthSeg, Billot et al., Medical Image Analysis 86, 2023).

Axis letters: T slices of a clip, S side of the crop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError

__all__ = [
    "Clip",
    "ClipSampler",
    "LabelledVolume",
    "ObjectChooser",
    "RawClip",
    "augmented_intensities",
    "cut_square",
    "pseudo_clip",
    "synthesise_ct",
]

_SMALLEST_OBJECT_PX = 5
_SHORTEST_OBJECT = 5
_LEAST_AREA_PX = 12.0  # of the object on the reference slice of a clip
_TRIES = 2000


@dataclass(frozen=True, eq=False)
class LabelledVolume:
    """Voxels to draw clips from."""

    image: NDArray[Any]
    """(K, J, I) HU."""
    labels: NDArray[Any] | None
    """(K, J, I) integer labels, or None: pseudo-objects only."""
    spacing_kji_mm: tuple[float, float, float]
    vouched: Mapping[int, Sequence[int]] | None = None
    """Slices whose labels are complete, by axis. None = all, unless the labels look like single slices that somebody
    drew: then those."""
    objects: dict[tuple[int, int], NDArray[np.int64]] = field(init=False, default_factory=dict)
    """What can be followed from slice to slice: (label, axis) -> (n,) pixels of the label on each slice, -1 where
    nobody knows."""
    outlines: dict[tuple[int, int], NDArray[np.int64]] = field(init=False, default_factory=dict)
    """What can be asked for on single slices, likewise."""

    def __post_init__(self) -> None:
        if self.labels is None:
            return
        vouched = _drawn_slices(self.labels) if self.vouched is None else self.vouched
        for axis in range(3) if vouched is None else vouched:
            pixels = _pixels_on_slices(self.labels, axis, None if vouched is None else vouched[axis])
            for label, counts in enumerate(pixels[1:], start=1):
                present = counts >= _SMALLEST_OBJECT_PX
                whole = vouched is None and present.sum() >= _SHORTEST_OBJECT
                if whole or _longest_run(present) >= _SHORTEST_OBJECT:
                    self.objects[label, axis] = counts
                if whole or (vouched is not None and present.any()):
                    self.outlines[label, axis] = counts

    def clip(
        self, label: int, axis: int, indices: NDArray[np.int64], valid: NDArray[np.bool_] | None = None
    ) -> RawClip:
        """An object on some slices across an axis; all of them valid unless said otherwise."""
        assert self.labels is not None
        image = np.moveaxis(self.image, axis, 0)[indices].astype(np.float32)
        mask = (np.moveaxis(self.labels, axis, 0)[indices] == label).astype(np.float32)
        valid = np.ones(len(indices), bool) if valid is None else valid
        return RawClip(image, mask, valid, _in_plane(self.spacing_kji_mm, axis))


@dataclass(frozen=True, eq=False)
class RawClip:
    """One object on some slices, as the volume has them."""

    image: NDArray[np.float32]
    """(T, H, W) HU."""
    mask: NDArray[np.float32]
    """(T, H, W) 0 .. 1."""
    valid: NDArray[np.bool_]
    """(T,)"""
    spacing_rc_mm: tuple[float, float]

    def place_mm(self) -> tuple[NDArray[np.float64], float]:
        """Middle of the object's box on the first slice (row, column, from the centre of the first pixel), and the
        larger of its sides; of the whole slice where the object is not there."""
        spacing = np.array(self.spacing_rc_mm)
        rows, cols = np.flatnonzero(self.mask[0].any(1)), np.flatnonzero(self.mask[0].any(0))
        first = np.array([rows[0], cols[0]]) if rows.size else np.zeros(2)
        last = np.array([rows[-1], cols[-1]]) if rows.size else np.array(self.mask.shape[1:]) - 1.0
        return (first + last) / 2 * spacing, float(((last - first + 1) * spacing).max())


class ObjectChooser:
    """Draws labelled objects of groups of volumes, and an axis to look along."""

    def __init__(
        self, groups: Sequence[tuple[float, Sequence[LabelledVolume]]], on_single_slices: bool = False
    ) -> None:
        """
        Args:
            groups: (weight, volumes); volumes without labelled objects do not count.
            on_single_slices: draw what can be asked for on one slice, not only what can be followed.
        """
        self._on_single_slices = on_single_slices
        labelled = [
            (weight, [volume for volume in volumes if self.known(volume)]) for weight, volumes in groups
        ]
        self._groups = [(weight, volumes) for weight, volumes in labelled if volumes]

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._groups)

    def known(self, volume: LabelledVolume) -> dict[tuple[int, int], NDArray[np.int64]]:
        """What there is to draw of a volume."""
        return volume.outlines if self._on_single_slices else volume.objects

    def draw(self, rng: np.random.Generator) -> tuple[LabelledVolume, int, int]:
        """A volume, the label of an object in it, and an axis: three times as often the first as either other."""
        weights = np.array([weight for weight, _ in self._groups])
        volumes = self._groups[rng.choice(len(weights), p=weights / weights.sum())][1]
        volume = volumes[rng.integers(len(volumes))]
        keys = list(self.known(volume))
        axis_weight = np.array([(3.0, 1.0, 1.0)[axis] for _, axis in keys])
        label, axis = keys[rng.choice(len(keys), p=axis_weight / axis_weight.sum())]
        return volume, label, axis


@dataclass(frozen=True, eq=False)
class Clip:
    """One object on T neighbouring slices; the first is the reference slice."""

    image_hu: Tensor
    """(T, 1, S, S) float32."""
    mask: Tensor
    """(T, 1, S, S) float32, 0 .. 1."""
    valid: Tensor
    """(T,) bool: False where the volume has ended."""


class ClipSampler:
    """Draws random, augmented clips; the same seed and step give the same clips."""

    def __init__(
        self,
        chooser: ObjectChooser,
        pseudo: Sequence[LabelledVolume],
        pseudo_share: float,
        size: int,
    ) -> None:
        """
        Args:
            chooser: of labelled objects.
            pseudo: volumes to draw pseudo-objects from.
            pseudo_share: 0 .. 1, share of pseudo-objects.
            size: side of the crop, pixels.
        """
        self._chooser = chooser
        self._pseudo = list(pseudo)
        self._pseudo_share = pseudo_share if self._chooser else 1.0
        self._size = size

    def batch(self, rng: np.random.Generator, count: int, slices: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, 1, S, S) image, the same of mask, (B, T) valid."""
        clips = [self.draw(rng, slices) for _ in range(count)]
        return (
            torch.stack([clip.image_hu for clip in clips]),
            torch.stack([clip.mask for clip in clips]),
            torch.stack([clip.valid for clip in clips]),
        )

    def draw(self, rng: np.random.Generator, slices: int) -> Clip:
        """One clip of `slices` slices, at least 2.

        Raises:
            InputError: the volumes are too small to hold one.
        """
        for _ in range(_TRIES):
            if rng.random() < self._pseudo_share:
                raw = pseudo_clip(self._pseudo[rng.integers(len(self._pseudo))], rng, slices)
            else:
                raw = self._labelled_clip(rng, slices)
            if raw is None:
                continue
            clip = _augment(raw, rng, self._size)
            if float(clip.mask[0].sum()) >= _LEAST_AREA_PX:
                return clip
        raise InputError(f"No object was found on {slices} slices of the training data; give larger CTs.")

    def _labelled_clip(self, rng: np.random.Generator, slices: int) -> RawClip:
        volume, label, axis = self._chooser.draw(rng)
        return volume.clip(label, axis, *_known_slices(volume.objects[label, axis], rng, slices))


def _pixels_on_slices(labels: NDArray[Any], axis: int, known: Sequence[int] | None) -> NDArray[np.int64]:
    """(labels, slices) pixels of each label on each slice; -1 on slices that are not known."""
    stack = np.moveaxis(labels, axis, 0)
    top = int(labels.max()) + 1
    counts = np.stack([np.bincount(plane.ravel(), minlength=top) for plane in stack], 1)
    if known is not None:
        counts[:, np.setdiff1d(np.arange(len(stack)), known)] = -1
    return counts


def _drawn_slices(labels: NDArray[Any]) -> dict[int, list[int]] | None:
    """The slices that somebody drew, by their axis; None where the labels are not single slices of one axis.

    Whoever draws single slices leaves the slices between them empty, and across both other axes there are stripes.
    """
    for axis in range(3):
        rest = tuple(other for other in range(3) if other != axis)
        there = np.pad(labels.any(axis=rest), 1)
        alone = there[1:-1] & ~there[:-2] & ~there[2:]
        if 2 * alone.sum() > there.sum():
            return {axis: np.flatnonzero(there[1:-1]).tolist()}
    return None


def _longest_run(there: NDArray[np.bool_]) -> int:
    steps = np.flatnonzero(np.diff(np.pad(there, 1).astype(np.int8)))
    return int(np.diff(steps)[::2].max(initial=0))


def _in_plane(spacing_kji_mm: tuple[float, float, float], axis: int) -> tuple[float, float]:
    rest = [mm for number, mm in enumerate(spacing_kji_mm) if number != axis]
    return rest[0], rest[1]


def _choose_slices(
    areas: NDArray[np.int64], rng: np.random.Generator, slices: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """A reference slice well inside the object and the slices after it; 40 % of the clips run past the object's end."""
    direction = 1 if rng.random() < 0.5 else -1
    stride = 1 if rng.random() < 0.75 else 2
    solid = np.flatnonzero(areas >= max(_SMALLEST_OBJECT_PX, 0.2 * areas.max()))
    start = int(rng.choice(solid))
    if rng.random() < 0.4:
        end = int(solid[-1] if direction > 0 else solid[0])
        start = end - direction * stride * int(rng.integers(0, slices - 1))
        start = int(solid[np.abs(solid - start).argmin()])
    wanted = start + direction * stride * np.arange(slices)
    indices = np.clip(wanted, 0, len(areas) - 1)
    return indices, (indices == wanted) & (areas[indices] >= 0)


def _known_slices(
    areas: NDArray[np.int64], rng: np.random.Generator, slices: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """As `_choose_slices`; where labels are known on some slices only, drawn again until a later slice is one."""
    for _ in range(_TRIES):
        indices, valid = _choose_slices(areas, rng, slices)
        if areas.min() >= 0 or valid[1:].any():
            break
    return indices, valid


def pseudo_clip(volume: LabelledVolume, rng: np.random.Generator, slices: int) -> RawClip | None:
    """A pseudo-object: a connected band of intensities inside a noisy blob that drifts from slice to slice."""
    axis = int(rng.integers(3))
    stack = np.moveaxis(volume.image, axis, 0)
    spacing = _in_plane(volume.spacing_kji_mm, axis)
    direction = 1 if rng.random() < 0.5 else -1
    if stack.shape[0] < slices:
        return None
    first = int(rng.integers(0, stack.shape[0] - slices + 1))
    indices = np.arange(first, first + slices)[::direction]
    row, col = (int(rng.integers(int(0.1 * n), max(int(0.9 * n), int(0.1 * n) + 1))) for n in stack.shape[1:])
    if stack[indices[0], row, col] < -300 and rng.random() < 0.85:
        return None
    radius_mm = float(np.exp(rng.uniform(np.log(7.0), np.log(65.0))))
    image = stack[indices].astype(np.float32)
    smooth = ndimage.gaussian_filter(image, (0.5, 0.8, 0.8))
    seed_hu = float(smooth[0, row, col])
    tolerance = rng.uniform(25.0, 80.0) * (1.0 if -200 < seed_hu < 200 else 3.5)
    inside = np.abs(smooth - seed_hu) < tolerance
    inside &= _drifting_blob(stack.shape[1:], slices, (row, col), radius_mm, spacing, rng)
    inside = ndimage.binary_opening(inside, np.ones((1, 2, 2), bool)) if rng.random() < 0.7 else inside
    if not inside[0, row, col]:
        return None
    inside[0] = _piece_at((row, col), inside[0])
    mask = _piece_at((0, row, col), inside)
    mask = np.stack([ndimage.binary_fill_holes(plane) for plane in mask])
    if mask[0].sum() < _LEAST_AREA_PX:
        return None
    return RawClip(image, mask.astype(np.float32), np.ones(slices, bool), spacing)


def _piece_at(place: tuple[int, ...], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected component, corners included, that holds a place."""
    pieces, _ = ndimage.label(mask, np.ones((3,) * mask.ndim, bool))
    piece: NDArray[np.bool_] = pieces == pieces[place]
    return piece


def _drifting_blob(
    shape: tuple[int, ...],
    slices: int,
    centre: tuple[int, int],
    radius_mm: float,
    spacing: tuple[float, float],
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    rows = (np.arange(shape[0])[:, None] - centre[0]) * spacing[0]
    cols = (np.arange(shape[1])[None, :] - centre[1]) * spacing[1]
    angle = np.arctan2(rows, cols)
    waves = rng.normal(0.0, 0.13, (4, 2))
    wobble = sum(a * np.cos((n + 1) * angle) + b * np.sin((n + 1) * angle) for n, (a, b) in enumerate(waves))
    drift = rng.normal(0.0, 0.04 * radius_mm, 2)
    growth = rng.normal(0.0, 0.05)
    planes = []
    for step in range(slices):
        distance = np.hypot(rows - step * drift[0], cols - step * drift[1])
        planes.append(distance < radius_mm * (1.0 + wobble) * max(1.0 + growth * step, 0.3))
    return np.stack(planes)


def _augment(raw: RawClip, rng: np.random.Generator, size: int) -> Clip:
    """Random crop, turn, flip, stretch, intensities; all slices alike, so that nothing flickers."""
    middle_mm, extent_mm = raw.place_mm()
    pixel_mm = float(np.mean(raw.spacing_rc_mm))
    side_mm = max(extent_mm * rng.uniform(1.5, 2.7), 24.0 * pixel_mm * rng.uniform(0.85, 1.2))
    centre_mm = middle_mm + rng.normal(0.0, 0.04 * side_mm, 2)
    image, mask = cut_square(raw, centre_mm, side_mm, rng, size)
    return Clip(augmented_intensities(image, rng), mask, torch.from_numpy(raw.valid))


def cut_square(
    raw: RawClip, centre_mm: NDArray[np.floating[Any]], side_mm: float, rng: np.random.Generator, size: int
) -> tuple[Tensor, Tensor]:
    """A square of the slices, randomly turned, flipped and stretched about its centre.

    Args:
        raw: slices and mask.
        centre_mm: row, column of the centre, from the centre of the first pixel.
        side_mm: side of the square.
        rng: source of all randomness.
        size: side of what comes out, pixels.

    Returns:
        (T, 1, S, S) image, its edge repeated beyond the slice, and the same of mask, nothing beyond it.
    """
    angle = rng.uniform(-np.pi, np.pi) if rng.random() < 0.25 else rng.normal(0.0, 0.15)
    stretch = np.exp(rng.normal(0.0, 0.08))
    flips = np.where(rng.random(2) < (0.2, 0.5), -1.0, 1.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scale = np.diag(flips * (stretch, 1.0 / stretch)) * side_mm / 2
    matrix = turn @ scale  # unit square -> mm, rows then columns
    unit = (np.arange(size) + 0.5) / size * 2.0 - 1.0
    square = np.stack(np.meshgrid(unit, unit, indexing="ij"), axis=-1)  # (S, S, 2)
    place_px = (square @ matrix.T + centre_mm) / np.array(raw.spacing_rc_mm)
    normalised = (place_px + 0.5) / np.array(raw.mask.shape[1:]) * 2.0 - 1.0
    grid = torch.from_numpy(normalised[..., ::-1].astype(np.float32).copy()).expand(
        len(raw.image), -1, -1, -1
    )
    image, mask = (torch.from_numpy(part)[:, None] for part in (raw.image, raw.mask))
    return (
        F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False),
        F.grid_sample(mask, grid, mode="bilinear", padding_mode="zeros", align_corners=False),
    )


def augmented_intensities(image: Tensor, rng: np.random.Generator) -> Tensor:
    """(T, 1, S, S) HU scaled, shifted, sometimes inverted, noisy or blurred; all slices alike."""
    slices, size = len(image), image.shape[-1]
    image = image * float(rng.uniform(0.9, 1.1)) + float(rng.normal(0.0, 20.0))
    if rng.random() < 0.07:
        image = 80.0 - image
    if rng.random() < 0.5:
        grain = size // int(rng.choice([1, 2, 4]))
        noise = torch.from_numpy(rng.standard_normal((slices, 1, grain, grain), np.float32))
        noise = F.interpolate(noise, size=(size, size), mode="bilinear")
        image = image + float(rng.uniform(3.0, 30.0)) * noise
    if rng.random() < 0.2:
        image = F.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    return image


def synthesise_ct(
    labels: NDArray[Any], spacing_kji_mm: tuple[float, float, float], rng: np.random.Generator
) -> NDArray[np.int16]:
    """Draw a CT-like image for a label map: every label its own mean and texture, fat and muscle between them.

    Args:
        labels: (K, J, I) integer labels, 0 = not labelled.
        spacing_kji_mm: voxel size.
        rng: source of all randomness.

    Returns:
        (K, J, I) HU.
    """
    shape = labels.shape
    coarse = _smooth_noise(shape, 18.0, spacing_kji_mm, rng)
    muscle = coarse > rng.normal(0.0, 0.3)
    body = np.where(muscle, rng.normal(50.0, 15.0), rng.normal(-95.0, 15.0)).astype(np.float32)
    inside = ndimage.binary_dilation(labels > 0, iterations=4)
    body[~inside & (coarse < 0.8)] = rng.normal(-95.0, 15.0)
    wild = rng.random() < 0.35
    present = np.unique(labels)
    means = np.zeros(int(labels.max()) + 1, np.float32)
    for label in present[present > 0]:
        means[label] = rng.uniform(-250, 350) if wild else _plausible_hu(rng)
    image = np.where(labels > 0, means[labels.astype(np.int64)], body)
    image += rng.uniform(4.0, 14.0) * _smooth_noise(shape, 6.0, spacing_kji_mm, rng)
    image = ndimage.gaussian_filter(image, [rng.uniform(0.5, 1.3) * 2.0 / mm for mm in spacing_kji_mm])
    grain = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), rng.uniform(0.3, 0.8))
    image += grain / grain.std() * rng.uniform(5.0, 25.0)
    drawn: NDArray[np.int16] = np.clip(image, -1024, 3071).astype(np.int16)
    return drawn


def _plausible_hu(rng: np.random.Generator) -> float:
    kind = rng.random()
    if kind < 0.62:
        return float(rng.normal(70.0, 35.0))  # parenchyma and muscle
    if kind < 0.74:
        return float(rng.normal(160.0, 50.0))  # contrast-filled
    if kind < 0.86:
        return float(rng.uniform(180.0, 700.0))  # bone
    if kind < 0.93:
        return float(rng.normal(5.0, 12.0))  # fluid
    return float(rng.uniform(-900.0, -100.0))  # gas, lung, fat


def _smooth_noise(
    shape: tuple[int, ...],
    scale_mm: float,
    spacing_kji_mm: tuple[float, float, float],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Zero-mean, unit-variance noise with structures of about `scale_mm`."""
    small = [max(int(np.ceil(n * mm / scale_mm)) + 3, 4) for n, mm in zip(shape, spacing_kji_mm, strict=True)]
    field_ = torch.from_numpy(rng.standard_normal(small, np.float32))[None, None]
    smooth = F.interpolate(field_, size=tuple(shape), mode="trilinear", align_corners=True)[0, 0].numpy()
    noise: NDArray[np.float32] = (smooth / smooth.std()).astype(np.float32)
    return noise

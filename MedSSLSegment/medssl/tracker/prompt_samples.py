"""Samples for teaching prompts: one slice, one object on it, and a click, a box or a coarse mask that means it.

A sample is cut as `foundation.nano_image` will cut it. A click does not tell how large its object is, so it is learned
on crops of all sizes, those too small for the object and those too large for it included.

Axis letters: B samples, P points, S side of the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..foundation.nano_crop import CROP_FACTOR, MIN_CROP_PX
from .clips import LabelledVolume, ObjectChooser, RawClip, augmented_intensities, cut_square, pseudo_clip

__all__ = ["PromptBatch", "PromptSampler"]

_LEAST_PX = 10
_LEAST_SEEN_PX = 12  # of the object in the crop
_CLICKS, _BOXES = 0.5, 0.3  # of the samples; the rest are coarse masks
_LOOSE, _SLACK = (
    0.5,
    0.15,
)  # share of the boxes; how far off the object their sides lie at most, in shares of its own
_TRIES = 2000
_CROPS_MM = (50.0, 100.0, 200.0, 400.0)
"""Sides of the crops around a click, each varied by about an eighth: they go beyond those that are tried at work."""
_FITTING = (0.05, 1.6)  # sides of an object, over that of a crop around a click on it


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Samples to learn from."""

    image_hu: Tensor
    """(B, 1, S, S) float32."""
    mask: Tensor
    """(B, 1, S, S) float32, 0 .. 1, of the object."""
    area: Tensor
    """(B,) pixels of the crop that the whole object would fill, what lies outside the crop included."""
    points_xy_px: Tensor
    """(B, 3, 2) x, y in crop pixels."""
    labels: Tensor
    """(B, 3) 1 on the object, 0 off it, 2 and 3 corners of a box, -1 none."""
    hinted: Tensor
    """(B,) bool: a coarse mask goes with the prompt, and a box, if there is one, is the coarse mask's own."""

    @classmethod
    def joined(cls, parts: Sequence[PromptBatch]) -> PromptBatch:
        """The samples of several, one after the other."""
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))

    def to(self, device: torch.device) -> PromptBatch:
        """The same samples on a device."""
        return PromptBatch(*(getattr(self, each.name).to(device) for each in fields(self)))


class PromptSampler:
    """Draws random, augmented samples; the same seed gives the same samples."""

    def __init__(
        self, chooser: ObjectChooser, pseudo: Sequence[LabelledVolume], pseudo_share: float, size: int
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
        self._pseudo_share = pseudo_share if chooser else 1.0
        self._size = size

    def batch(self, rng: np.random.Generator, count: int) -> PromptBatch:
        """So many samples."""
        return PromptBatch.joined([self.draw(rng) for _ in range(count)])

    def draw(self, rng: np.random.Generator) -> PromptBatch:
        """One sample.

        Raises:
            InputError: the volumes hold no object to ask for.
        """
        for _ in range(_TRIES):
            if rng.random() < self._pseudo_share:
                raw = pseudo_clip(self._pseudo[rng.integers(len(self._pseudo))], rng, 1)
            else:
                raw = self._labelled(rng)
            if raw is None or np.count_nonzero(raw.mask) < _LEAST_PX:
                continue
            sample = self._prompted(raw, rng)
            if int((sample.mask > 0.5).sum()) >= _LEAST_SEEN_PX:
                return sample
        raise InputError("No object was found on the slices of the training data; give larger CTs.")

    def _labelled(self, rng: np.random.Generator) -> RawClip:
        volume, label, axis = self._chooser.draw(rng)
        areas = self._chooser.known(volume)[label, axis]
        index = rng.choice(np.flatnonzero(areas >= min(_LEAST_PX, areas.max())))
        return volume.clip(label, axis, np.array([index]))

    def _prompted(self, raw: RawClip, rng: np.random.Generator) -> PromptBatch:
        kind = rng.random()
        if kind < _CLICKS:
            return self._clicked(raw, rng)
        return self._boxed(raw, rng, hinted=kind >= _CLICKS + _BOXES)

    def _clicked(self, raw: RawClip, rng: np.random.Generator) -> PromptBatch:
        """A click in the middle of a crop that may be too small or too large for the object."""
        spacing = np.array(raw.spacing_rc_mm)
        depth = ndimage.distance_transform_edt(np.pad(raw.mask[0] > 0.5, 1))[1:-1, 1:-1]
        least = rng.choice([0.0, 0.3, 0.5], p=[0.2, 0.3, 0.5]) * depth.max()
        place = rng.choice(np.argwhere(depth >= max(least, 1e-6)))
        sides = np.maximum(list(_CROPS_MM), MIN_CROP_PX * spacing.mean())
        ratio = raw.place_mm()[1] / sides
        fitting = sides[(ratio > _FITTING[0]) & (ratio < _FITTING[1])]
        side_mm = float(rng.choice(fitting if len(fitting) else sides)) * float(np.exp(rng.normal(0.0, 0.12)))
        image, mask, area = self._cut(raw, place * spacing, side_mm, rng)
        points = torch.zeros(1, 3, 2)
        points[0, 0] = self._size / 2
        labels = torch.tensor([[1, -1, -1]], dtype=torch.int32)
        return PromptBatch(image, mask, area, points, labels, torch.zeros(1, dtype=torch.bool))

    def _boxed(self, raw: RawClip, rng: np.random.Generator, hinted: bool) -> PromptBatch:
        """A crop about twice as large as the object, or as a loose box; the prompt is drawn on what is seen of it."""
        middle_mm, extent_mm = raw.place_mm()
        is_loose = not hinted and rng.random() < _LOOSE
        slack = rng.uniform(0.0, _SLACK, (2, 2)) if is_loose else rng.normal(0.02, 0.04, (2, 2))
        extent_mm *= 1.0 + 2.0 * float(slack.mean()) if is_loose else 1.0
        spread, least_mm = 0.2 if hinted else 0.08, MIN_CROP_PX * float(np.mean(raw.spacing_rc_mm))
        side_mm = max(CROP_FACTOR * extent_mm * float(np.exp(rng.normal(0.0, spread))), least_mm)
        centre_mm = middle_mm + rng.normal(0.0, 0.3 * spread, 2) * side_mm
        image, mask, area = self._cut(raw, centre_mm, side_mm, rng)
        points, labels = torch.zeros(1, 3, 2), -torch.ones(1, 3, dtype=torch.int32)
        solid = mask[0, 0].numpy() > 0.5
        if solid.any() and hinted and rng.random() < 0.5:
            place = np.argwhere(solid)[rng.integers(np.count_nonzero(solid))]
            points[0, 0], labels[0, 0] = torch.from_numpy(place[::-1].astype(np.float32).copy()) + 0.5, 1
        elif solid.any():
            across, down = np.flatnonzero(solid.any(0)), np.flatnonzero(solid.any(1))
            box = np.array([[across[0], down[0]], [across[-1] + 1, down[-1] + 1]], np.float32)
            beyond = np.array([[-1.0], [1.0]]) * slack * (box[1] - box[0])
            points[0, :2] = torch.from_numpy(box + beyond)
            labels[0, :2] = torch.tensor([2, 3])
        return PromptBatch(image, mask, area, points, labels, torch.tensor([hinted]))

    def _cut(
        self, raw: RawClip, centre_mm: NDArray[np.floating[Any]], side_mm: float, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        object_mm2 = float(raw.mask.sum()) * raw.spacing_rc_mm[0] * raw.spacing_rc_mm[1]
        raw, centre_mm = _shrunk(raw, centre_mm, side_mm / self._size)
        image, mask = cut_square(raw, centre_mm, side_mm, rng, self._size)
        area = object_mm2 / (side_mm / self._size) ** 2
        return augmented_intensities(image, rng), mask, torch.tensor([area], dtype=torch.float32)


def _shrunk(
    raw: RawClip, centre_mm: NDArray[np.floating[Any]], pixel_mm: float
) -> tuple[RawClip, NDArray[np.floating[Any]]]:
    """A slice averaged down to about the pixels of a coarser crop, so that nothing in it flickers."""
    sizes = zip(raw.image.shape[1:], raw.spacing_rc_mm, strict=True)
    factors = tuple(min(max(int(pixel_mm / mm), 1), pixels) for pixels, mm in sizes)
    if factors == (1, 1):
        return raw, centre_mm
    image, mask = (
        F.avg_pool2d(torch.from_numpy(part)[:, None], factors)[:, 0].numpy() for part in (raw.image, raw.mask)
    )
    spacing = (raw.spacing_rc_mm[0] * factors[0], raw.spacing_rc_mm[1] * factors[1])
    moved = (np.array(factors) - 1) / 2 * np.array(raw.spacing_rc_mm)  # of the first pixel's centre
    return RawClip(image, mask, raw.valid, spacing), centre_mm - moved

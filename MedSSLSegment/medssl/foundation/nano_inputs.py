"""What the small default model sees of a slice: the image, the slice before it, and the intensity evidence.

Axis letters: B rows (one object going one way), S side of the square crop, N histogram bins.

Seven channels (B, 7, S, S), all about -1 .. 1:

    0 the slice, in a window fitted to the object on its reference slice
    1 the slice, in a fixed soft-tissue window
    2 the slice before it (towards the reference), in the window of channel 0
    3 the object's mask on the slice before it
    4 how much likelier each intensity is inside the object than beside it
    5 the vote of the slice before: were pixels with a similar neighbourhood inside?
    6 what a classical tracker would answer: channels 4 and 5 together, in a band round the edge of channel 3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["CHANNELS", "Appearance", "halved", "learn_appearance", "make_channels", "update_appearance"]

CHANNELS = 7
_BINS = 48
_RANGE = 1.5  # the fitted window is clipped to -_RANGE .. _RANGE
_SOFT_TISSUE_LEVEL_HU, _SOFT_TISSUE_HALF_WIDTH_HU = 40.0, 250.0
_LLR_CLIP = 3.0
_VOTE_CLIP = 4.0
_VOTE_RANGE_HU = (-360.0, 440.0)
_VOTE_SCALE_HU = 40.0  # difference at which two neighbourhoods stop being alike
_VOTE_WEIGHT = 0.55
_MIN_HALF_WIDTH_HU, _MAX_HALF_WIDTH_HU = 60.0, 900.0


@dataclass
class Appearance:
    """Intensities of an object and of what lies beside it, one row per object."""

    centre_hu: Tensor
    """(B,) middle of the fitted window."""
    half_width_hu: Tensor
    """(B,) half of its width."""
    reference_inside: Tensor
    """(B, N) smoothed, normalised histogram inside the object on its reference slice."""
    reference_outside: Tensor
    """(B, N) the same beside the object."""
    inside: Tensor
    """(B, N) as above, following the object slowly from slice to slice."""
    outside: Tensor
    """(B, N) as above."""

    def rows(self, index: Tensor) -> Appearance:
        """The appearance of some of the rows."""
        return Appearance(
            self.centre_hu[index],
            self.half_width_hu[index],
            self.reference_inside[index],
            self.reference_outside[index],
            self.inside[index],
            self.outside[index],
        )

    def scaled(self, image_hu: Tensor) -> Tensor:
        """(B, 1, S, S) intensities against the middle of each object's window, in halves of its width."""
        return _scaled(image_hu, self.centre_hu, self.half_width_hu)

    @classmethod
    def joined(cls, parts: Sequence[Appearance]) -> Appearance:
        """The rows of several, one after the other."""
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))


def learn_appearance(image_hu: Tensor, mask: Tensor) -> Appearance:
    """Fit window and histograms to an object on its reference slice.

    Args:
        image_hu: (B, 1, S, S) intensities.
        mask: (B, 1, S, S) probability 0 .. 1 that a pixel is inside.
    """
    ring = _ring(mask)
    inside_mean, inside_std = _moments(image_hu, mask)
    outside_mean, _ = _moments(image_hu, ring)
    half_width = (1.5 * (inside_mean - outside_mean).abs() + 2.0 * inside_std).clamp(
        _MIN_HALF_WIDTH_HU, _MAX_HALF_WIDTH_HU
    )
    fitted = _fitted(image_hu, inside_mean, half_width)
    inside, outside = _histogram(fitted, mask), _histogram(fitted, ring)
    return Appearance(inside_mean, half_width, inside, outside, inside, outside)


def update_appearance(
    appearance: Appearance, image_hu: Tensor, mask: Tensor, rate: float = 0.3
) -> Appearance:
    """Let the histograms follow the object; the reference slice always keeps half of the say.

    Args:
        appearance: as it was before this slice.
        image_hu: (B, 1, S, S) the slice just tracked.
        mask: (B, 1, S, S) probability found on it; a row without any foreground keeps its histograms.
        rate: 0 .. 1, weight of this slice against the slices before.
    """
    fitted = _fitted(image_hu, appearance.centre_hu, appearance.half_width_hu)
    found = (mask.flatten(1).sum(1, keepdim=True) > 8.0).to(mask.dtype) * rate
    ring = _ring(mask)
    return Appearance(
        appearance.centre_hu,
        appearance.half_width_hu,
        appearance.reference_inside,
        appearance.reference_outside,
        torch.lerp(appearance.inside, _histogram(fitted, mask), found),
        torch.lerp(appearance.outside, _histogram(fitted, ring), found),
    )


def make_channels(
    appearance: Appearance, image_hu: Tensor, previous_hu: Tensor, previous_mask: Tensor
) -> Tensor:
    """Stack the seven channels.

    Args:
        appearance: of each row's object.
        image_hu: (B, 1, S, S) the slice to segment.
        previous_hu: (B, 1, S, S) the slice before it.
        previous_mask: (B, 1, S, S) probability 0 .. 1 of the object on the slice before.

    Returns:
        (B, 7, S, S), see the head of the file.
    """
    fitted = _fitted(image_hu, appearance.centre_hu, appearance.half_width_hu)
    evidence = _log_likelihood_ratio(appearance, fitted)
    vote = _patch_vote(image_hu, previous_hu, previous_mask)
    return torch.cat(
        [
            fitted / _RANGE,
            ((image_hu - _SOFT_TISSUE_LEVEL_HU) / _SOFT_TISSUE_HALF_WIDTH_HU).clamp(-1.0, 1.0),
            _fitted(previous_hu, appearance.centre_hu, appearance.half_width_hu) / _RANGE,
            2.0 * previous_mask - 1.0,
            evidence / _LLR_CLIP,
            vote / _VOTE_CLIP,
            _classical_answer(evidence, vote, previous_mask),
        ],
        dim=1,
    )


def halved(image: Tensor) -> Tensor:
    """(..., S, S) to (..., S / 2, S / 2): means of squares of 2 x 2 pixels."""
    rows = image[..., ::2, :] + image[..., 1::2, :]
    return 0.25 * (rows[..., ::2] + rows[..., 1::2])


def _classical_answer(evidence: Tensor, vote: Tensor, previous_mask: Tensor) -> Tensor:
    """The intensity tracker's answer, -1 .. 1: keep the core, drop the far, let the evidence decide the band."""
    radius = previous_mask.shape[-1] // 16
    grown = _dilate(previous_mask, radius)
    core = 1.0 - _dilate(1.0 - previous_mask, radius)
    smooth = _box_mean(evidence, 2)
    share = torch.sigmoid(smooth + _VOTE_WEIGHT * vote)
    return 2.0 * torch.maximum(grown * share, core * share.clamp(min=0.3)) - 1.0


def _patch_vote(image_hu: Tensor, previous_hu: Tensor, previous_mask: Tensor) -> Tensor:
    """Log odds that a pixel is inside, voted by the 3 x 3 places around it on the slice before, at half resolution.

    A place counts by how alike its neighbourhood is and by how near it is (patch-based label fusion: Coupe et al.,
    NeuroImage 54, 2011, eq. 1-4). The places lie S / 32 apart, so that they scale with the object.
    """
    image, before = (halved(slice_.clamp(*_VOTE_RANGE_HU)) for slice_ in (image_hu, previous_hu))
    reach = image.shape[-1] // 32
    before = _places_around(F.pad(before, (reach,) * 4, mode="replicate"), reach)
    inside_before = _places_around(F.pad(halved(previous_mask), (reach,) * 4), reach)
    unlike = _box_mean((image - before).square(), 1)
    offset = torch.arange(-1, 2, device=image.device)
    near = (offset[:, None].square() + offset.square()).flatten() / 2
    weight = torch.exp(unlike / (-2 * _VOTE_SCALE_HU**2) - near[:, None, None])
    inside = (weight * inside_before).sum(1, keepdim=True)
    total = weight.sum(1, keepdim=True) + 2e-3
    odds = torch.log((inside + 1e-3) / (total - inside)).clamp(-_VOTE_CLIP, _VOTE_CLIP)
    return F.interpolate(odds, size=image_hu.shape[-2:], mode="bilinear", align_corners=False)


def _places_around(padded: Tensor, reach: int) -> Tensor:
    """(B, 9, S, S): the 3 x 3 places `reach` pixels apart round each pixel of (B, 1, S + 2 reach, S + 2 reach)."""
    size = padded.shape[-1] - 2 * reach
    starts = (0, reach, 2 * reach)
    return torch.cat([padded[..., r : r + size, c : c + size] for r in starts for c in starts], dim=1)


def _log_likelihood_ratio(appearance: Appearance, fitted: Tensor) -> Tensor:
    inside = 0.5 * (appearance.reference_inside + appearance.inside)
    outside = 0.5 * (appearance.reference_outside + appearance.outside)
    floor = 0.1 / _BINS
    ratio = torch.log((inside + floor) / (outside + floor)).clamp(-_LLR_CLIP, _LLR_CLIP)
    return ratio.gather(1, _bin_index(fitted)).view_as(fitted)


def _fitted(image_hu: Tensor, centre_hu: Tensor, half_width_hu: Tensor) -> Tensor:
    return _scaled(image_hu, centre_hu, half_width_hu).clamp(-_RANGE, _RANGE)


def _scaled(image_hu: Tensor, centre_hu: Tensor, half_width_hu: Tensor) -> Tensor:
    return (image_hu - centre_hu[:, None, None, None]) / half_width_hu[:, None, None, None]


def _bin_index(fitted: Tensor) -> Tensor:
    scaled = (fitted + _RANGE) * ((_BINS - 1) / (2.0 * _RANGE))
    return scaled.round().long().flatten(1)  # (B, S * S)


def _histogram(fitted: Tensor, weight: Tensor) -> Tensor:
    counts = fitted.new_zeros(fitted.shape[0], _BINS)
    counts.scatter_add_(1, _bin_index(fitted), weight.flatten(1).to(counts.dtype))
    kernel = torch.tensor([0.06, 0.24, 0.4, 0.24, 0.06], dtype=counts.dtype, device=counts.device)
    smooth = F.conv1d(counts[:, None], kernel[None, None], padding=2)[:, 0]
    return smooth / smooth.sum(1, keepdim=True).clamp(min=1e-6)


def _moments(image_hu: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = weight.sum((1, 2, 3)).clamp(min=1e-6)
    mean = (image_hu * weight).sum((1, 2, 3)) / total
    spread = ((image_hu - mean[:, None, None, None]).square() * weight).sum((1, 2, 3)) / total
    return mean, spread.sqrt()


def _ring(mask: Tensor) -> Tensor:
    """Weight of the surroundings: near the object fully, the rest of the crop a little."""
    near = _dilate(mask, mask.shape[-1] // 8)
    return (near + 0.05 - mask).clamp(min=0.0)


def _dilate(mask: Tensor, radius: int) -> Tensor:
    """Grow a mask by about `radius` pixels, worked out at half resolution."""
    halved = torch.maximum(mask[..., ::2, :], mask[..., 1::2, :])
    halved = torch.maximum(halved[..., ::2], halved[..., 1::2])
    grown = _running_max(_running_max(halved, radius // 2).mT, radius // 2).mT
    return F.interpolate(grown, scale_factor=2, mode="nearest")


def _running_max(values: Tensor, reach: int) -> Tensor:
    """Greatest of the `reach` neighbours to either side along the rows axis, for values of at least 0."""
    width, wanted = 1, 2 * reach + 1
    values = F.pad(values, (0, 0, reach, reach))
    while width < wanted:
        step = min(width, wanted - width)
        values = torch.maximum(values[..., :-step, :], values[..., step:, :])
        width += step
    return values


def _box_mean(image: Tensor, reach: int) -> Tensor:
    """Mean over the pixels at most `reach` rows and columns away that lie on the image."""
    return _mean_along_rows(_mean_along_rows(image, reach).mT, reach).mT


def _mean_along_rows(image: Tensor, reach: int) -> Tensor:
    total = image.clone()
    count = torch.ones(image.shape[-2], 1, device=image.device)
    for step in range(1, reach + 1):
        total[..., step:, :] += image[..., :-step, :]
        total[..., :-step, :] += image[..., step:, :]
        count[step:] += 1
        count[:-step] += 1
    return total / count

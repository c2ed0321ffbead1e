"""What a box may mean to the small model: several first guesses of the object in it, and how well answers fit it.

An organ may fill its box, as a kidney does, or hardly, as the arch of the mandible; it may be the dark or the bright
part of what the box holds. The model looks at the slice once with each guess, and again with what it then found.

Axis letters: B boxes, G guesses, S side of the crop, N bins.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from .nano_prompts import box_corners, prior_mask

__all__ = ["GUESSES", "box_guesses", "overflow", "parts_inside", "shortfall"]

GUESSES = 5
"""Guesses of the object in a box: the ellipse first."""
_BINS = 48
_OUTLIERS = 0.01
"""Share of a box's pixels, at either end of its intensities, that the bins need not tell apart: metal, mostly."""


def box_guesses(image_hu: Tensor, points_xy_px: Tensor, labels: Tensor) -> Tensor:
    """Guesses of the object in each box: the ellipse in it, and parts of what it holds by intensity.

    The darker and the brighter of two parts, and the darkest and the brightest of three, divided where the intensities
    within parts differ least (Otsu, "A threshold selection method from gray-level histograms", 1979).

    Args:
        image_hu: (B, 1, S, S) intensities.
        points_xy_px: (B, P, 2) x, y in crop pixels, first and last corner of a box among them.
        labels: (B, P) as for `prior_mask`; every row has a box.

    Returns:
        (B, 5, S, S) float32, 0 .. 1; a part that holds nothing is the ellipse too.
    """
    size = image_hu.shape[-1]
    ellipse = prior_mask(points_xy_px, labels, size)
    place = torch.arange(size, device=image_hu.device) + 0.5
    first, last = box_corners(points_xy_px, labels)
    across, down = ((place >= first[:, [n]]) & (place <= last[:, [n]]) for n in (0, 1))  # (B, S)
    inside = down[:, :, None] & across[:, None, :]
    smooth = F.avg_pool2d(image_hu, 3, 1, 1, count_include_pad=False)[:, 0]
    bins = _binned(smooth, inside)
    half, low, high = (cut[:, None, None] for cut in _cuts(bins, inside))
    parts = torch.stack([bins < half, bins >= half, bins < low, bins >= high], 1) & inside[:, None]
    parts = torch.where(parts.any((2, 3), keepdim=True), parts.to(ellipse), ellipse)
    return torch.cat([ellipse, parts], 1)


def _binned(image: Tensor, inside: Tensor) -> Tensor:
    """(B, S, S) the bin of each pixel, 0 .. N - 1; the bins span what lies inside."""
    known = torch.where(inside, image, torch.nan).flatten(1)
    ends = torch.tensor([_OUTLIERS, 1.0 - _OUTLIERS], device=image.device)
    low, high = torch.nanquantile(known, ends, dim=1).nan_to_num()[..., None, None]
    share: Tensor = (image - low) / (high - low).clamp(min=1e-6)
    return (share * _BINS).clamp(0, _BINS - 1).long()


def _cuts(bins: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B,) first bins of the upper of two parts, and of the middle and the upper of three."""
    counts = torch.zeros(len(bins), _BINS, device=bins.device)
    counts.scatter_add_(1, bins.flatten(1), inside.flatten(1).to(counts))
    middles = torch.arange(_BINS, device=bins.device) + 0.5
    weight, moment = (F.pad(part.cumsum(1), (1, 0)) for part in (counts, counts * middles))

    def spread(low: Tensor | int, high: Tensor | int) -> Tensor:
        """Of the bins from low to high: the part of the variance between parts that is theirs."""
        return (moment[:, high] - moment[:, low]).square() / (weight[:, high] - weight[:, low]).clamp(
            min=1e-6
        )

    ends = torch.full((1,), _BINS, device=bins.device)
    cut = torch.arange(1, _BINS, device=bins.device)
    two = (spread(ends * 0, cut) + spread(cut, ends)).argmax(1)
    low, high = torch.triu_indices(_BINS - 1, _BINS - 1, 1, device=bins.device) + 1
    three = (spread(ends * 0, low) + spread(low, high) + spread(high, ends)).argmax(1)
    return cut[two], low[three], high[three]


def overflow(mask: NDArray[np.bool_], box_xyxy_px: NDArray[np.floating]) -> float:
    """Share of the pixels round a box that a mask covers, 0 .. 1: how much of it runs over the box.

    Args:
        mask: (S, S) on the crop.
        box_xyxy_px: (4,) outer edges of the box in crop pixels.
    """
    x0, y0, x1, y1 = _pixels(box_xyxy_px, len(mask))
    padded = np.pad(mask, 1)  # its pixel 0 is the crop's -1
    rows, cols = slice(y0 + 1, y1 + 2), slice(x0 + 1, x1 + 2)
    beside = (padded[y0, cols], padded[y1 + 2, cols], padded[rows, x0], padded[rows, x1 + 2])
    return float(np.concatenate(beside).mean())


def shortfall(mask: NDArray[np.bool_], box_xyxy_px: NDArray[np.floating]) -> float:
    """What a mask leaves free between itself and a side of its box, mean over the four, in shares of the box, 0 .. 1.

    Args:
        mask: (S, S) on the crop.
        box_xyxy_px: (4,) outer edges of the box in crop pixels.
    """
    x0, y0, x1, y1 = _pixels(box_xyxy_px, len(mask))
    inside = mask[y0 : y1 + 1, x0 : x1 + 1]
    if not inside.any():
        return 1.0
    free = []
    for axis in (0, 1):
        taken: NDArray[np.bool_] = inside.any(axis=1 - axis, keepdims=True).ravel()
        free += [taken.argmax() / len(taken), taken[::-1].argmax() / len(taken)]
    return float(np.mean(free))


def parts_inside(mask: NDArray[np.bool_], box_xyxy_px: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(H, W) the connected parts of a mask that lie in a box with more than half of their pixels.

    Args:
        mask: (H, W) on the slice.
        box_xyxy_px: (4,) middles of the box's first and last pixels.
    """
    parts, count = ndimage.label(mask)
    if count == 0:
        return mask
    x0, y0, x1, y1 = (round(float(edge)) for edge in box_xyxy_px)
    boxed = parts[max(y0, 0) : max(y1 + 1, 0), max(x0, 0) : max(x1 + 1, 0)]
    within, whole = (np.bincount(labels.ravel(), minlength=count + 1) for labels in (boxed, parts))
    kept = 2 * within > whole
    kept[0] = False
    inside: NDArray[np.bool_] = kept[parts]
    return inside


def _pixels(box_xyxy_px: NDArray[np.floating], size: int) -> tuple[int, int, int, int]:
    """First column, first row, last column and last row of the crop's pixels in a box; at least one of each."""
    x0, y0 = (min(max(round(float(edge)), 0), size - 1) for edge in box_xyxy_px[:2])
    x1, y1 = (min(max(round(float(edge)) - 1, 0), size - 1) for edge in box_xyxy_px[2:])
    return x0, y0, max(x1, x0), max(y1, y0)

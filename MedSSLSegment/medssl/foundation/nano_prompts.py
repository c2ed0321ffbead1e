"""Turns clicks and boxes into the first guess the small model starts from."""

from __future__ import annotations

import torch
from torch import Tensor

from .nano_inputs import Appearance, learn_appearance

__all__ = ["box_corners", "has_box", "heeded_guess", "point_reach", "prior_mask"]

_BOX_FIRST, _BOX_LAST, _ON, _OFF = 2, 3, 1, 0
_LIKE = 0.25  # difference in scaled intensity at which a pixel stops being like a point's
_NEXT_TO_PX = 3.0
_GUESS_REACH_PX = 12.0
"""How far a correcting point speaks in what the network is shown; chosen on patients that `bench_prompts.py` does not
score."""


def prior_mask(points_xy_px: Tensor, labels: Tensor, size: int) -> Tensor:
    """A guess of the object: the ellipse inside a box, else a small, soft disc at each click inside.

    Args:
        points_xy_px: (B, P, 2) x, y in crop pixels.
        labels: (B, P) 1 on the object, 0 off it, 2 and 3 first and last corner of a box, -1 padding.
        size: S, side of the crop.

    Returns:
        (B, 1, S, S) float32, 0 .. 1.
    """
    place = torch.arange(size, device=points_xy_px.device, dtype=torch.float32) + 0.5
    boxed = has_box(labels)
    if boxed.all():
        return _ellipse(points_xy_px, labels, place)[:, None]
    guess = _discs(points_xy_px, labels == _ON, place, size / 20)
    if boxed.any():
        guess = torch.where(boxed[:, None, None], _ellipse(points_xy_px, labels, place), guess)
    return guess[:, None]


def has_box(labels: Tensor) -> Tensor:
    """(B,) whether there is a box among the points of a row; labels (B, P) as for `prior_mask`."""
    return (labels == _BOX_FIRST).any(1)


def box_corners(points_xy_px: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 2) first and (B, 2) last corner of the box of each row, as x, y; arguments as for `prior_mask`."""
    first, last = ((points_xy_px * (labels == kind)[..., None]).sum(1) for kind in (_BOX_FIRST, _BOX_LAST))
    return first, last


def point_reach(
    scaled: Tensor, points_xy_px: Tensor, labels: Tensor, radius_px: float
) -> tuple[Tensor, Tensor]:
    """The pixels for which points on the object, and points off it, speak.

    They are those near a point with an intensity like that around it, and those next to it whatever they look like.

    Args:
        scaled: (B, 1, S, S) the crop's intensities in halves of the width of a window fitted to the object.
        points_xy_px: (B, P, 2) x, y in crop pixels.
        labels: (B, P) as for `prior_mask`; box corners and padding say nothing here.
        radius_px: distance at which a point's say has fallen to 1 / e.

    Returns:
        (B, 1, S, S) of the points on the object and (B, 1, S, S) of those off it, 0 .. 1.
    """
    size = scaled.shape[-1]
    place = torch.arange(size, device=scaled.device, dtype=torch.float32) + 0.5
    across, down = (place - points_xy_px[..., None]).square().unbind(2)  # (B, P, S) columns, rows
    distance2 = down[..., None] + across[:, :, None]  # (B, P, S, S)
    unlike = (scaled - _around(scaled[:, 0], points_xy_px)[..., None, None]) / _LIKE
    reach = torch.exp(-distance2 / radius_px**2 - unlike.square() / 2)
    reach = torch.maximum(reach, torch.exp(-distance2 / _NEXT_TO_PX**2))
    on, off = ((reach * (labels == kind)[..., None, None]).amax(1, keepdim=True) for kind in (_ON, _OFF))
    return on, off


def heeded_guess(
    image_hu: Tensor, guess: Tensor, points: tuple[Tensor, Tensor], correcting: Tensor
) -> tuple[Appearance, Tensor]:
    """What an object looks like by a first guess of it, and that guess once correcting points have spoken.

    Args:
        image_hu: (B, 1, S, S) intensities.
        guess: (B, 1, S, S) 0 .. 1.
        points: as for `prior_mask`.
        correcting: (B,) bool: rows whose points say more than where the object is.
    """
    appearance = learn_appearance(image_hu, guess)
    if not bool(correcting.any()):
        return appearance, guess
    on, off = point_reach(appearance.scaled(image_hu), *points, _GUESS_REACH_PX)
    guess = torch.where(correcting[:, None, None, None], (guess + on).clamp(max=1.0) * (1.0 - off), guess)
    return learn_appearance(image_hu, guess), guess


def _around(image: Tensor, points_xy_px: Tensor) -> Tensor:
    """(B, P) median of the 3 x 3 pixels round each point of (B, S, S) images."""
    last = image.shape[-1] - 1
    col, row = points_xy_px.floor().long().clamp(0, last).unbind(2)
    beside = torch.arange(-1, 2, device=image.device)
    rows = (row[..., None] + beside).clamp(0, last)[..., :, None]  # (B, P, 3, 1)
    cols = (col[..., None] + beside).clamp(0, last)[..., None, :]
    batch = torch.arange(len(image), device=image.device)[:, None, None, None]
    return image[batch, rows, cols].flatten(2).median(2).values


def _ellipse(points_xy_px: Tensor, labels: Tensor, place: Tensor) -> Tensor:
    first, last = box_corners(points_xy_px, labels)
    centre, half = (first + last) / 2, ((last - first) / 2).clamp(min=1.0)
    across = ((place[None] - centre[:, :1]) / half[:, :1]).square()  # (B, S) over columns
    down = ((place[None] - centre[:, 1:]) / half[:, 1:]).square()  # (B, S) over rows
    radius = (across[:, None, :] + down[:, :, None]).sqrt()
    return ((1.0 - radius) * half.amin(1)[:, None, None] + 0.5).clamp(0.0, 1.0)  # an edge of about one pixel


def _discs(points_xy_px: Tensor, on: Tensor, place: Tensor, radius: float) -> Tensor:
    """exp(-(x^2 + y^2) / radius^2) round each point, as the product of its two factors: 2 S exponentials, not S^2."""
    away = (place - points_xy_px[..., None]) / radius  # (B, P, 2, S): columns, then rows
    across, down = torch.exp(-away.square()).unbind(2)
    discs = down[:, :, :, None] * (across * on[:, :, None])[:, :, None, :]
    return discs.amax(1)

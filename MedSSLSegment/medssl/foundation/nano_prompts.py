"""Turns clicks and boxes into the first guess the small model starts from."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["prior_mask"]

_BOX_FIRST, _BOX_LAST, _ON = 2, 3, 1


def prior_mask(points_xy_px: Tensor, labels: Tensor, size: int) -> Tensor:
    """A soft guess of the object: the ellipse inside a box, else a small disc at each click inside.

    Args:
        points_xy_px: (B, P, 2) x, y in crop pixels.
        labels: (B, P) 1 on the object, 0 off it, 2 and 3 first and last corner of a box, -1 padding.
        size: S, side of the crop.

    Returns:
        (B, 1, S, S) float32, 0 .. 1.
    """
    place = torch.arange(size, device=points_xy_px.device, dtype=torch.float32) + 0.5
    boxed = (labels == _BOX_FIRST).any(1)
    if boxed.all():
        return _ellipse(points_xy_px, labels, place)[:, None]
    guess = _discs(points_xy_px, labels == _ON, place, size / 20)
    if boxed.any():
        guess = torch.where(boxed[:, None, None], _ellipse(points_xy_px, labels, place), guess)
    return guess[:, None]


def _ellipse(points_xy_px: Tensor, labels: Tensor, place: Tensor) -> Tensor:
    first = _corner(points_xy_px, labels == _BOX_FIRST)
    last = _corner(points_xy_px, labels == _BOX_LAST)
    centre, half = (first + last) / 2, ((last - first) / 2).clamp(min=1.0)
    across = ((place[None] - centre[:, :1]) / half[:, :1]).square()  # (B, S) over columns
    down = ((place[None] - centre[:, 1:]) / half[:, 1:]).square()  # (B, S) over rows
    return torch.exp(-((across[:, None, :] + down[:, :, None]) ** 2))


def _corner(points_xy_px: Tensor, chosen: Tensor) -> Tensor:
    return (points_xy_px * chosen[..., None]).sum(1)


def _discs(points_xy_px: Tensor, on: Tensor, place: Tensor, radius: float) -> Tensor:
    """exp(-(x^2 + y^2) / radius^2) round each point, as the product of its two factors: 2 S exponentials, not S^2."""
    away = (place - points_xy_px[..., None]) / radius  # (B, P, 2, S): columns, then rows
    across, down = torch.exp(-away.square()).unbind(2)
    discs = down[:, :, :, None] * (across * on[:, :, None])[:, :, None, :]
    return discs.amax(1)

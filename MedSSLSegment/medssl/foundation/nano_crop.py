"""The part of a slice that the small model looks at: a square of millimetres round its object.

Axis letters: H, W rows and columns of a slice, S side of what the model is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from .nano_model import NanoModel

__all__ = ["CROP_FACTOR", "MIN_CROP_PX", "Crop", "shown"]

CROP_FACTOR = 2.0
"""Side of the crop over the larger side of the object's box."""
MIN_CROP_PX = 24.0
"""Least side of a crop, in pixels of the slice."""


@dataclass(frozen=True)
class Crop:
    """A rectangle of a slice, square in millimetres; may reach beyond the slice."""

    row: int
    col: int
    height: int
    width: int

    @classmethod
    def around(
        cls,
        box_xyxy_px: NDArray[np.floating[Any]],
        spacing_rc_mm: tuple[float, float],
        factor: float = CROP_FACTOR,
    ) -> Crop:
        """The crop for an object that fills a box."""
        x0, y0, x1, y1 = (float(value) for value in box_xyxy_px)
        row_mm, col_mm = spacing_rc_mm
        object_mm = max((y1 - y0 + 1) * row_mm, (x1 - x0 + 1) * col_mm)
        side_mm = max(factor * object_mm, MIN_CROP_PX * (row_mm + col_mm) / 2)
        height, width = max(round(side_mm / row_mm), 4), max(round(side_mm / col_mm), 4)
        return cls(round((y0 + y1 + 1 - height) / 2), round((x0 + x1 + 1 - width) / 2), height, width)

    def cut(self, slice_hw: NDArray[np.generic]) -> NDArray[np.float32]:
        """The crop's pixels (height, width); beyond the slice its edge is repeated."""
        inside, whole = self.overlap(slice_hw.shape)
        part = slice_hw[whole].astype(np.float32)
        if part.shape == (self.height, self.width):
            return part
        if part.size == 0:  # wholly beyond the slice
            rows = np.clip(np.arange(self.row, self.row + self.height), 0, slice_hw.shape[0] - 1)
            cols = np.clip(np.arange(self.col, self.col + self.width), 0, slice_hw.shape[1] - 1)
            return slice_hw[rows[:, None], cols].astype(np.float32)
        beyond = [
            (span.start, length - span.stop)
            for span, length in zip(inside, (self.height, self.width), strict=True)
        ]
        return np.pad(part, beyond, mode="edge")

    def cut_mask(self, mask_hw: NDArray[np.generic]) -> NDArray[np.float32]:
        """As `cut`, but nothing lies beyond the slice."""
        cut = np.zeros((self.height, self.width), np.float32)
        inside, whole = self.overlap(mask_hw.shape)
        cut[inside] = mask_hw[whole]
        return cut

    def put_back(self, cut: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The inverse of `cut_mask`: (H, W), zero outside the crop."""
        whole_hw = np.zeros(shape, np.float32)
        inside, whole = self.overlap(shape)
        whole_hw[whole] = cut[inside]
        return whole_hw

    def cuts_off(self, mask: NDArray[np.bool_], shape: tuple[int, ...]) -> bool:
        """Whether a mask on the crop touches an edge of it where the slice goes on.

        Args:
            mask: any size, on the crop.
            shape: (H, W) of the slice.
        """
        return bool(
            (self.row > 0 and mask[0].any())
            or (self.row + self.height < shape[0] and mask[-1].any())
            or (self.col > 0 and mask[:, 0].any())
            or (self.col + self.width < shape[1] and mask[:, -1].any())
        )

    def shown_in(self, other: Crop, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(S, S) mask on this crop as another crop shows it at that size; nothing where this one does not reach."""
        size = len(mask)
        rows = _places(size, other.row - self.row, other.height, self.height)
        cols = _places(size, other.col - self.col, other.width, self.width)
        seen = np.zeros_like(mask)
        there = np.ix_((rows >= 0) & (rows < size), (cols >= 0) & (cols < size))
        seen[there] = mask[np.ix_(rows[there[0][:, 0]], cols[there[1][0]])]
        return seen

    def to_crop(self, points_xy_px: NDArray[np.floating[Any]], size: int) -> NDArray[np.float32]:
        """Slice pixels (centres at integers) to crop pixels (edges at integers) of a crop resized to `size`."""
        offset, scale = np.array([self.col, self.row]), np.array([size / self.width, size / self.height])
        moved: NDArray[np.float32] = ((points_xy_px - offset + 0.5) * scale).astype(np.float32)
        return moved

    def overlap(self, shape: tuple[int, ...]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Rows and columns of what a slice of some shape and the crop share: on the crop, and on the slice."""
        inside, whole = [], []
        for start, length, limit in zip((self.row, self.col), (self.height, self.width), shape, strict=True):
            low, high = max(start, 0), max(min(start + length, limit), max(start, 0))
            whole.append(slice(low, high))
            inside.append(slice(low - start, high - start))
        return (inside[0], inside[1]), (whole[0], whole[1])


def _places(size: int, offset: int, length: int, own_length: int) -> NDArray[np.intp]:
    """Along one direction, the pixels of a crop of `own_length` that another's pixels lie on; both shown at `size`."""
    from_start = offset + (np.arange(size) + 0.5) * length / size
    places: NDArray[np.intp] = np.floor(from_start * size / own_length).astype(np.intp)
    return places


def shown(cuts: Sequence[NDArray[np.float32]], model: NanoModel) -> Tensor:
    """(B, 1, S, S) cuts (height, width) as a model is shown them, on its device; smoothed first where they shrink."""
    size, device = model.config.image_size, next(model.parameters()).device
    return torch.cat([_resized(torch.from_numpy(cut).to(device), size) for cut in cuts])


def _resized(cut: Tensor, size: int) -> Tensor:
    shrinks = max(cut.shape) > size
    return F.interpolate(
        cut[None, None], size=(size, size), mode="bilinear", align_corners=False, antialias=shrinks
    )

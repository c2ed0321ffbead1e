"""Random parts of a slice whose place is known. C channels, H rows, W columns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Crop", "random_crop"]

_LARGEST_RATIO = 4.0 / 3.0  # width to height, in pixels; its inverse is the smallest
_TRIES = 10


@dataclass(frozen=True)
class Crop:
    """Part of a slice, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def taken(self, image: Tensor, size: tuple[int, ...]) -> Tensor:
        """The part of (C, H, W) scaled to (C, *size), smoothed where it shrinks."""
        part = image[:, self.top : self.top + self.height, self.left : self.left + self.width]
        return F.interpolate(part[None], size=size, mode="bilinear", antialias=True)[0]

    def box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Top, left, bottom, right as parts of a slice of that height and width."""
        bottom, right = self.top + self.height, self.left + self.width
        return self.top / height, self.left / width, bottom / height, right / width


def random_crop(height: int, width: int, smallest_area: float, rng: np.random.Generator) -> Crop:
    """Draw a part of a slice: its area uniformly between `smallest_area` and 1, its log ratio of sides uniformly.

    Args:
        height: of the slice, in pixels.
        width: of the slice.
        smallest_area: least part of the slice's area, above 0, at most 1.
        rng: draws everything.
    """
    for _ in range(_TRIES):
        area = height * width * float(rng.uniform(smallest_area, 1.0))
        ratio = _LARGEST_RATIO ** float(rng.uniform(-1.0, 1.0))
        rows, columns = max(round(math.sqrt(area / ratio)), 1), max(round(math.sqrt(area * ratio)), 1)
        if rows <= height and columns <= width:
            top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            return Crop(top, left, rows, columns)
    return Crop(0, 0, height, width)

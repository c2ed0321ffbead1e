"""Random changes of a slice: two views of one slice are two draws of them. C channels, H rows, W columns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..datasets.input_contract import InputContract
from ..errors import InputError

__all__ = ["ViewOptions", "input_range", "random_view", "two_views"]

_LARGEST_RATIO = 4.0 / 3.0  # width to height of a crop lies between its inverse and this
_CROP_TRIES = 10
_LARGEST_KERNEL_RADIUS_SIGMAS = 3.0


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """How far a view may lie from its slice; all zero (and smallest_area 1) leaves the slice as it is.

    Raises:
        InputError: a number is out of its range.
    """

    smallest_area: float = 0.3
    """A crop of this part of the slice to all of it is scaled to the slice's size; 1 for no crop."""
    angle_deg: float = 10.0
    """Rotation by up to this much either way."""
    flip: float = 0.0
    """Probability of exchanging left and right; 0 keeps left and right organs apart."""
    brightness: float = 0.24
    """Values, as parts of the window, are multiplied by 1 - brightness .. 1 + brightness."""
    contrast: float = 0.24
    """Distances from the mean are multiplied by 1 - contrast .. 1 + contrast."""
    noise: float = 0.03
    """Largest deviation of added Gaussian noise, as a part of the window."""
    blur_px: float = 1.0
    """Largest sigma of a Gaussian blur, which half of the views get."""
    dropout: bool = True
    """Keep the backbone's dropout while pre-training. Its noise averages out over the places of the deepest map, and
    slices of 64 pixels leave too few: there it hides what tells slices apart."""

    def __post_init__(self) -> None:
        if not 0.0 < self.smallest_area <= 1.0 or not 0.0 <= self.flip <= 1.0:
            raise InputError("smallest_area must lie in 0 .. 1, above 0, and flip in 0 .. 1.")
        if not (0.0 <= self.brightness < 1.0 and 0.0 <= self.contrast < 1.0):
            raise InputError("brightness and contrast must lie in 0 .. 1, below 1.")
        if min(self.angle_deg, self.noise, self.blur_px) < 0.0:
            raise InputError("angle_deg, noise and blur_px must be 0 or more.")

    @property
    def changes_nothing(self) -> bool:
        """Whether every view is the slice itself."""
        return self.smallest_area == 1.0 and not any(
            (self.angle_deg, self.flip, self.brightness, self.contrast, self.noise, self.blur_px)
        )


def input_range(contract: InputContract) -> tuple[float, float] | None:
    """Lowest and highest value the input can take; None where that differs from scan to scan."""
    if contract.channels == "chest":
        return 0.0, 1.0
    if contract.scale == "volume":
        return None
    low, high = ((hu - contract.mean_hu) / contract.std_hu for hu in contract.window_hu)
    return low, high


def two_views(
    image: Tensor, options: ViewOptions, limits: tuple[float, float] | None, rng: np.random.Generator
) -> Tensor:
    """Two independent views of a slice, (2, C, H, W); see `random_view`."""
    return torch.stack([random_view(image, options, limits, rng) for _ in range(2)])


def random_view(
    image: Tensor, options: ViewOptions, limits: tuple[float, float] | None, rng: np.random.Generator
) -> Tensor:
    """Crop, rotate, flip, change brightness and contrast in random order, blur and add noise.

    Args:
        image: (C, H, W) float32.
        options: how much of each.
        limits: lowest and highest value of the input; the view stays within them. None takes the image's own.
        rng: draws everything; the same state gives the same view.

    Returns:
        (C, H, W) float32.
    """
    if options.changes_nothing:
        return image
    low, high = limits or (float(image.min()), float(image.max()))
    width = max(high - low, 1e-6)
    part = _placed((image - low) / width, options, rng)  # air is 0, also where the view leaves the slice
    part = _recoloured(part, options, rng).clamp_(0.0, 1.0)
    if options.blur_px and rng.random() < 0.5:
        part = _blurred(part, float(rng.uniform(0.1 * options.blur_px, options.blur_px)))
    if options.noise:
        sigma = options.noise * rng.random()
        noise = rng.standard_normal(part.shape, dtype=np.float32)
        part = (part + sigma * torch.from_numpy(noise)).clamp_(0.0, 1.0)
    return part.mul_(width).add_(low)


def _placed(part: Tensor, options: ViewOptions, rng: np.random.Generator) -> Tensor:
    """Crop, rotate and flip in one bilinear resampling."""
    if options.smallest_area == 1.0 and not options.angle_deg and not options.flip:
        return part
    height, width = part.shape[-2:]
    rows, columns = _crop_sides(height, width, options.smallest_area, rng)
    centre = [float(rng.uniform(-spare, spare)) for spare in (1.0 - columns, 1.0 - rows)]  # x, y in -1 .. 1
    angle = math.radians(float(rng.uniform(-options.angle_deg, options.angle_deg)))
    mirror = -1.0 if rng.random() < options.flip else 1.0
    sine, cosine = math.sin(angle), math.cos(angle)
    aspect = height / width  # the coordinates are relative to the sides, an angle is not
    theta = torch.tensor(
        [
            [mirror * columns * cosine, -rows * aspect * sine, centre[0]],
            [mirror * columns / aspect * sine, rows * cosine, centre[1]],
        ]
    )
    grid = F.affine_grid(theta[None], [1, *part.shape], align_corners=False)
    return F.grid_sample(part[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def _crop_sides(
    height: int, width: int, smallest_area: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Sides of a crop as parts of the slice's: area and log ratio uniform, as far as they fit."""
    if smallest_area == 1.0:
        return 1.0, 1.0
    for _ in range(_CROP_TRIES):
        area = float(rng.uniform(smallest_area, 1.0))
        ratio = math.exp(float(rng.uniform(-1.0, 1.0)) * math.log(_LARGEST_RATIO))  # in pixels
        rows = math.sqrt(area / ratio * width / height)
        columns = math.sqrt(area * ratio * height / width)
        if rows <= 1.0 and columns <= 1.0:
            return rows, columns
    return 1.0, 1.0


def _recoloured(part: Tensor, options: ViewOptions, rng: np.random.Generator) -> Tensor:
    brightness = float(rng.uniform(1.0 - options.brightness, 1.0 + options.brightness))
    contrast = float(rng.uniform(1.0 - options.contrast, 1.0 + options.contrast))
    if rng.random() < 0.5:
        part = part * brightness
        return part.mean() + contrast * (part - part.mean())
    part = part.mean() + contrast * (part - part.mean())
    return part * brightness


def _blurred(part: Tensor, sigma_px: float) -> Tensor:
    """Separable Gaussian blur; beyond the border lies the border's value."""
    radius = min(math.ceil(_LARGEST_KERNEL_RADIUS_SIGMAS * sigma_px), min(part.shape[-2:]) - 1)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma_px) ** 2)
    taps = taps / taps.sum()
    padded = F.pad(part[:, None], (radius, radius, radius, radius), mode="replicate")  # (C, 1, H, W)
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))[:, 0]

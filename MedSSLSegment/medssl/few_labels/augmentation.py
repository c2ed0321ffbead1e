"""Augmentation of labelled samples, on whole batches: one resampling for turn, zoom, stretch, shift and flip, then
intensities, noise and blur.

Axis letters: B samples, C channels, S the spatial axes in array order (J, I or K, J, I).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..datasets.data import IGNORE

__all__ = ["Augmentation"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far samples are changed at strength 1; everything scales with `strength`."""

    strength: float = 1.0
    """0 leaves samples as they are."""
    flip_left_right: bool = False
    """Mirror half of the samples; never where a segment or its neighbour is a left or a right one."""
    turn_degrees: float = 15.0
    """Turn in the axial plane, up to this much either way."""
    zoom: float = 0.2
    """Size, as a fraction either way."""
    stretch: float = 0.1
    """Of each axis by itself."""
    shift: float = 0.08
    """As a fraction of the sample's side."""
    brightness: float = 0.15
    """Added, in units of the normalised input."""
    contrast: float = 0.25
    """Factor either way."""
    gamma: float = 0.25
    """Exponent of the intensities scaled to 0 .. 1, as a fraction either way."""
    noise: float = 0.1
    """Largest deviation of Gaussian noise."""
    blur: float = 0.6
    """How much of a smoothed sample is mixed in, at most."""

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        size: tuple[int, ...],
        generator: torch.Generator,
        spacing_mm: tuple[float, ...] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Change a batch.

        Args:
            images: (B, C, *larger) float32; a margin around `size` gives turned corners something to show.
            labels: (B, *larger) uint8.
            size: sides of the result, each at most those given.
            generator: on the images' device.
            spacing_mm: voxel size along S, so that a turn stays a turn; None for equal sides.

        Returns:
            (B, C, *size) float32 and (B, *size) uint8; IGNORE where a sample reaches beyond what was given.
        """
        draw = _Draw(len(images), self.strength, generator, images)
        grid = self._grid(draw, tuple(images.shape[2:]), size, spacing_mm)
        images, labels = _resampled(images, labels, grid)
        return (images if self.strength == 0 else self._recoloured(draw, images)), labels

    def _grid(
        self,
        draw: _Draw,
        have: tuple[int, ...],
        size: tuple[int, ...],
        spacing_mm: tuple[float, ...] | None,
    ) -> Tensor:
        """Where each voxel of the result is read, (B, *size, dims) in -1 .. 1, last axis first."""
        dims = len(size)
        half_mm = torch.tensor(have) * torch.tensor(spacing_mm or (1.0,) * dims) / 2
        half_mm = half_mm.flip(0).to(draw.like)  # I, J (, K), as grid_sample wants them
        scale = torch.exp(draw.around(1, self.zoom) + draw.around(dims, self.stretch))
        if self.flip_left_right:
            scale[:, 0] = scale[:, 0] * torch.where(draw.chance(0.5 if self.strength else 0.0), -1.0, 1.0)
        angle = draw.around(1, self.turn_degrees * torch.pi / 180.0)[:, 0]
        turn = torch.eye(dims, device=draw.like.device).repeat(len(angle), 1, 1)
        turn[:, 0, 0] = turn[:, 1, 1] = angle.cos()
        turn[:, 0, 1], turn[:, 1, 0] = -angle.sin(), angle.sin()
        part = torch.tensor([s / h for s, h in zip(size, have, strict=True)]).flip(0).to(draw.like)
        # result (-1 .. 1 over `size`) -> mm -> stretched and turned -> what was given (-1 .. 1 over `have`)
        matrix = turn * (scale * part * half_mm)[:, None, :] / half_mm[None, :, None]
        shift = draw.around(dims, self.shift) * 2.0 * part
        theta = torch.cat([matrix, shift[..., None]], dim=2)
        return F.affine_grid(theta, [len(angle), 1, *size], align_corners=False)

    def _recoloured(self, draw: _Draw, images: Tensor) -> Tensor:
        """Contrast, brightness, gamma, blur and noise, each sample its own."""
        mean = images.mean(dim=tuple(range(2, images.ndim)), keepdim=True)
        images = (images - mean) * draw.wide(torch.exp(draw.around(1, self.contrast))) + mean
        images = _gamma(images, draw.wide(torch.exp(draw.around(1, self.gamma))))
        images = images + draw.wide(draw.around(1, self.brightness))
        images = images.lerp(_smooth(images), draw.wide(draw.around(1, self.blur)).clamp(0.0, 1.0))
        deviation = draw.wide(draw.around(1, self.noise).abs())
        return images + deviation * draw.normal(images.shape)


class _Draw:
    """Random numbers for a batch, from one generator."""

    def __init__(self, count: int, strength: float, generator: torch.Generator, like: Tensor) -> None:
        self.count, self.strength, self.generator, self.like = count, strength, generator, like

    def around(self, columns: int, reach: float) -> Tensor:
        """(B, columns) uniform within -reach .. reach, times the strength."""
        values = torch.rand((self.count, columns), generator=self.generator, device=self.like.device)
        return (2.0 * values - 1.0) * reach * self.strength

    def chance(self, share: float) -> Tensor:
        """(B,) bool."""
        return torch.rand(self.count, generator=self.generator, device=self.like.device) < share

    def normal(self, shape: torch.Size) -> Tensor:
        """Standard normal."""
        return torch.randn(shape, generator=self.generator, device=self.like.device)

    def wide(self, values: Tensor) -> Tensor:
        """(B, 1) as (B, 1, 1, ...), to multiply images with."""
        return values.reshape(self.count, *[1] * (self.like.ndim - 1))


def _resampled(images: Tensor, labels: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Images linearly, repeating their rim; labels by the nearest voxel, IGNORE beyond their rim."""
    resampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    shifted = labels[:, None].to(images.dtype) - IGNORE  # so that the zeros outside mean IGNORE
    nearest = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return resampled, (nearest[:, 0] + IGNORE).round().to(torch.uint8)


def _gamma(images: Tensor, exponent: Tensor) -> Tensor:
    axes = tuple(range(1, images.ndim))
    low, high = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
    reach = (high - low).clamp(min=1e-6)
    return ((images - low) / reach).clamp(0.0, 1.0).pow(exponent) * reach + low


def _smooth(images: Tensor) -> Tensor:
    """Mean over three voxels along every axis."""
    pool = F.avg_pool2d if images.ndim == 4 else F.avg_pool3d
    return pool(images, 3, 1, 1, count_include_pad=False)

"""Patches of images, which of them are masked, and the targets that masked ones are compared with.

A mask is True where MASKED. Patches are numbered row by row.
B batch, C channels, H rows, W columns, p patch side, N patches (H W / p^2), D numbers in a patch (p^2 C).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "masked_mean",
    "normalised_patches",
    "patch_scale",
    "patchify",
    "patchwise",
    "random_mask",
    "unpatchify",
    "visible_indices",
]

_SMALLEST_VARIANCE = 1e-6


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) to (B, N, D); inside a patch numbers run by row, column, channel."""
    B, C, H, W = images.shape
    grid = images.reshape(B, C, H // patch, patch, W // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(B, -1, patch * patch * C)  # (B, N, D)


def unpatchify(patches: Tensor, patch: int, size: tuple[int, ...]) -> Tensor:
    """(B, N, D) back to (B, C, *size): the inverse of `patchify`."""
    rows, columns = (side // patch for side in size)
    grid = patches.reshape(len(patches), rows, columns, patch, patch, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, *size)  # (B, C, H, W)


def random_mask(batch: int, patches: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Mask the same number of patches in every sample, uniformly at random.

    Args:
        batch: B.
        patches: N.
        ratio: share masked, 0 .. 1; int(N (1 - ratio)) patches stay visible.
        generator: source of randomness; its device is the result's.

    Returns:
        (B, N) bool, True where masked.
    """
    noise = torch.rand(batch, patches, generator=generator, device=generator.device)
    return noise.argsort(1).argsort(1) >= int(patches * (1.0 - ratio) + 1e-9)


def visible_indices(mask: Tensor) -> Tensor:
    """(B, N) mask with the same number masked in every row to (B, visible) indices, rising."""
    visible = mask.shape[1] - int(mask[0].sum())
    return mask.to(torch.uint8).argsort(stable=True, dim=1)[:, :visible]


def patchwise(mask: Tensor, patch: int, size: tuple[int, ...]) -> Tensor:
    """(B, N) values of patches to (B, 1, *size) of pixels."""
    rows, columns = (side // patch for side in size)
    grid = mask.reshape(len(mask), 1, rows, columns)
    return grid.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)


def patch_scale(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(variance + 1e-6) of every patch in fp32, (B, N, 1) each; the variance is the unbiased one."""
    variance, mean = torch.var_mean(patches.float(), dim=-1, keepdim=True)
    return mean, (variance + _SMALLEST_VARIANCE).sqrt()


def normalised_patches(patches: Tensor) -> Tensor:
    """Mean 0 and deviation 1 in every patch of (B, N, D), in fp32; a constant patch becomes 0."""
    mean, deviation = patch_scale(patches)
    return (patches.float() - mean) / deviation


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked entries; 0 where there are none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)

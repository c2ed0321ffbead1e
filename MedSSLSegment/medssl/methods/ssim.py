"""Structural similarity of images (Wang et al. 2004), differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ssim"]

_C1, _C2 = 0.01**2, 0.03**2  # for values in 0 .. 1


def ssim(
    first: Tensor, second: Tensor, window: int = 15, sigma: float = 1.5, reflect: bool = False
) -> Tensor:
    """Similarity of every pixel's surroundings, in fp32.

    Args:
        first: (B, C, H, W), values in 0 .. 1.
        second: the same shape.
        window: side of the Gaussian window in pixels, odd.
        sigma: its deviation in pixels.
        reflect: mirror the images at their border; False takes zeros beyond it.

    Returns:
        (B, C, H, W) in -1 .. 1; 1 where both images agree.
    """
    with torch.autocast(first.device.type, enabled=False):
        x, y = first.float(), second.float()
        rows, columns = (_gaussian(side, window, sigma, reflect).to(x.device) for side in x.shape[-2:])
        moments = rows @ torch.stack([x, y, x * x, y * y, x * y]) @ columns.mT
        mean_x, mean_y, mean_xx, mean_yy, mean_xy = moments.unbind()
        squares = mean_x.square() + mean_y.square()
        products = mean_x * mean_y
        spread = mean_xx + mean_yy - squares
        covariance = mean_xy - products
        return (2 * products + _C1) * (2 * covariance + _C2) / ((squares + _C1) * (spread + _C2))


def _gaussian(side: int, window: int, sigma: float, reflect: bool) -> Tensor:
    """(side, side) matrix that blurs a column of pixels.

    Two products with such matrices are several times faster than convolutions of single planes on a CPU.
    """
    offsets = torch.arange(window) - window // 2
    weights = torch.exp(-offsets.square() / (2.0 * sigma**2))
    weights = weights / weights.sum()
    pixel = torch.arange(side)[:, None]
    source = pixel + offsets  # (side, window)
    if reflect:
        source = source.abs()
        source = torch.where(source < side, source, 2 * (side - 1) - source)
    inside = (source >= 0) & (source < side)
    matrix = torch.zeros(side, side)
    taps = (weights * inside).expand_as(source)
    return matrix.scatter_add(1, source.clamp(0, side - 1), taps)

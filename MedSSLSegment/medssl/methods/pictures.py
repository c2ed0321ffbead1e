"""Pictures of what a masked method reconstructs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["looking", "reconstruction_picture"]

_GAP_PX = 2
_GREY = 96


@contextmanager
def looking(module: nn.Module) -> Iterator[None]:
    """Run a network without leaving a trace: no gradients, no dropout, no moved statistics."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def reconstruction_picture(
    images: Tensor, masked: Tensor, reconstructed: Tensor, count: int = 4
) -> NDArray[np.uint8]:
    """One row a sample: the image, what the network sees of it, and what it makes of that.

    Args:
        images: (B, C, H, W); one channel is shown grey, three as red, green and blue, else the middle one.
        masked: the same shape; NaN, where nothing is seen, is shown in dark blue.
        reconstructed: the same shape.
        count: samples shown, at most.

    Returns:
        (rows, columns, 3), each sample scaled by its own image's lowest and highest value, and turned as radiologists
        look at it: rows of a canonical slice rise to anterior, columns to right.
    """
    columns = [_coloured(part[:count].detach().float().cpu()) for part in (images, masked, reconstructed)]
    original = columns[0].flatten(1)
    low, high = original.min(1).values, original.max(1).values
    shape = (-1, 1, 1, 1)
    scaled = [(part - low.view(shape)) / (high - low).clamp(min=1e-6).view(shape) for part in columns]
    hidden = torch.tensor([0.10, 0.15, 0.35]).view(1, 3, 1, 1)
    tiles = [torch.where(part.isnan(), hidden, part).clamp(0.0, 1.0) for part in scaled]
    framed = [F.pad(tile.flip(2, 3) * 255.0, (0, _GAP_PX, 0, _GAP_PX), value=_GREY) for tile in tiles]
    sheet = torch.cat(framed, dim=3).permute(0, 2, 3, 1)  # (B, H, 3 W, 3)
    return np.ascontiguousarray(sheet.flatten(0, 1).round().to(torch.uint8).numpy())


def _coloured(images: Tensor) -> Tensor:
    """(B, C, H, W) to (B, 3, H, W)."""
    if images.shape[1] == 3:
        return images
    middle = images.shape[1] // 2
    return images[:, middle : middle + 1].expand(-1, 3, -1, -1)

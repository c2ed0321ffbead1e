"""Random masks on the grid of patches of a block, the same number in every sample; True where masked.

Letters: B batch, G grid of patches (D/16, H/16, W/16).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["count_masked", "first_of_order", "random_masks"]


def count_masked(padded: Tensor, ratio: float) -> Tensor:
    """(B,) patches to mask: those that are not padding, less round((1 - ratio) of them)."""
    patches = (~padded).flatten(1).sum(1)
    return patches - torch.round((1.0 - ratio) * patches).long()


def random_masks(padded: Tensor, count: Tensor, generator: torch.Generator) -> Tensor:
    """Mask patches uniformly at random, never padding.

    Args:
        padded: (B, *G) bool.
        count: (B,) how many in each sample.
        generator: on the device of `padded`.

    Returns:
        (B, *G) bool, True where masked.
    """
    chance = torch.rand(padded.shape, generator=generator, device=padded.device)
    return first_of_order(chance.masked_fill(padded, 2.0), count)


def first_of_order(values: Tensor, count: Tensor) -> Tensor:
    """(B, *G) bool: the `count` (B,) smallest of each sample's values."""
    rank = values.flatten(1).argsort(1).argsort(1)
    return (rank < count[:, None]).reshape(values.shape)

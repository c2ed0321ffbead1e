"""How tiles cover a length, a slice or a scan: their sides, where they begin, and what each counts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["around", "cheapest_block", "multiples", "starts", "starts_within", "weight"]

_OVERLAP = 0.25
"""Of the side of training: what a tile has in common with the next."""
_SIGMA = 1 / 6
"""Deviation of a tile's weight, in sides of the tile: its rim counts little."""
_LEAST_WEIGHT = 1e-3
_LARGEST_GROWTH = 2.5
"""3D blocks grow to this many times the size of training, per axis: fewer rims are computed twice."""
_VOXELS_OF_A_BLOCK = 1 << 21
"""At most, after growing: so that memory stays small and a cancel does not wait for long."""


def cheapest_block(shape: Sequence[int], trained: Sequence[int], divisor: int) -> tuple[int, ...]:
    """The block with which the fewest voxels are computed to cover a shape.

    Args:
        shape: of the scan.
        trained: the block of training; it is the smallest, but for a scan that is smaller itself.
        divisor: what the sides are multiples of.
    """
    least = (1, 1, 2 * divisor)  # some networks need two voxels at their coarsest level
    covers = multiples([max(pair) for pair in zip(shape, least, strict=True)], divisor)
    sides = [_block_sides(*axis, divisor) for axis in zip(covers, trained, strict=True)]
    blocks = [block for block in itertools.product(*sides) if math.prod(block) <= _VOXELS_OF_A_BLOCK]
    smallest = tuple(min(lengths) for lengths in sides)

    def computed(block: tuple[int, ...]) -> int:
        return math.prod(
            side * len(starts(*axis)) for side, *axis in zip(block, covers, block, trained, strict=True)
        )

    return min(blocks or [smallest], key=lambda block: (computed(block), math.prod(block)))


def _block_sides(cover: int, trained: int, divisor: int) -> list[int]:
    """Sides with which 1, 2, ... blocks cover a length and overlap no more than they must."""
    if cover <= trained:
        return [cover]
    largest = int(_LARGEST_GROWTH * trained)
    counts = range(1, len(starts(cover, trained, trained)) + 1)
    exact = [math.ceil((cover + (count - 1) * _overlap(trained)) / count) for count in counts]
    return sorted({trained, *(side for side in multiples(exact, divisor) if trained < side <= largest)})


def multiples(sides: Sequence[int], divisor: int) -> tuple[int, ...]:
    """The next multiples of a divisor."""
    return tuple(-(-side // divisor) * divisor for side in sides)


def around(length: int, wanted: int) -> tuple[int, int]:
    """What is added before and behind a length to come to the wanted one."""
    low = (wanted - length) // 2
    return low, wanted - length - low


def starts(length: int, tile: int, trained: int) -> list[int]:
    """Evenly spread first indices of tiles that cover a length and overlap as much as tiles of training would."""
    if length <= tile:
        return [0]
    count = 1 + -(-(length - tile) // max(1, tile - _overlap(trained)))
    return [round(n * (length - tile) / (count - 1)) for n in range(count)]


def starts_within(span: slice, length: int, tile: int, trained: int) -> list[int]:
    """First indices of tiles that cover a part of a length, which is no shorter than a tile.

    A tile that is longer than the part lies around its middle, as far as the length allows.
    """
    wide = max(tile, span.stop - span.start)
    first = min(max(span.start - (wide - (span.stop - span.start)) // 2, 0), length - wide)
    return [first + n for n in starts(wide, tile, trained)]


def _overlap(trained: int) -> int:
    return math.ceil(_OVERLAP * trained)


def weight(side: int) -> Tensor:
    """(side,) Gaussian around the middle, nowhere below a thousandth."""
    x = (torch.arange(side) - (side - 1) / 2) / (side * _SIGMA)
    return torch.exp(-0.5 * x * x).clamp(min=_LEAST_WEIGHT)

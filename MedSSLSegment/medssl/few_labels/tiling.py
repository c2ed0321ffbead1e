"""A network over a whole prepared scan: slices or blocks in batches, from a given slice outwards.

Axis letters: B slices or tiles at once, C channels, N classes (0 is the background), K J I the prepared grid, S the
spatial axes of the network.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..datasets.data import AIR_HU
from ..datasets.input_contract import InputContract, IntensityStats
from ..errors import Cancelled, InputError
from ..events import never
from ..volume import rows_of_neighbours

__all__ = ["ScanPredictor", "Slab"]

_OVERLAP = 0.25
"""Of the side of training: what a tile has in common with the next."""
_SIGMA = 1 / 6
"""Deviation of a tile's weight, in sides of the tile: its rim counts little."""
_LEAST_WEIGHT = 1e-3
_LARGEST_GROWTH = 2.5
"""3D blocks grow to this many times the size of training, per axis: fewer rims are computed twice."""
_VOXELS_OF_A_BLOCK = 1 << 21
"""At most, after growing: so that memory stays small and a cancel does not wait for long."""
_VOXELS_AT_ONCE = 1 << 18
"""Of the network's input on the CPU; larger batches are no faster there, and a cancel must not wait."""
_VOXELS_AT_ONCE_GPU = 1 << 23
_AIR_MARGIN = 8
"""Pixels of air that are shown around what is not air."""
_SLICES_AT_ONCE = 32
"""At most, so that the slice being looked at does not wait for far ones."""


@dataclass(frozen=True, eq=False)
class Slab:
    """Neighbouring slices whose prediction is final."""

    first: int
    """Slice of the prepared grid."""
    probabilities: NDArray[np.float32]
    """(N, slices, J, I)."""

    @property
    def stop(self) -> int:
        """One past the last slice."""
        return self.first + len(self.probabilities[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanPredictor:
    """How a network is shown a scan."""

    answer: Callable[[Tensor], Tensor]
    """(B, C, *S) to class probabilities (B, N, *S)."""
    contract: InputContract
    classes: int
    """N."""
    divisor: int = 1
    """Every side shown is a multiple of it."""
    fixed_size: bool = False
    """Show tiles of the contract's size only; else slices go in whole, and blocks may be larger."""
    device: torch.device | str = "cpu"

    @torch.no_grad()
    def slabs(
        self,
        image: NDArray[np.int16],
        stats: IntensityStats | None = None,
        start: int | None = None,
        wanted: Sequence[int] | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> Iterator[Slab]:
        """Predict a scan.

        Args:
            image: (K, J, I) intensities on the contract's grid.
            stats: of the scan, where the contract normalises by them.
            start: slice to begin with; None for the middle.
            wanted: rising slice numbers; only these are sure to be predicted. None for all.
            cancelled: asked before every batch.

        Yields:
            Slabs, the nearest to `start` first, which together cover the wanted slices, each once.

        Raises:
            Cancelled: `cancelled` said so.
            InputError: `start` is not a slice.
        """
        start = len(image) // 2 if start is None else start
        if not 0 <= start < len(image):
            raise InputError(f"Slice {start} does not exist; they run from 0 to {len(image) - 1}.")
        wanted = range(len(image)) if wanted is None else wanted
        predict = self._slices if self.contract.spatial_dims == 2 else self._blocks
        for slab in predict(image, stats, start, wanted):
            if cancelled():
                raise Cancelled("The prediction was stopped.")
            if slab is not None:
                yield slab

    @property
    def _at_once(self) -> int:
        return _VOXELS_AT_ONCE if torch.device(self.device).type == "cpu" else _VOXELS_AT_ONCE_GPU

    @property
    def _tile(self) -> tuple[int, ...]:
        return _multiples(self.contract.size, self.divisor)

    def _empty(self, image: NDArray[np.int16]) -> bool:
        """Whether a part of a CT holds nothing but air, which needs no network."""
        return self.contract.scale == "fixed" and bool(image.max() <= self._air_hu)

    @property
    def _air_hu(self) -> float:
        return min(self.contract.window_hu[0], -500.0)

    def _filled(self, image: NDArray[np.int16]) -> tuple[slice, slice]:
        """Rows and columns that tiles have to cover: of a CT (K, J, I) those with more than air, one tile at least."""
        j, i = image.shape[1:]
        if not self.fixed_size or self.contract.scale != "fixed" or self.contract.fit == "resize":
            return slice(0, j), slice(0, i)
        filled = image.max(axis=0) > self._air_hu
        rows, cols = (np.flatnonzero(filled.any(axis=axis)) for axis in (1, 0))
        return _span(rows, j, self._tile[-2]), _span(cols, i, self._tile[-1])

    # -------------------------------------------------------------------------------------------------------------- 2D

    def _slices(
        self, image: NDArray[np.int16], stats: IntensityStats | None, start: int, wanted: Sequence[int]
    ) -> Iterator[Slab | None]:
        voxels = int(np.prod(_multiples(image.shape[1:], self.divisor))) * self.contract.in_channels
        yield None
        for batch in _batches(wanted, start, min(max(1, self._at_once // voxels), _SLICES_AT_ONCE)):
            found = torch.zeros((len(batch), self.classes, *image.shape[1:]))
            found[:, 0] = 1.0
            filled = [n for n, k in enumerate(batch) if not self._empty(image[k])]
            if filled:
                shown = np.stack([self._slice_input(image, batch[n], stats) for n in filled])
                rows, cols = self._filled(image[[batch[n] for n in filled]])
                part = torch.from_numpy(np.ascontiguousarray(shown[..., rows, cols])).to(self.device)
                answers = found[filled]
                answers[..., rows, cols] = self._whole_slices(part, stats).cpu()
                found[filled] = answers
            yield Slab(batch[0], np.ascontiguousarray(found.transpose(0, 1).numpy()))

    def _slice_input(
        self, image: NDArray[np.int16], k: int, stats: IntensityStats | None
    ) -> NDArray[np.float32]:
        n = self.contract.neighbours
        return self.contract.apply(image[np.clip(np.arange(k - n, k + n + 1), 0, len(image) - 1)], stats)

    def _whole_slices(self, shown: Tensor, stats: IntensityStats | None) -> Tensor:
        """(B, C, J, I) to (B, N, J, I), of any size."""
        sides = shown.shape[2:]
        if self.contract.fit == "resize":
            scaled = F.interpolate(shown, size=self._tile, mode="bilinear", antialias=True)
            return F.interpolate(self.answer(scaled), size=sides, mode="bilinear")
        if self.fixed_size:  # tiles need not begin at multiples of anything
            larger = tuple(max(pair) for pair in zip(sides, self._tile, strict=True))
        else:  # some networks need two pixels at their coarsest level
            larger = _multiples((sides[0], max(sides[1], 2 * self.divisor)), self.divisor)
        (top, bottom), (left, right) = (_around(n, m) for n, m in zip(sides, larger, strict=True))
        padded = F.pad(shown, (left, right, top, bottom), value=self.contract.background(stats))
        found = self._tiled(padded, self._tile) if self.fixed_size else self.answer(padded)
        return found[:, :, top : top + sides[0], left : left + sides[1]]

    # -------------------------------------------------------------------------------------------------------------- 3D

    def _blocks(
        self, image: NDArray[np.int16], stats: IntensityStats | None, start: int, wanted: Sequence[int]
    ) -> Iterator[Slab | None]:
        """Rows of blocks, from the one around `start` outwards; a slice is final once all its rows are done."""
        tile = self._tile if self.fixed_size else _cheapest_block(image.shape, self._tile, self.divisor)
        pads = [_around(n, max(n, side)) for n, side in zip(image.shape, tile, strict=True)]
        padded = np.pad(image, pads, constant_values=AIR_HU) if any(map(any, pads)) else image
        below, length = pads[0][0], len(image)
        starts = _starts(len(padded), tile[0], self._tile[0])
        weight = _weight(tile[0])
        total = np.zeros(len(padded), np.float32)
        for k in starts:
            total[k : k + tile[0]] += weight.numpy()
        sums = np.zeros((self.classes, *padded.shape), np.float32)
        waiting = {k: {s for s in starts if s <= k + below < s + tile[0]} for k in wanted}
        inside = tuple(slice(low, low + n) for (low, _), n in zip(pads[1:], image.shape[1:], strict=True))
        for k in sorted(starts, key=lambda s: abs(s + tile[0] / 2 - start - below)):
            if any(k in rows for rows in waiting.values()):
                yield None
                row = self._row(padded[k : k + tile[0]], tile, stats)
                sums[:, k : k + tile[0]] += row * weight.numpy()[:, None, None]
            for rows in waiting.values():
                rows.discard(k)
            ready = [n for n, rows in waiting.items() if not rows]
            for n in ready:
                del waiting[n]
            for first, last in rows_of_neighbours([n for n in ready if n < length]):
                part = slice(first + below, last + 1 + below)
                mean = sums[(slice(None), part, *inside)] / total[part, None, None]
                yield Slab(first, mean.astype(np.float32, copy=False))

    def _row(
        self, image: NDArray[np.int16], tile: tuple[int, ...], stats: IntensityStats | None
    ) -> NDArray[np.float32]:
        """(K, J, I) of a tile's height to (N, K, J, I)."""
        found = np.zeros((self.classes, *image.shape), np.float32)
        found[0] = 1.0
        if not self._empty(image):
            rows, cols = self._filled(image)
            part = self.contract.apply(np.ascontiguousarray(image[:, rows, cols]), stats)
            shown = torch.from_numpy(part)[None].to(self.device)
            found[:, :, rows, cols] = self._tiled(shown, tile)[0].cpu().numpy()
        return found

    def _tiled(self, shown: Tensor, tile: tuple[int, ...]) -> Tensor:
        """(B, C, *S) to (B, N, *S) through overlapping tiles, each weighted by a Gaussian."""
        sides = shown.shape[2:]
        if tuple(sides) == tile:
            return self.answer(shown)
        corners = list(itertools.product(*map(_starts, sides, tile, self._tile)))
        weight = torch.ones((), device=shown.device)
        for side in tile:
            weight = weight[..., None] * _weight(side).to(shown.device)
        sums = shown.new_zeros((len(shown), self.classes, *sides))
        total = shown.new_zeros(tuple(sides))
        at_once = max(1, self._at_once // (int(np.prod(tile)) * shown.shape[0] * shown.shape[1]))
        for first in range(0, len(corners), at_once):
            places: list[tuple[Any, ...]] = [
                (..., *(slice(a, a + t) for a, t in zip(corner, tile, strict=True)))
                for corner in corners[first : first + at_once]
            ]
            found = self.answer(torch.cat([shown[place] for place in places]))
            for part, place in zip(torch.split(found, len(shown)), places, strict=True):
                sums[place] += part * weight
                total[place] += weight
        return sums / total


def _span(places: NDArray[np.intp], length: int, least: int) -> slice:
    """From a margin before the first place to one behind the last, at least so long where the axis is."""
    start, stop = int(places[0]) - _AIR_MARGIN, int(places[-1]) + 1 + _AIR_MARGIN
    more = max(0, min(least, length) - (stop - start))
    start = min(max(start - more // 2, 0), max(length - least, 0))
    return slice(start, min(max(stop, start + least), length))


def _cheapest_block(shape: Sequence[int], trained: Sequence[int], divisor: int) -> tuple[int, ...]:
    """The block with which the fewest voxels are computed to cover a shape.

    Args:
        shape: of the scan.
        trained: the block of training; it is the smallest, but for a scan that is smaller itself.
        divisor: what the sides are multiples of.
    """
    least = (1, 1, 2 * divisor)  # some networks need two voxels at their coarsest level
    covers = _multiples([max(pair) for pair in zip(shape, least, strict=True)], divisor)
    sides = [_block_sides(*axis, divisor) for axis in zip(covers, trained, strict=True)]
    blocks = [block for block in itertools.product(*sides) if math.prod(block) <= _VOXELS_OF_A_BLOCK]
    smallest = tuple(min(lengths) for lengths in sides)

    def computed(block: tuple[int, ...]) -> int:
        return math.prod(
            side * len(_starts(*axis)) for side, *axis in zip(block, covers, block, trained, strict=True)
        )

    return min(blocks or [smallest], key=lambda block: (computed(block), math.prod(block)))


def _block_sides(cover: int, trained: int, divisor: int) -> list[int]:
    """Sides with which 1, 2, ... blocks cover a length and overlap no more than they must."""
    if cover <= trained:
        return [cover]
    largest = int(_LARGEST_GROWTH * trained)
    counts = range(1, len(_starts(cover, trained, trained)) + 1)
    exact = [math.ceil((cover + (count - 1) * _overlap(trained)) / count) for count in counts]
    return sorted({trained, *(side for side in _multiples(exact, divisor) if trained < side <= largest)})


def _batches(wanted: Sequence[int], start: int, at_once: int) -> list[list[int]]:
    """Runs of neighbouring slices of at most `at_once`, the nearest to `start` first."""
    batches = [
        list(range(a, min(a + at_once, last + 1)))
        for first, last in rows_of_neighbours(wanted)
        for a in range(first, last + 1, at_once)
    ]
    return sorted(batches, key=lambda run: max(run[0] - start, start - run[-1], 0))


def _multiples(sides: Sequence[int], divisor: int) -> tuple[int, ...]:
    return tuple(-(-side // divisor) * divisor for side in sides)


def _around(length: int, wanted: int) -> tuple[int, int]:
    low = (wanted - length) // 2
    return low, wanted - length - low


def _starts(length: int, tile: int, trained: int) -> list[int]:
    """Evenly spread first indices of tiles that cover a length and overlap as much as tiles of training would."""
    if length <= tile:
        return [0]
    count = 1 + -(-(length - tile) // max(1, tile - _overlap(trained)))
    return [round(n * (length - tile) / (count - 1)) for n in range(count)]


def _overlap(trained: int) -> int:
    return math.ceil(_OVERLAP * trained)


def _weight(side: int) -> Tensor:
    """(side,) Gaussian around the middle, nowhere below a thousandth."""
    x = (torch.arange(side) - (side - 1) / 2) / (side * _SIGMA)
    return torch.exp(-0.5 * x * x).clamp(min=_LEAST_WEIGHT)

"""A network over a whole prepared scan: slices or blocks in batches, from a given slice outwards.

Axis letters: B slices or tiles at once, C channels, N classes (0 is the background), K J I the prepared grid, S the
spatial axes of the network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

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
from .covering import around, cheapest_block, multiples, starts, starts_within, weight
from .skimming import Box, around_found, box_of, joined, stretches, stride

__all__ = ["ScanPredictor", "Slab"]

_AT_ONCE = {2: 1 << 17, 3: 1 << 19}
"""Voxels of the network's input on the CPU, by its axes; more do not fit into the caches, and a cancel must not wait.
Convolutions of a single block are slower than those of two."""
_AT_ONCE_GPU = 1 << 23
_AIR_MARGIN = 2
"""Pixels of air that are shown around what is not air."""
_SLICES_AT_ONCE = 32
"""At most, so that the slice being looked at does not wait for far ones."""

_T = TypeVar("_T")


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
    """Show tiles of the contract's size only; else slices go in as wide as the body, and blocks may be larger."""
    device: torch.device | str = "cpu"

    @torch.no_grad()
    def slabs(
        self,
        image: NDArray[np.int16],
        stats: IntensityStats | None = None,
        start: int | None = None,
        wanted: Sequence[int] | None = None,
        spacing_kji_mm: Sequence[float] | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> Iterator[Slab]:
        """Predict a scan.

        Args:
            image: (K, J, I) intensities on the contract's grid.
            stats: of the scan, where the contract normalises by them.
            start: slice to begin with; None for the middle.
            wanted: rising slice numbers; only these are sure to be predicted. None for all.
            spacing_kji_mm: of the image; 2D networks then look at a slice every 6 mm, or at every other one where
                slices are thick, and at those between only around what their neighbours show. None looks everywhere.
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
        slabs = (
            self._slices(image, stats, start, wanted, spacing_kji_mm)
            if self.contract.spatial_dims == 2
            else self._blocks(image, stats, start, wanted)
        )
        for slab in slabs:
            if cancelled():
                raise Cancelled("The prediction was stopped.")
            if slab is not None:
                yield slab

    @property
    def _at_once(self) -> int:
        on_cpu = torch.device(self.device).type == "cpu"
        return _AT_ONCE[self.contract.spatial_dims] if on_cpu else _AT_ONCE_GPU

    @property
    def _tile(self) -> tuple[int, ...]:
        return multiples(self.contract.size, self.divisor)

    def _body(self, image: NDArray[np.int16]) -> Box | None:
        """Rows and columns of (K, J, I) that need the network: of a CT those with more than air, if there are any."""
        if self.contract.scale != "fixed":
            return slice(0, image.shape[1]), slice(0, image.shape[2])
        air_hu = min(self.contract.window_hu[0], -500.0)
        return box_of(image.max(axis=0) > air_hu, (_AIR_MARGIN, _AIR_MARGIN))

    # -------------------------------------------------------------------------------------------------------------- 2D

    def _slices(
        self,
        image: NDArray[np.int16],
        stats: IntensityStats | None,
        start: int,
        wanted: Sequence[int],
        spacing_kji_mm: Sequence[float] | None,
    ) -> Iterator[Slab | None]:
        """Stretches of slices: first those that are looked at everywhere, then those between."""
        step = stride(spacing_kji_mm[0]) if spacing_kji_mm else 1
        at_once = self._slices_at_once(image.shape[1:])
        found_at: dict[int, Box | None] = {}
        for stretch in stretches(wanted, start, step, max(1, min(at_once, _SLICES_AT_ONCE // step))):
            ends = found_at.keys() & stretch
            answers: dict[int, NDArray[np.float32]] = {}
            everywhere = {k: self._body(image[k : k + 1]) for k in stretch if k not in ends}
            yield from self._look(image, stats, everywhere, answers)
            found_at |= {
                k: around_found(answers[k], spacing_kji_mm[1:]) if spacing_kji_mm else None
                for k in everywhere
            }
            between = {
                k: joined(found_at[a], found_at[b]) if self._body(image[k : k + 1]) else None
                for a, b in itertools.pairwise(stretch)
                for k in range(a + 1, b)
            }
            yield from self._look(image, stats, between, answers)
            if answers:
                yield Slab(min(answers), np.stack([answers[k] for k in sorted(answers)], axis=1))

    def _slices_at_once(self, sides: Sequence[int]) -> int:
        voxels = int(np.prod(multiples(sides, self.divisor))) * self.contract.in_channels
        return min(max(1, self._at_once // voxels), _SLICES_AT_ONCE)

    def _look(
        self,
        image: NDArray[np.int16],
        stats: IntensityStats | None,
        boxes: Mapping[int, Box | None],
        answers: dict[int, NDArray[np.float32]],
    ) -> Iterator[None]:
        """Add the (N, J, I) answers for slices, each in its box and certain background elsewhere."""
        for k in boxes:
            answers[k] = np.zeros((self.classes, *image.shape[1:]), np.float32)
            answers[k][0] = 1.0
        shown = [(k, box) for k, box in boxes.items() if box is not None]
        for batch in _in_parts(shown, self._slices_at_once(_largest([box for _, box in shown]))):
            yield None
            part = np.stack([self._slice_input(image, k, stats) for k, _ in batch])
            found = self._boxed(torch.from_numpy(part).to(self.device), [box for _, box in batch], stats)
            answers.update(zip((k for k, _ in batch), found.cpu().numpy(), strict=True))

    def _slice_input(
        self, image: NDArray[np.int16], k: int, stats: IntensityStats | None
    ) -> NDArray[np.float32]:
        n = self.contract.neighbours
        return self.contract.apply(image[np.clip(np.arange(k - n, k + n + 1), 0, len(image) - 1)], stats)

    def _boxed(self, shown: Tensor, boxes: Sequence[Box], stats: IntensityStats | None) -> Tensor:
        """(B, C, J, I) of any size to (B, N, J, I), looking at a box of each."""
        sides = shown.shape[2:]
        if self.contract.fit == "resize":
            scaled = F.interpolate(shown, size=self._tile, mode="bilinear", antialias=True)
            return F.interpolate(self.answer(scaled), size=sides, mode="bilinear")
        tile = self._tile
        if not self.fixed_size:  # some networks need two pixels at their coarsest level
            least = _largest(boxes), tile, (1, 2 * self.divisor)
            tile = multiples([max(lengths) for lengths in zip(*least, strict=True)], self.divisor)
        (top, bottom), (left, right) = (around(n, max(n, side)) for n, side in zip(sides, tile, strict=True))
        padded = F.pad(shown, (left, right, top, bottom), value=self.contract.background(stats))
        corners = [
            (n, *corner)
            for n, box in enumerate(boxes)
            for corner in itertools.product(*map(starts_within, box, padded.shape[2:], tile, self._tile))
        ]
        found = self._tiled(padded, tile, corners)
        return found[:, :, top : top + sides[0], left : left + sides[1]]

    # -------------------------------------------------------------------------------------------------------------- 3D

    def _blocks(
        self, image: NDArray[np.int16], stats: IntensityStats | None, start: int, wanted: Sequence[int]
    ) -> Iterator[Slab | None]:
        """Rows of blocks, from the one around `start` outwards; a slice is final once all its rows are done."""
        body = self._body(image)
        sides = len(image), *_largest([] if body is None else [body])
        tile = self._tile if self.fixed_size else cheapest_block(sides, self._tile, self.divisor)
        pads = [around(n, max(n, side)) for n, side in zip(image.shape, tile, strict=True)]
        padded = np.pad(image, pads, constant_values=AIR_HU) if any(map(any, pads)) else image
        below, length = pads[0][0], len(image)
        firsts = starts(len(padded), tile[0], self._tile[0])
        counts = weight(tile[0])
        total = np.zeros(len(padded), np.float32)
        for k in firsts:
            total[k : k + tile[0]] += counts.numpy()
        sums = np.zeros((self.classes, *padded.shape), np.float32)
        waiting = {k: {s for s in firsts if s <= k + below < s + tile[0]} for k in wanted}
        inside = tuple(slice(low, low + n) for (low, _), n in zip(pads[1:], image.shape[1:], strict=True))
        for k in sorted(firsts, key=lambda s: abs(s + tile[0] / 2 - start - below)):
            if any(k in rows for rows in waiting.values()):
                yield None
                row = self._row(padded[k : k + tile[0]], tile, stats)
                sums[:, k : k + tile[0]] += row * counts.numpy()[:, None, None]
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
        body = self._body(image)
        if body is not None:
            shown = torch.from_numpy(self.contract.apply(image, stats))[None].to(self.device)
            spans = map(starts_within, body, image.shape[1:], tile[1:], self._tile[1:])
            corners = [(0, 0, *corner) for corner in itertools.product(*spans)]
            found = self._tiled(shown, tile, corners)[0].cpu().numpy()
        return found

    def _tiled(self, shown: Tensor, tile: tuple[int, ...], corners: Sequence[tuple[int, ...]]) -> Tensor:
        """(B, C, *S) to (B, N, *S) through tiles, each weighted by a Gaussian; what none covers is background.

        Args:
            shown: at least as large as a tile.
            tile: its sides.
            corners: image of the batch and first indices of each tile.
        """
        counts = torch.ones((), device=shown.device)
        for side in tile:
            counts = counts[..., None] * weight(side).to(shown.device)
        sums = shown.new_zeros((len(shown), self.classes, *shown.shape[2:]))
        total = shown.new_zeros((len(shown), 1, *shown.shape[2:]))
        for part in _in_parts(corners, max(1, self._at_once // (int(np.prod(tile)) * shown.shape[1]))):
            places: list[tuple[Any, ...]] = [
                (n, slice(None), *(slice(a, a + side) for a, side in zip(corner, tile, strict=True)))
                for n, *corner in part
            ]
            found = self.answer(torch.stack([shown[place] for place in places]))
            for answer, place in zip(found, places, strict=True):
                sums[place] += answer * counts
                total[place] += counts
        sums[:, :1].masked_fill_(total == 0.0, 1.0)
        return sums / total.masked_fill_(total == 0.0, 1.0)


def _largest(boxes: Sequence[Box]) -> tuple[int, int]:
    """Most rows and most columns of any."""
    rows, columns = ([box[axis].stop - box[axis].start for box in boxes] for axis in (0, 1))
    return max(rows, default=1), max(columns, default=1)


def _in_parts(items: Sequence[_T], most: int) -> Iterator[Sequence[_T]]:
    """Cut a sequence into as few parts as can be, about as long as each other: small batches are slow."""
    count = -(-len(items) // most)
    for n in range(count):
        yield items[n * len(items) // count : (n + 1) * len(items) // count]

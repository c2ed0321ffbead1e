"""Unlabelled volumes as pre-training sees them: intensities by scan and slice, and nothing else.

`prepare_volumes` (volume_cache.py) makes them from a folder; a test or a notebook makes them from arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .input_contract import InputContract, IntensityStats

if TYPE_CHECKING:
    from .grid import PreparedGrid

__all__ = ["AIR_HU", "IGNORE", "Scan", "SliceArray", "UnlabelledVolumes", "fit_slice"]

AIR_HU = -1024
"""What lies outside a scan."""
IGNORE = 255
"""Label of a voxel that nobody vouches for."""


class SliceArray(Protocol):
    """(K, J, I) integers that are read by slices: a numpy array, or a compressed one on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """K, J, I."""

    def __getitem__(self, key: Any, /) -> Any:
        """Part of the array, as a numpy array."""


@dataclass(frozen=True)
class Scan:
    """What is known of a scan: where it lies, not what it shows."""

    id: str
    """SHA-256 (hex) of the source's voxels and grid: equal for the same voxels under two names."""
    name: str
    """Path below the data folder."""
    patient: str
    """Scans of one patient share it; a split never parts them."""
    shape_kji: tuple[int, int, int]
    """Of the prepared grid: canonical orientation (superior, anterior, right), the contract's spacing, body box."""
    spacing_kji_mm: tuple[float, float, float]
    """Of the prepared grid."""
    stats: IntensityStats
    """Of the whole scan."""
    grid: PreparedGrid | None = field(default=None, compare=False, repr=False)
    """How the source's grid became the prepared one; None for arrays that came prepared."""


class UnlabelledVolumes:
    """Prepared scans, read by slice or block.

    Args:
        scans: facts, one per array.
        arrays: (K, J, I) int16 intensities on the prepared grid.
        presence: per scan the (K,) bool table of slices that show the organ; only for weakly supervised methods.
    """

    def __init__(
        self,
        scans: Sequence[Scan],
        arrays: Sequence[SliceArray],
        presence: Sequence[NDArray[np.bool_]] | None = None,
    ) -> None:
        if not scans:
            raise InputError("There are no scans to train on.")
        for scan, array in zip(scans, arrays, strict=True):
            if tuple(array.shape) != scan.shape_kji:
                raise InputError(f"{scan.name} has the shape {array.shape}, not {scan.shape_kji} as stated.")
        if presence is not None:
            for scan, table in zip(scans, presence, strict=True):
                if table.shape != scan.shape_kji[:1]:
                    raise InputError(f"The presence table of {scan.name} has {table.size} slices.")
        self.scans = tuple(scans)
        self._arrays = tuple(arrays)
        self._presence = None if presence is None else tuple(presence)

    @property
    def slices(self) -> int:
        """Slices of all scans together."""
        return sum(scan.shape_kji[0] for scan in self.scans)

    def slice(self, scan: int, k: int) -> NDArray[np.int16]:
        """(J, I) slice k of a scan."""
        result: NDArray[np.int16] = self.slab(scan, k, k + 1)[0]
        return result

    def slab(self, scan: int, start: int, stop: int) -> NDArray[np.int16]:
        """(stop - start, J, I); a slice beyond either end repeats the last one there is."""
        count = self.scans[scan].shape_kji[0]
        first, last = max(start, 0), min(stop, count)
        if first >= last:
            raise InputError(f"Slices {start} .. {stop - 1} lie outside {self.scans[scan].name}.")
        inside = np.asarray(self._arrays[scan][first:last])
        if (first, last) == (start, stop):
            return inside
        return np.pad(inside, ((first - start, stop - last), (0, 0), (0, 0)), mode="edge")

    def block(self, scan: int, start_kji: Sequence[int], size_kji: Sequence[int]) -> NDArray[np.int16]:
        """(size) voxels from `start_kji`, which may be negative; air outside the scan."""
        shape = self.scans[scan].shape_kji
        lows = [max(start, 0) for start in start_kji]
        highs = [min(start + size, n) for start, size, n in zip(start_kji, size_kji, shape, strict=True)]
        result = np.full(tuple(size_kji), AIR_HU, np.int16)
        if all(low < high for low, high in zip(lows, highs, strict=True)):
            target = tuple(
                slice(low - start, high - start)
                for low, high, start in zip(lows, highs, start_kji, strict=True)
            )
            source = tuple(slice(low, high) for low, high in zip(lows, highs, strict=True))
            result[target] = self._arrays[scan][source]
        return result

    def presence(self, scan: int) -> NDArray[np.bool_]:
        """(K,) whether each slice shows the organ.

        Raises:
            InputError: no presence table was given.
        """
        if self._presence is None:
            raise InputError(
                "This method must be told which slices show the organ; make a table with 'medssl presence'"
                " and give it with --presence."
            )
        return self._presence[scan]

    def with_presence(self, presence: Sequence[NDArray[np.bool_]]) -> UnlabelledVolumes:
        """The same volumes, weakly supervised."""
        return UnlabelledVolumes(self.scans, self._arrays, presence)

    def image(self, contract: InputContract, scan: int, k: int) -> NDArray[np.float32]:
        """(C, J, I) whole slice with its neighbours as the contract's channels (2D)."""
        n = contract.neighbours
        return contract.apply(self.slab(scan, k - n, k + n + 1), self.scans[scan].stats)

    @classmethod
    def from_arrays(
        cls,
        arrays: Sequence[NDArray[Any]],
        spacing_kji_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
        presence: Sequence[NDArray[np.bool_]] | None = None,
    ) -> UnlabelledVolumes:
        """Take (K, J, I) intensities that are already on the wanted grid; every scan is a patient."""
        whole = [np.asarray(a, dtype=np.int16) for a in arrays]
        scans = [
            Scan(f"{n:064x}", f"scan {n}", f"patient {n}", a.shape, spacing_kji_mm, intensity_stats(a))
            for n, a in enumerate(whole)
        ]
        return cls(scans, whole, presence)

    def only(self, indices: Sequence[int]) -> UnlabelledVolumes:
        """Some of the scans, e.g. one side of a split."""
        presence = None if self._presence is None else [self._presence[n] for n in indices]
        return UnlabelledVolumes(
            [self.scans[n] for n in indices], [self._arrays[n] for n in indices], presence
        )

    def renamed(self, scan: int, **changes: Any) -> UnlabelledVolumes:
        """The same volumes with other facts about one scan, e.g. its patient."""
        scans = [replace(s, **changes) if n == scan else s for n, s in enumerate(self.scans)]
        return UnlabelledVolumes(scans, self._arrays, self._presence)


def intensity_stats(voxels: NDArray[np.int16]) -> IntensityStats:
    """Percentiles, mean and deviation over the voxels that are not zero (over all, where all are zero).

    Counts how often each value occurs, slice by slice, so it needs no copy of a large scan.
    """
    counts = np.zeros(65536, np.int64)
    for part in voxels:
        counts += np.bincount(part.ravel().astype(np.int32) + 32768, minlength=65536)
    values = np.arange(-32768, 32768, dtype=np.float64)
    if np.count_nonzero(counts) > 1:
        counts[32768] = 0
    total, up_to = int(counts.sum()), np.cumsum(counts)

    def percentile(q: float) -> float:
        place = q / 100 * (total - 1)
        below, above = (
            values[np.searchsorted(up_to, n, side="right")] for n in (int(place), math.ceil(place))
        )
        return float(below + (above - below) * (place - int(place)))

    low, high = percentile(1.0), percentile(99.0)
    clipped = np.clip(values, low, high)
    mean = float(clipped @ counts) / total
    return IntensityStats(low, high, mean, math.sqrt(float((clipped - mean) ** 2 @ counts) / total))


def fit_slice(
    image: NDArray[np.float32],
    size: tuple[int, ...],
    how: Literal["crop", "resize"],
    rng: np.random.Generator | None = None,
    fill: float | NDArray[np.float32] = 0.0,
) -> NDArray[np.float32]:
    """Bring a slice to a size.

    Args:
        image: (C, J, I).
        size: rows and columns wanted.
        how: "crop" takes a part and surrounds a smaller slice with `fill`; "resize" scales the whole, bilinearly.
        rng: draws where the part lies; None takes the middle.
        fill: value beside the slice, e.g. the contract's `background()`, or (C, 1, 1) for each channel its own.

    Returns:
        (C, *size) float32.
    """
    if how == "resize":
        return _resized(image, size)
    result = np.full((image.shape[0], *size), fill, np.float32)
    target, source = [], []
    for have, want in zip(image.shape[1:], size, strict=True):
        spare = abs(have - want)
        start = spare // 2 if rng is None else int(rng.integers(spare + 1))
        length = min(have, want)
        source.append(slice(start, start + length) if have > want else slice(0, length))
        target.append(slice(0, length) if have > want else slice(start, start + length))
    result[(slice(None), *target)] = image[(slice(None), *source)]
    return result


def _resized(image: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    import torch  # only this way of fitting needs it
    from torch.nn import functional as F

    scaled = F.interpolate(torch.from_numpy(image)[None], size=size, mode="bilinear", antialias=True)
    return np.ascontiguousarray(scaled[0].numpy())

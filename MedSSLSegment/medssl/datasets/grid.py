"""From a source volume's grid to the grid a network works on, and the exact way back.

The prepared grid is canonical (K rises to superior, J to anterior, I to right), cropped to the body, and resampled to
the spacings an `InputContract` asks for. Only axes are swapped and flipped, never turned by an angle, so an oblique
volume stays oblique and every axis is handled by itself: orientation and crop are exact, and what is interpolated is
interpolated once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from ..errors import Cancelled, InputError
from ..volume import Volume, looks_like_ct, spacing_of
from .input_contract import InputContract

__all__ = ["Box", "PreparedGrid", "body_box", "prepare_image", "scan_id", "storable"]

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""First and one past the last voxel along K, J, I."""

_SAME_SPACING = 1e-3
"""Spacings this close, relatively, are equal: headers round."""
_BODY_HU = -500.0
_BODY_STEP_MM = 3.0
_BODY_PART = 0.4
"""Of the largest piece's size; what is smaller is taken for the couch."""
_MARGIN_MM = 15.0
_LARGEST = 32767
_STORED_LARGEST = 30000.0

_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True, eq=False)
class PreparedGrid:
    """A source volume's grid, and the grid prepared from it. Make one with `of`."""

    source_shape_kji: tuple[int, int, int]
    source_ijk_to_ras: NDArray[np.float64]
    """(4, 4)."""
    axes: tuple[int, int, int]
    """Source axis (0 = K, 1 = J, 2 = I) behind the prepared K, J, I."""
    flipped: tuple[bool, bool, bool]
    """Whether the prepared K, J, I run against their source axis."""
    box: Box
    """Part kept, in source voxels along the prepared axes."""
    shape_kji: tuple[int, int, int]
    """Of the prepared grid."""
    spacing_kji_mm: tuple[float, float, float]
    """Of the prepared grid."""

    @classmethod
    def of(cls, volume: Volume, contract: InputContract, box: Box | None = None) -> PreparedGrid:
        """Lay the contract's grid over a volume.

        Args:
            volume: the source.
            contract: says the spacings.
            box: part to keep, in source voxels along the canonical axes, as `body_box` gives it; None for all.
        """
        axes, turned = _canonical_axes(volume)
        shape = [volume.shape_kji[a] for a in axes]
        box = box or ((0, shape[0]), (0, shape[1]), (0, shape[2]))
        if any(not 0 <= low < high <= n for (low, high), n in zip(box, shape, strict=True)):
            raise InputError(
                f"The box {box} does not lie in {volume.name or 'the volume'} of {tuple(shape)} voxels."
            )
        lengths = [_length(high - low, volume.spacing_kji_mm[a], wanted)
                   for (low, high), a, wanted in zip(box, axes, contract.spacing_kji_mm, strict=True)]  # fmt: skip
        (k, k_mm), (j, j_mm), (i, i_mm) = lengths
        return cls(volume.shape_kji, volume.ijk_to_ras, axes, turned, box, (k, j, i), (k_mm, j_mm, i_mm))

    @cached_property
    def ijk_to_ras(self) -> NDArray[np.float64]:
        """(4, 4) of the prepared grid."""
        to_source = np.zeros((4, 4))
        to_source[3, 3] = 1.0
        for axis, source in enumerate(self.axes):
            at_zero, step = self._source_index(axis, np.zeros(1))[0], self._step(axis)
            to_source[2 - source, 2 - axis] = -step if self.flipped[axis] else step
            to_source[2 - source, 3] = at_zero
        affine: NDArray[np.float64] = self.source_ijk_to_ras @ to_source
        return affine

    def canonical(self, source_kji: NDArray[_T]) -> NDArray[_T]:
        """View of a source array along the prepared axes: flipped and cropped, not resampled."""
        turned = source_kji.transpose(self.axes)
        flips = tuple(slice(None, None, -1) if r else slice(None) for r in self.flipped)
        return turned[flips][tuple(slice(low, high) for low, high in self.box)]

    def image(
        self, source_kji: NDArray[Any], cancelled: Callable[[], bool] | None = None
    ) -> NDArray[np.float32]:
        """Bring intensities to the prepared grid.

        Linear where the grid becomes finer; where it becomes coarser each voxel averages those it covers (a triangle
        as wide as two of the new voxels), so noise does not alias. Equal spacings copy.

        Args:
            source_kji: on the source grid.
            cancelled: asked between slices; True ends the work with `Cancelled`.

        Returns:
            `shape_kji` float32.
        """
        part = self.canonical(source_kji)
        return _along_all([self._to_prepared(axis) for axis in range(3)], part, cancelled)

    def labels(self, source_kji: NDArray[_T], keep: Mapping[int, Sequence[int]] | None = None) -> NDArray[_T]:
        """Bring labels to the prepared grid: each voxel takes the nearest source voxel's.

        Args:
            source_kji: on the source grid.
            keep: source slices, by source axis, that should not be lost where the grid becomes coarser: the prepared
                slice nearest to such a slice takes it in place of a nearer one that is not kept.
        """
        picks = [self._nearest(axis, (keep or {}).get(self.axes[axis], ())) for axis in range(3)]
        return np.ascontiguousarray(self.canonical(source_kji)[np.ix_(*picks)])

    def to_native(self, prepared: NDArray[Any], outside: float = 0.0) -> NDArray[np.float32]:
        """Bring probabilities back onto the source grid, linearly; exact where the spacings are equal.

        Args:
            prepared: (..., `shape_kji`), e.g. with the classes in front.
            outside: what stands where the source was cropped away.

        Returns:
            (..., `source_shape_kji`) float32.
        """
        values = np.asarray(prepared)
        result = np.full((*values.shape[:-3], *self.source_shape_kji), outside, np.float32)
        weights = [self._to_source(axis) for axis in range(3)]
        for index in np.ndindex(*values.shape[:-3]):
            self.canonical(result[index])[...] = _along_all(weights, values[index], None)
        return result

    def final_slices(self, done: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Slices of the source, across the axis behind K, that depend on finished prepared slices only.

        Args:
            done: one bool per prepared slice.

        Returns:
            One bool per source slice; those that were cropped away depend on nothing.
        """
        low, high = self.box[0]
        weights = self._to_source(0)
        inside = done if weights is None else (abs(weights) @ (~done).astype(np.float32)) == 0
        result = np.ones(self.source_shape_kji[self.axes[0]], bool)
        (result[::-1] if self.flipped[0] else result)[low:high] = inside
        return result

    def slices_to_native(
        self, prepared: NDArray[Any], source_slices: Sequence[int], outside: float = 0.0
    ) -> NDArray[np.float32]:
        """Bring some slices back, as `to_native` brings all.

        Args:
            prepared: (..., `shape_kji`).
            source_slices: across the source axis behind the prepared K.
            outside: what stands where the source was cropped away.

        Returns:
            (..., slices, rows, columns) float32, the rows and columns those of `take_slice`.
        """
        (low, high), (j_low, j_high), (i_low, i_high) = self.box
        rows = np.array([self._turned(0, index) - low for index in source_slices])
        kept = np.flatnonzero((rows >= 0) & (rows < high - low))
        by_k = self._to_source(0)
        part = by_k[rows[kept]] if by_k is not None and len(kept) else None
        used = rows[kept] if part is None else np.unique(part.indices)
        weights = [None if part is None else part[:, used], self._to_source(1), self._to_source(2)]
        height, width = (self.source_shape_kji[axis] for axis in self.axes[1:])
        result = np.full((*prepared.shape[:-3], len(rows), height, width), outside, np.float32)
        turned = result[(..., *(slice(None, None, -1) if flip else slice(None) for flip in self.flipped[1:]))]
        if len(kept):
            for index in np.ndindex(*prepared.shape[:-3]):
                found = _along_all(weights, prepared[index][used], None)
                turned[index][kept, j_low:j_high, i_low:i_high] = found
        return result if self.axes[1] < self.axes[2] else np.swapaxes(result, -1, -2)

    def labels_to_native(self, prepared: NDArray[_T], outside: int = 0) -> NDArray[_T]:
        """Bring (..., `shape_kji`) labels back onto the source grid: each voxel takes the nearest one's."""
        result = np.full((*prepared.shape[:-3], *self.source_shape_kji), outside, prepared.dtype)
        picks = [self._nearest_back(axis) for axis in range(3)]
        for index in np.ndindex(*prepared.shape[:-3]):
            self.canonical(result[index])[...] = prepared[index][np.ix_(*picks)]
        return result

    def prepared_slice(self, source_axis: int, index: int) -> int | None:
        """Slice of the prepared grid nearest to a source slice; None where it was cropped away.

        The prepared axis is the one whose entry in `axes` is `source_axis`.
        """
        axis = self.axes.index(source_axis)
        low, high = self.box[axis]
        turned = self._turned(axis, index)
        return int(self._nearest_back(axis)[turned - low]) if low <= turned < high else None

    def slices(self, axis: int, source: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Slices of the prepared grid that show at least one of some source slices.

        Args:
            axis: of the prepared grid.
            source: one bool per slice of the source axis `axes[axis]`.

        Returns:
            One bool per slice of the prepared axis.
        """
        low, high = self.box[axis]
        inside = (source[::-1] if self.flipped[axis] else source)[low:high]
        shown: NDArray[np.bool_] = inside[self._nearest(axis, ())]
        shown[self._nearest_back(axis)[inside]] = True
        return shown

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the inverse."""
        return {
            "source_shape_kji": self.source_shape_kji,
            "source_ijk_to_ras": self.source_ijk_to_ras.tolist(),
            "axes": self.axes,
            "flipped": self.flipped,
            "box": self.box,
            "shape_kji": self.shape_kji,
            "spacing_kji_mm": self.spacing_kji_mm,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PreparedGrid:
        """Read what `to_json` gave."""
        fields: dict[str, Any] = {name: tuple(value) for name, value in values.items()}
        fields["source_ijk_to_ras"] = np.array(values["source_ijk_to_ras"], np.float64)
        fields["box"] = tuple(tuple(span) for span in values["box"])
        return cls(**fields)

    def _turned(self, axis: int, source_index: int) -> int:
        """A source slice's index along the prepared axis, before the crop."""
        return (
            self.source_shape_kji[self.axes[axis]] - 1 - source_index if self.flipped[axis] else source_index
        )

    def _step(self, axis: int) -> float:
        """Source voxels per prepared voxel."""
        return self.spacing_kji_mm[axis] / spacing_of(self.source_ijk_to_ras)[self.axes[axis]]

    def _positions(self, axis: int) -> NDArray[np.float64]:
        """Where the prepared voxels lie, in voxels of the box; both have the same middle."""
        low, high = self.box[axis]
        count = self.shape_kji[axis]
        first = (high - low - 1 - (count - 1) * self._step(axis)) / 2
        return np.linspace(first, high - low - 1 - first, count, dtype=np.float64)

    def _source_index(self, axis: int, index: NDArray[np.float64]) -> NDArray[np.float64]:
        first, step = float(self._positions(axis)[0]) + self.box[axis][0], self._step(axis)
        if self.flipped[axis]:
            first, step = self.source_shape_kji[self.axes[axis]] - 1 - first, -step
        return index * step + first

    def _positions_back(self, axis: int) -> NDArray[np.float64]:
        """Where the voxels of the box lie, in prepared voxels."""
        low, high = self.box[axis]
        first, step = float(self._positions(axis)[0]), self._step(axis)
        return np.linspace(-first / step, (high - low - 1 - first) / step, high - low, dtype=np.float64)

    def _is_copied(self, axis: int) -> bool:
        low, high = self.box[axis]
        return self.shape_kji[axis] == high - low and abs(self._step(axis) - 1) < _SAME_SPACING

    def _to_prepared(self, axis: int) -> Any:
        low, high = self.box[axis]
        return (
            None if self._is_copied(axis) else _weights(self._positions(axis), high - low, self._step(axis))
        )

    def _to_source(self, axis: int) -> Any:
        if self._is_copied(axis):
            return None
        return _weights(self._positions_back(axis), self.shape_kji[axis], 1 / self._step(axis))

    def _nearest(self, axis: int, keep: Sequence[int]) -> NDArray[np.intp]:
        low, high = self.box[axis]
        picks = _nearest_index(self._positions(axis), high - low)
        kept = {self._turned(axis, index) - low for index in keep}
        for inside in sorted(kept.intersection(range(high - low)).difference(picks.tolist())):
            place = self._nearest_back(axis)[inside]
            if int(picks[place]) not in kept:
                picks[place] = inside
        return picks

    def _nearest_back(self, axis: int) -> NDArray[np.intp]:
        return _nearest_index(self._positions_back(axis), self.shape_kji[axis])


def prepare_image(
    volume: Volume, contract: InputContract, cancelled: Callable[[], bool] | None = None
) -> tuple[NDArray[np.int16], PreparedGrid]:
    """Bring a volume to a contract's grid: canonical, cropped to the body, resampled.

    Returns:
        (K, J, I) int16 intensities as `storable` scales them, and the grid they lie on.
    """
    grid = PreparedGrid.of(volume, contract, body_box(volume))
    source, factor = volume.voxels_kji, storable(volume)
    if source.dtype == np.int16 and all(grid._is_copied(axis) for axis in range(3)):
        return np.ascontiguousarray(grid.canonical(source)), grid
    values = grid.image(source, cancelled)
    values *= np.float32(factor)
    np.clip(np.rint(values, out=values), -_LARGEST, _LARGEST, out=values)
    return values.astype(np.int16), grid


def storable(volume: Volume) -> float:
    """Factor that makes whole numbers of int16 size of a volume's intensities.

    1 for a CT and for whole numbers that fit. Fractions of another modality, where only ratios mean anything, are
    scaled so that the largest becomes 30000; zero stays zero.
    """
    if volume.voxels_kji.dtype == np.int16 or looks_like_ct(volume):
        return 1.0
    return _STORED_LARGEST / max(abs(float(volume.voxels_kji.min())), abs(float(volume.voxels_kji.max())))


def scan_id(volume: Volume) -> str:
    """SHA-256 (hex) of what a volume shows: its voxels in canonical orientation and their spacing.

    Equal for a DICOM series and the NIfTI file made of it, whichever way round its axes are stored; where it lies in
    space does not count.
    """
    grid = PreparedGrid.of(volume, InputContract())
    whole = grid.canonical(volume.voxels_kji)
    spacing = [round(mm, 3) for mm in grid.spacing_kji_mm]
    factor = np.float32(storable(volume))
    digest = hashlib.sha256(f"{whole.shape} {spacing}".encode())
    for slab in whole:
        if slab.dtype != np.int16:
            slab = np.clip(np.rint(slab * factor), -_LARGEST, _LARGEST).astype(np.int16)
        digest.update(np.ascontiguousarray(slab).astype("<i2", copy=False).data)
    return digest.hexdigest()


def body_box(volume: Volume) -> Box | None:
    """Part of a CT that holds the body, in voxels along the canonical axes; None for the whole volume.

    The largest connected piece denser than -500 HU, others of nearly its size, as two legs are, and a margin of 15 mm;
    looked for on a grid of about 3 mm. None where the volume is no CT, or shows nothing that dense.
    """
    if not looks_like_ct(volume):
        return None
    grid = PreparedGrid.of(volume, InputContract())
    steps = [max(1, int(_BODY_STEP_MM / mm)) for mm in grid.spacing_kji_mm]
    voxels = grid.canonical(volume.voxels_kji)
    pieces, count = ndimage.label(voxels[tuple(slice(None, None, step) for step in steps)] > _BODY_HU)
    if count == 0:
        return None
    sizes = np.bincount(pieces.ravel())[1:]
    boxes = ndimage.find_objects(pieces)
    parts = [boxes[n] for n in np.flatnonzero(sizes >= _BODY_PART * sizes.max())]
    spans = []
    for axis, (step, mm, length) in enumerate(zip(steps, grid.spacing_kji_mm, voxels.shape, strict=True)):
        first, last = min(part[axis].start for part in parts), max(part[axis].stop for part in parts) - 1
        margin = math.ceil(_MARGIN_MM / mm)
        spans.append((max(0, first * step - margin), min(length, last * step + 1 + margin)))
    return spans[0], spans[1], spans[2]


def _canonical_axes(volume: Volume) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    axes = volume.axis_of("axial"), volume.axis_of("coronal"), volume.axis_of("sagittal")
    ascends = [bool(volume.ijk_to_ras[2 - n, 2 - axis] >= 0) for n, axis in enumerate(axes)]
    return axes, (not ascends[0], not ascends[1], not ascends[2])


def _length(count: int, spacing_mm: float, wanted_mm: float | None) -> tuple[int, float]:
    """Voxels and spacing of a prepared axis; the new voxels cover at least the old ones."""
    if wanted_mm is None or abs(wanted_mm / spacing_mm - 1) < _SAME_SPACING:
        return count, spacing_mm
    return max(1, math.ceil(count * spacing_mm / wanted_mm - _SAME_SPACING)), float(wanted_mm)


def _nearest_index(positions: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    return np.clip(np.ceil(positions - 0.5 - 1e-9), 0, count - 1).astype(np.intp)


def _weights(positions: NDArray[np.float64], count: int, step: float) -> Any:
    """(len(positions), count) sparse rows that interpolate at positions; beyond an end the last voxel goes on."""
    reach = max(1.0, step)
    width = math.ceil(reach) + 1
    columns = np.floor(positions)[:, None].astype(np.intp) + np.arange(1 - width, width + 1)
    values = np.maximum(0.0, 1.0 - np.abs(columns - positions[:, None]) / reach)
    values /= values.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(len(positions)), columns.shape[1])
    inside = np.clip(columns, 0, count - 1).ravel()
    matrix = sparse.csr_array((values.ravel().astype(np.float32), (rows, inside)), (len(positions), count))
    matrix.sum_duplicates()
    return matrix


def _along_all(
    weights: Sequence[Any], values: NDArray[Any], cancelled: Callable[[], bool] | None
) -> NDArray[np.float32]:
    """Apply one matrix per axis (None keeps the axis) to (K, J, I), slice by slice to save memory."""
    by_k, by_j, by_i = weights
    rows = values.shape[1] if by_j is None else by_j.shape[0]
    columns = values.shape[2] if by_i is None else by_i.shape[0]
    flat = np.empty((values.shape[0], rows, columns), np.float32)
    for k, plane in enumerate(values):
        if cancelled is not None and cancelled():
            raise Cancelled("The preparation was cancelled.")
        plane = plane.astype(np.float32)
        plane = plane if by_j is None else by_j @ plane
        flat[k] = plane if by_i is None else (by_i @ np.ascontiguousarray(plane.T)).T
    if by_k is None:
        return flat
    result = np.empty((by_k.shape[0], rows, columns), np.float32)
    for row in range(rows):
        result[:, row] = by_k @ flat[:, row]
    return result

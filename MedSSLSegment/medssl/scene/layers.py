"""A segment's labelmap as numpy sees it, placed on a volume's own voxel grid.

Reading the node has to happen where the scene lives; what a `Layer` holds after that is plain numpy, so that the slow
part of looking at a segment can be done in another thread. The memory is the node's: nothing is copied.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util import numpy_support

from ..errors import InputError
from ..volume import Volume, as_stack, take_slice

__all__ = [
    "BINARY_LABELMAP",
    "LabelStack",
    "Layer",
    "Marks",
    "array_kji",
    "node_to_world",
    "slice_fingerprint",
    "to_array",
    "to_matrix",
]

BINARY_LABELMAP = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
_GRID_TOLERANCE_VOXELS = 0.05

Marks = Mapping[tuple[int, int], int]
"""{(axis, slice index): fingerprint of the mask that was put there}."""


@dataclass(frozen=True, eq=False)
class Layer:
    """The labelmap that holds a segment, perhaps shared with others."""

    image: Any
    """vtkOrientedImageData; empty when no segment on it has a voxel."""
    label: int
    """The segment's value in it."""
    offset_ijk: tuple[int, int, int]
    """Volume index = labelmap index + offset."""
    first_kji: tuple[int, int, int]
    """Volume index of its first voxel."""
    voxels_kji: NDArray[Any] | None
    """(K, J, I) the labelmap's own memory; None when it is empty."""

    @classmethod
    def of(cls, segmentation_node: Any, segment_id: str, volume: Volume) -> Layer:
        """Look at a segment's labelmap.

        Raises:
            InputError: no such segment, it is stored as a surface, or it lies on another grid.
        """
        return cls.of_all(segmentation_node, [segment_id], volume)[0]

    @classmethod
    def of_all(cls, segmentation_node: Any, segment_ids: Iterable[str], volume: Volume) -> list[Layer]:
        """Look at the labelmaps of several segments; at one that they share, once.

        Raises:
            InputError: as `of`.
        """
        looked_at: dict[Any, Layer] = {}
        layers = []
        for segment_id in segment_ids:
            image, label = _labelmap(segmentation_node, segment_id)
            if image not in looked_at:
                looked_at[image] = cls._on(segmentation_node, image, volume)
            layers.append(replace(looked_at[image], label=label))
        return layers

    @classmethod
    def _on(cls, segmentation_node: Any, image: Any, volume: Volume) -> Layer:
        if image.IsEmpty():
            return cls(image, 0, (0, 0, 0), (0, 0, 0), None)
        offset = _grid_offset(segmentation_node, image, volume)
        extent = image.GetExtent()
        k, j, i = (extent[2 * a] + offset[a] for a in (2, 1, 0))
        return cls(image, 0, offset, (k, j, i), array_kji(image))

    @property
    def shape_kji(self) -> tuple[int, int, int]:
        """Number of voxels of the labelmap; none when it is empty."""
        if self.voxels_kji is None:
            return 0, 0, 0
        k, j, i = self.voxels_kji.shape
        return k, j, i

    def box(self, shape_kji: Sequence[int]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """(first voxel, shape), both (k, j, i), of the part of a volume that the labelmap covers."""
        low, high = self._covered((0, 0, 0), shape_kji)
        k, j, i = (max(h - lo, 0) for lo, h in zip(low, high, strict=True))
        return (low[0], low[1], low[2]), (k, j, i)

    def values_in(self, start_kji: Sequence[int], shape_kji: Sequence[int]) -> NDArray[Any] | None:
        """A view of the labels in a box of the volume; None where the labelmap does not hold all of the box."""
        if self.voxels_kji is None:
            return None
        low, high = self._covered(start_kji, shape_kji)
        stop = [s + n for s, n in zip(start_kji, shape_kji, strict=True)]
        if low != list(start_kji) or high != stop:
            return None
        return self.voxels_kji[_slices(low, high, self.first_kji)]

    def mask_in(
        self, start_kji: Sequence[int], shape_kji: Sequence[int], labels: Sequence[int] = ()
    ) -> NDArray[np.bool_]:
        """The segment in a box of the volume, (K, J, I) bool; False where the labelmap does not reach.

        Args:
            start_kji: the box's first voxel.
            shape_kji: of the box.
            labels: of all segments of the labelmap that are meant; empty for this one.
        """
        mask = np.zeros(tuple(shape_kji), bool)
        if self.voxels_kji is None:
            return mask
        low, high = self._covered(start_kji, shape_kji)
        if all(lo < h for lo, h in zip(low, high, strict=True)):
            into = _slices(low, high, start_kji)
            part = _slices(low, high, self.first_kji)
            if len(labels) > 1:
                mask[into] = np.isin(self.voxels_kji[part], labels)
            else:
                np.equal(self.voxels_kji[part], labels[0] if labels else self.label, out=mask[into])
        return mask

    def slice_mask(
        self, shape_kji: Sequence[int], axis: int, index: int, labels: Sequence[int] = ()
    ) -> NDArray[np.bool_]:
        """The segment, or those of `labels`, on one slice of a volume of that shape, (H, W) bool."""
        start, shape = [0, 0, 0], list(shape_kji)
        start[axis], shape[axis] = index, 1
        return take_slice(self.mask_in(start, shape, labels), axis, 0)

    def drawn(self, shape_kji: Sequence[int], marks: Marks) -> tuple[tuple[int, int, int], NDArray[np.bool_]]:
        """What the user drew: slices that were predicted and not changed since are left out.

        Args:
            shape_kji: of the volume.
            marks: what was predicted.

        Returns:
            (first voxel (k, j, i), (K, J, I) bool): a box of the volume that holds all of it; may have no voxels.
        """
        start, shape = self.box(shape_kji)
        drawn = self.mask_in(start, shape)
        for (axis, index), mark in marks.items():
            within = index - start[axis]
            if not 0 <= within < shape[axis]:
                continue
            if slice_fingerprint(self.slice_mask(shape_kji, axis, index)) == mark:
                as_stack(drawn, axis)[within] = False
        return start, drawn

    def _covered(self, start_kji: Sequence[int], shape_kji: Sequence[int]) -> tuple[list[int], list[int]]:
        """First voxel and one past the last (k, j, i) of what a box and the labelmap have in common."""
        low = [max(f, s) for f, s in zip(self.first_kji, start_kji, strict=True)]
        ends = zip(self.first_kji, self.shape_kji, start_kji, shape_kji, strict=True)
        return low, [min(f + n, s + m) for f, n, s, m in ends]


class LabelStack:
    """One label for each voxel, of segments that may overlap: where they do, the smaller one has the voxel.

    Args:
        shape_kji: of the volume.
        layers: of the segments; the first gets the label 1, the next one 2.
    """

    def __init__(self, shape_kji: tuple[int, int, int], layers: Sequence[Layer]) -> None:
        self.labels_kji: NDArray[Any] = np.zeros(shape_kji, np.uint8 if len(layers) < 256 else np.uint16)
        """(K, J, I) 0 is background."""
        self._sizes, self._left = [0], [0]
        for layer in layers:
            self._put(layer)

    def _put(self, layer: Layer) -> None:
        start, shape = layer.box(self.labels_kji.shape)
        labels = self.labels_kji[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))]
        mask, label = layer.mask_in(start, shape), len(self._sizes)
        there = labels[mask]
        is_mine = (there == 0) | (np.array(self._sizes)[there] > len(there))
        for other, count in enumerate(np.bincount(there[is_mine], minlength=label)):
            self._left[other] -= int(count)
        labels[mask] = np.where(is_mine, label, there)
        self._sizes.append(len(there))
        self._left.append(int(np.count_nonzero(is_mine)))

    def gave_way(self) -> list[int]:
        """Labels of the segments that have lost voxels to others."""
        return [n for n in range(1, len(self._sizes)) if self._left[n] < self._sizes[n]]

    def covered(self) -> list[int]:
        """Labels of the segments of which nothing is left."""
        return [n for n in self.gave_way() if self._left[n] == 0]


def slice_fingerprint(mask_hw: NDArray[np.bool_]) -> int:
    """A 32-bit checksum of a slice's mask, to tell a predicted slice from one the user has changed since."""
    return zlib.crc32(np.packbits(mask_hw).tobytes())


def array_kji(image: Any) -> NDArray[Any]:
    """View a VTK image's scalars as (K, J, I)."""
    i, j, k = image.GetDimensions()
    scalars: NDArray[Any] = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    return scalars.reshape(k, j, i)


def node_to_world(node: Any) -> NDArray[np.float64]:
    """(4, 4) from a node's own coordinates to the world."""
    transform_node = node.GetParentTransformNode()
    if transform_node is None:
        return np.eye(4)
    if not transform_node.IsTransformToWorldLinear():
        raise InputError(
            f"'{node.GetName()}' is under the warping transform '{transform_node.GetName()}';"
            " harden the transform or take the node out of it."
        )
    matrix = vtk.vtkMatrix4x4()
    transform_node.GetMatrixTransformToWorld(matrix)
    return to_array(matrix)


def to_array(matrix: Any) -> NDArray[np.float64]:
    """A vtkMatrix4x4 as (4, 4)."""
    return np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])


def to_matrix(array: NDArray[np.floating[Any]]) -> Any:
    """(4, 4) as a vtkMatrix4x4."""
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy([float(v) for v in array.ravel()])
    return matrix


def _slices(low: Sequence[int], high: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(lo - o, h - o) for lo, h, o in zip(low, high, origin, strict=True))


def _labelmap(segmentation_node: Any, segment_id: str) -> tuple[Any, int]:
    """(vtkOrientedImageData, label value) of a segment."""
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    if segment is None:
        raise InputError(
            f"Segmentation '{segmentation_node.GetName()}' has no segment '{segment_id}';"
            " choose one of its segments."
        )
    image = segment.GetRepresentation(BINARY_LABELMAP)
    stored_as = segmentation_node.GetSegmentation().GetSourceRepresentationName()
    if image is None or stored_as != BINARY_LABELMAP:
        raise InputError(
            f"Segmentation '{segmentation_node.GetName()}' is stored as '{stored_as}';"
            " make Binary labelmap its source representation in the Segmentations module."
        )
    return image, segment.GetLabelValue()


def _grid_offset(segmentation_node: Any, image: Any, volume: Volume) -> tuple[int, int, int]:
    """Whole voxels (i, j, k) from a labelmap's indices to a volume's; InputError if the grids differ."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    to_volume = np.linalg.solve(volume.ijk_to_ras, node_to_world(segmentation_node) @ to_array(matrix))
    offset = np.rint(to_volume[:3, 3])
    drift = np.abs(to_volume[:3, :3] - np.eye(3)) @ np.array(volume.shape_kji[::-1])
    if max(drift.max(), np.abs(to_volume[:3, 3] - offset).max()) > _GRID_TOLERANCE_VOXELS:
        raise InputError(
            f"Segmentation '{segmentation_node.GetName()}' lies on another voxel grid than volume"
            f" '{volume.name}'; choose the volume it was drawn on, or start a new segmentation."
        )
    i, j, k = (int(v) for v in offset)
    return i, j, k

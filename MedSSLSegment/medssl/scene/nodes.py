"""MRML nodes to arrays and back: volumes, segments, and slices written into a segment.

Everything works on the real MRML classes, inside 3D Slicer and in plain Python with the ``slicer-core``
package. A segment is never resampled: its labelmap must lie on the volume's own voxels (cropped or shifted by
whole voxels is fine), so what is read back is bit for bit what was written. Positions are in the world (RAS,
mm), after any parent transform.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util import numpy_support

from ..errors import InputError, MedSSLError
from ..volume import Volume, as_stack, take_slice

__all__ = [
    "Overlap",
    "SegmentInfo",
    "annotated_slices",
    "create_segmentation_node",
    "guess_axis",
    "list_segments",
    "predicted_slices",
    "read_drawn",
    "read_segment",
    "read_slice",
    "read_volume_node",
    "set_reference_geometry",
    "slice_fingerprint",
    "volume_stamp",
    "write_predicted_slices",
    "write_slices",
]

_BINARY_LABELMAP = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
_PREDICTED_TAG = "MedSSLSegment.Predicted"
_GRID_TOLERANCE_VOXELS = 0.05


class Overlap(Enum):
    """What happens where a written slice meets another segment."""

    ALLOW = "allow"
    """Both segments keep the voxel: they overlap."""
    KEEP_OTHERS = "keep-others"
    """The other segment keeps the voxel; it is left out of what is written."""
    OVERWRITE = "overwrite"
    """The written segment takes the voxel; it is erased from the other."""


@dataclass(frozen=True)
class SegmentInfo:
    """A segment as a list shows it."""

    id: str
    """Unique in its segmentation; stays the same when the segment is renamed."""
    name: str
    """What the user calls it; need not be unique."""
    color_rgb: tuple[float, float, float]
    """0 .. 1 each."""


# Volumes


def read_volume_node(volume_node: Any) -> Volume:
    """Read a scalar volume node without copying int16 or float32 voxels.

    The result shares the node's memory: read it again after the node's image has changed.

    Args:
        volume_node: vtkMRMLScalarVolumeNode; a linear parent transform moves the grid, not the voxels.

    Raises:
        InputError: no image, several values per voxel, a warping transform, or anything `Volume` refuses.
    """
    name = volume_node.GetName()
    image = volume_node.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0:
        raise InputError(f"Volume '{name}' holds no image; load one or choose another volume.")
    if image.GetNumberOfScalarComponents() != 1:
        raise InputError(
            f"Volume '{name}' has {image.GetNumberOfScalarComponents()} values per voxel;"
            " choose a volume with one (a color image cannot be used)."
        )
    return Volume(_array_kji(image), _ijk_to_world(volume_node), name)


def volume_stamp(volume_node: Any) -> tuple[object, ...]:
    """Compares equal as long as a volume node has the same voxels in the same place."""
    image = volume_node.GetImageData()
    when = None if image is None else image.GetMTime()
    return volume_node, image, when, volume_node.GetName(), _ijk_to_world(volume_node).tobytes()


def _ijk_to_world(volume_node: Any) -> NDArray[np.float64]:
    local = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(local)
    return _node_to_world(volume_node) @ _to_array(local)


def _array_kji(image: Any) -> NDArray[Any]:
    """View a VTK image's scalars as (K, J, I)."""
    i, j, k = image.GetDimensions()
    scalars: NDArray[Any] = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    return scalars.reshape(k, j, i)


def _node_to_world(node: Any) -> NDArray[np.float64]:
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
    return _to_array(matrix)


def _to_array(matrix: Any) -> NDArray[np.float64]:
    return np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])


def _to_matrix(array: NDArray[np.floating[Any]]) -> Any:
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy([float(v) for v in array.ravel()])
    return matrix


# Segmentations


def create_segmentation_node(scene: Any, volume_node: Any, name: str = "") -> Any:
    """Add an empty segmentation node on a volume's grid, beside the volume (same parent transform)."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name or f"{volume_node.GetName()} segmentation")
    node.CreateDefaultDisplayNodes()
    node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    set_reference_geometry(node, volume_node)
    return node


def set_reference_geometry(segmentation_node: Any, volume_node: Any) -> None:
    """Tell a segmentation which volume's grid it lives on, unless it already has one."""
    parameter = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    if not segmentation_node.GetSegmentation().GetConversionParameter(parameter):
        segmentation_node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)


def list_segments(segmentation_node: Any) -> tuple[SegmentInfo, ...]:
    """The segments of a node, in the order the user sees."""
    segmentation = segmentation_node.GetSegmentation()
    ids = segmentation.GetSegmentIDs()
    return tuple(_segment_info(segmentation.GetSegment(i), i) for i in ids)


def _segment_info(segment: Any, segment_id: str) -> SegmentInfo:
    red, green, blue = segment.GetColor()
    return SegmentInfo(segment_id, segment.GetName(), (red, green, blue))


def read_segment(segmentation_node: Any, segment_id: str, volume: Volume) -> NDArray[np.bool_]:
    """Read a segment as a mask on a volume's own grid.

    Args:
        segmentation_node: vtkMRMLSegmentationNode.
        segment_id: one of its segments.
        volume: the volume it was drawn on.

    Returns:
        (K, J, I) bool; all False for an empty segment.

    Raises:
        InputError: no such segment, it is stored as a surface, or it lies on another grid.
    """
    layer = _Layer.of(segmentation_node, segment_id, volume)
    return layer.mask_in((0, 0, 0), volume.shape_kji)


def read_slice(
    segmentation_node: Any, segment_id: str, volume: Volume, axis: int, index: int
) -> NDArray[np.bool_]:
    """One slice of `read_segment`, (H, W) bool, without reading the rest."""
    return _Layer.of(segmentation_node, segment_id, volume).slice_mask(volume, axis, index)


def read_drawn(
    segmentation_node: Any, segment_id: str, volume: Volume
) -> tuple[tuple[int, int, int], NDArray[np.bool_]]:
    """What the user drew of a segment: slices that were predicted and not changed since are left out.

    Returns:
        (first voxel (k, j, i), (K, J, I) bool): a box of the volume that holds all of it; may have no voxels.
    """
    layer = _Layer.of(segmentation_node, segment_id, volume)
    start, shape = layer.box(volume)
    drawn = layer.mask_in(start, shape)
    for (axis, index), mark in predicted_slices(segmentation_node, segment_id).items():
        within = index - start[axis]
        if not 0 <= within < shape[axis]:
            continue
        if slice_fingerprint(layer.slice_mask(volume, axis, index)) == mark:
            as_stack(drawn, axis)[within] = False
    return start, drawn


@dataclass(frozen=True)
class _Layer:
    """The labelmap that holds a segment, perhaps shared with others, placed on a volume's grid."""

    image: Any
    """vtkOrientedImageData; empty when no segment on it has a voxel."""
    label: int
    """The segment's value in it."""
    offset_ijk: tuple[int, int, int]
    """Volume index = labelmap index + offset."""

    @classmethod
    def of(cls, segmentation_node: Any, segment_id: str, volume: Volume) -> _Layer:
        image, label = _labelmap(segmentation_node, segment_id)
        if image.IsEmpty():
            return cls(image, label, (0, 0, 0))
        return cls(image, label, _grid_offset(segmentation_node, image, volume))

    def box(self, volume: Volume) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """(first voxel, shape), both (k, j, i), of the part of the volume that the labelmap covers."""
        if self.image.IsEmpty():
            return (0, 0, 0), (0, 0, 0)
        low, high = self._covered((0, 0, 0), volume.shape_kji)
        k, j, i = (max(h - lo, 0) for lo, h in zip(low, high, strict=True))
        return (low[0], low[1], low[2]), (k, j, i)

    def mask_in(self, start_kji: Sequence[int], shape_kji: Sequence[int]) -> NDArray[np.bool_]:
        """The segment in a box of the volume, (K, J, I) bool; False where the labelmap does not reach."""
        mask = np.zeros(tuple(shape_kji), bool)
        if self.image.IsEmpty():
            return mask
        low, high = self._covered(start_kji, shape_kji)
        if all(lo < h for lo, h in zip(low, high, strict=True)):
            into = _slices(low, high, start_kji)
            part = _slices(low, high, self._first_kji())
            np.equal(_array_kji(self.image)[part], self.label, out=mask[into])
        return mask

    def slice_mask(self, volume: Volume, axis: int, index: int) -> NDArray[np.bool_]:
        """The segment on one slice of the volume, (H, W) bool."""
        volume_slice = take_slice(volume.voxels_kji, axis, index)
        start, shape = [0, 0, 0], list(volume_slice.shape)
        start[axis] = index
        shape.insert(axis, 1)
        return take_slice(self.mask_in(start, shape), axis, 0)

    def _first_kji(self) -> list[int]:
        extent = self.image.GetExtent()
        return [extent[2 * a] + self.offset_ijk[a] for a in (2, 1, 0)]

    def _covered(self, start_kji: Sequence[int], shape_kji: Sequence[int]) -> tuple[list[int], list[int]]:
        """First voxel and one past the last (k, j, i) of what a box and the labelmap have in common."""
        first, size = self._first_kji(), self.image.GetDimensions()[::-1]
        low = [max(f, s) for f, s in zip(first, start_kji, strict=True)]
        high = [min(f + n, s + m) for f, n, s, m in zip(first, size, start_kji, shape_kji, strict=True)]
        return low, high


def _slices(low: Sequence[int], high: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(lo - o, h - o) for lo, h, o in zip(low, high, origin, strict=True))


def _segment(segmentation_node: Any, segment_id: str) -> Any:
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    if segment is None:
        raise InputError(
            f"Segmentation '{segmentation_node.GetName()}' has no segment '{segment_id}';"
            " choose one of its segments."
        )
    return segment


def _labelmap(segmentation_node: Any, segment_id: str) -> tuple[Any, int]:
    """(vtkOrientedImageData, label value) of a segment."""
    segment = _segment(segmentation_node, segment_id)
    image = segment.GetRepresentation(_BINARY_LABELMAP)
    stored_as = segmentation_node.GetSegmentation().GetSourceRepresentationName()
    if image is None or stored_as != _BINARY_LABELMAP:
        raise InputError(
            f"Segmentation '{segmentation_node.GetName()}' is stored as '{stored_as}';"
            " make Binary labelmap its source representation in the Segmentations module."
        )
    return image, segment.GetLabelValue()


def _grid_offset(segmentation_node: Any, image: Any, volume: Volume) -> tuple[int, int, int]:
    """Whole voxels (i, j, k) from a labelmap's indices to a volume's; InputError if the grids differ."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    to_volume = np.linalg.solve(volume.ijk_to_ras, _node_to_world(segmentation_node) @ _to_array(matrix))
    offset = np.rint(to_volume[:3, 3])
    drift = np.abs(to_volume[:3, :3] - np.eye(3)) @ np.array(volume.shape_kji[::-1])
    if max(drift.max(), np.abs(to_volume[:3, 3] - offset).max()) > _GRID_TOLERANCE_VOXELS:
        raise InputError(
            f"Segmentation '{segmentation_node.GetName()}' lies on another voxel grid than volume"
            f" '{volume.name}'; choose the volume it was drawn on, or start a new segmentation."
        )
    i, j, k = (int(v) for v in offset)
    return i, j, k


# Which slices the user drew


def annotated_slices(mask_kji: NDArray[np.bool_], axis: int) -> list[int]:
    """Indices of the slices across `axis` that hold any of the mask, ascending."""
    others = tuple(a for a in (0, 1, 2) if a != axis)
    return [int(n) for n in np.flatnonzero(mask_kji.any(axis=others))]


def guess_axis(masks_kji: Iterable[NDArray[np.bool_]]) -> int:
    """The axis the user most likely painted across: the one with the fewest non-empty slices.

    Args:
        masks_kji: (K, J, I) bool each, of the whole volume or of a box of it.
    """
    counts = [0, 0, 0]
    for mask in masks_kji:
        for axis in (0, 1, 2):
            counts[axis] += len(annotated_slices(mask, axis))
    return counts.index(min(counts))


def slice_fingerprint(mask_hw: NDArray[np.bool_]) -> int:
    """A 32-bit checksum of a slice's mask, to tell a predicted slice from one the user has changed since."""
    return zlib.crc32(np.packbits(mask_hw).tobytes())


def predicted_slices(segmentation_node: Any, segment_id: str) -> dict[tuple[int, int], int]:
    """Slices that were filled by the program: {(axis, index): fingerprint of the mask as written}.

    They are kept in a tag of the segment, so they survive saving the scene and follow undo and redo.
    """
    value = vtk.reference("")
    if not _segment(segmentation_node, segment_id).GetTag(_PREDICTED_TAG, value):
        return {}
    entries = (entry.split("/") for entry in str(value).split())
    return {(int(axis), int(index)): int(mark, 16) for axis, index, mark in entries}


def _mark_predicted(segment: Any, slices: Mapping[tuple[int, int], int]) -> None:
    entries = (f"{axis}/{index}/{mark:08x}" for (axis, index), mark in sorted(slices.items()))
    segment.SetTag(_PREDICTED_TAG, " ".join(entries))


# Writing


def write_predicted_slices(
    segmentation_node: Any,
    segment_id: str,
    volume: Volume,
    axis: int,
    masks: Mapping[int, NDArray[np.bool_]],
    overlap: Overlap = Overlap.ALLOW,
) -> None:
    """`write_slices`, noting in the segment that these slices were predicted and not drawn by the user.

    A slice that ends up empty is not noted, and no longer if it was.
    """
    written = write_slices(segmentation_node, segment_id, volume, axis, masks, overlap)
    slices = predicted_slices(segmentation_node, segment_id)
    for index, mask in written.items():
        if mask.any():
            slices[axis, index] = slice_fingerprint(mask)
        else:
            slices.pop((axis, index), None)
    _mark_predicted(_segment(segmentation_node, segment_id), slices)


def write_slices(
    segmentation_node: Any,
    segment_id: str,
    volume: Volume,
    axis: int,
    masks: Mapping[int, NDArray[np.bool_]],
    overlap: Overlap = Overlap.ALLOW,
) -> dict[int, NDArray[np.bool_]]:
    """Make a segment equal to the given masks on the given slices; only the changed box is written.

    Args:
        segmentation_node: vtkMRMLSegmentationNode.
        segment_id: the segment to change.
        volume: the volume whose grid the masks are on.
        axis: slice axis, 0 = K, 1 = J, 2 = I.
        masks: {slice index: (H, W) bool on the grid of `medssl.volume.take_slice`}.
        overlap: what to do where another segment is in the way.

    Returns:
        {slice index: the mask as it ended up}; smaller than what was given only for `Overlap.KEEP_OTHERS`.

    Raises:
        InputError: no such segment or slice, a mask of another shape, or the segment lies on another grid.
    """
    neighbours = [s.id for s in list_segments(segmentation_node) if s.id != segment_id]
    added, erased, written = _Changes(axis), _Changes(axis), {}
    layer = _Layer.of(segmentation_node, segment_id, volume)
    for index, wanted in masks.items():
        current = layer.slice_mask(volume, axis, index)
        if wanted.shape != current.shape:
            raise InputError(f"A slice across axis {axis} has shape {current.shape}, not {wanted.shape}.")
        if overlap is Overlap.KEEP_OTHERS:
            wanted = wanted & ~_union_on_slice(segmentation_node, neighbours, volume, axis, index)
        added.put(index, wanted & ~current)
        erased.put(index, current & ~wanted)
        written[index] = wanted
    if overlap is Overlap.OVERWRITE:
        _erase_from(segmentation_node, neighbours, volume, axis, written)
    _erase(segmentation_node, segment_id, volume, erased)
    _add(segmentation_node, segment_id, volume, added)
    return written


class _Changes:
    """Pixels to change on some slices across one axis, and the smallest box around them."""

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self._slices: dict[int, NDArray[np.bool_]] = {}

    def put(self, index: int, pixels_hw: NDArray[np.bool_]) -> None:
        if pixels_hw.any():
            self._slices[index] = pixels_hw

    def __bool__(self) -> bool:
        return bool(self._slices)

    def box(self) -> tuple[list[int], NDArray[np.uint8]]:
        """(first voxel (k, j, i), (K, J, I) array of the box: 1 where a voxel changes)."""
        rows = np.flatnonzero(np.any([s.any(axis=1) for s in self._slices.values()], axis=0))
        cols = np.flatnonzero(np.any([s.any(axis=0) for s in self._slices.values()], axis=0))
        lowest, highest = min(self._slices), max(self._slices)
        start = [int(rows[0]), int(cols[0])]
        shape = [int(rows[-1]) + 1 - start[0], int(cols[-1]) + 1 - start[1]]
        within = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
        start.insert(self.axis, lowest)
        shape.insert(self.axis, highest + 1 - lowest)
        box = np.zeros(shape, np.uint8)
        for index, pixels in self._slices.items():
            as_stack(box, self.axis)[index - lowest] = pixels[within]
        return start, box


def _union_on_slice(
    segmentation_node: Any, segment_ids: Iterable[str], volume: Volume, axis: int, index: int
) -> NDArray[np.bool_]:
    union = np.zeros(take_slice(volume.voxels_kji, axis, index).shape, bool)
    for segment_id in segment_ids:
        union |= read_slice(segmentation_node, segment_id, volume, axis, index)
    return union


def _erase_from(
    segmentation_node: Any,
    segment_ids: Iterable[str],
    volume: Volume,
    axis: int,
    masks: Mapping[int, NDArray[np.bool_]],
) -> None:
    """Take the masks' voxels from other segments; what was predicted there stays known as predicted."""
    for segment_id in segment_ids:
        layer = _Layer.of(segmentation_node, segment_id, volume)
        before = {index: layer.slice_mask(volume, axis, index) for index in masks}
        lost = _Changes(axis)
        for index, mask in masks.items():
            lost.put(index, before[index] & mask)
        if not lost:
            continue
        _erase(segmentation_node, segment_id, volume, lost)
        marks = predicted_slices(segmentation_node, segment_id)
        for index, mask in masks.items():
            if marks.get((axis, index)) == slice_fingerprint(before[index]):
                marks[axis, index] = slice_fingerprint(before[index] & ~mask)
        if marks:
            _mark_predicted(_segment(segmentation_node, segment_id), marks)


def _add(segmentation_node: Any, segment_id: str, volume: Volume, changes: _Changes) -> None:
    if not changes:
        return
    start, box = changes.box()
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    # No segment is named as one to overwrite, so Slicer moves this one to its own layer before it covers one.
    _modify(segmentation_node, segment_id, volume, start, box, logic.MODE_MERGE_MASK, ())


def _erase(segmentation_node: Any, segment_id: str, volume: Volume, changes: _Changes) -> None:
    if not changes:
        return
    start, box = changes.box()
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    # Erasing takes only the segment's own voxels; naming the others keeps it on the layer they share.
    others = [s.id for s in list_segments(segmentation_node) if s.id != segment_id]
    _modify(segmentation_node, segment_id, volume, start, 1 - box, logic.MODE_MERGE_MIN, others)


def _modify(
    segmentation_node: Any,
    segment_id: str,
    volume: Volume,
    start_kji: Sequence[int],
    box_kji: NDArray[np.uint8],
    mode: int,
    overwrite: Sequence[str],
) -> None:
    """Merge a small labelmap into a segment with Slicer's logic, which keeps layers and surfaces right."""
    layer = _Layer.of(segmentation_node, segment_id, volume)
    image = _oriented_image(segmentation_node, layer, volume, start_kji, box_kji)
    done = slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(
        image, segmentation_node, segment_id, mode, image.GetExtent(), False, list(overwrite)
    )
    if not done:
        raise MedSSLError(
            f"3D Slicer could not change segment '{_segment(segmentation_node, segment_id).GetName()}';"
            " the error log says why."
        )


def _oriented_image(
    segmentation_node: Any,
    layer: _Layer,
    volume: Volume,
    start_kji: Sequence[int],
    box_kji: NDArray[np.uint8],
) -> Any:
    """A box of the volume as vtkOrientedImageData on the layer's own grid, so that Slicer never resamples."""
    image = slicer.vtkOrientedImageData()
    extent: list[int] = []
    for axis, offset in zip((2, 1, 0), layer.offset_ijk, strict=True):
        first = start_kji[axis] - offset
        extent += [first, first + box_kji.shape[axis] - 1]
    image.SetExtent(*extent)
    if layer.image.IsEmpty():
        to_node = np.linalg.solve(_node_to_world(segmentation_node), volume.ijk_to_ras)
        image.SetImageToWorldMatrix(_to_matrix(to_node))
    else:
        image.SetOrigin(layer.image.GetOrigin())
        image.SetSpacing(layer.image.GetSpacing())
        image.CopyDirections(layer.image)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    _array_kji(image)[...] = box_kji
    return image

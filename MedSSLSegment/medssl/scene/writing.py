"""Slices written into a segment, as the Segment Editor's own effects would: its rules, its layers, its events.

Only the pixels that change are touched, in the labelmap's own memory, so that a slice costs the same in a small volume
and in a large one. Where a segment would cover another one on the layer they share, 3D Slicer's own logic moves it to a
layer of its own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util import numpy_support

from ..errors import InputError, MedSSLError
from ..volume import Volume, as_stack, take_slice
from .layers import BINARY_LABELMAP, Layer, array_kji, node_to_world, slice_fingerprint, to_matrix
from .rules import EditingRules
from .tags import note_predicted, predicted_slices

__all__ = ["refresh_surfaces", "write_predicted_slices", "write_slices"]

_Masks = Mapping[int, NDArray[np.bool_]]
_OnLost = Callable[[Any, str, int], None]
_ANYTHING = EditingRules()
_SPARE = 8
"""Slices, rows and columns a labelmap gets beyond what it must hold when it has to grow, and a quarter of its size."""


def _unnoticed(segmentation_node: Any, segment_id: str, index: int) -> None:
    """Nobody asks which segments make way."""


def write_predicted_slices(
    segmentation_node: Any,
    segment_id: str,
    volume: Volume,
    axis: int,
    masks: _Masks,
    rules: EditingRules = _ANYTHING,
    on_lost: _OnLost = _unnoticed,
) -> dict[int, NDArray[np.bool_]]:
    """`write_slices`, noting in the segment that these slices were predicted and not drawn by the user.

    A slice that ends up empty is not noted, and no longer if it was.
    """
    written = write_slices(segmentation_node, segment_id, volume, axis, masks, rules, on_lost)
    slices = predicted_slices(segmentation_node, segment_id)
    for index, mask in written.items():
        if mask.any():
            slices[axis, index] = slice_fingerprint(mask)
        else:
            slices.pop((axis, index), None)
    note_predicted(segmentation_node, segment_id, slices)
    return written


def write_slices(
    segmentation_node: Any,
    segment_id: str,
    volume: Volume,
    axis: int,
    masks: _Masks,
    rules: EditingRules = _ANYTHING,
    on_lost: _OnLost = _unnoticed,
) -> dict[int, NDArray[np.bool_]]:
    """Make a segment equal to the given masks on the given slices, wherever the rules let it be changed.

    Args:
        segmentation_node: vtkMRMLSegmentationNode.
        segment_id: the segment to change.
        volume: the volume whose grid the masks are on.
        axis: slice axis, 0 = K, 1 = J, 2 = I.
        masks: {slice index: (H, W) bool on the grid of `medssl.volume.take_slice`}.
        rules: where the segment may be changed, and which others make way.
        on_lost: told the segmentation node, segment and slice where another segment has made way.

    Returns:
        {slice index: the mask as it ended up}.

    Raises:
        InputError: no such segment or slice, a mask of another shape, or the segment lies on another grid.
    """
    area = Layer.of_all(segmentation_node, rules.segments_of_area(segmentation_node, segment_id), volume)
    losers = rules.segments_to_overwrite(segmentation_node, segment_id)
    layer = Layer.of(segmentation_node, segment_id, volume)
    added, erased, written = _Changes(axis), _Changes(axis), {}
    for index, wanted in masks.items():
        current = _current(layer, volume, axis, index, wanted)
        editable = _editable(rules, area, volume, axis, index)
        final = wanted if editable is None else np.where(editable, wanted, current)
        added.put(index, final & ~current)
        erased.put(index, current & ~final)
        written[index] = final
    for loser in losers:
        for index in _take_from(segmentation_node, loser, volume, axis, written):
            on_lost(segmentation_node, loser, index)
    _erase(segmentation_node, segment_id, volume, erased)
    _add(segmentation_node, segment_id, volume, added)
    _note_status(segmentation_node, segment_id)
    return written


def refresh_surfaces(segmentation_node: Any, segment_ids: Iterable[str]) -> None:
    """Make surfaces and other representations anew, where there are any, after slices were written."""
    segmentation = segmentation_node.GetSegmentation()
    present = [i for i in segment_ids if segmentation.GetSegment(i) is not None]
    for name in _other_representations(segmentation) if present else ():
        if segmentation.CreateRepresentation(name, True):
            for segment_id in present:
                segmentation.InvokeEvent(slicer.vtkSegmentation.RepresentationModified, segment_id)


def _other_representations(segmentation: Any) -> list[str]:
    names: list[str] = []
    segmentation.GetContainedRepresentationNames(names)
    return [name for name in names if name != BINARY_LABELMAP]


def _current(
    layer: Layer, volume: Volume, axis: int, index: int, wanted: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    if not 0 <= index < volume.shape_kji[axis]:
        raise InputError(f"There is no slice {index} across axis {axis} of {volume.shape_kji[axis]} slices.")
    current = layer.slice_mask(volume.shape_kji, axis, index)
    if wanted.shape != current.shape:
        raise InputError(f"A slice across axis {axis} has shape {current.shape}, not {wanted.shape}.")
    return current


def _editable(
    rules: EditingRules, area: Sequence[Layer], volume: Volume, axis: int, index: int
) -> NDArray[np.bool_] | None:
    """(H, W) where the rules allow changes; None = everywhere."""
    editable = None
    if rules.area != "everywhere":
        inside = np.zeros(take_slice(volume.voxels_kji, axis, index).shape, bool)
        labels = defaultdict(list)
        for layer in area:
            labels[layer.image].append(layer.label)
        for layer in {layer.image: layer for layer in area}.values():
            inside |= layer.slice_mask(volume.shape_kji, axis, index, labels[layer.image])
        editable = inside if rules.area == "inside" else ~inside
    if rules.intensities is not None:
        low, high = rules.intensities
        voxels = take_slice(volume.voxels_kji, axis, index)
        within = (voxels >= low) & (voxels <= high)
        editable = within if editable is None else editable & within
    return editable


class _Changes:
    """Pixels to change on some slices across one axis, and the smallest box around them."""

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.slices: dict[int, NDArray[np.bool_]] = {}

    def put(self, index: int, pixels_hw: NDArray[np.bool_]) -> None:
        if pixels_hw.any():
            self.slices[index] = pixels_hw

    def __bool__(self) -> bool:
        return bool(self.slices)

    def bounds(self) -> tuple[list[int], list[int]]:
        """(first voxel, shape), both (k, j, i), of the box around all changes."""
        rows = np.flatnonzero(np.any([s.any(axis=1) for s in self.slices.values()], axis=0))
        cols = np.flatnonzero(np.any([s.any(axis=0) for s in self.slices.values()], axis=0))
        lowest, highest = min(self.slices), max(self.slices)
        start = [int(rows[0]), int(cols[0])]
        shape = [int(rows[-1]) + 1 - start[0], int(cols[-1]) + 1 - start[1]]
        start.insert(self.axis, lowest)
        shape.insert(self.axis, highest + 1 - lowest)
        return start, shape

    def box(self) -> tuple[list[int], NDArray[np.uint8]]:
        """(first voxel (k, j, i), (K, J, I) array of the box: 1 where a voxel changes)."""
        start, shape = self.bounds()
        box = np.zeros(shape, np.uint8)
        within = tuple(slice(start[a], start[a] + shape[a]) for a in (0, 1, 2) if a != self.axis)
        for index, pixels in self.slices.items():
            as_stack(box, self.axis)[index - start[self.axis]] = pixels[within]
        return start, box


def _take_from(
    segmentation_node: Any, segment_id: str, volume: Volume, axis: int, masks: _Masks
) -> tuple[int, ...]:
    """Take the masks' voxels from another segment; what was predicted there stays known as predicted.

    Returns:
        The slices on which it has lost any.
    """
    layer = Layer.of(segmentation_node, segment_id, volume)
    before = {index: layer.slice_mask(volume.shape_kji, axis, index) for index in masks}
    lost = _Changes(axis)
    for index, mask in masks.items():
        lost.put(index, before[index] & mask)
    if not lost:
        return ()
    _erase(segmentation_node, segment_id, volume, lost)
    marks = predicted_slices(segmentation_node, segment_id)
    for index, mask in masks.items():
        if marks.get((axis, index)) == slice_fingerprint(before[index]):
            marks[axis, index] = slice_fingerprint(before[index] & ~mask)
    note_predicted(segmentation_node, segment_id, marks)
    return tuple(lost.slices)


# In the labelmap's own memory


def _erase(segmentation_node: Any, segment_id: str, volume: Volume, changes: _Changes) -> None:
    if not changes:
        return
    layer = Layer.of(segmentation_node, segment_id, volume)
    for index, pixels in changes.slices.items():
        _paint(layer, changes.axis, index, pixels, 0)
    _tell(segmentation_node, segment_id, layer.image)


def _add(segmentation_node: Any, segment_id: str, volume: Volume, changes: _Changes) -> None:
    if not changes:
        return
    layer = Layer.of(segmentation_node, segment_id, volume)
    if layer.voxels_kji is None or layer.label > np.iinfo(layer.voxels_kji.dtype).max:
        _merge(segmentation_node, segment_id, volume, layer, changes)
        return
    start, shape = changes.bounds()
    if layer.values_in(start, shape) is None:
        if _other_representations(segmentation_node.GetSegmentation()):
            _merge(segmentation_node, segment_id, volume, layer, changes)  # keeps the surfaces
            return
        _grow(layer, start, shape, volume.shape_kji)
        layer = Layer.of(segmentation_node, segment_id, volume)
    if any(_is_taken(layer, changes.axis, index, pixels) for index, pixels in changes.slices.items()):
        _merge(segmentation_node, segment_id, volume, layer, changes)
        return
    for index, pixels in changes.slices.items():
        _paint(layer, changes.axis, index, pixels, layer.label)
    _tell(segmentation_node, segment_id, layer.image)


def _window(
    layer: Layer, axis: int, index: int, pixels: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """(labels, pixels) of a slice, both cut to the box of the pixels; the labels are the layer's own memory."""
    rows, cols = (np.flatnonzero(pixels.any(axis=other)) for other in (1, 0))
    start, shape = (
        [int(rows[0]), int(cols[0])],
        [int(rows[-1] + 1 - rows[0]), int(cols[-1] + 1 - cols[0])],
    )
    part = pixels[start[0] : start[0] + shape[0], start[1] : start[1] + shape[1]]
    start.insert(axis, index)
    shape.insert(axis, 1)
    values = layer.values_in(start, shape)
    assert values is not None
    return take_slice(values, axis, 0), part


def _is_taken(layer: Layer, axis: int, index: int, pixels: NDArray[np.bool_]) -> bool:
    """Whether another segment on the same layer holds one of the pixels."""
    values, part = _window(layer, axis, index, pixels)
    return bool(((values != 0) & part).any())


def _paint(layer: Layer, axis: int, index: int, pixels: NDArray[np.bool_], label: int) -> None:
    values, part = _window(layer, axis, index, pixels)
    np.copyto(values, label, where=part, casting="unsafe")


def _grow(
    layer: Layer, start_kji: Sequence[int], shape_kji: Sequence[int], volume_kji: Sequence[int]
) -> None:
    """Give the labelmap room for a box, and some to spare on the sides it grows to."""
    assert layer.voxels_kji is not None
    low, high = [], []
    for first, size, start, count, end in zip(
        layer.first_kji, layer.shape_kji, start_kji, shape_kji, volume_kji, strict=True
    ):
        spare = _SPARE + size // 4
        low.append(first if start >= first else min(start, max(start - spare, 0)))
        last, wanted = first + size, start + count
        high.append(last if wanted <= last else max(wanted, min(wanted + spare, end)))
    # The memory is VTK's own: what the user has drawn must not hang on the life of a Python object.
    old = layer.image.GetPointData().GetScalars()
    scalars = old.NewInstance()
    scalars.SetName(old.GetName())
    shape = [h - lo for lo, h in zip(low, high, strict=True)]
    scalars.SetNumberOfValues(math.prod(shape))
    part = numpy_support.vtk_to_numpy(scalars).reshape(shape)
    # Each voxel is written once: at this size the time goes into touching new memory.
    for axis, (first, size, lowest) in enumerate(zip(layer.first_kji, layer.shape_kji, low, strict=True)):
        part = np.moveaxis(part, axis, 0)
        part[: first - lowest], part[first - lowest + size :] = 0, 0
        part = np.moveaxis(part[first - lowest : first - lowest + size], 0, axis)
    part[...] = layer.voxels_kji
    extent: list[int] = []
    for axis, offset in zip((2, 1, 0), layer.offset_ijk, strict=True):
        extent += [low[axis] - offset, high[axis] - 1 - offset]
    layer.image.SetExtent(*extent)
    layer.image.GetPointData().SetScalars(scalars)


def _tell(segmentation_node: Any, segment_id: str, image: Any) -> None:
    """Announce changed voxels as vtkSegmentationModifier does: views and undo know, surfaces are kept for now."""
    segmentation = segmentation_node.GetSegmentation()
    # The image's own Modified event would throw the surfaces away; its scalars' only makes it newer.
    image.GetPointData().GetScalars().Modified()
    segmentation.InvokeEvent(slicer.vtkSegmentation.SourceRepresentationModified, segment_id)
    segmentation.InvokeEvent(slicer.vtkSegmentation.RepresentationModified, segment_id)


def _note_status(segmentation_node: Any, segment_id: str) -> None:
    """A segment that is written to is no longer "not started", as after an effect of the Segment Editor."""
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    if logic.GetSegmentStatus(segment) == logic.NotStarted:
        logic.SetSegmentStatus(segment, logic.InProgress)


# With 3D Slicer's logic


def _merge(segmentation_node: Any, segment_id: str, volume: Volume, layer: Layer, changes: _Changes) -> None:
    """Add a small labelmap to a segment.

    No segment is named as one to overwrite, so 3D Slicer moves this one to its own layer before it covers one.
    """
    start, box = changes.box()
    image = _oriented_image(segmentation_node, layer, volume, start, box)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    done = logic.SetBinaryLabelmapToSegment(
        image, segmentation_node, segment_id, logic.MODE_MERGE_MASK, image.GetExtent(), False, []
    )
    if not done:
        name = segmentation_node.GetSegmentation().GetSegment(segment_id).GetName()
        raise MedSSLError(f"3D Slicer could not change segment '{name}'; the error log says why.")


def _oriented_image(
    segmentation_node: Any,
    layer: Layer,
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
    if layer.voxels_kji is None:
        to_node = np.linalg.solve(node_to_world(segmentation_node), volume.ijk_to_ras)
        image.SetImageToWorldMatrix(to_matrix(to_node))
    else:
        image.SetOrigin(layer.image.GetOrigin())
        image.SetSpacing(layer.image.GetSpacing())
        image.CopyDirections(layer.image)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    array_kji(image)[...] = box_kji
    return image

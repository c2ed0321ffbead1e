"""MRML nodes to arrays: volumes, segments, and the slices of a segment that a person drew.

Everything works on the real MRML classes, inside 3D Slicer and in plain Python with the ``slicer-core``
package. A segment is never resampled: its labelmap must lie on the volume's own voxels (cropped or shifted by
whole voxels is fine), so what is read back is bit for bit what was written. Positions are in the world (RAS,
mm), after any parent transform.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util import numpy_support

from ..errors import InputError
from ..volume import Volume, patient_key
from .layers import Layer, array_kji, node_to_world, to_array, to_matrix
from .tags import predicted_slices

__all__ = [
    "SegmentInfo",
    "add_volume_node",
    "annotated_slices",
    "create_segmentation_node",
    "guess_axis",
    "image_stamp",
    "keep_patient",
    "list_segments",
    "nodes_of",
    "painted_across",
    "patient_of",
    "place_beside",
    "read_drawn",
    "read_segment",
    "read_slice",
    "read_volume_node",
    "set_reference_geometry",
    "volume_reader",
    "volume_stamp",
]


_PATIENT = "MedSSLSegment.Patient"
"""Attribute of a volume node: key of the patient, which does not tell who it is."""
_THIN = 3
"""So many times fewer slices than across another axis, and it was painted across this one."""
_FEW = 5
"""Nobody paints many more slices than that of an object."""


@dataclass(frozen=True)
class SegmentInfo:
    """A segment as a list shows it."""

    id: str
    """Unique in its segmentation; stays the same when the segment is renamed."""
    name: str
    """What the user calls it; need not be unique."""
    color_rgb: tuple[float, float, float]
    """0 .. 1 each."""


def nodes_of(scene: Any, kind: str) -> list[Any]:
    """The nodes of a class in a scene; vtkMRMLScene::GetNodesByClass would keep them in memory for ever."""
    return [scene.GetNthNodeByClass(n, kind) for n in range(scene.GetNumberOfNodesByClass(kind))]


# Volumes


def read_volume_node(volume_node: Any) -> Volume:
    """Read a scalar volume node without copying int16 or float32 voxels.

    The result shares the node's memory: read it again after the node's image has changed.

    Args:
        volume_node: vtkMRMLScalarVolumeNode; a linear parent transform moves the grid, not the voxels.

    Raises:
        InputError: no image, several values per voxel, a warping transform, or anything `Volume` refuses.
    """
    return volume_reader(volume_node)()


def volume_reader(volume_node: Any) -> Callable[[], Volume]:
    """The first half of `read_volume_node`: what is left is plain numpy, slow, and may run in another thread.

    Raises:
        InputError: no image, several values per voxel, or a warping transform.
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
    voxels_kji, affine = array_kji(image), _ijk_to_world(volume_node)
    return lambda: Volume(voxels_kji, affine, name)


def add_volume_node(scene: Any, volume: Volume, window_level: tuple[float, float] | None = None) -> Any:
    """Add a scalar volume node with a copy of a volume's voxels.

    Args:
        scene: vtkMRMLScene.
        volume: what it shows; its name becomes the node's.
        window_level: width and centre of the grey values shown; None = chosen by 3D Slicer.

    Returns:
        vtkMRMLScalarVolumeNode.
    """
    image = vtk.vtkImageData()
    image.SetDimensions(*volume.shape_kji[::-1])
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(volume.voxels_kji.ravel(), deep=True))
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", volume.name)
    node.SetIJKToRASMatrix(to_matrix(volume.ijk_to_ras))
    node.SetAndObserveImageData(image)
    node.CreateDefaultDisplayNodes()
    if window_level is not None:
        display = node.GetDisplayNode()
        display.AutoWindowLevelOff()
        display.SetWindowLevel(*window_level)
    return node


def volume_stamp(volume_node: Any) -> tuple[object, ...]:
    """Compares equal as long as a volume node has the same voxels in the same place."""
    image = volume_node.GetImageData()
    when = None if image is None else image.GetMTime()
    return *image_stamp(volume_node), when


def image_stamp(volume_node: Any) -> tuple[object, ...]:
    """Compares equal as long as a volume node has the same image in the same place, whatever its voxels and name."""
    image = volume_node.GetImageData()
    # A node keeps its image object when another image is put into it.
    scalars = None if image is None else image.GetPointData().GetScalars()
    # Hardening a transform leaves the image where it is, but for the last digits.
    place = np.round(_ijk_to_world(volume_node), 6) + 0.0
    return volume_node, _Held(image), _Held(scalars), place.tobytes()


class _Held:
    """Equal to what holds the same object; VTK's own images compare voxel by voxel, which takes long."""

    def __init__(self, thing: object) -> None:
        self._thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self._thing is other._thing

    def __hash__(self) -> int:
        return id(self._thing)


def _ijk_to_world(volume_node: Any) -> NDArray[np.float64]:
    local = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(local)
    return node_to_world(volume_node) @ to_array(local)


# Segmentations


def create_segmentation_node(
    scene: Any, volume_node: Any, name: str = "", *, for_views_only: bool = False
) -> Any:
    """Add an empty segmentation node on a volume's grid, beside the volume (same parent transform).

    Args:
        scene: vtkMRMLScene.
        volume_node: whose grid.
        name: empty takes the volume's.
        for_views_only: in no list and no file. It has to be said before the node is in the scene: 3D Slicer lists a
            node when it is added (qSlicerSubjectHierarchyPluginLogic::onNodeAdded) and does not look again.
    """
    node = scene.CreateNodeByClass("vtkMRMLSegmentationNode")
    node.UnRegister(None)
    node.SetName(name or f"{volume_node.GetName()} segmentation")
    node.SetHideFromEditors(for_views_only)
    node.SetSaveWithScene(not for_views_only)
    scene.AddNode(node)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetSaveWithScene(not for_views_only)
    node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    set_reference_geometry(node, volume_node)
    place_beside(scene, node, volume_node)
    return node


def place_beside(scene: Any, node: Any, volume_node: Any) -> None:
    """Put a new node into the volume's folder (its study, for a DICOM series) in the list of data."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    if hierarchy is None:
        return
    item, beside = hierarchy.GetItemByDataNode(node), hierarchy.GetItemByDataNode(volume_node)
    invalid = hierarchy.GetInvalidItemID()
    if item != invalid and beside != invalid:
        hierarchy.SetItemParent(item, hierarchy.GetItemParent(beside))


def keep_patient(volume_node: Any, key: str) -> None:
    """Remember whose volume it is, by a `patient_key`; 3D Slicer knows by itself."""
    volume_node.SetAttribute(_PATIENT, key)


def patient_of(volume_node: Any) -> str:
    """`patient_key` of the patient of a DICOM volume; "" for another one."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(volume_node.GetScene())
    item = hierarchy.GetItemByDataNode(volume_node) if hierarchy else 0
    stated = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMPatientIDAttributeName()
    patient_id = hierarchy.GetAttributeFromItemAncestor(item, stated) if item else ""
    return volume_node.GetAttribute(_PATIENT) or patient_key(patient_id.strip())


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
    layer = Layer.of(segmentation_node, segment_id, volume)
    return layer.mask_in((0, 0, 0), volume.shape_kji)


def read_slice(
    segmentation_node: Any, segment_id: str, volume: Volume, axis: int, index: int
) -> NDArray[np.bool_]:
    """One slice of `read_segment`, (H, W) bool, without reading the rest."""
    return Layer.of(segmentation_node, segment_id, volume).slice_mask(volume.shape_kji, axis, index)


def read_drawn(
    segmentation_node: Any, segment_id: str, volume: Volume
) -> tuple[tuple[int, int, int], NDArray[np.bool_]]:
    """What the user drew of a segment: slices that were predicted and not changed since are left out.

    Returns:
        (first voxel (k, j, i), (K, J, I) bool): a box of the volume that holds all of it; may have no voxels.
    """
    marks = predicted_slices(segmentation_node, segment_id)
    return Layer.of(segmentation_node, segment_id, volume).drawn(volume.shape_kji, marks)


# Which slices the user drew


def annotated_slices(mask_kji: NDArray[np.bool_], axis: int) -> list[int]:
    """Indices of the slices across `axis` that hold any of the mask, ascending."""
    others = tuple(a for a in (0, 1, 2) if a != axis)
    return [int(n) for n in np.flatnonzero(mask_kji.any(axis=others))]


def painted_across(mask_kji: NDArray[np.bool_]) -> int | None:
    """The axis a mask was painted across: far fewer of its slices hold any of it than across the others.

    Args:
        mask_kji: (K, J, I) bool, of the whole volume or of a box of it.

    Returns:
        None where it does not tell: a dot, a line, or an object that is filled through and through.
    """
    counts = [len(annotated_slices(mask_kji, axis)) for axis in (0, 1, 2)]
    fewest, next_fewest, _ = sorted(counts)
    return counts.index(fewest) if 0 < _THIN * fewest <= next_fewest else None


def guess_axis(masks_kji: Iterable[NDArray[np.bool_]]) -> int:
    """The axis the user most likely painted across: the one with the fewest non-empty slices.

    Whole objects, from a file for example, tell little about that; they are taken for painted across the volume's own
    slices unless these are many more than those across another axis.

    Args:
        masks_kji: (K, J, I) bool each, of the whole volume or of a box of it.
    """
    counts, is_told, number = np.zeros(3, int), False, 0
    for mask in masks_kji:
        counts += [len(annotated_slices(mask, axis)) for axis in (0, 1, 2)]
        is_told |= painted_across(mask) is not None
        number += 1
    fewest = int(counts.min())
    if not is_told and fewest > _FEW * number and counts[0] <= 2 * fewest:
        return 0
    return int(counts.argmin())

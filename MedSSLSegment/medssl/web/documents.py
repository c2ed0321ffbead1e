"""Files in and out of the scene: trame-slicer reads and writes what is Slicer's own; this file knows what is what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import slicer
from trame_slicer.core import SlicerApp
from trame_slicer.core.volumes_reader import VolumesReader
from vtkmodules.vtkCommonMath import vtkMatrix4x4

from ..errors import InputError, StorageError
from ..formats.dicom_seg import write_dicom_seg
from ..scene import nodes
from ..segmentation import Segment, Segmentation, read_segmentation, write_segmentation
from ..volume import Volume, read_volume
from .unpacking import unpack_nrrd, unpack_scene

__all__ = ["Documents", "Format", "Opened", "Reader"]

_SOURCE = "MedSSLSegment.Source"
"""Attribute of a volume node: where it was read from."""
_ROLES = ("inputVolume", "segmentation")
"""References of the parameter node, by the names the panel in 3D Slicer gives them."""


class Format(Enum):
    """What can be saved."""

    SEG_NRRD = ".seg.nrrd"
    NIFTI = ".nii.gz"
    DICOM_SEG = ".dcm"
    SCENE = ".mrb"


@dataclass(frozen=True)
class Opened:
    """What to work on after opening; either may be None."""

    volume_node: Any = None
    segmentation_node: Any = None


Reader = Callable[[], Callable[[], Opened]]
"""Reads, in any thread; what it returns puts that into the scene."""


class Documents:
    """Opens and saves.

    Args:
        slicer_app: whose scene the nodes live in.
    """

    def __init__(self, slicer_app: SlicerApp) -> None:
        self._app = slicer_app
        self._scene = slicer_app.scene
        self._saved: dict[str, _Stamp] = {}
        """How segmentations were when they were saved or opened, by id."""

    # Opening

    def open(self, path: Path) -> Opened:
        """Read a volume, a DICOM folder, a segmentation or a scene; a scene replaces what is there.

        Raises:
            InputError: it cannot be read.
        """
        return self.reader(path)()()

    def reader(self, path: Path) -> Reader:
        """What `open` does, in two parts.

        Returns:
            Reads what takes long, and may do so in another thread; what that returns puts it into the scene, and has
            to be called in the scene's own. Either raises InputError.
        """
        name = path.name.lower()
        if name.endswith(".mrb"):
            return lambda: self._unpacked(path, unpack_scene, self._open_scene)
        if name.endswith(".mrml"):
            return lambda: lambda: self._open_scene(path, path)
        if name.endswith((".seg.nrrd", ".seg.nhdr")):
            return lambda: self._unpacked(path, unpack_nrrd, self._open_segmentation)
        return lambda: self._volume_put(path)

    def _volume_put(self, path: Path) -> Callable[[], Opened]:
        if path.is_dir():
            series = _read_series(path)
            return lambda: Opened(volume_node=self._add_series(series, path))
        volume = read_volume(path)
        return lambda: Opened(volume_node=self._add_volume(volume, path))

    def _unpacked(
        self, path: Path, unpack: Callable[[Path, Path], Path], put: Callable[[Path, Path], Opened]
    ) -> Callable[[], Opened]:
        """Unpack a file; what is returned reads what came of it, and takes that away again."""
        folder = TemporaryDirectory(prefix="medssl-")
        try:
            unpacked = unpack(path, Path(folder.name))
        except BaseException:
            folder.cleanup()
            raise

        def read() -> Opened:
            with folder:
                return put(unpacked, path)

        return read

    def open_labels(self, path: Path, volume_node: Any) -> Opened:
        """Read a label file as a segmentation of a volume.

        Raises:
            InputError: it holds no labels, or lies on another grid.
        """
        return self.label_reader(path, volume_node)()()

    def label_reader(self, path: Path, volume_node: Any) -> Reader:
        """What `open_labels` does, in two parts; see `reader`."""
        read_volume_of_node = nodes.volume_reader(volume_node)

        def unpack(path: Path, folder: Path) -> Path:
            copy = folder / f"{_stem(path)}.seg.nrrd"
            write_segmentation(read_segmentation(path, like=read_volume_of_node()), copy)
            return unpack_nrrd(copy, folder)

        def put(unpacked: Path, path: Path) -> Opened:
            node = self._open_segmentation(unpacked, path).segmentation_node
            nodes.place_beside(self._scene, node, volume_node)
            return Opened(volume_node, node)

        return lambda: self._unpacked(path, unpack, put)

    def _add_volume(self, volume: Volume, path: Path) -> Any:
        name = self._scene.GenerateUniqueName(_stem(path))
        node = nodes.add_volume_node(self._scene, volume)
        node.SetName(name)
        node.SetAttribute(_SOURCE, str(path))
        return node

    def _add_series(self, series: Any, path: Path) -> Any:
        """Have the image of a node of another scene in a node of this one."""
        name = self._scene.GenerateUniqueName(series.GetName())
        node = self._scene.AddNewNodeByClass(series.GetClassName(), name)
        to_ras = vtkMatrix4x4()
        series.GetIJKToRASMatrix(to_ras)
        node.SetIJKToRASMatrix(to_ras)
        node.SetAndObserveImageData(series.GetImageData())
        node.CreateDefaultDisplayNodes()
        node.SetAttribute(_SOURCE, str(path))
        return node

    def _open_segmentation(self, unpacked: Path, path: Path) -> Opened:
        node = self._app.io_manager.load_segmentation(unpacked)
        if node is None:
            raise InputError(f"{path.name} cannot be read as a segmentation of 3D Slicer.")
        node.SetName(_stem(path))
        self.note_saved(self.stamps([node]))
        return Opened(segmentation_node=node)

    def _open_scene(self, unpacked: Path, path: Path) -> Opened:
        self._scene.Clear()
        self._saved.clear()
        if not self._app.io_manager.load_scene(unpacked):
            raise InputError(f"{path.name} cannot be read as a scene of 3D Slicer.")
        self._have_views_look_again()
        self.note_saved(self.stamps())
        found = Opened(*(self.parameter_node().GetNodeReference(role) for role in _ROLES))
        return Opened(
            found.volume_node or next(iter(self.volumes()), None),
            found.segmentation_node or next(iter(self.segmentations()), None),
        )

    def _have_views_look_again(self) -> None:
        """Slice views overlook the segmentations of an imported scene until they come into the layout anew."""
        views = self._app.view_manager
        for view in views.filter_visible_views(views.get_views()):
            view.set_mapped_in_layout(False)
            view.set_mapped_in_layout(True)

    # What is not in a file

    def stamps(self, nodes_: Iterable[Any] | None = None) -> dict[str, _Stamp]:
        """How segmentations are now, by id; equal as long as nobody draws in them or renames a segment.

        Args:
            nodes_: segmentation nodes, None = all there are.
        """
        return {node.GetID(): _stamp(node) for node in (self.segmentations() if nodes_ is None else nodes_)}

    def note_saved(self, stamps: dict[str, _Stamp]) -> None:
        """Remember that segmentations are in a file, as they were then."""
        self._saved |= stamps

    def unsaved(self) -> list[Any]:
        """Segmentations with something drawn in them that has changed since they were saved or opened."""
        return [
            node
            for node in self.segmentations()
            if (stamp := _stamp(node)) and self._saved.get(node.GetID()) != stamp
        ]

    # What there is

    def volumes(self) -> list[Any]:
        """Volumes a person can choose: grey images, no label maps."""
        found = self._scene.GetNodesByClass("vtkMRMLScalarVolumeNode")
        return [
            node
            for node in found
            if not node.IsA("vtkMRMLLabelMapVolumeNode") and not node.GetHideFromEditors()
        ]

    def sources(self) -> set[Path]:
        """Files and folders that the open volumes were read from."""
        return {source for node in self.volumes() if (source := self.source_of(node)) is not None}

    def source_of(self, volume_node: Any) -> Path | None:
        """File or folder that a volume was read from; None for one that came with a scene from elsewhere."""
        source = volume_node.GetAttribute(_SOURCE)
        return Path(source) if source else None

    def segmentations(self) -> list[Any]:
        """Segmentations a person can choose."""
        return [
            n for n in self._scene.GetNodesByClass("vtkMRMLSegmentationNode") if not n.GetHideFromEditors()
        ]

    def segmentations_of(self, volume_node: Any) -> list[Any]:
        """Segmentations that were made on a volume, or last edited over it."""
        role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
        return [node for node in self.segmentations() if node.GetNodeReference(role) is volume_node]

    def remember(self, opened: Opened) -> None:
        """Keep in the scene what is worked on, for when it is opened again here or in 3D Slicer."""
        chosen = (opened.volume_node, opened.segmentation_node)
        for role, node in zip(_ROLES, chosen, strict=True):
            self.parameter_node().SetNodeReferenceID(role, None if node is None else node.GetID())

    def parameter_node(self) -> Any:
        """The node that keeps the choices, as the panel in 3D Slicer keeps them."""
        found = self._scene.GetSingletonNode("MedSSLSegment", "vtkMRMLScriptedModuleNode")
        if found is not None:
            return found
        node = slicer.vtkMRMLScriptedModuleNode()
        node.SetSingletonTag("MedSSLSegment")
        node.SetModuleName("MedSSLSegment")
        node.SetName("MedSSLSegment")
        return self._scene.AddNode(node)

    # Saving

    def writer(self, form: Format, volume: Volume, opened: Opened) -> Callable[[Path], None]:
        """Read from the scene what is to be saved; what is returned writes it, and may do so in another thread.

        Raises:
            InputError: there is nothing to save, or not in this format.
        """
        if form is Format.SCENE:
            raise AssertionError("a scene is written by `write_scene`")
        segmentation = as_segmentation(opened.segmentation_node, volume)
        if form is Format.NIFTI:
            return lambda path: write_segmentation(segmentation, path)
        source = self.source_of(opened.volume_node)
        if source is None or not source.is_dir():
            raise InputError(
                "DICOM SEG refers to DICOM images; save as .seg.nrrd or .nii.gz, or open a DICOM folder."
            )
        return lambda path: write_dicom_seg(segmentation, source, path)

    def write_scene(self, path: Path) -> None:
        """Write everything, as a bundle that 3D Slicer opens too.

        Raises:
            StorageError: it cannot be written.
        """
        if not self._app.io_manager.write_scene(path):
            raise StorageError(f"{path} cannot be written; choose a folder with space and permission.")

    def write_seg_nrrd(self, segmentation_node: Any, path: Path) -> None:
        """Write a segmentation with all that is known of it: names, colours, overlaps, what was predicted.

        Raises:
            StorageError: it cannot be written.
        """
        self._app.io_manager.write_node(segmentation_node, path, slicer.vtkMRMLSegmentationStorageNode, False)
        if not path.is_file():
            raise StorageError(f"{path} cannot be written; choose a folder with space and permission.")


_Stamp = tuple[tuple[str, str, int], ...]


def _stamp(segmentation_node: Any) -> _Stamp:
    """Id, name and age of every segment with something drawn in it."""
    segmentation, found = segmentation_node.GetSegmentation(), []
    kind = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    for info in nodes.list_segments(segmentation_node):
        image = segmentation.GetSegment(info.id).GetRepresentation(kind)
        if image is not None and image.GetNumberOfPoints() > 0:
            found.append((info.id, info.name, image.GetMTime()))
    return tuple(found)


def as_segmentation(segmentation_node: Any, volume: Volume) -> Segmentation:
    """A segmentation node as labels on a volume's grid; where segments overlap the last one has the voxel.

    Raises:
        InputError: two segments have the same name, or it lies on another grid.
    """
    labels = np.zeros(volume.shape_kji, np.uint16)
    segments = []
    for label, segment in enumerate(nodes.list_segments(segmentation_node), start=1):
        labels[nodes.read_segment(segmentation_node, segment.id, volume)] = label
        segments.append(Segment(segment.name, label, segment.color_rgb))
    return Segmentation(labels, volume.ijk_to_ras, tuple(segments), segmentation_node.GetName())


def _read_series(folder: Path) -> Any:
    """A volume node with what is in a DICOM folder, of several series the one with the most voxels."""
    names = sorted(str(file) for file in folder.iterdir() if file.is_file() and not file.is_symlink())
    found = []
    if VolumesReader.contains_dcm_volume(names):
        found = [node for node in VolumesReader.load_dcm_volumes(slicer.vtkMRMLScene(), names) if node]
    if not found:
        raise InputError(f"{folder.name} cannot be read as an image: it holds no DICOM series.")
    return max(found, key=lambda node: node.GetImageData().GetNumberOfPoints())


def _stem(path: Path) -> str:
    name = path.name
    for suffix in (".gz", ".nii", ".nrrd", ".seg", ".mha", ".mhd", ".nhdr"):
        name = name.removesuffix(suffix)
    return name

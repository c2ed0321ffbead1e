"""Files in and out of the scene: trame-slicer reads and writes what is Slicer's own; this file knows what is what."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import slicer
from trame_slicer.core import SlicerApp

from ..errors import InputError, StorageError
from ..formats.dicom import DicomSeries, list_dicom_series, patient_of, read_series
from ..formats.dicom_seg import write_dicom_seg
from ..scene import nodes
from ..scene.layers import LabelStack, Layer
from ..scene.predicting import is_stage
from ..segmentation import Segment, Segmentation, read_segmentation, write_segmentation
from ..volume import Volume, read_volume
from .packing import pack_nrrd, pack_scene, unpack_nrrd, unpack_scene

__all__ = ["Documents", "Format", "Opened", "Reader", "series_in"]

_SOURCE = "MedSSLSegment.Source"
"""Attribute of a volume node: where it was read from."""
_SERIES = "MedSSLSegment.Series"
"""Attribute of a volume node: UID of the DICOM series it is, of the folder it was read from."""
_WITH_VOXELS = ("vtkMRMLVolumeNode", "vtkMRMLSegmentationNode")
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
        """What `open` does, in two parts; of a DICOM folder, for the series with the most slices.

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
        return lambda: self._series_put(path, series_in(path)[0]) if path.is_dir() else self._volume_put(path)

    def series_reader(self, folder: Path, series: DicomSeries) -> Reader:
        """What `open` does, in two parts, for one of the series of a DICOM folder; see `reader` and `series_in`."""
        return lambda: self._series_put(folder, series)

    def _volume_put(self, path: Path) -> Callable[[], Opened]:
        volume = read_volume(path)
        return lambda: Opened(volume_node=self._add_volume(volume, _stem(path), path))

    def _series_put(self, folder: Path, series: DicomSeries) -> Callable[[], Opened]:
        raw = read_series(series, folder.name)
        volume, name = Volume(raw.voxels, raw.ijk_to_ras, folder.name), series.description or folder.name
        patient = patient_of(series)

        def put() -> Opened:
            node = self._add_volume(volume, name, folder)
            node.SetAttribute(_SERIES, series.uid)
            if patient:
                nodes.keep_patient(node, patient)
            return Opened(volume_node=node)

        return put

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

    def _add_volume(self, volume: Volume, name: str, path: Path) -> Any:
        name = self._scene.GenerateUniqueName(name)
        node = nodes.add_volume_node(self._scene, volume)
        node.SetName(name)
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
        found = nodes.nodes_of(self._scene, "vtkMRMLScalarVolumeNode")
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
            node
            for node in nodes.nodes_of(self._scene, "vtkMRMLSegmentationNode")
            if not node.GetHideFromEditors() and not is_stage(node)
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

    def write(self, form: Format, path: Path, opened: Opened, volume_of: Callable[[], Volume]) -> None:
        """Write what is open.

        Args:
            form: what to write.
            path: the file, with the suffix of `form`.
            opened: whose segmentation; a scene is written whole.
            volume_of: gives the grid that labels are written on, where that is needed.

        Raises:
            InputError: there is nothing to save, or not in this format.
            StorageError: no space or no permission.
        """
        self.writer(form, path, opened, volume_of)()

    def writer(
        self, form: Format, path: Path, opened: Opened, volume_of: Callable[[], Volume]
    ) -> Callable[[], None]:
        """What `write` does, in two parts.

        Returns:
            What takes longest, when all that is needed has been taken from the scene: any thread may do it.
        """
        if form is Format.SCENE:
            return self._scene_writer(path)
        if form is Format.SEG_NRRD:
            return self._seg_nrrd_writer(opened.segmentation_node, path)
        segmentation = as_segmentation(opened.segmentation_node, volume_of())
        if form is Format.NIFTI:
            return lambda: write_segmentation(segmentation, path)
        source = self.source_of(opened.volume_node)
        if source is None or not source.is_dir():
            raise InputError(
                "DICOM SEG refers to DICOM images; save as .seg.nrrd or .nii.gz, or open a DICOM folder."
            )
        uid = opened.volume_node.GetAttribute(_SERIES)
        return lambda: write_dicom_seg(segmentation, source, path, uid)

    def _scene_writer(self, path: Path) -> Callable[[], None]:
        """Everything, as a bundle that 3D Slicer opens too."""

        def write(folder: Path) -> bool:
            folder.mkdir()
            with _unpacked_voxels(self._scene):
                is_written = bool(self._scene.SaveSceneToSlicerDataBundleDirectory(str(folder)))
            for scene in folder.glob("*.mrml"):  # whoever saves it from 3D Slicer later packs as ever
                scene.write_bytes(scene.read_bytes().replace(b'useCompression="0"', b'useCompression="1"'))
            return is_written

        return _packed_later(write, path.name.removesuffix(Format.SCENE.value), pack_scene, path)

    def _seg_nrrd_writer(self, segmentation_node: Any, path: Path) -> Callable[[], None]:
        """A segmentation with all that is known of it: names, colours, overlaps, what was predicted."""

        def write(file: Path) -> bool:
            storage = slicer.vtkMRMLSegmentationStorageNode()
            storage.SetFileName(str(file))
            storage.SetUseCompression(0)
            return bool(storage.WriteData(segmentation_node)) and file.is_file()

        return _packed_later(write, path.name, pack_nrrd, path)


def _packed_later(
    write: Callable[[Path], bool], name: str, pack: Callable[[Path, Path], None], path: Path
) -> Callable[[], None]:
    """Have Slicer write at once, unpacked, into a folder of its own; what is returned packs that into the file.

    Raises:
        StorageError: Slicer could not write.
    """
    folder = TemporaryDirectory(prefix="medssl-")
    unpacked = Path(folder.name) / name
    try:
        if not write(unpacked):  # Slicer does not say why
            raise StorageError(
                f"{path.name} cannot be written; make sure that {tempfile.gettempdir()} has space for it."
            )
    except BaseException:
        folder.cleanup()
        raise

    def finish() -> None:
        with folder:
            pack(unpacked, path)

    return finish


@contextmanager
def _unpacked_voxels(scene: Any) -> Iterator[None]:
    """Nodes are written without being packed."""
    packed = []
    for node in (n for kind in _WITH_VOXELS for n in nodes.nodes_of(scene, kind)):
        if node.GetStorageNode() is None:
            node.AddDefaultStorageNode()  # as Slicer does when it writes
        if node.GetStorageNode() is not None and node.GetStorageNode().GetUseCompression():
            packed.append(node.GetStorageNode())
    for storage in packed:
        storage.SetUseCompression(0)
    try:
        yield
    finally:
        for storage in packed:
            storage.SetUseCompression(1)


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
    """A segmentation node as labels on a volume's grid; where segments overlap the smaller one has the voxel.

    Raises:
        InputError: two segments have the same name, nothing would be left of one, or it lies on another grid.
    """
    known = nodes.list_segments(segmentation_node)
    stack = LabelStack(volume.shape_kji, Layer.of_all(segmentation_node, [each.id for each in known], volume))
    segments = tuple(Segment(each.name, label, each.color_rgb) for label, each in enumerate(known, start=1))
    if lost := [segments[label - 1].name for label in stack.covered()]:
        raise InputError(
            f"Other segments cover all of {' and '.join(lost)}, and here a voxel can belong to one of them only;"
            " save as .seg.nrrd, which keeps all."
        )
    return Segmentation(stack.labels_kji, volume.ijk_to_ras, segments, segmentation_node.GetName())


def series_in(folder: Path) -> tuple[DicomSeries, ...]:
    """The image series in a DICOM folder, most slices first.

    Raises:
        InputError: there is none, or the folder holds links: what they lead to is not opened.
    """
    links = sorted(file.name for file in folder.iterdir() if file.is_symlink())
    if links:
        raise InputError(
            f"{folder.name} holds links to other files, {links[0]} for example; copy the files themselves there."
        )
    found = list_dicom_series(folder)
    if not found:
        raise InputError(f"{folder.name} cannot be read as an image: it holds no DICOM series.")
    return found


def _stem(path: Path) -> str:
    name = path.name
    for suffix in (".gz", ".nii", ".nrrd", ".seg", ".mha", ".mhd", ".nhdr"):
        name = name.removesuffix(suffix)
    return name

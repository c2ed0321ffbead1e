"""Opening and saving: the dialogs over the folders that are allowed, and the scene."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

from trame_server import Server
from trame_server.utils.asynchronous import create_task
from trame_server.utils.typed_state import TypedState

from ...errors import InputError, MedSSLError
from ...formats.dicom import DicomSeries
from ..documents import Documents, Format, Opened, Reader, series_in
from ..folders import Folders
from ..references import check_references
from ..ui.files_ui import FileRow, FilesState, FilesUI
from ..ui.parts import Choice
from ..ui.status_ui import StatusState
from ..work import Work
from .section import SectionLogic

__all__ = ["FilesLogic"]

_FORMATS = [
    Choice("Segmentation, to go on with (.seg.nrrd)", Format.SEG_NRRD.value),
    Choice("Labels (.nii.gz, names beside it)", Format.NIFTI.value),
    Choice("DICOM SEG (.dcm)", Format.DICOM_SEG.value),
    Choice("Scene with everything (.mrb)", Format.SCENE.value),
]
_DOWNLOAD = Choice("Download with the browser", "")
_SCENES = (".mrb", ".mrml")
_NO_LABELS = (*_SCENES, ".seg.nrrd")
_NOT_IN_NAMES = '/\\:*?"<>|'
_SHOWN_S = 0.15
"""How long a page gets to show that something is being read or written."""
_LARGE_MB = 10.0


class FilesLogic(SectionLogic[FilesState]):
    """Files.

    Args:
        server: holds the page's state.
        work: what is worked on.
        documents: read and write.
        folders: where files may be opened and saved.
        choose: works on what was opened.
    """

    def __init__(
        self,
        server: Server,
        work: Work,
        documents: Documents,
        folders: Folders,
        choose: Callable[[Opened], None],
    ) -> None:
        super().__init__(server, work, FilesState)
        self._documents, self._folders, self._choose = documents, folders, choose
        self._replaced: set[Path] = set()
        """Files the person has agreed to replace, or has saved this segmentation in before."""
        self._given_up: tuple[Path, object] | None = None
        """The scene the person was asked about, and what would not have been saved."""
        self._named: Any = None
        """The segmentation that the name in the dialog is for."""
        self._listed: dict[str, DicomSeries] = {}
        """By UID, the series that the dialog shows."""
        self._one_at_a_time = asyncio.Lock()
        self._status = TypedState(server.state, StatusState)
        self.data.formats = list(_FORMATS)
        self.data.places = [*(Choice(str(root), str(root)) for root in folders.roots), _DOWNLOAD]
        self.data.place = str(folders.roots[0])

    def set_ui(self, ui: FilesUI) -> None:
        """Listen to the widgets."""
        ui.open_clicked.connect(self.show_open)
        ui.row_clicked.connect(self._on_row)
        ui.labels_clicked.connect(lambda path: self._soon(path, self._label_reader))
        ui.up_clicked.connect(lambda: self._list(self._folders.parent(self.data.folder)))
        ui.open_folder_clicked.connect(lambda: create_task(self.open_folder()))
        ui.save_clicked.connect(self.show_save)
        ui.write_clicked.connect(self.save)
        ui.set_download(self.download)

    # Opening

    def show_open(self) -> None:
        """Show what can be opened."""
        self._list(self.data.folder or ("" if len(self._folders.roots) > 1 else str(self._folders.roots[0])))
        self.data.is_open_shown = True

    async def open(self, paths: Iterable[Path]) -> None:
        """Open files and DICOM folders one after the other, and work on the last; the page goes on meanwhile."""
        for path in paths:
            if not path.is_dir():
                await self._open(str(path), self._reader)
            elif found := await self._series_of(folder := path.resolve()):
                is_open = await self._open(str(folder), self._series_reader(found[0]))
                self._say_which_series(folder, found, is_open)

    async def open_folder(self) -> None:
        """Open the DICOM folder that is listed; where it holds several series, list those."""
        with self.work.errors_said():
            folder = self._folders.resolve(self.data.folder)
            found = await self._series_of(folder)
            has_gone_on = folder != self._folders.resolve(self.data.folder) or not self.data.is_open_shown
            if has_gone_on:  # the person, meanwhile
                return
            if len(found) == 1:
                self._soon(str(folder), self._series_reader(found[0]))
            elif found:
                self._listed = {series.uid: series for series in found}
                with self.state:
                    self.data.rows = [FileRow(_series_text(s), str(folder), series=s.uid) for s in found]

    async def _series_of(self, folder: Path) -> tuple[DicomSeries, ...]:
        """The series of a DICOM folder; none where it has been said why it cannot be opened."""
        found: tuple[DicomSeries, ...] = ()
        async with self._one_at_a_time:
            with self.work.errors_said():
                folder = self._folders.resolve(str(folder))
                self._say_loading(f"Looking at the files in {folder.name} ...")
                found = await asyncio.to_thread(series_in, folder)
            self._say_loading("")
        return found

    def _say_which_series(self, folder: Path, found: Sequence[DicomSeries], is_open: bool) -> None:
        if len(found) == 1:
            return
        first = _series_text(found[0])
        which = f"this is {first}" if is_open else f"{first} cannot be opened"
        self.work.said(
            f"{folder.name} holds {len(found)} series; {which}. Open, and there Open this folder as DICOM, lists all of"
            " them.",
            not is_open,
        )

    def _series_reader(self, series: DicomSeries) -> Callable[[Path], Reader]:
        return lambda folder: self._documents.series_reader(folder, series)

    def _reader(self, path: Path) -> Reader:
        return self._documents.reader(path)

    def _label_reader(self, path: Path) -> Reader:
        if self.session.volume_node is None:
            raise InputError("Open the volume that the labels lie on first.")
        return self._documents.label_reader(path, self.session.volume_node)

    def _on_row(self, path: str, series: str = "") -> None:
        if series:
            self.work.attempt(lambda: self._open_listed(path, series))
        elif any(row.path == path and row.is_folder for row in self.data.rows):
            self._list(path)
        else:
            self._soon(path, self._reader)

    def _open_listed(self, folder: str, uid: str) -> None:
        if uid not in self._listed:
            raise InputError("This list of series is not the newest one; open the folder again.")
        self._soon(folder, self._series_reader(self._listed[uid]))

    def _list(self, folder: str) -> None:
        self.work.attempt(lambda: self._show_folder(folder))

    def _show_folder(self, folder: str) -> None:
        self.data.rows = [
            FileRow(e.name, e.path, e.is_folder, not e.is_folder and not e.name.endswith(_NO_LABELS))
            for e in self._folders.entries(folder)
        ]
        self.data.folder = folder

    def _soon(self, path: str, reader_of: Callable[[Path], Reader]) -> None:
        self.data.is_open_shown = False
        create_task(self._open(path, reader_of))

    async def _open(self, path: str, reader_of: Callable[[Path], Reader]) -> bool:
        """Read in another thread, and then, in this one, which draws the views, put what was read into the scene.

        What is to be opened meanwhile waits.

        Returns:
            Whether that has succeeded; else it has been said why not.
        """
        async with self._one_at_a_time:
            return await self._open_now(path, reader_of)

    async def _open_now(self, path: str, reader_of: Callable[[Path], Reader]) -> bool:
        is_open = False
        with self.work.errors_said():
            file = self._folders.resolve(path)
            check_references(file, self._folders)
            if file.name.lower().endswith(_SCENES):
                self._check_replacing(file)
            read = reader_of(file)
            self._say_loading(f"Reading {file.name}{_size_text(file)} ...")
            # While Slicer reads, nothing else goes on: the page gets the time to say what is read before.
            put = (await asyncio.gather(asyncio.to_thread(read), asyncio.sleep(_SHOWN_S)))[0]
            if file.name.lower().endswith(_SCENES):
                self._check_replacing(file)  # of what has been drawn or begun meanwhile
            with self.state:
                self._choose(put())
            is_open = True
        self._say_loading("")
        self.work.look_soon()
        return is_open

    def _check_replacing(self, scene: Path) -> None:
        """A scene replaces what is open; what would be lost by that has to be given up by opening it again."""
        if self.work.is_running:
            raise InputError(
                f"{scene.name} replaces what is open; wait for what runs, or cancel it, before you open it."
            )
        names = [node.GetName() for node in self._documents.unsaved()]
        question = (scene, self._documents.stamps())
        if names and self._given_up != question:
            self._given_up = question
            raise InputError(
                f"{scene.name} replaces what is open, but {', '.join(names)} has changes that are not saved;"
                " save them, or open it again to give them up."
            )

    def _say_loading(self, text: str) -> None:
        with self.state:
            self._status.data.loading = text

    # Saving

    def show_save(self) -> None:
        """Ask what to save, and where."""
        node = self.session.segmentation_node or self.session.volume_node
        if node is None:
            self.work.said("There is nothing to save yet; open a volume first.", True)
            return
        if node is not self._named:  # another patient's file must not be replaced by accident
            self._named, self.data.file_name = node, ""
            self._replaced.clear()
            self.data.place = self._place_beside(self.session.volume_node)
        self.data.file_name = self.data.file_name or _as_file_name(node.GetName())
        self.data.is_save_shown = True

    def _place_beside(self, volume_node: Any) -> str:
        """The folder that a volume is from, if files may be saved there; else, and for downloads, what was chosen."""
        source = None if volume_node is None else self._documents.source_of(volume_node)
        found = [root for root in self._folders.roots if source is not None and source.is_relative_to(root)]
        return str(found[0]) if found and self.data.place else self.data.place

    async def save(self) -> None:
        """Write into the chosen folder."""
        await self._say_saving()
        try:
            path = self._target()
            await self._write(path)
            self.data.is_save_shown = False
            self.work.said(f"Saved as {path}.", False)
        except (MedSSLError, OSError) as error:
            self.work.said(str(error), True)
        finally:
            self.data.is_saving = False

    async def download(self) -> Any:
        """Write into the browser's downloads; several files become one archive."""
        await self._say_saving()
        try:
            with TemporaryDirectory() as folder:
                await self._write(Path(folder) / self._file_name())
                return self.server.protocol.addAttachment(_packed(Path(folder)))
        except (MedSSLError, OSError) as error:
            self.work.said(str(error), True)
            return None
        finally:
            self.data.is_saving = self.data.is_save_shown = False

    async def _say_saving(self) -> None:
        with self.state:
            self.data.is_saving = True
        # While Slicer writes, nothing else goes on: the page gets the time to say that something is written before.
        await asyncio.sleep(_SHOWN_S)

    def _target(self) -> Path:
        """The file to write; one that is there already has to be asked for twice."""
        path = self._folders.resolve(self.data.place) / self._file_name()
        if path.is_symlink() or path in self._documents.sources():
            raise InputError(
                f"{path.name} is an image that is open, or leads elsewhere; choose another name."
            )
        is_agreed = path in self._replaced or not path.exists()
        self._replaced.add(path)
        if not is_agreed:
            raise InputError(f"{path.name} is there already; press Save again to replace it.")
        return path

    def _file_name(self) -> str:
        name = self.data.file_name.strip()
        if not name or name.startswith(".") or set(name) & set(_NOT_IN_NAMES):
            raise InputError(f"'{name}' cannot be the name of a file; use letters, digits, spaces, - and _.")
        return f"{name}{self.data.format}"

    async def _write(self, path: Path) -> None:
        form, opened = (
            Format(self.data.format),
            Opened(self.session.volume_node, self.session.segmentation_node),
        )
        stamps = self._documents.stamps(None if form is Format.SCENE else [opened.segmentation_node])
        if form is not Format.SCENE and opened.segmentation_node is None:
            raise InputError("There is no segmentation to save; step 1 makes one.")
        await asyncio.to_thread(self._documents.writer(form, path, opened, self.session.volume))
        self._documents.note_saved(stamps)


def _as_file_name(name: str) -> str:
    """A node's name as a file may be called; 3D Slicer calls a DICOM series "3: Thorax", for example."""
    return "".join("-" if each in _NOT_IN_NAMES else each for each in name).lstrip(".") or "segmentation"


def _series_text(series: DicomSeries) -> str:
    """One line of the list of series."""
    slices = "1 slice" if series.slices == 1 else f"{series.slices} slices"
    return f"{series.description or 'without a description'} ({series.modality}, {slices})"


def _size_text(path: Path) -> str:
    """How large a file is, where that says something about how long it takes."""
    size_mb = path.stat().st_size / 1e6
    return f" ({size_mb:.0f} MB)" if path.is_file() and size_mb >= _LARGE_MB else ""


def _packed(folder: Path) -> bytes:
    """The only file of a folder, or an archive of several."""
    files = sorted(folder.iterdir())
    if len(files) == 1:
        return files[0].read_bytes()
    archive = folder / "archive.zip"
    with ZipFile(archive, "w") as zipped:
        for file in files:
            zipped.write(file, file.name)
    return archive.read_bytes()

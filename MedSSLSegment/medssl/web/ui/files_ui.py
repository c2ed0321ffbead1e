"""Opening and saving, in the folders named on the command line; saving also as a download."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from trame.widgets.html import Div, Span
from trame.widgets.vuetify3 import (
    VCard,
    VCardActions,
    VCardText,
    VCardTitle,
    VDialog,
    VList,
    VListItem,
    VSpacer,
    VTextField,
)
from trame_server.utils.typed_state import TypedState
from undo_stack import Signal

from .parts import Button, Choice, Hint, IconButton, Select, named

__all__ = ["FileRow", "FilesState", "FilesUI"]


@dataclass
class FileRow:
    """One line of a folder's list."""

    name: str = ""
    path: str = ""
    is_folder: bool = False
    is_image: bool = False
    """Whether it may hold labels."""
    series: str = ""
    """UID of a DICOM series in the folder `path`; empty for a file or folder."""


@dataclass
class FilesState:
    """The two dialogs."""

    is_open_shown: bool = False
    folder: str = ""
    """The folder that is listed, or whose series are; empty for the list of folders."""
    rows: list[FileRow] = field(default_factory=list)
    is_save_shown: bool = False
    formats: list[Choice] = field(default_factory=list)
    format: str = ".seg.nrrd"
    file_name: str = ""
    """Without the suffix."""
    places: list[Choice] = field(default_factory=list)
    place: str = ""
    """Folder to save in; empty = download."""
    is_saving: bool = False


class FilesUI(Div):  # type: ignore[misc]
    """Two buttons and their dialogs."""

    open_clicked = Signal()
    row_clicked = Signal(str, str)
    labels_clicked = Signal(str)
    up_clicked = Signal()
    open_folder_clicked = Signal()
    save_clicked = Signal()
    write_clicked = Signal()

    def __init__(self) -> None:
        super().__init__(classes="d-flex align-center")
        self._state = TypedState(self.state, FilesState)
        self._download: Callable[[], Awaitable[Any]]
        with self:
            Button(
                "Open", "Open a volume, a DICOM folder, a segmentation or a scene. (O)", self.open_clicked,
                prepend_icon="mdi-folder-open-outline", variant="text", **named("open"),
            )  # fmt: skip
            Button(
                "Save", "Save the segmentation or the scene. (Ctrl+S)", self.save_clicked,
                prepend_icon="mdi-content-save-outline", variant="text", **named("save"),
            )  # fmt: skip
            self._build_open()
            self._build_save()

    def _build_open(self) -> None:
        name = self._state.name
        click = self.server.controller.trigger_name(self.row_clicked)
        labels = self.server.controller.trigger_name(self.labels_clicked)
        with VDialog(v_model=(name.is_open_shown,), max_width=640), VCard():
            VCardTitle("Open")
            with VCardText():
                with Div(classes="d-flex align-center ga-2"):
                    IconButton(
                        "mdi-arrow-up", "The folder above", self.up_clicked, disabled=(f"!{name.folder}",)
                    )
                    Span(f"{{{{ {name.folder} || 'Folders named when the workstation was started' }}}}")
                with (
                    VList(density="compact", style="height: 360px; overflow-y: auto", **named("files")),
                    # Beside each other: a press on the button that is let go beside it must not open the row.
                    Div(
                        v_for=(f"each in {name.rows}",), key="each.path + each.series",
                        classes="d-flex align-center", **named("file"),
                    ),
                ):  # fmt: skip
                    VListItem(
                        classes="flex-grow-1",
                        title=("each.name",),
                        prepend_icon=(
                            "each.is_folder ? 'mdi-folder' : each.series ? 'mdi-layers-outline' : 'mdi-file-outline'",
                        ),
                        click=f"trigger('{click}', [each.path, each.series])",
                    )
                    IconButton(
                        "mdi-shape-outline",
                        "Open as labels: a segmentation of the volume that is open",
                        f"trigger('{labels}', [each.path])",
                        v_if=("each.is_image",),
                        **named("open-as-labels"),
                    )
                Hint(
                    "NIfTI, NRRD, MetaImage, .seg.nrrd, scenes (.mrb; they replace what is open), DICOM folders.",
                )
            with VCardActions():
                Button(
                    "Open this folder as DICOM", "Read the images in this folder; of several series, choose one.",
                    self.open_folder_clicked, disabled=(f"!{name.folder}",),
                )  # fmt: skip
                VSpacer()
                Button("Close", "Open nothing. (Esc)", f"{name.is_open_shown} = false")

    def _build_save(self) -> None:
        name = self._state.name
        with VDialog(v_model=(name.is_save_shown,), max_width=520), VCard():
            VCardTitle("Save")
            with VCardText(classes="d-flex flex-column ga-4"):
                Select(
                    "What",
                    name.format,
                    name.formats,
                    "What is written, in which format.",
                    **named("save-format"),
                )
                VTextField(
                    v_model=(name.file_name,), label="Name", suffix=(name.format,), density="compact",
                    variant="outlined", hide_details=True, **named("save-name"),
                )  # fmt: skip
                Select(
                    "Where", name.place, name.places, "A folder of this computer, or the browser's downloads."
                )
            with VCardActions(classes="justify-end"):
                Button("Cancel", "Save nothing. (Esc)", f"{name.is_save_shown} = false")
                Button(
                    "Save", "Write it.", self._write_script(), color="primary", variant="flat",
                    loading=(name.is_saving,), disabled=(f"!{name.file_name}",), **named("write"),
                )  # fmt: skip

    def _write_script(self) -> str:
        """Save in the chosen folder, or have the browser download what the server sends."""
        name, trigger_name = self._state.name, self.server.controller.trigger_name
        file_name = f"{name.file_name} + ({name.format} === '.nii.gz' ? '.zip' : {name.format})"
        return (
            f"{name.place} ? trigger('{trigger_name(self.write_clicked)}')"
            f" : trigger('{trigger_name(self._on_download)}').then((data) => data"
            f" && utils.download({file_name}, data, 'application/octet-stream'))"
        )

    def set_download(self, download: Callable[[], Awaitable[Any]]) -> None:
        """Say who makes what the browser downloads."""
        self._download = download

    async def _on_download(self) -> Any:
        return await self._download()

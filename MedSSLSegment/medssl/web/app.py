"""The workstation, put together: trame-slicer's application, the work on its scene, logic and widgets.

workstation = Workstation(WorkstationOptions(paths=[Path("ct.nii.gz")]))
workstation.start(port=8080, announce=print)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trame.app import TrameApp
from trame_server import Server
from trame_server.utils.asynchronous import create_task
from trame_server.utils.typed_state import TypedState
from trame_slicer import module as trame_slicer_module
from trame_slicer.app.logic import SegmentEditorLogic
from trame_slicer.app.ui import PaintEffectState
from trame_slicer.core import SlicerApp

from .. import __version__
from ..client import WorkerClient
from .documents import Documents
from .folders import Folders
from .logic.annotate_step_logic import AnnotateStepLogic
from .logic.files_logic import FilesLogic
from .logic.focus import Focus
from .logic.keys_logic import KeysLogic
from .logic.predict_step_logic import PredictStepLogic
from .logic.propagate_step_logic import PropagateStepLogic
from .logic.status_logic import StatusLogic
from .logic.teach_step_logic import TeachStepLogic
from .logic.views_logic import ViewsLogic
from .logic.volume_step_logic import VolumeStepLogic
from .serving import serve
from .ui.layout import WorkstationUI
from .work import Work

__all__ = ["Workstation", "WorkstationOptions"]

_SERVED = f"medssl_{__version__}"
_MODULE = {
    "serve": {_SERVED: str(Path(__file__).with_name("serve").resolve())},
    "scripts": [f"{_SERVED}/{name}.js" for name in ("errors", "typed", "keys", "wheel", "steps")],
}
_PREDICT_STEP = 3


@dataclass(frozen=True, kw_only=True)
class WorkstationOptions:
    """What the workstation is started with."""

    paths: Sequence[Path] = ()
    """Files and DICOM folders to open; files can be opened from their folders, and saved there."""
    cases: Path | None = None
    """Case store, None = the usual one."""


class Workstation(TrameApp):  # type: ignore[misc]
    """One page, however many browsers show it.

    Args:
        options: what to open, and where things are kept.
        client: the worker.
        server: trame's server, None = a new one.
    """

    def __init__(
        self, options: WorkstationOptions, client: WorkerClient, server: Server | str | None = None
    ) -> None:
        super().__init__(server)
        self.server.enable_module(trame_slicer_module)
        self.server.enable_module(_MODULE)
        self.server.state.trame__title = "MedSSLSegment"
        self._options = options
        slicer_app = SlicerApp()
        self.work = Work(slicer_app, client, options.cases)
        self._documents = Documents(slicer_app)
        self._make_logic(slicer_app)
        self._ui = WorkstationUI(self.server, self.views.layout_manager)
        self._connect()

    def _make_logic(self, slicer_app: SlicerApp) -> None:
        server, work = self.server, self.work
        focus = Focus(slicer_app.view_manager)
        self.views = ViewsLogic(server, work, focus)
        # A brush that is a ball would change the slices beside the one that is corrected, and vouch for them.
        TypedState(server.state, PaintEffectState).data.use_sphere_brush = False
        self.editor = SegmentEditorLogic(server, slicer_app)
        work.share_undo()
        self.status = StatusLogic(server, work)
        self.volume = VolumeStepLogic(server, work, self._documents)
        self.annotate = AnnotateStepLogic(server, work, focus)
        self.propagate = PropagateStepLogic(server, work)
        self.predict = PredictStepLogic(server, work)
        folders = Folders(self._options.paths or [Path.cwd()])
        self.teach = TeachStepLogic(server, work, folders)
        self.files = FilesLogic(server, work, self._documents, folders, self.volume.choose)
        self.keys = KeysLogic(server, work, self._actions())

    def _connect(self) -> None:
        ui, server = self._ui, self.server
        self.editor.set_ui(ui.editor)
        self.status.set_ui(ui.status)
        self.views.set_ui(ui.views)
        self.files.set_ui(ui.files)
        self.volume.set_ui(ui.volume)
        self.annotate.set_ui(ui.annotate)
        self.propagate.set_ui(ui.propagate)
        self.predict.set_ui(ui.predict)
        self.teach.set_ui(ui.teach)
        ui.undo_clicked.connect(self.status.undo)
        ui.redo_clicked.connect(self.status.redo)
        ui.key_pressed.connect(self.keys.press)
        server.controller.trigger("medssl_key")(self.keys.press)
        server.state.change(ui.steps_name)(self._on_steps)

    def _actions(self) -> dict[str, tuple[str, Callable[[], object]]]:
        annotate, views = self.annotate, self.views
        keys: dict[str, tuple[str, Callable[[], object]]] = {
            "P": ("+ Point, or lay it down", lambda: annotate.pick("point")),
            "N": ("- Point", lambda: annotate.pick("negative")),
            "B": ("Box", lambda: annotate.pick("box")),
            "S": ("Scribble", lambda: annotate.pick("scribble")),
            "Enter": ("Accept the preview", annotate.accept),
            "Escape": ("Drop the preview", annotate.drop),
            "A": ("Another answer to the click or the box", annotate.show_another),
            "Backspace": ("Take the last prompt back", annotate.take_back),
            "G": ("Propagate", self.propagate.propagate),
            "R": ("Redo what changed", self.propagate.redo_changed),
            "J": ("Next slice worth annotating", self.propagate.go_to_next),
            "C": ("Compare stages", self.predict.compare),
            "U": ("Overlay the uncertainty", self.predict.toggle_map),
            "Ctrl+Z": ("Undo", self.status.undo),
            "Ctrl+Y": ("Redo", self.status.redo),
            "W": ("Drag changes the window", views.toggle_window_tool),
            "X": ("Crosshair", views.toggle_crosshair),
            "D": ("Surfaces in 3D", views.toggle_surfaces),
            "F": ("Fit every view", views.fit),
            "L": ("Next layout", views.next_layout),
            "O": ("Open", self.files.show_open),
            "Ctrl+S": ("Save", self.files.show_save),
        }
        for number, choice in enumerate(views.data.windows, start=1):
            keys[str(number)] = (f"Window: {choice.title}", partial(views.set_window, choice.value))
        return keys

    def _on_steps(self, **_: Any) -> None:
        """Ask the worker what there is, when step 4 or 5 is opened."""
        opened = self.server.state[self._ui.steps_name] or []
        looks = any(step >= _PREDICT_STEP for step in opened)
        if looks and not self.work.follows_run:
            self.teach.refresh()
        self.work.follows_run = looks

    def start(self, *, port: int, announce: Callable[[str], None], open_browser: bool = True) -> None:
        """Open what was named, and serve until it is interrupted."""
        self.server.controller.on_server_ready.add(self._on_ready)
        self.server.controller.on_client_connected.add(self._on_page)
        serve(self.server, port=port, announce=announce, open_browser=open_browser)

    def _on_page(self, **_: Any) -> None:
        """A page was opened, or loaded again."""
        with self.server.state:
            self.annotate.list_models()
            self.propagate.list_models()

    def _on_ready(self, **_: Any) -> None:
        create_task(self.files.open(self._options.paths))
        self.work.attempt(self.work.client.hello)
        create_task(self.work.run(self.server.state))

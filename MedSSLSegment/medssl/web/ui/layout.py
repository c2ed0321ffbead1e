"""The page: a bar, the views, the five steps, a status line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trame.ui.vuetify3 import VAppLayout
from trame.widgets import client
from trame.widgets.html import Div, Span
from trame.widgets.vuetify3 import (
    VAppBar,
    VCard,
    VExpansionPanel,
    VExpansionPanels,
    VExpansionPanelText,
    VExpansionPanelTitle,
    VMain,
    VNavigationDrawer,
    VOverlay,
    VProgressCircular,
    VSpacer,
)
from trame_server import Server
from trame_server.utils.typed_state import TypedState
from trame_slicer.core import LayoutManager
from undo_stack import Signal

from .annotate_step_ui import AnnotateStepUI
from .editor_ui import EditorUI
from .files_ui import FilesUI
from .help_ui import HelpUI
from .parts import IconButton, named
from .predict_step_ui import PredictStepUI
from .propagate_step_ui import PropagateStepUI
from .status_ui import StatusState, StatusUI
from .teach_step_ui import TeachStepUI
from .views_ui import ViewsUI
from .volume_step_ui import VolumeStepUI

__all__ = ["STEPS", "PageState", "WorkstationUI"]

STEPS = (
    "1. Volume and segment",
    "2. Annotate one slice",
    "3. Propagate",
    "4. Predict and refine",
    "5. Teach",
)

_DRAWER_PX = 372
_STYLE = """
html { overflow: hidden; }
.v-expansion-panel-title { min-height: 40px !important; padding: 8px 16px; font-weight: 600; }
.v-expansion-panel-text__wrapper { padding: 4px 14px 14px; }
.v-expansion-panel--active:not(:first-child), .v-expansion-panel--active + .v-expansion-panel { margin-top: 2px; }
.medssl-segments .v-list { padding: 0; max-height: 240px; overflow-y: auto; }
.medssl-segments .v-list-item { padding-inline: 4px; min-height: 36px; }
.medssl-options .v-card-item { padding: 0 8px; }
.medssl-options .v-card-text { padding: 0 8px 12px; }
.medssl-segments .v-field__input { padding: 4px 8px; min-height: 32px; }
.slice-slider-gutter { bottom: 16px !important; opacity: 0.55; }
.slice-slider-gutter:hover { opacity: 1; }
.slice-slider .v-slider-thumb__surface { width: 12px; height: 12px; }
.slice-slider .v-slider-track__background, .slice-slider .v-slider-track__fill { height: 2px !important; }
.slice-slider .v-slider-thumb, .slice-slider .v-slider-track__fill { transition: none !important; }
.layout-grid-item { contain: strict; }
.v-btn--disabled.v-btn--variant-flat { background-color: #2f2f2f !important; color: #757575 !important; }
.v-btn--disabled .v-btn__overlay { opacity: 0 !important; }
.v-snackbar { z-index: 3000 !important; }
[data-test=stages] .v-btn { min-width: 0; padding: 0 7px; letter-spacing: normal; }
.view-gutter-content .v-btn { min-width: 28px; opacity: 0.7; }
"""


@dataclass
class PageState:
    """What of the page is open."""

    steps: list[int] = field(default_factory=lambda: [0, 1])
    """Numbers of the steps that are open, the first is 0."""


class WorkstationUI:
    """Everything on the page.

    Args:
        server: holds the state.
        layout_manager: trame-slicer's, for the views.
    """

    undo_clicked = Signal()
    redo_clicked = Signal()
    key_pressed = Signal(str)

    def __init__(self, server: Server, layout_manager: LayoutManager) -> None:
        self._server = server
        self._page = TypedState(server.state, PageState)
        self._status = TypedState(server.state, StatusState)
        with VAppLayout(server) as self.layout:
            self.layout.root.theme = "dark"
            client.Style(_STYLE)
            self._build_bar()
            self._build_steps()
            self.status = StatusUI()
            with VMain(), Div(classes="d-flex fill-height", style="height: calc(100vh - 88px)"):
                layout_manager.initialize_layout_grid(self.layout)
            self.help = HelpUI()
            self._build_loading()

    @property
    def steps_name(self) -> str:
        """Name of the state that holds which steps are open."""
        return str(self._page.name.steps)

    def _build_bar(self) -> None:
        status = self._status.name
        with VAppBar(density="compact", height=48, flat=True, border=True):
            Span("MedSSLSegment", classes="text-subtitle-1 font-weight-bold ml-4 mr-2")
            self.files = FilesUI()
            IconButton(
                "mdi-undo", "Undo: painting, an accepted preview, a propagation or a prediction. (Ctrl+Z)",
                self.undo_clicked, disabled=(f"!{status.can_undo}",), **named("undo"),
            )  # fmt: skip
            IconButton(
                "mdi-redo", "Bring back what Undo took away. (Ctrl+Y)", self.redo_clicked,
                disabled=(f"!{status.can_redo}",), **named("redo"),
            )  # fmt: skip
            VSpacer()
            self.views = ViewsUI()
            IconButton(
                "mdi-help-circle-outline",
                "Keys and the mouse (?)",
                lambda: self.key_pressed("?"),
                **named("help"),
            )

    def _build_steps(self) -> None:
        with VNavigationDrawer(
            location="right",
            permanent=True,
            disable_resize_watcher=True,
            disable_route_watcher=True,
            width=_DRAWER_PX,
        ):
            with Div(style="height: 0; overflow: hidden"):
                self.editor = EditorUI()
            with VExpansionPanels(v_model=(self._page.name.steps,), multiple=True, variant="accordion"):
                with self._step(0):
                    self.volume = VolumeStepUI(self.editor)
                with self._step(1):
                    self.annotate = AnnotateStepUI(self.editor)
                with self._step(2):
                    self.propagate = PropagateStepUI()
                with self._step(3):
                    self.predict = PredictStepUI()
                with self._step(4):
                    self.teach = TeachStepUI()

    def _step(self, number: int) -> Any:
        with VExpansionPanel(value=(number,), eager=True, **named(f"step-{number + 1}")):
            VExpansionPanelTitle(STEPS[number])
            return VExpansionPanelText(eager=True)

    def _build_loading(self) -> None:
        name = self._status.name
        with (
            VOverlay(
                model_value=(f"!!{name.loading}",),
                persistent=True,
                classes="medssl-loading align-center justify-center",
                scrim="black",
            ),
            VCard(classes="d-flex flex-column align-center ga-4 pa-6", min_width=280, **named("loading")),
        ):
            VProgressCircular(indeterminate=True, size=48)
            Span(f"{{{{ {name.loading} }}}}")

"""The bar above the views: window, layout, crosshair, and the label of every slice view."""

from __future__ import annotations

from dataclasses import dataclass, field

from trame.widgets.html import Div, Span
from trame.widgets.vuetify3 import Template, VBtn, VList, VListItem, VMenu
from trame_server import Server
from trame_server.utils.typed_state import TypedState
from trame_slicer.app.ui import LayoutButtonState, SegmentEditorState, create_vertical_slice_view_gutter_ui
from trame_slicer.views import SliceView
from undo_stack import Signal

from .parts import Choice, IconButton, named

__all__ = ["SliceLabelState", "ViewsState", "ViewsUI", "create_slice_view_ui"]


_OVER_THE_IMAGE = (
    "position: absolute; color: #d0d7de; pointer-events: none;"
    " text-shadow: 0 0 2px black, 0 0 3px black, 0 0 5px black"
)
"""To be read over a white image too."""


@dataclass
class ViewsState:
    """How the views show the volume."""

    windows: list[Choice] = field(default_factory=list)
    window: str = ""
    """Name of the preset, or the numbers."""
    is_crosshair_on: bool = False
    is_window_tool_on: bool = False
    """Whether dragging in a slice view changes the window."""
    is_volume_in_3d: bool = False


@dataclass
class SliceLabelState:
    """The words in the corner of one slice view."""

    text: str = ""
    left: str = ""
    """The patient's side at the left edge of the view."""
    top: str = ""


class ViewsUI(Div):  # type: ignore[misc]
    """Buttons for the views."""

    window_clicked = Signal(str)
    window_tool_clicked = Signal()
    crosshair_clicked = Signal()
    volume_in_3d_clicked = Signal()
    surfaces_clicked = Signal()
    reset_clicked = Signal()

    def __init__(self) -> None:
        super().__init__(classes="d-flex align-center")
        self._state = TypedState(self.state, ViewsState)
        self._layout = TypedState(self.state, LayoutButtonState)
        self._editor = TypedState(self.state, SegmentEditorState)
        with self:
            self._build_windows()
            self._build_layouts()
            self._build_buttons()

    def _build_windows(self) -> None:
        name = self._state.name
        with VMenu(location="bottom"):
            with Template(v_slot_activator="{ props }"), VBtn(
                v_bind="props", title="Window of the slice views (1 to 7)", size="small", variant="text",
                prepend_icon="mdi-contrast-circle", append_icon="mdi-menu-down", classes="text-none",
                **named("window"),
            ):  # fmt: skip
                Span(f"{{{{ {name.window} || 'Window' }}}}")
            with VList(density="compact"):
                click = self.server.controller.trigger_name(self.window_clicked)
                VListItem(
                    v_for=(f"(each, n) in {name.windows}",),
                    key="each.value",
                    title=("`${n + 1}   ${each.title}`",),
                    click=f"trigger('{click}', [each.value])",
                )

    def _build_layouts(self) -> None:
        name = self._layout.name
        with VMenu(location="bottom"):
            with Template(v_slot_activator="{ props }"):
                IconButton("mdi-view-dashboard-outline", "Layout of the views (L)", v_bind="props")
            with VList(density="compact"):
                VListItem(
                    v_for=(f"each in {name.layout_ids}",),
                    key="each",
                    title=("each",),
                    active=(f"each === {name.current_layout_id}",),
                    click=f"{name.current_layout_id} = each",
                )

    def _build_buttons(self) -> None:
        name = self._state.name
        for icon, tip, click, is_on in (
            ("mdi-theme-light-dark", "Drag in a slice view changes the window (W)", self.window_tool_clicked,
             name.is_window_tool_on),
            ("mdi-crosshairs", "Crosshair; Shift and the mouse move it (X)", self.crosshair_clicked,
             name.is_crosshair_on),
            ("mdi-video-3d", "Surfaces of the segments in the 3D view (D)", self.surfaces_clicked,
             self._editor.name.segment_display.show_3d),
            ("mdi-cube-scan", "Volume rendering in the 3D view; slow without a graphics card",
             self.volume_in_3d_clicked, name.is_volume_in_3d),
        ):  # fmt: skip
            IconButton(icon, tip, click, color=(f"{is_on} ? 'primary' : undefined",))
        IconButton("mdi-fit-to-screen-outline", "Fit every view (F)", self.reset_clicked)


def create_slice_view_ui(server: Server, view_id: str, view: SliceView) -> None:
    """trame-slicer's buttons and slider over a slice view, and a label of ours."""
    create_vertical_slice_view_gutter_ui(server, view_id, view)
    label = TypedState(server.state, SliceLabelState, namespace=view_id)
    for side, place in (
        (label.name.left, "left: 8px; top: 50%"),
        (label.name.top, "left: 50%; top: 4px"),
    ):
        Div(f"{{{{ {side} }}}}", classes="text-body-2 font-weight-bold", style=f"{_OVER_THE_IMAGE}; {place}")
    Div(
        f"{{{{ {label.name.text} }}}}",
        classes="text-caption",
        style=f"{_OVER_THE_IMAGE}; top: 6px; right: 10px; white-space: pre; text-align: right",
        raw_attrs=[f'data-test="label-{view_id}"', f'data-slice-view="{view.get_singleton_tag()}"'],
    )

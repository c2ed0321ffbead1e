"""The views: window presets, crosshair, what is shown in 3D, labels of slices."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import slicer
from trame_server import Server
from trame_server.utils.typed_state import TypedState
from trame_slicer.app.logic import LayoutButtonLogic, get_view_trame_id
from trame_slicer.app.ui import SegmentEditorState
from trame_slicer.core import LayoutManager, VolumeWindowLevel
from trame_slicer.rca_view import register_rca_factories
from trame_slicer.views import SliceView
from vtkmodules.vtkCommonCore import vtkCommand, vtkObject

from ...errors import InputError
from ...volume import WINDOWS
from ..ui.parts import Choice
from ..ui.views_ui import SliceLabelState, ViewsState, ViewsUI, create_slice_view_ui
from ..work import Work
from .focus import Focus
from .scroll_logic import ScrollLogic
from .section import SectionLogic
from .slices import meeting_point, slice_in_view

__all__ = ["ViewsLogic", "side_of"]

_CT_AIR_HU = -500.0
"""A volume with anything darker is taken for a CT."""
_FIRST_WINDOW = "soft-tissue"
_SURFACES_S = 0.2
"""Until surfaces that are asked for are there."""
_VR_PRESET = "CT-Coronary-Arteries-3"
_FPS, _FPS_ELSEWHERE = 30, 4
"""Pictures a second at most, of the view under the mouse and of the others: drawn without a graphics card, more of
them leave no time for the mouse between two."""
_QUALITY = 90
"""Of every picture, in percent: as good as those of a view at rest, which then need not be drawn a second time."""


class ViewsLogic(SectionLogic[ViewsState]):
    """How the volume is shown.

    Args:
        server: holds the page's state.
        work: what is worked on.
        focus: says which view is drawn alone.
    """

    def __init__(self, server: Server, work: Work, focus: Focus) -> None:
        super().__init__(server, work, ViewsState)
        views = self._slicer_app.view_manager
        register_rca_factories(
            views,
            server,
            slice_view_ui_f=create_slice_view_ui,
            target_fps=_FPS,
            blur_fps=_FPS_ELSEWHERE,
            interactive_quality=_QUALITY,
        )
        self._editor = TypedState(server.state, SegmentEditorState)
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._labels: dict[str, TypedState[SliceLabelState]] = {}
        with _vtk_keeps_quiet():  # trame-slicer observes an event that VTK 9.6 advises against
            self._layouts = LayoutButtonLogic(server, self._slicer_app)
            for view in views.get_slice_views():
                self._prepare(view)
        self.data.windows = [Choice(_title(name), name) for name in WINDOWS]
        self._scroll = ScrollLogic(views, focus)
        server.controller.trigger("medssl_scroll")(self._scroll.scroll)
        work.chosen.connect(self._on_nodes_chosen)

    @property
    def layout_manager(self) -> LayoutManager:
        """trame-slicer's, for the page."""
        return self._layouts.layout_manager

    def set_ui(self, ui: ViewsUI) -> None:
        """Listen to the widgets."""
        ui.window_clicked.connect(self.set_window)
        ui.window_tool_clicked.connect(self.toggle_window_tool)
        ui.crosshair_clicked.connect(self.toggle_crosshair)
        ui.surfaces_clicked.connect(self.toggle_surfaces)
        ui.volume_in_3d_clicked.connect(self.toggle_volume_in_3d)
        ui.reset_clicked.connect(self.fit)

    def set_window(self, name: str) -> None:
        """Apply a preset."""
        if self.session.volume_node is not None:
            window = WINDOWS[name]
            VolumeWindowLevel.set_volume_node_window_level(
                self.session.volume_node, window.width, window.level
            )
        self.show()

    def next_layout(self) -> None:
        """Show the next layout, round and round."""
        ids = self.layout_manager.get_layout_ids()
        self._layouts.data.current_layout_id = ids[(ids.index(self.layout_manager.layout_id) + 1) % len(ids)]

    def toggle_window_tool(self) -> None:
        """Dragging in a slice view changes the window, or not."""
        interaction = self.scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
        is_on = interaction.GetCurrentInteractionMode() == interaction.AdjustWindowLevel
        if not is_on:
            self.work.editor.deactivate_effect()
        interaction.SetCurrentInteractionMode(
            interaction.ViewTransform if is_on else interaction.AdjustWindowLevel
        )
        self.show()

    def toggle_crosshair(self) -> None:
        """Show the crosshair, or hide it."""
        self.work.attempt(self._toggle_crosshair)
        self.show()

    def _toggle_crosshair(self) -> None:
        node = self.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        is_on = node.GetCrosshairMode() != node.NoCrosshair
        if not is_on:
            views = self._slicer_app.view_manager.get_slice_views()
            node.SetCrosshairRAS(meeting_point(self.session.volume(), views))
        node.SetCrosshairMode(node.NoCrosshair if is_on else node.ShowBasic)

    def toggle_volume_in_3d(self) -> None:
        """Render the volume in the 3D view, or not."""
        self.work.attempt(self._toggle_volume_in_3d)
        self.show()

    def toggle_surfaces(self) -> None:
        """Show the segments' surfaces in the 3D view, or not."""
        display = self._editor.data.segment_display
        display.show_3d = not display.show_3d
        if display.show_3d:
            asyncio.get_running_loop().call_later(_SURFACES_S, self._face_surfaces)

    def _face_surfaces(self) -> None:
        for view in self._slicer_app.view_manager.get_threed_views():
            view.reset_view()

    def fit(self) -> None:
        """Show all of the volume in every view, on the slices they show."""
        views = self._slicer_app.view_manager.get_slice_views()
        offsets = [view.get_slice_value() for view in views]
        self._slicer_app.display_manager.reset_views()
        for view, offset in zip(views, offsets, strict=True):
            view.set_slice_value(offset)

    def show(self) -> None:
        """Show how the views stand."""
        volume, data = self.session.volume_node, self.data
        data.window = "" if volume is None else _window_text(volume.GetDisplayNode())
        crosshair = self.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        data.is_crosshair_on = crosshair is not None and crosshair.GetCrosshairMode() != crosshair.NoCrosshair
        interaction = self.scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
        data.is_window_tool_on = (
            interaction is not None
            and interaction.GetCurrentInteractionMode() == interaction.AdjustWindowLevel
        )
        rendering = None if volume is None else self._slicer_app.volume_rendering.get_vr_display_node(volume)
        data.is_volume_in_3d = rendering is not None and bool(rendering.GetVisibility())

    def _on_nodes_chosen(self) -> None:
        volume = self.session.volume_node
        shown = self._slicer_app.view_manager.get_slice_views()[0].get_background_volume_id()
        if volume is None or volume.GetID() == shown:
            return
        self._slicer_app.display_manager.show_volume_in_slice_background(volume)
        if volume.GetDisplayNode() is None:
            volume.CreateDefaultDisplayNodes()
        if volume.GetImageData().GetScalarRange()[0] < _CT_AIR_HU:
            self.set_window(_FIRST_WINDOW)
        self._slicer_app.display_manager.reset_views()

    def _toggle_volume_in_3d(self) -> None:
        volume, rendering = self.session.volume_node, self._slicer_app.volume_rendering
        if volume is None:
            raise InputError("Open a volume first.")
        node = rendering.get_vr_display_node(volume)
        if node is None:
            rendering.create_display_node(volume, _VR_PRESET)
        else:
            node.SetVisibility(not node.GetVisibility())

    def _prepare(self, view: SliceView) -> None:
        # A slice is an image, its outlines too: several samples a pixel look the same, and take five times as long.
        view.render_window().SetMultiSamples(0)
        view.set_ruler(slicer.vtkMRMLAbstractViewNode.RulerTypeThin)
        namespace = get_view_trame_id(self.server, view)
        self._labels[namespace] = TypedState(self.state, SliceLabelState, namespace=namespace)
        view.modified.connect(self._show_label)
        view.interactor().AddObserver(vtkCommand.WindowResizeEvent, lambda *_: self._fit_new_size(view))

    def _fit_new_size(self, view: SliceView) -> None:
        """Fit a view whose size has changed, on the slice it shows; a page that is loaded again changes nothing."""
        size = tuple(view.render_window().GetSize())
        if self._sizes.get(view.name) != size:
            self._sizes[view.name] = size
            offset = view.get_slice_value()
            view.fit_view_to_content()
            view.set_slice_value(offset)

    def _show_label(self, view: SliceView) -> None:
        label = self._labels[get_view_trame_id(self.server, view)]
        label.data.text = self._label(view)
        to_ras = view.get_view_node().GetSliceToRAS()
        to_right, to_top = ([to_ras.GetElement(row, column) for row in range(3)] for column in (0, 1))
        label.data.left, label.data.top = side_of([-each for each in to_right]), side_of(to_top)

    def _label(self, view: SliceView) -> str:
        """Slices are numbered as in the strip and on the command line, from 0."""
        volume_id = view.get_background_volume_id()
        node = self.scene.GetNodeByID(volume_id) if volume_id else None
        if node is None:
            return str(view.get_orientation())
        low, high = view.get_slice_range()
        step = view.get_slice_step()
        place = slice_in_view(self.session, view)
        number = round((view.get_slice_value() - low) / step) if place is None else place[1]
        last = max(round((high - low) / step), 0)
        return f"{view.get_orientation()} {number} / {last}\n{view.get_slice_value():.1f} mm"


def side_of(direction_ras: Sequence[float]) -> str:
    """The side of the patient that a direction leads to most nearly: R, L, A, P, S or I."""
    axis = max(range(3), key=lambda n: abs(direction_ras[n]))
    return "RAS"[axis] if direction_ras[axis] > 0 else "LPI"[axis]


@contextmanager
def _vtk_keeps_quiet() -> Iterator[None]:
    was_on = vtkObject.GetGlobalWarningDisplay()
    vtkObject.GlobalWarningDisplayOff()
    yield
    vtkObject.SetGlobalWarningDisplay(was_on)


def _title(name: str) -> str:
    window = WINDOWS[name]
    return f"{name.replace('-', ' ').capitalize()} ({window.level:g} / {window.width:g})"


def _window_text(display: Any) -> str:
    """The preset's name, or level and width."""
    if display is None:
        return ""
    level, width = display.GetLevel(), display.GetWindow()
    for name, window in WINDOWS.items():
        if abs(window.level - level) < 0.5 and abs(window.width - width) < 0.5:
            return name.replace("-", " ").capitalize()
    return f"L {level:.0f} W {width:.0f}"

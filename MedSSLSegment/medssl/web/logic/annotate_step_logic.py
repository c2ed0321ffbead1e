"""Step 2: what the mouse places becomes the session's prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from trame_server import Server
from trame_slicer.views import SliceView

from ...errors import InputError
from ...scene.marks import PromptMarks
from ...scene.prompting import Place, axis_of_normal
from ..prompt_effect import PromptTool, SmartPromptEffect
from ..ui.annotate_step_ui import AnnotateStepState, AnnotateStepUI
from ..work import Work
from .focus import Focus
from .section import SectionLogic, promptable_models
from .slices import slice_in_view

__all__ = ["AnnotateStepLogic"]

_HINT = "Take a tool, then click on the object or drag a box around it in any slice view."
_REST_S = 0.1
"""A view that has not moved for so long is looked at."""
_MOUSE_REST_S = 0.03
"""A mouse that has not moved for so long may be about to click."""
_ANSWER_S, _DRAWN_S = 1.0, 0.2
"""The other views wait so long for the answer to a prompt, and for its picture."""


class AnnotateStepLogic(SectionLogic[AnnotateStepState]):
    """Prompts.

    Args:
        server: holds the page's state.
        work: what is worked on.
        focus: says which view is drawn alone.
    """

    def __init__(self, server: Server, work: Work, focus: Focus) -> None:
        super().__init__(server, work, AnnotateStepState)
        self._prompts = self.session.prompts
        self._marks = PromptMarks(self.session)
        self._prompts.accepted = work.look_soon
        self._focus = focus
        self._prompted_view: SliceView | None = None
        self._rest: asyncio.TimerHandle | None = None
        self._mouse_rest: asyncio.TimerHandle | None = None
        self._editor = work.editor
        self._effect = self._editor.get_effect(SmartPromptEffect)
        self._effect.pressed.connect(self._on_pressed)
        self._effect.hovered.connect(self._on_hovered)
        self._effect.point_placed.connect(self._on_point)
        self._effect.box_placed.connect(self._on_box)
        self._effect.scribble_placed.connect(self._on_scribble)
        self.list_models()
        self.data.model = self._prompts.model
        self.bind_changes({self.name.model: self._on_model})
        work.editor.active_effect_name_changed.connect(self._show_tool)
        for view in self._slicer_app.view_manager.get_slice_views():
            view.modified.connect(self._on_view_moved)

    def set_ui(self, ui: AnnotateStepUI) -> None:
        """Listen to the widgets."""
        ui.tool_clicked.connect(self.pick)
        ui.accept_clicked.connect(self.accept)
        ui.another_clicked.connect(self.show_another)
        ui.take_back_clicked.connect(self.take_back)
        ui.drop_clicked.connect(self.drop)

    def pick(self, tool: str) -> None:
        """Take a tool, or lay it down if it is in hand."""
        if self.data.tool == tool:
            self._editor.deactivate_effect()
            return
        self.work.attempt(lambda: self._take(PromptTool(tool)))

    def accept(self) -> None:
        """Make the preview the segment's; while its answer is under way, as soon as that is here."""
        self._decide(self._prompts.accept)

    def show_another(self) -> None:
        """Show another answer to the click or the box."""
        self._decide(self._prompts.show_another)

    def take_back(self) -> None:
        """Take the last prompt of the slice back."""
        self._decide(self._prompts.take_back)

    def drop(self) -> None:
        """Forget the prompts of the slice."""
        self._decide(self._prompts.drop)

    def list_models(self) -> None:
        """List the models there are now: one may have been imported since."""
        self.data.models = promptable_models()

    def show(self) -> None:
        """Show what there is to accept."""
        if self.data.is_waiting and not self._prompts.is_waiting and self._prompted_view is not None:
            self._focus.on(self._prompted_view, _DRAWN_S)
        place = self._prompts.place
        self.data.message = self._prompts.message or _HINT
        self.data.is_waiting = self._prompts.is_waiting
        is_open = place in self._prompts.previews or place in self._prompts.pending()
        self.data.can_accept = is_open and not self._prompts.is_waiting
        count = 0
        if place is not None and place in self._prompts.pending():
            count = sum(bool(mark.points_xy_px) for mark in self._prompts.marks(place))
        self.data.can_take_back = count > 0
        self.data.has_another = self._prompts.has_another
        self.data.count = "" if count == 0 else "1 prompt." if count == 1 else f"{count} prompts."
        self._marks.show()

    def _take(self, tool: PromptTool) -> None:
        self._require_segment()
        self._effect.tool = tool
        self._editor.set_active_effect_type(SmartPromptEffect)
        self._show_tool()
        self._look_at(self._slicer_app.view_manager.get_slice_views()[0])

    def _decide(self, act: Callable[[], object]) -> None:
        self.work.attempt(act)
        self.work.look_soon()
        self.show()

    def _on_pressed(self, view: SliceView) -> None:
        self._prompted_view = view
        self._focus.on(view, _ANSWER_S)

    def _on_hovered(self, position: list[float], normal: list[float], positive: bool) -> None:
        if self._mouse_rest is not None:
            self._mouse_rest.cancel()
        self._mouse_rest = asyncio.get_running_loop().call_later(
            _MOUSE_REST_S, self._foresee, position, normal, positive
        )

    def _foresee(self, position: list[float], normal: list[float], positive: bool) -> None:
        """Have the worker answer ahead what a click would ask where the mouse rests."""
        volume = self.session.ready_volume
        if volume is not None and self.work.segment:
            self._prompts.foresee(self.work.segment, position, axis_of_normal(volume, normal), positive)

    def _on_point(self, position: list[float], normal: list[float], positive: bool) -> None:
        self._place(lambda segment, axis: self._prompts.add_point(segment, position, axis, positive), normal)

    def _on_box(self, corner: list[float], opposite: list[float], normal: list[float]) -> None:
        self._place(lambda segment, axis: self._prompts.add_box(segment, corner, opposite, axis), normal)

    def _on_scribble(self, way: list[list[float]], normal: list[float], positive: bool) -> None:
        self._place(lambda segment, axis: self._prompts.add_scribble(segment, way, axis, positive), normal)

    def _place(self, place: Callable[[str, int], Place], normal: list[float]) -> None:
        def act() -> None:
            place(self._require_segment(), axis_of_normal(self.session.volume(), normal))

        self.work.attempt(act)
        self.show()

    def _require_segment(self) -> str:
        if not self.work.segment:
            raise InputError("Add a segment first; step 1 has a button for it.")
        return self.work.segment

    def _show_tool(self, *_: Any) -> None:
        self.data.tool = self._effect.tool.value if self._effect.is_active else ""

    def _on_view_moved(self, view: SliceView) -> None:
        """Once the view rests: the slices in between are no business of the worker's, which needs the same cores."""
        if self._effect.is_active or self._prompts.pending():
            if self._rest is not None:
                self._rest.cancel()
            self._rest = asyncio.get_running_loop().call_later(_REST_S, self._look_at, view)

    def _look_at(self, view: SliceView) -> None:
        """Have the slice that is looked at in hand, and the worker ready for prompts on it."""
        shown = slice_in_view(self.session, view)
        if shown is not None and self._effect.is_active:
            self._prompts.look_at(*shown)
        elif shown is not None:
            self._prompts.return_to(*shown)
        self.show()

    def _on_model(self, model: str) -> None:
        self._prompts.model = model

"""Step 3: what the person asks for becomes a request, what comes back becomes the strip."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
from trame_server import Server
from trame_slicer.views import SliceView

from ...registry import DEFAULT_MODEL
from ...scene import nodes, tags
from ...scene.nodes import SegmentInfo
from ...scene.prompting import Place, place_of, position_ras_mm
from ...scene.session import PropagateRequest, State
from ...scene.survey import ReferenceSlice, SegmentSurvey, Survey
from ..ui.parts import Choice
from ..ui.propagate_step_ui import PropagateStepState, PropagateStepUI, ReferenceChip
from ..work import Work
from .section import SectionLogic, trackers
from .slices import meeting_point, slice_in_view

__all__ = ["PropagateStepLogic"]

_VIEWS = (
    Choice("As painted", ""),
    Choice("Axial", "axial"),
    Choice("Coronal", "coronal"),
    Choice("Sagittal", "sagittal"),
)
_DIRECTIONS = (
    Choice("Both ways", "both"),
    Choice("To higher slices", "higher"),
    Choice("To lower slices", "lower"),
)


class PropagateStepLogic(SectionLogic[PropagateStepState]):
    """Propagation and the strip."""

    def __init__(self, server: Server, work: Work) -> None:
        super().__init__(server, work, PropagateStepState)
        self._survey: Any = None
        self._marks: dict[tuple[int, int], int] = {}
        self.data.views, self.data.directions = list(_VIEWS), list(_DIRECTIONS)
        self.list_models()
        self.data.model = DEFAULT_MODEL
        self.bind_changes({self.name.view: self._on_view, self.name.model: self._on_model})
        work.chosen.connect(self._on_nodes_chosen)
        for view in work.slicer_app.view_manager.get_slice_views():
            view.modified.connect(self._on_view_moved)
        work.editor.active_segment_id_changed.connect(self._show_survey)

    def set_ui(self, ui: PropagateStepUI) -> None:
        """Listen to the widgets."""
        ui.propagate_clicked.connect(self.propagate)
        ui.redo_clicked.connect(self.redo_changed)
        ui.next_slice_clicked.connect(self.go_to_next)
        ui.segment_clicked.connect(self._toggle)
        ui.slice_clicked.connect(self.go_to)
        ui.reference_ticked.connect(self._on_reference_ticked)

    def propagate(self) -> None:
        """Go from the reference slices through the volume."""
        self.data.suggestion = ""
        self.work.attempt(lambda: self.session.start(self.request()))

    def redo_changed(self) -> None:
        """Track again what reaches a slice that was changed."""
        self.work.attempt(lambda: self.session.start(self.request(only_changed=True)))

    def request(self, only_changed: bool = False) -> PropagateRequest:
        """What the person asks for."""
        data = self.data
        first, last = data.span
        return PropagateRequest(
            segment_ids=tuple(s.id for s in self.session.segments() if s.id not in data.left_out),
            axis=self._axis(),
            first=first or None,
            last=None if last >= data.last_slice else last,
            direction=data.direction,
            stop=data.stop,
            model=data.model,
            only_changed=only_changed,
        )

    def go_to(self, index: int) -> None:
        """Show a slice in the slice views."""
        self.data.suggestion = ""
        self.work.attempt(lambda: self._go_to(index))

    def go_to_next(self) -> None:
        """Go to the slice worth annotating next, and say why."""
        self.work.attempt(self._go_to_next)

    def list_models(self) -> None:
        """List the models there are now: one may have been imported since."""
        self.data.models = trackers()

    def show(self) -> None:
        """Show what can be done, and what has arrived."""
        data = self.data
        data.hint = self._hint()
        data.can_start = not data.hint and self.session.status.state is not State.RUNNING
        data.can_redo = self._has_run()
        data.segments = [Choice(s.name, s.id) for s in self.session.segments()]
        if self.session.survey is not self._survey:
            self._show_survey()
        if self.session.status.state is State.RUNNING:
            self._show_arrived()

    # Showing

    def _hint(self) -> str:
        if self.session.volume_node is None:
            return "Open a volume."
        segments = self.session.segments()
        if not segments:
            return "Add a segment, and paint or prompt it on one slice."
        if all(s.id in self.data.left_out for s in segments):
            return "Check at least one segment."
        return ""

    def _has_run(self) -> bool:
        node = self.session.segmentation_node
        return node is not None and any(
            step.what == "propagate" for s in self.session.segments() for step in tags.steps(node, s.id)
        )

    def _show_survey(self, *_: Any) -> None:
        self._survey = survey = self.session.survey
        self._marks = {}
        data, known = self.data, {s.id: s for s in self.session.segments()}
        data.references = [
            _chip(r, known[r.segment]) for r in self.session.references() if r.segment in known
        ]
        segment = survey.segments.get(self.work.segment) if survey else None
        data.strip_of = known[segment.id].name if segment and segment.id in known else ""
        data.strip.bars = [] if segment is None else _bars(segment)
        data.strip.references = [] if segment is None else list(segment.drawn)
        data.strip.suggestions = []
        data.strip.current = -1
        if survey is not None:
            self._fit_span(len(next(iter(survey.segments.values())).area_px))
            views = self._slicer_app.view_manager
            for view in views.filter_visible_views(views.get_slice_views()):
                self._on_view_moved(view)

    def _show_arrived(self) -> None:
        """Fill the strip with the slices that were written since; a run that has ended is surveyed anew."""
        survey, node, segment = self.session.survey, self.session.segmentation_node, self.work.segment
        if survey is None or node is None or segment not in survey.segments:
            return
        marks = tags.predicted_slices(node, segment)
        new = [
            index
            for (axis, index), mark in marks.items()
            if axis == survey.axis and self._marks.get((axis, index)) != mark
        ]
        self._marks = marks
        if new:
            self.data.strip.bars = self._bars_with(survey, segment, new)

    def _bars_with(self, survey: Survey, segment: str, indices: list[int]) -> list[list[float]]:
        node, volume = self.session.segmentation_node, self.session.volume()
        bars: list[list[float]] = self.data.strip.bars
        sure = tags.confidences(node, segment)
        largest = max(1.0, float(survey.segments[segment].area_px.max()))
        for index in indices:
            area = nodes.read_slice(node, segment, volume, survey.axis, index).sum()
            bars[index] = [min(round(area / largest, 3), 1.0), round(sure.get((survey.axis, index), -1.0), 2)]
        return bars

    def _fit_span(self, count: int) -> None:
        if self.data.last_slice != count - 1:
            self.data.last_slice = count - 1
            self.data.span = [0, count - 1]

    def _on_view_moved(self, view: SliceView) -> None:
        """Mark the slice that the view along the strip's slices shows."""
        survey = self.session.survey
        if survey is None or str(view.get_orientation()).lower() != survey.view:
            return
        if (shown := slice_in_view(self.session, view, survey.axis)) is not None:
            self.data.strip.current = shown[1]

    # Going

    def _go_to(self, index: int) -> None:
        survey = self.session.survey
        if survey is None:
            return
        volume = self.session.volume()
        views = self._slicer_app.view_manager.get_slice_views()
        _, pixel_xy = place_of(volume, "", meeting_point(volume, views), survey.axis)
        position = position_ras_mm(volume, Place("", survey.axis, index), pixel_xy)
        slicer.vtkMRMLSliceNode.JumpAllSlices(self.scene, *(float(v) for v in position))
        self.data.strip.current = index

    def _go_to_next(self) -> None:
        best = self.session.suggestions()
        self.data.strip.suggestions = [each.index for each in best]
        if not best:
            self.data.suggestion = "Every slice is near a reference slice."
            return
        self._go_to(best[0].index)
        names = {s.id: s.name for s in self.session.segments()}
        whose = f", {names[best[0].segment]}" if len(names) > 1 else ""
        self.data.suggestion = f"Slice {best[0].index}{whose}: {best[0].reason}."

    # Choices

    def _axis(self) -> int | None:
        return self.session.axis_of(self.data.view) if self.data.view else None

    def _on_view(self, *_: Any) -> None:
        self.work.view = self.data.view
        self.work.attempt(lambda: self.session.look(self._axis()))

    def _on_model(self, model: str) -> None:
        self.session.tracker = model

    def _on_nodes_chosen(self) -> None:
        self.data.left_out, self.data.suggestion = [], ""
        # A range that was chosen for another volume says nothing of this one.
        self.data.last_slice, self.data.span = 0, [0, 0]
        self._show_survey()

    def _on_reference_ticked(self, key: str) -> None:
        reference = next((r for r in self.session.references() if _key(r) == key), None)
        if reference is not None:
            self.work.attempt(
                lambda: self.session.use_reference(
                    reference.segment, reference.axis, reference.index, not reference.used
                )
            )
        self._show_survey()

    def _toggle(self, segment_id: str) -> None:
        left_out = self.data.left_out
        self.data.left_out = (
            [i for i in left_out if i != segment_id] if segment_id in left_out else [*left_out, segment_id]
        )
        self.show()


def _chip(reference: ReferenceSlice, segment: SegmentInfo) -> ReferenceChip:
    text = f"{segment.name}: {reference.index}"
    return ReferenceChip(text, _hex(segment.color_rgb), reference.index, _key(reference), reference.used)


def _key(reference: ReferenceSlice) -> str:
    return f"{reference.segment}/{reference.axis}/{reference.index}"


def _bars(segment: SegmentSurvey) -> list[list[float]]:
    heights = segment.area_px / max(float(segment.area_px.max()), 1.0)
    sure = np.where(np.isnan(segment.confidence), -1.0, segment.confidence)
    return [[round(float(h), 3), round(float(c), 2)] for h, c in zip(heights, sure, strict=True)]


def _hex(rgb: tuple[float, float, float]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*(round(255 * part) for part in rgb))

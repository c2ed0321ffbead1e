"""Smart prompts with the mouse: a segment editor effect of trame-slicer, beside paint, draw and erase.

A click is a point, with the shift key beside the object, a drag is a box; where there is no shift key (a tablet), or
for a scribble, another tool is taken. What is placed is told by signals; the answer is not this file's business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import slicer
from trame_slicer.segmentation import SegmentationEffect, SegmentationEffectPipeline
from undo_stack import Signal
from vtkmodules.vtkCommonCore import vtkCommand, vtkPoints
from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData
from vtkmodules.vtkRenderingCore import vtkActor2D, vtkPolyDataMapper2D

__all__ = ["PromptTool", "SmartPromptEffect", "Stroke", "placed_by"]

_CLICK_PX = 4.0
"""A press and a release no farther apart than this are a click."""
_SHIFT = 1 << 0
_RGB = {True: (1.0, 0.85, 0.2), False: (1.0, 0.3, 0.3)}

Position = list[float]


class PromptTool(Enum):
    """What the mouse places."""

    POINT = "point"
    """A click is on the object, with shift beside it; a drag is a box."""
    NEGATIVE = "negative"
    """A click is beside the object."""
    BOX = "box"
    """A drag is a box."""
    SCRIBBLE = "scribble"
    """A drag is a scribble along the object."""


@dataclass
class Stroke:
    """The mouse from press to release."""

    shift: bool
    """Whether the shift key was down."""
    way_px: list[tuple[float, float]] = field(default_factory=list)
    """Where it went, in pixels of the view."""
    way_ras_mm: list[Position] = field(default_factory=list)
    """The same in the world."""

    @property
    def is_click(self) -> bool:
        """Whether it hardly moved."""
        return all(math.dist(self.way_px[0], at) <= _CLICK_PX for at in self.way_px)


def placed_by(tool: PromptTool, stroke: Stroke) -> tuple[str, bool]:
    """What a stroke places: ("point", "box", "scribble" or "" for nothing, whether it is on the object)."""
    positive = not (stroke.shift or tool is PromptTool.NEGATIVE)
    if tool is PromptTool.SCRIBBLE:
        return "" if stroke.is_click else "scribble", not stroke.shift
    if stroke.is_click:
        return "" if tool is PromptTool.BOX else "point", positive
    return "" if tool is PromptTool.NEGATIVE else "box", True


class SmartPromptEffect(SegmentationEffect):  # type: ignore[misc]
    """The effect: one pipeline for each slice view."""

    pressed = Signal(object)
    """The slice view in which the mouse was pressed."""
    hovered = Signal(list, list, bool)
    """Where the mouse is: position (RAS, mm), normal of the view, whether a click there would be on the object."""
    point_placed = Signal(list, list, bool)
    """Position (RAS, mm), normal of the view, whether it is on the object."""
    box_placed = Signal(list, list, list)
    """Two opposite corners (RAS, mm), normal of the view."""
    scribble_placed = Signal(list, list, bool)
    """Positions it went through (RAS, mm), normal of the view, whether it is on the object."""

    def __init__(self) -> None:
        super().__init__()
        self.tool = PromptTool.POINT

    def hover(self, position_ras_mm: Position, normal_ras: Position, shift: bool) -> None:
        """Tell where the mouse is, if a click there would place a point."""
        kind, positive = placed_by(self.tool, Stroke(shift, [(0.0, 0.0)], [position_ras_mm]))
        if kind == "point":
            self.hovered(position_ras_mm, normal_ras, positive)

    def place(self, stroke: Stroke, normal_ras: Position) -> None:
        """Tell what a stroke has placed."""
        kind, positive = placed_by(self.tool, stroke)
        if kind == "point":
            self.point_placed(stroke.way_ras_mm[0], normal_ras, positive)
        elif kind == "box":
            self.box_placed(stroke.way_ras_mm[0], stroke.way_ras_mm[-1], normal_ras)
        elif kind == "scribble":
            self.scribble_placed(stroke.way_ras_mm, normal_ras, positive)

    def _create_pipeline(self, view_node: Any, parameter: Any) -> SegmentationEffectPipeline | None:
        return _SliceViewPipeline() if isinstance(view_node, slicer.vtkMRMLSliceNode) else None


class _SliceViewPipeline(SegmentationEffectPipeline):  # type: ignore[misc]
    """Follows the mouse in one slice view. Names are those of the class it overrides."""

    def __init__(self) -> None:
        super().__init__()
        self._stroke: Stroke | None = None
        self._band = _Band()
        self._handlers = {
            int(vtkCommand.LeftButtonPressEvent): self._press,
            int(vtkCommand.MouseMoveEvent): self._move,
            int(vtkCommand.LeftButtonReleaseEvent): self._release,
        }

    def CanProcessInteractionEvent(self, event_data: Any) -> tuple[bool, float]:  # noqa: N802
        is_ours = event_data.GetType() in self._handlers
        return bool(self.IsActive()) and is_ours, 0.0

    def ProcessInteractionEvent(self, event_data: Any) -> bool:  # noqa: N802
        handler = self._handlers.get(event_data.GetType())
        return handler(event_data) if handler else False

    def GetWidgetState(self) -> int:  # noqa: N802
        """While the button is down, the view's events are this pipeline's."""
        if self._stroke is None:
            return int(super().GetWidgetState())
        return int(slicer.vtkMRMLAbstractWidget.WidgetStateUser)

    def LoseFocus(self, event_data: Any) -> None:  # noqa: N802
        super().LoseFocus(event_data)
        self._end()

    def _press(self, event_data: Any) -> bool:
        self._stroke = Stroke(shift=bool(event_data.GetModifiers() & _SHIFT))
        self._effect.pressed(self._view)
        return self._move(event_data)

    def _move(self, event_data: Any) -> bool:
        if self._stroke is None:
            position = [float(v) for v in event_data.GetWorldPosition()]
            self._effect.hover(position, self._normal(), bool(event_data.GetModifiers() & _SHIFT))
            return False
        x, y = event_data.GetDisplayPosition()
        self._stroke.way_px.append((float(x), float(y)))
        self._stroke.way_ras_mm.append([float(v) for v in event_data.GetWorldPosition()])
        kind, positive = placed_by(self._effect.tool, self._stroke)
        was_shown = self._band.is_shown
        self._band.show(self.GetRenderer(), kind, self._stroke.way_px, _RGB[positive])
        if was_shown or self._band.is_shown:  # a click draws nothing, and a picture is worth waiting for
            self.RequestRender()
        return True

    def _release(self, event_data: Any) -> bool:
        if self._stroke is None:
            return False
        self._move(event_data)
        stroke = self._stroke
        self._end()
        self._effect.place(stroke, self._normal())
        return True

    def _normal(self) -> Position:
        to_ras = self._view.get_view_node().GetSliceToRAS()
        return [to_ras.GetElement(row, 2) for row in range(3)]

    def _end(self) -> None:
        if self._stroke is not None:
            self._stroke = None
            if self._band.is_shown:
                self._band.hide()
                self.RequestRender()


class _Band:
    """The box or the scribble, while it is drawn."""

    def __init__(self) -> None:
        self._line = vtkPolyData()
        mapper = vtkPolyDataMapper2D()
        mapper.SetInputData(self._line)
        self._actor = vtkActor2D()
        self._actor.SetMapper(mapper)
        self._actor.GetProperty().SetLineWidth(2.0)
        self._actor.VisibilityOff()

    @property
    def is_shown(self) -> bool:
        """Whether something is drawn."""
        return bool(self._actor.GetVisibility())

    def show(
        self, renderer: Any, kind: str, way_px: list[tuple[float, float]], rgb: tuple[float, float, float]
    ) -> None:
        """Draw what a way comes to; nothing for a click."""
        if not renderer.HasViewProp(self._actor):
            renderer.AddViewProp(self._actor)
        way = _corners(way_px[0], way_px[-1]) if kind == "box" else way_px
        points, cells = vtkPoints(), vtkCellArray()
        cells.InsertNextCell(len(way))
        for x, y in way:
            cells.InsertCellPoint(points.InsertNextPoint(x, y, 0.0))
        self._line.SetPoints(points)
        self._line.SetLines(cells)
        self._line.Modified()
        self._actor.GetProperty().SetColor(*rgb)
        self._actor.SetVisibility(kind in ("box", "scribble"))

    def hide(self) -> None:
        """Draw nothing."""
        self._actor.VisibilityOff()


def _corners(one: tuple[float, float], other: tuple[float, float]) -> list[tuple[float, float]]:
    (x0, y0), (x1, y1) = one, other
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]

"""The prompts of the chosen segmentation that are not decided yet, shown where they were placed, in every view.

Points are markups of 3D Slicer, so each view draws them on their slice and on no other; a box is a closed curve. The
nodes cannot be moved, are in no list and no file: what counts are the prompts of the session.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import vtk

from ..errors import InputError
from .nodes import image_stamp
from .prompting import Mark, Place, position_ras_mm

if TYPE_CHECKING:
    from ..volume import Volume
    from .session import Session

__all__ = ["PromptMarks"]

_ON_RGB, _OFF_RGB = (0.35, 0.9, 0.4), (1.0, 0.35, 0.35)
_SIZE_PERCENT = 1.6
"""Of the view."""

_Key = tuple[Place, int, Mark, object]
"""A mark, the how manieth of its slice it is, and where; last, what stands for the volume's place in the world."""


class PromptMarks:
    """Shows the prompts that wait to be accepted or dropped; call `show` whenever they may have changed.

    Args:
        session: whose prompts.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._nodes: dict[_Key, Any] = {}

    def show(self) -> None:
        """Show the prompts there are now: what is new is added, what has gone is removed, the rest stays."""
        wanted = self._wanted()
        shown = {key for key, node in self._nodes.items() if self._session.scene.IsNodePresent(node)}
        if shown == wanted:
            return
        try:
            volume = self._session.volume() if wanted else None
        except InputError:  # it is still being read: the next call shows them
            return
        for key in self._nodes.keys() - (wanted & shown):
            self._remove(self._nodes.pop(key))
        if volume is None:
            return
        with _placing_kept(self._session.scene):
            for key in wanted - shown:
                place, _, mark, _ = key
                self._nodes[key] = self._add(volume, place, mark)

    def _wanted(self) -> set[_Key]:
        prompts, volume_node = self._session.prompts, self._session.volume_node
        where = None if volume_node is None else image_stamp(volume_node)
        return {
            (place, n, mark, where)
            for place in prompts.pending()
            for n, mark in enumerate(prompts.marks(place))
            if mark.points_xy_px
        }

    def _remove(self, node: Any) -> None:
        if self._session.scene.IsNodePresent(node):
            self._session.scene.RemoveNode(node)

    def _add(self, volume: Volume, place: Place, mark: Mark) -> Any:
        kinds = {"point": "Fiducial", "box": "ClosedCurve", "scribble": "Curve"}
        points = _corners(mark.points_xy_px) if mark.kind == "box" else mark.points_xy_px
        node = self._session.scene.CreateNodeByClass(f"vtkMRMLMarkups{kinds[mark.kind]}Node")
        node.UnRegister(None)
        node.SetName("MedSSLSegment prompt mark")
        node.SetSaveWithScene(False)
        node.SetHideFromEditors(True)
        if mark.kind != "point":
            node.SetCurveTypeToLinear()
        self._session.scene.AddNode(node)
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetSaveWithScene(False)
        _style(node.GetDisplayNode(), mark)
        for point in points:
            node.AddControlPointWorld(vtk.vtkVector3d(position_ras_mm(volume, place, point)), "")
        node.SetLocked(True)
        return node


@contextmanager
def _placing_kept(scene: Any) -> Iterator[None]:
    """Add markups without their becoming those that the next click adds to, as vtkSlicerMarkupsLogic makes them."""
    selection = scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    if selection is None:
        yield
        return
    placed, placed_id = selection.GetActivePlaceNodeClassName(), selection.GetActivePlaceNodeID()
    yield
    selection.SetReferenceActivePlaceNodeClassName(placed)
    selection.SetReferenceActivePlaceNodeID(placed_id)


def _style(display: Any, mark: Mark) -> None:
    display.SetSelectedColor(*(_ON_RGB if mark.positive else _OFF_RGB))
    display.SetColor(*(_ON_RGB if mark.positive else _OFF_RGB))
    display.SetVisibility3D(False)
    display.SetPointLabelsVisibility(False)
    display.SetPropertiesLabelVisibility(False)
    display.SetGlyphScale(_SIZE_PERCENT if mark.kind == "point" else 0.5)
    display.SetLineThickness(1.0)  # of the glyph's size: 3D Slicer's own fifth of it is thinner than a pixel


def _corners(points_xy_px: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    (x0, y0), (x1, y1) = points_xy_px
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]

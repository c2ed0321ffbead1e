"""Prompts placed in slice views: what was clicked, in which view, and going to a slice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
import slicer
import vtk

__all__ = ["SliceViews"]

REST_MS = 30
"""A mouse that has not moved for so long rests; while it moves, it is heard of every 8 to 16 ms."""


class SliceViews:
    """Turns clicks in slice views into world positions and view normals.

    Points are placed in a markups node of the program's own, so that the mouse behaves as in other tools of 3D Slicer;
    each placed point is handed on and removed at once.

    Args:
        scene: vtkMRMLScene.
        onPlaced: called with a position (RAS, mm) and the normal of the view.
        onStopped: called when the person has taken another tool of 3D Slicer instead.
        onMoved: called with a position on the slice and its normal when a view shows another one, while prompts are
            being placed.
        onRested: called with a position and the normal of the view when the mouse has come to rest in it, while prompts
            are being placed.
    """

    def __init__(
        self,
        scene: Any,
        onPlaced: Callable[[list[float], list[float]], None],
        onStopped: Callable[[], None],
        onMoved: Callable[[list[float], list[float]], None],
        onRested: Callable[[list[float], list[float]], None],
    ) -> None:
        self.scene = scene
        self.onPlaced = onPlaced
        self.onStopped = onStopped
        self.onMoved = onMoved
        self.onRested = onRested
        self._restTimer = qt.QTimer()
        self._restTimer.interval = REST_MS
        self._restTimer.setSingleShot(True)
        self._restTimer.timeout.connect(self._onRested)
        self._markups: Any = None
        self._before: tuple[str | None, str | None, int] | None = None
        """What the person placed before: class and ID of the markups, and whether many in a row."""
        self._observations: list[tuple[Any, int]] = []
        self._normals: list[list[float]] = []
        """Of the views of points that are not handed on yet."""

    def startPlacing(self) -> None:
        """Let the next clicks in slice views place prompts."""
        wasPlacing = self._isPlacing()
        self._stopObserving()
        selection, interaction = self._selection(), self._interaction()
        if self._before is None:  # asked first: markups that are made become those to place
            className, nodeId = selection.GetActivePlaceNodeClassName(), selection.GetActivePlaceNodeID()
            self._before = className, nodeId, interaction.GetPlaceModePersistence()
        markups = self._markupsNode()
        if not wasPlacing:
            markups.RemoveAllControlPoints()
            self._normals.clear()
        selection.SetReferenceActivePlaceNodeClassName(markups.GetClassName())
        selection.SetActivePlaceNodeID(markups.GetID())
        interaction.SetPlaceModePersistence(1)
        interaction.SetCurrentInteractionMode(interaction.Place)
        self._observe(interaction, interaction.InteractionModeChangedEvent, self._onModeChanged)
        self._observe(selection, selection.ActivePlaceNodeIDChangedEvent, self._onModeChanged)
        self._observe(markups, markups.PointPositionDefinedEvent, self._onPointDefined)
        if (crosshair := self._crosshair()) is not None:
            self._observe(crosshair, crosshair.CursorPositionModifiedEvent, self._onCursorMoved)
        for n in range(self.scene.GetNumberOfNodesByClass("vtkMRMLSliceNode")):
            view = self.scene.GetNthNodeByClass(n, "vtkMRMLSliceNode")
            self._observe(view, vtk.vtkCommand.ModifiedEvent, self._onViewMoved)

    def stopPlacing(self) -> None:
        """Give the mouse back, unless another tool has taken it."""
        wasPlacing = self._isPlacing()
        self._stopObserving()
        if wasPlacing:
            interaction = self._interaction()
            interaction.SetCurrentInteractionMode(interaction.ViewTransform)
        self._giveBack()

    def _giveBack(self) -> None:
        """Let the person's own markups be the ones to place again, unless others are by now."""
        before, self._before = self._before, None
        selection, interaction = self._selection(), self._interaction()
        if before is None or not self._isOurs(selection):
            return
        className, nodeId, persistence = before
        selection.SetReferenceActivePlaceNodeClassName(className)
        selection.SetActivePlaceNodeID(nodeId if nodeId and self.scene.GetNodeByID(nodeId) else None)
        interaction.SetPlaceModePersistence(persistence)

    def _isOurs(self, selection: Any) -> bool:
        """Whether what is placed next are prompts."""
        if selection is None or not self.scene.IsNodePresent(self._markups):
            return False
        return bool(selection.GetActivePlaceNodeID() == self._markups.GetID())

    def close(self) -> None:
        """Leave nothing in the scene."""
        self.stopPlacing()
        if self._markups is not None and self.scene.IsNodePresent(self._markups):
            self.scene.RemoveNode(self._markups)
        self._markups = None

    def jumpTo(self, positionRas: Any) -> None:
        """Show a world position in every slice view."""
        slicer.vtkMRMLSliceNode.JumpAllSlices(self.scene, *(float(v) for v in positionRas))

    def touchedNormal(self) -> list[float]:
        """Normal of the slice view that the mouse is in or was in last; axial before it was in any."""
        crosshair = self._crosshair()
        sliceNode = crosshair.GetCursorPositionXYZ([0.0, 0.0, 0.0]) if crosshair else None
        if sliceNode is None:
            return [0.0, 0.0, 1.0]
        sliceToRas = sliceNode.GetSliceToRAS()
        return [sliceToRas.GetElement(row, 2) for row in range(3)]

    def _crosshair(self) -> Any:
        """Knows where the mouse is."""
        return self.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")

    def _interaction(self) -> Any:
        return self.scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")

    def _selection(self) -> Any:
        return self.scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")

    def _markupsNode(self) -> Any:
        if self._markups is None or not self.scene.IsNodePresent(self._markups):
            node = self.scene.CreateNodeByClass("vtkMRMLMarkupsFiducialNode")
            node.UnRegister(None)
            node.SetName("MedSSLSegment prompt")
            node.SetSaveWithScene(False)
            node.SetHideFromEditors(True)
            self.scene.AddNode(node)
            node.CreateDefaultDisplayNodes()
            node.GetDisplayNode().SetSaveWithScene(False)
            node.GetDisplayNode().SetPointLabelsVisibility(False)
            self._markups = node
        return self._markups

    def _isPlacing(self) -> bool:
        """Whether the next click is a prompt."""
        interaction = self._interaction()
        if interaction is None or not self._isOurs(self._selection()):
            return False
        return bool(interaction.GetCurrentInteractionMode() == interaction.Place)

    def _observe(self, node: Any, event: int, method: Callable[[Any, Any], None]) -> None:
        self._observations.append((node, node.AddObserver(event, method)))

    def _stopObserving(self) -> None:
        for node, tag in self._observations:
            node.RemoveObserver(tag)
        self._observations.clear()
        self._restTimer.stop()

    def _onModeChanged(self, caller: Any, event: Any) -> None:
        """Look once all that belongs to the change has happened: new markups are the ones to place for a moment."""
        qt.QTimer.singleShot(0, self._notice)

    def _notice(self) -> None:
        if self._observations and not self._isPlacing():
            self._stopObserving()
            self._giveBack()
            self.onStopped()

    def _onViewMoved(self, caller: Any, event: Any) -> None:
        sliceToRas = caller.GetSliceToRAS()
        position, normal = ([sliceToRas.GetElement(row, column) for row in range(3)] for column in (3, 2))
        self.onMoved(position, normal)

    def _onCursorMoved(self, caller: Any, event: Any) -> None:
        self._restTimer.start()

    def _onRested(self) -> None:
        position = [0.0, 0.0, 0.0]
        crosshair = self._crosshair()
        if crosshair is not None and crosshair.GetCursorPositionRAS(position):
            self.onRested(position, self.touchedNormal())

    def _onPointDefined(self, caller: Any, event: Any) -> None:
        """Note the view; the point itself is still in the hands of vtkMRMLMarkupsNode::AddControlPoint."""
        self._normals.append(self.touchedNormal())
        if len(self._normals) == 1:
            qt.QTimer.singleShot(0, self._handOn)

    def _handOn(self) -> None:
        """Hand on the points that were placed; the one under the mouse, not placed yet, stays."""
        normals, self._normals = self._normals, []
        markups = self._markups
        if markups is None or not self.scene.IsNodePresent(markups):
            return
        placed = [
            n
            for n in range(markups.GetNumberOfControlPoints())
            if markups.GetNthControlPointPositionStatus(n) == markups.PositionDefined
        ]
        positions = []
        for n in placed:
            position = [0.0, 0.0, 0.0]
            markups.GetNthControlPointPositionWorld(n, position)
            positions.append(position)
        for n in reversed(placed):
            markups.RemoveNthControlPoint(n)
        for position, normal in zip(positions, normals, strict=False):
            self.onPlaced(position, normal)

"""Prompts placed in slice views: what was clicked, in which view, and going to a slice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer

__all__ = ["SliceViews"]


class SliceViews:
    """Turns clicks in slice views into world positions and view normals.

    Points are placed in a markups node of the program's own, so that the mouse behaves as in other tools of 3D Slicer;
    each placed point is handed on and removed at once.

    Args:
        scene: vtkMRMLScene.
        onPlaced: called with a position (RAS, mm) and the normal of the view.
    """

    def __init__(self, scene: Any, onPlaced: Callable[[list[float], list[float]], None]) -> None:
        self.scene = scene
        self.onPlaced = onPlaced
        self._markups: Any = None
        self._observation: int | None = None

    def startPlacing(self) -> None:
        """Let the next clicks in slice views place prompts."""
        if self._markups is None or not self.scene.IsNodePresent(self._markups):
            self._markups = self.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "MedSSLSegment prompt")
            self._markups.SetSaveWithScene(False)
            self._markups.SetHideFromEditors(True)
            self._observation = self._markups.AddObserver(
                slicer.vtkMRMLMarkupsNode.PointPositionDefinedEvent, self._onPointDefined
            )
        selection = self.scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
        selection.SetReferenceActivePlaceNodeClassName("vtkMRMLMarkupsFiducialNode")
        selection.SetActivePlaceNodeID(self._markups.GetID())
        interaction = self.scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
        interaction.SetPlaceModePersistence(1)
        interaction.SetCurrentInteractionMode(interaction.Place)

    def stopPlacing(self) -> None:
        """Give the mouse back."""
        interaction = self.scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
        if interaction is not None:
            interaction.SetCurrentInteractionMode(interaction.ViewTransform)

    def close(self) -> None:
        """Leave nothing in the scene."""
        self.stopPlacing()
        if self._markups is not None and self.scene.IsNodePresent(self._markups):
            self._markups.RemoveObserver(self._observation)
            self.scene.RemoveNode(self._markups)
        self._markups = None

    def jumpTo(self, positionRas: Any) -> None:
        """Show a world position in every slice view."""
        slicer.vtkMRMLSliceNode.JumpAllSlices(self.scene, *(float(v) for v in positionRas))

    def touchedNormal(self) -> list[float]:
        """Normal of the slice view that the mouse is in or was in last; axial before it was in any."""
        crosshair = self.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        sliceNode = crosshair.GetCursorPositionXYZ([0.0, 0.0, 0.0]) if crosshair else None
        if sliceNode is None:
            return [0.0, 0.0, 1.0]
        sliceToRas = sliceNode.GetSliceToRAS()
        return [sliceToRas.GetElement(row, 2) for row in range(3)]

    def _onPointDefined(self, caller: Any, event: Any) -> None:
        position = [0.0, 0.0, 0.0]
        last = caller.GetNumberOfControlPoints() - 1
        caller.GetNthControlPointPositionWorld(last, position)
        caller.RemoveNthControlPoint(last)
        self.onPlaced(position, self.touchedNormal())

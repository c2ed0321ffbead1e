"""How unsure a model was, as a volume shown over the image.

The map lies on the chosen volume's grid, 0 (sure) .. 255 (no idea), and belongs to the prediction it came with: it is
hidden when that is undone, can be shown again when it is brought back, and makes way for the next one. It is a scalar
volume like any other, so it is saved with the scene.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import vtk
from vtk.util import numpy_support

from ..results import UncertaintyMap
from . import nodes, tags
from .layers import array_kji

if TYPE_CHECKING:
    from .session import Session

__all__ = ["UncertaintyOverlay"]

_REFERENCE = "MedSSLSegment.Uncertainty"
"""From the segmentation to its map."""
_STEPS = "MedSSLSegment.Steps"
"""When the steps were made that the map belongs to, separated by spaces."""
_OPACITY = 0.6
_LEAST_SHOWN = 51
"""Of 255; less doubt than this, a fifth, leaves the image clear."""
_COLORS = "Iron"
"""Red to yellow; one of 3D Slicer's own tables, so that it is there when a scene is opened again."""


class UncertaintyOverlay:
    """The uncertainty map of the chosen segmentation.

    Args:
        session: knows the chosen nodes.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._before: dict[str, tuple[str | None, float]] = {}
        """What slice views showed in the foreground, and how opaque, by the id of their composite node."""

    @property
    def node(self) -> Any:
        """vtkMRMLScalarVolumeNode; None where there is no map, or its prediction was undone."""
        node = self._kept_node()
        return node if node is not None and self._is_current(node) else None

    @property
    def is_shown(self) -> bool:
        """Whether a slice view shows it."""
        node = self._kept_node()
        return node is not None and any(self._shows(view, node) for view in self._views())

    def clear(self) -> None:
        """Take the map out of the scene, e.g. because the next prediction begins."""
        node = self._kept_node()
        if node is not None:
            self.show(False)
            self._session.scene.RemoveNode(node)

    def put(self, event: UncertaintyMap) -> None:
        """Fill in one slice."""
        node = self._kept_node() or self._new_node()
        image = node.GetImageData()
        (top, left), (height, width) = event.start_hw, event.levels.shape
        part = np.moveaxis(array_kji(image), event.axis, 0)[event.index]
        part[...] = 0
        part[top : top + height, left : left + width] = event.levels
        image.GetPointData().GetScalars().Modified()
        image.Modified()

    def belong_to(self, steps: Sequence[tags.Step]) -> None:
        """Say which steps of the segments the map came with: it is gone when they are undone."""
        node = self._kept_node()
        if node is not None:
            node.SetAttribute(_STEPS, " ".join(step.when for step in steps))

    def show(self, on: bool) -> None:
        """Lay the map over the image in every slice view, or show again what was there before it."""
        node = self.node if on else self._kept_node()
        if node is None:
            return
        for view in self._views():
            shows = self._shows(view, node)
            if on and not shows:
                self._before[view.GetID()] = view.GetForegroundVolumeID(), view.GetForegroundOpacity()
                view.SetForegroundVolumeID(node.GetID())
                view.SetForegroundOpacity(_OPACITY)
            elif shows and not on:
                volume_id, opacity = self._before.pop(view.GetID(), (None, 0.0))
                view.SetForegroundVolumeID(volume_id)
                view.SetForegroundOpacity(opacity)

    def refresh(self) -> None:
        """Hide the map if its prediction was undone; call it after undo and redo."""
        node = self._kept_node()
        if node is not None and not self._is_current(node):
            self.show(False)

    def _views(self) -> Iterator[Any]:
        """The composite node of every slice view."""
        yield from nodes.nodes_of(self._session.scene, "vtkMRMLSliceCompositeNode")

    @staticmethod
    def _shows(view: Any, node: Any) -> bool:
        return bool(view.GetForegroundVolumeID() == node.GetID())

    def _kept_node(self) -> Any:
        owner = self._session.segmentation_node
        node = None if owner is None else owner.GetNodeReference(_REFERENCE)
        return node if node is not None and self._session.scene.IsNodePresent(node) else None

    def _is_current(self, node: Any) -> bool:
        """Whether the prediction is under way or one of its steps is still there."""
        made = set((node.GetAttribute(_STEPS) or "").split())
        owner = self._session.segmentation_node
        ids = [segment.id for segment in self._session.segments()]
        return not made or any(step.when in made for i in ids for step in tags.steps(owner, i))

    def _new_node(self) -> Any:
        """A volume on the chosen one's grid, whose zeros cost nothing until they are touched."""
        session = self._session
        volume, source = session.volume(), session.volume_node
        image = vtk.vtkImageData()
        image.SetDimensions(*volume.shape_kji[::-1])
        zeros = np.zeros(int(np.prod(volume.shape_kji)), np.uint8)
        image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(zeros, deep=False))
        node = session.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", f"{source.GetName()} uncertainty")
        matrix = vtk.vtkMatrix4x4()
        source.GetIJKToRASMatrix(matrix)
        node.SetIJKToRASMatrix(matrix)
        node.SetAndObserveTransformNodeID(source.GetTransformNodeID())
        node.SetAndObserveImageData(image)
        node.CreateDefaultDisplayNodes()
        _style(node.GetDisplayNode(), _color_node(session.scene))
        nodes.place_beside(session.scene, node, source)
        session.segmentation_node.SetNodeReferenceID(_REFERENCE, node.GetID())
        return node


def _style(display: Any, colors: Any) -> None:
    display.SetAndObserveColorNodeID(colors.GetID())
    display.AutoWindowLevelOff()
    display.SetWindowLevel(255.0, 127.5)
    display.ApplyThresholdOn()
    display.AutoThresholdOff()
    display.SetThreshold(_LEAST_SHOWN, 255.0)


def _color_node(scene: Any) -> Any:
    node = scene.GetSingletonNode(_COLORS, "vtkMRMLColorTableNode")
    if node is None:  # 3D Slicer's color logic makes it in the application
        node = scene.CreateNodeByClass("vtkMRMLColorTableNode")
        node.UnRegister(None)
        node.SetTypeToIron()
        node.SetName(_COLORS)
        node.SetSingletonTag(_COLORS)
        node.SetHideFromEditors(True)
        node = scene.AddNode(node)
    return node

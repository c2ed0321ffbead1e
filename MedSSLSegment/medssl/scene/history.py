"""Undo and redo: one history for what a person paints and what the program writes.

Inside 3D Slicer it is the Segment Editor's own, handed in by the panel (qMRMLSegmentEditorWidget: saveStateForUndo,
undo, redo). Elsewhere `SegmentationHistories` keeps one of the same kind, vtkSegmentationHistory, for each
segmentation.
"""

from __future__ import annotations

from typing import Any, Protocol

import slicer

__all__ = ["UNDO_LEVELS", "History", "SegmentationHistories"]

UNDO_LEVELS = 30
"""Steps that can be taken back; each keeps a copy of the labelmaps it changed."""


class History(Protocol):
    """Where steps are remembered."""

    def save(self, segmentation_node: Any) -> None:
        """Remember how a segmentation is now, before it is changed."""

    def go_on(self, segmentation_node: Any) -> None:
        """A step that was remembered earlier is about to change a segmentation further.

        Where a person has painted since, what follows has to be a step of its own: undoing and redoing the stroke must
        not lose it.
        """

    def can_undo(self, segmentation_node: Any) -> bool:
        """Whether there is something to take back."""

    def can_redo(self, segmentation_node: Any) -> bool:
        """Whether there is something to bring back."""

    def undo(self, segmentation_node: Any) -> None:
        """Put a segmentation back to the state before its last step."""

    def redo(self, segmentation_node: Any) -> None:
        """Bring back what `undo` took away."""


class SegmentationHistories:
    """One vtkSegmentationHistory for each segmentation of a scene."""

    def __init__(self) -> None:
        self._histories: dict[Any, Any] = {}

    def save(self, segmentation_node: Any) -> None:
        """Remember how a segmentation is now; forgets those that have left their scene."""
        self._histories = {n: h for n, h in self._histories.items() if n.GetScene() is not None}
        if segmentation_node not in self._histories:
            history = slicer.vtkSegmentationHistory()
            history.SetMaximumNumberOfStates(UNDO_LEVELS)
            history.SetSegmentation(segmentation_node.GetSegmentation())
            self._histories[segmentation_node] = history
        self._histories[segmentation_node].SaveState()

    def go_on(self, segmentation_node: Any) -> None:
        """Nothing: taking the newest state back remembers it first, with all that was written last."""

    def can_undo(self, segmentation_node: Any) -> bool:
        """Whether there is something to take back."""
        history = self._histories.get(segmentation_node)
        return history is not None and bool(history.IsRestorePreviousStateAvailable())

    def can_redo(self, segmentation_node: Any) -> bool:
        """Whether there is something to bring back."""
        history = self._histories.get(segmentation_node)
        return history is not None and bool(history.IsRestoreNextStateAvailable())

    def undo(self, segmentation_node: Any) -> None:
        """Put a segmentation back to the state before its last step."""
        self._histories[segmentation_node].RestorePreviousState()

    def redo(self, segmentation_node: Any) -> None:
        """Bring back what `undo` took away."""
        self._histories[segmentation_node].RestoreNextState()

"""Undo and redo through the embedded Segment Editor, so that painting and the program's steps are one history."""

from __future__ import annotations

from typing import Any

import slicer.util

__all__ = ["EditorHistory"]


class EditorHistory:
    """`medssl.scene.history.History` over qMRMLSegmentEditorWidget.

    The widget tells only its own two buttons whether there is a step to take back or to bring back
    (qMRMLSegmentEditorWidget::updateUndoRedoButtonsState), so they are asked. Where they have another name one day,
    undo and redo are offered whenever the widget shows the segmentation.

    Args:
        editor: the qMRMLSegmentEditorWidget.
    """

    def __init__(self, editor: Any) -> None:
        self.editor = editor
        self._undoButtons = slicer.util.findChildren(editor, name="UndoButton")
        self._redoButtons = slicer.util.findChildren(editor, name="RedoButton")

    def save(self, segmentationNode: Any) -> None:
        """Remember how the segmentation is now."""
        if self.editor.segmentationNode() is not segmentationNode:
            self.editor.setSegmentationNode(segmentationNode)
        self.editor.saveStateForUndo()

    def go_on(self, segmentationNode: Any) -> None:
        """Nothing: vtkSegmentationHistory remembers the newest state when it is taken back."""

    def can_undo(self, segmentationNode: Any) -> bool:
        """Whether there is a step to take back."""
        return self._canGo(segmentationNode, self._undoButtons)

    def can_redo(self, segmentationNode: Any) -> bool:
        """Whether there is a step to bring back."""
        return self._canGo(segmentationNode, self._redoButtons)

    def undo(self, segmentationNode: Any) -> None:
        """Take the last step back."""
        self.editor.undo()

    def redo(self, segmentationNode: Any) -> None:
        """Bring back what was taken back."""
        self.editor.redo()

    def _canGo(self, segmentationNode: Any, buttons: list[Any]) -> bool:
        isShown = self.editor.segmentationNode() is segmentationNode
        return isShown and all(button.enabled for button in buttons)

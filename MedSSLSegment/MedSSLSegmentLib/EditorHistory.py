"""Undo and redo through the embedded Segment Editor, so that painting and the program's steps are one history."""

from __future__ import annotations

from typing import Any

__all__ = ["EditorHistory"]


class EditorHistory:
    """`medssl.scene.history.History` over qMRMLSegmentEditorWidget.

    The widget does not tell how many steps it keeps (qMRMLSegmentEditorWidget.h), so undo and redo are offered whenever
    it shows the segmentation; with nothing to take back it does nothing, as its own buttons.

    Args:
        editor: the qMRMLSegmentEditorWidget.
    """

    def __init__(self, editor: Any) -> None:
        self.editor = editor

    def save(self, segmentationNode: Any) -> None:
        """Remember how the segmentation is now."""
        if self.editor.segmentationNode() is not segmentationNode:
            self.editor.setSegmentationNode(segmentationNode)
        self.editor.saveStateForUndo()

    def can_undo(self, segmentationNode: Any) -> bool:
        """Whether the editor shows the segmentation."""
        return self.editor.segmentationNode() is segmentationNode

    def can_redo(self, segmentationNode: Any) -> bool:
        """Whether the editor shows the segmentation."""
        return self.editor.segmentationNode() is segmentationNode

    def undo(self, segmentationNode: Any) -> None:
        """Take the last step back."""
        self.editor.undo()

    def redo(self, segmentationNode: Any) -> None:
        """Bring back what was taken back."""
        self.editor.redo()

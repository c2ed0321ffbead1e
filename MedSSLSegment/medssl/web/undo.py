"""Undo and redo: the program's steps on trame-slicer's undo stack, so that they and painting are one history."""

from __future__ import annotations

from typing import Any

import slicer
from trame_slicer.core import SegmentationEditor
from undo_stack import UndoCommand, UndoStack

from ..scene.history import UNDO_LEVELS
from ..scene.layers import BINARY_LABELMAP

__all__ = ["EditorHistory"]

_MEMORY_BYTES = 1 << 30
"""What all steps together may hold, about: each keeps the labelmaps before it and after it."""
_FEWEST_LEVELS = 5
"""Steps that can be taken back however large they are."""
_SHOWN = (
    "SegmentVisibility",
    "SegmentVisibility3D",
    "SegmentVisibility2DFill",
    "SegmentVisibility2DOutline",
    "SegmentOpacity3D",
    "SegmentOpacity2DFill",
    "SegmentOpacity2DOutline",
)
"""What the display node keeps for each segment; masking by visible segments goes by the first."""


class EditorHistory:
    """`medssl.scene.history.History` over the segment editor of trame-slicer.

    Args:
        editor: whose undo stack is shared; it gets a longer one.
    """

    def __init__(self, editor: SegmentationEditor) -> None:
        self._editor = editor
        self.stack = UndoStack(undo_limit=UNDO_LEVELS)
        self.stack.index_changed.connect(self._note_change)
        self._is_last_ours = False
        editor.set_undo_stack(self.stack)

    def save(self, segmentation_node: Any) -> None:
        """Remember how the segmentation is now."""
        self.stack.push(_Step(segmentation_node))
        self._is_last_ours = True

    def go_on(self, segmentation_node: Any) -> None:
        """Begin another step where a stroke came between: trame-slicer's commands bring back what was then."""
        if not self._is_last_ours:
            self.save(segmentation_node)

    def _note_change(self, _: int) -> None:
        """Something was pushed, taken back or brought back.

        When the newest step is reached the stack lets go of the oldest ones that memory has no room for; in between it
        would lose its place.
        """
        self._is_last_ours = False
        node = self._editor.active_segmentation_node
        if node is not None and self.stack.index() == self.stack.n_commands():
            steps = int(_MEMORY_BYTES // max(2 * _size_bytes(node.GetSegmentation()), 1))
            self.stack.set_undo_limit(min(max(steps, _FEWEST_LEVELS), UNDO_LEVELS))

    def can_undo(self, segmentation_node: Any) -> bool:
        """Whether there is something to take back."""
        return self._is_edited(segmentation_node) and bool(self.stack.can_undo())

    def can_redo(self, segmentation_node: Any) -> bool:
        """Whether there is something to bring back."""
        return self._is_edited(segmentation_node) and bool(self.stack.can_redo())

    def undo(self, segmentation_node: Any) -> None:
        """Take the last step back."""
        self.stack.undo()

    def redo(self, segmentation_node: Any) -> None:
        """Bring back what was taken back."""
        self.stack.redo()

    def _is_edited(self, segmentation_node: Any) -> bool:
        return self._editor.active_segmentation_node is segmentation_node


class _Step(UndoCommand):  # type: ignore[misc]
    """One step of the program, from when it began; how it ended is copied when it is first taken back.

    Args:
        segmentation_node: as it is before the step.
    """

    def __init__(self, segmentation_node: Any) -> None:
        super().__init__()
        self._node = segmentation_node
        self._before = _copy(segmentation_node.GetSegmentation())
        self._after: Any = None
        self._shown = _display(segmentation_node)
        """How segments were shown when they were last there."""

    def undo(self) -> None:
        self._after = _copy(self._node.GetSegmentation())
        self._put(self._before)

    def redo(self) -> None:
        self._put(self._after)

    def _put(self, state: Any) -> None:
        self._shown |= _display(self._node)
        self._node.GetSegmentation().DeepCopy(state)  # the display forgets segments that are taken out
        _show(self._node, self._shown)
        self._node.GetSegmentation().Modified()
        self._node.Modified()


def _display(segmentation_node: Any) -> dict[str, dict[str, Any]]:
    """How each segment is shown, by its id."""
    display = segmentation_node.GetDisplayNode()
    ids = [] if display is None else segmentation_node.GetSegmentation().GetSegmentIDs()
    return {each: {name: getattr(display, f"Get{name}")(each) for name in _SHOWN} for each in ids}


def _show(segmentation_node: Any, shown: dict[str, dict[str, Any]]) -> None:
    display = segmentation_node.GetDisplayNode()
    for each in segmentation_node.GetSegmentation().GetSegmentIDs():
        for name, value in shown.get(each, {}).items():
            getattr(display, f"Set{name}")(each, value)


def _size_bytes(segmentation: Any) -> int:
    """Of all labelmaps; several segments may share one."""
    segments = (segmentation.GetSegment(each) for each in segmentation.GetSegmentIDs())
    images = {segment.GetRepresentation(BINARY_LABELMAP) for segment in segments} - {None}
    return sum(1024 * int(image.GetActualMemorySize()) for image in images)


def _copy(segmentation: Any) -> Any:
    copy = slicer.vtkSegmentation()
    copy.DeepCopy(segmentation)
    return copy

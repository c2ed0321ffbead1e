"""The node behind the embedded Segment Editor, and what it has in common with the Segment Editor module's.

The module's widget stays connected to its node when it is left: it activates the effect that the node names, listens to
the views and keeps the undo states in a history of its own, hidden or not
(qMRMLSegmentEditorWidget::updateEffectsSectionFromMRML, setupViewObservations). On one node with the panel's widget it
would hear a stroke first, and the panel could not take the stroke back. So the panel has a node of its own, and hands
on by value what a person expects to find in both.
"""

from __future__ import annotations

from typing import Any

__all__ = ["editorNode", "handOver", "takeRules"]

TAG, MODULES_TAG = "MedSSLSegment", "SegmentEditor"
CLASS = "vtkMRMLSegmentEditorNode"


def editorNode(scene: Any) -> Any:
    """The panel's vtkMRMLSegmentEditorNode of a scene; made where there is none."""
    node = scene.GetSingletonNode(TAG, CLASS)
    if node is None:
        node = scene.CreateNodeByClass(CLASS)
        node.UnRegister(None)
        node.SetSingletonTag(TAG)
        node = scene.AddNode(node)
    return node


def takeRules(node: Any) -> None:
    """Take over the masking that was set in the Segment Editor module, where it edits the same segmentation."""
    other = node.GetScene().GetSingletonNode(MODULES_TAG, CLASS)
    segmentation = node.GetSegmentationNode()
    if other is not None and segmentation is not None and other.GetSegmentationNode() is segmentation:
        _copyRules(other, node)


def handOver(node: Any) -> None:
    """Let the Segment Editor module, if it was ever opened, go on with what the panel edits, by the same rules."""
    other = node.GetScene().GetSingletonNode(MODULES_TAG, CLASS)
    if other is None or node.GetSegmentationNode() is None:
        return
    wasModifying = other.StartModify()
    other.SetAndObserveSegmentationNode(node.GetSegmentationNode())
    other.SetAndObserveSourceVolumeNode(node.GetSourceVolumeNode())
    _copyRules(node, other)
    other.EndModify(wasModifying)
    # Only now: of another segmentation the module's widget has just chosen the first segment.
    other.SetSelectedSegmentID(node.GetSelectedSegmentID())


def _copyRules(source: Any, target: Any) -> None:
    target.SetMaskMode(source.GetMaskMode())
    target.SetMaskSegmentID(source.GetMaskSegmentID())
    target.SetOverwriteMode(source.GetOverwriteMode())
    target.SetSourceVolumeIntensityMask(source.GetSourceVolumeIntensityMask())
    target.SetSourceVolumeIntensityMaskRange(*source.GetSourceVolumeIntensityMaskRange())

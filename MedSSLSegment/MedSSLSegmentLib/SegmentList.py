"""Step 1: the segments, which of them take part, their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import qt
from medssl.scene.nodes import SegmentInfo
from medssl.scene.session import Session

__all__ = ["SegmentList"]

_SWATCH = 12


class SegmentList:
    """Shows the session's segments with a tick and a colour; a double click renames one.

    Args:
        listWidget: QListWidget.
        session: knows the segments.
        onChanged: called when a segment was ticked, unticked or renamed.
    """

    def __init__(self, listWidget: Any, session: Session, onChanged: Callable[[], None]) -> None:
        self.listWidget = listWidget
        self.session = session
        self.onChanged = onChanged
        self.unchecked: set[str] = set()
        """Ids of the segments of this segmentation that do not take part."""
        self._node: Any = None
        self._shown: tuple[SegmentInfo, ...] = ()
        listWidget.itemChanged.connect(self.onItem)

    def show(self) -> None:
        """Show the segments of the segmentation; a segment is checked until the user unchecks it."""
        segments, node = self.session.segments(), self.session.segmentation_node
        if segments == self._shown and node is self._node:
            return
        if node is not self._node:  # ids are unique in one segmentation only
            self._node = node
            self.unchecked.clear()
        self._shown = segments
        wasBlocked = self.listWidget.blockSignals(True)
        self.listWidget.clear()
        for segment in segments:
            item = qt.QListWidgetItem(_swatch(segment.color_rgb), segment.name)
            item.setData(qt.Qt.UserRole, segment.id)
            item.setToolTip(segment.name)
            item.setFlags(qt.Qt.ItemIsUserCheckable | qt.Qt.ItemIsEnabled | qt.Qt.ItemIsEditable)
            item.setCheckState(qt.Qt.Unchecked if segment.id in self.unchecked else qt.Qt.Checked)
            self.listWidget.addItem(item)
        self.listWidget.blockSignals(wasBlocked)

    def checked(self) -> list[str]:
        """Ids of the segments that take part."""
        items = [self.listWidget.item(row) for row in range(self.listWidget.count)]
        return [item.data(qt.Qt.UserRole) for item in items if item.checkState() == qt.Qt.Checked]

    def onItem(self, item: Any) -> None:
        """A segment was ticked, unticked or renamed."""
        segmentId = item.data(qt.Qt.UserRole)
        isChecked = item.checkState() == qt.Qt.Checked
        (self.unchecked.discard if isChecked else self.unchecked.add)(segmentId)
        self._rename(segmentId, item.text().strip())
        self.onChanged()

    def _rename(self, segmentId: str, name: str) -> None:
        """Give a segment the name that the list shows already, so that the list is not made anew under the editor."""
        node = self.session.segmentation_node
        segment = None if node is None else node.GetSegmentation().GetSegment(segmentId)
        if segment is None or not name or segment.GetName() == name:
            return
        self._shown = tuple(replace(s, name=name) if s.id == segmentId else s for s in self._shown)
        segment.SetName(name)


def _swatch(rgb: tuple[float, float, float]) -> Any:
    pixmap = qt.QPixmap(_SWATCH, _SWATCH)
    pixmap.fill(qt.QColor.fromRgbF(*rgb))
    return qt.QIcon(pixmap)

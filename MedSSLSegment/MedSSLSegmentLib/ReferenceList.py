"""The reference slices, found by themselves: ticked ones are used, a click goes there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
from medssl.scene.session import Session
from medssl.scene.survey import ReferenceSlice
from slicer.i18n import tr as _

__all__ = ["ReferenceList"]


class ReferenceList:
    """Shows what the session found.

    Args:
        listWidget: QListWidget.
        session: knows the reference slices, and remembers which of them are left out.
        onJump: called with the index of the slice that was clicked.
        onTicked: called when a slice was ticked or unticked.
    """

    def __init__(
        self,
        listWidget: Any,
        session: Session,
        onJump: Callable[[int], None],
        onTicked: Callable[[ReferenceSlice, bool], None],
    ) -> None:
        self.listWidget = listWidget
        self.session = session
        self.onJump = onJump
        self.onTicked = onTicked
        self._shown: list[tuple[str, ReferenceSlice]] = []
        self._tickedRow = -1
        listWidget.itemClicked.connect(self.onItemClicked)
        listWidget.itemChanged.connect(self.onItemChanged)

    def show(self) -> None:
        """Show the reference slices as they were last looked at; nothing happens if none has changed."""
        rows = [(self._text(each), each) for each in self.session.references()]
        if rows == self._shown:
            return
        self._shown = rows
        wasBlocked = self.listWidget.blockSignals(True)
        self.listWidget.clear()
        for text, reference in rows:
            item = qt.QListWidgetItem(text)
            item.setFlags(qt.Qt.ItemIsUserCheckable | qt.Qt.ItemIsEnabled)
            item.setCheckState(qt.Qt.Checked if reference.used else qt.Qt.Unchecked)
            item.setToolTip(text)
            self.listWidget.addItem(item)
        self.listWidget.blockSignals(wasBlocked)

    def onItemClicked(self, item: Any) -> None:
        """Go to the slice, unless the click was on its tick."""
        row, ticked = self.listWidget.row(item), self._tickedRow
        self._tickedRow = -1
        if row != ticked:
            self.onJump(self._shown[row][1].index)

    def onItemChanged(self, item: Any) -> None:
        """A tick was set or taken away; the list is not made anew here, where Qt still holds the item."""
        row = self.listWidget.row(item)
        self._tickedRow = row
        self.onTicked(self._shown[row][1], item.checkState() == qt.Qt.Checked)

    def _text(self, reference: ReferenceSlice) -> str:
        names = {segment.id: segment.name for segment in self.session.segments()}
        survey = self.session.survey
        return _("{view} slice {index}: {segment}").format(
            segment=names.get(reference.segment, reference.segment),
            view=survey.view if survey else "",
            index=reference.index,
        )

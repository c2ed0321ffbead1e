"""A list of promptable models, of which one is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
from medssl.registry import DEFAULT_MODEL, ModelEntry, known_models

from .Lists import fill
from .ModelDownload import modelTitle

__all__ = ["ModelChoice"]


class ModelChoice:
    """Fills a combo box with models, and tells which one was chosen.

    Args:
        comboBox: shows them.
        fits: whether a model can do what it is chosen for.
        onChosen: called with the id of the model that is chosen now.
    """

    def __init__(
        self, comboBox: Any, fits: Callable[[ModelEntry], bool], onChosen: Callable[[str], None]
    ) -> None:
        self.comboBox = comboBox
        self.fits = fits
        self.onChosen = onChosen
        self.show()
        comboBox.currentIndexChanged.connect(lambda *_ignored: self.onChosen(self.modelId))

    @property
    def modelId(self) -> str:
        """The chosen model."""
        return str(self.comboBox.itemData(self.comboBox.currentIndex))

    def choose(self, modelId: str) -> None:
        """Choose a model, or the shipped one where it is not in the list; nobody is told."""
        wasBlocked = self.comboBox.blockSignals(True)
        row = self.comboBox.findData(modelId)
        self.comboBox.currentIndex = self.comboBox.findData(DEFAULT_MODEL) if row < 0 else row
        self.comboBox.blockSignals(wasBlocked)

    def show(self) -> None:
        """List the models there are now, and say of each whether it is on this computer."""
        entries = [entry for entry in known_models() if self.fits(entry)]
        before = self.modelId if self.comboBox.count else ""
        fill(self.comboBox, [(modelTitle(entry), entry.id) for entry in entries])
        for row, entry in enumerate(entries):
            self.comboBox.setItemData(row, entry.purpose, qt.Qt.ToolTipRole)
        if before and before != self.modelId:  # it was taken out meanwhile
            self.onChosen(self.modelId)

"""What every list to choose from does."""

from __future__ import annotations

from typing import Any

__all__ = ["fill"]


def fill(comboBox: Any, rows: list[tuple[str, Any]]) -> None:
    """Offer (text, data) rows, keeping the choice where it is still there; nothing happens if nothing changed."""
    known = [(comboBox.itemText(n), comboBox.itemData(n)) for n in range(comboBox.count)]
    if known == rows:
        return
    chosen = comboBox.itemData(comboBox.currentIndex) if comboBox.count else None
    wasBlocked = comboBox.blockSignals(True)
    comboBox.clear()
    for text, data in rows:
        comboBox.addItem(text, data)
    comboBox.currentIndex = max(comboBox.findData(chosen), 0) if rows else -1
    comboBox.blockSignals(wasBlocked)

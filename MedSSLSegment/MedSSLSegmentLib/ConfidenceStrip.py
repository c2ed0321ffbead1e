"""A strip along the volume: how sure the program is of each slice, and which ones somebody vouches for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import qt

__all__ = ["ConfidenceStrip", "CurvePlot", "sliceAt"]

HEIGHT = 46
UNKNOWN = "#9aa0a6"
SURE, UNSURE = (46, 160, 67), (215, 58, 73)
REFERENCE, SUGGESTION, CURRENT = "#1f6feb", "#d29922", "#ffffff"


def sliceAt(x: float, width: int, count: int) -> int:
    """The slice under a position on a strip of that many slices."""
    return int(np.clip(x * count // max(width, 1), 0, count - 1)) if count else 0


class ConfidenceStrip(qt.QWidget):
    """One column a slice: its height is how much was found, its colour how surely.

    Args:
        onJump: called with the slice that was clicked.
    """

    def __init__(self, onJump: Callable[[int], None]) -> None:
        qt.QWidget.__init__(self)
        self.onJump = onJump
        self.areas = np.zeros(0)
        self.confidence = np.zeros(0)
        self.references: Sequence[int] = ()
        self.suggestions: Sequence[int] = ()
        self.current = -1
        self.minimumHeight = HEIGHT

    def display(self, areas: Any, confidence: Any, references: Sequence[int]) -> None:
        """Show a segment: (N,) areas, (N,) confidence with NaN where there is none, its reference slices."""
        self.areas, self.confidence, self.references = areas, confidence, references
        self.update()

    def mark(self, current: int, suggestions: Sequence[int]) -> None:
        """Show the slice being looked at, and those worth annotating."""
        self.current, self.suggestions = current, suggestions
        self.update()

    def mousePressEvent(self, event: Any) -> None:
        """Go to the slice that was clicked."""
        if len(self.areas):
            x = event.position().x() if hasattr(event, "position") else event.x()
            self.onJump(sliceAt(x, _size(self)[0], len(self.areas)))

    def paintEvent(self, event: Any) -> None:
        """Draw the strip."""
        painter = qt.QPainter(self)
        width, height = _size(self)
        painter.fillRect(0, 0, width, height, qt.QColor("#22272e"))
        count = len(self.areas)
        largest = max(float(self.areas.max()), 1.0) if count else 1.0
        for n in range(count):
            left, right = n * width // count, max((n + 1) * width // count, n * width // count + 1)
            tall = round((height - 12) * float(self.areas[n]) / largest)
            color = _colorOf(float(self.confidence[n]))
            painter.fillRect(left, height - tall, right - left, tall, qt.QColor(color))
        for slices, color in ((self.references, REFERENCE), (self.suggestions, SUGGESTION)):
            for n in slices:
                painter.fillRect((2 * n + 1) * width // (2 * max(count, 1)) - 2, 0, 5, 9, qt.QColor(color))
        if 0 <= self.current < count:
            x = (2 * self.current + 1) * width // (2 * count)
            painter.fillRect(x, 0, 1, height, qt.QColor(CURRENT))
        painter.end()


class CurvePlot(qt.QWidget):
    """A curve over the steps of a run, e.g. the Dice of fine-tuning or the loss of pre-training."""

    def __init__(self) -> None:
        qt.QWidget.__init__(self)
        self.name = ""
        self.steps: Sequence[float] = ()
        self.values: Sequence[float] = ()
        self.top = 1.0
        self.minimumHeight = 80

    def display(self, name: str, steps: Sequence[float], values: Sequence[float], top: float = 1.0) -> None:
        """Show a curve between 0 and `top`; values outside are clipped."""
        self.name, self.steps, self.values, self.top = name, steps, values, max(top, 1e-9)
        self.update()

    def paintEvent(self, event: Any) -> None:
        """Draw the curve, its last value in words."""
        painter = qt.QPainter(self)
        width, height = _size(self)
        painter.fillRect(0, 0, width, height, qt.QColor("#22272e"))
        painter.setPen(qt.QColor("#57606a"))
        for part in (0.25, 0.5, 0.75):
            painter.drawLine(0, round(height * part), width, round(height * part))
        if len(self.values):
            last = max(float(self.steps[-1]), 1e-9)
            points = [
                (round((width - 1) * x / last), round((height - 1) * (1 - min(max(y / self.top, 0.0), 1.0))))
                for x, y in zip(self.steps, self.values, strict=True)
            ]
            painter.setPen(qt.QColor("#3fb950"))
            for (x0, y0), (x1, y1) in itertools.pairwise(points):
                painter.drawLine(x0, y0, x1, y1)
            painter.setPen(qt.QColor("#ffffff"))
            painter.drawText(6, 14, f"{self.name} {self.values[-1]:.3f}")
        painter.end()


def _colorOf(confidence: float) -> str:
    if np.isnan(confidence):
        return UNKNOWN
    mixed = (round(u + (s - u) * confidence) for u, s in zip(UNSURE, SURE, strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def _size(widget: Any) -> tuple[int, int]:
    """Width and height; PythonQt has them as attributes."""
    return int(widget.width), int(widget.height)

"""What the command line shows while it works: a progress bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

from ..events import Progress, duration

__all__ = ["ProgressBar", "table"]

_BAR_WIDTH = 24
_REDRAW_S = 0.1
_LINE_EVERY = 0.25
"""Without a terminal, one line is written each time this share of the work, or of its next stage, is done."""


class ProgressBar:
    """Shows `Progress` events on a stream; as a context manager it ends its line on every way out."""

    def __init__(self, stream: TextIO, title: str) -> None:
        self._stream = stream
        self._title = title
        self._live = stream.isatty()
        self._drawn_at = 0.0
        self._share = 0.0
        self._next_share = 0.0
        self._open = False

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self._stream.write("\n")
            self._open = False

    def __call__(self, progress: Progress) -> None:
        """Show how far the work has come."""
        if progress.total <= 0:
            return
        if self._live:
            self._draw(progress)
        else:
            self._write_line(progress)

    def say(self, text: str) -> None:
        """Write a line of text; a bar is drawn again below it."""
        if self._open:
            self._stream.write("\n")
            self._open = False
        self._stream.write(text + "\n")
        self._stream.flush()

    def _draw(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._drawn_at < _REDRAW_S and progress.done < progress.total:
            return
        self._drawn_at = now
        filled = _BAR_WIDTH * progress.done // progress.total
        line = f"{self._title} [{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {_describe(progress)}"
        columns = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r{line[:columns]:<{columns}}")
        self._stream.flush()
        self._open = True

    def _write_line(self, progress: Progress) -> None:
        share = progress.done / progress.total
        if share < self._share:  # another stage begins
            self._next_share = 0.0
        self._share = share
        if share >= self._next_share:
            self._next_share = (share // _LINE_EVERY + 1) * _LINE_EVERY
            self._stream.write(f"{self._title}: {_describe(progress)}\n")
            self._stream.flush()


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Lay out text in columns; those of the numbers in `left` are set left, the others right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _describe(progress: Progress) -> str:
    """What is done comes last: of a line too long for the terminal, the time left is still to be seen."""
    text = f"{100 * progress.done // progress.total:3d} %"
    if progress.seconds_left is not None and progress.done < progress.total:
        text += f"  {duration(progress.seconds_left)} left"
    if progress.text:
        text += f"  {progress.text}"
    return text

"""Slices that arrive from the worker, written into segments a few at a time so that the front end stays usable."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..volume import Volume
from . import nodes, tags, writing
from .history import History
from .layers import slice_fingerprint
from .rules import EditingRules

__all__ = ["Target", "Writer"]

_SLICES_PER_WRITE = 4
_PAUSE_WHILE_RUNNING = 4.0
"""Pause after writing, in times of what it took."""
_PAUSE_AT_THE_END = 1.0


@dataclass(frozen=True)
class Target:
    """A segment that is written to."""

    node: Any
    """vtkMRMLSegmentationNode."""
    segment: str
    """Id of the segment."""


@dataclass(eq=False)
class Writer:
    """Writes what has arrived; the first write of each segmentation is one step of its history.

    Args:
        volume: the grid the masks are on.
        axis: their slice axis.
        history: where the state before the first write goes; only for nodes in `undoable`.
        clock: seconds, for pacing.
    """

    volume: Volume
    axis: int
    history: History
    clock: Callable[[], float]
    rules: Mapping[Any, EditingRules]
    """By segmentation node; a node that is not here has none. Undo covers the nodes that are."""
    held: Mapping[Target, Mapping[int, int]] = field(default_factory=dict)
    """Fingerprints of the masks on the slices that held any before the first write. A slice that holds something else
    when its turn comes, while nothing was written there, was drawn by a person meanwhile and stays as it is."""
    kept: dict[Target, set[int]] = field(default_factory=dict)
    """The slices that did."""
    pending: dict[Target, dict[int, NDArray[np.bool_]]] = field(default_factory=dict)
    confidence: dict[Target, dict[int, float]] = field(default_factory=dict)
    written: dict[Target, set[int]] = field(default_factory=dict)
    gave_way: dict[Target, set[int]] = field(default_factory=dict)
    """Slices on which other segments have lost voxels to what was written."""
    _last_mark: tuple[Target, tuple[int, int]] | None = None
    _saved: set[Any] = field(default_factory=set)
    _write_again_s: float = 0.0

    def put(
        self, target: Target, index: int, mask: NDArray[np.bool_], confidence: float | None = None
    ) -> None:
        """Have a slice written before long."""
        self.pending.setdefault(target, {})[index] = mask
        if confidence is not None:
            self.confidence.setdefault(target, {})[index] = confidence

    def empty_left_over(self, target: Target, decided: Container[int]) -> None:
        """Have slices emptied that were predicted earlier, nobody has changed since, and this run has found nothing on.

        Args:
            target: where what was found is written by now.
            decided: slices the run has a say on.
        """
        done = self.written.get(target, set()) | self.kept.get(target, set())
        for (axis, index), mark in tags.predicted_slices(target.node, target.segment).items():
            if axis == self.axis and index not in done and index in decided:
                mask = nodes.read_slice(target.node, target.segment, self.volume, axis, index)
                if slice_fingerprint(mask) == mark:
                    self.put(target, index, np.zeros_like(mask))

    def remember(self, node: Any) -> None:
        """Make what follows part of this step of a segmentation's history; once, and only where undo covers it."""
        if node in self.rules and node not in self._saved:
            self.history.save(node)
            self._saved.add(node)

    def write(self, budget_s: float, at_the_end: bool) -> None:
        """Write what waits, for at most about so long; nothing while it pauses.

        Args:
            budget_s: begin no further write after this many seconds.
            at_the_end: nothing more arrives, so hurry.
        """
        began_s = self.clock()
        if began_s < self._write_again_s or not self.pending:
            return
        while self.pending and not self._save_first(began_s, budget_s):
            self._write_some()
            if self.clock() - began_s >= budget_s:
                break
        now_s = self.clock()
        pause = _PAUSE_AT_THE_END if at_the_end else _PAUSE_WHILE_RUNNING
        self._write_again_s = now_s + pause * (now_s - began_s)

    def _save_first(self, began_s: float, budget_s: float) -> bool:
        """Remember the state before the first write; True when that has used up the time."""
        node = next(iter(self.pending)).node
        if node not in self.rules:
            return False
        if node in self._saved:
            self.history.go_on(node)
            return False
        self.remember(node)
        return self.clock() - began_s >= budget_s

    def _write_some(self) -> None:
        target, slices = next(iter(self.pending.items()))
        batch = {index: slices.pop(index) for index in list(slices)[:_SLICES_PER_WRITE]}
        if not slices:
            del self.pending[target]
        for index in [index for index in batch if self._is_drawn_meanwhile(target, index)]:
            del batch[index]
            self.kept.setdefault(target, set()).add(index)
        if not batch:
            return
        rules = self.rules.get(target.node, EditingRules())
        masks = writing.write_predicted_slices(
            target.node, target.segment, self.volume, self.axis, batch, rules, self._note_lost
        )
        for index in [index for index, mask in masks.items() if mask.any()][-1:]:
            self._last_mark = target, (self.axis, index)
        known = self.confidence.get(target, {})
        sure = {(self.axis, index): known.pop(index) for index in batch if index in known}
        if sure:
            tags.note_confidences(target.node, target.segment, sure)
        self.written.setdefault(target, set()).update(batch)

    def _is_drawn_meanwhile(self, target: Target, index: int) -> bool:
        held = self.held.get(target)
        if held is None or any(index in done.get(target, ()) for done in (self.written, self.gave_way)):
            return False
        mask = nodes.read_slice(target.node, target.segment, self.volume, self.axis, index)
        return held.get(index) != (slice_fingerprint(mask) if mask.any() else None)

    def _note_lost(self, node: Any, segment: str, index: int) -> None:
        self.gave_way.setdefault(Target(node, segment), set()).add(index)

    def kept_text(self, node: Any) -> str:
        """How many slices a person has drawn meanwhile, which stay as they are."""
        count = len({index for target, kept in self.kept.items() if target.node is node for index in kept})
        if count == 0:
            return ""
        slices = "1 slice that was" if count == 1 else f"{count} slices that were"
        return f" {slices} drawn meanwhile stay{'s' * (count == 1)} as drawn."

    def gave_way_text(self, node: Any) -> str:
        """Which other segments of a segmentation have lost voxels, so that it does not go unseen."""
        segmentation = node.GetSegmentation()
        losers = {
            segmentation.GetSegment(target.segment).GetName(): len(indices)
            for target, indices in self.gave_way.items()
            if target.node is node and segmentation.GetSegment(target.segment) is not None
        }
        if not losers:
            return ""
        slices = ", ".join(f"{name} on {n} slice{'s' * (n > 1)}" for name, n in losers.items())
        return f" Other segments gave way: {slices}; undo brings them back."

    @property
    def was_undone(self) -> bool:
        """Whether somebody has taken back what was written here, e.g. with the Segment Editor's own undo."""
        if self._last_mark is None:
            return False
        target, place = self._last_mark
        return place not in tags.predicted_slices(target.node, target.segment)

    def note_drawn(self, node: Any, segment: str, axis: int, index: int) -> None:
        """A person has decided on a slice: that its mark has gone is no sign of an undo."""
        if self._last_mark == (Target(node, segment), (axis, index)):
            self._last_mark = None

    def end(self) -> None:
        """Bring the surfaces, where there are any, up to date with what was written."""
        for node in dict.fromkeys(target.node for target in self.written):
            if node.GetScene() is not None:
                writing.refresh_surfaces(node, [each.segment for each in self.written if each.node is node])

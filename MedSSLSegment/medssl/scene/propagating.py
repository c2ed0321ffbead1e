"""One propagation: what is asked for, what that comes to on the chosen nodes, and what has arrived of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from ..prompts import Reference
from ..registry import DEFAULT_MODEL
from . import tags
from .layers import slice_fingerprint
from .rules import Overlap
from .streaming import Target, Writer

if TYPE_CHECKING:
    from .session import Run

__all__ = [
    "Plan",
    "PropagateRequest",
    "Propagation",
    "covered_slices",
    "fingerprints",
    "options_of",
    "recorded",
]


@dataclass(frozen=True, kw_only=True)
class PropagateRequest:
    """What to propagate, and how."""

    segment_ids: tuple[str, ...] | None = None
    """Segments to propagate, None = all; those with nothing drawn are left out."""
    axis: int | None = None
    """Slice axis, 0 = K, 1 = J, 2 = I; None = the one the user painted across."""
    first: int | None = None
    """First slice to fill; None = the volume's first."""
    last: int | None = None
    """Last slice to fill; None = the volume's last."""
    direction: Literal["both", "higher", "lower"] = "both"
    """Which way to go from the drawn slices."""
    stop: bool = True
    """Stop where the object ends; False fills the whole range."""
    model: str = DEFAULT_MODEL
    """Model id of the registry."""
    device: str | None = None
    """"auto", "cpu", "cuda", "cuda:N" or "mps"; None = the session's."""
    overlap: Overlap = Overlap.ALLOW
    """What to do where the result meets another segment; a session's `editor_node` has its own say instead."""
    only_changed: bool = False
    """Track only the stretches again that reach a slice drawn, corrected or removed since the last run, and those
    that a cancelled or failed run has left unfinished."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What a request comes to on the chosen nodes."""

    axis: int
    """Slice axis, 0 = K, 1 = J, 2 = I."""
    view: str
    """The anatomical view the slices belong to, e.g. "axial"."""
    drawn: dict[str, list[int]]
    """Segment id -> its drawn slices, ascending."""
    changed: tuple[int, ...] = ()
    """Slices whose stretches are tracked again, reference slices or not; empty = all."""


@dataclass(eq=False)
class Propagation:
    """A propagation under way, and what has come of it so far."""

    run: Run
    request: PropagateRequest
    plan: Plan
    volume_node: Any
    segmentation_node: Any
    covered: dict[str, tuple[range, ...]]
    """The slices the run decides about, by segment id: its range on the side it goes to."""
    started_s: float
    writer: Writer
    image: tuple[object, ...]
    """The volume's image and where it lay when the run began."""
    arrived: dict[str, set[int]]
    """Slices that have arrived so far, by segment id."""
    emptied: dict[str, tuple[int, ...]]
    """Slices that an earlier run had filled and a person has emptied before this one, by segment id."""
    marks: dict[str, tuple[int, ...]]
    """Fingerprints of the masks it started from, by segment id, in the slices' order."""

    def filled(self, segment_id: str) -> set[int]:
        """Slices that have arrived and are written."""
        written = self.writer.written.get(Target(self.segmentation_node, segment_id), set())
        return written & self.arrived[segment_id]

    def empty_left_over(self) -> None:
        """Have the slices emptied that an earlier run filled and this one found without the object.

        Drawn slices and those the user has changed since they were predicted are not among them.
        """
        for segment_id, drawn in self.plan.drawn.items():
            decided = set(chain.from_iterable(self.covered[segment_id])).difference(drawn)
            self.writer.empty_left_over(Target(self.segmentation_node, segment_id), decided)

    def written_text(self) -> str:
        """How many slices were written, and how many of an earlier run emptied."""
        arrived = self.arrived
        count = emptied = 0
        for target, indices in self.writer.written.items():
            count += len(indices & arrived[target.segment])
            emptied += len(indices - arrived[target.segment])
        text = "1 slice was written" if count == 1 else f"{count} slices were written"
        return f"{text} and {emptied} of an earlier run emptied" if emptied else text

    def refilled_text(self) -> str:
        """How many slices that a person had emptied hold something again, so that it does not go unseen."""
        node, axis = self.segmentation_node, self.plan.axis
        refilled: set[int] = set()
        for segment_id, emptied in self.emptied.items():
            predicted = {n for marked, n in tags.predicted_slices(node, segment_id) if marked == axis}
            refilled |= predicted & self.filled(segment_id) & set(emptied)
        if not refilled:
            return ""
        count = len(refilled)
        slices = (
            "1 slice that had been emptied was"
            if count == 1
            else f"{count} slices that had been emptied were"
        )
        return f" {slices} filled again; undo takes that back."


def fingerprints(references: Sequence[Reference]) -> dict[str, tuple[int, ...]]:
    """Of the masks that a run starts from, by segment id, in the slices' order."""
    marks: dict[str, tuple[int, ...]] = {}
    for reference in references:
        assert reference.prompt.mask is not None
        mark = slice_fingerprint(reference.prompt.mask)
        marks[reference.segment] = (*marks.get(reference.segment, ()), mark)
    return marks


def covered_slices(
    request: PropagateRequest, count: int, drawn: Sequence[int], changed: Sequence[int]
) -> tuple[range, ...]:
    """The slices of `count` that a run from the drawn ones (ascending) fills or finds without the object."""
    first = 0 if request.first is None else request.first
    last = count - 1 if request.last is None else request.last
    if request.direction == "higher":
        first = max(first, drawn[0] + 1)
    elif request.direction == "lower":
        last = min(last, drawn[-1] - 1)
    if not changed:
        return (range(first, last + 1),)
    stretches = []
    for index in changed:
        low = max([n + 1 for n in drawn if n < index], default=first)
        high = min([n - 1 for n in drawn if n > index], default=last)
        stretches.append(range(max(low, first), min(high, last) + 1))
    return tuple(stretches)


def recorded(request: PropagateRequest) -> dict[str, Any]:
    """What was asked for, for the record."""
    left_out = ("segment_ids", "model", "axis", "overlap")
    return {name: value for name, value in asdict(request).items() if name not in left_out}


def options_of(request: PropagateRequest, plan: Plan) -> dict[str, Any]:
    """Fields of `medssl.propagate.PropagateOptions`."""
    options = {
        "axis": plan.axis,
        "first": request.first,
        "last": request.last,
        "direction": request.direction,
        "stop": request.stop,
    }
    return {**options, "changed": plan.changed} if plan.changed else options

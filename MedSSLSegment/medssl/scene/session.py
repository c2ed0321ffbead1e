"""What a person does in a front end, without the front end: choose nodes, propagate, watch, cancel, undo.

A panel or a browser makes one `Session`, calls `start`, then `poll` from a timer until the status is no
longer running. Nothing here waits: the worker computes, `poll` writes what has arrived for a few milliseconds
and returns.

    session = Session(scene, segmentations_logic, client)
    session.choose(volume_node, segmentation_node)
    session.start(PropagateRequest())
    while session.poll().state is State.RUNNING: ...
    session.undo()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Literal, Protocol

import numpy as np
import slicer
from numpy.typing import NDArray

from ..errors import Cancelled, InputError, MedSSLError
from ..events import Log, Progress
from ..prompts import Reference, SlicePrompt
from ..registry import DEFAULT_MODEL
from ..results import SliceMask
from ..volume import View, Volume
from . import nodes
from .nodes import Overlap, SegmentInfo

__all__ = ["Plan", "PropagateRequest", "Propagator", "Run", "Session", "State", "Status"]

UNDO_LEVELS = 10
"""Propagations that can be undone; each keeps a copy of the labelmaps it changed."""
_SLICES_PER_WRITE = 64
_PAUSE_WHILE_RUNNING = 4.0
"""Pause after writing, in times of what it took. 3D Slicer reads a segment's whole layer again at every write, so in a
large volume a write costs the same for one slice as for many: fewer writes of more slices stall less."""
_PAUSE_AT_THE_END = 1.0


class Run(Protocol):
    """What a session needs of `medssl.client.Ticket`: a request under way in the worker."""

    @property
    def done(self) -> bool:
        """Whether the request has ended; events may still wait to be taken."""

    def poll(self) -> Sequence[object]:
        """Events since the last call, in order; never waits."""

    def cancel(self) -> None:
        """Ask the worker to stop; returns at once."""

    def result(self) -> object:
        """The outcome, once done; raises the request's own error if it failed."""


class Propagator(Protocol):
    """What a session needs of `medssl.client.WorkerClient`."""

    def propagate(
        self,
        volume: Volume,
        references: Sequence[Reference],
        options: Mapping[str, Any],
        *,
        model: str,
        device: str,
    ) -> Run:
        """Start carrying references through a volume; returns at once."""


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
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:N" or "mps"."""
    overlap: Overlap = Overlap.ALLOW
    """What to do where the result meets another segment."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What a request comes to on the chosen nodes."""

    axis: int
    """Slice axis, 0 = K, 1 = J, 2 = I."""
    view: str
    """The anatomical view the slices belong to, e.g. "axial"."""
    drawn: dict[str, list[int]]
    """Segment id -> its drawn slices, ascending."""


class State(Enum):
    """Where a session stands."""

    IDLE = "idle"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True)
class Status:
    """What a front end shows."""

    state: State = State.IDLE
    fraction: float = 0.0
    """0 .. 1 of the running or last propagation."""
    seconds_left: float | None = None
    """None until it can be estimated."""
    text: str = ""
    """One sentence."""


_Pending = dict[str, dict[int, NDArray[np.bool_]]]


@dataclass(eq=False)
class _Propagation:
    """The propagation under way."""

    run: Run
    volume: Volume
    volume_node: Any
    segmentation_node: Any
    axis: int
    drawn: dict[str, list[int]]
    covered: dict[str, range]
    """The slices the run decides about, by segment id: its range on the side it goes to."""
    overlap: Overlap
    started_s: float
    arrived: dict[str, set[int]]
    """Slices that have arrived so far, by segment id."""
    pending: _Pending = field(default_factory=dict)
    """Slices that are to be written: {segment id: {index: mask}}."""
    slices_written: int = 0
    slices_emptied: int = 0


class Session:
    """One person's work on one volume and one segmentation.

    Args:
        scene: vtkMRMLScene the nodes live in.
        segmentations_logic: vtkSlicerSegmentationsModuleLogic of that scene; segments need one to exist.
        client: computes; `medssl.client.WorkerClient`.
        clock: seconds, for pacing.
    """

    def __init__(
        self,
        scene: Any,
        segmentations_logic: Any,
        client: Propagator,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scene = scene
        self.client = client
        self._segmentations_logic = segmentations_logic
        self._clock = clock
        self._volume_node: Any = None
        self._volume: tuple[object, Volume] | None = None
        self._segmentation_node: Any = None
        self._histories: dict[Any, Any] = {}
        self._propagation: _Propagation | None = None
        self._status = Status()
        self._write_again_s = 0.0

    # Choosing

    def choose(self, volume_node: Any, segmentation_node: Any) -> None:
        """Work on these nodes; either may be None. Choosing another segmentation cancels what runs."""
        if segmentation_node is not self._segmentation_node:
            self.cancel()
            self._status = Status()
            self._histories = {n: h for n, h in self._histories.items() if self._is_present(n)}
        if volume_node is not self._volume_node:
            self._volume = None
        self._volume_node = volume_node
        self._segmentation_node = segmentation_node

    @property
    def status(self) -> Status:
        """The state after the last call."""
        return self._status

    def segments(self) -> tuple[SegmentInfo, ...]:
        """The segments of the chosen segmentation, in the user's order; none without a segmentation."""
        if not self._is_present(self._segmentation_node):
            return ()
        return nodes.list_segments(self._segmentation_node)

    def axis_of(self, view: View) -> int:
        """The chosen volume's slice axis that comes closest to an anatomical view."""
        return self._read_volume().axis_of(view)

    def plan(self, request: PropagateRequest) -> Plan:
        """Find the slices the user drew, and across which axis.

        Slices that were predicted earlier and not changed since do not count.

        Raises:
            InputError: nothing is chosen or drawn, or the nodes do not fit together.
        """
        return self._plan(request, self._read_volume())

    def _plan(self, request: PropagateRequest, volume: Volume) -> Plan:
        names = {s.id: s.name for s in self.segments()}
        wanted = tuple(names) if request.segment_ids is None else request.segment_ids
        drawings = {i: nodes.read_drawn(self._segmentation_node, i, volume) for i in wanted}
        drawings = {i: drawing for i, drawing in drawings.items() if drawing[1].any()}
        if not drawings:
            name = self._segmentation_node.GetName()
            what = f"segment '{names[wanted[0]]}'" if len(wanted) == 1 else f"'{name}'"
            raise InputError(f"Nothing is drawn in {what}; paint the object on at least one slice first.")
        axis = request.axis
        if axis is None:
            axis = nodes.guess_axis(mask for _, mask in drawings.values())
        drawn = {
            i: [start[axis] + n for n in nodes.annotated_slices(mask, axis)]
            for i, (start, mask) in drawings.items()
        }
        return Plan(axis, volume.view_of(axis), drawn)

    # Propagating

    def start(self, request: PropagateRequest) -> Plan:
        """Send the drawn slices to the worker; call `poll` from now on.

        Raises:
            InputError: nothing is chosen or drawn, the nodes do not fit together, or a propagation runs.
            WorkerError: the worker cannot be started or reached.
        """
        if self._propagation is not None:
            raise InputError("A propagation is running; wait for it or cancel it first.")
        volume = self._read_volume()
        plan = self._plan(request, volume)
        volume.require_stack(plan.axis)
        nodes.set_reference_geometry(self._segmentation_node, self._volume_node)
        references = [
            Reference(i, self._prompt(volume, i, plan.axis, index))
            for i, indices in plan.drawn.items()
            for index in indices
        ]
        self._propagation = _Propagation(
            run=self.client.propagate(
                volume, references, _options(request, plan.axis), model=request.model, device=request.device
            ),
            volume=volume,
            volume_node=self._volume_node,
            segmentation_node=self._segmentation_node,
            axis=plan.axis,
            drawn=plan.drawn,
            covered={
                i: _covered(request, volume.shape_kji[plan.axis], drawn) for i, drawn in plan.drawn.items()
            },
            overlap=request.overlap,
            started_s=self._clock(),
            arrived={i: set() for i in plan.drawn},
        )
        count = "1 drawn slice" if len(references) == 1 else f"{len(references)} drawn slices"
        self._status = Status(State.RUNNING, text=f"Propagating from {count} ({plan.view}).")
        return plan

    def _prompt(self, volume: Volume, segment_id: str, axis: int, index: int) -> SlicePrompt:
        mask = nodes.read_slice(self._segmentation_node, segment_id, volume, axis, index)
        return SlicePrompt(axis, index, mask=mask)

    def poll(self, budget_s: float = 0.05) -> Status:
        """Take what the worker has sent and write it into the segmentation, then return.

        Args:
            budget_s: begin no further write after this many seconds; the rest follows at the next call.
                Writing takes at most a fifth of the time, and half once the worker is done, so that the front end
                stays usable.
        """
        propagation = self._propagation
        if propagation is None:
            return self._status
        try:
            lost = self._what_was_removed(propagation)
            if lost:
                self._end(State.CANCELLED, f"Propagation was cancelled because {lost} was removed.")
            else:
                is_last = propagation.run.done  # asked first: what arrives later waits for the next call
                self._take_events(propagation)
                self._write_pending(propagation, budget_s)
                if is_last and not propagation.pending:
                    self._finish(propagation)
        except MedSSLError as error:
            self._end(State.FAILED, str(error))
        except BaseException:
            self._end(State.FAILED, "Propagation was stopped by an error in the program.")
            raise
        return self._status

    def cancel(self) -> None:
        """Stop the propagation, if one runs; slices written so far stay and can be undone."""
        if self._propagation is not None:
            self._end(State.CANCELLED, f"Propagation was cancelled; {_written(self._propagation)}.")

    def _take_events(self, propagation: _Propagation) -> None:
        for event in propagation.run.poll():
            if isinstance(event, Progress):
                self._show_progress(event)
            elif isinstance(event, Log):
                self._status = replace(self._status, text=event.text)
            elif isinstance(event, SliceMask) and event.index not in propagation.drawn[event.segment]:
                propagation.arrived[event.segment].add(event.index)
                propagation.pending.setdefault(event.segment, {})[event.index] = event.mask

    def _show_progress(self, progress: Progress) -> None:
        fraction = progress.done / progress.total if progress.total else 0.0
        text = progress.text or f"Slice {progress.done} of {progress.total}."
        self._status = Status(State.RUNNING, fraction, progress.seconds_left, text)

    def _write_pending(self, propagation: _Propagation, budget_s: float) -> None:
        began_s = self._clock()
        if began_s < self._write_again_s or not propagation.pending:
            return
        self._save_state_once(propagation)
        while propagation.pending:
            self._write_some(propagation)
            if self._clock() - began_s >= budget_s:
                break
        now_s = self._clock()
        pause = _PAUSE_AT_THE_END if propagation.run.done else _PAUSE_WHILE_RUNNING
        self._write_again_s = now_s + pause * (now_s - began_s)

    def _save_state_once(self, propagation: _Propagation) -> None:
        if propagation.slices_written or propagation.slices_emptied:
            return
        node = propagation.segmentation_node
        if node not in self._histories:
            history = slicer.vtkSegmentationHistory()
            history.SetMaximumNumberOfStates(UNDO_LEVELS)
            history.SetSegmentation(node.GetSegmentation())
            self._histories[node] = history
        self._histories[node].SaveState()

    def _write_some(self, propagation: _Propagation) -> None:
        segment_id, slices = next(iter(propagation.pending.items()))
        batch = {index: slices.pop(index) for index in list(slices)[:_SLICES_PER_WRITE]}
        if not slices:
            del propagation.pending[segment_id]
        nodes.write_predicted_slices(
            propagation.segmentation_node,
            segment_id,
            propagation.volume,
            propagation.axis,
            batch,
            propagation.overlap,
        )
        emptied = len(batch.keys() - propagation.arrived[segment_id])
        propagation.slices_emptied += emptied
        propagation.slices_written += len(batch) - emptied

    def _finish(self, propagation: _Propagation) -> None:
        """End the run, unless slices of an earlier one are left: the next calls write those empty first."""
        try:
            propagation.run.result()
        except Cancelled as error:
            self._end(State.CANCELLED, str(error))
            return
        propagation.pending = _left_over(propagation)
        if not propagation.pending:
            seconds = self._clock() - propagation.started_s
            self._end(State.DONE, f"{_written(propagation)} in {seconds:.1f} s.")

    def _end(self, state: State, text: str) -> None:
        propagation, self._propagation = self._propagation, None
        if propagation is not None and not propagation.run.done:
            propagation.run.cancel()
        fraction = 1.0 if state is State.DONE else self._status.fraction
        self._status = Status(state, fraction, None, text)

    # Undoing

    @property
    def can_undo(self) -> bool:
        """Whether there is a propagation to take back."""
        history = self._history()
        return history is not None and bool(history.IsRestorePreviousStateAvailable())

    @property
    def can_redo(self) -> bool:
        """Whether there is a propagation to bring back."""
        history = self._history()
        return history is not None and bool(history.IsRestoreNextStateAvailable())

    def undo(self) -> None:
        """Put the segmentation back to where it was before the last propagation; cancels one that runs.

        What was drawn since then goes too; `redo` brings both back.
        """
        self.cancel()
        if not self.can_undo:
            raise InputError("There is no propagation to undo.")
        self._history().RestorePreviousState()
        self._status = Status(text="The last propagation was undone.")

    def redo(self) -> None:
        """Bring back what `undo` took away."""
        self.cancel()
        if not self.can_redo:
            raise InputError("There is no propagation to redo.")
        self._history().RestoreNextState()
        self._status = Status(text="The propagation was brought back.")

    def close(self) -> None:
        """Cancel what runs and let go of the nodes."""
        self.choose(None, None)

    # Nodes that come and go

    def _history(self) -> Any:
        """vtkSegmentationHistory of the chosen segmentation, or None."""
        node = self._segmentation_node
        return self._histories.get(node) if self._is_present(node) else None

    def _is_present(self, node: Any) -> bool:
        return node is not None and bool(self.scene.IsNodePresent(node))

    def _read_volume(self) -> Volume:
        """The chosen volume; the same object until its image or position changes, so it is hashed once."""
        self._require_nodes()
        stamp = nodes.volume_stamp(self._volume_node)
        if self._volume is None or self._volume[0] != stamp:
            self._volume = stamp, nodes.read_volume_node(self._volume_node)
        return self._volume[1]

    def _require_nodes(self) -> None:
        if not self._is_present(self._volume_node):
            raise InputError("No volume is chosen; load a CT and choose it.")
        if not self._is_present(self._segmentation_node):
            raise InputError("No segmentation is chosen; choose one, or make one and paint a slice in it.")

    def _what_was_removed(self, propagation: _Propagation) -> str:
        """What of a running propagation has gone from the scene, in words; empty when all is there."""
        if not self._is_present(propagation.segmentation_node):
            return "the segmentation"
        if not self._is_present(propagation.volume_node):
            return "the volume"
        segmentation = propagation.segmentation_node.GetSegmentation()
        missing = [i for i in propagation.drawn if segmentation.GetSegment(i) is None]
        return "a segment" if missing else ""


def _covered(request: PropagateRequest, count: int, drawn: Sequence[int]) -> range:
    """The slices of `count` that a run from the drawn ones (ascending) fills or finds without the object."""
    first = 0 if request.first is None else request.first
    last = count - 1 if request.last is None else request.last
    if request.direction == "higher":
        first = max(first, drawn[0] + 1)
    elif request.direction == "lower":
        last = min(last, drawn[-1] - 1)
    return range(first, last + 1)


def _left_over(propagation: _Propagation) -> _Pending:
    """Empty masks for the slices that an earlier run filled and this one found without the object.

    Drawn slices, and those the user has changed since they were predicted, are not among them.
    """
    node, axis = propagation.segmentation_node, propagation.axis
    pending: _Pending = {}
    for segment_id, drawn in propagation.drawn.items():
        settled = propagation.arrived[segment_id].union(drawn)
        for (marked_axis, index), mark in nodes.predicted_slices(node, segment_id).items():
            if marked_axis != axis or index not in propagation.covered[segment_id] or index in settled:
                continue
            mask = nodes.read_slice(node, segment_id, propagation.volume, axis, index)
            if nodes.slice_fingerprint(mask) == mark:
                pending.setdefault(segment_id, {})[index] = np.zeros_like(mask)
    return pending


def _written(propagation: _Propagation) -> str:
    count, emptied = propagation.slices_written, propagation.slices_emptied
    text = "1 slice was written" if count == 1 else f"{count} slices were written"
    return f"{text} and {emptied} of an earlier run emptied" if emptied else text


def _options(request: PropagateRequest, axis: int) -> dict[str, Any]:
    """Fields of `medssl.propagate.PropagateOptions`."""
    return {
        "axis": axis,
        "first": request.first,
        "last": request.last,
        "direction": request.direction,
        "stop": request.stop,
    }

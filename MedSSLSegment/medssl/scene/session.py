"""What a person does in a front end, without the front end: choose nodes, propagate, watch, cancel, undo.

A panel or a browser makes one `Session`, calls `start`, then `poll` from a timer until the status is no
longer running. Nothing here waits: the worker computes, arrays are looked through in another thread, `poll` writes what
has arrived for a few milliseconds and returns.

    session = Session(scene, segmentations_logic, client)
    session.choose(volume_node, segmentation_node)
    session.start(PropagateRequest())
    while session.poll().state is State.RUNNING: ...
    session.undo()

Prompts (`session.prompts`) answer a click with a preview on that slice. Everything a session knows lives in the scene,
in the segmentation and its segments, so a saved scene goes on where it was left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import Cancelled, InputError, MedSSLError
from ..events import Log, Progress
from ..prompts import Reference, SlicePrompt
from ..registry import DEFAULT_MODEL, known_models
from ..results import SliceMask
from ..suggest import Suggestion, suggest_slices
from ..volume import View, Volume
from . import nodes, tags, writing
from .background import Task
from .corrections import last_propagation, missed_slices
from .history import History, SegmentationHistories
from .layers import slice_fingerprint
from .nodes import SegmentInfo
from .preview import PromptDesk
from .propagating import (
    Plan,
    PropagateRequest,
    Propagation,
    covered_slices,
    fingerprints,
    options_of,
    recorded,
)
from .rules import EditingRules, Overlap
from .streaming import Target, Writer
from .survey import ReferenceSlice, Survey, look

__all__ = ["Plan", "PropagateRequest", "Propagator", "Run", "Session", "State", "Status"]

_WRITE_S = 0.006
"""How long `poll` may write before it hands back."""


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

    def predict(self, volume: Volume, prompt: SlicePrompt, *, segment: str, model: str, device: str) -> Run:
        """Answer one prompt on one slice, ahead of long requests; returns at once."""

    def expect(
        self, volume: Volume, axis: int, index: int, *, model: str, device: str, prompt: SlicePrompt | None
    ) -> Run:
        """Get ready for prompts on a slice while nothing else is asked, for this one above all; returns at once."""


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


@dataclass(eq=False)
class _Asked:
    """A request whose slices are still being looked through."""

    request: PropagateRequest
    started_s: float
    survey: Task[Survey] | None = None


class Session:
    """One person's work on one volume and one segmentation.

    Args:
        scene: vtkMRMLScene the nodes live in.
        segmentations_logic: vtkSlicerSegmentationsModuleLogic of that scene; segments need one to exist.
        client: computes; `medssl.client.WorkerClient`.
        history: undo and redo; by default one of its own.
        wait_s: how long a call may wait for arrays to be looked through; None = to the end, for scripts. A front end
            says 0 and hears of it from `poll`.
        clock: seconds, for pacing.
    """

    def __init__(
        self,
        scene: Any,
        segmentations_logic: Any,
        client: Propagator,
        *,
        history: History | None = None,
        wait_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scene = scene
        self.client = client
        self.history: History = history or SegmentationHistories()
        self.editor_node: Any = None
        """vtkMRMLSegmentEditorNode whose masking and overwriting hold for all that is written; None = no rules."""
        self.device = "auto"
        """What all models compute on: "auto", "cpu", "cuda", "cuda:N" or "mps"."""
        self.tracker = DEFAULT_MODEL
        """Model of the registry that has been chosen to propagate; prompts have theirs in `prompts.model`."""
        self._segmentations_logic = segmentations_logic
        self.wait_s = wait_s
        """How long a call may wait for arrays to be looked through; None = to the end."""
        self._clock = clock
        self._volume_node: Any = None
        self._volume: tuple[object, Task[Volume]] | None = None
        self._segmentation_node: Any = None
        self._asked: _Asked | None = None
        self._propagation: Propagation | None = None
        self._look_wanted: tuple[int | None] | None = None
        self._surveying: Task[Survey] | None = None
        self._survey: Survey | None = None
        self._status = Status()
        self._obstacle = ""
        """Why the chosen nodes cannot be worked on, as it was said."""
        self.prompts = PromptDesk(self)

    # Choosing

    def choose(self, volume_node: Any, segmentation_node: Any) -> None:
        """Work on these nodes; either may be None. Choosing another segmentation cancels what runs."""
        if segmentation_node is not self._segmentation_node:
            self.cancel()
            self._status = Status()
        if volume_node is not self._volume_node or segmentation_node is not self._segmentation_node:
            self._clear_obstacle()
            self.prompts.leave()
            self._survey = self._surveying = self._look_wanted = None
        if volume_node is not self._volume_node:
            self._volume = None
        self._volume_node = volume_node
        self._segmentation_node = segmentation_node
        if self._is_present(volume_node) and self._is_present(segmentation_node):
            self.prompts.restore()
        if self._is_present(volume_node) and volume_node.GetImageData() is not None:
            try:
                self._begin_reading()
            except InputError as error:
                self._name_obstacle(str(error))

    def _name_obstacle(self, sentence: str) -> None:
        """Say why the chosen nodes cannot be worked on; a propagation that runs has the word."""
        if self._propagation is None and self._asked is None:
            self._obstacle, self._status = sentence, Status(text=sentence)

    def _clear_obstacle(self) -> None:
        """The chosen nodes are others, or can be worked on now."""
        if self._obstacle and self._status.text == self._obstacle:
            self._status = Status()
        self._obstacle = ""

    def move_on(self) -> None:
        """The person does something else: why the last propagation failed is no news any more."""
        if self._status.state is State.FAILED:
            self._status = Status()

    @property
    def status(self) -> Status:
        """The state after the last call."""
        return self._status

    @property
    def volume_node(self) -> Any:
        """The chosen volume node, or None."""
        return self._volume_node if self._is_present(self._volume_node) else None

    @property
    def segmentation_node(self) -> Any:
        """The chosen segmentation node, or None."""
        return self._segmentation_node if self._is_present(self._segmentation_node) else None

    def segments(self) -> tuple[SegmentInfo, ...]:
        """The segments of the chosen segmentation, in the user's order; none without a segmentation."""
        if not self._is_present(self._segmentation_node):
            return ()
        return nodes.list_segments(self._segmentation_node)

    def axis_of(self, view: View) -> int:
        """The chosen volume's slice axis that comes closest to an anatomical view."""
        return self.volume().axis_of(view)

    def volume(self) -> Volume:
        """The chosen volume; the same object until its image or position changes, so it is hashed once.

        Raises:
            InputError: nothing is chosen, the volume cannot be used, or it is still being read.
        """
        self._require_nodes()
        task = self._begin_reading()
        if not task.wait(self.wait_s):
            raise InputError(f"{self._volume_node.GetName()} is still being read; try again in a moment.")
        return task.result()

    @property
    def ready_volume(self) -> Volume | None:
        """The chosen volume, if it has been read; asks for nothing and never waits."""
        if not self._is_present(self._volume_node) or self._volume is None:
            return None
        stamp, task = self._volume
        is_ready = task.done and stamp == nodes.volume_stamp(self._volume_node)
        return task.result() if is_ready else None

    def rules(self, overlap: Overlap = Overlap.ALLOW) -> EditingRules:
        """Where segments may be changed now."""
        if self.editor_node is None:
            return EditingRules.from_overlap(overlap)
        return EditingRules.from_editor(self.editor_node)

    # Looking

    def look(self, axis: int | None = None) -> None:
        """Begin to look through the segments, in the background; `survey` has the outcome after a `poll`.

        Args:
            axis: slice axis; None = the one the user painted across.
        """
        self._look_wanted = (axis,)
        self._begin_looking()

    def _begin_looking(self) -> None:
        """Count what is wanted, once the volume has been read; `poll` tries again until then."""
        if self._look_wanted is None:
            return
        if not self._is_present(self._volume_node) or not self.segments():
            self._survey = self._look_wanted = None
            return
        try:
            if not self._begin_reading().wait(self.wait_s):
                return
            (axis,), self._look_wanted = self._look_wanted, None
            ids = [s.id for s in self.segments()]
            self._surveying = Task(look(self._segmentation_node, ids, self.volume(), axis))
            self._clear_obstacle()
        except InputError as error:
            self._survey = self._look_wanted = None
            self._name_obstacle(str(error))

    @property
    def is_looking(self) -> bool:
        """Whether `poll` has to be called for a new `survey`."""
        return self._surveying is not None or self._look_wanted is not None

    @property
    def survey(self) -> Survey | None:
        """Reference slices, areas and confidence of every segment, when they were last looked at; slices that a
        propagation finds are shown in it as they arrive."""
        return self._survey

    def references(self) -> tuple[ReferenceSlice, ...]:
        """The slices somebody drew, as last looked at: those that are used, and those that were left out."""
        return self._survey.references if self._survey is not None else ()

    def use_reference(self, segment_id: str, axis: int, index: int, used: bool) -> None:
        """Start from a drawn slice, or leave it out; remembered in the scene.

        A slice that is left out is not used by propagation, suggestions or cases, and is filled like any other.

        Raises:
            InputError: the segment was removed.
        """
        if segment_id not in {s.id for s in self.segments()}:
            raise InputError("The segment was removed; choose another one.")
        node = self._segmentation_node
        left = tags.left_out(node, segment_id)
        tags.note_left_out(node, segment_id, left - {(axis, index)} if used else left | {(axis, index)})
        survey = self._survey
        if survey is not None and survey.axis == axis and segment_id in survey.segments:
            self._survey = survey.with_used(segment_id, index, used)

    def suggestions(self, count: int = 5) -> list[Suggestion]:
        """Slices worth annotating next, the best first; their segment is an id.

        Raises:
            InputError: nothing was found of any segment yet.
        """
        survey = self._survey
        if survey is None:
            raise InputError("Nothing has been found of any segment yet; annotate one slice of it first.")
        volume = self.volume()
        evidence = [segment.evidence(volume, survey.axis) for segment in survey.segments.values()]
        return suggest_slices(evidence, count)

    def plan(self, request: PropagateRequest) -> Plan:
        """Find the slices the user drew, and across which axis.

        Slices that were predicted earlier and not changed since do not count.

        Raises:
            InputError: nothing is chosen or drawn, or the nodes do not fit together.
        """
        survey = self._look_for(request)()
        return self._plan(request, survey)

    def _look_for(self, request: PropagateRequest) -> Callable[[], Survey]:
        volume = self.volume()
        wanted = [s.id for s in self.segments()] if request.segment_ids is None else request.segment_ids
        return look(self._segmentation_node, wanted, volume, request.axis, before_writing=True)

    def _plan(self, request: PropagateRequest, survey: Survey) -> Plan:
        drawn = survey.drawn
        if not drawn and survey.references:
            raise InputError("Every reference slice is left out; tick at least one to start from.")
        if not drawn:
            names = {s.id: s.name for s in self.segments()}
            ids, node = request.segment_ids, self._segmentation_node
            what = f"segment '{names[ids[0]]}'" if ids and len(ids) == 1 else f"'{node.GetName()}'"
            raise InputError(f"Nothing is drawn in {what}; paint the object on at least one slice first.")
        if request.axis is None:
            self._require_one_view(survey)
        if not request.only_changed:
            return Plan(survey.axis, survey.view, drawn)
        changed = {i: set(survey.segments[i].to_redo) for i in drawn}
        everything = sorted(set().union(*changed.values()))
        if not everything:
            raise InputError("No slice was drawn or corrected since the last propagation.")
        return Plan(survey.axis, survey.view, {i: drawn[i] for i in drawn if changed[i]}, tuple(everything))

    def _require_one_view(self, survey: Survey) -> None:
        """One run goes along one axis: what was painted across another would be taken for a stack of thin lines."""
        names = {s.id: s.name for s in self.segments()}
        painted: dict[str, list[str]] = {}
        for i in survey.drawn:
            if i in survey.painted_in:
                painted.setdefault(survey.painted_in[i], []).append(names[i])
        if len(painted) > 1:
            where = ", ".join(f"{' and '.join(whose)} on {view} slices" for view, whose in painted.items())
            raise InputError(
                f"One run goes one way, but there is {where}; leave one of them out, or say which way the slices are."
            )

    # Propagating

    def start(self, request: PropagateRequest) -> Plan | None:
        """Send the drawn slices to the worker; call `poll` from now on.

        Returns:
            What is asked of the worker; None while the slices are still being looked through.

        Raises:
            InputError: nothing is chosen or drawn, the nodes do not fit together, or a propagation runs.
            WorkerError: the worker cannot be started or reached.
        """
        if self._propagation is not None or self._asked is not None:
            raise InputError("A propagation is running; wait for it or cancel it first.")
        self._require_nodes()
        self._asked = _Asked(request, self._clock())
        try:
            plan = self._advance(self._asked)
        except BaseException:
            self._asked = None
            raise
        if plan is None:
            self._status = Status(State.RUNNING, text="Looking through the slices.")
        return plan

    def _advance(self, asked: _Asked) -> Plan | None:
        """Take a request one step further, as far as that needs no waiting."""
        if not self._begin_reading().wait(self.wait_s):
            return None
        if asked.survey is None:
            asked.survey = Task(self._look_for(asked.request))
        if not asked.survey.wait(self.wait_s):
            return None
        survey = asked.survey.result()
        plan = self._plan(asked.request, survey)
        self._asked = None
        self._submit(asked, plan, survey)
        return plan

    def _submit(self, asked: _Asked, plan: Plan, survey: Survey) -> None:
        volume, request = self.volume(), asked.request
        volume.require_stack(plan.axis)
        nodes.set_reference_geometry(self._segmentation_node, self._volume_node)
        references = [
            Reference(i, self._prompt(volume, i, plan.axis, index))
            for i, indices in plan.drawn.items()
            for index in indices
        ]
        node = self._segmentation_node
        device = request.device or self.device
        self._propagation = Propagation(
            run=self.client.propagate(
                volume, references, options_of(request, plan), model=request.model, device=device
            ),
            request=request,
            plan=plan,
            volume_node=self._volume_node,
            segmentation_node=node,
            covered={
                i: covered_slices(request, volume.shape_kji[plan.axis], drawn, plan.changed)
                for i, drawn in plan.drawn.items()
            },
            started_s=asked.started_s,
            writer=Writer(
                volume,
                plan.axis,
                self.history,
                self._clock,
                {node: self.rules(request.overlap)},
                {Target(node, i): survey.segments[i].marks for i in plan.drawn},
            ),
            image=nodes.image_stamp(self._volume_node),
            arrived={i: set() for i in plan.drawn},
            emptied={i: survey.segments[i].absent for i in plan.drawn},
            marks=fingerprints(references),
        )
        count = "1 drawn slice" if len(references) == 1 else f"{len(references)} drawn slices"
        self._status = Status(State.RUNNING, text=f"Propagating from {count} ({plan.view}).")

    def _prompt(self, volume: Volume, segment_id: str, axis: int, index: int) -> SlicePrompt:
        mask = nodes.read_slice(self._segmentation_node, segment_id, volume, axis, index)
        return SlicePrompt(axis, index, mask=mask)

    def poll(self, budget_s: float = _WRITE_S) -> Status:
        """Take what the worker has sent and write it into the segmentation, then return.

        Args:
            budget_s: begin no further write after this many seconds; the rest follows at the next call.
                Writing takes at most a fifth of the time, and half once the worker is done, so that the front end
                stays usable.
        """
        if self._surveying is not None and self._surveying.done:
            task, self._surveying = self._surveying, None
            self._survey = task.result()
        self._begin_looking()
        self.prompts.poll()
        try:
            if self._asked is not None:
                self._advance(self._asked)
            if self._propagation is not None:
                self._go_on(self._propagation, budget_s)
        except MedSSLError as error:
            self._end(State.FAILED, str(error))
        except BaseException:
            self._end(State.FAILED, "Propagation was stopped by an error in the program.")
            raise
        return self._status

    def _go_on(self, propagation: Propagation, budget_s: float) -> None:
        why = self._why_not_go_on(propagation)
        if why:
            self._end(State.CANCELLED, f"Propagation was cancelled because {why}.")
            return
        is_last = propagation.run.done  # asked first: what arrives later waits for the next call
        self._take_events(propagation)
        propagation.writer.write(budget_s, is_last)
        if is_last and not propagation.writer.pending:
            self._finish(propagation)

    def cancel(self) -> None:
        """Stop the propagation, if one runs; slices written so far stay and can be undone."""
        if self._propagation is not None:
            self._end(State.CANCELLED, f"Propagation was cancelled; {self._propagation.written_text()}.")
        elif self._asked is not None:
            self._end(State.CANCELLED, "Propagation was cancelled; 0 slices were written.")

    def _take_events(self, propagation: Propagation) -> None:
        node, plan = propagation.segmentation_node, propagation.plan
        for event in propagation.run.poll():
            if isinstance(event, Progress):
                self._show_progress(event)
            elif isinstance(event, Log):
                self._status = replace(self._status, text=event.text)
            elif isinstance(event, SliceMask) and event.index not in plan.drawn[event.segment]:
                propagation.arrived[event.segment].add(event.index)
                is_looked_at = self._volume_node is propagation.volume_node
                if self._survey is not None and self._survey.axis == plan.axis and is_looked_at:
                    area = float(np.count_nonzero(event.mask))
                    self._survey.take_in(event.segment, event.index, area, event.confidence)
                propagation.writer.put(Target(node, event.segment), event.index, event.mask, event.confidence)

    def _show_progress(self, progress: Progress) -> None:
        fraction = progress.done / progress.total if progress.total else 0.0
        text = progress.text or f"Slice {progress.done} of {progress.total}."
        self._status = Status(State.RUNNING, fraction, progress.seconds_left, text)

    def _finish(self, propagation: Propagation) -> None:
        """End the run, unless slices of an earlier one are left: the next calls write those empty first."""
        try:
            propagation.run.result()
        except Cancelled as error:
            self._end(State.CANCELLED, str(error))
            return
        propagation.empty_left_over()
        if not propagation.writer.pending:
            seconds = self._clock() - propagation.started_s
            writer, node = propagation.writer, propagation.segmentation_node
            others = propagation.refilled_text() + writer.kept_text(node) + writer.gave_way_text(node)
            self._end(State.DONE, f"{propagation.written_text()} in {seconds:.1f} s.{others}")

    def _end(self, state: State, text: str) -> None:
        propagation, self._propagation, self._asked = self._propagation, None, None
        if propagation is not None:
            if not propagation.run.done:
                propagation.run.cancel()
            writer = propagation.writer
            if writer.written and not self._what_was_removed(propagation) and not writer.was_undone:
                self._note_steps(propagation, state is State.DONE)
                propagation.writer.end()
        fraction = 1.0 if state is State.DONE else self._status.fraction
        self._status = Status(state, fraction, None, text)

    def _note_steps(self, propagation: Propagation, is_done: bool) -> None:
        node, axis, request = propagation.segmentation_node, propagation.plan.axis, propagation.request
        for segment_id, drawn in propagation.plan.drawn.items():
            covered = propagation.covered[segment_id]
            filled = propagation.filled(segment_id)
            decided = {*drawn, *(chain.from_iterable(covered) if is_done else filled)}
            before = last_propagation(tags.steps(node, segment_id), axis)
            self._forget_left_out(segment_id, axis, filled)
            self.note_step(
                segment_id,
                tags.Step(
                    "propagate",
                    request.model,
                    axis=axis,
                    references=tuple(drawn),
                    marks=propagation.marks[segment_id],
                    slices=len(filled),
                    missed=missed_slices(before, covered, decided),
                    options=recorded(request),
                ),
            )

    def _forget_left_out(self, segment_id: str, axis: int, indices: Iterable[int]) -> None:
        """Slices that were written anew: what is drawn on them from now on is used again."""
        left = tags.left_out(self._segmentation_node, segment_id)
        kept = left.difference((axis, index) for index in indices)
        if kept != left:
            tags.note_left_out(self._segmentation_node, segment_id, kept)

    # One slice at a time

    def write_slice(
        self, segment_id: str, axis: int, index: int, mask: NDArray[np.bool_], step: tags.Step
    ) -> tuple[str, ...]:
        """Write one slice that the user vouches for: a step that can be undone, and a reference slice from then on.

        Returns:
            Names of the other segments that have lost voxels to it.
        """
        node, volume = self._segmentation_node, self.volume()
        losers: list[str] = []
        self.history.save(node)
        nodes.set_reference_geometry(node, self._volume_node)
        rules = self.rules()
        written = writing.write_slices(
            node, segment_id, volume, axis, {index: mask}, rules, lambda _, loser, __: losers.append(loser)
        )
        marks = tags.predicted_slices(node, segment_id)
        if marks.pop((axis, index), None) is not None:
            tags.note_predicted(node, segment_id, marks)
        if self._propagation is not None:
            self._propagation.writer.note_drawn(node, segment_id, axis, index)
        self._forget_left_out(segment_id, axis, [index])
        self.note_step(segment_id, replace(step, marks=(slice_fingerprint(written[index]),)))
        writing.refresh_surfaces(node, [segment_id, *losers])
        return tuple(node.GetSegmentation().GetSegment(loser).GetName() for loser in losers)

    def note_step(self, segment_id: str, step: tags.Step) -> tags.Step:
        """Remember in the segment how it came about, with the model's hash, the program's version and the time.

        Returns:
            The step as it is remembered.
        """
        sha256 = {entry.id: entry.sha256 for entry in known_models()}.get(step.model, "")
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        step = replace(step, sha256=sha256, program=__version__, when=now)
        tags.add_step(self._segmentation_node, segment_id, step)
        return step

    # Undoing

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        node = self.segmentation_node
        return node is not None and self.history.can_undo(node)

    @property
    def can_redo(self) -> bool:
        """Whether there is a step to bring back."""
        node = self.segmentation_node
        return node is not None and self.history.can_redo(node)

    def undo(self) -> None:
        """Put the segmentation back to where it was before the last step; cancels a propagation that runs.

        What was drawn since then goes too; `redo` brings both back. A propagation that has not written anything yet is
        the last step itself: it is cancelled, and the step before it stays.
        """
        has_nothing_to_take_back = self._asked is not None or (
            self._propagation is not None and not self._propagation.writer.written
        )
        self.cancel()
        if has_nothing_to_take_back:
            return
        if not self.can_undo:
            raise InputError("There is nothing to undo.")
        self.history.undo(self._segmentation_node)
        self.prompts.note_history()
        self._status = Status(text="The last step was undone.")

    def redo(self) -> None:
        """Bring back what `undo` took away."""
        self.cancel()
        if not self.can_redo:
            raise InputError("There is nothing to redo.")
        self.history.redo(self._segmentation_node)
        self.prompts.note_history()
        self._status = Status(text="The step was brought back.")

    def close(self) -> None:
        """Cancel what runs and let go of the nodes."""
        self.choose(None, None)

    # Nodes that come and go

    def _is_present(self, node: Any) -> bool:
        return node is not None and bool(self.scene.IsNodePresent(node))

    def _begin_reading(self) -> Task[Volume]:
        """Check and hash the chosen volume in the background, once for each state of its image."""
        stamp = nodes.volume_stamp(self._volume_node)
        if self._volume is None or self._volume[0] != stamp:
            read = nodes.volume_reader(self._volume_node)
            self._volume = stamp, Task(lambda: _hashed(read()))
        return self._volume[1]

    def _require_nodes(self) -> None:
        if not self._is_present(self._volume_node):
            raise InputError("No volume is chosen; load a CT and choose it.")
        if not self._is_present(self._segmentation_node):
            raise InputError("No segmentation is chosen; choose one, or make one and paint a slice in it.")

    def _why_not_go_on(self, propagation: Propagation) -> str:
        """What has become of the nodes that keeps the rest from being written, in words; empty when all is well."""
        lost = self._what_was_removed(propagation)
        if lost:
            return f"{lost} was removed"
        if nodes.image_stamp(propagation.volume_node) != propagation.image:
            return "the volume was moved or has got another image"
        return "its slices were undone" if propagation.writer.was_undone else ""

    def _what_was_removed(self, propagation: Propagation) -> str:
        """What of a running propagation has gone from the scene, in words; empty when all is there."""
        if not self._is_present(propagation.segmentation_node):
            return "the segmentation"
        if not self._is_present(propagation.volume_node):
            return "the volume"
        segmentation = propagation.segmentation_node.GetSegmentation()
        missing = [i for i in propagation.plan.drawn if segmentation.GetSegment(i) is None]
        return "a segment" if missing else ""


def _hashed(volume: Volume) -> Volume:
    """The volume, with its name for the worker known already."""
    assert volume.content_hash
    return volume

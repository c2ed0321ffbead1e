"""A trained model's answer, streamed into the scene: coarse, refined, propagated and final, side by side.

The final masks go into the chosen segmentation, one step of undo, and leave the slices alone that a person drew or
emptied there; each stage on the way has a segmentation of its own beside it, so that one key can show one after the
other.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import Cancelled, InputError, MedSSLError
from ..events import Log, Progress
from ..results import SliceMask, UncertaintyMap
from . import nodes, tags
from .background import Task
from .overlay import UncertaintyOverlay
from .streaming import Target, Writer
from .survey import Survey, look

if TYPE_CHECKING:
    from .session import Run, Session

__all__ = ["PredictDesk", "is_stage"]

_STAGE = "MedSSLSegment.Stage"
_STAGES = ("coarse", "largest", "sharpened", "refined", "propagated")
_WRITE_S = 0.006


class PredictDesk:
    """Predicting a volume, or segmenting it in all stages.

    Args:
        session: its client does the work; its nodes take the result.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._run: Run | None = None
        self._writer: Writer | None = None
        self._model = ""
        self._nodes: tuple[Any, Any] = (None, None)
        self._image: tuple[object, ...] = ()
        self._ids: dict[tuple[Any, str], str] = {}
        self._written_to: set[Target] = set()
        self._looking: Task[Survey] | None = None
        self._looked_across: int | None = None
        self._settled: set[tuple[str, int, int]] = set()
        self._kept: set[tuple[str, int, int]] = set()
        self.fraction = 0.0
        """0 .. 1 of the running or last prediction."""
        self.seconds_left: float | None = None
        self.message = ""
        """One sentence."""
        self.overlay = UncertaintyOverlay(session)
        """How unsure the model was, where maps were asked for."""
        self.shown = "final"
        """The stage that is visible."""

    @property
    def is_running(self) -> bool:
        """Whether `poll` has to be called."""
        return self._run is not None

    @property
    def uncertainty_node(self) -> Any:
        """vtkMRMLScalarVolumeNode, 0 (sure) .. 255 (no idea); None without one."""
        return self.overlay.node

    def predict(self, model: str, *, start: int | None = None, maps: bool = False) -> None:
        """Find a trained model's segments in the chosen volume.

        Args:
            model: "liver", "liver:3", a model file or a run folder.
            start: axial slice to begin with; None = the middle.
            maps: also make an overlay of how unsure the model is.
        """
        volume = self._require()
        uncertainty = "flip-average" if maps else "off"
        client: Any = self._session.client
        self._begin(
            model,
            client.predict_volume(
                volume,
                model,
                start=start,
                uncertainty=uncertainty,
                maps=maps,
                device=self._session.device,
            ),
        )

    @property
    def promptable(self) -> tuple[str, str]:
        """Ids of the models that `segment_everything` refines and propagates with."""
        return self._session.prompts.model, self._session.tracker

    def segment_everything(self, model: str, options: Mapping[str, Any] | None = None) -> None:
        """Coarse, refined, reference slices, propagated, in one go; fields of `SegmentOptions`.

        What has been chosen to answer prompts refines, and what has been chosen to propagate propagates.

        Slices that a person has drawn or emptied stay as they are, and are not suggested.
        """
        volume = self._require()
        refiner, tracker = self.promptable
        client: Any = self._session.client
        axis = (options or {}).get("axis")
        vouched, absent = self._by_name(volume.axis_of("axial") if axis is None else axis)
        self._begin(
            model,
            client.segment_volume(
                volume,
                model,
                dict(options or {}),
                vouched=vouched,
                absent=absent,
                refiner=refiner,
                tracker=tracker,
                device=self._session.device,
            ),
        )

    def _by_name(self, axis: int) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """Slices across an axis that a person has drawn or emptied, and of these the emptied ones, by segment name."""
        settled: dict[str, list[int]] = {}
        emptied: dict[str, list[int]] = {}
        survey = self._session.survey
        if survey is None or survey.axis != axis:
            return settled, emptied
        for segment in self._session.segments():
            found = survey.segments.get(segment.id)
            if found is not None and segment.name not in settled:
                settled[segment.name] = sorted((*found.drawn, *found.absent))
                emptied[segment.name] = list(found.absent)
        return settled, emptied

    def _has_looked(self, writer: Writer) -> bool:
        """Whether it is known what there was when the run began: what a person has drawn, then or since, stays."""
        if self._looking is None:
            return True
        if not self._looking.wait(self._session.wait_s):
            return False
        survey, self._looking = self._looking.result(), None
        settled = {i: (*found.drawn, *found.absent) for i, found in survey.segments.items()}
        self._settled = {(i, survey.axis, index) for i, indices in settled.items() for index in indices}
        self._looked_across = survey.axis
        writer.held = {Target(self._nodes[1], i): found.marks for i, found in survey.segments.items()}
        return True

    def _require(self) -> Any:
        if self._run is not None:
            raise InputError("A prediction is running; wait for it or cancel it first.")
        session = self._session
        volume, survey = session.volume(), session.survey
        ids = [segment.id for segment in session.segments()]
        axis = None if survey is None else survey.axis
        self._looking = Task(look(session.segmentation_node, ids, volume, axis, before_writing=True))
        return volume

    def _begin(self, model: str, run: Run) -> None:
        session = self._session
        session.move_on()
        volume, node = session.volume(), session.segmentation_node
        nodes.set_reference_geometry(node, session.volume_node)
        self.overlay.clear()
        self._run, self._model = run, model
        self._nodes = session.volume_node, node
        self._image = nodes.image_stamp(session.volume_node)
        # By the names of now: the person may rename a segment before its first slice arrives.
        self._ids = {(node, segment.name): segment.id for segment in reversed(session.segments())}
        self._written_to = set()
        for stage in _STAGES:  # what an earlier run has found on the way
            if (shown := self._find_stage(stage)) is not None:
                shown.GetSegmentation().RemoveAllSegments()
        self._settled = set()
        self._kept = set()
        rules = {node: session.rules()}
        # Everything a model sends lies across one axis, known from the first mask.
        self._writer = Writer(volume, 0, session.history, time.monotonic, rules)
        self.fraction, self.seconds_left, self.message = 0.0, None, "Predicting."

    def poll(self, budget_s: float = _WRITE_S) -> None:
        """Write what has arrived, then return."""
        if self._run is None or self._writer is None:
            return
        run, writer = self._run, self._writer
        if (why := self._why_not_go_on()) is not None:
            run.cancel()
            self._end(f"The prediction was cancelled because {why}.")
            return
        is_last = run.done
        try:
            if not self._has_looked(writer):
                return
            for event in run.poll():
                self._take(event, writer)
            writer.write(budget_s, is_last)
            if is_last and not writer.pending:
                run.result()
                self._finish(writer)
        except Cancelled:
            self._end("The prediction was cancelled.")
        except MedSSLError as error:
            self._end(str(error))

    def _why_not_go_on(self) -> str | None:
        """What has become of the nodes that keeps the rest from being written; None when all is as it was."""
        if not all(self._session.scene.IsNodePresent(node) for node in self._nodes):
            return "its volume or segmentation was removed"
        if (self._session.volume_node, self._session.segmentation_node) != self._nodes:
            return "another volume or segmentation was chosen"
        if not all(map(_is_there, self._written_to)):
            return "a segment was removed"
        if nodes.image_stamp(self._nodes[0]) != self._image:
            return "its volume was moved or has got another image"
        return "its slices were undone" if self._writer is not None and self._writer.was_undone else None

    @property
    def has_written(self) -> bool:
        """Whether the prediction under way has changed the chosen segmentation yet."""
        writer = self._writer
        return writer is not None and any(target.node is self._nodes[1] for target in writer.written)

    def cancel(self) -> None:
        """Stop; what was written stays and can be undone."""
        if self._run is not None:
            self._run.cancel()
            self._end("The prediction was cancelled.")

    def _take(self, event: object, writer: Writer) -> None:
        if isinstance(event, Progress):
            self.fraction = event.done / event.total if event.total else 0.0
            self.seconds_left = event.seconds_left
            self.message = event.text or self.message
        elif isinstance(event, Log):
            self.message = event.text
        elif isinstance(event, UncertaintyMap):
            is_first = self.overlay.node is None
            self.overlay.put(event)
            if is_first:
                self.overlay.show(True)
        elif isinstance(event, SliceMask):
            writer.axis = event.axis
            if event.axis != self._looked_across:
                writer.held = {}
            is_final = event.stage in ("", "final")
            node = self._session.segmentation_node if is_final else self._stage_node(event.stage)
            target = self._target(node, event.segment)
            self._written_to.add(target)
            if is_final and (slice_ := (target.segment, event.axis, event.index)) in self._settled:
                self._kept.add(slice_)
                return
            writer.put(target, event.index, event.mask, event.confidence)

    def _target(self, node: Any, name: str) -> Target:
        """The segment that had this name when the run began, or got it since."""
        target = Target(node, self._ids.get((node, name), ""))
        if not _is_there(target):
            assert self._writer is not None
            self._writer.remember(node)  # before a segment is added: undo takes it away again
            target = Target(node, _segment(node, name))
            self._ids[node, name] = target.segment
        return target

    def _finish(self, writer: Writer) -> None:
        """End the run, unless slices of an earlier one are left: the next calls write those empty first."""
        self._empty_left_over(writer)
        if writer.pending:
            return
        found = sum(target.node is self._nodes[1] for target in writer.written)
        what = "1 segment" if found == 1 else f"{found} segments"
        said = f"Found {what}." if found else "Nothing was found."
        node = self._nodes[1]
        others = writer.kept_text(node) + writer.gave_way_text(node)
        self._end(said + _left_alone(len(self._kept)) + others)
        self.fraction = 1.0
        self.show("final")

    def _empty_left_over(self, writer: Writer) -> None:
        """What was predicted earlier, and nobody has changed since, goes where this run has found nothing."""
        everything = set(range(writer.volume.shape_kji[writer.axis]))
        for target in list(writer.written):
            if target.node is self._nodes[1]:
                here = target.segment, writer.axis
                settled = {index for *place, index in self._settled if tuple(place) == here}
                writer.empty_left_over(target, everything - settled)

    def _end(self, message: str) -> None:
        """Nothing more is written: remember in the segments how what was came about."""
        writer, self._run, self._writer, self._looking = self._writer, None, None, None
        self.message, self.seconds_left = message, None
        node = self._nodes[1]
        self._nodes, self._image, self._ids, self._written_to = (
            (None, None),
            (),
            {},
            set(),
        )  # they keep memory
        if writer is None:
            return
        writer.end()
        if node is None or self._session.segmentation_node is not node or writer.was_undone:
            return
        steps = [
            self._session.note_step(
                target.segment, tags.Step("segment", self._model, axis=writer.axis, slices=len(indices))
            )
            for target, indices in writer.written.items()
            if target.node is node and node.GetSegmentation().GetSegment(target.segment) is not None
        ]
        self.overlay.belong_to(steps)

    # Comparing

    def stages(self) -> list[str]:
        """The stages there are to compare, in the order they were made, "final" last."""
        found = [stage for stage in _STAGES if self._find_stage(stage)]
        return [*found, "final"] if found else []

    def show(self, stage: str) -> None:
        """Make one stage visible and hide the others."""
        for name in self.stages():
            node = self._session.segmentation_node if name == "final" else self._find_stage(name)
            node.GetDisplayNode().SetVisibility(name == stage)
        self.shown = stage

    def show_next(self) -> str:
        """The stage after the one that is visible, round and round; returns its name."""
        stages = self.stages() or ["final"]
        at = stages.index(self.shown) if self.shown in stages else -1
        self.show(stages[(at + 1) % len(stages)])
        return self.shown

    def _find_stage(self, stage: str) -> Any:
        scene, owner = self._session.scene, self._session.segmentation_node
        if owner is None:
            return None
        reference = owner.GetNodeReference(f"{_STAGE}.{stage}")
        return reference if reference is not None and scene.IsNodePresent(reference) else None

    def _stage_node(self, stage: str) -> Any:
        node = self._find_stage(stage)
        if node is None:
            session = self._session
            owner = session.segmentation_node
            name = f"{owner.GetName()} ({stage})"
            node = nodes.create_segmentation_node(session.scene, session.volume_node, name)
            node.GetDisplayNode().SetVisibility(False)
            owner.SetNodeReferenceID(f"{_STAGE}.{stage}", node.GetID())
        return node


def is_stage(segmentation_node: Any) -> bool:
    """Whether a segmentation is a stage on the way of a prediction, to compare with; not to work on."""
    scene = segmentation_node.GetScene()
    return any(
        owner.GetNodeReference(f"{_STAGE}.{stage}") is segmentation_node
        for owner in nodes.nodes_of(scene, "vtkMRMLSegmentationNode")
        for stage in _STAGES
    )


def _is_there(target: Target) -> bool:
    return target.node.GetSegmentation().GetSegment(target.segment) is not None


def _segment(segmentation_node: Any, name: str) -> str:
    """Id of the segment of that name; a new one where there is none."""
    for segment in nodes.list_segments(segmentation_node):
        if segment.name == name:
            return segment.id
    segment_id: str = segmentation_node.GetSegmentation().AddEmptySegment("", name)
    return segment_id


def _left_alone(count: int) -> str:
    if count == 0:
        return ""
    return " 1 drawn slice stays as it is." if count == 1 else f" {count} drawn slices stay as they are."

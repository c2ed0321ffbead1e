"""Redoing only what changed, also after a run that was stopped half way: nothing is left out, nothing done twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from fake_client import FakeTicket  # noqa: E402
from medssl.errors import InputError, WorkerDied  # noqa: E402
from medssl.foundation.protocols import TrackedSlice, TrackJob  # noqa: E402
from medssl.prompts import Reference, SlicePrompt  # noqa: E402
from medssl.propagate import PropagateOptions, propagate  # noqa: E402
from medssl.results import SliceMask  # noqa: E402
from medssl.scene import nodes, tags, writing  # noqa: E402
from medssl.scene.corrections import missed_slices  # noqa: E402
from medssl.scene.session import PropagateRequest, Session, State  # noqa: E402
from medssl.volume import Volume, Window  # noqa: E402

SHAPE_KJI = (16, 12, 15)
DRAWN = (4, 10)


class BrightTracker:
    """Calls bright voxels the object on every slice, from whichever side it comes."""

    def open(self, volume: Volume, axis: int, window: Window) -> BrightTracker:
        self.voxels = volume.voxels_kji
        return self

    def add_reference(self, object_id: int, prompt: SlicePrompt) -> TrackedSlice:
        assert prompt.mask is not None
        return TrackedSlice(object_id, prompt.index, prompt.mask, None, 1.0, 1.0)

    def remove_reference(self, object_id: int, index: int) -> None:
        pass

    def run(self, jobs: Sequence[TrackJob]) -> Iterator[list[tuple[TrackJob, TrackedSlice]]]:
        ways = [[(j, i) for i in range(j.start + j.step, j.stop + j.step, j.step)] for j in jobs]
        for answers in itertools.zip_longest(*ways):
            yield [(j, self._answer(j, i)) for j, i in filter(None, answers)]

    def drop(self, job: TrackJob) -> None:
        pass

    def _answer(self, job: TrackJob, index: int) -> TrackedSlice:
        return TrackedSlice(job.object_id, index, self.voxels[index] > 0, None, 1.0, 1.0)


class EngineTicket(FakeTicket):
    """Says what the program's own propagation finds, as far as the test lets it go."""

    def __init__(self, events: Iterator[Any]) -> None:
        super().__init__()
        self._source = events

    def go_on(self, slices: int | None = None, within: range = range(SHAPE_KJI[0])) -> None:
        """To the end, or until so many slices were tracked; slices that are not within the range get lost."""
        for event in self._source:
            if not isinstance(event, SliceMask) or event.index in within:
                self.say(event)
                slices = slices and slices - (isinstance(event, SliceMask) and not event.is_reference)
            if slices == 0:
                return
        self.end()


class EngineClient:
    """Propagates with the program's own engine."""

    def propagate(
        self,
        volume: Volume,
        references: Sequence[Reference],
        options: Mapping[str, Any],
        *,
        model: str,
        device: str,
    ) -> EngineTicket:
        self.run = EngineTicket(propagate(volume, references, BrightTracker(), PropagateOptions(**options)))
        return self.run


class Desk:
    """A liver and a spleen, both drawn on slices 4 and 10 of an oblique volume."""

    def __init__(self, a_scene: Any) -> None:
        self.client = EngineClient()
        self.volume_node = a_scene.add_volume(a_scene.grids["oblique"], SHAPE_KJI)
        self.volume = nodes.read_volume_node(self.volume_node)
        self.node, ids = a_scene.add_segmentation(self.volume_node, "liver", "spleen")
        self.liver, self.spleen = ids
        self.drawn: dict[str, dict[int, np.ndarray]] = {i: {} for i in ids}
        for segment, index in itertools.product(ids, DRAWN):
            self.draw(segment, index, 3)
        self.session = Session(a_scene.scene, a_scene.logic, self.client)
        self.session.choose(self.volume_node, self.node)

    def draw(self, segment: str, index: int, width: int) -> None:
        mask = np.zeros(SHAPE_KJI[1:], bool)
        mask[3:8, 4 : 4 + width] = True
        self.drawn[segment][index] = mask
        writing.write_slices(self.node, segment, self.volume, 0, {index: mask})

    def start(self, **options: Any) -> None:
        self.session.start(PropagateRequest(**options))

    def propagate(self, **options: Any) -> None:
        self.start(**options)
        self.finish()

    def finish(self) -> None:
        self.client.run.go_on()
        while self.session.poll().state is State.RUNNING:
            pass

    def stop_after(self, slices: int, **options: Any) -> None:
        self.client.run.go_on(slices, **options)
        while self.session.poll(budget_s=10.0) and self.session._propagation.writer.pending:
            pass
        self.session.cancel()

    def is_whole(self) -> bool:
        return all(self.is_found(segment, range(SHAPE_KJI[0])) for segment in self.drawn)

    def is_found(self, segment: str, indices: Sequence[int]) -> bool:
        """Whether the slices are as tracked, and those that were drawn as they were drawn."""
        masks, bright = nodes.read_segment(self.node, segment, self.volume), self.volume.voxels_kji > 0
        return all(np.array_equal(masks[n], self.drawn[segment].get(n, bright[n])) for n in indices)

    def filled(self) -> set[int]:
        """The liver's slices."""
        return set(nodes.annotated_slices(nodes.read_segment(self.node, self.liver, self.volume), 0))

    def missed(self, segment: str) -> tuple[tuple[int, int], ...]:
        return tags.steps(self.node, segment)[-1].missed


@pytest.fixture
def a_desk(a_scene: Any) -> Desk:
    return Desk(a_scene)


@pytest.mark.parametrize("slices", [1, 5, 12, 20, 27])
def test_only_changed_finishes_what_a_cancelled_run_did_not_come_to(a_desk: Desk, slices: int) -> None:
    a_desk.start()
    a_desk.stop_after(slices)
    assert not a_desk.is_whole()
    a_desk.propagate(only_changed=True)
    assert a_desk.is_whole()
    assert a_desk.missed(a_desk.liver) == ()
    with pytest.raises(InputError, match="No slice was drawn or corrected"):
        a_desk.start(only_changed=True)


def test_a_stretch_that_was_finished_is_not_tracked_again(a_desk: Desk) -> None:
    between = range(DRAWN[0], DRAWN[1] + 1)
    a_desk.start()
    a_desk.stop_after(10, within=between)
    assert a_desk.missed(a_desk.liver) == ((0, DRAWN[0] - 1), (DRAWN[1] + 1, SHAPE_KJI[0] - 1))
    a_desk.start(only_changed=True)
    a_desk.client.run.go_on()
    tracked = {event.index for event in a_desk.client.run.poll() if isinstance(event, SliceMask)}
    assert tracked == set(range(SHAPE_KJI[0])) - set(between) | set(DRAWN)


def test_a_correction_that_was_cancelled_is_done_by_the_next_one(a_desk: Desk) -> None:
    a_desk.propagate()
    bright = a_desk.volume.voxels_kji > 0
    for index in (5, 6, 8, 9):  # so that it shows which slices are tracked again
        wrong = {index: ~bright[index]}
        writing.write_predicted_slices(a_desk.node, a_desk.liver, a_desk.volume, 0, wrong)
    a_desk.draw(a_desk.liver, 7, 6)
    a_desk.start(only_changed=True)
    a_desk.stop_after(1)
    assert not a_desk.is_whole()
    a_desk.propagate(only_changed=True)
    assert a_desk.is_whole()


def test_what_waits_is_kept_through_runs_that_go_another_way(a_desk: Desk) -> None:
    a_desk.start()
    a_desk.stop_after(1)
    a_desk.propagate(only_changed=True, direction="higher")
    assert not a_desk.is_found(a_desk.liver, range(DRAWN[0]))
    a_desk.propagate(only_changed=True)
    assert a_desk.is_whole()


def test_a_run_that_failed_is_finished_by_the_next_one(a_desk: Desk) -> None:
    a_desk.start()
    a_desk.client.run.go_on(4)
    a_desk.session.poll(budget_s=10.0)
    a_desk.client.run.fail(WorkerDied("The worker was killed; start again."))
    a_desk.session.poll(budget_s=10.0)
    assert a_desk.session.status.state is State.FAILED
    a_desk.propagate(only_changed=True)
    assert a_desk.is_whole()


def test_slices_that_had_arrived_but_were_not_written_wait_too(a_desk: Desk) -> None:
    a_desk.start()
    a_desk.client.run.go_on(20)
    while len(a_desk.filled()) == len(DRAWN):
        a_desk.session.poll(budget_s=0.0)
    a_desk.session.cancel()
    step = tags.steps(a_desk.node, a_desk.liver)[-1]
    waiting = {n for first, last in step.missed for n in range(first, last + 1)}
    filled = a_desk.filled()
    assert filled.isdisjoint(waiting)
    assert filled | waiting == set(range(SHAPE_KJI[0]))
    assert step.slices == len(filled) - len(DRAWN)
    a_desk.propagate(only_changed=True)
    assert a_desk.is_whole()


def test_undoing_a_cancelled_run_forgets_what_it_did_not_come_to(a_desk: Desk) -> None:
    a_desk.propagate()
    a_desk.start()
    a_desk.stop_after(3)
    assert a_desk.missed(a_desk.liver)
    a_desk.session.undo()
    assert a_desk.missed(a_desk.liver) == ()
    a_desk.session.redo()
    assert a_desk.missed(a_desk.liver)


def test_missed_slices_are_those_that_were_asked_for_and_not_decided() -> None:
    draw = np.random.default_rng(5)
    for _ in range(200):
        before, covered, decided = (set(np.flatnonzero(draw.random(12) < 0.5).tolist()) for _ in range(3))
        step = tags.Step("propagate", "", missed=tuple((n, n) for n in sorted(before)))
        rows = missed_slices(step, [range(n, n + 1) for n in covered], decided)
        wanted = sorted((before | covered) - decided)
        assert [n for first, last in rows for n in range(first, last + 1)] == wanted
        assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(rows))

"""The workflow both front ends share, on a real scene with a worker that answers when the test says so."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
vtk = pytest.importorskip("vtk")

from medssl.errors import Cancelled, InputError, WorkerDied  # noqa: E402
from medssl.events import Log, Progress  # noqa: E402
from medssl.results import SliceMask  # noqa: E402
from medssl.scene import nodes, tags, writing  # noqa: E402
from medssl.scene.rules import Overlap  # noqa: E402
from medssl.scene.session import PropagateRequest, Session, State  # noqa: E402

SHAPE_KJI = (7, 12, 15)


class Clock:
    """Stands still until it is told otherwise."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Desk:
    """A session on an oblique volume whose liver is drawn on slice 3."""

    def __init__(self, a_scene, client) -> None:
        self.scene = a_scene.scene
        self.client = client
        self.clock = Clock()
        self.volume_node = a_scene.add_volume(a_scene.grids["oblique"])
        self.volume = nodes.read_volume_node(self.volume_node)
        self.node, (self.liver, self.spleen) = a_scene.add_segmentation(self.volume_node, "liver", "spleen")
        self.drawn = self.a_mask(3)
        self.draw(self.liver, {3: self.drawn})
        self.session = Session(a_scene.scene, a_scene.logic, client, clock=self.clock)
        self.session.choose(self.volume_node, self.node)

    def a_mask(self, seed: int) -> np.ndarray:
        mask = np.zeros(SHAPE_KJI[1:], bool)
        mask[2:10, 3:12] = np.random.default_rng(seed).random((8, 9)) > 0.4
        return mask

    def draw(self, segment: str, slices: dict[int, np.ndarray]) -> None:
        writing.write_slices(self.node, segment, self.volume, 0, slices)

    def masks(self, segment: str) -> np.ndarray:
        return nodes.read_segment(self.node, segment, self.volume)

    def start(self, **options):
        plan = self.session.start(PropagateRequest(**options))
        self.run = self.client.run
        return plan

    def arrive(self, segment: str, *indices: int) -> dict[int, np.ndarray]:
        masks = {index: self.a_mask(100 + index) for index in indices}
        self.run.say(*(SliceMask(segment, 0, index, mask, 0.9) for index, mask in masks.items()))
        return masks

    def finish(self) -> None:
        """The worker has sent everything."""
        self.run.end()
        while self.session.poll().state is State.RUNNING:
            pass

    def filled(self, segment: str) -> list[int]:
        """The slices that hold anything of a segment."""
        return nodes.annotated_slices(self.masks(segment), 0)

    def predicted(self, segment: str) -> list[int]:
        """The slices that count as predicted."""
        return sorted(index for _, index in tags.predicted_slices(self.node, segment))


@pytest.fixture
def a_desk(a_scene, a_client) -> Desk:
    return Desk(a_scene, a_client)


def test_the_drawn_slices_are_sent_with_the_axis_they_were_painted_across(a_desk: Desk) -> None:
    plan = a_desk.start(direction="higher", last=5, model="medssl-nano")
    (asked,) = a_desk.client.asked
    (reference,) = asked["references"]
    assert (plan.axis, plan.view, plan.drawn) == (0, "axial", {a_desk.liver: [3]})
    assert (reference.segment, reference.prompt.axis, reference.prompt.index) == (a_desk.liver, 0, 3)
    np.testing.assert_array_equal(reference.prompt.mask, a_desk.drawn)
    assert asked["options"] == {"axis": 0, "first": None, "last": 5, "direction": "higher", "stop": True}
    assert asked["volume"].content_hash == a_desk.volume.content_hash


def test_a_slice_painted_in_the_sagittal_view_is_propagated_across_that_axis(a_desk: Desk) -> None:
    stack = np.zeros((*SHAPE_KJI[:2], SHAPE_KJI[2]), bool)
    stack[1:6, 2:9, 7] = True
    writing.write_slices(a_desk.node, a_desk.spleen, a_desk.volume, 2, {7: stack[:, :, 7]})
    plan = a_desk.session.plan(PropagateRequest(segment_ids=(a_desk.spleen,)))
    assert (plan.axis, plan.drawn) == (2, {a_desk.spleen: [7]})


def test_slices_are_written_as_they_arrive_and_progress_is_shown(a_desk: Desk) -> None:
    a_desk.start()
    masks = a_desk.arrive(a_desk.liver, 4)
    a_desk.run.say(Progress(1, 4, 3.5))
    status = a_desk.session.poll()
    assert (status.state, status.fraction, status.seconds_left) == (State.RUNNING, 0.25, 3.5)
    np.testing.assert_array_equal(a_desk.masks(a_desk.liver)[4], masks[4])

    masks |= a_desk.arrive(a_desk.liver, 2, 5)
    a_desk.run.end()
    status = a_desk.session.poll()
    assert (status.state, status.fraction, status.text) == (
        State.DONE,
        1.0,
        "3 slices were written in 0.0 s.",
    )
    for index in (2, 4, 5):
        np.testing.assert_array_equal(a_desk.masks(a_desk.liver)[index], masks[index])


def test_a_log_line_becomes_the_status_text(a_desk: Desk) -> None:
    a_desk.start()
    a_desk.run.say(Log("The liver ended at slice 5."))
    assert a_desk.session.poll().text == "The liver ended at slice 5."


def test_drawn_slices_stay_exactly_as_the_user_drew_them(a_desk: Desk) -> None:
    a_desk.start()
    a_desk.arrive(a_desk.liver, 2, 3, 4)
    a_desk.session.poll()
    np.testing.assert_array_equal(a_desk.masks(a_desk.liver)[3], a_desk.drawn)


def test_a_second_run_starts_from_drawn_and_corrected_slices_only(a_desk: Desk) -> None:
    a_desk.start()
    masks = a_desk.arrive(a_desk.liver, 2, 4, 5)
    a_desk.run.end()
    a_desk.session.poll()
    corrected = masks[5] ^ (np.arange(15) == 5)
    a_desk.draw(a_desk.liver, {5: corrected})
    assert a_desk.start().drawn == {a_desk.liver: [3, 5]}


def test_one_undo_takes_back_a_whole_propagation_and_redo_brings_it_back(a_desk: Desk) -> None:
    spleen_before = a_desk.a_mask(55)
    a_desk.draw(a_desk.spleen, {1: spleen_before})
    before = a_desk.masks(a_desk.liver), a_desk.masks(a_desk.spleen)
    a_desk.start()
    for index in (4, 5, 2, 6, 1):
        a_desk.arrive(a_desk.liver, index)
        a_desk.arrive(a_desk.spleen, index)
        a_desk.session.poll()
    a_desk.run.end()
    a_desk.session.poll()
    after = a_desk.masks(a_desk.liver), a_desk.masks(a_desk.spleen)

    assert a_desk.session.can_undo
    a_desk.session.undo()
    np.testing.assert_array_equal((a_desk.masks(a_desk.liver), a_desk.masks(a_desk.spleen)), before)
    assert not a_desk.session.can_undo
    a_desk.session.redo()
    np.testing.assert_array_equal((a_desk.masks(a_desk.liver), a_desk.masks(a_desk.spleen)), after)
    assert not a_desk.session.can_redo


def a_desk_after_a_run_to_both_ends(desk: Desk) -> Desk:
    desk.start()
    desk.arrive(desk.liver, 0, 1, 2, 4, 5, 6)
    desk.finish()
    return desk


def test_a_run_that_ends_earlier_empties_what_the_one_before_it_filled_beyond(a_desk: Desk) -> None:
    desk = a_desk_after_a_run_to_both_ends(a_desk)
    desk.start()
    masks = desk.arrive(desk.liver, 2, 4)
    desk.finish()
    assert desk.filled(desk.liver) == [2, 3, 4]
    assert desk.predicted(desk.liver) == [2, 4]
    np.testing.assert_array_equal(desk.masks(desk.liver)[[2, 3, 4]], [masks[2], desk.drawn, masks[4]])
    status = desk.session.status
    assert (status.state, status.text) == (
        State.DONE,
        "2 slices were written and 4 of an earlier run emptied in 0.0 s.",
    )


def test_one_undo_brings_back_the_emptied_slices_with_the_written_ones(a_desk: Desk) -> None:
    desk = a_desk_after_a_run_to_both_ends(a_desk)
    before, predicted = desk.masks(desk.liver), desk.predicted(desk.liver)
    for arriving in ((2, 4), ()):
        desk.start()
        desk.arrive(desk.liver, *arriving)
        desk.finish()
        desk.session.undo()
        np.testing.assert_array_equal(desk.masks(desk.liver), before)
        assert desk.predicted(desk.liver) == predicted


def cancel(desk: Desk) -> None:
    desk.session.cancel()


def be_cancelled_by_the_worker(desk: Desk) -> None:
    desk.run.fail(Cancelled("Propagation was cancelled."))
    desk.finish()


def fail(desk: Desk) -> None:
    desk.run.fail(WorkerDied("The worker was killed; start again."))
    desk.finish()


@pytest.mark.parametrize("end", [cancel, be_cancelled_by_the_worker, fail])
def test_a_run_that_does_not_come_to_its_end_empties_nothing(a_desk: Desk, end) -> None:
    desk = a_desk_after_a_run_to_both_ends(a_desk)
    desk.start()
    desk.arrive(desk.liver, 4)
    desk.session.poll()
    end(desk)
    desk.session.poll()
    assert desk.session.status.state in (State.CANCELLED, State.FAILED)
    assert desk.filled(desk.liver) == [0, 1, 2, 3, 4, 5, 6]
    assert desk.predicted(desk.liver) == [0, 1, 2, 4, 5, 6]


def test_a_run_ends_though_an_earlier_one_is_brought_back_meanwhile(a_desk: Desk) -> None:
    desk = a_desk_after_a_run_to_both_ends(a_desk)
    before = desk.masks(desk.liver)
    desk.session.undo()
    desk.start()
    desk.session.history.redo(desk.node)  # as the Segment Editor's own buttons do
    desk.run.end()
    for _ in range(20):
        desk.session.poll()
    assert desk.session.status.state is State.DONE
    np.testing.assert_array_equal(desk.masks(desk.liver), before)


def test_slices_the_user_changed_before_or_during_the_run_are_not_emptied(a_desk: Desk) -> None:
    desk = a_desk_after_a_run_to_both_ends(a_desk)
    before, during = desk.a_mask(21), desk.a_mask(22)
    desk.draw(desk.liver, {6: before})
    assert desk.start().drawn == {desk.liver: [3, 6]}
    desk.arrive(desk.liver, 4)
    desk.session.poll()
    desk.draw(desk.liver, {1: during})
    desk.finish()
    assert desk.filled(desk.liver) == [1, 3, 4, 6]
    np.testing.assert_array_equal(desk.masks(desk.liver)[[1, 6]], [during, before])


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"direction": "higher"}, [0, 1, 2, 3]),
        ({"direction": "lower"}, [3, 4, 5, 6]),
        ({"first": 2, "last": 5}, [0, 1, 3, 6]),
        ({"direction": "higher", "last": 4}, [0, 1, 2, 3, 5, 6]),
    ],
    ids=str,
)
def test_only_slices_the_run_was_asked_about_are_emptied(a_desk: Desk, options, left: list[int]) -> None:
    desk = a_desk_after_a_run_to_both_ends(a_desk)
    desk.start(**options)
    desk.finish()
    assert desk.filled(desk.liver) == left


def test_segments_and_axes_that_were_not_propagated_are_not_emptied(a_desk: Desk) -> None:
    desk = a_desk
    spleen = np.zeros(SHAPE_KJI[:2], bool)
    spleen[1:6, 2:9] = True
    writing.write_predicted_slices(desk.node, desk.spleen, desk.volume, 2, {7: spleen})
    writing.write_slices(desk.node, desk.spleen, desk.volume, 0, {0: desk.a_mask(9)})
    writing.write_predicted_slices(desk.node, desk.spleen, desk.volume, 0, {6: desk.a_mask(10)})
    before = desk.masks(desk.spleen)
    desk.start(segment_ids=(desk.liver,))
    desk.finish()
    np.testing.assert_array_equal(desk.masks(desk.spleen), before)
    desk.start(segment_ids=(desk.spleen,), axis=0)
    desk.finish()
    assert desk.filled(desk.spleen) == [0, 1, 2, 3, 4, 5]
    assert tags.predicted_slices(desk.node, desk.spleen).keys() == {(2, 7)}


def test_undo_forgets_what_was_predicted(a_desk: Desk) -> None:
    a_desk.start()
    a_desk.arrive(a_desk.liver, 4)
    a_desk.session.poll()
    a_desk.session.undo()
    assert tags.predicted_slices(a_desk.node, a_desk.liver) == {}
    a_desk.session.redo()
    assert set(tags.predicted_slices(a_desk.node, a_desk.liver)) == {(0, 4)}


def test_propagations_are_undone_one_by_one(a_desk: Desk) -> None:
    states = [a_desk.masks(a_desk.liver)]
    for index in (4, 5, 6):
        a_desk.start()
        a_desk.arrive(a_desk.liver, index)
        a_desk.finish()
        states.append(a_desk.masks(a_desk.liver))
    for expected in states[-2::-1]:
        a_desk.session.undo()
        np.testing.assert_array_equal(a_desk.masks(a_desk.liver), expected)


def test_a_propagation_that_wrote_nothing_leaves_nothing_to_undo(a_desk: Desk) -> None:
    a_desk.start()
    a_desk.run.end()
    assert a_desk.session.poll().state is State.DONE
    assert not a_desk.session.can_undo
    with pytest.raises(InputError, match="nothing to undo"):
        a_desk.session.undo()


def test_undo_while_running_cancels_first(a_desk: Desk) -> None:
    before = a_desk.masks(a_desk.liver)
    a_desk.start()
    a_desk.arrive(a_desk.liver, 4)
    a_desk.session.poll()
    a_desk.arrive(a_desk.liver, 5)
    a_desk.session.undo()
    assert a_desk.run.was_cancelled
    a_desk.session.poll()
    np.testing.assert_array_equal(a_desk.masks(a_desk.liver), before)


def test_cancel_keeps_what_was_written_and_ignores_what_comes_later(a_desk: Desk) -> None:
    a_desk.start()
    masks = a_desk.arrive(a_desk.liver, 4)
    a_desk.session.poll()
    a_desk.session.cancel()
    assert a_desk.run.was_cancelled
    a_desk.arrive(a_desk.liver, 5)
    status = a_desk.session.poll()
    assert (status.state, status.text) == (
        State.CANCELLED,
        "Propagation was cancelled; 1 slice was written.",
    )
    np.testing.assert_array_equal(a_desk.masks(a_desk.liver)[4], masks[4])
    assert not a_desk.masks(a_desk.liver)[5].any()


def test_when_the_worker_dies_what_had_arrived_stays_and_the_next_run_works(a_desk: Desk) -> None:
    before = a_desk.masks(a_desk.liver)
    a_desk.start()
    masks = a_desk.arrive(a_desk.liver, 4, 5)
    a_desk.run.fail(WorkerDied("The worker was killed; start again."))
    status = a_desk.session.poll()
    assert (status.state, status.text) == (State.FAILED, "The worker was killed; start again.")
    for index in (4, 5):
        np.testing.assert_array_equal(a_desk.masks(a_desk.liver)[index], masks[index])
    a_desk.session.undo()
    np.testing.assert_array_equal(a_desk.masks(a_desk.liver), before)

    a_desk.start()
    masks = a_desk.arrive(a_desk.liver, 2)
    a_desk.run.end()
    assert a_desk.session.poll().state is State.DONE
    np.testing.assert_array_equal(a_desk.masks(a_desk.liver)[2], masks[2])


def remove_segmentation(desk: Desk) -> None:
    desk.scene.RemoveNode(desk.node)


def remove_volume(desk: Desk) -> None:
    desk.scene.RemoveNode(desk.volume_node)


def remove_segment(desk: Desk) -> None:
    desk.node.GetSegmentation().RemoveSegment(desk.liver)


def close_scene(desk: Desk) -> None:
    desk.scene.Clear(0)


@pytest.mark.parametrize(
    ("remove", "what"),
    [
        (remove_segmentation, "the segmentation"),
        (remove_volume, "the volume"),
        (remove_segment, "a segment"),
        (close_scene, "the segmentation"),
    ],
)
def test_removing_a_node_under_way_cancels_the_run(a_desk: Desk, remove, what: str) -> None:
    a_desk.start()
    a_desk.arrive(a_desk.liver, 4)
    a_desk.session.poll()
    remove(a_desk)
    a_desk.arrive(a_desk.liver, 5)
    status = a_desk.session.poll()
    assert (status.state, status.text) == (
        State.CANCELLED,
        f"Propagation was cancelled because {what} was removed.",
    )
    assert a_desk.run.was_cancelled
    assert a_desk.session.poll() == status


def test_after_the_scene_was_closed_there_is_nothing_to_undo_and_starting_says_what_is_missing(
    a_desk: Desk,
) -> None:
    a_desk.start()
    a_desk.arrive(a_desk.liver, 4)
    a_desk.session.poll()
    close_scene(a_desk)
    assert not a_desk.session.can_undo
    assert a_desk.session.segments() == ()
    with pytest.raises(InputError, match="is running"):
        a_desk.session.start(PropagateRequest())
    a_desk.session.poll()
    with pytest.raises(InputError, match="No volume is chosen; load a CT"):
        a_desk.session.start(PropagateRequest())


def test_a_segmentation_moved_off_the_grid_under_way_fails_with_one_sentence(a_scene, a_desk: Desk) -> None:
    a_desk.start()
    a_desk.arrive(a_desk.liver, 4)
    shift = np.eye(4)
    shift[0, 3] = 1.7
    a_desk.node.SetAndObserveTransformNodeID(a_scene.add_transform(shift).GetID())
    status = a_desk.session.poll()
    assert status.state is State.FAILED
    assert "lies on another voxel grid" in status.text
    assert a_desk.run.was_cancelled


def test_an_error_in_the_program_ends_the_run_and_is_not_hidden(
    a_desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_desk.start()
    a_desk.arrive(a_desk.liver, 4)
    monkeypatch.setattr(writing, "write_predicted_slices", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        a_desk.session.poll()
    assert a_desk.session.poll().state is State.FAILED


def test_a_poll_stops_writing_when_its_time_is_up_and_gives_the_front_end_as_long(
    a_desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write takes one second on the clock; the budget is half of that."""
    writes = []

    def slow_write(*arguments) -> dict[int, np.ndarray]:
        writes.append(arguments[1])
        a_desk.clock.now_s += 1.0
        return {}

    monkeypatch.setattr(writing, "write_predicted_slices", slow_write)
    a_desk.draw(a_desk.spleen, {3: a_desk.a_mask(8)})
    a_desk.start()
    a_desk.arrive(a_desk.liver, 4, 5)
    a_desk.arrive(a_desk.spleen, 4, 5)
    a_desk.run.end()
    a_desk.session.poll(budget_s=0.5)
    assert writes == [a_desk.liver]
    a_desk.session.poll(budget_s=0.5)
    assert writes == [a_desk.liver]
    a_desk.clock.now_s += 1.0
    assert a_desk.session.poll(budget_s=0.5).state is State.DONE
    assert writes == [a_desk.liver, a_desk.spleen]


def test_while_slices_still_come_they_are_gathered_for_four_times_as_long_as_a_write_takes(
    a_desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []

    def slow_write(node, segment, volume, axis, masks, *_) -> dict[int, np.ndarray]:
        writes.append(sorted(masks))
        a_desk.clock.now_s += 0.5
        return {}

    monkeypatch.setattr(writing, "write_predicted_slices", slow_write)
    a_desk.start()
    for index in (4, 5, 6):
        a_desk.arrive(a_desk.liver, index)
        a_desk.session.poll()
        a_desk.clock.now_s += 0.9
    assert writes == [[4]]
    a_desk.clock.now_s += 0.3
    a_desk.session.poll()
    assert writes == [[4], [5, 6]]


def test_other_segments_keep_their_voxels_unless_overwriting_is_asked_for(a_desk: Desk) -> None:
    neighbour = np.ones(SHAPE_KJI[1:], bool)
    for overlap, expected in ((Overlap.ALLOW, True), (Overlap.OVERWRITE, False)):
        a_desk.draw(a_desk.spleen, {4: neighbour})
        a_desk.start(segment_ids=(a_desk.liver,), overlap=overlap)
        masks = a_desk.arrive(a_desk.liver, 4)
        a_desk.finish()
        assert a_desk.masks(a_desk.spleen)[4][masks[4]].all() == expected
        np.testing.assert_array_equal(a_desk.masks(a_desk.liver)[4], masks[4])


def test_starting_twice_is_refused(a_desk: Desk) -> None:
    a_desk.start()
    with pytest.raises(InputError, match="A propagation is running; wait for it or cancel it first"):
        a_desk.start()


def test_nothing_drawn_is_refused_by_name(a_desk: Desk) -> None:
    with pytest.raises(InputError, match="Nothing is drawn in segment 'spleen'; paint the object"):
        a_desk.start(segment_ids=(a_desk.spleen,))
    a_desk.draw(a_desk.liver, {3: np.zeros(SHAPE_KJI[1:], bool)})
    with pytest.raises(InputError, match="Nothing is drawn in 'CT segmentation'"):
        a_desk.session.plan(PropagateRequest())


def test_chosen_segments_with_nothing_drawn_are_left_out(a_desk: Desk) -> None:
    plan = a_desk.session.plan(PropagateRequest(segment_ids=(a_desk.spleen, a_desk.liver)))
    assert plan.drawn == {a_desk.liver: [3]}


def test_choosing_another_segmentation_cancels_and_coming_back_can_still_undo(a_scene, a_desk: Desk) -> None:
    other, _ = a_scene.add_segmentation(a_desk.volume_node, "kidney")
    before = a_desk.masks(a_desk.liver)
    a_desk.start()
    a_desk.arrive(a_desk.liver, 4)
    a_desk.session.poll()
    a_desk.session.choose(a_desk.volume_node, other)
    assert a_desk.run.was_cancelled
    assert not a_desk.session.can_undo
    a_desk.session.choose(a_desk.volume_node, a_desk.node)
    a_desk.session.undo()
    np.testing.assert_array_equal(a_desk.masks(a_desk.liver), before)
    a_desk.session.close()


def test_slices_that_arrive_while_the_last_ones_are_taken_are_not_lost(a_desk: Desk) -> None:
    a_desk.start()
    take = a_desk.run.poll

    def take_then_end() -> list[object]:
        taken = take()
        a_desk.arrive(a_desk.liver, 5)
        a_desk.run.end()
        a_desk.run.poll = take
        return taken

    a_desk.run.poll = take_then_end
    assert a_desk.session.poll().state is State.RUNNING
    assert a_desk.session.poll().state is State.DONE
    assert a_desk.masks(a_desk.liver)[5].any()


def test_a_volume_is_read_once_until_its_image_changes(a_desk: Desk) -> None:
    for _ in range(2):
        a_desk.start()
        a_desk.session.cancel()
    a_desk.volume_node.GetImageData().SetScalarComponentFromDouble(0, 0, 0, 0, 5000)
    a_desk.volume_node.GetImageData().Modified()
    a_desk.start()
    first, second, third = a_desk.client.asked
    assert first["volume"] is second["volume"]
    assert first["volume"].content_hash != third["volume"].content_hash


def test_why_a_volume_cannot_be_used_is_said_as_long_as_it_is_chosen(a_scene, a_desk: Desk) -> None:
    flat = a_scene.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "screenshot")
    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 4)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    flat.SetAndObserveImageData(image)
    a_desk.session.choose(flat, a_desk.node)
    assert "'screenshot' has 3 values per voxel" in a_desk.session.status.text
    a_desk.session.choose(a_desk.volume_node, a_desk.node)
    assert a_desk.session.status.text == ""


def test_that_a_segmentation_lies_elsewhere_is_said_until_it_does_not(a_scene, a_desk: Desk) -> None:
    shift = np.eye(4)
    shift[0, 3] = 2.4
    a_desk.node.SetAndObserveTransformNodeID(a_scene.add_transform(shift).GetID())
    a_desk.session.look()
    a_desk.session.poll()
    assert "another voxel grid" in a_desk.session.status.text
    a_desk.node.SetAndObserveTransformNodeID(None)
    a_desk.session.look()
    while a_desk.session.is_looking:
        a_desk.session.poll()
    assert a_desk.session.status.text == ""

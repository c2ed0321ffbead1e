"""What people complain about in programs of this kind: neighbours erased, wrong slices, work lost, no way back."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
vtk = pytest.importorskip("vtk")

from medssl.errors import InputError  # noqa: E402
from medssl.results import SliceMask  # noqa: E402
from medssl.scene import nodes, tags, writing  # noqa: E402
from medssl.scene.marks import PromptMarks  # noqa: E402
from medssl.scene.predicting import PredictDesk, is_stage  # noqa: E402
from medssl.scene.prompting import Place, position_ras_mm  # noqa: E402
from medssl.scene.session import PropagateRequest, Session, State  # noqa: E402
from medssl.volume import Volume  # noqa: E402
from vtk.util import numpy_support  # noqa: E402

SHAPE_KJI = (7, 12, 15)
PATIENCE_S = 60.0


class Desk:
    """A liver drawn on slice 3 beside a spleen drawn on slices 2, 3 and 4, as in 3D Slicer with its Segment Editor."""

    def __init__(self, a_scene: Any, client: Any, grid: np.ndarray) -> None:
        self.a_scene, self.scene, self.client = a_scene, a_scene.scene, client
        self.volume_node = a_scene.add_volume(grid)
        self.volume = nodes.read_volume_node(self.volume_node)
        self.node, (self.liver, self.spleen) = a_scene.add_segmentation(self.volume_node, "liver", "spleen")
        self.left, self.right = (np.zeros(SHAPE_KJI[1:], bool) for _ in range(2))
        self.left[2:8, 2:8], self.right[2:8, 6:12] = True, True
        self.draw(self.liver, 3, self.left & ~self.right)
        for index in (2, 3, 4):
            self.draw(self.spleen, index, self.right)
        self.editor = self.scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        self.session = Session(a_scene.scene, a_scene.logic, client)
        self.session.editor_node = self.editor
        self.session.choose(self.volume_node, self.node)
        self.predict = PredictDesk(self.session)

    def draw(self, segment: str, index: int, mask: np.ndarray) -> None:
        writing.write_slices(self.node, segment, self.volume, 0, {index: mask})

    def state(self) -> np.ndarray:
        return np.array([nodes.read_segment(self.node, i, self.volume) for i in (self.liver, self.spleen)])

    def start(self, *segments: str, **options: Any) -> None:
        self.session.start(PropagateRequest(segment_ids=segments or (self.liver,), **options))

    def arrive(self, *indices: int, segment: str = "") -> None:
        masks = (SliceMask(segment or self.liver, 0, n, self.left, 0.9) for n in indices)
        self.client.run.say(*masks)
        while self.session.poll() and self.session._propagation.writer.pending:
            pass

    def finish(self) -> None:
        self.client.run.end()
        while self.session.poll().state is State.RUNNING:
            pass

    def look(self) -> None:
        self.session.look()
        while self.session.is_looking:
            self.session.poll()

    def click(self, index: int) -> Place:
        position = position_ras_mm(self.volume, Place(self.liver, 0, index), (4.0, 4.0))
        return self.session.prompts.add_point(self.liver, position.tolist(), 0, True)

    def answer(self) -> None:
        prompt = self.client.asked[-1]["prompt"]
        self.client.run.say(SliceMask(self.liver, 0, prompt.index, self.left, 0.9))
        self.client.run.end()
        self.session.poll()


@pytest.fixture
def a_desk(a_scene: Any, a_client: Any) -> Desk:
    return Desk(a_scene, a_client, a_scene.grids["oblique and left-handed"])


def test_a_neighbour_that_gives_way_is_named_and_one_undo_brings_it_back(a_desk: Desk) -> None:
    before = a_desk.state()
    a_desk.editor.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments)
    a_desk.start()
    a_desk.arrive(2, 4, 5)
    a_desk.finish()
    assert not (a_desk.state()[1] & a_desk.state()[0]).any()
    assert a_desk.session.status.text.endswith(
        "Other segments gave way: spleen on 2 slices; undo brings them back."
    )
    a_desk.session.undo()
    np.testing.assert_array_equal(a_desk.state(), before)


def test_a_neighbour_keeps_every_voxel_where_the_segment_editor_says_so(a_desk: Desk) -> None:
    spleen = a_desk.state()[1]
    a_desk.editor.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteNone)
    a_desk.start()
    a_desk.arrive(2, 4, 5)
    a_desk.finish()
    np.testing.assert_array_equal(a_desk.state()[1], spleen)
    assert "gave way" not in a_desk.session.status.text


def test_a_neighbour_that_gives_way_to_an_accepted_preview_is_named(a_desk: Desk) -> None:
    before = a_desk.state()
    for mode, message in (
        (
            slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments,
            "Accepted. spleen gave way; undo brings it back.",
        ),
        (slicer.vtkMRMLSegmentEditorNode.OverwriteNone, "Accepted."),
    ):
        a_desk.editor.SetOverwriteMode(mode)
        a_desk.click(4)
        a_desk.answer()
        a_desk.session.prompts.accept()
        assert a_desk.session.prompts.message == message
        a_desk.session.undo()
        np.testing.assert_array_equal(a_desk.state(), before)
        assert a_desk.session.prompts.message == ""  # what was accepted is gone


def everything_at_once(desk: Desk) -> list[Callable[[], None]]:
    """Steps of every kind, one after the other."""

    def prompt(index: int) -> None:
        desk.click(index)
        desk.answer()
        desk.session.prompts.accept()

    def propagate(*indices: int, **options: Any) -> None:
        desk.start(**options)
        desk.arrive(*indices)
        desk.finish()

    def cancel() -> None:
        desk.start()
        desk.arrive(0)
        desk.session.cancel()

    def predict() -> None:
        desk.predict.predict("liver")
        desk.client.run.say(
            SliceMask("liver", 0, 6, desk.right, 0.9), SliceMask("kidney", 0, 1, desk.left, 0.9)
        )
        desk.client.run.end()
        while desk.predict.is_running:
            desk.predict.poll()

    def paint() -> None:
        desk.session.history.save(desk.node)
        desk.draw(desk.liver, 4, desk.right)

    return [
        lambda: prompt(1),
        lambda: propagate(2, 4, 5),
        paint,
        lambda: propagate(5, only_changed=True),
        cancel,
        predict,
    ]


def test_many_steps_of_every_kind_are_undone_and_redone_one_by_one(a_desk: Desk) -> None:
    def look() -> tuple[np.ndarray, list[Any]]:
        segments = [s.id for s in a_desk.session.segments()]
        kept = [(i, tags.steps(a_desk.node, i), tags.predicted_slices(a_desk.node, i)) for i in segments]
        return a_desk.state(), kept

    def check(wanted: tuple[np.ndarray, list[Any]]) -> None:
        np.testing.assert_array_equal(look()[0], wanted[0])
        assert look()[1] == wanted[1]

    states = [look()]
    for step in everything_at_once(a_desk):
        step()
        states.append(look())
    for _ in range(2):
        for wanted in states[-2::-1]:
            a_desk.session.undo()
            check(wanted)
        assert not a_desk.session.can_undo
        for wanted in states[1:]:
            a_desk.session.redo()
            check(wanted)
        assert not a_desk.session.can_redo


def test_undo_under_a_run_that_has_written_nothing_stops_it_and_leaves_the_step_before(a_desk: Desk) -> None:
    a_desk.session.history.save(a_desk.node)
    a_desk.draw(a_desk.liver, 5, a_desk.right)
    painted = a_desk.state()
    a_desk.start()
    a_desk.session.undo()
    assert a_desk.client.run.was_cancelled
    np.testing.assert_array_equal(a_desk.state(), painted)
    a_desk.start()
    a_desk.arrive(4)
    a_desk.session.undo()
    np.testing.assert_array_equal(a_desk.state(), painted)
    a_desk.session.undo()
    assert not a_desk.state()[0][5].any()


def test_slices_undone_under_a_run_end_it_and_stay_undone(a_desk: Desk) -> None:
    before = a_desk.state()
    a_desk.start()
    a_desk.arrive(2, 4)
    a_desk.session.history.undo(a_desk.node)  # as the Segment Editor's own button does
    a_desk.client.run.say(SliceMask(a_desk.liver, 0, 5, a_desk.left, 0.9))
    status = a_desk.session.poll()
    assert (status.state, status.text) == (
        State.CANCELLED,
        "Propagation was cancelled because its slices were undone.",
    )
    assert a_desk.client.run.was_cancelled
    np.testing.assert_array_equal(a_desk.state(), before)
    assert tags.steps(a_desk.node, a_desk.liver) == ()
    a_desk.session.redo()
    assert nodes.annotated_slices(a_desk.state()[0], 0) == [2, 3, 4]


def test_a_prediction_whose_slices_are_undone_ends_and_names_the_neighbours_that_gave_way(
    a_desk: Desk,
) -> None:
    before = a_desk.state()
    for is_undone in (True, False):
        a_desk.predict.predict("liver")
        a_desk.client.run.say(*(SliceMask("liver", 0, n, a_desk.left, 0.9) for n in (2, 4)))
        while not a_desk.session.can_undo or a_desk.predict._writer.pending:
            a_desk.predict.poll()
        if is_undone:
            a_desk.session.history.undo(a_desk.node)
        else:
            a_desk.client.run.end()
        while a_desk.predict.is_running:
            a_desk.predict.poll()
        if is_undone:
            assert a_desk.predict.message == "The prediction was cancelled because its slices were undone."
            np.testing.assert_array_equal(a_desk.state(), before)
            assert tags.steps(a_desk.node, a_desk.liver) == ()
    assert a_desk.predict.message.endswith("gave way: spleen on 2 slices; undo brings them back.")


def move(desk: Desk) -> None:
    shift = np.eye(4)
    shift[:3, 3] = (5.0, -3.0, 11.0)
    transform = desk.a_scene.add_transform(shift)
    for node in (desk.volume_node, desk.node):
        node.SetAndObserveTransformNodeID(transform.GetID())


def test_hardening_a_transform_under_a_run_does_not_disturb_it(a_desk: Desk) -> None:
    move(a_desk)
    a_desk.volume = a_desk.session.volume()
    a_desk.start()
    a_desk.arrive(2)
    for node in (a_desk.volume_node, a_desk.node):
        node.HardenTransform()
        assert node.GetTransformNodeID() is None
    a_desk.arrive(4, 5)
    assert a_desk.session.status.state is State.RUNNING
    found = nodes.read_segment(a_desk.node, a_desk.liver, a_desk.session.volume())
    np.testing.assert_array_equal(found[[2, 4, 5]], [a_desk.left] * 3)


def give_another_image(desk: Desk) -> None:
    image = vtk.vtkImageData()
    image.SetDimensions(*SHAPE_KJI[::-1])
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(np.arange(1260, dtype=np.int16), deep=True))
    desk.volume_node.SetAndObserveImageData(image)


@pytest.mark.parametrize("change", [move, give_another_image])
def test_a_volume_that_is_changed_under_a_run_ends_it_in_one_sentence_and_the_next_one_works(
    a_desk: Desk, change: Callable[[Desk], None]
) -> None:
    a_desk.start()
    a_desk.arrive(2)
    change(a_desk)
    a_desk.client.run.say(SliceMask(a_desk.liver, 0, 4, a_desk.left, 0.9))
    status = a_desk.session.poll()
    assert (status.state, status.text) == (
        State.CANCELLED,
        "Propagation was cancelled because the volume was moved or has got another image.",
    )
    a_desk.start(only_changed=True)
    a_desk.arrive(4, 5)
    a_desk.finish()
    assert a_desk.session.status.state is State.DONE
    np.testing.assert_array_equal(
        nodes.read_segment(a_desk.node, a_desk.liver, a_desk.session.volume())[[4, 5]], [a_desk.left] * 2
    )


def test_marks_of_prompts_move_with_their_volume(a_desk: Desk) -> None:
    marks = PromptMarks(a_desk.session)

    def where() -> np.ndarray:
        marks.show()
        (mark,) = (
            node
            for node in a_desk.scene.GetNodesByClass("vtkMRMLMarkupsNode")
            if node.GetName() == "MedSSLSegment prompt mark"
        )
        return np.array(mark.GetNthControlPointPositionWorld(0))

    a_desk.click(5)
    before = where()
    move(a_desk)
    np.testing.assert_allclose(where() - before, (5.0, -3.0, 11.0), atol=1e-4)


@pytest.mark.parametrize("change", [move, give_another_image])
def test_a_volume_that_is_changed_under_a_prediction_ends_it_in_one_sentence(
    a_desk: Desk, change: Callable[[Desk], None]
) -> None:
    a_desk.predict.predict("liver")
    change(a_desk)
    a_desk.predict.poll()
    assert a_desk.client.run.was_cancelled
    assert a_desk.predict.message == (
        "The prediction was cancelled because its volume was moved or has got another image."
    )


@pytest.mark.parametrize("change", [move, give_another_image])
@pytest.mark.parametrize("is_answered", [True, False])
def test_a_preview_of_an_image_that_was_changed_is_never_accepted(
    a_desk: Desk, change: Callable[[Desk], None], is_answered: bool
) -> None:
    before = a_desk.state()
    place = a_desk.click(5)
    if is_answered:
        a_desk.answer()
    change(a_desk)
    a_desk.session.poll()
    prompts = a_desk.session.prompts
    assert prompts.message.startswith("The volume was moved or has got another image")
    assert prompts.previews == {}
    assert a_desk.scene.GetFirstNodeByName("MedSSLSegment preview") is None
    asked = len(a_desk.client.asked)
    prompts.accept()
    assert len(a_desk.client.asked) == asked + 1
    a_desk.volume = a_desk.session.volume()
    np.testing.assert_array_equal(a_desk.state(), before)
    a_desk.answer()
    assert prompts.accept() == place
    np.testing.assert_array_equal(a_desk.state()[0][5], a_desk.left)


def test_a_segment_renamed_or_another_one_deleted_under_a_run_does_not_disturb_it(a_desk: Desk) -> None:
    a_desk.start()
    a_desk.arrive(2)
    a_desk.node.GetSegmentation().GetSegment(a_desk.liver).SetName("hepar")
    a_desk.node.GetSegmentation().RemoveSegment(a_desk.spleen)
    a_desk.arrive(4, 5)
    a_desk.finish()
    assert a_desk.session.status.state is State.DONE
    liver = nodes.read_segment(a_desk.node, a_desk.liver, a_desk.volume)
    assert nodes.annotated_slices(liver, 0) == [2, 3, 4, 5]
    assert [s.name for s in a_desk.session.segments()] == ["hepar"]


def test_of_two_segmentations_with_the_same_names_only_the_chosen_one_is_changed(a_desk: Desk) -> None:
    other, (liver, spleen) = a_desk.a_scene.add_segmentation(a_desk.volume_node, "liver", "spleen")
    writing.write_slices(other, liver, a_desk.volume, 0, {1: a_desk.right})
    before = [nodes.read_segment(other, i, a_desk.volume) for i in (liver, spleen)]
    for step in everything_at_once(a_desk):
        step()
    for i, wanted in zip((liver, spleen), before, strict=True):
        np.testing.assert_array_equal(nodes.read_segment(other, i, a_desk.volume), wanted)
        assert tags.steps(other, i) == ()
    assert a_desk.session.can_undo
    a_desk.session.choose(a_desk.volume_node, other)
    assert not a_desk.session.can_undo


def test_a_scene_saved_under_a_run_opens_with_what_had_arrived_and_goes_on(
    a_desk: Desk, a_scene: Any, tmp_path: Path
) -> None:
    a_desk.start()
    a_desk.arrive(2, 4)
    a_desk.click(6)
    path = tmp_path / "half way.seg.nrrd"
    storage = a_desk.scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(path))
    assert storage.WriteData(a_desk.node)
    a_desk.client.run.say(SliceMask(a_desk.liver, 0, 6, a_desk.left, 0.9))
    a_desk.session.cancel()

    again = a_desk.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "again")
    assert storage.ReadData(again)
    a_desk.session.choose(a_desk.volume_node, again)
    ids = [s.id for s in a_desk.session.segments()]
    assert nodes.annotated_slices(nodes.read_segment(again, ids[0], a_desk.volume), 0) == [2, 3, 4]
    plan = a_desk.session.plan(PropagateRequest(only_changed=True))
    assert plan.drawn[ids[0]] == [3]
    assert 3 in plan.changed


def test_a_click_in_any_view_of_any_grid_lands_on_the_voxel_under_it(
    a_scene: Any, a_client: Any, a_grid: np.ndarray
) -> None:
    desk = Desk(a_scene, a_client, a_grid)
    draw = np.random.default_rng(2)
    for axis, _ in itertools.product((0, 1, 2), range(5)):
        kji = [int(draw.integers(n)) for n in SHAPE_KJI]
        ras = (desk.volume.ijk_to_ras @ [*kji[::-1], 1.0])[:3]
        place = desk.session.prompts.add_point(desk.liver, ras.tolist(), axis, True)
        assert (place.axis, place.index) == (axis, kji[axis])
        row, column = (kji[a] for a in (0, 1, 2) if a != axis)
        np.testing.assert_allclose(desk.client.asked[-1]["prompt"].points_xy_px[-1], (column, row), atol=1e-3)
        desk.session.prompts.drop()


def test_a_slice_that_is_drawn_under_a_run_is_not_overwritten_by_it(a_desk: Desk) -> None:
    a_desk.start()
    a_desk.arrive(4)
    by_hand = np.zeros_like(a_desk.left)
    by_hand[9:11, 9:14] = True
    a_desk.draw(a_desk.liver, 5, by_hand)
    a_desk.draw(a_desk.liver, 4, by_hand)
    a_desk.client.run.say(*(SliceMask(a_desk.liver, 0, n, a_desk.left, 0.9) for n in (5, 6)))
    a_desk.client.run.end()
    while a_desk.session.poll().state is State.RUNNING:
        pass
    liver = nodes.read_segment(a_desk.node, a_desk.liver, a_desk.volume)
    for index, mask in ((4, by_hand), (5, by_hand), (6, a_desk.left)):
        np.testing.assert_array_equal(liver[index], mask)
    assert "1 slice that was drawn meanwhile stays as drawn." in a_desk.session.status.text
    assert a_desk.session.plan(PropagateRequest(only_changed=True)).drawn[a_desk.liver] == [3, 4, 5]


def test_a_segment_that_gives_way_to_another_one_of_the_same_run_is_still_written(a_desk: Desk) -> None:
    a_desk.editor.SetOverwriteMode(a_desk.editor.OverwriteAllSegments)
    a_desk.start(a_desk.liver, a_desk.spleen)
    a_desk.client.run.say(SliceMask(a_desk.liver, 0, 1, a_desk.left, 0.9))
    a_desk.client.run.say(SliceMask(a_desk.spleen, 0, 1, a_desk.right, 0.9))
    a_desk.client.run.end()
    while a_desk.session.poll().state is State.RUNNING:
        pass
    liver, spleen = a_desk.state()
    np.testing.assert_array_equal(spleen[1], a_desk.right)
    np.testing.assert_array_equal(liver[1], a_desk.left & ~a_desk.right)
    assert "meanwhile" not in a_desk.session.status.text


def test_slices_that_a_person_had_emptied_and_a_run_fills_again_are_counted(a_desk: Desk) -> None:
    a_desk.start()
    a_desk.arrive(4, 5, 6)
    a_desk.client.run.end()
    while a_desk.session.poll().state is State.RUNNING:
        pass
    for index in (5, 6):
        a_desk.draw(a_desk.liver, index, np.zeros_like(a_desk.left))
    a_desk.start()
    a_desk.arrive(4, 5)
    a_desk.client.run.end()
    while a_desk.session.poll().state is State.RUNNING:
        pass
    said = "1 slice that had been emptied was filled again; undo takes that back."
    assert said in a_desk.session.status.text
    a_desk.session.undo()
    assert not a_desk.state()[0][[5, 6]].any()


def test_a_slice_that_is_redrawn_under_a_run_with_as_many_pixels_is_not_overwritten(a_desk: Desk) -> None:
    a_desk.draw(a_desk.liver, 5, a_desk.left)
    a_desk.session.use_reference(a_desk.liver, 0, 5, False)
    a_desk.start()
    moved = np.roll(a_desk.left, 1, axis=1)
    a_desk.draw(a_desk.liver, 5, moved)
    a_desk.arrive(4, 5)
    a_desk.finish()
    np.testing.assert_array_equal(a_desk.state()[0][5], moved)
    assert "1 slice that was drawn meanwhile stays as drawn." in a_desk.session.status.text


def test_an_answer_accepted_on_the_slice_written_last_does_not_stop_the_run(a_desk: Desk) -> None:
    a_desk.start()
    run = a_desk.client.run
    a_desk.arrive(4)
    a_desk.click(4)
    a_desk.answer()
    a_desk.session.prompts.accept()
    assert a_desk.session.poll().state is State.RUNNING
    assert not run.was_cancelled
    run.say(SliceMask(a_desk.liver, 0, 5, a_desk.left, 0.9))
    run.end()
    while a_desk.session.poll().state is State.RUNNING:
        pass
    assert a_desk.state()[0][5].any()
    assert a_desk.session.status.state is State.DONE


def test_what_arrives_of_a_run_is_not_shown_in_the_strip_of_another_volume(a_desk: Desk) -> None:
    a_desk.start()
    cropped = a_desk.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "cropped")
    image = vtk.vtkImageData()
    image.SetDimensions(SHAPE_KJI[2], SHAPE_KJI[1], 4)
    image.AllocateScalars(vtk.VTK_SHORT, 1)
    cropped.SetAndObserveImageData(image)
    matrix = vtk.vtkMatrix4x4()
    a_desk.volume_node.GetIJKToRASMatrix(matrix)
    cropped.SetIJKToRASMatrix(matrix)
    a_desk.session.choose(cropped, a_desk.node)
    a_desk.look()
    area = a_desk.session.survey.segments[a_desk.liver].area_px.copy()
    a_desk.arrive(2, 5)
    np.testing.assert_array_equal(a_desk.session.survey.segments[a_desk.liver].area_px, area)
    assert a_desk.session.status.state is State.RUNNING


def predict(desk: Desk, *indices: int) -> None:
    """The model finds the liver on these slices."""
    desk.look()
    desk.predict.segment_everything("liver")
    for stage in ("coarse", "final"):
        desk.client.run.say(*(SliceMask("liver", 0, n, desk.left, 0.9, stage=stage) for n in indices))
    desk.client.run.end()
    while desk.predict.is_running:
        desk.predict.poll()


def test_a_second_prediction_empties_what_it_no_longer_finds_unless_a_person_has_changed_it(
    a_desk: Desk,
) -> None:
    predict(a_desk, 1, 2, 4, 5, 6)
    by_hand = np.zeros_like(a_desk.left)
    by_hand[9:11, 9:14] = True
    a_desk.draw(a_desk.liver, 6, by_hand)
    first = a_desk.state()
    predict(a_desk, 2, 4)
    liver = a_desk.state()[0]
    assert nodes.annotated_slices(liver, 0) == [2, 3, 4, 6]
    np.testing.assert_array_equal(liver[6], by_hand)
    coarse = a_desk.predict._find_stage("coarse")
    found = coarse.GetSegmentation().GetNthSegmentID(0)
    assert nodes.annotated_slices(nodes.read_segment(coarse, found, a_desk.volume), 0) == [2, 4]
    a_desk.session.undo()
    np.testing.assert_array_equal(a_desk.state(), first)


def test_a_prediction_ends_though_an_earlier_one_is_brought_back_meanwhile(a_desk: Desk) -> None:
    predict(a_desk, 2, 4, 6)
    a_desk.session.undo()
    a_desk.predict.segment_everything("liver")
    a_desk.session.redo()
    a_desk.client.run.say(*(SliceMask("liver", 0, n, a_desk.left, 0.9, stage="final") for n in (2, 5)))
    a_desk.client.run.end()
    end_s = time.monotonic() + PATIENCE_S
    while a_desk.predict.is_running:
        a_desk.predict.poll()
        assert time.monotonic() < end_s, "the run does not end"
    assert nodes.annotated_slices(a_desk.state()[0], 0) == [2, 3, 4, 5, 6]


def test_renaming_the_volume_keeps_its_previews(a_desk: Desk) -> None:
    place = a_desk.click(5)
    a_desk.answer()
    volume = a_desk.session.volume()
    a_desk.volume_node.SetName("CT of the thorax")
    a_desk.session.poll()
    assert a_desk.session.prompts.previews.keys() == {place}
    assert a_desk.session.volume() is volume


def test_an_answer_that_the_segment_editor_does_not_let_be_written_can_be_accepted_later(
    a_desk: Desk,
) -> None:
    area = a_desk.node.GetSegmentation().AddEmptySegment("", "area")
    a_desk.draw(area, 5, np.ones_like(a_desk.left))
    a_desk.editor.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment)
    a_desk.editor.SetMaskSegmentID(area)
    a_desk.click(5)
    a_desk.answer()
    a_desk.node.GetSegmentation().RemoveSegment(area)
    with pytest.raises(InputError):
        a_desk.session.prompts.accept()
    a_desk.editor.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere)
    a_desk.session.prompts.accept()
    np.testing.assert_array_equal(a_desk.state()[0][5], a_desk.left)


def test_an_image_that_changes_between_two_looks_has_its_answer_asked_for_again(a_desk: Desk) -> None:
    before = a_desk.state()
    a_desk.click(5)
    a_desk.answer()
    asked = len(a_desk.client.asked)
    give_another_image(a_desk)
    a_desk.session.prompts.accept()
    assert len(a_desk.client.asked) == asked + 1
    np.testing.assert_array_equal(a_desk.state(), before)


def test_a_segmentation_that_is_removed_takes_its_previews_along(a_desk: Desk) -> None:
    a_desk.click(5)
    a_desk.answer()
    a_desk.scene.RemoveNode(a_desk.node)
    a_desk.session.poll()
    assert a_desk.scene.GetFirstNodeByName("MedSSLSegment preview") is None
    assert a_desk.session.prompts.previews == {}


def test_previews_of_two_segments_on_one_slice_are_both_seen_and_each_is_accepted(a_desk: Desk) -> None:
    prompts = a_desk.session.prompts
    a_desk.click(5)
    a_desk.answer()
    spleen = Place(a_desk.spleen, 0, 5)
    prompts.add_point(a_desk.spleen, position_ras_mm(a_desk.volume, spleen, (9.0, 4.0)).tolist(), 0, True)
    a_desk.client.run.say(SliceMask(a_desk.spleen, 0, 5, a_desk.right, 0.9))
    a_desk.client.run.end()
    a_desk.session.poll()
    shown = prompts._node
    for segment, mask in ((a_desk.liver, a_desk.left), (a_desk.spleen, a_desk.right)):
        np.testing.assert_array_equal(nodes.read_segment(shown, segment, a_desk.volume)[5], mask)
    prompts.accept()
    np.testing.assert_array_equal(nodes.read_segment(shown, a_desk.liver, a_desk.volume)[5], a_desk.left)
    assert not nodes.read_segment(shown, a_desk.spleen, a_desk.volume).any()
    np.testing.assert_array_equal(a_desk.state()[1][5], a_desk.right)


def test_that_an_answer_replaces_what_was_drawn_by_hand_is_said_and_of_an_older_answer_it_is_not(
    a_desk: Desk,
) -> None:
    by_hand = np.zeros_like(a_desk.left)
    by_hand[9:11, 9:14] = True
    a_desk.draw(a_desk.liver, 5, by_hand)
    said = "What was drawn on the slice was replaced; undo brings it back."
    for is_drawn in (True, False):
        a_desk.click(5)
        a_desk.answer()
        a_desk.session.prompts.accept()
        assert (said in a_desk.session.prompts.message) == is_drawn
        a_desk.left = np.roll(a_desk.left, 2, axis=1)


def test_undoing_an_answer_takes_its_clicks_back_and_redo_brings_them_back(a_desk: Desk) -> None:
    prompts = a_desk.session.prompts
    for _ in range(2):
        place = a_desk.click(5)
        a_desk.answer()
        prompts.accept()
    for expected in (1, 0):
        a_desk.session.undo()
        assert len(prompts.marks(place)) == expected
    for expected in (1, 2):
        a_desk.session.redo()
        assert len(prompts.marks(place)) == expected
    a_desk.session.undo()
    a_desk.session.undo()
    a_desk.click(5)
    assert len(a_desk.client.asked[-1]["prompt"].points_xy_px) == 1


@pytest.mark.parametrize("what", ["a prompt", "a prediction", "a look at the stages"])
def test_what_was_worked_on_leaves_the_memory_when_it_is_closed(
    what: str, a_scene: Any, a_client: Any
) -> None:
    session = Session(a_scene.scene, a_scene.logic, a_client)
    desk = PredictDesk(session)
    voxels = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)
    volume_node = nodes.add_volume_node(a_scene.scene, Volume(voxels, np.eye(4), "CT"))
    node = nodes.create_segmentation_node(a_scene.scene, volume_node)
    liver = node.GetSegmentation().AddEmptySegment("", "liver")
    gone: list[str] = []
    volume_node.GetImageData().AddObserver("DeleteEvent", lambda *_: gone.append("image"))
    node.AddObserver("DeleteEvent", lambda *_: gone.append("segmentation"))
    session.choose(volume_node, node)
    session.volume()
    if what == "a prompt":
        session.prompts.add_point(liver, [4.0, 3.0, 2.0], 0, True)
        session.prompts.drop()
    elif what == "a prediction":
        desk.predict("liver")
        desk.poll()
        desk.cancel()
    else:
        assert not is_stage(node)
    session.choose(None, None)
    del volume_node, node
    a_scene.scene.Clear(0)
    vars(a_client).clear()  # a real client's requests go to another process
    gc.collect()
    assert sorted(gone) == ["image", "segmentation"]

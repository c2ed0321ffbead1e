"""Prompts: they stay with their slice and in the scene, are answered on the spot, and become reference slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

import vtk  # noqa: E402
from medssl.errors import InputError, WorkerDied  # noqa: E402
from medssl.results import SliceMask  # noqa: E402
from medssl.scene import nodes, tags  # noqa: E402
from medssl.scene.prompting import Place, PromptBook, axis_of_normal, place_of, position_ras_mm  # noqa: E402
from medssl.scene.session import Session  # noqa: E402


class Desk:
    def __init__(self, a_scene: Any, client: Any, grid: np.ndarray) -> None:
        self.scene, self.client = a_scene, client
        self.volume_node = a_scene.add_volume(grid)
        self.node, (self.liver,) = a_scene.add_segmentation(self.volume_node, "liver")
        self.session = Session(a_scene.scene, a_scene.logic, client)
        self.session.choose(self.volume_node, self.node)
        self.volume = self.session.volume()
        self.prompts = self.session.prompts

    def at(self, index: int, column: float, row: float, axis: int = 0) -> list[float]:
        return position_ras_mm(self.volume, Place(self.liver, axis, index), (column, row)).tolist()

    def click(self, index: int, column: float, row: float, positive: bool = True, axis: int = 0) -> Place:
        return self.prompts.add_point(self.liver, self.at(index, column, row, axis), axis, positive)

    def answer(self, confidence: float = 0.8, first_row: int = 2) -> np.ndarray:
        prompt = self.client.asked[-1]["prompt"]
        shape = [n for a, n in enumerate(self.volume.shape_kji) if a != prompt.axis]
        mask = np.zeros(shape, bool)
        mask[first_row:6, 3:8] = True
        self.client.run.say(SliceMask(self.liver, prompt.axis, prompt.index, mask, confidence))
        self.client.run.end()
        self.session.poll()
        return mask

    def masks(self) -> np.ndarray:
        return nodes.read_segment(self.node, self.liver, self.volume)


@pytest.fixture
def a_desk(a_scene: Any, a_client: Any) -> Desk:
    return Desk(a_scene, a_client, a_scene.grids["oblique"])


def test_a_click_lands_on_the_slice_and_pixel_under_it_on_every_grid(
    a_scene: Any, a_client: Any, a_grid: np.ndarray
) -> None:
    desk = Desk(a_scene, a_client, a_grid)
    for axis, index, column, row in ((0, 3, 4.0, 7.0), (1, 5, 11.0, 2.0), (2, 9, 6.0, 4.0)):
        assert desk.click(index, column, row, axis=axis) == Place(desk.liver, axis, index)
        prompt = a_client.asked[-1]["prompt"]
        np.testing.assert_allclose(prompt.points_xy_px, [[column, row]], atol=1e-4)


def test_a_click_beside_the_volume_is_refused(a_desk: Desk) -> None:
    with pytest.raises(InputError, match="outside the volume"):
        place_of(a_desk.volume, a_desk.liver, [1e4, 0, 0], 0)


def test_an_oblique_view_prompts_the_slices_it_is_closest_to(a_desk: Desk) -> None:
    steps = a_desk.volume.ijk_to_ras[:3, :3] / np.linalg.norm(a_desk.volume.ijk_to_ras[:3, :3], axis=0)
    for axis in (0, 1, 2):
        tilted = steps[:, 2 - axis] + 0.3 * steps[:, (3 - axis) % 3]
        assert axis_of_normal(a_desk.volume, tilted) == axis


def test_the_preview_is_shown_and_only_accepting_changes_the_segment(a_desk: Desk) -> None:
    a_desk.click(3, 5, 4)
    mask = a_desk.answer()
    preview = a_desk.scene.scene.GetFirstNodeByName("MedSSLSegment preview")
    assert not preview.GetSaveWithScene()
    assert not preview.GetDisplayNode().GetSaveWithScene()
    shown = nodes.read_segment(preview, a_desk.liver, a_desk.volume)
    np.testing.assert_array_equal(shown[3], mask)
    assert not a_desk.masks().any()
    a_desk.prompts.accept()
    np.testing.assert_array_equal(a_desk.masks()[3], mask)
    assert not nodes.read_segment(preview, a_desk.liver, a_desk.volume).any()
    assert nodes.annotated_slices(nodes.read_drawn(a_desk.node, a_desk.liver, a_desk.volume)[1], 0)
    (step,) = tags.steps(a_desk.node, a_desk.liver)
    assert (step.what, step.references) == ("prompt", (3,))
    a_desk.session.undo()
    assert not a_desk.masks().any()


_ONLY_A_CLICK = "Only the preview of a single click or box has other answers"


def test_another_answer_to_a_click_can_be_asked_for_taken_back_and_corrected(
    a_desk: Desk, a_client: Any
) -> None:
    with pytest.raises(InputError, match=_ONLY_A_CLICK):
        a_desk.prompts.show_another()
    place = a_desk.click(3, 5, 4)
    a_desk.prompts.show_another()
    assert a_client.asked[-1]["prompt"].choice == 0, "its first answer is under way"
    a_desk.answer(first_row=1)
    assert a_desk.prompts.message.endswith("A shows another answer.")

    a_desk.prompts.show_another()
    a_desk.prompts.show_another()
    assert a_client.asked[-1]["prompt"].choice == 1, "one key press at a time"
    a_desk.answer(first_row=2)
    assert a_desk.prompts.message.endswith("A shows another answer.")
    a_desk.prompts.show_another()
    assert a_client.asked[-1]["prompt"].choice == 2
    a_desk.answer(first_row=3)
    a_desk.prompts.take_back()
    assert a_client.asked[-1]["prompt"].choice == 1
    a_desk.answer(first_row=2)

    a_desk.click(3, 7, 4)
    corrected = a_client.asked[-1]["prompt"]
    assert (corrected.choice, len(corrected.points_xy_px)) == (1, 2)
    a_desk.answer(first_row=2)
    assert not a_desk.prompts.has_another
    a_desk.prompts.take_back()
    a_desk.answer(first_row=2)
    assert a_desk.prompts.message.endswith("A shows another answer."), "though the correction changed nothing"
    a_desk.prompts.accept()
    assert not a_desk.prompts.has_another
    with pytest.raises(InputError, match=_ONLY_A_CLICK):
        a_desk.prompts.show_another()
    assert PromptBook(a_desk.node).places() == (place,)


def test_another_answer_to_a_box_can_be_asked_for_until_points_correct_it(
    a_desk: Desk, a_client: Any
) -> None:
    a_desk.prompts.add_box(a_desk.liver, a_desk.at(3, 3, 2), a_desk.at(3, 8, 6), 0)
    a_desk.answer(first_row=1)
    assert a_desk.prompts.message.endswith("A shows another answer.")
    a_desk.prompts.show_another()
    asked = a_client.asked[-1]["prompt"]
    assert (asked.choice, asked.box_xyxy_px is not None) == (1, True)
    a_desk.answer(first_row=2)
    a_desk.click(3, 5, 4)
    assert a_client.asked[-1]["prompt"].choice == 1
    a_desk.answer(first_row=3)
    assert not a_desk.prompts.has_another


def test_where_a_click_has_one_answer_that_is_said_and_nothing_needs_to_be_taken_back(a_desk: Desk) -> None:
    place = a_desk.click(3, 5, 4)
    a_desk.answer()
    for _ in range(3):
        a_desk.prompts.show_another()
        a_desk.answer()
        assert a_desk.prompts.message.startswith("There is no other answer")
    assert [mark.kind for mark in a_desk.prompts.marks(place)] == ["point"]


def test_a_click_whose_preview_is_not_shown_has_no_other_answer_yet(a_desk: Desk, a_client: Any) -> None:
    a_desk.click(3, 5, 4)
    a_desk.answer()
    a_desk.prompts.leave()
    a_desk.prompts.restore()
    assert a_desk.prompts.place is not None
    assert not a_desk.prompts.has_another
    a_desk.prompts.accept()
    assert a_client.asked[-1]["prompt"].choice == 0
    a_desk.answer()
    assert a_desk.prompts.has_another


def test_a_dicom_seg_that_slicer_exports_says_that_a_program_took_part_until_that_is_undone(
    a_desk: Desk,
) -> None:
    def told() -> dict[str, str]:
        value, segment = vtk.reference(""), a_desk.node.GetSegmentation().GetSegment(a_desk.liver)
        names = ("Type", "Name")
        return {n: str(value) for n in names if segment.GetTag(f"DICOM.SegmentAlgorithm{n}", value)}

    assert told() == {}
    a_desk.click(3, 5.0, 4.0)
    a_desk.answer()
    a_desk.prompts.accept()
    assert told() == {"Type": "SEMIAUTOMATIC", "Name": "MedSSLSegment medssl-nano"}
    a_desk.session.undo()
    assert told() == {}


def test_the_preview_is_hidden_from_lists_and_files_before_they_hear_of_it(a_desk: Desk) -> None:
    seen: list[tuple[str, bool, bool]] = []
    scene = a_desk.scene.scene

    def look(*_: Any) -> None:
        node = scene.GetNthNode(scene.GetNumberOfNodes() - 1)
        if node.IsA("vtkMRMLSegmentationNode"):
            seen.append((node.GetName(), bool(node.GetHideFromEditors()), bool(node.GetSaveWithScene())))

    scene.AddObserver(scene.NodeAddedEvent, look)
    a_desk.click(3, 5.0, 4.0)
    a_desk.answer()
    assert seen == [("MedSSLSegment preview", True, False)]
    preview = scene.GetFirstNodeByName("MedSSLSegment preview")
    assert not preview.GetDisplayNode().GetSaveWithScene()


def test_the_preview_is_an_outline_under_which_the_image_can_be_seen(a_desk: Desk) -> None:
    a_desk.click(3, 5, 4)
    a_desk.answer()
    display = a_desk.scene.scene.GetFirstNodeByName("MedSSLSegment preview").GetDisplayNode()
    assert display.GetVisibility2DFill()
    assert display.GetVisibility2DOutline()
    assert display.GetOpacity2DFill() < 0.25 < display.GetOpacity2DOutline() == 1.0


def test_prompts_stay_with_their_slice_and_can_be_taken_back_one_by_one(a_desk: Desk) -> None:
    first = a_desk.click(3, 5, 4)
    a_desk.click(3, 9, 9, positive=False)
    second = a_desk.click(5, 6, 6)
    assert [len(a_desk.prompts.marks(place)) for place in (first, second)] == [2, 1]
    a_desk.prompts.ask(first)
    a_desk.prompts.take_back()
    assert a_desk.client.asked[-1]["prompt"].point_labels.tolist() == [1]
    a_desk.prompts.drop()
    assert a_desk.prompts.places() == (second,)


def test_a_preview_that_is_looked_at_again_can_be_accepted_or_dropped(a_desk: Desk) -> None:
    first = a_desk.click(3, 5, 4)
    mask = a_desk.answer(0.8)
    second = a_desk.click(5, 6, 6)
    a_desk.prompts.return_to(0, 3)
    assert a_desk.prompts.place == second  # its answer is still under way
    a_desk.answer(0.6)
    a_desk.prompts.accept()
    assert a_desk.prompts.message == "Accepted. There is another preview on slice 3."
    a_desk.prompts.return_to(0, 4)
    assert a_desk.prompts.place == second
    a_desk.prompts.return_to(0, 3)
    assert (a_desk.prompts.place, a_desk.prompts.message) == (
        first,
        "80% sure. Enter accepts, Esc drops. A shows another answer.",
    )
    a_desk.prompts.accept()
    np.testing.assert_array_equal(a_desk.masks()[3], mask)
    assert a_desk.prompts.message == "Accepted."


def test_a_new_click_cancels_the_answer_to_the_one_before(a_desk: Desk) -> None:
    a_desk.click(3, 5, 4)
    a_desk.click(3, 6, 4)
    assert a_desk.client.asked[0].ticket.was_cancelled
    assert len(a_desk.client.asked[-1]["prompt"].points_xy_px) == 2


def test_a_box_and_a_scribble_are_prompts_too(a_desk: Desk) -> None:
    a_desk.prompts.add_box(a_desk.liver, a_desk.at(4, 10, 8), a_desk.at(4, 3, 2), 0)
    np.testing.assert_allclose(a_desk.client.asked[-1]["prompt"].box_xyxy_px, [3, 2, 10, 8], atol=1e-3)
    way = [a_desk.at(4, 5, 5), a_desk.at(4, 9, 5)]
    a_desk.prompts.add_scribble(a_desk.liver, way, 0, False)
    prompt = a_desk.client.asked[-1]["prompt"]
    np.testing.assert_allclose(prompt.points_xy_px[:, 0], [5, 6, 7, 8, 9], atol=1e-3)
    assert prompt.point_labels.tolist() == [0] * 5


def test_negative_points_alone_ask_nothing(a_desk: Desk) -> None:
    a_desk.click(3, 5, 4, positive=False)
    assert a_desk.client.asked == []
    assert a_desk.prompts.message == "Put a point or a box on the object."


def test_a_worker_that_dies_leaves_the_prompts_and_says_so(a_desk: Desk) -> None:
    place = a_desk.click(3, 5, 4)
    a_desk.client.run.fail(WorkerDied("The worker stopped."))
    a_desk.session.poll()
    assert a_desk.prompts.message == "The worker stopped."
    assert len(a_desk.prompts.marks(place)) == 1


def test_prompts_and_provenance_survive_saving_and_opening_the_scene(a_desk: Desk, tmp_path: Any) -> None:
    place = a_desk.click(3, 5, 4)
    a_desk.answer(0.75)
    a_desk.prompts.accept()
    a_desk.scene.scene.SetURL(str(tmp_path / "scene.mrml"))
    segmentation_file = str(tmp_path / "liver.seg.nrrd")
    storage = a_desk.scene.scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(segmentation_file)
    a_desk.node.SetAndObserveStorageNodeID(storage.GetID())
    assert storage.WriteData(a_desk.node)
    a_desk.scene.scene.Commit()

    opened = type(a_desk.scene)()
    opened.scene.SetURL(str(tmp_path / "scene.mrml"))
    opened.scene.Connect()
    again = opened.scene.GetFirstNodeByName(a_desk.node.GetName())
    assert len(PromptBook(again).marks(place)) == 1
    assert [step.what for step in tags.steps(again, a_desk.liver)] == ["prompt"]
    assert tags.confidences(again, a_desk.liver) == {(0, 3): 0.75}


def test_removing_the_segmentation_under_an_answer_is_no_error(a_desk: Desk) -> None:
    a_desk.click(3, 5, 4)
    a_desk.scene.scene.RemoveNode(a_desk.node)
    a_desk.answer()
    a_desk.session.choose(a_desk.volume_node, None)
    assert a_desk.prompts.previews == {}


def test_after_opening_a_scene_the_prompts_wait_and_the_preview_is_asked_for_when_the_person_goes_on(
    a_scene: Any, a_client: Any, a_desk: Desk
) -> None:
    accepted = a_desk.click(2, 5, 4)
    a_desk.answer()
    a_desk.prompts.accept()
    waiting = a_desk.click(3, 5, 4)
    a_desk.answer()
    assert a_desk.prompts.pending() == (waiting,)

    again = Session(a_scene.scene, a_scene.logic, a_client)
    asked = len(a_client.asked)
    again.choose(a_desk.volume_node, a_desk.node)
    assert again.prompts.place == waiting != accepted
    assert again.prompts.message.startswith("1 slice has prompts from before")
    assert len(a_client.asked) == asked
    again.prompts.accept()
    assert len(a_client.asked) == asked + 1
    assert not a_desk.masks()[3].any()
    a_desk.session, a_desk.prompts = again, again.prompts
    mask = a_desk.answer()
    again.prompts.accept()
    np.testing.assert_array_equal(a_desk.masks()[3], mask)
    assert again.prompts.pending() == ()


def test_accepting_while_an_answer_is_under_way_takes_that_answer_and_not_the_preview_before_it(
    a_desk: Desk,
) -> None:
    told: list[str] = []
    a_desk.prompts.accepted = lambda: told.append(a_desk.prompts.message)
    a_desk.click(3, 5, 4)
    before = a_desk.answer()
    a_desk.click(3, 7, 6)
    a_desk.prompts.accept()
    assert not a_desk.masks()[3].any()
    mask = a_desk.answer(first_row=4)
    assert (mask != before).any()
    np.testing.assert_array_equal(a_desk.masks()[3], mask)
    assert told == ["Accepted."]
    assert a_desk.prompts.previews == {}


@pytest.mark.parametrize("changes_its_mind", ["drop", "another prompt"])
def test_what_follows_an_early_accept_takes_it_back(a_desk: Desk, changes_its_mind: str) -> None:
    a_desk.click(3, 5, 4)
    a_desk.prompts.accept()
    if changes_its_mind == "drop":
        a_desk.prompts.drop()
        a_desk.session.poll()
        assert a_desk.prompts.previews == {}
    else:
        place = a_desk.click(3, 7, 6)
        a_desk.answer()
        assert set(a_desk.prompts.previews) == {place}
    assert not a_desk.masks()[3].any()


def test_restored_prompts_can_be_dropped_and_those_of_a_removed_segment_do_not_come_back(
    a_scene: Any, a_client: Any, a_desk: Desk
) -> None:
    place = a_desk.click(3, 5, 4)
    again = Session(a_scene.scene, a_scene.logic, a_client)
    again.choose(a_desk.volume_node, a_desk.node)
    again.prompts.drop()
    assert again.prompts.marks(place) == ()
    a_desk.click(4, 5, 4)
    a_desk.node.GetSegmentation().RemoveSegment(a_desk.liver)
    assert a_desk.prompts.pending() == ()


@pytest.mark.parametrize("is_answered", [True, False])
def test_the_preview_of_a_segment_that_is_removed_goes_with_it_and_its_prompts_come_back(
    a_desk: Desk, is_answered: bool
) -> None:
    a_desk.session.history.save(a_desk.node)
    spleen = a_desk.node.GetSegmentation().AddEmptySegment("", "spleen")
    place = a_desk.prompts.add_point(spleen, a_desk.at(3, 5, 4), 0, True)
    if is_answered:
        a_desk.answer()
    a_desk.session.undo()
    a_desk.session.poll()
    assert (a_desk.prompts.previews, a_desk.prompts.place, a_desk.prompts.message) == ({}, None, "")
    if is_answered:
        assert not nodes.read_segment(a_desk.prompts._node, spleen, a_desk.volume).any()
    a_desk.session.redo()
    assert a_desk.prompts.place == place
    assert "Enter asks for the preview again" in a_desk.prompts.message


def test_prompts_are_answered_on_the_sessions_device(a_desk: Desk) -> None:
    a_desk.session.device = "cpu"
    a_desk.click(3, 5, 4)
    assert a_desk.client.asked[-1]["device"] == "cpu"


def test_while_one_word_is_under_way_only_the_newest_slice_in_view_is_told_next(a_desk: Desk) -> None:
    a_desk.client.is_ready_at_once = False
    prompts = a_desk.session.prompts
    for index in (1, 2, 3, 4):
        prompts.look_at(0, index)
    assert a_desk.client.expected == [(0, 1)]
    assert prompts.is_telling
    a_desk.session.poll()
    assert len(a_desk.client.asked) == 1
    a_desk.client.answer("expect")
    a_desk.session.poll()
    a_desk.session.poll()
    assert a_desk.client.expected == [(0, 1), (0, 4)]


def test_where_the_mouse_rests_the_worker_is_told_the_very_prompt_that_a_click_asks(a_desk: Desk) -> None:
    a_desk.click(3, 5, 4)
    a_desk.answer()
    a_desk.prompts.foresee(a_desk.liver, a_desk.at(3, 9, 2), 0, False)
    told = a_desk.client.asked_for("expect")[-1]
    assert (told["axis"], told["index"]) == (0, 3)
    assert len(a_desk.prompts.marks(Place(a_desk.liver, 0, 3))) == 1, "nothing was placed"
    a_desk.click(3, 9, 2, positive=False)
    asked = a_desk.client.asked[-1]
    assert asked.name == "predict"
    assert asked["prompt"].is_like(told["prompt"])
    assert (asked["model"], asked["device"]) == (told["model"], told["device"])


def test_a_mouse_that_rests_where_nothing_can_be_asked_tells_nobody(a_desk: Desk) -> None:
    prompts = a_desk.prompts
    prompts.foresee(a_desk.liver, [1e4, 0.0, 0.0], 0, True)
    prompts.foresee(a_desk.liver, a_desk.at(3, 9, 2), 0, False)  # beside an object that nobody has pointed at
    a_desk.click(3, 5, 4)
    prompts.foresee(a_desk.liver, a_desk.at(3, 9, 2), 0, True)  # an answer is under way
    a_desk.answer()
    a_desk.session.choose(None, None)
    prompts.foresee(a_desk.liver, [0.0, 0.0, 0.0], 0, True)
    assert a_desk.client.asked_for("expect") == []


def test_looking_at_slices_without_a_volume_tells_nobody(a_desk: Desk) -> None:
    a_desk.session.choose(None, None)
    a_desk.session.prompts.look_at(0, 1)
    a_desk.session.poll()
    assert a_desk.client.asked == []


@pytest.mark.parametrize("gone", ["volume_node", "node"])
def test_an_answer_that_comes_after_its_nodes_were_removed_is_dropped_in_one_sentence(
    a_desk: Desk, gone: str
) -> None:
    a_desk.click(3, 6, 4)
    a_desk.scene.scene.RemoveNode(getattr(a_desk, gone))
    a_desk.answer()
    assert not a_desk.prompts.is_waiting
    assert a_desk.prompts.previews == {}
    assert a_desk.prompts.message == (
        "The prompt was not answered because its volume or segmentation was removed."
    )


def test_a_preview_whose_volume_was_removed_can_still_be_dropped(a_desk: Desk) -> None:
    place = a_desk.click(3, 6, 4)
    a_desk.answer()
    a_desk.scene.scene.RemoveNode(a_desk.volume_node)
    a_desk.prompts.drop()
    assert a_desk.prompts.marks(place) == ()
    assert a_desk.prompts.previews == {}

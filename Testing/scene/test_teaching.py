"""Cases, runs, models and predictions: what a front end asks for, and what it sees of the answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from fake_client import FakeClient  # noqa: E402
from medssl.errors import InputError, WorkerDied  # noqa: E402
from medssl.results import SliceMask, UncertaintyMap  # noqa: E402
from medssl.scene import nodes, tags, writing  # noqa: E402
from medssl.scene.layers import array_kji  # noqa: E402
from medssl.scene.predicting import PredictDesk  # noqa: E402
from medssl.scene.session import Session  # noqa: E402
from medssl.scene.teaching import TeachDesk  # noqa: E402
from medssl.volume import patient_key  # noqa: E402


class Desk:
    def __init__(self, a_scene: Any) -> None:
        self.client = FakeClient()
        self.volume_node = a_scene.add_volume(a_scene.grids["oblique"])
        self.node, (self.liver,) = a_scene.add_segmentation(self.volume_node, "liver")
        self.session = Session(a_scene.scene, a_scene.logic, self.client)
        self.session.choose(self.volume_node, self.node)
        self.volume = self.session.volume()
        self.mask = np.zeros((12, 15), bool)
        self.mask[3:8, 4:9] = True
        writing.write_slices(self.node, self.liver, self.volume, 0, {3: self.mask})
        self.look()
        self.teach, self.predict = TeachDesk(self.session), PredictDesk(self.session)

    def look(self) -> None:
        self.session.look()
        while self.session.is_looking:
            self.session.poll()

    def teach_all(self) -> Any:
        """Make a case of all that is drawn; returns what the worker is asked."""
        self.look()
        self.teach.add_case(self.teach.propose())
        self.settle()
        (asked,) = self.client.asked_for("add_case")
        return asked

    def settle(self) -> None:
        while self.teach._packing is not None:
            self.teach.poll()
        self.teach.poll()


@pytest.fixture
def a_desk(a_scene: Any) -> Desk:
    return Desk(a_scene)


def test_a_case_says_which_dicom_patient_it_is_of_but_not_who(a_desk: Desk) -> None:
    assert a_desk.teach_all()["patient"] == ""
    scene = a_desk.volume_node.GetScene()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Doe")
    hierarchy.SetItemAttribute(patient, "DICOM.PatientID", "MRN-4711 ")
    hierarchy.CreateItem(hierarchy.CreateStudyItem(patient, "CT"), a_desk.volume_node)
    a_desk.teach.add_case(a_desk.teach.propose())
    a_desk.settle()
    assert a_desk.client.asked_for("add_case")[-1]["patient"] == patient_key("MRN-4711")
    assert "MRN" not in patient_key("MRN-4711")


def test_the_slices_a_person_drew_are_proposed_and_sent_as_a_case(a_desk: Desk) -> None:
    proposal = a_desk.teach.propose()
    assert proposal.text() == "liver: slices 3"
    a_desk.teach.add_case(proposal)
    a_desk.settle()
    (asked,) = a_desk.client.asked_for("add_case")
    assert (asked["volume"], [s.name for s in asked["segments"]]) == (a_desk.volume, ["liver"])
    np.testing.assert_array_equal(asked["labels_kji"][3] == 1, a_desk.mask)
    assert asked["vouched"][0].indices == (3,)
    a_desk.client.answer("add_case", case={"summary": "1 slice of liver"})
    a_desk.settle()
    assert a_desk.teach.message == "Kept: 1 slice of liver"


def test_the_same_volume_again_updates_its_case(a_desk: Desk) -> None:
    a_desk.teach.cases = [{"id": "c1", "volume_hash": a_desk.volume.content_hash}]
    a_desk.teach.add_case(a_desk.teach.propose())
    a_desk.settle()
    assert a_desk.client.asked_for("update_case")[0]["case"] == "c1"


def test_a_run_is_followed_by_what_is_new_in_it(a_desk: Desk) -> None:
    run = {"path": "/runs/1", "state": "running", "message": "", "kind": "finetune", "has_result": False}
    a_desk.teach.follow("/runs/1")
    first = [{"type": "metric", "step": 5, "values": {"dice": 0.5}}, {"type": "log", "text": "hello"}]
    a_desk.client.answer("read_run", run=run, events=first, first_event=0, picture=None, picture_step=-1)
    a_desk.teach.poll()
    a_desk.teach.look()
    assert (a_desk.client.asked[-1]["after_event"], a_desk.client.asked[-1]["after_picture"]) == (2, -1)
    more = [{"type": "metric", "step": 10, "values": {"dice": 0.8}}]
    a_desk.client.answer("read_run", run=run, events=more, first_event=2, picture=None, picture_step=-1)
    a_desk.teach.poll()
    assert a_desk.teach.curve("dice").values == (0.5, 0.8)


def test_what_was_said_during_a_run_does_not_stand_for_how_it_ended(a_desk: Desk) -> None:
    run = {"path": "/runs/1", "state": "running", "message": "", "kind": "finetune", "has_result": False}
    nothing = {"events": [], "first_event": 0, "picture": None, "picture_step": -1}
    a_desk.teach.follow("/runs/1")
    a_desk.client.answer("read_run", run=run, **nothing)
    a_desk.teach.poll()
    a_desk.teach.message = "Kept: a liver"
    a_desk.teach.look()
    a_desk.client.answer("read_run", run={**run, "state": "done"}, **nothing)
    a_desk.teach.poll()
    assert a_desk.teach.message == ""
    assert a_desk.client.asked_for("list_encoders") == []


def test_a_pretraining_that_ends_has_its_encoder_listed(a_desk: Desk) -> None:
    run = {"path": "/runs/1", "state": "running", "message": "", "kind": "pretrain", "has_result": False}
    nothing = {"events": [], "first_event": 0, "picture": None, "picture_step": -1}
    a_desk.teach.follow("/runs/1")
    for state in ("running", "done"):
        a_desk.client.answer("read_run", run={**run, "state": state}, **nothing)
        a_desk.teach.poll()
        a_desk.teach.look()
    a_desk.client.answer("list_encoders", encoders=[{"path": "/runs/1/encoder"}], problems=[])
    a_desk.teach.poll()
    assert a_desk.teach.best_encoder == "/runs/1/encoder"


def test_an_error_of_the_worker_becomes_the_message(a_desk: Desk) -> None:
    a_desk.teach.refresh()
    for asked in a_desk.client.asked:
        asked.ticket.fail(WorkerDied("The worker was killed."))
    a_desk.teach.poll()
    assert a_desk.teach.message == "The worker was killed."
    assert not a_desk.teach.is_waiting


def test_every_stage_is_kept_beside_the_final_one_and_shown_in_turn(a_desk: Desk) -> None:
    a_desk.predict.segment_everything("liver")
    ticket = a_desk.client.run
    for stage in ("coarse", "refined", "propagated", "final"):
        ticket.say(SliceMask("liver", 0, 5, a_desk.mask, 0.9, stage=stage))
    ticket.end()
    while a_desk.predict.is_running:
        a_desk.predict.poll()
    assert a_desk.predict.stages() == ["coarse", "refined", "propagated", "final"]
    np.testing.assert_array_equal(
        nodes.read_segment(a_desk.node, a_desk.liver, a_desk.volume)[5], a_desk.mask
    )
    assert [a_desk.predict.show_next() for _ in range(4)] == ["coarse", "refined", "propagated", "final"]
    assert [step.what for step in tags.steps(a_desk.node, a_desk.liver)] == ["segment"]
    a_desk.session.undo()
    assert not nodes.read_segment(a_desk.node, a_desk.liver, a_desk.volume)[5].any()


def test_a_prediction_leaves_the_slices_alone_that_a_person_drew(a_desk: Desk) -> None:
    a_desk.predict.predict("liver")
    ticket = a_desk.client.run
    other = ~a_desk.mask
    ticket.say(*(SliceMask("liver", 0, index, other, 0.9) for index in (3, 4)))
    ticket.end()
    while a_desk.predict.is_running:
        a_desk.predict.poll()
    found = nodes.read_segment(a_desk.node, a_desk.liver, a_desk.volume)
    np.testing.assert_array_equal(found[3], a_desk.mask)
    np.testing.assert_array_equal(found[4], other)
    assert a_desk.predict.message == "Found 1 segment. 1 drawn slice stays as it is."
    a_desk.look()
    assert [each.index for each in a_desk.session.references()] == [3]


def test_a_slice_that_is_drawn_just_before_or_under_a_prediction_is_not_overwritten_by_it(
    a_desk: Desk,
) -> None:
    by_hand = np.roll(a_desk.mask, 3, axis=1)
    writing.write_slices(a_desk.node, a_desk.liver, a_desk.volume, 0, {4: by_hand})
    a_desk.predict.predict("liver")
    a_desk.predict.poll()
    writing.write_slices(a_desk.node, a_desk.liver, a_desk.volume, 0, {5: by_hand})
    other = ~a_desk.mask
    a_desk.client.run.say(*(SliceMask("liver", 0, index, other, 0.9) for index in (3, 4, 5, 6)))
    a_desk.client.run.end()
    while a_desk.predict.is_running:
        a_desk.predict.poll()
    found = nodes.read_segment(a_desk.node, a_desk.liver, a_desk.volume)
    for index, mask in ((3, a_desk.mask), (4, by_hand), (5, by_hand), (6, other)):
        np.testing.assert_array_equal(found[index], mask)
    assert a_desk.predict.message == (
        "Found 1 segment. 2 drawn slices stay as they are. 1 slice that was drawn meanwhile stays as drawn."
    )


def test_slices_a_person_drew_or_emptied_are_handed_on_and_stay_as_they_are(a_desk: Desk) -> None:
    filled = dict.fromkeys((2, 4), a_desk.mask)
    writing.write_predicted_slices(a_desk.node, a_desk.liver, a_desk.volume, 0, filled)
    writing.write_slices(a_desk.node, a_desk.liver, a_desk.volume, 0, {4: np.zeros_like(a_desk.mask)})
    a_desk.look()
    a_desk.predict.segment_everything("liver")
    asked = a_desk.client.asked[-1]
    assert (asked["vouched"], asked["absent"]) == ({"liver": [3, 4]}, {"liver": [4]})
    other = ~a_desk.mask
    asked.ticket.say(*(SliceMask("liver", 0, index, other, 0.9, stage="final") for index in (2, 3, 4, 5)))
    asked.ticket.end()
    while a_desk.predict.is_running:
        a_desk.predict.poll()
    found = nodes.read_segment(a_desk.node, a_desk.liver, a_desk.volume)
    np.testing.assert_array_equal(found[3], a_desk.mask)
    assert not found[4].any()
    np.testing.assert_array_equal(found[[2, 5]], [other, other])
    a_desk.look()
    assert not {each.index for each in a_desk.session.suggestions()} & {3, 4, 5}


def test_slices_across_another_axis_are_not_handed_on(a_desk: Desk) -> None:
    a_desk.predict.segment_everything("liver", {"axis": 1})
    assert (a_desk.client.asked[-1]["vouched"], a_desk.client.asked[-1]["absent"]) == ({}, {})


def test_a_segment_that_was_cleared_as_a_whole_is_found_anew(a_desk: Desk) -> None:
    nothing = np.zeros_like(a_desk.mask)
    writing.write_predicted_slices(a_desk.node, a_desk.liver, a_desk.volume, 0, {4: a_desk.mask})
    writing.write_slices(a_desk.node, a_desk.liver, a_desk.volume, 0, {3: nothing, 4: nothing})
    a_desk.look()
    a_desk.predict.segment_everything("liver")
    assert a_desk.client.asked[-1]["absent"] == {"liver": []}


def test_uncertainty_becomes_a_volume_on_the_same_grid(a_desk: Desk) -> None:
    a_desk.predict.predict("liver", maps=True)
    ticket = a_desk.client.run
    unsure = np.linspace(0, 1, 12 * 15, dtype=np.float32).reshape(12, 15)
    ticket.say(UncertaintyMap.of(0, 4, unsure))
    a_desk.predict.poll()
    shown = array_kji(a_desk.predict.uncertainty_node.GetImageData())
    np.testing.assert_array_equal(shown[4], np.rint(255 * unsure))
    assert not shown[[0, 1, 2, 3, 5, 6]].any()
    a_desk.predict.cancel()
    assert ticket.was_cancelled


def test_nothing_drawn_is_nothing_to_teach(a_scene: Any) -> None:
    desk = Desk(a_scene)
    desk.session.choose(None, None)
    with pytest.raises(InputError, match="No slice is drawn"):
        desk.teach.propose()


def test_the_cost_of_pretraining_is_asked_for_before_it_begins(a_desk: Desk) -> None:
    settings = {"method": "mae", "data": "/scans", "minutes": 60.0}
    a_desk.teach.ask_estimate(settings)
    assert a_desk.teach.is_estimating
    assert a_desk.client.asked_for("estimate_pretrain")[0]["settings"] == settings
    a_desk.client.answer("estimate_pretrain", estimate="10 steps will take about 1 min and 2.0 GB of memory.")
    a_desk.teach.poll()
    assert a_desk.teach.estimate.endswith("2.0 GB of memory.")
    assert not a_desk.teach.is_estimating


def test_changed_settings_and_a_run_that_begins_stop_the_estimate(a_desk: Desk) -> None:
    a_desk.teach.ask_estimate({"method": "mae"})
    first = a_desk.client.run
    a_desk.teach.ask_estimate({"method": "simclr"})
    second = a_desk.client.run
    assert first.was_cancelled
    a_desk.teach.pretrain({"method": "simclr"})
    assert second.was_cancelled
    assert a_desk.client.asked[-1].name == "start_pretrain"


def test_why_nothing_can_be_said_of_the_cost_stands_where_the_cost_would_stand(a_desk: Desk) -> None:
    a_desk.teach.ask_estimate({"method": "mae", "data": "/scans"})
    a_desk.client.run.fail(InputError("The folder /scans holds no scans; choose another one."))
    a_desk.teach.poll()
    assert a_desk.teach.estimate == "The folder /scans holds no scans; choose another one."
    assert a_desk.teach.message == ""
    assert not a_desk.teach.is_estimating


def test_that_the_worker_had_ended_is_no_news_once_it_answers(a_desk: Desk) -> None:
    killed = WorkerDied("The worker was ended by SIGKILL; the next request starts it again.")
    a_desk.teach.follow("runs/1")
    facts = {"events": [], "first_event": 0, "picture": None}
    a_desk.client.answer("read_run", run={"path": "runs/1", "state": "running", "message": ""}, **facts)
    a_desk.settle()
    a_desk.teach.look()
    a_desk.client.run.fail(killed)
    a_desk.settle()
    assert "SIGKILL" in a_desk.teach.message
    a_desk.teach.look()
    a_desk.client.answer("read_run", run={"path": "runs/1", "state": "running", "message": ""}, **facts)
    a_desk.settle()
    assert a_desk.teach.message == ""


def test_a_case_that_was_not_kept_stays_said_while_a_run_is_followed(a_desk: Desk) -> None:
    a_desk.teach.follow("runs/1")
    facts = {"events": [], "first_event": 0, "picture": None}
    a_desk.client.answer("read_run", run={"path": "runs/1", "state": "running", "message": ""}, **facts)
    a_desk.settle()
    a_desk.teach.add_case(a_desk.teach.propose())
    a_desk.settle()
    a_desk.client.run.fail(WorkerDied("The worker was ended by SIGKILL; the next request starts it again."))
    a_desk.settle()
    a_desk.teach.look()
    a_desk.client.answer("read_run", run={"path": "runs/1", "state": "running", "message": ""}, **facts)
    a_desk.settle()
    assert "SIGKILL" in a_desk.teach.message
    a_desk.teach.refresh()
    a_desk.client.answer("list_cases", cases=[])
    a_desk.settle()
    assert a_desk.teach.message == ""


def test_of_overlapping_segments_the_smaller_one_is_taught_and_that_is_said(a_desk: Desk) -> None:
    lesion = a_desk.node.GetSegmentation().AddEmptySegment("", "lesion")
    a_desk.node.GetSegmentation().SetSegmentIndex(lesion, 0)
    small = np.zeros_like(a_desk.mask)
    small[4:6, 5:7] = True
    writing.write_slices(a_desk.node, lesion, a_desk.volume, 0, {3: small})
    asked = a_desk.teach_all()
    label = {segment.name: segment.label for segment in asked["segments"]}
    np.testing.assert_array_equal(asked["labels_kji"][3] == label["lesion"], small)
    np.testing.assert_array_equal(asked["labels_kji"][3] == label["liver"], a_desk.mask & ~small)
    a_desk.client.answer("add_case", case={"summary": "2 segments"})
    a_desk.settle()
    assert a_desk.teach.message == (
        "Kept: 2 segments. Where liver and a smaller segment overlap, only the smaller one is taught."
    )


def test_three_hundred_segments_keep_their_own_labels(a_desk: Desk) -> None:
    places = list(zip(*np.nonzero(np.ones((12, 15), bool)), strict=True))
    for n in range(299):
        segment = a_desk.node.GetSegmentation().AddEmptySegment("", f"vessel {n}")
        mask = np.zeros((12, 15), bool)
        mask[places[n % 150]] = True
        writing.write_slices(a_desk.node, segment, a_desk.volume, 0, {5 + n // 150: mask})
    asked = a_desk.teach_all()
    assert asked["labels_kji"][(6, *places[148])] == 300
    assert len(np.unique(asked["labels_kji"])) == 301

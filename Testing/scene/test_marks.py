"""Marks of prompts: there as long as the prompts wait to be decided, and made once each."""

from __future__ import annotations

from typing import Any

import pytest

slicer = pytest.importorskip("slicer")

from medssl.scene.marks import PromptMarks  # noqa: E402

from .test_preview import Desk  # noqa: E402


def marks_in(desk: Desk) -> list[Any]:
    found = desk.scene.scene.GetNodesByClass("vtkMRMLMarkupsNode")
    return [node for node in found if node.GetName() == "MedSSLSegment prompt mark"]


@pytest.fixture
def a_desk(a_scene: Any, a_client: Any) -> Desk:
    return Desk(a_scene, a_client, a_scene.grids["oblique"])


def test_the_marks_of_a_slice_go_when_its_preview_is_accepted_and_those_of_others_stay(a_desk: Desk) -> None:
    marks = PromptMarks(a_desk.session)
    a_desk.click(5, 6, 6)
    a_desk.answer()
    a_desk.click(3, 5, 4)
    a_desk.click(3, 9, 9, positive=False)
    a_desk.answer()
    marks.show()
    assert len(marks_in(a_desk)) == 3
    a_desk.prompts.accept()
    marks.show()
    (left,) = marks_in(a_desk)
    assert left.GetNthControlPointPositionWorld(0) == pytest.approx(a_desk.at(5, 6, 6))
    a_desk.session.undo()
    marks.show()
    assert marks_in(a_desk) == [left]


def test_one_more_click_on_an_accepted_slice_shows_all_that_the_model_is_asked(a_desk: Desk) -> None:
    marks = PromptMarks(a_desk.session)
    a_desk.click(3, 5, 4)
    a_desk.answer()
    a_desk.prompts.accept()
    a_desk.click(3, 6, 4)
    marks.show()
    assert len(marks_in(a_desk)) == len(a_desk.client.asked[-1]["prompt"].points_xy_px) == 2


def test_a_mark_is_made_once_and_again_only_when_somebody_has_removed_it(a_desk: Desk) -> None:
    marks = PromptMarks(a_desk.session)
    a_desk.click(3, 5, 4)
    marks.show()
    (first,) = marks_in(a_desk)
    a_desk.click(3, 6, 4)
    marks.show()
    assert first in marks_in(a_desk)
    a_desk.scene.scene.RemoveNode(first)
    marks.show()
    assert len(marks_in(a_desk)) == 2
    a_desk.prompts.take_back()
    marks.show()
    assert len(marks_in(a_desk)) == 1

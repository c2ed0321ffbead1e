"""The panel's steps as a person uses them: prompts in views, the strip, keys, correcting, undo of everything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtUiTools")

import vtk
from medssl.results import SliceMask
from PySide6 import QtCore, QtGui, QtTest, QtWidgets
from shibokensupport import feature

feature.set_selection(2, __name__)


def settle(desk: Any) -> None:
    """Let the panel look through the segments."""
    desk.panel.onLook()
    while desk.panel.session.is_looking:
        desk.panel.onTimer()


def place(desk: Any, tool: str, *positions: tuple[float, float, float]) -> None:
    """Click in a slice view with a tool, as Slicer's markups do."""
    button = desk.panel.annotate.tools[tool]
    if not button.checked:
        button.click()
    markups = desk.application.scene.GetFirstNodeByName("MedSSLSegment prompt")
    for position in positions:
        markups.AddControlPointWorld(vtk.vtkVector3d(position))


def answer(desk: Any, index: int) -> np.ndarray:
    mask = np.zeros((8, 10), bool)
    mask[1:6, 2:7] = True
    desk.client.run.events.append(SliceMask(desk.liver, 0, index, mask, 0.87))
    desk.client.run.done = True
    desk.panel.onTimer()
    return mask


def test_a_click_in_a_view_is_answered_accepted_and_undone(a_desk: Any) -> None:
    a_desk.choose_nodes()
    place(a_desk, "positive", (4.0, 3.0, 4.0))
    prompt = a_desk.client.asked[-1]["prompt"]
    assert (prompt.axis, prompt.index, prompt.point_labels.tolist()) == (0, 4, [1])
    np.testing.assert_allclose(prompt.points_xy_px, [[4, 3]])
    place(a_desk, "negative", (9.0, 7.0, 4.0))
    assert a_desk.client.asked[-1]["prompt"].point_labels.tolist() == [1, 0]
    before = a_desk.masks()
    mask = answer(a_desk, 4)
    assert a_desk.ui.promptLabel.text == "87% sure. Enter accepts, Esc drops."
    a_desk.ui.acceptButton.click()
    np.testing.assert_array_equal(a_desk.masks()[4], mask)
    a_desk.ui.undoButton.click()
    np.testing.assert_array_equal(a_desk.masks(), before)
    assert a_desk.application.errors_shown == []


def test_a_box_is_two_clicks_and_taking_back_leaves_nothing(a_desk: Any) -> None:
    a_desk.choose_nodes()
    place(a_desk, "box", (2.0, 1.0, 3.0), (7.0, 6.0, 3.0))
    np.testing.assert_allclose(a_desk.client.asked[-1]["prompt"].box_xyxy_px, [2, 1, 7, 6])
    a_desk.panel.onTimer()
    a_desk.ui.takeBackButton.click()
    assert a_desk.client.run.was_cancelled
    assert not a_desk.ui.takeBackButton.enabled


def test_laying_the_tool_down_gives_the_mouse_back(a_desk: Any) -> None:
    interaction = a_desk.application.scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
    a_desk.ui.boxButton.click()
    assert interaction.GetCurrentInteractionMode() == interaction.Place
    a_desk.ui.positiveButton.click()
    assert not a_desk.ui.boxButton.checked
    a_desk.ui.positiveButton.click()
    assert interaction.GetCurrentInteractionMode() == interaction.ViewTransform


def test_keys_work_only_while_the_module_is_open(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.widget.enter()
    shortcuts = list(a_desk.panel.shortcuts._shortcuts)
    assert {s.key.toString() for s in shortcuts} == set(a_desk.panel.shortcuts.actions)
    next(s for s in shortcuts if s.key.toString() == "B").activated.emit()
    assert a_desk.ui.boxButton.checked
    a_desk.widget.exit()
    assert a_desk.panel.shortcuts._shortcuts == []
    assert not a_desk.ui.boxButton.checked
    assert not a_desk.ui.segmentEditor.observes_views


def test_correcting_a_slice_asks_for_the_stretches_around_it_only(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.ui.propagateButton.click()
    a_desk.arrive(0, 1, 3, 4, 5)
    a_desk.client.run.done = True
    while a_desk.is_running():
        a_desk.panel.onTimer()
    corrected = a_desk.painted.copy()
    corrected[6, 3:8] = True
    a_desk.writing.write_slices(a_desk.segmentation_node, a_desk.liver, a_desk.volume, 0, {4: corrected})
    a_desk.ui.correctButton.click()
    assert a_desk.client.asked[-1]["options"]["changed"] == (4,)
    assert [r.prompt.index for r in a_desk.client.asked[-1]["references"]] == [2, 4]


def test_painting_and_propagating_share_one_history(a_desk: Any) -> None:
    a_desk.choose_nodes()
    before = a_desk.masks()
    a_desk.ui.segmentEditor.saveStateForUndo()
    a_desk.writing.write_slices(a_desk.segmentation_node, a_desk.liver, a_desk.volume, 0, {5: a_desk.painted})
    painted = a_desk.masks()
    a_desk.ui.propagateButton.click()
    a_desk.arrive(0, 1)
    a_desk.client.run.done = True
    while a_desk.is_running():
        a_desk.panel.onTimer()
    a_desk.ui.segmentEditor.undo()
    np.testing.assert_array_equal(a_desk.masks(), painted)
    a_desk.ui.undoButton.click()
    np.testing.assert_array_equal(a_desk.masks(), before)


def test_the_segment_editors_masking_holds_for_what_is_propagated(a_desk: Any) -> None:
    a_desk.choose_nodes()
    spleen = a_desk.segmentation.AddEmptySegment("", "spleen")
    taken = np.zeros((8, 10), bool)
    taken[2:5, 3:5] = True
    a_desk.writing.write_slices(a_desk.segmentation_node, spleen, a_desk.volume, 0, {3: taken})
    editor = a_desk.ui.segmentEditor.mrmlSegmentEditorNode()
    editor.SetMaskMode(sys.modules["slicer"].vtkMRMLSegmentationNode.EditAllowedOutsideAllSegments)
    a_desk.ui.segmentList.item(1).setCheckState(QtCore.Qt.Unchecked)
    a_desk.ui.propagateButton.click()
    a_desk.arrive(3)
    a_desk.client.run.done = True
    while a_desk.is_running():
        a_desk.panel.onTimer()
    np.testing.assert_array_equal(a_desk.masks()[3], a_desk.painted & ~taken)


def test_the_strip_shows_references_and_a_click_goes_to_the_slice(a_desk: Any) -> None:
    a_desk.choose_nodes()
    settle(a_desk)
    strip, went = a_desk.panel.propagate.strip, []
    a_desk.panel.propagate.jumpTo = went.append
    assert list(strip.references) == [2]
    assert a_desk.ui.referenceList.item(0).text() == "liver: axial slice 2"
    strip.resize(600, 46)
    QtTest.QTest.mouseClick(strip, QtCore.Qt.LeftButton, pos=QtCore.QPoint(450, 20))
    assert went[0][2] == 4
    assert strip.current == 4
    a_desk.ui.suggestButton.click()
    assert a_desk.ui.suggestionLabel.text.startswith("Slice ")


def test_the_strip_is_green_where_sure_and_red_where_not(a_desk: Any) -> None:
    strip = a_desk.panel.propagate.strip
    strip.display(np.full(4, 10.0), np.array([1.0, 0.0, np.nan, 0.5]), ())
    strip.resize(400, 46)
    picture = strip.grab().toImage()
    sure, unsure, unknown = (QtGui.QColor(picture.pixel(x, 40)) for x in (50, 150, 250))
    assert sure.green() > 2 * sure.red()
    assert unsure.red() > 2 * unsure.green()
    assert abs(unknown.red() - unknown.green()) < 10


def test_what_set_up_would_do_is_shown_before_it_does_anything(a_desk: Any, own_home: Path) -> None:
    a_desk.ui.setUpButton.click()
    (question,) = a_desk.application.questions_asked
    assert "Where:" in question
    assert "How large: about" in question
    assert a_desk.panel.settings.setUp is None
    assert a_desk.ui.environmentLabel.text == "Not set up yet."


def test_every_button_and_field_says_what_it_is_for(a_desk: Any) -> None:
    kinds = (QtWidgets.QPushButton, QtWidgets.QToolButton, QtWidgets.QComboBox, QtWidgets.QListWidget)
    silent = [
        name
        for name, widget in vars(a_desk.ui).items()
        if isinstance(widget, kinds) and not name.startswith("qt_") and not widget.toolTip
    ]
    assert silent == []

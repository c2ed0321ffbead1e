"""The panel's steps as a person uses them: prompts in views, the strip, keys, correcting, undo of everything."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtUiTools")

import vtk
from medssl.results import SliceMask, UncertaintyMap
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
        QtWidgets.QApplication.processEvents()


def answer(desk: Any, index: int, first_row: int = 1) -> np.ndarray:
    mask = np.zeros((8, 10), bool)
    mask[first_row:6, 2:7] = True
    desk.client.run.say(SliceMask(desk.liver, 0, index, mask, 0.87))
    desk.client.run.end()
    desk.panel.onTimer()
    return mask


METHODS = [
    {
        "name": "mae",
        "title": "MAE",
        "advice": "Vision transformers; the plain baseline.",
        "presets": {
            "cpu": {"backbone": "vit-tiny", "spatial_dims": 2},
            "paper": {"backbone": "vit-b", "spatial_dims": 2},
        },
    },
    {
        "name": "spark",
        "title": "SparK",
        "advice": "3D; masked reconstruction.",
        "presets": {"cpu": {"backbone": "stunet-s", "spatial_dims": 3}},
    },
]
BACKBONES = [
    {"name": "vit-tiny", "title": "ViT-Tiny", "spatial_dims": 2},
    {"name": "stunet-s", "title": "STU-Net S", "spatial_dims": 3},
]


def open_teach(desk: Any, **facts: Any) -> None:
    """Open step 5, with what the worker answers."""
    desk.ui.teachCollapsibleButton.collapsed = False
    empty: dict[str, Any] = {"cases": [], "models": [], "promptable": [], "runs": [], "encoders": []}
    for name, more in (
        ("cases", {}),
        ("models", {"promptable": []}),
        ("runs", {}),
        ("encoders", {}),
        ("methods", {"methods": METHODS, "backbones": BACKBONES}),
    ):
        desk.client.answer(f"list_{name}", **{name: facts.get(name, empty.get(name)), **more})
    desk.panel.onTimer()


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


def test_another_answer_to_a_click_is_one_button_or_key_away(a_desk: Any) -> None:
    a_desk.choose_nodes()
    assert not a_desk.ui.anotherButton.enabled
    place(a_desk, "positive", (4.0, 3.0, 4.0))
    answer(a_desk, 4)
    assert a_desk.ui.anotherButton.enabled
    assert "A" not in a_desk.panel.shortcuts.active, "the module is not open"
    a_desk.widget.enter()
    a_desk.panel.onTimer()
    assert "A" in a_desk.panel.shortcuts.active
    a_desk.ui.anotherButton.click()
    assert a_desk.client.asked[-1]["prompt"].choice == 1
    answer(a_desk, 4, first_row=2)
    place(a_desk, "negative", (9.0, 7.0, 4.0))
    answer(a_desk, 4)
    assert not a_desk.ui.anotherButton.enabled
    assert "A" not in a_desk.panel.shortcuts.active
    a_desk.ui.acceptButton.click()
    a_desk.panel.onTimer()
    assert "A" not in a_desk.panel.shortcuts.active
    assert a_desk.application.errors_shown == []


def test_a_box_is_two_clicks_and_taking_back_leaves_nothing(a_desk: Any) -> None:
    a_desk.choose_nodes()
    place(a_desk, "box", (2.0, 1.0, 3.0), (7.0, 6.0, 3.0))
    np.testing.assert_allclose(a_desk.client.asked[-1]["prompt"].box_xyxy_px, [2, 1, 7, 6])
    a_desk.panel.onTimer()
    a_desk.ui.takeBackButton.click()
    assert a_desk.client.run.was_cancelled
    assert not a_desk.ui.takeBackButton.enabled


@pytest.mark.parametrize("tool", ["box", "scribble"])
def test_a_click_on_another_slice_begins_a_box_or_scribble_anew(a_desk: Any, tool: str) -> None:
    a_desk.choose_nodes()
    place(a_desk, tool, (2.0, 1.0, 1.0), (2.0, 1.0, 5.0))
    assert a_desk.client.asked_for("predict") == []
    place(a_desk, tool, (7.0, 6.0, 5.0))
    (asked,) = a_desk.client.asked_for("predict")
    assert asked["prompt"].index == 5


def test_a_scribble_on_another_slice_leaves_the_one_before_it(a_desk: Any) -> None:
    a_desk.choose_nodes()
    place(a_desk, "scribble", (2.0, 1.0, 1.0), (5.0, 4.0, 1.0))
    answer(a_desk, 1)
    place(a_desk, "scribble", (2.0, 2.0, 4.0), (6.0, 5.0, 4.0), (8.0, 6.0, 4.0))
    prompts = a_desk.panel.session.prompts
    kept = {each.index: [len(mark.points_xy_px) for mark in prompts.marks(each)] for each in prompts.places()}
    assert kept == {1: [2], 4: [3]}


def test_ticks_and_range_of_one_case_do_not_hold_for_the_next(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.ui.segmentList.item(0).setCheckState(QtCore.Qt.Unchecked)
    a_desk.ui.firstSpinBox.value, a_desk.ui.lastSpinBox.value = 1, 3
    a_desk.ui.directionComboBox.currentIndex = 1
    assert (a_desk.ui.firstSpinBox.value, a_desk.ui.lastSpinBox.value) == (1, 3)
    assert a_desk.panel.propagate.segments.checked() == []

    scene = a_desk.application.scene
    volume_node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT of another patient")
    sys.modules["slicer"].util.updateVolumeFromArray(volume_node, np.ones((4, 8, 10), np.int16))
    node = a_desk.nodes.create_segmentation_node(scene, volume_node)
    assert node.GetSegmentation().AddEmptySegment(a_desk.liver, "liver") == a_desk.liver
    a_desk.ui.volumeSelector.setCurrentNode(volume_node)
    a_desk.ui.segmentationSelector.setCurrentNode(node)
    assert (a_desk.ui.firstSpinBox.value, a_desk.ui.lastSpinBox.value) == (-1, -1)
    assert a_desk.panel.propagate.segments.checked() == [a_desk.liver]


def test_the_range_and_the_stop_rule_are_kept_in_the_scene(a_desk: Any) -> None:
    a_desk.choose_nodes()
    assert a_desk.ui.stopCheckBox.checked
    a_desk.ui.firstSpinBox.value, a_desk.ui.lastSpinBox.value = 1, 3
    a_desk.ui.stopCheckBox.click()
    node = a_desk.application.scene.GetSingletonNode("MedSSLSegment", "vtkMRMLScriptedModuleNode")
    kept = [node.GetParameter(name) for name in ("firstSlice", "lastSlice", "stop")]
    assert kept == ["1", "3", "False"]
    a_desk.widget.exit()
    a_desk.ui.firstSpinBox.value = 2  # no longer heard
    a_desk.widget.enter()
    shown = a_desk.ui.firstSpinBox.value, a_desk.ui.lastSpinBox.value, a_desk.ui.stopCheckBox.checked
    assert shown == (1, 3, False)


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
    shortcuts = dict(a_desk.panel.shortcuts._shortcuts)
    assert {s.key.toString() for s in shortcuts.values()} == set(a_desk.panel.shortcuts.actions)
    assert not any(s.autoRepeat for s in shortcuts.values()), (
        "a key that is held down would act again and again"
    )
    shortcuts["B"].activated.emit()
    assert a_desk.ui.boxButton.checked
    a_desk.widget.exit()
    assert a_desk.panel.shortcuts._shortcuts == {}
    assert not a_desk.ui.boxButton.checked
    assert not a_desk.ui.segmentEditor.observes_views


def test_correcting_a_slice_asks_for_the_stretches_around_it_only(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.ui.propagateButton.click()
    a_desk.arrive(0, 1, 3, 4, 5)
    a_desk.client.run.end()
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
    a_desk.client.run.end()
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
    a_desk.client.run.end()
    while a_desk.is_running():
        a_desk.panel.onTimer()
    np.testing.assert_array_equal(a_desk.masks()[3], a_desk.painted & ~taken)


def segment_editor_of_slicer(desk: Any) -> Any:
    """The node of the Segment Editor module, as after it was opened."""
    node = desk.application.scene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
    node.UnRegister(None)
    node.SetSingletonTag("SegmentEditor")
    return desk.application.scene.AddNode(node)


def test_the_segment_editor_module_does_not_hear_what_is_painted_in_the_panel(a_desk: Any) -> None:
    modules_own = segment_editor_of_slicer(a_desk)
    a_desk.widget.enter()
    a_desk.choose_nodes()
    panels = a_desk.ui.segmentEditor.mrmlSegmentEditorNode()
    panels.SetActiveEffectName("Paint")
    assert panels is not modules_own
    assert not modules_own.GetActiveEffectName()
    assert modules_own.GetSegmentationNode() is None


def test_the_segment_editor_module_goes_on_where_the_panel_was_left_and_the_other_way_round(
    a_desk: Any,
) -> None:
    modules_own = segment_editor_of_slicer(a_desk)
    a_desk.widget.enter()
    a_desk.choose_nodes()
    panels = a_desk.ui.segmentEditor.mrmlSegmentEditorNode()
    panels.SetSelectedSegmentID(a_desk.liver)
    panels.SetSourceVolumeIntensityMask(True)
    panels.SetSourceVolumeIntensityMaskRange(-100.0, 200.0)
    a_desk.widget.exit()
    assert modules_own.GetSegmentationNode() is a_desk.segmentation_node
    assert modules_own.GetSelectedSegmentID() == a_desk.liver
    assert modules_own.GetSourceVolumeIntensityMaskRange() == (-100.0, 200.0)

    modules_own.SetSourceVolumeIntensityMask(False)
    modules_own.SetOverwriteMode(modules_own.OverwriteNone)
    a_desk.widget.enter()
    assert not panels.GetSourceVolumeIntensityMask()
    assert panels.GetOverwriteMode() == modules_own.OverwriteNone
    elsewhere = a_desk.application.scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    modules_own.SetAndObserveSegmentationNode(elsewhere)
    modules_own.SetOverwriteMode(modules_own.OverwriteAllSegments)
    a_desk.widget.enter()
    assert panels.GetOverwriteMode() == modules_own.OverwriteNone


def test_the_strip_shows_references_and_a_click_goes_to_the_slice(a_desk: Any) -> None:
    a_desk.choose_nodes()
    settle(a_desk)
    strip, went = a_desk.panel.propagate.strip, []
    a_desk.panel.propagate.jumpTo = went.append
    assert list(strip.references) == [2]
    assert a_desk.ui.referenceList.item(0).text() == "axial slice 2: liver"
    strip.resize(600, 46)
    QtTest.QTest.mouseClick(strip, QtCore.Qt.LeftButton, pos=QtCore.QPoint(450, 20))
    assert went[0][2] == 4
    assert strip.current == 4
    a_desk.ui.suggestButton.click()
    assert a_desk.ui.suggestionLabel.text.startswith("Slice ")


def test_the_strip_grows_while_slices_arrive(a_desk: Any) -> None:
    a_desk.choose_nodes()
    settle(a_desk)
    strip = a_desk.panel.propagate.strip
    a_desk.ui.propagateButton.click()
    a_desk.arrive(3, 4)
    a_desk.panel.onTimer()
    assert list(np.flatnonzero(strip.areas)) == [2, 3, 4]
    np.testing.assert_allclose(strip.confidence[[3, 4]], 0.9)
    a_desk.client.run.end()
    while a_desk.is_running():
        a_desk.panel.onTimer()
    a_desk.ui.undoButton.click()
    settle(a_desk)
    assert list(np.flatnonzero(strip.areas)) == [2]


def test_the_strip_is_green_where_sure_and_red_where_not(a_desk: Any) -> None:
    strip = a_desk.panel.propagate.strip
    strip.display(np.full(4, 10.0), np.array([1.0, 0.0, np.nan, 0.5]), ())
    picture = strip.grab().toImage()
    middles = ((2 * n + 1) * picture.width() // 8 for n in range(3))
    sure, unsure, unknown = (QtGui.QColor(picture.pixel(x, 40)) for x in middles)
    assert sure.green() > 2 * sure.red()
    assert unsure.red() > 2 * unsure.green()
    assert abs(unknown.red() - unknown.green()) < 10


def test_what_set_up_would_do_is_shown_before_it_does_anything(a_desk: Any, own_home: Path) -> None:
    a_desk.ui.setUpButton.click()
    a_desk.finish_errand()
    (question,) = a_desk.application.questions_asked
    assert "Where:" in question
    assert "How large: about" in question
    assert a_desk.panel.settings.setUp is None
    assert a_desk.ui.environmentLabel.text.startswith("Not set up yet: Set up shows what would be installed")


def test_setting_up_from_a_folder_says_so_before_it_does_anything(
    a_desk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QtWidgets.QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path))
    a_desk.ui.setUpOfflineButton.click()
    a_desk.finish_errand()
    (question,) = a_desk.application.questions_asked
    assert f"From: the folder {tmp_path}" in question
    assert a_desk.panel.settings.setUp is None


def test_nothing_uses_the_environment_while_it_is_made_or_removed_and_what_is_left_is_used_then(
    a_desk: Any, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = sys.modules["MedSSLSegmentLib.Environment"]
    folder = environment.environmentFolder()
    (folder / "packages").mkdir(parents=True)
    (folder / environment.MARKER).write_text("{}")
    gone_while_closed: list[bool] = []
    monkeypatch.setattr(
        environment, "removeEnvironment", lambda: gone_while_closed.append(a_desk.client.was_closed)
    )
    a_desk.application.says_yes = True
    a_desk.panel.settings.show()
    a_desk.ui.removeEnvironmentButton.click()
    a_desk.finish_errand()
    assert gone_while_closed == [True]
    assert a_desk.panel.session.client is not a_desk.client

    a_desk.panel.session.client, a_desk.client.was_closed = a_desk.client, False
    begun, ended = threading.Event(), threading.Event()

    def install(command: Any, variables: Any, hear: Any, cancelled: threading.Event) -> int:
        assert a_desk.client.was_closed
        begun.set()
        cancelled.wait(60)
        ended.set()
        return 1

    monkeypatch.setattr(environment, "_runProcess", install)
    a_desk.ui.setUpButton.click()
    a_desk.finish_errand()
    assert begun.wait(60)
    assert a_desk.panel.settings.isSettingUp
    a_desk.widget.cleanup()
    assert ended.is_set()


def test_models_cases_and_runs_are_kept_where_the_settings_say(
    a_desk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSSL_HOME", str(tmp_path))
    python, registry = sys.modules["MedSSLSegmentLib.WorkerPython"], sys.modules["medssl.registry"]
    elsewhere = tmp_path / "elsewhere"
    a_desk.ui.homeEdit.text = str(elsewhere)
    a_desk.ui.homeEdit.editingFinished.emit()
    assert "is no folder" in a_desk.application.errors_shown[0]
    elsewhere.mkdir()
    a_desk.ui.homeEdit.editingFinished.emit()
    assert registry.user_folder() == elsewhere / "models"
    python.setChosenPython(sys.executable)
    assert python.workerCommand().environment()["MEDSSL_HOME"] == str(elsewhere)
    assert a_desk.application.settings["MedSSLSegment/Home"] == str(elsewhere)


def test_every_button_and_field_says_what_it_is_for(a_desk: Any) -> None:
    kinds = (
        QtWidgets.QAbstractButton,
        QtWidgets.QComboBox,
        QtWidgets.QListWidget,
        QtWidgets.QLineEdit,
        QtWidgets.QAbstractSpinBox,
    )
    silent = [
        name
        for name, widget in vars(a_desk.ui).items()
        if isinstance(widget, kinds) and not name.startswith("qt_") and not widget.toolTip
    ]
    assert silent == []


def test_reference_slices_are_ticked_and_unticked_and_a_click_goes_there(a_desk: Any) -> None:
    a_desk.writing.write_slices(a_desk.segmentation_node, a_desk.liver, a_desk.volume, 0, {5: a_desk.painted})
    a_desk.choose_nodes()
    settle(a_desk)
    went: list[Any] = []
    a_desk.panel.propagate.jumpTo = went.append
    rows = a_desk.ui.referenceList
    assert [rows.item(n).checkState() for n in range(rows.count)] == [QtCore.Qt.Checked] * 2
    rows.item(0).setCheckState(QtCore.Qt.Unchecked)
    rows.itemClicked.emit(rows.item(0))
    assert went == []
    assert list(a_desk.panel.propagate.strip.references) == [5]
    rows.itemClicked.emit(rows.item(1))
    assert went[0][2] == 5
    settle(a_desk)
    assert rows.item(0).checkState() == QtCore.Qt.Unchecked
    a_desk.ui.propagateButton.click()
    assert [r.prompt.index for r in a_desk.client.asked[-1]["references"]] == [5]
    assert a_desk.application.errors_shown == []


def test_the_reference_slices_shown_are_those_of_the_view_that_was_chosen(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.ui.viewComboBox.currentIndex = 1 + ["Axial", "Coronal", "Sagittal"].index("Coronal")
    settle(a_desk)
    rows = a_desk.ui.referenceList
    assert [rows.item(n).text() for n in range(rows.count)] == [
        f"coronal slice {n}: liver" for n in (2, 3, 4)
    ]


def test_segments_are_added_and_renamed_in_the_list(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.ui.addSegmentButton.click()
    assert a_desk.ui.segmentList.count == 2
    assert a_desk.ui.segmentEditor.currentSegmentID() == a_desk.segmentation.GetSegmentIDs()[1]
    a_desk.ui.segmentList.item(1).setText("spleen")
    assert [s.name for s in a_desk.panel.session.segments()] == ["liver", "spleen"]


def test_adding_a_segment_makes_a_segmentation_where_there_is_none(a_desk: Any) -> None:
    a_desk.ui.volumeSelector.setCurrentNode(a_desk.volume_node)
    a_desk.ui.addSegmentButton.click()
    made = a_desk.ui.segmentationSelector.currentNode()
    assert made.GetName() == "CT chest segmentation"
    assert made.GetSegmentation().GetNumberOfSegments() == 1


def test_an_added_segment_is_one_step_of_undo(a_desk: Any) -> None:
    a_desk.choose_nodes()
    painted = a_desk.masks()
    a_desk.ui.addSegmentButton.click()
    assert len(a_desk.panel.session.segments()) == 2
    a_desk.ui.undoButton.click()
    assert [segment.name for segment in a_desk.panel.session.segments()] == ["liver"]
    np.testing.assert_array_equal(a_desk.masks(), painted)
    a_desk.ui.redoButton.click()
    assert len(a_desk.panel.session.segments()) == 2


def test_a_tool_stays_in_hand_from_click_to_click(a_desk: Any) -> None:
    a_desk.choose_nodes()
    for x in (4.0, 5.0, 6.0):
        place(a_desk, "positive", (x, 3.0, 4.0))
        a_desk.panel.onTimer()
        assert a_desk.panel.annotate.views._isPlacing()
    assert a_desk.ui.positiveButton.checked
    assert a_desk.client.asked[-1]["prompt"].point_labels.tolist() == [1, 1, 1]
    scene = a_desk.application.scene
    placing = scene.GetNodeByID("vtkMRMLSelectionNodeSingleton").GetActivePlaceNodeID()
    assert scene.GetNodeByID(placing).GetName() == "MedSSLSegment prompt"
    marks = [
        n for n in scene.GetNodesByClass("vtkMRMLMarkupsNode") if n.GetName() == "MedSSLSegment prompt mark"
    ]
    assert len(marks) == 3
    assert not any(n.GetSaveWithScene() or n.GetDisplayNode().GetSaveWithScene() for n in marks)
    a_desk.ui.segmentationSelector.setCurrentNode(None)
    a_desk.panel.onTimer()
    assert not any(map(scene.IsNodePresent, marks))


def test_closing_the_panel_leaves_nothing_of_its_own_in_the_scene(a_desk: Any) -> None:
    a_desk.choose_nodes()
    place(a_desk, "positive", (4.0, 3.0, 4.0))
    answer(a_desk, 4)
    a_desk.panel.close()
    scene = a_desk.application.scene
    names = [scene.GetNthNode(n).GetName() or "" for n in range(scene.GetNumberOfNodes())]
    assert [name for name in names if name.startswith("MedSSLSegment ")] == []


def test_scrolling_with_a_tool_in_hand_tells_the_worker_which_slice_is_in_view(a_desk: Any) -> None:
    view = a_desk.application.scene.AddNewNodeByClass("vtkMRMLSliceNode")
    a_desk.choose_nodes()
    view.SetSliceOffset(2.0)
    assert a_desk.client.expected == []
    a_desk.ui.positiveButton.click()
    view.SetSliceOffset(3.0)
    assert a_desk.client.expected[-1] == (0, 3)
    view.SetSliceToRASByNTP(1, 0, 0, 0, 1, 0, 7, 4, 3, 0)  # sagittal
    assert a_desk.client.expected[-1] == (2, 7)
    seen = len(a_desk.client.expected)
    view.SetFieldOfView(120.0, 90.0, 1.0)
    view.SetXYZOrigin(4.0, -7.0, 0.0)
    assert len(a_desk.client.expected) == seen
    view.SetSliceOffset(1e4)
    a_desk.ui.positiveButton.click()
    view.SetSliceOffset(5.0)
    assert len(a_desk.client.expected) == seen


def test_a_mouse_that_rests_with_a_point_tool_has_its_click_answered_ahead(a_desk: Any) -> None:
    scene = a_desk.application.scene
    view = scene.AddNewNodeByClass("vtkMRMLSliceNode")
    crosshair = scene.GetFirstNodeByClass("vtkMRMLCrosshairNode") or scene.AddNewNodeByClass(
        "vtkMRMLCrosshairNode"
    )
    a_desk.choose_nodes()
    timer = a_desk.panel.annotate.views._restTimer

    def rest(*position: float) -> list[Any]:
        """Where the mouse comes to rest, and what was foreseen."""
        crosshair.SetCursorPositionXYZ([0.0, 0.0, 0.0], view)
        crosshair.SetCursorPositionRAS(list(position))
        if timer.active:
            timer.stop()
            timer.timeout.emit()
        return [asked["prompt"] for asked in a_desk.client.asked_for("expect") if asked["prompt"] is not None]

    assert rest(4.0, 3.0, 4.0) == []
    a_desk.ui.boxButton.click()
    assert rest(4.0, 3.0, 5.0) == []
    a_desk.ui.positiveButton.click()
    assert rest(4.0, 3.0, 400.0) == []
    (foreseen,) = rest(4.0, 3.0, 4.0)
    place(a_desk, "positive", (4.0, 3.0, 4.0))
    assert a_desk.client.asked[-1]["prompt"].is_like(foreseen)
    answer(a_desk, 4)
    a_desk.ui.positiveButton.click()
    assert len(rest(5.0, 3.0, 4.0)) == 1, "no tool is in hand"


def test_closing_the_scene_lays_the_tool_down(a_desk: Any) -> None:
    a_desk.choose_nodes()
    place(a_desk, "box", (2.0, 1.0, 3.0))
    a_desk.widget.onSceneStartClose(None, None)
    a_desk.application.scene.Clear(0)
    a_desk.widget.onSceneEndClose(None, None)
    assert not a_desk.ui.boxButton.checked
    interaction = a_desk.application.scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
    assert interaction.GetCurrentInteractionMode() == interaction.ViewTransform


def test_taking_another_tool_of_slicer_lays_the_prompt_down(a_desk: Any) -> None:
    a_desk.ui.boxButton.click()
    interaction = a_desk.application.scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
    interaction.SetCurrentInteractionMode(interaction.AdjustWindowLevel)
    QtWidgets.QApplication.processEvents()
    assert not a_desk.ui.boxButton.checked
    assert interaction.GetCurrentInteractionMode() == interaction.AdjustWindowLevel


def test_a_tool_that_is_laid_down_gives_the_persons_own_landmarks_back(a_desk: Any) -> None:
    scene = a_desk.application.scene
    a_desk.choose_nodes()
    selection = scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    interaction = scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
    landmarks = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "F")
    interaction.SetPlaceModePersistence(0)
    for lay_down in (a_desk.ui.positiveButton.click, lambda: interaction.SetCurrentInteractionMode(2)):
        a_desk.ui.positiveButton.click()
        assert selection.GetActivePlaceNodeID() != landmarks.GetID()
        lay_down()
        QtWidgets.QApplication.processEvents()
        assert interaction.GetCurrentInteractionMode() == interaction.ViewTransform == 2
        assert selection.GetActivePlaceNodeID() == landmarks.GetID()
        assert selection.GetActivePlaceNodeClassName() == "vtkMRMLMarkupsFiducialNode"
        assert interaction.GetPlaceModePersistence() == 0


def test_a_tool_taken_after_another_list_was_chosen_leaves_that_one_alone(a_desk: Any) -> None:
    scene = a_desk.application.scene
    a_desk.choose_nodes()
    a_desk.ui.positiveButton.click()
    a_desk.ui.negativeButton.click()
    added = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "mine")
    QtWidgets.QApplication.processEvents()
    selection = scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    assert selection.GetActivePlaceNodeID() == added.GetID()
    assert not a_desk.ui.negativeButton.checked


def test_return_and_escape_belong_to_a_field_of_text_that_has_the_keyboard(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.widget.enter()
    place(a_desk, "positive", (4.0, 3.0, 4.0))
    a_desk.panel.onTimer()
    window, changed = (
        a_desk.application.window,
        a_desk.application.connections["focusChanged(QWidget*,QWidget*)"],
    )
    fields = [kind(window) for kind in (QtWidgets.QLineEdit, QtWidgets.QSpinBox, QtWidgets.QComboBox)]
    button = QtWidgets.QPushButton(window)
    for field in fields:
        assert "Return" in a_desk.panel.shortcuts.active
        field.setFocus()
        changed(button, field)
        assert not {"Return", "Esc"} & a_desk.panel.shortcuts.active
        button.setFocus()
        changed(field, button)
    a_desk.widget.exit()
    assert "focusChanged(QWidget*,QWidget*)" not in a_desk.application.connections


def test_keys_that_decide_are_left_to_others_while_there_is_nothing_to_decide(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.widget.enter()
    deciding = {"Return", "Esc", "Backspace"}
    assert not deciding & a_desk.panel.shortcuts.active
    place(a_desk, "positive", (4.0, 3.0, 4.0))
    a_desk.panel.onTimer()
    assert deciding <= a_desk.panel.shortcuts.active
    a_desk.ui.segmentEditor.setActiveEffect("Draw")
    a_desk.panel.onTimer()
    assert not deciding & a_desk.panel.shortcuts.active


def test_the_device_of_the_settings_holds_for_prompts_and_propagation_and_is_remembered(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.ui.deviceComboBox.currentIndex = a_desk.ui.deviceComboBox.findData("cpu")
    place(a_desk, "positive", (4.0, 3.0, 4.0))
    assert a_desk.client.asked[-1]["device"] == "cpu"
    a_desk.ui.propagateButton.click()
    assert a_desk.client.asked[-1]["device"] == "cpu"
    assert a_desk.application.settings["MedSSLSegment/Device"] == "cpu"


def test_where_the_model_is_unsure_is_laid_over_the_image_and_taken_away_with_the_prediction(
    a_desk: Any,
) -> None:
    view = a_desk.application.scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    a_desk.choose_nodes()
    assert not a_desk.ui.showUncertaintyButton.enabled
    a_desk.panel.predictDesk.predict("liver", maps=True)
    asked = a_desk.client.asked[-1]
    assert (asked["model"], asked["maps"]) == ("liver", True)
    asked.ticket.say(
        UncertaintyMap.of(0, 3, np.full((8, 10), 0.5, np.float32)),
        SliceMask("liver", 0, 3, a_desk.painted, 0.9),
    )
    asked.ticket.end()
    while a_desk.panel.predictDesk.is_running:
        a_desk.panel.onTimer()
    a_desk.panel.predict.show()
    assert a_desk.ui.showUncertaintyButton.checked
    map_id = view.GetForegroundVolumeID()
    a_desk.panel.shortcuts.actions["U"][1]()
    assert view.GetForegroundVolumeID() is None
    a_desk.ui.showUncertaintyButton.click()
    assert view.GetForegroundVolumeID() == map_id
    a_desk.ui.undoButton.click()
    assert view.GetForegroundVolumeID() is None
    assert not a_desk.ui.showUncertaintyButton.enabled


def test_what_pretraining_would_take_is_told_before_it_begins(a_desk: Any) -> None:
    open_teach(a_desk)
    ui = a_desk.ui
    assert ui.methodLabel.text == "Vision transformers; the plain baseline."
    assert [ui.backboneComboBox.itemData(n) for n in range(ui.backboneComboBox.count)] == ["", "vit-tiny"]
    assert not ui.estimateButton.enabled
    ui.pretrainFolderEdit.text = "/scans"
    ui.estimateButton.click()
    (asked,) = a_desk.client.asked_for("estimate_pretrain")
    assert asked["settings"] == {
        "method": "mae",
        "data": "/scans",
        "preset": "auto",
        "minutes": 60.0,
        "device": "auto",
    }
    assert ui.estimateButton.text == "Cancel estimate"
    a_desk.client.answer("estimate_pretrain", estimate="10 steps will take about 1 h and 2.0 GB of memory.")
    a_desk.panel.onTimer()
    assert ui.estimateLabel.text.endswith("2.0 GB of memory.")
    ui.methodComboBox.currentIndex = 1
    assert "GB" not in ui.estimateLabel.text
    assert [ui.backboneComboBox.itemData(n) for n in range(ui.backboneComboBox.count)] == ["", "stunet-s"]
    ui.pretrainButton.click()
    assert a_desk.client.asked_for("start_pretrain")[0]["settings"]["method"] == "spark"


def test_what_a_run_draws_is_shown_while_it_is_followed(a_desk: Any) -> None:
    run = {
        "path": "/runs/1",
        "name": "1",
        "state": "running",
        "kind": "pretrain",
        "message": "",
        "has_result": False,
    }
    open_teach(a_desk, runs=[run])
    assert not a_desk.ui.pictureLabel.visible
    a_desk.ui.runComboBox.currentIndex = 1
    picture = np.zeros((40, 120, 3), np.uint8)
    picture[:, :60] = (255, 0, 0)
    events = [{"type": "metric", "step": n, "values": {"loss": 2.0 / n}} for n in (1, 2, 3)]
    a_desk.client.answer("read_run", run=run, events=events, first_event=0, picture=picture, picture_step=3)
    a_desk.panel.onTimer()
    shown = a_desk.ui.pictureLabel.pixmap.toImage()
    assert (shown.width(), shown.height()) == (360, 120)
    assert QtGui.QColor(shown.pixel(20, 50)).red() == 255
    assert QtGui.QColor(shown.pixel(340, 50)).red() == 0
    assert (a_desk.panel.teach.plot.name, list(a_desk.panel.teach.plot.values)) == ("Loss", [2.0, 1.0, 2 / 3])


def test_prompts_of_a_saved_scene_come_back_with_the_panel(a_desk: Any) -> None:
    a_desk.choose_nodes()
    place(a_desk, "positive", (4.0, 3.0, 4.0))
    a_desk.ui.segmentationSelector.setCurrentNode(None)
    asked = len(a_desk.client.asked)
    a_desk.choose_nodes()
    a_desk.panel.onTimer()
    assert a_desk.ui.promptLabel.text.startswith("1 slice has prompts from before")
    assert len(a_desk.client.asked) == asked
    a_desk.ui.acceptButton.click()
    assert len(a_desk.client.asked) == asked + 1
    mask = answer(a_desk, 4)
    a_desk.ui.acceptButton.click()
    np.testing.assert_array_equal(a_desk.masks()[4], mask)


def can_go(desk: Any) -> tuple[bool, bool]:
    """Whether undo and redo are offered."""
    desk.panel.onTimer()
    return desk.ui.undoButton.enabled, desk.ui.redoButton.enabled


def test_undo_and_redo_are_offered_exactly_when_there_is_a_step(a_desk: Any) -> None:
    assert can_go(a_desk) == (False, False)
    a_desk.choose_nodes()
    assert can_go(a_desk) == (False, False)

    place(a_desk, "positive", (4.0, 3.0, 4.0))
    answer(a_desk, 4)
    assert can_go(a_desk) == (False, False)
    a_desk.ui.acceptButton.click()
    assert can_go(a_desk) == (True, False)

    a_desk.ui.segmentEditor.saveStateForUndo()  # as painting does
    a_desk.writing.write_slices(a_desk.segmentation_node, a_desk.liver, a_desk.volume, 0, {5: a_desk.painted})
    offered = []
    for button in (*[a_desk.ui.undoButton] * 2, *[a_desk.ui.redoButton] * 2):
        button.click()
        offered.append(can_go(a_desk))
    assert offered == [(True, True), (False, True), (True, True), (True, False)]

    a_desk.ui.propagateButton.click()
    a_desk.client.run.end()
    while a_desk.is_running():
        a_desk.panel.onTimer()
    assert can_go(a_desk) == (True, False)
    a_desk.ui.segmentationSelector.setCurrentNode(None)
    assert can_go(a_desk) == (False, False)
    assert a_desk.application.errors_shown == []


def test_redoing_what_changed_is_offered_when_something_has_changed(a_desk: Any) -> None:
    a_desk.choose_nodes()
    settle(a_desk)
    assert a_desk.ui.correctButton.enabled
    a_desk.ui.propagateButton.click()
    a_desk.arrive(0, 1, 3, 4, 5)
    a_desk.client.run.end()
    while a_desk.is_running():
        a_desk.panel.onTimer()
    settle(a_desk)
    assert a_desk.ui.propagateButton.enabled
    assert not a_desk.ui.correctButton.enabled
    a_desk.writing.write_slices(
        a_desk.segmentation_node, a_desk.liver, a_desk.volume, 0, {4: ~a_desk.painted}
    )
    settle(a_desk)
    assert a_desk.ui.correctButton.enabled
    a_desk.ui.correctButton.click()
    a_desk.arrive(3)
    a_desk.panel.onTimer()
    a_desk.ui.cancelButton.click()
    settle(a_desk)
    assert a_desk.ui.correctButton.enabled
    assert a_desk.application.errors_shown == []


def versions_of_a_model(in_use: int) -> dict[str, Any]:
    facts = {"dice": {}, "segments": [], "cases": [], "backbone": "unet2d_16", "size_bytes": 8_000_000}
    versions = [{"id": f"liver:{n}", "number": n, **facts} for n in (1, 2)]
    return {"name": "liver", "in_use": in_use, "versions": versions}


def test_buttons_that_could_do_nothing_are_not_offered(a_desk: Any) -> None:
    ui = a_desk.ui
    open_teach(
        a_desk, cases=[{"id": "c1", "summary": "CT: liver on 1 slice"}], models=[versions_of_a_model(2)]
    )
    ui.predictCollapsibleButton.collapsed = False
    a_desk.panel.onTimer()

    assert [ui.versionComboBox.itemText(n) for n in range(2)] == ["liver:1", "liver:2 (in use)"]
    assert ui.useVersionButton.enabled
    ui.versionComboBox.currentIndex = 1
    assert not ui.useVersionButton.enabled

    assert not ui.removeCaseButton.enabled
    ui.caseList.currentRow = 0
    assert ui.removeCaseButton.enabled
    assert ui.finetuneButton.enabled
    assert not ui.stageComboBox.enabled

    assert not ui.addCaseButton.enabled
    a_desk.choose_nodes()
    settle(a_desk)
    assert ui.addCaseButton.enabled

    ui.volumeSelector.setCurrentNode(None)
    a_desk.panel.onTimer()
    assert not ui.predictButton.enabled
    assert not ui.segmentEverythingButton.enabled


def test_a_model_is_kept_once_it_has_a_name(a_desk: Any) -> None:
    run = {
        "path": "/runs/1",
        "name": "1",
        "state": "done",
        "kind": "finetune",
        "message": "",
        "has_result": True,
    }
    open_teach(a_desk, runs=[run])
    a_desk.ui.runComboBox.currentIndex = 1
    a_desk.client.answer("read_run", run=run, events=[], first_event=0, picture=None, picture_step=-1)
    a_desk.panel.onTimer()
    a_desk.ui.modelNameEdit.text = ""
    assert not a_desk.ui.adoptButton.enabled
    a_desk.ui.modelNameEdit.text = "liver"
    assert a_desk.ui.adoptButton.enabled


def test_fine_tuning_starts_from_the_first_encoder_that_is_listed_unless_another_is_chosen(
    a_desk: Any,
) -> None:
    encoders = [
        {"name": name, "method": name, "path": f"/encoders/{name}"} for name in ("polycl-o", "amlp", "mae")
    ]
    open_teach(a_desk, encoders=encoders, cases=[{"id": "1", "summary": "a liver"}])
    a_desk.ui.finetuneButton.click()
    assert a_desk.client.asked_for("start_finetune")[-1]["settings"]["encoder"] == "/encoders/polycl-o"
    a_desk.ui.encoderComboBox.currentIndex = 3
    a_desk.panel.onTimer()
    a_desk.ui.finetuneButton.click()
    assert "encoder" not in a_desk.client.asked_for("start_finetune")[-1]["settings"]


def test_predicting_needs_no_segmentation_and_nothing_else_runs_beside_it(a_desk: Any) -> None:
    open_teach(a_desk, models=[versions_of_a_model(1)])
    a_desk.ui.predictCollapsibleButton.collapsed = False
    a_desk.panel.onTimer()
    a_desk.ui.predictButton.click()
    made = a_desk.ui.segmentationSelector.currentNode()
    assert made.GetName() == "CT chest segmentation"
    a_desk.panel.onTimer()
    for name in ("predictButton", "segmentEverythingButton", "propagateButton", "volumeSelector"):
        assert not getattr(a_desk.ui, name).enabled, name
    a_desk.client.run.say(SliceMask("liver", 0, 3, a_desk.painted, 0.9))
    a_desk.client.run.end()
    while a_desk.panel.predictDesk.is_running:
        a_desk.panel.onTimer()
    a_desk.panel.onTimer()
    assert a_desk.ui.statusLabel.text == "Found 1 segment."
    assert a_desk.ui.predictButton.enabled
    a_desk.choose_nodes()
    a_desk.ui.propagateButton.click()
    assert not a_desk.ui.predictButton.enabled
    assert a_desk.application.errors_shown == []


def test_while_a_preview_waits_the_panel_does_not_ask_to_annotate(a_desk: Any) -> None:
    a_desk.ui.volumeSelector.setCurrentNode(a_desk.volume_node)
    a_desk.ui.addSegmentButton.click()
    settle(a_desk)
    assert a_desk.ui.statusLabel.text.startswith("Annotate one slice")
    place(a_desk, "positive", (4.0, 3.0, 4.0))
    a_desk.panel.onTimer()
    assert a_desk.ui.statusLabel.text == ""


def test_undo_under_a_prediction_that_has_written_nothing_leaves_the_step_before(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.ui.segmentEditor.saveStateForUndo()
    a_desk.writing.write_slices(a_desk.segmentation_node, a_desk.liver, a_desk.volume, 0, {5: a_desk.painted})
    painted = a_desk.masks()
    a_desk.panel.onTimer()
    a_desk.panel.predictDesk.predict("liver")
    a_desk.ui.undoButton.click()
    assert a_desk.client.run.was_cancelled
    np.testing.assert_array_equal(a_desk.masks(), painted)
    a_desk.ui.undoButton.click()
    assert not a_desk.masks()[5].any()

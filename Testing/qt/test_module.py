"""The Slicer module: its four classes, its panel and its self-test; the worker answers when the test says so."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtUiTools")

from medssl.errors import Cancelled, ModelError, WorkerDied, WorkerError
from medssl.events import Progress
from medssl.model_files import keep_own, remove_own
from medssl.registry import DEFAULT_MODEL, ModelEntry, find_entry, model_path
from PySide6 import QtCore, QtWidgets
from shibokensupport import feature

feature.set_selection(2, __name__)
REPOSITORY = Path(__file__).resolve().parents[2]


def put_on_this_computer(entry: ModelEntry) -> None:
    """A file that takes no space and has the model's name and size."""
    path = model_path(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(entry.size_bytes)


def test_the_module_describes_itself_to_slicer(the_module: Any) -> None:
    parent = type("Parent", (), {})()
    the_module.MedSSLSegment(parent)
    assert parent.categories == ["Segmentation"]
    assert parent.contributors
    assert parent.helpText
    assert parent.acknowledgementText


def test_the_phantom_is_registered_when_slicer_has_started_and_needs_no_network(
    an_application: Any, the_module: Any
) -> None:
    the_module.MedSSLSegment(type("Parent", (), {})())
    assert an_application.samples == {}
    an_application.connections["startupCompleted()"]()
    source = an_application.samples["MedSSLSegment", "MedSSLSegmentPhantom"]
    assert Path(source.thumbnailFileName).is_file()
    (node,) = source.customDownloader(source)
    assert node.GetName() == "MedSSLSegmentPhantom"
    assert node.GetImageData().GetDimensions() == (184, 136, 156)
    np.testing.assert_allclose(node.GetSpacing(), (2.0, 2.0, 2.5))
    assert an_application.background is node


def test_the_self_test_passes(the_module: Any) -> None:
    test = the_module.MedSSLSegmentTest()
    test.runTest()


def test_the_panel_says_what_is_missing_before_it_can_propagate(a_desk: Any) -> None:
    assert a_desk.ui.volumeSelector.currentNode() is a_desk.volume_node
    assert a_desk.ui.statusLabel.text == "Choose a segmentation, or press Add segment in step 1."
    assert not a_desk.ui.propagateButton.enabled
    a_desk.choose_nodes()
    assert a_desk.ui.statusLabel.text == ""
    assert a_desk.ui.propagateButton.enabled
    a_desk.ui.segmentList.item(0).setCheckState(sys.modules["qt"].Qt.Unchecked)
    assert a_desk.ui.statusLabel.text == "Check at least one segment."
    assert not a_desk.ui.propagateButton.enabled


def test_the_list_follows_added_and_renamed_segments(a_desk: Any) -> None:
    a_desk.choose_nodes()
    spleen = a_desk.segmentation.AddEmptySegment("", "spleen")
    a_desk.segmentation.GetSegment(spleen).SetName("spleen and hilum")
    names = [a_desk.ui.segmentList.item(row).text() for row in range(a_desk.ui.segmentList.count)]
    assert names == ["liver", "spleen and hilum"]


def test_a_propagation_from_click_to_undo(a_desk: Any) -> None:
    a_desk.choose_nodes()
    before = a_desk.masks()
    a_desk.ui.propagateButton.click()
    assert a_desk.is_running()
    assert not a_desk.ui.propagateButton.enabled
    assert a_desk.ui.cancelButton.enabled

    a_desk.arrive(3, 4)
    a_desk.client.run.say(Progress(2, 5, 12.4))
    a_desk.panel.onTimer()
    while a_desk.panel.session._propagation.writer.pending:
        a_desk.panel.onTimer()
    assert a_desk.ui.progressBar.value == 400
    assert a_desk.ui.progressBar.format == "about 12 s left"
    assert a_desk.masks()[[3, 4]].any(axis=(1, 2)).all()

    a_desk.arrive(0, 1, 5)
    a_desk.client.run.end()
    while a_desk.is_running():
        a_desk.panel.onTimer()
    assert a_desk.ui.statusLabel.text.startswith("5 slices were written in")
    assert a_desk.masks().any(axis=(1, 2)).all()

    a_desk.ui.undoButton.click()
    np.testing.assert_array_equal(a_desk.masks(), before)
    a_desk.ui.redoButton.click()
    assert a_desk.masks().any(axis=(1, 2)).all()
    assert a_desk.application.errors_shown == []


def test_cancel_stops_the_worker_and_frees_the_panel(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.ui.propagateButton.click()
    a_desk.ui.cancelButton.click()
    assert a_desk.client.run.was_cancelled
    assert a_desk.ui.propagateButton.enabled
    a_desk.panel.onTimer()
    assert not a_desk.is_running()
    assert a_desk.application.errors_shown == []


def test_a_dead_worker_is_reported_once(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.ui.propagateButton.click()
    a_desk.client.run.fail(WorkerDied("The worker was killed; start again."))
    a_desk.panel.onTimer()
    assert not a_desk.is_running()
    assert a_desk.application.errors_shown == ["The worker was killed; start again."]
    assert a_desk.ui.propagateButton.enabled


def test_what_the_user_can_mend_is_shown_as_one_sentence(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.segmentation.GetSegment(a_desk.liver).GetRepresentation("Binary labelmap").Initialize()
    a_desk.ui.propagateButton.click()
    (shown,) = a_desk.application.errors_shown
    assert shown == "Nothing is drawn in segment 'liver'; paint the object on at least one slice first."
    assert not a_desk.is_running()


def test_the_users_choices_reach_the_worker(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.ui.viewComboBox.currentIndex = 1 + ["Axial", "Coronal", "Sagittal"].index("Coronal")
    put_on_this_computer(find_entry("medsam2"))
    a_desk.choose_model("medsam2")
    a_desk.ui.propagateButton.click()
    (asked,) = a_desk.client.asked
    assert asked["options"]["axis"] == 1
    assert asked["model"] == "medsam2"
    assert [r.prompt.index for r in asked["references"]] == [2, 3, 4]


def test_the_shipped_model_is_chosen_and_ready(a_desk: Any) -> None:
    assert a_desk.ui.modelComboBox.currentText == find_entry(DEFAULT_MODEL).title
    a_desk.choose_nodes()
    a_desk.ui.propagateButton.click()
    assert a_desk.client.asked[0]["model"] == DEFAULT_MODEL
    assert a_desk.application.questions_asked == []


def test_only_models_that_can_propagate_are_offered_and_say_how_to_get_them(a_desk: Any) -> None:
    offered = [a_desk.ui.modelComboBox.itemData(row) for row in range(a_desk.ui.modelComboBox.count)]
    assert {"medssl-nano", "sam2.1-hiera-tiny", "medsam2"} <= set(offered)
    assert all(find_entry(model).kind != "sam" for model in offered)
    assert a_desk.model_title("medsam2") == "MedSAM2 (to be downloaded, 156 MB)"


def test_a_model_of_ones_own_is_offered_when_the_module_is_opened_again(a_desk: Any, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    entry = replace(find_entry(DEFAULT_MODEL), id="ours", title="ours (your own)")
    entry = keep_own(tmp_path / "weights.safetensors", entry, lambda kept: None)
    a_desk.panel.enter(None)
    for comboBox in (a_desk.ui.modelComboBox, a_desk.ui.promptModelComboBox):
        assert comboBox.itemText(comboBox.findData("ours")) == "ours (your own)"
        comboBox.currentIndex = comboBox.findData("ours")
    assert a_desk.panel.session.prompts.model == a_desk.panel.session.tracker == "ours"

    remove_own(entry)
    a_desk.panel.enter(None)
    assert a_desk.ui.modelComboBox.findData("ours") < 0
    assert a_desk.panel.session.prompts.model == a_desk.panel.session.tracker == DEFAULT_MODEL
    assert a_desk.panel.parameterNode.promptModel == a_desk.panel.parameterNode.model == DEFAULT_MODEL
    assert a_desk.application.questions_asked == []


def choose_prompt_model(a_desk: Any, model_id: str) -> None:
    a_desk.ui.promptModelComboBox.currentIndex = a_desk.ui.promptModelComboBox.findData(model_id)


def test_another_model_answers_prompts_and_is_remembered_with_the_scene(a_desk: Any) -> None:
    put_on_this_computer(find_entry("sam-vit-b"))
    a_desk.choose_nodes()
    choose_prompt_model(a_desk, "sam-vit-b")
    assert a_desk.panel.session.prompts.model == "sam-vit-b"
    assert a_desk.panel.parameterNode.promptModel == "sam-vit-b"
    a_desk.panel.parameterNode.promptModel = "medssl-nano"
    assert a_desk.ui.promptModelComboBox.currentText == find_entry(DEFAULT_MODEL).title
    assert a_desk.panel.session.prompts.model == DEFAULT_MODEL


def test_a_prompt_model_that_is_not_downloaded_is_not_used(a_desk: Any) -> None:
    a_desk.choose_nodes()
    choose_prompt_model(a_desk, "sam-vit-b")  # asks, and the user says no
    assert len(a_desk.application.questions_asked) == 1
    assert a_desk.panel.session.prompts.model == DEFAULT_MODEL
    assert a_desk.ui.promptModelComboBox.currentText == find_entry(DEFAULT_MODEL).title
    a_desk.panel.parameterNode.promptModel = "sam-vit-b"  # a scene from another computer: nothing is asked
    assert len(a_desk.application.questions_asked) == 1
    assert a_desk.panel.session.prompts.model == DEFAULT_MODEL
    said = "sam-vit-b, which this scene was made with, is not on this computer; medssl-nano answers."
    assert a_desk.panel.session.prompts.message == said
    assert a_desk.panel.parameterNode.promptModel == "sam-vit-b"  # for where it is
    a_desk.panel.session.prompts.message = ""
    a_desk.panel.parameterNode.stop = False
    assert a_desk.panel.session.prompts.message == "", "it was said once"
    a_desk.panel.parameterNode.promptModel = DEFAULT_MODEL
    a_desk.panel.parameterNode.promptModel = "sam-vit-b"  # the next such scene
    assert a_desk.panel.session.prompts.message == said
    put_on_this_computer(find_entry("sam-vit-b"))
    choose_prompt_model(a_desk, "sam-vit-b")
    assert a_desk.panel.session.prompts.model == "sam-vit-b"


def test_a_host_needs_no_model_on_this_computer(a_desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["MedSSLSegmentLib.ModelDownload"], "chosenHost", lambda: "me@gpu-server")
    a_desk.panel.showModels()
    assert a_desk.model_title("medsam2") == "MedSAM2"
    a_desk.choose_nodes()
    a_desk.choose_model("medsam2")
    a_desk.ui.propagateButton.click()
    assert a_desk.application.questions_asked == []
    assert a_desk.client.asked[0]["model"] == "medsam2"


def test_a_scene_that_asks_for_a_model_that_is_not_offered_gets_the_shipped_one(a_desk: Any) -> None:
    a_desk.panel.parameterNode.model = "sam-vit-b"
    assert a_desk.panel.parameterNode.model == DEFAULT_MODEL
    assert a_desk.ui.modelComboBox.currentText == find_entry(DEFAULT_MODEL).title


def test_a_model_is_not_downloaded_unless_the_user_agrees(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.choose_model("medsam2")
    a_desk.ui.propagateButton.click()
    (question,) = a_desk.application.questions_asked
    entry = find_entry("medsam2")
    for told in ("156 MB", entry.source_url, entry.license, entry.file, str(model_path(entry).parent)):
        assert told in question
    assert a_desk.application.progress_dialogs == []
    assert a_desk.client.asked == []
    assert a_desk.ui.propagateButton.enabled


@pytest.fixture
def a_download(a_desk: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands in for the network: gives the file, or does what the test puts in its place, once half is shown."""

    class Download:
        def __init__(self) -> None:
            self.shown = threading.Event()
            self.looks = 0

        def __call__(self, entry: ModelEntry, progress: Any, cancelled: Any, *, acknowledged: bool) -> None:
            assert acknowledged
            progress(Progress(entry.size_bytes // 2, entry.size_bytes))
            assert self.shown.wait(30)
            self.then(entry, cancelled)

        def look(self) -> None:
            """A turn of the event loop."""
            self.looks += 1
            (dialog,) = a_desk.application.progress_dialogs
            if dialog.value == 500 and not self.shown.is_set():
                self.at_half(dialog)
                self.shown.set()

        def at_half(self, dialog: Any) -> None:
            assert dialog.windowModality == QtCore.Qt.ApplicationModal

        def then(self, entry: ModelEntry, cancelled: Any) -> None:
            assert not cancelled()
            put_on_this_computer(entry)

    download = Download()
    monkeypatch.setattr(sys.modules["MedSSLSegmentLib.ModelDownload"], "download", download)
    monkeypatch.setattr(sys.modules["slicer"].app, "processEvents", download.look)
    a_desk.application.says_yes = True
    a_desk.choose_nodes()
    a_desk.choose_model("medsam2")
    return download


def test_a_model_is_downloaded_when_the_user_agrees_and_used_at_once(a_desk: Any, a_download: Any) -> None:
    a_desk.ui.propagateButton.click()
    assert a_desk.client.asked[0]["model"] == "medsam2"
    assert a_desk.model_title("medsam2") == "MedSAM2"
    assert not a_desk.application.progress_dialogs[0].visible


def test_a_download_can_be_cancelled(a_desk: Any, a_download: Any) -> None:
    def wait(entry: ModelEntry, cancelled: Any) -> None:
        deadline = time.monotonic() + 30
        while not cancelled() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert cancelled()
        raise Cancelled("Getting medsam2 was cancelled.")

    a_download.at_half, a_download.then = (lambda dialog: dialog.cancel()), wait
    a_desk.ui.propagateButton.click()
    assert a_desk.client.asked == []
    assert a_desk.application.errors_shown == []


def test_a_server_that_keeps_silent_keeps_nothing_else_waiting(a_desk: Any, a_download: Any) -> None:
    def stall(entry: ModelEntry, cancelled: Any) -> None:
        before, deadline = a_download.looks, time.monotonic() + 30
        while a_download.looks < before + 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert a_download.looks >= before + 5
        put_on_this_computer(entry)

    a_download.then = stall
    a_desk.ui.propagateButton.click()
    assert a_desk.client.asked[0]["model"] == "medsam2"


def test_a_download_that_fails_says_why(a_desk: Any, a_download: Any) -> None:
    def fail(entry: ModelEntry, cancelled: Any) -> None:
        raise ModelError("The download of medsam2 stopped; check the network.")

    a_download.then = fail
    a_desk.ui.propagateButton.click()
    assert a_desk.client.asked == []
    assert a_desk.application.errors_shown == ["The download of medsam2 stopped; check the network."]
    assert a_desk.ui.propagateButton.enabled


def test_choices_are_kept_in_the_scene_when_the_module_is_left_and_entered(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.ui.directionComboBox.currentIndex = 2
    a_desk.widget.exit()
    a_desk.widget.enter()
    assert a_desk.ui.segmentationSelector.currentNode() is a_desk.segmentation_node
    assert a_desk.ui.directionComboBox.currentText == "To lower slices"


def test_closing_the_scene_while_running_cancels_and_leaves_an_empty_panel(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.ui.propagateButton.click()
    a_desk.widget.onSceneStartClose(None, None)
    a_desk.application.scene.Clear(0)
    a_desk.widget.onSceneEndClose(None, None)
    a_desk.panel.onTimer()
    assert a_desk.client.run.was_cancelled
    assert not a_desk.is_running()
    assert a_desk.ui.segmentList.count == 0
    assert a_desk.ui.statusLabel.text == "Choose a volume."


def test_effects_of_other_extensions_are_offered_though_they_come_after_the_panel(a_desk: Any) -> None:
    before = a_desk.ui.segmentEditor.effect_lists
    a_desk.application.connections["effectRegistered(QString)"]()
    assert a_desk.ui.segmentEditor.effect_lists == before + 1
    a_desk.widget.cleanup()
    assert "effectRegistered(QString)" not in a_desk.application.connections


def test_a_label_map_is_not_taken_for_the_volume_to_segment(a_desk: Any) -> None:
    scene = a_desk.application.scene
    scene.Clear(0)
    scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    a_desk.widget.enter()
    assert a_desk.ui.volumeSelector.currentNode() is None
    scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    a_desk.widget.enter()
    assert a_desk.ui.volumeSelector.currentNode().GetName() == "CT"


def test_a_scene_that_is_opened_shows_what_was_chosen_in_it_though_its_parameter_node_comes_first(
    a_desk: Any, tmp_path: Path
) -> None:
    scene = a_desk.application.scene
    scene.Clear(0)  # the parameter node stays, so what is added now comes after it
    for name in ("other CT", "CT abdomen"):
        volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
        sys.modules["slicer"].util.updateVolumeFromArray(volume, np.zeros((6, 8, 10), np.int16))
        storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
        storage.SetFileName(str(tmp_path / f"{name}.nrrd"))
        volume.SetAndObserveStorageNodeID(storage.GetID())
        assert storage.WriteData(volume)
    segmentation = a_desk.nodes.create_segmentation_node(scene, volume, "organs")
    a_desk.ui.volumeSelector.setCurrentNode(volume)
    a_desk.ui.segmentationSelector.setCurrentNode(segmentation)
    scene.SetURL(str(tmp_path / "scene.mrml"))
    scene.Commit()

    scene.Connect()
    QtWidgets.QApplication.processEvents()
    session = a_desk.panel.session
    assert a_desk.ui.volumeSelector.currentNode().GetName() == "CT abdomen"
    assert session.volume_node.GetName() == "CT abdomen"
    assert session.segmentation_node.GetName() == "organs"
    a_desk.ui.directionComboBox.currentIndex = 1
    assert a_desk.panel.parameterNode.direction.value == "higher"


def test_nothing_but_the_scene_is_observed_in_a_way_that_keeps_it_in_memory(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.widget.exit()
    a_desk.widget.enter()
    assert a_desk.widget._observed == {a_desk.application.scene}


def test_deleting_the_segmentation_while_running_cancels(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.ui.propagateButton.click()
    a_desk.application.scene.RemoveNode(a_desk.segmentation_node)
    a_desk.panel.onTimer()
    assert a_desk.client.run.was_cancelled
    assert not a_desk.ui.undoButton.enabled


def test_a_python_without_the_packages_is_named_with_the_command_that_installs_them(
    a_desk: Any, tmp_path: Path
) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho torch\necho sam2\n")
    bare.chmod(0o755)
    a_desk.ui.workerPythonEdit.text = str(bare)
    a_desk.ui.workerPythonEdit.editingFinished.emit()
    a_desk.ui.checkPythonButton.click()
    a_desk.finish_errand()
    (shown,) = a_desk.application.errors_shown
    assert shown.startswith("The worker's Python lacks torch, sam2; run: ")
    assert f'"{bare}" -m pip install -r' in shown
    assert a_desk.application.settings == {"MedSSLSegment/WorkerPython": str(bare)}
    a_desk.widget.logic.close().result()
    assert a_desk.client.was_closed


def test_without_any_set_up_the_person_is_sent_there_and_not_to_slicers_own_python(
    a_desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = sys.modules["MedSSLSegmentLib.WorkerPython"]
    monkeypatch.setattr(python, "_requiredNames", lambda: ["lungfish"])
    with pytest.raises(WorkerError, match="not set up yet; press Set up in the settings") as caught:
        python.requirePackages(python.workerCommand())
    assert "pip" not in str(caught.value)


def test_a_python_that_is_too_old_is_said_to_be(
    a_desk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = sys.modules["MedSSLSegmentLib.WorkerPython"]
    monkeypatch.setattr(
        python, "_LIST_MISSING", "import sys; sys.version_info = (3, 9)\n" + python._LIST_MISSING
    )
    monkeypatch.setattr(python, "_requiredNames", lambda: ["numpy"])
    python.setChosenPython(sys.executable)
    with pytest.raises(WorkerError, match=r"lacks Python 3\.11 or newer; run"):
        python.requirePackages(python.workerCommand())


def test_a_program_that_is_not_there_is_named(a_desk: Any) -> None:
    python = sys.modules["MedSSLSegmentLib.WorkerPython"]
    python.setChosenPython("/nowhere/python3")
    with pytest.raises(WorkerError, match="/nowhere/python3 cannot be run as the worker's Python"):
        python.requirePackages(python.workerCommand())


def test_the_workers_python_is_looked_at_in_the_background_and_what_it_lacks_is_said_when_it_is_needed(
    the_module: Any, tmp_path: Path
) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho torch\n")
    bare.chmod(0o755)
    sys.modules["MedSSLSegmentLib.WorkerPython"].setChosenPython(str(bare))
    logic = the_module.MedSSLSegmentLogic()
    logic.requireWorker()
    logic.prepareWorker()
    with pytest.raises(WorkerError, match="lacks torch"):
        logic.requireWorker(wait=True)
    with pytest.raises(WorkerError, match="lacks torch"):
        logic.requireWorker()
    logic.close()


def test_a_host_that_is_none_is_refused_and_not_remembered(a_desk: Any) -> None:
    a_desk.ui.hostEdit.text = "-oProxyCommand=evil"
    a_desk.ui.hostEdit.editingFinished.emit()
    (shown,) = a_desk.application.errors_shown
    assert "is not a host" in shown
    assert "MedSSLSegment/WorkerHost" not in a_desk.application.settings


def test_this_python_has_what_the_worker_needs_or_says_what_it_lacks(a_desk: Any) -> None:
    python = sys.modules["MedSSLSegmentLib.WorkerPython"]
    python.setChosenPython(sys.executable)
    assert set(python.missingPackages(python.workerCommand())) <= set(python._requiredNames())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.2, "about 1 s left"), (20.4, "about 20 s left"), (150, "about 2 min left")],
)
def test_time_left_is_told_in_words(the_module: Any, seconds: float | None, text: str) -> None:
    assert sys.modules["MedSSLSegmentLib.Times"].timeLeftText(seconds) == text


def test_importing_the_module_loads_no_torch(the_module: Any) -> None:
    import subprocess

    code = "import sys, medssl.client, medssl.scene.session; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_workers_requirements_are_those_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    engine = set(project["optional-dependencies"]["engine"])
    lines = (REPOSITORY / "MedSSLSegment/Resources/requirements.txt").read_text("utf-8").splitlines()
    assert {line for line in lines if line and not line.startswith("#")} <= engine

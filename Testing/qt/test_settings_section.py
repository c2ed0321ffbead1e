"""The settings: what takes long goes on in the background, and what came of it is said until something newer is."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtUiTools")

from medssl.errors import StorageError, WorkerDied, WorkerError
from medssl.messages import Welcome
from PySide6 import QtWidgets
from shibokensupport import feature

feature.set_selection(2, __name__)


@pytest.fixture
def own_python(a_desk: Any) -> Any:
    """The module about the worker's Python, with this one chosen."""
    python = sys.modules["MedSSLSegmentLib.WorkerPython"]
    python.setChosenPython(sys.executable)
    return python


def test_looking_at_the_workers_python_holds_up_nothing_and_its_answer_stays(
    a_desk: Any, own_python: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(own_python, "missingPackages", lambda command: [] if go_on.wait(60) else ["time"])
    a_desk.ui.checkPythonButton.click()
    for _ in range(3):
        a_desk.panel.onTimer()
    assert a_desk.ui.statusLabel.text == "Looking whether the worker can run..."
    assert not a_desk.ui.checkPythonButton.enabled
    assert not a_desk.ui.setUpButton.enabled
    assert a_desk.panel.timer.interval == 20
    go_on.set()
    a_desk.finish_errand()
    for _ in range(3):
        a_desk.panel.onTimer()
    assert a_desk.ui.statusLabel.text == "The worker's Python has everything it needs."
    assert a_desk.ui.checkPythonButton.enabled


def test_packages_that_were_installed_meanwhile_are_found_and_the_worker_may_run(
    a_desk: Any, own_python: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacks = ["torch"]
    monkeypatch.setattr(own_python, "missingPackages", lambda command: list(lacks))
    logic = a_desk.widget.logic
    logic.prepareWorker()
    with pytest.raises(WorkerError, match="lacks torch"):
        logic.requireWorker(wait=True)
    lacks.clear()
    a_desk.ui.checkPythonButton.click()
    a_desk.finish_errand()
    logic.requireWorker()


def test_a_host_is_asked_itself_whether_its_worker_runs(a_desk: Any, own_python: Any) -> None:
    own_python.setChosenHost("gpu-server")
    a_desk.ui.checkPythonButton.click()
    a_desk.panel.onTimer()
    a_desk.client.asked_for("hello")[-1].ticket.add(Welcome("1.2", 7))
    a_desk.finish_errand()
    assert a_desk.ui.statusLabel.text == "gpu-server answers; it has medssl 1.2."

    a_desk.ui.checkPythonButton.click()
    a_desk.client.asked_for("hello")[-1].ticket.fail(WorkerDied("The connection to gpu-server failed."))
    a_desk.finish_errand()
    assert a_desk.application.errors_shown == ["The connection to gpu-server failed."]


def test_an_environment_that_cannot_be_removed_is_said_once_and_the_panel_goes_on(
    a_desk: Any, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = sys.modules["MedSSLSegmentLib.Environment"]
    (environment.environmentFolder() / "packages").mkdir(parents=True)
    go_on = threading.Event()

    def fail() -> None:
        go_on.wait(60)
        raise StorageError("It is in use.")

    monkeypatch.setattr(environment, "removeEnvironment", fail)
    a_desk.application.says_yes = True
    a_desk.panel.settings.show()
    a_desk.ui.removeEnvironmentButton.click()
    a_desk.panel.onTimer()
    assert a_desk.ui.statusLabel.text == "Removing the worker's environment..."
    assert not a_desk.ui.removeEnvironmentButton.enabled
    go_on.set()
    a_desk.finish_errand()
    assert a_desk.application.errors_shown == ["It is in use."]
    assert a_desk.ui.removeEnvironmentButton.enabled


def test_models_are_imported_in_the_background_and_offered_at_once(
    a_desk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = sys.modules["MedSSLSegmentLib.SettingsSection"]
    go_on, titled = threading.Event(), []
    monkeypatch.setattr(section, "import_from_folder", lambda folder: [folder] if go_on.wait(60) else [])
    monkeypatch.setattr(QtWidgets.QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path))
    a_desk.panel.settings.onModels = lambda: titled.append(True)
    a_desk.ui.importModelsButton.click()
    a_desk.panel.onTimer()
    assert a_desk.ui.statusLabel.text == "Importing models..."
    go_on.set()
    a_desk.finish_errand()
    assert a_desk.ui.statusLabel.text == "1 model was imported."
    assert titled == [True]


def test_closing_the_panel_does_not_wait_for_a_worker_that_puts_a_case_away(a_desk: Any) -> None:
    go_on, ended = threading.Event(), threading.Event()

    def end() -> None:
        go_on.wait(60)
        ended.set()

    a_desk.client.close = end
    a_desk.widget.cleanup()
    assert not ended.is_set()
    go_on.set()
    assert ended.wait(60)


def test_an_environment_is_made_after_the_worker_that_uses_the_old_one_has_ended(
    a_desk: Any, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = sys.modules["MedSSLSegmentLib.Environment"]
    order: list[str] = []
    go_on = threading.Event()

    def end() -> None:
        go_on.wait(60)
        order.append("worker ended")

    monkeypatch.setattr(environment.SetUp, "_make", lambda self: order.append("environment made"))
    a_desk.client.close = end
    a_desk.application.says_yes = True
    a_desk.ui.setUpButton.click()
    a_desk.finish_errand()
    assert a_desk.panel.settings.isSettingUp
    go_on.set()
    a_desk.panel.settings.setUp.result()
    assert order == ["worker ended", "environment made"]


def test_what_came_of_a_prediction_is_not_hidden_by_the_propagation_before_it(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.ui.propagateButton.click()
    a_desk.arrive(3)
    a_desk.client.run.end()
    while a_desk.is_running():
        a_desk.panel.onTimer()
    assert a_desk.ui.statusLabel.text.startswith("1 slice was written")
    a_desk.panel.predictDesk.predict("liver")
    a_desk.client.run.fail(WorkerDied("The worker was ended by SIGKILL; the next request starts it again."))
    a_desk.panel.onTimer()
    a_desk.panel.onTimer()
    assert a_desk.ui.statusLabel.text.startswith("The worker was ended by SIGKILL")


@pytest.mark.parametrize("what", ["a prompt", "a stroke"])
def test_that_the_worker_had_ended_is_said_until_the_person_goes_on(a_desk: Any, what: str) -> None:
    a_desk.choose_nodes()
    a_desk.ui.propagateButton.click()
    a_desk.client.run.fail(WorkerDied("The worker was ended by SIGKILL; the next request starts it again."))
    for _ in range(3):
        a_desk.panel.onTimer()
    assert "SIGKILL" in a_desk.ui.statusLabel.text
    if what == "a prompt":
        a_desk.panel.session.prompts.add_point(a_desk.liver, [4.0, 3.0, 4.0], 0, True)
    else:
        mask = np.ones((8, 10), bool)
        a_desk.writing.write_slices(a_desk.segmentation_node, a_desk.liver, a_desk.volume, 0, {4: mask})
    a_desk.panel.onTimer()
    assert "SIGKILL" not in a_desk.ui.statusLabel.text

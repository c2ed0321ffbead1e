"""Settings: where the worker computes, setting it up, and weights for a computer without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer.util
from medssl.registry import import_from_folder, user_folder
from medssl.scene.session import Session
from slicer.i18n import tr as _

from . import Environment, WorkerPython
from .Errors import errorsShown

__all__ = ["SettingsSection"]

CLOSE_S = 5.0
"""How long closing waits for an installer to end."""


class SettingsSection:
    """Connects the widgets of the settings.

    Args:
        ui: the named child widgets.
        session: computes on the chosen device.
        stopWorker: ends it, so that nothing of its environment is in use; the next request starts it again.
        restartWorker: uses what is chosen now.
        shortcuts: text that lists them.
    """

    def __init__(
        self,
        ui: Any,
        session: Session,
        stopWorker: Callable[[], None],
        restartWorker: Callable[[], None],
        shortcuts: str,
    ) -> None:
        self.ui = ui
        self.session = session
        self.stopWorker = stopWorker
        self.restartWorker = restartWorker
        self.setUp: Environment.SetUp | None = None
        ui.shortcutsLabel.text = shortcuts
        ui.workerPythonEdit.text = WorkerPython.chosenPython()
        ui.hostEdit.text = WorkerPython.chosenHost()
        ui.homeEdit.text = WorkerPython.chosenHome()
        ui.homeEdit.placeholderText = str(user_folder().parent)
        for title, device in (
            (_("Automatic"), "auto"),
            (_("Processor (CPU)"), "cpu"),
            (_("NVIDIA graphics card (CUDA)"), "cuda"),
            (_("Apple graphics (MPS)"), "mps"),
        ):
            ui.deviceComboBox.addItem(title, device)
        ui.deviceComboBox.currentIndex = max(0, ui.deviceComboBox.findData(WorkerPython.chosenDevice()))
        session.device = self.device
        ui.deviceComboBox.currentIndexChanged.connect(self.onDevice)
        ui.workerPythonEdit.editingFinished.connect(self.onPythonEdited)
        ui.hostEdit.editingFinished.connect(self.onHostEdited)
        ui.homeEdit.editingFinished.connect(self.onHomeEdited)
        ui.homeBrowseButton.clicked.connect(self.onBrowseHome)
        ui.checkPythonButton.clicked.connect(self.onCheck)
        ui.setUpButton.clicked.connect(self.onSetUp)
        ui.setUpOfflineButton.clicked.connect(self.onSetUpOffline)
        ui.removeEnvironmentButton.clicked.connect(self.onRemove)
        ui.importModelsButton.clicked.connect(self.onImport)
        self.show()

    @property
    def device(self) -> str:
        """What the models compute on."""
        return str(self.ui.deviceComboBox.itemData(self.ui.deviceComboBox.currentIndex))

    @property
    def isSettingUp(self) -> bool:
        """Whether the environment is being made."""
        return self.setUp is not None

    def show(self) -> None:
        """Show how the environment stands."""
        running = self.setUp is not None and not self.setUp.done
        self.ui.setUpButton.text = _("Cancel set up") if running else _("Set up...")
        self.ui.setUpOfflineButton.enabled = not running
        self.ui.removeEnvironmentButton.enabled = Environment.environmentFolder().exists() and not running
        if running:
            self.ui.environmentLabel.text = self.setUp.line
        elif self.setUp is None:
            ready = Environment.isReady()
            self.ui.environmentLabel.text = (
                _("The worker's environment is ready.")
                if ready
                else _("Not set up yet: Set up shows what would be installed before it does anything.")
            )

    def poll(self) -> None:
        """Show what the installer says; when it has ended, use what it made."""
        if self.setUp is None:
            return
        self.show()
        if self.setUp.done:
            ended, self.setUp = self.setUp, None
            self.restartWorker()
            self.show()
            with errorsShown():
                ended.result()

    def close(self) -> None:
        """Leave no installer behind."""
        if self.setUp is not None:
            self.setUp.cancel(CLOSE_S)

    def onSetUp(self) -> None:
        if self.setUp is not None:
            self.setUp.cancel()
        else:
            self._offer()

    def onSetUpOffline(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(None, _("Folder with the packages (wheels)"))
        if folder:
            self._offer(Path(folder))

    def _offer(self, wheels: Path | None = None) -> None:
        """Say what would be done, and do it if the person agrees."""
        with errorsShown():
            plan = Environment.EnvironmentPlan.forThisComputer(wheels)
            if slicer.util.confirmOkCancelDisplay(plan.text(), _("Set up the worker")):
                self.stopWorker()
                self.setUp = Environment.SetUp(plan)
                self.setUp.start()
        self.show()

    def onRemove(self) -> None:
        folder = Environment.environmentFolder()
        if slicer.util.confirmOkCancelDisplay(_("Delete {folder}?").format(folder=folder), _("Remove")):
            self.stopWorker()
            with errorsShown(waitCursor=True):
                Environment.removeEnvironment()
            self.restartWorker()
        self.show()

    def onCheck(self) -> None:
        with errorsShown(waitCursor=True):
            WorkerPython.requirePackages(WorkerPython.workerCommand())
            self.ui.statusLabel.text = _("The worker's Python has everything it needs.")

    def onPythonEdited(self) -> None:
        if self.ui.workerPythonEdit.text.strip() != WorkerPython.chosenPython():
            WorkerPython.setChosenPython(self.ui.workerPythonEdit.text)
            self.restartWorker()

    def onHostEdited(self) -> None:
        host = self.ui.hostEdit.text.strip()
        if host != WorkerPython.chosenHost():
            with errorsShown():
                WorkerPython.setChosenHost(host)
                self.restartWorker()

    def onHomeEdited(self) -> None:
        folder = self.ui.homeEdit.text.strip()
        if folder != WorkerPython.chosenHome():
            with errorsShown():
                WorkerPython.setChosenHome(folder)
                self.restartWorker()

    def onBrowseHome(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(None, _("Folder of models, cases and runs"))
        if folder:
            self.ui.homeEdit.text = folder
            self.onHomeEdited()

    def onDevice(self, *_ignored: Any) -> None:
        WorkerPython.setChosenDevice(self.device)
        self.session.device = self.device

    def onImport(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(None, _("Folder with model files"))
        if folder:
            with errorsShown(waitCursor=True):
                found = import_from_folder(Path(folder))
                self.ui.statusLabel.text = _("{count} models were imported.").format(count=len(found))

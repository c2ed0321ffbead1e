"""Settings: where the worker computes, setting it up, and weights for a computer without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer.util
from medssl.model_files import import_from_folder
from medssl.registry import user_folder
from medssl.scene.background import Task
from medssl.scene.session import Session
from slicer.i18n import tr as _

from . import Environment, WorkerPython
from .Errors import errorsShown

__all__ = ["SettingsSection"]

_Work = Any
"""What has `done` and `result`: a `Task`, or a `Ticket` of the worker's."""

CLOSE_S = 5.0
"""How long closing waits for an installer to end."""


class SettingsSection:
    """Connects the widgets of the settings.

    Args:
        ui: the named child widgets.
        session: computes on the chosen device.
        stopWorker: has it end in the background, so that nothing of its environment is in use; the next request starts
            it again.
        restartWorker: uses what is chosen now.
        checkWorker: looks in the background whether its Python has what it needs; the result says so.
        onModels: called when there are models that were not there before.
        shortcuts: text that lists them.
    """

    def __init__(
        self,
        ui: Any,
        session: Session,
        stopWorker: Callable[[], Task[None]],
        restartWorker: Callable[[], None],
        checkWorker: Callable[[], Task[None]],
        onModels: Callable[[], None],
        shortcuts: str,
    ) -> None:
        self.ui = ui
        self.session = session
        self.stopWorker = stopWorker
        self.restartWorker = restartWorker
        self.checkWorker = checkWorker
        self.onModels = onModels
        self.setUp: Environment.SetUp | None = None
        self.message = ""
        """One sentence: what is being done or was done last."""
        self._errand: tuple[_Work, Callable[[_Work], None]] | None = None
        """What is under way in the background, and what is to be done once it has ended."""
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
        """Whether the environment is being made, looked at or removed, or models are being imported."""
        return self.setUp is not None or self._errand is not None

    def show(self) -> None:
        """Show how the environment stands."""
        running, isFree = self.setUp is not None and not self.setUp.done, not self.isSettingUp
        self.ui.setUpButton.text = _("Cancel set up") if running else _("Set up...")
        self.ui.setUpButton.enabled = running or isFree
        for button in (self.ui.setUpOfflineButton, self.ui.checkPythonButton, self.ui.importModelsButton):
            button.enabled = isFree
        self.ui.removeEnvironmentButton.enabled = Environment.environmentFolder().exists() and isFree
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
        """Show what the installer says; when it, or what else was under way, has ended, go on from there."""
        if self._errand is not None and self._errand[0].done:
            (work, then), self._errand, self.message = self._errand, None, ""
            with errorsShown():
                then(work)
            self.show()
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

    def _begin(self, sentence: str, work: _Work, then: Callable[[_Work], None]) -> None:
        """Go on when what was begun in the background has ended; `then` takes its result, or its error."""
        self.message, self._errand = sentence, (work, then)
        self.show()

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
        """Find out what would be done, which asks the graphics card's driver, and say so."""
        work = Task(lambda: Environment.EnvironmentPlan.forThisComputer(wheels))
        self._begin(_("Looking at this computer..."), work, self._onPlanned)

    def _onPlanned(self, work: _Work) -> None:
        """Do what was planned, if the person agrees."""
        plan = work.result()
        if slicer.util.confirmOkCancelDisplay(plan.text(), _("Set up the worker")):
            self.setUp = Environment.SetUp(plan, after=self.stopWorker().result)
            self.setUp.start()

    def onRemove(self) -> None:
        folder = Environment.environmentFolder()
        if slicer.util.confirmOkCancelDisplay(_("Delete {folder}?").format(folder=folder), _("Remove")):
            ended = self.stopWorker()

            def remove() -> None:
                ended.result()
                Environment.removeEnvironment()

            self._begin(_("Removing the worker's environment..."), Task(remove), self._onRemoved)

    def _onRemoved(self, work: _Work) -> None:
        self.restartWorker()
        work.result()
        self.message = _("The worker's environment was removed.")

    def onCheck(self) -> None:
        """Look at the Python, or ask the host: there it is the worker itself that knows."""
        host, client = WorkerPython.chosenHost(), self.session.client
        sentence = _("Looking whether the worker can run...")
        with errorsShown():
            if host:
                self._begin(sentence, client.hello(), lambda work: self._onHostAnswered(host, work))
            else:
                self._begin(sentence, self.checkWorker(), self._onChecked)

    def _onHostAnswered(self, host: str, work: _Work) -> None:
        version = work.result().version
        self.message = _("{host} answers; it has medssl {version}.").format(host=host, version=version)

    def _onChecked(self, work: _Work) -> None:
        work.result()
        self.message = _("The worker's Python has everything it needs.")

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
            work = Task(lambda: import_from_folder(Path(folder)))
            self._begin(_("Importing models..."), work, self._onImported)

    def _onImported(self, work: _Work) -> None:
        count = len(work.result())
        self.message = (
            _("1 model was imported.")
            if count == 1
            else _("{count} models were imported.").format(count=count)
        )
        self.onModels()

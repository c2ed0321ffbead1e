"""The module's panel: shows a session and hands it what the user wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import qt
import slicer.util
from medssl.errors import MedSSLError
from medssl.registry import DEFAULT_MODEL, ModelEntry, find_entry, is_available, load_registry
from medssl.scene.session import PropagateRequest, Session, State, Status
from slicer.i18n import tr as _

from . import WorkerPython
from .ModelDownload import ensureModel, sizeText
from .ParameterNode import MedSSLSegmentParameterNode

__all__ = ["Panel", "timeLeftText"]

POLL_MS = 100
PROGRESS_STEPS = 1000


def timeLeftText(seconds: float | None) -> str:
    """Time left for a person, e.g. "about 20 s left"; empty when it is not known."""
    if seconds is None:
        return ""
    if seconds < 90:
        return _("about {count} s left").format(count=max(1, round(seconds)))
    return _("about {count} min left").format(count=round(seconds / 60))


@contextmanager
def errorsShown(waitCursor: bool = False) -> Iterator[None]:
    """Show what the user can do something about as one sentence; anything else as an error of the program."""
    message = None
    with slicer.util.tryWithErrorDisplay(_("MedSSLSegment failed unexpectedly."), waitCursor=waitCursor):
        try:
            yield
        except MedSSLError as error:
            message = str(error)
    if message is not None:
        slicer.util.errorDisplay(message)


class Panel:
    """Connects the widgets of MedSSLSegment.ui with a session.

    Args:
        ui: the named child widgets.
        session: does the work.
        requireWorker: raises an error of medssl when the worker cannot run here.
        restartWorker: called after another Python was chosen for the worker.
    """

    def __init__(self, ui: Any, session: Session, requireWorker: Any, restartWorker: Any) -> None:
        self.ui = ui
        self.session = session
        self.requireWorker = requireWorker
        self.restartWorker = restartWorker
        self.parameterNode: MedSSLSegmentParameterNode | None = None
        self.uncheckedSegments: set[str] = set()
        self.timer = qt.QTimer()
        self.timer.interval = POLL_MS
        self._fillModels()
        ui.workerPythonEdit.text = WorkerPython.chosenPython()
        self._connect()
        self.showStatus(session.status)

    def _connect(self) -> None:
        self.timer.timeout.connect(self.onTimer)
        self.ui.propagateButton.clicked.connect(self.onPropagate)
        self.ui.cancelButton.clicked.connect(self.onCancel)
        self.ui.undoButton.clicked.connect(self.onUndo)
        self.ui.redoButton.clicked.connect(self.onRedo)
        self.ui.segmentList.itemChanged.connect(self.onSegmentChecked)
        self.ui.modelComboBox.currentIndexChanged.connect(self.onModelChosen)
        self.ui.workerPythonEdit.editingFinished.connect(self.onWorkerPythonEdited)
        self.ui.checkPythonButton.clicked.connect(self.onCheckPython)

    def close(self) -> None:
        """Stop what runs and let go of the scene."""
        self.timer.stop()
        self.session.close()

    # From the scene to the widgets

    def setParameterNode(self, parameterNode: MedSSLSegmentParameterNode | None) -> None:
        """Follow a parameter node; None while there is no scene."""
        self.parameterNode = parameterNode
        self.update()

    def update(self) -> None:
        """Show the nodes and choices of the parameter node."""
        volume = self.parameterNode.inputVolume if self.parameterNode else None
        segmentation = self.parameterNode.segmentation if self.parameterNode else None
        self.session.choose(volume, segmentation)
        if self.parameterNode:
            self._chooseModel(self.parameterNode.model)
        self.updateSegments()

    def updateSegments(self) -> None:
        """Show the segments of the segmentation; a segment is checked until the user unchecks it."""
        listWidget = self.ui.segmentList
        wasBlocked = listWidget.blockSignals(True)
        listWidget.clear()
        for segment in self.session.segments():
            item = qt.QListWidgetItem(_colorIcon(segment.color_rgb), segment.name)
            item.setData(qt.Qt.UserRole, segment.id)
            item.setFlags(qt.Qt.ItemIsUserCheckable | qt.Qt.ItemIsEnabled)
            isChecked = segment.id not in self.uncheckedSegments
            item.setCheckState(qt.Qt.Checked if isChecked else qt.Qt.Unchecked)
            listWidget.addItem(item)
        listWidget.blockSignals(wasBlocked)
        self.showStatus(self.session.status)

    def showStatus(self, status: Status) -> None:
        """Show where the session stands, and enable what can be done now."""
        isRunning = status.state is State.RUNNING
        self.ui.progressBar.value = round(status.fraction * PROGRESS_STEPS)
        self.ui.progressBar.format = timeLeftText(status.seconds_left)
        self.ui.statusLabel.text = status.text or self._hint()
        self.ui.propagateButton.enabled = not isRunning and not self._hint()
        self.ui.cancelButton.enabled = isRunning
        self.ui.undoButton.enabled = self.session.can_undo
        self.ui.redoButton.enabled = self.session.can_redo
        for widget in (self.ui.volumeSelector, self.ui.segmentationSelector, self.ui.segmentList):
            widget.enabled = not isRunning

    def _hint(self) -> str:
        """What the user has to do before propagating; empty when nothing is missing."""
        if not self.parameterNode or not self.parameterNode.inputVolume:
            return _("Choose a volume.")
        if not self.parameterNode.segmentation:
            return _("Choose a segmentation, or create one and paint a slice in it.")
        if not self.session.segments():
            return _("Add a segment in the Segment Editor and paint it on one slice.")
        if not self._checkedSegments():
            return _("Check at least one segment.")
        return ""

    def _fillModels(self) -> None:
        """Offer the models that can propagate."""
        for row, entry in enumerate(e for e in load_registry() if e.kind != "sam"):
            self.ui.modelComboBox.addItem("", entry.id)
            self.ui.modelComboBox.setItemData(row, entry.purpose, qt.Qt.ToolTipRole)
        self._titleModels()

    def _titleModels(self) -> None:
        """Show which models are on this computer and which are still to be downloaded."""
        for row in range(self.ui.modelComboBox.count):
            entry = find_entry(self.ui.modelComboBox.itemData(row))
            self.ui.modelComboBox.setItemText(row, _modelTitle(entry))

    def _chooseModel(self, modelId: str) -> None:
        """Show a model as chosen; the default one when a scene asks for one that is not offered."""
        row = self.ui.modelComboBox.findData(modelId)
        default = self.ui.modelComboBox.findData(DEFAULT_MODEL)
        self.ui.modelComboBox.currentIndex = default if row < 0 else row
        self.onModelChosen()

    # From the widgets to the session

    def request(self) -> PropagateRequest:
        """What the user asks for."""
        view = self.parameterNode.view.value
        return PropagateRequest(
            segment_ids=tuple(self._checkedSegments()),
            axis=None if view is None else self.session.axis_of(view),
            model=self.parameterNode.model,
            overlap=self.parameterNode.overlap.value,
        )

    def _items(self) -> list[Any]:
        return [self.ui.segmentList.item(row) for row in range(self.ui.segmentList.count)]

    def _checkedSegments(self) -> list[str]:
        return [item.data(qt.Qt.UserRole) for item in self._items() if item.checkState() == qt.Qt.Checked]

    def onPropagate(self) -> None:
        if self._hasModel():
            with errorsShown(waitCursor=True):
                self.requireWorker()
                self.session.start(self.request())
                self.timer.start()
        self.showStatus(self.session.status)

    def _hasModel(self) -> bool:
        """Whether the chosen model is on this computer, once the user was offered to download it."""
        isHere = False
        with errorsShown():
            isHere = ensureModel(self.parameterNode.model)
        self._titleModels()
        return isHere

    def onTimer(self) -> None:
        with errorsShown():
            self.session.poll()
        self.showStatus(self.session.status)
        if self.session.status.state is not State.RUNNING:
            self.timer.stop()
            self._sayWhyItFailed(self.session.status)

    def _sayWhyItFailed(self, status: Status) -> None:
        if status.state is State.FAILED:
            slicer.util.errorDisplay(status.text)

    def onCancel(self) -> None:
        self.session.cancel()
        self.showStatus(self.session.status)

    def onUndo(self) -> None:
        with errorsShown(waitCursor=True):
            self.session.undo()
        self.updateSegments()

    def onRedo(self) -> None:
        with errorsShown(waitCursor=True):
            self.session.redo()
        self.updateSegments()

    def onSegmentChecked(self, item: Any) -> None:
        change = (
            self.uncheckedSegments.discard
            if item.checkState() == qt.Qt.Checked
            else self.uncheckedSegments.add
        )
        change(item.data(qt.Qt.UserRole))
        self.showStatus(self.session.status)

    def onModelChosen(self) -> None:
        if self.parameterNode:
            self.parameterNode.model = self.ui.modelComboBox.itemData(self.ui.modelComboBox.currentIndex)

    def onWorkerPythonEdited(self) -> None:
        if self.ui.workerPythonEdit.text.strip() != WorkerPython.chosenPython():
            WorkerPython.setChosenPython(self.ui.workerPythonEdit.text)
            self.session.cancel()
            self.restartWorker()
            self.showStatus(self.session.status)

    def onCheckPython(self) -> None:
        with errorsShown(waitCursor=True):
            WorkerPython.requirePackages(WorkerPython.workerCommand())
            self.ui.statusLabel.text = _("The worker's Python has everything it needs.")


def _modelTitle(entry: ModelEntry) -> str:
    if is_available(entry):
        return entry.title
    if entry.bundled:
        return _("{title} (missing: install the program again)").format(title=entry.title)
    return _("{title} (Propagate offers to download {size})").format(title=entry.title, size=sizeText(entry))


def _colorIcon(rgb: tuple[float, float, float]) -> Any:
    pixmap = qt.QPixmap(12, 12)
    pixmap.fill(qt.QColor.fromRgbF(*rgb))
    return qt.QIcon(pixmap)

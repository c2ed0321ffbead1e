"""The module's panel: five steps and a status line over one session."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import qt
import slicer.util
from medssl.errors import WorkerError
from medssl.scene.background import Task
from medssl.scene.predicting import PredictDesk
from medssl.scene.session import Session, State, Status
from medssl.scene.teaching import TeachDesk
from slicer.i18n import tr as _

from .AnnotateSection import AnnotateSection
from .EditorHistory import EditorHistory
from .Errors import errorsShown
from .ParameterNode import MedSSLSegmentParameterNode
from .PredictSection import PredictSection
from .PretrainSection import PretrainSection
from .PropagateSection import PropagateSection
from .SettingsSection import SettingsSection
from .Shortcuts import Shortcuts
from .TeachSection import TeachSection
from .Times import timeLeftText

__all__ = ["Panel"]

BUSY_MS = 20
"""Between two looks at what has arrived, while something is under way."""
IDLE_MS = 500
GIVE_WAY_S = 0.006
"""How long a look waits for other threads. 3D Slicer's event loop keeps Python's lock while it waits for events
(neither Slicer 5.13 nor CTK calls PyEval_SaveThread or PythonQt::setEnableThreadSupport), so without this the threads
that talk to the worker would be let in once a look, for one step each."""
PROMPT_MS = 5
"""Between two looks for the answer to a prompt: the person waits for it."""
PROMPT_GIVE_WAY_S = 0.003
PROMPT_LOOKS = 80
"""After so many, some 0.6 s, the model is a slow one, and a look every `BUSY_MS` is soon enough."""
RUN_MS = 2000
STRIP_S = 0.2
"""Between two times that the strip is drawn anew while slices arrive."""
PROGRESS_STEPS = 1000
TEXT_FIELDS = ("QLineEdit", "QAbstractSpinBox", "QComboBox")
FOCUS_CHANGED = "focusChanged(QWidget*,QWidget*)"
DECIDING_KEYS = ("Return", "Esc", "Backspace")
"""Keys that decide about prompts, and mean something else to fields of text and to effects."""
ANOTHER_KEY = "A"
"""Shows another answer to a click or a box; it is left to others, too, where there is none."""


class Panel:
    """Connects the widgets of MedSSLSegment.ui with a session.

    Args:
        ui: the named child widgets.
        session: does the work.
        requireWorker: raises WorkerError when the worker cannot run here.
        restartWorker: uses what is chosen in the settings now.
        checkWorker: looks in the background what the worker's Python has; see `SettingsSection`.
        endWorker: ends the worker in the background.
        isChecking: whether it is still being looked at what the worker's Python has, or a worker is still ending.
    """

    def __init__(
        self,
        ui: Any,
        session: Session,
        requireWorker: Callable[[], None],
        restartWorker: Callable[[], None],
        checkWorker: Callable[[], Task[None]],
        endWorker: Callable[[], Task[None]],
        isChecking: Callable[[], bool],
    ) -> None:
        self.ui = ui
        self.session = session
        self._restart, self._end = restartWorker, endWorker
        self.isChecking = isChecking
        self.parameterNode: MedSSLSegmentParameterNode | None = None
        self.giveWay: Callable[[float], None] = time.sleep
        """Lets other threads of Python run for some seconds."""
        session.history = EditorHistory(ui.segmentEditor)
        self.predictDesk, self.teachDesk = PredictDesk(session), TeachDesk(session)
        self.annotate = AnnotateSection(
            ui, session, session.scene, lambda: self.requireWorker(), self.onChanged, self.onViewMoved
        )
        self.propagate = PropagateSection(
            ui, session, self.annotate.views.jumpTo, lambda: self.requireWorker(), self.onChanged
        )
        self.requireWorker = requireWorker
        self.predict = PredictSection(
            ui, self.predictDesk, self.teachDesk, self.propagate.requireSegmentation
        )
        self.teach = TeachSection(ui, self.teachDesk, session)
        self.pretrain = PretrainSection(ui, self.teachDesk)
        self.shortcuts = Shortcuts(self._actions())
        self.settings = SettingsSection(
            ui,
            session,
            self.stopWorker,
            self.restartWorker,
            checkWorker,
            self.showModels,
            self.shortcuts.text(),
        )
        self._window: Any = None
        """The application's, while the module is open."""
        self._sentences: tuple[str, ...] = ("", "", "")
        self._lastSentence = ""
        self.lookTimer = _timer(300, self.onLook, isSingle=True)
        self.runTimer = _timer(RUN_MS, self.teachDesk.look)
        self.timer = _timer(IDLE_MS, self.onTimer)
        self.timer.start()
        self.promptTimer = _timer(PROMPT_MS, self.onPromptTimer)
        self._promptLooks = 0
        self._stripAtS = 0.0
        self.showDesks()
        ui.cancelButton.clicked.connect(self.onCancel)
        ui.undoButton.clicked.connect(self.onUndo)
        ui.redoButton.clicked.connect(self.onRedo)
        for button in self._deskButtons():
            button.clicked.connect(self.onChanged)  # after the section's own handler
        for section in self._deskSections():
            section.contentsCollapsed.connect(self.onTeachOpened)

    def _actions(self) -> dict[str, tuple[str, Callable[[], None]]]:
        annotate = self.annotate
        return {
            "P": (_("positive point"), lambda: annotate.pick("positive")),
            "N": (_("negative point"), lambda: annotate.pick("negative")),
            "B": (_("box"), lambda: annotate.pick("box")),
            "S": (_("scribble"), lambda: annotate.pick("scribble")),
            "Return": (_("accept the preview"), annotate.onAccept),
            "Esc": (_("drop the preview"), annotate.onDrop),
            ANOTHER_KEY: (_("another answer to the click or the box"), annotate.onAnother),
            "Backspace": (_("take the last prompt back"), annotate.onTakeBack),
            "C": (_("compare stages"), self.predict.onCompare),
            "U": (_("uncertainty over the image"), self.predict.toggleUncertainty),
        }

    def _deskSections(self) -> tuple[Any, ...]:
        """The sections that show what the worker keeps."""
        ui = self.ui
        return ui.predictCollapsibleButton, ui.teachCollapsibleButton, ui.pretrainCollapsibleButton

    def _deskButtons(self) -> tuple[Any, ...]:
        """The buttons that ask the worker for something."""
        ui = self.ui
        return (
            *(ui.predictButton, ui.segmentEverythingButton, ui.addCaseButton, ui.removeCaseButton),
            *(ui.finetuneButton, ui.stopRunButton, ui.resumeRunButton, ui.adoptButton, ui.useVersionButton),
            *(ui.estimateButton, ui.pretrainButton, ui.setUpButton, ui.setUpOfflineButton),
            *(ui.removeEnvironmentButton, ui.checkPythonButton, ui.importModelsButton),
        )

    def showDesks(self) -> None:
        """Show cases, models, runs and methods."""
        self.teach.show()
        self.predict.show()
        self.pretrain.show()

    def enter(self, window: Any) -> None:
        """The module was opened: listen to keys, let the Segment Editor work in the views."""
        if self._window is None:
            slicer.app.connect(FOCUS_CHANGED, self.onFocusChanged)
        self._window = window
        self.pauseKeys()
        self.shortcuts.activate(window)
        self.showModels()
        self.ui.segmentEditor.setupViewObservations()
        self.timer.start()
        self._pace()

    def exit(self) -> None:
        """The module was left: give keys and mouse back; what runs goes on."""
        self.shortcuts.deactivate()
        if self._window is not None:
            slicer.app.disconnect(FOCUS_CHANGED, self.onFocusChanged)
            self._window = None
        self.annotate.close()
        self.ui.segmentEditor.setActiveEffect(None)
        self.ui.segmentEditor.removeViewObservations()

    def close(self) -> None:
        """Stop what runs and let go of the scene."""
        for timer in (self.timer, self.promptTimer, self.runTimer, self.lookTimer):
            timer.stop()
        self.exit()
        self.predictDesk.cancel()
        self.settings.close()
        self.session.close()
        self.annotate.marks.show()  # of which there are none any more

    def stopWorker(self) -> Task[None]:
        """Stop what runs and have the worker end, in the background; the next request starts it again."""
        self.session.cancel()
        self.predictDesk.cancel()
        return self._end()

    def restartWorker(self) -> None:
        """Stop what runs, and use what is chosen in the settings now."""
        self.session.cancel()
        self.predictDesk.cancel()
        self._restart()
        self.showModels()
        self.showStatus(self.session.status)

    # From the scene to the widgets

    def showModels(self) -> None:
        """List the promptable models there are now."""
        self.annotate.models.show()
        self.propagate.models.show()

    def setParameterNode(self, parameterNode: MedSSLSegmentParameterNode | None) -> None:
        """Follow a parameter node; None while there is no scene."""
        self.parameterNode = parameterNode
        if parameterNode is None:
            self.annotate.close()
        self.update()

    def update(self) -> None:
        """Show the nodes and choices of the parameter node."""
        volume = self.parameterNode.inputVolume if self.parameterNode else None
        segmentation = self.parameterNode.segmentation if self.parameterNode else None
        self.session.choose(volume, segmentation)
        self.session.editor_node = self.ui.segmentEditor.mrmlSegmentEditorNode()
        self.ui.segmentEditor.setSegmentationNode(segmentation)
        if segmentation is not None:  # else the editor reports an error
            self.ui.segmentEditor.setSourceVolumeNode(volume)
        self.propagate.setParameterNode(self.parameterNode)
        self.annotate.setParameterNode(self.parameterNode)
        self.annotate.show()
        self.predict.showOverlay()
        self.updateSegments()

    def updateSegments(self) -> None:
        """Segments were added, removed, renamed or painted."""
        self.propagate.showSegments()
        self.showStatus(self.session.status)
        self.lookTimer.start()

    def onPainted(self) -> None:
        """A segment has changed: look for reference slices again, once painting pauses."""
        self.session.move_on()
        self.lookTimer.start()

    def onLook(self) -> None:
        """Look through the segments again, now that painting has paused."""
        if self.session.status.state is not State.RUNNING:
            self.session.look(self.propagate.axis())
            self._pace()

    def showStatus(self, status: Status) -> None:
        """Show where the session stands, and enable what can be done now."""
        desk, isPredicting = self.predictDesk, self.predictDesk.is_running
        fraction, left = (
            (desk.fraction, desk.seconds_left) if isPredicting else (status.fraction, status.seconds_left)
        )
        self.ui.progressBar.value = round(fraction * PROGRESS_STEPS)
        self.ui.progressBar.format = timeLeftText(left)
        said = self._lastWord(status.text, desk.message, self.settings.message)
        self.ui.statusLabel.text = said or self._hint()
        self.ui.workerLabel.text = self._workerText()
        self.ui.cancelButton.enabled = isPredicting or status.state is State.RUNNING
        self.ui.undoButton.enabled = self.session.can_undo
        self.ui.redoButton.enabled = self.session.can_redo
        isBusy = isPredicting or status.state is State.RUNNING
        self.propagate.showEnabled(isBusy)
        self.predict.showEnabled(isBusy)
        self.teach.showEnabled()

    def _lastWord(self, *sentences: str) -> str:
        """The sentence that has changed last: what ended some time ago does not hide what came of the next request."""
        changed = [new for new, old in zip(sentences, self._sentences, strict=True) if new != old]
        self._sentences = sentences
        self._lastSentence = changed[-1] if changed else self._lastSentence
        return self._lastSentence

    def _hint(self) -> str:
        """What is missing before the person can go on; nothing while a preview asks for a decision."""
        return "" if self.annotate.hasPrompts else self.propagate.hint()

    def _workerText(self) -> str:
        """What the worker is doing, in words."""
        status = getattr(self.session.client, "status", None)
        if status is None or status.state == "stopped":
            return self._firstText()
        memory = "" if status.memory_used_bytes is None else f", {status.memory_used_bytes / 1e9:.1f} GB"
        where = self.ui.hostEdit.text.strip() or _("this computer")
        return _("Worker on {where}: {state}{device}{memory}").format(
            where=where,
            state=status.state,
            device=f", {status.device}" if status.device else "",
            memory=memory,
        )

    def _firstText(self) -> str:
        """What there is to know of a worker that does not run."""
        try:
            self.requireWorker()
        except WorkerError:
            return _("The worker is not set up yet: open Settings and press Set up.")
        return _("The worker starts with the first request.")

    def onTimer(self) -> None:
        """Take what has arrived."""
        if self.isBusy:
            self.giveWay(GIVE_WAY_S)
        wasRunning, wasLooking = self.session.status.state is State.RUNNING, self.session.is_looking
        with errorsShown():
            self.session.poll()
            self.predictDesk.poll()
            self.teachDesk.poll()
        self.settings.poll()
        self.annotate.show()
        self.pauseKeys()
        if (wasLooking and not self.session.is_looking) or (
            wasRunning and time.monotonic() >= self._stripAtS
        ):
            self._stripAtS = time.monotonic() + STRIP_S
            self.propagate.showSurvey()
        if any(not section.collapsed for section in self._deskSections()):
            self.showDesks()
        status = self.session.status
        self.showStatus(status)
        if wasRunning and status.state is not State.RUNNING:
            self.lookTimer.start()
            if status.state is State.FAILED:
                slicer.util.errorDisplay(status.text)
        self._pace()

    def onViewMoved(self) -> None:
        """The worker was told which slice is in view: let the word out, and its answer in."""
        self.giveWay(PROMPT_GIVE_WAY_S)
        self._pace()

    def onFocusChanged(self, old: Any = None, new: Any = None) -> None:
        """Another widget has the keyboard now."""
        self.pauseKeys()

    def _isTyping(self) -> bool:
        """Whether a field of text has the keyboard: there Return and Esc end what is typed."""
        widget = self._window.focusWidget() if self._window is not None else None
        return widget is not None and any(widget.inherits(kind) for kind in TEXT_FIELDS)

    def pauseKeys(self) -> None:
        """The keys that decide about a preview are ours while there are prompts, no effect and no field of text."""
        isEditing = self.ui.segmentEditor.activeEffect() is not None or self._isTyping()
        areOurs = self.annotate.hasPrompts and not isEditing
        if not areOurs:
            self.shortcuts.pause((*DECIDING_KEYS, ANOTHER_KEY))
        else:
            self.shortcuts.pause(() if self.session.prompts.has_another else (ANOTHER_KEY,))

    @property
    def isBusy(self) -> bool:
        """Whether something is under way, here or in the worker."""
        return (
            self.session.status.state is State.RUNNING
            or self.session.is_looking
            or self.session.prompts.is_waiting
            or self.session.prompts.is_telling
            or self.predictDesk.is_running
            or self.teachDesk.is_waiting
            or self.settings.isSettingUp
            or self.isChecking()
        )

    def _pace(self) -> None:
        """Look often while something is under way, seldom else."""
        interval = BUSY_MS if self.isBusy else IDLE_MS
        if self.timer.interval != interval:
            self.timer.interval = interval

    def onChanged(self, *_ignored: Any) -> None:
        """Something began or was chosen: show it, and look for answers as often as it needs."""
        self.showStatus(self.session.status)
        self._pace()
        if self.session.prompts.is_waiting:
            self._promptLooks = 0
            self.promptTimer.start()
            self.onPromptTimer()

    def onPromptTimer(self) -> None:
        """Let a prompt out to the worker, or its answer in; nothing else is looked at, and not for ever."""
        self.giveWay(PROMPT_GIVE_WAY_S)
        self._promptLooks += 1
        with errorsShown():
            self.session.prompts.poll()
        if not self.session.prompts.is_waiting or self._promptLooks >= PROMPT_LOOKS:
            self.promptTimer.stop()
            self.annotate.show()

    def onTeachOpened(self, collapsed: bool) -> None:
        """Ask the worker what there is, when a section that shows it is opened."""
        if collapsed:
            return
        with errorsShown():
            self.requireWorker()
            self.teachDesk.refresh()
            self.runTimer.start()
            self._pace()

    def onCancel(self) -> None:
        self.session.cancel()
        self.predictDesk.cancel()
        self.showStatus(self.session.status)

    def onUndo(self) -> None:
        """Take the last step back; a prediction that has not written anything yet is that step itself."""
        desk = self.predictDesk
        isStep = not desk.is_running or desk.has_written
        with errorsShown(waitCursor=True):
            desk.cancel()
            if isStep:
                self.session.undo()
        self._showHistory()

    def onRedo(self) -> None:
        with errorsShown(waitCursor=True):
            self.predictDesk.cancel()
            self.session.redo()
        self._showHistory()

    def _showHistory(self) -> None:
        """A step was taken back or brought back: show what is there now."""
        self.predictDesk.overlay.refresh()
        self.predict.showOverlay()
        self.updateSegments()


def _timer(milliseconds: int, act: Callable[[], None], isSingle: bool = False) -> Any:
    timer = qt.QTimer()
    timer.interval = milliseconds
    timer.setSingleShot(isSingle)
    timer.timeout.connect(act)
    return timer

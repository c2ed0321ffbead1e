"""Step 5: cases, fine-tuning, versions, and pre-training."""

from __future__ import annotations

from typing import Any

import qt
import slicer.util
from medssl.scene.session import Session
from medssl.scene.teaching import TeachDesk
from slicer.i18n import tr as _

from .ConfidenceStrip import CurvePlot
from .Errors import errorsShown
from .Lists import fill
from .Times import timeLeftText

__all__ = ["TeachSection"]

PICTURE_WIDTH = 360


class TeachSection:
    """Connects the widgets of step 5.

    Args:
        ui: the named child widgets.
        desk: asks the worker.
        session: knows whether there is something to learn from in the scene.
    """

    def __init__(self, ui: Any, desk: TeachDesk, session: Session) -> None:
        self.ui = ui
        self.desk = desk
        self.session = session
        self.plot = CurvePlot()
        self.plot.toolTip = _("How the run goes: Dice on a slice or case that is held out, else the loss.")
        ui.plotLayout.addWidget(self.plot)
        for button, handler in (
            (ui.addCaseButton, self.onAddCase),
            (ui.removeCaseButton, self.onRemoveCase),
            (ui.finetuneButton, self.onFinetune),
            (ui.stopRunButton, lambda: self._do(desk.stop)),
            (ui.resumeRunButton, lambda: self._do(desk.resume)),
            (ui.adoptButton, lambda: self._do(lambda: desk.adopt(self.ui.modelNameEdit.text.strip()))),
            (ui.useVersionButton, self.onUseVersion),
        ):
            button.clicked.connect(handler)
        ui.runComboBox.currentIndexChanged.connect(self.onRun)
        ui.versionComboBox.currentIndexChanged.connect(self.onChosen)
        ui.caseList.currentRowChanged.connect(self.onChosen)
        ui.modelNameEdit.textChanged.connect(self.onChosen)
        self._picture: Any = None

    def show(self) -> None:
        """Show what the desk knows."""
        desk, ui = self.desk, self.ui
        names = [case["summary"] for case in desk.cases]
        if names != [ui.caseList.item(n).text() for n in range(ui.caseList.count)]:
            ui.caseList.clear()
            for name in names:
                item = qt.QListWidgetItem(name)
                item.setToolTip(name)
                ui.caseList.addItem(item)
        encoders = [(_("{name} ({method})").format(**e), e["path"]) for e in desk.encoders]
        areNew = bool(encoders) and ui.encoderComboBox.count < 2
        fill(ui.encoderComboBox, [*encoders, (_("Random weights"), "")])
        if areNew:
            ui.encoderComboBox.currentIndex = ui.encoderComboBox.findData(desk.best_encoder)
        fill(ui.runComboBox, [("", ""), *((f"{r['name']}: {r['state']}", r["path"]) for r in desk.runs)])
        self._chooseFollowed()
        fill(ui.versionComboBox, [(_titleOf(v, model), v["id"]) for model, v in self._versions()])
        self.showRun()

    def showEnabled(self) -> None:
        """Enable what can be done now."""
        desk, ui, survey = self.desk, self.ui, self.session.survey
        run = desk.run
        ui.addCaseButton.enabled = survey is not None and bool(survey.drawn)
        ui.removeCaseButton.enabled = 0 <= ui.caseList.currentRow < len(desk.cases)
        ui.finetuneButton.enabled = bool(desk.cases)
        ui.stopRunButton.enabled = run is not None and run["state"] == "running"
        ui.resumeRunButton.enabled = run is not None and run["state"] in ("stopped", "failed", "lost")
        hasModel = run is not None and run["kind"] == "finetune" and run["has_result"]
        ui.adoptButton.enabled = hasModel and bool(ui.modelNameEdit.text.strip())
        chosen = ui.versionComboBox.itemData(ui.versionComboBox.currentIndex)
        ui.useVersionButton.enabled = any(
            v["id"] == chosen and not _isInUse(v, model) for model, v in self._versions()
        )

    def _versions(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Every version of every model, behind its model."""
        return [(model, version) for model in self.desk.models for version in model["versions"]]

    def _chooseFollowed(self) -> None:
        """Have the list show the run that is followed."""
        comboBox, run = self.ui.runComboBox, self.desk.run
        row = comboBox.findData(run["path"]) if run is not None else -1
        if row > 0 and comboBox.currentIndex != row:
            wasBlocked = comboBox.blockSignals(True)
            comboBox.currentIndex = row
            comboBox.blockSignals(wasBlocked)

    def showRun(self) -> None:
        """Show how the run being followed stands."""
        self._showCurve()
        self._showPicture()
        self.ui.runLabel.text = self._runText()
        self.showEnabled()

    def _showCurve(self) -> None:
        """Dice where something is held out to measure on, else the loss."""
        dice, loss = self.desk.curve("dice"), self.desk.curve("loss")
        if dice.values or not loss.values:
            self.plot.display(_("Dice"), dice.steps, dice.values)
        else:
            self.plot.display(_("Loss"), loss.steps, loss.values, max(loss.values))

    def _runText(self) -> str:
        """How the run stands, what it said last, and what the desk has to say."""
        run, lines = self.desk.run, []
        if run is not None:
            progress = run.get("progress") or {}
            left = timeLeftText(progress.get("seconds_left")) if run["state"] == "running" else ""
            said = [event["text"] for event in self.desk.events if event["type"] == "log"]
            lines = [", ".join(filter(None, (run["state"], left))), *said[-1:]]
        return "\n".join([*lines, *([self.desk.message] if self.desk.message else [])])

    def _showPicture(self) -> None:
        """Show what the run has drawn last, e.g. reconstructions; nothing where it has drawn nothing."""
        picture = self.desk.picture
        self.ui.pictureLabel.visible = picture is not None
        if picture is not None and picture is not self._picture:
            self.ui.pictureLabel.pixmap = _pixmapOf(picture).scaledToWidth(PICTURE_WIDTH)
        self._picture = picture

    def _do(self, action: Any) -> None:
        with errorsShown():
            action()
        self.show()

    def onAddCase(self) -> None:
        with errorsShown():
            proposal = self.desk.propose()
            question = _("Keep this volume as a case? You vouch for these slices:\n\n{slices}")
            if slicer.util.confirmOkCancelDisplay(question.format(slices=proposal.text()), _("A case")):
                self.desk.add_case(proposal)
        self.show()

    def onRemoveCase(self) -> None:
        row = self.ui.caseList.currentRow
        if 0 <= row < len(self.desk.cases):
            self._do(lambda: self.desk.remove_case(self.desk.cases[row]["id"]))

    def onFinetune(self) -> None:
        settings: dict[str, Any] = {
            "minutes": float(self.ui.minutesSpinBox.value),
            "encoder": self.ui.encoderComboBox.itemData(self.ui.encoderComboBox.currentIndex),
            "device": self.ui.deviceComboBox.itemData(self.ui.deviceComboBox.currentIndex),
        }
        self._do(lambda: self.desk.finetune({name: value for name, value in settings.items() if value}))

    def onRun(self, *_ignored: Any) -> None:
        path = self.ui.runComboBox.itemData(self.ui.runComboBox.currentIndex)
        if path:
            self._do(lambda: self.desk.follow(path))

    def onChosen(self, *_ignored: Any) -> None:
        self.showEnabled()

    def onUseVersion(self) -> None:
        self._do(
            lambda: self.desk.use(self.ui.versionComboBox.itemData(self.ui.versionComboBox.currentIndex))
        )


def _isInUse(version: dict[str, Any], model: dict[str, Any]) -> bool:
    return bool(version["number"] == model["in_use"])


def _titleOf(version: dict[str, Any], model: dict[str, Any]) -> str:
    return _("{id} (in use)").format(id=version["id"]) if _isInUse(version, model) else str(version["id"])


def _pixmapOf(picture: Any) -> Any:
    """(H, W, 3) uint8 as a QPixmap, by way of the plainest image file there is."""
    height, width = picture.shape[:2]
    pixmap = qt.QPixmap()
    pixmap.loadFromData(b"P6 %d %d 255\n" % (width, height) + picture.tobytes())
    return pixmap

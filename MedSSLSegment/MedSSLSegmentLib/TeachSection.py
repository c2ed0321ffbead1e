"""Step 5: cases, fine-tuning, versions, and pre-training."""

from __future__ import annotations

from typing import Any

import qt
import slicer.util
from medssl.scene.teaching import TeachDesk
from slicer.i18n import tr as _

from .ConfidenceStrip import CurvePlot
from .Errors import errorsShown
from .PredictSection import fill

__all__ = ["TeachSection"]


class TeachSection:
    """Connects the widgets of step 5.

    Args:
        ui: the named child widgets.
        desk: asks the worker.
    """

    def __init__(self, ui: Any, desk: TeachDesk) -> None:
        self.ui = ui
        self.desk = desk
        self.plot = CurvePlot()
        ui.plotLayout.addWidget(self.plot)
        for button, handler in (
            (ui.addCaseButton, self.onAddCase),
            (ui.removeCaseButton, self.onRemoveCase),
            (ui.finetuneButton, self.onFinetune),
            (ui.stopRunButton, lambda: self._do(desk.stop)),
            (ui.resumeRunButton, lambda: self._do(desk.resume)),
            (ui.adoptButton, lambda: self._do(lambda: desk.adopt(self.ui.modelNameEdit.text.strip()))),
            (ui.useVersionButton, self.onUseVersion),
            (ui.pretrainButton, self.onPretrain),
            (ui.pretrainBrowseButton, self.onBrowse),
        ):
            button.clicked.connect(handler)
        ui.runComboBox.currentIndexChanged.connect(self.onRun)
        ui.methodComboBox.currentIndexChanged.connect(self.onMethod)
        for preset in ("auto", "cpu", "gpu", "paper"):
            ui.presetComboBox.addItem(preset, preset)

    def show(self) -> None:
        """Show what the desk knows."""
        desk, ui = self.desk, self.ui
        names = [f"{case['name']}: {case['summary']}" for case in desk.cases]
        if names != [ui.caseList.item(n).text() for n in range(ui.caseList.count)]:
            ui.caseList.clear()
            for name in names:
                ui.caseList.addItem(name)
        encoders = [(_("{name} ({method})").format(**e), e["path"]) for e in desk.encoders]
        fill(ui.encoderComboBox, [*encoders, (_("Random weights"), "")])
        fill(ui.runComboBox, [("", ""), *((f"{r['name']}: {r['state']}", r["path"]) for r in desk.runs)])
        versions = [(v["id"], v["id"]) for model in desk.models for v in model["versions"]]
        fill(ui.versionComboBox, versions)
        fill(ui.methodComboBox, [(m["title"], m["name"]) for m in desk.methods])
        self.onMethod()
        self.showRun()

    def showRun(self) -> None:
        """Show how the run being followed stands."""
        run, curve = self.desk.run, self.desk.curve("dice")
        self.plot.display(curve.steps, curve.values)
        isRunning = run is not None and run["state"] == "running"
        self.ui.stopRunButton.enabled = isRunning
        self.ui.resumeRunButton.enabled = run is not None and run["state"] in ("stopped", "failed", "lost")
        self.ui.adoptButton.enabled = run is not None and run["kind"] == "finetune" and run["has_result"]
        self.ui.useVersionButton.enabled = self.ui.versionComboBox.count > 0
        self.ui.runLabel.text = self.desk.message

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
        settings = {
            "minutes": float(self.ui.minutesSpinBox.value),
            "encoder": self.ui.encoderComboBox.itemData(self.ui.encoderComboBox.currentIndex),
        }
        self._do(lambda: self.desk.finetune({name: value for name, value in settings.items() if value}))

    def onRun(self, *_ignored: Any) -> None:
        path = self.ui.runComboBox.itemData(self.ui.runComboBox.currentIndex)
        if path:
            self._do(lambda: self.desk.follow(path))

    def onUseVersion(self) -> None:
        self._do(
            lambda: self.desk.use(self.ui.versionComboBox.itemData(self.ui.versionComboBox.currentIndex))
        )

    def onMethod(self, *_ignored: Any) -> None:
        name = self.ui.methodComboBox.itemData(self.ui.methodComboBox.currentIndex)
        advice = {method["name"]: method["advice"] for method in self.desk.methods}
        self.ui.methodLabel.text = advice.get(name, "")

    def onBrowse(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(None, _("Folder of scans without labels"))
        if folder:
            self.ui.pretrainFolderEdit.text = folder

    def onPretrain(self) -> None:
        settings = {
            "method": self.ui.methodComboBox.itemData(self.ui.methodComboBox.currentIndex),
            "data": self.ui.pretrainFolderEdit.text.strip(),
            "preset": self.ui.presetComboBox.itemData(self.ui.presetComboBox.currentIndex),
            "minutes": float(self.ui.pretrainMinutesSpinBox.value),
        }
        self._do(lambda: self.desk.pretrain(settings))

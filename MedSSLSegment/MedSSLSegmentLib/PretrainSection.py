"""Pre-training: which method on which scans, what it would take, and the start of it."""

from __future__ import annotations

from typing import Any

import qt
from medssl.scene.teaching import TeachDesk
from slicer.i18n import tr as _

from .Errors import errorsShown
from .Lists import fill

__all__ = ["PretrainSection"]


class PretrainSection:
    """Connects the widgets of pre-training; a run that has begun is followed in step 5.

    Args:
        ui: the named child widgets.
        desk: asks the worker.
    """

    def __init__(self, ui: Any, desk: TeachDesk) -> None:
        self.ui = ui
        self.desk = desk
        ui.pretrainButton.clicked.connect(self.onPretrain)
        ui.estimateButton.clicked.connect(self.onEstimate)
        ui.pretrainBrowseButton.clicked.connect(self.onBrowse)
        for comboBox in (ui.methodComboBox, ui.presetComboBox, ui.backboneComboBox):
            comboBox.currentIndexChanged.connect(self.onChanged)
        ui.pretrainMinutesSpinBox.valueChanged.connect(self.onChanged)
        ui.pretrainFolderEdit.textChanged.connect(self.onChanged)

    def show(self) -> None:
        """Show the methods, what the chosen one is for, and what it would take."""
        desk, ui = self.desk, self.ui
        fill(ui.methodComboBox, [(m["title"], m["name"]) for m in desk.methods])
        method = self._method()
        presets = method["presets"] if method else {}
        fill(ui.presetComboBox, [(_("Automatic"), "auto"), *((name, name) for name in presets)])
        fill(ui.backboneComboBox, [(_("The preset's"), ""), *self._backbones()])
        ui.methodLabel.text = method["advice"] if method else ""
        canStart = method is not None and bool(ui.pretrainFolderEdit.text.strip())
        ui.pretrainButton.enabled = ui.estimateButton.enabled = canStart
        ui.estimateButton.text = _("Cancel estimate") if desk.is_estimating else _("Estimate time and memory")
        ui.estimateLabel.text = desk.estimate or (desk.message if desk.is_estimating else "")

    def settings(self) -> dict[str, Any]:
        """What the widgets ask for, as `PretrainConfig` has it."""
        ui = self.ui
        wanted = {
            "method": _dataOf(ui.methodComboBox),
            "data": ui.pretrainFolderEdit.text.strip(),
            "preset": _dataOf(ui.presetComboBox),
            "backbone": _dataOf(ui.backboneComboBox),
            "minutes": float(ui.pretrainMinutesSpinBox.value),
            "device": _dataOf(ui.deviceComboBox),
        }
        return {name: value for name, value in wanted.items() if value}

    def _method(self) -> dict[str, Any] | None:
        name = _dataOf(self.ui.methodComboBox)
        return next((method for method in self.desk.methods if method["name"] == name), None)

    def _backbones(self) -> list[tuple[str, str]]:
        """The networks for as many dimensions as the chosen method works in."""
        method = self._method()
        dims = {preset["spatial_dims"] for preset in method["presets"].values()} if method else set()
        return [(b["title"], b["name"]) for b in self.desk.backbones if b["spatial_dims"] in dims]

    def onChanged(self, *_ignored: Any) -> None:
        self.desk.drop_estimate()
        self.show()

    def onBrowse(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(None, _("Folder of scans without labels"))
        if folder:
            self.ui.pretrainFolderEdit.text = folder

    def onEstimate(self) -> None:
        with errorsShown():
            if self.desk.is_estimating:
                self.desk.drop_estimate()
            else:
                self.desk.ask_estimate(self.settings())
        self.show()

    def onPretrain(self) -> None:
        with errorsShown():
            self.desk.pretrain(self.settings())
        self.show()


def _dataOf(comboBox: Any) -> Any:
    """What stands behind the chosen row; None where there is no row."""
    return comboBox.itemData(comboBox.currentIndex) if comboBox.count else None

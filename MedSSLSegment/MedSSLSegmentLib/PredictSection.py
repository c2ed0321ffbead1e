"""Step 4: trained models at work, and their stages side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medssl.scene.predicting import PredictDesk
from medssl.scene.teaching import TeachDesk
from slicer.i18n import tr as _

from .Errors import errorsShown
from .Lists import fill
from .ModelDownload import ensureModel

__all__ = ["PredictSection", "cardOf"]


def cardOf(version: dict[str, Any]) -> str:
    """A model's card in a few lines."""
    dice = ", ".join(f"{name} {value:.2f}" for name, value in version["dice"].items())
    segments = ", ".join(segment["name"] for segment in version["segments"])
    return _("{id}: {segments}. Dice {dice}. From {count} cases, {backbone}, {size} MB.").format(
        id=version["id"],
        segments=segments,
        dice=dice or _("not measured"),
        count=len(version["cases"]),
        backbone=version["backbone"],
        size=round(version["size_bytes"] / 1e6),
    )


class PredictSection:
    """Connects the widgets of step 4.

    Args:
        ui: the named child widgets.
        desk: predicts.
        teach: knows the models.
        requireSegmentation: makes a segmentation for what is found, where none is chosen.
    """

    def __init__(
        self, ui: Any, desk: PredictDesk, teach: TeachDesk, requireSegmentation: Callable[[], None]
    ) -> None:
        self.ui = ui
        self.desk = desk
        self.teach = teach
        self.requireSegmentation = requireSegmentation
        ui.predictButton.clicked.connect(self.onPredict)
        ui.segmentEverythingButton.clicked.connect(self.onSegmentEverything)
        ui.compareButton.clicked.connect(self.onCompare)
        ui.stageComboBox.currentIndexChanged.connect(self.onStage)
        ui.showUncertaintyButton.toggled.connect(self.onShowUncertainty)
        ui.trainedModelComboBox.currentIndexChanged.connect(self.show)

    def model(self) -> dict[str, Any] | None:
        """The chosen model, with its versions."""
        name = self.ui.trainedModelComboBox.itemData(self.ui.trainedModelComboBox.currentIndex)
        return next((model for model in self.teach.models if model["name"] == name), None)

    def show(self, *_ignored: Any) -> None:
        """Show the models, the chosen one's card, and the stages there are."""
        fill(self.ui.trainedModelComboBox, [(model["name"], model["name"]) for model in self.teach.models])
        model = self.model()
        hint = _("No model has been trained yet; see step 5.")
        inUse = (
            next((v for v in model["versions"] if v["number"] == model["in_use"]), None) if model else None
        )
        self.ui.modelCardLabel.text = cardOf(inUse) if inUse else hint
        stages = self.desk.stages()
        fill(self.ui.stageComboBox, [(stage, stage) for stage in stages])
        self.ui.compareButton.enabled = self.ui.stageComboBox.enabled = bool(stages)
        self.showOverlay()

    def showEnabled(self, isBusy: bool) -> None:
        """Enable what can be done now.

        Args:
            isBusy: whether a propagation or a prediction runs: there is one at a time.
        """
        hasVolume = self.ui.volumeSelector.currentNode() is not None
        canRun = self.model() is not None and hasVolume and not isBusy
        self.ui.predictButton.enabled = self.ui.segmentEverythingButton.enabled = canRun
        self.ui.trainedModelComboBox.enabled = not isBusy

    def showOverlay(self) -> None:
        """Show whether there is an uncertainty map, and whether it lies over the image."""
        overlay, button = self.desk.overlay, self.ui.showUncertaintyButton
        wasBlocked = button.blockSignals(True)
        button.enabled = overlay.node is not None
        button.checked = overlay.is_shown
        button.blockSignals(wasBlocked)

    def onPredict(self) -> None:
        with errorsShown():
            self.requireSegmentation()
            self.desk.predict(self.model()["name"], maps=self.ui.uncertaintyCheckBox.checked)

    def onSegmentEverything(self) -> None:
        with errorsShown():
            self.requireSegmentation()
            if all(ensureModel(modelId) for modelId in self.desk.promptable):
                self.desk.segment_everything(self.model()["name"])

    def onStage(self, *_ignored: Any) -> None:
        stage = self.ui.stageComboBox.itemData(self.ui.stageComboBox.currentIndex)
        if stage:
            self.desk.show(stage)

    def onShowUncertainty(self, on: bool) -> None:
        self.desk.overlay.show(on)

    def toggleUncertainty(self) -> None:
        """Lay the map over the image, or take it away; nothing happens where there is none."""
        self.desk.overlay.show(not self.desk.overlay.is_shown)
        self.showOverlay()

    def onCompare(self) -> None:
        with errorsShown():
            shown = self.desk.show_next()
            self.ui.stageComboBox.currentIndex = self.ui.stageComboBox.findData(shown)

"""Step 4: trained models, and the stages of what they make."""

from __future__ import annotations

from typing import Any

from trame_server import Server

from ..ui.parts import Choice
from ..ui.predict_step_ui import PredictStepState, PredictStepUI
from ..work import Work
from .section import SectionLogic, kept

__all__ = ["PredictStepLogic"]


class PredictStepLogic(SectionLogic[PredictStepState]):
    """Predicting and comparing."""

    def __init__(self, server: Server, work: Work) -> None:
        super().__init__(server, work, PredictStepState)
        self._desk = work.predict
        self.bind_changes({self.name.is_map_shown: self._on_map_shown})

    def set_ui(self, ui: PredictStepUI) -> None:
        """Listen to the widgets."""
        ui.predict_clicked.connect(self.predict)
        ui.segment_everything_clicked.connect(self.segment_everything)
        ui.stage_clicked.connect(self.show_stage)
        ui.compare_clicked.connect(self.compare)

    def predict(self) -> None:
        """Find the model's segments in the volume."""
        self.work.attempt(lambda: self._desk.predict(self.data.model, maps=self.data.maps))

    def segment_everything(self) -> None:
        """Coarse, refined, propagated, final, in one go."""
        self.work.attempt(lambda: self._desk.segment_everything(self.data.model))

    def show_stage(self, stage: str) -> None:
        """Make one stage visible."""
        self.work.attempt(lambda: self._desk.show(stage))
        self.show()

    def compare(self) -> None:
        """Show the stage after the one that is visible."""
        if self._desk.stages():
            self.work.attempt(self._desk.show_next)
        self.show()

    def toggle_map(self) -> None:
        """Show the uncertainty, or hide it."""
        self._on_map_shown(not self._desk.overlay.is_shown)

    def show(self) -> None:
        """Show the models, the chosen one's card, and the stages there are."""
        data, models = self.data, {model["name"]: model for model in self.work.teach.models}
        data.models = [Choice(name, name) for name in models]
        data.model = kept(data.model, data.models)
        data.card = _card(models.get(data.model))
        data.can_run = bool(data.model) and not self.work.is_running and self.session.volume_node is not None
        data.stages, data.stage = self._desk.stages(), self._desk.shown
        data.has_map, data.is_map_shown = self._desk.overlay.node is not None, self._desk.overlay.is_shown

    def _on_map_shown(self, is_shown: bool) -> None:
        self._desk.overlay.show(is_shown)
        self.show()


def _card(model: dict[str, Any] | None) -> str:
    """A model's card in a few words."""
    if model is None:
        return "No model has been trained yet; see step 5."
    version = next(v for v in model["versions"] if v["number"] == model["in_use"])
    dice = ", ".join(f"{name} {value:.2f}" for name, value in version["dice"].items()) or "not measured"
    segments = ", ".join(segment["name"] for segment in version["segments"])
    size = round(version["size_bytes"] / 1e6)
    return (
        f"{version['id']}: {segments}. Dice {dice}. From {len(version['cases'])} cases, {version['backbone']},"
        f" {size} MB."
    )

"""Step 4: trained models at work, and their stages side by side."""

from __future__ import annotations

from dataclasses import dataclass, field

from trame.widgets.html import Div
from trame.widgets.vuetify3 import VBtn, VBtnToggle, VCheckbox
from trame_server.utils.typed_state import TypedState
from trame_slicer.app.ui import FlexContainer
from undo_stack import Signal

from .parts import Button, Choice, Hint, Select, named

__all__ = ["PredictStepState", "PredictStepUI"]


@dataclass
class PredictStepState:
    """The models there are, and what one has made."""

    models: list[Choice] = field(default_factory=list)
    model: str = ""
    card: str = ""
    maps: bool = False
    can_run: bool = False
    stages: list[str] = field(default_factory=list)
    stage: str = ""
    has_map: bool = False
    is_map_shown: bool = False


class PredictStepUI(FlexContainer):  # type: ignore[misc]
    """Predict, refine, compare."""

    predict_clicked = Signal()
    segment_everything_clicked = Signal()
    stage_clicked = Signal(str)
    compare_clicked = Signal()

    def __init__(self) -> None:
        super().__init__(classes="ga-2")
        self._state = TypedState(self.state, PredictStepState)
        name = self._state.name
        with self:
            Select(
                "Model", name.model, name.models, "A model trained on your cases.", **named("trained-model")
            )
            Hint(f"{{{{ {name.card} }}}}", **named("model-card"))
            VCheckbox(
                label="Show where the model is unsure", v_model=(name.maps,), density="compact", hide_details=True,
                title="Makes a volume of uncertainty to overlay; takes twice as long.",
            )  # fmt: skip
            with Div(classes="d-flex ga-2"):
                Button(
                    "Predict", "Find the model's segments in this volume.", self.predict_clicked,
                    disabled=(f"!{name.can_run}",), color="primary", variant="flat", **named("predict"),
                )  # fmt: skip
                Button(
                    "Segment everything",
                    "Predict, refine, choose reference slices, propagate: every stage is kept for comparison.",
                    self.segment_everything_clicked,
                    disabled=(f"!{name.can_run}",),
                    **named("segment-everything"),
                )
            self._build_comparison()

    def _build_comparison(self) -> None:
        name = self._state.name
        show = self.server.controller.trigger_name(self.stage_clicked)
        with Div(v_if=(f"{name.stages}.length",), classes="d-flex flex-column ga-1"):
            Hint("Compare (C shows the next):")
            with VBtnToggle(
                model_value=(name.stage,), density="compact", divided=True, mandatory=True, **named("stages")
            ):
                VBtn(
                    v_for=(f"each in {name.stages}",), key="each", value=("each",), text=("each",), size="small",
                    classes="text-none", click=f"trigger('{show}', [each])",
                )  # fmt: skip
        VCheckbox(
            v_if=(name.has_map,), label="Overlay the uncertainty (U)", v_model=(name.is_map_shown,),
            density="compact", hide_details=True, title="Bright where the model does not know.",
        )  # fmt: skip

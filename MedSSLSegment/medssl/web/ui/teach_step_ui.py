"""Step 5: cases, fine-tuning with its live curve, versions, and pre-training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trame.widgets.html import Div
from trame.widgets.vuetify3 import (
    Template,
    VCard,
    VCardActions,
    VCardText,
    VCardTitle,
    VDialog,
    VDivider,
    VList,
    VListItem,
    VTextField,
)
from trame_server.utils.typed_state import TypedState
from trame_slicer.app.ui import FlexContainer
from undo_stack import Signal

from .parts import Button, Choice, Hint, IconButton, Select, named
from .plots import CurvePlot, CurveState

__all__ = ["TeachStepState", "TeachStepUI"]


@dataclass
class TeachStepState:
    """What there is to learn from, what learns, and what was learned."""

    cases: list[Choice] = field(default_factory=list)
    proposal: str = ""
    is_proposal_shown: bool = False
    encoders: list[Choice] = field(default_factory=list)
    encoder: str = ""
    minutes: float = 10.0
    model_name: str = ""
    runs: list[Choice] = field(default_factory=list)
    run: str = ""
    """Folder of the run that is followed."""
    curve: CurveState = field(default_factory=CurveState)
    can_stop: bool = False
    can_resume: bool = False
    can_adopt: bool = False
    versions: list[Choice] = field(default_factory=list)
    version: str = ""
    methods: list[Choice] = field(default_factory=list)
    method: str = ""
    advice: str = ""
    data_folder: str = ""
    presets: list[Choice] = field(default_factory=list)
    preset: str = "auto"
    pretrain_minutes: float = 60.0
    estimate: str = ""
    is_estimating: bool = False
    message: str = ""


class TeachStepUI(FlexContainer):  # type: ignore[misc]
    """Teach a model from what was annotated."""

    use_as_case_clicked = Signal()
    case_confirmed = Signal()
    remove_case_clicked = Signal(str)
    finetune_clicked = Signal()
    stop_clicked = Signal()
    resume_clicked = Signal()
    adopt_clicked = Signal()
    use_version_clicked = Signal()
    estimate_clicked = Signal()
    pretrain_clicked = Signal()

    def __init__(self) -> None:
        super().__init__(classes="ga-2")
        self._state = TypedState(self.state, TeachStepState)
        with self:
            self._build_cases()
            VDivider()
            self._build_finetuning()
            self._build_run()
            VDivider()
            self._build_pretraining()

    def _build_cases(self) -> None:
        name = self._state.name
        remove = self.server.controller.trigger_name(self.remove_case_clicked)
        Button(
            "Use this volume as a case", "Keep the volume and its reference slices to learn from.",
            self.use_as_case_clicked, **named("use-as-case"),
        )  # fmt: skip
        Hint(
            "No cases yet. Annotate a few slices of a volume, then press this button; fine-tuning needs at least one.",
            v_if=(f"!{name.cases}.length",),
        )
        with VList(density="compact", **named("cases"), style="max-height: 180px; overflow-y: auto"), VListItem(
            v_for=(f"each in {name.cases}",), key="each.value", title=("each.title",), classes="px-1"
        ), Template(v_slot_append=True):  # fmt: skip
            IconButton(
                "mdi-delete-outline", "Take the case out; it is kept aside.",
                f"trigger('{remove}', [each.value])",
            )  # fmt: skip
        with VDialog(v_model=(name.is_proposal_shown,), max_width=480), VCard():
            VCardTitle("Keep this volume as a case?")
            with VCardText():
                Div("You vouch for these slices:")
                Div(
                    f"{{{{ {name.proposal} }}}}",
                    style="white-space: pre-line",
                    classes="mt-2 font-weight-medium",
                )
            with VCardActions(classes="justify-end"):
                Button("Cancel", "Keep nothing. (Esc)", f"{name.is_proposal_shown} = false")
                Button(
                    "Keep", "Put it into the case store.", self.case_confirmed, color="primary", variant="flat",
                    **named("keep-case"),
                )  # fmt: skip

    def _build_finetuning(self) -> None:
        name = self._state.name
        Select("Start from", name.encoder, name.encoders, "Pre-trained encoder, or random weights.")
        with Div(classes="d-flex ga-2"):
            _Number("Minutes", name.minutes, "How long fine-tuning may take.", **named("minutes"))
            VTextField(
                v_model=(name.model_name,), label="Model name", density="compact", variant="outlined",
                hide_details=True, title="Name of the model to make a version of.", **named("model-name"),
            )  # fmt: skip
        with Div(classes="d-flex flex-wrap ga-2"):
            Button(
                "Fine-tune", "Train on the cases, in the background; it goes on when this page closes.",
                self.finetune_clicked, color="primary", variant="flat", **named("finetune"),
                disabled=(f"!{name.cases}.length",),
            )  # fmt: skip
            Button(
                "Stop", "Save and stop after this step.", self.stop_clicked, disabled=(f"!{name.can_stop}",),
                **named("stop-run"),
            )  # fmt: skip
            Button(
                "Resume",
                "Go on where the run stopped.",
                self.resume_clicked,
                disabled=(f"!{name.can_resume}",),
                **named("resume-run"),
            )
            Button(
                "Keep model", "Keep what the run has made as the next version of the model.", self.adopt_clicked,
                disabled=(f"!{name.can_adopt} || !{name.model_name}",), **named("keep-model"),
            )  # fmt: skip

    def _build_run(self) -> None:
        name = self._state.name
        Select("Run", name.run, name.runs, "Runs of this computer; choose one to follow it.")
        CurvePlot(self._state.get_sub_state(name.curve), v_if=(name.run,))
        Hint(f"{{{{ {name.message} }}}}", **named("teach-message"))
        with Div(classes="d-flex ga-2 align-center", v_if=(f"{name.versions}.length",)):
            Select("Versions", name.version, name.versions, "Versions of the models.")
            Button("Use", "Go back, or forward, to this version.", self.use_version_clicked)

    def _build_pretraining(self) -> None:
        name = self._state.name
        Hint("Pre-train an encoder on scans without labels:")
        VTextField(
            v_model=(name.data_folder,), label="Folder of scans", density="compact", variant="outlined",
            hide_details=True, title="Folder of scans without labels, on the worker's machine.",
        )  # fmt: skip
        Select("Method", name.method, name.methods, "Self-supervised method.")
        Hint(f"{{{{ {name.advice} }}}}")
        with Div(classes="d-flex ga-2"):
            Select("Preset", name.preset, name.presets, "Network and schedule.")
            _Number("Minutes", name.pretrain_minutes, "How long pre-training may take.")
        Hint(f"{{{{ {name.estimate} }}}}", v_if=(name.estimate,))
        with Div(classes="d-flex ga-2"):
            self._build_pretraining_actions()

    def _build_pretraining_actions(self) -> None:
        name = self._state.name
        Button(
            "Estimate", "Measure a few steps: how long it would take, and how much memory.", self.estimate_clicked,
            disabled=(f"!{name.data_folder} || !{name.method}",), loading=(name.is_estimating,),
        )  # fmt: skip
        Button(
            "Pre-train", "Learn from scans without labels, in the background.", self.pretrain_clicked,
            disabled=(f"!{name.data_folder} || !{name.method}",), **named("pretrain"),
        )  # fmt: skip


class _Number(VTextField):  # type: ignore[misc]
    def __init__(self, label: str, value: str, tip: str, **kwargs: Any) -> None:
        super().__init__(
            label=label,
            model_value=(value,),
            update_modelValue=f"{value} = Number($event)",
            type="number",
            density="compact",
            variant="outlined",
            hide_details=True,
            title=tip,
            style="max-width: 110px",
            **kwargs,
        )

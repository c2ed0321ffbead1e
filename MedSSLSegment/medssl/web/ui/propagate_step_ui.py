"""Step 3: reference slices, range and direction, propagation, correction, and the confidence strip."""

from __future__ import annotations

from dataclasses import dataclass, field

from trame.widgets.html import Div
from trame.widgets.vuetify3 import VCheckbox, VChip, VRangeSlider
from trame_server.utils.typed_state import TypedState
from trame_slicer.app.ui import FlexContainer
from undo_stack import Signal

from .parts import Button, Choice, Hint, Select, named
from .plots import StripState, StripUI

__all__ = ["PropagateStepState", "PropagateStepUI", "ReferenceChip"]


@dataclass
class ReferenceChip:
    """A reference slice, as a chip to click."""

    text: str = ""
    color: str = ""
    index: int = 0
    key: str = ""
    """Segment and slice, as the logic takes them apart."""
    is_used: bool = True


@dataclass
class PropagateStepState:
    """What is asked for, and what came of it."""

    strip: StripState = field(default_factory=StripState)
    strip_of: str = ""
    """Name of the segment the strip is about."""
    references: list[ReferenceChip] = field(default_factory=list)
    segments: list[Choice] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Ids of the segments that are not propagated."""
    views: list[Choice] = field(default_factory=list)
    view: str = ""
    span: list[int] = field(default_factory=lambda: [0, 0])
    """First and last slice to fill."""
    last_slice: int = 0
    directions: list[Choice] = field(default_factory=list)
    direction: str = "both"
    models: list[Choice] = field(default_factory=list)
    model: str = ""
    stop: bool = True
    hint: str = ""
    """What is missing; empty when it can start."""
    can_start: bool = False
    can_redo: bool = False
    """Whether there is an earlier run to redo."""
    suggestion: str = ""


class PropagateStepUI(FlexContainer):  # type: ignore[misc]
    """From the reference slices through the volume."""

    propagate_clicked = Signal()
    redo_clicked = Signal()
    next_slice_clicked = Signal()
    segment_clicked = Signal(str)
    slice_clicked = Signal(int)
    reference_ticked = Signal(str)

    def __init__(self) -> None:
        super().__init__(classes="ga-2")
        self._state = TypedState(self.state, PropagateStepState)
        with self:
            self._build_segments()
            self._build_references()
            self._build_settings()
            self._build_actions()

    def _build_segments(self) -> None:
        name = self._state.name
        toggle = self.server.controller.trigger_name(self.segment_clicked)
        with Div(v_if=(f"{name.segments}.length > 1",), classes="d-flex flex-wrap ga-1"):
            VChip(
                "{{ each.title }}",
                v_for=(f"each in {name.segments}",),
                key="each.value",
                size="small",
                title="Checked segments are propagated, all in one pass.",
                prepend_icon=(
                    f"{name.left_out}.includes(each.value) ? 'mdi-checkbox-blank-outline' : 'mdi-check'",
                ),
                variant=(f"{name.left_out}.includes(each.value) ? 'outlined' : 'tonal'",),
                click=f"trigger('{toggle}', [each.value])",
            )

    def _build_references(self) -> None:
        name = self._state.name
        go = self.server.controller.trigger_name(self.slice_clicked)
        use = self.server.controller.trigger_name(self.reference_ticked)
        Hint(
            f"{{{{ {name.suggestion} || `${{{name.strip_of}}}: click to go to a slice` }}}}",
            v_if=(f"{name.strip.bars}.length && {name.strip_of}",),
            **named("suggestion"),
        )
        StripUI(self._state.get_sub_state(name.strip), self.slice_clicked)
        with Div(
            classes="d-flex flex-wrap ga-1", style="max-height: 88px; overflow-y: auto", **named("references")
        ):
            VChip(
                "{{ each.text }}",
                v_for=(f"(each, n) in {name.references}",),
                key="n",
                size="small",
                title="Reference slices, found by themselves. Click one to go there, its tick to leave it out.",
                color=("each.color",),
                variant=("each.is_used ? 'tonal' : 'outlined'",),
                closable=True,
                close_icon=("each.is_used ? 'mdi-check-circle' : 'mdi-circle-outline'",),
                model_value=True,
                click=f"trigger('{go}', [each.index])",
                click_close=f"trigger('{use}', [each.key])",
            )

    def _build_settings(self) -> None:
        name = self._state.name
        Div(
            f"Slices {{{{ {name.span}[0] }}}} to {{{{ {name.span}[1] }}}}",
            classes="text-caption",
            v_if=(f"{name.last_slice} > 0",),
        )
        VRangeSlider(
            v_if=(f"{name.last_slice} > 0",), v_model=(name.span,), min=0, max=(name.last_slice,), step=1,
            hide_details=True, density="compact", title="First and last slice to fill.",
        )  # fmt: skip
        with Div(classes="d-flex ga-2"):
            Select("Slices are", name.view, name.views, "Which way the painted slices lie.")
            Select("Direction", name.direction, name.directions, "Which way to go from the reference slices.")
        Select(
            "Model", name.model, name.models,
            "The model that carries the annotation from slice to slice. The default needs no download.",
        )  # fmt: skip
        VCheckbox(
            label="Stop where the object ends", v_model=(name.stop,), density="compact", hide_details=True,
            title="Otherwise every slice of the range is filled.",
        )  # fmt: skip

    def _build_actions(self) -> None:
        name = self._state.name
        with Div(classes="d-flex ga-2"):
            Button(
                "Propagate", "Fill the slices in between and beyond, in the background. (G)",
                self.propagate_clicked, disabled=(f"!{name.can_start}",), color="primary", variant="flat",
                **named("propagate"),
            )  # fmt: skip
            Button(
                "Redo what changed",
                "After correcting a slice: only the stretches to the next reference slices are tracked again. (R)",
                self.redo_clicked, disabled=(f"!{name.can_start} || !{name.can_redo}",), **named("redo-changed"),
            )  # fmt: skip
            Button(
                "Next slice", "Go to the slice worth annotating next, and say why.", self.next_slice_clicked,
                disabled=(f"!{name.strip.bars}.length",), **named("next-slice"),
            )  # fmt: skip
        Hint(f"{{{{ {name.hint} }}}}", v_if=(name.hint,))

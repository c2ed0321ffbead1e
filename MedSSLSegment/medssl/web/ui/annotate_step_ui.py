"""Step 2: smart prompts, and the segment editor's own tools."""

from __future__ import annotations

from dataclasses import dataclass, field

from trame.widgets.html import Div
from trame.widgets.vuetify3 import VDivider
from trame_server.utils.typed_state import TypedState
from trame_slicer.app.ui import FlexContainer
from undo_stack import Signal

from .editor_ui import EditorUI
from .parts import Button, Choice, Hint, Select, named

__all__ = ["AnnotateStepState", "AnnotateStepUI"]

_TOOLS = (
    (
        "point",
        "+ Point",
        "mdi-plus-circle-outline",
        "Click on the object; with Shift beside it; drag a box. (P)",
    ),
    ("negative", "- Point", "mdi-minus-circle-outline", "Click beside the object, where it must not be. (N)"),
    ("box", "Box", "mdi-selection", "Drag a box around the object. (B)"),
    ("scribble", "Scribble", "mdi-gesture", "Drag along the object. (S)"),
)


@dataclass
class AnnotateStepState:
    """What can be done with the prompts."""

    tool: str = ""
    """Value of the `PromptTool` in hand; empty for none."""
    message: str = ""
    count: str = ""
    """How many prompts the slice has, in words; empty for none."""
    is_waiting: bool = False
    can_accept: bool = False
    can_take_back: bool = False
    has_another: bool = False
    """Whether the click has other answers."""
    models: list[Choice] = field(default_factory=list)
    model: str = ""


class AnnotateStepUI(FlexContainer):  # type: ignore[misc]
    """Prompts and painting."""

    tool_clicked = Signal(str)
    accept_clicked = Signal()
    another_clicked = Signal()
    take_back_clicked = Signal()
    drop_clicked = Signal()

    def __init__(self, editor: EditorUI) -> None:
        super().__init__(classes="ga-2")
        self._state = TypedState(self.state, AnnotateStepState)
        with self:
            self._build_tools()
            Hint(
                f"{{{{ {self._state.name.count} }}}} {{{{ {self._state.name.message} }}}}",
                style="min-height: 20px", **named("prompt-message"),
            )  # fmt: skip
            self._build_decisions()
            Select(
                "Model", self._state.name.model, self._state.name.models,
                "The model that answers points and boxes.",
                classes="mt-1",
            )  # fmt: skip
            VDivider(classes="my-1")
            Hint("Or paint by hand:")
            editor.build_tools()
            editor.build_options()

    def _build_tools(self) -> None:
        with Div(classes="d-flex ga-1"):
            for value, text, icon, tip in _TOOLS:
                is_in_hand = f"{self._state.name.tool} === '{value}'"
                Button(
                    text,
                    tip,
                    lambda value=value: self.tool_clicked(value),
                    prepend_icon=icon,
                    active=(is_in_hand,),
                    color=(f"{is_in_hand} ? 'primary' : undefined",),
                    classes="text-none flex-grow-1 px-1",
                    **named(f"tool-{value}"),
                )

    def _build_decisions(self) -> None:
        name = self._state.name
        with Div(classes="d-flex ga-2"):
            Button(
                "Accept", "Make the preview part of the segment; the slice becomes a reference slice. (Enter)",
                self.accept_clicked, disabled=(f"!{name.can_accept}",), color="success", **named("accept"),
            )  # fmt: skip
            Button(
                "Another", "Show another answer to the click or the box: smaller, larger, or of another part. (A)",
                self.another_clicked, disabled=(f"!{name.has_another}",), **named("another"),
            )  # fmt: skip
            Button(
                "Take back", "Take the last prompt of this slice back. (Backspace)",
                self.take_back_clicked, disabled=(f"!{name.can_take_back}",), **named("take-back"),
            )  # fmt: skip
            Button(
                "Drop", "Forget the prompts and the preview of this slice. (Esc)",
                self.drop_clicked, disabled=(f"!{name.can_take_back}",), **named("drop"),
            )  # fmt: skip

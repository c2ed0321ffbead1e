"""Step 1: what is worked on."""

from __future__ import annotations

from dataclasses import dataclass, field

from trame.widgets.html import Div
from trame_server.utils.typed_state import TypedState
from trame_slicer.app.ui import FlexContainer
from undo_stack import Signal

from .editor_ui import EditorUI
from .parts import Button, Choice, Select, named

__all__ = ["VolumeStepState", "VolumeStepUI"]


@dataclass
class VolumeStepState:
    """What there is, and what is chosen."""

    volumes: list[Choice] = field(default_factory=list)
    volume: str = ""
    """Id of the node."""
    segmentations: list[Choice] = field(default_factory=list)
    segmentation: str = ""
    """Id of the node."""
    is_locked: bool = False
    """Whether a run is under way, so that nothing else can be chosen."""


class VolumeStepUI(FlexContainer):  # type: ignore[misc]
    """Volume, segmentation, segments."""

    new_segmentation_clicked = Signal()
    add_segment_clicked = Signal()

    def __init__(self, editor: EditorUI) -> None:
        super().__init__(classes="ga-3")
        state = TypedState(self.state, VolumeStepState)
        with self:
            Select(
                "Volume", state.name.volume, state.name.volumes, "The CT (or other image) to segment.",
                disabled=(state.name.is_locked,),
            )  # fmt: skip
            with Div(classes="d-flex align-center ga-2"):
                Select(
                    "Segmentation",
                    state.name.segmentation,
                    state.name.segmentations,
                    "Where segments are painted and results are written.",
                    disabled=(state.name.is_locked,),
                    **named("segmentation"),
                )
                Button(
                    "New",
                    "Begin another segmentation of this volume.",
                    self.new_segmentation_clicked,
                    **named("new-segmentation"),
                )
            editor.build_segments()
            Button(
                "Add segment", "One more structure to segment.", self.add_segment_clicked,
                prepend_icon="mdi-plus", disabled=(f"!{state.name.volume}",), classes="text-none align-self-start",
                **named("add-segment"),
            )  # fmt: skip

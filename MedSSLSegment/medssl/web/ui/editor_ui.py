"""trame-slicer's segment editor, its parts where this page has room for them: nothing of it is made anew."""

from __future__ import annotations

from trame.widgets.html import Div
from trame_slicer.app.ui import (
    DrawEffectUI,
    FlexContainer,
    IslandsEffectUI,
    LogicalOperatorsEffectUI,
    PaintEffectUI,
    ScissorsEffectUI,
    SegmentDisplayUI,
    SegmentEditAreaUI,
    SegmentEditorUI,
    SmoothingEffectUI,
    ThresholdEffectUI,
)
from trame_slicer.segmentation import (
    SegmentationEffectDraw,
    SegmentationEffectErase,
    SegmentationEffectIslands,
    SegmentationEffectLogicalOperators,
    SegmentationEffectPaint,
    SegmentationEffectScissors,
    SegmentationEffectSmoothing,
    SegmentationEffectThreshold,
)

__all__ = ["EditorUI"]

_PARAMETERS = {
    SegmentationEffectPaint: PaintEffectUI,
    SegmentationEffectErase: PaintEffectUI,
    SegmentationEffectLogicalOperators: LogicalOperatorsEffectUI,
    SegmentationEffectThreshold: ThresholdEffectUI,
    SegmentationEffectIslands: IslandsEffectUI,
    SegmentationEffectDraw: DrawEffectUI,
    SegmentationEffectScissors: ScissorsEffectUI,
    SegmentationEffectSmoothing: SmoothingEffectUI,
}


class EditorUI(SegmentEditorUI):  # type: ignore[misc]
    """The segment editor's widgets; its own place on the page holds the dialog for colours only."""

    def _build_ui(self) -> None:
        with self:
            self.edit_ui._build_color_dialog()

    def build_segments(self) -> None:
        """The list of segments."""
        with Div(classes="medssl-segments"):
            self._create_segment_list()

    def build_tools(self) -> None:
        """The effects, what can be set of the one in hand, display and masking."""
        with FlexContainer(row=True, classes="flex-wrap"):
            self.build_effect_buttons()
        for effect, parameters in _PARAMETERS.items():
            self._register_effect_ui(effect, parameters)

    def build_options(self) -> None:
        """Display and masking."""
        with Div(classes="medssl-options"):
            self._build_options()

    def _build_options(self) -> None:
        SegmentDisplayUI(typed_state=self.sub_state(self._typed_state.name.segment_display), variant="flat")
        SegmentEditAreaUI(
            segment_edit_area_typed_state=self.sub_state(self._typed_state.name.segment_edit_area),
            variant="flat",
        )

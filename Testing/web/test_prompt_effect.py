"""What the mouse places with each tool."""

from __future__ import annotations

import pytest

pytest.importorskip("trame_slicer")

from medssl.web.prompt_effect import PromptTool, SmartPromptEffect, Stroke, placed_by

CLICK = [(10.0, 10.0), (12.0, 11.0)]
DRAG = [(10.0, 10.0), (40.0, 30.0)]


@pytest.mark.parametrize(
    ("tool", "way", "shift", "placed"),
    [
        (PromptTool.POINT, CLICK, False, ("point", True)),
        (PromptTool.POINT, CLICK, True, ("point", False)),
        (PromptTool.POINT, DRAG, False, ("box", True)),
        (PromptTool.NEGATIVE, CLICK, False, ("point", False)),
        (PromptTool.NEGATIVE, DRAG, False, ("", True)),
        (PromptTool.BOX, CLICK, False, ("", True)),
        (PromptTool.BOX, DRAG, False, ("box", True)),
        (PromptTool.SCRIBBLE, DRAG, False, ("scribble", True)),
        (PromptTool.SCRIBBLE, DRAG, True, ("scribble", False)),
        (PromptTool.SCRIBBLE, CLICK, False, ("", True)),
    ],
)
def test_a_click_is_a_point_and_a_drag_is_what_the_tool_draws(
    tool: PromptTool, way: list[tuple[float, float]], shift: bool, placed: tuple[str, bool]
) -> None:
    assert placed_by(tool, Stroke(shift=shift, way_px=way)) == placed


def test_a_drag_that_comes_back_to_where_it_began_is_no_click() -> None:
    assert not Stroke(shift=False, way_px=[(0.0, 0.0), (30.0, 0.0), (0.0, 0.0)]).is_click


@pytest.mark.parametrize(
    ("tool", "shift", "told"),
    [
        (PromptTool.POINT, False, [True]),
        (PromptTool.POINT, True, [False]),
        (PromptTool.NEGATIVE, False, [False]),
        (PromptTool.BOX, False, []),
        (PromptTool.SCRIBBLE, False, []),
    ],
)
def test_where_the_mouse_is_is_told_if_a_click_there_would_place_a_point(
    tool: PromptTool, shift: bool, told: list[bool]
) -> None:
    effect, heard = SmartPromptEffect(), []
    effect.tool = tool
    effect.hovered.connect(lambda position, normal, positive: heard.append((position, normal, positive)))
    effect.hover([1.0, 2.0, 3.0], [0.0, 0.0, 1.0], shift)
    assert heard == [([1.0, 2.0, 3.0], [0.0, 0.0, 1.0], positive) for positive in told]

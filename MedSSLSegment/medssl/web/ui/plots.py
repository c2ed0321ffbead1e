"""The confidence strip and the curve of a run, drawn by the browser from a few numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trame.widgets.html import Div
from trame_server.utils.typed_state import TypedState

__all__ = ["CurvePlot", "CurveState", "StripState", "StripUI"]

_STRIP_PX, _CURVE_PX = 54, 96


@dataclass
class StripState:
    """One column a slice."""

    bars: list[list[float]] = field(default_factory=list)
    """[how much was found, 0 .. 1; how surely, 0 .. 1, or -1 where the program wrote nothing]."""
    references: list[int] = field(default_factory=list)
    suggestions: list[int] = field(default_factory=list)
    current: int = -1


class StripUI(Div):  # type: ignore[misc]
    """A strip along the volume: its height is how much was found, its colour how surely.

    Args:
        state: what is shown.
        on_jump: called with the slice that was clicked.
    """

    def __init__(self, state: TypedState[StripState], on_jump: Callable[[int], None], **kwargs: Any) -> None:
        super().__init__(classes="medssl-strip", **kwargs)
        name, count = state.name, f"Math.max({state.name.bars}.length, 1)"
        jump = self.server.controller.trigger_name(on_jump)
        with self:
            Div(
                f"""
<svg width="100%" height="{_STRIP_PX}" :viewBox="`0 0 ${{{count}}} {_STRIP_PX}`" preserveAspectRatio="none"
  shape-rendering="crispEdges" data-test="strip"
  style="background: #14181d; border-radius: 4px; cursor: pointer; display: block"
  @click="trigger('{jump}', [Math.floor(($event.clientX - $event.currentTarget.getBoundingClientRect().left)
    / $event.currentTarget.clientWidth * {name.bars}.length)])">
  <rect v-for="(bar, n) in {name.bars}" :key="n" :x="n" width="1.03" :y="{_STRIP_PX} - {_STRIP_PX - 12} * bar[0]"
    :height="{_STRIP_PX - 12} * bar[0]" :fill="bar[1] < 0 ? '#8b949e'
      : `rgb(${{215 - 169 * bar[1]}}, ${{58 + 102 * bar[1]}}, ${{73 - 6 * bar[1]}})`" />
  <rect v-for="n in {name.suggestions}" :key="'s' + n" :x="n - {count} / 200" :width="1 + {count} / 100" y="0"
    height="9" fill="#d29922" />
  <rect v-for="n in {name.references}" :key="'r' + n" :x="n - {count} / 200" :width="1 + {count} / 100" y="0"
    height="9" fill="#4493f8" />
  <rect v-if="{name.current} >= 0" :x="{name.current} + 0.5 - {count} / 700" :width="{count} / 350" y="0"
    height="{_STRIP_PX}" fill="#ffffff" />
</svg>
<div v-if="{name.bars}.length" class="d-flex justify-space-between text-caption text-medium-emphasis">
  <span>0</span>
  <span><span style="color: #4493f8">&#9632;</span> reference
    <span style="color: #2ea043">&#9632;</span> sure <span style="color: #d73a49">&#9632;</span> unsure
    <span style="color: #d29922">&#9632;</span> next <span style="color: #ffffff">&#9632;</span> shown</span>
  <span>{{{{ {name.bars}.length - 1 }}}}</span>
</div>"""
            )


@dataclass
class CurveState:
    """A number from 0 to 1 over the steps of a run."""

    points: list[list[float]] = field(default_factory=list)
    """[share of the steps, value], each 0 .. 1."""
    label: str = ""


class CurvePlot(Div):  # type: ignore[misc]
    """A curve, its last value in words.

    Args:
        state: what is shown.
    """

    def __init__(self, state: TypedState[CurveState], **kwargs: Any) -> None:
        super().__init__(classes="medssl-curve", **kwargs)
        name = state.name
        with self:
            Div(
                f"""
<svg width="100%" height="{_CURVE_PX}" viewBox="0 0 100 100" preserveAspectRatio="none" data-test="curve"
  style="background: #14181d; border-radius: 4px; display: block">
  <line v-for="y in [25, 50, 75]" :key="y" x1="0" x2="100" :y1="y" :y2="y" stroke="#3d444d" stroke-width="1"
    vector-effect="non-scaling-stroke" />
  <polyline :points="{name.points}.map((p) => `${{100 * p[0]}},${{100 - 100 * p[1]}}`).join(' ')" fill="none"
    stroke="#3fb950" stroke-width="2" vector-effect="non-scaling-stroke" />
  <circle v-if="{name.points}.length === 1" cx="1" :cy="100 - 100 * {name.points}[0][1]" r="1.5" fill="#3fb950" />
</svg>
<div class="text-caption" style="margin-top: -{_CURVE_PX}px; height: {_CURVE_PX}px; padding-left: 6px;
  pointer-events: none; position: relative">{{{{ {name.label} }}}}</div>"""
            )

"""Where a turn of the wheel leads, and which views are drawn meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("trame_slicer")

from medssl.web.logic.focus import Focus
from medssl.web.logic.scroll_logic import ScrollLogic, slice_after
from trame_slicer.views import AbstractView, SliceView

from .conftest import run_async


@pytest.mark.parametrize(
    ("offset_mm", "notches", "expected_mm"),
    [(0.0, 1, 2.5), (0.0, -3, -7.5), (0.0, 40, 50.0), (0.0, -40, -50.0), (50.0, 1, 50.0)],
)
def test_every_notch_is_a_slice_and_none_leads_out_of_the_volume(
    offset_mm: float, notches: int, expected_mm: float
) -> None:
    assert slice_after(offset_mm, notches, (-50.0, 50.0), 2.5) == expected_mm


class _Views:
    """Two slice views of ten slices, and one in 3D; all of them in the layout."""

    def __init__(self) -> None:
        self.all: dict[str, Any] = {}
        for name, kind in (("Red", SliceView), ("Green", SliceView), ("ThreeD", AbstractView)):
            view = kind.__new__(kind)
            view._is_render_blocked, view._scheduled_render, view.at_mm = False, None, 0.0
            self.all[name] = view
        self.shown = list(self.all.values())

    def get_view(self, name: str) -> Any:
        return self.all.get(name)

    def get_views(self) -> list[Any]:
        return list(self.all.values())

    def filter_visible_views(self, views: list[Any]) -> list[Any]:
        return [view for view in views if view in self.shown]

    def drawn(self) -> list[str]:
        return [name for name, view in self.all.items() if not view.is_render_blocked]


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> _Views:
    monkeypatch.setattr(SliceView, "get_slice_value", lambda view: view.at_mm)
    monkeypatch.setattr(SliceView, "get_slice_range", lambda view: (0.0, 9.0))
    monkeypatch.setattr(SliceView, "get_slice_step", lambda view: 1.0)
    monkeypatch.setattr(SliceView, "set_slice_value", lambda view, at_mm: setattr(view, "at_mm", at_mm))
    return _Views()


def test_while_the_wheel_turns_only_the_view_under_it_is_drawn(views: _Views) -> None:
    async def turn() -> list[list[str]]:
        scroll = ScrollLogic(views, Focus(views))
        drawn = []
        for name in ("Red", "Red", "Green"):
            assert scroll.scroll(name, 1)
            drawn.append(views.drawn())
        await asyncio.sleep(0.5)
        return [*drawn, views.drawn()]

    assert run_async(turn()) == [["Red"], ["Red"], ["Green"], ["Red", "Green", "ThreeD"]]
    assert (views.all["Red"].at_mm, views.all["Green"].at_mm) == (2.0, 1.0)


def test_a_view_that_the_layout_has_put_away_meanwhile_is_not_drawn_afterwards(views: _Views) -> None:
    async def turn() -> list[str]:
        assert ScrollLogic(views, Focus(views)).scroll("Red", 1)
        views.shown.remove(views.all["ThreeD"])
        await asyncio.sleep(0.5)
        return views.drawn()

    assert run_async(turn()) == ["Red", "Green"]


@pytest.mark.parametrize(("name", "notches"), [("Red", -1), ("ThreeD", 1), ("no such view", 1)])
def test_a_turn_that_moves_nothing_holds_nothing(views: _Views, name: str, notches: int) -> None:
    assert not ScrollLogic(views, Focus(views)).scroll(name, notches)
    assert views.drawn() == ["Red", "Green", "ThreeD"]

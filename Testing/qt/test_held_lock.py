"""Other threads run although the event loop holds Python's lock while it waits, as 3D Slicer's does."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtUiTools")

from shibokensupport import feature

feature.set_selection(2, __name__)


def test_a_look_gives_way_to_other_threads_while_something_is_under_way_and_never_else(a_desk: Any) -> None:
    waited: list[float] = []
    a_desk.panel.giveWay = waited.append
    a_desk.choose_nodes()
    a_desk.panel.onTimer()
    assert waited == []
    a_desk.ui.propagateButton.click()
    for _ in range(3):
        a_desk.panel.onTimer()
    assert len(waited) == 3
    assert all(0 < seconds < 0.010 for seconds in waited)
    a_desk.ui.cancelButton.click()
    a_desk.panel.onTimer()
    assert len(waited) == 3


def test_a_click_is_looked_after_at_once(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.panel.onTimer()
    assert a_desk.panel.timer.interval == 500
    a_desk.panel.annotate.tools["positive"].click()
    a_desk.panel.annotate.onPlaced([4.0, 3.0, 4.0], [0.0, 0.0, 1.0])
    assert a_desk.panel.timer.interval == 20

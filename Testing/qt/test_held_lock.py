"""Other threads run although the event loop holds Python's lock while it waits, as 3D Slicer's does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtUiTools")

from medssl.errors import WorkerError
from medssl.results import SliceMask
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


def test_what_the_workers_python_has_is_found_out_fast_and_what_it_lacks_is_said_before_the_first_request(
    a_desk: Any,
) -> None:
    def fail() -> None:
        raise WorkerError("The worker's Python lacks torch.")

    a_desk.choose_nodes()
    a_desk.panel.isChecking = lambda: True
    a_desk.panel.enter(a_desk.application.mainWindow())
    assert a_desk.panel.timer.interval == 20
    assert a_desk.ui.workerLabel.text == "The worker starts with the first request."
    a_desk.panel.isChecking, a_desk.panel.requireWorker = (lambda: False), fail
    a_desk.panel.onTimer()
    assert a_desk.panel.timer.interval == 500
    assert a_desk.ui.workerLabel.text == "The worker is not set up yet: open Settings and press Set up."
    assert a_desk.application.errors_shown == []


def test_a_click_is_looked_after_at_once(a_desk: Any) -> None:
    a_desk.choose_nodes()
    a_desk.panel.onTimer()
    assert a_desk.panel.timer.interval == 500
    a_desk.panel.annotate.tools["positive"].click()
    a_desk.panel.annotate.onPlaced([4.0, 3.0, 4.0], [0.0, 0.0, 1.0])
    assert a_desk.panel.timer.interval == 20


class VirtualTime:
    """The panel's timers in a time of their own; what other threads do, they do while a look gives way."""

    def __init__(self, panel: Any) -> None:
        self.now_ms = 0.0
        self.acts = {panel.timer: panel.onTimer, panel.promptTimer: panel.onPromptTimer}
        self.due_ms: dict[Any, float] = {}
        self.calls: list[float] = []
        self.arrivals: list[tuple[float, Callable[[], None]]] = []
        panel.giveWay = self.give_way

    def give_way(self, seconds: float) -> None:
        self.now_ms += 1000 * seconds
        for at_ms, arrive in [each for each in self.arrivals if each[0] <= self.now_ms]:
            self.arrivals.remove((at_ms, arrive))
            arrive()

    def run_for(self, milliseconds: float) -> None:
        ends_ms = self.now_ms + milliseconds
        while True:
            running = [timer for timer in self.acts if timer.active]
            self.due_ms = {t: self.due_ms.get(t, self.now_ms + t.interval) for t in running}
            timer = min(running, key=self.due_ms.__getitem__)
            if self.due_ms[timer] > ends_ms:
                self.now_ms = max(self.now_ms, ends_ms)
                return
            self.now_ms = max(self.now_ms, self.due_ms.pop(timer))
            self.calls.append(self.now_ms)
            self.acts[timer]()


def a_click(desk: Any) -> None:
    desk.panel.annotate.tools["positive"].click()
    desk.panel.annotate.onPlaced([4.0, 3.0, 4.0], [0.0, 0.0, 1.0])


def answer(desk: Any) -> None:
    desk.client.run.say(SliceMask(desk.liver, 0, 4, desk.painted, 0.9))
    desk.client.run.end()


@pytest.mark.parametrize("takes_ms", [0.0, 12.0, 31.0, 44.5])
def test_an_answer_is_seen_within_ten_milliseconds(a_desk: Any, takes_ms: float) -> None:
    a_desk.choose_nodes()
    a_desk.panel.onTimer()
    time = VirtualTime(a_desk.panel)
    seen_ms = []
    a_desk.panel.session.prompts.poll = seen_when_answered(a_desk, time, seen_ms)
    time.arrivals.append((takes_ms, lambda: answer(a_desk)))
    a_click(a_desk)
    time.run_for(100.0)
    assert takes_ms <= seen_ms[0] <= takes_ms + 10.0
    assert a_desk.ui.promptLabel.text == "90% sure. Enter accepts, Esc drops. A shows another answer."
    assert not a_desk.panel.promptTimer.active


def seen_when_answered(desk: Any, time: VirtualTime, seen_ms: list[float]) -> Callable[[], None]:
    prompts = desk.panel.session.prompts
    poll = prompts.poll

    def poll_and_note() -> None:
        poll()
        if prompts.previews:
            seen_ms.append(time.now_ms)

    return poll_and_note


def test_a_model_that_takes_long_is_waited_for_at_the_ordinary_pace_and_an_idle_panel_hardly_looks(
    a_desk: Any,
) -> None:
    a_desk.choose_nodes()
    a_desk.panel.onTimer()
    time = VirtualTime(a_desk.panel)
    time.run_for(5000.0)
    assert len(time.calls) == 10
    a_click(a_desk)
    time.run_for(2000.0)
    del time.calls[:]
    time.run_for(1000.0)
    assert 20 < len(time.calls) <= 50
    answer(a_desk)
    time.run_for(1000.0)
    del time.calls[:]
    time.run_for(5000.0)
    assert len(time.calls) == 10


def test_the_word_which_slice_is_in_view_gets_out_while_nothing_else_is_asked(a_desk: Any) -> None:
    view = a_desk.application.scene.AddNewNodeByClass("vtkMRMLSliceNode")
    a_desk.choose_nodes()
    a_desk.panel.onTimer()
    a_desk.ui.positiveButton.click()
    a_desk.client.is_ready_at_once = False
    time = VirtualTime(a_desk.panel)
    view.SetSliceOffset(3.0)
    assert time.now_ms > 0
    time.run_for(100.0)
    assert len(time.calls) >= 3
    a_desk.client.answer("expect")
    time.run_for(500.0)
    del time.calls[:]
    time.run_for(5000.0)
    assert len(time.calls) == 10

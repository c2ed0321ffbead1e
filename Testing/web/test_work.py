"""What the workstation waits for between two looks."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trame_slicer")

from medssl.errors import InputError
from medssl.web.work import Work

from .conftest import run_async

LONG_S = 3600.0


class _Prompts:
    """A prompt whose answer is there at the third look."""

    def __init__(self, looks: int = 0) -> None:
        self.looks = looks

    @property
    def is_waiting(self) -> bool:
        return self.looks < 3

    def poll(self) -> None:
        self.looks += 1
        if self.looks == 2:
            raise InputError("Nothing yet.")


def a_work(prompts: Any, kind: type[Work] = Work) -> Any:
    work = kind.__new__(kind)
    work.session = SimpleNamespace(prompts=prompts)  # type: ignore[assignment]
    work._wake = asyncio.Event()
    return work


def test_a_pause_ends_with_the_answer_to_a_prompt_however_long_it_was_meant_to_be() -> None:
    said: list[str] = []

    async def pause() -> int:
        work = a_work(_Prompts())
        work.said.connect(lambda sentence, _: said.append(sentence))
        await asyncio.wait_for(work._pause(LONG_S), 60.0)
        return int(work.session.prompts.looks)

    assert run_async(pause()) == 3
    assert said == ["Nothing yet."]


def test_a_pause_without_a_prompt_asks_nothing_and_ends_when_something_is_wanted() -> None:
    async def pause() -> int:
        prompts = _Prompts(looks=3)
        work = a_work(prompts)
        asyncio.get_running_loop().call_later(0.05, work._wake.set)
        await asyncio.wait_for(work._pause(LONG_S), 60.0)
        assert not work._wake.is_set()
        return prompts.looks

    assert run_async(pause()) == 3


def test_after_a_look_that_has_failed_the_next_one_follows(caplog: pytest.LogCaptureFixture) -> None:
    said: list[str] = []

    class FailsFirst(Work):
        looks = 0
        _is_busy = True

        def poll(self) -> None:
            self.looks += 1
            if self.looks == 1:
                raise RuntimeError("a widget is broken")
            self.goes_on.set()

    async def run() -> None:
        work = a_work(_Prompts(looks=3), FailsFirst)
        work.goes_on = asyncio.Event()
        work.said.connect(lambda sentence, _: said.append(sentence))
        looking = asyncio.create_task(work.run(nullcontext()))
        await asyncio.wait_for(work.goes_on.wait(), 60.0)
        looking.cancel()

    run_async(run())
    assert said == ["MedSSLSegment failed unexpectedly; the terminal it was started from says where."]
    assert "a widget is broken" in caplog.text

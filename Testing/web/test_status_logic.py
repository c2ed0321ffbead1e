"""What the status line says, and for how long."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trame_slicer")

from medssl.web.logic import status_logic
from medssl.web.logic.status_logic import StatusLogic
from trame.app import get_server
from undo_stack import Signal

from .conftest import run_async

SHOWN_S = 0.2


class _Work:
    """Something that talks."""

    said = Signal(str, bool)
    polled = Signal()

    def __init__(self) -> None:
        self.session = self.slicer_app = SimpleNamespace()


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(status_logic, "_NOTICE_S", SHOWN_S)
    return _Work()


def test_a_sentence_goes_when_its_time_is_up_though_no_page_is_open(work: Any) -> None:
    async def say() -> list[tuple[str, bool]]:
        logic, shown = StatusLogic(get_server("a sentence goes"), work), []
        work.said("Saved.", False)
        shown.append((logic.data.notice, logic.data.is_notice_shown))
        await asyncio.sleep(2 * SHOWN_S)
        return [*shown, (logic.data.notice, logic.data.is_notice_shown)]

    assert run_async(say()) == [("Saved.", True), ("Saved.", False)]


def test_a_sentence_that_follows_another_has_all_of_its_own_time(
    work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_logic, "_BAD_NOTICE_S", 3600.0)

    async def say() -> bool:
        logic = StatusLogic(get_server("a sentence follows"), work)
        work.said("Saved.", False)
        work.said("The worker is gone.", True)
        await asyncio.sleep(2 * SHOWN_S)
        return bool(logic.data.is_notice_shown)

    assert run_async(say())

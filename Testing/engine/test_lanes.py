from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from medssl.foundation.lanes import Lanes

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_results_come_in_the_order_of_the_items() -> None:
    with Lanes(CPU) as lanes:
        assert lanes.count == 2
        assert lanes.map(lambda number: number**2, range(7)) == [number**2 for number in range(7)]
        assert lanes.map(lambda number: number**2, []) == []


@pytest.mark.usefixtures("two_threads")
def test_two_items_are_worked_on_at_the_same_time_with_one_of_torchs_threads_each() -> None:
    meeting = threading.Barrier(2, timeout=20)

    def work(_: int) -> tuple[int, bool]:
        meeting.wait()  # breaks unless the other item is under way too
        return torch.get_num_threads(), torch.is_grad_enabled()

    with Lanes(CPU) as lanes:
        assert lanes.map(work, [0, 1]) == [(1, False), (1, False)]
    assert torch.get_num_threads() == 2
    assert torch.is_grad_enabled()


@pytest.mark.usefixtures("two_threads")
def test_a_single_item_has_all_threads() -> None:
    with Lanes(CPU) as lanes:
        assert lanes.map(lambda _: (torch.get_num_threads(), torch.is_grad_enabled()), [0]) == [(2, False)]


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_a_lane_is_raised_and_the_threads_are_given_back() -> None:
    with Lanes(CPU) as lanes, pytest.raises(ZeroDivisionError):
        lanes.map(lambda number: 1 / number, [1, 0])
    assert torch.get_num_threads() == 2


def test_a_graphics_card_has_one_lane() -> None:
    with Lanes(torch.device("cuda")) as lanes:
        assert lanes.count == 1

"""The workstation's benchmark clicks on the organ, and its table says what was measured."""

from __future__ import annotations

import numpy as np
import pytest
from bench_app import Measured, Scrolling, _arguments, places, report


def labels() -> np.ndarray:
    """An L, which has nothing in the middle of its box, on slices 3 to 16 of 20."""
    volume = np.zeros((20, 30, 40), np.uint8)
    volume[3:17, 5:25, 6:9] = 2
    volume[3:17, 22:25, 6:30] = 2
    volume[:, 0:3, 0:3] = 1
    return volume


def measured(click_s: list[float]) -> Measured:
    scrolling = Scrolling(notches=480, frames=200, seconds=10.0, lag_s=2.0, received_bytes=4_000_000)
    return Measured(3.0, 5_000_000, click_s, [2.0 * each for each in click_s], 1, 2_100_000, scrolling)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_click_is_on_the_organ_and_on_a_slice_of_its_own(count: int) -> None:
    volume = labels()
    clicks = places(volume, 2, count)
    assert all(volume[index, int(row), int(column)] == 2 for index, row, column in clicks)
    assert len({index for index, _, _ in clicks}) == count


def test_the_table_gives_the_rates_per_click_frame_and_second() -> None:
    page = report(measured([0.1] * 19 + [0.9]), _arguments(["--threads", "2"]), load=0.3)
    rows = dict(line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| "))
    assert rows["click to preview, 20 clicks, p50"] == "100 ms"
    assert rows["in flight, p50"] == "200 ms"
    assert rows["clicks that found nothing"] == "1"
    assert rows["received per click"] == "100 kB"
    assert rows["frames per second while scrolling"] == "**20.0**"
    assert rows["notches of the wheel per second"] == "60.0"
    assert rows["received per frame, all views together"] == "20.0 kB"


def test_a_busy_machine_is_told() -> None:
    options = _arguments([])
    assert "to be measured again" in report(measured([0.1]), options, load=6.0)
    assert "to be measured again" not in report(measured([0.1]), options, load=1.0)
    assert "--clicks 3" in report(measured([]), _arguments(["--clicks", "3"]), load=1.0)

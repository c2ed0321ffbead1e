"""The progress bar, durations and tables."""

from __future__ import annotations

import io

import pytest
from medssl.cli.terminal import ProgressBar, table
from medssl.events import Progress, duration


class Screen(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_bar_that_ends_its_line() -> None:
    screen = Screen()
    with ProgressBar(screen, "Working") as bar:
        bar(Progress(5, 10, 3.0, "liver"))
        bar(Progress(10, 10, 0.0))
    text = screen.getvalue()
    assert "[############............]  50 %  3.0 s left  liver" in text
    assert "100 %" in text
    assert text.endswith("\n")
    assert text.count("\n") == 1


def test_a_line_too_long_for_the_terminal_still_shows_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    screen = Screen()
    with ProgressBar(screen, "Fine-tuning") as bar:
        bar(Progress(5, 10, 754.0, "carrying annotated slices of " + "a" * 40))
    (line,) = screen.getvalue().strip().splitlines()
    assert len(line) < 80
    assert "50 %  12 min 34 s left  carrying" in line


def test_anything_else_gets_a_line_for_each_quarter() -> None:
    stream = io.StringIO()
    with ProgressBar(stream, "Working") as bar:
        for done in range(101):
            bar(Progress(done, 100))
    lines = stream.getvalue().splitlines()
    assert lines == [f"Working: {share:3d} %" for share in (0, 25, 50, 75, 100)]


def test_anything_else_gets_the_quarters_of_every_stage() -> None:
    stream = io.StringIO()
    with ProgressBar(stream, "Working") as bar:
        for stage in ("coarse", "refined"):
            for done in (0, 50, 100):
                bar(Progress(done, 100, None, stage))
    lines = [f"Working: {share:3d} %  {stage}" for stage in ("coarse", "refined") for share in (0, 50, 100)]
    assert stream.getvalue().splitlines() == lines


def test_a_line_of_text_does_not_run_into_the_bar() -> None:
    screen = Screen()
    with ProgressBar(screen, "Working") as bar:
        bar(Progress(1, 4))
        bar.say("step 1")
    assert screen.getvalue().splitlines()[-1] == "step 1"


def test_work_without_steps_shows_nothing() -> None:
    stream = io.StringIO()
    with ProgressBar(stream, "Working") as bar:
        bar(Progress(0, 0))
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"),
     (7800, "2 h 10 min")],
)  # fmt: skip
def test_durations_read_like_speech(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_table_sets_words_left_and_numbers_right() -> None:
    text = table(["segment", "Dice"], [["liver", "0.9"], ["vertebrae_L1", "0.85"]])
    assert text.splitlines() == [
        "segment       Dice",
        "------------  ----",
        "liver          0.9",
        "vertebrae_L1  0.85",
    ]

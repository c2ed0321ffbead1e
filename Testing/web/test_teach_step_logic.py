"""What step 5 says of a run, and of what was asked for beside it."""

from __future__ import annotations

import pytest

pytest.importorskip("trame_slicer")

from medssl.web.logic.teach_step_logic import _message

RUNNING = {
    "state": "running",
    "kind": "finetune",
    "message": "",
    "progress": {"done": 3, "total": 9, "seconds_left": 20.0},
}
DONE = {"state": "done", "kind": "finetune", "message": "", "progress": None}


def test_what_went_wrong_beside_a_run_that_has_ended_is_said() -> None:
    assert "Keep model" in _message(DONE, "")
    assert _message(DONE, "There is no case to learn from.") == "There is no case to learn from."


def test_a_run_that_goes_on_says_how_far_it_is_whatever_else_is_said() -> None:
    assert _message(RUNNING, "Kept: a liver") == "Running: step 3 of 9. about 20 s left Kept: a liver"
    assert _message(None, "Kept: a liver") == "Kept: a liver"


def test_a_run_that_counts_itself_is_not_counted_twice() -> None:
    progress = {"text": "step 3 of 9, loss 0.5", "done": 3, "total": 9, "seconds_left": None}
    assert _message({**RUNNING, "progress": progress}, "") == "Running: step 3 of 9, loss 0.5."
    progress["text"] = "Preparing"
    assert _message({**RUNNING, "progress": progress}, "") == "Running: Preparing, 3 of 9."


def test_a_pretraining_that_is_done_says_where_its_encoder_is() -> None:
    assert "Start from" in _message({**DONE, "kind": "pretrain"}, "")
    assert "Resume" in _message({**DONE, "kind": "pretrain", "state": "stopped"}, "")

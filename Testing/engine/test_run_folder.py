"""Run folders: what is in them, who may use them, and what is left after a kill."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from medssl.errors import Cancelled, InputError, ModelError
from medssl.events import Log, Progress
from medssl.runs.processes import is_alive, start_mark
from medssl.runs.run_folder import RUN_FORMAT, RunFolder, TrainingMetric, list_runs

METRIC = TrainingMetric(3, 0.5, {"loss": 1.5}, 1e-3, 20.0)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(
        tmp_path / "run", "pretrain", {"method": "mae", "seed": 0, "recipe": {"batch": 4}}
    )


def test_what_was_asked_for_is_read_back(run: RunFolder) -> None:
    assert RunFolder.open(run.path) == run
    assert run.status.state == "new"


def test_a_folder_with_other_files_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(InputError, match=r"holds other files \(thesis\.docx\)"):
        RunFolder.create(tmp_path, "pretrain", {})


def test_what_a_killed_process_was_writing_stands_in_nobodys_way(tmp_path: Path) -> None:
    left = tmp_path / ".0a1b2c3d.run.json"
    left.write_text("{")
    run = RunFolder.create(tmp_path, "finetune", {})
    with run.occupied():
        assert not left.exists()


@pytest.mark.parametrize("record", ["[]", "3", '{"state": "running"}', '{"state": ["new"], "pid": {}}'])
def test_a_status_that_means_nothing_is_none(run: RunFolder, record: str) -> None:
    (run.path / "status.json").write_text(record)
    assert run.status.state == "new"
    with run.occupied():
        run.report(Progress(1, 2))
    assert run.status.state == "done"


def test_events_that_mean_nothing_are_passed_over(run: RunFolder) -> None:
    run.append_event(METRIC)
    with (run.path / "events.jsonl").open("a") as file:
        file.write('[]\n{"type": "log", "text": 3}\n{"type": "metric", "step": "x"}\n{"type": []}\nnothing\n')
    run.append_event(Log("and on"))
    assert run.events() == [METRIC, Log("and on")]


def test_a_run_is_not_written_over(run: RunFolder) -> None:
    with pytest.raises(InputError, match="holds a run already"):
        RunFolder.create(run.path, "pretrain", {})


def test_a_folder_of_another_version_is_refused_in_one_sentence(run: RunFolder) -> None:
    record = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**record, "format": RUN_FORMAT + 1, "version": "9.9"}))
    with pytest.raises(InputError, match=r"made by medssl 9\.9.*finish it with that version"):
        RunFolder.open(run.path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}'])
def test_a_damaged_run_is_refused_in_one_sentence(run: RunFolder, content: str) -> None:
    (run.path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        RunFolder.open(run.path)


def test_the_first_setting_that_differs_is_named(run: RunFolder) -> None:
    run.save_resume({"step": 1})
    same = {"method": "mae", "seed": 0, "recipe": {"batch": 4}}
    assert RunFolder.create_or_open(run.path, "pretrain", same) == run
    assert RunFolder.create_or_open(run.path, "pretrain", {**same, "seed": 5}, ["seed"]) == run
    with pytest.raises(InputError, match=r"began with recipe\.batch = 4, not 8"):
        RunFolder.create_or_open(run.path, "pretrain", {**same, "recipe": {"batch": 8}})
    with pytest.raises(InputError, match="holds a pretrain run"):
        RunFolder.create_or_open(run.path, "finetune", same)


def test_a_run_that_never_saved_may_begin_again_with_other_settings(run: RunFolder) -> None:
    again = RunFolder.create_or_open(run.path, "pretrain", {"method": "mae", "seed": 7})
    assert RunFolder.open(run.path) == again
    assert again.config["seed"] == 7


def test_the_state_follows_how_the_work_ended(run: RunFolder) -> None:
    with run.occupied():
        assert run.status.state == "running"
        run.report(Progress(2, 4, 1.0))
    assert run.status.state == "done"
    for error, state in (
        (Cancelled("Enough."), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (InputError("No."), "failed"),
    ):
        with pytest.raises(type(error)), run.occupied():
            raise error
        assert (run.status.state, run.status.message) == (state, str(error))


def test_a_second_process_is_refused(run: RunFolder) -> None:
    code = f"from medssl.runs.run_folder import RunFolder\nwith RunFolder.open({str(run.path)!r}).occupied(): pass"
    with run.occupied():
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        with pytest.raises(InputError, match="is under way"), run.occupied():
            pass
        assert run.status.state == "running"
    assert f"is under way (process {os.getpid()} on {socket.gethostname()})" in second.stderr


def test_a_killed_process_leaves_a_lost_run_that_another_may_take(run: RunFolder) -> None:
    code = (
        "import os, signal\nfrom medssl.runs.run_folder import RunFolder\n"
        f"with RunFolder.open({str(run.path)!r}).occupied(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert run.status.state == "lost"
    with run.occupied():
        assert run.status.pid == os.getpid()


def test_another_process_with_the_same_number_is_not_taken_for_the_run(run: RunFolder) -> None:
    if not start_mark(os.getpid()):
        pytest.skip("This system does not say when a process began.")
    with run.occupied():
        record = json.loads((run.path / "status.json").read_text())
        (run.path / "status.json").write_text(json.dumps({**record, "mark": "1"}))
        assert run.status.state == "lost"


def test_a_run_on_another_machine_lives_as_long_as_it_reports(run: RunFolder) -> None:
    with run.occupied():
        record = json.loads((run.path / "status.json").read_text())
        elsewhere = {**record, "host": "elsewhere", "pid": 1}
        (run.path / "status.json").write_text(json.dumps({**elsewhere, "beat": time.time() - 60}))
        assert run.status.state == "running"
        (run.path / "status.json").write_text(json.dumps({**elsewhere, "beat": time.time() - 3600}))
        assert run.status.state == "lost"


def test_a_request_to_stop_is_for_the_run_that_is_under_way_only(run: RunFolder) -> None:
    with run.occupied():
        run.ask_to_stop()
        assert run.stop_asked
    with run.occupied():
        assert not run.stop_asked


def test_a_half_written_line_is_passed_over(run: RunFolder) -> None:
    run.append_event(Log("Begun."))
    run.append_event(METRIC)
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"type": "metric", "st')
    assert run.events() == [Log("Begun."), METRIC]


def test_what_was_told_after_the_last_save_is_forgotten(run: RunFolder) -> None:
    run.append_event(Log("Begun."))
    run.append_event(METRIC)
    run.append_event(TrainingMetric(4, 0.7, {"loss": 1.0}, 1e-3, 20.0))
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"type": "metric", "st')
    run.forget_after(3)
    run.append_event(Log("Going on."))
    assert run.events() == [Log("Begun."), METRIC, Log("Going on.")]


def test_states_and_pictures_are_kept(run: RunFolder) -> None:
    assert run.load_resume() is None
    run.save_resume({"step": 3, "weights": {"a": torch.ones(2)}})
    state = run.load_resume()
    assert state is not None
    assert state["step"] == 3
    (run.path / "resume.pt").write_bytes(b"half")
    with pytest.raises(ModelError, match=r"resume\.pt is damaged"):
        run.load_resume()
    assert run.save_picture(12, np.zeros((4, 6, 3), np.uint8)) == run.pictures()[0]


def test_runs_are_listed_wherever_they_lie(run: RunFolder, tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "study" / "seed-0", "finetune", {})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    assert [found.kind for found in list_runs(tmp_path)] == ["pretrain", "finetune"]
    assert list_runs(run.path) == [run]


def test_a_run_that_a_link_leads_to_a_second_time_is_listed_once(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "again").symlink_to(tmp_path)
    assert list_runs(tmp_path) == [run]


def test_a_process_that_has_ended_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    assert not is_alive(process.pid)
    assert is_alive(os.getpid(), start_mark(os.getpid()))
    assert not is_alive(os.getpid(), "0") or not start_mark(os.getpid())


def test_looking_at_runs_needs_no_torch() -> None:
    code = "import sys, medssl.runs.run_folder, medssl.runs.detached; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

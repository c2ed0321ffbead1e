"""`medssl pretrain` and `medssl runs`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from medssl.backbones import BACKBONES
from medssl.cli.watching import follow
from medssl.errors import InputError
from medssl.learning.pretrain_config import PretrainConfig
from medssl.methods import METHODS
from medssl.phantom import phantom_ct
from medssl.runs.detached import command_words, resume_detached, start_detached
from medssl.runs.run_folder import RunFolder, plain
from medssl.volume import write_volume
from small_method import SMALL, Fill

STARTED_ELSEWHERE = """
import sys
from pathlib import Path
from medssl.runs.detached import start_detached
run = start_detached("pretrain", {settings!r})
print(run.status.pid, flush=True)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small scans."""
    folder = tmp_path_factory.mktemp("scans")
    for seed in range(2):
        phantom = phantom_ct(seed=seed, shape_kji=(12, 32, 32), spacing_kji_mm=(20.0, 12.0, 12.0))
        write_volume(phantom.volume, folder / f"scan_{seed}.nii.gz")
    return folder


@pytest.fixture
def settings(data: Path, tmp_path: Path) -> dict[str, object]:
    """Of a run of the cheapest real method."""
    config = PretrainConfig(
        method="mae", data=data, out=tmp_path / "run", cache=tmp_path / "cache", device="cpu", batch=4,
        size=(32, 32), steps=20_000,
    )  # fmt: skip
    return plain(config)


@pytest.fixture
def fill(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A method that needs no time."""
    monkeypatch.setitem(BACKBONES, "small", SMALL)
    monkeypatch.setitem(METHODS, "fill", Fill)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


def test_a_folder_of_scans_becomes_an_encoder_and_the_run_is_listed(
    medssl, fill: None, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs" / "one"
    words = ["pretrain", "--method", "fill", "--data", data, "--cache", tmp_path / "cache", "--device", "cpu"]

    estimated = medssl(*words, "--out", out, "--steps", 6, "--estimate")
    assert "6 steps of 8 samples will take about" in estimated.out
    assert not out.exists()

    outcome = medssl(*words, "--out", out, "--steps", 6)
    assert outcome.code == 0, outcome.err
    assert f"Written: {out / 'checkpoint.safetensors'}" in outcome.out
    assert "6 steps of 8 samples will take about" in outcome.err
    assert "step 6: loss 0." in outcome.err

    text = medssl("runs", "list", tmp_path / "runs").out
    assert text.splitlines()[2].split()[1:5] == ["pretrain", "fill", "done", "100"]
    (facts,) = json.loads(medssl("runs", "list", tmp_path / "runs", "--json").out)
    assert facts["metric"]["step"] == 6
    assert "is done; its encoder is" in medssl("runs", "follow", out).out
    assert "is done; there is nothing to go on with" in medssl("runs", "resume", out).err


def test_bad_input_is_one_sentence(medssl, fill: None, data: Path, tmp_path: Path) -> None:
    words = ["pretrain", "--method", "fill", "--out", tmp_path / "run", "--cache", tmp_path / "cache"]
    (tmp_path / "empty").mkdir()

    assert "holds no scans" in medssl(*words, "--data", tmp_path / "empty").err.splitlines()[-1]
    assert "no method 'dream'" in medssl(*words, "--data", data, "--method", "dream").err
    assert "only one of epochs and steps" in medssl(*words, "--data", data, "--epochs", 1, "--steps", 1).err
    assert "does not exist" in medssl("runs", "list", tmp_path / "nowhere").err
    assert "holds no run" in medssl("runs", "follow", data).err
    assert "holds no run" in medssl("runs", "stop", data).err


def test_a_run_survives_its_parent_can_be_stopped_and_goes_on(medssl, settings: dict[str, object]) -> None:
    """Started by a process that is then killed with its whole group, as when Slicer or a terminal is closed."""
    out = Path(str(settings["out"]))
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTED_ELSEWHERE.format(settings=settings) + "input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.killpg(parent.pid, signal.SIGKILL)
    parent.communicate()

    run = RunFolder.open(out)
    assert (run.status.state, run.status.pid) == ("running", pid)
    _wait_for_steps(run)
    assert "is under way" in medssl("runs", "resume", out).err
    with pytest.raises(InputError, match=f"is under way .process {pid}"):
        start_detached("pretrain", settings)

    stopped = medssl("runs", "stop", out)
    assert "is stopped; go on with: medssl runs resume" in stopped.out, stopped.err
    assert "step" in run.log.read_text()
    before = run.load_resume()
    assert before is not None
    again = resume_detached(out)
    _wait_for_steps(again, before["step"])
    pid = again.status.pid or 0
    os.kill(pid, signal.SIGKILL)
    assert follow(again).state == "lost"
    lost = medssl("runs", "follow", out)
    assert (lost.code, lost.out) == (1, "")
    assert "ended without a word" in lost.err
    assert _leaves_the_table(pid)


def _leaves_the_table(pid: int) -> bool:
    """Whether whoever started a process takes note of its end; else it stays as a zombie."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def _wait_for_steps(run: RunFolder, after: int = 0) -> None:
    end = time.monotonic() + 120
    while (run.status.progress is None or run.status.progress.done <= after) and time.monotonic() < end:
        assert run.status.state == "running", run.log.read_text()
        time.sleep(0.1)


def test_a_run_that_cannot_begin_says_why_and_leaves_nothing(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match="no method 'dream'"):
        start_detached("pretrain", {**settings, "method": "dream"})
    assert not Path(str(settings["out"])).exists()


def test_ctrl_c_saves_and_ends(settings: dict[str, object]) -> None:
    command = [sys.executable, "-m", "medssl.cli", "pretrain", *command_words(settings)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)

    assert process.returncode == 130, err
    assert "saving after this step" in err
    run = RunFolder.open(str(settings["out"]))
    assert run.status.state == "stopped"
    state = run.load_resume()
    assert state is not None
    assert state["step"] >= 1


def test_settings_become_the_words_that_give_them_again() -> None:
    words = command_words(
        {"method": "mae", "size": [32, 32], "mixed": True, "fast": False, "out": None, "x": []}
    )
    assert words == ["--method=mae", "--size", "32", "32", "--mixed", "--no-fast"]

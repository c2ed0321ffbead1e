"""Training that outlives whoever started it: a process of its own session, known by its run folder alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import Cancelled, InputError, StorageError, WorkerError
from ..wire.launch import LocalCommand
from .run_folder import RunFolder

__all__ = ["command_words", "resume_detached", "start_detached", "stop_and_wait"]

_LOOK_EVERY_S = 0.05
_KINDS = ("pretrain", "finetune", "train tracker", "train prompts")
"""Commands that go on with a run; run.json, which may come from elsewhere, can name no other."""


def start_detached(
    kind: str,
    config: Mapping[str, Any],
    *,
    python: str | None = None,
    wait_s: float = 120.0,
    cancelled: Callable[[], bool] = lambda: False,
) -> RunFolder:
    """Start a run in the background and wait until it has taken its folder; it goes on when this process ends.

    Args:
        kind: the words of the command that does it: pretrain, finetune, train tracker, train prompts.
        config: its options by name, with "out", the run folder.
        python: interpreter with the engine's packages; None for this one.
        wait_s: how long to wait until it has taken its folder.
        cancelled: asked while waiting; the run itself is not stopped by it.

    Returns:
        The run's folder, which the process holds.

    Raises:
        InputError, StorageError: it could not begin; the message is the command's own.
        WorkerError: it ended, or did not begin within `wait_s`.
        Cancelled: `cancelled` said so.
    """
    folder = Path(config["out"]).absolute()
    log = _log_of(folder)
    begun = log.stat().st_size
    if (folder / "run.json").is_file():
        RunFolder.open(folder).require_idle()
    command = LocalCommand(python=python or sys.executable)
    launched = time.time()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [command.python, "-u", "-m", "medssl.cli", *kind.split(), *command_words(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(command.environment()),
            cwd=folder,
            **_apart(),
        )
    # Somebody has to take note of its end, or it stays in the system's table, for some systems as if it still ran.
    threading.Thread(target=process.wait, name="run", daemon=True).start()
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        ended = process.poll() is not None
        if (folder / "run.json").is_file():
            run = RunFolder.open(folder)
            if run.status.reported >= launched and run.status.state != "failed":
                return run
        if ended:
            raise InputError(_last_words(log, begun))
        if cancelled():
            raise Cancelled(f"Not waiting for {folder} any longer; it goes on in the background.")
        time.sleep(_LOOK_EVERY_S)
    raise WorkerError(f"The run {folder} has not begun after {wait_s:g} s; see {log}.")


def resume_detached(
    path: str | Path, *, python: str | None = None, cancelled: Callable[[], bool] = lambda: False
) -> RunFolder:
    """Go on with a run in the background.

    Args:
        path: run folder, which may have been moved.
        python: interpreter with the engine's packages; None for this one.
        cancelled: as for `start_detached`.

    Raises:
        InputError: there is no run, or it is under way; otherwise as `start_detached`.
    """
    run = RunFolder.open(path)
    run.require_idle()
    if run.status.state == "done":
        raise InputError(f"The run {run.path} is done; there is nothing to go on with.")
    if run.kind not in _KINDS:
        raise InputError(f"The run {run.path} is of the kind '{run.kind}', which cannot be gone on with.")
    return start_detached(run.kind, {**run.config, "out": str(run.path)}, python=python, cancelled=cancelled)


def stop_and_wait(run: RunFolder, wait_s: float = 60.0) -> bool:
    """Ask a run to save and stop, and wait for it; False when it is still at its step after `wait_s`.

    Raises:
        InputError: it is not running.
    """
    if run.status.state != "running":
        raise InputError(f"The run {run.path} is not running; its state is '{run.status.state}'.")
    run.ask_to_stop()
    end = time.monotonic() + wait_s
    while run.status.state == "running":
        if time.monotonic() > end:
            return False
        time.sleep(_LOOK_EVERY_S)
    return True


def command_words(config: Mapping[str, Any]) -> list[str]:
    """Write settings as a command line has them; what is None or empty keeps its default.

    Args:
        config: plain values by field name, as in run.json.
    """
    words: list[str] = []
    for name, value in config.items():
        option = "--" + name.replace("_", "-")
        if value is None or value in ([], ()):
            continue
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [option, *map(str, value)]
        else:
            words.append(f"{option}={value}")
    return words


def _log_of(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log.txt"
        log.touch()
    except OSError as error:
        raise StorageError(f"The run folder {folder} cannot be made ({error.strerror}).") from error
    return log


def _apart() -> dict[str, Any]:
    """What keeps a process alive when its parent, its terminal or its ssh connection goes."""
    if sys.platform == "win32":
        # A console of its own, unseen: without one, each reader of scans would open another.
        return {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _last_words(log: Path, begun: int) -> str:
    """The error a command ended with, which it wrote to its log from `begun` on; an empty folder is taken away."""
    with log.open("rb") as file:
        file.seek(begun)
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    if not begun and all(path.name == log.name for path in log.parent.iterdir()):
        log.unlink()
        log.parent.rmdir()
    return lines[-1].removeprefix("medssl: error: ") if lines else "The run ended before it had begun."

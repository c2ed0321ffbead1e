"""What a training run would cost, measured in a process of its own that is gone afterwards, memory and all."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import Cancelled, InputError
from ..wire.launch import LocalCommand
from .detached import command_words

__all__ = ["estimate_apart"]

_LOOK_EVERY_S = 0.1


def estimate_apart(
    config: Mapping[str, Any],
    *,
    python: str | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> str:
    """Say what pre-training would take, from a few measured steps; writes nothing but the cache of scans.

    Args:
        config: fields of `PretrainConfig` by name; "out" is not used.
        python: interpreter with the engine's packages; None for this one.
        cancelled: asked while the process works, which it then ends.

    Returns:
        One line for a person: steps, time, memory.

    Raises:
        InputError: it could not be measured; the message is the command's own.
        Cancelled: `cancelled` said so.
    """
    command = LocalCommand(python=python or sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        words = command_words({**config, "out": str(Path(folder) / "run")})
        process = subprocess.Popen(
            [command.python, "-m", "medssl.cli", "pretrain", "--estimate", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(command.environment()),
        )
        said, complained = _wait(process, cancelled)
    if process.returncode != 0:
        lines = complained.strip().splitlines() or ["The estimate ended without a word."]
        raise InputError(lines[-1].removeprefix("medssl: error: "))
    return said.strip().splitlines()[-1]


def _wait(process: subprocess.Popen[str], cancelled: Callable[[], bool]) -> tuple[str, str]:
    """What a process said on its two streams, once it has ended."""
    try:
        while not cancelled():
            with suppress(subprocess.TimeoutExpired):
                return process.communicate(timeout=_LOOK_EVERY_S)
        raise Cancelled("The estimate was cancelled.")
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()

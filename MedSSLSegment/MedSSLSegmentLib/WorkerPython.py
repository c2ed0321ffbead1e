"""The Python in which the worker computes: which one, and whether it has what the worker needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import qt
import slicer.util
from medssl.client import LocalCommand, SshCommand, WorkerCommand
from medssl.errors import WorkerError

from . import Environment

__all__ = [
    "chosenHost",
    "chosenPython",
    "missingPackages",
    "requirePackages",
    "setChosenHost",
    "setChosenPython",
    "workerCommand",
]

SETTING = "MedSSLSegment/WorkerPython"
HOST_SETTING = "MedSSLSegment/WorkerHost"
REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"
TIMEOUT_S = 60

_LIST_MISSING = """
import importlib.metadata, sys
for name in sys.argv[1:]:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        print(name)
"""


def chosenPython() -> str:
    """The Python the user chose; empty for 3D Slicer's own."""
    return str(slicer.util.settingsValue(SETTING, ""))


def setChosenPython(path: str) -> None:
    """Remember a Python on this computer; empty for 3D Slicer's own."""
    qt.QSettings().setValue(SETTING, path.strip())


def chosenHost() -> str:
    """The machine to compute on, as user@host; empty for this one."""
    return str(slicer.util.settingsValue(HOST_SETTING, ""))


def setChosenHost(host: str) -> None:
    """Remember a machine to compute on; empty for this one."""
    qt.QSettings().setValue(HOST_SETTING, host.strip())


def workerCommand() -> WorkerCommand:
    """How to start the worker: on the chosen host, in the chosen Python, in its own, or in 3D Slicer's.

    Raises:
        InputError: the host's name is not one.
    """
    if chosenHost():
        return SshCommand(host=chosenHost())
    path = chosenPython() or (str(Environment.environmentPython()) if Environment.isReady() else "")
    if not path:
        return LocalCommand(python=shutil.which("PythonSlicer") or sys.executable)
    return LocalCommand(python=path, base_environment=slicer.util.startupEnvironment())


def missingPackages(command: WorkerCommand) -> list[str]:
    """Names of the packages the worker needs and its Python does not have.

    Raises:
        WorkerError: the program cannot be run, or is not a Python.
    """
    if not isinstance(command, LocalCommand):
        return []  # the other machine says so itself when its worker starts
    try:
        listed = subprocess.run(
            [command.python, "-c", _LIST_MISSING, *_requiredNames()],
            env=dict(command.environment()),
            capture_output=True,
            text=True,
            check=True,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise WorkerError(
            f"{command.python} cannot be run as the worker's Python ({error}); choose another in the settings."
        ) from error
    return listed.stdout.split()


def requirePackages(command: WorkerCommand) -> None:
    """Raise WorkerError, with the command that installs them, when packages are missing."""
    missing = missingPackages(command)
    if missing:
        raise WorkerError(
            f"The worker's Python lacks {', '.join(missing)}; press Set up in the settings, or run: "
            f'"{command.python}" -m pip install -r "{REQUIREMENTS}"'
        )


def _requiredNames() -> list[str]:
    lines = REQUIREMENTS.read_text("utf-8").splitlines()
    return [re.split(r"[<>=!~\[; ]", line)[0] for line in lines if line and not line.startswith("#")]

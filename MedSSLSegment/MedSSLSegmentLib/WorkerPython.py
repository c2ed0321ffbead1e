"""The Python in which the worker computes: which one, and whether it has what the worker needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import qt
import slicer.util
from medssl.client import LocalCommand
from medssl.errors import WorkerError

__all__ = ["chosenPython", "missingPackages", "requirePackages", "setChosenPython", "workerCommand"]

SETTING = "MedSSLSegment/WorkerPython"
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


def workerCommand() -> LocalCommand:
    """How to start the worker in the chosen Python."""
    path = chosenPython()
    if not path:
        return LocalCommand(python=shutil.which("PythonSlicer") or sys.executable)
    return LocalCommand(python=path, base_environment=slicer.util.startupEnvironment())


def missingPackages(command: LocalCommand) -> list[str]:
    """Names of the packages the worker needs and its Python does not have.

    Raises:
        WorkerError: the program cannot be run, or is not a Python.
    """
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
            f"{command.python} cannot be run as the worker's Python ({error}); choose another under Advanced."
        ) from error
    return listed.stdout.split()


def requirePackages(command: LocalCommand) -> None:
    """Raise WorkerError, with the command that installs them, when packages are missing."""
    missing = missingPackages(command)
    if missing:
        raise WorkerError(
            f"The worker's Python lacks {', '.join(missing)}; choose another one under Advanced, or install them with: "
            f'"{command.python}" -m pip install -r "{REQUIREMENTS}"'
        )


def _requiredNames() -> list[str]:
    lines = REQUIREMENTS.read_text("utf-8").splitlines()
    return [re.split(r"[<>=!~\[; ]", line)[0] for line in lines if line and not line.startswith("#")]

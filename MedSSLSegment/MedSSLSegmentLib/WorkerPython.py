"""The Python in which the worker computes: which one, and whether it has what the worker needs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import qt
import slicer.util
from medssl.client import LocalCommand, SshCommand, WorkerCommand
from medssl.errors import InputError, WorkerError
from medssl.wire.processes import apart

from . import Environment

__all__ = [
    "chosenDevice",
    "chosenHome",
    "chosenHost",
    "chosenPython",
    "missingPackages",
    "requirePackages",
    "setChosenDevice",
    "setChosenHome",
    "setChosenHost",
    "setChosenPython",
    "useChosenHome",
    "workerCommand",
]

SETTING = "MedSSLSegment/WorkerPython"
HOST_SETTING = "MedSSLSegment/WorkerHost"
DEVICE_SETTING = "MedSSLSegment/Device"
HOME_SETTING = "MedSSLSegment/Home"
REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"
TIMEOUT_S = 60

_LIST_MISSING = """
import importlib.metadata, sys
if sys.version_info < (3, 11):
    print("Python 3.11 or newer")
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
    """Remember a machine to compute on; empty for this one.

    Raises:
        InputError: the host's name is not one; the one before stays.
    """
    if host.strip():
        SshCommand(host=host.strip())
    qt.QSettings().setValue(HOST_SETTING, host.strip())


def chosenDevice() -> str:
    """What models compute on: "auto", "cpu", "cuda" or "mps"."""
    return str(slicer.util.settingsValue(DEVICE_SETTING, "auto"))


def setChosenDevice(device: str) -> None:
    """Remember what models compute on."""
    qt.QSettings().setValue(DEVICE_SETTING, device)


def chosenHome() -> str:
    """Folder of models, cases and runs; empty for the usual one."""
    return str(slicer.util.settingsValue(HOME_SETTING, ""))


def setChosenHome(folder: str) -> None:
    """Remember a folder of models, cases and runs, and use it; empty for the usual one.

    Raises:
        InputError: there is no such folder; the one before stays.
    """
    if folder and not Path(folder).is_dir():
        raise InputError(f"{folder} is no folder; make it, or choose another one for models, cases and runs.")
    qt.QSettings().setValue(HOME_SETTING, folder)
    if folder:
        useChosenHome()
    else:
        os.environ.pop("MEDSSL_HOME", None)


def useChosenHome() -> None:
    """Look for models, cases and runs where the user wants them, here and in the worker."""
    if chosenHome():
        os.environ["MEDSSL_HOME"] = chosenHome()


def workerCommand() -> WorkerCommand:
    """How to start the worker: on the chosen host, in the chosen Python, in its own, or in 3D Slicer's.

    Raises:
        InputError: the host's name is not one.
    """
    if chosenHost():
        return SshCommand(host=chosenHost(), base_environment=Environment.outsideEnvironment())
    if chosenPython():
        return LocalCommand(python=chosenPython(), base_environment=Environment.outsideEnvironment())
    if Environment.isReady():
        return Environment.environmentCommand()
    return LocalCommand(python=Environment.slicerPython())


def missingPackages(command: WorkerCommand) -> list[str]:
    """Names of the packages the worker needs and its Python does not have; a Python too old lacks a newer one.

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
            errors="replace",
            check=True,
            timeout=TIMEOUT_S,
            **apart(),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise WorkerError(
            f"{command.python} cannot be run as the worker's Python ({error}); choose another in the settings."
        ) from error
    return listed.stdout.splitlines()


def requirePackages(command: WorkerCommand) -> None:
    """Raise WorkerError, with what to do about it, when packages are missing."""
    missing = missingPackages(command)
    if missing:
        raise WorkerError(_whatToDo(command.python, ", ".join(missing)))


def _whatToDo(python: str, missing: str) -> str:
    if chosenPython():
        return (
            f'The worker\'s Python lacks {missing}; run: "{python}" -m pip install -r "{REQUIREMENTS}", or empty the'
            " field Worker's Python in the settings and press Set up."
        )
    if Environment.isReady():
        return f"The worker's environment lacks {missing}; press Set up in the settings, which mends it."
    return f"The worker is not set up yet; press Set up in the settings. (3D Slicer's own Python lacks {missing}.)"


def _requiredNames() -> list[str]:
    lines = REQUIREMENTS.read_text("utf-8").splitlines()
    return [re.split(r"[<>=!~\[; ]", line)[0] for line in lines if line and not line.startswith("#")]

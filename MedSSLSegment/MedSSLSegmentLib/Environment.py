"""The worker's own Python environment: what it will hold, and making, checking and removing it.

Nothing is ever installed into 3D Slicer's own Python. An environment is made in a folder of the user's: by uv, where
there is one, with a Python of its own; else pip puts the packages into the folder and Slicer's Python, with that folder
first on its path, is the worker's. (Slicer's Python cannot be the base of a venv: it finds its library through
PYTHONHOME, which its launcher sets and a venv must not have.) The work is done by processes in a thread, can be
cancelled, and goes on where it stopped when it is started again: both installers keep what they have downloaded.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import slicer.util
from medssl.client import LocalCommand
from medssl.errors import Cancelled, StorageError, WorkerError
from medssl.registry import user_folder
from medssl.wire.processes import apart, end_tree
from slicer.i18n import tr as _

from .TorchBuild import CPU, indexOf, torchBuild

__all__ = [
    "EnvironmentPlan",
    "SetUp",
    "environmentCommand",
    "environmentFolder",
    "findUv",
    "isReady",
    "outsideEnvironment",
    "removeEnvironment",
    "slicerPython",
]

REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"
BUILD_TOOLS = ("setuptools", "wheel")
UV_PYTHONS = ">=3.11,<3.14"
"""Versions of Python that uv may take from the computer, or else download."""
MARKER = "medssl-environment.json"
PINS = "torch.txt"
"""Which torch pip has taken, so that it keeps it when it comes to the packages that need one."""
TORCH = ("torch", "torchvision")
PACKAGES = "packages"
"""Folder of the packages, where Slicer's Python is the worker's."""
UV_FOLDERS = ("~/.local/bin", "~/.cargo/bin", "/opt/homebrew/bin", "/usr/local/bin")
"""Where its installers put uv: a program that is started from a desktop seldom sees the path of a terminal."""
CPU_GB, CUDA_GB = 2.5, 8.0
VOLUME_GB = 3.0
"""Memory a worker needs for a CT of 512 x 512 x 500 with the shipped model."""
_LOOK_EVERY_S, _GRACE_S = 0.1, 3.0


def environmentFolder() -> Path:
    """Where Set up puts the environment."""
    return user_folder().parent / "environment"


def slicerPython() -> str:
    """3D Slicer's own Python, to be started from within 3D Slicer, whose environment it needs.

    It is the interpreter itself, as Slicer starts it for scripts (qSlicerCLIExecutableModuleFactory.cxx). The launcher
    PythonSlicer would put Slicer's own packages before those of PYTHONPATH (ctkAppLauncher.cpp, buildEnvironment), and
    leave behind what it started when it is ended. In Slicer's build tree there is only the launcher.
    """
    return shutil.which("python-real") or shutil.which("PythonSlicer") or sys.executable


def findUv() -> str | None:
    """The program uv: on the path, or where its installers put it; None where there is none."""
    folders = os.pathsep.join(os.path.expanduser(folder) for folder in UV_FOLDERS)
    return shutil.which("uv") or shutil.which("uv", path=folders)


def outsideEnvironment() -> dict[str, str]:
    """What programs that are not 3D Slicer's see: nothing of it, but the folder of models, cases and runs."""
    ours = {"MEDSSL_HOME": os.environ["MEDSSL_HOME"]} if "MEDSSL_HOME" in os.environ else {}
    return {**slicer.util.startupEnvironment(), **ours}


def environmentCommand(folder: Path | None = None) -> LocalCommand:
    """How to start the worker in an environment, whether it is there or not."""
    folder = folder or environmentFolder()
    python = _venvPython(folder)
    if python.exists():
        return LocalCommand(python=str(python), base_environment=outsideEnvironment())
    packages = [str(folder / PACKAGES), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, packages))}
    return LocalCommand(python=slicerPython(), base_environment=environment)


def isReady(folder: Path | None = None) -> bool:
    """Whether an environment was made to the end, is still there, and is one for the Python that will use it."""
    folder = folder or environmentFolder()
    try:
        facts = json.loads((folder / MARKER).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    if _venvPython(folder).exists():
        return True
    return (folder / PACKAGES).is_dir() and facts.get("python") == _thisPython()


def _thisPython() -> str:
    """Kind of 3D Slicer's Python: what pip has installed for one is of no use to another, e.g. of the next Slicer."""
    return f"{sys.implementation.cache_tag} {platform.machine()}"


def _venvPython(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def removeEnvironment(folder: Path | None = None) -> None:
    """Delete an environment that Set up began or made; refuses any other folder.

    From the first moment it is none that could be used, and to the last one that can be deleted: where this is cut off,
    the next time goes on.

    Raises:
        StorageError: the folder is not such an environment, or cannot be deleted.
    """
    folder = folder or environmentFolder()
    if not folder.exists():
        return
    ours = ("pyvenv.cfg", MARKER, PACKAGES)
    if not any((folder / name).exists() for name in ours) and any(folder.iterdir()):
        raise StorageError(f"{folder} was not made by Set up, so it is not deleted.")
    marker = folder / MARKER
    try:
        marker.write_text("", "utf-8")
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != marker:
                path.unlink()
        shutil.rmtree(folder)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be deleted ({error}); close what uses it and try again."
        ) from error


@dataclass(frozen=True)
class EnvironmentPlan:
    """What Set up would do, to be read before it does anything."""

    folder: Path
    """Where."""
    uv: str | None
    """The program uv; without it, 3D Slicer's Python and pip do the work."""
    build: str
    """Which build of torch; see `TorchBuild`."""
    wheels: Path | None = None
    """Folder of packages to install from, for a computer without a network."""
    requirements: Path = REQUIREMENTS

    @classmethod
    def forThisComputer(cls, wheels: Path | None = None) -> EnvironmentPlan:
        """The plan for the usual folder.

        Raises:
            WorkerError: 3D Slicer's Python is the only one there is, and torch is not made for it.
        """
        uv = findUv()
        if uv is None and sys.platform == "darwin" and platform.machine() == "x86_64":
            raise WorkerError(
                "This 3D Slicer is made for Intel Macs, and torch is not any more; install uv (docs.astral.sh/uv) and"
                " press Set up again, or on an Intel Mac compute on another machine."
            )
        return cls(environmentFolder(), uv, torchBuild(), wheels)

    @property
    def packages(self) -> list[str]:
        """The requirements, one each."""
        lines = self.requirements.read_text("utf-8").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]

    @property
    def hasCuda(self) -> bool:
        """Whether torch will compute on NVIDIA GPUs."""
        return self.build != CPU

    @property
    def diskGb(self) -> float:
        """Disk space it will take, about."""
        return CUDA_GB if self.hasCuda else CPU_GB

    def text(self) -> str:
        """All of it, for a person."""
        build = _("for NVIDIA GPUs (CUDA)") if self.hasCuda else _("for processors (no NVIDIA GPU was found)")
        source = (
            _("the folder {folder}").format(folder=self.wheels)
            if self.wheels
            else _("the Python Package Index")
        )
        means = _("uv and a Python of its own") if self.uv else _("pip and the Python of 3D Slicer")
        free = shutil.disk_usage(_nearest(self.folder)).free / 1e9
        return _(
            "Where: {folder} (nothing else is changed, 3D Slicer's own Python neither)\n"
            "How large: about {size:.1f} GB; {free:.0f} GB are free there\n"
            "From: {source}, with {means}\n"
            "torch: the build {build}\n"
            "Memory while it works: about {memory:.0f} GB for a CT of 512 x 512 x 500\n"
            "Packages: {packages}"
        ).format(
            folder=self.folder,
            size=self.diskGb,
            free=free,
            source=source,
            means=means,
            build=build,
            memory=VOLUME_GB,
            packages=", ".join(self.packages),
        )

    def environment(self) -> dict[str, str]:
        """What the processes see: nothing of 3D Slicer's, unless they are its own Python."""
        base = outsideEnvironment() if self.uv else environmentCommand(self.folder).environment()
        return {**base, "SAM2_BUILD_CUDA": "0", "PIP_REQUIRE_VIRTUALENV": "0"}

    def commands(self) -> list[list[str]]:
        """The processes to run, one after the other; running them again does no harm, and mends what is missing.

        torch comes first, and the rest is built without isolation: sam2 is a source package whose build needs a torch,
        and would fetch a second one. uv leaves what is there; pip, which installs into a folder, would take the newest
        torch of all indexes for the rest, so it is told which one it has.
        """
        torch = [p for p in self.packages if p.split(">")[0].strip() in TORCH]
        install = self._install()
        rest = [*install, *self._source(), "--no-build-isolation", "-r", str(self.requirements)]
        if self.uv:
            make = [self.uv, "venv", "--allow-existing", "--python", UV_PYTHONS, str(self.folder)]
            first = [*install, *self._source(), *BUILD_TOOLS, *torch]
            return [make, *([first] if torch else []), rest]
        if not torch:
            return [rest]
        only = self._only()
        return [
            [*install, *self._source(), *BUILD_TOOLS],
            [*install, *only, *torch],
            [*rest, "-c", self._pins],
        ]

    def tidy(self) -> None:
        """After a command of pip: forget versions that it replaced, and note which torch the next one has to keep.

        Into a folder, pip puts the new description of a package beside the old one.
        """
        described: dict[str, Path] = {}
        for path in sorted((self.folder / PACKAGES).glob("*.dist-info"), key=os.path.getmtime):
            name = path.stem.rsplit("-", 1)[0].lower()
            if name in described:
                shutil.rmtree(described[name])
            described[name] = path
        kept = [described[name].stem.rsplit("-", 1) for name in TORCH if name in described]
        Path(self._pins).write_text("".join(f"{name}=={version}\n" for name, version in kept), "utf-8")

    @property
    def _pins(self) -> str:
        return str(self.folder / PINS)

    def _install(self) -> list[str]:
        """The words that every installation begins with."""
        if self.uv:
            return [self.uv, "pip", "install", "--python", str(_venvPython(self.folder))]
        pip = [slicerPython(), "-m", "pip", "install", "--disable-pip-version-check"]
        return [*pip, "--upgrade", "--target", str(self.folder / PACKAGES)]

    def _source(self) -> list[str]:
        """Where packages come from."""
        if self.wheels:
            return ["--no-index", "--find-links", str(self.wheels)]
        if self.uv:
            return ["--torch-backend", "auto" if self.hasCuda else "cpu"]
        index = indexOf(self.build)
        return ["--extra-index-url", index] if index else []

    def _only(self) -> list[str]:
        """Where pip takes torch from, and from nowhere else: the newest one may not be there in this build."""
        index = indexOf(self.build)
        return self._source() if self.wheels or index is None else ["--index-url", index]


Runner = Callable[[Sequence[str], Mapping[str, str], Callable[[str], None], threading.Event], int]
"""Runs a program with an environment, hands on what it says, stops it when asked; returns its exit status."""


class SetUp:
    """Makes an environment in the background.

    Args:
        plan: what to make.
        run: runs a process; by default a real one, and tells it to stop when cancelled.
        after: waits for what uses the environment to end.
    """

    def __init__(
        self,
        plan: EnvironmentPlan,
        run: Runner | None = None,
        after: Callable[[], object] = lambda: None,
    ) -> None:
        self.plan = plan
        self._run = run or _runProcess
        self._after = after
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self.error: Exception | None = None
        self.line = ""
        """What the installer said last."""
        self.step = 0
        """How many of the plan's commands have run."""

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._ended.is_set()

    def start(self) -> None:
        """Begin; returns at once."""
        threading.Thread(target=self._work, name="medssl set up", daemon=True).start()

    def cancel(self, wait_s: float = 0.0) -> None:
        """Stop soon; what was downloaded stays for the next time.

        Args:
            wait_s: for the installer to end, at most; a program that closes says so.
        """
        self._cancelled.set()
        self._ended.wait(wait_s)

    def result(self) -> LocalCommand:
        """How to start the worker in it; waits for the end.

        Raises:
            WorkerError: an installer failed.
            StorageError: there is not enough space.
            Cancelled: as asked.
        """
        self._ended.wait()
        if self.error is not None:
            raise self.error
        return environmentCommand(self.plan.folder)

    def _work(self) -> None:
        try:
            self._after()
            self._make()
        except Exception as error:
            self.error = error
        finally:
            self._ended.set()

    def _make(self) -> None:
        plan = self.plan
        free = shutil.disk_usage(_nearest(plan.folder)).free / 1e9
        if free < plan.diskGb:
            raise StorageError(
                f"Set up needs about {plan.diskGb:.1f} GB in {plan.folder}, but {free:.1f} GB are free; make room."
            )
        if not plan.uv and _venvPython(plan.folder).exists():
            raise StorageError(
                f"{plan.folder} was made by uv, which is not there any more; press Remove first."
            )
        plan.folder.mkdir(parents=True, exist_ok=True)
        (plan.folder / MARKER).unlink(missing_ok=True)
        for command in plan.commands():
            status = self._run(command, plan.environment(), self._hear, self._cancelled)
            if self._cancelled.is_set():
                raise Cancelled("Set up was cancelled; it goes on where it stopped when you start it again.")
            if status != 0:
                raise WorkerError(f"Set up failed at {Path(command[0]).name}: {self.line}")
            if not plan.uv:
                plan.tidy()
            self.step += 1
        facts = {"uv": plan.uv, "python": _thisPython(), "torch": plan.build, "packages": plan.packages}
        (plan.folder / MARKER).write_text(json.dumps(facts), "utf-8")

    def _hear(self, line: str) -> None:
        if line.strip():
            self.line = line.strip()


def _runProcess(
    command: Sequence[str],
    environment: Mapping[str, str],
    hear: Callable[[str], None],
    cancelled: threading.Event,
) -> int:
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=dict(environment),
            **apart(),
        )
    except OSError as error:
        raise WorkerError(f"{command[0]} cannot be run ({error}).") from error

    def listen() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                hear(line)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    while process.poll() is None and not cancelled.wait(_LOOK_EVERY_S):
        pass
    if process.poll() is None:
        _end(process)
    listener.join(_GRACE_S)
    return process.returncode


def _end(process: subprocess.Popen[str]) -> None:
    """End an installer and what it has started, e.g. the build of a package."""
    for by_force in (False, True):
        end_tree(process, by_force=by_force)
        try:
            process.wait(_GRACE_S)
            return
        except subprocess.TimeoutExpired:
            continue


def _nearest(folder: Path) -> Path:
    """The folder itself, or the first one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())

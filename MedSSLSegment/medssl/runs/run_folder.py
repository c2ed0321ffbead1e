"""A training job on disk: whoever looks, from any process, sees what it is, how far it is and how to go on.

| file                   | what it holds                                                    | written                  |
|------------------------|------------------------------------------------------------------|--------------------------|
| run.json               | what was asked for                                               | once                     |
| status.json            | state, process, progress                                         | every few seconds        |
| events.jsonl           | metrics and log lines, one a line                                | as they come             |
| checkpoint.safetensors | the weights, for use                                             | at every save            |
| resume.pt              | everything that going on needs                                   | at every save            |
| log.txt                | what a detached run printed                                      | as it comes              |
| step-*.png             | pictures of what has been learnt                                 | at some saves            |
| stop                   | somebody asked the run to stop                                   | by whoever asks          |

All but the two growing files are replaced in one step, so a kill -9 at any moment leaves a folder that can be used.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import __version__
from ..errors import Cancelled, InputError, MedSSLError, ModelError, ProtocolError, StorageError
from ..events import Log, Progress
from ..storage import atomic_path, is_leftover
from ..wire.codec import from_plain
from .processes import is_alive, start_mark

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["RUN_FORMAT", "RunFolder", "RunStatus", "TrainingMetric", "list_runs", "plain"]

RUN_FORMAT = 1
"""Raised when a new program could not go on with an old folder."""

_REPORT_EVERY_S = 2.0
_LOST_AFTER_S = 600.0
"""A run on another machine that has not reported for so long is taken for lost."""

State = Literal["new", "running", "stopped", "done", "failed", "lost"]


@dataclass(frozen=True)
class TrainingMetric:
    """Numbers of some optimiser steps, averaged since the last report."""

    step: int
    """Optimiser steps done."""
    epoch: float
    """Passes over the data done."""
    values: Mapping[str, float]
    """By name; "loss" is always there."""
    learning_rate: float
    samples_per_second: float


@dataclass(frozen=True)
class RunStatus:
    """How a run stands."""

    state: State
    """new: not begun; running; stopped: asked to, can go on; done; failed; lost: its process is gone."""
    progress: Progress | None = None
    message: str = ""
    """Why it stopped or failed."""
    pid: int | None = None
    """Process that runs it, or last did."""
    host: str = ""
    """Machine of that process."""
    reported: float = 0.0
    """When it last said so, seconds since 1970."""


@dataclass(frozen=True)
class RunFolder:
    """A run folder that exists; make one with `create`, `open` or `create_or_open`."""

    path: Path
    kind: str
    """The command that made it and goes on with it: pretrain, finetune, ..."""
    config: Mapping[str, Any]
    """What was asked for, as plain values."""
    version: str = __version__
    """Of the program that made it."""
    created: str = ""
    """Date and time, UTC."""

    @classmethod
    def create(cls, path: str | Path, kind: str, config: Any) -> RunFolder:
        """Begin a run in a new folder.

        Args:
            path: folder; made when it does not exist.
            kind: the command's name.
            config: a dataclass, or plain values by name.

        Raises:
            InputError: there is a run already, or something else is in the folder.
            StorageError: the folder cannot be written.
        """
        path = Path(path).absolute()
        try:
            path.mkdir(parents=True, exist_ok=True)
            names = [p.name for p in path.iterdir() if not is_leftover(p.name)]
            strangers = sorted(name for name in names if name not in ("log.txt", "lock"))
        except OSError as error:
            raise StorageError(f"The run folder {path} cannot be made ({error.strerror}).") from error
        if "run.json" in strangers:
            raise InputError(f"The folder {path} holds a run already; choose another one.")
        if strangers:
            raise InputError(
                f"The folder {path} holds other files ({strangers[0]}); choose a new folder for the run."
            )
        return cls._write(path, kind, config)

    @classmethod
    def _write(cls, path: Path, kind: str, config: Any) -> RunFolder:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        run = cls(path, kind, plain(config), __version__, created)
        record = {"format": RUN_FORMAT, **{f.name: getattr(run, f.name) for f in fields(run)[1:]}}
        with atomic_path(path / "run.json") as temporary:
            temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Look at a run that exists.

        Raises:
            InputError: there is none, it is damaged, or another version of the program made it.
        """
        path = Path(path).absolute()
        file = path / "run.json"
        if not file.is_file():
            raise InputError(f"The folder {path} holds no run (there is no run.json in it).")
        try:
            record = json.loads(file.read_text("utf-8"))
            found, version = record["format"], str(record["version"])
            run = cls(path, str(record["kind"]), dict(record["config"]), version, str(record["created"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"The file {file} is damaged; start again in another folder.") from error
        if found != RUN_FORMAT:
            raise InputError(
                f"The run {path} was made by medssl {version}, whose run folders have the format {found} and not"
                f" {RUN_FORMAT}; finish it with that version or start again in another folder."
            )
        return run

    @classmethod
    def create_or_open(
        cls, path: str | Path, kind: str, config: Any, may_change: Sequence[str] = ()
    ) -> RunFolder:
        """Begin a run, or go on with the one that is there if it was asked for with the same settings.

        A run that ended before its first save has nothing to lose; it begins again, with whatever settings.

        Args:
            path: folder; made when it does not exist.
            kind: the command's name.
            config: a dataclass, or plain values by name.
            may_change: settings that need not be the same.

        Raises:
            InputError: the run there is of another kind, version or setting (the message names it), or under way.
            StorageError: the folder cannot be written.
        """
        if not (Path(path) / "run.json").is_file():
            return cls.create(path, kind, config)
        run = cls.open(path)
        if run.kind != kind:
            raise InputError(f"The folder {run.path} holds a {run.kind} run; choose another one for {kind}.")
        run.require_idle()
        if not (run.path / "resume.pt").exists():
            return cls._write(run.path, kind, config)
        run.require_same(run.config, plain(config), may_change)
        return run

    def require_same(
        self, old: Mapping[str, Any], new: Mapping[str, Any], may_change: Sequence[str] = ()
    ) -> None:
        """Refuse to go on with other settings than the run began with.

        Raises:
            InputError: a setting differs; the message names the first.
        """
        before, now = _flat(old), _flat(new)
        for name in [*before, *(name for name in now if name not in before)]:
            if name.split(".")[0] not in may_change and before.get(name) != now.get(name):
                raise InputError(
                    f"The run {self.path} began with {name} = {before.get(name)}, not {now.get(name)};"
                    " give the same settings to go on, or another folder to start again."
                )

    def require_idle(self) -> None:
        """Refuse while a process runs it.

        Raises:
            InputError: one does.
        """
        status = self.status
        if status.state == "running":
            raise InputError(
                f"The run {self.path} is under way (process {status.pid} on {status.host});"
                f" stop it first with: medssl runs stop {self.path}"
            )

    # ---- files

    @property
    def checkpoint(self) -> Path:
        """The weights, for use."""
        return self.path / "checkpoint.safetensors"

    @property
    def log(self) -> Path:
        """What a detached run printed."""
        return self.path / "log.txt"

    def save_resume(self, state: Mapping[str, Any]) -> None:
        """Replace resume.pt in one step.

        Args:
            state: tensors and plain values only.

        Raises:
            StorageError: no space or no permission; the previous state stays.
        """
        import torch

        path = self.path / "resume.pt"
        with atomic_path(path) as temporary:
            try:
                torch.save(dict(state), temporary)
            except RuntimeError as error:  # what PyTorch's writer makes of a full disk
                raise StorageError(
                    f"{path} could not be written; make room and go on with: medssl runs resume {self.path}"
                ) from error

    def load_resume(self) -> dict[str, Any] | None:
        """Read what `save_resume` wrote, to the CPU; None where nothing was saved yet.

        Raises:
            ModelError: the file is damaged.
        """
        import torch

        path = self.path / "resume.pt"
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # a damaged archive can raise anything
            raise ModelError(
                f"The training state {path} is damaged; delete it to start this run again."
            ) from error
        return state

    def save_picture(self, step: int, picture: NDArray[np.uint8]) -> Path:
        """Keep an (H, W, 3) picture of a step as PNG."""
        from PIL import Image

        path = self.path / f"step-{step:06d}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
        return path

    def pictures(self) -> list[Path]:
        """Pictures kept so far, oldest first."""
        return sorted(self.path.glob("step-*.png"))

    # ---- events

    def append_event(self, event: TrainingMetric | Log) -> None:
        """Add a line to events.jsonl.

        Raises:
            StorageError: no space or no permission.
        """
        record = {"type": "log" if isinstance(event, Log) else "metric", **asdict(event)}
        try:
            with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise StorageError(
                f"{self.path / 'events.jsonl'} could not be written ({error.strerror}); make room and go on with:"
                f" medssl runs resume {self.path}"
            ) from error

    def events(self) -> list[TrainingMetric | Log]:
        """All metrics and log lines so far; a line that a killed process left half is passed over."""
        try:
            lines = (self.path / "events.jsonl").read_text("utf-8").splitlines()
        except OSError:
            return []
        return [event for line in lines if (event := _event(line)) is not None]

    def metrics(self) -> list[TrainingMetric]:
        """The metrics among the events."""
        return [event for event in self.events() if isinstance(event, TrainingMetric)]

    def forget_after(self, step: int) -> None:
        """Drop metrics of later steps than the one a run goes on from: they will come again."""
        kept = [e for e in self.events() if isinstance(e, Log) or e.step <= step]
        records = [{"type": "log" if isinstance(e, Log) else "metric", **asdict(e)} for e in kept]
        with atomic_path(self.path / "events.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")

    # ---- status

    @property
    def status(self) -> RunStatus:
        """How the run stands now."""
        record = self._record()
        if record is None:
            return RunStatus("new")
        is_lost = record.state == "running" and not _holder_is_alive(record)
        state: State = "lost" if is_lost else record.state
        return RunStatus(state, record.progress, record.message, record.pid, record.host, record.beat)

    def record(self, event: Progress | Log | TrainingMetric) -> None:
        """Keep what training tells: how far it is in the status, everything else in events.jsonl.

        Raises:
            StorageError: no space or no permission.
        """
        if isinstance(event, Progress):
            self.report(event)
        else:
            self.append_event(event)

    def report(self, progress: Progress) -> None:
        """Tell others how far the run is; writes every few seconds at most."""
        record = self._record()
        recent = record is not None and time.time() - record.beat < _REPORT_EVERY_S
        if not recent or not record or not record.progress or progress.done == progress.total:
            self._write_status("running", progress)

    def ask_to_stop(self) -> None:
        """Ask the process that runs it, on whatever machine, to save and stop after the step it is at.

        Raises:
            StorageError: the folder cannot be written.
        """
        try:
            (self.path / "stop").touch()
        except OSError as error:
            raise StorageError(
                f"The run {self.path} could not be asked to stop ({error.strerror})."
            ) from error

    @property
    def stop_asked(self) -> bool:
        """Whether somebody asked."""
        return (self.path / "stop").exists()

    @contextlib.contextmanager
    def occupied(self) -> Iterator[None]:
        """Run it in this process as long as the block lasts; no other process can in that time.

        The state becomes "done" at the end of the block, "stopped" when it is left with `Cancelled`, Ctrl-C or by
        closing a generator, "failed" with any other error.

        Raises:
            InputError: a process runs it already.
            StorageError: the folder cannot be written.
        """
        with _one_at_a_time(self.path / "lock"):
            self.require_idle()
            (self.path / "stop").unlink(missing_ok=True)
            self._remove_leftovers()
            self._write_status("running", self.status.progress)
        try:
            yield
        except (Cancelled, KeyboardInterrupt, GeneratorExit) as end:
            self._leave("stopped", str(end))
            raise
        except BaseException as error:
            self._leave("failed", str(error) if isinstance(error, MedSSLError) else repr(error))
            raise
        self._leave("done", "")

    @contextlib.contextmanager
    def stopped_while(self, doing: str) -> Iterator[None]:
        """Say of work that is cancelled within the block what it was, and how the run goes on.

        Raises:
            Cancelled: the work in the block was.
        """
        try:
            yield
        except Cancelled as end:
            raise Cancelled(f"Stopped while {doing}; go on with: medssl runs resume {self.path}") from end

    def _remove_leftovers(self) -> None:
        """Take away what a killed process was writing; a training state can be large."""
        for path in self.path.iterdir():
            if is_leftover(path.name):
                path.unlink(missing_ok=True)

    def _leave(self, state: State, message: str) -> None:
        record = self._record()
        progress = record.progress if record else None
        if progress and state == "done":
            progress = Progress(progress.total, progress.total, 0.0)
        with contextlib.suppress(StorageError):  # a full disk: the error on its way out says so already
            self._write_status(state, progress, message)

    def _record(self) -> _Record | None:
        try:
            return from_plain(_Record, json.loads((self.path / "status.json").read_text("utf-8")), "status")
        except (OSError, ValueError, ProtocolError):
            return None

    def _write_status(self, state: State, progress: Progress | None, message: str = "") -> None:
        pid = os.getpid()
        record = _Record(state, message, progress, pid, start_mark(pid), socket.gethostname(), time.time())
        _replace(self.path / "status.json", json.dumps(asdict(record)))


def list_runs(folder: str | Path) -> list[RunFolder]:
    """Runs in a folder and the folders below it, or the folder itself; those that cannot be read are left out.

    A run that links lead to a second time is listed once.
    """
    folder = Path(folder)
    patterns = ("*/*/run.json", "*/run.json", "run.json")  # of a run found twice, the shortest way counts
    files = {file.resolve(): file for pattern in patterns for file in folder.glob(pattern)}
    runs = []
    for file in sorted(files.values()):
        with contextlib.suppress(InputError):
            runs.append(RunFolder.open(file.parent))
    return runs


def plain(config: Any) -> dict[str, Any]:
    """Turn a dataclass, or a mapping, into what JSON can hold: paths become absolute text, tuples lists."""
    values = asdict(config) if is_dataclass(config) and not isinstance(config, type) else dict(config)
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, list | tuple):
        return [_plain_value(item) for item in value]
    return value


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{above}{name}."))
        else:
            flat[above + name] = value
    return flat


def _event(line: str) -> TrainingMetric | Log | None:
    try:
        record = json.loads(line)
        kinds: dict[str, type[TrainingMetric | Log]] = {"log": Log, "metric": TrainingMetric}
        return from_plain(kinds[record.pop("type")], record, "event")
    except (ValueError, KeyError, TypeError, AttributeError, ProtocolError):
        return None


@dataclass(frozen=True)
class _Record:
    """What status.json holds."""

    state: State
    message: str
    progress: Progress | None
    pid: int
    mark: str
    """Tells the process from a later one with its number."""
    host: str
    beat: float
    """When it was written, seconds since 1970."""


def _holder_is_alive(record: _Record) -> bool:
    if record.host != socket.gethostname():
        return time.time() - record.beat < _LOST_AFTER_S
    return is_alive(record.pid, record.mark)


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Let one process at a time through; the system itself lets go when a process dies."""
    try:
        file = path.open("a+b")
    except OSError as error:
        raise StorageError(f"The run folder {path.parent} cannot be written ({error.strerror}).") from error
    with file:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    """Write a small file in one step; without waiting for the disk, which `atomic_path` does."""
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StorageError(
            f"{path} could not be written ({error.strerror}); make room and go on with:"
            f" medssl runs resume {path.parent}"
        ) from error

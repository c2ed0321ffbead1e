"""How a worker is started: on this machine, or on another one through ssh. The pipe is the same."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..errors import InputError

__all__ = ["LocalCommand", "SshCommand", "WorkerCommand"]

_AGAIN = "the next request starts it again"
_LONGEST_QUOTE = 300
_HOST = re.compile(r"([A-Za-z0-9_][\w.+-]*@)?[A-Za-z0-9_][\w.:-]*", re.ASCII)


class WorkerCommand(Protocol):
    """A way to start a worker."""

    def argv(self) -> list[str]:
        """Program and arguments; no shell ever sees them."""

    def environment(self) -> Mapping[str, str] | None:
        """Environment of the process; None = this one's."""

    def explain(self, status: int, last_words: str) -> str:
        """Say in one sentence why the process ended.

        Args:
            status: exit status; negative for the signal that ended it.
            last_words: the last line it wrote to standard error, or nothing.
        """


@dataclass(frozen=True, kw_only=True)
class LocalCommand:
    """A worker on this machine."""

    python: str = field(default_factory=lambda: sys.executable)
    """Python that has the engine's packages; in Slicer that of the worker's own environment."""
    threads: int | None = None
    """CPU threads to compute with; None = all cores."""
    base_environment: Mapping[str, str] | None = None
    """Environment to start from, e.g. `slicer.util.startupEnvironment()`; None = this process's."""

    def argv(self) -> list[str]:
        """Program and arguments."""
        threads = [] if self.threads is None else ["--threads", str(self.threads)]
        return [self.python, "-m", "medssl.worker", *threads]

    def environment(self) -> Mapping[str, str]:
        """The base environment, made to import this copy of medssl and nothing from the current folder.

        A folder of the user's that is named from the current folder is so for a process in another one too.
        """
        base = os.environ if self.base_environment is None else self.base_environment
        folders = [str(Path(__file__).resolve().parents[2]), base.get("PYTHONPATH", "")]
        own = {"PYTHONPATH": os.pathsep.join(filter(None, folders)), "PYTHONSAFEPATH": "1"}
        if home := base.get("MEDSSL_HOME"):
            own["MEDSSL_HOME"] = str(Path(home).expanduser().absolute())
        return {**base, **own}

    def explain(self, status: int, last_words: str) -> str:
        """Say in one sentence why the process ended."""
        if status < 0:
            often = ", often because memory ran out" if _signal_name(-status) == "SIGKILL" else ""
            return f"The worker was ended by {_signal_name(-status)}{often}; {_AGAIN}."
        return f"The worker ended with exit status {status}{_quoted(last_words)}; {_AGAIN}."


@dataclass(frozen=True, kw_only=True)
class SshCommand:
    """A worker on another machine through OpenSSH, with a key or an agent: ssh is never allowed to ask.

    Raises:
        InputError: the host's name is not one.
    """

    host: str
    """``server``, ``user@server``, or a name from the user's ssh configuration."""
    program: str = "medssl"
    """The command there: a name on the PATH that ssh gives to commands, or a full path."""
    connect_seconds: int = 15
    """How long to wait for the host to answer."""
    base_environment: Mapping[str, str] | None = None
    """Environment of ssh itself; inside Slicer `slicer.util.startupEnvironment()`, because ssh does not run with
    Slicer's libraries. None = this process's."""

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):  # above all no leading "-": ssh would take it for an option
            raise InputError(f"{self.host!r} is not a host; give a name such as server or user@server.")

    def argv(self) -> list[str]:
        """Program and arguments."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(self.connect_seconds),
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
        }
        flags = [argument for name, value in options.items() for argument in ("-o", f"{name}={value}")]
        return ["ssh", "-T", *flags, self.host, f"{shlex.quote(self.program)} worker"]

    def environment(self) -> Mapping[str, str] | None:
        """The base environment, as it is."""
        return self.base_environment

    def explain(self, status: int, last_words: str) -> str:
        """Say in one sentence why ssh, or the worker at its other end, ended."""
        if status == 255:  # ssh's own failures, whatever they are
            return (
                f"The connection to {self.host} failed{_quoted(last_words)}; see that `ssh {self.host}` works without"
                " asking for anything, then try again."
            )
        look = f"see that `ssh {self.host} {shlex.quote(self.program)} --version` works"
        if status in (126, 127):
            return (
                f"{self.host} cannot run the command {self.program!r}{_quoted(last_words)}; install medssl there, and"
                f" {look}."
            )
        if status < 0:
            return f"The connection to {self.host} was ended by {_signal_name(-status)}; {_AGAIN}."
        return (
            f"The worker on {self.host} ended with exit status {status}{_quoted(last_words)}; {look}, then try"
            " again."
        )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _quoted(last_words: str) -> str:
    text = " ".join(last_words.split()).rstrip(".")
    return f" ({text[:_LONGEST_QUOTE]})" if text else ""

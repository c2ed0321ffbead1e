"""Writing files so that a reader sees either the old file or the whole new one, never half of it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import StorageError

__all__ = ["atomic_path", "is_leftover", "make_folder", "move", "one_at_a_time", "require_writable"]

_LOOK_S = 0.05
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\..+")


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to; it takes the name `path` once the block ends without an error.

    The temporary file lies in the same folder and ends in the same name, so writers that go by the suffix
    work on it. It is flushed to the disk before it is renamed. If the block raises, it is removed and `path`
    stays as it was.

    Args:
        path: the file to create or replace; its folder must exist.

    Yields:
        The temporary path. The block must have created it when it ends.

    Raises:
        StorageError: in place of any OSError: no space, no permission, no such folder.
    """
    target = Path(path)
    temporary = target.with_name(f".{secrets.token_hex(4)}.{target.name}")
    try:
        if target.is_dir():
            raise IsADirectoryError("there is a folder of that name")
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise StorageError(_sentence(target, error)) from error
    finally:
        with contextlib.suppress(
            OSError
        ):  # gone already if it was renamed; if it cannot go, the first error counts
            temporary.unlink()
    _flush_folder(target.parent)


def is_leftover(name: str) -> bool:
    """Whether a file name is that of a temporary file of `atomic_path`, as a killed program leaves it behind."""
    return _TEMPORARY.fullmatch(name) is not None


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system can (Windows cannot open a folder)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sentence(target: Path, error: OSError) -> str:
    reason = (error.strerror or str(error)).rstrip(".")
    try:
        free = f"{shutil.disk_usage(target.parent).free / 1e6:.0f} MB are free there"
    except OSError:
        free = "its folder cannot be reached"
    return f"{target} could not be written ({reason}; {free}); make room or choose another folder."


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; one that exists is fine.

    Raises:
        StorageError: no permission, no space, or a file of that name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The folder {folder} could not be made ({error.strerror}); choose another."
        ) from error


def require_writable(folder: Path) -> None:
    """Make a folder and find out whether files can be written there, before hours are spent on them.

    Raises:
        StorageError: no permission, no space, or a file of that name.
    """
    make_folder(folder)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StorageError(_sentence(folder, error)) from error


@contextlib.contextmanager
def one_at_a_time(path: Path, busy: Exception, patience_s: float = 0.0) -> Iterator[None]:
    """Let one program, and of it one thread, through at a time; the system lets go for a program that dies.

    Args:
        path: a file for this alone; it is made and stays, empty.
        busy: raised when somebody else has held it for `patience_s`.

    Raises:
        StorageError: the file cannot be made.
    """
    try:
        file = path.open("ab")
    except OSError as error:
        raise StorageError(_sentence(path, error)) from error
    with file:
        until_s = time.monotonic() + patience_s
        while not _take(file):
            if time.monotonic() >= until_s:
                raise busy
            time.sleep(_LOOK_S)
        yield


def _take(file: BinaryIO) -> bool:
    """Whether it was free; closing the file lets go."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise StorageError(_sentence(Path(file.name), error)) from error
    return True


def move(source: Path, target: Path) -> None:
    """Rename a file or folder in one step; a folder that is not empty is never replaced.

    Raises:
        StorageError: it could not be done; both are as they were.
    """
    try:
        os.rename(source, target)
    except OSError as error:
        raise StorageError(
            f"{source} could not be moved to {target} ({error.strerror}); try again."
        ) from error

"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from medssl.errors import InputError, StorageError
from medssl.storage import atomic_path, one_at_a_time, require_writable


def _no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "mask.nii.gz"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
        assert temporary.parent == tmp_path
        assert temporary.name.endswith("mask.nii.gz")
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["mask.nii.gz"]


def test_an_error_in_the_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "mask.nii.gz"
    target.write_bytes(b"old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"half")
            raise InputError("The input went bad.")

    with pytest.raises(InputError, match="went bad"):
        write_half()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["mask.nii.gz"]


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, _no_space)
    with (
        pytest.raises(StorageError, match=r"mask\.nii\.gz could not be written \(No space left on device;"),
        atomic_path(tmp_path / "mask.nii.gz") as temporary,
    ):
        temporary.write_bytes(b"new")
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_and_a_file_in_its_place_are_storage_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "missing", tmp_path / "file"):
        with (
            pytest.raises(StorageError, match="choose another folder"),
            atomic_path(folder / "a.txt") as temporary,
        ):
            temporary.write_text("text")
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_of_that_name_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.nii.gz").mkdir()
    with pytest.raises(StorageError, match="a folder of that name"), atomic_path(tmp_path / "out.nii.gz"):
        pytest.fail("the block must not run")
    assert (tmp_path / "out.nii.gz").is_dir()


def test_a_folder_is_tried_out_before_hours_are_spent_and_nothing_stays_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_writable(tmp_path / "new" / "models")
    assert os.listdir(tmp_path / "new" / "models") == []
    monkeypatch.setattr("tempfile.TemporaryFile", _no_space)
    with pytest.raises(StorageError, match=r"No space left .*; make room or choose another folder"):
        require_writable(tmp_path)


def test_a_second_one_is_kept_out_until_the_first_one_is_through(tmp_path: Path) -> None:
    lock, busy = tmp_path / "lock", StorageError("Somebody is at it.")

    def enter() -> str:
        with one_at_a_time(lock, busy):
            return "inside"

    with one_at_a_time(lock, busy), pytest.raises(StorageError, match="Somebody is at it"):
        enter()
    assert enter() == "inside"


def test_who_waits_goes_in_when_the_first_one_is_through(tmp_path: Path) -> None:
    lock, order = tmp_path / "lock", list[str]()
    inside, told = threading.Event(), threading.Event()

    def first() -> None:
        with one_at_a_time(lock, StorageError("busy")):
            inside.set()
            told.wait(30)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(30)
    threading.Timer(0.1, told.set).start()
    with one_at_a_time(lock, StorageError("busy"), patience_s=30):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_a_program_that_is_killed_inside_lets_go(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from medssl.storage import one_at_a_time\n"
        "with one_at_a_time(pathlib.Path(sys.argv[1]), OSError()):\n    print('in', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        with pytest.raises(StorageError), one_at_a_time(tmp_path / "lock", StorageError("busy")):
            pass
        process.kill()
    with one_at_a_time(tmp_path / "lock", StorageError("busy")):
        pass

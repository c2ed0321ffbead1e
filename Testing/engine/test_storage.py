"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from medssl.errors import InputError, StorageError
from medssl.storage import atomic_path, require_writable


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

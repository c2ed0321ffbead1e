"""Compressed files are unpacked before Slicer reads them, and what it writes is packed afterwards."""

from __future__ import annotations

import gzip
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from medssl.errors import InputError
from medssl.phantom import Phantom
from medssl.volume import read_volume, write_volume
from medssl.web.packing import pack_nrrd, pack_scene, unpack_nrrd, unpack_scene

HEADER = b"NRRD0004\ntype: uint8\ndimension: 1\nsizes: 4\nencoding: gzip\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the copies go."""
    folder = tmp_path / "unpacked"
    folder.mkdir()
    return folder


def test_a_copy_has_the_same_voxels_in_the_same_place_unpacked(
    phantom: Phantom, tmp_path: Path, folder: Path
) -> None:
    write_volume(phantom.volume, tmp_path / "ct.nrrd")
    copy = unpack_nrrd(tmp_path / "ct.nrrd", folder)
    assert copy == folder / "ct.nrrd"
    assert b"encoding: raw" in copy.read_bytes()[:2000]
    volume = read_volume(copy)
    np.testing.assert_array_equal(volume.voxels_kji, phantom.volume.voxels_kji)
    np.testing.assert_allclose(volume.ijk_to_ras, phantom.volume.ijk_to_ras, atol=1e-6)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nothing",
        HEADER.replace(b"gzip", b"raw") + b"\n1234",
        HEADER.replace(b"sizes: 4", b"sizes: many") + b"\n" + gzip.compress(b"1234"),
        HEADER + b"data file: elsewhere.raw.gz\n\n",
        HEADER + b"byte skip: -1\n\n" + gzip.compress(b"1234"),
        HEADER + b"\n" + gzip.compress(b"1234")[:-9],
        HEADER + b"\n1234",
    ],
    ids=["empty", "no header", "raw", "no sizes", "elsewhere", "skips", "cut short", "damaged"],
)
def test_what_cannot_be_unpacked_is_left_to_the_reader(tmp_path: Path, folder: Path, content: bytes) -> None:
    path = tmp_path / "labels.seg.nrrd"
    path.write_bytes(content)
    assert unpack_nrrd(path, folder) == path
    assert list(folder.iterdir()) == []


def test_a_small_file_does_not_become_as_large_as_it_likes(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "bomb.nrrd").write_bytes(HEADER + b"\n" + gzip.compress(bytes(10_000_000)))
    assert unpack_nrrd(tmp_path / "bomb.nrrd", folder).stat().st_size < 1000


def test_a_bundle_without_a_scene_is_refused(tmp_path: Path, folder: Path) -> None:
    with ZipFile(tmp_path / "work.mrb", "w") as bundle:
        bundle.writestr("work/Data/ct.nrrd", HEADER)
    with pytest.raises(InputError, match=r"^work\.mrb cannot be read as a scene"):
        unpack_scene(tmp_path / "work.mrb", folder)


def test_what_is_packed_is_what_was_unpacked(phantom: Phantom, tmp_path: Path, folder: Path) -> None:
    write_volume(phantom.volume, tmp_path / "ct.nrrd")
    raw = unpack_nrrd(tmp_path / "ct.nrrd", folder)
    pack_nrrd(raw, tmp_path / "again.nrrd")
    assert b"encoding: gzip" in (tmp_path / "again.nrrd").read_bytes()[:2000]
    assert (tmp_path / "again.nrrd").stat().st_size < 0.8 * raw.stat().st_size
    volume = read_volume(tmp_path / "again.nrrd")
    np.testing.assert_array_equal(volume.voxels_kji, phantom.volume.voxels_kji)
    np.testing.assert_allclose(volume.ijk_to_ras, phantom.volume.ijk_to_ras, atol=1e-6)


def test_a_bundle_holds_a_folder_under_its_own_name(tmp_path: Path, folder: Path) -> None:
    (folder / "Data").mkdir()
    (folder / "unpacked.mrml").write_text("<MRML/>")
    (folder / "Data" / "a.nrrd").write_bytes(b"a" * 9000)
    pack_scene(folder, tmp_path / "work.mrb")
    with ZipFile(tmp_path / "work.mrb") as bundle:
        assert sorted(bundle.namelist()) == ["unpacked/Data/a.nrrd", "unpacked/unpacked.mrml"]
        assert bundle.read("unpacked/Data/a.nrrd") == b"a" * 9000
    assert (tmp_path / "work.mrb").stat().st_size < 2000

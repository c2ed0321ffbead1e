"""Compressed files made ready for Slicer's readers, and what its writers leave made into compressed files.

Those have to run in the thread that draws the views, and nothing else goes on meanwhile. What takes them longest is to
unpack and to pack the voxels: that is done here, which any thread may do.
"""

from __future__ import annotations

import gzip
import math
import re
import shutil
import zlib
from pathlib import Path
from typing import IO
from zipfile import ZIP_DEFLATED, ZipFile

from ..errors import InputError
from ..storage import atomic_path

__all__ = ["pack_nrrd", "pack_scene", "unpack_nrrd", "unpack_scene"]

_LEVEL = 4
"""Of compression: 9, which gzip takes if nothing is said, can need ten times as long for labels, and gains little."""
_CHUNK_BYTES = 1 << 20
_LARGEST_VOXEL_BYTES = 8
_HEADER_LINES = 100_000
_FIELD = re.compile(rb"([^:#]+):(?!=)\s*(.*?)\s*")
_ELSEWHERE = {b"data file", b"datafile", b"line skip", b"lineskip", b"byte skip", b"byteskip"}
"""Fields that say that the voxels do not simply follow the header."""


def unpack_nrrd(path: Path, folder: Path) -> Path:
    """Copy a NRRD file with its voxels unpacked.

    Args:
        path: .nrrd or .seg.nrrd file.
        folder: where the copy goes, under the same name; may be the file's own.

    Returns:
        The copy; the file itself where there is nothing to unpack, or where that does not succeed: the reader knows
        better what is wrong with it.
    """
    copy = folder / f"{path.name}.unpacked"
    try:
        with path.open("rb") as packed, copy.open("wb") as raw:
            is_unpacked = _unpack(packed, raw)
    except (OSError, EOFError, ValueError, zlib.error):
        is_unpacked = False
    if not is_unpacked:
        copy.unlink(missing_ok=True)
        return path
    return copy.replace(folder / path.name)


def unpack_scene(path: Path, folder: Path) -> Path:
    """Extract a bundle, its NRRD files unpacked.

    Args:
        path: .mrb file.
        folder: where it goes.

    Returns:
        The scene file in it.

    Raises:
        InputError: there is none.
    """
    with ZipFile(path) as bundle:
        bundle.extractall(folder)
    for file in folder.rglob("*.nrrd"):
        unpack_nrrd(file, file.parent)
    scene = next(folder.rglob("*.mrml"), None)
    if scene is None:
        raise InputError(f"{path.name} cannot be read as a scene of 3D Slicer: there is no scene in it.")
    return scene


def pack_nrrd(raw: Path, path: Path) -> None:
    """Compress a NRRD file.

    Args:
        raw: .nrrd or .seg.nrrd file with its voxels as they are.
        path: the file to write, whole or not at all.

    Raises:
        StorageError: no space or no permission.
    """
    with atomic_path(path) as temporary, raw.open("rb") as unpacked, temporary.open("wb") as packed:
        lines = _header(unpacked)
        packed.writelines(b"encoding: gzip\n" if _says_raw(line) else line for line in lines)
        packed.write(b"\n")
        with gzip.GzipFile("", "wb", _LEVEL, packed, mtime=0) as voxels:
            shutil.copyfileobj(unpacked, voxels, _CHUNK_BYTES)


def pack_scene(folder: Path, path: Path) -> None:
    """Make a bundle of a folder.

    Args:
        folder: with the scene file and its data.
        path: .mrb file to write, whole or not at all.

    Raises:
        StorageError: no space or no permission.
    """
    with atomic_path(path) as temporary, ZipFile(temporary, "w", ZIP_DEFLATED, compresslevel=1) as bundle:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                bundle.write(file, file.relative_to(folder.parent))


def _says_raw(line: bytes) -> bool:
    field = _FIELD.fullmatch(line)
    return field is not None and field[1].strip().lower() == b"encoding" and field[2].lower() == b"raw"


def _unpack(packed: IO[bytes], raw: IO[bytes]) -> bool:
    """Whether it was something to unpack; voxels beyond those the header speaks of are left."""
    lines = _header(packed)
    fields = {
        found[1].strip().lower(): found[2].lower() for line in lines if (found := _FIELD.fullmatch(line))
    }
    is_packed = fields.get(b"encoding") in (b"gzip", b"gz")
    if not is_packed or not lines[0].startswith(b"NRRD") or _ELSEWHERE & set(fields):
        return False
    raw.writelines(b"encoding: raw\n" if line.lower().startswith(b"encoding:") else line for line in lines)
    raw.write(b"\n")
    left = _LARGEST_VOXEL_BYTES * math.prod(int(size) for size in fields.get(b"sizes", b"0").split())
    voxels = gzip.GzipFile(fileobj=packed)
    while chunk := voxels.read(min(_CHUNK_BYTES, left)):
        raw.write(chunk)
        left -= len(chunk)
    return True


def _header(file: IO[bytes]) -> list[bytes]:
    """The lines up to the empty one before the voxels."""
    lines: list[bytes] = []
    while len(lines) < _HEADER_LINES and (line := file.readline(_CHUNK_BYTES)).strip():
        lines.append(line)
    return lines

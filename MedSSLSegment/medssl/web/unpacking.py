"""Compressed files made ready for Slicer's readers.

Those have to run in the thread that draws the views, and nothing else goes on meanwhile. What takes them longest is to
unpack the voxels: that is done here, which any thread may do.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import IO
from zipfile import ZipFile

from ..errors import InputError

__all__ = ["unpack_nrrd", "unpack_scene"]

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

"""Files that name other files: what a scene or a header would have read, found out before anybody reads it.

A NRRD or MetaImage header may name the files its voxels are in, and a scene the files of its nodes, anywhere on the
machine. Whoever gives such a file to somebody else must not choose which of that person's files are opened.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote
from xml.etree import ElementTree
from zipfile import BadZipFile, ZipFile

from ..errors import InputError
from .folders import Folders

__all__ = ["check_references"]

_HEADER_BYTES = 1 << 24
"""A header is no longer than that: a list of a hundred thousand files."""
_FILES = 100_000
"""A pattern stands for no more files than that."""
_NRRD_FIELD = re.compile(r"data ?file\s*:(?!=)\s*(.*)", re.IGNORECASE)
_META_FIELD = re.compile(r"ElementDataFile\s*[=:]\s*(.*)", re.IGNORECASE)
_PATTERN = re.compile(r"(.*%.*?)\s+(-?\d+)\s+(-?\d+)(?:\s+(-?\d+))?(?:\s+\d+)?")
_NUMBER = re.compile(r"%0?\d{0,3}[di]")
_SCENE_ATTRIBUTE = re.compile(r"(fileName|fileListMember\d*|uri|uriListMember\d*)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def check_references(path: Path, folders: Folders) -> None:
    """Refuse a file that names others beyond the folders that are allowed; voxels and nodes are not read.

    Args:
        path: scene, bundle, NRRD or MetaImage file; any other file names none.
        folders: where files may lie. What a bundle names has to be in the bundle.

    Raises:
        InputError: it names such a file, or one that cannot be told.
    """
    name = path.name.lower()
    if name.endswith(".mrb"):
        _check_bundle(path)
    elif name.endswith(".mrml"):
        with path.open("rb") as file:
            named = list(_named_by_scene(file, path.name))
        for reference in named:
            found = _inside(path, reference, folders)
            if found.is_file() and not found.name.lower().endswith((".mrml", ".mrb")):
                check_references(found, folders)
    elif path.is_file():
        with path.open("rb") as file:
            for reference in _named_by_header(file, path.name):
                _inside(path, reference, folders)


def _inside(path: Path, reference: str, folders: Folders) -> Path:
    found = path.parent / reference
    if _ADDRESS.match(reference) or not folders.holds(found):
        raise _refused(
            path.name, reference, "is in no folder that was named when the workstation was started"
        )
    return found


def _refused(name: str, reference: str, why: str) -> InputError:
    return InputError(f"{name} names {reference!r}, which {why}; it was not opened.")


# Scenes


def _check_bundle(path: Path) -> None:
    try:
        with ZipFile(path) as bundle:
            for entry in bundle.infolist():
                is_link = stat.S_ISLNK(entry.external_attr >> 16)
                if is_link or not _is_in_bundle(PurePosixPath(entry.filename)):
                    raise _refused(path.name, entry.filename, "leads out of the bundle")
                with bundle.open(entry) as file:
                    is_scene = entry.filename.lower().endswith(".mrml")
                    named = (
                        _named_by_scene(file, path.name)
                        if is_scene
                        else _named_by_header(file, entry.filename)
                    )
                    for reference in named:
                        target = PurePosixPath(entry.filename).parent / reference
                        if _ADDRESS.match(reference) or not _is_in_bundle(target):
                            raise _refused(path.name, reference, "is not in the bundle")
    except (BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path.name} cannot be read as a scene of 3D Slicer: {error}.") from error


def _is_in_bundle(target: PurePosixPath) -> bool:
    depth = 0
    for part in target.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return False
    return not target.is_absolute() and "\\" not in str(target)


def _named_by_scene(file: IO[bytes], name: str) -> Iterator[str]:
    try:
        for _, node in ElementTree.iterparse(file):
            for attribute, value in node.attrib.items():
                if value and _SCENE_ATTRIBUTE.fullmatch(attribute):
                    yield from {value, unquote(value)}
            node.clear()
    except ElementTree.ParseError as error:
        raise InputError(f"{name} cannot be read as a scene of 3D Slicer: {error}.") from error


# Headers of images


def _named_by_header(file: IO[bytes], name: str) -> Iterator[str]:
    is_nrrd = file.read(4) == b"NRRD"
    if not is_nrrd and not name.lower().endswith((".mha", ".mhd")):
        return
    file.seek(0)
    lines = _header_lines(file, name)
    for line in lines:
        if is_nrrd and not line:
            return
        found = (_NRRD_FIELD if is_nrrd else _META_FIELD).fullmatch(line)
        if found is None:
            continue
        value = found.group(1).strip()
        if not is_nrrd and value.upper() == "LOCAL":
            return
        if value.upper().split()[:1] == ["LIST"]:
            yield from filter(None, lines)
            return
        yield from _expanded(value, name)
        if not is_nrrd:  # it is the last field
            return


def _header_lines(file: IO[bytes], name: str) -> Iterator[str]:
    """Lines as every reader takes them apart; where readers would differ, the file is refused."""
    count = 0
    while line := file.readline(_HEADER_BYTES):
        count += len(line)
        text = os.fsdecode(line).removesuffix("\n").removesuffix("\r").strip(" \t")
        if count >= _HEADER_BYTES or _CONTROL.search(text):
            raise InputError(f"{name} has a header that cannot be told from its voxels; it was not opened.")
        yield text


def _expanded(value: str, name: str) -> Iterator[str]:
    """The one file that is named, or all those a pattern and its numbers stand for."""
    found = _PATTERN.fullmatch(value)
    if found is None and "%" not in value and value not in ("", "-"):
        yield value
        return
    count = 0
    if found is not None:
        pattern, first, last, step = found.group(1), int(found[2]), int(found[3]), int(found[4] or 1)
        numbers = range(first, last + (1 if step > 0 else -1), step or 1)
        count = len(numbers)
    if found is None or not 0 < count <= _FILES or pattern.count("%") != 1 or not _NUMBER.search(pattern):
        raise InputError(f"{name} names {value!r}, from which its files cannot be told; it was not opened.")
    for number in numbers:
        yield pattern % number

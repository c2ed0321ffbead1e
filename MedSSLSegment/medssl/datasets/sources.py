"""Which scans a folder tree holds, in NIfTI, NRRD, MetaImage and DICOM in any mix, and whose they are.

Label maps are left out by their names: label, mask, seg, segmentation, gt or groundtruth, alone or before a number or
more words (label_2, segmentation-12), or after the image's name (x_seg, x-label, x_gt, x.seg.nrrd); auto_*; and
everything in a folder called labels, masks, segmentations, labelsTr, ... Names that begin with a dot are not looked at.

Whose a scan is:
1. what ``patients.csv`` (columns scan, patient) or ``patients.json`` ({scan: patient}) in the data folder says; "scan"
   is a path below the data folder, of the file or of any folder above it;
2. else a hash of the DICOM PatientID;
3. else the folder the scan lies in, so all scans of a case folder share a patient, unless that folder is a pool of
   many patients: the data folder itself, one whose name begins with images or imgs, or one of more than 10 scans.
   There every file is a patient, named by its file name without the suffix and nnU-Net's channel number (_0000).
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import InputError, MedSSLError
from ..formats.dicom import list_dicom_series, patient_of, read_series
from ..formats.imagefile import is_dicom
from ..volume import Volume, read_volume

__all__ = [
    "IMAGE_SUFFIXES",
    "Found",
    "Patients",
    "ReadScan",
    "SamePatients",
    "Source",
    "exclusions",
    "find_sources",
    "image_stem",
    "is_excluded",
    "stated_modality",
]

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
_LABEL = r"(labels?|masks?|segs?|segmentations?|gt|ground[-_]?truth)"
_LABEL_FILE = re.compile(rf"{_LABEL}([-_. 0-9].*)?$|auto_|.*[-_.]{_LABEL}$")
_LABEL_FOLDER = re.compile(rf"{_LABEL}(tr|ts|va|train|test|val)?$")
_POOL_FOLDER = re.compile(r"images|imgs")
_CHANNEL = re.compile(r"_\d{4}$")
_LARGEST_CASE = 10
_NEVER_DICOM = (
    ".json",
    ".csv",
    ".txt",
    ".md",
    ".png",
    ".jpg",
    ".xml",
    ".pdf",
    ".raw",
    ".zraw",
    ".gz",
    ".b2nd",
    ".py",
)


@dataclass(frozen=True)
class ReadScan:
    """A volume and what its source says about it."""

    suffix: str
    """Tells the series of one DICOM folder apart; "" where there is one."""
    volume: Volume
    modality: str
    """As stated by DICOM or by a ``meta.json`` beside the file; "" where nothing is."""
    patient: str
    """Hash of the DICOM PatientID, or ""."""
    series: str = ""
    """Which DICOM series it is, for a person: UID, modality, description, number of slices; "" for an image file."""


@dataclass(frozen=True)
class Source:
    """An image file, or a folder of DICOM files."""

    path: Path
    name: str
    """Path below the data folder, with forward slashes."""
    files: tuple[Path, ...]
    """What may be read: the slices of a DICOM folder, and all that lies beside a header that names other files."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of where the files are, their sizes and times of change: equal means nothing changed."""
        digest = hashlib.sha256(str(self.path.resolve()).encode("utf-8", "surrogateescape"))
        for file in (*self.files, self.path.with_name("meta.json")):
            if file.exists():
                facts = file.stat()
                digest.update(
                    f"{file.name}|{facts.st_size}|{facts.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
                )
        return digest.hexdigest()

    def read(self) -> Iterator[ReadScan | MedSSLError]:
        """Read the scans one after another; in place of one that cannot be read comes the error that says why."""
        try:
            yield from self._scans()
        except (
            Exception
        ) as error:  # a file that no reader has met yet must not end the work on all the others
            yield InputError(
                f"{self.name} could not be read ({type(error).__name__}: {error}); convert it, or leave it out."
            )

    def _scans(self) -> Iterator[ReadScan | MedSSLError]:
        if not self.path.is_dir():
            try:
                yield ReadScan("", read_volume(self.path), stated_modality(self.path), "")
            except MedSSLError as error:
                yield error
            return
        try:
            found = list_dicom_series(self.path)
        except MedSSLError as error:
            yield error
            return
        if not found:
            yield InputError(f"{self.path} holds DICOM files, but no images.")
        for number, series in enumerate(found, start=1):
            suffix = f" [series {number}]" if len(found) > 1 else ""
            try:
                raw = read_series(series, self.path.name)
                name = self.path.resolve().name if self.name == "." else self.name
                volume = Volume(raw.voxels, raw.ijk_to_ras, name + suffix)
                yield ReadScan(suffix, volume, series.modality, patient_of(series), str(series))
            except MedSSLError as error:
                yield error


@dataclass(frozen=True)
class Found:
    """What a folder tree holds."""

    sources: tuple[Source, ...]
    """By name."""
    labels: tuple[str, ...]
    """Names of the label maps that were left out."""
    closed: tuple[str, ...]
    """Names of the folders that may not be listed."""


def find_sources(data: Path, exclude: Sequence[str] = ()) -> Found:
    """Look for scans in a folder and all folders below it.

    Args:
        data: the folder.
        exclude: names to leave out, below `data`: of files or folders, * and ? stand for anything.

    Raises:
        InputError: there is no such folder.
    """
    if not data.is_dir():
        raise InputError(f"The data folder {data} does not exist; give the folder with the scans.")
    sources, labels, closed = [], [], []
    seen: set[Path] = set()

    def refused(error: OSError) -> None:
        closed.append(Path(error.filename).relative_to(data).as_posix())

    for folder_text, folders, files in os.walk(data, onerror=refused, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if Path(folder_text).resolve() in seen:  # a link back to where we were
            folders.clear()
            continue
        seen.add(Path(folder_text).resolve())
        folder = Path(folder_text)
        kept = [folder / f for f in sorted(files) if not f.startswith(".")]
        kept = [f for f in kept if not is_excluded(f.relative_to(data).as_posix(), exclude)]
        for path in (f for f in kept if f.name.lower().endswith(IMAGE_SUFFIXES)):
            name = path.relative_to(data).as_posix()
            if _is_label(path.relative_to(data)):
                labels.append(name)
            else:
                names_others = path.suffix.lower() in (".mhd", ".nhdr")
                sources.append(Source(path, name, tuple(kept) if names_others else (path,)))
        slices = tuple(f for f in kept if not f.name.lower().endswith((*IMAGE_SUFFIXES, *_NEVER_DICOM)))
        if any(is_dicom(f) for f in slices if f.name.upper() != "DICOMDIR"):  # that is a table of contents
            sources.append(Source(folder, folder.relative_to(data).as_posix(), slices))
    return Found(tuple(sorted(sources, key=lambda s: s.name)), tuple(labels), tuple(closed))


def is_excluded(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path below the data folder, or a folder above it, fits one of the patterns."""
    path = PurePosixPath(name)
    candidates = [str(p) for p in (path, *path.parents) if str(p) != "."]
    return any(fnmatchcase(c, pattern.rstrip("/")) for c in candidates for pattern in patterns)


def exclusions(patterns: Sequence[str]) -> dict[str, Any]:
    """How many patterns left scans out, and a hash of them: two runs can be compared, and no name is given away."""
    joined = "\n".join(sorted(patterns))
    return {"count": len(patterns), "sha256": hashlib.sha256(joined.encode()).hexdigest()}


def image_stem(name: str) -> str:
    """File name without the suffix of an image file."""
    lower = name.lower()
    suffix = next((s for s in IMAGE_SUFFIXES if lower.endswith(s)), "")
    return name[: len(name) - len(suffix)]


class Patients:
    """Whose the scans of a data folder are; see the top of this file.

    Args:
        data: the data folder.
        names: of all scans in it, to tell pools from case folders.

    Raises:
        InputError: ``patients.csv`` or ``patients.json`` is not as it must be.
    """

    def __init__(self, data: Path, names: Sequence[str]) -> None:
        self._stated = _read_patients(data)
        self._scans_in = Counter(str(PurePosixPath(name).parent) for name in names)

    def of(self, name: str, dicom_patient: str = "", is_folder: bool = False) -> str:
        """Patient of the scan of that name; a DICOM scan is named by its folder."""
        path = PurePosixPath(name)
        for candidate in (path, *path.parents):
            if (stated := self._stated.get(_plain(str(candidate)))) is not None:
                return stated
        if dicom_patient or is_folder:
            return dicom_patient or name
        folder = path.parent
        pooled = (
            str(folder) == "."
            or _POOL_FOLDER.match(folder.name.lower()) is not None
            or self._scans_in[str(folder)] > _LARGEST_CASE
        )
        return str(folder / _CHANNEL.sub("", image_stem(path.name))) if pooled else str(folder)


class SamePatients:
    """Patients who share a scan, under whatever names, are one."""

    def __init__(self) -> None:
        self._set_of: dict[tuple[str, str], set[tuple[str, str]]] = {}

    def join(self, scan: str, patient: str) -> None:
        """A scan is this patient's, and so are the other scans of both."""
        one, other = ("scan", scan), ("patient", patient)
        merged = self._set_of.get(one, {one}) | self._set_of.get(other, {other})
        for member in merged:
            self._set_of[member] = merged

    def of(self, scan: str) -> str:
        """One name for all that were joined."""
        return min(name for kind, name in self._set_of["scan", scan] if kind == "patient")


def _read_patients(data: Path) -> Mapping[str, str]:
    listed, mapped = data / "patients.csv", data / "patients.json"
    try:
        if mapped.is_file():
            values = json.loads(mapped.read_text(encoding="utf-8"))
            return {_plain(scan): str(patient) for scan, patient in values.items()}
        if listed.is_file():
            with listed.open(newline="", encoding="utf-8-sig") as file:
                return {_plain(row["scan"]): row["patient"].strip() for row in csv.DictReader(file)}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            "patients.csv must have the columns scan and patient, patients.json must be"
            f' {{"scan": "patient"}}; correct it in {data}.'
        ) from error
    return {}


def _plain(name: str) -> str:
    """A path as it is compared: some systems keep an accent apart from its letter in the names of files."""
    return unicodedata.normalize("NFC", str(PurePosixPath(name.strip().replace("\\", "/"))))


def _is_label(path: Path) -> bool:
    folders = path.parts[:-1]
    return bool(
        _LABEL_FILE.match(image_stem(path.name).lower())
        or any(_LABEL_FOLDER.match(folder.lower()) for folder in folders)
    )


def stated_modality(path: Path) -> str:
    """What ``meta.json`` beside a file says; one that names another file in "image" is not about this one."""
    facts = path.with_name("meta.json")
    if not facts.is_file():
        return ""
    try:
        values = json.loads(facts.read_text(encoding="utf-8"))
    except ValueError:
        return ""
    about_it = isinstance(values, dict) and values.get("image", path.name) == path.name
    stated = values.get("modality", "") if about_it else ""
    return stated.strip().upper() if isinstance(stated, str) else ""


def dicom_patient(source: Source) -> str:
    """Key of the patient in a DICOM folder; "" where there is none, and for an image file."""
    found = list_dicom_series(source.path) if source.path.is_dir() else ()
    return patient_of(found[0]) if found else ""

"""DICOM folders: which image series they hold, and one series as an image on its grid.

GDCM (inside SimpleITK) parses the files, sorts the slices and rescales them to Hounsfield units. Where the
slices lie is taken from their own headers, because ITK would pass a tilted or incomplete series off as an
even, upright one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .imagefile import RawImage, grid_of, simpleitk

__all__ = ["DicomSeries", "choose_series", "list_dicom_series", "patient_id", "read_dicom", "read_series"]

_POSITION, _ORIENTATION = "0020|0032", "0020|0037"
_DESCRIPTION, _MODALITY, _PATIENT_ID = "0008|103e", "0008|0060", "0010|0020"
_UNEVEN_MM = 0.1
"""A slice may lie this far, or a tenth of a step if that is more, from its even place: headers round."""


@dataclass(frozen=True)
class DicomSeries:
    """One image series of a DICOM folder."""

    uid: str
    """Series instance UID."""
    description: str
    modality: str
    """CT, MR, ..."""
    slices: int
    files: tuple[str, ...] = ()
    """The files, sorted along the slice normal."""

    def __str__(self) -> str:
        return f"{self.uid} ({self.modality}, '{self.description}', {self.slices} slices)"


def list_dicom_series(folder: str | Path) -> tuple[DicomSeries, ...]:
    """List the image series in a folder, most slices first; reports and plans are left out.

    Args:
        folder: holds the DICOM files themselves; folders inside it are not searched.

    Raises:
        InputError: the folder does not exist.
    """
    if not Path(folder).is_dir():
        raise InputError(f"The folder {folder} does not exist; check its name.")
    with simpleitk() as sitk:
        uids = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        found = [_series_of(sitk, str(folder), uid) for uid in uids]
    return tuple(sorted((s for s in found if s is not None), key=lambda s: (-s.slices, s.uid)))


def read_dicom(folder: Path, series: str | None) -> RawImage:
    """Read one series of a folder, in Hounsfield units where the files say how.

    Args:
        folder: holds the DICOM files themselves.
        series: the series' UID or the beginning of it; None if the folder holds only one.

    Raises:
        InputError: no such series, several of them, damaged files, or slices that do not form one even stack.
    """
    return read_series(choose_series(folder, series), folder.name)


def choose_series(folder: Path, series: str | None) -> DicomSeries:
    """Find the series `read_dicom` would read, and why it cannot: see there."""
    return _chosen(list_dicom_series(folder), folder, series)


def read_series(chosen: DicomSeries, folder_name: str) -> RawImage:
    """Read a series that `list_dicom_series` found; raises as `read_dicom` does."""
    try:
        with simpleitk() as sitk:
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(chosen.files)
            reader.MetaDataDictionaryArrayUpdateOn()
            image = reader.Execute()
            voxels = sitk.GetArrayFromImage(image)
    except RuntimeError as error:
        raise InputError(
            f"Series {chosen.uid} in {folder_name} cannot be read: a file is damaged or its slices differ in"
            " size; export it again."
        ) from error
    if len(chosen.files) == 1:
        return RawImage(voxels, grid_of(image))
    return RawImage(voxels, _stack_grid(reader, image, f"Series {chosen.uid} in {folder_name}"))


def patient_id(series: DicomSeries) -> str:
    """The PatientID in a series' first file, "" where there is none. Personal: never log or store it as it is."""
    with simpleitk() as sitk:
        reader = sitk.ImageFileReader()
        reader.SetFileName(series.files[0])
        reader.ReadImageInformation()
    return _text(reader, _PATIENT_ID)


def _series_of(sitk: Any, folder: str, uid: str) -> DicomSeries | None:
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder, uid)
    reader = sitk.ImageFileReader()
    reader.SetFileName(files[0])
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # no pixels in it: a report, a plan, a structure set
        return None
    frames = reader.GetSize()[2] if len(reader.GetSize()) > 2 else 1
    return DicomSeries(
        uid=uid,
        description=_text(reader, _DESCRIPTION),
        modality=_text(reader, _MODALITY),
        slices=frames if len(files) == 1 else len(files),
        files=tuple(files),
    )


def _text(reader: Any, tag: str) -> str:
    if not reader.HasMetaDataKey(tag):
        return ""
    value: str = reader.GetMetaData(tag)
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()


def _chosen(found: tuple[DicomSeries, ...], folder: Path, series: str | None) -> DicomSeries:
    if not found:
        raise InputError(
            f"The folder {folder} holds no DICOM images; give the folder in which the slices themselves lie."
        )
    exact = [s for s in found if s.uid == series]
    fitting = exact or [s for s in found if s.uid.startswith(series or "")]
    if len(fitting) == 1:
        return fitting[0]
    if series and not fitting:
        raise InputError(f"{folder} holds no series {series}; it holds {'; '.join(map(str, found))}.")
    listed = "; ".join(map(str, fitting))
    raise InputError(
        f"{folder} holds {len(fitting)} image series; name one by its UID or the beginning of it: {listed}."
    )


def _stack_grid(reader: Any, image: Any, what: str) -> NDArray[np.float64]:
    """The (4, 4) ijk_to_ras of a series from the positions and orientations of its slices."""
    count = image.GetSize()[2]
    positions = _numbers(reader, count, _POSITION, 3, what)
    orientations = _numbers(reader, count, _ORIENTATION, 6, what)
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise InputError(
            f"{what} mixes slices of different orientations, such as a localizer; export the stack alone."
        )
    step = (positions[-1] - positions[0]) / (count - 1)
    off_mm = np.linalg.norm(positions - (positions[0] + step * np.arange(count)[:, None]), axis=1)
    if off_mm.max() > max(_UNEVEN_MM, 0.1 * float(np.linalg.norm(step))) or not step.any():
        gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
        raise InputError(
            f"{what} is not evenly spaced: its {count} slices lie {gaps.min():.3g} to {gaps.max():.3g} mm"
            " apart, so slices are missing or doubled; export the whole series again."
        )
    column_mm, row_mm = image.GetSpacing()[:2]
    affine = np.eye(4)
    affine[:3, :3] = np.stack([orientations[0, :3] * column_mm, orientations[0, 3:] * row_mm, step], axis=1)
    affine[:3, 3] = positions[0]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _numbers(reader: Any, count: int, tag: str, width: int, what: str) -> NDArray[np.float64]:
    """A numeric tag of every slice, (count, width)."""
    texts = [reader.GetMetaData(n, tag) if reader.HasMetaDataKey(n, tag) else "" for n in range(count)]
    try:
        return np.array([[float(part) for part in text.split("\\")] for text in texts]).reshape(count, width)
    except ValueError as error:
        raise InputError(
            f"{what} has slices that do not say where they lie (tag {tag}); export it again."
        ) from error

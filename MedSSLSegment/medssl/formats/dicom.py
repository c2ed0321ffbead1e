"""DICOM folders: which image series they hold, and one series as an image on its grid.

GDCM (inside SimpleITK) parses the files, sorts the slices and rescales them to Hounsfield units. Where the
slices lie is taken from their own headers, because ITK would pass a tilted or incomplete series off as an
even, upright one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .imagefile import RawImage, grid_of, itk_name, simpleitk

__all__ = ["DicomSeries", "choose_series", "list_dicom_series", "patient_id", "read_dicom", "read_series"]

_POSITION, _ORIENTATION = "0020|0032", "0020|0037"
_DESCRIPTION, _MODALITY, _PATIENT_ID = "0008|103e", "0008|0060", "0010|0020"
_SLOPE, _INTERCEPT = "0028|1053", "0028|1052"
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
        InputError: the folder does not exist, or a name in it is not text.
    """
    if not Path(folder).is_dir():
        raise InputError(f"The folder {folder} does not exist; check its name.")
    for file in Path(folder).iterdir():  # it will open them all
        itk_name(file)
    with simpleitk() as sitk:
        name = itk_name(Path(folder))
        uids = sitk.ImageSeriesReader.GetGDCMSeriesIDs(name)
        found = [_series_of(sitk, name, uid) for uid in uids]
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
    what = f"Series {chosen.uid} in {folder_name}"
    gone = [name for name in map(Path, chosen.files) if not name.is_file()]
    if gone:
        raise InputError(f"{what} cannot be read: {gone[0].name} is not there any more; put it back.")
    try:
        if len(chosen.files) == 1 and chosen.slices > 1:
            return _read_frames(Path(chosen.files[0]), what)
        return _read_slices(chosen.files, what)
    except RuntimeError as error:
        raise InputError(
            f"{what} cannot be read: a file is damaged or its slices differ in size; export it again."
        ) from error


def _read_slices(files: tuple[str, ...], what: str) -> RawImage:
    """Read files of one slice each, sorted along the slice normal."""
    with simpleitk() as sitk:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(files)
        reader.MetaDataDictionaryArrayUpdateOn()
        image = reader.Execute()
        scales = {(_tag(reader, n, _SLOPE), _tag(reader, n, _INTERCEPT)) for n in range(len(files))}
        if len(scales) > 1:  # as in PET: the type of the first slice need not hold the values of the others
            reader.SetOutputPixelType(sitk.sitkFloat32)
            image = reader.Execute()
        voxels = sitk.GetArrayFromImage(image)
    if len(files) == 1:
        return RawImage(voxels, grid_of(image))
    positions = _numbers(reader, len(files), _POSITION, 3, what)
    orientations = _numbers(reader, len(files), _ORIENTATION, 6, what)
    return RawImage(voxels, _stack_grid(positions, orientations, image.GetSpacing(), what))


def _read_frames(file: Path, what: str) -> RawImage:
    """Read a file of many slices (enhanced CT or MR), whose header gives each its place, in any order."""
    import pydicom

    with simpleitk() as sitk:
        voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    header = pydicom.dcmread(file, stop_before_pixels=True)
    shared = header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
    groups = [(frame, shared[0]) for frame in header.get("PerFrameFunctionalGroupsSequence") or ()]
    try:
        if len(groups) != len(voxels):
            raise AttributeError(f"{len(groups)} of {len(voxels)} frames are described")
        positions = np.array([_of_frame(g, "PlanePosition", "ImagePositionPatient") for g in groups], float)
        orientations = np.array(
            [_of_frame(g, "PlaneOrientation", "ImageOrientationPatient") for g in groups], float
        )
        row_mm, column_mm = map(float, _of_frame(groups[0], "PixelMeasures", "PixelSpacing"))
        scales = {_scale_of_frame(g) for g in groups}
    except AttributeError as error:
        raise InputError(
            f"{what} is one file of {len(voxels)} frames that do not say where they lie; export single slices."
        ) from error
    if len(scales) > 1:
        raise InputError(f"{what} is one file whose frames are scaled differently; export single slices.")
    order = np.argsort(positions @ np.cross(orientations[0, :3], orientations[0, 3:]), kind="stable")
    grid = _stack_grid(positions[order], orientations[order], (column_mm, row_mm), what)
    return RawImage(voxels[order], grid)


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


def _stack_grid(
    positions: NDArray[np.float64], orientations: NDArray[np.float64], spacing: Sequence[float], what: str
) -> NDArray[np.float64]:
    """The (4, 4) ijk_to_ras of a series.

    Args:
        positions: (N, 3) of the slices in LPS, in their order in space.
        orientations: (N, 6) direction cosines of rows and columns.
        spacing: mm from column to column, and from row to row; more is not looked at.
        what: how to call the series in a message.
    """
    count = len(positions)
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
    column_mm, row_mm = spacing[:2]
    affine = np.eye(4)
    affine[:3, :3] = np.stack([orientations[0, :3] * column_mm, orientations[0, 3:] * row_mm, step], axis=1)
    affine[:3, 3] = positions[0]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _tag(reader: Any, n: int, tag: str) -> str:
    """A tag of the n-th file, "" where it has none."""
    return str(reader.GetMetaData(n, tag)).strip() if reader.HasMetaDataKey(n, tag) else ""


def _of_frame(groups: Sequence[Any], group: str, name: str) -> Any:
    """An attribute of a frame's own functional group, or of the one all frames share; AttributeError without."""
    holder = next((g for g in groups if f"{group}Sequence" in g), groups[0])
    return getattr(holder[f"{group}Sequence"][0] if f"{group}Sequence" in holder else holder, name)


def _scale_of_frame(groups: Sequence[Any]) -> tuple[float, float]:
    """Slope and intercept; a frame need not have them."""
    if not any("PixelValueTransformationSequence" in g for g in groups):
        return 1.0, 0.0
    slope, intercept = (
        float(_of_frame(groups, "PixelValueTransformation", name))
        for name in ("RescaleSlope", "RescaleIntercept")
    )
    return slope, intercept


def _numbers(reader: Any, count: int, tag: str, width: int, what: str) -> NDArray[np.float64]:
    """A numeric tag of every slice, (count, width)."""
    texts = [_tag(reader, n, tag) for n in range(count)]
    try:
        return np.array([[float(part) for part in text.split("\\")] for text in texts]).reshape(count, width)
    except ValueError as error:
        raise InputError(
            f"{what} has slices that do not say where they lie (tag {tag}); export it again."
        ) from error

"""DICOM folders: which image series they hold, and one series as an image on its grid.

pydicom reads the headers of a folder, each once; GDCM (inside SimpleITK) reads the pixels and rescales them to
Hounsfield units. Where the slices lie is taken from their own headers, because ITK would pass a tilted or
incomplete series off as an even, upright one.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .imagefile import RawImage, grid_of, is_dicom, itk_name, simpleitk

__all__ = [
    "DicomSeries",
    "choose_series",
    "list_dicom_series",
    "patient_key",
    "patient_of",
    "read_dicom",
    "read_series",
]

_POSITION, _ORIENTATION, _SPACING = "0020|0032", "0020|0037", "0028|0030"
_SLOPE, _INTERCEPT = "0028|1053", "0028|1052"
_PIXEL_DATA, _UNKNOWN_LENGTH = 0x7FE00010, 0xFFFFFFFF
_LISTED = (
    "SOPClassUID",
    "Modality",
    "SeriesDescription",
    "SeriesInstanceUID",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "NumberOfFrames",
    "Rows",
)
_UNEVEN_MM = 0.1
"""A slice may lie this far, or a tenth of a step if that is more, from its even place: headers round."""
_UNEVEN_PIXEL = 1e-3
"""Part of its size by which a pixel may differ from slice to slice: headers round."""


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
    unusable: tuple[str, ...] = ()
    """What is wrong with each file that belongs to the series, or may belong to it, and cannot be read."""

    def __str__(self) -> str:
        return f"{self.uid} ({self.modality}, '{self.description}', {self.slices} slices)"


def list_dicom_series(folder: str | Path) -> tuple[DicomSeries, ...]:
    """List the image series in a folder, most slices first; reports and plans are left out.

    Args:
        folder: holds the DICOM files themselves; folders inside it are not searched.

    Raises:
        InputError: the folder does not exist or may not be read, or a name in it is not text.
    """
    if not Path(folder).is_dir():
        raise InputError(f"The folder {folder} does not exist; check its name.")
    headers, locked = _headers_in(Path(folder))
    uids = sorted({h.uid for h in headers if h.is_image})
    if locked and not uids:
        raise InputError(f"In the folder {folder}, {locked[0]}.")
    found = [_series_of(uid, headers, locked) for uid in uids]
    return tuple(sorted(found, key=lambda s: (-s.slices, s.uid)))


def read_dicom(folder: Path, series: str | None) -> RawImage:
    """Read one series of a folder, in Hounsfield units where the files say how.

    Args:
        folder: holds the DICOM files themselves.
        series: the series' UID or the beginning of it; None if the folder holds only one.

    Raises:
        InputError: no such series, several of them, files that are damaged or may not be read, or slices that do
            not form one even stack.
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
    if chosen.unusable:
        count = len(chosen.unusable)
        because = f", because of {count} files" if count > 1 else ""
        raise InputError(f"{what} cannot be read whole{because}: {chosen.unusable[0]}.")
    try:
        if len(chosen.files) == 1 and chosen.slices > 1:
            return _read_frames(Path(chosen.files[0]), what)
        return _read_slices(chosen.files, what)
    except RuntimeError as error:
        name = _undecodable(chosen.files)
        why = f"{name} cannot be decoded" if name else "its slices differ in size or kind"
        raise InputError(f"{what} cannot be read: {why}; export it again.") from error


def _undecodable(files: tuple[str, ...]) -> str:
    """The name of the first file whose pixels cannot be read, "" where each can by itself."""
    with simpleitk() as sitk:
        for file in files:
            try:
                sitk.ReadImage(file)
            except RuntimeError:
                return Path(file).name
    return ""


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
    spacings = _numbers(reader, len(files), _SPACING, 2, what)
    return RawImage(voxels, _stack_grid(positions, orientations, spacings, what))


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
        spacings = np.array([_of_frame(g, "PixelMeasures", "PixelSpacing") for g in groups], float)
        scales = {_scale_of_frame(g) for g in groups}
    except AttributeError as error:
        raise InputError(
            f"{what} is one file of {len(voxels)} frames that do not say where they lie; export single slices."
        ) from error
    if len(scales) > 1:
        raise InputError(f"{what} is one file whose frames are scaled differently; export single slices.")
    order = np.argsort(positions @ np.cross(orientations[0, :3], orientations[0, 3:]), kind="stable")
    grid = _stack_grid(positions[order], orientations[order], spacings[order], what)
    return RawImage(voxels[order], grid)


def patient_of(series: DicomSeries) -> str:
    """Key of the patient whom a series' first file names; see `patient_key`."""
    found = _tags(Path(series.files[0]), ("PatientID",))
    return patient_key(_text(found[0], "PatientID")) if found else ""


def patient_key(patient_id: str) -> str:
    """The same word for the same PatientID, which is never stored or logged itself; "" for none."""
    return f"dicom-{hashlib.sha256(patient_id.encode()).hexdigest()[:16]}" if patient_id else ""


@dataclass(frozen=True)
class _Header:
    """What a DICOM file says ahead of its pixels; "" and 0 where it does not."""

    file: Path
    uid: str = ""
    """Series instance UID."""
    kind: str = ""
    """SOP class UID: CT image, structured report, ..."""
    description: str = ""
    modality: str = ""
    number: float = 0.0
    frames: int = 1
    has_rows: bool = False
    position: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()
    has_pixels: bool = False
    is_cut: bool = False
    """It ends before its pixels do."""

    @property
    def is_image(self) -> bool:
        return self.has_pixels and self.has_rows

    @property
    def fault(self) -> str:
        lack = "is cut short" if self.is_cut else "holds no pixels that can be read"
        return f"{self.file.name} {lack}; copy or export it again"


def _headers_in(folder: Path) -> tuple[list[_Header], list[str]]:
    """The headers of a folder's files, and what is wrong with those that cannot be opened."""
    headers: list[_Header | None] = []
    locked = []
    try:
        files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    except OSError as error:
        raise InputError(
            f"The folder {folder} cannot be read ({error.strerror}); ask its owner for permission."
        ) from error
    for file in files:
        itk_name(file)
        try:
            headers.append(_header(file))
        except OSError as error:
            if not file.name.startswith("."):  # what a system hides there is none of the slices
                why = error.strerror or type(error).__name__
                locked.append(f"{file.name} cannot be opened ({why}); ask its owner for permission")
    return [header for header in headers if header is not None], locked


def _header(file: Path) -> _Header | None:
    """The header of a file; None where it is not DICOM, and an empty one where that cannot be read.

    Raises:
        OSError: the file cannot be opened.
    """
    found = _tags(file, _LISTED)
    if found is None:
        return None
    tags, (given, there) = found
    frames = _text(tags, "NumberOfFrames")
    meta = getattr(tags, "file_meta", {})
    return _Header(
        file=file,
        uid=_text(tags, "SeriesInstanceUID"),
        kind=_text(tags, "SOPClassUID") or _text(meta, "MediaStorageSOPClassUID"),
        description=_letters(tags, "SeriesDescription"),
        modality=_text(tags, "Modality"),
        number=next(iter(_floats(_text(tags, "InstanceNumber"))), 0.0),
        frames=int(frames) if frames.isdecimal() else 1,
        has_rows="Rows" in tags,
        position=_floats(_text(tags, "ImagePositionPatient")),
        orientation=_floats(_text(tags, "ImageOrientationPatient")),
        has_pixels=given > 0,
        is_cut=there < given - 1,  # some writers leave out the byte that makes the length even
    )


def _tags(file: Path, keywords: Iterable[str]) -> tuple[Any, tuple[int, int]] | None:
    """Some tags of a file, and how many bytes of pixels it announces and has; None where it is not DICOM."""
    import pydicom
    from pydicom.filereader import read_partial
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    pixel_bytes = (0, 0)
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        start = opened.read(132)
        is_bare = start[:2] == b"\x08\x00"  # as files were before there was a preamble
        if start[128:] != b"DICM" and not is_bare:
            return None if size or not is_dicom(file) else (pydicom.Dataset(), pixel_bytes)
        opened.seek(0)

        def is_at_pixels(tag: int, vr: str | None, length: int) -> bool:
            nonlocal pixel_bytes
            if int(tag) == _PIXEL_DATA:
                there = size - opened.tell()
                pixel_bytes = (max(there, 1), there) if length == _UNKNOWN_LENGTH else (length, there)
            return int(tag) >= _PIXEL_DATA

        tags = pydicom.Dataset()
        with warnings.catch_warnings(), suppress(Exception):  # a damaged file can raise anything
            warnings.simplefilter("ignore")
            wanted: list[Any] = [pydicom.tag.Tag(keyword) for keyword in keywords]
            tags = read_partial(opened, is_at_pixels, force=is_bare, specific_tags=wanted)
            if tags.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                pixel_bytes = (pixel_bytes[0], pixel_bytes[0])  # unpacked as a whole: nothing is missing
    if is_bare and not tags:  # anything else that begins with these two bytes
        return None
    return tags, pixel_bytes


def _series_of(uid: str, headers: Sequence[_Header], locked: Sequence[str]) -> DicomSeries:
    images = _in_order([h for h in headers if h.uid == uid and h.is_image])
    kinds = {"", *(h.kind for h in images)}
    lost = [h for h in headers if h.uid in ("", uid) and not h.is_image and (h.has_rows or h.kind in kinds)]
    broken = [*(h for h in images if h.is_cut), *lost]
    return DicomSeries(
        uid=uid,
        description=images[0].description,
        modality=images[0].modality,
        slices=images[0].frames if len(images) == 1 else len(images),
        files=tuple(str(h.file) for h in images),
        unusable=(*(h.fault for h in broken), *locked),
    )


def _in_order(images: list[_Header]) -> list[_Header]:
    """Along the slice normal; by number where they do not say where they lie."""
    images = sorted(images, key=lambda h: h.number)
    if all(len(h.position) == 3 for h in images) and len(images[0].orientation) == 6:
        normal = np.cross(images[0].orientation[:3], images[0].orientation[3:])
        images.sort(key=lambda h: float(normal @ h.position))
    return images


def _text(tags: Any, keyword: str) -> str:
    """The text of a tag as its bytes are, "" where there is none."""
    value = getattr(tags.get_item(keyword), "value", None) if keyword in tags else None
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
    return text.split("\0")[0].strip()


def _letters(tags: Any, keyword: str) -> str:
    """The text of a tag, in the letters that the file says it is written in; as its bytes are where that fails."""
    with (
        warnings.catch_warnings(),
        suppress(Exception),
    ):  # of letters that do not exist pydicom warns, or raises anything
        warnings.simplefilter("error")
        if keyword in tags:
            return str(tags[keyword].value or "").split("\0")[0].strip()
    return _text(tags, keyword)


def _floats(text: str) -> tuple[float, ...]:
    with suppress(ValueError):
        return tuple(float(part) for part in text.split("\\"))
    return ()


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
    positions: NDArray[np.float64],
    orientations: NDArray[np.float64],
    spacings: NDArray[np.float64],
    what: str,
) -> NDArray[np.float64]:
    """The (4, 4) ijk_to_ras of a series.

    Args:
        positions: (N, 3) of the slices in LPS, in their order in space.
        orientations: (N, 6) direction cosines of rows and columns.
        spacings: (N, 2) mm from row to row, and from column to column.
        what: how to call the series in a message.
    """
    count = len(positions)
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise InputError(
            f"{what} mixes slices of different orientations, such as a localizer; export the stack alone."
        )
    row_mm, column_mm = spacings[0]
    if not (spacings > 0).all() or np.abs(spacings - spacings[0]).max() > _UNEVEN_PIXEL * spacings.min():
        raise InputError(
            f"{what} mixes slices whose pixels are {spacings.min():.4g} to {spacings.max():.4g} mm large, so they"
            " are no one stack; export the slices of one size alone."
        )
    step = (positions[-1] - positions[0]) / (count - 1)
    off_mm = np.linalg.norm(positions - (positions[0] + step * np.arange(count)[:, None]), axis=1)
    if off_mm.max() > max(_UNEVEN_MM, 0.1 * float(np.linalg.norm(step))) or not step.any():
        gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
        raise InputError(
            f"{what} is not evenly spaced: its {count} slices lie {gaps.min():.3g} to {gaps.max():.3g} mm"
            " apart, so slices are missing or doubled; export the whole series again."
        )
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
            f"{what} has slices that do not say where their pixels lie (tag {tag}); export it again."
        ) from error

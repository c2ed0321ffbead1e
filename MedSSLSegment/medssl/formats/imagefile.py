"""Image files as arrays on a grid: NIfTI by our own reader, NRRD and MetaImage by SimpleITK.

What comes back is what the file says; whether it makes a volume or a segmentation is decided by those.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..storage import atomic_path
from .nifti import read_nifti, write_nifti

__all__ = ["RawImage", "grid_of", "is_dicom", "itk_name", "read_image", "simpleitk", "write_image"]

_NIFTI = (".nii", ".nii.gz")
_READABLE = (*_NIFTI, ".nrrd", ".nhdr", ".mha", ".mhd")
_DICOM = (".dcm", ".dicom", ".ima")
_READERS = {".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}
_WRITABLE = (*_NIFTI, ".nrrd", ".mha")
_LPS = np.diag([-1.0, -1.0, 1.0])
"""RAS to LPS, the world of ITK and DICOM, and back."""
_stderr_lock = threading.Lock()
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RawImage:
    """What an image file holds, unchecked."""

    voxels: NDArray[Any]
    """(K, J, I), or (K, J, I, C) with C values per voxel, or more dimensions in front."""
    ijk_to_ras: NDArray[np.float64]
    """(4, 4)."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Text fields of the header (NRRD only)."""


def read_image(path: Path) -> RawImage:
    """Read an image file.

    Raises:
        InputError: the file is missing, of an unknown kind, or damaged.
    """
    try:
        exists = path.exists()
    except OSError as error:
        raise InputError(
            f"The file {path} cannot be reached ({error.strerror}); check its name and rights."
        ) from error
    if not exists:
        raise InputError(f"The file {path} does not exist; check its name and folder.")
    if path.is_file() and is_dicom(path):
        raise InputError(
            f"{path.name} is a single DICOM file; give the folder of its series, or labels as .nii.gz or .seg.nrrd."
        )
    if not path.is_file() or not path.name.lower().endswith(_READABLE):
        raise InputError(
            f"{path.name} is not an image file that can be read; give one of {', '.join(_READABLE)}."
        )
    if not os.access(path, os.R_OK):
        raise InputError(f"The file {path} may not be read; ask its owner for permission.")
    if path.name.lower().endswith(_NIFTI):
        return RawImage(*read_nifti(path))
    try:
        with simpleitk() as sitk:
            reader = sitk.ImageFileReader()
            reader.SetImageIO(
                _READERS[path.suffix.lower()]
            )  # SimpleITK knows MetaImages by small letters only
            reader.SetFileName(itk_name(path))
            image = reader.Execute()
    except RuntimeError as error:
        raise InputError(
            f"{path.name} cannot be read as {_kind(path)}; it is damaged, cut short or of another kind, so"
            " copy or download it again."
        ) from error
    keys = [key for key in image.GetMetaDataKeys() if _as_text(key) == key]
    fields = {key: _as_text(image.GetMetaData(key)) for key in keys}
    with simpleitk() as sitk:
        return RawImage(_array_of(sitk, image), grid_of(image), fields)


def write_image(
    path: Path,
    voxels_kji: NDArray[Any],
    ijk_to_ras: NDArray[np.float64],
    fields: Mapping[str, str] | None = None,
) -> None:
    """Write a compressed image file, whole or not at all.

    Args:
        path: ends in .nii.gz, .nii, .nrrd or .mha; replaced if it exists.
        voxels_kji: (K, J, I).
        ijk_to_ras: (4, 4) right-angled.
        fields: text fields for the header (NRRD only).

    Raises:
        InputError: unknown suffix, or a name that is no text.
        StorageError: no space, no permission.
    """
    is_nifti = path.name.lower().endswith(_NIFTI)
    written_wrong = path.suffix.lower() == ".mha" != path.suffix  # SimpleITK makes two other files of it
    if written_wrong or not path.name.lower().endswith(_WRITABLE):
        raise InputError(
            f"{path.name} has no suffix that can be written; choose one of {', '.join(_WRITABLE)}."
        )
    if not is_nifti:
        itk_name(path)
    with atomic_path(path) as temporary:
        if is_nifti:
            write_nifti(temporary, voxels_kji, ijk_to_ras)
        else:
            _write_with_itk(temporary, voxels_kji, ijk_to_ras, fields or {})


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its name or its first bytes."""
    if path.name.lower().endswith(_DICOM):
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


@contextlib.contextmanager
def simpleitk() -> Iterator[Any]:
    """Give SimpleITK; what its C++ parts print to standard error in the block goes to the debug log.

    Standard error belongs to the whole process, so one block runs at a time.
    """
    import SimpleITK

    with _stderr_lock, tempfile.TemporaryFile() as heard, _redirected(2, heard.fileno()):
        try:
            yield SimpleITK
        finally:
            heard.seek(0)
            for line in heard.read().decode(errors="replace").splitlines():
                _log.debug("SimpleITK: %s", line)


def itk_name(path: Path) -> str:
    """A path as SimpleITK takes it; one that is no text would end the whole program there.

    Raises:
        InputError: it is not.
    """
    name = str(path)
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        raise InputError(
            f"The name {shown} is not valid text (UTF-8), which this kind of file needs; rename it."
        ) from error
    return name


def _as_text(found: str) -> str:
    """A header's text. What is no UTF-8, as SimpleITK hands it on byte by byte, is Latin-1, as others write it."""
    raw = found.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def grid_of(image: Any) -> NDArray[np.float64]:
    """The (4, 4) ijk_to_ras of a SimpleITK image with three or more dimensions (the first three count)."""
    ndim = image.GetDimension()
    affine = np.eye(4)
    if ndim >= 3:
        direction = np.reshape(image.GetDirection(), (ndim, ndim))[:3, :3]
        affine[:3, :3] = _LPS @ (direction * image.GetSpacing()[:3])
        affine[:3, 3] = _LPS @ image.GetOrigin()[:3]
    return affine


@contextlib.contextmanager
def _redirected(descriptor: int, target: int) -> Iterator[None]:
    try:
        saved = os.dup(descriptor)
    except OSError:  # a Windows program without a console has no standard error: nothing to keep clean
        yield
        return
    try:
        os.dup2(target, descriptor)
        yield
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)


def _array_of(sitk: Any, image: Any) -> NDArray[Any]:
    array: NDArray[Any] = sitk.GetArrayFromImage(image)
    while array.ndim > 3 and array.shape[0] == 1 and image.GetDimension() > 3:
        array = array[0]
    return array


def _kind(path: Path) -> str:
    return "an NRRD image" if path.suffix.lower() in (".nrrd", ".nhdr") else "a MetaImage"


def _write_with_itk(
    path: Path, voxels_kji: NDArray[Any], ijk_to_ras: NDArray[np.float64], fields: Mapping[str, str]
) -> None:
    spacing = np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    try:
        with simpleitk() as sitk:
            image = sitk.GetImageFromArray(voxels_kji)
            image.SetSpacing(spacing.tolist())
            image.SetDirection((_LPS @ ijk_to_ras[:3, :3] / spacing).ravel().tolist())
            image.SetOrigin((_LPS @ ijk_to_ras[:3, 3]).tolist())
            for key, value in fields.items():
                image.SetMetaData(key, value)
            sitk.WriteImage(image, itk_name(path), useCompression=True)
    except RuntimeError as error:
        # ITK does not pass the system's reason on; atomic_path adds how much room there is.
        raise OSError("the file could not be opened or the disk is full") from error

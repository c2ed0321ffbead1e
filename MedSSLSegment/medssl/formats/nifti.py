"""NIfTI files, read and written exactly.

The usual library (ITK) turns NaN into 0, reads a file that was cut short as if it were whole, refuses or
repairs sheared grids, and does not notice a full disk while it writes. A mask or a CT must not change
silently, so this format is handled here: a fixed header and the raw voxels, NIfTI-1 and NIfTI-2, plain or
gzip. Which of a file's two coordinate forms counts follows ITK, so that a file lies in the same place as in
3D Slicer.
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, NotEnoughMemory

__all__ = ["read_nifti", "write_nifti"]

# name: (NIfTI-1 type, offset, NIfTI-2 type, offset); nifti.nimh.nih.gov, nifti1.h and nifti2.h
_FIELDS = {
    "sizeof_hdr": ("i4", 0, "i4", 0),
    "dim": ("8i2", 40, "8i8", 16),
    "datatype": ("i2", 70, "i2", 12),
    "bitpix": ("i2", 72, "i2", 14),
    "pixdim": ("8f4", 76, "8f8", 104),
    "vox_offset": ("f4", 108, "i8", 168),
    "scl_slope": ("f4", 112, "f8", 176),
    "scl_inter": ("f4", 116, "f8", 184),
    "xyzt_units": ("u1", 123, "i4", 500),
    "qform_code": ("i2", 252, "i4", 344),
    "sform_code": ("i2", 254, "i4", 348),
    "quatern": ("3f4", 256, "3f8", 352),
    "qoffset": ("3f4", 268, "3f8", 376),
    "srow": ("(3,4)f4", 280, "(3,4)f8", 400),
    "magic": ("S4", 344, "S8", 4),
}
_NIFTI1 = np.dtype(
    {
        "names": list(_FIELDS),
        "formats": [f[0] for f in _FIELDS.values()],
        "offsets": [f[1] for f in _FIELDS.values()],
        "itemsize": 348,
    }
)
_NIFTI2 = np.dtype(
    {
        "names": list(_FIELDS),
        "formats": [f[2] for f in _FIELDS.values()],
        "offsets": [f[3] for f in _FIELDS.values()],
        "itemsize": 540,
    }
)
_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_BYTE_ORDERS: tuple[Literal["<"], Literal[">"]] = ("<", ">")
_CHUNK_BYTES = 4 << 20
_RIGHT_ANGLE = 1e-3
"""Largest cosine between two axes of a grid."""
_SCANNER = 1  # coordinate code NIFTI_XFORM_SCANNER_ANAT
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # metres, microns; everything else is millimetres


def read_nifti(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read a .nii or .nii.gz file, with its intensity scaling applied.

    Args:
        path: an existing file; gzip is recognised by its content.

    Returns:
        Voxels (K, J, I), or with more dimensions in front if the file has them, in the file's type, or in
        float32 or an integer type after scaling; and ijk_to_ras (4, 4), which may be sheared.

    Raises:
        InputError: not a NIfTI file, damaged, cut short, or its voxels are colours or complex numbers.
        NotEnoughMemory: the voxels do not fit in memory.
    """
    try:
        with _opened(path) as stream:
            header = _read_header(stream, path.name)
            voxels = _read_voxels(stream, header, path.name)
            stream.read(1)  # at the end of the data, gzip checks its checksum
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path.name} is damaged or cut short; copy or download it again.") from error
    except OSError as error:  # a disk, or a folder on another machine, that no longer answers
        raise InputError(f"{path.name} could not be read ({error.strerror or error}); try again.") from error
    return _scaled(voxels, float(header["scl_slope"]), float(header["scl_inter"])), _ijk_to_ras(header)


def write_nifti(path: Path, voxels_kji: NDArray[Any], ijk_to_ras: NDArray[np.float64]) -> None:
    """Write a NIfTI-1 file; gzip if the name ends in .gz. Equal input gives equal bytes.

    Args:
        path: where to write; OSError is passed on.
        voxels_kji: (K, J, I), a type that NIfTI knows.
        ijk_to_ras: (4, 4) right-angled grid, stored as both coordinate forms with code "scanner".
    """
    header = _header_of(voxels_kji, ijk_to_ras).tobytes() + bytes(4)  # four zero bytes: no extensions follow
    with path.open("wb") as file, _packed_if_gz(file, path.name) as stream:
        stream.write(header)
        for slab in voxels_kji:
            stream.write(np.ascontiguousarray(slab).data)


class _Stream(Protocol):
    """A file, or gzip over one."""

    def read(self, size: int, /) -> bytes: ...

    def readinto(self, buffer: memoryview, /) -> int: ...


def _packed_if_gz(file: BinaryIO, name: str) -> contextlib.AbstractContextManager[Any]:
    if not name.lower().endswith(".gz"):
        return contextlib.nullcontext(file)
    return gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=file, mtime=0)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Stream]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if packed:
            with gzip.open(file, "rb") as stream:
                yield stream
        else:
            yield file


def _read_header(stream: _Stream, name: str) -> Any:
    """Read the header in the machine's byte order and leave the stream at the first voxel."""
    raw = stream.read(4)
    for layout in (_NIFTI1, _NIFTI2):
        for order in _BYTE_ORDERS:
            if raw == np.array(layout.itemsize, f"{order}i4").tobytes():
                raw += stream.read(layout.itemsize - 4)
                if len(raw) < layout.itemsize:
                    raise EOFError
                return np.frombuffer(raw, layout.newbyteorder(order))[0]
    raise InputError(
        f"{name} is not a NIfTI file, whatever its name says; give a file that an image program wrote."
    )


def _read_voxels(stream: _Stream, header: Any, name: str) -> NDArray[Any]:
    if not bytes(header["magic"]).startswith((b"n+1", b"n+2")):
        raise InputError(
            f"{name} keeps its voxels in a second file (.img); convert the pair to one .nii file first."
        )
    code, ndim = int(header["datatype"]), int(header["dim"][0])
    if code not in _TYPES:
        raise InputError(
            f"{name} holds colours or complex numbers (NIfTI type {code}); give one number per voxel."
        )
    sizes = [int(n) for n in header["dim"][1 : ndim + 1]]
    if not 1 <= ndim <= 7 or min(sizes) < 1:
        raise InputError(
            f"{name} is damaged: its header gives the image size {sizes}; copy or download it again."
        )
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    dtype = np.dtype(_TYPES[code]).newbyteorder(header.dtype["sizeof_hdr"].byteorder)
    try:
        voxels = np.empty(sizes[::-1], dtype)
    except (MemoryError, ValueError) as error:
        needed_gb = float(np.prod(sizes, dtype=np.float64)) * dtype.itemsize / 1e9
        raise NotEnoughMemory(
            f"{name} needs {needed_gb:.3g} GB of memory for its {' x '.join(map(str, sizes))} voxels,"
            " more than there is."
        ) from error
    offset = float(header["vox_offset"])
    if not np.isfinite(offset):
        raise InputError(f"{name} is damaged: its voxels begin at byte {offset}; copy or download it again.")
    _skip(stream, int(offset) - header.dtype.itemsize)
    _fill(stream, voxels)
    return voxels


def _skip(stream: _Stream, count: int) -> None:
    while count > 0:
        passed = len(stream.read(min(count, _CHUNK_BYTES)))
        if not passed:
            raise EOFError
        count -= passed


def _fill(stream: _Stream, voxels: NDArray[Any]) -> None:
    rest = memoryview(voxels.reshape(-1).view(np.uint8).data)
    while rest:
        count = stream.readinto(rest[:_CHUNK_BYTES])  # gzip would first gather all it is asked for
        if not count:
            raise EOFError
        rest = rest[count:]


def _scaled(voxels: NDArray[Any], slope: float, inter: float) -> NDArray[Any]:
    """Apply value = slope * stored + inter; whole numbers stay whole."""
    if slope == 0 or not (np.isfinite(slope) and np.isfinite(inter)) or (slope, inter) == (1, 0):
        return voxels
    if voxels.dtype.kind in "iu" and voxels.dtype.itemsize <= 2 and slope.is_integer() and inter.is_integer():
        wide = np.int32 if abs(slope) <= 2**14 and abs(inter) <= 2**30 else np.int64
        return voxels * wide(slope) + wide(inter)
    scaled = voxels.astype(np.float32)
    np.multiply(scaled, np.float32(slope), out=scaled)
    return np.add(scaled, np.float32(inter), out=scaled)


def _ijk_to_ras(header: Any) -> NDArray[np.float64]:
    """The file's sform if that is the scanner's or the only one, else its qform, else its spacing alone.

    Where there is a qform, as in ITK an sform with axes that are no right angles does not count.
    """
    affine = np.eye(4)
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    pixdim = header["pixdim"].astype(np.float64)
    is_grid = qform <= 0 or _is_right_angled(header["srow"][:, :3].astype(np.float64))
    if sform > 0 and (qform <= 0 or (sform == _SCANNER and is_grid)):
        affine[:3] = header["srow"]
    elif qform > 0:
        handed = (1.0, 1.0, -1.0 if pixdim[0] < 0 else 1.0)
        affine[:3, :3] = _rotation_of(header["quatern"].astype(np.float64)) * (pixdim[1:4] * handed)
        affine[:3, 3] = header["qoffset"]
    else:
        affine[:3, :3] = np.diag(pixdim[1:4] * (-1, -1, 1))
    affine[:3] *= _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    return affine


def _is_right_angled(axes: NDArray[np.float64]) -> bool:
    lengths = np.linalg.norm(axes, axis=0)
    if not (np.isfinite(lengths).all() and lengths.min() > 0):
        return False
    cosines = (axes / lengths).T @ (axes / lengths) - np.eye(3)
    return bool(np.abs(cosines).max() <= _RIGHT_ANGLE)


def _rotation_of(bcd: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.spatial.transform import Rotation

    a = np.sqrt(max(0.0, 1.0 - float(bcd @ bcd)))
    matrix: NDArray[np.float64] = Rotation.from_quat([*bcd, a]).as_matrix()
    return matrix


def _header_of(voxels_kji: NDArray[Any], ijk_to_ras: NDArray[np.float64]) -> NDArray[np.void]:
    from scipy.spatial.transform import Rotation

    if max(voxels_kji.shape) > 32767:
        raise InputError(
            f"NIfTI stores at most 32767 voxels an axis, not shape {voxels_kji.shape}; write .nrrd instead."
        )
    spacing = np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    rotation = ijk_to_ras[:3, :3] / spacing
    handed = 1.0 if np.linalg.det(rotation) > 0 else -1.0
    rotation[:, 2] *= handed
    b, c, d, a = Rotation.from_matrix(rotation).as_quat()
    header = np.zeros((), _NIFTI1.newbyteorder("<"))
    header["sizeof_hdr"] = 348
    header["dim"] = (3, *voxels_kji.shape[::-1], 1, 1, 1, 1)
    header["datatype"] = next(code for code, name in _TYPES.items() if np.dtype(name) == voxels_kji.dtype)
    header["bitpix"] = voxels_kji.dtype.itemsize * 8
    header["pixdim"] = (handed, *spacing, 0, 0, 0, 0)
    header["vox_offset"] = 352
    header["scl_slope"] = 1
    header["xyzt_units"] = 2  # millimetres
    header["qform_code"] = header["sform_code"] = _SCANNER
    header["quatern"] = np.array((b, c, d)) * (1.0 if a >= 0 else -1.0)
    header["qoffset"] = ijk_to_ras[:3, 3]
    header["srow"] = ijk_to_ras[:3]
    header["magic"] = b"n+1"
    return header

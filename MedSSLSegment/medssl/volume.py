"""Volumes: voxels on a grid in space, slices across any axis, and intensity windows.

Arrays are indexed (K, J, I): slice, row, column of the file. The world is RAS (right, anterior, superior) in
millimetres and ``ijk_to_ras`` maps (i, j, k, 1) there. A slice axis is 0 = K, 1 = J or 2 = I. A volume is
never resampled and never written to.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .formats.dicom import DicomSeries, list_dicom_series, patient_key, read_dicom
from .formats.imagefile import read_image, write_image

__all__ = [
    "VIEWS",
    "WINDOWS",
    "DicomSeries",
    "View",
    "Volume",
    "Window",
    "as_stack",
    "check_affine",
    "darkest_of",
    "from_stack",
    "list_dicom_series",
    "looks_like_ct",
    "patient_key",
    "put_slice",
    "read_volume",
    "rows_of_neighbours",
    "shift_problem",
    "spacing_of",
    "take_slice",
    "write_volume",
]

View = Literal["axial", "coronal", "sagittal"]
VIEWS: tuple[View, View, View] = ("axial", "coronal", "sagittal")
"""The anatomical views; on a grid stored as RAS they cut across axes 0, 1 and 2 in this order."""

_MAX_COSINE = 1e-3
"""Cosine between two voxel axes above which a grid is sheared (0.06 degrees); headers round to less."""
_AIR_HU = -300.0
"""Below this lies air in Hounsfield units."""
_DARKEST_OF_NO_CT = -20.0
"""An image whose darkest voxels lie below this holds air or fat in Hounsfield units: it is a CT."""
_INTERCEPT, _SOFT_HU = 1024.0, 200.0
_LEAST_DENSE, _MOSTLY_SOFT = 0.05, 0.6
"""A shifted CT has at least this part denser than lung, and of that more than this within _SOFT_HU of water."""
_SAMPLES_PER_AXIS = 96

_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3D image on a right-angled grid in space.

    Oblique, left-handed and anisotropic grids are welcome.

    Raises:
        InputError: not 3D, no voxels, constant, NaN or infinite voxels, or a sheared or flat grid.
    """

    voxels_kji: NDArray[Any]
    """(K, J, I) intensities, read-only; whole numbers as int16 if they fit, else float32. CT is in HU."""
    ijk_to_ras: NDArray[np.float64]
    """(4, 4) maps voxel (i, j, k, 1) to RAS millimetres, read-only."""
    name: str = ""
    """What to call the volume in a message, e.g. its file name."""

    def __post_init__(self) -> None:
        what = self.name or "The volume"
        object.__setattr__(self, "voxels_kji", _checked_voxels(self.voxels_kji, what))
        object.__setattr__(self, "ijk_to_ras", check_affine(self.ijk_to_ras, what))

    @property
    def shape_kji(self) -> tuple[int, int, int]:
        """Number of voxels along K, J, I."""
        k, j, i = self.voxels_kji.shape
        return k, j, i

    @cached_property
    def spacing_kji_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along K, J, I."""
        return spacing_of(self.ijk_to_ras)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) over shape, type, voxels and grid, but not the name: equal for equal volumes."""
        digest = hashlib.sha256(f"{self.shape_kji} {self.voxels_kji.dtype.str}".encode())
        digest.update(self.ijk_to_ras.tobytes())
        for slab in self.voxels_kji:
            digest.update(np.ascontiguousarray(slab).data)
        return digest.hexdigest()

    def axis_of(self, view: View) -> int:
        """Slice axis (0 = K, 1 = J, 2 = I) closest to an anatomical view; no two views share one."""
        if view not in VIEWS:
            raise InputError(f"There is no view '{view}'; choose axial, coronal or sagittal.")
        return self._axes_of_views[VIEWS.index(view)]

    def view_of(self, axis: int) -> View:
        """Anatomical view that slices across `axis` come closest to; the inverse of `axis_of`."""
        _check_axis(axis)
        return VIEWS[self._axes_of_views.index(axis)]

    def slice_spacing_mm(self, axis: int) -> tuple[float, float]:
        """Pixel size (row step, column step) of a slice across `axis`."""
        _check_axis(axis)
        row_mm, col_mm = (s for a, s in enumerate(self.spacing_kji_mm) if a != axis)
        return row_mm, col_mm

    def step_mm(self, axis: int) -> float:
        """Distance from one slice across `axis` to the next."""
        _check_axis(axis)
        return self.spacing_kji_mm[axis]

    def require_stack(self, axis: int) -> None:
        """Raise InputError unless there are at least two slices across `axis`."""
        _check_axis(axis)
        if self.shape_kji[axis] < 2:
            raise InputError(
                f"{self.name or 'The volume'} has only one {self.view_of(axis)} slice, but at least 2 are"
                " needed; give the whole series or choose another axis."
            )

    @cached_property
    def _axes_of_views(self) -> tuple[int, ...]:
        vectors = self.ijk_to_ras[:3, :3]
        cosines = np.abs(vectors / np.linalg.norm(vectors, axis=0))[::-1, ::-1]
        # Rows are now S, A, R (the normals of axial, coronal, sagittal slices) and columns are K, J, I. The
        # plain order comes first and rounding stops a grid turned by exactly 45 degrees from flipping.
        orders = list(itertools.permutations(range(3)))
        fits = [round(float(cosines[range(3), order].sum()), 6) for order in orders]
        return orders[fits.index(max(fits))]


@dataclass(frozen=True)
class Window:
    """Linear map from intensities to [0, 1]; one for the whole volume, so that slices never flicker."""

    level: float
    """Intensity that becomes 0.5 (Hounsfield units for CT)."""
    width: float
    """Intensity range that spans 0 .. 1; above 0."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.level) and np.isfinite(self.width) and self.width > 0):
            raise InputError(
                f"A window needs a finite level and a width above 0, not {self.level:g} and {self.width:g}."
            )

    def apply(self, array: NDArray[Any]) -> NDArray[np.float32]:
        """Map intensities of any shape to float32 in [0, 1]; what lies outside the window is clipped."""
        scaled: NDArray[np.float32] = np.subtract(array, self.level - self.width / 2, dtype=np.float32)
        scaled /= np.float32(self.width)
        np.clip(scaled, 0.0, 1.0, out=scaled)
        return scaled

    def to_uint8(self, array: NDArray[Any]) -> NDArray[np.uint8]:
        """Map intensities of any shape to 0 .. 255, rounded to the nearest."""
        scaled = self.apply(array)
        scaled *= 255.0
        return np.rint(scaled, out=scaled).astype(np.uint8)

    @classmethod
    def auto(cls, volume: Volume) -> Window:
        """Soft tissue for a CT; for anything else the 0.5th to 99.5th percentile of the whole volume.

        Looks at a regular sample of a few million voxels at most, so it costs no copy of a large volume.
        """
        if looks_like_ct(volume):
            return WINDOWS["soft-tissue"]
        low, high = _extremes(volume)
        if low == high:
            low, high = float(volume.voxels_kji.min()), float(volume.voxels_kji.max())
        return cls(level=(low + high) / 2, width=high - low)


def looks_like_ct(volume: Volume) -> bool:
    """Whether the darkest voxels are air or fat in Hounsfield units: without air, a part of a body has some fat."""
    return darkest_of(volume) < _DARKEST_OF_NO_CT


def darkest_of(volume: Volume) -> float:
    """Intensity that one voxel in 200 does not reach."""
    return _extremes(volume)[0]


def _looks_like_shifted_ct(volume: Volume) -> bool:
    """Whether this may be a CT whose air lies at 0 and water at 1024, as it is stored before its intercept is added.

    Nothing is below 0, and of what would then be denser than lung, most lies where fat and soft tissue would.
    """
    sample = _sampled(volume)
    dense = sample[sample > _AIR_HU + _INTERCEPT] - _INTERCEPT
    if sample.min() < 0.0 or dense.size < _LEAST_DENSE * sample.size:
        return False
    return bool(np.mean(np.abs(dense) < _SOFT_HU) > _MOSTLY_SOFT)


def shift_problem(volume: Volume) -> str:
    """What to say of a volume that looks like a shifted CT: the middle of a sentence; empty for any other."""
    if not _looks_like_shifted_ct(volume):
        return ""
    return "looks like a CT whose values are stored 1024 too high (air at 0, not at -1000); subtract 1024 from them"


def _extremes(volume: Volume) -> tuple[float, float]:
    """0.5th and 99.5th percentile of the sample."""
    low, high = np.percentile(_sampled(volume), (0.5, 99.5))
    return float(low), float(high)


def _sampled(volume: Volume) -> NDArray[np.float32]:
    """Regular sample of a few million voxels at most."""
    k, j, i = (max(1, n // _SAMPLES_PER_AXIS) for n in volume.shape_kji)
    return volume.voxels_kji[::k, ::j, ::i].astype(np.float32)


WINDOWS = {
    "soft-tissue": Window(40, 400),
    "lung": Window(-600, 1500),
    "bone": Window(400, 1800),
    "brain": Window(40, 80),
    "liver": Window(60, 160),
    "mediastinum": Window(50, 350),
    "vessels": Window(300, 600),
}
"""Usual CT windows by name: level and width in Hounsfield units."""


def take_slice(array_kji: NDArray[_T], axis: int, index: int) -> NDArray[_T]:
    """One slice across an axis, as a view.

    Args:
        array_kji: (K, J, I).
        axis: 0 = K, 1 = J, 2 = I.
        index: slice number along `axis`, 0 .. n - 1.

    Returns:
        (H, W): rows and columns are the two remaining axes in their order - (J, I), (K, I) or (K, J).
    """
    _check_axis(axis)
    if not 0 <= index < array_kji.shape[axis]:
        raise InputError(
            f"Slice {index} does not exist; axis {axis} runs from 0 to {array_kji.shape[axis] - 1}."
        )
    chosen: NDArray[_T] = as_stack(array_kji, axis)[index]
    return chosen


def put_slice(array_kji: NDArray[_T], axis: int, index: int, slice_hw: NDArray[_T]) -> None:
    """Write one (H, W) slice into a (K, J, I) array, in place; the exact inverse of `take_slice`."""
    target = take_slice(array_kji, axis, index)
    if target.shape != slice_hw.shape:
        raise InputError(f"A slice across axis {axis} has shape {target.shape}, not {slice_hw.shape}.")
    target[...] = slice_hw


def rows_of_neighbours(indices: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of each row of neighbouring slices.

    Args:
        indices: of slices, rising.
    """
    rows: list[tuple[int, int]] = []
    for index in indices:
        if rows and rows[-1][1] == index - 1:
            rows[-1] = (rows[-1][0], index)
        else:
            rows.append((index, index))
    return rows


def as_stack(array_kji: NDArray[_T], axis: int) -> NDArray[_T]:
    """View a (K, J, I) array as the stack (N, H, W) of its slices across `axis`."""
    _check_axis(axis)
    return np.moveaxis(array_kji, axis, 0)


def from_stack(stack_nhw: NDArray[_T], axis: int) -> NDArray[_T]:
    """View a stack (N, H, W) of slices across `axis` as (K, J, I); the exact inverse of `as_stack`."""
    _check_axis(axis)
    return np.moveaxis(stack_nhw, 0, axis)


def spacing_of(ijk_to_ras: NDArray[np.float64]) -> tuple[float, float, float]:
    """Voxel spacing along K, J, I in millimetres of a (4, 4) grid."""
    i, j, k = (float(s) for s in np.linalg.norm(ijk_to_ras[:3, :3], axis=0))
    return k, j, i


def check_affine(ijk_to_ras: NDArray[Any], what: str) -> NDArray[np.float64]:
    """Check that a grid has right angles and a volume; return it as a read-only float64 copy.

    Args:
        ijk_to_ras: (4, 4).
        what: how to call its owner in a message.

    Raises:
        InputError: wrong shape, not finite, a spacing of 0, or sheared.
    """
    affine = np.array(ijk_to_ras, np.float64) + 0.0  # -0 becomes 0, so that equal grids have equal bytes
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], (0, 0, 0, 1)):
        raise InputError(
            f"{what} has no valid place in space; ijk_to_ras must be a finite 4x4 matrix ending in 0 0 0 1."
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if (spacing <= 0).any():
        raise InputError(
            f"{what} has a voxel spacing of 0 mm (i, j, k: {_listed(spacing)}); correct its header."
        )
    unit = affine[:3, :3] / spacing
    cosines = np.abs(unit.T @ unit - np.eye(3))
    if cosines.max() > _MAX_COSINE:
        off_degrees = float(np.degrees(np.arcsin(min(1.0, float(cosines.max())))))
        raise InputError(
            f"{what} lies on a sheared grid (axes {off_degrees:.2g} degrees off a right angle, as with a"
            " tilted gantry); resample it to a right-angled grid first."
        )
    affine.flags.writeable = False
    return affine


def _checked_voxels(voxels: NDArray[Any], what: str) -> NDArray[Any]:
    if voxels.ndim != 3:
        raise InputError(
            f"{what} has {voxels.ndim} dimensions (shape {voxels.shape}), not 3; give one 3D image of it."
        )
    if voxels.size == 0:
        raise InputError(
            f"{what} has no voxels (shape {voxels.shape}); give an image with at least one slice."
        )
    if voxels.dtype.kind not in "biuf":
        raise InputError(f"{what} holds values of type {voxels.dtype}; a volume holds one number per voxel.")
    low, high = voxels.min(), voxels.max()  # both pass a NaN on, so no copy is needed to find one
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = sum(int(np.count_nonzero(~np.isfinite(slab))) for slab in voxels)
        raise InputError(
            f"{what} holds NaN or infinity in {bad} of {voxels.size} voxels;"
            " replace them, e.g. by -1000 for air."
        )
    if max(abs(float(low)), abs(float(high))) > np.finfo(np.float32).max:
        raise InputError(
            f"{what} holds values up to {max(abs(float(low)), abs(float(high))):g}; replace them, e.g. by -1000."
        )
    if low == high:
        raise InputError(
            f"{what} is constant (every voxel is {float(low):g}), so there is nothing to see; check the file."
        )
    fits_int16 = voxels.dtype.kind in "biu" and int(low) >= -32768 and int(high) <= 32767
    kept = voxels.astype(np.int16 if fits_int16 else np.float32, copy=False).view()
    kept.flags.writeable = False
    return kept


def _check_axis(axis: int) -> None:
    if axis not in (0, 1, 2):
        raise InputError(f"A slice axis is 0, 1 or 2 (K, J or I), not {axis}.")


def _listed(values: NDArray[np.float64]) -> str:
    return ", ".join(f"{v:.6g}" for v in values)


def read_volume(path: str | Path, series: str | None = None) -> Volume:
    """Read a volume: a NIfTI, NRRD or MetaImage file, or a folder with a DICOM series.

    Args:
        path: .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd file, or the folder that holds the DICOM slices.
        series: for a folder with several series, the UID of the one to read, or the beginning of it.

    Raises:
        InputError: the file is missing, damaged, of an unknown kind, or not one volume; the message says
        which.
    """
    path = Path(path)
    if series is not None and not path.is_dir():
        raise InputError(
            f"{path} is no DICOM folder, so no series {series} can be taken from it; give the folder."
        )
    raw = read_dicom(path, series) if path.is_dir() else read_image(path)
    return Volume(raw.voxels, raw.ijk_to_ras, path.name)


def write_volume(volume: Volume, path: str | Path) -> None:
    """Write a volume as .nii.gz, .nii, .nrrd or .mha, whole or not at all.

    Raises:
        InputError: the suffix is none of these.
        StorageError: no space, no permission.
    """
    write_image(Path(path), volume.voxels_kji, volume.ijk_to_ras)

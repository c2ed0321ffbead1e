"""Whether a volume is of the kind that a model has learnt from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..datasets.grid import PreparedGrid
from ..errors import InputError
from ..events import Log
from ..volume import VIEWS, Volume, darkest_of, looks_like_ct, spacing_of
from .segmenter import ModelInfo

__all__ = ["check_volume", "spacing_range"]

_FAR = 2.0
"""A voxel size is far off when it is this many times larger than any, or smaller than any, of the training scans'."""
_ALONG = ("between slices", "from front to back", "from left to right")


def spacing_range(grids: Iterable[PreparedGrid]) -> tuple[tuple[float, float], ...]:
    """Least and largest voxel size of the sources along the canonical K, J, I in mm; empty without any."""
    sizes = np.array([[spacing_of(grid.source_ijk_to_ras)[axis] for axis in grid.axes] for grid in grids])
    if not sizes.size:
        return ()
    return tuple((float(least), float(most)) for least, most in zip(sizes.min(0), sizes.max(0), strict=True))


def check_volume(info: ModelInfo, volume: Volume, *, anyway: bool = False) -> list[Log]:
    """Compare a volume with what a model has learnt from.

    Args:
        info: of the model.
        volume: to be segmented.
        anyway: only warn, whatever it is.

    Returns:
        Warnings, one sentence each.

    Raises:
        InputError: it is clearly of another modality, unless `anyway`.
    """
    warnings = []
    problem = _modality(info, volume)
    if problem:
        if not anyway:
            raise InputError(
                f"{problem}; use a model made for such volumes, or ask for this one anyway (--anyway)."
            )
        warnings.append(Log(f"{problem}: do not trust the result."))
    return warnings + [Log(f"{text}: look at the result with care.") for text in _spacings(info, volume)]


def _modality(info: ModelInfo, volume: Volume) -> str:
    """What speaks against the volume's modality; empty where nothing does. Only CT can be told from the rest."""
    what, made_for = volume.name or "The volume", info.contract.modality
    is_ct = looks_like_ct(volume)
    if made_for.upper() != "CT":
        return f"{what} looks like CT, but the model has learnt from {made_for}" if is_ct else ""
    if is_ct:
        return ""
    return (
        f"{what} does not look like CT (its darkest voxels have {darkest_of(volume):.0f}, where air has -1000 and fat"
        " -100), but the model has learnt from CT"
    )


def _spacings(info: ModelInfo, volume: Volume) -> list[str]:
    """Axes along which the voxels are far larger, or smaller, than any the model has learnt from."""
    contract = info.contract
    slices_alone = contract.spatial_dims == 2 and not contract.neighbours
    texts = []
    for axis, (size, span) in enumerate(zip(_canonical_spacing(volume), info.spacing_kji_mm, strict=False)):
        too_coarse = size > _FAR * span[1]
        too_fine = size < span[0] / _FAR and contract.spacing_kji_mm[axis] is None  # else it is made coarser
        if (too_coarse or too_fine) and not (axis == 0 and slices_alone):
            known = " to ".join(f"{mm:.2g}" for mm in dict.fromkeys(span))
            texts.append(
                f"{volume.name or 'The volume'} has voxels of {size:.2g} mm {_ALONG[axis]}, but the model has learnt"
                f" from {known} mm"
            )
    return texts


def _canonical_spacing(volume: Volume) -> tuple[float, ...]:
    """Voxel size along the axes nearest to superior, anterior and right, in mm."""
    return tuple(volume.spacing_kji_mm[volume.axis_of(view)] for view in VIEWS)

"""How well two masks agree: Dice, 95 % Hausdorff distance, normalised surface Dice, volume error.

Definitions follow Metrics Reloaded (Maier-Hein et al., 2024) and agree with MONAI:

* A surface is the set of mask voxels with at least one of their six neighbours outside the mask; what lies beyond the
  edge of the volume counts as outside. Distances run between voxel centres, in millimetres.
* HD95 is the larger of two 95th percentiles (with linear interpolation): of the distances from each surface voxel of
  one mask to the nearest of the other, and the same the other way round.
* Normalised surface Dice is the share of both masks' surface voxels together that lie within a tolerance (inclusive) of
  the other mask's surface.
* Two empty masks agree perfectly: Dice 1, HD95 0, surface Dice 1, volume error 0. If only one is empty: Dice 0, HD95
  infinite, surface Dice 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

if TYPE_CHECKING:
    from .segmentation import Segmentation

__all__ = [
    "SegmentScore",
    "dice",
    "evaluate",
    "hausdorff95_mm",
    "normalised_surface_dice",
    "surface_distances_mm",
    "volume_error",
]

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class SegmentScore:
    """How well one segment of a prediction agrees with the truth."""

    segment: str
    """The segment's name."""
    dice: float
    """0 .. 1."""
    hd95_mm: float
    """95 % Hausdorff distance; infinite if only one of the two masks is empty."""
    nsd: float
    """Normalised surface Dice, 0 .. 1, at `tolerance_mm`."""
    tolerance_mm: float
    volume_error: float
    """(predicted - true) / true volume; infinite if only the truth is empty."""
    predicted_ml: float
    true_ml: float


def dice(a: Mask, b: Mask) -> float:
    """Overlap 2 |A and B| / (|A| + |B|) of two bool masks of one shape, 0 .. 1."""
    _require_same_shape(a, b)
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2.0 * np.count_nonzero(a & b) / total if total else 1.0


def volume_error(predicted: Mask, true: Mask) -> float:
    """Relative volume error (|P| - |T|) / |T|, -1 .. infinity; 0 if both are empty, infinite if only the truth is."""
    _require_same_shape(predicted, true)
    p, t = np.count_nonzero(predicted), np.count_nonzero(true)
    if t == 0:
        return np.inf if p else 0.0
    return (p - t) / t


def hausdorff95_mm(a: Mask, b: Mask, spacing_kji_mm: Spacing) -> float:
    """95 % Hausdorff distance of two masks (K, J, I) bool, in millimetres."""
    return _hausdorff95(*surface_distances_mm(a, b, spacing_kji_mm))


def normalised_surface_dice(a: Mask, b: Mask, spacing_kji_mm: Spacing, tolerance_mm: float) -> float:
    """Share of the surfaces of two masks (K, J, I) bool that agree within a tolerance, 0 .. 1."""
    return _surface_dice(*surface_distances_mm(a, b, spacing_kji_mm), tolerance_mm)


def surface_distances_mm(
    a: Mask, b: Mask, spacing_kji_mm: Spacing
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances from each surface voxel of one mask to the nearest surface voxel of the other, both ways.

    Args:
        a: (K, J, I) bool.
        b: (K, J, I) bool.
        spacing_kji_mm: voxel spacing.

    Returns:
        From a to b, one value per surface voxel of a, and from b to a; infinite where the other mask is empty.
    """
    _require_same_shape(a, b)
    if a.ndim != 3 or len(spacing_kji_mm) != 3 or min(spacing_kji_mm) <= 0:
        raise InputError(
            f"Surface distances need 3D masks and three spacings above 0, not {a.shape}, {spacing_kji_mm}."
        )
    box = _box_of_union(a, b)
    surface_a, surface_b = _surface(a[box]), _surface(b[box])
    return _to_nearest(surface_a, surface_b, spacing_kji_mm), _to_nearest(
        surface_b, surface_a, spacing_kji_mm
    )


def evaluate(
    predicted: Segmentation,
    true: Segmentation,
    tolerance_mm: float = 2.0,
    segments: Sequence[str] | None = None,
) -> list[SegmentScore]:
    """Score a segmentation, segment by segment.

    Args:
        predicted: what is to be judged.
        true: what it is compared with, on the same grid.
        tolerance_mm: what the normalised surface Dice forgives.
        segments: names to score. None: all of the truth, then those that only the prediction has; a segment that
            one side lacks counts as empty there.

    Raises:
        InputError: different grids, no name in common, a name that neither has, or a negative tolerance.
    """
    predicted.require_grid_of(true)
    if tolerance_mm < 0:
        raise InputError(f"The surface tolerance is {tolerance_mm:g} mm; give 0 or more.")
    if not set(predicted.names) & set(true.names):
        raise InputError(
            f"The prediction ({', '.join(predicted.names) or 'no segments'}) and the truth"
            f" ({', '.join(true.names) or 'no segments'}) share no segment name; rename the segments of one."
        )
    names = list(dict.fromkeys([*true.names, *predicted.names])) if segments is None else segments
    for name in names:
        if name not in predicted.names:
            true.segment(name)
    return [
        _score(name, _mask_of(predicted, name), _mask_of(true, name), true.spacing_kji_mm, tolerance_mm)
        for name in names
    ]


def _score(
    name: str, predicted: Mask, true: Mask, spacing_kji_mm: Spacing, tolerance_mm: float
) -> SegmentScore:
    distances = surface_distances_mm(predicted, true, spacing_kji_mm)
    voxel_ml = float(np.prod(spacing_kji_mm)) / 1000.0
    return SegmentScore(
        segment=name,
        dice=dice(predicted, true),
        hd95_mm=_hausdorff95(*distances),
        nsd=_surface_dice(*distances, tolerance_mm),
        tolerance_mm=tolerance_mm,
        volume_error=volume_error(predicted, true),
        predicted_ml=np.count_nonzero(predicted) * voxel_ml,
        true_ml=np.count_nonzero(true) * voxel_ml,
    )


def _mask_of(segmentation: Segmentation, name: str) -> Mask:
    if name in segmentation.names:
        return segmentation.mask(name)
    return np.zeros(segmentation.shape_kji, bool)


def _hausdorff95(a_to_b: NDArray[np.float64], b_to_a: NDArray[np.float64]) -> float:
    if a_to_b.size == 0 and b_to_a.size == 0:
        return 0.0
    if a_to_b.size == 0 or b_to_a.size == 0:
        return np.inf
    return float(max(np.percentile(a_to_b, 95), np.percentile(b_to_a, 95)))


def _surface_dice(a_to_b: NDArray[np.float64], b_to_a: NDArray[np.float64], tolerance_mm: float) -> float:
    total = a_to_b.size + b_to_a.size
    if total == 0:
        return 1.0
    return float(np.count_nonzero(a_to_b <= tolerance_mm) + np.count_nonzero(b_to_a <= tolerance_mm)) / total


def _box_of_union(a: Mask, b: Mask) -> tuple[slice, ...]:
    """The smallest box that holds both masks."""
    union = a | b
    box = []
    for axis in range(3):
        occupied = np.flatnonzero(union.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(occupied[0], occupied[-1] + 1) if occupied.size else slice(0, 0))
    return tuple(box)


def _surface(mask: Mask) -> Mask:
    """Voxels of a mask with a neighbour (of six) outside it or beyond the edge of the array."""
    inner = mask.copy()
    for axis in range(3):
        here, whole = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        here[1:] &= whole[:-1]
        here[:-1] &= whole[1:]
        here[:1] = False
        here[-1:] = False
    return mask & ~inner


def _to_nearest(surface: Mask, other: Mask, spacing_kji_mm: Spacing) -> NDArray[np.float64]:
    """Distance from each voxel of a surface to the nearest voxel of another.

    Voxels that both share are at distance 0 and are not searched for: in a good segmentation those are most.
    """
    from scipy.spatial import cKDTree

    # Counted from 1: at 0 the tree would divide for ever where a process flushes denormal numbers, as after training.
    points = np.argwhere(surface) + 1
    if not other.any():
        return np.full(len(points), np.inf)
    apart = ~other[surface]
    distances = np.zeros(len(points))
    if apart.any():
        tree = cKDTree((np.argwhere(other) + 1) * spacing_kji_mm, leafsize=64)  # twice as fast here as 16
        distances[apart] = tree.query(points[apart] * spacing_kji_mm)[0]
    return distances


def _require_same_shape(a: Mask, b: Mask) -> None:
    if a.shape != b.shape:
        raise InputError(f"The masks have shapes {a.shape} and {b.shape}; compare masks of one grid.")

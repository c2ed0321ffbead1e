"""A synthetic torso CT with labelled organs: the demo's default input, the tests' data, endless practice for trackers.

`anatomy` says what is where in millimetres; this file is the scanner: it samples a person on a voxel grid of any
shape, spacing and angle, with partial volume, blur, noise and a table, block by block so that large volumes fit in
memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from .anatomy import ORGANS, PHASES, Anatomy, Array, Lattice, Slab, Structure, build_anatomy
from .errors import InputError
from .segmentation import Segment, Segmentation, default_color
from .volume import Volume

__all__ = ["Phantom", "demo_case", "phantom_ct"]

_BLOCK_VOXELS = 3_000_000
_SKIN_MM, _SKIN_HU = 1.8, 25.0
_TABLE_LAYERS = ((0, 11, -935), (11, 13, -180), (13, 36, -955), (36, 38, -180))
_LETTERS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic CT and its truth."""

    volume: Volume
    """int16 HU."""
    segmentation: Segmentation
    """Every organ in the field of view, on the volume's grid; label values do not depend on the field of view."""


def phantom_ct(
    seed: int = 0,
    shape_kji: Sequence[int] = (96, 128, 128),
    spacing_kji_mm: Sequence[float] = (4.0, 3.0, 3.0),
    orientation: str = "RAS",
    direction: ArrayLike | None = None,
    noise_hu: float | None = 12.0,
    lesions: int = 0,
    phase: str | None = None,
) -> Phantom:
    """Scan a random person.

    The seed decides the person: size, fat, organ shapes and places, contrast phase, textures. Shape, spacing,
    orientation and direction only decide how that person is sampled; the grid is centred between lung apex and lower
    kidney pole, so the default field of view (384 mm each way) holds lungs to kidneys whole. Head to thighs: 900 mm.

    Args:
        seed: any non-negative integer.
        shape_kji: voxels along k, j, i.
        spacing_kji_mm: voxel size along k, j, i, mm.
        orientation: where i, j and k point, a letter of R/L, A/P and S/I each: "RAS", "LPS", "ASR", ...
        direction: (3, 3) rotation of the grid about its centre for an oblique scan, in RAS; None for none.
        noise_hu: standard deviation of the noise in the middle of the body, HU; None draws 5 to 25 from the seed.
        lesions: number of hypodense liver lesions, labelled "liver_lesion" (and no longer "liver").
        phase: contrast phase: "non-contrast", "arterial", "portal" or "late"; None draws one from the seed.

    Returns:
        The volume and its segmentation. The same arguments give the same voxels.

    Raises:
        InputError: an argument is out of range.
    """
    grid = _Grid.of(shape_kji, spacing_kji_mm, orientation, direction)
    if seed < 0 or lesions < 0:
        raise InputError(
            f"The phantom's seed and number of lesions must not be negative; got {seed} and {lesions}."
        )
    if noise_hu is None:
        noise_hu = float(np.random.default_rng([seed, 5]).uniform(5, 25))
    if not 0 <= noise_hu < 1000:
        raise InputError(f"The phantom's noise must be 0 to 1000 HU, not {noise_hu:g}.")
    if phase is not None and phase not in PHASES:
        raise InputError(f"The contrast phase must be one of {', '.join(PHASES)}, not {phase!r}.")
    anatomy = build_anatomy(seed, lesions, phase)
    lattice = grid.lattice(anatomy.centre_mm)
    voxels = np.empty(grid.shape_kji, np.int16)
    labels = np.empty(grid.shape_kji, np.uint8)
    counts = np.zeros(len(ORGANS) + 1, np.int64)
    noise = _Noise(seed, lattice, noise_hu)
    for rows, hu, block_labels in _blocks(anatomy, lattice, noise):
        grid.upright(voxels)[rows] = hu
        grid.upright(labels)[rows] = block_labels
        counts += np.bincount(block_labels.reshape(-1), minlength=len(counts))
    affine = grid.ijk_to_ras(lattice)
    present = [label for label in range(1, len(counts)) if counts[label]]
    segments = tuple(Segment(ORGANS[label - 1], label, default_color(label)) for label in present)
    volume = Volume(voxels, affine, name=f"phantom {seed}")
    return Phantom(volume, Segmentation(labels, affine, segments))


def demo_case(seed: int = 7) -> Phantom:
    """The demo's CT: portal venous, lungs to kidneys, 2.5 x 2 x 2 mm, two liver lesions."""
    return phantom_ct(seed, (156, 136, 184), (2.5, 2.0, 2.0), "LPS", noise_hu=11.0, lesions=2, phase="portal")


@dataclass(frozen=True, eq=False)
class _Grid:
    """How a voxel grid lies in the world.

    Sampling always runs upright, along (superior, anterior, right) turned by `direction`; `axes` and `signs` say how
    the asked-for k, j, i relate to that, so turning a scan round gives the same voxels in another order.
    """

    shape_kji: tuple[int, int, int]
    spacing_kji_mm: tuple[float, float, float]
    axes: tuple[int, int, int]
    """World axis that k, j, i run along."""
    signs: tuple[int, int, int]
    direction: NDArray[np.float64]

    @classmethod
    def of(
        cls, shape: Sequence[int], spacing: Sequence[float], orientation: str, direction: ArrayLike | None
    ) -> _Grid:
        """Check what the caller asked for."""
        if len(shape) != 3 or min(shape) < 2:
            raise InputError(
                f"A phantom needs three sizes of at least 2 voxels (k, j, i), not {tuple(shape)}."
            )
        if len(spacing) != 3 or not all(0 < step < 100 for step in spacing):
            raise InputError(
                f"A phantom needs three spacings of 0 to 100 mm (k, j, i), not {tuple(spacing)}."
            )
        code = orientation.upper()
        if len(code) != 3 or sorted(_LETTERS[c][0] for c in code if c in _LETTERS) != [0, 1, 2]:
            raise InputError(
                f"Orientation must be one letter of R/L, A/P and S/I each, such as LPS; got {orientation!r}."
            )
        turn = np.eye(3) if direction is None else np.asarray(direction, float)
        if (
            turn.shape != (3, 3)
            or not np.allclose(turn @ turn.T, np.eye(3), atol=1e-6)
            or np.linalg.det(turn) < 0
        ):
            raise InputError(
                "The phantom's direction must be a 3 x 3 rotation; mirror with `orientation` instead."
            )
        pairs = [_LETTERS[letter] for letter in reversed(code)]
        k, j, i = (int(n) for n in shape)
        dk, dj, di = (float(step) for step in spacing)
        axes, signs = zip(*pairs, strict=True)
        return cls((k, j, i), (dk, dj, di), axes, signs, turn)

    def lattice(self, centre_mm: NDArray[np.float64]) -> Lattice:
        """The upright grid around a point."""
        order = [self.axes.index(world) for world in (2, 1, 0)]
        steps = np.stack([self.direction[:, self.axes[a]] * self.spacing_kji_mm[a] for a in order])
        k, j, i = (self.shape_kji[a] for a in order)
        return Lattice(centre_mm - (np.array([k, j, i]) - 1) / 2 @ steps, steps, (k, j, i))

    def upright(self, array_kji: NDArray[np.generic]) -> NDArray[np.generic]:
        """The same memory seen along (superior, anterior, right)."""
        turned = array_kji.transpose([self.axes.index(world) for world in (2, 1, 0)])
        return turned[tuple(slice(None, None, self.signs[self.axes.index(world)]) for world in (2, 1, 0))]

    def ijk_to_ras(self, lattice: Lattice) -> NDArray[np.float64]:
        """(4, 4) voxel index to world."""
        affine = np.eye(4)
        affine[:3, 3] = lattice.origin_mm
        for axis in range(3):
            step = lattice.steps_mm[2 - self.axes[axis]]
            affine[:3, 2 - axis] = step * self.signs[axis]
            if self.signs[axis] < 0:
                affine[:3, 3] += step * (self.shape_kji[axis] - 1)
        return affine


def _blocks(
    anatomy: Anatomy, lattice: Lattice, noise: _Noise
) -> Iterator[tuple[slice, NDArray[np.int16], NDArray[np.uint8]]]:
    """Scan slice ranges one after the other; yields (slices, HU, labels)."""
    k, j, i = lattice.shape_kji
    sigma = _blur_voxels(lattice)
    halo = int(np.ceil(3 * sigma[0]))
    thick = max(_BLOCK_VOXELS // (j * i), 4)
    for first in range(0, k, thick):
        stop = min(first + thick, k)
        low, high = max(first - halo, 0), min(stop + halo, k)
        inner = slice(first - low, stop - low)
        slab = anatomy.on(lattice.crop((slice(low, high), slice(0, j), slice(0, i))))
        hu, labels = _paint(anatomy, slab)
        blurred = ndimage.gaussian_filter(hu, sigma, mode="nearest", truncate=3.0)[inner]
        blurred += noise.slices(first, stop) * _noise_share(slab, inner)
        np.rint(blurred, out=blurred)
        yield slice(first, stop), np.clip(blurred, -1024, 3071).astype(np.int16), labels[inner]


def _blur_voxels(lattice: Lattice) -> NDArray[np.float64]:
    """(3,) width of the scanner's blur: focal spot and kernel, and the averaging within a voxel."""
    spacing_mm = lattice.spacing_kji_mm
    blurred: NDArray[np.float64] = np.hypot(0.6, 0.28 * spacing_mm) / spacing_mm
    return blurred


def _paint(anatomy: Anatomy, slab: Slab) -> tuple[Array, NDArray[np.uint8]]:
    """Noise-free HU and labels of a block."""
    outside = anatomy.outline(slab)
    hu, labels = anatomy.fat(slab, outside), np.zeros(slab.lattice.shape_kji, np.uint8)
    for structure in anatomy.structures:
        region = slab.region(structure.box)
        if region is not None:
            _blend(structure, slab.crop(region), hu[region], labels[region])
    skin = 1 - _share(outside + np.float32(_SKIN_MM), slab)
    hu += skin * (np.float32(_SKIN_HU) - hu)
    room = _room(anatomy.back_mm, slab)
    inside = _share(outside, slab)
    labels[inside <= 0.5] = 0
    return room + inside * (hu - room), labels
    return hu, labels


def _blend(structure: Structure, slab: Slab, hu: Array, labels: NDArray[np.uint8]) -> None:
    """Paint one structure, mixing across its border by the share of each voxel it takes."""
    distance = structure.distance(slab)
    share = _share(distance, slab)
    if structure.within:
        share *= np.isin(labels, structure.within)
    if not share.any():
        return
    hu += share * (structure.paint(slab, distance) - hu)
    if structure.label is not None:
        np.copyto(labels, np.uint8(structure.label), where=share > 0.5)


def _share(distance: Array, slab: Slab) -> Array:
    """How much of each voxel lies inside a border, 0..1."""
    share: Array = np.clip(np.float32(0.5) - distance / np.float32(slab.softness_mm), 0, 1)
    return share


def _room(back_mm: float, slab: Slab) -> Array:
    """Air, and a padded table top under the patient: layers of foam and shell, bent up at the sides."""
    x, y = slab.lattice.coordinate(0), slab.lattice.coordinate(1)
    hu = np.full(slab.lattice.shape_kji, -1000.0, np.float32)
    below = np.float32(back_mm + 5) + 26 * (x / 210) ** 2 - y
    aside = np.abs(x) - 214
    for first_mm, last_mm, value in _TABLE_LAYERS:
        outside = np.maximum(np.maximum(first_mm - below, below - last_mm), aside)
        hu += _share(outside, slab) * (np.float32(value) - hu)
    return hu


def _noise_share(slab: Slab, inner: slice) -> Array:
    """Noise relative to the middle of the body: less towards the skin, least in the air around."""
    x, y, cavity = slab.x[inner], slab.y[inner], slab.cavity[inner]
    middle = np.exp(-((x / 120) ** 2 + (y / 85) ** 2))
    air = np.clip((cavity - 40) / 30, 0, 1)
    return np.asarray((0.55 + 0.45 * middle) * (1 - 0.45 * air), np.float32)


class _Noise:
    """Reconstructed-looking noise: band-limited in the slice, a little shared by neighbouring slices."""

    def __init__(self, seed: int, lattice: Lattice, noise_hu: float) -> None:
        self._seed, self._noise_hu = seed, noise_hu
        self._plane = lattice.shape_kji[1:]
        grain_mm = np.random.default_rng([seed, 3]).uniform(0.45, 0.9)
        self._narrow = grain_mm / lattice.spacing_kji_mm[1:]
        size = int(np.ceil(8 * self._narrow.max())) * 2 + 9
        point = np.zeros((size, size), np.float32)
        point[size // 2, size // 2] = 1
        self._gain = 1 / float(np.sqrt((self._filtered(point) ** 2).sum()))

    def _filtered(self, plane: Array) -> Array:
        narrow: Array = ndimage.gaussian_filter(plane, self._narrow, mode="wrap")
        wide: Array = ndimage.gaussian_filter(narrow, 2 * self._narrow, mode="wrap")
        return narrow - np.float32(0.7) * wide

    def _plane_at(self, k: int) -> Array:
        rng = np.random.default_rng([self._seed, 4, k])
        return self._filtered(rng.standard_normal(self._plane, np.float32)) * np.float32(
            self._gain * self._noise_hu
        )

    def slices(self, first: int, stop: int) -> Array:
        """(stop - first, J, I) HU."""
        below = self._plane_at(first)
        planes = np.empty((stop - first, *self._plane), np.float32)
        for k in range(first, stop):
            above = self._plane_at(k + 1)
            planes[k - first] = np.float32(0.94) * below + np.float32(0.34) * above
            below = above
        return planes

"""Smooth shapes on a sampling lattice: the geometry the phantom's anatomy is made of.

Everything is a function of position in millimetres, so the same anatomy can be sampled at any shape, spacing and angle.
A distance is negative inside a shape, positive outside, in mm, and only exact near the surface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline, PchipInterpolator

__all__ = [
    "Array",
    "Box",
    "Distance",
    "Lattice",
    "Profile",
    "Region",
    "Shape",
    "Slab",
    "Vector",
    "Waves",
    "bound",
    "ellipsoid",
    "grow_tree",
    "grown",
    "joined",
    "nodes",
    "pipe",
    "rotation",
    "smooth_max",
    "smooth_min",
    "spline",
    "tube",
]

Array = NDArray[np.float32]
Vector = NDArray[np.float64]
Box = tuple[Vector, Vector]
Region = tuple[slice, slice, slice]

_FAR_MM = 60.0
_SURFACE_MM = 6.0
"""How far from a pipe its distance is still right: room for rough surfaces, rims and blends."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """A regular grid of sample points in space, right-angled but turned as it likes."""

    origin_mm: Vector
    """(3,) position of index (0, 0, 0)."""
    steps_mm: Vector
    """(3, 3) rows: step per index along k, j, i."""
    shape_kji: tuple[int, int, int]

    @property
    def spacing_kji_mm(self) -> Vector:
        """(3,) distance between neighbours along k, j, i."""
        lengths: Vector = np.linalg.norm(self.steps_mm, axis=1)
        return lengths

    def bounds(self, low_mm: Vector, high_mm: Vector) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """First indices and stops, (N, 3) each, of the points in each of N boxes; stop <= first where it is empty."""
        to_index = self.steps_mm.T / self.spacing_kji_mm**2
        middle = ((low_mm + high_mm) / 2 - self.origin_mm) @ to_index
        half = (high_mm - low_mm) / 2 @ np.abs(to_index)
        first = np.maximum(np.ceil(middle - half), 0).astype(np.intp)
        stop = np.minimum(np.floor(middle + half) + 1, self.shape_kji).astype(np.intp)
        return first, stop

    def crop(self, region: Region) -> Lattice:
        """The part of the lattice inside index ranges."""
        starts = [part.start for part in region]
        k, j, i = (part.stop - part.start for part in region)
        return Lattice(self.origin_mm + np.array(starts) @ self.steps_mm, self.steps_mm, (k, j, i))

    def coordinate(self, axis: int) -> Array:
        """(K, J, I) position of every lattice point along world axis 0, 1 or 2, mm."""
        along = [np.arange(n) * step for n, step in zip(self.shape_kji, self.steps_mm[:, axis], strict=True)]
        total = along[0][:, None, None] + along[1][:, None] + along[2] + self.origin_mm[axis]
        return np.asarray(total, np.float32)


@dataclass(frozen=True, eq=False)
class Waves:
    """A smooth random field: a sum of plane waves, the same function of position on every lattice."""

    vectors: Vector
    """(W, 3) wave vectors, radians per mm."""
    phases: Vector
    """(W,) radians."""
    amplitude: float
    """Height of each wave."""

    @classmethod
    def random(
        cls, rng: np.random.Generator, wavelength_mm: tuple[float, float], rms: float = 1.0, count: int = 24
    ) -> Waves:
        """Draw `count` waves of random directions with wavelengths in a band and a given root mean square."""
        directions = rng.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths_mm = rng.uniform(*wavelength_mm, size=(count, 1))
        vectors = directions * (2 * np.pi / lengths_mm)
        return cls(vectors, rng.uniform(0, 2 * np.pi, count), rms * float(np.sqrt(2 / count)))

    def on(self, lattice: Lattice) -> Array:
        """Sample the field: (K, J, I).

        A plane wave on a lattice is a product of one factor per index, so the whole field is one matrix product.
        """
        k, j, i = (
            np.exp(1j * np.outer(self.vectors @ step, np.arange(n)))
            for n, step in zip(lattice.shape_kji, lattice.steps_mm, strict=True)
        )
        start = self.amplitude * np.exp(1j * (self.vectors @ lattice.origin_mm + self.phases))
        rows = ((start[:, None] * k)[:, :, None] * j[:, None, :]).reshape(len(start), -1)
        left = np.concatenate([rows.real, -rows.imag]).astype(np.float32)
        right = np.concatenate([i.real, i.imag]).astype(np.float32)
        return (left.T @ right).reshape(lattice.shape_kji)


class Profile:
    """A smooth curve through knots, looked up from a fine table because it is asked for at every voxel."""

    _STEP_MM = 0.5

    def __init__(self, knots: str) -> None:
        """`knots` is read as "position:value position:value ...", in mm, positions rising."""
        at_mm, values = np.array([knot.split(":") for knot in knots.split()], float).T
        self._first_mm = float(at_mm[0])
        grid_mm = np.arange(at_mm[0], at_mm[-1] + self._STEP_MM, self._STEP_MM)
        self._table = PchipInterpolator(at_mm, values)(np.minimum(grid_mm, at_mm[-1])).astype(np.float32)

    def __call__(self, at_mm: ArrayLike) -> Array:
        """Values at positions, constant beyond the first and the last knot."""
        index = ((np.asarray(at_mm, np.float32) - self._first_mm) / self._STEP_MM + 0.5).astype(np.int32)
        return np.take(self._table, index, mode="clip")


@dataclass(frozen=True, eq=False)
class Slab:
    """A block of sample points in the coordinates of the undeformed body, with the fields many organs need."""

    lattice: Lattice
    scale: Vector
    """(3,) world mm per body mm."""
    shift_mm: Vector
    """(3,) how far the body's deformation moves this block's points, in the middle of its range."""
    slack_mm: Vector
    """(3,) how much more or less than that."""
    x: Array
    """(K, J, I) towards the patient's right, mm."""
    y: Array
    """Towards anterior, mm."""
    z: Array
    """Towards superior, mm."""
    cavity: Array
    """Distance to the wall of the trunk's inner space (ribs, abdominal wall), mm."""
    dome: Array
    """Height over the diaphragm, mm, shortened where it is steep."""
    fine: Array
    """Texture with a grain of about a centimetre, unit variance."""
    coarse: Array
    """Texture with a grain of a few centimetres, unit variance."""

    @property
    def softness_mm(self) -> float:
        """Width over which a boundary blends from one tissue to the next: a voxel's shortest side."""
        return float(self.lattice.spacing_kji_mm.min())

    def region(self, box: Box) -> Region | None:
        """Index ranges where a body box may appear, or None when it misses the block."""
        return next((region for _, region in self.regions(box[0][None], box[1][None])), None)

    def regions(self, low_mm: Vector, high_mm: Vector) -> Iterator[tuple[int, Region]]:
        """(n, index ranges) for those of N body boxes, (N, 3) corners, that may appear in the block."""
        margin_mm = self.slack_mm + self.softness_mm
        low_mm, high_mm = (edge_mm * self.scale - self.shift_mm for edge_mm in (low_mm, high_mm))
        first, stop = self.lattice.bounds(low_mm - margin_mm, high_mm + margin_mm)
        for n in np.flatnonzero((first < stop).all(axis=1)):
            k, j, i = (slice(int(a), int(b)) for a, b in zip(first[n], stop[n], strict=True))
            yield int(n), (k, j, i)

    def crop(self, region: Region) -> Slab:
        """The part inside index ranges; arrays are views."""
        names = ("x", "y", "z", "cavity", "dome", "fine", "coarse")
        parts = {name: getattr(self, name)[region] for name in names}
        return replace(self, lattice=self.lattice.crop(region), **parts)

    def field(self, waves: Waves) -> Array:
        """A random field on this block."""
        return waves.on(self.lattice)


Distance = Callable[[Slab], Array]
Shape = tuple[Distance, Box]
"""A distance function, and a box in body coordinates that holds all of the shape."""


def smooth_min(a: Array, b: Array, width_mm: float) -> Array:
    """Union of two shapes with the crease rounded over `width_mm`."""
    overlap = np.maximum(width_mm - np.abs(a - b), 0)
    return np.asarray(np.minimum(a, b) - overlap * overlap * (0.25 / width_mm), np.float32)


def smooth_max(a: Array, b: Array, width_mm: float) -> Array:
    """Intersection of two shapes with the edge rounded over `width_mm`."""
    return -smooth_min(-a, -b, width_mm)


def rotation(x_deg: float, y_deg: float, z_deg: float) -> Vector:
    """(3, 3) rotation about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad([x_deg, y_deg, z_deg])):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[second, first], turn[first, second] = np.sin(angle), -np.sin(angle)
        matrix = turn @ matrix
    return matrix


def grown(box: Box, by_mm: float) -> Box:
    """A box with a margin on every side."""
    return box[0] - by_mm, box[1] + by_mm


def bound(*boxes: Box) -> Box:
    """Smallest box around boxes."""
    return np.min([low for low, _ in boxes], axis=0), np.max([high for _, high in boxes], axis=0)


def ellipsoid(
    centre: ArrayLike, radii_mm: ArrayLike, turn: Vector | None = None, bend_mm: float = 0.0
) -> Shape:
    """An ellipsoid, optionally bent like a bean.

    Args:
        centre: (3,) mm.
        radii_mm: (3,) along its own three axes.
        turn: (3, 3) rotation from its own axes to the body's.
        bend_mm: how far the ends of the third axis are moved along the first.

    Returns:
        Distance function and bounding box.
    """
    middle, radii = np.asarray(centre, float), np.asarray(radii_mm, float)
    axes = np.eye(3) if turn is None else turn

    def distance(slab: Slab) -> Array:
        offsets = [
            at - np.float32(centre) for at, centre in zip((slab.x, slab.y, slab.z), middle, strict=True)
        ]
        local = [np.tensordot(axes[:, own].astype(np.float32), offsets, 1) for own in range(3)]
        if bend_mm:
            local[0] = local[0] - np.float32(bend_mm) * (local[2] / np.float32(radii[2])) ** 2
        scaled = [part / np.float32(r) for part, r in zip(local, radii, strict=True)]
        level = np.sqrt(sum(part * part for part in scaled))
        slope = np.sqrt(sum((part / np.float32(r)) ** 2 for part, r in zip(scaled, radii, strict=True)))
        return np.asarray(level * (level - 1) / (slope + np.float32(1e-6)), np.float32)

    reach = np.abs(axes) @ (radii + np.array([abs(bend_mm), 0, 0]))
    return distance, (middle - reach, middle + reach)


def spline(nodes: ArrayLike, step_mm: float) -> Vector:
    """Smooth dense path (N, D) through coarse nodes (M, D); columns past the third, e.g. a radius, never overshoot."""
    points = np.asarray(nodes, float)
    along_mm = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points[:, :3], axis=0), axis=1))])
    count = max(int(np.ceil(along_mm[-1] / step_mm)) + 1, 2)
    dense_mm = np.linspace(0, along_mm[-1], count)
    place = CubicSpline(along_mm, points[:, :3])(dense_mm)
    return np.column_stack([place, PchipInterpolator(along_mm, points[:, 3:])(dense_mm)])


def nodes(text: str, sign: int = 1) -> Vector:
    """(N, 4) path written as "x y z radius, x y z radius, ..." in mm; sign -1 mirrors it to the left."""
    return np.array([node.split() for node in text.split(",")], float) * (sign, 1, 1, 1)


def joined(a: Shape, b: Shape, width_mm: float) -> Shape:
    """Union of two shapes, blended over `width_mm`."""
    return lambda slab: smooth_min(a[0](slab), b[0](slab), width_mm), bound(a[1], b[1])


def pipe(path: Vector, step_mm: float = 8.0) -> Shape:
    """A smooth tapered pipe through (N, 4) nodes."""
    return tube(spline(path, step_mm))


def tube(path: Vector, parents: NDArray[np.intp] | None = None, thin: bool = False) -> Shape:
    """Tapered pipe along a path, or along the branches of a tree.

    Args:
        path: (N, 4) x, y, z, radius in mm.
        parents: (N,) index each node is joined to, -1 for the root; None joins each node to the one before.
        thin: fade branches thinner than a voxel, as partial volume does, instead of thickening them.

    Returns:
        Distance function (60 mm more than 6 mm away from every branch) and bounding box.
    """
    before = np.arange(len(path)) - 1 if parents is None else parents
    stops, starts = path[before >= 0], path[before[before >= 0]]
    widest_mm = np.maximum(starts[:, 3:], stops[:, 3:])
    low_mm = np.minimum(starts, stops)[:, :3] - widest_mm
    high_mm = np.maximum(starts, stops)[:, :3] + widest_mm

    def distance(slab: Slab) -> Array:
        nearest = np.full(slab.lattice.shape_kji, _FAR_MM, np.float32)
        reach_mm = 0.0 if thin else _SURFACE_MM
        fade_mm = slab.softness_mm if thin else 0.0
        for n, region in slab.regions(low_mm - reach_mm, high_mm + reach_mm):
            part = nearest[region]
            np.minimum(part, _cone(slab, region, starts[n], stops[n], fade_mm), out=part)
        return nearest

    return distance, (low_mm.min(axis=0), high_mm.max(axis=0))


def _cone(slab: Slab, region: Region, start: Vector, stop: Vector, fade_mm: float) -> Array:
    """Distance to a pipe between two balls of different size."""
    axis = (stop - start)[:3].astype(np.float32)
    scale = axis / max(float(axis @ axis), 1e-9)
    first, last = (_seen_radius(float(end[3]), fade_mm) for end in (start, stop))
    dx = slab.x[region] - np.float32(start[0])
    dy = slab.y[region] - np.float32(start[1])
    dz = slab.z[region] - np.float32(start[2])
    along = np.minimum(np.maximum(dx * scale[0] + dy * scale[1] + dz * scale[2], 0), 1)
    dx -= along * axis[0]
    dy -= along * axis[1]
    dz -= along * axis[2]
    result = np.sqrt(dx * dx + dy * dy + dz * dz) - (np.float32(first) + along * np.float32(last - first))
    return np.asarray(result, np.float32)


def _seen_radius(radius_mm: float, voxel_mm: float) -> float:
    """Radius whose blended boundary gives a thin vessel the brightness its share of a voxel's area would."""
    if radius_mm >= voxel_mm / 2:
        return radius_mm
    return voxel_mm * (4 * (radius_mm / voxel_mm) ** 2 - 0.5)


def grow_tree(
    root: ArrayLike, targets: Vector, leaf_mm: float, root_mm: float, detour: float = 0.45
) -> tuple[Vector, NDArray[np.intp]]:
    """Branching vessels from a root to target points.

    Each target, nearest first, joins the existing node that makes its way from the root short (`detour` weighs the
    way already travelled against the new branch). Calibres follow the number of leaves served (Murray's law).

    Args:
        root: (3,) mm.
        targets: (N, 3) mm.
        leaf_mm: radius of a twig.
        root_mm: largest radius.

    Returns:
        (2N + 1, 4) x, y, z, radius and (2N + 1,) parent indices, for `tube`.
    """
    start = np.asarray(root, float)
    ordered = targets[np.argsort(np.linalg.norm(targets - start, axis=1))]
    count = 2 * len(ordered) + 1
    nodes, parents, travelled = np.zeros((count, 3)), np.full(count, -1), np.zeros(count)
    nodes[0] = start
    for n, target in enumerate(ordered):
        used = 2 * n + 1
        gaps = np.linalg.norm(nodes[:used] - target, axis=1)
        parent = int(np.argmin(gaps + detour * travelled[:used]))
        # a node on the way, pulled off the straight line so that branches curve and later ones can fork there
        sway = (np.sin(np.arange(3) * 2.1 + n) * 0.12) * gaps[parent]
        for step, place in enumerate((0.55 * target + 0.45 * nodes[parent] + sway, target)):
            joined = parent if step == 0 else used
            nodes[used + step], parents[used + step] = place, joined
            travelled[used + step] = travelled[joined] + np.linalg.norm(place - nodes[joined])
    served = np.ones(count)
    for n in range(count - 1, 0, -1):
        served[parents[n]] += served[n]
    radii = np.minimum(leaf_mm * served ** (1 / 2.6), root_mm)
    return np.column_stack([nodes, radii]), parents.astype(np.intp)

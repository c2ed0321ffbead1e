"""What a structure is made of: functions from position and depth to HU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .shapes import Array, Slab, Waves

__all__ = ["AIR_HU", "FAT_HU", "Paint", "bone", "gas_above", "hollow", "mixed", "muscle", "tissue"]

FAT_HU, AIR_HU = -102.0, -1000.0

Paint = Callable[[Slab, Array], Array]
"""(block, distance to the structure's surface, negative inside) -> HU."""


def mixed(first: Array, second: Array | float, share: Array) -> Array:
    """HU where `share` (0..1) of the first gives way to the second."""
    return np.asarray(first + (np.asarray(second, np.float32) - first) * share, np.float32)


def tissue(hu: float, fine: float = 3.0, coarse: float = 3.0) -> Paint:
    """A tissue with a texture of two grains, amplitudes in HU."""
    return lambda slab, _: np.float32(hu) + np.float32(fine) * slab.fine + np.float32(coarse) * slab.coarse


def muscle(hu: float) -> Paint:
    """Muscle with streaks of fat."""

    def paint(slab: Slab, _: Array) -> Array:
        streaks = np.maximum(slab.fine - np.float32(1.2), 0)
        return np.asarray(np.float32(hu) + 4 * slab.coarse - 24 * streaks, np.float32)

    return paint


def bone(cortical_hu: float, marrow_hu: float, shell_mm: float = 2.0) -> Paint:
    """Dense shell around spongy bone."""

    def paint(slab: Slab, distance: Array) -> Array:
        shell = np.clip(1.4 + distance / np.float32(shell_mm), 0, 1)
        inside = np.float32(marrow_hu) + 28 * slab.fine + 16 * slab.coarse
        return mixed(inside, cortical_hu, shell)

    return paint


def hollow(wall_hu: float, wall_mm: float, content: Paint) -> Paint:
    """An organ with a wall and something in it."""

    def paint(slab: Slab, distance: Array) -> Array:
        inside = np.clip(-(distance + np.float32(wall_mm)) / slab.softness_mm + 0.5, 0, 1)
        wall = np.float32(wall_hu) + 3 * slab.fine
        return mixed(wall, content(slab, distance), inside)

    return paint


def gas_above(level_mm: float, pockets: Waves | None, content: Paint) -> Paint:
    """Gas over fluid in a person lying on the back, and pockets of gas where a random field is high."""

    def paint(slab: Slab, distance: Array) -> Array:
        height = slab.y - np.float32(level_mm)
        if pockets is not None:
            height = np.maximum(height, 14 * (slab.field(pockets) - np.float32(0.9)))
        gas = np.clip(height / slab.softness_mm + 0.5, 0, 1)
        return mixed(content(slab, distance), AIR_HU, gas)

    return paint

"""The structures of one person, collected in painting order, and the frame they hang in."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .shapes import Array, Box, Distance, Profile, Shape, Vector, Waves, grown, rotation
from .tissues import FAT_HU, Paint, tissue

__all__ = [
    "EVERYWHERE",
    "LEVELS",
    "ORGANS",
    "PHASES",
    "Body",
    "Structure",
    "cavity",
    "dome",
    "sides",
    "wall_point",
]

EVERYWHERE: Box = (np.full(3, -5000.0), np.full(3, 5000.0))

LEVELS = tuple(f"{part}{n}" for part, count in (("L", 5), ("T", 12), ("C", 7)) for n in range(count, 0, -1))
"""Vertebrae from below."""

ORGANS: tuple[str, ...] = (
    *("liver", "spleen", "kidney_right", "kidney_left", "stomach", "gallbladder", "pancreas", "duodenum"),
    *("colon", "small_bowel", "adrenal_gland_right", "adrenal_gland_left", "aorta", "inferior_vena_cava"),
    *("portal_vein_and_splenic_vein", "superior_vena_cava", "heart", "lung_right", "lung_left", "trachea"),
    *("esophagus", "urinary_bladder", "autochthon_right", "autochthon_left", "iliopsoas_right"),
    *("iliopsoas_left", "spinal_cord", "sternum", "sacrum", "hip_right", "hip_left", "femur_right"),
    *("femur_left", "brain", "liver_lesion"),
    *(f"vertebrae_{level}" for level in LEVELS),
    *(f"rib_{side}_{n}" for side in ("right", "left") for n in range(1, 13)),
)
"""Names in label order: ORGANS[n] has label n + 1. TotalSegmentator's names where it has one."""

PHASES = ("non-contrast", "arterial", "portal", "late")
"""Times since the injection of contrast medium."""

_PHASE_SHARES = (0.22, 0.2, 0.45, 0.13)

_CONTRAST_HU = {
    "aorta": (42, 330, 158, 122),
    "cava": (42, 95, 145, 120),
    "portal": (42, 120, 178, 126),
    "liver": (58, 72, 110, 96),
    "hepatic": (44, 62, 168, 120),
    "spleen": (50, 138, 124, 104),
    "cortex": (34, 205, 188, 150),
    "medulla": (30, 85, 150, 160),
    "pelvis": (8, 8, 12, 420),
    "pancreas": (40, 112, 96, 82),
    "bowel": (38, 88, 80, 72),
    "muscle": (54, 60, 62, 63),
    "chamber_left": (42, 320, 155, 120),
    "chamber_right": (42, 230, 150, 120),
    "myocardium": (46, 112, 110, 95),
    "lesion": (34, 48, 58, 70),
    "gland": (30, 75, 70, 60),
}
"""HU in each of PHASES."""

_HALF_WIDTH = Profile(
    "-400:92 -330:100 -260:106 -180:114 -100:120 -40:126 20:131 80:132 130:128 180:115 215:95 245:68 268:46"
    " 295:34 320:34 345:56 400:64 450:56 486:10"
)
_FRONT_DEPTH = Profile(
    "-330:76 -260:82 -180:88 -100:90 -20:92 50:90 100:88 150:82 200:66 240:44 265:30 300:26 330:42 350:76"
    " 420:86 465:56 486:10"
)
_BACK_DEPTH = Profile(
    "-330:80 -260:84 -180:76 -100:66 0:70 60:80 120:86 200:80 240:60 265:38 300:36 330:46 350:70 420:82"
    " 465:54 486:10"
)


@dataclass(frozen=True, eq=False)
class Structure:
    """One thing to paint."""

    box: Box
    """Body coordinates it lies within."""
    distance: Distance
    paint: Paint
    label: int | None = None
    """Label it takes; 0 clears what was there, None leaves it."""
    within: tuple[int, ...] = ()
    """Labels it is confined to; empty for no limit."""


class Body:
    """One person in the making; every organ draws from a random stream of its own."""

    def __init__(self, seed: int, phase: str | None) -> None:
        self._seed = seed
        rng = self.rng("person")
        self.scale = rng.uniform(0.9, 1.07) * rng.uniform(0.96, 1.04, 3)
        self.scale[2] = np.clip(self.scale[2], 0.88, 1.06)
        self.fat_mm = float(rng.choice([rng.uniform(7, 15), rng.uniform(14, 34)]))
        self.muscle = rng.uniform(0.85, 1.15)
        self.bone = rng.uniform(0.7, 1.15)
        drawn = str(rng.choice(PHASES, p=_PHASE_SHARES))
        self.phase = phase or drawn
        column = PHASES.index(self.phase)
        self.hu = {name: values[column] * rng.uniform(0.92, 1.08) for name, values in _CONTRAST_HU.items()}
        self.structures: list[Structure] = []

    def rng(self, name: str) -> np.random.Generator:
        """The random stream of one organ."""
        return np.random.default_rng([self._seed, zlib.crc32(name.encode())])

    def near(self, name: str, centre: ArrayLike, spread_mm: float = 4.0) -> Vector:
        """A place, moved a little for this person."""
        moved: Vector = np.asarray(centre, float) + self.rng("place " + name).normal(0, spread_mm, 3)
        return moved

    def sized(self, name: str, radii: ArrayLike, spread: float = 0.08) -> Vector:
        """Radii, larger or smaller for this person."""
        rng = self.rng("size " + name)
        common = np.exp(rng.normal(0, spread))
        changed: Vector = np.asarray(radii, float) * common * np.exp(rng.normal(0, spread / 2, 3))
        return changed

    def turned(self, name: str, x_deg: float, y_deg: float, z_deg: float) -> Vector:
        """A rotation, a little different for this person."""
        x, y, z = np.array([x_deg, y_deg, z_deg]) + self.rng("turn " + name).normal(0, 6, 3)
        return rotation(x, y, z)

    def add(
        self,
        shape: Shape,
        paint: Paint,
        name: str | None = None,
        *,
        clear: bool = False,
        within: str | None = None,
        rough_mm: float = 0.0,
        grain_mm: tuple[float, float] = (25, 70),
        rim_mm: float = 0.0,
    ) -> None:
        """Paint a shape next.

        Args:
            shape: distance function and box.
            paint: HU inside.
            name: organ it is labelled as; None leaves the labels as they are.
            clear: remove labels instead, for what belongs to no organ in ORGANS.
            within: organ it stays inside of.
            rough_mm: how uneven its surface is, over lengths of `grain_mm`.
            rim_mm: fat around it, uneven and missing in places, so that it touches some neighbours.
        """
        distance, box = shape
        key = f"surface {name} {len(self.structures)}"
        if rough_mm:
            distance = _uneven(distance, Waves.random(self.rng(key), grain_mm, rough_mm))
        reach = 2.5 * rough_mm
        if rim_mm:
            gap = Waves.random(self.rng(key + " rim"), (40, 90), 0.8 * rim_mm)
            rim_box = grown(box, reach + 3 * rim_mm)
            self.structures.append(
                Structure(rim_box, _uneven(distance, gap, rim_mm), tissue(FAT_HU, 8, 6), 0)
            )
        label = ORGANS.index(name) + 1 if name else (0 if clear else None)
        limits = () if within is None else (ORGANS.index(within) + 1,)
        self.structures.append(Structure(grown(box, reach), distance, paint, label, limits))


def _uneven(distance: Distance, waves: Waves, grow_mm: float = 0.0) -> Distance:
    return lambda slab: distance(slab) + slab.field(waves) - np.float32(grow_mm)


def sides() -> Iterator[tuple[str, int]]:
    """("right", 1) and ("left", -1): a side and the sign of its x."""
    yield "right", 1
    yield "left", -1


def cavity(x: Array, y: Array, z: Array) -> tuple[Array, Array]:
    """The trunk's inner space, inside ribs and abdominal wall.

    Returns:
        Distance to its wall in mm, and the level it comes from: 0 on the axis, 1 at the wall.
    """
    across = np.abs(x) / _HALF_WIDTH(z)
    along = np.abs(y) / np.where(y > 0, _FRONT_DEPTH(z), _BACK_DEPTH(z))
    level = np.asarray((across**2.5 + along**2.5) ** np.float32(0.4) + np.float32(1e-3), np.float32)
    return np.asarray(np.sqrt(x * x + y * y) * (1 - 1 / level), np.float32), level


def dome(x: Array, y: Array, z: Array, level: Array) -> Array:
    """Height over the diaphragm, mm: two domes that fall off steeply to the costophrenic recess."""
    side = np.tanh(x / 30)
    top = 94 + 7 * side - 9 * np.exp(-((x / 28) ** 2))
    low = 28 + np.clip(y, -90, 90) * np.float32(0.5)
    inner = np.minimum(level, 1.2) ** 5
    slope = 5 * (inner / level) * (top - low) / 110
    return np.asarray((z - top + (top - low) * inner) / np.sqrt(1 + slope * slope), np.float32)


def wall_point(angle: float, z: float, outside_mm: float) -> tuple[float, float]:
    """(x, y) on the wall of the inner space, moved outwards; angle 0 = back, pi = front."""
    x, y = np.sin(angle), -np.cos(angle)
    depth = float((_FRONT_DEPTH if y > 0 else _BACK_DEPTH)(z))
    level = ((abs(x) / float(_HALF_WIDTH(z))) ** 2.5 + (abs(y) / depth) ** 2.5) ** 0.4
    radius = 1 / level + outside_mm
    return float(x * radius), float(y * radius)

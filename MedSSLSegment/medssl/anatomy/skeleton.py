"""Bones: pelvis, rib cage, spine, skull; and what the spine and the skull protect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .body import LEVELS, Body, sides, wall_point
from .shapes import (
    Array,
    Profile,
    Shape,
    Slab,
    bound,
    ellipsoid,
    grown,
    joined,
    nodes,
    pipe,
    rotation,
    smooth_max,
    smooth_min,
    tube,
)
from .tissues import AIR_HU, Paint, bone, hollow, tissue

__all__ = ["add_head", "add_pelvis", "add_rib_cage", "add_spine"]

_SPINE_Y = Profile("-260:-66 -160:-48 -80:-41 0:-46 60:-53 130:-58 200:-55 260:-42 300:-36 350:-32")
_LEVEL_HEIGHTS_MM = (35.0, 35.0, 34.0, 33.0, 32.0, *np.linspace(25.5, 17.5, 12), *np.full(7, 14.0))
_LUMBAR_TOP_MM = 10.0

_RIB_END_RAD = (2.3, 2.45, 2.5, 2.5, 2.45, 2.4, 2.3, 2.1, 1.95, 1.8, 1.4, 1.0)
"""How far round each rib's bone goes: 0 = back, pi = front; the uppermost first."""
_RIB_DROP_MM = (26, 42, 54, 62, 68, 72, 76, 80, 80, 74, 52, 32)
"""How much lower its front end is than its head."""

_FRAME = nodes(
    "70 14 -246 11, 38 46 -262 9, 8 52 -272 9, 28 20 -310 8, 50 -22 -312 13, 74 -24 -262 15, 80 -26 -222 15"
)
_FEMUR = nodes(
    "88 2 -242 17, 112 -2 -268 15, 126 -4 -285 19, 122 0 -340 14, 119 2 -430 13, 115 3 -520 13, 112 4 -620 13"
)
_COLLAR = nodes("14 42 236 7, 50 44 246 6, 96 8 258 6, 130 -14 256 7")
_SCAPULAR_SPINE = nodes("78 -96 226 6, 112 -72 242 7, 136 -40 250 9")


def add_pelvis(body: Body) -> None:
    """Bladder, sacrum, hip bones and thigh bones."""
    urine = tissue(body.rng("bladder").uniform(0, 14), 1, 1)
    bladder = ellipsoid(body.near("bladder", (0, 34, -240)), body.sized("bladder", (42, 34, 29), 0.2))
    body.add(bladder, hollow(40, 2.5, urine), "urinary_bladder", rough_mm=1.0, rim_mm=2.0)
    paint = bone(720 * body.bone, 190 * body.bone, 2.6)
    sacrum = ellipsoid((0, -62, -205), (48, 19, 58), rotation(-24, 0, 0))
    body.add(sacrum, paint, "sacrum", rough_mm=2, rim_mm=1)
    for side, sign in sides():
        wing = ellipsoid((sign * 86, -22, -158), (9, 56, 56), rotation(8, sign * 22, sign * 34))
        socket = ellipsoid((sign * 84, 0, -240), (34, 34, 34))
        hip = joined(joined(wing, socket, 12), tube(_FRAME * (sign, 1, 1, 1)), 10)
        body.add(hip, paint, f"hip_{side}", rough_mm=1.2, rim_mm=1)
        body.add(ellipsoid((sign * 88, 2, -242), (27, 27, 27)), tissue(20), clear=True)
        head = ellipsoid((sign * 88, 2, -242), (24, 24, 24))
        femur = joined(head, pipe(_FEMUR * (sign, 1, 1, 1), 12), 8)
        body.add(femur, bone(1150 * body.bone, 120, 4.5), f"femur_{side}", rim_mm=1)


def add_rib_cage(body: Body) -> None:
    """Sternum, ribs with their cartilage, collar bones, shoulder blades."""
    paint = bone(760 * body.bone, 190 * body.bone, 1.8)
    cartilage = tissue(body.rng("cartilage").uniform(75, 140), 10, 10)
    body.add(_sternum(), bone(520 * body.bone, 140, 1.6), "sternum", rough_mm=0.6)
    middles = [vertebra.z for vertebra in _vertebrae() if vertebra.level.startswith("T")][::-1]
    for side, sign in sides():
        for n, z in enumerate(middles):
            path = _rib(n, z) * (sign, 1, 1, 1)
            if n < 10:
                body.add(pipe(_cartilage(path, _RIB_END_RAD[n], sign)), cartilage, clear=True)
            body.add(pipe(path, 9), paint, f"rib_{side}_{n + 1}")
        blade = ellipsoid((sign * 96, -72, 180), (38, 4.2, 62), rotation(4, 0, sign * 40))
        body.add(blade, paint, clear=True, rough_mm=1.0)
        for path in (_COLLAR, _SCAPULAR_SPINE):
            body.add(pipe(path * (sign, 1, 1, 1)), paint, clear=True)


def _sternum() -> Shape:
    """A pipe down the front of the chest, flattened by shrinking x before asking for the distance."""
    heights = ((108, 7), (130, 8), (175, 8), (206, 8), (226, 9))
    core, (low, high) = pipe(
        np.array([(0.0, wall_point(np.pi, z, 8)[1], z, radius) for z, radius in heights])
    )
    squeeze = 0.45

    def distance(slab: Slab) -> Array:
        return core(replace(slab, x=slab.x * np.float32(squeeze), scale=slab.scale * (1 / squeeze, 1, 1)))

    return distance, (low * (1 / squeeze, 1, 1), high * (1 / squeeze, 1, 1))


def _rib(n: int, z: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """(N, 4) path of a right rib: from its vertebra along the chest wall, sinking towards the front."""
    thick = 4.2 if n else 3.6
    end, spine_y = _RIB_END_RAD[n], float(_SPINE_Y(z))
    path = [(17.0, spine_y - 11, z + 5, thick), (30.0, spine_y - 19, z + 4, thick)]
    for angle in np.linspace(0.62, end, 8):
        share = (angle - 0.4) / (end - 0.4)
        height = z + 4 - _RIB_DROP_MM[n] * share**1.25
        path.append((*wall_point(angle, height, 5.5), height, thick))
    return np.array(path)


def _cartilage(
    rib: np.ndarray[tuple[int, int], np.dtype[np.float64]], end_rad: float, sign: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """(3, 4) path from the end of a rib to the breast bone."""
    *_, z, thick = rib[-1]
    middle = (*wall_point((end_rad + 2.9) / 2, z - 2, 5.5), z - 2, thick)
    goal = (17.0, wall_point(np.pi, 120, 8)[1], max(z + 4, 112), thick)
    return np.vstack([rib[-1], np.array([middle, goal]) * (sign, 1, 1, 1)])


@dataclass(frozen=True)
class _Vertebra:
    """Where a vertebra is and how large, mm."""

    level: str
    z: float
    height: float
    """With the disc below it."""

    @property
    def y(self) -> float:
        return float(_SPINE_Y(self.z))

    @property
    def canal_y(self) -> float:
        """Middle of the spinal canal."""
        return self.y - float(_CANAL(self.z))


_CANAL = Profile("-160:27 0:25.5 250:21 330:16")
_BODY_WIDTH = Profile("-160:25 10:21 200:15.5 330:12")
_BODY_DEPTH = Profile("-160:17.5 10:16 200:13 330:9")
_HALF_DISC = Profile("-160:5 0:2.8 300:2")
_WING = Profile("-160:42 0:34 260:32 330:24")
_SPIKE = Profile("-160:36 0:33 130:28 260:34 330:22")
_SPIKE_DROP = Profile("-160:4 0:10 130:24 260:12 330:3")


def _vertebrae() -> Iterator[_Vertebra]:
    """From L5 up."""
    z = _LUMBAR_TOP_MM - sum(_LEVEL_HEIGHTS_MM[:5])
    for level, height in zip(LEVELS, _LEVEL_HEIGHTS_MM, strict=True):
        yield _Vertebra(level, z + height / 2, float(height))
        z += height


def add_spine(body: Body) -> None:
    """Discs, vertebrae, the canal and the spinal cord, which ends at L1."""
    paint = bone(620 * body.bone, 185 * body.bone, 1.7)
    for vertebra in _vertebrae():
        body.add(_disc(vertebra), tissue(88, 5, 4), clear=True)
        body.add(_vertebra_shape(vertebra), paint, f"vertebrae_{vertebra.level}", rough_mm=0.5)
    heights = np.arange(-165.0, 345.0, 15.0)
    middle = np.column_stack(
        [0 * heights, _SPINE_Y(heights) - _CANAL(heights), heights, np.full(len(heights), 8.2)]
    )
    body.add(pipe(middle), tissue(22, 3, 3), clear=True)
    cord: Paint = tissue(42, 2, 2)
    body.add(pipe(middle[heights > -8] * (1, 1, 1, 0.58)), cord, "spinal_cord")


def _disc(vertebra: _Vertebra) -> Shape:
    z, y = vertebra.z - vertebra.height / 2, vertebra.y
    width, depth = np.float32(_BODY_WIDTH(z) + 1), np.float32(_BODY_DEPTH(z) + 1)

    def distance(slab: Slab) -> Array:
        ring = np.hypot(slab.x / width, (slab.y - np.float32(y)) / depth)
        return smooth_max((ring - 1) * depth, np.abs(slab.z - np.float32(z)) - 7, 3.0)

    reach = np.array([width + 3, depth + 3, 10.0])
    return distance, (np.array([0, y, z]) - reach, np.array([0, y, z]) + reach)


def _vertebra_shape(vertebra: _Vertebra) -> Shape:
    """Body, arch, transverse and spinous processes, facets."""
    parts = [_arch(vertebra), *_processes(vertebra)]
    block, box = _block(vertebra)

    def distance(slab: Slab) -> Array:
        union = block(slab)
        for part, _ in parts:
            union = smooth_min(union, part(slab), 4.5)
        return union

    return distance, bound(box, *(part for _, part in parts))


def _block(vertebra: _Vertebra) -> Shape:
    """The vertebral body, a drum with a waist."""
    y, z = vertebra.y, vertebra.z
    width, depth = np.float32(_BODY_WIDTH(z)), np.float32(_BODY_DEPTH(z))
    half = np.float32(vertebra.height / 2 - _HALF_DISC(z))

    def distance(slab: Slab) -> Array:
        up = (slab.z - np.float32(z)) / half
        waist = np.float32(0.88) + np.float32(0.12) * np.minimum(up * up, 1.2)
        ring = np.hypot(slab.x / width, (slab.y - np.float32(y)) / depth) / waist
        return smooth_max((ring - 1) * depth, (np.abs(up) - 1) * half, 3.0)

    reach = np.array([width + 3, depth + 3, half + 3])
    return distance, (np.array([0, y, z]) - reach, np.array([0, y, z]) + reach)


def _arch(vertebra: _Vertebra) -> Shape:
    """The ring around the canal."""
    y, z = vertebra.canal_y, vertebra.z - 1
    half = np.float32(0.32 * vertebra.height)

    def distance(slab: Slab) -> Array:
        ring = np.abs(np.hypot(slab.x, (slab.y - np.float32(y)) * np.float32(0.95)) - 12) - 3
        return smooth_max(ring, np.abs(slab.z - np.float32(z)) - half, 3.0)

    return distance, grown((np.array([0, y, z]), np.array([0, y, z])), 18)


def _processes(vertebra: _Vertebra) -> list[Shape]:
    """Transverse processes, facets, spinous process."""
    y, z, height = vertebra.canal_y, vertebra.z, vertebra.height
    reach, back, drop = (float(profile(z)) for profile in (_WING, _SPIKE, _SPIKE_DROP))
    wing = np.array([(13, y + 2, z + 1, 4.5), (0.6 * reach, y - 1, z + 2, 3.6), (reach, y - 4, z + 2, 3.4)])
    facet = np.array([(15, y - 5, z + 0.45 * height, 5), (15, y - 8, z - 0.5 * height, 5)])
    start, tip = y - 13, y - back
    spike = np.array(
        [(0, start, z - 2, 4), (0, (start + tip) / 2, z - 2 - 0.6 * drop, 3.4), (0, tip, z - drop, 4)]
    )
    paired = [pipe(path * (sign, 1, 1, 1)) for path in (wing, facet) for _, sign in sides()]
    return [*paired, pipe(spike)]


def add_head(body: Body) -> None:
    """Enough of a head for very long scans: skull, brain, jaw and airway."""
    place = (0, 6, 412)
    body.add(ellipsoid(place, (70, 88, 76)), tissue(900 * body.bone, 60, 60), clear=True)
    body.add(ellipsoid(place, (63, 81, 69)), tissue(33, 2, 3), "brain")
    body.add(pipe(nodes("-30 66 340 9, 0 66 340 9, 30 66 340 9")), bone(900, 300), clear=True)
    body.add(ellipsoid((0, 62, 366), (16, 22, 16)), tissue(AIR_HU, 0, 0), clear=True)

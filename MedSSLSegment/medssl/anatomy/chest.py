"""Diaphragm, lungs, heart and the mediastinum."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .body import Body, sides
from .shapes import (
    Array,
    Profile,
    Shape,
    Slab,
    Waves,
    bound,
    ellipsoid,
    grow_tree,
    grown,
    nodes,
    pipe,
    rotation,
    smooth_max,
    smooth_min,
    tube,
)
from .tissues import FAT_HU, hollow, tissue

__all__ = ["add_chest"]

_MEDIASTINUM = Profile("-90:17 -60:25 -20:31 30:28 60:13 95:4")
"""Half-width by depth, mm."""

_CHAMBERS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float], float]] = {
    "left ventricle": ((-46, 22, 122), (23, 40, 25), 11.0),
    "right ventricle": ((-12, 52, 118), (33, 31, 29), 3.5),
    "left atrium": ((-2, -12, 156), (33, 20, 23), 3.0),
    "right atrium": ((32, 18, 138), (24, 28, 32), 3.0),
}
"""Centre, radii and wall, mm."""

_PULMONARY_TRUNK = nodes("-19 42 166 14, -20 28 182 13.5, -22 6 188 12, -40 -8 184 9")
_RIGHT_PULMONARY = nodes("-20 14 186 11, 4 2 182 10.5, 34 -6 178 9.5, 44 -8 172 8")
_UPPER_CAVA = nodes("27 18 170 10, 26 14 200 10, 22 16 238 9")
_BRACHIOCEPHALIC = nodes("22 16 236 8.5, -4 30 240 7, -36 18 258 7")
_CAROTID = nodes("14 6 214 5, 18 -4 250 4.5, 24 -10 320 3.5")
_JUGULAR = nodes("24 14 244 6, 32 -4 290 6, 34 -12 340 5")
_GULLET = nodes("-4 -34 320 7, -2 -38 250 7, -4 -36 200 7.5, -6 -32 140 8, -18 -24 96 8, -38 -16 78 9")
_TRACHEA = nodes("0 -8 330 8.5, 1 -14 270 9, 2 -20 220 9, 2 -20 192 8.5")


def add_chest(body: Body) -> None:
    """Everything above the diaphragm that is soft."""
    sheet = np.array([-140.0, -100, -45]), np.array([140.0, 100, 115])
    diaphragm = tissue(body.hu["muscle"] - 4)
    body.add((_diaphragm, sheet), diaphragm)
    for side, sign in sides():
        _lung(body, side, sign)
        _lung_vessels(body, side, sign)
    _heart(body)
    _mediastinum(body)
    _airways(body)


def _diaphragm(slab: Slab) -> Array:
    return smooth_max(np.asarray(np.abs(slab.dome) - 1.6, np.float32), slab.cavity, 2.0)


def _lung(body: Body, side: str, sign: int) -> None:
    rng = body.rng("lungs")
    air_hu, slope = np.float32(rng.uniform(-885, -815)), np.float32(rng.uniform(0.35, 0.9))
    bulge = Waves.random(rng, (50, 130), 4.0, count=12)
    apex, _ = ellipsoid((sign * 56, -14, 120), (110, 120, 140))

    def distance(slab: Slab) -> Array:
        away = _MEDIASTINUM(slab.y) + slab.field(bulge) - slab.x * np.float32(sign)
        inside = smooth_max(smooth_max(slab.cavity + 3, 2.5 - slab.dome, 6.0), away, 10.0)
        return smooth_max(inside, apex(slab), 14.0)

    def paint(slab: Slab, _: Array) -> Array:
        """Denser towards the back, where blood pools."""
        return air_hu - slope * slab.y + 14 * slab.fine + 14 * slab.coarse

    low, high = sorted((0.0, sign * 134.0))
    box = np.array([low, -96.0, -40]), np.array([high, 96.0, 268])
    body.add((distance, box), paint, f"lung_{side}")


def _lung_vessels(body: Body, side: str, sign: int) -> None:
    """Arteries, veins and walled bronchi that spread from the hilum."""
    name = f"lung_{side}"
    spots = body.rng(name).uniform((30, -75, 5), (122, 78, 245), (420, 3)) * (sign, 1, 1)
    hilum = np.array([sign * 34, -8, 172])
    blood = tissue(min(body.hu["chamber_right"], 220.0), 2, 2)
    for root, targets in ((hilum, spots[:240]), (np.add(hilum, (0, 8, -16)), spots[240:])):
        branches, parents = grow_tree(root, targets, 0.8, 6.5, 0.85)
        body.add(tube(branches, parents, thin=True), blood, within=name)
    lumen, parents = grow_tree(np.add(hilum, (-sign * 4, -6, 0)), spots[::10], 0.8, 5.5, 0.9)
    walled = np.add(lumen, (0, 0, 0, 1.1))
    body.add(tube(walled, parents, thin=True), tissue(10, 2, 2), within=name)
    body.add(tube(lumen, parents, thin=True), tissue(-960, 2, 2), within=name)


def _heart(body: Body) -> None:
    """Four chambers in one coat of muscle, in a sac of fat, resting on the diaphragm."""
    rng = body.rng("heart")
    shift, size = rng.normal(0, 3, 3), rng.uniform(0.9, 1.1)
    along = rotation(26, 0, 0) @ rotation(0, 0, -46)

    def chamber(centre: ArrayLike, radii: ArrayLike, wall_mm: float) -> Shape:
        return ellipsoid(np.asarray(centre) + shift, np.asarray(radii) * size + wall_mm, along)

    walls = [chamber(*place) for place in _CHAMBERS.values()]
    box = grown(bound(*(part for _, part in walls)), 4)

    def coat(slab: Slab) -> Array:
        union, *others = (wall(slab) for wall, _ in walls)
        for other in others:
            union = smooth_min(union, other, 14.0)
        return smooth_max(smooth_max(union, 1.5 - slab.dome, 6.0), slab.cavity + 5, 6.0)

    def sac(slab: Slab) -> Array:
        return coat(slab) - 5

    body.add((sac, grown(box, 5)), tissue(FAT_HU + 4, 6, 4), clear=True, rough_mm=1.5)
    body.add((coat, box), tissue(body.hu["myocardium"]), "heart", rough_mm=1.0)
    for name, (centre, radii, _) in _CHAMBERS.items():
        blood = body.hu["chamber_left" if name.startswith("left") else "chamber_right"]
        body.add(chamber(centre, radii, 0.0), tissue(blood, 2, 5), within="heart", rough_mm=1.5)


def _mediastinum(body: Body) -> None:
    """Great vessels above the heart, gullet, thyroid."""
    right, left = tissue(body.hu["chamber_right"], 2, 4), tissue(body.hu["chamber_left"], 2, 2)
    body.add(pipe(_PULMONARY_TRUNK), right, clear=True)
    body.add(pipe(_RIGHT_PULMONARY), right, clear=True)
    body.add(pipe(_UPPER_CAVA), right, "superior_vena_cava")
    body.add(pipe(_BRACHIOCEPHALIC), right, clear=True)
    thyroid = tissue(max(body.hu["cava"] + 20, 110.0), 5, 4)
    for _, sign in sides():
        body.add(pipe(nodes("36 -16 158 6, 14 -14 160 7", sign)), left, clear=True)
        body.add(pipe(_CAROTID * (sign, 1, 1, 1)), tissue(body.hu["aorta"], 2, 2), clear=True)
        body.add(pipe(_JUGULAR * (sign, 1, 1, 1)), right, clear=True)
        body.add(ellipsoid((sign * 17, -4, 288), (9, 11, 24)), thyroid, clear=True)
    collapsed = hollow(body.hu["bowel"] - 12, 3.6, tissue(-420, 60, 200))
    body.add(pipe(_GULLET), collapsed, "esophagus", rim_mm=0.6)


def _airways(body: Body) -> None:
    """Windpipe and main bronchi."""
    air, wall = tissue(-992, 2, 2), tissue(38)
    bronchi = [
        np.vstack([(2, -19, 194, 7.5), nodes("20 -18 180 7, 38 -15 170 6", sign)]) for _, sign in sides()
    ]
    for path in (*bronchi, _TRACHEA):
        body.add(pipe(np.add(path, (0, 0, 0, 1.7))), wall, clear=True)
    for path in bronchi:
        body.add(pipe(path), air, clear=True)
    body.add(pipe(_TRACHEA), air, "trachea")

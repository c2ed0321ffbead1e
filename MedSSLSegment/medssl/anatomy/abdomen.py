"""Bowel, kidneys, liver, spleen and their vessels."""

from __future__ import annotations

import numpy as np

from .body import Body, sides
from .shapes import (
    Array,
    Shape,
    Slab,
    Waves,
    ellipsoid,
    grow_tree,
    joined,
    nodes,
    pipe,
    rotation,
    smooth_max,
    spline,
    tube,
)
from .tissues import Paint, gas_above, hollow, mixed, tissue

__all__ = ["add_bowel", "add_great_vessels", "add_retroperitoneum", "add_upper_abdomen"]

_COLON = nodes(
    "88 14 -138 22, 98 -2 -100 25, 101 -12 -60 22, 88 22 -34 22, 58 62 -58 21, 8 74 -66 20, -48 66 -36 19,"
    "-94 10 8 18, -107 -22 -22 16, -107 -18 -90 14, -92 8 -142 13, -52 24 -188 14, -8 10 -196 15, 2 -34 -222 15,"
    "0 -48 -262 17"
)
_STOMACH = nodes(
    "-58 -14 72 30, -68 4 54 36, -66 34 26 32, -46 54 0 26, -12 60 -14 21, 18 52 -6 15, 30 46 2 11"
)
_DUODENUM = nodes("30 46 2 14, 46 34 4 13, 56 16 -12 12, 57 4 -42 12, 36 -2 -64 12, 2 0 -64 11, -26 8 -48 11")
_PANCREAS = nodes(
    "34 4 -38 11, 32 10 -20 15, 17 16 -8 11, -3 20 3 10, -28 10 14 11, -56 -8 24 11, -78 -24 34 8"
)
_AORTA = nodes(
    "6 12 168 15, 16 24 190 16, 10 8 212 14.5, -10 -18 214 13, -24 -36 194 12.5, -26 -42 150 12,"
    "-20 -38 90 11.5, -10 -24 40 10.5, -6 -17 -20 9.5, -3 -14 -110 8.5"
)
_CAVA = nodes("20 -18 -128 10, 22 -16 -70 11, 24 -14 0 12, 24 -16 45 13, 20 -8 84 13, 22 2 112 14")
_PORTAL = nodes("-84 -26 42 3.5, -50 -16 26 4, -16 -2 14 4.5, 14 2 2 6, 26 4 14 6.5, 38 4 28 6")
_MESENTERIC_VEIN = nodes("14 2 2 5.5, 12 14 -24 5, 10 18 -62 4")
_MESENTERIC_ARTERY = nodes("-6 -14 2 4, -5 4 -14 4, -4 14 -40 3.5, -2 18 -80 3")
_HEPATIC_ARTERY = nodes("-6 -14 18 3.5, -4 6 20 3.5, 14 6 22 2.8, 30 8 26 2.4")


def add_bowel(body: Body) -> None:
    """Mesentery, small bowel and colon."""
    rng = body.rng("bowel")
    wall_hu = body.hu["bowel"]
    targets = rng.uniform((-85, 0, -150), (85, 70, -20), (60, 3))
    branches, parents = grow_tree((4, 8, -25), targets, 0.9, 4.5, 0.6)
    body.add(tube(branches, parents, thin=True), tissue(body.hu["portal"]), clear=True)
    content = tissue(rng.uniform(12, 32), 8, 12)
    filled = gas_above(rng.uniform(62, 80), Waves.random(rng, (30, 60), count=10), content)
    body.add(_small_bowel(rng), hollow(wall_hu, 2.2, filled), "small_bowel")
    body.add(_colon(rng), hollow(wall_hu - 10, 2.0, _stool(rng)), "colon", rough_mm=0.8, rim_mm=1.0)


def _small_bowel(rng: np.random.Generator) -> Shape:
    """Loops: pipes around the lines where two random fields are both zero."""
    first, second = Waves.random(rng, (48, 80), count=20), Waves.random(rng, (48, 80), count=20)
    calibre_mm = np.float32(rng.uniform(8.5, 12.5))

    def distance(slab: Slab) -> Array:
        loop = np.hypot(slab.field(first), slab.field(second)) * 10 - calibre_mm
        outside = smooth_max(loop, slab.cavity + 7, 6.0)
        return smooth_max(outside, np.maximum(np.abs(slab.x) - 88, -12 - slab.y), 8.0)

    return distance, (np.array([-100.0, -22, -185]), np.array([100.0, 95, -28]))


def _colon(rng: np.random.Generator) -> Shape:
    step_mm = 6.0
    path = _COLON.copy()
    path[:, :3] += rng.normal(0, 4, (len(path), 3))
    path[:, 3] *= rng.uniform(0.8, 1.15)
    dense = spline(path, step_mm)
    pouch_mm = rng.uniform(24, 34)
    dense[:, 3] *= 1 + 0.13 * np.cos(np.arange(len(dense)) * step_mm * 2 * np.pi / pouch_mm)
    return tube(dense)


def _stool(rng: np.random.Generator) -> Paint:
    """Stool riddled with gas, and gas where the bowel comes near the front."""
    bubbles = Waves.random(rng, (9, 22), count=24)

    def stool(slab: Slab, _: Array) -> Array:
        gas = np.clip(slab.field(bubbles) - np.float32(0.7), 0, 1.6)
        return np.asarray(28 + 18 * slab.coarse - 130 * gas, np.float32)

    return gas_above(rng.uniform(48, 78), Waves.random(rng, (45, 110), count=10), stool)


def add_retroperitoneum(body: Body) -> None:
    """Kidneys, adrenal glands, duodenum, pancreas."""
    for side, sign in sides():
        _kidney(body, side, sign)
        _adrenal_gland(body, side, sign)
    rng = body.rng("pancreas")
    size, shift = rng.uniform(0.8, 1.2), rng.normal(0, 3, 3)
    fluid = gas_above(rng.uniform(30, 48), None, tissue(22, 8, 8))
    body.add(pipe(_DUODENUM), hollow(body.hu["bowel"], 2.5, fluid), "duodenum", rough_mm=1.2, rim_mm=0.8)
    gland = tissue(body.hu["pancreas"], 9, 4)
    path = _PANCREAS * (1, 1, 1, size) + (*shift, 0)
    body.add(pipe(path), gland, "pancreas", rough_mm=1.8, grain_mm=(9, 20), rim_mm=0.8)


def _adrenal_gland(body: Body, side: str, sign: int) -> None:
    start = np.array([sign * 30 - 2, -30, 38 + 2 * sign, 2.6])
    reach = (
        nodes("0 0 0 0, 8 -8 -6 0, 17 -16 -10 -0.6", sign),
        nodes("0 0 0 0, 1 -10 -6 -0.2, 3 -22 -10 -0.6", sign),
    )
    limbs = joined(pipe(start + reach[0], 4), pipe(start + reach[1], 4), 3)
    body.add(limbs, tissue(body.hu["gland"]), f"adrenal_gland_{side}", rim_mm=1.0)


def _kidney(body: Body, side: str, sign: int) -> None:
    """A bean with cortex and pyramids around a hilum of fat, renal pelvis and vessels."""
    name = f"kidney_{side}"
    centre = body.near(name, (sign * 63, -37, -22 - 6 * sign), 3.5)
    turn = body.turned(name, -10, sign * 10, sign * -28)
    shape = ellipsoid(centre, body.sized(name, (29, 26, 55)), turn, bend_mm=-sign * 9)
    pyramids = Waves.random(body.rng(name), (17, 30), count=24)
    cortex, medulla = np.float32(body.hu["cortex"]), body.hu["medulla"]

    def paint(slab: Slab, distance: Array) -> Array:
        depth = np.clip((-distance - np.float32(7.5)) / 2.5, 0, 1)
        inner = np.clip(slab.field(pyramids) * 2 + np.float32(1.2), 0, 1) * depth
        return mixed(cortex + 4 * slab.fine, medulla, inner)

    body.add(shape, paint, name, rough_mm=0.9, rim_mm=2.0)
    inward = -sign * turn[:, 0]
    hilum, basin = centre + 19 * inward, centre + 15 * inward
    sinus, pelvis = tissue(-85, 14, 8), tissue(body.hu["pelvis"], 3, 2)
    body.add(ellipsoid(hilum, (16, 8.5, 19), turn), sinus, clear=True, rough_mm=2.5, grain_mm=(10, 25))
    body.add(ellipsoid(basin, (9, 5.5, 10), turn), pelvis, clear=True, rough_mm=1.5, grain_mm=(10, 25))
    z = centre[2]
    vein = np.array([(*hilum, 4.5), (sign * 34, -22, z + 4, 5), (sign * 16, -14, z + 6, 5)])
    artery = np.array([(*np.add(hilum, (0, -3, 6)), 2.4), (sign * 32, -34, z + 9, 2.8), (-6, -20, z + 12, 3)])
    body.add(pipe(vein), tissue(body.hu["cava"]), clear=True)
    body.add(pipe(artery), tissue(body.hu["aorta"]), clear=True)


def add_upper_abdomen(body: Body, lesions: int) -> None:
    """Stomach, spleen, liver, gallbladder."""
    _stomach(body)
    _spleen(body)
    body.add(_liver(body), tissue(body.hu["liver"], 4, 3), "liver", rough_mm=1.6, rim_mm=0.7)
    _liver_vessels(body)
    bile = tissue(body.rng("gallbladder").uniform(4, 18), 1.5, 1.5)
    centre, radii = body.near("gallbladder", (60, 44, -6)), body.sized("gallbladder", (14, 15, 31), 0.15)
    pear = ellipsoid(centre, radii, body.turned("gallbladder", 38, 0, -10))
    body.add(pear, hollow(60, 1.5, bile), "gallbladder", rough_mm=1.0)
    _lesions(body, lesions)


def _stomach(body: Body) -> None:
    rng = body.rng("stomach")
    path = _STOMACH.copy()
    path[:, :3] += rng.normal(0, 3.5, (len(path), 3))
    path[:, 3] *= rng.uniform(0.72, 1.08)
    bag, box = pipe(path)
    folds = Waves.random(rng, (9, 20), count=16)
    fluid = np.float32(rng.uniform(8, 38))

    def distance(slab: Slab) -> Array:
        return smooth_max(smooth_max(bag(slab), slab.dome + 3, 8.0), slab.cavity + 4, 8.0)

    def food(slab: Slab, _: Array) -> Array:
        return np.asarray(fluid + 9 * slab.coarse + 14 * np.maximum(slab.field(folds), 0), np.float32)

    content = gas_above(float(rng.uniform(24, 58)), None, food)
    wall = hollow(body.hu["bowel"] + 5, 4.0, content)
    body.add((distance, box), wall, "stomach", rough_mm=1.6, rim_mm=1.0)


def _spleen(body: Body) -> None:
    """Under the left dome, hollowed where the stomach lies."""
    turn = body.turned("spleen", 14, -18, -32)
    centre, radii = body.near("spleen", (-94, -32, 36), 3), body.sized("spleen", (27, 48, 54), 0.1)
    whole, box = ellipsoid(centre, radii, turn)
    hollowed, _ = ellipsoid((-48, 2, 44), (32, 42, 58))

    def distance(slab: Slab) -> Array:
        inside = smooth_max(smooth_max(whole(slab), slab.dome + 3, 6.0), slab.cavity + 3, 6.0)
        return smooth_max(inside, -hollowed(slab), 8.0)

    mottle = 26.0 if body.phase == "arterial" else 3.0
    body.add((distance, box), tissue(body.hu["spleen"], 3, mottle), "spleen", rough_mm=1.2, rim_mm=0.8)


def _liver(body: Body) -> Shape:
    """The space under the right dome, cut off by the slanting visceral surface."""
    normal = np.array([-0.62, -0.36, -0.69]) + body.rng("liver").normal(0, 0.05, 3)
    normal /= np.linalg.norm(normal)
    offset = np.float32(normal @ body.near("liver", (26, -18, 24), 5))
    x, y, z = (np.float32(part) for part in normal)
    whole, _ = ellipsoid((52, 4, 30), body.sized("liver", (134, 98, 90), 0.05), rotation(0, -14, 0))
    hollowed, _ = ellipsoid((22, 6, -34), (74, 64, 52), rotation(0, 22, 0))

    def distance(slab: Slab) -> Array:
        cut = slab.x * x + slab.y * y + slab.z * z - offset
        lobe = smooth_max(smooth_max(whole(slab), cut, 22.0), -hollowed(slab), 14.0)
        return smooth_max(smooth_max(lobe, slab.dome + 2, 8.0), slab.cavity + 3, 10.0)

    return distance, (np.array([-95.0, -95, -75]), np.array([140.0, 100, 112]))


def _liver_vessels(body: Body) -> None:
    """Portal branches from below, three hepatic veins from the cava above."""
    rng = body.rng("liver vessels")
    targets = rng.uniform((-50, -60, -30), (125, 75, 95), (150, 3))
    branches, parents = grow_tree((34, 4, 24), targets[:90], 0.85, 6.0, 0.5)
    body.add(tube(branches, parents, thin=True), tissue(body.hu["portal"], 2, 2), within="liver")
    veins = {(27, -18, 80): targets[90::2], (22, -14, 84): targets[90:] * (0.6, 1, 1)}
    veins[16, -8, 82] = targets[91::2] * (0.6, 1, 1)
    for root, drained in veins.items():
        branches, parents = grow_tree(root, drained, 0.9, 4.5, 0.7)
        body.add(tube(branches, parents, thin=True), tissue(body.hu["hepatic"], 2, 2), within="liver")


def _lesions(body: Body, count: int) -> None:
    rng = body.rng("lesions")
    for _ in range(count):
        centre, radius_mm = rng.uniform((35, -45, 0), (110, 55, 75)), rng.uniform(5, 17)
        shape = ellipsoid(centre, radius_mm * rng.uniform(0.8, 1.2, 3))
        paint = tissue(body.hu["lesion"] * rng.uniform(0.6, 1.1), 5, 5)
        rough_mm = 0.08 * radius_mm
        body.add(shape, paint, "liver_lesion", within="liver", rough_mm=rough_mm, grain_mm=(10, 25))


def add_great_vessels(body: Body) -> None:
    """Vena cava, portal system, aorta and their larger branches down to the thighs."""
    wide = body.rng("vessels").uniform(0.85, 1.2)
    vein, artery, portal = (tissue(body.hu[name], 2, 3) for name in ("cava", "aorta", "portal"))
    body.add(pipe(_CAVA), vein, "inferior_vena_cava")
    body.add(pipe(_PORTAL), portal, "portal_vein_and_splenic_vein")
    body.add(pipe(_MESENTERIC_VEIN), portal, clear=True)
    body.add(pipe(_MESENTERIC_ARTERY), artery, clear=True, rim_mm=1.5)
    body.add(pipe(_HEPATIC_ARTERY), artery, clear=True)
    body.add(pipe(_AORTA * (1, 1, 1, wide), 6), artery, "aorta")
    for _, sign in sides():
        legs = nodes("28 -14 -150 5.5, 62 8 -205 5, 80 48 -255 4.5, 84 46 -330 4", sign)
        body.add(pipe(np.vstack([(-2, -14, -108, 6), legs])), artery, clear=True)
        follower = nodes("30 -24 -158 6.5, 60 -2 -208 6, 72 42 -256 5.5, 76 40 -330 5", sign)
        body.add(pipe(np.vstack([(18, -20, -124, 8), follower])), vein, clear=True)

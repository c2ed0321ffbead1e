"""Skin, fat and the muscles of the trunk."""

from __future__ import annotations

import numpy as np

from .body import EVERYWHERE, Body, sides
from .shapes import (
    Array,
    Distance,
    Profile,
    Slab,
    Waves,
    ellipsoid,
    joined,
    nodes,
    pipe,
    rotation,
    smooth_max,
)
from .tissues import FAT_HU, mixed, muscle

__all__ = ["add_muscles", "add_wall", "back_mm", "skin", "subcutaneous_fat"]

_MUSCLE_BACK_MM = 114.0

_SIDE = Profile(
    "-400:62 -330:58 -250:42 -180:32 -120:21 -60:19 0:19 60:21 120:29 180:42 222:76 250:84 268:56 288:26"
    " 305:18 330:9"
)
_FRONT = Profile("-330:30 -250:15 -100:11 0:10 60:11 110:14 170:20 225:22 265:22 295:17 330:8")
_BACK = Profile("-330:52 -250:48 -180:46 -100:47 0:43 80:37 150:36 220:44 260:42 300:30 330:10")
_FAT_SHARE = Profile("-300:1.25 -200:1.25 -60:1.1 0:1 100:0.75 200:0.7 260:0.5 300:0.3")


def back_mm(body: Body) -> float:
    """How far the back reaches behind the body's axis, flattened by the table."""
    return _MUSCLE_BACK_MM + 0.85 * body.fat_mm


def _layer_mm(slab: Slab) -> tuple[Array, Array]:
    """Thickness of muscle around the inner space, and the share (0..1) of the direction that is sideways."""
    straight = slab.y / np.sqrt(slab.x * slab.x + slab.y * slab.y + 1)
    side = 1 - straight * straight
    front, back = np.maximum(straight, 0) ** 2, np.maximum(-straight, 0) ** 2
    return side * _SIDE(slab.z) + front * _FRONT(slab.z) + back * _BACK(slab.z), side


def skin(body: Body) -> Distance:
    """Distance to the outer surface: a trunk, two thighs, the start of a head."""
    lumps = Waves.random(body.rng("fat"), (90, 220), 2.0, count=12)
    fat_mm, bulk, reach_mm = np.float32(body.fat_mm), np.float32(body.muscle), np.float32(back_mm(body))

    def distance(slab: Slab) -> Array:
        layer, side = _layer_mm(slab)
        fat = fat_mm * _FAT_SHARE(slab.z) * (np.float32(0.75) + np.float32(0.25) * side)
        outer = slab.cavity - layer * bulk - fat + slab.field(lumps)
        outer = smooth_max(outer, -(slab.y + reach_mm), 24.0)
        legs = np.clip((-300 - slab.z) * np.float32(0.4), -60, 9) - np.abs(slab.x)
        return smooth_max(smooth_max(outer, legs, 20.0), slab.z - 494, 20.0)

    return distance


def subcutaneous_fat(slab: Slab, _: Array) -> Array:
    """HU of fat with strands of connective tissue."""
    strands = np.maximum(slab.fine - np.float32(1.3), 0)
    return np.asarray(np.float32(FAT_HU) + 4 * slab.coarse + 30 * strands, np.float32)


def add_wall(body: Body) -> None:
    """The muscular wall and the fat inside it."""
    bulk = np.float32(body.muscle)
    patches = Waves.random(body.rng("wall"), (45, 130), count=16)

    def wall(slab: Slab) -> Array:
        layer, _ = _layer_mm(slab)
        return smooth_max(slab.cavity - layer * bulk, -(slab.y + np.float32(_MUSCLE_BACK_MM - 3)), 16.0)

    def sheets(slab: Slab, _: Array) -> Array:
        """Sheets of muscle with fat between them at the flank, patchier over the ribs, one sheet at the front."""
        layer, side = _layer_mm(slab)
        patch = slab.field(patches)
        depth = slab.cavity / (layer * bulk) + np.float32(0.06) * patch
        flank = 1 / (1 + np.exp(np.clip((slab.z - 50) / 12, -30, 30)))
        gap = np.exp(-(((depth - 0.4) / 0.06) ** 2)) * np.clip(0.55 + 0.5 * patch, 0, 1)
        gap += flank * np.exp(-(((depth - 0.7) / 0.05) ** 2)) * np.clip(0.55 - 0.5 * patch, 0, 1)
        streaks = np.maximum(slab.fine - np.float32(0.9), 0)
        midline = np.exp(-((slab.x / 4) ** 2)) * (slab.y > 0) * np.float32(0.55)
        fat = np.clip(gap * side + midline + np.float32(0.16) * streaks, 0, 1)
        return mixed(np.float32(body.hu["muscle"]) + 4 * slab.coarse, FAT_HU + 5, fat)

    def inner_fat(slab: Slab, _: Array) -> Array:
        strands = np.clip(slab.fine * slab.coarse - np.float32(0.9), 0, 3)
        return np.asarray(np.float32(FAT_HU + 2) + 3 * slab.fine + 28 * strands, np.float32)

    body.add((wall, EVERYWHERE), sheets)
    body.add((lambda slab: slab.cavity + 1, EVERYWHERE), inner_fat)


def _neck_and_thighs(slab: Slab) -> Array:
    """Muscle fills the inner space above the lungs and below the pelvis."""
    below = np.abs(slab.z - np.float32(-8)) - np.float32(272)
    return smooth_max(slab.cavity + 4, -below, 20.0)


def add_muscles(body: Body) -> None:
    """Muscles that stand out of the wall: neck, thigh, chest, shoulder, seat, loin, back and psoas."""
    paint = muscle(body.hu["muscle"])
    body.add((_neck_and_thighs, EVERYWHERE), paint)
    bulk = (1, 1, 1, body.muscle)
    for side, sign in sides():
        chest = ellipsoid((sign * 78, 82, 190), (62, 13, 52), rotation(-14, 0, sign * -24))
        wing = ellipsoid((sign * 128, -52, 140), (11, 52, 92), rotation(0, sign * 6, sign * -24))
        seat = ellipsoid((sign * 76, -86, -225), (62, 36, 78), rotation(0, 0, sign * 16))
        loin = ellipsoid((sign * 66, -62, -45), (21, 10, 62), rotation(0, sign * 8, sign * 16))
        for shape in (chest, wing, seat, loin):
            body.add(shape, paint, rough_mm=2, rim_mm=1.5)
        back = nodes(
            "35 -88 -215 12, 31 -86 -170 19, 34 -83 -100 22, 34 -84 -30 21, 30 -88 60 17, 26 -92 140 14,"
            "25 -88 215 14, 22 -74 270 14, 18 -64 320 10"
        )
        inner = back * (0.5, 1, 1, 0.6) - (0, 7, 0, 0)
        column = joined(pipe(back * bulk * (sign, 1, 1, 1)), pipe(inner * bulk * (sign, 1, 1, 1)), 6)
        body.add(column, paint, f"autochthon_{side}", rough_mm=1.5, rim_mm=1)
        psoas = nodes(
            "26 -46 6 7, 36 -45 -30 14, 46 -38 -80 21, 55 -22 -130 24, 72 8 -180 22, 88 34 -225 17, 98 28 -262 12",
            sign,
        )
        body.add(pipe(psoas * bulk), paint, f"iliopsoas_{side}", rough_mm=1.5, rim_mm=1.5)

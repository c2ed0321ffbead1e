"""Random torsos as functions of position: what tissue is where, in millimetres, before any scanner looks at it.

Body coordinates are those of an average supine person: x towards the patient's right, y anterior, z superior, z = 0
near the upper end plate of the first lumbar vertebra. One seed is one person: size, fat, organ shapes and positions,
and the phase of the contrast medium. Structures are painted in order, each over the ones before it, as organs displace
fat: where two organs meet without a rim of fat they share a faint border.

    shapes    distance functions, random fields, the lattice they are sampled on
    body      collects the structures of one person; labels; the trunk's inner space and the diaphragm
    tissues   HU of what is inside: textures, walls, contents, bone
    trunk, abdomen, chest, skeleton   the organs
    person    all of it together
"""

from __future__ import annotations

from .body import ORGANS, PHASES, Structure
from .person import Anatomy, build_anatomy
from .shapes import Array, Lattice, Slab

__all__ = ["ORGANS", "PHASES", "Anatomy", "Array", "Lattice", "Slab", "Structure", "build_anatomy"]

"""One person, complete."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .abdomen import add_bowel, add_great_vessels, add_retroperitoneum, add_upper_abdomen
from .body import Body, Structure, cavity, dome
from .chest import add_chest
from .shapes import Distance, Lattice, Slab, Vector, Waves
from .skeleton import add_head, add_pelvis, add_rib_cage, add_spine
from .tissues import Paint
from .trunk import add_muscles, add_wall, back_mm, skin, subcutaneous_fat

__all__ = ["Anatomy", "build_anatomy"]


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One person."""

    phase: str
    """Contrast phase, one of PHASES."""
    scale: Vector
    """(3,) world mm per body mm."""
    warp: tuple[Waves, Waves, Waves]
    """Displacement along x, y, z, mm."""
    fine: Waves
    coarse: Waves
    centre_mm: Vector
    """(3,) world position in the middle between lung apex and lower kidney pole: where a scan is centred."""
    back_mm: float
    """World y of the lowest point of the back."""
    outline: Distance
    """Distance to the skin."""
    fat: Paint
    """HU of the fat that everything else is painted into."""
    structures: tuple[Structure, ...] = field(repr=False)
    """In painting order."""

    def on(self, lattice: Lattice) -> Slab:
        """Body coordinates and shared fields on a block of world positions."""
        moved_mm = [waves.on(lattice) for waves in self.warp]
        ranges_mm = np.array([(field_mm.min(), field_mm.max()) for field_mm in moved_mm], float)
        x, y, z = (
            (lattice.coordinate(axis) + moved_mm[axis]) * np.float32(1 / self.scale[axis])
            for axis in range(3)
        )
        wall_mm, level = cavity(x, y, z)
        return Slab(
            lattice,
            scale=self.scale,
            shift_mm=ranges_mm.mean(axis=1),
            slack_mm=np.ptp(ranges_mm, axis=1) / 2,
            x=x,
            y=y,
            z=z,
            cavity=wall_mm,
            dome=dome(x, y, z, level),
            fine=self.fine.on(lattice),
            coarse=self.coarse.on(lattice),
        )


def build_anatomy(seed: int, lesions: int = 0, phase: str | None = None) -> Anatomy:
    """Draw a person.

    Args:
        seed: any non-negative integer; the same seed is the same person.
        lesions: number of hypodense liver lesions.
        phase: one of PHASES; None lets the seed decide.
    """
    body = Body(seed, phase)
    add_wall(body)
    add_muscles(body)
    add_bowel(body)
    add_retroperitoneum(body)
    add_upper_abdomen(body, lesions)
    add_great_vessels(body)
    add_chest(body)
    add_pelvis(body)
    add_rib_cage(body)
    add_spine(body)
    add_head(body)
    rng = body.rng("deformation")
    fine_mm, coarse_mm = rng.uniform(8, 11), rng.uniform(22, 34)
    return Anatomy(
        phase=body.phase,
        scale=body.scale,
        warp=(_warp(rng, 4.0), _warp(rng, 3.5), _warp(rng, 5.0)),
        fine=Waves.random(rng, (fine_mm, 2 * fine_mm), count=40),
        coarse=Waves.random(rng, (coarse_mm, 2 * coarse_mm), count=24),
        centre_mm=np.array([0.0, -2.0, 85.0]) * body.scale,
        back_mm=-back_mm(body) * float(body.scale[1]),
        outline=skin(body),
        fat=subcutaneous_fat,
        structures=tuple(body.structures),
    )


def _warp(rng: np.random.Generator, rms_mm: float) -> Waves:
    return Waves.random(rng, (150, 340), rms_mm, count=6)

"""A small CT with two organs on disk, and the command line as a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from medssl.cli import main
from medssl.segmentation import Segment, Segmentation, default_color, write_segmentation
from medssl.volume import Volume, write_volume

SHAPE_KJI = (20, 48, 56)
SPACING_KJI_MM = (3.0, 2.0, 2.0)
SEGMENTS = (Segment("liver", 1, default_color(1)), Segment("spleen", 5, default_color(5)))
REFERENCE = {"liver": 10, "spleen": 9}


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class SmallCase:
    """Files of one case, and what is in them."""

    folder: Path
    volume: Volume
    truth: Segmentation
    annotation: Segmentation

    @property
    def ct(self) -> str:
        return str(self.folder / "ct.nii.gz")

    @property
    def truth_path(self) -> str:
        return str(self.folder / "truth.nii.gz")

    @property
    def annotation_path(self) -> str:
        return str(self.folder / "annotation.nii.gz")


@pytest.fixture
def medssl(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """The command line: `medssl("info", path)`."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def small_case(tmp_path_factory: pytest.TempPathFactory) -> SmallCase:
    """Two smooth organs in a noisy body; each is annotated on one axial slice."""
    folder = tmp_path_factory.mktemp("small_case")
    labels = np.zeros(SHAPE_KJI, np.uint8)
    labels[_ellipsoid((10, 24, 18), (7, 13, 11))] = 1
    labels[_ellipsoid((9, 26, 42), (5, 9, 8))] = 5
    hu = np.select([labels == 1, labels == 5], [110.0, 190.0], 0.0)
    hu[~_ellipsoid((10, 24, 28), (60, 22, 27))] = -1000.0
    hu += np.random.default_rng(0).normal(0.0, 8.0, SHAPE_KJI)
    affine = np.diag([*reversed(SPACING_KJI_MM), 1.0])
    annotated = np.zeros_like(labels)
    for segment in SEGMENTS:
        index = REFERENCE[segment.name]
        annotated[index][labels[index] == segment.label] = segment.label
    case = SmallCase(
        folder,
        Volume(np.rint(hu).astype(np.int16), affine, "ct.nii.gz"),
        Segmentation(labels, affine, SEGMENTS),
        Segmentation(annotated, affine, SEGMENTS),
    )
    write_volume(case.volume, case.ct)
    write_segmentation(case.truth, case.truth_path)
    write_segmentation(case.annotation, case.annotation_path)
    return case


def _ellipsoid(centre_kji: tuple[int, int, int], radii_kji: tuple[int, int, int]) -> np.ndarray:
    grid = np.indices(SHAPE_KJI, float)
    offsets = [(axis - c) / r for axis, c, r in zip(grid, centre_kji, radii_kji, strict=True)]
    return sum(offset**2 for offset in offsets) <= 1.0

"""The phantom looks and behaves like a CT with known organs, on any grid."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from medssl import phantom as scanner
from medssl.anatomy import ORGANS
from medssl.errors import InputError
from medssl.phantom import Phantom, phantom_ct
from numpy.typing import NDArray
from scipy import ndimage

COARSE = {"shape_kji": (48, 64, 64), "spacing_kji_mm": (8.0, 6.0, 6.0)}
TINY = {"shape_kji": (20, 26, 30), "spacing_kji_mm": (16.0, 14.0, 13.0)}

WHOLE_ORGANS = (
    *("liver", "spleen", "kidney_right", "kidney_left", "stomach", "gallbladder", "pancreas", "duodenum"),
    *("heart", "lung_right", "lung_left", "sternum", "portal_vein_and_splenic_vein"),
)
"""Organs that end above and below within the default field of view."""

PORTAL_HU = {
    "liver": (95, 125),
    "spleen": (105, 145),
    "kidney_right": (140, 210),
    "kidney_left": (140, 210),
    "gallbladder": (0, 45),
    "pancreas": (55, 115),
    "aorta": (130, 180),
    "inferior_vena_cava": (110, 170),
    "heart": (95, 175),
    "lung_right": (-920, -740),
    "lung_left": (-920, -740),
    "trachea": (-1024, -850),
    "autochthon_left": (35, 75),
    "iliopsoas_right": (35, 75),
    "vertebrae_L1": (130, 450),
    "spinal_cord": (20, 70),
}


@pytest.fixture(scope="module")
def portal() -> Phantom:
    """The default field of view at the default resolution, in the portal venous phase."""
    return phantom_ct(seed=0, phase="portal")


@functools.cache
def tiny(seed: int, orientation: str = "RAS") -> Phantom:
    """A very coarse scan, made once."""
    return phantom_ct(seed=seed, orientation=orientation, **TINY)


@functools.cache
def coarse(seed: int) -> Phantom:
    """A coarse, noise-free portal venous scan, made once."""
    return phantom_ct(seed=seed, noise_hu=0, phase="portal", **COARSE)


def organ_ml(phantom: Phantom, organ: str) -> float:
    return float(phantom.segmentation.mask(organ).sum() * np.prod(phantom.volume.spacing_kji_mm) / 1000)


def labels_at(phantom: Phantom, points_ras_mm: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Label of the voxel nearest to each of (N, 3) world points."""
    ijk = (points_ras_mm - phantom.volume.ijk_to_ras[:3, 3]) @ np.linalg.inv(
        phantom.volume.ijk_to_ras[:3, :3]
    ).T
    i, j, k = np.rint(ijk).astype(int).T
    return phantom.segmentation.labels_kji[k, j, i]


def positions_of(phantom: Phantom, organ: str) -> NDArray[np.float64]:
    """(N, 3) world positions of an organ's voxels."""
    ijk = np.argwhere(phantom.segmentation.mask(organ))[:, ::-1]
    return ijk @ phantom.volume.ijk_to_ras[:3, :3].T + phantom.volume.ijk_to_ras[:3, 3]


def test_the_same_arguments_give_the_same_voxels() -> None:
    first, second = tiny(5), phantom_ct(seed=5, **TINY)
    assert first.volume.content_hash == second.volume.content_hash
    np.testing.assert_array_equal(first.segmentation.labels_kji, second.segmentation.labels_kji)


def test_another_seed_is_another_person() -> None:
    livers = [organ_ml(tiny(seed), "liver") for seed in (5, 6, 7)]
    assert min(abs(a - b) for a, b in itertools.combinations(livers, 2)) > 10


def test_the_default_scan_holds_the_organs_of_chest_and_upper_abdomen(portal: Phantom) -> None:
    names = set(portal.segmentation.names)
    assert set(WHOLE_ORGANS) | set(PORTAL_HU) <= names
    assert len(names) > 50
    assert {segment.label for segment in portal.segmentation.segments} == {
        ORGANS.index(name) + 1 for name in names
    }


@pytest.mark.parametrize(("organ", "low", "high"), [(name, *bounds) for name, bounds in PORTAL_HU.items()])
def test_organs_have_the_density_of_a_portal_venous_scan(
    portal: Phantom, organ: str, low: float, high: float
) -> None:
    median = np.median(portal.volume.voxels_kji[portal.segmentation.mask(organ)])
    assert low < median < high


def test_organs_are_as_large_as_in_people(portal: Phantom) -> None:
    assert 700 < organ_ml(portal, "liver") < 2200
    assert 60 < organ_ml(portal, "spleen") < 400
    assert 80 < organ_ml(portal, "kidney_left") < 260
    assert 700 < organ_ml(portal, "lung_right") < 3500
    assert 250 < organ_ml(portal, "heart") < 1000


def test_arterial_blood_is_brighter_than_venous_and_without_contrast_they_are_alike() -> None:
    def blood(phase: str) -> tuple[float, float]:
        scan = phantom_ct(seed=2, phase=phase, noise_hu=0, **COARSE)
        hu = scan.volume.voxels_kji
        return tuple(float(np.median(hu[scan.segmentation.mask(n)])) for n in ("aorta", "inferior_vena_cava"))  # type: ignore[return-value]

    artery, vein = blood("arterial")
    assert artery > vein + 100
    artery, vein = blood("non-contrast")
    assert abs(artery - vein) < 12


@pytest.mark.parametrize("seed", range(3))
def test_organs_end_within_the_default_field_of_view(seed: int) -> None:
    scan = coarse(seed)
    ends = scan.segmentation.labels_kji[[0, -1]]
    touching = {name for name in WHOLE_ORGANS if (ends == ORGANS.index(name) + 1).any()}
    assert not touching


def test_organs_lie_inside_the_skin(portal: Phantom) -> None:
    solid = ndimage.binary_opening(portal.volume.voxels_kji > -400, iterations=2)
    parts, _ = ndimage.label(solid)
    body = parts == np.bincount(parts[parts > 0]).argmax()
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in body])
    outside = ~ndimage.binary_dilation(filled, iterations=2)
    assert not portal.segmentation.labels_kji[outside].any()


def test_neighbours_touch_in_places(portal: Phantom) -> None:
    around = ndimage.binary_dilation(portal.segmentation.mask("liver"))
    near = set(np.unique(portal.segmentation.labels_kji[around])) - {0, ORGANS.index("liver") + 1}
    assert len(near) >= 3


def test_borders_are_blurred_by_partial_volume() -> None:
    scan = coarse(0)
    lung = scan.segmentation.mask("lung_right")
    liver = scan.segmentation.mask("liver")
    border = ndimage.binary_dilation(lung) & ndimage.binary_dilation(liver)
    mixed = scan.volume.voxels_kji[border]
    assert ((mixed > -600) & (mixed < -100)).mean() > 0.2


def test_noise_has_the_strength_asked_for_and_a_grain() -> None:
    grid = {"shape_kji": (4, 200, 240), "spacing_kji_mm": (4.0, 0.8, 0.8)}
    scans = [phantom_ct(seed=1, noise_hu=noise, **grid).volume.voxels_kji for noise in (0.0, 20.0)]
    noise = (scans[1].astype(float) - scans[0])[:, 70:130, 80:160]
    assert 15 < noise.std() < 22
    assert np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1] > 0.2


def test_turning_the_voxel_order_gives_the_same_voxels() -> None:
    ras, lps = tiny(5), tiny(5, "LPS")
    np.testing.assert_array_equal(lps.volume.voxels_kji, ras.volume.voxels_kji[:, ::-1, ::-1])
    np.testing.assert_array_equal(lps.segmentation.labels_kji, ras.segmentation.labels_kji[:, ::-1, ::-1])
    (k, j, i), (dk, dj, di) = TINY["shape_kji"], TINY["spacing_kji_mm"]
    # in ASR the voxel axes i, j, k run along anterior, superior, right
    asr = phantom_ct(seed=5, orientation="ASR", shape_kji=(i, k, j), spacing_kji_mm=(di, dk, dj))
    np.testing.assert_array_equal(asr.volume.voxels_kji.transpose(1, 2, 0), ras.volume.voxels_kji)


@pytest.mark.parametrize("code", ["RAS", "LPS", "ASR", "PIR", "SLA"])
def test_the_affine_says_where_voxels_are(code: str) -> None:
    letters = {
        "R": (1, 0, 0),
        "L": (-1, 0, 0),
        "A": (0, 1, 0),
        "P": (0, -1, 0),
        "S": (0, 0, 1),
        "I": (0, 0, -1),
    }
    scan = tiny(5, code)
    assert scan.volume.spacing_kji_mm == pytest.approx(TINY["spacing_kji_mm"])
    directions = scan.volume.ijk_to_ras[:3, :3] / np.linalg.norm(scan.volume.ijk_to_ras[:3, :3], axis=0)
    np.testing.assert_allclose(directions.T, [letters[letter] for letter in code], atol=1e-9)
    liver, heart, spleen = (positions_of(scan, n).mean(axis=0) for n in ("liver", "heart", "lung_left"))
    assert liver[0] > spleen[0]
    assert heart[2] > liver[2]


def test_an_oblique_scan_shows_the_same_person() -> None:
    angle = np.deg2rad(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    upright, oblique = coarse(1), phantom_ct(seed=1, direction=turn, **COARSE)
    assert np.abs(oblique.volume.ijk_to_ras[2, 1]) > 1
    for organ in ("liver", "heart", "lung_right"):
        found = labels_at(upright, positions_of(oblique, organ))
        assert (found == ORGANS.index(organ) + 1).mean() > 0.88
        assert organ_ml(oblique, organ) == pytest.approx(organ_ml(upright, organ), rel=0.04)


def test_volumes_in_millilitres_do_not_depend_on_the_voxel_size(portal: Phantom) -> None:
    for organ in ("liver", "lung_right", "lung_left", "heart"):
        assert organ_ml(coarse(0), organ) == pytest.approx(organ_ml(portal, organ), rel=0.04)
    for organ in ("spleen", "kidney_left", "kidney_right"):
        assert organ_ml(coarse(0), organ) == pytest.approx(organ_ml(portal, organ), rel=0.1)


def test_scanning_in_thin_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny(7)
    monkeypatch.setattr(scanner, "_BLOCK_VOXELS", 1)
    blocks = phantom_ct(seed=7, **TINY)
    assert (whole.segmentation.labels_kji == blocks.segmentation.labels_kji).mean() > 0.9999
    difference = np.abs(whole.volume.voxels_kji.astype(int) - blocks.volume.voxels_kji)
    assert np.percentile(difference, 99.9) <= 1


def test_lesions_are_darker_spots_in_the_liver() -> None:
    scan = phantom_ct(seed=3, lesions=4, phase="portal", noise_hu=0, **COARSE)
    lesion, liver = scan.segmentation.mask("liver_lesion"), scan.segmentation.mask("liver")
    hu = scan.volume.voxels_kji
    assert lesion.sum() > 10
    assert np.median(hu[lesion]) < np.median(hu[liver]) - 15
    assert (ndimage.binary_dilation(lesion) & liver).any()
    assert "liver_lesion" not in coarse(0).segmentation.names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"shape_kji": (1, 20, 20)}, "at least 2 voxels"),
        ({"shape_kji": (20, 20)}, "three sizes"),
        ({"spacing_kji_mm": (4.0, 0.0, 3.0)}, "0 to 100 mm"),
        ({"orientation": "RRS"}, "RRS"),
        ({"orientation": "XYZ"}, "such as LPS"),
        ({"orientation": "RA"}, "such as LPS"),
        ({"direction": np.diag([1, 1, -1])}, "rotation"),
        ({"direction": np.ones((3, 3))}, "rotation"),
        ({"noise_hu": -1.0}, "-1"),
        ({"seed": -1}, "negative"),
        ({"lesions": -2}, "negative"),
        ({"phase": "nephrographic"}, "nephrographic"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        phantom_ct(**arguments)  # type: ignore[arg-type]

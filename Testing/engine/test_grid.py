"""The prepared grid: against a slow reference in world coordinates, and there and back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from medssl.datasets.grid import PreparedGrid, body_box, prepare_image, scan_id, storable
from medssl.datasets.input_contract import InputContract
from medssl.errors import Cancelled, InputError
from medssl.volume import Volume
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

RNG = np.random.default_rng(3)
ORIENTATIONS = ["RAS", "LPS", "PIR", "SLA", "ILP"]
LETTERS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def volume_of(
    voxels: NDArray[np.generic],
    spacing_kji: tuple[float, float, float] = (1.0, 1.0, 1.0),
    orientation: str = "RAS",
    turn_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, letter in enumerate(orientation):
        row, sign = LETTERS[letter]
        affine[row, axis] = sign * spacing_kji[2 - axis]
    affine[:3, :3] = Rotation.from_euler("xyz", turn_degrees, degrees=True).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = (12.0, -7.0, 30.0)
    return Volume(voxels, affine, "test.nii.gz")


def smooth_voxels(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    k, j, i = np.indices(shape)
    return (100 * np.sin(k / 3) + 80 * np.cos(j / 4) + 3.0 * i).astype(np.float32)


def in_source_voxels(grid: PreparedGrid) -> NDArray[np.float64]:
    """(3, n) source k, j, i of every prepared voxel, through the world."""
    k, j, i = (index.ravel() for index in np.indices(grid.shape_kji))
    world = grid.ijk_to_ras @ np.stack([i, j, k, np.ones_like(i)])
    return np.linalg.solve(grid.source_ijk_to_ras, world)[2::-1]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("spacing", [(None, None, None), (1.0, 0.8, 1.1), (None, 0.9, None)])
def test_a_finer_grid_is_linear_interpolation_at_the_same_place_in_the_world(
    orientation: str, spacing: tuple[float | None, ...]
) -> None:
    volume = volume_of(smooth_voxels((9, 11, 13)), (2.0, 1.5, 1.2), orientation, (8, -11, 5))
    grid = PreparedGrid.of(volume, InputContract(spacing_kji_mm=spacing))
    expected = map_coordinates(
        volume.voxels_kji.astype(np.float64), in_source_voxels(grid), order=1, mode="nearest"
    )
    np.testing.assert_allclose(grid.image(volume.voxels_kji).ravel(), expected, atol=1e-3)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("spacing", [(0.9, 4.1, 1.7), (3.3, 2.6, 2.9)])
def test_labels_take_the_nearest_source_voxel(orientation: str, spacing: tuple[float, ...]) -> None:
    volume = volume_of(smooth_voxels((9, 11, 13)), (2.0, 1.5, 1.2), orientation, (8, -11, 5))
    labels = RNG.integers(0, 9, volume.shape_kji).astype(np.uint8)
    grid = PreparedGrid.of(volume, InputContract(spacing_kji_mm=spacing))
    at = in_source_voxels(grid)
    nearest = [np.clip(np.rint(a), 0, n - 1).astype(int) for a, n in zip(at, volume.shape_kji, strict=True)]
    clear = (np.abs(at - np.floor(at) - 0.5) > 1e-6).all(axis=0)
    np.testing.assert_array_equal(grid.labels(labels).ravel()[clear], labels[tuple(nearest)][clear])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_prepared_axes_point_to_superior_anterior_right(orientation: str) -> None:
    volume = volume_of(smooth_voxels((5, 6, 7)), (3.0, 2.0, 1.0), orientation, (10, 10, -10))
    grid = PreparedGrid.of(volume, InputContract(spacing_kji_mm=(None, 1.3, None)))
    directions = grid.ijk_to_ras[:3, :3] / np.linalg.norm(grid.ijk_to_ras[:3, :3], axis=0)
    assert (np.diag(directions) > 0.9).all()
    np.testing.assert_allclose(np.linalg.norm(grid.ijk_to_ras[:3, :3], axis=0)[::-1], grid.spacing_kji_mm)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation_and_crop_alone_are_exact_both_ways(orientation: str) -> None:
    voxels = RNG.integers(-900, 900, (8, 9, 10)).astype(np.int16)
    volume = volume_of(voxels, (2.5, 0.7, 0.9), orientation, (3, -20, 14))
    box = ((1, 7), (2, 8), (3, 7))
    grid = PreparedGrid.of(volume, InputContract(), box)
    kept = np.zeros(voxels.shape, bool)
    grid.canonical(kept)[...] = True
    assert kept.sum() == np.prod(grid.shape_kji) == 6 * 6 * 4
    np.testing.assert_array_equal(grid.to_native(grid.image(voxels), -5), np.where(kept, voxels, -5))
    np.testing.assert_array_equal(grid.labels_to_native(grid.labels(voxels), -5), np.where(kept, voxels, -5))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("spacing", [(4.0, 2.0, 3.0), (1.0, 3.1, 0.6)])
def test_probabilities_come_back_linearly_between_the_prepared_voxels(
    orientation: str, spacing: tuple[float, ...]
) -> None:
    volume = volume_of(smooth_voxels((9, 11, 13)), (2.0, 1.5, 1.2), orientation, (8, -11, 5))
    grid = PreparedGrid.of(volume, InputContract(spacing_kji_mm=spacing))
    k, j, i = np.indices(grid.shape_kji)
    ramp = (2.0 * k - 3.0 * j + 0.5 * i).astype(np.float32)
    back = grid.to_native(np.stack([ramp, -ramp]))
    assert back.shape == (2, *volume.shape_kji)
    np.testing.assert_allclose(back[0], -back[1], atol=1e-4)
    # A ramp is reproduced wherever the source voxel lies two prepared voxels or more inside.
    source = np.stack([*np.indices(volume.shape_kji)[::-1], np.ones(volume.shape_kji)]).reshape(4, -1)
    at = np.linalg.solve(grid.ijk_to_ras, grid.source_ijk_to_ras @ source)[2::-1]
    reach = [2 * max(1.0, s / p) for s, p in zip((2.0, 1.5, 1.2), grid.spacing_kji_mm, strict=True)]
    inside = np.ones(at.shape[1], bool)
    for axis, margin in enumerate([max(reach)] * 3):
        inside &= (at[axis] >= margin) & (at[axis] <= grid.shape_kji[axis] - 1 - margin)
    expected = 2.0 * at[0] - 3.0 * at[1] + 0.5 * at[2]
    np.testing.assert_allclose(back[0].ravel()[inside], expected[inside], atol=1e-3)


def test_probabilities_stay_between_0_and_1_and_add_up_to_1() -> None:
    volume = volume_of(smooth_voxels((9, 11, 13)), (2.0, 1.5, 1.2), "LPS")
    grid = PreparedGrid.of(volume, InputContract(spacing_kji_mm=(3.0, 1.0, 2.0)))
    weights = RNG.random((4, *grid.shape_kji))
    back = grid.to_native(weights / weights.sum(axis=0))
    assert back.min() >= 0
    np.testing.assert_allclose(back.sum(axis=0), 1.0, atol=1e-5)


def test_a_coarser_grid_averages_so_noise_shrinks_and_a_constant_stays() -> None:
    noise = RNG.normal(0, 100, (24, 24, 24)).astype(np.float32)
    volume = volume_of(noise)
    grid = PreparedGrid.of(volume, InputContract(spacing_kji_mm=(4.0, 4.0, 4.0)))
    assert grid.shape_kji == (6, 6, 6)
    assert grid.image(noise).std() < 25
    np.testing.assert_allclose(grid.image(np.full_like(noise, 7.0)), 7.0, rtol=1e-6)


def test_the_prepared_voxels_cover_the_source_and_have_the_same_middle() -> None:
    volume = volume_of(smooth_voxels((7, 5, 6)), (1.0, 1.0, 1.0))
    grid = PreparedGrid.of(volume, InputContract(spacing_kji_mm=(3.0, 2.0, 100.0)))
    assert grid.shape_kji == (3, 3, 1)
    at = in_source_voxels(grid)
    np.testing.assert_allclose(at.mean(axis=1), [3.0, 2.0, 2.5], atol=1e-9)


def test_a_spacing_that_differs_by_rounding_is_copied() -> None:
    voxels = RNG.integers(0, 99, (4, 5, 6)).astype(np.int16)
    volume = volume_of(voxels, (2.5, 0.9765625, 0.9765625))
    image, grid = prepare_image(volume, InputContract(spacing_kji_mm=(2.5, 0.976562, 0.976562)))
    np.testing.assert_array_equal(image, voxels)
    assert grid.spacing_kji_mm == (2.5, 0.9765625, 0.9765625)


def test_a_kept_slice_survives_a_coarser_grid() -> None:
    volume = volume_of(smooth_voxels((20, 6, 6)), (1.0, 1.0, 1.0), "RAI")
    grid = PreparedGrid.of(volume, InputContract(spacing_kji_mm=(4.0, None, None)))
    for index in range(20):
        labels = np.full(volume.shape_kji, 255, np.uint8)
        labels[index] = 1
        prepared = grid.labels(labels, {0: [index]})
        (found,) = np.flatnonzero((prepared == 1).all(axis=(1, 2)))
        assert found == grid.prepared_slice(0, index)


def test_slices_that_show_something_are_found_on_the_prepared_axis() -> None:
    volume = volume_of(smooth_voxels((10, 6, 6)), (2.0, 1.0, 1.0), "RAI")
    shown = np.zeros(10, bool)
    shown[2:4] = True  # from the top: canonical 6 and 7 of 10
    same = PreparedGrid.of(volume, InputContract(), ((1, 10), (0, 6), (0, 6)))
    assert np.flatnonzero(same.slices(0, shown)).tolist() == [5, 6]
    coarse = PreparedGrid.of(volume, InputContract(spacing_kji_mm=(4.0, None, None)))
    assert np.flatnonzero(coarse.slices(0, shown)).tolist() == [3]
    fine = PreparedGrid.of(volume, InputContract(spacing_kji_mm=(1.0, None, None)))
    assert np.flatnonzero(fine.slices(0, shown)).tolist() == [12, 13, 14, 15]
    assert not same.slices(0, np.zeros(10, bool)).any()


def test_a_grid_survives_json() -> None:
    volume = volume_of(smooth_voxels((9, 11, 13)), (2.0, 1.5, 1.2), "LPS", (8, -11, 5))
    grid = PreparedGrid.of(volume, InputContract(spacing_kji_mm=(3.0, 1.0, 2.0)), ((1, 8), (0, 11), (2, 9)))
    again = PreparedGrid.from_json(grid.to_json())
    np.testing.assert_array_equal(grid.image(volume.voxels_kji), again.image(volume.voxels_kji))
    np.testing.assert_array_equal(grid.ijk_to_ras, again.ijk_to_ras)
    assert again.box == grid.box


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_body_is_found_whichever_way_the_axes_run(orientation: str) -> None:
    canonical = np.full((40, 50, 60), -1000, np.int16)
    canonical[5:35, 20:40, 25:45] = 40
    canonical[:, 2:4, 5:50] = -200  # a table, smaller than the body
    canonical[15:25, 25:35, 30:40] = -900  # lungs
    order = {"R": 2, "L": 2, "A": 1, "P": 1, "S": 0, "I": 0}
    stored = canonical.transpose([order[letter] for letter in reversed(orientation)])
    flips = tuple(slice(None, None, -1 if letter in "LPI" else 1) for letter in reversed(orientation))
    spacing = tuple(
        {"R": 4.0, "L": 4.0, "A": 3.0, "P": 3.0, "S": 5.0, "I": 5.0}[c] for c in reversed(orientation)
    )
    volume = volume_of(stored[flips], spacing, orientation)  # type: ignore[arg-type]
    assert body_box(volume) == ((2, 38), (15, 45), (21, 49))
    image, grid = prepare_image(volume, InputContract())
    np.testing.assert_array_equal(image, canonical[2:38, 15:45, 21:49])
    assert grid.to_native(image).shape == volume.shape_kji


def test_a_body_in_two_pieces_is_kept_whole() -> None:
    legs = np.full((20, 40, 80), -1000, np.int16)
    legs[:, 12:28, 10:26] = 40
    legs[:, 14:26, 50:64] = 40
    volume = volume_of(legs, (4.0, 4.0, 4.0))
    assert body_box(volume) == ((0, 20), (8, 32), (6, 68))


def test_what_is_no_ct_is_not_cropped() -> None:
    magnetic = np.zeros((6, 30, 30), np.float32)
    magnetic[:, 10:20, 10:20] = RNG.random((6, 10, 10))
    volume = volume_of(magnetic)
    assert body_box(volume) is None
    image, _ = prepare_image(volume, InputContract())
    assert image.shape == magnetic.shape
    assert image.max() == 30000
    np.testing.assert_array_equal(image == 0, np.rint(magnetic * storable(volume)) == 0)


def test_a_ct_keeps_its_hounsfield_units_when_they_have_fractions() -> None:
    voxels = RNG.uniform(-1000, 1000, (5, 6, 7)).astype(np.float32)
    volume = volume_of(voxels)
    assert storable(volume) == 1.0
    image, grid = prepare_image(volume, InputContract())
    np.testing.assert_array_equal(image, np.rint(grid.canonical(voxels)))


def test_the_same_scan_has_the_same_id_whichever_way_it_is_stored() -> None:
    voxels = RNG.integers(-900, 900, (5, 6, 7)).astype(np.int16)
    ids = {scan_id(volume_of(voxels, (3.0, 2.0, 1.0), "RAS"))}
    ids.add(scan_id(volume_of(voxels[:, ::-1, ::-1], (3.0, 2.0, 1.00001), "LPS")))
    ids.add(scan_id(volume_of(voxels.astype(np.float32), (3.0, 2.0, 1.0), "RAS", (1, 0, 2))))
    ids.add(scan_id(volume_of(voxels.transpose(2, 1, 0), (1.0, 2.0, 3.0), "SAR")))
    assert len(ids) == 1
    assert scan_id(volume_of(voxels, (3.0, 2.0, 1.1))) not in ids
    assert scan_id(volume_of(voxels + np.int16(1), (3.0, 2.0, 1.0))) not in ids


def test_a_box_outside_the_volume_is_refused() -> None:
    volume = volume_of(smooth_voxels((5, 6, 7)))
    with pytest.raises(InputError, match="does not lie in"):
        PreparedGrid.of(volume, InputContract(), ((0, 6), (0, 6), (0, 7)))


def test_preparing_can_be_cancelled_between_slices() -> None:
    answers = itertools.chain([False, False], itertools.repeat(True))
    volume = volume_of(smooth_voxels((9, 6, 7)))
    with pytest.raises(Cancelled):
        prepare_image(volume, InputContract(spacing_kji_mm=(2.0, 2.0, 2.0)), lambda: next(answers))

"""Volumes: what is accepted, where they lie, how they are cut into slices and windowed, and their files."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import SimpleITK
from medssl.errors import InputError, StorageError
from medssl.phantom import demo_case
from medssl.volume import (
    VIEWS,
    WINDOWS,
    View,
    Volume,
    Window,
    as_stack,
    from_stack,
    looks_like_ct,
    put_slice,
    read_volume,
    shift_problem,
    take_slice,
    write_volume,
)
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation


def grid(
    spacing_ijk: tuple[float, float, float] = (0.7, 0.9, 2.5),
    euler_deg: tuple[float, float, float] = (0, 0, 0),
    order: tuple[int, int, int] = (0, 1, 2),
    signs: tuple[int, int, int] = (1, 1, 1),
) -> NDArray[np.float64]:
    """A right-angled grid: axes i, j, k point along world axes `order` with `signs`, then all is turned."""
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", euler_deg, degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.eye(3)[:, list(order)] @ np.diag(np.multiply(signs, spacing_ijk))
    affine[:3, 3] = (-120.5, 33.25, 801.0)
    return affine


def ct(shape: tuple[int, ...] = (4, 5, 6)) -> NDArray[np.int16]:
    return np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)


GRIDS = {
    "upright": grid(),
    "oblique": grid(euler_deg=(20, -35, 10)),
    "left-handed": grid(signs=(-1, 1, 1)),
    "left-handed oblique": grid(euler_deg=(20, -35, 10), signs=(1, -1, 1)),
    "sagittal": grid(order=(1, 2, 0), signs=(-1, 1, 1)),
}


def test_a_volume_knows_its_shape_spacing_and_name() -> None:
    volume = Volume(ct(), grid(euler_deg=(20, -35, 10)), "ct.nii.gz")
    assert volume.shape_kji == (4, 5, 6)
    np.testing.assert_allclose(volume.spacing_kji_mm, (2.5, 0.9, 0.7))
    assert [volume.step_mm(axis) for axis in range(3)] == pytest.approx([2.5, 0.9, 0.7])
    assert volume.slice_spacing_mm(0) == pytest.approx((0.9, 0.7))
    assert volume.slice_spacing_mm(1) == pytest.approx((2.5, 0.7))
    assert volume.slice_spacing_mm(2) == pytest.approx((2.5, 0.9))


def test_a_volume_is_read_only_and_shares_the_voxels_it_was_given() -> None:
    voxels = ct()
    volume = Volume(voxels, grid())
    assert np.shares_memory(volume.voxels_kji, voxels)
    with pytest.raises(ValueError, match="read-only"):
        volume.voxels_kji[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        volume.ijk_to_ras[0, 0] = 1
    voxels[0, 0, 0] = 7  # the caller's own array stays writable


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("int16", "int16"),
        ("uint8", "int16"),
        ("int64", "int16"),
        ("float32", "float32"),
        ("float64", "float32"),
    ],
)
def test_whole_numbers_become_int16_and_the_rest_float32(given: str, kept: str) -> None:
    volume = Volume(np.arange(24).reshape(2, 3, 4).astype(given), grid())
    assert volume.voxels_kji.dtype == kept
    np.testing.assert_array_equal(volume.voxels_kji.ravel(), np.arange(24))


def test_whole_numbers_beyond_int16_become_float32() -> None:
    assert (
        Volume(np.arange(24, dtype=np.uint16).reshape(2, 3, 4) + 40000, grid()).voxels_kji.dtype == np.float32
    )


def with_value(value: float) -> NDArray[np.float32]:
    voxels = ct().astype(np.float32)
    voxels[1, 2, 3] = value
    return voxels


def sheared(cosine: float) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[0, 1] = cosine
    return affine


@pytest.mark.parametrize(
    ("voxels", "affine", "message"),
    [
        (ct((2, 4, 5, 6)), grid(), r"scan\.nii has 4 dimensions \(shape \(2, 4, 5, 6\)\), not 3; give one"),
        (ct((5, 6)), grid(), r"scan\.nii has 2 dimensions"),
        (ct((0, 5, 6)), grid(), r"scan\.nii has no voxels"),
        (ct().astype(complex), grid(), r"scan\.nii holds values of type complex128"),
        (with_value(np.nan), grid(), r"scan\.nii holds NaN or infinity in 1 of 120 voxels; replace"),
        (with_value(np.inf), grid(), r"scan\.nii holds NaN or infinity in 1 of 120 voxels; replace"),
        (with_value(-np.inf), grid(), r"scan\.nii holds NaN or infinity in 1 of 120 voxels; replace"),
        (np.full((4, 5, 6), -1024), grid(), r"scan\.nii is constant \(every voxel is -1024\)"),
        (ct(), sheared(0.1), r"scan\.nii lies on a sheared grid \(axes 5\.7 degrees off a right angle"),
        (ct(), sheared(0.002), r"scan\.nii lies on a sheared grid"),
        (ct(), np.diag([1.0, 1.0, 0.0, 1.0]), r"scan\.nii has a voxel spacing of 0 mm \(i, j, k: 1, 1, 0\)"),
        (ct(), np.diag([1.0, 1.0, np.nan, 1.0]), r"scan\.nii has no valid place in space"),
        (ct(), np.eye(3), r"scan\.nii has no valid place in space"),
        (ct(), np.diag([1.0, 1.0, 1.0, 2.0]), r"scan\.nii has no valid place in space"),
        (ct(), grid()[:, [0, 0, 2, 3]], r"scan\.nii lies on a sheared grid \(axes 90 degrees off"),
    ],
)
def test_what_is_no_volume_is_refused_in_one_sentence(
    voxels: NDArray[Any], affine: NDArray[np.float64], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Volume(voxels, affine, "scan.nii")
    assert re.fullmatch(r"[^\n]+\.", str(caught.value))


def test_rounding_in_a_header_is_not_shear() -> None:
    Volume(ct(), sheared(0.0005))
    Volume(ct(), grid(euler_deg=(20, -35, 10)).astype(np.float32).round(4))


def test_one_slice_is_a_volume_but_no_stack() -> None:
    volume = Volume(ct((1, 5, 6)), grid(), "slice.nii")
    volume.require_stack(1)
    with pytest.raises(InputError, match=r"slice\.nii has only one axial slice, but at least 2 are needed"):
        volume.require_stack(0)


def test_the_content_hash_follows_content_and_nothing_else() -> None:
    volume = Volume(ct(), grid(), "a")
    assert volume.content_hash == Volume(ct().copy(), grid(), "b").content_hash
    assert volume.content_hash == Volume(np.asfortranarray(ct()), grid(), "c").content_hash
    other = ct()
    other[3, 4, 5] += 1
    others = [
        Volume(other, grid()),
        Volume(ct(), grid(spacing_ijk=(0.7, 0.9, 2.50001))),
        Volume(ct().reshape(5, 4, 6), grid()),
        Volume(ct().astype(np.float32), grid()),
    ]
    assert len({volume.content_hash, *(o.content_hash for o in others)}) == 5


def test_the_sign_of_zero_does_not_change_the_content_hash() -> None:
    assert (
        Volume(ct(), np.eye(4)).content_hash == Volume(ct(), np.where(np.eye(4) == 0, -0.0, 1.0)).content_hash
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, -1)])
@pytest.mark.parametrize("euler_deg", [(0, 0, 0), (20, -20, 15)])
def test_views_find_their_axis_on_any_grid(
    order: tuple[int, int, int], signs: tuple[int, int, int], euler_deg: tuple[int, int, int]
) -> None:
    volume = Volume(ct(), grid(order=order, signs=signs, euler_deg=euler_deg))
    world_axis = {"sagittal": 0, "coronal": 1, "axial": 2}
    for view in VIEWS:
        ijk_axis = order.index(world_axis[view])
        assert volume.axis_of(view) == 2 - ijk_axis
        assert volume.view_of(2 - ijk_axis) == view


def test_no_two_views_share_an_axis_however_oblique_the_grid() -> None:
    turns = Rotation.random(200, rng=np.random.default_rng(0)).as_euler("xyz", degrees=True)
    for turn in [*turns, (45, 0, 0), (45, 45, 0), (45, 35.264389, 45)]:
        volume = Volume(ct(), grid(euler_deg=tuple(turn)))
        assert sorted(volume.axis_of(view) for view in VIEWS) == [0, 1, 2]


def test_a_grid_turned_by_45_degrees_keeps_the_plain_order() -> None:
    for degrees in (45 - 1e-9, 45, 45 + 1e-9):
        volume = Volume(ct(), grid(euler_deg=(degrees, 0, 0)))
        assert [volume.axis_of(view) for view in VIEWS] == [0, 1, 2]


def test_unknown_views_and_axes_are_refused() -> None:
    volume = Volume(ct(), grid())
    assert get_args(View) == VIEWS
    with pytest.raises(InputError, match="no view 'top'; choose axial, coronal or sagittal"):
        volume.axis_of("top")  # type: ignore[arg-type]
    for call in (volume.view_of, volume.step_mm, volume.slice_spacing_mm, volume.require_stack):
        with pytest.raises(InputError, match="0, 1 or 2"):
            call(3)
    with pytest.raises(InputError, match="0, 1 or 2"):
        as_stack(ct(), -1)


def test_slices_have_the_two_other_axes_as_rows_and_columns() -> None:
    array = ct()
    np.testing.assert_array_equal(take_slice(array, 0, 3), array[3, :, :])
    np.testing.assert_array_equal(take_slice(array, 1, 4), array[:, 4, :])
    np.testing.assert_array_equal(take_slice(array, 2, 5), array[:, :, 5])
    assert np.shares_memory(take_slice(array, 2, 5), array)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_put_slice_undoes_take_slice(axis: int) -> None:
    source, target = ct(), np.zeros_like(ct())
    for index in range(source.shape[axis]):
        put_slice(target, axis, index, take_slice(source, axis, index))
    np.testing.assert_array_equal(target, source)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_from_stack_undoes_as_stack_without_a_copy(axis: int) -> None:
    array = ct()
    stack = as_stack(array, axis)
    assert len(stack) == array.shape[axis]
    np.testing.assert_array_equal(stack[1], take_slice(array, axis, 1))
    np.testing.assert_array_equal(from_stack(stack, axis), array)
    assert np.shares_memory(from_stack(stack, axis), array)


def test_slices_that_do_not_exist_or_do_not_fit_are_refused() -> None:
    for index in (-1, 4):
        with pytest.raises(InputError, match=f"Slice {index} does not exist; axis 0 runs from 0 to 3"):
            take_slice(ct(), 0, index)
    with pytest.raises(InputError, match=r"has shape \(5, 6\), not \(6, 5\)"):
        put_slice(ct(), 0, 0, take_slice(ct(), 0, 0).T)


def test_a_window_maps_its_range_to_zero_to_one() -> None:
    window = Window(level=40, width=400)
    mapped = window.apply(np.array([-2000, -160, -60, 40, 240, 3000], np.int16))
    assert mapped.dtype == np.float32
    np.testing.assert_allclose(mapped, [0, 0, 0.25, 0.5, 1, 1], atol=1e-6)
    np.testing.assert_array_equal(window.to_uint8(np.array([-160, -60, 40, 240])), [0, 64, 128, 255])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
def test_a_window_works_on_every_type(dtype: str) -> None:
    np.testing.assert_allclose(Window(50, 100).apply(np.array([[0, 25, 100]], dtype)), [[0, 0.25, 1]])


@pytest.mark.parametrize(("level", "width"), [(40, 0), (40, -1), (np.nan, 400), (40, np.inf)])
def test_a_window_without_width_is_refused(level: float, width: float) -> None:
    with pytest.raises(InputError, match="a finite level and a width above 0"):
        Window(level, width)


def test_a_ct_gets_the_soft_tissue_window() -> None:
    assert Window.auto(Volume(ct((20, 30, 30)), grid())) == WINDOWS["soft-tissue"]


def test_a_ct_stored_1024_too_high_is_told_from_a_ct_and_from_other_images() -> None:
    scan = demo_case().volume.voxels_kji
    rng = np.random.default_rng(0)
    body = rng.normal(900.0, 400.0, scan.shape).clip(0).astype(np.int16)
    assert "1024 too high" in shift_problem(Volume(np.maximum(scan + np.int16(1024), 0), grid()))
    for other in (scan, np.where(scan > -300, body, 0), rng.gamma(2.0, 100.0, scan.shape)):
        assert shift_problem(Volume(other.astype(np.int16), grid())) == ""


def test_another_modality_gets_its_percentiles() -> None:
    voxels = np.random.default_rng(0).gamma(2.0, 100.0, (20, 40, 40)).astype(np.float32)
    voxels[3, 4, 5] = 1e9
    low, high = np.percentile(voxels, (0.5, 99.5))
    window = Window.auto(Volume(voxels, grid()))
    assert (window.level - window.width / 2, window.level + window.width / 2) == pytest.approx(
        (low, high), rel=1e-4
    )


def test_a_sparse_image_gets_its_full_range() -> None:
    voxels = np.zeros((20, 40, 40), np.uint8)
    voxels[3, 4, 5] = 200
    assert Window.auto(Volume(voxels, grid())) == Window(100, 200)


def test_the_automatic_window_of_a_large_volume_costs_little_memory() -> None:
    volume = Volume(np.tile(ct((10, 400, 400)), (10, 1, 1)), grid())
    tracemalloc.start()
    Window.auto(volume)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < volume.voxels_kji.nbytes


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nii", "ct.nrrd", "ct.mha", "CT.NII.GZ"])
@pytest.mark.parametrize("which", GRIDS)
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_a_written_volume_is_read_back_the_same(name: str, which: str, dtype: str, tmp_path: Path) -> None:
    volume = Volume(ct().astype(dtype), GRIDS[which])
    write_volume(volume, tmp_path / name)
    back = read_volume(tmp_path / name)
    assert back.voxels_kji.dtype == dtype
    assert back.name == name
    np.testing.assert_array_equal(back.voxels_kji, volume.voxels_kji)
    np.testing.assert_allclose(back.ijk_to_ras, volume.ijk_to_ras, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nrrd", "ct.mha", "ct.nhdr", "ct.mhd"])
@pytest.mark.parametrize("which", GRIDS)
def test_files_of_other_programs_lie_where_those_say(name: str, which: str, tmp_path: Path) -> None:
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ GRIDS[which]
    image = SimpleITK.GetImageFromArray(ct())
    image.SetSpacing((0.7, 0.9, 2.5))
    image.SetDirection((lps[:3, :3] / (0.7, 0.9, 2.5)).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(tmp_path / name))
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.voxels_kji, ct())
    point_lps = image.TransformIndexToPhysicalPoint((5, 3, 2))
    np.testing.assert_allclose(
        (volume.ijk_to_ras @ (5, 3, 2, 1))[:3], np.multiply(point_lps, (-1, -1, 1)), atol=1e-4
    )


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_bad_files_are_refused_in_one_sentence_and_print_nothing(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / f"good_{name}", tmp_path / name
    write_volume(Volume(ct((20, 30, 30)), grid()), good)
    for content in (b"", b"hello\n", good.read_bytes()[: good.stat().st_size // 2]):
        bad.write_bytes(content)
        with pytest.raises(InputError, match=rf"^{re.escape(name)} (is|cannot be read as) [^\n]*\.$"):
            read_volume(bad)
    assert capfd.readouterr() == ("", "")


def test_volumes_in_files_are_checked_like_all_volumes(tmp_path: Path) -> None:
    nan = ct().astype(np.float32)
    nan[0, 0, 0] = np.nan
    for name in ("nan.nii.gz", "nan.nrrd", "nan.mha"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(nan), str(tmp_path / name))
        # ITK writes NaN into NIfTI as it is; only its reader would hide it.
        with pytest.raises(InputError, match=rf"^{name} holds NaN or infinity in 1 of 120 voxels"):
            read_volume(tmp_path / name)
    for name in ("4d.nii.gz", "4d.nrrd", "4d.mha"):
        SimpleITK.WriteImage(
            SimpleITK.GetImageFromArray(nan[None].repeat(2, 0), isVector=False), str(tmp_path / name)
        )
        with pytest.raises(InputError, match=rf"^{name} has 4 dimensions \(shape \(2, 4, 5, 6\)\)"):
            read_volume(tmp_path / name)
    for name in ("rgb.nii.gz", "rgb.nrrd"):
        SimpleITK.WriteImage(
            SimpleITK.GetImageFromArray(ct((4, 5, 6, 3)), isVector=True), str(tmp_path / name)
        )
        with pytest.raises(InputError, match=rf"^{name} has [45] dimensions"):
            read_volume(tmp_path / name)


def test_a_sheared_nrrd_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    write_volume(Volume(ct(), np.eye(4)), path)
    text = re.sub(
        rb"space directions: [^\n]*", b"space directions: (1,0,0) (0,1,0) (0.3,0,1)", path.read_bytes()
    )
    path.write_bytes(text)
    with pytest.raises(InputError, match=r"^a\.nrrd lies on a sheared grid \(axes 17 degrees off"):
        read_volume(path)


def test_paths_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "scan.png").write_bytes(b"png")
    (tmp_path / "ct.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"The file .*missing\.nii\.gz does not exist; check its name"):
        read_volume(tmp_path / "missing.nii.gz")
    with pytest.raises(
        InputError, match=r"scan\.png is not an image file that can be read; give one of \.nii"
    ):
        read_volume(tmp_path / "scan.png")
    with pytest.raises(InputError, match=r"is no DICOM folder, so no series 1\.2 can be taken from it"):
        read_volume(tmp_path / "ct.nii.gz", series="1.2")


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ct.nii.gz").write_bytes(b"")
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests may run as root, who may read everything
    with pytest.raises(InputError, match=r"ct\.nii\.gz may not be read; ask its owner"):
        read_volume(tmp_path / "ct.nii.gz")


def test_volumes_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    volume = Volume(ct(), grid())
    with pytest.raises(InputError, match=r"a\.mhd has no suffix that can be written; choose one of \.nii"):
        write_volume(volume, tmp_path / "a.mhd")
    for name in ("a.nii.gz", "a.nrrd", "a.mha"):
        with pytest.raises(StorageError, match=rf"{name} could not be written \("):
            write_volume(volume, tmp_path / "missing" / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha"])
def test_a_disk_that_fills_up_leaves_the_old_file(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource")
    (tmp_path / name).write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # larger files now fail as on a full disk
    try:
        with pytest.raises(StorageError, match=rf"{name} could not be written \(.*; \d+ MB are free there\)"):
            write_volume(Volume(ct((20, 30, 30)), grid()), tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / name).read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("darkest", "is_ct"),
    [(-1000, True), (-105, True), (-10, False), (0, False)],
    ids=["air", "fat", "", "MR"],
)
def test_a_part_of_a_body_without_air_is_a_ct_by_its_fat(darkest: int, is_ct: bool) -> None:
    voxels = np.random.default_rng(0).normal(60, 15, (12, 20, 20)).clip(-9, 200)
    voxels[:, :3] = darkest
    volume = Volume(voxels.astype(np.int16), np.eye(4), "cropped")
    assert looks_like_ct(volume) is is_ct
    assert (Window.auto(volume) == WINDOWS["soft-tissue"]) is is_ct

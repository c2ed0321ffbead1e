"""NIfTI files come in exactly, and go out so that other programs read the same."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from medssl.errors import InputError, NotEnoughMemory
from medssl.formats.nifti import read_nifti, write_nifti
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def oblique(left_handed: bool = False) -> NDArray[np.float64]:
    """An anisotropic grid that is turned about all three axes."""
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", (20, -35, 70), degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag([-0.7 if left_handed else 0.7, 0.9, 2.5])
    affine[:3, 3] = (-120.5, 33.25, 801.0)
    return affine


def grid_by_itk(path: Path) -> NDArray[np.float64]:
    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


def voxels(dtype: str = "int16") -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 100, (4, 5, 6)).astype(dtype)


def patched(path: Path, offset: int, form: str, *values: float) -> None:
    """Overwrite header fields of an uncompressed file."""
    raw = bytearray(path.read_bytes())
    struct.pack_into(form, raw, offset, *values)
    path.write_bytes(raw)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
def test_every_type_survives_a_round_trip(dtype: str, name: str, tmp_path: Path) -> None:
    write_nifti(tmp_path / name, voxels(dtype), oblique())
    back, affine = read_nifti(tmp_path / name)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, voxels(dtype))
    np.testing.assert_allclose(affine, oblique(), atol=1e-4)


@pytest.mark.parametrize("left_handed", [False, True])
def test_itk_reads_what_we_write(left_handed: bool, tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", voxels(), oblique(left_handed))
    image = SimpleITK.ReadImage(str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), voxels())
    np.testing.assert_allclose(grid_by_itk(tmp_path / "a.nii.gz"), oblique(left_handed), atol=1e-4)


@pytest.mark.parametrize("left_handed", [False, True])
def test_we_read_what_itk_writes(left_handed: bool, tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(voxels("float32"))
    lps = LPS @ oblique(left_handed)
    image.SetSpacing((0.7, 0.9, 2.5))
    image.SetDirection((lps[:3, :3] / (0.7, 0.9, 2.5)).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(tmp_path / "a.nii.gz"))
    back, affine = read_nifti(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(back, voxels("float32"))
    np.testing.assert_allclose(affine, oblique(left_handed), atol=1e-4)


@pytest.mark.parametrize("codes", [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (1, 2), (2, 2), (0, 2), (4, 3)])
def test_the_same_coordinate_form_counts_as_in_itk(codes: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, voxels(), oblique())
    patched(path, 252, "<hh", *codes)
    patched(path, 268, "<3f", 1.0, 2.0, 3.0)  # where the qform says the first voxel is
    np.testing.assert_allclose(read_nifti(path)[1], grid_by_itk(path), atol=1e-4)


@pytest.mark.parametrize("row", [(0.0, 0.0, 0.0), (1.0, 0.9, 0.4)])
def test_an_sform_that_is_no_grid_gives_way_to_the_qform_as_in_itk(
    row: tuple[float, ...], tmp_path: Path
) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, voxels(), oblique())
    patched(path, 280, "<3f", *row)
    np.testing.assert_allclose(read_nifti(path)[1], oblique(), atol=1e-4)
    np.testing.assert_allclose(grid_by_itk(path), oblique(), atol=1e-4)


def test_units_of_metres_and_microns_become_millimetres(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, voxels(), oblique())
    patched(path, 123, "<B", 1)
    np.testing.assert_allclose(read_nifti(path)[1][:3], oblique()[:3] * 1000, rtol=1e-5)
    patched(path, 123, "<B", 3)
    np.testing.assert_allclose(read_nifti(path)[1][:3], oblique()[:3] / 1000, rtol=1e-5)


def test_a_whole_number_scaling_keeps_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, voxels("uint16"), oblique())
    patched(path, 112, "<ff", 1.0, -1024.0)
    back, _ = read_nifti(path)
    assert back.dtype.kind == "i"
    np.testing.assert_array_equal(back, voxels("int32") - 1024)


@pytest.mark.parametrize(("slope", "inter"), [(0.5, 3.25), (2.0, 0.5), (-1.5, 0.0)])
def test_a_fractional_scaling_gives_what_itk_gives(slope: float, inter: float, tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, voxels(), oblique())
    patched(path, 112, "<ff", slope, inter)
    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    np.testing.assert_array_equal(read_nifti(path)[0], expected)


@pytest.mark.parametrize(("slope", "inter"), [(0.0, 5.0), (1.0, 0.0), (np.nan, 0.0)])
def test_a_scaling_that_says_nothing_changes_nothing(slope: float, inter: float, tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, voxels(), oblique())
    patched(path, 112, "<ff", slope, inter)
    np.testing.assert_array_equal(read_nifti(path)[0], voxels())


@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti_2_is_read_in_both_byte_orders(order: str, tmp_path: Path) -> None:
    header = bytearray(544)
    struct.pack_into(f"{order}i8s2h8q", header, 0, 540, b"n+2\0\r\n\x1a\n", 4, 16, 3, 6, 5, 4, 1, 1, 1, 1)
    struct.pack_into(f"{order}8d", header, 104, 1, 0.7, 0.9, 2.5, 0, 0, 0, 0)
    struct.pack_into(f"{order}q2d", header, 168, 544, 1.0, 0.0)
    struct.pack_into(f"{order}2i", header, 344, 0, 1)
    struct.pack_into(f"{order}12d", header, 400, *oblique()[:3].ravel())
    (tmp_path / "a.nii").write_bytes(bytes(header) + voxels().astype(f"{order}i2").tobytes())
    back, affine = read_nifti(tmp_path / "a.nii")
    np.testing.assert_array_equal(back, voxels())
    np.testing.assert_array_equal(affine, oblique())


def test_nan_is_not_turned_into_zero(tmp_path: Path) -> None:
    image = voxels("float32")
    image[1, 2, 3] = np.nan
    write_nifti(tmp_path / "a.nii.gz", image, oblique())
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii.gz")[0], image)


def test_axes_of_length_one_beyond_the_third_are_dropped(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(voxels("float32")[None], isVector=False)
    SimpleITK.WriteImage(image, str(tmp_path / "a.nii"))
    assert read_nifti(tmp_path / "a.nii")[0].shape == (4, 5, 6)


def test_gzip_is_recognised_by_content_not_by_name(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", voxels(), oblique())
    (tmp_path / "b.nii").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    np.testing.assert_array_equal(read_nifti(tmp_path / "b.nii")[0], voxels())


def test_equal_images_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, voxels(), oblique())
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_file_cut_short_anywhere_is_refused(name: str, part: float, tmp_path: Path) -> None:
    path = tmp_path / name
    write_nifti(path, np.random.default_rng(0).integers(0, 9999, (9, 30, 30)).astype(np.int16), oblique())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(InputError, match=rf"^{name} is damaged or cut short; copy or download it again\.$"):
        read_nifti(path)


def test_a_flipped_bit_inside_gzip_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(path, np.random.default_rng(0).integers(0, 9999, (9, 30, 30)).astype(np.int16), oblique())
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(InputError, match="damaged or cut short"):
        read_nifti(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello, I am a text file\n" * 40, gzip.compress(b"text " * 400)],
    ids=["empty", "text", "text in gzip"],
)
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"^a\.nii\.gz is not a NIfTI file"):
        read_nifti(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("offset", "form", "values", "message"),
    [
        (344, "<4s", (b"ni1\0",), "second file"),
        (70, "<h", (128,), "colours or complex numbers"),
        (42, "<3h", (6, 0, 4), "damaged: its header gives the image size"),
        (40, "<h", (9,), "damaged: its header gives the image size"),
        (108, "<f", (float("nan"),), "damaged: its voxels begin at byte nan"),
        (108, "<f", (float("inf"),), "damaged: its voxels begin at byte inf"),
        (108, "<f", (1e18,), "cut short"),
    ],
)
def test_headers_that_cannot_be_used_are_refused(
    offset: int, form: str, values: tuple[Any, ...], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, voxels(), oblique())
    patched(path, offset, form, *values)
    with pytest.raises(InputError, match=message):
        read_nifti(path)


def test_an_image_larger_than_memory_says_how_large(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, voxels(), oblique())
    patched(path, 40, "<7h", 6, 32767, 32767, 32767, 32767, 32767, 32767)
    with pytest.raises(NotEnoughMemory, match=r"needs 2\.48e\+18 GB of memory"):
        read_nifti(path)


def test_an_axis_too_long_for_the_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"at most 32767 voxels an axis"):
        write_nifti(tmp_path / "a.nii", np.zeros((1, 1, 40000), np.uint8), oblique())


def test_reading_needs_no_second_copy_of_the_voxels(tmp_path: Path) -> None:
    image = np.zeros((64, 512, 512), np.int16)
    image[30, 200, 200] = 1
    write_nifti(tmp_path / "a.nii.gz", image, oblique())
    tracemalloc.start()
    read_nifti(tmp_path / "a.nii.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * image.nbytes

"""DICOM folders: series are listed, one is taken, and it lies where its slices say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from medssl.errors import InputError
from medssl.volume import list_dicom_series, read_volume
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

FIRST, SECOND = "1.2.826.0.1.3680043.2.1", "1.2.826.0.1.3680043.2.2"
UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def stored(slices: int = 5) -> NDArray[np.int16]:
    return np.random.default_rng(0).integers(0, 2000, (slices, 6, 7)).astype(np.int16)


def write_series(
    folder: Path,
    stored_kji: NDArray[Any],
    positions_lps: NDArray[np.float64],
    uid: str = FIRST,
    description: str = "Abdomen",
    orientation: tuple[float, ...] = UPRIGHT,
) -> None:
    """Write slices 0.8 mm x 0.6 mm (rows x columns) with intercept -1024, in shuffled file order."""
    folder.mkdir(exist_ok=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for n, (pixels, position) in enumerate(zip(stored_kji, positions_lps, strict=True)):
        image = SimpleITK.GetImageFromArray(pixels[None])
        image.SetSpacing((0.6, 0.8, 1.0))
        row, column = np.array(orientation[:3]), np.array(orientation[3:])
        image.SetDirection(np.stack([row, column, np.cross(row, column)], axis=1).ravel().tolist())
        image.SetOrigin(position.tolist())
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{uid}.{n + 1}",
            "0008|0060": "CT",
            "0008|103e": description,
            "0020|000d": "1.2.826.0.1.3680043.2.99",
            "0020|000e": uid,
            "0020|0013": str(n + 1),
            "0020|0032": "\\".join(f"{v:.10g}" for v in position),
            "0020|0037": "\\".join(f"{v:.10g}" for v in orientation),
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid[-1]}{(n * 3) % 5}{n}.dcm"))
        writer.Execute(image)


def write_frames(
    folder: Path,
    stored_kji: NDArray[np.int16],
    positions_lps: NDArray[np.float64],
    *,
    slopes: tuple[int, ...] = (1,),
) -> None:
    """Write an enhanced CT: one file of many slices, 0.8 mm x 0.6 mm, with intercept -1024."""
    folder.mkdir()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    meta.MediaStorageSOPInstanceUID = f"{FIRST}.1"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = Dataset()
    file.file_meta = meta
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.StudyInstanceUID, file.SeriesInstanceUID, file.Modality = "1.2.826.0.1.3680043.2.99", FIRST, "CT"
    file.NumberOfFrames, file.Rows, file.Columns = stored_kji.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation = 15, 1
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.6], 2.5
    orientation.ImageOrientationPatient = list(UPRIGHT)
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    file.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for n, position in enumerate(positions_lps):
        place, scale, frame = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = position.tolist()
        scale.RescaleIntercept, scale.RescaleSlope, scale.RescaleType = -1024, slopes[n % len(slopes)], "HU"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [place], [scale]
        frames.append(frame)
    file.PerFrameFunctionalGroupsSequence = frames
    file.PixelData = (stored_kji + 1024).astype("<i2").tobytes()
    file.save_as(folder / "all.dcm", enforce_file_format=True)


def stack(count: int, step: tuple[float, float, float] = (0.0, 0.0, 2.5)) -> NDArray[np.float64]:
    return np.array((-100.0, -90.0, 400.0)) + np.arange(count)[:, None] * np.array(step)


def test_a_series_comes_back_in_hounsfield_units_on_its_grid(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", stored(), stack(5))
    volume = read_volume(tmp_path / "ct")
    # The writer stores (value - intercept) / slope, so that reading gives the values back.
    np.testing.assert_array_equal(volume.voxels_kji, stored())
    assert volume.voxels_kji.dtype == np.int16
    assert volume.name == "ct"
    expected = [[-0.6, 0, 0, 100], [0, -0.8, 0, 90], [0, 0, 2.5, 400], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.ijk_to_ras, expected, atol=1e-6)


def test_an_oblique_series_keeps_its_orientation(tmp_path: Path) -> None:
    c, s = np.cos(0.4), np.sin(0.4)
    write_series(
        tmp_path / "ct", stored(), stack(5, (0.0, -2.5 * s, 2.5 * c)), orientation=(1, 0, 0, 0, c, s)
    )
    volume = read_volume(tmp_path / "ct")
    expected = [[-0.6, 0, 0, 100], [0, -0.8 * c, 2.5 * s, 90], [0, 0.8 * s, 2.5 * c, 400], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.ijk_to_ras, expected, atol=1e-6)
    np.testing.assert_array_equal(volume.voxels_kji, stored())


def test_several_series_are_listed_and_one_is_taken_by_the_beginning_of_its_uid(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", stored(), stack(5))
    write_series(tmp_path / "ct", stored(3) + 1, stack(3), uid=SECOND, description="Thorax")
    listed = list_dicom_series(tmp_path / "ct")
    assert [(s.uid, s.description, s.modality, s.slices) for s in listed] == [
        (FIRST, "Abdomen", "CT", 5),
        (SECOND, "Thorax", "CT", 3),
    ]
    with pytest.raises(
        InputError, match=rf"2 image series; name one .*{FIRST} \(CT, 'Abdomen', 5 slices\); "
    ):
        read_volume(tmp_path / "ct")
    with pytest.raises(InputError, match="2 image series"):
        read_volume(tmp_path / "ct", series=FIRST[:-1])
    with pytest.raises(InputError, match=r"holds no series 9\.9; it holds 1\.2"):
        read_volume(tmp_path / "ct", series="9.9")
    assert read_volume(tmp_path / "ct", series=SECOND).shape_kji == (3, 6, 7)
    np.testing.assert_array_equal(read_volume(tmp_path / "ct", series=FIRST).voxels_kji, stored())


@pytest.mark.parametrize(
    ("character_set", "encoding", "description"),
    [
        ("ISO_IR 100", "latin-1", "Schädel"),
        ("ISO_IR 192", "utf-8", "頭部 Kopf"),
        ("ISO_IR 144", "iso8859-5", "Череп"),
        ("", "ascii", "Head"),
        ("ISO_IR 192", "latin-1", "Sch\N{REPLACEMENT CHARACTER}del"),
        ("nonsense", "ascii", "Head"),
    ],
)
def test_descriptions_keep_their_letters_whatever_they_are_written_in(
    tmp_path: Path, character_set: str, encoding: str, description: str
) -> None:
    write_series(tmp_path, stored(3), stack(3), description="PLACEHOLDER12")
    written = description.replace("\N{REPLACEMENT CHARACTER}", "ä").encode(encoding).ljust(14)
    for file in sorted(tmp_path.iterdir()):
        image = dcmread(file)
        if character_set:
            image.SpecificCharacterSet = "ISO_IR 100"
        image.SeriesDescription = "PLACEHOLDER12"
        image.save_as(file)
        content = file.read_bytes().replace(b"ISO_IR 100", character_set.encode().ljust(10))
        file.write_bytes(content.replace(b"PLACEHOLDER12 ", written[:14]))
    (series,) = list_dicom_series(tmp_path)
    assert series.description == description


def test_a_uid_that_begins_another_one_is_still_exact(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", stored(), stack(5))
    write_series(tmp_path / "ct", stored(3), stack(3), uid=f"{FIRST}.7")
    assert read_volume(tmp_path / "ct", series=FIRST).shape_kji == (5, 6, 7)


def test_a_missing_slice_is_named_with_the_gaps(tmp_path: Path) -> None:
    positions = np.delete(stack(6), 2, axis=0)
    write_series(tmp_path / "ct", stored(), positions)
    with pytest.raises(InputError, match=r"in ct is not evenly spaced: its 5 slices lie 2\.5 to 5 mm apart"):
        read_volume(tmp_path / "ct")


def last_slice(folder: Path) -> Path:
    return max(folder.iterdir(), key=lambda file: dcmread(file).ImagePositionPatient[2])


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def without_pixels(path: Path) -> None:
    file = dcmread(path)
    del file.PixelData
    file.save_as(path)


def cut_in_the_header(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\x28\x00\x10\x00")])  # before its number of rows


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "is cut short"),
        (without_pixels, "holds no pixels that can be read"),
        (cut_in_the_header, "holds no pixels that can be read"),
        (emptied, "holds no pixels that can be read"),
    ],
)
def test_a_damaged_slice_at_the_end_is_named_and_not_left_out(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    write_series(tmp_path / "ct", stored(), stack(5))
    last = last_slice(tmp_path / "ct")
    damage(last)
    with pytest.raises(
        InputError, match=rf"in ct cannot be read whole: {last.name} {message}; copy or export"
    ):
        read_volume(tmp_path / "ct")


def test_a_slice_that_names_its_kind_in_letters_that_mean_nothing_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", stored(), stack(5))
    last = last_slice(tmp_path / "ct")
    file = dcmread(last)
    del file.SOPClassUID
    file.save_as(last)
    last.write_bytes(last.read_bytes().replace(b"\x02\x00\x02\x00UI", b"\x02\x00\x02\x00U9"))
    with pytest.raises(InputError, match=rf"in ct cannot be read: {last.name} cannot be decoded; export"):
        read_volume(tmp_path / "ct")


def test_a_damaged_compressed_slice_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", stored().repeat(4, axis=1).repeat(4, axis=2), stack(5))
    for path in (tmp_path / "ct").iterdir():
        file = dcmread(path)
        file.compress(RLELossless)
        file.save_as(path)
    assert read_volume(tmp_path / "ct").shape_kji == (5, 24, 28)
    last = last_slice(tmp_path / "ct")
    cut_short(last)
    with pytest.raises(InputError, match=rf"in ct cannot be read: {last.name} cannot be decoded; export"):
        read_volume(tmp_path / "ct")


def test_several_damaged_slices_are_counted(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", stored(), stack(5))
    for _ in range(2):
        without_pixels(last := last_slice(tmp_path / "ct"))
        last.rename(tmp_path / last.name)
    for name in ("1", "2"):
        next(tmp_path.glob("*.dcm")).rename(tmp_path / "ct" / name)
    with pytest.raises(InputError, match="cannot be read whole, because of 2 files: 1 holds no pixels"):
        read_volume(tmp_path / "ct")


def test_a_damaged_slice_of_another_series_does_not_matter(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", stored(), stack(5))
    write_series(tmp_path / "other", stored(3), stack(3), uid=SECOND)
    without_pixels(last_slice(tmp_path / "other"))
    for file in (tmp_path / "other").iterdir():
        file.rename(tmp_path / "ct" / file.name)
    assert read_volume(tmp_path / "ct", series=FIRST).shape_kji == (5, 6, 7)
    with pytest.raises(InputError, match="cannot be read whole"):
        read_volume(tmp_path / "ct", series=SECOND)


def test_reports_tables_of_contents_and_other_files_beside_the_slices_are_left_out(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", stored(), stack(5))
    report = dcmread(next((tmp_path / "ct").iterdir()))
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(report, keyword)
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.22"
    report.save_as(tmp_path / "ct" / "report.dcm")
    contents = Dataset()
    contents.file_meta = FileMetaDataset()
    contents.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    contents.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    contents.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    contents.FileSetID, contents.DirectoryRecordSequence = "CT", []
    contents.save_as(tmp_path / "ct" / "DICOMDIR", enforce_file_format=True)
    (tmp_path / "ct" / "Thumbs.db").write_bytes(bytes(500))
    (tmp_path / "ct" / "._1.dcm").write_bytes(b"Mac OS X" * 50)
    (tmp_path / "ct" / "notes.txt").write_bytes(b"")
    (tmp_path / "ct" / "table.bin").write_bytes(b"\x08\x00" * 300)
    (tmp_path / "ct" / "folder").mkdir()
    np.testing.assert_array_equal(read_volume(tmp_path / "ct").voxels_kji, stored())


def test_a_slice_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "ct", stored(), stack(5))
    last, really_open = last_slice(tmp_path / "ct"), Path.open

    def closed(path: Path, *args: Any, **options: Any) -> Any:  # root, as tests may run, opens what is closed
        if path.name == last.name:
            raise PermissionError(13, "Permission denied", str(path))
        return really_open(path, *args, **options)

    monkeypatch.setattr(Path, "open", closed)
    whose = rf"{last.name} cannot be opened \(Permission denied\); ask its owner for permission"
    with pytest.raises(InputError, match=f"in ct cannot be read whole: {whose}"):
        read_volume(tmp_path / "ct")
    for file in tmp_path.glob("ct/*"):
        if file != last:
            file.unlink()
    with pytest.raises(InputError, match=f"In the folder .*ct, {whose}"):
        read_volume(tmp_path / "ct")


def test_a_folder_is_gone_through_once_for_all_its_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(4):
        write_series(tmp_path / "ct", stored(3), stack(3), uid=f"1.2.826.0.1.{n}")
    opened: list[Path] = []
    really_open = Path.open

    def counted(path: Path, *args: Any, **options: Any) -> Any:
        opened.append(path)
        return really_open(path, *args, **options)

    monkeypatch.setattr(Path, "open", counted)
    monkeypatch.delattr(
        SimpleITK, "ImageSeriesReader"
    )  # it goes through all files by itself, for every series
    assert [s.slices for s in list_dicom_series(tmp_path / "ct")] == [3, 3, 3, 3]
    assert sorted(opened) == sorted((tmp_path / "ct").iterdir())


def test_two_images_of_one_place_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", stored(4), stack(2).repeat(2, axis=0))
    with pytest.raises(
        InputError, match=r"its 4 slices lie 0 to 2\.5 mm apart, so slices are missing or doubled"
    ):
        read_volume(tmp_path / "ct")


def test_positions_rounded_by_the_scanner_are_accepted(tmp_path: Path) -> None:
    positions = stack(5, (0.0, 0.0, 0.625)).round(1)
    write_series(tmp_path / "ct", stored(), positions)
    assert read_volume(tmp_path / "ct").step_mm(0) == pytest.approx(0.625)


def test_a_tilted_gantry_is_refused_as_sheared(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", stored(), stack(5, (0.0, 0.5, 2.5)))
    with pytest.raises(InputError, match=r"^ct lies on a sheared grid \(axes 11 degrees off a right angle"):
        read_volume(tmp_path / "ct")


def test_a_localizer_among_the_slices_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", stored(4), stack(4))
    write_series(tmp_path / "other", stored(1), stack(1), orientation=(0, 1, 0, 0, 0, -1))
    shutil.copy(next((tmp_path / "other").iterdir()), tmp_path / "ct" / "localizer.dcm")
    with pytest.raises(InputError, match="mixes slices of different orientations"):
        read_volume(tmp_path / "ct")


def test_slices_of_different_size_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", stored(4), stack(4))
    write_series(tmp_path / "other", stored(1)[:, :5, :5], stack(5)[4:])
    shutil.copy(next((tmp_path / "other").iterdir()), tmp_path / "ct" / "small.dcm")
    with pytest.raises(InputError, match=r"in ct cannot be read: its slices differ in size or kind; export"):
        read_volume(tmp_path / "ct")


def test_pixels_that_change_their_size_or_have_none_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", stored(), stack(5))
    path = last_slice(tmp_path / "ct")
    last = dcmread(path)
    last.PixelSpacing = [0.4, 0.3]
    last.save_as(path)
    with pytest.raises(InputError, match=r"in ct mixes slices whose pixels are 0\.3 to 0\.8 mm large"):
        read_volume(tmp_path / "ct")
    last.PixelSpacing = [0.8, 0.6001]  # headers round
    last.save_as(path)
    assert read_volume(tmp_path / "ct").spacing_kji_mm == pytest.approx((2.5, 0.8, 0.6), abs=1e-3)
    del last.PixelSpacing
    last.save_as(path)
    with pytest.raises(InputError, match=r"do not say where their pixels lie \(tag 0028\|0030\); export"):
        read_volume(tmp_path / "ct")


def test_frames_whose_pixels_change_their_size_are_refused(tmp_path: Path) -> None:
    write_frames(tmp_path / "ct", stored(), stack(5))
    file = dcmread(tmp_path / "ct" / "all.dcm")
    measures = Dataset()
    measures.PixelSpacing = [0.4, 0.3]
    file.PerFrameFunctionalGroupsSequence[4].PixelMeasuresSequence = [measures]
    file.save_as(tmp_path / "ct" / "all.dcm")
    with pytest.raises(InputError, match=r"in ct mixes slices whose pixels are 0\.3 to 0\.8 mm large"):
        read_volume(tmp_path / "ct")


def test_a_single_file_is_a_volume_of_one_slice(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", stored(1), stack(1))
    volume = read_volume(tmp_path / "ct")
    assert volume.shape_kji == (1, 6, 7)
    with pytest.raises(InputError, match="only one axial slice"):
        volume.require_stack(0)


def test_one_file_of_many_slices_is_read_in_their_order_in_space(tmp_path: Path) -> None:
    order = [3, 0, 4, 1, 2]
    write_frames(tmp_path / "ct", stored()[order], stack(5)[order])
    write_series(tmp_path / "single", stored(), stack(5))
    (listed,) = list_dicom_series(tmp_path / "ct")
    assert listed.slices == 5
    volume, single = read_volume(tmp_path / "ct"), read_volume(tmp_path / "single")
    np.testing.assert_array_equal(volume.voxels_kji, stored())
    assert volume.voxels_kji.dtype == np.int16
    np.testing.assert_allclose(volume.ijk_to_ras, single.ijk_to_ras, atol=1e-6)


def test_one_file_of_many_slices_is_refused_where_they_are_no_even_stack(tmp_path: Path) -> None:
    write_frames(tmp_path / "gap", stored(4), stack(5)[[0, 1, 3, 4]])
    with pytest.raises(InputError, match=r"is not evenly spaced: its 4 slices lie 2.5 to 5 mm apart"):
        read_volume(tmp_path / "gap")
    write_frames(tmp_path / "scaled", stored(), stack(5), slopes=(1, 2))
    with pytest.raises(InputError, match="whose frames are scaled differently; export single slices"):
        read_volume(tmp_path / "scaled")
    write_frames(tmp_path / "nowhere", stored(), stack(0))
    with pytest.raises(InputError, match="one file of 5 frames that do not say where they lie"):
        read_volume(tmp_path / "nowhere")


def test_slices_with_scales_of_their_own_keep_their_fractions(tmp_path: Path) -> None:
    write_series(tmp_path / "pet", stored(), stack(5))
    for n, path in enumerate(sorted((tmp_path / "pet").iterdir())):
        file = dcmread(path)
        file.RescaleSlope, file.RescaleIntercept = ("1", "0") if n == 0 else ("0.25", "0")
        file.save_as(path)
    volume = read_volume(tmp_path / "pet")
    # The pixels that were written are value + 1024.
    slopes = volume.voxels_kji[:, 0, 0] / (stored()[:, 0, 0] + 1024.0)
    assert sorted(slopes.tolist()) == [0.25, 0.25, 0.25, 0.25, 1.0]
    np.testing.assert_allclose(volume.voxels_kji, slopes[:, None, None] * (stored() + 1024.0), atol=1e-3)


@pytest.mark.parametrize("name", ["slice_0.dcm", "slice_0"])
def test_one_file_of_a_series_in_place_of_its_folder_is_told_so(tmp_path: Path, name: str) -> None:
    write_series(tmp_path / "ct", stored(), stack(5))
    given = sorted((tmp_path / "ct").iterdir())[0].rename(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} is a single DICOM file; give the folder of its series"):
        read_volume(given)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no DICOM images; give the folder in which the slices"):
        read_volume(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(InputError, match="holds no DICOM images"):
        read_volume(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        list_dicom_series(tmp_path / "missing")


def test_files_from_before_there_was_a_preamble_are_read(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", stored(), stack(5))
    for path in (tmp_path / "ct").iterdir():
        file = dcmread(path)
        file.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        file.save_as(path, implicit_vr=True, little_endian=True)
        data = path.read_bytes()
        path.write_bytes(data[data.index(b"\x08\x00\x16\x00") :])
    np.testing.assert_array_equal(read_volume(tmp_path / "ct").voxels_kji, stored())


def test_the_terminal_stays_clean(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_series(tmp_path / "ct", stored(), np.delete(stack(6), 2, axis=0))
    capfd.readouterr()
    with pytest.raises(InputError, match="not evenly spaced"):
        read_volume(tmp_path / "ct")
    assert capfd.readouterr() == ("", "")

"""DICOM SEG: what is written on a series comes back on its grid, and lies where another reader finds it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from medssl.errors import InputError, StorageError
from medssl.formats.dicom_seg import read_dicom_seg, write_dicom_seg
from medssl.segmentation import Segment, Segmentation
from medssl.volume import Volume, read_volume
from numpy.typing import NDArray

POSITIONS = np.array([[-3.0, 7.0, 2.5 * n - 40] for n in range(5)])
TILTED = (0.8, 0.6, 0.0, -0.6, 0.8, 0.0)


def write_series(folder: Path, orientation: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)) -> Volume:
    """A series of 5 slices of 6 x 7 pixels, as a scanner would store it."""
    import highdicom
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir()
    series, frame = highdicom.UID(), highdicom.UID()
    pixels = np.random.default_rng(0).integers(0, 2000, (5, 6, 7)).astype(np.uint16)
    for n, position in enumerate(POSITIONS):
        image = pydicom.Dataset()
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, highdicom.UID()
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = series, series, frame
        image.Modality, image.SeriesNumber, image.InstanceNumber = "CT", 3, n + 1
        image.PatientID, image.PatientName, image.PatientBirthDate, image.PatientSex = "1", "A", "", "O"
        image.StudyDate, image.StudyTime, image.StudyID, image.AccessionNumber = "20200101", "101010", "1", ""
        image.ReferringPhysicianName = ""
        image.Rows, image.Columns, image.PixelSpacing, image.SliceThickness = 6, 7, [0.8, 0.6], 2.5
        image.ImagePositionPatient, image.ImageOrientationPatient = position.tolist(), list(orientation)
        image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = (
            1,
            "MONOCHROME2",
            0,
        )
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
        image.RescaleSlope, image.RescaleIntercept = 1, -1024
        image.PixelData = pixels[n].tobytes()
        image.save_as(folder / f"{(n * 3) % 5}.dcm", enforce_file_format=True)
    return read_volume(folder)


def two_organs(volume: Volume) -> Segmentation:
    labels = np.zeros(volume.shape_kji, np.uint8)
    labels[1:3, 2:5, 1:4] = 2
    labels[3, 0:3, 4:] = 7
    segments = (
        Segment("liver", 2, (1, 0, 0)),
        Segment("left kidney", 7, (0, 1, 0)),
        Segment("spleen", 9, (0, 0, 1)),
    )
    return Segmentation(labels, volume.ijk_to_ras, segments)


@pytest.mark.parametrize(
    "orientation", [(1.0, 0.0, 0.0, 0.0, 1.0, 0.0), TILTED, (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)]
)
def test_what_is_written_comes_back_on_the_grid(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    volume = write_series(tmp_path / "series", orientation)
    truth = two_organs(volume)
    write_dicom_seg(truth, tmp_path / "series", tmp_path / "seg.dcm")
    back = read_dicom_seg(tmp_path / "seg.dcm", volume)
    assert back.names == ("liver", "left kidney")  # an empty segment has no place in a SEG
    for name in back.names:
        assert np.array_equal(back.mask(name), truth.mask(name))


def test_every_frame_lies_on_the_image_it_was_drawn_on(tmp_path: Path) -> None:
    import pydicom

    volume = write_series(tmp_path / "series")
    write_dicom_seg(two_organs(volume), tmp_path / "series", tmp_path / "seg.dcm")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    heights = sorted(
        float(frame.PlanePositionSequence[0].ImagePositionPatient[2])
        for frame in seg.PerFrameFunctionalGroupsSequence
    )
    assert heights == [float(POSITIONS[n, 2]) for n in (1, 2, 3)]
    image = pydicom.dcmread(next((tmp_path / "series").iterdir()))
    assert seg.FrameOfReferenceUID == image.FrameOfReferenceUID
    assert seg.PatientID == image.PatientID


def change_tags(folder: Path, **tags: str | None) -> None:
    """Set tags of every file; None deletes one."""
    import pydicom

    for path in folder.iterdir():
        file = pydicom.dcmread(path)
        for keyword, value in tags.items():
            if value is None:
                delattr(file, keyword)
            else:
                setattr(file, keyword, value)
        file.save_as(path)


@pytest.mark.parametrize("left", [None, ""])
def test_anonymised_images_need_not_say_whose_they_are(tmp_path: Path, left: str | None) -> None:
    volume = write_series(tmp_path / "series")
    identifying = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName")
    study = ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "SeriesNumber", "SliceThickness")
    change_tags(tmp_path / "series", **dict.fromkeys((*identifying, *study), left))
    write_dicom_seg(two_organs(volume), tmp_path / "series", tmp_path / "seg.dcm")
    back = read_dicom_seg(tmp_path / "seg.dcm", volume)
    assert np.array_equal(back.mask("liver"), two_organs(volume).mask("liver"))


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_images_that_belong_to_no_study_or_place_are_refused(tmp_path: Path, keyword: str) -> None:
    volume = write_series(tmp_path / "series")
    change_tags(tmp_path / "series", **{keyword: None})
    with pytest.raises(
        InputError, match=rf"in series has no {keyword}, which a DICOM SEG must refer to; keep"
    ):
        write_dicom_seg(two_organs(volume), tmp_path / "series", tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def named(volume: Volume, *names: str) -> Segmentation:
    """One slice for each name."""
    labels = np.zeros(volume.shape_kji, np.uint8)
    for label in range(1, len(names) + 1):
        labels[label, 2:4, 2:5] = label
    segments = tuple(Segment(name, label, (1, 0, 0)) for label, name in enumerate(names, start=1))
    return Segmentation(labels, volume.ijk_to_ras, segments)


def test_names_and_the_patient_keep_their_letters_whatever_the_images_are_written_in(tmp_path: Path) -> None:
    import pydicom

    volume = write_series(tmp_path / "series")
    names = ("Gr\u00f6\u00dfe \u809d\u81d3", "\u041f\u0435\u0447\u0435\u043d\u044c")
    for character_set, patient in (("ISO_IR 100", "M\u00fcller^A"), ("GB18030", "\u738b^\u5c0f\u4e1c")):
        change_tags(tmp_path / "series", SpecificCharacterSet=character_set, PatientName=patient)
        write_dicom_seg(named(volume, *names), tmp_path / "series", tmp_path / "seg.dcm")
        assert read_dicom_seg(tmp_path / "seg.dcm", volume).names == names
        assert str(pydicom.dcmread(tmp_path / "seg.dcm").PatientName) == patient


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("left\\upper", "c"), ("left/upper", "c")),
        (("left\\upper", "left/upper"), ("left/upper", "left/upper (2)")),
        (("a" * 64 + "1", "a" * 64 + "2", "b"), ("a" * 64, "a" * 60 + " (2)", "b")),
    ],
)
def test_names_that_dicom_cannot_hold_come_back_changed_but_each_its_own(
    tmp_path: Path, given: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    volume = write_series(tmp_path / "series")
    truth = named(volume, *given)
    write_dicom_seg(truth, tmp_path / "series", tmp_path / "seg.dcm")
    back = read_dicom_seg(tmp_path / "seg.dcm", volume)
    assert back.names == expected
    assert np.array_equal(back.labels_kji, truth.labels_kji)


def seg_of_slices(volume: Volume, *slices: int) -> Segmentation:
    labels = np.zeros(volume.shape_kji, np.uint8)
    labels[list(slices), 2:5, 1:4] = 1
    return Segmentation(labels, volume.ijk_to_ras, (Segment("liver", 1, (1, 0, 0)),))


@pytest.mark.parametrize("slices", [(3,), (1, 3), (0, 1, 2, 3, 4)])
def test_slices_that_were_left_out_as_empty_stay_so_in_any_order_of_the_axes(
    tmp_path: Path, slices: tuple[int, ...]
) -> None:
    volume = write_series(tmp_path / "series", TILTED)
    truth = seg_of_slices(volume, *slices)
    write_dicom_seg(truth, tmp_path / "series", tmp_path / "seg.dcm")
    assert np.array_equal(read_dicom_seg(tmp_path / "seg.dcm", volume).labels_kji, truth.labels_kji)
    expected = truth.labels_kji[::-1, :, ::-1].transpose(1, 0, 2)
    assert np.array_equal(read_dicom_seg(tmp_path / "seg.dcm", flipped(volume)).labels_kji, expected)


def test_finding_the_places_of_a_segs_voxels_needs_no_memory_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tracemalloc

    import highdicom

    write_series(tmp_path / "series")
    shape = (64, 128, 128)
    image = np.broadcast_to(np.arange(64, dtype=np.int16)[:, None, None], shape)
    volume = Volume(image, np.diag([-0.6, -0.8, 2.5, 1.0]))
    kji_to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.ijk_to_ras[:, [2, 1, 0, 3]]
    voxels = np.ones(shape, np.uint8)

    class Large:
        segment_numbers = (1,)

        def get_volume(self, **_: object) -> highdicom.Volume:
            return highdicom.Volume(voxels, affine=kji_to_lps, coordinate_system="PATIENT")

        def get_segment_description(self, number: int) -> SimpleNamespace:
            return SimpleNamespace(segment_label=f"organ {number}")

    monkeypatch.setattr(highdicom.seg, "segread", lambda path: Large())
    tracemalloc.start()
    try:
        back = read_dicom_seg(next((tmp_path / "series").iterdir()), volume)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert back.labels_kji.all()
    assert peak < 6 * voxels.size


def flipped(volume: Volume) -> Volume:
    """The same place in space, with K and I stored in the other direction and swapped with J."""
    voxels: NDArray[np.int16] = volume.voxels_kji[::-1, :, ::-1].transpose(1, 0, 2)
    k, _, i = volume.shape_kji
    turn = np.array([[-1, 0, 0, i - 1], [0, 0, 1, 0], [0, -1, 0, k - 1], [0, 0, 0, 1]], float)
    return Volume(voxels, volume.ijk_to_ras @ turn)


def test_a_volume_stored_in_another_order_gets_its_voxels_right(tmp_path: Path) -> None:
    volume = write_series(tmp_path / "series")
    write_dicom_seg(two_organs(volume), tmp_path / "series", tmp_path / "seg.dcm")
    back = read_dicom_seg(tmp_path / "seg.dcm", flipped(volume))
    liver = two_organs(volume).mask("liver")[::-1, :, ::-1].transpose(1, 0, 2)
    assert np.array_equal(back.mask("liver"), liver)


def test_another_grid_is_refused(tmp_path: Path) -> None:
    volume = write_series(tmp_path / "series")
    write_dicom_seg(two_organs(volume), tmp_path / "series", tmp_path / "seg.dcm")
    moved = volume.ijk_to_ras.copy()
    moved[0, 3] += 0.3
    with pytest.raises(InputError, match="another grid"):
        read_dicom_seg(tmp_path / "seg.dcm", Volume(volume.voxels_kji, moved))
    other = Segmentation(two_organs(volume).labels_kji, moved, two_organs(volume).segments)
    with pytest.raises(InputError):
        write_dicom_seg(other, tmp_path / "series", tmp_path / "new.dcm")
    assert not (tmp_path / "new.dcm").exists()


def test_bad_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    volume = write_series(tmp_path / "series")
    (tmp_path / "text.dcm").write_text("hello")
    for path in (tmp_path / "text.dcm", next((tmp_path / "series").iterdir())):
        with pytest.raises(InputError, match="not a DICOM segmentation"):
            read_dicom_seg(path, volume)
    with pytest.raises(InputError, match="does not exist"):
        read_dicom_seg(tmp_path / "none.dcm", volume)
    empty = Segmentation(np.zeros(volume.shape_kji, np.uint8), volume.ijk_to_ras, two_organs(volume).segments)
    with pytest.raises(InputError, match="every segment is empty"):
        write_dicom_seg(empty, tmp_path / "series", tmp_path / "seg.dcm")
    with pytest.raises(StorageError):
        write_dicom_seg(two_organs(volume), tmp_path / "series", tmp_path / "nowhere" / "seg.dcm")


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys, medssl.formats.dicom_seg; sys.exit('torch' in sys.modules or 'highdicom' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""DICOM SEG: what is written on a series comes back on its grid, and lies where another reader finds it."""

from __future__ import annotations

import sys
from pathlib import Path

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

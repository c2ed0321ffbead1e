"""Folders of scans become prepared volumes: what is read, what is left out, and what the cache promises."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import unicodedata
import weakref
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from medssl.datasets import packed, volume_cache
from medssl.datasets.data import UnlabelledVolumes, intensity_stats
from medssl.datasets.grid import prepare_image
from medssl.datasets.input_contract import InputContract
from medssl.datasets.packed import PackedArray, pack
from medssl.datasets.sources import find_sources
from medssl.datasets.volume_cache import prepare_volumes
from medssl.errors import Cancelled, InputError, StorageError
from medssl.events import Log, Progress
from medssl.volume import Volume, read_volume, write_volume
from numpy.typing import NDArray

CT = InputContract()
COARSE = InputContract(spacing_kji_mm=(None, 4.0, 4.0))


def ct(seed: int, shape: tuple[int, int, int] = (6, 20, 24)) -> Volume:
    """A block of tissue in air; every seed gives another one."""
    voxels = np.full(shape, -1000, np.int16)
    noise = np.random.default_rng(seed).normal(40, 60, (shape[0], 12, 14))
    voxels[:, 4:16, 5:19] = noise.astype(np.int16)
    return Volume(voxels, np.diag([2.0, 2.0, 5.0, 1.0]))


def mr(seed: int) -> Volume:
    voxels = np.random.default_rng(seed).integers(0, 900, (6, 20, 24)).astype(np.int16)
    return Volume(voxels, np.diag([2.0, 2.0, 5.0, 1.0]))


def put(volume: Volume, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(volume, path)
    return path


def write_dicom(folder: Path, volume: Volume, patient: str, modality: str = "CT") -> None:
    """One DICOM file per slice, as a scanner writes them."""
    folder.mkdir(parents=True)
    uid = f"1.2.826.0.1.3680043.2.1125.{zlib.crc32(folder.name.encode())}"
    for k, plane in enumerate(volume.voxels_kji):
        image = SimpleITK.GetImageFromArray(plane[None])
        image.SetSpacing([float(s) for s in volume.spacing_kji_mm[::-1]])
        tags = {
            "0010|0020": patient, "0010|0010": "DOE^JANE", "0008|0060": modality, "0020|000e": uid,
            "0020|000d": uid + ".9", "0020|0052": uid + ".8", "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
            "0020|0037": "1\\0\\0\\0\\1\\0", "0020|0013": str(k), "0008|0018": f"{uid}.{k + 1}",
            "0020|0032": f"0\\0\\{k * volume.spacing_kji_mm[0]}",
        }  # fmt: skip
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer = SimpleITK.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{k:03}.dcm"))
        writer.Execute(image)


class Heard(list[str]):
    """What was logged; and how often progress was reported."""

    progress = 0

    def __call__(self, event: Progress | Log) -> None:
        if isinstance(event, Log):
            self.append(event.text)
        else:
            self.progress += 1


def voxels_of(volumes: UnlabelledVolumes, scan: int) -> NDArray[np.int16]:
    return volumes.slab(scan, 0, volumes.scans[scan].shape_kji[0])


def test_a_mixed_tree_is_read_whole_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    data, heard = tmp_path / "data", Heard()
    put(ct(1), data / "a" / "ct.nii.gz")
    put(ct(2), data / "b" / "scan.nrrd")
    put(ct(3), data / "c" / "deep" / "scan.mha")
    write_dicom(data / "d", ct(4), "SECRET-4711")
    put(ct(5), data / "a" / "label.nii.gz")
    put(ct(6), data / "b" / "scan.seg.nrrd")
    put(ct(7), data / "c" / "auto_lung.nii.gz")
    put(ct(8), data / "labelsTr" / "x.nii.gz")
    (data / "b" / "broken.nii.gz").write_bytes(b"no image")
    (data / "notes.txt").write_text("hello")
    volumes = prepare_volumes(data, CT, tmp_path / "cache", on_event=heard)
    assert [scan.name for scan in volumes.scans] == ["a/ct.nii.gz", "b/scan.nrrd", "c/deep/scan.mha", "d"]
    assert any("label maps" in text and "a/label.nii.gz" in text and "1 more" in text for text in heard)
    assert any("b/broken.nii.gz was left out" in text for text in heard)
    assert "SECRET" not in " ".join(heard)
    assert "DOE" not in " ".join(heard)
    assert str(tmp_path) not in " ".join(heard)
    assert heard.progress == 6
    for index, seed in enumerate((1, 2, 3)):
        expected, grid = prepare_image(ct(seed), CT)
        np.testing.assert_array_equal(voxels_of(volumes, index), expected)
        assert volumes.scans[index].shape_kji == grid.shape_kji
        assert volumes.scans[index].stats == intensity_stats(expected)
    assert volumes.scans[3].patient.startswith("dicom-")
    for file in (tmp_path / "cache").rglob("*.json"):
        assert "SECRET" not in file.read_text()


def test_prepared_scans_are_read_by_slice_and_block_as_the_array_they_are(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 2000, (11, 150, 140)).astype(np.int16)
    size = pack(voxels, tmp_path / "a.b2nd")
    array = PackedArray(tmp_path / "a.b2nd", voxels.shape)
    assert size == (tmp_path / "a.b2nd").stat().st_size
    np.testing.assert_array_equal(array[3:5], voxels[3:5])
    np.testing.assert_array_equal(array[2:9, 100:150, 20:133], voxels[2:9, 100:150, 20:133])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array))[:], voxels)  # noqa: S301


def _first_slice(array: PackedArray) -> Any:
    return array[0:1]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_other_processes_read_an_array_that_was_already_open(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 2000, (8, 30, 30)).astype(np.int16)
    pack(voxels, tmp_path / "a.b2nd")
    array = PackedArray(tmp_path / "a.b2nd", voxels.shape)
    np.testing.assert_array_equal(array[0:1], voxels[0:1])
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        for part in pool.map(_first_slice, [array] * 4):
            np.testing.assert_array_equal(part, voxels[0:1])


def test_nothing_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    for seed in (1, 2):
        put(ct(seed), data / f"{seed}.nii.gz")
    write_dicom(data / "d", ct(4), "4711")
    before = prepare_volumes(data, CT, tmp_path / "cache")
    monkeypatch.setattr("medssl.datasets.sources.read_volume", _must_not_run)
    monkeypatch.setattr("medssl.datasets.sources.list_dicom_series", _must_not_run)
    after = prepare_volumes(data, CT, tmp_path / "cache")
    assert before.scans == after.scans
    np.testing.assert_array_equal(voxels_of(before, 1), voxels_of(after, 1))


def _must_not_run(*_: object) -> None:
    raise AssertionError("read again")


def test_a_changed_grid_or_file_never_reuses_what_was_kept(tmp_path: Path) -> None:
    data = tmp_path / "data"
    put(ct(1), data / "a.nii.gz")
    fine = prepare_volumes(data, CT, tmp_path / "cache")
    coarse = prepare_volumes(data, COARSE, tmp_path / "cache")
    np.testing.assert_array_equal(voxels_of(coarse, 0), prepare_image(ct(1), COARSE)[0])
    assert fine.scans[0].id == coarse.scans[0].id
    put(ct(2), data / "a.nii.gz")
    changed = prepare_volumes(data, CT, tmp_path / "cache")
    np.testing.assert_array_equal(voxels_of(changed, 0), prepare_image(ct(2), CT)[0])
    assert changed.scans[0].id != fine.scans[0].id


def test_voxels_that_changed_beside_their_header_are_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for seed in (1, 2):  # the header stays as it is, to the microsecond
        write_volume(ct(seed), tmp_path / "ct.nrrd")
        image = SimpleITK.ReadImage(str(tmp_path / "ct.nrrd"))
        header = (folder / "ct.mhd").read_bytes() if seed == 2 else b""
        times = (folder / "ct.mhd").stat() if seed == 2 else None
        SimpleITK.WriteImage(image, str(folder / "ct.mhd"))
        if times is not None:
            (folder / "ct.mhd").write_bytes(header)
            os.utime(folder / "ct.mhd", ns=(times.st_atime_ns, times.st_mtime_ns))
        volumes = prepare_volumes(folder, InputContract(), tmp_path / "cache")
        expected, _ = prepare_image(ct(seed), InputContract())
        np.testing.assert_array_equal(voxels_of(volumes, 0), expected)


def test_a_header_that_no_reader_has_met_leaves_the_other_scans_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(ct(1), tmp_path / "a.nrrd")
    put(ct(2), tmp_path / "b.nrrd")

    def read(path: Path) -> Volume:
        if path.name == "a.nrrd":
            raise OverflowError("no such number")
        return read_volume(path)

    monkeypatch.setattr("medssl.datasets.sources.read_volume", read)
    said: list[Progress | Log] = []
    volumes = prepare_volumes(tmp_path, InputContract(), tmp_path / "cache", on_event=said.append)
    assert [scan.name for scan in volumes.scans] == ["b.nrrd"]
    assert any("a.nrrd could not be read (OverflowError" in e.text for e in said if isinstance(e, Log))


def test_what_is_applied_on_reading_shares_the_cache(tmp_path: Path) -> None:
    put(ct(1), tmp_path / "data" / "a.nii.gz")
    prepare_volumes(tmp_path / "data", CT, tmp_path / "cache")
    other = InputContract(window_hu=(-1000.0, 400.0), channels="chest", neighbours=1, size=(64, 64))
    prepare_volumes(tmp_path / "data", other, tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("*.b2nd"))) == 1


def test_an_interrupted_build_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    for seed in range(4):
        put(ct(seed), data / f"{seed}.nii.gz")
    asked = iter([False] * 14 + [True] * 99)
    with pytest.raises(Cancelled):
        prepare_volumes(data, COARSE, cache, cancelled=lambda: next(asked))
    kept = len(list(cache.rglob("*.b2nd")))
    assert 0 < kept < 4
    assert not [path for path in cache.rglob("*") if path.name.startswith(".")]
    read: list[str] = []
    monkeypatch.setattr(
        "medssl.datasets.sources.read_volume", lambda path: read.append(path.name) or read_volume(path)
    )
    volumes = prepare_volumes(data, COARSE, cache)
    assert len(read) == 4 - kept
    assert len(volumes.scans) == 4


def test_a_damaged_cache_file_is_made_again(tmp_path: Path) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    put(ct(1), data / "a.nii.gz")
    prepare_volumes(data, CT, cache)
    (file,) = cache.rglob("*.b2nd")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    np.testing.assert_array_equal(voxels_of(prepare_volumes(data, CT, cache), 0), prepare_image(ct(1), CT)[0])
    assert file.read_bytes() == whole


def test_a_cache_file_that_went_missing_is_said_in_one_sentence(tmp_path: Path) -> None:
    array = PackedArray(tmp_path / "gone.b2nd", (2, 3, 4))
    with pytest.raises(StorageError, match=r"gone\.b2nd is missing or damaged"):
        array[0:1]


def test_the_same_voxels_under_two_names_are_kept_once_and_share_a_patient(tmp_path: Path) -> None:
    data, heard = tmp_path / "data", Heard()
    put(ct(1), data / "anna" / "ct.nii.gz")
    flipped = Volume(ct(1).voxels_kji[:, ::-1], ct(1).ijk_to_ras @ np.diag([1.0, -1.0, 1.0, 1.0]))
    put(flipped, data / "berta" / "again.nrrd")
    put(ct(2), data / "berta" / "other.nii.gz")
    put(ct(3), data / "carla" / "ct.nii.gz")
    volumes = prepare_volumes(data, CT, tmp_path / "cache", on_event=heard)
    assert [scan.name for scan in volumes.scans] == [
        "anna/ct.nii.gz",
        "berta/other.nii.gz",
        "carla/ct.nii.gz",
    ]
    assert [scan.patient for scan in volumes.scans] == ["anna", "anna", "carla"]
    assert any("berta/again.nrrd holds the same voxels as anna/ct.nii.gz" in text for text in heard)


def patients_of(data: Path, cache: Path) -> dict[str, str]:
    return {scan.name: scan.patient for scan in prepare_volumes(data, CT, cache).scans}


def test_a_case_folder_is_a_patient_and_a_pool_holds_many(tmp_path: Path) -> None:
    data = tmp_path / "data"
    put(ct(1), data / "p1" / "first.nii.gz")
    put(ct(2), data / "p1" / "second.nii.gz")
    put(ct(3), data / "imagesTr" / "p2_0000.nii.gz")
    put(ct(4), data / "imagesTr" / "p2_0001.nii.gz")
    put(ct(5), data / "imagesTr" / "p3_0000.nii.gz")
    put(ct(6), data / "alone.nii.gz")
    for seed in range(7, 18):
        put(ct(seed), data / "crowd" / f"{seed}.nii.gz")
    found = patients_of(data, tmp_path / "cache")
    assert found["p1/first.nii.gz"] == found["p1/second.nii.gz"] == "p1"
    assert found["imagesTr/p2_0000.nii.gz"] == found["imagesTr/p2_0001.nii.gz"] == "imagesTr/p2"
    assert found["imagesTr/p3_0000.nii.gz"] == "imagesTr/p3"
    assert found["alone.nii.gz"] == "alone"
    assert len({patient for name, patient in found.items() if name.startswith("crowd")}) == 11


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("patients.csv", "scan,patient\np1,Q\np2/ct.nii.gz,Q\n"),
        ("patients.json", '{"p1": "Q", "p2/ct.nii.gz": "Q"}'),
    ],
)
def test_a_file_may_say_whose_the_scans_are(tmp_path: Path, name: str, text: str) -> None:
    for seed in (1, 2, 3):
        put(ct(seed), tmp_path / "data" / f"p{seed}" / "ct.nii.gz")
    (tmp_path / "data" / name).write_text(text)
    assert list(patients_of(tmp_path / "data", tmp_path / "cache").values()) == ["Q", "Q", "p3"]


def test_whose_a_scan_is_may_be_written_with_accents_of_either_kind(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for seed, name in ((1, "Müller 1"), (2, unicodedata.normalize("NFD", "Müller 2")), (3, "Meier")):
        put(ct(seed), data / name / "ct.nii.gz")
    listed = f"scan,patient\n{unicodedata.normalize('NFD', 'Müller 1')},Q\nMüller 2,Q\n"
    (data / "patients.csv").write_text(listed, encoding="utf-8")
    assert sorted(patients_of(data, tmp_path / "cache").values()) == ["Meier", "Q", "Q"]


def test_two_dicom_series_of_a_patient_share_it(tmp_path: Path) -> None:
    for seed, patient in ((1, "ID1"), (2, "ID1"), (3, "ID2")):
        write_dicom(tmp_path / "data" / f"s{seed}", ct(seed), patient)
    one, two, three = patients_of(tmp_path / "data", tmp_path / "cache").values()
    assert one == two != three


def test_a_ct_whose_values_are_stored_1024_too_high_is_named_as_that(tmp_path: Path) -> None:
    data, heard = tmp_path / "data", list[str]()
    put(Volume(ct(1).voxels_kji + np.int16(1024), ct(1).ijk_to_ras), data / "a" / "ct.nii.gz")
    with pytest.raises(
        InputError, match=r"a/ct\.nii\.gz looks like a CT .* 1024 too high .*, or leave it out"
    ):
        prepare_volumes(data, CT, tmp_path / "cache")
    (data / "a" / "meta.json").write_text('{"modality": "CT"}')
    for _ in range(2):  # read, and from the cache
        prepare_volumes(data, CT, tmp_path / "cache", on_event=lambda event: heard.append(str(event)))
    assert sum("subtract 1024 from them, or it is seen far too bright" in text for text in heard) == 2


def test_mixed_modalities_are_refused_unless_asked_for(tmp_path: Path) -> None:
    data = tmp_path / "data"
    put(ct(1), data / "a" / "ct.nii.gz")
    put(mr(2), data / "b" / "mr.nii.gz")
    with pytest.raises(InputError, match=r"b/mr\.nii\.gz looks like MR, but this input is made for CT"):
        prepare_volumes(data, CT, tmp_path / "cache")
    assert len(prepare_volumes(data, CT, tmp_path / "cache", mixed_modalities=True).scans) == 2
    assert len(prepare_volumes(data, CT, tmp_path / "cache", exclude=["*/mr.nii.gz"]).scans) == 1
    with pytest.raises(InputError, match="looks like MR"):  # also when it comes from the cache
        prepare_volumes(data, CT, tmp_path / "cache")
    (data / "b" / "meta.json").write_text('{"modality": "CT"}')
    assert len(prepare_volumes(data, CT, tmp_path / "cache").scans) == 2


def test_dicom_says_its_modality_itself(tmp_path: Path) -> None:
    write_dicom(tmp_path / "data" / "pet", ct(1), "ID1", modality="PT")
    with pytest.raises(InputError, match="pet is PT"):
        prepare_volumes(tmp_path / "data", CT, tmp_path / "cache")


def test_an_empty_or_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no scans"):
        prepare_volumes(tmp_path, CT, tmp_path / "cache")
    with pytest.raises(InputError, match="does not exist"):
        prepare_volumes(tmp_path / "nowhere", CT, tmp_path / "cache")


def test_a_folder_of_which_nothing_can_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"None of the images .* can be read; the first problem: a\.nii\.gz"):
        prepare_volumes(tmp_path, CT, tmp_path / "cache")


def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(ct(1), tmp_path / "data" / "a.nii.gz")

    def full(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packed.Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left on device"):
        prepare_volumes(tmp_path / "data", CT, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_cache_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    put(ct(1), tmp_path / "data" / "a.nii.gz")
    (tmp_path / "cache").write_text("a file is in the way")
    with pytest.raises(StorageError, match="cannot be made"):
        prepare_volumes(tmp_path / "data", CT, tmp_path / "cache")


def test_only_names_of_label_maps_are_taken_for_label_maps(tmp_path: Path) -> None:
    names = [
        "a/label.nii.gz",
        "b/segmentation-12.nii.gz",
        "c/x_seg.nii.gz",
        "d/masks/x.nii.gz",
        "e/labels_2.mha",
        "f/x_segmentation.nii.gz",
        "g/patient001_gt.nii.gz",
    ]
    for number, name in enumerate(names):
        put(ct(number), tmp_path / name)
    assert find_sources(tmp_path).labels == tuple(names)
    kept = ["masked.nii.gz", "segovia/ct.nii.gz", "labelled/ct.nii.gz", "volume-12.nii.gz"]
    for number, name in enumerate(kept):
        put(ct(number), tmp_path / "more" / name)
    assert [s.name for s in find_sources(tmp_path / "more").sources] == sorted(kept)


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    put(ct(1), tmp_path / "elsewhere" / "ct.nii.gz")
    (tmp_path / "data").mkdir()
    try:
        (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "data")
    except OSError:
        pytest.skip("this system allows no links")
    assert [s.name for s in find_sources(tmp_path / "data").sources] == ["linked/ct.nii.gz"]


def test_names_can_be_excluded_by_folder_and_pattern(tmp_path: Path) -> None:
    for name in ("p1/ct.nii.gz", "p2/ct.nii.gz", "p3/old.nii.gz"):
        put(ct(len(name) + int(name[1])), tmp_path / "data" / name)
    volumes = prepare_volumes(tmp_path / "data", CT, tmp_path / "cache", exclude=["p1", "*/old*"])
    assert [scan.name for scan in volumes.scans] == ["p2/ct.nii.gz"]


def test_one_scan_at_a_time_is_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = 0

    def counted(prepare: Callable[..., Any]) -> Callable[..., Any]:
        def work(*arguments: Any) -> Any:
            nonlocal alive
            image, grid = prepare(*arguments)
            alive = max(alive, sum(ref() is not None for ref in seen))
            seen.append(weakref.ref(image))
            return image, grid

        return work

    seen: list[weakref.ref[Any]] = []
    monkeypatch.setattr(volume_cache, "prepare_image", counted(volume_cache.prepare_image))
    for seed in range(5):
        put(ct(seed), tmp_path / "data" / f"{seed}.nii.gz")
    prepare_volumes(tmp_path / "data", CT, tmp_path / "cache")
    assert len(seen) == 5
    assert alive == 0

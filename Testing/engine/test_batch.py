"""A folder in, a folder out: every volume has a result of its own, and nothing is passed over in silence."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engine.test_dicom import FIRST, SECOND, stack, stored, write_series
from medssl.batch import BatchItem, run_batch
from medssl.errors import InputError, StorageError
from medssl.events import Log
from medssl.segmentation import Segment, Segmentation, read_segmentation
from medssl.volume import Volume, read_volume, write_volume

GRID = np.diag([2.0, 2.0, 3.0, 1.0])


def write_scan(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(-1000, 1000, (3, 4, 5)).astype(np.int16)
    write_volume(Volume(voxels, GRID), path)


def bright_parts(volume: Volume) -> Segmentation:
    """Differs from volume to volume, so that a result tells whose it is."""
    labels = (volume.voxels_kji > 0).astype(np.uint8)
    return Segmentation(labels, volume.ijk_to_ras, (Segment("bright", 1, (1.0, 0.0, 0.0)),))


def run(
    data: Path, out: Path, segment: Callable[[Volume], Segmentation] = bright_parts
) -> tuple[dict[str, BatchItem], list[str]]:
    events = list(run_batch(data, out, {"model": "bright"}, segment))
    items = {event.name: event for event in events if isinstance(event, BatchItem)}
    return items, [event.text for event in events if isinstance(event, Log)]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for seed, name in enumerate(["a.nii.gz", "A.mha", "a.nrrd", "sub/a.nii"]):
        write_scan(tmp_path / "scans" / name, seed)
    return tmp_path / "scans"


def test_images_whose_names_differ_only_in_the_suffix_have_results_of_their_own(
    scans: Path, tmp_path: Path
) -> None:
    items, _ = run(scans, tmp_path / "out")
    assert {item.output for item in items.values()} == {
        "A.seg.nrrd", "a.nii.gz.seg.nrrd", "a.nrrd.seg.nrrd", "sub/a.seg.nrrd",
    }  # fmt: skip
    for name, item in items.items():
        expected = bright_parts(read_volume(scans / name)).labels_kji
        assert np.array_equal(read_segmentation(tmp_path / "out" / item.output).labels_kji, expected)


def test_a_volume_that_joins_later_takes_nobody_s_result(scans: Path, tmp_path: Path) -> None:
    first, _ = run(scans, tmp_path / "out")
    write_scan(scans / "A.nii", 9)
    calls: list[str] = []
    items, _ = run(scans, tmp_path / "out", lambda volume: calls.append(volume.name) or bright_parts(volume))
    assert calls == ["A.nii"]
    assert {name: items[name].output for name in first} == {name: one.output for name, one in first.items()}
    assert items["A.nii"].output == "A.nii.seg.nrrd"


def test_results_inside_the_folder_of_images_are_not_taken_for_images(scans: Path) -> None:
    out = scans / "results [1]"
    first, _ = run(scans, out)
    write_scan(out / "left_by_hand.nii.gz", 5)
    again, notes = run(scans, out)
    assert (again.keys(), notes) == (first.keys(), [])


def test_files_taken_for_label_maps_are_named(scans: Path, tmp_path: Path) -> None:
    write_scan(scans / "a_seg.nii.gz", 7)
    items, notes = run(scans, tmp_path / "out")
    assert "a_seg.nii.gz" not in items
    assert notes == ["Left out as label maps: a_seg.nii.gz."]


def test_whatever_one_volume_brings_up_the_others_are_done(scans: Path, tmp_path: Path) -> None:
    def fails_on_one(volume: Volume) -> Segmentation:
        if volume.name == "a.nrrd":
            raise RuntimeError("CUDA error:\n device-side assert")
        return bright_parts(volume)

    items, _ = run(scans, tmp_path / "out", fails_on_one)
    assert [item.state for item in items.values()] == ["done", "done", "failed", "done"]
    assert (
        items["a.nrrd"].problem == "The program failed on it (RuntimeError: CUDA error: device-side assert)."
    )
    rows = list(csv.DictReader((tmp_path / "out" / "summary.csv").read_text("utf-8").splitlines()))
    assert [row["problem"] for row in rows if row["problem"]] == [items["a.nrrd"].problem]


def test_a_header_that_asks_for_more_memory_than_there_is_stops_nobody(scans: Path, tmp_path: Path) -> None:
    damaged = bytearray((scans / "sub" / "a.nii").read_bytes())
    damaged[40:56] = np.array([3, 32767, 32767, 32767, 1, 1, 1, 1], "<i2").tobytes()
    (scans / "huge.nii").write_bytes(damaged)
    items, _ = run(scans, tmp_path / "out")
    assert items["huge.nii"].state == "failed"
    assert "more than there is" in items["huge.nii"].problem
    assert sum(item.state == "done" for item in items.values()) == 4


@pytest.mark.skipif(os.name != "posix", reason="names are text everywhere else")
def test_names_that_are_no_text_fail_alone(scans: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "b.nii", 6)
    os.rename(tmp_path / "b.nii", os.fsencode(scans) + b"/b\xff.nii")
    (scans / "dicom").mkdir()
    (scans / "dicom" / os.fsdecode(b"\xff.dcm")).write_bytes(b"")
    for _ in range(2):
        items, _ = run(scans, tmp_path / "out")
        assert [item.state for item in items.values()].count("done") == 4
        failed = {os.fsencode(name): item.problem for name, item in items.items() if item.state == "failed"}
        assert set(failed) == {b"b\xff.nii", b"dicom"}
        assert all("is not valid text (UTF-8)" in problem for problem in failed.values())


def test_a_folder_of_results_that_cannot_be_written_ends_it_at_once(scans: Path, tmp_path: Path) -> None:
    calls = []

    def breaks_the_folder(volume: Volume) -> Segmentation:
        calls.append(volume.name)
        (tmp_path / "out" / "A.seg.nrrd").mkdir()
        return bright_parts(volume)

    with pytest.raises(StorageError, match="folder of that name"):
        run(scans, tmp_path / "out", breaks_the_folder)
    assert calls == ["A.mha"]


def test_a_folder_that_holds_the_slices_themselves_is_a_volume(tmp_path: Path) -> None:
    folder = tmp_path / "thorax"
    write_series(folder, stored(), stack(5))
    write_scan(folder / "thorax.nii.gz", 1)
    for _ in range(2):
        items, _ = run(folder, tmp_path / "out")
        assert {name: item.output for name, item in items.items()} == {
            ".": "thorax.seg.nrrd", "thorax.nii.gz": "thorax.nii.gz.seg.nrrd",
        }  # fmt: skip
    expected = bright_parts(read_volume(folder)).labels_kji
    assert np.array_equal(read_segmentation(tmp_path / "out" / "thorax.seg.nrrd").labels_kji, expected)


def test_the_summary_says_which_series_of_a_folder_a_result_is_of_and_file_names_do_not(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "scans" / "patient"
    folder.parent.mkdir()
    write_series(folder, stored(), stack(5), description="Portal venous")
    write_series(folder, stored()[:3], stack(5)[:3], SECOND, "Native")
    for _ in range(2):  # made, and read again
        run(tmp_path / "scans", tmp_path / "out")
        with (tmp_path / "out" / "summary.csv").open(newline="") as file:
            series = {row["output"]: row["series"] for row in csv.DictReader(file)}
        assert series == {
            "patient [series 1].seg.nrrd": f"{FIRST} (CT, 'Portal venous', 5 slices)",
            "patient [series 2].seg.nrrd": f"{SECOND} (CT, 'Native', 3 slices)",
        }


def test_two_batches_do_not_fill_one_folder_at_once(scans: Path, tmp_path: Path) -> None:
    first = run_batch(scans, tmp_path / "out", {"model": "bright"}, bright_parts)
    next(first)
    with pytest.raises(InputError, match="Another batch is filling"):
        run(scans, tmp_path / "out")
    first.close()
    items, _ = run(scans, tmp_path / "out")
    assert all(item.state == "done" for item in items.values())


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        run(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()

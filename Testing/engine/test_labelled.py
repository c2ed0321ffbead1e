"""Labelled scans on the prepared grid: which cases are found, what is known of each, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from medssl.datasets.data import IGNORE
from medssl.datasets.input_contract import InputContract
from medssl.datasets.labelled import LabelledCase, LabelledScans, find_cases
from medssl.datasets.sources import find_sources
from medssl.errors import InputError
from medssl.events import Log
from medssl.formats.imagefile import write_image
from medssl.metrics import dice
from medssl.phantom import Phantom, phantom_ct
from medssl.segmentation import Segment, Segmentation, default_color, write_segmentation
from medssl.volume import Volume, read_volume, write_volume
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

OWN_GRID = InputContract()
TURNED = Rotation.from_euler("xyz", [6, -9, 12], degrees=True).as_matrix()


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [
        phantom_ct(n, (14, 24, 28), (12.0, 10.0, 11.0), orientation=orientation, direction=TURNED)
        for n, orientation in enumerate(("RAS", "LPI", "SAR"))
    ]


def case_of(phantom: Phantom, name: str = "a", **changes: object) -> LabelledCase:
    return LabelledCase(name, name, phantom.volume, phantom.segmentation, **changes)  # type: ignore[arg-type]


def part_of(phantom: Phantom, *names: str) -> Segmentation:
    """Only some of the segments, as somebody would save who drew no others."""
    truth = phantom.segmentation
    segments = tuple(s for s in truth.segments if s.name in names)
    labels = np.where(np.isin(truth.labels_kji, [s.label for s in segments]), truth.labels_kji, 0)
    return Segmentation(labels, truth.ijk_to_ras, segments)


def all_of(scans: LabelledScans, index: int = 0) -> NDArray[np.uint8]:
    return np.asarray(scans[index].labels[:])


@pytest.mark.parametrize("index", range(3))
def test_labels_on_an_equal_grid_come_back_exactly(phantoms: list[Phantom], index: int) -> None:
    phantom = phantoms[index]
    scans = LabelledScans.from_cases([case_of(phantom)], OWN_GRID, ["spleen", "liver"])
    scan = scans[0]
    back = scan.native.labels_to_native(all_of(scans))
    for label, name in enumerate(scans.segments, start=1):
        np.testing.assert_array_equal(back == label, phantom.segmentation.mask(name))
    probability = scan.native.to_native((all_of(scans) == 2).astype(np.float32))
    np.testing.assert_array_equal(probability == 1, phantom.segmentation.mask("liver"))
    volume, truth = scan.case.read()
    assert (volume, truth) == (phantom.volume, phantom.segmentation)


def test_a_finer_grid_and_back_keeps_the_organ(phantoms: list[Phantom]) -> None:
    contract = InputContract(spacing_kji_mm=(6.0, 5.0, 5.0))
    for phantom in phantoms:
        scans = LabelledScans.from_cases([case_of(phantom)], contract, ["liver"])
        probability = scans[0].native.to_native((all_of(scans) == 1).astype(np.float32))
        assert dice(probability > 0.5, phantom.segmentation.mask("liver")) > 0.97


def test_a_segment_that_a_case_does_not_know_is_said_to_be_unknown(phantoms: list[Phantom]) -> None:
    partial = LabelledCase("b", "b", phantoms[1].volume, part_of(phantoms[1], "spleen"))
    scans = LabelledScans.from_cases([case_of(phantoms[0]), partial], OWN_GRID, ["liver", "spleen"])
    assert [scan.known for scan in scans] == [(True, True), (False, True)]
    assert set(np.unique(all_of(scans, 1))) == {0, 2}


def test_other_segments_count_as_background(phantoms: list[Phantom]) -> None:
    scans = LabelledScans.from_cases([case_of(phantoms[0])], OWN_GRID, ["spleen"])
    assert set(np.unique(all_of(scans))) == {0, 1}


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("index", range(3))
def test_only_vouched_slices_are_labels(phantoms: list[Phantom], index: int, axis: int) -> None:
    phantom = phantoms[index]
    middle = phantom.volume.shape_kji[axis] // 2
    case = case_of(phantom, vouched={axis: [middle, middle + 2]})
    scans = LabelledScans.from_cases([case], OWN_GRID, ["liver"])
    back = np.moveaxis(scans[0].native.labels_to_native(all_of(scans), IGNORE), axis, 0)
    truth = np.moveaxis(phantom.segmentation.mask("liver"), axis, 0)
    vouched = np.flatnonzero((back != IGNORE).any(axis=(1, 2)))
    assert vouched.tolist() == [middle, middle + 2]
    for slice_index in vouched:
        inside = back[slice_index] != IGNORE  # all but what was cropped away
        np.testing.assert_array_equal(back[slice_index][inside] == 1, truth[slice_index][inside])


def test_a_vouched_slice_is_not_lost_on_a_coarser_grid(phantoms: list[Phantom]) -> None:
    contract = InputContract(spacing_kji_mm=(36.0, 20.0, 22.0))
    for index in range(4, 10):
        case = case_of(phantoms[0], vouched={0: [index]})
        labels = all_of(LabelledScans.from_cases([case], contract, ["liver"]))
        assert ((labels != IGNORE).all(axis=(1, 2))).sum() == 1


def test_annotated_slices_alone_can_be_asked_for(phantoms: list[Phantom]) -> None:
    truth = phantoms[0].segmentation
    labels = np.zeros_like(truth.labels_kji)
    labels[7] = truth.labels_kji[7]
    drawn = Segmentation(labels, truth.ijk_to_ras, truth.segments)
    case = LabelledCase("a", "a", phantoms[0].volume, drawn)
    annotated = LabelledScans.from_cases([case], OWN_GRID, ["liver"], slices="annotated")
    assert annotated[0].case.vouched == {0: [7]}
    assert (all_of(annotated) != IGNORE).any(axis=(1, 2)).sum() == 1
    whole = LabelledScans.from_cases([case], OWN_GRID, ["liver"])
    assert (all_of(whole) != IGNORE).all()


@pytest.mark.parametrize("cached", [False, True])
def test_a_volume_that_comes_in_several_parts_is_prepared_once(
    phantoms: list[Phantom], tmp_path: Path, cached: bool
) -> None:
    parts = [case_of(phantoms[0], vouched={0: [k]}) for k in (3, 4)]
    cache = tmp_path if cached else None
    together = LabelledScans.from_cases(
        [*parts, case_of(phantoms[1], "b")], OWN_GRID, ["liver", "spleen"], cache
    )
    assert together[0].image is together[1].image
    assert together[1].image is not together[2].image
    for scan, part in zip(together, parts, strict=False):
        (alone,) = LabelledScans.from_cases([part], OWN_GRID, ["liver", "spleen"])
        assert scan.scan.id == alone.scan.id
        assert scan.scan.stats == alone.scan.stats
        np.testing.assert_array_equal(scan.image[:], alone.image[:])
        np.testing.assert_array_equal(scan.labels[:], alone.labels[:])


def test_a_scan_that_comes_twice_with_its_axes_turned_round_is_one_patients(phantoms: list[Phantom]) -> None:
    first, other = phantoms[:2]
    mirrored = np.diag([-1.0, -1.0, 1.0, 1.0])
    mirrored[:2, 3] = first.volume.shape_kji[2] - 1, first.volume.shape_kji[1] - 1
    affine = first.volume.ijk_to_ras @ mirrored
    twin = LabelledCase(
        "exported from DICOM",
        "another name",
        Volume(first.volume.voxels_kji[:, ::-1, ::-1], affine),
        Segmentation(first.segmentation.labels_kji[:, ::-1, ::-1], affine, first.segmentation.segments),
    )
    scans = LabelledScans.from_cases([twin, case_of(other, "c"), case_of(first)], OWN_GRID, ["liver"]).scans
    assert [scan.patient for scan in scans] == ["a", "c", "a"]


def test_the_cache_gives_the_same_as_memory(phantoms: list[Phantom], tmp_path: Path) -> None:
    contract = InputContract(spacing_kji_mm=(None, 8.0, 8.0))
    cases = [case_of(phantom, str(n)) for n, phantom in enumerate(phantoms)]
    kept_in_memory = LabelledScans.from_cases(cases, contract, ["liver", "spleen"])
    for _ in range(2):
        cached = LabelledScans.from_cases(cases, contract, ["liver", "spleen"], tmp_path)
        for one, other in zip(kept_in_memory, cached, strict=True):
            assert one.scan == other.scan
            np.testing.assert_array_equal(one.image[:], other.image[:])
            np.testing.assert_array_equal(one.labels[:], other.labels[:])
    other_organ = LabelledScans.from_cases(cases, contract, ["spleen"], tmp_path)
    assert set(np.unique(all_of(other_organ))) == {0, 1}
    assert len(list(tmp_path.rglob("*.b2nd"))) == 9


# ---- folders

SEGMENTS = (Segment("liver", 1, default_color(1)), Segment("spleen", 2, default_color(2)))


def small(seed: int) -> tuple[Volume, Segmentation]:
    voxels = np.full((6, 12, 14), -1000, np.int16)
    voxels[:, 2:10, 2:12] = np.random.default_rng(seed).integers(0, 90, (6, 8, 10))
    labels = np.zeros(voxels.shape, np.uint8)
    labels[1:4, 4:7, 4:8] = 1
    labels[2:5, 8:9, 4:8] = 2
    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    return Volume(voxels, affine), Segmentation(labels, affine, SEGMENTS)


def put(seed: int, image: Path, labels: Path | None = None, named: bool = True) -> None:
    volume, truth = small(seed)
    image.parent.mkdir(parents=True, exist_ok=True)
    write_volume(volume, image)
    if labels is not None:
        labels.parent.mkdir(parents=True, exist_ok=True)
        write_segmentation(truth, labels)
        if not named:
            next(labels.parent.glob("*.labels.json")).unlink()


def test_case_folders_and_pairs_are_found_in_any_mix(tmp_path: Path) -> None:
    put(1, tmp_path / "case" / "ct.nii.gz", tmp_path / "case" / "label.nii.gz")
    put(2, tmp_path / "slicer" / "scan.nrrd", tmp_path / "slicer" / "scan.seg.nrrd")
    put(3, tmp_path / "set" / "images" / "x.nii.gz", tmp_path / "set" / "labels" / "x.mha")
    put(
        4,
        tmp_path / "nn" / "imagesTr" / "y_0000.nii.gz",
        tmp_path / "nn" / "labelsTr" / "y.nii.gz",
        named=False,
    )
    put(5, tmp_path / "nn" / "imagesTr" / "y_0001.nii.gz")
    put(6, tmp_path / "nn" / "imagesTs" / "z_0000.nii.gz")
    put(7, tmp_path / "beside" / "u.nii.gz", tmp_path / "beside" / "u_seg.nii.gz")
    put(8, tmp_path / "beside" / "v.nii.gz", tmp_path / "beside" / "v_seg.nii.gz")
    put(9, tmp_path / "alone" / "ct.nii.gz")
    (tmp_path / "nn" / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "liver": 1, "spleen": 2, "tumour": 3}})
    )
    cases = find_cases(tmp_path)
    assert {case.name: Path(str(case.labels)).name for case in cases} == {
        "beside/u.nii.gz": "u_seg.nii.gz",
        "beside/v.nii.gz": "v_seg.nii.gz",
        "case/ct.nii.gz": "label.nii.gz",
        "nn/imagesTr/y_0000.nii.gz": "y.nii.gz",
        "set/images/x.nii.gz": "x.mha",
        "slicer/scan.nrrd": "scan.seg.nrrd",
    }
    scans = LabelledScans.from_folder(tmp_path, OWN_GRID, ["spleen", "tumour"])
    assert len(scans) == 6
    assert {scan.scan.name: scan.known for scan in scans}["nn/imagesTr/y_0000.nii.gz"] == (True, True)
    assert all((np.asarray(scan.labels[:]) == 1).sum() == 12 for scan in scans)


@pytest.mark.parametrize(
    ("labels", "names", "known"),
    [("labels", "labels", True), ("labels", "", True), ("images", "images", False)],
)
def test_names_of_a_data_set_say_that_each_of_its_cases_knows_all(
    tmp_path: Path, labels: str, names: str, known: bool
) -> None:
    """Of a patient without a tumour it is known that there is none; in a case folder perhaps nobody looked for one."""
    put(1, tmp_path / "images" / "x.nii.gz", tmp_path / labels / "x_label.nii.gz", named=False)
    if labels != "images":
        (tmp_path / labels / "x_label.nii.gz").rename(tmp_path / labels / "x.nii.gz")
    listed = {"1": "liver", "2": "spleen", "3": "tumour"}
    (tmp_path / names / "labels.json").write_text(json.dumps(listed))
    scans = LabelledScans.from_folder(tmp_path, OWN_GRID, ["liver", "tumour"])
    assert scans[0].known == (True, known)


def test_empty_label_maps_are_said_to_be_empty(tmp_path: Path) -> None:
    put(1, tmp_path / "case" / "ct.nii.gz")
    volume, _ = small(1)
    write_image(tmp_path / "case" / "label.nii.gz", np.zeros(volume.shape_kji, np.uint8), volume.ijk_to_ras)
    with pytest.raises(InputError, match="The label maps are empty; draw liver in at least one"):
        LabelledScans.from_folder(tmp_path, OWN_GRID, ["liver"])


def test_a_label_map_goes_to_the_image_of_its_name_and_to_no_other(tmp_path: Path) -> None:
    put(1, tmp_path / "ct.nii.gz")
    put(2, tmp_path / "pet.nii.gz", tmp_path / "pet_seg.nii.gz")
    assert [(c.name, Path(str(c.labels)).name) for c in find_cases(tmp_path)] == [
        ("pet.nii.gz", "pet_seg.nii.gz")
    ]


def test_a_folder_whose_name_begins_with_image_is_looked_through_like_any_other(tmp_path: Path) -> None:
    put(1, tmp_path / "image001" / "ct.nii.gz", tmp_path / "image001" / "label.nii.gz")
    put(2, tmp_path / "images" / "p.nii.gz", tmp_path / "images" / "p_seg.nii.gz")
    assert [case.name for case in find_cases(tmp_path)] == ["image001/ct.nii.gz", "images/p.nii.gz"]


def test_nothing_below_a_folder_of_labels_is_taken_for_a_scan(tmp_path: Path) -> None:
    put(1, tmp_path / "images" / "p1" / "ct.nii.gz", tmp_path / "labels" / "p1" / "ct.nii.gz")
    found = find_sources(tmp_path)
    assert [source.name for source in found.sources] == ["images/p1/ct.nii.gz"]


def test_what_nnunet_is_told_to_ignore_is_unknown_voxel_by_voxel(tmp_path: Path) -> None:
    volume, truth = small(1)
    labels = truth.labels_kji.copy()
    labels[0], labels[1, 0] = 3, 3
    put(1, tmp_path / "imagesTr" / "y_0000.nii.gz")
    (tmp_path / "labelsTr").mkdir()
    write_image(tmp_path / "labelsTr" / "y.nii.gz", labels, volume.ijk_to_ras)
    names = {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": names}))
    scans = LabelledScans.from_folder(tmp_path, OWN_GRID, ["liver"])
    known = scans[0].native.labels_to_native(all_of(scans))
    np.testing.assert_array_equal(known == IGNORE, labels == 3)
    np.testing.assert_array_equal(known == 1, labels == 1)
    in_memory = LabelledScans.from_cases([scans[0].case.in_memory()], OWN_GRID, ["liver"])
    np.testing.assert_array_equal(all_of(in_memory), all_of(scans))


def test_a_dicom_series_may_be_a_case(tmp_path: Path) -> None:
    volume, truth = small(1)
    (tmp_path / "p").mkdir()
    for k, plane in enumerate(volume.voxels_kji):
        image = SimpleITK.GetImageFromArray(plane[None])
        image.SetSpacing((2.0, 2.0, 4.0))
        tags = {
            "0010|0020": "ID-1", "0008|0060": "CT", "0020|000e": "1.2.3.4", "0020|000d": "1.2.3.5",
            "0008|0018": f"1.2.3.4.{k + 1}", "0020|0032": f"0\\0\\{4 * k}", "0020|0037": "1\\0\\0\\0\\1\\0",
        }  # fmt: skip
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer = SimpleITK.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(tmp_path / "p" / f"{k}.dcm"))
        writer.Execute(image)
    placed = read_volume(tmp_path / "p")
    write_segmentation(
        Segmentation(truth.labels_kji, placed.ijk_to_ras, truth.segments), tmp_path / "p" / "label.nii.gz"
    )
    scans = LabelledScans.from_folder(tmp_path, OWN_GRID, ["liver"])
    assert scans[0].scan.patient.startswith("dicom-")
    np.testing.assert_array_equal(scans[0].native.labels_to_native(all_of(scans)) == 1, truth.mask("liver"))


def test_a_case_that_does_not_fit_is_named_and_left_out(tmp_path: Path) -> None:
    put(1, tmp_path / "good" / "ct.nii.gz", tmp_path / "good" / "label.nii.gz")
    put(2, tmp_path / "bad" / "ct.nii.gz", tmp_path / "bad" / "label.nii.gz")
    write_volume(Volume(small(2)[0].voxels_kji[:-1], np.eye(4)), tmp_path / "bad" / "ct.nii.gz")
    heard: list[str] = []
    scans = LabelledScans.from_folder(
        tmp_path, OWN_GRID, ["liver"], on_event=lambda e: heard.append(e.text) if isinstance(e, Log) else None
    )
    assert [scan.scan.name for scan in scans] == ["good/ct.nii.gz"]
    assert len(heard) == 1
    assert heard[0].startswith("bad/ct.nii.gz was left out: label.nii.gz has shape")


def test_a_case_of_another_modality_is_refused_unless_asked_for(tmp_path: Path) -> None:
    put(1, tmp_path / "a" / "ct.nii.gz", tmp_path / "a" / "label.nii.gz")
    _, truth = small(2)
    magnetic = np.random.default_rng(0).integers(0, 900, truth.shape_kji).astype(np.int16)
    put(2, tmp_path / "b" / "mr.nii.gz", tmp_path / "b" / "label.nii.gz")
    write_volume(Volume(magnetic, truth.ijk_to_ras), tmp_path / "b" / "mr.nii.gz")
    with pytest.raises(InputError, match=r"b/mr\.nii\.gz looks like MR, but this input is made for CT"):
        LabelledScans.from_folder(tmp_path, OWN_GRID, ["liver"])
    assert len(LabelledScans.from_folder(tmp_path, OWN_GRID, ["liver"], mixed_modalities=True)) == 2
    (tmp_path / "b" / "meta.json").write_text('{"modality": "CT", "image": "mr.nii.gz"}')
    assert len(LabelledScans.from_folder(tmp_path, OWN_GRID, ["liver"])) == 2


def test_segments_that_no_case_knows_are_an_error_that_lists_what_there_is(tmp_path: Path) -> None:
    put(1, tmp_path / "a" / "ct.nii.gz", tmp_path / "a" / "label.nii.gz")
    with pytest.raises(
        InputError, match=r"No case is labelled with pancreas; the labels there are: liver, spleen"
    ):
        LabelledScans.from_folder(tmp_path, OWN_GRID, ["pancreas"])


def test_a_folder_without_cases_is_one_sentence(tmp_path: Path) -> None:
    put(1, tmp_path / "a" / "ct.nii.gz")
    with pytest.raises(InputError, match="holds no image with labels"):
        find_cases(tmp_path)


def test_segments_named_twice_are_refused(phantoms: list[Phantom]) -> None:
    with pytest.raises(InputError, match="different segments"):
        LabelledScans.from_cases([case_of(phantoms[0])], OWN_GRID, ["liver", "liver"])
